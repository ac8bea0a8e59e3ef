"""A server that does to each question what a test says, one after the other: faults at the very place they belong.

It lists its models as any server of the OpenAI protocol with windows does, and answers whole or as a stream, as it is
asked. Omitted: everything else of the protocol; usage is what ``tests/fakes/base.py`` says.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.fakes.base import WORDS
from tests.fakes.liar import CHAT, CHUNKED, DONE, SSE, answer, event, models

ANSWER = "".join(WORDS)
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


@dataclass
class Asked:
    """A question that has come: ``stream`` is what it asks for, ``heard`` that its asker has got some of the answer."""

    writer: asyncio.StreamWriter
    body: dict[str, object]
    heard: asyncio.Event

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Fault = Callable[[Asked], Awaitable[None]]


async def good(asked: Asked) -> None:
    """The answer of an honest server."""
    if asked.stream:
        await asked.say(SSE + b"".join(map(event, WORDS)) + FINISH + DONE)
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
        await asked.say(answer({"object": "chat.completion", "choices": [choice]}))


@dataclass
class Scripted:
    """A server's state.

    Attributes:
        models: the ids it lists.
        window: tokens it says each has.
        script: what it does to the first question, the second, and so on; the last one holds for all that follow.
        asked: the questions that came.
        heard: set by the test when some of an answer has reached the asker.
        silent: connections are accepted and nothing is answered any more, the listing included.
    """

    models: tuple[str, ...] = ("qwen2.5-coder-7b-instruct",)
    window: int = 8192
    script: Sequence[Fault] = (good,)
    asked: list[dict[str, object]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False
    url: str = ""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[object]] = field(default_factory=set)
    _full: list[socket.socket] = field(default_factory=list)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Nothing listens any more, and every connection is cut."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._full:
            one.close()

    async def swallow(self) -> None:
        """From now on connections are neither accepted nor refused: the queue of those that wait is full."""
        await self.stop()
        address = ("127.0.0.1", int(self.url.rpartition(":")[2]))
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(0)
        self._full = [listener]
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(address)
            self._full.append(waiting)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is kept, as it is after a listing alone."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        if self.silent:
            await asyncio.Event().wait()
        method, path = head.split()[:2]
        if (method, path.decode()) != (b"POST", CHAT):
            known = method == b"GET" and path == b"/v1/models"
            writer.write(models(*self.models, window=self.window) if known else answer({"error": "none"}, status=404))
            await writer.drain()
            return True
        self.asked.append(json.loads(body))
        what = self.script[min(len(self.asked), len(self.script)) - 1]
        await what(Asked(writer, self.asked[-1], self.heard))
        return False


@asynccontextmanager
async def scripted(*servers: Scripted) -> AsyncIterator[None]:
    """Run them."""
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            await server.stop()


def refusing(status: int, text: str, kind: str = "error", headers: str = "", **more: object) -> Fault:
    """A refusal in the protocol's words; ``headers`` are whole lines."""

    async def refuse(asked: Asked) -> None:
        data = json.dumps({"error": {"message": text, "type": kind, **more}}).encode()
        lines = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}"
        await asked.say(lines.encode() + b"Connection: close\r\n\r\n" + data)

    return refuse


def saying(body: bytes, kind: str, status: int = 200) -> Fault:
    """Those bytes as the whole answer."""

    async def say(asked: Asked) -> None:
        await asked.say(answer(body, status=status, kind=kind))

    return say


async def hang_up(asked: Asked) -> None:
    """The question was read, and the connection is closed."""


async def die_after_headers(asked: Asked) -> None:
    await asked.say(CHUNKED)


async def hang(asked: Asked) -> None:
    """Not a byte."""
    await asyncio.Event().wait()


def after_words(then: Fault) -> Fault:
    """Two words of a stream, and then; of a whole answer the first half, which breaks off."""

    async def speak(asked: Asked) -> None:
        if asked.stream:
            await asked.say(b"".join((CHUNKED, *map(chunk, map(event, WORDS[:2])))))
            await asked.heard.wait()
        else:
            await asked.say(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n" + b'{"choi'
            )
        await then(asked)

    return speak


def chunk(data: bytes) -> bytes:
    """A chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def drip(asked: Asked) -> None:
    """A word every few milliseconds, for ever."""
    while True:
        await asked.say(chunk(event("word ")) if asked.stream else b" ")
        await asyncio.sleep(0.02)


async def without_end(asked: Asked) -> None:
    """A stream of large events, as fast as they are read, for ever."""
    await asked.say(CHUNKED)
    while True:
        await asked.say(chunk(event("word " * 10_000)))


def telling(fault: Fault, began: asyncio.Event, over: asyncio.Event) -> Fault:
    """The same; ``began`` and ``over`` are set when it begins and when it is over, however it ends."""

    async def told(asked: Asked) -> None:
        began.set()
        try:
            await fault(asked)
        finally:
            over.set()

    return told


async def report_error(asked: Asked) -> None:
    """An error under 200: an event of a stream that has begun."""
    data = b'data: {"error":{"message":"the engine died"}}\n\n'
    await asked.say(chunk(data) + b"0\r\n\r\n" if asked.stream else b"")


async def error_under_200(asked: Asked) -> None:
    """An error under 200 before any word."""
    error = b'{"error":{"message":"the engine died"}}'
    await asked.say(SSE + b"data: " + error + b"\n\n" if asked.stream else answer(error))
