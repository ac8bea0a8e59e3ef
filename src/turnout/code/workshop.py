"""What a host serves with: the intelligences of one workspace, put together."""

from __future__ import annotations

from pathlib import Path

from turnout.code.intelligence import Ability, CodeSymbol, Diagnostic, NotSupportedError, Place, SymbolWriter, TextEdit
from turnout.code.protocol import Served
from turnout.code.provider import CodeContext
from turnout.code.search import TextSearch
from turnout.code.settings import HostSettings
from turnout.types import FileContext, Position, TaskCategory


def installed(settings: HostSettings) -> bool:
    """Whether there is anything that a host could start."""
    return bool(settings.language_servers)


class Nobody:
    name = "nobody"
    abilities: frozenset[Ability] = frozenset()

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        raise NotSupportedError("nobody")

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        raise NotSupportedError("nobody")

    async def hover(self, path: str, position: Position) -> str:
        raise NotSupportedError("nobody")

    definition = type_definition = implementations = references

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        raise NotSupportedError("nobody")

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        raise NotSupportedError("nobody")

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        raise NotSupportedError("nobody")

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        raise NotSupportedError("nobody")

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        raise NotSupportedError("nobody")

    async def aclose(self) -> None:
        """."""


class Workshop:
    intelligence = Nobody()
    writer: SymbolWriter | None = None

    def __init__(self, workspace: Path, settings: HostSettings) -> None:
        self._workspace = workspace

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, room: int, budget: float
    ) -> CodeContext | None:
        return await TextSearch(budget).gather(query, category, file_context, self._workspace, room)

    async def warm(self) -> None:
        """."""

    def served(self) -> tuple[Served, ...]:
        return ()

    async def aclose(self) -> None:
        """."""


def open_workshop(workspace: Path, settings: HostSettings) -> Workshop:
    """Put them together; nothing is started."""
    return Workshop(workspace, settings)
