"""What the session store keeps, as values, and how a message is written (SPEC CTX-2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from turnout.types import NOTHING, Image, Json, Message, Part, Reasoning, Text, ToolCall, ToolResult


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
        ValueError, KeyError, TypeError: it did not write this.
    """
    data = _parsed(body)
    parts = tuple(_KINDS[row.pop("kind")](**row) for row in data["parts"])
    return Message(data["role"], parts, data["extras"])


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Three times slower, for what no strict JSON has: lone surrogates, NaN, numbers beyond every range.
        return json.loads(body)  # type: ignore[no-any-return]


def metadata_of(text: str) -> Mapping[str, Json]:
    """What was stored beside a message."""
    return NOTHING if text == "{}" else json.loads(text)


def speaks(m: Message) -> bool:
    """Whether it begins a turn: a user's message that is more than results of tools."""
    return m.role == "user" and any(not isinstance(part, ToolResult) for part in m.parts)
