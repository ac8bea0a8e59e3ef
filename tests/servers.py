"""Real llama.cpp servers with real weights, each in a process of its own, for the end-to-end tests."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest

from turnout.embedded import GGUF_NAME, Start, start_child
from turnout.guard.process import Child, spawn

WEIGHTS = Path(os.environ.get("TURNOUT_TEST_GGUF") or Path(__file__).parents[1] / ".cache" / "embedded" / GGUF_NAME)


class LlamaServer:
    """A running server."""

    def __init__(self, child: Child, url: str, key: str) -> None:
        self.child, self.url, self.key = child, url, key

    @property
    def pid(self) -> int:
        return self.child.pid

    def kill(self) -> None:
        """End it as a crash would."""
        os.kill(self.child.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until the process has ended."""
        await self.child.read_all()

    async def busy(self, session: aiohttp.ClientSession) -> bool:
        """Whether a slot is generating."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        async with session.get(f"{self.url}/slots", headers=headers) as reply:
            return any(slot["is_processing"] for slot in await reply.json())


async def start_llama(
    *, n_ctx: int = 2048, parallel: int = 1, alias: str = "smol", api_key: str = "", wait: bool = True
) -> LlamaServer:
    """Start one; with ``wait=False`` it is returned while it still loads."""
    if not WEIGHTS.is_file():
        pytest.fail(f"the test weights {WEIGHTS} are missing: run `make weights`")
    if wait:
        child, url = await start_child(Start(str(WEIGHTS), api_key, n_ctx, 1, alias, parallel))
        return LlamaServer(child, url, api_key)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    import sys

    child = await spawn([sys.executable, "-m", "turnout.embedded"])
    await child.write(msgspec.json.encode(Start(str(WEIGHTS), api_key, n_ctx, 1, alias, parallel, port)) + b"\n")
    return LlamaServer(child, f"http://127.0.0.1:{port}", api_key)


LlamaFactory = Callable[..., Awaitable[LlamaServer]]


@pytest.fixture
async def llama_factory() -> AsyncIterator[LlamaFactory]:
    """Makes servers that end with the test."""
    made: list[LlamaServer] = []

    async def make(**wanted: object) -> LlamaServer:
        server = await start_llama(**wanted)  # type: ignore[arg-type]
        made.append(server)
        return server

    yield make
    for server in made:
        with suppress(ProcessLookupError):
            await server.child.stop(0.1)


@pytest.fixture
async def llama(llama_factory: LlamaFactory) -> LlamaServer:
    """One server with a window of 2048 tokens."""
    return await llama_factory(n_ctx=2048)
