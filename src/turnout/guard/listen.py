"""The one place where Turnout listens: an address of this machine, taken at once or refused in a sentence."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Protocol

from turnout.errors import ListenError

HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX")
_BACKLOG = 256


class _Connected(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


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


def listen_unix(path: Path) -> socket.socket:
    """A listening UNIX socket for this user alone, in the place of one that is there: whoever connects by its name
    meets the old one or the new one.

    Raises:
        OSError: it cannot be made there, or what is there is no socket.
    """
    if os.path.lexists(path) and not path.is_socket():
        raise FileExistsError(f"{path} is there and is no socket")
    fresh = path.with_name(f".{path.stem[:6]}{os.getpid()}")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fresh.unlink(missing_ok=True)
        before = os.umask(0o077)
        try:
            made.bind(str(fresh))
        finally:
            os.umask(before)
        made.listen(_BACKLOG)
        made.setblocking(False)
        fresh.replace(path)
    except BaseException:
        made.close()
        fresh.unlink(missing_ok=True)
        raise
    return made


def peer_is_us(connected: _Connected) -> bool:
    """Whether a process of this user is at the other end of a UNIX socket; where the system does not tell, the mode of
    its directory is what keeps others away."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    told = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", told)[1] == os.getuid())
