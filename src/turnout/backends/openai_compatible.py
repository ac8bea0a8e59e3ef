"""Any server that speaks OpenAI chat completions, and the base of the kinds that do so with more to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Backend, Identity, Inspection, dict_of, int_of, json_object, rows, text_of
from turnout.errors import NonsenseError
from turnout.types import ChatRequest, Endpoint, Event, Health, Image, Json, Model, WireFormat
from turnout.wire import openai_chat, openai_text
from turnout.wire.base import Completion

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply

_WINDOW_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
COUNT_SECONDS = 2.0  # as long as counting a prompt may take before the estimate is taken


class OpenAICompatible(Backend):
    """A server that has no more to it than this protocol.

    Attributes:
        fills: its ``/v1/completions`` takes a ``suffix``; others drop it without a word.
        reranks: it has ``/v1/rerank``.
        template_switch: it hands ``chat_template_kwargs`` to the model's template, where ``enable_thinking`` is the
            switch; a template without it takes no notice.
    """

    kind = "openai"
    title = "OpenAI-compatible server"
    wire = WireFormat.OPENAI_CHAT
    native = frozenset({WireFormat.OPENAI_CHAT})
    probes: tuple[str, ...] = ("/v1/models",)
    fills = False
    reranks = False
    template_switch = False

    def identify(self, replies: Mapping[str, Reply]) -> Identity | None:
        """A JSON list of models, or a JSON refusal of the key: the protocol, not the product."""
        reply = replies.get("/v1/models")
        if reply is None:
            return None
        if reply.status == 200 and _listing(reply) is not None:
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

    def native_path(self, endpoint: Endpoint, spoken: WireFormat) -> str:
        """Those of Anthropic's format and of Responses stand beside the protocol's own."""
        name = {WireFormat.ANTHROPIC: "messages", WireFormat.RESPONSES: "responses"}.get(spoken)
        return self.beside(endpoint, name) if name else self.chat_path(endpoint)

    async def inspect(self, client: HttpClient, endpoint: Endpoint, timeout: float) -> Inspection:
        """The model list is the health check."""
        return self.listed(await base.get(client, self, endpoint, self.models_path(endpoint), timeout))

    def listed(self, reply: Reply) -> Inspection:
        """What the answer to a request for the model list tells."""
        if reply.status != 200:
            return Inspection(*base.health_of_status(reply.status, base.error_text(reply.body)))
        listing = _listing(reply)
        if listing is None:
            return Inspection(Health.DEGRADED, "the model list is not an OpenAI model list")
        models = _with_parents_windows([(model, row) for row in listing if (model := self.model(row))])
        return Inspection(Health.ONLINE, "answers" if models else "has no model", models)

    def model(self, row: dict[str, Json]) -> Model | None:
        """One row of the list, or None when it has no id."""
        model_id = text_of(row.get("id"))
        if not model_id or model_id != base.clean(model_id, 1000):
            return None
        window = next((n for key in _WINDOW_FIELDS if (n := int_of(row.get(key)))), 0)
        return Model(id=model_id, window=window, max_window=window)

    def render(self, request: ChatRequest, model: Model, window: int) -> bytes:
        """The window is the server's own affair here."""
        return openai_chat.render_request(self.switched(request), model.id, stream=self.streams)

    def switched(self, request: ChatRequest) -> ChatRequest:
        """The request with the server's own switch where no thinking is wanted."""
        if not self.template_switch or (request.thinking and request.reasoning_effort != "none"):
            return request
        given = dict_of(request.extras.get("chat_template_kwargs"))
        extras = {**request.extras, "chat_template_kwargs": {"enable_thinking": False, **given}}
        return replace(request, reasoning_effort="", extras=extras)

    def parser(self) -> base.StreamParser:
        """A fresh parser."""
        return openai_chat.StreamParser()

    def read_whole(self, body: bytes) -> list[Event]:
        """A chat completion."""
        return openai_chat.parse_response(body)

    def embed_path(self, endpoint: Endpoint) -> str:
        """Where embeddings are made."""
        return "/embeddings" if endpoint.url.endswith("/v1") else "/v1/embeddings"

    async def embed(self, client: HttpClient, endpoint: Endpoint, model: Model, texts: Sequence[str]) -> base.Vectors:
        """All texts in one request."""
        body = {"model": model.id, "input": list(texts)}
        reply = await base.post(client, self, endpoint, self.embed_path(endpoint), body, endpoint.limits.first_byte)
        return vectors(rows(json_object(reply.body).get("data")), len(texts), endpoint)

    def beside(self, endpoint: Endpoint, name: str) -> str:
        """A path of the protocol that stands where that of embeddings does."""
        return self.embed_path(endpoint).removesuffix("embeddings") + name

    async def rerank(
        self, client: HttpClient, endpoint: Endpoint, model: Model, query: str, documents: Sequence[str]
    ) -> base.Ranks:
        """All documents in one request."""
        if not self.reranks:
            raise self.cannot("rank documents", endpoint)
        body = {"model": model.id, "query": query, "documents": list(documents), "top_n": len(documents)}
        path, timeout = self.beside(endpoint, "rerank"), endpoint.limits.first_byte
        reply = await base.post(client, self, endpoint, path, body, timeout)
        return ranks(rows(json_object(reply.body).get("results")), len(documents), endpoint)

    def completion(self, endpoint: Endpoint, asked: Completion, model: Model, window: int) -> base.TextCall:
        """The protocol's own completions."""
        if not self.streams:
            raise self.cannot("go on with a text", endpoint)
        if asked.suffix and not self.fills:
            raise self.cannot("fill in the middle", endpoint)
        body = openai_text.render_request(asked, model.id)
        return base.TextCall(self.beside(endpoint, "completions"), body, openai_text.StreamParser)


