"""The one door out: the only HTTP client, which checks the address it really dials (SPEC SEC-2).

Three checks, each enough by itself for what it sees: the URL before anything happens, the name and its addresses in
the resolver, and the address where its socket is made (``guard/dial.py``). No redirects, no proxies from the
environment, no cookies, no cached DNS answers.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self, TypeAlias

import msgspec

from turnout.errors import (
    EndpointDownError,
    GuardError,
    NonsenseError,
    PhaseTimeoutError,
    RequestRefusedError,
    StreamBrokenError,
)
from turnout.guard.allow import AllowList
from turnout.guard.dial import Connections, InsecureError, Place, Resolve, system_resolve
from turnout.guard.http1 import Connection, CutError, NotHttpError, request_head
from turnout.types import Json, Limits

OnRefusal: TypeAlias = Callable[[GuardError], None]

# Servers that hold the connection open after the end mark exist; the others end the body at once.
END_SECONDS = 0.5
STILL_SILENCES = 10  # so many times what a silence may last, an answer may go on without a word: calls are held back


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Json:
        """The body as JSON.

        Raises:
            NonsenseError: it is not JSON.
        """
        try:
            value: Json = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NonsenseError("the answer is not JSON", status=self.status) from error
        return value


class StreamReply:
    """A request and its answer, whose body is read as it comes: made by ``HttpClient.stream``, asked by entering it.

    One timer watches first byte, silence and the total; it looks at the clock when it fires, so a chunk costs one clock
    reading. Whether an answer moves on is asked only when it has fired: ``doubted`` asks, and ``begin`` answers. It
    closes the connection instead of cancelling a task: the body may be read in another task than the one that asked.

    Attributes:
        status: of the answer.
    """

    def __init__(
        self, connections: Connections, place: Place, head: bytes, body: bytes, limits: Limits, endpoint: str
    ) -> None:
        self._connections, self._place, self._limits, self._endpoint = connections, place, limits, endpoint
        self._head, self._body = head, body
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._end = self._started + limits.total
        self._begun, self._quiet = False, limits.first_byte
        self._doubted_since = 0.0
        self._waiting_since = self._started  # 0 while the reader is busy: its own slowness is not the server's silence
        self._expired: PhaseTimeoutError | None = None
        self._connection: Connection | None = None
        self._timer = self._loop.call_at(min(self._end, self._started + self._quiet), self._check)
        self.status = 0

    async def __aenter__(self) -> Self:
        """Send the request and wait for the head of its answer; raises as ``HttpClient.stream`` says."""
        try:
            kept = self._connections.kept(self._place)
            try:
                await self._ask(kept or await self._dial())
            except _ClosedBeforeAnswerError:
                # A kept one was most likely closed before the request came: some servers close right after a stream.
                # A new one had room for it, and the request may be what ended the server: it is not sent there again.
                if kept is None or not kept.silent:
                    raise
                await self._ask(await self._dial())
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _ask(self, connection: Connection) -> None:
        self._connection = connection
        if self._expired is not None:
            raise self._expired
        connection.send(self._head, self._body)
        try:
            await connection.head()
        except NotHttpError as error:
            raise NonsenseError(
                f"{self._endpoint} does not speak HTTP as it should", endpoint=self._endpoint
            ) from error
        except CutError as error:
            if self._expired is not None:
                raise self._expired from error
            self._let_go()
            what = f"{self._endpoint} closed the connection before it answered"
            raise _ClosedBeforeAnswerError(what, endpoint=self._endpoint) from error
        self.status = connection.status
        if connection.encoded:
            raise NonsenseError(f"{self._endpoint} compressed its answer, unasked", endpoint=self._endpoint)

    async def _dial(self) -> Connection:
        limit = min(self._limits.connect, self._limits.first_byte, self._limits.total)
        try:
            return await self._connections.dial(self._place, limit)
        except TimeoutError as error:
            raise _too_long("connect", limit, self._endpoint) from error
        except OSError as error:
            raise _not_reached(error, self._endpoint) from error

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers, by lower-case name."""
        found = self._connection.raw_headers if self._connection is not None else ()
        return {name.decode("latin-1").lower(): value.decode("utf-8", "replace") for name, value in found}

    async def chunks(self, *, empty: bool = False) -> AsyncIterator[bytes]:
        """The body's pieces, as they come.

        Args:
            empty: the first pieces may be no answer yet, as comments of servers that still read the prompt are: until
                the caller says ``begin``, the limit is that of the first byte.

        Raises:
            PhaseTimeoutError: the first byte, the next one or the end took too long.
            StreamBrokenError: the connection was cut in the middle.
        """
        clock = self._loop.time
        while self._connection is not None:
            try:
                data = await self._connection.read()
            except (NotHttpError, CutError) as error:
                if self._expired is not None:
                    raise self._expired from error
                what = f"{self._endpoint} cut the connection in the middle of its answer"
                raise StreamBrokenError(what, endpoint=self._endpoint) from error
            if not data:
                return
            if not empty:
                self.begin()
            self._waiting_since = 0.0
            yield data
            self._waiting_since = clock()

    async def read_all(self, max_bytes: int, *, empty: bool = False) -> bytes:
        """The whole body.

        Args:
            max_bytes: the most it may have.
            empty: it is no answer: all of it is to come within the limit of the first byte.

        Raises:
            NonsenseError: it is larger than ``max_bytes``.
            PhaseTimeoutError, StreamBrokenError: as ``chunks``.
        """
        assert self._connection is not None
        if self._connection.ended:  # it came together with its head
            whole = self._connection.take()
            size = len(whole)
        else:
            pieces, size = [], 0
            async for piece in self.chunks(empty=empty):
                size += len(piece)
                if size > max_bytes:
                    break
                pieces.append(piece)
            whole = b"".join(pieces)
        if size > max_bytes:
            raise NonsenseError(f"{self._endpoint} sent more than {max_bytes:,} bytes", endpoint=self._endpoint)
        return whole

    def expect_end(self) -> None:
        """What matters has come: the end of the body is awaited for a moment only, then ``chunks`` raises."""
        if self._quiet != END_SECONDS:
            self._begun, self._quiet = True, END_SECONDS
            self._timer.cancel()
            self._timer = self._loop.call_at(min(self._end, self._loop.time() + self._quiet), self._check)

    def close(self) -> None:
        """Stop the timer, and close the connection unless the whole body came: that frees the server's slot."""
        self._timer.cancel()
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.release(self._place, connection)

    def begin(self) -> None:
        """The answer has begun, or moved on: from here on its silences are limited, what comes without moving it on,
        and the total."""
        self._doubted_since = 0.0
        if self._begun:
            return
        self._begun, self._quiet = True, self._limits.silence
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._end, self._loop.time() + self._quiet), self._check)

    @property
    def doubted(self) -> bool:
        """Nothing has moved the answer on for a while."""
        return self._doubted_since > 0.0

    def _check(self) -> None:
        now = self._loop.time()
        still = self._doubted_since and now >= self._doubted_since + STILL_SILENCES * self._quiet
        since = (self._waiting_since or now) if self._begun else self._started
        if now >= self._end:
            self._expired = _too_long("total", self._limits.total, self._endpoint)
        elif now >= since + self._quiet:
            phase = "silence" if self._begun else "first byte"
            self._expired = _too_long(phase, self._quiet, self._endpoint)
        elif still and self._waiting_since:
            self._expired = _too_long("silence", STILL_SILENCES * self._quiet, self._endpoint)
        else:
            if self._begun:
                self._doubted_since = self._doubted_since or now
            self._timer = self._loop.call_at(min(self._end, since + self._quiet), self._check)
            return
        if self._connection is not None:
            self._connection.abort()


