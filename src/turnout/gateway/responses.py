"""OpenAI Responses over HTTP: chat as the other formats, and the answers that are kept for ``previous_response_id``."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from turnout.errors import TurnoutError, UsageError
from turnout.gateway.completions import ChatEndpoint, principal_of
from turnout.gateway.formats import RESPONSES, ChatFormat, Renderer
from turnout.gateway.refusal import HttpError, refusal
from turnout.types import ChatRequest, Event, Json, RawBody, RawChunk, WireFormat
from turnout.wire import base, openai_responses
from turnout.wire.passing import top_of

MAX_KEPT = 256
MAX_KEPT_BYTES = 32_000_000
MAX_SHELVES = 16


@dataclass(frozen=True, slots=True)
class _Answer:
    """A kept answer: its body, the ids of its items, and the whole conversation as items, in JSON."""

    body: bytes
    ids: frozenset[str]
    items: bytes

    @property
    def size(self) -> int:
        return len(self.body) + len(self.items)


class Kept:
    """The answers of one principal: in memory only, gone with the process; whichever was not used for longest goes.

    Args:
        most: answers.
        most_bytes: of all of them; what alone is larger is not kept.
    """

    def __init__(self, most: int = MAX_KEPT, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def add(self, body: bytes, before: Sequence[Json]) -> None:
        """Keep an answer, ``before`` being the items that it answers."""
        data = msgspec.json.decode(body)
        try:
            items = base.encode([*before, *data["output"]])
        except UsageError:  # nested so deeply that it could just be read: the answer is given all the same
            return
        answer = _Answer(body, frozenset(item["id"] for item in data["output"]), items)
        if answer.size > self._most_bytes:
            return
        self._answers[data["id"]] = answer
        self._bytes += answer.size
        while self._bytes > self._most_bytes or len(self._answers) > self._most:
            self._bytes -= self._answers.popitem(last=False)[1].size

    def get(self, response_id: str) -> _Answer:
        """The answer.

        Raises:
            HttpError: 404, it is not kept.
        """
        answer = self._answers.get(response_id)
        if answer is None:
            hint = "it was not stored, or is gone; send the whole conversation as input"
            raise HttpError(404, f"there is no response {response_id[:80]!r}", hint=hint)
        self._answers.move_to_end(response_id)
        return answer

    def drop(self, response_id: str) -> None:
        """Forget the answer. Raises as ``get``."""
        self._bytes -= self.get(response_id).size
        del self._answers[response_id]

    def item(self, item_id: str) -> Json:
        """An item of an answer, that a client names instead of repeating it.

        Raises:
            HttpError: 404, it is not kept.
        """
        answer = next((answer for answer in self._answers.values() if item_id in answer.ids), None)
        if answer is None:
            raise HttpError(404, f"there is no item {item_id[:80]!r}", hint="it is gone; send the item itself as input")
        found: Json = next(item for item in msgspec.json.decode(answer.body)["output"] if item["id"] == item_id)
        return found


class Shelves:
    """What is kept for each principal; nobody sees another's, nor makes it go.

    Whoever has a key makes as many principals as he likes, with tokens: ``MAX_SHELVES`` of one key are kept, and the
    one that was not used for longest goes.
    """

    def __init__(self) -> None:
        self._kept: dict[str, OrderedDict[str, Kept]] = {}

    def of(self, scope: Scope) -> Kept:
        """The kept answers of whoever asks."""
        name = principal_of(scope).id
        shelves = self._kept.setdefault(name.partition("/")[0], OrderedDict())
        found = shelves.setdefault(name, Kept())
        shelves.move_to_end(name)
        if len(shelves) > MAX_SHELVES:
            shelves.popitem(last=False)
        return found


class ResponsesEndpoint(ChatEndpoint[ChatRequest]):
    """POST of a Responses request."""

    def __init__(self) -> None:
        super().__init__(RESPONSES)

    def format_of(self, scope: Scope) -> ChatFormat:
        """The format, bound to what is kept for the caller."""
        exchange = _Exchange(scope["app"].state.responses.of(scope))
        return replace(RESPONSES, parse=exchange.parse, renderer=exchange.renderer, whole=exchange.whole)


class _Exchange:
    """One request and its answer, which is kept unless ``store`` is false."""

    def __init__(self, kept: Kept) -> None:
        self._kept, self._id = kept, uuid.uuid4().hex
        self._items: list[Json] = []

    def parse(self, body: bytes) -> ChatRequest:
        """The request with the conversation before it.

        Raises:
            UsageError: as ``openai_responses.parse_request``.
            HttpError: 404, what it refers to is not kept.
        """
        data = base.decode_object(body)
        earlier: list[Json] = []
        if previous := data.get("previous_response_id"):
            kept = self._kept.get(base.text_field(previous, "previous_response_id"))
            earlier = msgspec.json.decode(kept.items)
        self._items = [*earlier, *(self._item(item) for item in openai_responses.input_items(data))]
        chat = openai_responses.request_of({**data, "input": self._items})
        return replace(chat, raw=self._raw(body)) if openai_responses.passes(data) else chat

    def _raw(self, body: bytes) -> RawBody:
        """The client's bytes, with the id that the answer is to have: it is kept by one that no server has chosen."""
        named = msgspec.json.encode({**top_of(body), "request_id": f"resp_{self._id}"})
        return RawBody(WireFormat.RESPONSES, named)

    def _item(self, item: dict[str, Json]) -> Json:
        refers = item.get("type") == "item_reference"
        return self._kept.item(base.as_text(item.get("id"))) if refers else item

    def renderer(self, chat: ChatRequest, _: str) -> Renderer:
        """A renderer, which keeps the answer when it ends."""
        if _stored(chat):
            return _Keeping(chat, self._id, self.keep)
        return openai_responses.StreamRenderer(chat, chat.model, self._id)

    def whole(self, events: Sequence[Event], chat: ChatRequest, model: str, request_id: str) -> bytes:
        """As ``openai_responses.render_response``."""
        body = openai_responses.render_response(events, chat, model, request_id)
        if _stored(chat):
            self.keep(body)
        return body

    def keep(self, body: bytes) -> None:
        self._kept.add(body, self._items)


def _stored(chat: ChatRequest) -> bool:
    return chat.client_fields.get("store") is not False


class _Keeping(openai_responses.StreamRenderer):
    def __init__(self, chat: ChatRequest, request_id: str, keep: Callable[[bytes], None]) -> None:
        super().__init__(chat, chat.model, request_id)
        self._keep = keep

    def feed(self, event: Event) -> bytes:
        """As ever; of an answer that passes through, the whole comes here with its last bytes."""
        if isinstance(event, RawChunk) and base.object_or_nothing(event.answer).get("id") == self.id:
            self._keep(event.answer)
        return super().feed(event)

    def close(self) -> bytes:
        """Kept before the client hears of the end, since it may go on at once."""
        data = super().close()
        self._keep(base.encode(self.response()))
        return data


async def kept_response(request: Request) -> Response:
    """GET or DELETE of a kept answer."""
    kept, response_id = request.app.state.responses.of(request.scope), request.path_params["id"]
    try:
        body = kept.get(response_id).body
        if request.method == "DELETE":
            kept.drop(response_id)
            body = base.encode({"id": response_id, "object": "response", "deleted": True})
    except TurnoutError as error:
        return refusal(error, RESPONSES)
    return Response(body, media_type="application/json")
