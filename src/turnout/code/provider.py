"""Code context: what every provider gives, and the interface they share (SPEC CODE-1, CODE-3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from turnout.types import FileContext, TaskCategory


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in the workspace: path relative to it with ``/``, line 1-based, the line's text."""

    path: str
    line: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Issue:
    """A diagnostic: line 1-based."""

    line: int
    message: str


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
        note: what was asked, found, cut or skipped, for people.
    """

    provider: str
    type_information: str = ""
    references: tuple[Reference, ...] = ()
    issues: tuple[Issue, ...] = ()
    definitions: tuple[Reference, ...] = ()
    outline: str = ""
    note: str = ""


class CodeProvider(Protocol):
    """Finds code context. Never raises for what it cannot find; never takes longer than its budget."""

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path
    ) -> CodeContext | None:
        """What the workspace knows about the query, or None when there is nothing to look at."""
