"""What the session store keeps, as values, and how a message is written (SPEC CTX-2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

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


_KINDS: dict[str, type[Text | Image | Reasoning | ToolCall | ToolResult]] = {
    "text": Text, "image": Image, "reasoning": Reasoning, "call": ToolCall, "result": ToolResult
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}
_ROLES = frozenset(get_args(Role))
_NO_TEXT = {"extras": dict, "is_error": bool}  # every other field of a part is a text


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
        data = _parsed(body)
        parts = tuple([_part(row) for row in data["parts"]])
        role, extras = data["role"], data["extras"]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no message ({type(error).__name__}: {error})") from error
    if role not in _ROLES or type(extras) is not dict:
        raise ValueError("it is no message of anybody's")
    return Message(role, parts, extras)


def _part(row: dict[str, Any]) -> Part:
    kind = _KINDS[row.pop("kind")]
    for name, value in row.items():
        if type(value) is not _NO_TEXT.get(name, str):
            raise TypeError(f"{name} is of the wrong kind")
    return kind(**row)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Three times slower, for what no strict JSON has: lone surrogates, NaN, numbers beyond every range.
        return json.loads(body)  # type: ignore[no-any-return]


def metadata_of(text: str) -> Mapping[str, Json]:
    """What was stored beside a message.

    Raises:
        ValueError: it is no JSON object.
    """
    if text == "{}":
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
