"""The second line: what any Python code of this process dials or looks up outside the allow-list is refused too.

The first line is ``dial.py``, which our own connections pass. This one is an audit hook of the interpreter (PEP 578),
which sees what libraries do with Python's own ``socket`` module. It does not see what libuv (uvloop's own
``create_connection``), other C code and children do, nor that a name given to ``socket.connect`` itself is looked up,
which happens before the event: those only the network stops (docs/security.md).
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from turnout.errors import GuardError, TurnoutError
from turnout.guard.allow import AllowList

OnRefusal: TypeAlias = Callable[[GuardError], None]
Check: TypeAlias = Callable[[AllowList, tuple[Any, ...]], None]

_INTERNET = (socket.AF_INET, socket.AF_INET6)
_LOCAL = tuple(getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG") if hasattr(socket, name))
_PACKET = getattr(socket, "AF_PACKET", -1)

log = logging.getLogger("turnout")


class SecondLineError(GuardError, PermissionError):
    """Refused by the audit hook: something in this process did not go through the guard. An OSError too, so that a
    library that was refused closes what it opened."""

    def __init__(self, message: str, *, target: str = "", hint: str = "") -> None:
        super().__init__(message, target=target, hint=hint)
        self.errno = errno.EACCES


# Replaced, never changed: other threads read it. An interpreter's hooks cannot be taken away again, so one stays.
_in_force: tuple[tuple[AllowList, OnRefusal], ...] = ()
_installed = False


@contextmanager
def second_line(allow: AllowList, on_refusal: OnRefusal) -> Iterator[None]:
    """Meanwhile the whole process reaches nothing but what ``allow`` holds, or another one that is in force.

    Args:
        allow: what may be dialled.
        on_refusal: told of every refusal, in the thread that was refused; the newest one in force is.
    """
    global _in_force, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    entry = (allow, on_refusal)
    _in_force = (*_in_force, entry)
    try:
        yield
    finally:
        _in_force = tuple(each for each in _in_force if each is not entry)


def _refusal(check: Check, allow: AllowList, arguments: tuple[Any, ...]) -> GuardError | None:
    try:
        check(allow, arguments)
    except GuardError as error:
        return error
    return None


def _tell(error: GuardError) -> None:
    try:
        _in_force[-1][1](error)
    except TurnoutError as problem:  # a log that cannot be written makes no refusal an acceptance
        log.error("%s", problem)


def _check_made(_: AllowList, arguments: tuple[Any, ...]) -> None:
    """A packet socket is sent on without an address, so it is refused when it is made."""
    if arguments[1] == _PACKET:
        raise GuardError("a packet socket bypasses every check", target="AF_PACKET")


def _check_sent(allow: AllowList, arguments: tuple[Any, ...]) -> None:
    used, address = arguments
    if address is None or used.family in _LOCAL:  # None: it is connected, which was checked
        return
    if used.family not in _INTERNET:
        raise GuardError(f"sockets of family {used.family} are not used here", target=str(used.family))
    if not _is_address(address[0]) and address[0] != "localhost":
        raise GuardError("a name is dialled, and nobody sees what it leads to", target=str(address[0])[:120])
    _check_host(allow, address[0])


def _check_looked_up(allow: AllowList, arguments: tuple[Any, ...]) -> None:
    host = arguments[0]
    if host is not None and not _is_address(host):
        _check_host(allow, host)


def _check_reverse(allow: AllowList, arguments: tuple[Any, ...]) -> None:
    host = arguments[0]
    _check_host(allow, host[0] if isinstance(host, tuple) else host)


def _check_host(allow: AllowList, host: object) -> None:
    text = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    if _is_address(text):
        allow.check_address(text)
    elif text not in ("", "localhost"):
        allow.check_host(text.lower())


def _is_address(host: object) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_WATCHED: dict[str, Check] = {
    "socket.__new__": _check_made,
    "socket.connect": _check_sent,
    "socket.sendto": _check_sent,
    "socket.sendmsg": _check_sent,
    "socket.getaddrinfo": _check_looked_up,
    "socket.gethostbyname": _check_looked_up,
    "socket.gethostbyaddr": _check_reverse,
    "socket.getnameinfo": _check_reverse,
}


def _hook(event: str, arguments: tuple[Any, ...], look_up: Callable[[str], Check | None] = _WATCHED.get) -> None:
    """Called by the interpreter for each of its events; nearly all of them end at this look-up.

    Its table is held here, because an interpreter that ends takes a module's names away and goes on calling.
    """
    check = look_up(event)
    if check is None or not _in_force:
        return
    refused: GuardError | None = None
    for allow, _ in _in_force:
        refused = _refusal(check, allow, arguments)
        if refused is None:
            return
    if refused is not None:
        _tell(refused)
        raise SecondLineError(f"second line: {refused.message}", target=refused.target, hint=refused.hint)
