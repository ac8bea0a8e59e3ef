"""Servers that announce themselves by UDP broadcast: listened for when the configuration asks for it, never answered.

Lemonade sends ``{"service", "hostname", "url"}`` every two seconds to port 13305 (facts/services.md, section 16).
What a datagram says is only where to look: the address must be the sender's own and in the allow-list, and what is
there is found out by the ordinary probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from turnout.backends.base import json_object, text_of
from turnout.errors import GuardError
from turnout.fleet.discovery import FOUND_PRIORITY
from turnout.guard.allow import AllowList
from turnout.types import Endpoint

PORT = 13305
MAX_BYTES = 2048
MAX_HEARD = 64
SILENT_SECONDS = 60.0


def announced(datagram: bytes, sender: str, allow: AllowList) -> Endpoint | None:
    """The endpoint that a datagram announces, or None when it is none that may be looked at. Pure."""
    if len(datagram) > MAX_BYTES:
        return None
    url = text_of(json_object(datagram).get("url")).rstrip("/")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or parts.hostname != sender or parts.username or parts.query:
        return None
    host = f"[{sender}]" if ":" in sender else sender
    plain = f"{parts.scheme}://{host}" + (f":{port}" if port else "")
    try:
        allow.check_url(plain)
    except GuardError:
        return None
    return Endpoint("beacon", "", plain, priority=FOUND_PRIORITY)


class Heard:
    """What was announced of late. One writer: the listener."""

    def __init__(self, allow: AllowList, clock: Callable[[], float] = time.monotonic) -> None:
        self._allow, self._clock = allow, clock
        self._at: dict[str, float] = {}

    def hear(self, datagram: bytes, sender: str) -> bool:
        """Take a datagram in; more than ``MAX_HEARD`` different senders are not remembered.

        Returns:
            Whether it named an address that is not among ``endpoints`` already.
        """
        endpoint, now = announced(datagram, sender, self._allow), self._clock()
        if endpoint is None:
            return False
        if endpoint.url not in self._at and len(self._at) >= MAX_HEARD:
            self._forget(now)
        known = endpoint.url in self._at
        if known or len(self._at) < MAX_HEARD:
            self._at[endpoint.url] = now
        return not known and endpoint.url in self._at

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that were announced within the last minute."""
        self._forget(self._clock())
        return tuple(Endpoint("beacon", "", url, priority=FOUND_PRIORITY) for url in sorted(self._at))

    def _forget(self, now: float) -> None:
        self._at = {url: at for url, at in self._at.items() if now - at < SILENT_SECONDS}
