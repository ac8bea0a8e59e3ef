"""LM Studio and its headless ``llmster`` (facts/services.md, section 2). No path answers 404: all of them say 200."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, int_of, json_object, replied, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, home, in_folder
from turnout.errors import BackendError, ContextOverflowError, ServerFailedError, UnknownModelError
from turnout.files import read_file
from turnout.guard.model_manifest import Manifest, plain_name
from turnout.types import Endpoint, Health, Json, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_NOBODY = "imported"  # publisher of a model whose name has none
_TOKEN_WANTED = "LM Studio API token"  # noqa: S105 - what it says, no secret
_KEPT = re.compile(r"n_keep:\s*(\d+)\s*>=\s*n_ctx:\s*(\d+)")
_OLDER_KEPT = re.compile(r"keep the first (\d+) tokens.*context length of only (\d+)")
_NO_MODEL = re.compile(r"invalid model identifier|no models? loaded", re.IGNORECASE)
# Its engine's failures come under 400.
_FAILED = re.compile(r"has crashed|crashed without|failed to load|model (?:is )?unloaded", re.IGNORECASE)


class _Shelf(Shelf):
    """``models/PUBLISHER/MODEL/`` below its home; what lies elsewhere it does not see (facts/services.md section 2,
    Digest; its documentation, Import Models)."""

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """Below the home that ``~/.lmstudio-home-pointer`` names, else ``~/.lmstudio``."""
        own = home(env)
        if own is None:
            return ()
        place = own / ".lmstudio"
        with suppress(OSError, UnicodeDecodeError):
            if (told := Path(read_file(own / ".lmstudio-home-pointer").decode().strip())).is_absolute():
                place = told
        return (place / "models",)

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """The owner in the name is the publisher."""
        owner, _, model = name.rpartition("/")
        folder = f"{plain_name(owner) or _NOBODY}/{plain_name(model)}"
        return in_folder(manifest, name, folder, "it is in My Models; where it is not, start LM Studio anew")


class LmStudio(OpenAICompatible):
    """Asked for its models over its own API of 0.4, else that of 0.3.6, else as any OpenAI-compatible server.

    Models of another machine that LM Link serves through it look like its own: nothing in the list tells them.
    """

    kind = "lmstudio"
    title = "LM Studio"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:1234",)
    probes = ("/lmstudio-greeting",)
    cuts_silently = True
    silent_overflow = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its greeting, or by how it asks for a token; no status means anything."""
        if replied(replies, "/lmstudio-greeting").get("lmstudio") is True:
            return Identity(self.kind, "GET /lmstudio-greeting")
        for path, reply in replies.items():
            if reply.status == 401 and _TOKEN_WANTED in base.error_text(reply.body):
                return Identity(self.kind, f"GET {path} asks for an LM Studio API token")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """One GET, which loads nothing; at most three at a server older than 0.4."""
        root = base.at_root(endpoint)
        reply = await base.get(client, self, root, "/api/v1/models", timeout)
        if reply.status != 200:
            return Inspection(*base.health_of_status(reply.status, base.error_text(reply.body)))
        listing = json_object(reply.body).get("models")
        if isinstance(listing, list):
            return _inspection(rows(listing))
        older = (await base.get_object(client, self, root, "/api/v0/models", timeout)).get("data")
        if isinstance(older, list):
            return _answers(tuple(m for row in rows(older) if (m := _older_model(row))))
        return await super().inspect(client, endpoint, timeout)

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its sentences, which come as plain strings too; a crash of its engine comes under 400."""
        text = base.error_text(body)
        if kept := _KEPT.search(text) or _OLDER_KEPT.search(text):
            return ContextOverflowError(
                f"{endpoint.name}: {text}",
                endpoint=endpoint.name,
                status=status,
                prompt_tokens=int(kept[1]),
                window=int(kept[2]),
            )
        if dict_of(json_object(body).get("error")).get("code") == "model_not_found" or _NO_MODEL.search(text):
            return UnknownModelError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        if _FAILED.search(text):
            return ServerFailedError(f"{endpoint.name} failed: {text}", endpoint=endpoint.name, status=status)
        return super().error(endpoint, status, headers, body)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """By its API of 0.4, which answers when the model is loaded. Loading twice would make a second instance."""
        row = await self._row(client, endpoint, model)
        if row is None:
            raise self.cannot(f"load {model.id}, which it does not list", endpoint)
        if rows(row.get("loaded_instances")):
            told(f"{model.id} is loaded already")
            return
        told(f"loading {model.id}")
        body = {"model": text_of(row.get("key"))}
        path, limit = "/api/v1/models/load", endpoint.limits.total
        answer = json_object((await base.post(client, self, base.at_root(endpoint), path, body, limit)).body)
        if answer.get("status") != "loaded":
            raise ServerFailedError(f"{endpoint.name} did not load {model.id}", endpoint=endpoint.name)
        told(f"loaded {model.id} in {int_of(answer.get('load_time_seconds'))} s")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Every instance of it."""
        row = await self._row(client, endpoint, model)
        if row is None:
            raise self.cannot(f"unload {model.id}, which it does not list", endpoint)
        for instance in rows(row.get("loaded_instances")):
            body = {"instance_id": text_of(instance.get("id"))}
            await base.post(client, self, base.at_root(endpoint), "/api/v1/models/unload", body, endpoint.limits.total)

    async def _row(self, client: HttpClient, endpoint: Endpoint, model: Model) -> dict[str, Json] | None:
        timeout = endpoint.limits.connect
        answer = await base.get_object(client, self, base.at_root(endpoint), "/api/v1/models", timeout)
        return next((row for row in rows(answer.get("models")) if model.id in (row.get("key"), *_instances(row))), None)


