"""The host of a workspace's code intelligence: one process for each workspace on a machine, for all processes of ours.

``python -m turnout.code.host WORKSPACE`` serves until nobody has asked anything for a while, the workspace or the
socket is gone, or it is told to stop. ``client.py`` starts it when it is needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Protocol

import msgspec

from turnout.code import protocol as say
from turnout.code.connection import HostConnection, open_connection
from turnout.code.intelligence import Ability, Intelligence, IntelligenceError, NotSupportedError, SymbolWriter
from turnout.code.memory import tree_memory
from turnout.code.places import HostPlace, place_of, sockets
from turnout.code.provider import CodeContext
from turnout.code.settings import HostSettings
from turnout.config import data_dir
from turnout.errors import UsageError
from turnout.guard.allow import AllowList
from turnout.guard.hook import second_line
from turnout.guard.listen import listen_unix, peer_is_us
from turnout.types import FileContext, TaskCategory

MAX_CLIENTS, MAX_ASKED, MAX_ASKED_EACH = 256, 128, 32
LOCK_SECONDS, WRITE_SECONDS, CLOSE_SECONDS, NEIGHBOUR_SECONDS = 15.0, 10.0, 15.0, 1.0
_LOG_BYTES = 200_000

_NOWHERE = AllowList()  # but loopback: it dials nobody, whatever a library does

log = logging.getLogger("turnout.code")


class Hosted(Protocol):
    """What a host answers with: the intelligences of one workspace, made by ``workshop.open_workshop``."""

    @property
    def intelligence(self) -> Intelligence:
        """Whom the abilities are asked of."""

    @property
    def writer(self) -> SymbolWriter | None:
        """Who changes symbols, None where nobody does."""

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, room: int, budget: float
    ) -> CodeContext | None:
        """As ``CodeProvider.gather``, within ``budget`` seconds."""

    async def warm(self) -> None:
        """Start what takes time before anybody asks."""

    async def served(self) -> tuple[say.Served, ...]:
        """How each intelligence is."""

    async def aclose(self) -> None:
        """End everything that was started."""


class Host:
    """Serves one workspace. ``serve`` is called once, and returns when it has ended.

    Args:
        workspace: whose code is asked about.
        place: where its socket is.
        hosted: who answers.
        settings: when it ends.
    """

    def __init__(self, workspace: Path, place: HostPlace, hosted: Hosted, settings: HostSettings) -> None:
        self._workspace, self._place, self._hosted, self._settings = workspace, place, hosted, settings
        self._began = self._used = time.monotonic()
        self._visitors: set[_Visitor] = set()
        self._visits: set[asyncio.Task[None]] = set()
        self._warm = False
        self._working = 0  # questions under way, but for those about the host itself
        self._ending = asyncio.Event()
        self._why = ""
        self._inode = 0
        self._version = say.VERSION

    @property
    def asked(self) -> int:
        """Requests under way."""
        return sum(len(visitor.asked) for visitor in self._visitors)

    def end(self, why: str) -> None:
        """Begin to end; the first reason counts."""
        self._why = self._why or why
        self._ending.set()

    async def serve(self) -> str:
        """Answer until it ends; returns why it did.

        Raises:
            OSError: the socket cannot be made.
        """
        listening = listen_unix(self._place.socket)
        self._inode = self._place.socket.lstat().st_ino
        server = await asyncio.start_unix_server(self._visit, sock=listening, limit=say.MAX_REQUEST)
        warming = asyncio.create_task(self._warm_up())
        neighbours = asyncio.create_task(keep_few(self._place.socket, self._settings.most_hosts))
        try:
            await self._until_it_ends()
        finally:
            log.info("ends: %s", self._why)
            server.close()
            if self._is_ours():
                self._place.socket.unlink(missing_ok=True)
            for task in (warming, neighbours):
                task.cancel()
            await asyncio.gather(warming, neighbours, return_exceptions=True)
            await self._close_hosted()
            for visit in self._visits:
                visit.cancel()
            await asyncio.gather(*self._visits, return_exceptions=True)
        return self._why

    async def _until_it_ends(self) -> None:
        while not self._ending.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.look_seconds):
                    await self._ending.wait()
            if why := self._reason_to_end():
                self.end(why)

    def _reason_to_end(self) -> str:
        if not self._workspace.is_dir():
            return "the workspace is gone"
        if not self._is_ours():
            return "the socket was removed or replaced"
        idle = time.monotonic() - self._used
        return "idle" if not self._working and idle >= self._settings.idle_seconds else ""

    def _is_ours(self) -> bool:
        try:
            return self._place.socket.lstat().st_ino == self._inode
        except OSError:
            return False

    async def _warm_up(self) -> None:
        try:
            await self._hosted.warm()
        except (IntelligenceError, OSError) as error:
            log.warning("it could not be warmed up: %s", error)
            return
        self._warm = True

    async def _close_hosted(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._hosted.aclose()
        except TimeoutError:
            log.warning("what was started did not end within %d s", CLOSE_SECONDS)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._visitors) >= MAX_CLIENTS or not peer_is_us(writer.get_extra_info("socket")):
            writer.transport.abort()
            return
        visitor = _Visitor(reader, writer, self._answer)
        self._visitors.add(visitor)
        self._visits.add(task)
        try:
            await visitor.send(say.Hello(self._version, os.getpid(), say.shown_path(self._workspace), self._warm))
            await visitor.listen(lambda: self.asked)
        except asyncio.CancelledError:  # the host ends
            return
        finally:
            self._visitors.discard(visitor)
            self._visits.discard(task)
            writer.close()

    async def _answer(self, asked: say.Asked, seconds: float) -> say.Found:
        """Raises IntelligenceError, UsageError."""
        match asked:
            case say.Status():
                return await self._status()
            case say.Stop():
                self.end("it was told to stop")
                return None
            case _:
                pass
        self._used, self._working = time.monotonic(), self._working + 1
        try:
            found = await self._look(asked, seconds)
        finally:
            self._used, self._working = time.monotonic(), self._working - 1
        self._warm = True
        return found

    async def _look(self, asked: say.Asked, seconds: float) -> say.Found:
        told = self._hosted.intelligence
        match asked:
            case say.Gather():
                budget = max(0.05, seconds * 0.97 - 0.05)  # a little less than its asker waits
                return await self._hosted.gather(asked.query, asked.category, asked.file_context, asked.room, budget)
            case say.FindSymbol():
                return await told.find_symbol(asked.name, asked.path, body=asked.body)
            case say.WorkspaceSymbols():
                return await told.workspace_symbols(asked.query)
            case say.Calls():
                return await told.calls(asked.path, asked.position, incoming=asked.incoming)
            case say.Rename():
                return await told.rename(asked.path, asked.position, asked.new_name)
            case say.At():
                return await self._at(asked)
            case say.OfFile():
                if asked.ability is Ability.OUTLINE:
                    return await told.outline(asked.path)
                if asked.ability is Ability.DIAGNOSTICS:
                    return await told.diagnostics(asked.path)
            case say.WriteSymbol():
                await self._writer().write_symbol(asked.path, asked.name_path, asked.body)
                return None
            case say.WriteRename():
                await self._writer().write_rename(asked.path, asked.name_path, asked.new_name)
                return None
            case _:
                pass
        raise NotSupportedError("that is not asked so")

    async def _at(self, asked: say.At) -> say.Found:
        told = self._hosted.intelligence
        if asked.ability is Ability.HOVER:
            return await told.hover(asked.path, asked.position)
        methods = {
            Ability.REFERENCES: told.references,
            Ability.DEFINITION: told.definition,
            Ability.TYPE_DEFINITION: told.type_definition,
            Ability.IMPLEMENTATIONS: told.implementations,
        }
        if asked.ability not in methods:
            raise NotSupportedError(f"{asked.ability} is not asked of a position")
        return await methods[asked.ability](asked.path, asked.position)

    def _writer(self) -> SymbolWriter:
        if self._hosted.writer is None:
            raise NotSupportedError("nobody here changes symbols")
        return self._hosted.writer

    async def _status(self) -> say.HostStatus:
        pid = os.getpid()
        memory = await asyncio.to_thread(tree_memory, pid)
        served = await self._hosted.served()
        now = time.monotonic()  # after what takes a while: hosts are compared by how long they have been idle
        return say.HostStatus(
            version=self._version,
            pid=pid,
            workspace=say.shown_path(self._workspace),
            warm=self._warm,
            running=now - self._began,
            idle=0.0 if self._working else now - self._used,
            ends_after=self._settings.idle_seconds,
            clients=len(self._visitors),
            asked=self._working,
            memory=memory,
            served=served,
        )


class _Visitor:
    """One client: what it has asked, and one line after the other back to it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[say.Asked, float], Awaitable[say.Found]],
    ) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._sending = asyncio.Lock()
        self.asked: dict[int, asyncio.Task[None]] = {}

    async def listen(self, all_asked: Callable[[], int]) -> None:
        """Take requests until it leaves, or says what is none; what it has asked then ends."""
        try:
            while line := await self._reader.readline():
                request = _DECODER.decode(line)
                await self._take(request, all_asked())
        except ConnectionError:
            return
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            log.warning("a client sent what is no request: %s", str(error)[:200])
            await self.send(say.Answer(0, problem=say.Problem("usage", "that is no request")))
        finally:
            for task in self.asked.values():
                task.cancel()
            await asyncio.gather(*self.asked.values(), return_exceptions=True)

    async def _take(self, request: say.Request, all_asked: int) -> None:
        if isinstance(request.asked, say.Cancel):
            if (task := self.asked.get(request.asked.of)) is not None:
                task.cancel()
            return
        if request.id in self.asked:
            raise ValueError("a request's number is used twice")
        if all_asked >= MAX_ASKED or len(self.asked) >= MAX_ASKED_EACH:
            await self.send(say.Answer(request.id, problem=say.Problem("busy", "too much is asked at once")))
            return
        task = asyncio.create_task(self._reply(request))
        self.asked[request.id] = task
        task.add_done_callback(lambda _: self.asked.pop(request.id, None))

    async def _reply(self, request: say.Request) -> None:
        seconds = request.deadline_ms / 1000
        try:
            async with asyncio.timeout(seconds):
                found = await self._answer(request.asked, seconds)
            answer = say.Answer(request.id, msgspec.Raw(msgspec.json.encode(found)))
        except TimeoutError:
            answer = say.Answer(request.id, problem=say.Problem("late", f"no answer within {seconds:.1f} s"))
        except UsageError as error:
            answer = say.Answer(request.id, problem=say.Problem("usage", error.message, error.hint))
        except NotSupportedError as error:
            answer = say.Answer(request.id, problem=say.Problem("not_supported", str(error)))
        except (IntelligenceError, OSError, UnicodeError) as error:
            answer = say.Answer(request.id, problem=say.Problem("failed", str(error)))
        except Exception as error:
            log.exception("a question failed")
            answer = say.Answer(request.id, problem=say.Problem("failed", f"{type(error).__name__} in the host"))
        await self.send(answer)

    async def send(self, message: say.Hello | say.Answer) -> None:
        """A line; a client that does not read it is cut off."""
        line = say.line_of(message)
        if len(line) > say.MAX_ANSWER and isinstance(message, say.Answer):
            said = f"the answer has {len(line):,} bytes, the most is {say.MAX_ANSWER:,}"
            line = say.line_of(say.Answer(message.id, problem=say.Problem("failed", said)))
        try:
            async with self._sending, asyncio.timeout(WRITE_SECONDS):
                self._writer.write(line)
                await self._writer.drain()
        except (TimeoutError, ConnectionError):
            self._writer.transport.abort()


