"""The one door out: the only HTTP client, which checks the address it really dials (SPEC SEC-2).

aiohttp skips its resolver for address literals, so the resolver checks names and the socket factory, which is given
the address that is about to be dialled, checks addresses. No redirects, no proxies from the environment, no cookies.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from turnout.errors import (
    BackendError,
    EndpointDownError,
    GuardError,
    NonsenseError,
    PhaseTimeoutError,
    StreamBrokenError,
)
from turnout.guard.allow import HOSTS_FILE_NAMES, AllowList
from turnout.types import Json, Limits

Resolve = Callable[[str, int], Awaitable[list[str]]]
MAX_HEADER_BYTES = 16_384


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


class _Resolver(AbstractResolver):
    """Checks the name before it is resolved, and resolves what needs no DNS by itself."""

    def __init__(self, allow: AllowList, resolve: Resolve | None) -> None:
        self._allow, self._resolve = allow, resolve or _system_resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self._allow.check_host(host.lower())
        if host.lower() == "localhost":
            addresses = ["127.0.0.1", "::1"]
        elif host.lower() in HOSTS_FILE_NAMES:
            addresses = list(self._allow.hosts_file_addresses(host.lower()))
        else:
            addresses = await self._resolve(host, port)
        for address in addresses:
            self._allow.check_address(address)
        if not addresses:
            raise OSError(f"{host} has no address")
        return [_result(host, address, port) for address in addresses]

    async def close(self) -> None:
        """Nothing is kept."""


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


async def _system_resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in found))


def _socket_factory(allow: AllowList) -> Callable[[Any], socket.socket]:
    def make(info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        allow.check_address(str(address[0]))
        made = socket.socket(family=family, type=kind, proto=proto)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    return make


class StreamReply:
    """An answer whose body is read as it comes. ``headers`` are lower-case."""

    def __init__(self, response: aiohttp.ClientResponse, watch: _Watch, endpoint: str) -> None:
        self._response, self._watch, self._endpoint = response, watch, endpoint
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's pieces.

        Raises:
            PhaseTimeoutError: the first byte, the next one or the end took too long.
            StreamBrokenError: the connection was cut in the middle.
        """
        read = self._response.content.readany
        watch = self._watch
        while True:
            watch.enter()
            try:
                data = await read()
            except asyncio.CancelledError:
                watch.raise_if_expired()
                raise
            except (aiohttp.ClientError, OSError) as error:
                raise StreamBrokenError(
                    f"{self._endpoint} cut the connection in the middle of its answer", endpoint=self._endpoint
                ) from error
            finally:
                watch.leave()
            if not data:
                return
            watch.touch()
            yield data

    async def read_all(self, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            NonsenseError: it is larger than ``max_bytes``.
        """
        pieces: list[bytes] = []
        size = 0
        async for piece in self.chunks():
            size += len(piece)
            if size > max_bytes:
                raise NonsenseError(f"{self._endpoint} sent more than {max_bytes:,} bytes", endpoint=self._endpoint)
            pieces.append(piece)
        return b"".join(pieces)


class _Watch:
    """One timer for all phases: re-armed lazily, so a chunk costs one clock reading.

    It interrupts the task that waits for the network, and no other: a slow consumer is not the server's silence.
    """

    def __init__(self, limits: Limits, endpoint: str) -> None:
        self._limits, self._endpoint = limits, endpoint
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        now = self._loop.time()
        self._end, self._last, self._begun = now + limits.total, now, False
        self._timer = self._loop.call_at(self._deadline(), self._check)
        self.expired = ""

    def _deadline(self) -> float:
        quiet = self._limits.silence if self._begun else self._limits.first_byte
        return min(self._end, self._last + quiet)

    def enter(self) -> None:
        self._task = asyncio.current_task()
        if self._begun:
            self._last = self._loop.time()

    def leave(self) -> None:
        self._task = None

    def touch(self) -> None:
        self._last = self._loop.time()
        if not self._begun:
            self._begun = True
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline(), self._check)

    def _check(self) -> None:
        now, deadline = self._loop.time(), self._deadline()
        if now < deadline:
            self._timer = self._loop.call_at(deadline, self._check)
            return
        if self._task is None:
            self._timer = self._loop.call_later(0.1, self._check)
            return
        self.expired = "total" if now >= self._end else "silence" if self._begun else "first byte"
        self._task.cancel()

    def raise_if_expired(self) -> None:
        if not self.expired:
            return
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        seconds = {"total": self._limits.total, "silence": self._limits.silence}.get(
            self.expired, self._limits.first_byte
        )
        phase, self.expired = self.expired, ""
        raise PhaseTimeoutError(
            f"{self._endpoint} passed the {phase} limit of {seconds:g} s", phase=phase, endpoint=self._endpoint
        )

    def stop(self) -> None:
        self._timer.cancel()


class HttpClient:
    """Made by ``open_client``. Every connection passes the allow-list."""

    def __init__(
        self, allow: AllowList, resolve: Resolve | None = None, on_refusal: Callable[[GuardError], None] | None = None
    ) -> None:
        self._allow, self._on_refusal = allow, on_refusal
        self._resolver = _Resolver(allow, resolve)
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    @staticmethod
    def request_url(endpoint_url: str, path: str) -> str:
        """The URL of ``path`` at an endpoint, also for ``unix:/socket`` endpoints."""
        return f"{endpoint_url}:{path}" if endpoint_url.startswith("unix:") else endpoint_url + path

    def _session(self, url: str) -> tuple[aiohttp.ClientSession, str]:
        """The session and the URL to ask it for; checks the URL."""
        try:
            if url.startswith("unix:"):
                sock, _, path = url.removeprefix("unix:").partition(":")
                self._allow.check_url(f"unix:{sock}")
                return self._sessions.get(sock) or self._open(sock), f"http://localhost{path}"
            self._allow.check_url(url.split("?", 1)[0])
        except GuardError as error:
            self._refused(error)
            raise
        return self._sessions.get("") or self._open(""), url

    def _open(self, sock: str) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if sock:
            connector = aiohttp.UnixConnector(sock)
        else:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                use_dns_cache=False,
                socket_factory=_socket_factory(self._allow),
                limit=0,
                keepalive_timeout=30,
            )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=True,
            skip_auto_headers=("User-Agent",),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            read_bufsize=2**18,
        )
        self._sessions[sock] = session
        return session

    def _refused(self, error: GuardError) -> None:
        if self._on_refusal is not None:
            self._on_refusal(error)

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
        """One whole request within ``timeout`` seconds and ``max_bytes``.

        Raises:
            GuardError: the destination is not allowed.
            EndpointDownError: nothing answers there.
            PhaseTimeoutError: it took longer.
            NonsenseError: the body is too large.
        """
        limits = Limits(connect=timeout, first_byte=timeout, silence=timeout, total=timeout)
        async with self.stream(method, url, body=body, headers=headers, limits=limits, endpoint=_host(url)) as reply:
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
        """An answer that is read as it comes; leaving the context closes the connection, which frees the server.

        Raises:
            GuardError, EndpointDownError, PhaseTimeoutError: as ``fetch``.
        """
        session, address = self._session(url)
        watch = _Watch(limits, endpoint)
        response: aiohttp.ClientResponse | None = None
        done = False
        try:
            response = await self._request(session, method, address, body, headers, limits, endpoint, watch)
            yield StreamReply(response, watch, endpoint)
            done = response.content.at_eof()
        finally:
            watch.stop()
            if response is not None:
                if done:
                    response.release()
                else:
                    response.close()

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        address: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        limits: Limits,
        endpoint: str,
        watch: _Watch,
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect)
        watch.enter()
        try:
            return await session.request(
                method, address, data=body, headers=headers, allow_redirects=False, timeout=timeout
            )
        except asyncio.CancelledError:
            watch.raise_if_expired()
            raise
        except GuardError as error:
            self._refused(error)
            raise
        except aiohttp.ConnectionTimeoutError as error:
            raise PhaseTimeoutError(
                f"{endpoint} did not accept a connection within {limits.connect:g} s",
                phase="connect",
                endpoint=endpoint,
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _mapped(error, endpoint, self._refused) from error
        finally:
            watch.leave()


def _mapped(error: Exception, endpoint: str, refused: Callable[[GuardError], None]) -> BackendError | GuardError:
    guard = _guard_error_in(error)
    if guard is not None:
        refused(guard)
        return guard
    if isinstance(error, aiohttp.ClientConnectorError):
        return EndpointDownError(f"nothing answers at {endpoint}", endpoint=endpoint, hint="is the server running?")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError | ValueError):
        return NonsenseError(f"{endpoint} does not speak HTTP as it should", endpoint=endpoint)
    return EndpointDownError(f"{endpoint} closed the connection before it answered", endpoint=endpoint)


def _guard_error_in(error: BaseException | None) -> GuardError | None:
    while error is not None:
        if isinstance(error, GuardError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _host(url: str) -> str:
    return url.split("//", 1)[-1].split("/", 1)[0] if "//" in url else url.split(":")[1]


def open_client(
    allow: AllowList, *, resolve: Resolve | None = None, on_refusal: Callable[[GuardError], None] | None = None
) -> HttpClient:
    """The HTTP client of this process.

    Args:
        allow: what may be dialled.
        resolve: how allowed names are resolved, ``(name, port) -> addresses``; None for the system's resolver.
        on_refusal: told of every refusal (the audit log).
    """
    return HttpClient(allow, resolve, on_refusal)
