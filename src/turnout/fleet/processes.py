"""Which process listens on which port here, and who started it: from ``/proc``, read only, in our own namespace.

Linux alone tells. Other users' processes are hidden from us, so an absent answer means nothing.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Collection
from pathlib import Path

LISTEN = "0A"
MAX_ANCESTORS = 32

Owners = dict[tuple[str, int], tuple[int, ...]]


def listeners(ports: Collection[int], proc: Path = Path("/proc")) -> Owners:
    """For every listening ``(address, port)`` of these ports: its process, then the ancestors of that, nearest first.

    Args:
        ports: those that matter; only their sockets are looked for.
        proc: where the process tree is.
    """
    wanted = _listening_inodes(ports, proc)
    if not wanted:
        return {}
    owners: Owners = {}
    for pid in _pids(proc):
        for inode in _socket_inodes(proc / str(pid), set(wanted)):
            for place in wanted.pop(inode):
                owners[place] = (pid, *_ancestors(pid, proc))
        if not wanted:
            break
    return owners


def own_addresses(proc: Path = Path("/proc")) -> frozenset[str]:
    """This machine's addresses beyond loopback; empty where ``/proc`` does not tell."""
    return frozenset(_ipv4_addresses(proc) | _ipv6_addresses(proc))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _listening_inodes(ports: Collection[int], proc: Path) -> dict[str, list[tuple[str, int]]]:
    """Socket inode -> the places it listens at (proc(5), /proc/net/tcp)."""
    found: dict[str, list[tuple[str, int]]] = {}
    for table in ("net/tcp", "net/tcp6"):
        for line in _read(proc / table).splitlines()[1:]:
            columns = line.split()
            if len(columns) < 10 or columns[3] != LISTEN:
                continue
            address, _, port = columns[1].partition(":")
            if int(port, 16) in ports:
                found.setdefault(columns[9], []).append((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """The kernel prints each 32-bit word of an address in the machine's byte order."""
    words = [bytes.fromhex(text[n : n + 8]) for n in range(0, len(text), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return str(ipaddress.ip_address(packed))


def _pids(proc: Path) -> list[int]:
    try:
        return sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())
    except OSError:
        return []


def _socket_inodes(process: Path, wanted: set[str]) -> set[str]:
    found: set[str] = set()
    try:
        for entry in (process / "fd").iterdir():
            link = str(entry.readlink())
            if link.startswith("socket:["):
                found.add(link[8:-1])
    except OSError:
        pass  # it ended, or it is another user's: then nothing is known of it
    return found & wanted


def _ancestors(pid: int, proc: Path) -> tuple[int, ...]:
    found: list[int] = []
    while len(found) < MAX_ANCESTORS:
        # "pid (name) state parent ...": the name may hold spaces and parentheses.
        fields = _read(proc / str(pid) / "stat").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
        if pid <= 1:
            break
        found.append(pid)
    return tuple(found)


def _ipv4_addresses(proc: Path) -> set[str]:
    found: set[str] = set()
    address = ""
    for line in _read(proc / "net/fib_trie").splitlines():
        words = line.split()
        if words[:1] == ["|--"] and len(words) > 1:
            address = words[1]
        elif words[:2] == ["/32", "host"] and words[2:3] == ["LOCAL"] and not address.startswith("127."):
            found.add(address)
    return found


def _ipv6_addresses(proc: Path) -> set[str]:
    rows = (line.split() for line in _read(proc / "net/if_inet6").splitlines())
    addresses = (ipaddress.IPv6Address(bytes.fromhex(row[0])) for row in rows if row)
    return {str(address) for address in addresses if not address.is_loopback and not address.is_link_local}
