"""Where lines that an answer quotes stand in a file, and the file's text afterwards. Pure; what a hunk does not name
keeps its bytes."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from turnout.code.proposal import Hunk
from turnout.code.symbols import block_end
from turnout.errors import EditError

_MOST_PLACES, _NEAR, _COMPARED, _WIDTH = 50, 5, 2000, 200
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_UNKNOWN = "an unknown encoding"


@dataclass(frozen=True, slots=True)
class Page:
    """A file as it is edited.

    Attributes:
        text: its lines with ``\\n`` between them, without the last line break. Where line ends differ within the file a
            ``\\r`` is part of its line.
        ends: its last line has a line break.
        newline: of every line.
        mark: the byte order mark, or nothing.
        encoding: of the rest. A byte that is no text in it stays as it is.
    """

    text: str = ""
    ends: bool = False
    newline: str = "\n"
    mark: bytes = b""
    encoding: str = "utf-8"

    @property
    def lines(self) -> list[str]:
        """Its lines; none of an empty file."""
        return self.text.split("\n") if self.text or self.ends else []

    def with_content(self, content: str) -> Page:
        """The same kind of file with another text."""
        return replace(self, text=content.removesuffix("\n"), ends=content.endswith("\n"))


def opened(data: bytes) -> Page:
    """The text of a file. Raises EditError: it is binary."""
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", ""))
    rest = data[len(mark) :]
    encoding = encoding or _declared(rest)
    try:
        text = rest.decode(encoding)
        if text.encode(encoding) != rest:
            raise EditError("it is not text that can be written back as it was")
    except (UnicodeError, LookupError):
        encoding, text = _UNKNOWN, rest.decode("ascii", "surrogateescape")
    if "\0" in text:
        raise EditError("it is a binary file")
    breaks, crs = text.count("\n"), text.count("\r\n")
    newline = "\r\n" if breaks and breaks == crs else "\n"
    text = text.replace("\r\n", "\n") if newline == "\r\n" else text
    return Page(text.removesuffix("\n"), text.endswith("\n"), newline, mark, encoding)


def closed(page: Page) -> bytes:
    """The bytes of a file. Raises EditError: the edit brings characters that its encoding does not have."""
    text = page.text + ("\n" if page.ends else "")
    text = text.replace("\n", page.newline) if page.newline != "\n" else text
    encoding, errors = ("ascii", "surrogateescape") if page.encoding == _UNKNOWN else (page.encoding, "strict")
    try:
        return page.mark + text.encode(encoding, errors)
    except UnicodeError as error:
        first = f": {error.object[error.start]!a}" if isinstance(error, UnicodeEncodeError) else ""
        raise EditError(f"the edit has characters that a file in {page.encoding} cannot hold{first}") from None


def _declared(data: bytes) -> str:
    """The encoding that a comment in the first two lines names, as Python and editors read it; else UTF-8."""
    for line in data.split(b"\n", 2)[:2]:
        if found := _COOKIE.match(line[:200]):
            name = found[1].decode("ascii", "replace")
            try:
                codecs.lookup(name)
                return name if "x".encode(name) == b"x" else "utf-8"
            except (LookupError, UnicodeError, TypeError):
                return "utf-8"
    return "utf-8"


@dataclass(frozen=True, slots=True)
class _Place:
    """Lines ``first`` to ``last``, 0-based, the last left out, and what they become."""

    first: int
    last: int
    after: Sequence[str]


def changed(page: Page, hunks: Sequence[Hunk]) -> Page:
    """The file after all hunks, each found exactly once.

    Raises:
        EditError: a hunk is found nowhere, or at several places; carries the nearest lines.
    """
    shift = 0
    for hunk in hunks:
        if not hunk.before:
            raise EditError("it does not say where its lines belong: no line of the file is quoted")
        place = _place_of(page, hunk, shift)
        lines = page.lines
        last = place.last == len(lines)
        lines[place.first : place.last] = place.after
        shift += len(place.after) - (place.last - place.first)
        ends = page.ends if hunk.ends is None or not last else hunk.ends
        page = replace(page, text="\n".join(lines), ends=ends and bool(lines))
    return page


def _place_of(page: Page, hunk: Hunk, shift: int) -> _Place:
    for found in _ways(page, hunk):
        if len(found) == 1:
            return found[0]
        if found:
            return _the_one(page, found, hunk, shift)
    raise _nowhere(page, hunk)


def _ways(page: Page, hunk: Hunk) -> Iterator[list[_Place]]:
    """The places by ever looser comparison: exact, blanks at line ends aside, tabs for blanks, another indentation."""
    length = len(hunk.before)
    yield [_Place(at, at + length, hunk.after) for at in _found("\n".join(hunk.before), page.text)]
    lines = page.lines
    ends = "\n".join(line.rstrip() for line in lines)
    for unit in (0, 4, 8, 2):
        meant = _with_tabs(hunk, unit) if unit else hunk
        if unit and meant == hunk:
            continue
        wanted = "\n".join(line.rstrip() for line in meant.before)
        yield [_Place(at, at + length, _after(meant, lines, at)) for at in _found(wanted, ends)]
    bare = "\n".join(line.strip() for line in lines)
    wanted = "\n".join(line.strip() for line in hunk.before)
    if any(len(line.strip()) > 2 for line in hunk.before):
        shifted = ((at, _shifted(hunk, lines, at)) for at in _found(wanted, bare))
        yield [_Place(at, at + length, _after(meant, lines, at)) for at, meant in shifted if meant is not None]


def _found(wanted: str, text: str) -> list[int]:
    """The lines, 0-based, at which the lines of ``wanted`` begin."""
    text, wanted = f"\n{text}\n", f"\n{wanted}\n"
    found: list[int] = []
    at, line, seen = text.find(wanted), 0, 0
    while at >= 0 and len(found) < _MOST_PLACES:
        line += text.count("\n", seen, at)
        seen = at
        found.append(line)
        at = text.find(wanted, at + 1)
    return found


def _after(hunk: Hunk, lines: Sequence[str], at: int) -> list[str]:
    """What comes there, with the lines that stay as the file has them."""
    found: list[str] = []
    carriage = "\r" if lines[at].endswith("\r") else ""
    for tag, text in hunk.lines:
        if tag == "+":
            found.append(f"{text}{carriage}")
            continue
        if tag == " ":
            found.append(lines[at])
        at += 1
    return found


def _with_tabs(hunk: Hunk, unit: int) -> Hunk:
    def one(text: str) -> str:
        bare = text.lstrip(" ")
        count = len(text) - len(bare)
        return "\t" * (count // unit) + " " * (count % unit) + bare

    return replace(hunk, lines=tuple((tag, one(text)) for tag, text in hunk.lines))


def _shifted(hunk: Hunk, lines: Sequence[str], at: int) -> Hunk | None:
    """The hunk with the file's indentation, None unless every line is off by the same."""
    pairs = [(a, b.rstrip()) for a, b in zip(hunk.before, lines[at:], strict=False) if a.strip()]
    first, there = pairs[0][0].rstrip(), pairs[0][1]
    more = there[: -len(first)] if there.endswith(first) else ""
    less = first[: -len(there)] if first.endswith(there) else ""
    if more.strip() or less.strip() or not (more or less):
        return None
    for a, b in pairs:
        if f"{more}{a.rstrip()}" != f"{less}{b}":
            return None
    if any(tag == "+" and text.strip() and not text.startswith(less) for tag, text in hunk.lines):
        return None

    def one(text: str) -> str:
        return f"{more}{text[len(less) :]}" if text.strip() else text

    return replace(hunk, lines=tuple((tag, one(text)) for tag, text in hunk.lines))


