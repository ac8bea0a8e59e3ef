"""A host in this process with an intelligence that the test holds in its hands, and hosts as processes of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from turnout.code.client import Hosts
from turnout.code.connection import HostConnection, open_connection
from turnout.code.host import Host
from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    NotSupportedError,
    Place,
    TextEdit,
)
from turnout.code.places import HostPlace, place_of
from turnout.code.protocol import Served
from turnout.code.provider import CodeContext, Reference
from turnout.code.settings import HostSettings
from turnout.types import FileContext, Position, TaskCategory

HERE = Place("a.py", 1, 4, 1, 9, "def total():")


@dataclass
class Held:
    """An intelligence that knows one symbol. What it is asked waits for ``go`` when ``waits`` is set; it has no type
    definitions. It does not read files, and it never fails by itself."""

    waits: bool = False
    go: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    written: list[tuple[str, ...]] = field(default_factory=list)
    raises: Exception | None = None
    text: str = "total() -> int"

    name = "held"
    abilities = frozenset({Ability.HOVER, Ability.REFERENCES})

    async def _found(self) -> None:
        self.entered.set()
        try:
            if self.waits:
                await self.go.wait()
            if self.raises is not None:
                raise self.raises
        finally:
            self.left.set()

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        await self._found()
        return (CodeSymbol(name, "function", HERE, body="pass" if body else ""),)

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        await self._found()
        return (Place(path, position.line, position.character),)

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        return (HERE,)

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        raise NotSupportedError("held has no type definitions")

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        return ()

    async def hover(self, path: str, position: Position) -> str:
        await self._found()
        return self.text

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        return (CodeSymbol("total", "function", HERE),)

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        return (CodeSymbol(query, "function", HERE),)

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        return (CodeSymbol("caller" if incoming else "called", "function", HERE),)

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        return (Diagnostic(HERE, "no such name", 1, "E1", "held"),)

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        return (TextEdit(HERE, new_name),)

    async def write_symbol(self, path: str, name_path: str, body: str) -> None:
        self.written.append((path, name_path, body))

    async def write_rename(self, path: str, name_path: str, new_name: str) -> None:
        self.written.append((path, name_path, new_name))

    async def aclose(self) -> None:
        """It is the workshop's."""


class HeldWorkshop:
    """What a ``Host`` serves with: a ``Held``, which also writes unless told otherwise."""

    def __init__(self, held: Held) -> None:
        self.intelligence = self.writer = held
        self._held = held

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, room: int, budget: float
    ) -> CodeContext | None:
        await self._held._found()
        return CodeContext("serena", references=(Reference("a.py", 2, query),), note=f"within {budget:.1f} s")

    async def warm(self) -> None:
        """It is warm."""

    async def served(self) -> tuple[Served, ...]:
        return (Served("held", tuple(self._held.abilities), "well"),)

    async def aclose(self) -> None:
        self._held.closed.set()


@dataclass
class Running:
    """A host in this process."""

    host: Host
    held: Held
    place: HostPlace
    task: asyncio.Task[str]

    async def connect(self) -> HostConnection:
        return await open_connection(self.place.socket, 5.0)


@asynccontextmanager
async def hosting(workspace: Path, data: Path, held: Held, **settings: float) -> AsyncIterator[Running]:
    """Serve ``workspace`` in this process, until it ends by itself or the test does."""
    place, told = place_of(workspace, data), HostSettings(**settings)  # type: ignore[arg-type]
    host = Host(workspace, place, HeldWorkshop(held), told)
    serving = asyncio.create_task(host.serve())
    try:
        await appears(place.socket, serving)
        yield Running(host, held, place, serving)
    finally:
        host.end("the test is over")
        await serving


async def appears(path: Path, serving: asyncio.Task[str]) -> None:
    """Wait until a host in this loop listens: it does so before its first ``await`` that waits for anything."""
    while not path.exists() and not serving.done():
        await asyncio.sleep(0)


async def ended(pid: int) -> None:
    """Wait until a process has ended; the test's own time limit is the bound."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def end_all(data: Path) -> None:
    """Stop every host of a data directory: no test leaves one behind."""
    for status in await Hosts(data, HostSettings()).running():
        assert status.pid != os.getpid(), "a host of this process is left"
        with suppress(ProcessLookupError):
            os.kill(status.pid, 15)
        await ended(status.pid)
