"""Tool calls of the OpenAI format as servers write them: what one leaves out is invented, in both lanes alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from turnout.types import Event, Json, ToolCallDelta
from turnout.wire import base
from turnout.wire.base import as_dict, as_text, encode, new_id


@dataclass(slots=True)
class _Call:
    """A call under way; ``held`` are arguments that came before its name."""

    index: int
    call_id: str
    named: bool = False
    held: str = ""


class Calls:
    """Tool-call deltas of one answer: index and id are invented where a server leaves them out.

    A server's index is no more than a hint: some give parallel calls the same one, with ids of their own.
    """

    def __init__(self, *, whole: bool = False) -> None:
        """``whole``: every row is a call of its own, and none goes on with one before."""
        self._whole = whole
        self._all: list[_Call] = []
        self._at: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def events(self, value: Json) -> list[Event]:
        """The events of one ``tool_calls`` list."""
        rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
        return [event for place, row in enumerate(rows) for event in self._row(row, place)]

    def end(self) -> list[Event]:
        """Calls whose name never came."""
        return [ToolCallDelta(c.index, c.call_id, "", c.held) for c in self._all if not c.named]

    def _row(self, row: Mapping[str, Json], place: int) -> list[Event]:
        function = as_dict(row.get("function"))
        name, call_id = as_text(function.get("name")), as_text(row.get("id"))
        call = self._find(place if self._whole else row.get("index"), call_id, name, place)
        text = base.arguments_text(function.get("arguments"))
        if call.named:
            return [ToolCallDelta(call.index, arguments=text)] if text else []
        call.held += text
        if not name:
            return []
        call.named = True
        return [ToolCallDelta(call.index, call.call_id, name, call.held)]

    def _find(self, hint: Json, call_id: str, name: str, place: int) -> _Call:
        if isinstance(hint, int) and not isinstance(hint, bool):
            call = self._at.get(hint)
            # A changed id alone is no new call: some servers draw a fresh id for every delta.
            if call is None or (call.named and name and call_id not in ("", call.call_id)):
                call = self._at[hint] = self._new(call_id)
            return call
        known = self._by_id.get(call_id)
        if known is not None:
            return known
        if not self._all or call_id or name:
            return self._new(call_id)
        return self._all[min(place, len(self._all) - 1)] if place else self._all[-1]

    def _new(self, call_id: str) -> _Call:
        free = bool(call_id) and call_id not in self._by_id
        call = _Call(len(self._all), call_id if free else new_id("call_"))
        self._all.append(call)
        self._by_id[call.call_id] = call
        return call

    def __bool__(self) -> bool:
        return bool(self._all)


class Mender:
    """Completes the calls of an answer that passes as it is: clients stop, or do nothing, where an id or an index is
    missing (facts/agents.md 4b).

    What has nothing missing stays as it was written; from the first flaw on all calls are written anew.
    """

    def __init__(self) -> None:
        self._choices: dict[int, tuple[Calls, dict[int, str]]] = {}
        self._flawed = False

    def event(self, data: bytes) -> bytes | None:
        """An event's JSON as it should be; None when it is well, or nothing that could be read."""
        answer = _object(data)
        choices = answer.get("choices")
        rows = [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []
        touched = [self._choice(as_dict(row), place) for place, row in enumerate(rows)]
        return encode(answer) if any(touched) else None

    def _choice(self, row: dict[str, Json], place: int) -> bool:
        """Whether this choice was changed."""
        number = row.get("index")
        whole = "delta" not in row
        fresh: tuple[Calls, dict[int, str]] = Calls(whole=whole), {}
        calls, seen = self._choices.setdefault(number if isinstance(number, int) else place, fresh)
        part = row.get("delta")
        part = part if isinstance(part, dict) else row.get("message")
        written = part.get("tool_calls") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(written, list) or not written:
            return False
        self._flawed = self._flawed or not all(_is_sound(as_dict(call), seen, whole=whole) for call in written)
        events = calls.events(written)
        if not self._flawed:
            return False
        part["tool_calls"] = [_row(event, whole=whole) for event in events if isinstance(event, ToolCallDelta)]
        if not part["tool_calls"]:
            del part["tool_calls"]
        return True


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_sound(call: Mapping[str, Json], seen: dict[int, str], *, whole: bool) -> bool:
    """Whether a client can read this; ``seen`` are the ids by index so far."""
    function, call_id, index = as_dict(call.get("function")), call.get("id"), call.get("index")
    if not isinstance(function.get("arguments", ""), str | None):
        return False
    if whole:
        index = len(seen)
    if not isinstance(index, int) or isinstance(index, bool):
        return False
    if index in seen:
        return not (function.get("name") and call_id not in (None, "", seen[index]))
    if not isinstance(call_id, str) or not call_id or call_id in seen.values() or not function.get("name"):
        return False
    seen[index] = call_id
    return not whole or isinstance(function.get("arguments"), str)


def _row(event: ToolCallDelta, *, whole: bool) -> Json:
    if not event.name and not whole:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    row: dict[str, Json] = {} if whole else {"index": event.index}
    arguments = event.arguments or ("{}" if whole else "")
    return row | {"id": event.call_id, "type": "function", "function": {"name": event.name, "arguments": arguments}}
