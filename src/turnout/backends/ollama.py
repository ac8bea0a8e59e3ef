"""Ollama over its native API (facts/services.md, section 1): /v1 cannot set the window, so it is not used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Backend, Identity, Inspection, dict_of, int_of, json_object, rows, text_of
from turnout.errors import BackendError, UnknownModelError
from turnout.types import ChatRequest, Endpoint, Health, Json, Model, WireFormat
from turnout.wire import ollama as wire

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# Without OLLAMA_CONTEXT_LENGTH and with little VRAM the server allocates 4096; with more it allocates more, so an
# unloaded model's window is at least this (facts/services.md, Default context row).
SMALLEST_DEFAULT_WINDOW = 4096
# Servers before the one whose /api/tags tells capabilities and trained windows are asked for them model by model.
MAX_SHOWN = 32
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CAPABILITY = {"completion": "chat", "insert": "fim", "embedding": "embeddings"}
_SIZE = re.compile(r"([\d.]+)\s*([KMBT])", re.IGNORECASE)
_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,9})$", re.MULTILINE)
_UNIT = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


class Ollama(Backend):
    """The server behind ``ollama serve``."""

    kind = "ollama"
    title = "Ollama"
    default_urls = ("http://127.0.0.1:11434",)
    wire = WireFormat.OLLAMA
    probes = ("/", "/api/version", "/api/status", "/api/tags")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """Many servers emulate /api/tags; its greeting with /api/status, or with real digests, is the evidence."""
        root = replies.get("/")
        version = text_of(_json(replies.get("/api/version")).get("version"))
        if root is None or b"Ollama is running" not in root.body[:200] or not version:
            return None
        if "disabled" in dict_of(_json(replies.get("/api/status")).get("cloud")):
            return Identity(self.kind, "its greeting and GET /api/status", version)
        digests = [text_of(row.get("digest")) for row in rows(_json(replies.get("/api/tags")).get("models"))]
        named = {text_of(row.get("name")) for row in rows(_json(replies.get("/api/tags")).get("models"))}
        real = all(_DIGEST.fullmatch(digest) for digest in digests) and len(set(digests)) * 2 >= len(named)
        return Identity(self.kind, "its greeting and its digests", version) if real else None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """``/api/tags`` is what is there, ``/api/ps`` what is loaded and with which window."""
        tags, running = await asyncio.gather(
            base.get(client, self, endpoint, "/api/tags", timeout), base.get(client, self, endpoint, "/api/ps", timeout)
        )
        if tags.status != 200:
            return Inspection(*base.health_of_status(tags.status, base.error_text(tags.body)))
        listing = json_object(tags.body).get("models")
        if not isinstance(listing, list):
            return Inspection(Health.DEGRADED, "GET /api/tags is not a model list")
        loaded = {text_of(row.get("name")): row for row in rows(_json(running).get("models"))}
        # A model of another machine is not asked for: the server would ask that machine.
        silent = [name for row in rows(listing) if "capabilities" not in row and (name := _name(row)) and not _far(row)]
        shown = await self._shown(client, endpoint, silent[:MAX_SHOWN], timeout / 2)
        models = tuple(
            _model(row, name, loaded.get(name), shown.get(name, {})) for row in rows(listing) if (name := _name(row))
        )
        return Inspection(Health.ONLINE, "answers" if models else "has no model", models)

    async def _shown(
        self, client: HttpClient, endpoint: Endpoint, names: list[str], timeout: float
    ) -> dict[str, dict[str, Json]]:
        """``/api/show`` of each model, which loads none; what does not come in time is left out."""

        async def show(name: str) -> dict[str, Json]:
            try:
                return _json(await base.post(client, self, endpoint, "/api/show", {"model": name}, timeout))
            except BackendError:
                return {}

        return dict(zip(names, await asyncio.gather(*map(show, names)), strict=True))

    def chat_path(self, endpoint: Endpoint) -> str:
        """The native chat."""
        return endpoint.chat_path or "/api/chat"

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """``num_ctx`` is the same in every request to a model: a changing one reloads it."""
        return wire.render_request(request, model.id, stream=True, num_ctx=window or None)

    def parser(self) -> base.StreamParser:
        """A fresh parser."""
        return wire.StreamParser()

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its 403 for a model that it only proxies is no refused key; the rest is common to all servers."""
        text = base.error_text(body)
        if status == 403 and "cloud is disabled" in text:
            return UnknownModelError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        return base.classify_error(endpoint, status, headers, body)


def _json(reply: Reply | None) -> dict[str, Json]:
    return json_object(reply.body) if reply is not None and reply.status == 200 else {}


def _name(row: dict[str, Json]) -> str:
    """The model's id, or "" when it is none that could be shown to people and sent back."""
    name = text_of(row.get("name")) or text_of(row.get("model"))
    return name if name == base.clean(name, 1000) else ""


def _far(row: dict[str, Json]) -> bool:
    """Whether another machine serves it through this server."""
    return bool(row.get("remote_host") or row.get("remote_model")) or _name(row).endswith(("-cloud", ":cloud"))


def _model(row: dict[str, Json], name: str, loaded: dict[str, Json] | None, shown: dict[str, Json]) -> Model:
    details, info = dict_of(row.get("details")), dict_of(shown.get("model_info"))
    told = row.get("capabilities", shown.get("capabilities"))
    trained = int_of(details.get("context_length"))
    trained = trained or int_of(info.get(f"{text_of(info.get('general.architecture'))}.context_length"))
    allocated = int_of(loaded.get("context_length")) if loaded else 0
    written = _NUM_CTX.search(text_of(shown.get("parameters")))
    # Nothing is allocated for a model that is not loaded: its Modelfile may say what will be, else the least default.
    to_come = int(written[1]) if written else SMALLEST_DEFAULT_WINDOW
    return Model(
        id=name,
        window=allocated or (min(to_come, trained) if trained else to_come),
        max_window=trained,
        window_source="known" if allocated or written else "guessed",
        resident=loaded is not None,
        capabilities=frozenset(_CAPABILITY.get(c, c) for c in told if isinstance(c, str))
        if isinstance(told, list)
        else frozenset(),
        family=text_of(details.get("family")),
        parameters=_parameters(text_of(details.get("parameter_size"))),
        size=int_of(row.get("size")),
        quantization=text_of(details.get("quantization_level")),
        digest=text_of(row.get("digest")),
        remote=_far(row),
    )


def _parameters(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    try:
        return int(float(match[1]) * _UNIT[match[2].upper()]) if match else 0
    except (ValueError, OverflowError):  # more than one dot, or digits without end
        return 0
