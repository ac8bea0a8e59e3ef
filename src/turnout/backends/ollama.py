"""Ollama over its native API (facts/services.md, section 1): /v1 cannot set the window, so it is not used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Backend, Identity, Inspection, dict_of, int_of, json_object, rows, text_of
from turnout.errors import BackendError, EndpointBusyError
from turnout.types import ChatRequest, Endpoint, Health, Json, Model, WireFormat
from turnout.wire import ollama as wire

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# Without OLLAMA_CONTEXT_LENGTH and with little VRAM the server allocates 4096; with more it allocates more, so an
# unloaded model's window is at least this (facts/services.md, Default context row).
SMALLEST_DEFAULT_WINDOW = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CAPABILITY = {"completion": "chat", "insert": "fim", "embedding": "embeddings"}
_SIZE = re.compile(r"([\d.]+)\s*([KMBT])", re.IGNORECASE)
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
        models = tuple(m for row in rows(listing) if (m := _model(row, loaded.get(text_of(row.get("name"))))))
        return Inspection(Health.ONLINE, "answers" if models else "has no model", models)

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
        """Its queue-full answer says ``server busy``; the rest are the words all servers share."""
        text = base.error_text(body)
        if "server busy" in text:
            return EndpointBusyError(f"{endpoint.name} is busy: {text}", endpoint=endpoint.name, status=status)
        return base.classify_error(endpoint, status, headers, body)


def _json(reply: Reply | None) -> dict[str, Json]:
    return json_object(reply.body) if reply is not None and reply.status == 200 else {}


def _model(row: dict[str, Json], loaded: dict[str, Json] | None) -> Model | None:
    name = text_of(row.get("name")) or text_of(row.get("model"))
    if not name or name != base.clean(name, 1000):
        return None
    details = dict_of(row.get("details"))
    capabilities = row.get("capabilities")
    allocated = int_of(loaded.get("context_length")) if loaded else 0
    trained = int_of(details.get("context_length"))
    default = min(SMALLEST_DEFAULT_WINDOW, trained) if trained else SMALLEST_DEFAULT_WINDOW
    return Model(
        id=name,
        window=allocated or default,
        max_window=trained,
        window_source="known" if allocated else "guessed",
        resident=loaded is not None,
        capabilities=frozenset(_CAPABILITY.get(c, c) for c in capabilities if isinstance(c, str))
        if isinstance(capabilities, list)
        else frozenset(),
        family=text_of(details.get("family")),
        parameters=_parameters(text_of(details.get("parameter_size"))),
        size=int_of(row.get("size")),
        quantization=text_of(details.get("quantization_level")),
        digest=text_of(row.get("digest")),
        remote=bool(row.get("remote_host") or row.get("remote_model")) or name.endswith(("-cloud", ":cloud")),
    )


def _parameters(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    try:
        return int(float(match[1]) * _UNIT[match[2].upper()]) if match else 0
    except ValueError:
        return 0
