"""Any server that speaks OpenAI chat completions, and the base of the kinds that do so with more to tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Identity, Inspection, dict_of, int_of, json_object, rows, text_of
from turnout.errors import BackendError
from turnout.types import ChatRequest, Endpoint, Health, Json, Model, WireFormat
from turnout.wire import openai_chat

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_WINDOW_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")


class OpenAICompatible:
    """``kind`` and ``default_url`` name a server that has no more to it than this protocol."""

    wire: WireFormat = WireFormat.OPENAI_CHAT
    probes: tuple[str, ...] = ("/v1/models",)

    def __init__(self, kind: str = "openai", default_url: str = "") -> None:
        self.kind, self.default_url = kind, default_url

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """A JSON list of models, or a JSON refusal of the key: the protocol, not the product."""
        reply = replies.get("/v1/models")
        if reply is None:
            return None
        if reply.status == 200 and isinstance(json_object(reply.body).get("data"), list):
            return Identity(self.kind, "GET /v1/models is an OpenAI model list")
        if reply.status in (401, 403) and json_object(reply.body):
            return Identity(self.kind, f"GET /v1/models answers {reply.status} in JSON")
        return None

    def models_path(self, endpoint: Endpoint) -> str:
        """Where the list is; a base URL that ends in ``/v1`` is taken as people write it."""
        return endpoint.models_path or ("/models" if endpoint.url.endswith("/v1") else "/v1/models")

    def chat_path(self, endpoint: Endpoint) -> str:
        """Where chat goes."""
        default = "/chat/completions" if endpoint.url.endswith("/v1") else "/v1/chat/completions"
        return endpoint.chat_path or default

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The model list is the health check."""
        reply = await base.get(client, endpoint, self.models_path(endpoint), timeout)
        if reply.status != 200:
            return Inspection(*base.health_of_status(reply.status, base.error_text(reply.body)))
        listing = json_object(reply.body).get("data")
        if not isinstance(listing, list):
            return Inspection(Health.DEGRADED, "the model list is not an OpenAI model list")
        models = tuple(model for row in rows(listing) if (model := self.model(row)))
        return Inspection(Health.ONLINE, "answers" if models else "has no model", models)

    def model(self, row: dict[str, Json]) -> Model | None:
        """One row of the list, or None when it has no id."""
        model_id = text_of(row.get("id"))
        if not model_id or model_id != base.clean(model_id, 1000):
            return None
        window = next((n for key in _WINDOW_FIELDS if (n := int_of(row.get(key)))), 0)
        return Model(id=model_id, window=window, max_window=window)

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """The body of a streaming request; the window is the server's own affair here."""
        return openai_chat.render_request(request, model.id, stream=True)

    def parser(self) -> base.StreamParser:
        """A fresh parser."""
        return openai_chat.StreamParser()

    def error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The words all servers share."""
        return base.classify_error(endpoint, status, headers, body)

    async def count_tokens(self, client: HttpClient, endpoint: Endpoint, request: ChatRequest, model: Model) -> int:
        """Not part of the protocol."""
        return 0


def meta_of(row: dict[str, Json]) -> dict[str, Json]:
    """The ``meta`` object some servers put into a row."""
    return dict_of(row.get("meta"))
