"""The one place where Turnout listens: an address of this machine, taken at once or refused in a sentence."""

from __future__ import annotations

import os
import socket

from turnout.errors import ListenError


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; connections wait in it until somebody serves them.

    Args:
        host: an address literal, or ``localhost`` for 127.0.0.1.
        port: 0 takes a free one.

    Raises:
        ListenError: the port is in use, or this user or machine may not listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # The module's own strerror has the address once more.
        said = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(
            f"the gateway cannot listen on {host}:{port}: {said}", hint="choose another --port"
        ) from error
