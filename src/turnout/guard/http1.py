"""One HTTP/1.1 connection to a server, over httptools' parser (llhttp): what a local router needs of HTTP and no more.

A general client costs three times as much for each request and each piece of a stream (docs/decisions.md), and a model
server needs neither cookies nor redirects, proxies or compression, which a guard would have to switch off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import httptools

MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 128
MAX_REASON_BYTES = 8192
# What a server may send ahead of its reader.
MAX_HELD_BYTES = 262_144
_JOINED_BYTES = 65_536
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_IDLE, _HEAD, _BODY, _DONE = range(4)


class NotHttpError(Exception):
    """The answer is not HTTP, or its head is too large."""


class CutError(Exception):
    """The connection was closed before the end of the answer."""


class Connection(asyncio.Protocol):
    """One request at a time: ``send``, ``head``, ``read`` until it returns nothing; then the next one, or ``abort``.

    Attributes:
        status: of the answer.
        raw_headers: of the answer, names and values as they came.
        encoded: its body is compressed, or otherwise not as it is.
        closed: nothing can be sent any more; ``gone`` is the event of it.
        idle_since: for whoever keeps it: when its last answer ended, by the loop's clock.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._phase, self._error = _IDLE, cast("Exception | None", None)
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._held = self._fed = 0  # bytes that wait for the reader; bytes since there was a piece of a body
        self._framed = self._keep = self._paused = self._surplus = False
        self.status, self.encoded, self.raw_headers = 0, False, list[tuple[bytes, bytes]]()
        self.closed, self.idle_since = False, 0.0
        self.gone = asyncio.Event()

    # What the request's side calls.

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request; its answer is awaited by ``head``."""
        self._phase, self._fed, self._framed, self.encoded = _HEAD, 0, False, False
        self.status, self.raw_headers = 0, []
        self._pieces, self._held = [], 0  # what nobody read of the answer before is no part of this one
        if len(body) <= _JOINED_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    async def head(self) -> None:
        """Wait for the answer's head.

        Raises:
            NotHttpError: it is none.
            CutError: the connection was closed before.
        """
        while self._phase == _HEAD:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body, at least a byte; nothing at its end. Raises as ``head``."""
        while not self._pieces:
            if self._phase == _DONE:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        return self.take()

    def take(self) -> bytes:
        """What has come of the body and was not read yet, without waiting."""
        pieces, self._pieces, self._held = self._pieces, [], 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def silent(self) -> bool:
        """Not a byte of an answer has come."""
        return self._phase == _HEAD and not self._fed

    @property
    def ended(self) -> bool:
        """The whole answer has come."""
        return self._phase == _DONE

    @property
    def reusable(self) -> bool:
        """Another request may be sent."""
        return (
            self._phase == _DONE
            and self._keep
            and not (self.closed or self._surplus or self._paused or self.transport.is_closing())
            and not self.transport.get_write_buffer_size()  # it answered before it had read the request
        )

    def abort(self) -> None:
        """Close at once: ``close`` would first wait for an upload that the server may never read."""
        if self._phase != _DONE:
            self._fail(CutError())
        self.transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._phase in (_IDLE, _DONE):
            self._surplus = True  # unasked: whatever it is, no later request must take it for its answer
            self.transport.abort()
            return
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._fed > MAX_HEAD_BYTES and self._phase != _DONE:
                self._refuse()  # a head, or what stands between two pieces of a body, that does not end
        if self._held > MAX_HELD_BYTES and not self._paused and self._phase != _DONE:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def _refuse(self) -> None:
        if self._phase == _DONE:  # what follows a whole answer takes nothing from it
            self._surplus = True
        else:
            self._fail(NotHttpError())
        self.transport.abort()

    def eof_received(self) -> None:
        """The server says no more. The connection is gone only when the request is sent, which it may never read."""
        self._over(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.closed = True
        self.gone.set()
        self._over(exc)

    def _over(self, exc: Exception | None) -> None:
        """Nothing more comes; where nothing says how long a body is, that is its end."""
        if self._phase == _BODY and not self._framed and exc is None and self._error is None:
            self._phase = _DONE
            self._wake()
        elif self._phase != _DONE:
            self._fail(CutError())

    # What the parser calls.

    def on_message_begin(self) -> None:
        """An answer begins; a second one was not asked for."""
        if self._phase == _DONE:
            self._surplus = True

    def on_status(self, reason: bytes) -> None:
        """The words after the status."""
        if len(reason) > MAX_REASON_BYTES:
            raise NotHttpError

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, also of those at the end of a body, which nobody needs."""
        if self._phase != _HEAD:
            return
        self.raw_headers.append((name, value))
        if len(self.raw_headers) > MAX_HEADERS:
            raise NotHttpError
        kind = name.lower()
        if kind in _FRAMING:
            self._framed = True
        elif kind == b"content-encoding" and value.lower() != b"identity":
            self.encoded = True

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._phase != _HEAD:
            return
        if self._fed > MAX_HEAD_BYTES and sum(len(n) + len(v) for n, v in self.raw_headers) > MAX_HEAD_BYTES:
            raise NotHttpError
        self.status = self._parser.get_status_code()
        if self.status == 101 or self.status < 100:
            raise NotHttpError  # another protocol, which nobody asked for, follows
        if self.status >= 200:  # else the answer is still to come
            self._phase = _BODY
            self._framed = self._framed or self.status in (204, 304)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._phase == _BODY:
            self._pieces.append(body)
            self._held += len(body)
            self._fed = 0

    def on_message_complete(self) -> None:
        """The answer is whole, or it was an interim one."""
        if self._phase == _BODY:
            self._phase, self._keep = _DONE, self._parser.should_keep_alive()
        elif self._phase == _HEAD:
            self.raw_headers, self._framed = [], False


def request_head(method: str, target: str, host: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """The head of a request, with what every request of ours has.

    Args:
        target: path and query, as they stand in a URL.
        host: for the Host header, unless ``headers`` have one.
        headers: sent as they are.
        length: of the body in bytes; None for none.

    Raises:
        ValueError: a line break or NUL is where none can be.
    """
    given = {name.lower() for name in headers}
    own = {"Host": host, "Accept": "*/*", "Accept-Encoding": "identity"}
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in own.items() if name.lower() not in given]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError("a line break in the head of a request")
    return f"{text}\r\n\r\n".encode("utf-8", "surrogateescape")
