"""llama-swap, which starts and stops other servers as requests ask for their models (facts/services.md, section 14).

Fields beyond the facts are of its source of 2026-08-22: ``internal/server`` and ``internal/swaputil``.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import quote

from turnout.backends import base
from turnout.backends.base import (
    Identity,
    Inspection,
    dict_of,
    first_owner,
    json_object,
    json_rows,
    replied,
    rows,
    text_of,
)
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.errors import BackendError, EndpointLoadingError, UnknownModelError
from turnout.types import Endpoint, Health, Json, Limits, Model
from turnout.wire.base import Lines

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

MAX_NAMED = 8
MAX_RUNNING, MAX_COMMAND = 64, 8_000  # processes, and characters of a command, that are read: taking words is slow
_DAY = 86_400.0
_FEED = Limits(connect=3.0, first_byte=30.0, silence=_DAY, total=_DAY)
_CHOICES = ("selector", "profile")
_KEY_REALM = 'realm="llama-swap"'


class LlamaSwap(OpenAICompatible):
    """Its list is the configuration; ``/running`` is what runs. A request to another model swaps."""

    kind = "llamaswap"
    title = "llama-swap"
    default_urls = ("http://127.0.0.1:8080",)
    key_headers = ("Authorization", "X-Api-Key")
    probes = ("/v1/models", "/api/version")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner in its list, its build, or the realm that it wants a key for."""
        build = replied(replies, "/api/version")
        version = text_of(build.get("version")) if {"commit", "build_date"} <= build.keys() else ""
        if first_owner(replies) == "llama-swap":
            return Identity(self.kind, "GET /v1/models is owned by llama-swap", version)
        if version:
            return Identity(self.kind, "GET /api/version tells its build", version)
        listed = replies.get("/v1/models")
        if listed is not None and listed.status == 401 and _KEY_REALM in listed.headers.get("www-authenticate", ""):
            return Identity(self.kind, f"GET /v1/models asks for a key of the {_KEY_REALM}")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list and ``/running``; nothing under ``/upstream`` is asked, which starts a model."""
        root = base.at_root(endpoint)
        listing, running = await asyncio.gather(
            super().inspect(client, endpoint, timeout),
            base.get_object(client, self, root, "/running", timeout),
        )
        if listing.health is not Health.ONLINE:
            return listing
        processes = {text_of(row.get("model")): row for row in rows(running.get("running"))[:MAX_RUNNING]}
        models = tuple(_with_process(m, processes) if running else m for m in listing.models)
        starting = base.clean(", ".join(name for name, row in processes.items() if row.get("state") == "starting"))
        told = [text_of(row.get("proxy")) for row in processes.values()]
        return Inspection(
            Health.ONLINE,
            f"starting {starting}" if starting else listing.reason,
            models,
            # It swaps one model for the other unless its groups say otherwise, which it tells only by doing so.
            capacity=max(1, len(processes)),
            children=tuple(url for proxy in told if (url := base.child_url(root, proxy))),
            notes=_notes(models, [proxy for proxy in told if not base.child_url(root, proxy)]),
        )

    def model(self, row: dict[str, Json]) -> Model | None:
        """A configured model or an alias; a peer's is remote; selectors and profiles choose one, which we do."""
        model = super().model(row)
        about = dict_of(dict_of(row.get("meta")).get("llamaswap"))
        if model is None or about.get("type") in _CHOICES:
            return None
        # "loaded" here means that its process is not stopped; it may still be starting.
        loaded = text_of(dict_of(row.get("status")).get("value"))
        return replace(
            model,
            resident=loaded == "loaded" if loaded else None,
            capabilities=_capabilities(row),
            remote=about.get("type") == "peer" or "peerID" in about,
        )

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its own refusals; what the server behind it says is passed on."""
        text = base.error_text(body)
        if status == 404 and "for requested model" in text:
            return UnknownModelError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        if status == 503 and "process is not ready" in text:
            return EndpointLoadingError(f"{endpoint.name} is loading its model: {text}", endpoint=endpoint.name)
        return base.classify_error(endpoint, status, headers, body)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """As its own page does: a GET that is passed to the model is answered when the model is there."""
        told(f"{endpoint.name} starts the server of {model.id}")
        root = base.at_root(endpoint)
        url = client.request_url(root.url, f"/upstream/{quote(model.id)}/")
        reply = await client.fetch(
            "GET",
            url,
            headers=base.auth_headers(self, endpoint),
            timeout=endpoint.limits.first_byte,
            max_bytes=base.MAX_REPLY_BYTES,
        )
        # A refusal by the server behind it (no page at its root) came from a model that runs.
        if reply.status >= 500 or (reply.status >= 400 and json_object(reply.body).get("src") == "llama-swap"):
            raise self.error(endpoint, reply.status, reply.headers, reply.body)
        told(f"{model.id} is loaded")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Stops the model's server; answered when it has stopped."""
        path = f"/api/models/unload/{quote(model.id)}"
        await base.post(client, self, base.at_root(endpoint), path, {}, endpoint.limits.first_byte)

    def changes(self, client: HttpClient, endpoint: Endpoint) -> AsyncGenerator[str, None]:
        """``GET /api/events``: one line for every model whose state changed."""
        return self._changes(client, base.at_root(endpoint))

    async def _changes(self, client: HttpClient, endpoint: Endpoint) -> AsyncGenerator[str, None]:
        url = client.request_url(endpoint.url, "/api/events")
        headers = base.auth_headers(self, endpoint) | {"Accept": "text/event-stream"}
        before: dict[str, str] | None = None
        async with client.stream("GET", url, body=None, headers=headers, limits=_FEED, endpoint=endpoint.name) as reply:
            if reply.status != 200:
                raise self.error(endpoint, reply.status, reply.headers, await reply.read_all(64_000))
            lines = Lines()
            async for data in reply.chunks():
                for now in filter(None, map(_states, lines.feed(data))):
                    changed = {} if before is None else {m: s for m, s in now.items() if before.get(m) != s}
                    before = now
                    for name, state in changed.items():
                        yield f"{name} {state}"
                await asyncio.sleep(base.FEED_GAP)


