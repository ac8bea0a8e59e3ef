"""Columns, which Serena gives none of: found by reading the file. Pure, but for the one that reads.

Characters count in UTF-16 units, as in LSP. A file is decoded as UTF-8; what is no UTF-8 becomes U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from turnout.code.intelligence import IntelligenceError, Place
from turnout.code.search import MAX_FILE_BYTES
from turnout.files import read_file
from turnout.types import Position

_WORD = re.compile(r"\w+")
_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Word:
    """An identifier: its text, and where it begins."""

    text: str
    line: int
    column: int


def inside(root: Path, path: str) -> bool:
    """Whether a path is relative, and leads into the workspace through all its links; ``root`` is resolved."""
    return not Path(path).is_absolute() and (root / path).resolve().is_relative_to(root)


def read_lines(root: Path, path: str) -> tuple[str, ...]:
    """The lines of a file of the workspace, without their ends and without a byte order mark.

    Raises:
        IntelligenceError: it is outside of the workspace, cannot be read, is too large, or is no text.
    """
    if not inside(root, path):
        raise IntelligenceError(f"{Path(path).name} is outside of the workspace")
    try:
        data = read_file(root / path)
    except OSError as error:
        raise IntelligenceError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES or b"\x00" in data[:4096]:
        raise IntelligenceError(f"{path} is no text, or larger than {MAX_FILE_BYTES:,} bytes")
    text = data.decode("utf-8", "replace").removeprefix(_MARK)
    return tuple(line.removesuffix("\r") for line in text.split("\n"))


def first_spoilt(root: Path, paths: Iterable[Path], name: str) -> str:
    """The first of these files that has a name and would not stay what it is when Serena writes it, "" for none.

    Serena writes UTF-8 with one kind of line end, whatever the file had (seen with 2.1.0: carriage returns are gone,
    and Latin-1 is UTF-8 below a line that says otherwise).
    """
    for path in paths:
        try:
            data = read_file(path)
        except OSError:
            continue  # what cannot be read is not written either
        if name.encode() in data and (b"\r" in data or not _is_utf8(data)):
            return path.relative_to(root).as_posix()
    return ""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def word_at(lines: Sequence[str], position: Position, path: str) -> Word | None:
    """The identifier at a position, or the one that ends there; None where there is none.

    Raises:
        IntelligenceError: the position is past the end of its line or of the file.
    """
    if not 0 <= position.line < len(lines):
        raise IntelligenceError(f"{path} has {len(lines)} lines, there is no line {position.line + 1}")
    line = lines[position.line]
    if not 0 <= position.character <= units(line):
        raise IntelligenceError(f"line {position.line + 1} of {path} has {units(line)} characters")
    index = _index(line, position.character)
    found = [word for word in _WORD.finditer(line) if word.start() <= index <= word.end() and not word[0].isdigit()]
    return Word(found[-1][0], position.line, units(line[: found[-1].start()])) if found else None


def units(text: str) -> int:
    """UTF-16 units of a text."""
    return len(text) + sum(character > "\uffff" for character in text)


def _index(line: str, character: int) -> int:
    for index, letter in enumerate(line):
        character -= 1 if letter <= "\uffff" else 2
        if character < 0:
            return index
    return len(line)


def pattern_of(word: Word) -> str:
    """A regular expression with a group at the word's own place in the file, and nowhere else.

    Serena hands the group's column on as if characters were UTF-16 units: behind an emoji the group is so far to the
    right that the number is the right one again (Serena 2.1.0, 1.7.0).
    """
    return rf"\A\ufeff?(?:[^\n]*\n){{{word.line}}}[^\n]{{{word.column}}}([^\n])"


def whole(lines: Sequence[str], start: int, end: int) -> Place:
    """All of the lines of a definition, without a path: from its first character that is no space to its end."""
    if not 0 <= start < len(lines):
        return Place("", max(0, start), end_line=max(start, end))
    first, last = lines[start], min(max(start, end), len(lines) - 1)
    return Place("", start, len(first) - len(first.lstrip()), last, units(lines[last]), first.strip())


def named(lines: Sequence[str], name: str, start: int, end: int) -> Place:
    """Where a definition between two lines has its name, without a path; the beginning when it is not found."""
    wanted = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    for number in range(max(0, start), min(end + 1, len(lines))):
        line = lines[number]
        # A decorator above may have the same name.
        found = None if line.lstrip().startswith("@") else wanted.search(line)
        if found is not None:
            return _place(line, number, found.start(), found.end())
    return whole(lines, start, start)


def uses(lines: Sequence[str], name: str, line: int, count: int) -> tuple[Place, ...]:
    """The first ``count`` places of a line where a name is used; the line itself when it is not found there."""
    if not 0 <= line < len(lines):
        return (Place("", line, end_line=line),)
    text = lines[line]
    found = list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text))[:count]
    return tuple(_place(text, line, m.start(), m.end()) for m in found) or (whole(lines, line, line),)


def _place(line: str, number: int, start: int, end: int) -> Place:
    return Place("", number, units(line[:start]), number, units(line[:end]), line.strip())
