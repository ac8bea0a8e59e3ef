"""Who shows many wrong keys is not listened to for a while. Nobody guesses 256 bits: this is against noise, and so that
whoever watches the audit log sees that somebody tries.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from turnout.gateway.refusal import HttpError

MAX_WRONG, MINUTE = 20, 60.0  # so many wrong keys in so many seconds
LOCKED_SECONDS = 60.0
MAX_PEERS = 4096  # addresses that are remembered; the oldest goes
_V6_HOST_BITS = 64


class LockedOutError(HttpError):
    """Too many wrong keys came from there. ``begins``: from this one on."""

    def __init__(self, peer: str, seconds: float, *, begins: bool = False) -> None:
        wait = max(1, math.ceil(seconds))
        said = f"too many wrong keys came from {peer}"
        headers = {"Retry-After": str(wait)}
        super().__init__(503, said, hint=f"ask again in {wait} s, with a right one", headers=headers, code="locked_out")
        self.begins = begins


@dataclass(slots=True)
class _Peer:
    since: float
    wrong: int = 0
    locked_until: float = 0.0


class Lockout:
    """Wrong keys by the address they came from (of IPv6: its network of 64 bits), in this process.

    Who asks with a right key from another address never meets it, nor does who is at this machine: all that runs here
    shares one address, and a right key counts there whatever others try.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._peers: dict[str, _Peer] = {}

    def require_open(self, address: str) -> None:
        """Before a key is looked at.

        Raises:
            LockedOutError: nobody is listened to there.
        """
        if self._peers and not _is_loopback(address):
            self._require(address)

    def count(self, address: str) -> None:
        """A wrong key came from there.

        Raises:
            LockedOutError: it was one too many.
        """
        self._require(address)
        network, now = _network(address), self._clock()
        peer = self._peers.get(network)
        if peer is None or now - peer.since >= MINUTE:
            self._peers.pop(network, None)
            if len(self._peers) >= MAX_PEERS:
                del self._peers[next(iter(self._peers))]
            peer = self._peers[network] = _Peer(now)
        peer.wrong += 1
        if peer.wrong >= MAX_WRONG:
            peer.since, peer.wrong, peer.locked_until = now, 0, now + LOCKED_SECONDS
            raise LockedOutError(address, LOCKED_SECONDS, begins=True)

    def _require(self, address: str) -> None:
        peer = self._peers.get(_network(address))
        left = peer.locked_until - self._clock() if peer is not None else 0.0
        if left > 0:
            raise LockedOutError(address, left)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "")


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(whole) >> _V6_HOST_BITS << _V6_HOST_BITS, 128 - _V6_HOST_BITS)))
