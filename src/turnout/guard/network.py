"""The one door out: the only HTTP client, which checks the address it really dials (SPEC SEC-2).

Three checks, each enough by itself for what it sees: the URL before anything happens, the name and its addresses in
the resolver, and the address in the socket factory (aiohttp skips the resolver for address literals). No redirects, no
proxies from the environment, no cookies, no cached DNS answers.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self, TypeAlias

import aiohttp
import msgspec
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from turnout.errors import (
    BackendError,
    EndpointDownError,
    GuardError,
    NonsenseError,
    PhaseTimeoutError,
    RequestRefusedError,
    StreamBrokenError,
)
from turnout.guard.allow import HOSTS_FILE_NAMES, AllowList
from turnout.types import Json, Limits

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
OnRefusal: TypeAlias = Callable[[GuardError], None]
_AddrInfo: TypeAlias = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]

LARGE_BODY_BYTES = 1_000_000
MAX_HEADER_BYTES = 16_384
MAX_HEADERS = 128
MAX_CONNECTIONS = 512
# Below the 5 s after which common servers close an idle connection: a POST must not meet one that is being closed.
KEEPALIVE_SECONDS = 4.0
# Servers that hold the connection open after the end mark exist; the others end the body at once.
END_SECONDS = 0.5


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
    """An answer whose body is read as it comes. ``headers`` have lower-case names.

    One timer watches silence and the total; it looks at the clock when it fires, so a chunk costs one clock reading.
    It closes the connection instead of cancelling a task: the body may be read in another task than the one that asked.
    """

    def __init__(self, response: aiohttp.ClientResponse, limits: Limits, endpoint: str, started: float) -> None:
        self.status = response.status
        self._response, self._limits, self._endpoint = response, limits, endpoint
        self._loop = asyncio.get_running_loop()
        self._started, self._end = started, started + limits.total
        self._begun, self._quiet = False, limits.first_byte
        self._waiting_since = started  # 0 while the reader is busy: its own slowness is not the server's silence
        self._expired: PhaseTimeoutError | None = None
        self._timer = self._loop.call_at(min(self._end, started + self._quiet), self._check)

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers, by lower-case name."""
        return {name.lower(): value for name, value in self._response.headers.items()}

    async def chunks(self, *, empty: bool = False) -> AsyncIterator[bytes]:
        """The body's pieces, as they come.

        Args:
            empty: the first pieces may be no answer yet, as comments of servers that still read the prompt are: until
                the caller says ``begin``, the limit is that of the first byte.

        Raises:
            PhaseTimeoutError: the first byte, the next one or the end took too long.
            StreamBrokenError: the connection was cut in the middle.
        """
        read, clock = self._response.content.readany, self._loop.time
        while True:
            try:
                data = await read()
            except (aiohttp.ClientError, OSError) as error:
                if self._expired is not None:
                    raise self._expired from error
                what = f"{self._endpoint} cut the connection in the middle of its answer"
                raise StreamBrokenError(what, endpoint=self._endpoint) from error
            if not data:
                return
            if not self._begun and not empty:
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
        content = self._response.content
        if content.is_eof() and content.exception() is None:  # it came together with its head
            pieces, size = [content.read_nowait(-1)], content.total_bytes
        else:
            pieces, size = [], 0
            async for piece in self.chunks(empty=empty):
                size += len(piece)
                if size > max_bytes:
                    break
                pieces.append(piece)
        if size > max_bytes:
            raise NonsenseError(f"{self._endpoint} sent more than {max_bytes:,} bytes", endpoint=self._endpoint)
        return b"".join(pieces)

    def expect_end(self) -> None:
        """What matters has come: the end of the body is awaited for a moment only, then ``chunks`` raises."""
        if self._quiet != END_SECONDS:
            self._begun, self._quiet = True, END_SECONDS
            self._timer.cancel()
            self._timer = self._loop.call_at(min(self._end, self._loop.time() + self._quiet), self._check)

    def close(self) -> None:
        """Stop the timer, and close the connection unless the whole body came: that frees the server's slot."""
        self._timer.cancel()
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # close() would first wait for an upload that the server may never read
        self._response.close()

    def begin(self) -> None:
        """The answer has begun: from here on only its silences are limited, and the total."""
        if self._begun:
            return
        self._begun, self._quiet = True, self._limits.silence
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._end, self._loop.time() + self._quiet), self._check)

    def _check(self) -> None:
        now = self._loop.time()
        since = (self._waiting_since or now) if self._begun else self._started
        if now >= self._end:
            self._expired = _too_long("total", self._limits.total, self._endpoint)
        elif now >= since + self._quiet:
            phase = "silence" if self._begun else "first byte"
            self._expired = _too_long(phase, self._quiet, self._endpoint)
        else:
            self._timer = self._loop.call_at(min(self._end, since + self._quiet), self._check)
            return
        self.close()


