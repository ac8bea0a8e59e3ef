"""A server that answers with the very bytes it is told to, for what no honest server sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

Say = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
CHAT = "/v1/chat/completions"


def answer(body: object, *, status: int = 200, kind: str = "application/json") -> bytes:
    """A whole answer; what is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        b"HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind.encode(), len(data)) + data
    )


def models(*ids: str, window: int = 8192) -> bytes:
    """An OpenAI model list."""
    return answer({"object": "list", "data": [{"id": name, "context_length": window} for name in ids]})


def event(text: str) -> bytes:
    """One SSE event with a piece of an answer."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


@asynccontextmanager
async def lying(routes: Mapping[str, Say]) -> AsyncIterator[str]:
    """Serve ``routes`` on a free loopback port: bytes keep the connection, a function writes and then hangs up.

    Yields:
        The server's URL.
    """
    served: set[asyncio.Task[object]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while say := routes.get(await _path(reader), answer({"error": "nothing here"}, status=404)):
                if not isinstance(say, bytes):
                    await say(writer)
                    break
                writer.write(say)
                await writer.drain()
                if say.startswith(SSE):
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


async def _path(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    await reader.readexactly(int(length[0]) if length else 0)
    method, path = head.split()[:2]
    # Discovery GETs the chat path too: what the test says of it is for questions.
    return path.decode() if method == b"POST" or path != CHAT.encode() else ""
