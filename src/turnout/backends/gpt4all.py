"""GPT4All (facts/services.md, section 9; details read in its last source, 3.10)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, first_owner, json_object
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, data_home, only_gguf, together
from turnout.errors import BackendError, EndpointDownError, ServerFailedError
from turnout.guard.model_manifest import Manifest
from turnout.types import ChatRequest, Endpoint, Health, Json, Message, Model, message
from turnout.wire.base import result_text

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# What the application sets for a model that nobody changed. It tells neither; without max_tokens it stops after 16.
DEFAULT_WINDOW, ANSWER_TOKENS = 2048, 4096
_POST_ONLY = ("method_not_supported", "Only POST requests are accepted.")
_OFF = "its API server is switched off in the application's settings"


class _Shelf(Shelf):
    """One folder of single files, this user's, unless its settings say otherwise (its chat/src/mysettings.cpp)."""

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """``nomic.ai/GPT4All`` where applications keep local data."""
        local = Path(env["LOCALAPPDATA"]) if sys.platform == "win32" and env.get("LOCALAPPDATA") else data_home(env)
        return (local / "nomic.ai" / "GPT4All",) if local is not None else ()

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """The weights alone: it takes every GGUF there for a model."""
        weights = only_gguf(manifest, self.title, parts=False)
        alone = msgspec.structs.replace(manifest, files=(*manifest.of("manifest"), *weights))
        return together(alone, name, "start it anew: it lists the files that it finds then")


class Gpt4All(OpenAICompatible):
    """A desktop application whose server answers one request at a time, in one piece, and knows little of the protocol.

    Every field that it does not know is refused. A model that it does not have is answered by its default model, so
    only what it lists is asked for.
    """

    kind = "gpt4all"
    title = "GPT4All"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:4891",)
    default_slots = 1
    structures = False
    probes = ("/v1/models", "/v1/chat/completions")
    streams = False

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner named in its model list, else by how it refuses to chat by GET."""
        if first_owner(replies) == "humanity":
            return Identity(self.kind, "GET /v1/models is owned by humanity")
        chat = replies.get("/v1/chat/completions")
        if chat is not None and chat.status == 405:
            refused = dict_of(json_object(chat.body).get("error"))
            if (refused.get("code"), refused.get("message")) == _POST_ONLY:
                return Identity(self.kind, "GET /v1/chat/completions is refused in its words")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """It has no keys: a 401 is its switch."""
        found = await super().inspect(client, endpoint, timeout)
        if found.health is Health.NEEDS_KEY:
            return Inspection(Health.DEGRADED, _OFF)
        return replace(found, slots=1, capacity=1)

    def model(self, row: dict[str, Json]) -> Model | None:
        """The list has names alone."""
        found = super().model(row)
        if found is None:
            return None
        return replace(found, window=DEFAULT_WINDOW, window_source="guessed", capabilities=frozenset({"chat"}))

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """Only what it takes."""
        known = ChatRequest(
            _plain(request.messages),
            max_tokens=request.max_tokens or ANSWER_TOKENS,
            temperature=request.temperature,
            top_p=request.top_p,
            extras={key: value for key, value in request.extras.items() if key == "min_p"},
        )
        return super().render(known, model, window)

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Most of its refusals have no words."""
        where = {"endpoint": endpoint.name, "status": status}
        if status == 401:
            hint = "switch on the local API server there"
            return EndpointDownError(f"{endpoint.name}: {_OFF}", hint=hint, **where)  # type: ignore[arg-type]
        if status == 500 and not body:
            what = "could not load the model, or the prompt exceeds the window that its application sets"
            return ServerFailedError(f"{endpoint.name} {what}; it does not say which", **where)  # type: ignore[arg-type]
        return super().error(endpoint, status, headers, body)

    async def embed(self, client: HttpClient, endpoint: Endpoint, model: Model, texts: Sequence[str]) -> base.Vectors:
        """It has no such path."""
        raise self.cannot("make embeddings", endpoint)


def _plain(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Text and three roles are all that a message may have: what a tool gave back is told as the user's words."""
    told = [(m.role, "\n".join(t for t in (*(result_text(r) for r in m.tool_results), m.text) if t)) for m in messages]
    return tuple(message("user" if role == "tool" else role, text) for role, text in told if text)
