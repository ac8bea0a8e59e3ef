"""MLX-LM (facts/services.md section 14, backends.md 3.4; recorded: 0.32.2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, first_owner, json_object
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, in_folder
from turnout.errors import BackendError, ServerFailedError, UnknownModelError, UsageError
from turnout.guard.model_manifest import Manifest, plain_name
from turnout.types import ChatRequest, Endpoint, Health, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

# Without max_tokens it stops after 512, in the middle of a sentence.
ANSWER_TOKENS = 4096
_NO_MODEL = re.compile(r"snapshot folder|on the hub|repository not found|repo id must|no such file", re.IGNORECASE)
_NOTES = (
    "looks for a model that it does not have at the Hugging Face hub, unless HF_HUB_OFFLINE=1 is set where it runs",
    "fetches the image addresses in a request",
)


class _Shelf(Shelf):
    """Folders, each of one model."""

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """Safetensors alone: it reads no GGUF."""
        if manifest.of("manifest") or all(part.name.endswith(".gguf") for part in manifest.of("weights")):
            raise UsageError(f"{self.title} reads no GGUF", hint="--to DIR puts it anywhere")
        return in_folder(manifest, name, plain_name(name), "start it with `--model` and that folder")


class Mlx(OpenAICompatible):
    """The server behind ``mlx_lm server``: Python's own HTTP server, one model in memory, others on request."""

    kind = "mlx"
    title = "MLX-LM"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:8080",)
    default_slots = 1
    structures = False
    probes = ("/v1/models", "/")
    template_switch = True

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By Python's own HTTP server, a "Not Found" that is called JSON, and a list without an owner or a body."""
        listed, root = replies.get("/v1/models"), replies.get("/")
        if listed is None or root is None or not listed.headers.get("server", "").startswith("BaseHTTP/"):
            return None
        called_json = root.headers.get("content-type", "") == "application/json"
        if (root.status, root.body, called_json) != (404, b"Not Found", True) or first_owner(replies):
            return None
        if listed.status == 200 and (not listed.body or "data" in json_object(listed.body)):
            return Identity(self.kind, "GET /v1/models by Python's own HTTP server, and how it misses GET /")
        return None

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list is its cache directory, without which the answer has no body; ``/health`` is the engine's."""
        root = base.at_root(endpoint)
        listed, health = await asyncio.gather(
            base.get(client, self, endpoint, self.models_path(endpoint), timeout),
            base.try_get(client, self, root, "/health", timeout),
        )
        if health is not None and health.status == 503:
            return Inspection(Health.DEGRADED, "its engine died: it must be restarted", notes=_NOTES)
        if listed.status == 200 and not listed.body:
            why = "lists no model: its Hugging Face cache directory is missing"
            return Inspection(Health.ONLINE, why, notes=_NOTES)
        return replace(self.listed(listed), capacity=1, notes=_NOTES)

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """Its own limit of an answer is short, so there is always one of ours."""
        limit = request.max_tokens or (min(ANSWER_TOKENS, window // 2) if window else ANSWER_TOKENS)
        return super().render(replace(request, max_tokens=limit), model, window)

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Whatever goes wrong before an answer begins is a 404."""
        text = base.error_text(body)
        if status == 404 and _NO_MODEL.search(text):
            return UnknownModelError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        if status == 404 and "generation thread died" in text:
            return ServerFailedError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        return super().error(endpoint, status, headers, body)

    async def embed(self, client: HttpClient, endpoint: Endpoint, model: Model, texts: Sequence[str]) -> base.Vectors:
        """It has no such path."""
        raise self.cannot("make embeddings", endpoint)
