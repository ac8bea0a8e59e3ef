"""Real llama.cpp servers with real weights, each in a process of its own, for the end-to-end tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO

import aiohttp
import msgspec
import pytest

from turnout.embedded import GGUF_NAME, Ready, Start

WEIGHTS = Path(os.environ.get("TURNOUT_TEST_GGUF") or Path(__file__).parents[1] / ".cache" / "embedded" / GGUF_NAME)


class HeldWeights:
    """A copy of the weights that no other process can open until ``release``: an open waits in the kernel.

    A write lease does that (fcntl(2), F_SETLEASE). The kernel breaks it by itself after /proc/sys/fs/lease-break-time,
    45 s by default.
    """

    def __init__(self) -> None:
        import fcntl

        self._folder = Path(tempfile.mkdtemp(prefix="turnout-test-"))
        self.path = self._folder / GGUF_NAME
        shutil.copyfile(WEIGHTS, self.path)
        self._lease = os.open(self.path, os.O_RDONLY)
        # The signal of an open that waits; the default one would end this process.
        fcntl.fcntl(self._lease, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(self._lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def release(self) -> None:
        """Let the open go on. Safe to call twice."""
        if self._lease >= 0:
            os.close(self._lease)
            self._lease = -1

    def remove(self) -> None:
        self.release()
        shutil.rmtree(self._folder)


class LlamaServer:
    """A running server. ``stop`` must be called, also after ``kill``."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, key: str, held: HeldWeights | None) -> None:
        self.process, self.url, self.key, self._held = process, url, key, held

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    async def gone(self) -> None:
        """Wait until the process has ended."""
        await asyncio.to_thread(self.process.wait)

    def release(self) -> None:
        """Let a server that was started with ``delay_load`` load its model."""
        assert self._held is not None, "it was not started with delay_load"
        self._held.release()

    async def busy(self, session: aiohttp.ClientSession) -> bool:
        """Whether a slot is generating."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        async with session.get(f"{self.url}/slots", headers=headers) as reply:
            return any(slot["is_processing"] for slot in await reply.json())

    def stop(self) -> None:
        """End it and take its files away. Safe to call twice."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self._held is not None:
            self._held.remove()
            self._held = None


def start_llama(
    *,
    n_ctx: int = 2048,
    parallel: int = 1,
    alias: str = "smol",
    api_key: str = "",
    port: int = 0,
    wait: bool = True,
    delay_load: bool = False,
    weights: Path = WEIGHTS,
) -> LlamaServer:
    """Start a server on loopback. It answers the same to the same prompt (temperature 0).

    Args:
        n_ctx: tokens, shared by ``parallel`` slots.
        port: 0 for any that is free.
        wait: return when it has loaded its model; else at once, while nothing listens yet.
        delay_load: return when it listens and answers 503; it goes on loading after ``LlamaServer.release``.
        weights: the file that it loads.
    """
    if not WEIGHTS.is_file():
        pytest.fail(f"the test weights {WEIGHTS} are missing: run `make weights`", pytrace=False)
    loaded = wait and not delay_load
    if not loaded and not port:
        port = free_port()
    held = HeldWeights() if delay_load else None
    path = held.path if held is not None else weights
    wanted = Start(str(path), api_key, n_ctx, 1, alias, parallel, port, temperature=0.0)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "turnout.embedded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        server = LlamaServer(process, f"http://127.0.0.1:{port}", api_key, held)
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(wanted) + b"\n")
            process.stdin.flush()
            if loaded:
                server.url = _url_when_ready(process, log)
            if delay_load:
                _wait_until_it_listens(process, port, log)
        except BaseException:
            server.stop()
            raise
    return server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _url_when_ready(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"the llama.cpp server did not start: {_end_of(log)}", pytrace=False)
    return msgspec.json.decode(line, type=Ready).url


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)) != 0:
            if process.poll() is not None:
                pytest.fail(f"the llama.cpp server did not start: {_end_of(log)}", pytrace=False)
            time.sleep(0.02)


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-2000:]


LlamaFactory = Callable[..., Awaitable[LlamaServer]]


@pytest.fixture
async def llama_factory() -> AsyncIterator[LlamaFactory]:
    """Makes servers that end with the test; its arguments are those of ``start_llama``."""
    made: list[LlamaServer] = []

    async def make(**wanted: object) -> LlamaServer:
        server = await asyncio.to_thread(start_llama, **wanted)  # type: ignore[arg-type]
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


@pytest.fixture(scope="session")
def llama() -> Iterator[LlamaServer]:
    """One server for the whole run, with a window of 2048 tokens: do not kill it."""
    server = start_llama(n_ctx=2048)
    yield server
    server.stop()