def _with_process(model: Model, processes: Mapping[str, dict[str, Json]]) -> Model:
    row = processes.get(model.id)
    if row is None:
        # An alias has no process of its own name: what the list says of it stays.
        return model
    window = model.window or _window_of(text_of(row.get("cmd")))
    return replace(model, resident=row.get("state") == "ready", window=window)


def _window_of(command: str) -> int:
    """The window of one slot in a command line of llama-server or vLLM, or 0 when it names none."""
    if len(command) > MAX_COMMAND:
        return 0
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return 0
    given = dict(pairwise(words))
    window = next((n for name in ("--ctx-size", "-c", "--max-model-len") if (n := _whole(given.get(name)))), 0)
    slots = next((n for name in ("--parallel", "-np") if (n := _whole(given.get(name)))), 1)
    return window if {"--kv-unified", "-kvu"} & set(words) else window // slots


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _capabilities(row: dict[str, Json]) -> frozenset[str]:
    """What the configuration says that a model can do; empty when it says nothing."""
    told, shape = dict_of(row.get("capabilities")), dict_of(row.get("architecture"))
    written = shape.get("output_modalities")
    found = {"chat"} if isinstance(written, list) and "text" in written else set()
    if told.get("function_calling") is True:
        found |= {"chat", "tools"}
    if told.get("vision") is True:
        found.add("vision")
    return frozenset(found)


def _notes(models: tuple[Model, ...], elsewhere: list[str]) -> tuple[str, ...]:
    notes = []
    if peers := sum(model.remote for model in models):
        notes.append(f"passes requests for {peers} of its models to other machines (peers)")
    notes += [
        f"a model of its is served at {base.clean(proxy)}, not by a process of its own"
        for proxy in elsewhere[:MAX_NAMED]
    ]
    return tuple(notes)


def _states(line: bytes) -> dict[str, str] | None:
    """The state of every model in a line of the feed; None for its other lines, which are mostly logs."""
    if not line.startswith(b"data:") or b'"modelStatus"' not in line[:64]:
        return None
    told = json_rows(text_of(json_object(line[5:]).get("data")).encode("utf-8", "replace"))
    return {base.clean(text_of(row.get("id"))): base.clean(text_of(row.get("state"))) for row in told}
