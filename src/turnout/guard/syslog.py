"""Copies of audit lines to the syslog of this machine, over its local socket: nothing crosses a network."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

_PRIORITY = b"<110>turnout: "  # facility 13, log audit; severity 6, informational (RFC 5424, section 6.2.1)

log = logging.getLogger("turnout")


class LocalSyslog:
    """A way to a syslog socket. A copy that cannot be sent is dropped, and said once: the log itself has the line."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._silent = False

    def send(self, data: bytes) -> None:
        """Send whole lines, each as a message; never waits."""
        if sys.platform == "win32":
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._socket.connect(str(Path(self._path)))
            for line in data.splitlines():
                self._socket.send(_PRIORITY + line)
            self._silent = False
        except OSError as error:
            self.close()
            if not self._silent:
                log.warning("audit lines are not copied to %s: %s", self._path, error.strerror or error)
            self._silent = True

    def close(self) -> None:
        """Close the socket; the next line opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
