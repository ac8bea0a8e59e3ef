"""The wire formats as the gateway sees them: one value each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from turnout.errors import TurnoutError
from turnout.types import ChatRequest, Event
from turnout.wire import anthropic, openai_chat, openai_responses


class Renderer(Protocol):
    """Events as the bytes of one streamed answer."""

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none."""

    def keep_alive(self) -> bytes:
        """What keeps a client waiting, between events."""

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle, after which nothing comes."""

    def close(self) -> bytes:
        """The end of the answer."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one wire format is read and answered.

    Attributes:
        parse: the client's body as a request; raises UsageError.
        renderer: of a streamed answer to a request; takes a part of the answer's id.
        whole: a whole answer, from events, request, ResponseModel and a part of its id.
        error: status and body of a failure; status 0 takes the failure's own.
    """

    parse: Callable[[bytes], ChatRequest]
    renderer: Callable[[ChatRequest, str], Renderer]
    whole: Callable[[Sequence[Event], ChatRequest, str, str], bytes]
    error: Callable[[TurnoutError, int], tuple[int, bytes]]


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
