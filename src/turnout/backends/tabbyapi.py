"""TabbyAPI (facts/services.md, section 14; details read in its source of 2026-08-13)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from turnout.backends import base
from turnout.backends.base import (
    Identity,
    Inspection,
    dict_of,
    first_owner,
    int_of,
    json_object,
    replied,
    text_of,
)
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, in_folder
from turnout.errors import BackendError, KeyRefusedError, RequestRefusedError, ServerFailedError, UnknownModelError
from turnout.guard.model_manifest import Manifest, plain_name
from turnout.types import Endpoint, Health, Json, Model
from turnout.wire.base import Lines

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_NOTES = (
    "downloads models for whoever has its admin key",
    "fetches the image addresses in a request, unless disable_fetch_requests is set in its configuration",
)
_OPEN = "wants no key: whoever reaches it may load, unload and download models"


class _Shelf(Shelf):
    """A folder of each model below its ``model_dir`` (facts/services.md section 14)."""

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """Its own folder, also for one file."""
        return in_folder(manifest, name, plain_name(name), "load it with its admin key, or start it with this model")


class TabbyApi(OpenAICompatible):
    """One model in memory. Without inline loading, which is off by default, it answers for any other with that one.

    Its admin key as the endpoint's key lists every model and may load and unload; a plain key lists the loaded one.
    It does count messages, but without what opens the answer, so its count is not exact and not used.
    """

    kind = "tabbyapi"
    title = "TabbyAPI"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:5000",)
    key_headers = ("Authorization", "X-Api-Key", "X-Admin-Key")
    probes = ("/.well-known/serviceinfo", "/v1/models")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its service information, which wants no key, else by the owner named in its model list."""
        software = dict_of(replied(replies, "/.well-known/serviceinfo").get("software"))
        if software.get("name") == "TabbyAPI":
            return Identity(self.kind, "GET /.well-known/serviceinfo names TabbyAPI")
        if first_owner(replies) != "tabbyAPI":
            return None
        return Identity(self.kind, "GET /v1/models is owned by tabbyAPI")

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list, the model that is loaded, and ``/health``, which keeps every failure until a restart."""
        root = base.at_root(endpoint)
        found, current, health = await asyncio.gather(
            super().inspect(client, endpoint, timeout),
            base.try_get(client, self, root, "/v1/model", timeout),
            base.try_get(client, self, root, "/health", timeout),
        )
        if found.health is not Health.ONLINE:
            return found
        found = replace(found, capacity=1, notes=_NOTES if endpoint.key else (*_NOTES, _OPEN))
        if current is None or current.status not in (200, 503):
            return found
        card = json_object(current.body) if current.status == 200 else {}
        loaded, told = self.model(card), dict_of(card.get("parameters"))
        others = [model for model in found.models if loaded is None or model.id != loaded.id]
        models = tuple(replace(model, resident=False, load_first=True) for model in others)
        if loaded is not None:
            models = (_with_parameters(loaded, told), *models)
        reason = _reason(found.reason if loaded else "has no model loaded", health)
        return replace(found, reason=reason, models=models, slots=int_of(told.get("max_batch_size")))

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its 401 may be about a model, and its 503 says many things but never that it is busy."""
        text = base.error_text(body)
        kind = next((kind for words, kind in _MEANINGS.items() if status in (401, 503) and words in text), None)
        if kind is not None:
            hint = "give the endpoint its admin key" if kind is KeyRefusedError else ""
            return kind(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status, hint=hint)
        return super().error(endpoint, status, headers, body)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """Answered with events, one for each part that is loaded; a failure is one of them."""
        url = client.request_url(base.at_root(endpoint).url, "/v1/model/load")
        headers = base.auth_headers(self, endpoint) | {"Content-Type": "application/json"}
        lines, event = Lines(), dict[str, Json]()
        async with client.stream(
            "POST",
            url,
            body=msgspec.json.encode({"model_name": model.id}),
            headers=headers,
            limits=endpoint.limits,
            endpoint=endpoint.name,
        ) as reply:
            if reply.status != 200:
                raise self.error(endpoint, reply.status, reply.headers, await reply.read_all(base.MAX_REPLY_BYTES))
            async for data in reply.chunks():
                for line in lines.feed(data):
                    if line.startswith(b"data:"):
                        event = json_object(line[5:])
                        _tell(event, told, endpoint)
        if event.get("status") != "finished":
            raise ServerFailedError(f"{endpoint.name} stopped before {model.id} was loaded", endpoint=endpoint.name)

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """It unloads whatever is loaded, so what that is is asked first."""
        root = base.at_root(endpoint)
        reply = await base.get(client, self, root, "/v1/model", endpoint.limits.silence)
        if reply.status == 503:
            return
        if reply.status != 200:
            raise self.error(endpoint, reply.status, reply.headers, reply.body)
        if json_object(reply.body).get("id") == model.id:
            await base.post(client, self, root, "/v1/model/unload", {}, endpoint.limits.first_byte)


_MEANINGS: dict[str, type[BackendError]] = {
    "Unable to switch model": UnknownModelError,  # inline loading with a plain key
    "dmin key": KeyRefusedError,
    "No models are currently loaded": UnknownModelError,
    "No embedding models": RequestRefusedError,
    "aborted": ServerFailedError,
}


def _with_parameters(model: Model, told: Mapping[str, Json]) -> Model:
    template = text_of(told.get("prompt_template_content"))
    able = {"chat": bool(template), "tools": "tools" in template, "vision": told.get("use_vision") is True}
    # All requests share the cache, but one may have all of it.
    limits = [n for key in ("max_seq_len", "cache_size") if (n := int_of(told.get(key)))]
    return replace(
        model,
        window=min(limits, default=0),
        resident=True,
        # An older server does not show its template: then nothing is known.
        capabilities=frozenset(name for name, yes in able.items() if yes) if template else frozenset(),
    )


def _reason(reason: str, health: Reply | None) -> str:
    """A failure that it remembers does not stop it: it makes itself a new engine."""
    issues = base.rows(json_object(health.body).get("issues")) if health is not None and health.status == 503 else []
    if not issues:
        return reason
    when, what = text_of(issues[-1].get("time")), text_of(issues[-1].get("description"))
    return base.clean(f"{reason}; failed at {when}: {what}")


def _tell(event: Mapping[str, Json], told: base.Told, endpoint: Endpoint) -> None:
    if error := text_of(dict_of(event.get("error")).get("message")):
        raise ServerFailedError(f"{endpoint.name}: {base.clean(error)}", endpoint=endpoint.name)
    done, parts = int_of(event.get("module")), int_of(event.get("modules"))
    told(f"{base.clean(text_of(event.get('model_type')), 40)} {done} of {parts}")