async def tokenized(
    client: HttpClient, backend: Backend, endpoint: Endpoint, request: ChatRequest, model: Model, fields: Sequence[str]
) -> int:
    """Tokens of the prompt by ``POST /tokenize``, which applies the server's own template; 0 when it does not.

    Args:
        fields: of a chat request, those that the server's template reads.
    """
    if any(isinstance(part, Image) for m in request.messages for part in m.parts):
        return 0  # an image counts as its placeholder there
    sent = json_object(openai_chat.render_request(request, model.id, stream=False))
    body = {key: sent[key] for key in ("model", "messages", *fields) if key in sent}
    reply = await base.post(client, backend, base.at_root(endpoint), "/tokenize", body, COUNT_SECONDS)
    return int_of(json_object(reply.body).get("count"))


def vectors(found: Sequence[Mapping[str, Json]], count: int, endpoint: Endpoint) -> base.Vectors:
    """The vectors of an embeddings answer, in the order of the texts.

    Raises:
        NonsenseError: there is not one for each text.
    """
    made = [numbers(row.get("embedding")) for row in sorted(found, key=lambda row: int_of(row.get("index")))]
    if len(made) != count or not all(made):
        raise NonsenseError(f"{endpoint.name} did not answer with a vector for each text", endpoint=endpoint.name)
    return tuple(made)


def ranks(found: Sequence[Mapping[str, Json]], count: int, endpoint: Endpoint) -> base.Ranks:
    """The places and scores of a reranking, the most relevant first.

    Raises:
        NonsenseError: there is not one for each document.
    """
    made: dict[int, float] = {}
    for row in found:
        place, (score,) = row.get("index"), numbers([row.get("relevance_score")]) or (None,)
        if isinstance(place, int) and score is not None:
            made[place] = score
    if sorted(made) != list(range(count)):
        raise NonsenseError(f"{endpoint.name} did not rank each document", endpoint=endpoint.name)
    return tuple(sorted(made.items(), key=lambda ranked: (-ranked[1], ranked[0])))


def numbers(value: Json) -> tuple[float, ...]:
    """A list of numbers; empty when it is something else."""
    if not isinstance(value, list):
        return ()
    found = [n for n in value if isinstance(n, int | float) and not isinstance(n, bool)]
    return tuple(map(float, found)) if len(found) == len(value) else ()


def _with_parents_windows(found: Sequence[tuple[Model, Mapping[str, Json]]]) -> tuple[Model, ...]:
    """An adapter's row names the ``parent`` that it is part of, and no window of its own."""
    windows = {model.id: model.window for model, _ in found}
    return tuple(m if m.window else replace(m, window=windows.get(text_of(row.get("parent")), 0)) for m, row in found)


def _listing(reply: Reply) -> list[dict[str, Json]] | None:
    """The rows of an OpenAI model list, None when it is something else. Ollama without a model says ``data: null``."""
    answer = json_object(reply.body)
    data = answer.get("data")
    empty = data is None and answer.get("object") == "list"
    return rows(data) if empty or isinstance(data, list) else None


def meta_of(row: dict[str, Json]) -> dict[str, Json]:
    """The ``meta`` object some servers put into a row."""
    return dict_of(row.get("meta"))
