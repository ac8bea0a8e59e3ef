"""Prefix hygiene: what agents put into prompts that changes from request to request is made constant (SPEC PRICE-2).

A server's prefix cache holds up to the first byte that differs; one volatile line in a system prompt costs the whole
prompt's reading with every turn (facts/routing.md, Placement). Chat templates also want system messages first. Pure.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from turnout.types import ChatRequest, Message, Part, Text
from turnout.wire import rows

# Claude Code's first system block, which older versions give a hash of the request (facts/agents.md section 3).
_BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*\n*", re.MULTILINE)
_BILLING_LAST = re.compile(r"^x-anthropic-billing-header:[^\n]*\n*\Z", re.MULTILINE)
# A time of day beside its date: the date stays, which changes once a day.
_TIME = re.compile(r"(\b\d{4}-\d\d-\d\d)[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d)\b)?")
_EMPTY = Text("")
LONGEST_KNOWN = 100_000  # characters of a system prompt that is kept: one may be as long as a body
REMINDER, REMINDER_END = "<system-reminder>\n", "\n</system-reminder>"


def tidy(request: ChatRequest) -> ChatRequest:
    """The request as servers should see it; the same object when there is nothing to tidy.

    System messages before the first answer join the leading one; later ones, which must not change what is in a cache
    already, become a reminder in the user's turn where they stand. The client's own bytes are changed in the same way.
    """
    messages = _system_first(_without_volatile(request.messages))
    if messages == request.messages:
        return request
    raw = rows.tidied(request.raw, _constant_text, _reminder) if request.raw is not None else None
    return replace(request, messages=messages, raw=raw)


def _without_volatile(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    found = [_constant(m) if m.role == "system" else m for m in messages]
    return tuple(m for m in found if m.role != "system" or any(part != _EMPTY for part in m.parts))


def _constant(m: Message) -> Message:
    parts: list[Part] = []
    for part in m.parts:
        if not isinstance(part, Text):
            parts.append(part)
            continue
        text = _constant_text(part.text)
        if text or not part.text:
            parts.append(part if text == part.text else replace(part, text=text))
    return m if tuple(parts) == m.parts else replace(m, parts=tuple(parts))


def _constant_text(text: str) -> str:
    return _known_text(text) if len(text) <= LONGEST_KNOWN else _without_volatile_bytes(text)


@lru_cache(maxsize=128)  # an agent sends its system prompt with every request
def _known_text(text: str) -> str:
    return _without_volatile_bytes(text)


def _without_volatile_bytes(text: str) -> str:
    kept = _BILLING.sub("", text)
    if kept != text and _BILLING_LAST.search(text):
        kept = kept.rstrip("\n")  # what stood between it and the text before
    return _TIME.sub(r"\1", kept)


def _system_first(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    lead = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if all(m.role != "system" for m in messages[lead:]):
        return messages
    answered = next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))
    system = [m for m in messages[:answered] if m.role == "system"]
    rest = [m for m in messages[:answered] if m.role != "system"]
    for m in messages[answered:]:
        if m.role != "system":
            rest.append(m)
        elif rest and rest[-1].role == "user":
            rest[-1] = replace(rest[-1], parts=(*rest[-1].parts, Text(_reminder(_text(m)))))
        else:
            rest.append(Message("user", (Text(_reminder(_text(m))),)))
    return (*_joined(system), *rest)


def _reminder(text: str) -> str:
    return f"{REMINDER}{text}{REMINDER_END}"


def _joined(system: list[Message]) -> tuple[Message, ...]:
    """One message: templates that know a system message know one."""
    if len(system) < 2:
        return tuple(system)
    texts = [text for m in system if (text := _text(m))]
    return (replace(system[0], parts=(Text("\n\n".join(texts)),)),)


def _text(m: Message) -> str:
    return "\n\n".join(part.text for part in m.parts if isinstance(part, Text) and part.text)
