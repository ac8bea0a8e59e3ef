"""LocalAI (facts/services.md, section 5).

Its emulated Ollama list tells more than its OpenAI ones: the engine of each model (``cloud-proxy`` is one) and the
quantisation in its file name. Sizes and digests there are made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, json_object, replied, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, as_yaml, given_dirs, in_folder, only_gguf, place_of
from turnout.errors import BackendError, EndpointLoadingError, UnknownModelError
from turnout.guard.model_manifest import Manifest, plain_name
from turnout.types import Endpoint, Health, Json, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_ABOUT = "/.well-known/localai.json"
_CAPABILITY = {"completion": "chat", "embedding": "embeddings", "insert": "fim"}
_OURS = frozenset({"chat", "tools", "vision", "thinking", "embeddings", "fim"})


class _Shelf(Shelf):
    """Its models path, with a YAML file for each model (core/cli/run.go and docs, Model Configuration)."""

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """``LOCALAI_MODELS_PATH``; by default it is below where it was started, which nobody tells."""
        return given_dirs(env, "LOCALAI_MODELS_PATH", "MODELS_PATH")

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """A folder of the files, and the description that names them."""
        weights = only_gguf(manifest, self.title)
        plain = plain_name(name)
        made = in_folder(manifest, plain, plain, "start LocalAI anew: it reads its descriptions then")
        about: dict[str, object] = {
            "name": plain,
            "backend": "llama-cpp",
            "parameters": {"model": place_of(made.places, weights)},
            "template": {"use_tokenizer_template": True},
            "options": ["use_jinja:true"],
        }
        if projector := place_of(made.places, manifest.of("projector")):
            about["mmproj"] = projector
        return replace(made, written={f"{plain}.yaml": as_yaml(about)})


class LocalAI(OpenAICompatible):
    """LocalAI."""

    kind = "localai"
    title = "LocalAI"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:8080",)
    key_headers = ("Authorization", "X-Api-Key", "Xi-Api-Key")
    probes = (_ABOUT, "/readyz")
    reranks = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its description for agents, which needs no key and is there while it starts."""
        about = replied(replies, _ABOUT)
        if "version" not in about or "endpoints" not in about:
            return None
        return Identity(self.kind, f"GET {_ABOUT}", text_of(about.get("version")))

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """What it has, what is loaded, and what is open; whether it still starts is asked while nothing is loaded."""
        root = base.at_root(endpoint)
        tags, running, about = await asyncio.gather(
            base.get(client, self, root, "/api/tags", timeout),
            base.get_object(client, self, root, "/api/ps", timeout),
            base.get_object(client, self, root, _ABOUT, timeout),
        )
        loaded = {_id(row) for row in rows(running.get("models"))}
        if not loaded and await self._starting(client, root, timeout):
            return Inspection(Health.LOADING, "starting: it preloads models", notes=_notes((), about))
        if tags.status != 200 or "models" not in json_object(tags.body):
            return await self._inspect_without_tags(client, endpoint, timeout, about)
        listed = rows(json_object(tags.body).get("models"))
        models = tuple(made for row in listed if (made := _model(row, loaded if running else None)))
        return Inspection(Health.ONLINE, "answers" if models else "has no model", models, notes=_notes(models, about))

    async def _starting(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> bool:
        reply = await base.try_get(client, self, endpoint, "/readyz", timeout)
        return reply is not None and reply.status == 503

    async def _inspect_without_tags(
        self, client: HttpClient, endpoint: Endpoint, timeout: float, about: dict[str, Json]
    ) -> Inspection:
        """By the OpenAI list, for versions that do not pose as Ollama; it tells not which models are proxied."""
        listing = await super().inspect(client, endpoint, timeout)
        return Inspection(listing.health, listing.reason, listing.models, notes=_notes((), about))

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its own codes, and what is left of them when it is told to answer errors without a body."""
        kind = dict_of(json_object(body).get("error")).get("type")
        if kind == "model_loading":
            what = f"{endpoint.name} is loading its model: {base.error_text(body)}"
            seconds = base.retry_after(headers)
            return EndpointLoadingError(what, endpoint=endpoint.name, status=status, retry_after=seconds)
        if status == 404 and not body.strip():
            what = f"{endpoint.name} answers 404 without a word, as it does for a model that it has not"
            return UnknownModelError(what, endpoint=endpoint.name, status=status)
        return base.classify_error(endpoint, status, headers, body)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """Answered when it is loaded; with user accounts an administrator's key is needed."""
        told(f"{endpoint.name} loads {model.id}")
        root, body = base.at_root(endpoint), {"model": model.id}
        await base.post(client, self, root, "/backend/load", body, endpoint.limits.first_byte)
        told(f"{model.id} is loaded")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Ends the engine's process; with user accounts an administrator's key is needed."""
        root, body = base.at_root(endpoint), {"model": model.id}
        await base.post(client, self, root, "/backend/shutdown", body, endpoint.limits.first_byte)


def _id(row: dict[str, Json]) -> str:
    """The model's own name; in this list it gets a tag when it has none."""
    name = text_of(row.get("name")).removesuffix(":latest")
    return name if name == base.clean(name, 1000) else ""


def _model(row: dict[str, Json], loaded: set[str] | None) -> Model | None:
    """A model that chats or embeds, or a bare file of which nothing is known; not one for sound or pictures."""
    name, details = _id(row), dict_of(row.get("details"))
    told = row.get("capabilities")
    found = {_CAPABILITY.get(c, c) for c in told if isinstance(c, str)} if isinstance(told, list) else set()
    engine = text_of(details.get("family"))
    if not name or (engine and not found & {"chat", "embeddings"}):
        return None
    return Model(
        id=name,
        resident=None if loaded is None else name in loaded,
        capabilities=frozenset(found & _OURS),
        parameters=base.parameters_of(text_of(details.get("parameter_size"))),
        quantization=text_of(details.get("quantization_level")),
        remote=engine == "cloud-proxy",
    )


def _notes(models: tuple[Model, ...], about: dict[str, Json]) -> tuple[str, ...]:
    open_ways = dict_of(about.get("capabilities"))
    notes = []
    if far := sum(model.remote for model in models):
        notes.append(f"{far} of its models are served by a provider elsewhere (cloud-proxy)")
    if open_ways.get("p2p") is True:
        notes.append("takes part in a p2p network: other machines may serve its requests")
    if open_ways.get("agents") is True:
        notes.append("runs agents, which may call tools and search the web")
    if open_ways.get("mcp") is True:
        notes.append("may call tools of MCP servers that a model's configuration names")
    return tuple(notes)
