"""Asks the intelligences about the place of the user and about names, and keeps what they tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from turnout.code.chain import Chain
from turnout.code.intelligence import CodeSymbol, Diagnostic, IntelligenceError, Place
from turnout.code.lsp_files import lines_of, read_text, to_code_points, utf16_length
from turnout.code.search import inside
from turnout.types import Position

MAX_NAMES_ASKED, MAX_FILES_OF_A_NAME, MAX_SIGNATURES = 3, 3, 6
_DEFINITIONS_OF_A_NAME, _ASKED_ABOUT = 5, 2
# A decorator, a modifier or a comment may stand before the line with the name.
_LINES_TO_THE_NAME = 10
_WORD = re.compile(r"[^\W\d]\w*")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked beside types, definitions and outlines."""

    references: bool = False
    implementations: bool = False
    signatures: bool = False
    issues_of_all: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a definition is: its first and last line, 1-based, and the text of the line with its name."""

    first: int
    last: int
    text: str


@dataclass(slots=True)
class Known:
    """What was told, in whatever order it came. Lines are 1-based, paths are the workspace's.

    Attributes:
        types: what a symbol is, by rank (0: it is where the user is), path, line and name.
        definitions: by path and line of the name.
        references: the uses of a name.
        issues: what is wrong, by path.
        outlines: by path.
    """

    types: dict[tuple[int, str, int, str], str] = field(default_factory=dict)
    definitions: dict[tuple[str, int], Definition] = field(default_factory=dict)
    references: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    issues: dict[str, tuple[Diagnostic, ...]] = field(default_factory=dict)
    outlines: dict[str, tuple[CodeSymbol, ...]] = field(default_factory=dict)


class Asker:
    """Fills ``known``. Each method may be cancelled at any time; what was told until then stays.

    Args:
        chain: who is asked.
        root: the workspace, resolved.
        names: the names in the query.
        wishes: what is asked beside the usual.
    """

    def __init__(self, chain: Chain, root: Path, names: Sequence[str], wishes: Wishes) -> None:
        self._chain, self._root, self._names, self._wishes = chain, root, tuple(names), wishes
        self._outlines: dict[str, asyncio.Task[tuple[CodeSymbol, ...] | None]] = {}
        self._texts: dict[str, tuple[str, ...]] = {}
        self.known = Known()

    async def place(self, path: str, position: Position) -> None:
        """What is at a position; where there is nothing, the names of the query in its line, or what is around it."""
        spot = await self._spot(path, position)
        if spot is None:
            return
        await asyncio.gather(self._defined(path, spot), self._used(self._name_at(path, spot), path, spot))

    async def file(self, path: str, *, issues: bool) -> None:
        """The outline of a file, and what is wrong in it."""
        await asyncio.gather(self._listed(path), *([self._wrong(path)] if issues else []))

    async def name(self, name: str, paths: Sequence[str]) -> None:
        """Where a name is defined, in the files ``paths`` or else anywhere, what it is, and where it is used."""
        found: list[CodeSymbol] = []
        for path in paths[:MAX_FILES_OF_A_NAME]:
            found += await self._told(self._chain.find_symbol(name, path)) or ()
        if not found:
            found += await self._told(self._chain.find_symbol(name)) or ()
        found = sorted(
            (symbol for symbol in dict.fromkeys(found) if self._lines(symbol.place.path)),
            key=lambda s: (s.place.path, s.place.line, s.name_path),
        )[:_DEFINITIONS_OF_A_NAME]
        for symbol in found:
            self._keep(symbol)
        spots = [(s.place.path, self._name_of(s)) for s in found]
        await asyncio.gather(
            *(self._typed(path, spot) for path, spot in spots[:_ASKED_ABOUT]),
            *(self._used(name, path, spot) for path, spot in spots[:_ASKED_ABOUT]),
        )

    # One question each.

    async def _told(self, question: Awaitable[_Answer]) -> _Answer | None:
        try:
            return await question
        except IntelligenceError:
            return None  # the chain has it on its record

    async def _typed(self, path: str, spot: Position, rank: int = 1) -> bool:
        text = await self._told(self._chain.hover(path, spot))
        if text:
            self.known.types[rank, path, spot.line + 1, self._name_at(path, spot)] = text
        return bool(text)

    async def _spot(self, path: str, position: Position) -> Position | None:
        """The first place about which somebody can say what is there."""
        for spot in self._spots(path, position):
            if await self._typed(path, spot, 0):
                return spot
        symbols = await self._outline(path) or ()
        around = [s for s in symbols if s.place.line <= position.line <= s.place.end_line]
        if not around:
            return None
        inner = max(around, key=lambda s: (s.place.line, s.name_path))
        spot = self._name_of(inner)
        return spot if await self._typed(path, spot, 0) else None

    def _spots(self, path: str, position: Position) -> list[Position]:
        lines = self._lines(path)
        line = lines[position.line] if position.line < len(lines) else ""
        at = to_code_points(line, position.character)
        words = [m for m in _WORD.finditer(line) if m.start() <= at <= m.end()]
        words += [m for m in _WORD.finditer(line) if m[0] in self._names]
        return list(dict.fromkeys(_position(position.line, line, m.start()) for m in words))

    async def _defined(self, path: str, spot: Position) -> None:
        ask = [self._chain.definition(path, spot)]
        if self._wishes.implementations:
            ask.append(self._chain.implementations(path, spot))
        for places in await asyncio.gather(*map(self._told, ask)):
            for place in [p for p in places or () if self._lines(p.path)][:_DEFINITIONS_OF_A_NAME]:
                symbols = await self._outline(place.path) or ()
                around = [s for s in symbols if self._name_of(s).line == place.line]
                if around:
                    self._keep(max(around, key=lambda s: s.place.end_line))

    async def _used(self, name: str, path: str, spot: Position) -> None:
        if not self._wishes.references:
            return
        places = await self._told(self._chain.references(path, spot))
        if places is not None:
            before = self.known.references.get(name, ())
            self.known.references[name] = (*before, *(place for place in places if self._lines(place.path)))

    async def _wrong(self, path: str) -> None:
        found = await self._told(self._chain.diagnostics(path))
        if found is not None:
            self.known.issues[path] = found

    async def _listed(self, path: str) -> None:
        symbols = await self._outline(path)
        if symbols and self._wishes.signatures:
            await asyncio.gather(*(self._typed(path, self._name_of(s)) for s in symbols[:MAX_SIGNATURES]))

    async def _outline(self, path: str) -> tuple[CodeSymbol, ...] | None:
        if path not in self._outlines:
            self._outlines[path] = asyncio.create_task(self._told(self._chain.outline(path)))
        symbols = await self._outlines[path]
        if symbols is not None:
            self.known.outlines[path] = symbols
        return symbols

    # Places.

    def _keep(self, symbol: CodeSymbol) -> None:
        place, name = symbol.place, self._name_of(symbol)
        lines = self._lines(place.path)
        last = place.end_line if place.end_character else place.end_line - 1
        whole = Definition(place.line + 1, max(last, name.line) + 1, lines[name.line].strip())
        self.known.definitions[place.path, name.line + 1] = whole

    def _name_of(self, symbol: CodeSymbol) -> Position:
        """Where the name of a definition stands."""
        lines = self._lines(symbol.place.path)
        words = _WORD.findall(symbol.name_path)
        name = re.compile(rf"\b{re.escape(words[-1])}\b") if words else _WORD
        first = min(symbol.place.line, len(lines) - 1)
        for number in range(first, min(first + _LINES_TO_THE_NAME, symbol.place.end_line + 1, len(lines))):
            if found := name.search(lines[number]):
                return _position(number, lines[number], found.start())
        return Position(max(first, 0), 0)

    def _name_at(self, path: str, spot: Position) -> str:
        line = self._lines(path)[spot.line]
        found = _WORD.match(line, to_code_points(line, spot.character))
        return found[0] if found else ""

    def _lines(self, path: str) -> tuple[str, ...]:
        """The lines of a file; () of one that is not the workspace's, or may not be read."""
        if path not in self._texts:
            file = None if Path(path).is_absolute() else inside(self._root, path)
            try:
                self._texts[path] = lines_of(read_text(file)) if file is not None else ()
            except IntelligenceError:
                self._texts[path] = ()
        return self._texts[path]


def _position(number: int, line: str, index: int) -> Position:
    return Position(number, utf16_length(line[:index]))
