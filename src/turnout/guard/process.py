"""The one place where children are started: a short environment, their own group, always reaped.

A child does not outlive us, but for one of ``start_detached``. Its standard input is a pipe that we hold open: when we
are gone, however we went, it reads the end there. On Linux the kernel also kills it when the thread that started it
ends; that is the thread of its event loop, which could not look after it any longer. Other systems have the pipe alone.
There it also has no network, unless it is one that must (``launcher.py``, docs/security.md).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

Network: TypeAlias = Literal["cut", "open"]

# What was done to a child's network, told to it and to its own children by ``launcher.py``.
MARK = "TURNOUT_CHILD_NETWORK"
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "SYSTEMROOT", "USERPROFILE", "VIRTUAL_ENV"),
    MARK,
)
_KEPT_ERRORS = 65_536
_LINE_BYTES = 65_536
_DRAIN_SECONDS = 1.0
_DETACH_SECONDS = 10.0
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

# On Linux a child is at first this program, which cuts it off from the network and ties its life to ours.
_LAUNCHER = str(Path(__file__).resolve().with_name("launcher.py"))

# The program as a grandchild that is nobody's: in a session of its own, adopted and reaped by the system, its output in
# a file. Who started it goes on once it has left the group, which ends with its leader.
_DETACHER = """\
import os, sys
left, leaving = os.pipe()
if child := os.fork():
    os.close(leaving)
    os.read(left, 1)
    print(child, flush=True)
    os._exit(0)