_DECODER = msgspec.json.Decoder(say.Request)


async def keep_few(own: Path, most: int) -> None:
    """Ask the hosts that have been idle longest to stop, so that with this one there are ``most``."""
    found: list[tuple[float, HostConnection]] = []
    try:
        for path in sockets(data_dir()):
            found += await _neighbour(path) if path != own else []
        found.sort(key=lambda other: -other[0])
        for _, connection in found[most - 1 :]:
            log.info("one that was idle longer is asked to stop: %s", connection.hello.workspace)
            with suppress(IntelligenceError, OSError):
                await connection.ask(say.Stop(), NEIGHBOUR_SECONDS)
    finally:
        for _, connection in found:
            await connection.aclose()


async def _neighbour(path: Path) -> list[tuple[float, HostConnection]]:
    """Since when another host has been idle; nothing when none answers there."""
    try:
        connection = await open_connection(path, NEIGHBOUR_SECONDS)
    except OSError:
        return []
    try:
        status = await connection.ask(say.Status(), NEIGHBOUR_SECONDS)
    except (IntelligenceError, msgspec.DecodeError):
        await connection.aclose()
        return []
    return [(time.monotonic() - status.idle, connection)]


async def hold(place: HostPlace) -> int | None:
    """Take the lock of a workspace; its descriptor, which the process keeps. None when another host serves already.

    One that is ending still holds it, and is waited for.

    Raises:
        OSError: it cannot be taken.
    """
    import fcntl

    lock = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if await _answers(place.socket) or time.monotonic() > until:
                os.close(lock)
                return None
            await asyncio.sleep(0.05)
            continue
        return lock


