"""Connections to servers: the address that is really dialled is checked where its socket is made, and kept ones.

Names are resolved here too, each only once it is allowed, and this machine's own names are asked of nobody.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from turnout.errors import EndpointDownError, GuardError
from turnout.guard.allow import HOSTS_FILE_NAMES, AllowList
from turnout.guard.http1 import Connection
from turnout.guard.listen import HAS_UNIX_SOCKETS, peer_is_us

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

# Below the 5 s after which common servers close an idle connection: a POST must not meet one that is being closed.
KEEPALIVE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is: ``scheme`` is http, https or unix, which has no host and port but a path."""

    scheme: str
    host: str
    port: int
    socket_path: str = ""


class InsecureError(OSError):
    """A connection was made, but no secure one; its text is what is wrong with the certificate, or empty."""


class Connections:
    """Made once for a client, and used by its event loop alone.

    Args:
        allow: what may be dialled.
        resolve: how allowed names are resolved.
        on_refusal: told of every address that was not dialled.
        tls: whom to trust at https addresses; None for whom the system trusts.
    """

    def __init__(
        self,
        allow: AllowList,
        resolve: Resolve,
        on_refusal: Callable[[GuardError], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow, self._resolve, self._on_refusal = allow, resolve, on_refusal
        self._kept: dict[Place, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tls = tls
        self._closed = False

    def kept(self, place: Place) -> Connection | None:
        """A connection that was used before; None when there is none that is good."""
        found = self._kept.get(place)
        while found:
            connection = found.pop()
            if connection.reusable:
                return connection
            self.drop(connection)
        return None

    async def dial(self, place: Place, seconds: float) -> Connection:
        """A new connection, ``seconds`` being the most it may take.

        Raises:
            GuardError: the address is not allowed; nothing was dialled.
            TimeoutError: it takes too long.
            InsecureError: there is no TLS, or its certificate is not trusted.
            OSError: nothing answers there (``socket.gaierror``: the name leads nowhere).
            EndpointDownError: all is closed.
        """
        self._require_open()
        try:
            async with asyncio.timeout(seconds):
                connection = await self._dial(place, seconds)
        except GuardError as error:
            self._on_refusal(error)
            raise
        self._open.add(connection)
        if self._closed:
            self.drop(connection)
            self._require_open()
        return connection

    def release(self, place: Place, connection: Connection) -> None:
        """Keep it for the next request when its answer is whole, else close it."""
        self._open.discard(connection)
        if not connection.reusable or self._closed:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._open.add(connection)
        self._kept.setdefault(place, []).append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(KEEPALIVE_SECONDS, self._sweep)

    def drop(self, connection: Connection) -> None:
        """Close it at once."""
        self._open.discard(connection)
        connection.abort()

    async def aclose(self) -> None:
        """Close every connection, those in use too, and wait until they are gone."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        left, self._open, self._kept = list(self._open), set(), {}
        for connection in left:
            connection.abort()
        for connection in left:
            await connection.gone.wait()

    async def addresses(self, host: str, port: int = 0) -> Sequence[str]:
        """The addresses of an allowed name or address, each of them allowed.

        Raises:
            GuardError: it is not allowed, or leads outside; a name that is not allowed is not resolved.
            OSError: it has no address.
        """
        self._allow.check_host(host)
        if host == "localhost":
            found = ["127.0.0.1", "::1"]
        elif host in HOSTS_FILE_NAMES:
            found = list(self._allow.hosts_file_addresses(host))
        elif ":" in host or host.rpartition(".")[2].isdecimal():
            found = [host]
        else:
            found = await self._resolve(host, port)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        for address in found:  # one that is outside condemns the name: an answer that mixes is not to be trusted
            self._allow.check_address(address, name="" if address == host else host)
        return found

    async def _dial(self, place: Place, seconds: float) -> Connection:
        if place.socket_path:
            return (await asyncio.get_running_loop().create_unix_connection(Connection, place.socket_path))[1]
        return await self._first(place, await self.addresses(place.host, place.port), seconds)

    async def _first(self, place: Place, addresses: Sequence[str], seconds: float) -> Connection:
        """The first address that accepts; each gets its share of the time, so that a silent one leaves some."""
        problem: Exception | None = None
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                async with asyncio.timeout(seconds / len(addresses) if left > 1 else None):
                    return await self._connect(place, address)
            except GuardError as error:
                problem = problem if isinstance(problem, GuardError) else error
            except OSError as error:
                # Who answers, but not securely, tells more than another address where nobody is (::1 of localhost).
                problem = problem if isinstance(problem, GuardError | InsecureError) else error
        assert problem is not None
        raise problem

    async def _connect(self, place: Place, address: str) -> Connection:
        loop = asyncio.get_running_loop()
        dialled = dialling_socket(self._allow, address)
        try:
            await loop.sock_connect(dialled, (address, place.port))
            if place.scheme != "https":
                return (await loop.create_connection(Connection, sock=dialled))[1]
            self._tls = self._tls or ssl.create_default_context()
            try:
                return (
                    await loop.create_connection(Connection, sock=dialled, ssl=self._tls, server_hostname=place.host)
                )[1]
            except (OSError, EOFError) as error:
                said = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
                raise InsecureError(said) from error
        except BaseException:
            dialled.close()
            raise

    def _sweep(self) -> None:
        self._sweep_timer = None
        loop = asyncio.get_running_loop()
        old = loop.time() - KEEPALIVE_SECONDS
        for place, kept in list(self._kept.items()):
            for connection in [c for c in kept if c.closed or c.idle_since <= old]:
                kept.remove(connection)
                self.drop(connection)
            if not kept:
                del self._kept[place]
        if self._kept:
            first = min(kept[0].idle_since for kept in self._kept.values())
            self._sweep_timer = loop.call_at(first + KEEPALIVE_SECONDS, self._sweep)

    def _require_open(self) -> None:
        if self._closed:
            raise EndpointDownError("the router was closed", hint="keep it open until the answer has come")


def dialling_socket(allow: AllowList, address: str) -> socket.socket:
    """A socket for ``address``, which is checked here, whoever found it.

    Raises:
        GuardError: it is not allowed.
    """
    allow.check_address(address)
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def system_resolve(host: str, port: int) -> list[str]:
    """The system's own resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in found))


async def dial_unix(path: str, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a process of this user, by its UNIX socket.

    Args:
        path: the socket's.
        limit: the longest line that is read from it, in bytes.

    Raises:
        OSError: nobody listens there, or another user does (``PermissionError``).
    """
    if sys.platform == "win32" or not HAS_UNIX_SOCKETS:
        raise OSError("this platform has no UNIX sockets")
    reader, writer = await asyncio.open_unix_connection(path, limit=limit)
    if not peer_is_us(writer.get_extra_info("socket")):
        writer.transport.abort()
        raise PermissionError(f"{path} is another user's")
    return reader, writer
