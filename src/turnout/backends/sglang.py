"""SGLang (facts/services.md, section 14; details read in its source, 0.5.23)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, first_owner, float_of, int_of, json_object, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible, tokenized
from turnout.backends.shelf import Shelf
from turnout.errors import BackendError, ContextOverflowError
from turnout.types import ChatRequest, Endpoint, Health, Json, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_OF_INPUT = re.compile(r"(\d{1,12}) tokens from the input")
_NOTES = ("fetches the image addresses in a request",)


class SgLang(OpenAICompatible):
    """One model, loaded before its port opens. ``/health`` is never asked for: it has the model generate a token."""

    kind = "sglang"
    title = "SGLang"
    shelf = Shelf(title)
    default_urls = ("http://127.0.0.1:30000",)
    probes = ("/v1/models", "/", "/ready")
    template_switch = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner named in its model list, by its greeting, else by what it refuses without a key and what not."""
        if first_owner(replies) == "sglang":
            return Identity(self.kind, "GET /v1/models is owned by sglang")
        root = replies.get("/")
        if root is not None and root.status == 200 and root.body.strip()[:30] == b'"SGLang is running"':
            return Identity(self.kind, "its greeting")
        ready = replies.get("/ready")
        refused = all(path in replies and _unauthorized(replies[path]) for path in ("/", "/v1/models"))
        if refused and ready is not None and ready.status in (200, 404, 503):
            return Identity(self.kind, "GET / is Unauthorized, GET /ready is not")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """``/model_info`` is what it was started with, ``/v1/loads`` who runs and waits (newer servers have it)."""
        root = base.at_root(endpoint)
        found, info, loads = await asyncio.gather(
            super().inspect(client, endpoint, timeout),
            base.get_object(client, self, root, "/model_info", timeout),
            base.get_object(client, self, root, "/v1/loads", timeout),
        )
        if found.health is not Health.ONLINE:
            return found
        capabilities, family = _capabilities(info), base.clean(text_of(info.get("model_type")), 60)
        ranks = rows(loads.get("loads"))
        return replace(
            found,
            models=tuple(replace(m, resident=True, capabilities=capabilities, family=family) for m in found.models),
            slots=_total(ranks, "max_running_requests"),
            busy=_total(ranks, "num_running_reqs") if ranks else None,
            waiting=_total(ranks, "num_waiting_reqs") if ranks else None,
            capacity=1,
            notes=_NOTES if info.get("has_image_understanding") is True else (),
            version=base.clean(text_of(loads.get("version")), 60),
            speed=sum(float_of(rank.get("gen_throughput")) for rank in ranks),
        )

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Of prompt and answer together being too long, it says the prompt's share last."""
        error = super().error(endpoint, status, headers, body)
        if isinstance(error, ContextOverflowError) and (match := _OF_INPUT.search(error.message)):
            error.prompt_tokens = int(match[1])
        return error

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """By ``/tokenize``, which renders messages as for a chat completion."""
        fields = ("tools", "tool_choice", "reasoning_effort", "chat_template_kwargs")
        return await tokenized(client, self, endpoint, self.switched(request), model, fields)


def _unauthorized(reply: Reply) -> bool:
    return reply.status == 401 and json_object(reply.body) == {"error": "Unauthorized"}


def _capabilities(info: Mapping[str, Json]) -> frozenset[str]:
    """What the server was started for; empty for a server too old to tell."""
    if info.get("is_generation") is False:
        return frozenset({"embeddings"})
    if "tool_call_parser" not in info:
        return frozenset()
    told = {
        "tools": bool(info["tool_call_parser"]),
        "thinking": bool(info.get("reasoning_parser")),
        "vision": info.get("has_image_understanding") is True,
    }
    return frozenset({"chat", *(name for name, able in told.items() if able)})


def _total(ranks: list[dict[str, Json]], name: str) -> int:
    """The sum over the server's data-parallel ranks."""
    return sum(int_of(rank.get(name)) for rank in ranks)
