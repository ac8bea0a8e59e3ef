"""Keeps one Serena: starts it when it is asked, never asks more than it can answer, leaves it when it is broken.

It answers one question after another, and goes on with one that nobody waits for any more. So a question that took too
long makes it busy until it answers, and whoever asks meanwhile is told so at once: the next intelligence may be free.
Two such questions in a row have its language server restarted, two more have it started anew, and two more leave it
alone for a while (facts/serena.md, sections 5 and 7).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

from turnout.code.install import SerenaProgram, ask_version
from turnout.code.intelligence import IntelligenceError, NotSupportedError
from turnout.code.memory import tree_memory
from turnout.code.serena_answers import SlowError
from turnout.code.serena_process import EndedError, SerenaProcess, start_serena
from turnout.code.serena_setup import Look, command_of, environment_of, home_of, look_at, prepare

# Characters of the longest answer.
MAX_ANSWER = 200_000
_BOUNDED = ("find_implementations", "find_referencing_symbols", "find_symbol", "get_diagnostics_for_file")
# The first of these after each start of a language server takes two seconds longer.
_CROSS_FILE = frozenset({"find_declaration", "find_implementations", "find_referencing_symbols"})

log = logging.getLogger("turnout.code")


@dataclass(frozen=True, slots=True)
class SerenaLimits:
    """How long it is waited for, in seconds, and how much it may take.

    Attributes:
        start: until it says hello.
        first: for an answer as long as it is cold.
        scoped: for what is known of a file; the answer after its language server died takes 2.2 s.
        unscoped: for a search through the workspace.
        references: for the uses of a symbol.
        diagnostics: for what is wrong in a file; for one without fault Serena always waits 2.5 s.
        change: for a change of files.
        restart: for the restart of a language server.
        rest: how long it is left alone after several failures.
        look: how often its memory is looked at.
        memory: resident bytes of it and its language servers above which it is ended.
    """

    start: float = 20.0
    first: float = 30.0
    scoped: float = 3.0
    unscoped: float = 5.0
    references: float = 10.0
    diagnostics: float = 4.0
    change: float = 30.0
    restart: float = 10.0
    rest: float = 60.0
    look: float = 10.0
    memory: int = 2 << 30


@dataclass(frozen=True, slots=True)
class SerenaStatus:
    """What is to be known of it: ``memory`` in bytes with its language servers, 0 while it does not run; ``trouble`` is
    why it gave no answer lately, "" when it does."""

    version: str
    pid: int
    memory: int
    language_servers: tuple[str, ...]
    trouble: str


class SerenaKeeper:
    """The Serena of a workspace, whether it runs or not. Whoever made it calls ``aclose``.

    Attributes:
        root: the workspace.
        hidden: directories that no message names, and what it says instead.
    """

    def __init__(
        self, program: SerenaProgram, workspace: Path, data_dir: Path, limits: SerenaLimits | None = None
    ) -> None:
        self._program, self._data_dir, self.limits = program, data_dir, limits or SerenaLimits()
        self.root, self._home = workspace.resolve(), home_of(workspace, data_dir)
        self.hidden = {str(self.root): ".", str(self._home): "…"}
        self._look: Look | None = None
        self._version = program.version
        self._starting: asyncio.Task[SerenaProcess] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[str]] = set()
        self._stalled = self._mending = self._warm = self._closed = False
        self._strikes = self._level = 0
        self._left_until = 0.0
        self._trouble = ""

    async def look(self) -> Look:
        """What the workspace has, once a Serena runs for it.

        Raises:
            NotSupportedError: there is no language server for it.
            IntelligenceError: it does not start.
        """
        await self._running(self._now() + self.limits.start)
        if self._look is None:
            raise IntelligenceError("Serena does not run")
        return self._look

    async def ask(self, tool: str, arguments: Mapping[str, object], limit: float) -> str:
        """What a tool answers within ``limit`` seconds; longer while it is cold.

        Raises:
            IntelligenceError: it is busy, refuses, or does not answer in time.
        """
        limit = limit if self._warm else max(limit, self.limits.first)
        deadline = self._now() + limit
        process = await self._running(deadline)
        if self._late or self._mending:
            raise IntelligenceError("Serena is busy with an earlier question")
        bounded = {"max_answer_chars": MAX_ANSWER} if tool in _BOUNDED else {}
        call = asyncio.create_task(process.call(tool, {**arguments, **bounded}))
        timer = asyncio.get_running_loop().call_at(deadline, self._expired, call)
        call.add_done_callback(lambda done: self._settled(done, timer, tool))
        try:
            await asyncio.wait((call,), timeout=deadline - self._now())
        except asyncio.CancelledError:
            if not call.done():
                self._late.add(call)
            raise
        if not call.done():
            self._trouble = f"Serena did not answer in {limit:g} s"
            raise IntelligenceError(self._trouble)
        return call.result()

    def _expired(self, call: asyncio.Task[str]) -> None:
        if call.done():
            return
        self._late.add(call)
        # Those that wait behind the same one are late for the same reason.
        if not self._stalled:
            self._stalled = True
            self._strike()

    def _settled(self, call: asyncio.Task[str], timer: asyncio.TimerHandle, tool: str) -> None:
        timer.cancel()
        was_late = call in self._late
        self._late.discard(call)
        self._stalled = self._stalled and bool(self._late)
        error = None if call.cancelled() else call.exception()
        if call.cancelled() or isinstance(error, EndedError):
            return
        if isinstance(error, SlowError):
            self._trouble = str(error)
            self._strike()
        elif not was_late:
            self._strikes = self._level = 0
            self._trouble = ""
            self._warm = self._warm or tool in _CROSS_FILE

    def _strike(self) -> None:
        self._strikes += 1
        if self._strikes >= 2 and not self._mending and not self._closed:
            self._strikes = 0
            self._worsen(1)
            self._mending = True
            self._in_background(self._mend())

    def _worsen(self, least: int) -> None:
        """One step further: 1 its language server is restarted, 2 it is started anew, 3 it is left alone."""
        self._level = min(3, max(self._level + 1, least))
        self._warm = False
        if self._level == 3:
            self._left_until = self._now() + self.limits.rest

    async def _mend(self) -> None:
        try:
            process = self._process
            if process is None:
                return
            if self._level == 1 and await self._restarted(process):
                return
            if self._level == 1:
                self._worsen(2)
            await self._end(process)
        finally:
            self._mending = False

    async def _restarted(self, process: SerenaProcess) -> bool:
        log.warning("Serena's language server is restarted: %s", self._trouble)
        try:
            async with asyncio.timeout(self.limits.restart):
                return (await process.call("restart_language_server", {})).startswith("OK")
        except (TimeoutError, IntelligenceError):
            return False

    async def _end(self, process: SerenaProcess) -> None:
        log.warning("Serena is ended: %s", self._trouble)
        if self._process is process:
            self._starting = None
        await process.stop()

    @property
    def _process(self) -> SerenaProcess | None:
        """The one that runs."""
        task = self._starting
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    async def _running(self, deadline: float) -> SerenaProcess:
        """The running process; started when there is none.

        Raises:
            IntelligenceError: it is not there by the deadline, or does not start.
        """
        if self._closed:
            raise IntelligenceError("Serena was ended")
        process = self._process
        if process is not None and process.ended:
            self._trouble, self._starting = "Serena ended", None
            self._worsen(2)
            self._in_background(process.stop())
        if (left := self._left_until - self._now()) > 0:
            raise IntelligenceError(f"Serena is left alone for {left:.0f} s: {self._trouble}")
        starting = self._starting
        if starting is None or (starting.done() and self._process is None):
            starting = self._starting = asyncio.create_task(self._start())
        await asyncio.wait((starting,), timeout=max(0.0, deadline - self._now()))
        if starting.cancelled():
            raise IntelligenceError("Serena was ended")
        if not starting.done():
            raise IntelligenceError("Serena is still starting")
        return starting.result()

    async def _start(self) -> SerenaProcess:
        try:
            return await self._started()
        except NotSupportedError as error:
            # What the workspace has may change; it is not looked through before every question.
            self._trouble, self._left_until = str(error), self._now() + self.limits.rest
            raise
        except IntelligenceError as error:
            self._trouble = str(error)
            self._worsen(2)
            raise

    async def _started(self) -> SerenaProcess:
        if not self.root.is_dir():
            raise IntelligenceError("the workspace is gone")
        self._look = await asyncio.to_thread(look_at, self.root, self._program, self._data_dir)
        servers = self._look.servers
        if not servers:
            raise NotSupportedError("there is no language server for what is in the workspace")
        self._version = self._version or await ask_version(self._program.path)
        if not self._version:
            raise IntelligenceError(f"{self._program.path.name} on the PATH is not Serena")
        try:
            await asyncio.to_thread(prepare, self._home, self.root, servers, self._version)
        except OSError as error:
            raise IntelligenceError(f"Serena's directory cannot be written: {error.strerror or error}") from error
        command = command_of(self._program, self._home, self.root, self._version)
        env = environment_of(self._home, self._program, servers)
        process = await start_serena(command, env, self._home, self.hidden, self.limits.start)
        self._warm = False
        self._in_background(self._watch(process))
        return process

    async def _watch(self, process: SerenaProcess) -> None:
        """End it when it takes too much memory; whoever asks next starts it anew."""
        while not process.ended:
            await asyncio.sleep(self.limits.look)
            taken = await asyncio.to_thread(tree_memory, process.pid)
            if taken > self.limits.memory:
                self._trouble = f"Serena took {taken >> 20} MB"
                await self._end(process)

    def _in_background(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def status(self) -> SerenaStatus:
        """What is to be known of it now; nothing is started."""
        process = self._process
        memory = await asyncio.to_thread(tree_memory, process.pid) if process else 0
        keys = tuple(server.key for server in self._look.servers) if self._look else ()
        return SerenaStatus(self._version, process.pid if process else 0, memory, keys, self._trouble)

    async def aclose(self) -> None:
        """End it and everything it started. Safe to call twice."""
        self._closed = True
        process, starting = self._process, self._starting
        unfinished = [task for task in (starting, *self._background) if task is not None and not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        if process is not None:
            await process.stop()