def _the_one(page: Page, found: list[_Place], hunk: Hunk, shift: int) -> _Place:
    """Which of several places is meant: the one at the hunk's line, below its anchors, or at the end of the file."""
    if hunk.line:
        here = [place for place in found if place.first + 1 == hunk.line + shift]
        if here:
            return here[0]
    lines = page.lines
    if hunk.at_end:
        found = [place for place in found if place.last == len(lines)] or found
    first, last = 0, len(lines)
    for anchor in hunk.anchors:
        at = [n for n in range(first, last) if lines[n].strip() == anchor.strip()]
        if len(at) != 1:
            break
        first, last = at[0], block_end(lines, at[0] + 1)
    below = [place for place in found if first <= place.first and place.last <= last]
    if len(below) == 1:
        return below[0]
    shown = ", ".join(str(place.first + 1) for place in found[:8]) + (" ..." if len(found) > 8 else "")
    raise EditError(
        f"the lines that it quotes are found {len(found)} times, at lines {shown}: more of them must be quoted"
    )


def _nowhere(page: Page, hunk: Hunk) -> EditError:
    lines = page.lines
    if hunk.after and _found("\n".join(hunk.after), page.text) and any(text.strip() for text in hunk.after):
        return EditError("the lines that it quotes are not there, and those that replace them are: it seems to be done")
    at = _most_like(lines, hunk.before)
    near = tuple(f"{n + 1}: {lines[n][:_WIDTH]}" for n in range(at, min(len(lines), at + _NEAR))) if at >= 0 else ()
    return EditError("the lines that it quotes are nowhere in the file", nearest=near)


def _most_like(lines: Sequence[str], before: Sequence[str]) -> int:
    """Where most of the lines stand that are looked for, in any order; else the line most like the first; else -1."""
    wanted = {line.strip() for line in before if len(line.strip()) > 2}
    hits = [line.strip() in wanted for line in lines]
    span = len(before)
    count = best = 0
    where = -1
    for n, hit in enumerate(hits):
        count += hit - (hits[n - span] if n >= span else 0)
        if count > best:
            best, where = count, max(0, n - span + 1)
    if where >= 0:
        return next(n for n in range(where, len(lines)) if hits[n])
    first = next((line.strip()[:_WIDTH] for line in before if line.strip()), "")
    short = [line.strip()[:_WIDTH] for line in lines[:_COMPARED]]
    like = difflib.get_close_matches(first, short, n=1, cutoff=0.6)
    return short.index(like[0]) if like else -1
