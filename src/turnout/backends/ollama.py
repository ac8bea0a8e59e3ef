"""Ollama over its native API (facts/services.md, section 1): /v1 cannot set the window, so it is not used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import (
    Backend,
    Identity,
    Inspection,
    Told,
    dict_of,
    int_of,
    json_object,
    rows,
    text_of,
)
from turnout.backends.ollama_shelf import OllamaShelf
from turnout.backends.ollama_store import ollama_files, ollama_stores
from turnout.backends.openai_compatible import vectors
from turnout.errors import BackendError, RequestRefusedError, UnknownModelError
from turnout.guard.identity import Files
from turnout.types import ChatRequest, Details, Endpoint, Health, Json, Model, WindowSource, WireFormat
from turnout.wire import ollama as wire
from turnout.wire.base import Completion

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# What every request that may load a model says of its window, where nobody chose another one: left to itself the server
# allocates 4096 tokens with little VRAM, which no coding agent fits into, and a value that changes reloads the model
# (facts/services.md section 1, Default context row).
CHOSEN_WINDOW = 16_384
# At servers that do not tell what they allocated.
SMALLEST_DEFAULT_WINDOW = 4096
FOREVER = -1  # keep_alive
# An unloaded model stays in /api/ps until its runner has ended (0.24, facts/backends.md section 5).
UNLOAD_SECONDS = 30.0
CLOUD_IS_ON = "its cloud models are not switched off: start it with OLLAMA_NO_CLOUD=1"
FOREIGN_NAME = "it refuses the name that it is addressed by (its Host check)"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CAPABILITY = {"completion": "chat", "insert": "fim", "embedding": "embeddings"}
_FROM = re.compile(r"^FROM \S*[/\\]sha256-([0-9a-f]{64})\s*$", re.MULTILINE)
_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,9})$", re.MULTILINE)


class Ollama(Backend):
    """The server behind ``ollama serve``. How many requests and models it takes at once it tells nobody."""

    kind = "ollama"
    title = "Ollama"
    default_urls = ("http://127.0.0.1:11434",)
    default_slots = 1
    takes_window = True
    wire = WireFormat.OLLAMA
    # Its Anthropic and OpenAI routes can neither be told a window nor be kept from dropping messages without a word.
    native = frozenset({WireFormat.OLLAMA, WireFormat.OLLAMA_GENERATE})
    from_root = True
    probes = ("/", "/api/version", "/api/status", "/api/tags")

    def __init__(self) -> None:
        self.shelf = OllamaShelf(self)

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """Many servers emulate /api/tags; its greeting with /api/status, or with real digests, is the evidence."""
        root = replies.get("/")
        version = text_of(_json(replies.get("/api/version")).get("version"))
        if root is None or b"Ollama is running" not in root.body[:200] or not version:
            return None
        if _cloud(_json(replies.get("/api/status"))):
            return Identity(self.kind, "its greeting and GET /api/status", version)
        digests = [text_of(row.get("digest")) for row in rows(_json(replies.get("/api/tags")).get("models"))]
        named = {text_of(row.get("name")) for row in rows(_json(replies.get("/api/tags")).get("models"))}
        real = all(_DIGEST.fullmatch(digest) for digest in digests) and len(set(digests)) * 2 >= len(named)
        return Identity(self.kind, "its greeting and its digests", version) if real else None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """``/api/tags`` is what is there, ``/api/ps`` what is loaded, ``/api/status`` whether the cloud is off."""
        tags, running, status = await asyncio.gather(
            base.get(client, self, endpoint, "/api/tags", timeout),
            base.get(client, self, endpoint, "/api/ps", timeout),
            base.get_object(client, self, endpoint, "/api/status", timeout),
        )
        if tags.status != 200:
            if _is_foreign_name(tags.status, tags.body):
                return Inspection(Health.DEGRADED, FOREIGN_NAME)
            return Inspection(*base.health_of_status(tags.status, base.error_text(tags.body)))
        listing = json_object(tags.body).get("models")
        if not isinstance(listing, list):
            return Inspection(Health.DEGRADED, "GET /api/tags is not a model list")
        loaded = {text_of(row.get("name")): row for row in rows(_json(running).get("models"))}
        cloud = _cloud(status)
        found = tuple(
            _model(row, name, loaded.get(name), local=bool(cloud)) for row in rows(listing) if (name := _name(row))
        )
        notes = (CLOUD_IS_ON,) if cloud.get("disabled") is False else ()
        return Inspection(Health.ONLINE, "answers" if found else "has no model", found, notes=notes)

    def lacks_details(self, model: Model) -> bool:
        """Servers before the one whose /api/tags tells capabilities and trained windows."""
        return not model.capabilities

    async def details(self, client: HttpClient, endpoint: Endpoint, model: Model, timeout: float) -> Details:
        """``/api/show``, which loads nothing."""
        body, limit = {"model": _sent(model)}, base.MAX_DETAILS_BYTES
        shown = _json(await base.post(client, self, endpoint, "/api/show", body, timeout, limit))
        info = dict_of(shown.get("model_info"))
        written = _NUM_CTX.search(text_of(shown.get("parameters")))
        return Details(
            capabilities=_capabilities(shown.get("capabilities")),
            max_window=int_of(info.get(f"{text_of(info.get('general.architecture'))}.context_length")),
            window=int(written[1]) if written else 0,
            weights=from_file[1] if (from_file := _FROM.search(text_of(shown.get("modelfile")))) else "",
        )

    async def window_when_loaded(self, client: HttpClient, endpoint: Endpoint, model: Model) -> int:
        """The ``num_ctx`` of its Modelfile, which no list tells."""
        if model.window_source != "configured" or endpoint.window:
            return model.window
        try:
            details = await self.details(client, endpoint, model, endpoint.limits.connect)
        except BackendError:
            return model.window
        return min(details.window, model.max_window or details.window) or model.window

    def chat_path(self, endpoint: Endpoint) -> str:
        """The native chat."""
        return endpoint.chat_path or "/api/chat"

    def files_of(self, model: Model, folders: Sequence[Path]) -> Files | None:
        """Its manifest and blobs; the server tells no path."""
        return ollama_files(model.id, model.digest, ollama_stores(folders))

    def native_path(self, endpoint: Endpoint, spoken: WireFormat) -> str:
        """The native chat, or what goes on with a prompt."""
        return "/api/generate" if spoken is WireFormat.OLLAMA_GENERATE else self.chat_path(endpoint)

    def told_window(self, model: Model, window: int) -> int | None:
        """``num_ctx``."""
        return _num_ctx(model, window)

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """``num_ctx`` is the same in every request to a model: a changing one reloads it. An effort is for models that
        think: to another it would be an error here, and has no meaning anywhere else."""
        if not request.thinking:
            request = replace(request, reasoning_effort="none")
        if request.reasoning_effort and model.capabilities and "thinking" not in model.capabilities:
            request = replace(request, reasoning_effort="")
        return wire.render_request(request, _sent(model), stream=True, num_ctx=_num_ctx(model, window))

    def parser(self) -> base.StreamParser:
        """A fresh parser."""
        return wire.StreamParser()

    def completion(self, endpoint: Endpoint, asked: Completion, model: Model, window: int) -> base.TextCall:
        """``/api/generate``, which has the window that ``/v1/completions`` lacks and applies no template if told so."""
        body = wire.render_text(asked, _sent(model), num_ctx=_num_ctx(model, window))
        return base.TextCall("/api/generate", body, wire.StreamParser)

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its 403s are no refused keys: it has none."""
        text = base.error_text(body)
        if status == 403 and "cloud is disabled" in text:
            return UnknownModelError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        if _is_foreign_name(status, body):
            hint = "name it in the configuration by localhost or by an IP address"
            return RequestRefusedError(
                f"{endpoint.name}: {FOREIGN_NAME}", endpoint=endpoint.name, status=403, hint=hint
            )
        return base.classify_error(endpoint, status, headers, body)

    async def embed(self, client: HttpClient, endpoint: Endpoint, model: Model, texts: Sequence[str]) -> base.Vectors:
        """By ``/api/embed``, with the window of the chats: another one would reload the model."""
        body = await self._about(client, endpoint, model) | {"input": list(texts), "truncate": False}
        reply = await base.post(client, self, endpoint, "/api/embed", body, endpoint.limits.first_byte)
        made = json_object(reply.body).get("embeddings")
        found: list[dict[str, Json]] = [
            {"index": place, "embedding": vector} for place, vector in enumerate(made if isinstance(made, list) else ())
        ]
        return vectors(found, len(texts), endpoint)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: Told) -> None:
        """A request without a prompt loads; it tells nothing until it is done. Kept until it is unloaded."""
        told(f"{endpoint.name} is loading {model.id}")
        body = await self._about(client, endpoint, model) | {"keep_alive": FOREVER, "stream": False}
        await base.post(client, self, endpoint, "/api/generate", body, endpoint.limits.total)
        told(f"{endpoint.name} has loaded {model.id}")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """A request without a prompt that keeps it for no time; it is gone once what still runs there has ended."""
        body = {"model": _sent(model), "keep_alive": 0, "stream": False}
        await base.post(client, self, endpoint, "/api/generate", body, endpoint.limits.first_byte)

        async def gone() -> bool:
            running = await base.get(client, self, endpoint, "/api/ps", UNLOAD_SECONDS)
            return all(_name(row) != model.id for row in rows(_json(running).get("models")))

        await base.until(gone, UNLOAD_SECONDS, f"{endpoint.name} did not free {model.id}", endpoint)

    async def _about(self, client: HttpClient, endpoint: Endpoint, model: Model) -> dict[str, object]:
        """The model and its window, as every request that may load it says them."""
        num_ctx = _num_ctx(model, await self.window_when_loaded(client, endpoint, model))
        return {"model": _sent(model)} | ({"options": {"num_ctx": num_ctx}} if num_ctx else {})


