"""Code intelligence for one process of ours: asked of the workspace's host, which is started when it is needed.

Whatever is wrong with the host, a question is answered: the text search runs beside it and takes over in time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from turnout.code import protocol as say
from turnout.code.connection import HostConnection, HostGoneError, LateError, open_connection
from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    IntelligenceError,
    Place,
    TextEdit,
)
from turnout.code.places import HostPlace, is_held, place_of, sockets
from turnout.code.provider import CodeContext
from turnout.code.search import TextSearch
from turnout.code.settings import HostSettings
from turnout.guard.listen import HAS_UNIX_SOCKETS
from turnout.guard.process import start_detached
from turnout.types import FileContext, Position, TaskCategory

MOST_STARTS = 3
STOP_SECONDS = 15.0
STATUS_SECONDS = 2.0
KNOWN_SECONDS = 30.0  # how long what is installed for a workspace is not looked up again
AVOID_SECONDS = 60.0  # after two failures in a row, nobody waits for it for so long
COLD_SECONDS = 30.0  # for who asks it alone and has nothing else
_LIMITS = {Ability.REFERENCES: 10.0, Ability.RENAME: 30.0, Ability.DIAGNOSTICS: 10.0}
_LIMIT = 8.0

log = logging.getLogger("turnout")


class Hosts:
    """The connections of this process to hosts, one for each workspace. Used by one event loop; closed by ``aclose``.

    Args:
        data_dir: where hosts are found.
        settings: what a host is told that is started here.
    """

    def __init__(self, data_dir: Path, settings: HostSettings) -> None:
        self._data_dir, self._settings = data_dir, settings
        self._open: dict[Path, HostConnection] = {}
        self._opening: dict[Path, asyncio.Lock] = {}

    async def connection(self, workspace: Path, seconds: float) -> HostConnection:
        """To the host of a workspace, which is started when there is none.

        Raises:
            IntelligenceError: there is none in time.
        """
        if not HAS_UNIX_SOCKETS:
            raise IntelligenceError("this platform has no UNIX sockets, and so no host of code intelligence")
        try:
            async with asyncio.timeout(seconds), self._opening.setdefault(workspace, asyncio.Lock()):
                known = self._open.get(workspace)
                if known is None or known.gone:
                    known = self._open[workspace] = await self._connect(workspace, time.monotonic() + seconds)
                return known
        except TimeoutError:
            raise LateError(f"no host of the code intelligence within {seconds:.1f} s") from None
        except OSError as error:
            raise IntelligenceError(f"no host of the code intelligence: {error}") from error

    async def running(self) -> tuple[say.HostStatus, ...]:
        """How each host of this user on this machine is; one that does not answer is left out."""
        found = await asyncio.gather(*map(_status_of, sockets(self._data_dir))) if HAS_UNIX_SOCKETS else []
        return tuple(status for status in found if status is not None)

    async def stop(self, workspace: Path) -> bool:
        """End the host of a workspace and wait until it has ended; False when there is none.

        Raises:
            IntelligenceError: it does not end.
        """
        try:
            connection = await open_connection(place_of(workspace, self._data_dir).socket, STATUS_SECONDS)
        except OSError:
            return False
        await _stop(connection, STOP_SECONDS)
        return True

    async def aclose(self) -> None:
        """Leave every host; they live on."""
        left, self._open = list(self._open.values()), {}
        for connection in left:
            await connection.aclose()

    async def _connect(self, workspace: Path, until: float) -> HostConnection:
        place, starts, started, pause = place_of(workspace, self._data_dir), 0, 0, 0.01
        while True:
            connection = await _at(place, until)
            if connection is not None and connection.hello.version == say.VERSION:
                return connection
            if connection is not None:
                log.info("the host of another version (%s) is replaced", connection.hello.version[:40])
                await _stop(connection, until - time.monotonic())
            if not (_lives(started) or is_held(place)):
                if starts == MOST_STARTS:
                    raise OSError(f"it ends as soon as it is started; {place.log} says why")
                starts += 1
                started = await self._start(workspace, place)
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 1.5)

    async def _start(self, workspace: Path, place: HostPlace) -> int:
        # Not what lies in the current directory: only our own code, wherever it was imported from.
        paths = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
        env = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TURNOUT_DATA_DIR": str(self._data_dir.absolute()),
        }
        settings = msgspec.json.encode(self._settings).decode()
        command = [sys.executable, "-P", "-m", "turnout.code.host", str(workspace), settings]
        return await start_detached(command, env=env, cwd=place.log.parent, log=place.log)


class HostedCode:
    """Code context from the host of the workspace, or from the text search when it has none in time (SPEC CODE-3).

    Args:
        hosts: the connections; closed by whoever made them.
        warm, cold: seconds that may be waited for a host that has answered something already, and for one that starts.
        wanted: whether there is anything that a host could start for a workspace; it is called in a thread.
    """

    def __init__(self, hosts: Hosts, *, warm: float, cold: float, wanted: Callable[[Path], bool]) -> None:
        self._hosts, self._warm_seconds, self._cold_seconds, self._wanted = hosts, warm, cold, wanted
        self._warm: set[Path] = set()
        self._failures: dict[Path, tuple[int, float]] = {}
        self._known: dict[Path, tuple[bool, float]] = {}

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path, room: int
    ) -> CodeContext | None:
        """As ``CodeProvider.gather``.

        Raises:
            UsageError: the position is beyond the end of the file.
        """
        root = workspace.resolve()
        seconds = self._warm_seconds if root in self._warm else self._cold_seconds
        text = TextSearch(min(self._warm_seconds, seconds))
        beside = asyncio.create_task(text.gather(query, category, file_context, workspace, room))
        try:
            why = await self._why_not(root)
            if not why:
                asked = say.Gather(query[: say.MAX_QUERY], category, file_context, room)
                try:
                    return await self._ask(root, asked, seconds)
                except IntelligenceError as error:
                    why = self._failed(root, error)
            found = await beside
        finally:
            beside.cancel()
            await asyncio.wait([beside])
        return _with_note(found, why)

    async def _why_not(self, root: Path) -> str:
        """Why the host is not asked, "" when it is."""
        if not HAS_UNIX_SOCKETS:
            return "no code intelligence: this platform has no UNIX sockets"
        if not await self._is_wanted(root):
            return "no code intelligence is installed for it (`turnout code install`)"
        failures, last = self._failures.get(root, (0, 0.0))
        if failures > 1 and time.monotonic() < last + AVOID_SECONDS:
            return "the code intelligence is left alone for a minute, as it has failed twice"
        return ""

    async def _is_wanted(self, root: Path) -> bool:
        wanted, until = self._known.get(root, (False, 0.0))
        if time.monotonic() >= until:
            wanted = await asyncio.to_thread(self._wanted, root)
            self._known[root] = wanted, time.monotonic() + KNOWN_SECONDS
        return wanted

    async def _ask(self, root: Path, asked: say.Gather, seconds: float) -> CodeContext | None:
        until = time.monotonic() + seconds
        connection = await self._hosts.connection(root, seconds)
        if connection.hello.warm:
            seconds = min(seconds, self._warm_seconds)
        found = await connection.ask(asked, max(0.001, min(seconds, until - time.monotonic())))
        self._warm.add(root)
        self._failures.pop(root, None)
        return found

    def _failed(self, root: Path, error: IntelligenceError) -> str:
        failures, _ = self._failures.get(root, (0, 0.0))
        if not isinstance(error, HostGoneError):  # else the next question starts a new one
            self._failures[root] = (failures + 1, time.monotonic())
        self._warm.discard(root)
        return str(error)


class HostedIntelligence:
    """The ``Intelligence`` and ``SymbolWriter`` of a workspace, asked of its host."""

    name = "host"
    abilities = frozenset(Ability)

    def __init__(self, hosts: Hosts, workspace: Path) -> None:
        self._hosts, self._workspace = hosts, workspace.resolve()

    async def status(self) -> say.HostStatus:
        """How its host is, which is started for it."""
        found: say.HostStatus = await self._ask(say.Status(), STATUS_SECONDS)
        return found

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        """As ``Intelligence.find_symbol``."""
        found: tuple[CodeSymbol, ...] = await self._ask(say.FindSymbol(name, path, body))
        return found

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        """As ``Intelligence.references``."""
        return await self._places(Ability.REFERENCES, path, position)

    async def hover(self, path: str, position: Position) -> str:
        """As ``Intelligence.hover``."""
        found: str = await self._ask(say.At(Ability.HOVER, path, position))
        return found

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """As ``Intelligence.definition``."""
        return await self._places(Ability.DEFINITION, path, position)

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """As ``Intelligence.type_definition``."""
        return await self._places(Ability.TYPE_DEFINITION, path, position)

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        """As ``Intelligence.implementations``."""
        return await self._places(Ability.IMPLEMENTATIONS, path, position)

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        """As ``Intelligence.outline``."""
        found: tuple[CodeSymbol, ...] = await self._ask(say.OfFile(Ability.OUTLINE, path))
        return found

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        """As ``Intelligence.workspace_symbols``."""
        found: tuple[CodeSymbol, ...] = await self._ask(say.WorkspaceSymbols(query))
        return found

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        """As ``Intelligence.calls``."""
        found: tuple[CodeSymbol, ...] = await self._ask(say.Calls(path, position, incoming))
        return found

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        """As ``Intelligence.diagnostics``."""
        seconds = _LIMITS[Ability.DIAGNOSTICS]
        found: tuple[Diagnostic, ...] = await self._ask(say.OfFile(Ability.DIAGNOSTICS, path), seconds)
        return found

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        """As ``Intelligence.rename``."""
        found: tuple[TextEdit, ...] = await self._ask(say.Rename(path, position, new_name), _LIMITS[Ability.RENAME])
        return found

    async def write_symbol(self, path: str, name_path: str, body: str) -> None:
        """As ``SymbolWriter.write_symbol``."""
        await self._ask(say.WriteSymbol(path, name_path, body), _LIMITS[Ability.RENAME])

    async def write_rename(self, path: str, name_path: str, new_name: str) -> None:
        """As ``SymbolWriter.write_rename``."""
        await self._ask(say.WriteRename(path, name_path, new_name), _LIMITS[Ability.RENAME])

    async def give_up(self) -> None:
        """As ``Renamer.give_up``: what was asked to be written may go on, so the host ends, and Serena with it."""
        with suppress(IntelligenceError, OSError):
            await self._hosts.stop(self._workspace)

    async def aclose(self) -> None:
        """The connections belong to ``Hosts``: nothing is to be done."""

    async def _places(self, ability: Ability, path: str, position: Position) -> tuple[Place, ...]:
        found: tuple[Place, ...] = await self._ask(say.At(ability, path, position), _LIMITS.get(ability, _LIMIT))
        return found

    async def _ask(self, asked: Any, seconds: float = _LIMIT) -> Any:
        """A host that is not warm yet is given the time to become so."""
        connection = await self._hosts.connection(self._workspace, COLD_SECONDS)
        return await connection.ask(asked, seconds if connection.hello.warm else COLD_SECONDS)


async def _at(place: HostPlace, until: float) -> HostConnection | None:
    """Whoever answers at the socket; None while nobody does. Raises OSError of what is no host of ours."""
    try:
        return await open_connection(place.socket, max(0.001, until - time.monotonic()))
    except (FileNotFoundError, ConnectionError):
        return None


async def _stop(connection: HostConnection, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await connection.ask(say.Stop(), seconds)
            await connection.ended()
    except HostGoneError:
        return
    except TimeoutError:
        raise LateError(f"the host with process id {connection.hello.pid} does not end") from None
    finally:
        await connection.aclose()


async def _status_of(path: Path) -> say.HostStatus | None:
    try:
        connection = await open_connection(path, STATUS_SECONDS)
    except OSError:
        return None
    try:
        return await connection.ask(say.Status(), STATUS_SECONDS)
    except (IntelligenceError, msgspec.DecodeError):
        return None
    finally:
        await connection.aclose()


def _lives(pid: int) -> bool:
    """Whether a process is there; one that ended and that nobody reaps does not count."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True  # another user's by now, or a system that does not tell
    return state not in "ZX"


def _with_note(found: CodeContext | None, why: str) -> CodeContext | None:
    return found and replace(found, note=f"{found.note}; {why}")
