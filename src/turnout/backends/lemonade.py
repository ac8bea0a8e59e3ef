"""Lemonade (facts/services.md, section 14).

Fields beyond the facts are of its documents and source of 2026-08-22: ``docs/api`` and ``src/cpp/server/server.cpp``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import (
    Identity,
    Inspection,
    dict_of,
    first_owner,
    int_of,
    json_object,
    replied,
    rows,
    text_of,
)
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.errors import BackendError, EndpointBusyError, UnknownModelError
from turnout.types import Endpoint, Health, Json, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_CAPABILITY = {
    "chat": "chat",
    "tool-calling": "tools",
    "vision": "vision",
    "reasoning": "thinking",
    "embeddings": "embeddings",
    "embedding": "embeddings",
}
_OTHER_WORK = frozenset(
    {"transcription", "reranking", "image", "tts", "audio-generation", "classification", "classifier", "3d"}
)
_QUANTIZATION = re.compile(r"(?:UD-)?(?:I?Q\d\w*|B?F16|F32|MXFP4\w*)", re.IGNORECASE)
_NEEDS_KEY = "Invalid or missing API key"
_NO_ROOM = ("slots_pinned_error", "router_residency_conflict")


class Lemonade(OpenAICompatible):
    """Everything lies under ``/v1``; ``/v1/health`` tells best of all what is loaded and busy."""

    kind = "lemonade"
    title = "Lemonade"
    default_urls = ("http://127.0.0.1:13305", "http://127.0.0.1:8000")
    probes = ("/v1/models", "/v1/health", "/live")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By the owner in its list or its health report; in front of a key, by its words and its open ``/live``."""
        health = replied(replies, "/v1/health")
        version = text_of(health.get("version"))
        if first_owner(replies) == "lemonade":
            return Identity(self.kind, "GET /v1/models is owned by lemonade", version)
        if "all_models_loaded" in health and "model_loaded" in health:
            return Identity(self.kind, "GET /v1/health tells all_models_loaded", version)
        listed = replies.get("/v1/models")
        keyed = listed is not None and listed.status == 401 and base.error_text(listed.body) == _NEEDS_KEY
        if keyed and replied(replies, "/live") == {"status": "ok"}:
            return Identity(self.kind, "GET /v1/models asks for a key in its words, GET /live is open")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list and the health report."""
        listing, health = await asyncio.gather(
            super().inspect(client, endpoint, timeout),
            base.get_object(client, self, endpoint, _path(endpoint, "/health"), timeout),
        )
        if listing.health is not Health.ONLINE:
            return listing
        loaded = {text_of(row.get("model_name")): row for row in rows(health.get("all_models_loaded"))}
        models = tuple(_with_process(m, loaded.get(m.id)) if health else m for m in listing.models)
        told = [base.child_url(endpoint, text_of(row.get("backend_url"))) for row in loaded.values()]
        return Inspection(
            Health.ONLINE,
            listing.reason,
            models,
            busy=sum(row.get("is_busy") is True for row in loaded.values()) if health else None,
            capacity=int_of(dict_of(health.get("max_models")).get("llm")),
            children=tuple(filter(None, told)),
            notes=_notes(models, health),
            version=text_of(health.get("version")),
        )

    def model(self, row: dict[str, Json]) -> Model | None:
        """A model that chats or embeds. Collections are choices and tool loops of the server's own, not models."""
        model = super().model(row)
        recipe, labels = text_of(row.get("recipe")), row.get("labels")
        told = {label for label in labels if isinstance(label, str)} if isinstance(labels, list) else set()
        capabilities = frozenset(_CAPABILITY[label] for label in told & _CAPABILITY.keys())
        other = bool(told & _OTHER_WORK) and not capabilities & {"chat", "embeddings"}
        if model is None or recipe.startswith("collection.") or other:
            return None
        trained = int_of(row.get("max_context_window"))
        # What it has no window configured for is listed with the trained one, and sized when it is loaded.
        guessed = not model.window or model.window == trained
        return replace(
            model,
            max_window=trained,
            window_source="guessed" if guessed else "known",
            capabilities=capabilities,
            size=_bytes(row.get("size")),
            quantization=_quantization(text_of(row.get("checkpoint"))),
            remote=recipe == "cloud" or "cloud_provider" in row,
        )

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """A model that finds no room beside pinned ones is a matter of time; the rest is in common words."""
        code = dict_of(json_object(body).get("error")).get("code")
        text = f"{endpoint.name}: {base.error_text(body)}"
        if code in _NO_ROOM:
            return EndpointBusyError(text, endpoint=endpoint.name, status=status)
        if code == "model_not_supported":
            return UnknownModelError(text, endpoint=endpoint.name, status=status)
        return base.classify_error(endpoint, status, headers, body)

    async def load(self, client: HttpClient, endpoint: Endpoint, model: Model, told: base.Told) -> None:
        """Loads it as it is configured; not pinned, because a pinned model keeps every other one out."""
        told(f"{endpoint.name} loads {model.id}")
        body = {"model_name": model.id}
        await base.post(client, self, endpoint, _path(endpoint, "/load"), body, endpoint.limits.first_byte)
        told(f"{model.id} is loaded")

    async def unload(self, client: HttpClient, endpoint: Endpoint, model: Model) -> None:
        """Frees one model; without a name the server would free all."""
        body = {"model_name": model.id}
        await base.post(client, self, endpoint, _path(endpoint, "/unload"), body, endpoint.limits.first_byte)


def _path(endpoint: Endpoint, path: str) -> str:
    return path if endpoint.url.endswith("/v1") else f"/v1{path}"


def _with_process(model: Model, row: dict[str, Json] | None) -> Model:
    if row is None:
        return replace(model, resident=False)
    window = int_of(dict_of(row.get("recipe_options")).get("ctx_size")) or model.window
    return replace(model, resident=True, window=window, window_source="known")


def _bytes(size: Json) -> int:
    """Bytes of a size in GiB, which is rounded."""
    number = isinstance(size, int | float) and not isinstance(size, bool) and 0 < size < 1e6
    return int(size * 2**30) if number else 0  # type: ignore[operator, arg-type]


def _quantization(checkpoint: str) -> str:
    variant = checkpoint.rpartition(":")[2]
    return variant if _QUANTIZATION.fullmatch(variant) else ""


def _notes(models: tuple[Model, ...], health: dict[str, Json]) -> tuple[str, ...]:
    notes = []
    if far := sum(model.remote for model in models):
        notes.append(f"cloud offload is set up: {far} of its models are served by a provider elsewhere")
    telemetry = dict_of(health.get("telemetry"))
    if telemetry.get("enabled") is True:
        kept = telemetry.get("captures")
        what = ", ".join(base.clean(text_of(name)) for name in kept) if isinstance(kept, list) else ""
        notes.append(f"telemetry is on{f', with {what}' if what else ''}")
    return tuple(notes)