def _inspection(listing: list[dict[str, Json]]) -> Inspection:
    loaded = [instance for row in listing for instance in rows(row.get("loaded_instances"))]
    parallel = [n for instance in loaded if (n := int_of(dict_of(instance.get("config")).get("parallel")))]
    return _answers(
        tuple(model for row in listing if (model := _model(row))),
        # Each instance has its own; whatever is asked for gets at least the least of them.
        slots=min(parallel, default=0),
        # Unless its owner changed that, a model that a request loads evicts the one that a request loaded before.
        capacity=max(1, len(loaded)),
    )


def _answers(models: tuple[Model, ...], slots: int = 0, capacity: int = 0) -> Inspection:
    return Inspection(Health.ONLINE, "answers" if models else "has no model", models, slots=slots, capacity=capacity)


def _instances(row: dict[str, Json]) -> list[str]:
    return [text_of(instance.get("id")) for instance in rows(row.get("loaded_instances"))]


def _model(row: dict[str, Json]) -> Model | None:
    """A row of ``/api/v1/models``."""
    instances = rows(row.get("loaded_instances"))
    key, names = text_of(row.get("key")), _instances(row)
    # An instance that was given a name answers to it; by the model's key a request might load a second one.
    model_id = key if not names or key in names else names[0]
    if not model_id or model_id != base.clean(model_id, 1000):
        return None
    chosen = next((i for i in instances if text_of(i.get("id")) == model_id), {})
    return Model(
        id=model_id,
        window=int_of(dict_of(chosen.get("config")).get("context_length")),
        max_window=int_of(row.get("max_context_length")),
        resident=bool(instances),
        capabilities=_capabilities(text_of(row.get("type")), dict_of(row.get("capabilities"))),
        family=text_of(row.get("architecture")),
        parameters=base.parameters_of(text_of(row.get("params_string"))),
        size=int_of(row.get("size_bytes")),
        quantization=text_of(dict_of(row.get("quantization")).get("name")),
    )


def _capabilities(kind: str, told: dict[str, Json]) -> frozenset[str]:
    if kind == "embedding":
        return frozenset({"embeddings"})
    if not told:
        return frozenset()
    found = {"chat"}
    if told.get("vision") is True:
        found.add("vision")
    if told.get("trained_for_tool_use") is True:
        found.add("tools")
    if dict_of(told.get("reasoning")):
        found.add("thinking")
    return frozenset(found)


def _older_model(row: dict[str, Json]) -> Model | None:
    """A row of ``/api/v0/models``."""
    model_id = text_of(row.get("id"))
    if not model_id or model_id != base.clean(model_id, 1000):
        return None
    return Model(
        id=model_id,
        window=int_of(row.get("loaded_context_length")),
        max_window=int_of(row.get("max_context_length")),
        resident=row.get("state") == "loaded",
        capabilities=_older_capabilities(text_of(row.get("type")), row.get("capabilities")),
        family=text_of(row.get("arch")),
        quantization=text_of(row.get("quantization")),
    )


def _older_capabilities(kind: str, told: Json) -> frozenset[str]:
    """Its first versions had no list of them."""
    if kind == "embeddings":
        return frozenset({"embeddings"})
    if not isinstance(told, list):
        return frozenset()
    found = {"chat", "vision"} if kind == "vlm" else {"chat"}
    return frozenset(found | {"tools"} if "tool_use" in told else found)
