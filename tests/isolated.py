"""Run a command where only loopback exists: ``python tests/isolated.py COMMAND ...``.

Enters a network namespace of its own (and a user namespace when not root), brings loopback up, and becomes the command.
Where the kernel refuses, it says so loudly and runs the command all the same; tests that need the namespace are then
skipped with that reason.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
SIOCSIFADDR, SIOCSIFNETMASK = 0x8916, 0x891C


def is_isolated() -> bool:
    """Only loopback exists here."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def enter() -> None:
    """Enter the namespace.

    Raises:
        OSError: the kernel refuses.
    """
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if uid == 0 and libc.unshare(CLONE_NEWNET) == 0:
        loopback_up()
        return
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    loopback_up()


def loopback_up() -> None:
    """Bring ``lo`` up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0) + b"\0" * 14
        flags = struct.unpack("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, request)[:18])[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP) + b"\0" * 14)


def add_address(address: str, alias: int) -> None:
    """Give loopback one more IPv4 address, so that a failing guard would really reach a listener there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = f"lo:{alias}".encode()
        for call, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.255")):
            body = struct.pack("16sH2s4s8s", name, socket.AF_INET, b"", socket.inet_aton(value), b"")
            fcntl.ioctl(control, call, body)


def main(command: list[str]) -> None:
    try:
        enter()
    except (OSError, AttributeError) as error:
        sys.stderr.write(f"NOT ISOLATED: the kernel allows no network namespace here ({error}); running as it is\n")
    sys.stderr.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