class HttpClient:
    """Made by ``open_client``. Every connection passes the allow-list."""

    def __init__(self, allow: AllowList, resolve: Resolve, on_refusal: OnRefusal | None) -> None:
        self._allow, self._on_refusal = allow, on_refusal
        self._resolver = _Resolver(allow, resolve)
        self._sessions: dict[tuple[str, bool], aiohttp.ClientSession] = {}
        self._closed = False
        self.refusals = 0  # of the guard, since the start
        self._read_url = lru_cache(maxsize=4096)(self._checked_url)  # the allow-list never changes; fleets are large

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; whoever still asks is refused, because nobody would close what it opens."""
        self._closed = True
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    async def addresses_of(self, host: str) -> tuple[str, ...]:
        """The addresses that an allowed name or address leads to; empty when it leads nowhere, or is not allowed."""
        try:
            return tuple(found["host"] for found in await self._resolver.resolve(host))
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

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        limits: Limits,
        endpoint: str,
    ) -> AsyncIterator[StreamReply]:
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
        started = asyncio.get_running_loop().time()
        socket_path, address = self._checked(url)
        try:
            try:
                session = self._session(socket_path)
                response = await _request(session, method, address, body, headers, limits, endpoint, started)
            except _ClosedBeforeAnswerError:
                # Most likely a kept connection that the server was closing: some close it right after a stream. On a
                # new one the same answer would be the server's own.
                session = self._session(socket_path, fresh=True)
                response = await _request(session, method, address, body, headers, limits, endpoint, started)
        except GuardError as error:
            self._refused(error)
            raise
        reply = StreamReply(response, limits, endpoint, started)
        try:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise NonsenseError(f"{endpoint} compressed its answer, unasked", endpoint=endpoint)
            yield reply
        finally:
            reply.close()

    def check(self, url: str) -> None:
        """Refuse a URL that may not be dialled, before anything is.

        Raises:
            GuardError: it may not, or is none.
        """
        self._checked(url)

    def _checked(self, url: str) -> tuple[str, yarl.URL]:
        try:
            return self._read_url(url)
        except GuardError as error:
            self._refused(error)
            raise

    def _session(self, socket_path: str, *, fresh: bool = False) -> aiohttp.ClientSession:
        """The session of TCP or of a socket; a ``fresh`` one takes no connection that was used before."""
        if self._closed:
            raise EndpointDownError("the router was closed", hint="keep it open until the answer has come")
        key = (socket_path, fresh)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = self._open_session(socket_path, fresh=fresh)
        return session

    def _checked_url(self, url: str) -> tuple[str, yarl.URL]:
        """The socket's path ("" for TCP) and the URL for aiohttp, built from what was checked: no second reading."""
        target = self._allow.check_url(url)
        path, _, query = target.path.partition("?")
        scheme, host = ("http", "localhost") if target.scheme == "unix" else (target.scheme, target.host)
        host = f"[{host}]" if ":" in host else host  # encoded=True takes the host as it stands in a URL
        address = yarl.URL.build(
            scheme=scheme, host=host, port=target.port or None, path=path or "/", query_string=query, encoded=True
        )
        return target.socket_path, address

    def _open_session(self, socket_path: str, *, fresh: bool) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        keep = None if fresh else KEEPALIVE_SECONDS
        if socket_path:
            connector = aiohttp.UnixConnector(
                socket_path, limit=MAX_CONNECTIONS, keepalive_timeout=keep, force_close=fresh
            )
        else:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                socket_factory=_socket_factory(self._allow),
                use_dns_cache=False,
                limit=MAX_CONNECTIONS,
                keepalive_timeout=keep,
                force_close=fresh,
            )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,  # we ask for no compression: a small answer must not become a huge one here
            headers={"Accept-Encoding": "identity"},  # compressing a token at a time costs both sides and saves nothing
            skip_auto_headers=("User-Agent", "Content-Type"),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )

    def _refused(self, error: GuardError) -> None:
        self.refusals += 1
        if self._on_refusal is not None:
            self._on_refusal(error)


