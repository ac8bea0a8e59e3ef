"""A listener and a resolver under the test's control, which remember what they were asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"5\r\nhello\r\n"
END = b"0\r\n\r\n"


class Listener:
    """A server under the test's control. ``dialled`` holds the address of every connection as it was dialled,
    ``heads`` the request heads, and ``gone`` is set when a client closes while it is being served."""

    def __init__(self, handler: Handler) -> None:
        self.dialled: list[str] = []
        self.heads: list[str] = []
        self.gone = asyncio.Event()
        self.port = 0
        self._handler = handler
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[object]] = []

    async def start(self, *hosts: str) -> None:
        for host in hosts:
            server = await asyncio.start_server(self._serve, host, self.port)
            self._servers.append(server)
            self.port = server.sockets[0].getsockname()[1]

    async def start_unix(self, path: Path) -> None:
        self._servers.append(await asyncio.start_unix_server(self._serve, path))

    async def stop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for server in self._servers:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        self.dialled.append(str(writer.get_extra_info("sockname")[0]))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode())
                await self._handler(reader, writer)
        self.gone.set()
        writer.transport.abort()


def says(*pieces: bytes, then_hang_up: bool = False) -> Handler:
    """A handler that sends ``pieces`` for every request."""

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)
        await writer.drain()
        if then_hang_up:
            writer.close()

    return handle


@asynccontextmanager
async def listening(handler: Handler, *hosts: str) -> AsyncIterator[Listener]:
    listener = Listener(handler)
    try:
        await listener.start(*(hosts or ("127.0.0.1",)))
        yield listener
    finally:
        await listener.stop()


class Resolver:
    """A resolver under the test's control: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    async def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        if not self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
