"""The wire formats as the gateway sees them: one value each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from turnout.errors import TurnoutError
from turnout.types import ChatRequest, Event
from turnout.wire import anthropic, ollama_server, openai_chat, openai_responses, openai_text
from turnout.wire.base import Completion

A = TypeVar("A", bound=ChatRequest | Completion)
SSE = b"text/event-stream; charset=utf-8"


class Renderer(Protocol):
    """Events as the bytes of one streamed answer."""

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none, as those have none that pass through."""

    def keep_alive(self) -> bytes:
        """What keeps a client waiting, between events."""

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle, after which nothing comes."""

    def close(self) -> bytes:
        """The end of the answer."""


@dataclass(frozen=True, slots=True)
class Format(Generic[A]):
    """How one wire format is read and answered.

    Attributes:
        parse: the client's body as a request; raises UsageError.
        renderer: of a streamed answer to a request; takes a part of the answer's id.
        whole: a whole answer, from events, request, ResponseModel and a part of its id.
        error: status and body of a failure; status 0 takes the failure's own.
        stream_type: the content type of a stream.
        event_end: with what each of its events ends.
    """

    parse: Callable[[bytes], A]
    renderer: Callable[[A, str], Renderer]
    whole: Callable[[Sequence[Event], A, str, str], bytes]
    error: Callable[[TurnoutError, int], tuple[int, bytes]]
    stream_type: bytes = SSE
    event_end: bytes = b"\n\n"


ChatFormat: TypeAlias = Format[ChatRequest]
AnyFormat: TypeAlias = Format[Any]


def _openai_renderer(chat: ChatRequest, request_id: str) -> Renderer:
    include = chat.raw is not None and openai_chat.peek(chat.raw.body).include_usage
    return openai_chat.StreamRenderer(chat.model, request_id, include)


OPENAI_CHAT = Format(
    openai_chat.parse_request,
    _openai_renderer,
    lambda events, _, model, request_id: openai_chat.render_response(events, model, request_id),
    openai_chat.render_error,
)
ANTHROPIC = Format(
    anthropic.parse_request,
    lambda chat, request_id: anthropic.StreamRenderer(chat.model, request_id),
    lambda events, _, model, request_id: anthropic.render_response(events, model, request_id),
    anthropic.render_error,
)
RESPONSES = Format(
    openai_responses.parse_request,
    lambda chat, request_id: openai_responses.StreamRenderer(chat, chat.model, request_id),
    openai_responses.render_response,
    openai_responses.render_error,
)
OPENAI_TEXT = Format(
    openai_text.parse_request,
    lambda asked, request_id: openai_text.StreamRenderer(asked.model, request_id),
    lambda events, _, model, request_id: openai_text.render_response(events, model, request_id),
    openai_text.render_error,
)
OLLAMA_CHAT = Format(
    ollama_server.parse_request,
    lambda chat, _: ollama_server.StreamRenderer(chat.model),
    lambda events, _, model, __: ollama_server.render_response(events, model),
    ollama_server.render_error,
    ollama_server.STREAM_TYPE,
    b"\n",
)
OLLAMA_GENERATE = Format(
    ollama_server.parse_generate,
    lambda chat, _: ollama_server.GenerateRenderer(chat.model),
    lambda events, _, model, __: ollama_server.render_generate(events, model),
    ollama_server.render_error,
    ollama_server.STREAM_TYPE,
    b"\n",
)
OLLAMA_TEXT = Format(
    ollama_server.parse_text,
    lambda asked, _: ollama_server.GenerateRenderer(asked.model),
    lambda events, _, model, __: ollama_server.render_generate(events, model),
    ollama_server.render_error,
    ollama_server.STREAM_TYPE,
    b"\n",
)