def _json(reply: Reply | None) -> dict[str, Json]:
    return json_object(reply.body) if reply is not None and reply.status == 200 else {}


def _cloud(status: dict[str, Json]) -> dict[str, Json]:
    """What ``/api/status`` says of the cloud; empty where there is no such route."""
    cloud = dict_of(status.get("cloud"))
    return cloud if "disabled" in cloud else {}


def _is_foreign_name(status: int, body: bytes) -> bool:
    """A server on loopback refuses a Host header that is not its own with a bare 403."""
    return status == 403 and not body.strip()


def _sent(model: Model) -> str:
    return model.id + model.sent_suffix


def _num_ctx(model: Model, window: int) -> int | None:
    """The window in every request to a model; nothing of a guess, which would reload a model that has another one."""
    return window if window and model.window_source != "guessed" else None


def _name(row: dict[str, Json]) -> str:
    """The model's id, or "" when it is none that could be shown to people and sent back."""
    name = text_of(row.get("name")) or text_of(row.get("model"))
    return name if name == base.clean(name, 1000) else ""


def _far(row: dict[str, Json]) -> bool:
    """Whether another machine serves it through this server."""
    return bool(row.get("remote_host") or row.get("remote_model")) or _name(row).endswith(("-cloud", ":cloud"))


def _capabilities(told: Json) -> frozenset[str]:
    names = [text_of(name) for name in told] if isinstance(told, list) else []
    return frozenset(_CAPABILITY.get(name, name) for name in names if name and name == base.clean(name, 40))


def _model(row: dict[str, Json], name: str, loaded: dict[str, Json] | None, *, local: bool) -> Model:
    """``local``: the server knows the suffix with which it answers 404 rather than ask another machine."""
    details = dict_of(row.get("details"))
    trained = int_of(details.get("context_length"))
    allocated = int_of(loaded.get("context_length")) if loaded else 0
    # Nothing is allocated for a model that is not loaded: it will be what we say.
    chosen = CHOSEN_WINDOW if loaded is None else SMALLEST_DEFAULT_WINDOW
    source: WindowSource = "known" if allocated else "configured" if loaded is None else "guessed"
    return Model(
        id=name,
        window=allocated or (min(chosen, trained) if trained else chosen),
        max_window=trained,
        window_source=source,
        resident=loaded is not None,
        capabilities=_capabilities(row.get("capabilities")),
        family=text_of(details.get("family")),
        parameters=base.parameters_of(text_of(details.get("parameter_size"))),
        size=int_of(row.get("size")),
        quantization=text_of(details.get("quantization_level")),
        digest=text_of(row.get("digest")),
        remote=_far(row),
        sent_suffix=":local" if local else "",
    )