os.setsid()
os.close(leaving)
os.umask(0o077)
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(log, 1)
os.dup2(log, 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class _Protocol(SubprocessStreamProtocol):
    """Tells of the child's end at once; asyncio's own ``wait`` waits for every grandchild that holds a pipe, too."""

    def __init__(self, line_bytes: int) -> None:
        super().__init__(limit=line_bytes, loop=asyncio.get_running_loop())
        self.line_bytes = line_bytes
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class Child:
    """A running child. Made by ``spawn``; whoever made it calls ``stop``, and a loop that shuts down kills it."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._pid = transport.get_pid()
        self._errors = bytearray()
        self._drain = asyncio.create_task(self._read_errors())
        self._reaper = asyncio.create_task(self._reap())

    @property
    def pid(self) -> int:
        """The child's process id, also of its group."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """How it ended, None while it runs; minus the signal's number when a signal ended it."""
        return self._transport.get_returncode()

    @property
    def errors(self) -> str:
        """The last 64 KB of what it wrote to standard error."""
        return self._errors.decode("utf-8", "replace")

    async def _read_errors(self) -> None:
        stream = self._protocol.stderr
        while stream is not None and (data := await stream.read(4096)):
            self._errors += data
            del self._errors[:-_KEPT_ERRORS]

    async def _reap(self) -> None:
        """When the child ends, what is left of its group ends with it; when the loop shuts down, both do."""
        try:
            await self._protocol.exited.wait()
            self._signal(_KILL)
        except asyncio.CancelledError:
            self._signal(_KILL)
            await self._protocol.exited.wait()
            self._transport.close()
            raise

    async def write(self, data: bytes) -> None:
        """Write to its standard input.

        Raises:
            ConnectionError: it has ended.
        """
        stream = self._protocol.stdin
        if stream is None:
            raise ConnectionResetError("the child has no standard input")
        stream.write(data)
        await stream.drain()

    async def read_line(self, timeout: float | None) -> bytes:
        """One line of its standard output, b"" at its end. ``timeout`` in seconds, None to wait until it ends.

        Raises:
            TimeoutError: it wrote none in time.
            OSError: it wrote a longer line than ``spawn`` was told.
        """
        stream = self._protocol.stdout
        if stream is None:
            return b""
        try:
            async with asyncio.timeout(timeout):
                return await stream.readline()
        except ValueError as error:
            raise OSError(f"the child wrote a line of more than {self._protocol.line_bytes} bytes") from error

    async def read_exactly(self, count: int, timeout: float | None) -> bytes:
        """``count`` bytes of its standard output. ``timeout`` in seconds, None to wait until it ends.

        Raises:
            TimeoutError: it wrote fewer in time.
            EOFError: it ended before.
        """
        stream = self._protocol.stdout
        if stream is None:
            raise EOFError("the child has no standard output")
        async with asyncio.timeout(timeout):
            return await stream.readexactly(count)

    async def read_all(self) -> bytes:
        """Everything it writes to standard output until it ends."""
        stream = self._protocol.stdout
        data = await stream.read() if stream is not None else b""
        await self._protocol.exited.wait()
        return data

    async def stop(self, grace: float = 2.0) -> None:
        """Ask it and its whole group to end, and after ``grace`` seconds make them. Safe to call twice."""
        if self._protocol.stdin is not None:
            self._protocol.stdin.close()
        try:
            if not self._protocol.exited.is_set():
                self._signal(signal.SIGTERM)
                async with asyncio.timeout(grace):
                    await self._protocol.exited.wait()
        except TimeoutError:
            pass
        finally:
            if not self._protocol.exited.is_set():
                self._signal(_KILL)
        await asyncio.wait([self._reaper])
        # A grandchild that left the group may hold the pipes for ever.
        await asyncio.wait([self._drain], timeout=_DRAIN_SECONDS)
        self._transport.close()
        await asyncio.wait([self._drain])

    def _signal(self, number: int) -> None:
        """Signal the group; it may be empty already. Never long after the child's end: its number may be another's."""
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._transport.terminate()
            else:
                os.killpg(self._pid, number)


def become(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a program in this process's place: terminal, signals and exit code are its own. Returns on Windows alone.

    Args:
        command: program (a name on PATH, or a path) and arguments; never a shell line.
        env: all its variables.

    Returns:
        Its exit code, where a process cannot be replaced.

    Raises:
        OSError: it cannot be started.
    """
    program = shutil.which(command[0], path=env.get("PATH"))
    if program is None:
        raise FileNotFoundError(f"there is no program {command[0]}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if sys.platform == "win32":
        return subprocess.call([program, *command[1:]], env=env)  # noqa: S603
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and what is ignored stays so
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    return os.execve(program, [program, *command[1:]], dict(env))  # noqa: S606


async def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    line_bytes: int = _LINE_BYTES,
    network: Network = "cut",
) -> Child:
    """Start a child with pipes for all three streams.

    Args:
        command: program (a name on PATH, or an absolute path) and arguments; never a shell line.
        env: variables beside the few that are passed on.
        cwd: its working directory.
        line_bytes: the longest line that ``read_line`` takes; of what it writes, twice as much is held at most.
        network: "open" for what must dial itself, such as pip; what "cut" does, and where: ``protection.py``.

    Raises:
        OSError: it cannot be started.
    """
    environment = {name: value for name in _PASSED_ON if (value := os.environ.get(name)) is not None} | dict(env or {})
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise FileNotFoundError(f"there is no program {command[0]}")
    start = [program, *command[1:]]
    if sys.platform == "linux" and sys.executable:
        start = [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), network, *start]
    transport, protocol = await asyncio.get_running_loop().subprocess_exec(
        lambda: _Protocol(line_bytes),
        *start,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=environment,
        cwd=cwd,
        start_new_session=sys.platform != "win32",
    )
    return Child(transport, protocol)


async def start_detached(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> int:
    """Start a process that outlives us, cut off from the network as a child is; where there is no fork it cannot be.
    Returns its process id.

    Args:
        command: program and arguments; never a shell line.
        env: variables beside the few that are passed on.
        cwd: its working directory.
        log: what it writes to its standard output and error is added to this file.

    Raises:
        OSError: it cannot be started.
    """
    if sys.platform == "win32":
        raise OSError("a process that outlives its starter is started on POSIX systems alone")
    child = await spawn([sys.executable, "-I", "-S", "-c", _DETACHER, str(log), *command], env=env, cwd=cwd)
    try:
        told = await child.read_line(_DETACH_SECONDS)
        await child.read_all()
    finally:
        await child.stop()
    if not told.strip().isdigit():
        raise OSError(f"the process could not be started: {child.errors.strip()[-200:]}")
    return int(told)