class HttpClient:
    """Made by ``open_client``. Every connection passes the allow-list."""

    def __init__(
        self, allow: AllowList, resolve: Resolve, on_refusal: OnRefusal | None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._allow, self._on_refusal = allow, on_refusal
        self._connections = Connections(allow, resolve, self._refused, tls)
        self.refusals = 0  # of the guard, since the start
        self._read_url = lru_cache(maxsize=4096)(self._checked_url)  # the allow-list never changes; fleets are large

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; whoever still asks is refused, because nobody would close what it opens."""
        await self._connections.aclose()

    async def addresses_of(self, host: str) -> tuple[str, ...]:
        """The addresses that an allowed name or address leads to; empty when it leads nowhere, or is not allowed."""
        try:
            return tuple(await self._connections.addresses(host))
        except (GuardError, OSError):
            return ()

    @staticmethod
    def request_url(endpoint_url: str, path: str) -> str:
        """The URL of ``path`` at an endpoint, also at a ``unix:/socket`` one."""
        return f"{endpoint_url}:{path}" if endpoint_url.startswith("unix:") else endpoint_url + path

    async def get_json(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float, max_bytes: int = 4_000_000
    ) -> Reply:
        """GET something that should be JSON; read it with ``Reply.json``. Arguments and errors as ``fetch``."""
        accept = {"Accept": "application/json", **(headers or {})}
        return await self.fetch("GET", url, headers=accept, timeout=timeout, max_bytes=max_bytes)

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float,
        max_bytes: int,
    ) -> Reply:
        """One whole request.

        Args:
            timeout: seconds for all of it.
            max_bytes: the most bytes the answer's body may have.

        Raises:
            NonsenseError: the body is larger, or the answer is not HTTP.
            GuardError, EndpointDownError, PhaseTimeoutError, StreamBrokenError: as ``stream``.
        """
        limits = Limits(connect=timeout, first_byte=timeout, silence=timeout, total=timeout)
        label = url.partition("://")[2].partition("/")[0] or url
        async with self.stream(method, url, body=body, headers=headers, limits=limits, endpoint=label) as reply:
            return Reply(reply.status, reply.headers, await reply.read_all(max_bytes))

    def stream(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        limits: Limits,
        endpoint: str,
    ) -> StreamReply:
        """An answer that is read as it comes. Leaving the context before its end closes the connection at once.

        Args:
            url: as ``AllowList.check_url`` reads it (``request_url`` makes it).
            headers: sent as they are; ``Host`` may be among them.
            limits: seconds to connect, to the first byte of the body, between bytes, and in total.
            endpoint: the endpoint's name, for messages.

        Raises:
            GuardError: the destination is not allowed; nothing was dialled.
            EndpointDownError: nothing answers there, or the connection was cut before the answer's headers.
            PhaseTimeoutError: a limit passed.
            NonsenseError: the answer is not HTTP, or its headers are too large.
            RequestRefusedError: a header that was to be sent holds a line break.
        """
        place, target, host = self._checked(url)
        length = None if body is None and method == "GET" else len(body or b"")
        try:
            head = request_head(method, target, host, headers or {}, length)
        except ValueError as error:
            hint = "look for one in its key"
            raise RequestRefusedError(
                f"a header for {endpoint} holds a line break", endpoint=endpoint, hint=hint
            ) from error
        return StreamReply(self._connections, place, head, body or b"", limits, endpoint)

    def check(self, url: str) -> None:
        """Refuse a URL that may not be dialled, before anything is.

        Raises:
            GuardError: it may not, or is none.
        """
        self._checked(url)

    def _checked(self, url: str) -> tuple[Place, str, str]:
        try:
            return self._read_url(url)
        except GuardError as error:
            self._refused(error)
            raise

    def _checked_url(self, url: str) -> tuple[Place, str, str]:
        """Where it leads, path and query, and the Host, all from what was checked: nobody reads it otherwise."""
        target = self._allow.check_url(url)
        path = target.path if target.path.startswith("/") else f"/{target.path}"
        if target.scheme == "unix":
            return Place("unix", "", 0, target.socket_path), path, "localhost"
        host = f"[{target.host}]" if ":" in target.host else target.host
        default = 443 if target.scheme == "https" else 80
        shown = host if target.port == default else f"{host}:{target.port}"
        return Place(target.scheme, target.host, target.port), path, shown

    def _refused(self, error: GuardError) -> None:
        self.refusals += 1
        if self._on_refusal is not None:
            self._on_refusal(error)


def open_client(
    allow: AllowList,
    *,
    resolve: Resolve | None = None,
    on_refusal: OnRefusal | None = None,
    tls: ssl.SSLContext | None = None,
) -> HttpClient:
    """The HTTP client of this process; use it with ``async with``, or call ``aclose``.

    Args:
        allow: what may be dialled.
        resolve: how allowed names are resolved, ``(name, port) -> addresses``; None for the system's resolver.
        on_refusal: told of every refusal (the audit log).
        tls: whom to trust at https addresses (``tls.client_context``); None for whom the system trusts.
    """
    return HttpClient(allow, resolve or system_resolve, on_refusal, tls)


def _too_long(phase: str, seconds: float, endpoint: str) -> PhaseTimeoutError:
    what = {
        "connect": "did not accept a connection",
        "first byte": "did not begin to answer",
        "silence": "stopped in the middle of its answer and said nothing more",
        "total": "did not finish its answer",
    }[phase]
    return PhaseTimeoutError(f"{endpoint} {what} within {seconds:g} s", phase=phase, endpoint=endpoint)


def _not_reached(error: OSError, endpoint: str) -> EndpointDownError:
    if isinstance(error, InsecureError):
        hint = "is its certificate for that name, and of an authority that is trusted (security.ca_file)?"
        said = f"no secure connection to {endpoint}" + (f": {error}" if str(error) else "")
        return EndpointDownError(said, endpoint=endpoint, hint=hint)
    if isinstance(error, socket.gaierror):
        return EndpointDownError(f"the host name of {endpoint} is unknown here", endpoint=endpoint)
    reason = os.strerror(error.errno).lower() if error.errno else "no connection"
    return EndpointDownError(f"nothing answers at {endpoint}: {reason}", endpoint=endpoint)


class _ClosedBeforeAnswerError(EndpointDownError):
    """The connection was made, and closed before the answer's headers."""
