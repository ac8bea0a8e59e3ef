"""The one place where children are started: a short environment, their own group, always reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "SYSTEMROOT", "USERPROFILE", "VIRTUAL_ENV")
_KEPT_LINES = 200


class Child:
    """A running child. Its standard input stays open: when it closes, the child knows that we are gone."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._drain = asyncio.create_task(self._read_errors())

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.returncode

    @property
    def errors(self) -> str:
        """The end of what it wrote to standard error."""
        return "\n".join(self._errors)

    async def _read_errors(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        while line := await stream.read(4096):
            self._errors.extend(line.decode("utf-8", "replace").splitlines())

    async def write(self, data: bytes) -> None:
        """Write to its standard input.

        Raises:
            ConnectionError: it has ended.
        """
        stream = self._process.stdin
        if stream is None:
            raise ConnectionResetError("the child has no standard input")
        stream.write(data)
        await stream.drain()

    async def read_line(self, timeout: float) -> bytes:
        """One line of its standard output, b"" at its end. ``timeout`` in seconds.

        Raises:
            TimeoutError: it wrote none in time.
        """
        stream = self._process.stdout
        if stream is None:
            return b""
        async with asyncio.timeout(timeout):
            return await stream.readline()

    async def read_all(self) -> bytes:
        """Everything it writes to standard output until it ends."""
        stream = self._process.stdout
        data = await stream.read() if stream is not None else b""
        await self._process.wait()
        return data

    async def stop(self, grace: float = 2.0) -> None:
        """Ask it to end, then make it; ``grace`` in seconds. Safe to call twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._process.wait()
        if self._process.returncode is None:
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            await self._process.wait()
        await self._drain

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if sys.platform == "win32":
                self._process.terminate()
            else:
                os.killpg(self._process.pid, number)


async def spawn(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Child:
    """Start a child with pipes for all three streams.

    Args:
        command: program and arguments; never a shell line.
        env: variables beside the few that are passed on.
        cwd: its working directory.

    Raises:
        OSError: it cannot be started.
    """
    environment = {name: value for name in _PASSED_ON if (value := os.environ.get(name)) is not None}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, **(env or {})},
        cwd=cwd,
        start_new_session=sys.platform != "win32",
    )
    return Child(process)
