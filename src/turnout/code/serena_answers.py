"""What Serena's answers mean. Pure: text in, values out (facts/serena.md, section 1.5).

Every answer is one text. What is no answer of the kind that was asked for is an error, and its text goes nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from turnout.code.intelligence import Diagnostic, IntelligenceError, NotSupportedError, Place

TOO_LONG = "The answer is too long"
_SHORTENED = "References without surrounding lines:"
_SEVERITY = {"error": 1, "warning": 2, "information": 3, "info": 3, "hint": 4}
_MARKED = re.compile(r"^ *> *(\d+):(.*)$", re.MULTILINE)
_TOOL = re.compile(r"^Error executing tool \w+: (?:\w+: )?")
_ABSOLUTE = re.compile(r"(?<![\w.:/<])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"(),;:]+[/\\])+([^\s/\\'\"(),;:]*)")
# Not its fault: another intelligence may have an answer.
_LACKING = (
    "Cannot extract symbols from file",
    "is outside of configured workspaces",
    "No symbol declaration found",
    "No match found for regex",
    "-32601",
    "not support",
)
_SLOW = ("timed out", "TimeoutError")
_Kind = TypeVar("_Kind")


class SlowError(IntelligenceError):
    """The language server did not answer Serena in time."""


class Lines(msgspec.Struct):
    """First and last line of a symbol, 0-based, both in it."""

    start_line: int
    end_line: int


class Found(msgspec.Struct):
    """A symbol as ``find_symbol`` and its kin tell it; a child has ``name``, and its path is its parent's.

    ``line`` and ``last`` are 0-based, both in it.
    """

    kind: str = ""
    name_path: str = ""
    name: str = ""
    relative_path: str = ""
    body_location: Lines = msgspec.field(default_factory=lambda: Lines(-1, -1))
    info: str = ""
    body: str = ""
    children: dict[str, list[Found]] = {}

    @property
    def line(self) -> int:
        return self.body_location.start_line

    @property
    def last(self) -> int:
        return self.body_location.end_line

    @property
    def own_name(self) -> str:
        """The last part of its path, without the number of an overload."""
        return plain_name(self.name_path)


class _Using(msgspec.Struct):
    """A symbol that uses another; without the surrounding lines it has the line's number alone."""

    name_path: str
    body_location: Lines | None = None
    content_around_reference: str = ""
    reference_line: int = -1


class _Point(msgspec.Struct):
    line: int
    character: int


class _Range(msgspec.Struct):
    start: _Point
    end: _Point


class _Objection(msgspec.Struct):
    message: str
    range: _Range
    code: str | int | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a symbol is used.

    Attributes:
        line: 0-based.
        text: that line, "" when it was not told.
        by: path of names of the symbol that uses it, and its kind.
        first: first and last line of that symbol, -1 when not told.
    """

    path: str
    line: int
    text: str
    by: str
    kind: str
    first: int = -1
    last: int = -1


def plain_name(name_path: str) -> str:
    """The last part of a path of names, without the number of an overload."""
    return re.sub(r"\[\d+\]$", "", name_path.rpartition("/")[2])


def symbols(text: str) -> tuple[Found, ...]:
    """The symbols of a list, without what is nested in them."""
    return tuple(_decode(text, list[Found]))


def symbol(text: str) -> Found:
    """The one symbol of an answer."""
    return _decode(text, Found)


def nested(text: str) -> tuple[Found, ...]:
    """The symbols of a list and all that is nested in them, in the order of their lines; each with its whole path."""
    found = [inner for outer in symbols(text) for inner in _within(outer, outer.name_path, outer.relative_path)]
    return tuple(sorted(found, key=lambda one: (one.line, -one.last, one.name_path)))


def _within(one: Found, name_path: str, path: str) -> Iterator[Found]:
    one.name_path, one.relative_path = name_path, path
    yield one
    for kind, children in one.children.items():
        for child in children:
            child.kind = child.kind or kind
            yield from _within(child, f"{name_path}/{child.name or plain_name(child.name_path)}", path)


def uses_in(text: str) -> tuple[Use, ...]:
    """The places of ``find_referencing_symbols``, also those of its shortened form.

    Raises:
        IntelligenceError: there are so many that it tells only how many.
    """
    if text.startswith(TOO_LONG):
        _, shortened, rest = text.partition(_SHORTENED)
        if not shortened:
            raise IntelligenceError("there are too many references to list")
        text = rest.strip()
    files = _decode(text, dict[str, dict[str, list[_Using]]])
    return tuple(
        use
        for path, kinds in files.items()
        for kind, users in kinds.items()
        for user in users
        if (use := _use(path, kind, user)) is not None
    )


def _use(path: str, kind: str, user: _Using) -> Use | None:
    marked = _MARKED.search(user.content_around_reference)
    line = int(marked[1]) if marked else user.reference_line
    if line < 0:
        return None
    first, last = (user.body_location.start_line, user.body_location.end_line) if user.body_location else (-1, -1)
    return Use(path, line, marked[2].strip() if marked else "", user.name_path, kind.lower(), first, last)


def diagnostics(text: str, path: str) -> tuple[Diagnostic, ...]:
    """What ``get_diagnostics_for_file`` tells of a file, in the order of the lines."""
    told = _decode(text, dict[str, dict[str, dict[str, list[_Objection]]]]).get(path, {})
    found = [
        _diagnostic(path, _SEVERITY.get(severity.lower(), 1), one)
        for severity, by_symbol in told.items()
        for ones in by_symbol.values()
        for one in ones
    ]
    return tuple(sorted(found, key=lambda d: (d.place.line, d.place.character, d.severity, d.message)))


def _diagnostic(path: str, severity: int, one: _Objection) -> Diagnostic:
    start, end = one.range.start, one.range.end
    place = Place(path, start.line, start.character, end.line, end.character)
    return Diagnostic(place, one.message, severity, "" if one.code is None else str(one.code), one.source or "")


def _decode(text: str, kind: type[_Kind]) -> _Kind:
    if text.startswith(TOO_LONG):
        raise IntelligenceError("there is too much to list: ask for something narrower")
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise IntelligenceError("Serena's answer is none that was expected") from error


def refusal(text: str, hidden: Mapping[str, str]) -> IntelligenceError:
    """What an answer that Serena marks as an error means.

    Args:
        text: the answer.
        hidden: directories whose names nobody needs to know, and what to write instead.
    """
    said = scrubbed(_TOOL.sub("", text.strip()), hidden)
    if any(sign in text for sign in _LACKING):
        return NotSupportedError(f"Serena cannot tell: {said}")
    if any(sign in text for sign in _SLOW):
        return SlowError(f"Serena's language server did not answer: {said}")
    return IntelligenceError(f"Serena refused: {said}")


def scrubbed(text: str, hidden: Mapping[str, str]) -> str:
    """The first line of a message, without absolute paths."""
    line = next((line for line in text.splitlines() if line.strip()), "it gave no reason").strip()
    for folder, instead in hidden.items():
        line = line.replace(folder, instead)
    return _ABSOLUTE.sub(r"\1", line)[:200]
