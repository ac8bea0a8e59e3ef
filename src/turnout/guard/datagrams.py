"""The one place where datagrams are received. Nothing is ever sent from here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from turnout.errors import UsageError


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, heard: Callable[[bytes, str], None]) -> None:
        self._heard = heard
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._heard(data, str(addr[0]))


@asynccontextmanager
async def datagrams(port: int, heard: Callable[[bytes, str], None], host: str = "0.0.0.0") -> AsyncIterator[int]:  # noqa: S104 - broadcasts reach no other address
    """Hand every datagram that comes to ``port`` to ``heard``, with its sender's address; yields the port.

    Raises:
        UsageError: the port is taken.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, listener = await loop.create_datagram_endpoint(lambda: _Listener(heard), local_addr=(host, port))
    except OSError as error:
        raise UsageError(f"UDP port {port} cannot be listened on: {error.strerror or error}") from error
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await listener.closed.wait()
