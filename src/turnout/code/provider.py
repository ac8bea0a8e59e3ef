"""Code context: what every provider gives, and the interface they share (SPEC CODE-1, CODE-3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from turnout.config import SerenaConfig
from turnout.types import ChatRequest, FileContext, TaskCategory

# The most tokens of code context, its largest share of the window, and what a token of code has at least in characters.
MOST_TOKENS, WINDOW_SHARE, CHARS_PER_TOKEN = 6000, 0.25, 3
SERENA = "serena"  # in ``CodeContext.provider`` when it has answered


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in the workspace: path relative to it with ``/``, line 1-based, the line's text, and the definitions that
    it stands in, as far as they are known: ``Cart.total``."""

    path: str
    line: int
    text: str = ""
    within: str = ""


@dataclass(frozen=True, slots=True)
class Issue:
    """A diagnostic: line 1-based."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Consecutive lines of a file.

    Attributes:
        path: relative to the workspace, with ``/``.
        first: the number of the first line, 1-based.
        lines: their text, secrets left out.
        total: lines that the file has.
        marked: the line that was asked about, 1-based, or 0.
    """

    path: str
    first: int
    lines: tuple[str, ...]
    total: int
    marked: int = 0

    @property
    def last(self) -> int:
        """The number of the last line."""
        return self.first + len(self.lines) - 1


@dataclass(frozen=True, slots=True)
class CodeContext:
    """What was found. Empty parts are left out of the query.

    Attributes:
        provider: who answered.
        type_information: hover text or signatures.
        references: where the named symbols are used.
        issues: diagnostics.
        definitions: where the named symbols are defined, with the lines that define them.
        outline: the symbols of the file at hand.
        excerpts: the code at the position that was asked about, or the beginning of a file.
        bodies: the whole of the definitions for which there is room.
        note: what was asked, found, cut or skipped, for people.
    """

    provider: str
    type_information: str = ""
    references: tuple[Reference, ...] = ()
    issues: tuple[Issue, ...] = ()
    definitions: tuple[Reference, ...] = ()
    outline: str = ""
    excerpts: tuple[Excerpt, ...] = ()
    bodies: tuple[Excerpt, ...] = ()
    note: str = ""


class CodeProvider(Protocol):
    """Finds code context. Never raises for what it cannot find; never takes longer than its time."""

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path, room: int
    ) -> CodeContext | None:
        """What the workspace knows about the query, or None when there is nothing to look at.

        Args:
            query: the user's words.
            category: the kind of work.
            file_context: the file the user is in.
            workspace: whose code may be read.
            room: about how many characters there is room for in the prompt.

        Raises:
            UsageError: the position is beyond the end of the file.
        """


def room_for(window: int, left: int) -> int:
    """Characters of code context there is room for.

    Args:
        window: tokens of the model that would be asked.
        left: tokens of it that prompt and answer do not need.
    """
    return CHARS_PER_TOKEN * max(0, min(MOST_TOKENS, int(window * WINDOW_SHARE), left))


def is_off(serena: SerenaConfig) -> bool:
    """Whether no code context is gathered at all."""
    return not serena.enabled or serena.priority == "off"


def not_gathered_because(serena: SerenaConfig, request: ChatRequest, needed: bool | None) -> str:
    """Why no code context is gathered, "" when it is: who names a file wants it read. ``needed``: whether the question
    needs it, None where nobody asked."""
    if not request.workspace:
        return "there is no workspace"
    if is_off(serena):
        return "it is switched off in the configuration"
    if request.file_context is not None:
        return ""
    if needed is None:
        return "an exact model was asked for, and no file is named"
    wanted = needed or serena.priority != "on_demand"
    return "" if wanted else "the question does not need it"
