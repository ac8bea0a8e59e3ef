"""What a code intelligence can be asked: one interface for Serena, a language server and whatever comes (SPEC CODE-1).

Lines and characters of a ``Position`` are 0-based, as in LSP; paths are relative to the workspace, with ``/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from turnout.types import Position


class Ability(StrEnum):
    """One thing that can be asked, in the order of the owner's tool priorities 1 to 5."""

    FIND_SYMBOL = "find_symbol"
    REFERENCES = "references"
    HOVER = "hover"
    DEFINITION = "definition"
    TYPE_DEFINITION = "type_definition"
    IMPLEMENTATIONS = "implementations"
    OUTLINE = "outline"
    WORKSPACE_SYMBOLS = "workspace_symbols"
    CALLS = "calls"
    REPLACE_SYMBOL = "replace_symbol"
    RENAME = "rename"
    DIAGNOSTICS = "diagnostics"


PRIORITY = {
    Ability.FIND_SYMBOL: 1,
    Ability.REFERENCES: 1,
    Ability.HOVER: 1,
    Ability.DEFINITION: 2,
    Ability.TYPE_DEFINITION: 2,
    Ability.IMPLEMENTATIONS: 2,
    Ability.OUTLINE: 3,
    Ability.WORKSPACE_SYMBOLS: 3,
    Ability.CALLS: 3,
    Ability.REPLACE_SYMBOL: 4,
    Ability.RENAME: 4,
    Ability.DIAGNOSTICS: 5,
}
"""What is asked first when time is short: 1 first."""


class IntelligenceError(Exception):
    """It could not be asked, or did not answer in time. Its text is for people and never enters a prompt."""


class NotSupportedError(IntelligenceError):
    """It has no such ability, or not for this kind of file: the next one may."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is. ``text`` is the line, when the answer brought it along; ``path`` is absolute only for a
    target outside the workspace, such as the standard library."""

    path: str
    line: int
    character: int = 0
    end_line: int = -1
    end_character: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class CodeSymbol:
    """A definition.

    Attributes:
        name_path: its name below those that hold it: ``Order/total``.
        kind: ``class``, ``method``, ``function`` and so on, in lower case.
        place: the whole of it, first to last line.
        info: its signature and documentation, where asked for.
        body: its text, where asked for.
    """

    name_path: str
    kind: str
    place: Place
    info: str = ""
    body: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What a language server objects to. ``severity`` as in LSP: 1 error to 4 hint."""

    place: Place
    message: str
    severity: int = 1
    code: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class TextEdit:
    """One replacement in a file as LSP has it: the range of ``place`` becomes ``text``."""

    place: Place
    text: str


class Intelligence(Protocol):
    """Knows the code of one workspace. Every method may raise ``IntelligenceError``; none outlasts its time limit.

    A position after the end of a line or file is an ``IntelligenceError``; nothing found is an empty answer.
    """

    @property
    def name(self) -> str:
        """What to call it: ``serena``, ``ty``."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can be asked, as far as is known before it has started."""

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        """Definitions of ``name`` (``total`` or ``Order/total``), in the file or folder ``path`` when given."""

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where the symbol at a position is used; its definition is not among them."""

    async def hover(self, path: str, position: Position) -> str:
        """Signature, type and documentation of what is at a position."""

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where what is at a position is defined."""

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where the type of what is at a position is defined."""

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        """The classes or methods that implement what is at a position."""

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        """The definitions of a file, in their order, nested ones after what holds them."""

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        """Definitions anywhere whose name contains ``query``."""

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        """Who calls the function at a position, or whom it calls."""

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        """What is wrong in a file."""

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        """The edits that rename a symbol everywhere. Nothing is written."""

    async def aclose(self) -> None:
        """End it and everything it started."""


class SymbolWriter(Protocol):
    """Changes symbols and writes the files at once, as Serena does: who calls it has snapshots of them, and looks at
    what was changed afterwards. Raises ``IntelligenceError``; then files may have been changed all the same."""

    async def write_symbol(self, path: str, name_path: str, body: str) -> None:
        """Replace the whole of a definition by ``body``, whose first line begins at the definition's keyword."""

    async def write_rename(self, path: str, name_path: str, new_name: str) -> None:
        """Rename a symbol and all its uses. The name has been checked."""
