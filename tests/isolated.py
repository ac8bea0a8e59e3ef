"""Runs a command where only loopback exists, so that a test that goes wrong reaches nothing.

    python tests/isolated.py COMMAND...

A fresh network namespace is entered (and a user namespace where the user is not root), loopback is brought up, and the
command takes this process's place with ``TURNOUT_TEST_ISOLATED=1``. Where the kernel refuses, one loud line says so and
the command runs all the same with ``TURNOUT_TEST_ISOLATED=0``; the tests marked ``isolated`` are skipped then.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
RTM_NEWROUTE, RTM_DELROUTE = 24, 25


def is_isolated() -> bool:
    """Whether no interface but loopback is up."""
    if sys.platform != "linux":
        return False
    return not any(_flags(name) & IFF_UP for _, name in socket.if_nameindex() if name != "lo")


def lead_everywhere_home(*, undo: bool = False) -> None:
    """Make every address of the world one of this namespace's own: a listener here hears whatever is dialled anywhere.

    Raises:
        OSError: the kernel refuses, or this is not a namespace that ``isolated.py`` made.
    """
    if os.environ.get("TURNOUT_TEST_ISOLATED") != "1" or not is_isolated():
        raise OSError("only in a namespace of our own: run through tests/isolated.py")
    for family in (socket.AF_INET, socket.AF_INET6):
        _local_default_route(family, RTM_DELROUTE if undo else RTM_NEWROUTE)


def _local_default_route(family: int, what: int) -> None:
    """``ip route add local default dev lo`` by netlink: struct rtmsg and one RTA_OIF, table and type "local"."""
    scope_host, protocol_static, table_local, type_local = 254, 4, 255, 2
    body = struct.pack("=8BI", family, 0, 0, 0, table_local, protocol_static, scope_host, type_local, 0)
    body += struct.pack("=HHI", 8, 4, socket.if_nametoindex("lo"))
    request, acknowledge, create = 0x1, 0x4, 0x400
    header = struct.pack("=IHHII", 16 + len(body), what, request | acknowledge | create, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        code = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if code:
        raise OSError(-code, os.strerror(-code))


def _flags(interface: str) -> int:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH22x", interface.encode(), 0))
    return int(struct.unpack_from("=H", answer, 16)[0])


def _enter() -> None:
    """Move this process into the new namespaces.

    Raises:
        OSError: the kernel refuses.
    """
    import fcntl

    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if uid != 0 or libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWNET | CLONE_NEWUSER) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", "ascii")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _flags("lo") | IFF_UP))


def _why_not() -> str:
    """Why the namespaces cannot be entered, "" when they can. Tried in a child: half a way in has no way back."""
    if sys.platform != "linux":
        return f"no network namespaces on {sys.platform}"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter()
        except OSError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        reason = said.read()
    os.waitpid(child, 0)
    return reason


def main(command: list[str]) -> None:
    """Enter, then become ``command``."""
    if not command:
        sys.exit("usage: python tests/isolated.py COMMAND...")
    reason = _why_not()
    if reason:
        print(f"NOT ISOLATED: {reason}; the tests marked `isolated` will be skipped", file=sys.stderr, flush=True)
    else:
        _enter()
    os.environ["TURNOUT_TEST_ISOLATED"] = "0" if reason else "1"
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
