"""Prefix hygiene on a client's own bytes: what ``hygiene.py`` does to messages, done to the rows they came in.

Rows that need no change keep their bytes. What this cannot do is left to the translated lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

from turnout.types import Json, RawBody, WireFormat
from turnout.wire.passing import TOP

Constant: TypeAlias = Callable[[str], str]
Remind: TypeAlias = Callable[[str], str]
_SYSTEM = ("system", "developer")
_TEXT = (None, "text", "input_text")


class _Head(msgspec.Struct):
    role: str = ""


_HEAD = msgspec.json.Decoder(_Head)
_ROWS = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class _Row:
    """One message. ``content`` is read of system messages alone, and of those that something is added to."""

    role: str
    raw: msgspec.Raw
    content: Json = None

    def with_content(self, content: Json) -> _Row:
        made = msgspec.json.encode({**TOP.decode(self.raw), "content": content})
        return replace(self, raw=msgspec.Raw(made), content=content)


def tidied(raw: RawBody, constant: Constant, remind: Remind) -> RawBody | None:
    """The body with volatile texts made constant and one system message first; None when it cannot be had so.

    Args:
        constant: of a system message's text what stays.
        remind: a later system message's text, as it stands in the user's turn.
    """
    try:
        top = TOP.decode(raw.body)
        if raw.format is WireFormat.OLLAMA_GENERATE:
            system = constant(msgspec.json.decode(top["system"], type=str))
            return replace(raw, body=msgspec.json.encode({**top, "system": system}))
        rows = [_read(one) for one in _ROWS.decode(top["messages"])]
        data: dict[str, object] = dict(top)
        if raw.format is WireFormat.ANTHROPIC:
            lead = msgspec.json.decode(top["system"]) if "system" in top else None
            data["system"], rows = _with_system(_constant(lead, constant), _constant_rows(rows, constant), remind)
            if data["system"] in (None, "", []):
                del data["system"]
            elif data["system"] == lead:
                data["system"] = top["system"]
        else:
            rows = _system_first(_constant_rows(rows, constant), remind)
        data["messages"] = [row.raw for row in rows]
        return replace(raw, body=msgspec.json.encode(data))
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError, _UnfitError):
        return None


class _UnfitError(Exception):
    """A system message of something else than text."""


def _read(raw: msgspec.Raw) -> _Row:
    role = _HEAD.decode(raw).role
    return _Row("system", raw, _content(raw)) if role in _SYSTEM else _Row(role, raw)


def _content(raw: msgspec.Raw) -> Json:
    found = TOP.decode(raw).get("content")
    return msgspec.json.decode(found) if found is not None else None


def _texts(content: Json) -> list[str]:
    """The texts of a system message; raises _UnfitError when it has something else."""
    if content is None or isinstance(content, str):
        return [content] if content else []
    found: list[str] = []
    for block in content if isinstance(content, list) else [None]:
        text = block.get("text", "") if isinstance(block, dict) and block.get("type") in _TEXT else None
        if not isinstance(text, str):
            raise _UnfitError
        found.append(text)
    return found


def _constant(content: Json, constant: Constant) -> Json:
    """The content with constant texts; blocks of which nothing stays go."""
    if isinstance(content, str):
        return constant(content)
    _texts(content)
    kept: list[Json] = []
    for block in content if isinstance(content, list) else ():
        text = block.get("text", "") if isinstance(block, dict) else ""
        new = constant(text) if isinstance(text, str) else ""
        if new or not text:
            kept.append({**block, "text": new} if isinstance(block, dict) and new != text else block)
    return kept if content is not None else None


def _constant_rows(rows: Iterable[_Row], constant: Constant) -> list[_Row]:
    """The rows; system messages without a word go."""
    made: list[_Row] = []
    for row in rows:
        new = _constant(row.content, constant) if row.role == "system" else None
        if row.role != "system" or new == row.content:
            made.append(row)
        elif new:
            made.append(row.with_content(new))
    return [row for row in made if row.role != "system" or any(_texts(row.content))]


def _system_first(rows: list[_Row], remind: Remind) -> list[_Row]:
    lead = next((i for i, row in enumerate(rows) if row.role != "system"), len(rows))
    if all(row.role != "system" for row in rows[lead:]):
        return rows
    system, rest = _sorted(rows, remind)
    texts = [text for row in system if (text := "\n\n".join(filter(None, _texts(row.content))))]
    return [*(system if len(system) < 2 else [system[0].with_content("\n\n".join(texts))]), *rest]


def _with_system(lead: Json, rows: list[_Row], remind: Remind) -> tuple[Json, list[_Row]]:
    """The top-level ``system`` with those that stand among the messages."""
    system, rest = _sorted(rows, remind)
    text = "\n\n".join(text for row in system if (text := "\n\n".join(filter(None, _texts(row.content)))))
    if not text:
        return lead, rest
    if not lead:
        return text, rest
    if isinstance(lead, str):
        return f"{lead}\n\n{text}", rest
    *before, last = lead if isinstance(lead, list) else [None]
    if not isinstance(last, dict):
        raise _UnfitError
    joined = f"{last['text']}\n\n{text}" if last.get("text") else text
    return [*before, {**last, "text": joined}], rest


def _sorted(rows: list[_Row], remind: Remind) -> tuple[list[_Row], list[_Row]]:
    """System messages from before the first answer, and the rest with the later ones in the user's turn."""
    answered = next((i for i, row in enumerate(rows) if row.role == "assistant"), len(rows))
    rest = [row for row in rows[:answered] if row.role != "system"]
    for row in rows[answered:]:
        if row.role != "system":
            rest.append(row)
            continue
        text = remind("\n\n".join(filter(None, _texts(row.content))))
        if rest and rest[-1].role == "user":
            rest[-1] = _added(rest[-1], text)
        else:
            new = msgspec.json.encode({"role": "user", "content": text})
            rest.append(_Row("user", msgspec.Raw(new), text))
    return [row for row in rows[:answered] if row.role == "system"], rest


def _added(row: _Row, text: str) -> _Row:
    content = _content(row.raw)
    if isinstance(content, list):
        return row.with_content([*content, {"type": "text", "text": text}])
    return row.with_content((content if isinstance(content, str) else "") + text)