def open_client(allow: AllowList, *, resolve: Resolve | None = None, on_refusal: OnRefusal | None = None) -> HttpClient:
    """The HTTP client of this process; use it with ``async with``, or call ``aclose``.

    Args:
        allow: what may be dialled.
        resolve: how allowed names are resolved, ``(name, port) -> addresses``; None for the system's resolver.
        on_refusal: told of every refusal (the audit log).
    """
    return HttpClient(allow, resolve or _system_resolve, on_refusal)


class _Resolver(AbstractResolver):
    """Checks the name before it is resolved and what it led to, and asks nobody for this machine's own names."""

    def __init__(self, allow: AllowList, resolve: Resolve) -> None:
        self._allow, self._resolve = allow, resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self._allow.check_host(host)
        if host == "localhost":
            addresses = ["127.0.0.1", "::1"]
        elif host in HOSTS_FILE_NAMES:
            addresses = list(self._allow.hosts_file_addresses(host))
        else:
            addresses = await self._resolve(host, port)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        for address in addresses:  # one that is outside condemns the name: an answer that mixes is not to be trusted
            self._allow.check_address(address, name=host)
        return [_resolved(host, address, port) for address in addresses]

    async def close(self) -> None:
        """Nothing is kept."""


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


async def _system_resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in found))


def _socket_factory(allow: AllowList) -> Callable[[_AddrInfo], socket.socket]:
    def make(info: _AddrInfo) -> socket.socket:
        family, kind, proto, _, address = info
        try:
            allow.check_address(address[0])
        except GuardError as error:
            # Of several addresses aiohttp's dialler loses what is no OSError, and the cause of those that read unalike.
            raise PermissionError(errno.EACCES, "refused by the guard") from error
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    return make


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """A large body is handed over as a file, so that it is written in pieces."""
    return io.BytesIO(body) if body is not None and len(body) > LARGE_BODY_BYTES else body


async def _request(
    session: aiohttp.ClientSession,
    method: str,
    address: yarl.URL,
    body: bytes | None,
    headers: Mapping[str, str] | None,
    limits: Limits,
    endpoint: str,
    started: float,
) -> aiohttp.ClientResponse:
    """Send the request and wait for the answer's headers; aiohttp's errors become ours."""
    phase, limit = ("total", limits.total) if limits.total <= limits.first_byte else ("first byte", limits.first_byte)
    try:
        async with asyncio.timeout_at(started + limit):
            return await session.request(
                method,
                address,
                data=_payload(body),
                headers=headers,
                allow_redirects=False,
                timeout=_connect_within(limits.connect),
            )
    except aiohttp.ConnectionTimeoutError as error:
        raise _too_long("connect", limits.connect, endpoint) from error
    except TimeoutError as error:
        raise _too_long(phase, limit, endpoint) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _mapped(error, endpoint) from error


@lru_cache(maxsize=64)
def _connect_within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds)


def _too_long(phase: str, seconds: float, endpoint: str) -> PhaseTimeoutError:
    what = {
        "connect": "did not accept a connection",
        "first byte": "did not begin to answer",
        "silence": "stopped in the middle of its answer and said nothing more",
        "total": "did not finish its answer",
    }[phase]
    return PhaseTimeoutError(f"{endpoint} {what} within {seconds:g} s", phase=phase, endpoint=endpoint)


def _mapped(error: Exception, endpoint: str) -> BackendError | GuardError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GuardError):
            return cause
        cause = cause.__cause__
    if isinstance(error, aiohttp.ClientSSLError):
        hint = "is its certificate signed by an authority that this machine trusts?"
        return EndpointDownError(f"no secure connection to {endpoint}", endpoint=endpoint, hint=hint)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return EndpointDownError(f"the host name of {endpoint} is unknown here", endpoint=endpoint)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = os.strerror(error.errno).lower() if error.errno else "no connection"
        return EndpointDownError(f"nothing answers at {endpoint}: {reason}", endpoint=endpoint)
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return NonsenseError(f"{endpoint} does not speak HTTP as it should", endpoint=endpoint)
    if isinstance(error, ValueError):
        hint = "look for one in its key"
        return RequestRefusedError(f"a header for {endpoint} holds a line break", endpoint=endpoint, hint=hint)
    return _ClosedBeforeAnswerError(f"{endpoint} closed the connection before it answered", endpoint=endpoint)


class _ClosedBeforeAnswerError(EndpointDownError):
    """The connection was made, and closed before the answer's headers."""
