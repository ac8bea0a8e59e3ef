"""What the session store keeps, as values, and how a message is written (SPEC CTX-2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from turnout.types import NOTHING, Image, Json, Message, Part, Reasoning, Role, Text, ToolCall, ToolResult


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its time (seconds since the epoch), its tokens, and what else is known of it."""

    message: Message
    time: float
    tokens: int
    metadata: Mapping[str, Json] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is kept.

    Attributes:
        created, updated: seconds since the epoch.
        compactions: how often its conversation was shortened to fit.
        messages: the full history, oldest first: what compaction leaves out is still here.
        model_history: ``(time, model, reason)`` of every switch, oldest first.
        compact_at: after so many messages the user asked to have the conversation compacted.
    """

    id: str
    created: float
    updated: float
    system_prompt: str = ""
    active_model: str = ""
    compactions: int = 0
    messages: tuple[StoredMessage, ...] = ()
    model_history: tuple[tuple[float, str, str], ...] = ()
    compact_at: tuple[int, ...] = ()

    @property
    def total_tokens(self) -> int:
        """Tokens of all messages."""
        return sum(m.tokens for m in self.messages)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one answered query adds to a session.

    Attributes:
        model: answered, for ``reason``; "" leaves the model as it is.
        system_prompt: led the conversation; "" leaves the session's as it is.
        compacted: what was sent was shortened to fit.
    """

    messages: tuple[StoredMessage, ...]
    model: str = ""
    reason: str = ""
    system_prompt: str = ""
    compacted: bool = False


@dataclass(frozen=True, slots=True)
class SessionLine:
    """A session in a list.

    Attributes:
        messages, tokens: of the full history.
        question: the first one, "" when there is none or it is very long.
    """

    id: str
    created: float
    updated: float
    messages: int
    tokens: int
    active_model: str
    question: str


class _Kept(msgspec.Struct, tag_field="kind", forbid_unknown_fields=True, gc=False):
    """A part as it is written. A class of its own, because only such ones does msgspec tell apart by their names."""


class _Text(_Kept, tag="text"):
    text: str
    extras: dict[str, Any] = {}


class _Image(_Kept, tag="image"):
    media_type: str = ""
    data: str = ""
    url: str = ""


class _Reasoning(_Kept, tag="reasoning"):
    text: str
    signature: str = ""


class _Call(_Kept, tag="call"):
    call_id: str
    name: str
    arguments: str
    item_id: str = ""
    namespace: str = ""


class _Result(_Kept, tag="result"):
    call_id: str
    content: str
    name: str = ""
    is_error: bool = False


class _Row(msgspec.Struct, gc=False):
    role: Role
    parts: list[_Text | _Image | _Reasoning | _Call | _Result]
    extras: dict[str, Any]


_NAMES = {Text: "text", Image: "image", Reasoning: "reasoning", ToolCall: "call", ToolResult: "result"}
_PARTS: Mapping[type[_Kept], Callable[[Any], Part]] = {
    _Text: lambda p: Text(p.text, p.extras or NOTHING),
    _Image: lambda p: Image(p.media_type, p.data, p.url),
    _Reasoning: lambda p: Reasoning(p.text, p.signature),
    _Call: lambda p: ToolCall(p.call_id, p.name, p.arguments, p.item_id, p.namespace),
    _Result: lambda p: ToolResult(p.call_id, p.content, p.name, p.is_error),
}
_ROW = msgspec.json.Decoder(_Row)


def encode_message(value: Message) -> bytes:
    """A message as JSON in ASCII, with escapes: lone surrogates, large numbers and NaN survive."""
    parts = [{"kind": _NAMES[type(part)], **_fields(part)} for part in value.parts]
    return json.dumps({"role": value.role, "parts": parts, "extras": dict(value.extras)}).encode("ascii")


def _fields(part: Part) -> dict[str, Json]:
    values = ((name, getattr(part, name)) for name in type(part).__dataclass_fields__)
    return {name: value if isinstance(value, str | bool) else dict(value) for name, value in values}


def decode_message(body: bytes) -> Message:
    """The message that ``encode_message`` wrote.

    Raises:
        ValueError: it did not write this.
    """
    try:
        row = _ROW.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        row = _by_json(body)
    return Message(row.role, tuple([_PARTS[type(part)](part) for part in row.parts]), row.extras or NOTHING)


def _by_json(body: bytes) -> _Row:
    """Several times slower, for what no strict JSON has: lone surrogates, NaN, numbers beyond every range."""
    try:
        return msgspec.convert(json.loads(body), _Row)
    except (msgspec.MsgspecError, RecursionError, TypeError) as error:
        raise ValueError(f"it is no message ({error})") from error


@lru_cache(maxsize=64)  # the same few models and services answer all of a session
def metadata_of(text: str | None) -> Mapping[str, Json]:
    """What was stored beside a message; None for nothing.

    Raises:
        ValueError: it is no JSON object.
    """
    if text is None:
        return NOTHING
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError("what is beside it is no JSON object")  # noqa: TRY004 - it is what the text says
    return found


def speaks(m: Message) -> bool:
    """Whether it begins a turn: a user's message that is more than results of tools."""
    return m.role == "user" and any(not isinstance(part, ToolResult) for part in m.parts)
