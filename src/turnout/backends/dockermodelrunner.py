"""Docker Model Runner (facts/services.md, section 14).

Fields beyond the facts are of its source of 2026-07-22: ``pkg/inference/models`` and ``pkg/inference/scheduling``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, first_owner, int_of, json_rows, replied, text_of
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.errors import EndpointBusyError
from turnout.types import Endpoint, Health, Json, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_GREETING = b"Docker Model Runner is running"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_AMOUNT = re.compile(r"([\d.]{1,12})\s*([KMGTB])(i?B)?", re.IGNORECASE)
_POWER = {"K": 1, "M": 2, "G": 3, "B": 3, "T": 4}
_NOTE = "takes no key, and whoever reaches it can have it fetch models and read kept requests (GET /engines/requests)"


class DockerModelRunner(OpenAICompatible):
    """Models are OCI artifacts with real digests; engines are started as requests ask for models."""

    kind = "dockermodelrunner"
    title = "Docker Model Runner"
    default_urls = ("http://127.0.0.1:12434",)
    probes = ("/v1/models", "/", "/version")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner in its list, or by its greeting."""
        version = text_of(replied(replies, "/version").get("version"))
        if first_owner(replies) == "docker":
            return Identity(self.kind, "GET /v1/models is owned by docker", version)
        greeting = replies.get("/")
        if greeting is not None and greeting.status == 200 and greeting.body.startswith(_GREETING):
            return Identity(self.kind, f"GET / says {_GREETING.decode()}", version)
        return None

    def chat_path(self, endpoint: Endpoint) -> str:
        """Where it has been since before it got the short paths."""
        return endpoint.chat_path or _v1(endpoint, "/chat/completions")

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """Models, what runs, and what was configured for each."""
        root = _root(endpoint)
        listed, running, configured = await asyncio.gather(
            base.get(client, self, root, "/models", timeout),
            self._rows(client, root, "/engines/ps", timeout),
            self._rows(client, root, "/engines/_configure", timeout),
        )
        if listed.status != 200:
            return Inspection(*base.health_of_status(listed.status, base.error_text(listed.body)))
        if not listed.body.lstrip().startswith(b"["):
            return Inspection(Health.DEGRADED, "GET /models is not a model list")
        windows = {
            text_of(row.get("ModelID")): dict_of(row.get("Config")).get("context-size") for row in configured or []
        }
        loaded = None if running is None else _loaded(running)
        models = tuple(made for row in json_rows(listed.body) if (made := _model(row, loaded, windows)))
        names = (text_of(row.get("model_name")) for row in running or [] if row.get("loading") is True)
        starting = base.clean(", ".join(names))
        return Inspection(
            Health.ONLINE,
            f"loading {starting}" if starting else ("answers" if models else "has no model"),
            models,
            busy=None if running is None else sum(row.get("in_use") is True for row in running),
            notes=(_NOTE,),
        )

    async def _rows(
        self, client: HttpClient, endpoint: Endpoint, path: str, timeout: float
    ) -> list[dict[str, Json]] | None:
        """A list that is good to know; None when it does not come."""
        reply = await base.try_get(client, self, endpoint, path, timeout)
        return json_rows(reply.body) if reply is not None and reply.status == 200 else None

    def embed_path(self, endpoint: Endpoint) -> str:
        """Where embeddings are made."""
        return _v1(endpoint, "/embeddings")

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """A chat request that says it is for loading only; answered when the engine is ready."""
        told(f"{endpoint.name} loads {model.id}")
        reply = await client.fetch(
            "POST",
            client.request_url(endpoint.url, self.chat_path(endpoint)),
            body=msgspec.json.encode({"model": model.id}),
            headers=base.auth_headers(self, endpoint) | {"Content-Type": "application/json", "X-Preload-Only": "true"},
            timeout=endpoint.limits.first_byte,
            max_bytes=base.MAX_REPLY_BYTES,
        )
        if reply.status >= 400:
            raise self.error(endpoint, reply.status, reply.headers, reply.body)
        told(f"{model.id} is loaded")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """From every engine, because one may know it by another of its tags. What is answering goes on.

        Raises:
            EndpointBusyError: that is why nothing was unloaded.
        """
        root, timeout = _root(endpoint), endpoint.limits.first_byte
        running = await self._rows(client, root, "/engines/ps", timeout) or []
        unloaded = 0
        for engine in sorted({text_of(row.get("backend_name")) for row in running}):
            body = {"backend": engine, "models": [model.id]}
            reply = await base.post(client, self, root, "/engines/unload", body, timeout)
            unloaded += int_of(base.json_object(reply.body).get("unloaded_runners"))
        names = {_short(model.id), f"sha256:{model.digest}"}
        if not unloaded and any(_short(row.get("model_name")) in names for row in running):
            what = f"{endpoint.name} did not unload {model.id}: it is answering a request"
            raise EndpointBusyError(what, endpoint=endpoint.name)


def _root(endpoint: Endpoint) -> Endpoint:
    root = base.at_root(endpoint)
    return replace(root, url=root.url.removesuffix("/engines"))


def _v1(endpoint: Endpoint, path: str) -> str:
    if endpoint.url.endswith("/v1"):
        return path
    return f"/v1{path}" if endpoint.url.endswith("/engines") else f"/engines/v1{path}"


def _loaded(running: list[dict[str, Json]]) -> frozenset[str]:
    """The short names of the models that are in memory."""
    return frozenset(_short(row.get("model_name")) for row in running if row.get("loading") is not True)


def _model(row: dict[str, Json], loaded: frozenset[str] | None, windows: Mapping[str, Json]) -> Model | None:
    tags = row.get("tags")
    names = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    unique = text_of(row.get("id"))
    name = names[0] if names else unique
    if not name or name != base.clean(name, 1000):
        return None
    config = dict_of(row.get("config"))
    family = text_of(config.get("architecture"))
    trained = dict_of(config.get("gguf")).get(f"{family}.context_length")
    packaged = int_of(config.get("context_size"))
    digest = _DIGEST.fullmatch(unique)
    return Model(
        id=name,
        window=int_of(windows.get(unique)) or packaged,
        max_window=int(trained) if isinstance(trained, str) and trained.isdecimal() and len(trained) < 10 else packaged,
        resident=None if loaded is None else any(_short(name) in loaded for name in (*names, unique)),
        family=family,
        parameters=_amount(text_of(config.get("parameters")), 1000),
        size=_amount(text_of(config.get("size")), 1024),
        quantization=text_of(config.get("quantization")),
        digest=digest[1] if digest else "",
    )


def _short(name: Json) -> str:
    """A reference without what may be left out of it: a request may name a model in any of the ways."""
    return text_of(name).removeprefix("docker.io/").removeprefix("ai/").removesuffix(":latest")


def _amount(text: str, thousand: int) -> int:
    """``361.82M`` or ``256.35MiB`` as a number, or 0; it is rounded."""
    match = _AMOUNT.fullmatch(text.strip())
    try:
        unit = 1024 if match and match[3] == "iB" else 1000
        return int(float(match[1]) * unit ** _POWER[match[2].upper()]) if match else 0
    except ValueError:
        return 0
