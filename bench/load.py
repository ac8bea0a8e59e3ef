"""The client of bench/gateways.py: HTTP/1.1 over kept connections, as little work as can be, and when what came."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools
from stub import WORD

SILENCE_SECONDS = 60.0
_WORD = WORD.encode()


@dataclass(frozen=True)
class Target:
    """Where to ask, and with which headers."""

    port: int
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, body: bytes) -> bytes:
        """The bytes of one request."""
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"{more}Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


@dataclass(slots=True)
class Answer:
    """One answer; times in seconds from the request's last byte.

    Attributes:
        first: until the first word of the model, 0 when there was none.
        whole: until its end.
    """

    status: int
    body: bytes
    first: float
    whole: float


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def connect(cls, port: int) -> Caller:
        """Connected to a port of this machine."""
        _, caller = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return caller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def ask(self, request: bytes) -> Answer:
        """Send and wait for the whole answer.

        Raises:
            ConnectionError: the connection ended before.
            TimeoutError: nothing for a minute.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._first = 0.0
        self._answer = self._loop.create_future()
        if self._transport.is_closing():
            raise ConnectionError("the gateway has closed the connection")
        self._began = time.perf_counter()
        self._transport.write(request)
        silence = self._loop.call_later(SILENCE_SECONDS, self._give_up)
        try:
            return await self._answer
        finally:
            silence.cancel()

    def close(self) -> None:
        """No more questions."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        if not self._first and _WORD in data:
            self._first = time.perf_counter() - self._began
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        whole = time.perf_counter() - self._began
        answer = Answer(self._parser.get_status_code(), b"".join(self._pieces), self._first, whole)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the gateway closed the connection before its answer: {exc}"))

    def _give_up(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(TimeoutError(f"no answer for {SILENCE_SECONDS:g} s"))


async def ask_once(target: Target, body: bytes) -> Answer:
    """One request over a connection of its own. Raises ``OSError`` where nobody listens."""
    caller = await Caller.connect(target.port)
    try:
        return await caller.ask(target.request(body))
    finally:
        caller.close()


@dataclass(frozen=True)
class Amount:
    """How many requests: ``most``, or as many as are done in ``seconds``, but no fewer than ``least``."""

    most: int
    least: int
    seconds: float

    def numbers(self) -> Iterator[int]:
        """0, 1, 2 ... until it is enough."""
        until = time.perf_counter() + self.seconds
        for number in range(self.most):
            if number >= self.least and time.perf_counter() > until:
                return
            yield number


async def burst(
    port: int, requests: Sequence[Callable[[int], bytes]], amount: Amount, pieces: int, stagger: float = 0.0
) -> list[Answer]:
    """Ask, with as many requests at any time as there are ``requests``.

    Args:
        port: where.
        requests: for each connection, what makes the bytes of the request of a number.
        amount: how many.
        pieces: words of the model that every answer must have.
        stagger: seconds from one connection's first request to the next one's, so that streams do not march in step.

    Raises:
        AssertionError: an answer was not what it should be.
        OSError: there was none.
    """
    numbers = amount.numbers()
    answers: list[Answer] = []
    callers = [await Caller.connect(port) for _ in requests]

    async def worker(connection: int, caller: Caller) -> None:
        await asyncio.sleep(connection * stagger)
        for number in numbers:
            answer = await caller.ask(requests[connection](number))
            assert answer.status == 200, f"{answer.status}: {answer.body[:300]!r}"
            assert answer.body.count(_WORD) == pieces, f"{answer.body.count(_WORD)} pieces of {pieces}"
            answer.body = b""
            answers.append(answer)

    try:
        await asyncio.gather(*(worker(connection, caller) for connection, caller in enumerate(callers)))
    finally:
        for caller in callers:
            caller.close()
    return answers
