"""Jan's proxy in front of the llama-servers that its app started (facts/services.md, section 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, int_of, json_object, replied, rows, text_of
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.backends.shelf import Arrangement, Shelf, as_yaml, data_home, given_dirs, in_folder, only_gguf, place_of
from turnout.errors import BackendError, RequestRefusedError, UnknownModelError
from turnout.files import read_file
from turnout.guard.model_manifest import Manifest, plain_name
from turnout.types import ChatRequest, Endpoint, Health, Json, Model
from turnout.wire import anthropic

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_NAME = re.compile(r"\bJan\b")
# What it says in plain text, by status.
_REFUSALS = {401: "Invalid or missing authorization token", 403: "Invalid host header"}
_NOT_RUNNING = re.compile(r"no running session found|no models are available", re.IGNORECASE)
_HOST_HINT = "add the host's name to the trusted hosts in Jan's settings"


class _Shelf(Shelf):
    """``llamacpp/models/ID/`` with a ``model.yml`` below its data folder (src-tauri/src/core/app/commands.rs)."""

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """``JAN_DATA_FOLDER``, else what its settings name, else ``Jan/data`` where applications keep data."""
        below = Path("llamacpp", "models")
        if given := given_dirs(env, "JAN_DATA_FOLDER"):
            return (given[0] / below,)
        place = data_home(env)
        if place is None:
            return ()
        data = place / "Jan" / "data"
        with suppress(OSError, ValueError):
            told = text_of(json_object(read_file(place / "Jan" / "settings.json")).get("data_folder"))
            data = Path(told) if Path(told).is_absolute() else data
        return (data / below,)

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """The files, and the description that names them from the data folder on."""
        weights, folder = only_gguf(manifest, self.title), plain_name(name)
        made = in_folder(manifest, folder, folder, "start Jan anew: it lists what it finds then")
        about: dict[str, object] = {
            "model_path": f"llamacpp/models/{place_of(made.places, weights)}",
            "name": folder,
            "size_bytes": sum(part.size for part in weights),
        }
        if projector := place_of(made.places, manifest.of("projector")):
            about["mmproj_path"] = f"llamacpp/models/{projector}"
        # Each description is a model, and names files anywhere.
        places = {here: place for here, place in made.places.items() if not place.lower().endswith("/model.yml")}
        return replace(made, places=places, written={f"{folder}/model.yml": as_yaml(about)})


class Jan(OpenAICompatible):
    """It serves the models that its app has started and starts none; some of them run at a provider elsewhere."""

    kind = "jan"
    title = "Jan"
    shelf = _Shelf(title)
    default_urls = ("http://127.0.0.1:1337",)
    default_slots = 1
    key_headers = ("Authorization", "X-Api-Key")
    probes = ("/openapi.json", "/v1/models")

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """By its API description, which needs neither key nor Host, and rows created at second 1; else by its words."""
        title = text_of(dict_of(replied(replies, "/openapi.json").get("info")).get("title"))
        listing = rows(replied(replies, "/v1/models").get("data"))
        if _NAME.search(title) and all(row.get("created") == 1 for row in listing):
            return Identity(self.kind, "GET /openapi.json names Jan")
        listed = replies.get("/v1/models")
        if listed is None or listed.body.decode("utf-8", "replace") != _REFUSALS.get(listed.status):
            return None
        return Identity(self.kind, f"GET /v1/models answers {listed.status} in Jan's words")

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The list, under ``/v1`` or, where its prefix was changed, without one: that works with every prefix."""
        usual = self.models_path(endpoint)
        path, reply = usual, await base.get(client, self, endpoint, usual, timeout)
        if reply.status == 404 and not endpoint.models_path:
            path, reply = "/models", await base.get(client, self, endpoint, "/models", timeout)
        text = base.error_text(reply.body)
        if reply.status == 403 and text == _REFUSALS[403]:
            return Inspection(Health.DEGRADED, f"refuses the Host header it is sent: {_HOST_HINT}")
        listing = json_object(reply.body).get("data")
        if reply.status != 200:
            return Inspection(*base.health_of_status(reply.status, text))
        if not isinstance(listing, list):
            return Inspection(Health.DEGRADED, f"GET {path} is not a model list")
        models = tuple(model for row in rows(listing) if (model := self.model(row)))
        far = sum(model.remote for model in models)
        return Inspection(
            Health.ONLINE,
            "answers" if len(models) > far else "has no model running",
            models,
            notes=(f"leads to remote providers: {far} of its models run elsewhere",) if far else (),
            chat_path="" if path == usual else "/chat/completions",
        )

    def model(self, row: dict[str, Json]) -> Model | None:
        """An id, and whether it runs here; what is listed is loaded."""
        model, far = super().model(row), row.get("owned_by") == "remote"
        return replace(model, resident=None if far else True, remote=far) if model else None

    def embed_path(self, endpoint: Endpoint) -> str:
        """With the prefix that chat has."""
        return self._beside_chat(endpoint, "embeddings")

    def _beside_chat(self, endpoint: Endpoint, name: str) -> str:
        return self.chat_path(endpoint).removesuffix("chat/completions") + name

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """Its own words are plain text; those of its llama-servers pass through."""
        text = base.error_text(body)
        if status == 403 and text == _REFUSALS[403]:
            what = f"{endpoint.name} refused the Host header it was sent"
            return RequestRefusedError(what, endpoint=endpoint.name, status=status, hint=_HOST_HINT)
        if _NOT_RUNNING.search(text):
            return UnknownModelError(f"{endpoint.name}: {text}", endpoint=endpoint.name, status=status)
        return super().error(endpoint, status, headers, body)

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """The model's llama-server counts, in the Anthropic format alone; what is listed is awake."""
        reply = await client.fetch(
            "POST",
            client.request_url(endpoint.url, self._beside_chat(endpoint, "messages/count_tokens")),
            body=anthropic.render_count(request, model.id),
            headers=base.auth_headers(self, endpoint) | {"Content-Type": "application/json"},
            timeout=2.0,
            max_bytes=100_000,
        )
        return int_of(json_object(reply.body).get("input_tokens")) if reply.status == 200 else 0
