"""llama.cpp's ``llama-server``, and everything that is one inside (facts/services.md section 7, backends.md 3.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, int_of, json_object, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible, meta_of
from turnout.types import ChatRequest, Endpoint, Health, Json, Model
from turnout.wire import openai_chat

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply


class LlamaCpp(OpenAICompatible):
    """The server names itself in every reply's Server header, also while it loads."""

    kind = "llamacpp"
    title = "llama.cpp"
    default_urls = ("http://127.0.0.1:8080",)
    key_headers = ("Authorization", "X-Api-Key")
    probes = ("/v1/models",)

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the Server header, else by the owner named in the model list."""
        for path, reply in replies.items():
            if reply.headers.get("server", "") == "llama.cpp":
                return Identity(self.kind, f"GET {path} has the header Server: llama.cpp")
        listed = replies.get("/v1/models")
        listing = rows(json_object(listed.body).get("data")) if listed is not None else []
        if listing and listing[0].get("owned_by") == "llamacpp" and meta_of(listing[0]):
            return Identity(self.kind, "GET /v1/models is owned by llamacpp and has meta")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """List and ``/props`` (neither wakes a sleeping server; ``/slots`` would)."""
        listing, props = await asyncio.gather(
            super().inspect(client, endpoint, timeout),
            base.get_object(client, self, endpoint, "/props", timeout),
        )
        if listing.health is not Health.ONLINE:
            return listing
        capabilities = _capabilities(props)
        sleeping = props.get("is_sleeping") is True
        models = tuple(_with_props(model, props, capabilities, sleeping) for model in listing.models)
        reason = "asleep, wakes on a request" if sleeping else listing.reason
        return Inspection(Health.ONLINE, reason, models, slots=int_of(props.get("total_slots")))

    def model(self, row: dict[str, Json]) -> Model | None:
        """``meta.n_ctx`` is the window of one slot; a router's rows have a status, and meta only while loaded."""
        model_id = text_of(row.get("id"))
        if not model_id or model_id != base.clean(model_id, 1000):
            return None
        meta = meta_of(row)
        status = text_of(dict_of(row.get("status")).get("value"))
        return Model(
            id=model_id,
            window=int_of(meta.get("n_ctx")) or _window_to_come(dict_of(row.get("status")).get("args")),
            max_window=int_of(meta.get("n_ctx_train")) or int_of(row.get("context_length")),
            resident=status == "loaded" if status else True,
            parameters=int_of(meta.get("n_params")),
            size=int_of(meta.get("size")),
            quantization=text_of(meta.get("ftype")),
        )

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """The server applies its own template and counts (facts/backends.md 3.1); a sleeping server is left asleep."""
        if model.resident is not True:
            return 0
        reply = await client.fetch(
            "POST",
            client.request_url(endpoint.url, "/v1/chat/completions/input_tokens"),
            body=openai_chat.render_request(request, model.id, stream=False),
            headers=base.auth_headers(self, endpoint) | {"Content-Type": "application/json"},
            timeout=2.0,
            max_bytes=100_000,
        )
        return int_of(json_object(reply.body).get("input_tokens")) if reply.status == 200 else 0


def _window_to_come(args: Json) -> int:
    """The window of one slot that a router's child will have at least, or 0 when its command line leaves it open.

    The window is shared out unless it is unified, which it is when the number of slots is left to the server.
    """
    words = [text_of(word) for word in args] if isinstance(args, list) else []
    given = dict(pairwise(words))
    slots = 1 if "--kv-unified" in words else _whole(given.get("--parallel")) or 1
    return _whole(given.get("--ctx-size")) // slots


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _capabilities(props: dict[str, Json]) -> frozenset[str]:
    caps = dict_of(props.get("chat_template_caps"))
    found = {"chat"} if props else set()
    if caps.get("supports_tools") is True:
        found.add("tools")
    if dict_of(props.get("modalities")).get("vision") is True:
        found.add("vision")
    return frozenset(found)


def _with_props(model: Model, props: dict[str, Json], capabilities: frozenset[str], sleeping: bool) -> Model:
    if not props or props.get("role") == "router":
        return model
    window = model.window or int_of(dict_of(props.get("default_generation_settings")).get("n_ctx"))
    return Model(
        id=model.id,
        window=window,
        max_window=model.max_window,
        resident=not sleeping,
        capabilities=capabilities,
        parameters=model.parameters,
        size=model.size,
        quantization=model.quantization or text_of(props.get("model_ftype")),
    )
