"""The connection below HTTP: one system call for what one turn of the loop writes, and limits that uvicorn has not.

uvicorn writes the head and the body of an answer apart, and a write to a local peer is the dearest thing in a short
answer: it wakes the peer (measured: `make bench`). It takes headers of any size and waits for them, and for a body, for
ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES, MAX_HEADERS = 65_536, 128
MAX_QUEUED = 16  # requests of a connection that came before the answer to the one in front of them


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take of us before it has asked anything, and after.

    Attributes:
        head_seconds: from the connection, or the first byte of a request, to the end of its headers.
        body_seconds: from the first byte of a request to its last.
        connections: at the same time.
        unread_seconds: that it may take nothing of its answer while more of it waits.
    """

    head_seconds: float = 10.0
    body_seconds: float = 60.0
    unread_seconds: float = 60.0
    connections: int = 2048

    @property
    def times(self) -> tuple[float, ...]:
        """Of all of them those that are seconds."""
        return self.head_seconds, self.body_seconds, self.unread_seconds


class _RefusedError(Exception):
    """Raised through the parser, which ends the connection."""


class GatheringProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol over a gathering transport, within ``Limits``."""

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._since = 0.0  # when the request began that is still coming in, or the connection; 0 for none
        self._in_body = False
        self._fed = 0  # bytes of that request, no fewer than its headers have
        self._too_large = False
        self._running: RequestResponseCycle | None = None
        self._unread = (0, 0.0)  # bytes of answers that wait, and since when so many

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the gathering between the protocol and the socket."""
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, self.loop)))
        self._since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            self._refuse(503, "too many connections", "Retry-After: 1")

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        # A request that began behind another in the same bytes counts from the next ones; uvicorn's own limit for a
        # connection that is kept ends it when there are none.
        if not self._since:
            self._since = self.loop.time()
        self._fed += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._fed > MAX_HEAD_BYTES and self._since and not self._in_body and not self.transport.is_closing():
            self._refuse(431, "the headers are too large")

    def _feed(self, data: bytes) -> None:
        """As uvicorn's, but for a request that offers another protocol, and without a line in the log for each."""
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    rest = rest[:0]
                except httptools.HttpParserUpgrade as offered:
                    rest = rest[offered.args[0] :]
                    self.parser.feed_data(self._without_offer())
        except httptools.HttpParserError:
            self.send_400_response("")

    def _without_offer(self) -> bytes:
        """The head that was just read, as a client writes it who knows nothing newer.

        Java's own client offers HTTP/2 with its first request, and the parser takes its body for that.
        """
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _RefusedError
            return
        if len(self.headers) > MAX_HEADERS or (self._fed > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES):
            self._too_large = True
            raise _RefusedError
        self._in_body = True
        HttpToolsProtocol.on_headers_complete(self)
        if self.pipeline and len(self.pipeline) <= MAX_QUEUED:
            self.flow.resume_reading()  # which is how a client that leaves is noticed

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left; uvicorn tells only the last request that came."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        HttpToolsProtocol.connection_lost(self, exc)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self.parser.should_upgrade():
            return
        self._since, self._in_body, self._fed = 0.0, False, 0
        HttpToolsProtocol.on_message_complete(self)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        if self._too_large:
            self._refuse(431, "the headers are too large")
        else:
            self._refuse(400, "this is not an HTTP request")

    def end_when_late(self, now: float) -> None:
        """End what takes too long to come in, or to be taken; ``now`` is the loop's time."""
        limit = self._limits.body_seconds if self._in_body else self._limits.head_seconds
        if self._since and now - self._since > limit and not self.transport.is_closing():
            self._refuse(408, f"the request did not come in within {limit:g} s")
        unread, since = self.transport.get_write_buffer_size(), self._unread[1]
        if not unread or unread != self._unread[0]:
            self._unread = (unread, now)
        elif now - since > self._limits.unread_seconds:
            self.transport.abort()  # which frees the server that writes to nobody

    def _refuse(self, status: int, said: str, *headers: str) -> None:
        """Answer in the plainest form that every client reads, and close. After an answer has begun, only close."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete or not cycle.response_started:
            error = {"message": said, "type": "invalid_request_error", "param": None, "code": f"http_{status}"}
            body = msgspec.json.encode({"error": error})
            more = "".join(f"{header}\r\n" for header in headers)
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}connection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol for uvicorn."""
    return cast("type[asyncio.Protocol]", partial(GatheringProtocol, limits=limits))


@asynccontextmanager
async def sweeping(connections: Callable[[], set[Any]], limits: Limits) -> AsyncIterator[None]:
    """Meanwhile what takes too long is ended: one look a second, and no timer for each request."""
    sweep = asyncio.ensure_future(_sweep(connections, min(1.0, *(seconds / 2 for seconds in limits.times))))
    try:
        yield
    finally:
        sweep.cancel()
        with suppress(asyncio.CancelledError):
            await sweep


async def _sweep(connections: Callable[[], set[Any]], every: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every)
        now = loop.time()
        for connection in list(connections()):
            connection.end_when_late(now)


class _Gathering:
    """A transport whose writes leave at the end of the turn, in one piece; the rest is the real transport's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():  # the client may have left in this very turn
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)
