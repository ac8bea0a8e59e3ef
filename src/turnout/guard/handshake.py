"""TLS before anything else: a connection is one of the gateway's only once its handshake is over.

The event loop itself keeps every connection that says nothing for a minute, each with a descriptor, and counts none: a
thousand of them, from somebody with neither key nor certificate, would leave no descriptor for anybody else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

MAX_WAITING = 512  # handshakes at the same time; one more ends the oldest: an honest one is over in milliseconds
PAUSE_SECONDS = 0.1  # when no connection can be taken, as when every descriptor is in use
_CERTIFICATE = ("CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE")

log = logging.getLogger("turnout")


class Greeter:
    """Takes connections, and hands over those whose handshake is over.

    Args:
        tls: what is listened with.
        seconds: that a handshake may take.
        make: the protocol of a connection.
        refused: told the address of whoever has no certificate that is wanted, and why.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        seconds: float,
        make: Callable[[], asyncio.Protocol],
        refused: Callable[[str, str], None],
    ) -> None:
        self._tls, self._seconds, self._make, self._refused = tls, seconds, make, refused
        self._waiting: dict[asyncio.Task[None], None] = {}

    async def run(self, listener: socket.socket) -> None:
        """Take connections until cancelled; those that wait are ended then, and the listener is closed."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    taken, peer = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("a connection cannot be taken: %s", error.strerror or error)
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                self._greet(taken, str(peer[0]))
        finally:
            for task in self._waiting:
                task.cancel()
            await asyncio.gather(*self._waiting, return_exceptions=True)
            listener.close()

    def _greet(self, taken: socket.socket, peer: str) -> None:
        if len(self._waiting) >= MAX_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._handshake(taken, peer))
        self._waiting[task] = None
        task.add_done_callback(lambda done: self._waiting.pop(done, None))

    async def _handshake(self, taken: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._make, taken, ssl=self._tls, ssl_handshake_timeout=self._seconds)
        except OSError as error:  # also SSLError and TimeoutError
            taken.close()
            self._tell(peer, error)
        except BaseException:
            taken.close()
            raise

    def _tell(self, peer: str, error: OSError) -> None:
        reason = str(getattr(error, "reason", None) or "")
        if reason in _CERTIFICATE:
            more = getattr(error, "verify_message", "")
            self._refused(peer, f"{reason}{': ' if more else ''}{more}".replace("_", " ").lower())
