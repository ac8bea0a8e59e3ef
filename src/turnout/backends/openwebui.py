"""Open WebUI, a front end to other servers (facts/services.md section 4, backends.md 3.5).

A list that it is asked for it asks of every server behind it, so a way out that is open there is used by looking.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, int_of, json_object, replied, rows, text_of
from turnout.backends.llamacpp import LlamaCpp
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.types import Endpoint, Health, Json, Model
from turnout.wire.base import Completion

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_CAPABILITY = {"completion": "chat", "insert": "fim", "embedding": "embeddings"}
MAX_OWNERS = 8
_LLAMA, _OPENAI = LlamaCpp(), OpenAICompatible()
_FEATURES = {
    "enable_web_search": "web search is on",
    "enable_code_execution": "it runs code",
    "enable_code_interpreter": "it runs code for models",
    "enable_direct_connections": "users may connect it to servers of their own",
    "enable_tool_servers": "it calls tool servers",
}
# An API key opens its models and chat, and its configuration only as for a stranger (seen with 0.12.4).
UNTOLD = "whether it searches the web or runs code it tells a session's token alone"


class OpenWebUI(OpenAICompatible):
    """Used only when it is configured, and then only for models whose connection its administrator calls local."""

    kind = "openwebui"
    title = "Open WebUI"
    default_urls = ("http://127.0.0.1:3000", "http://127.0.0.1:8080")
    key_headers = ("Authorization", "X-Api-Key")
    probes = ("/api/config", "/api/version")
    routed = False
    from_root = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its public configuration, or its version; its name can be changed, the shapes cannot."""
        about = replied(replies, "/api/config")
        if about.get("status") is True and about.get("version") and "features" in about:
            return Identity(self.kind, "GET /api/config", text_of(about.get("version")))
        told = replied(replies, "/api/version")
        if "deployment_id" in told:
            return Identity(self.kind, "GET /api/version has a deployment_id", text_of(told.get("version")))
        return None

    def models_path(self, endpoint: Endpoint) -> str:
        """Any path that it does not know answers 200 with a page, ``/v1/models`` among them."""
        return endpoint.models_path or "/api/models"

    def chat_path(self, endpoint: Endpoint) -> str:
        """The API of its own page, in OpenAI's format."""
        return endpoint.chat_path or "/api/chat/completions"

    def embed_path(self, endpoint: Endpoint) -> str:
        """Where embeddings are made."""
        return "/api/v1/embeddings"

    def completion(self, endpoint: Endpoint, asked: Completion, model: Model, window: int) -> base.TextCall:
        """It has no such path."""
        raise self.cannot("go on with a text", endpoint)

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list with its key, readiness and features without."""
        listed, ready, about = await asyncio.gather(
            base.get(client, self, endpoint, self.models_path(endpoint), timeout),
            base.get(client, self, endpoint, "/ready", timeout),
            base.get_object(client, self, endpoint, "/api/config", timeout),
        )
        features = dict_of(about.get("features"))
        notes = tuple(what for name, what in _FEATURES.items() if features.get(name) is True)
        if about and not _FEATURES.keys() & features.keys():
            notes = (UNTOLD,)
        if ready.status == 503:
            return Inspection(Health.LOADING, f"starting: {base.error_text(ready.body)}", notes=notes)
        if listed.status != 200:
            return Inspection(*base.health_of_status(listed.status, base.error_text(listed.body)), notes=notes)
        data = json_object(listed.body).get("data")
        if not isinstance(data, list):
            return Inspection(Health.DEGRADED, f"GET {self.models_path(endpoint)} is not a model list", notes=notes)
        told = _with_bases(rows(data))
        models = tuple(model for row in told if (model := self.model(row)))
        return Inspection(Health.ONLINE, _reason(models), models, notes=notes + _behind(told))

    def model(self, row: dict[str, Json]) -> Model | None:
        """A model of a server behind it: local if its connection is called so, else it leads who knows where."""
        model_id = text_of(row.get("id"))
        if not model_id or model_id != base.clean(model_id, 1000):
            return None
        remote = row.get("connection_type") != "local" or "pipe" in row
        return replace(_upstream(row, model_id), id=model_id, remote=remote)

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """By the means of the server behind it, if that is Ollama or llama.cpp; an administrator's key is needed."""
        await base.post(client, self, endpoint, "/api/models/unload", {"model": model.id}, endpoint.limits.first_byte)


def _reason(models: tuple[Model, ...]) -> str:
    if models and all(model.remote for model in models):
        return "answers, but calls every connection external: its administrator sets Connection Type to Local"
    return "answers" if models else "has no model"


def _with_bases(listed: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """A model that a person made of another one, with a prompt of its own, has what the server tells of that one."""
    by_id = {text_of(row.get("id")): row for row in listed if row.get("preset") is not True}
    made = []
    for row in listed:
        base_id = text_of(dict_of(row.get("info")).get("base_model_id")) if row.get("preset") is True else ""
        told = {key: value for key, value in by_id.get(base_id, {}).items() if key in ("openai", "ollama")}
        made.append(told | row)
    return made


def _upstream(row: dict[str, Json], model_id: str) -> Model:
    """What the server behind it tells of a model, whose own row is passed on inside this one."""
    upstream = dict_of(row.get("openai"))
    if upstream.get("owned_by") == "llamacpp":
        found = _LLAMA.model({**upstream, "id": model_id})
        # A single model's row has no status: then nothing is known of a sleeping one.
        return replace(found, resident=found.resident if "status" in upstream else None) if found else Model(model_id)
    if upstream:
        return _OPENAI.model({**upstream, "id": model_id}) or Model(model_id)
    tag = dict_of(row.get("ollama"))
    details, told = dict_of(tag.get("details")), tag.get("capabilities")
    return Model(
        model_id,
        max_window=int_of(details.get("context_length")),
        capabilities=frozenset(_CAPABILITY.get(c, c) for c in told if isinstance(c, str))
        if isinstance(told, list)
        else frozenset(),
        family=text_of(details.get("family")),
        size=int_of(tag.get("size")),
        quantization=text_of(details.get("quantization_level")),
        digest=text_of(tag.get("digest")),
    )


def _behind(data: list[dict[str, Json]]) -> tuple[str, ...]:
    """Which servers its models are of: one that is found by itself is there twice."""
    owners = Counter(
        base.clean(text_of(dict_of(row.get("openai")).get("owned_by")) or text_of(row.get("owned_by"))) or "unknown"
        for row in data
    )
    return tuple(
        f"{count} of its models are of {owner}: the same as of that server, if it is found by itself"
        for owner, count in owners.most_common(MAX_OWNERS)
    )