async def _answers(path: Path) -> bool:
    try:
        connection = await open_connection(path, NEIGHBOUR_SECONDS)
    except OSError:
        return False
    await connection.aclose()
    return True


async def run(workspace: Path, settings: HostSettings) -> int:
    """Be the host of a workspace, unless there is one. Returns the exit code."""
    from turnout.code.workshop import open_workshop

    place = place_of(workspace, data_dir())
    _log_to(place.log)
    lock = await hold(place)
    if lock is None:
        return 0
    host = Host(workspace, place, open_workshop(workspace, settings, data_dir()), settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.end, f"{number.name} came")
    log.info("serves %s as process %d", say.shown_path(workspace), os.getpid())
    with second_line(_NOWHERE, lambda refused: log.warning("refused: %s", refused)):
        await host.serve()
    os.close(lock)
    return 0


def _log_to(path: Path) -> None:
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("turnout")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def main() -> None:
    """The program: ``WORKSPACE [SETTINGS]``, the settings as JSON."""
    os.umask(0o077)
    settings = msgspec.json.decode(sys.argv[2], type=HostSettings) if len(sys.argv) > 2 else HostSettings()
    sys.exit(asyncio.run(run(Path(sys.argv[1]).resolve(), settings)))


if __name__ == "__main__":
    main()
