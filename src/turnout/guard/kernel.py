"""What Linux tells of this machine's network without being asked over it: sockets, routes, counters. Read only.

Other systems have no ``/proc``: there everything is None, which means unknown and never "nothing".
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from turnout.guard.allow import Address, Network

_LISTEN, _UNCONNECTED = "0A", "07"
_REJECT = 0x200  # of a route: it leads nowhere
# What an organisation may use inside; RFC 1918, 4193, 3927, 4291, 6598.
INTERNAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(each)
    for each in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10",
        "fc00::/7", "fe80::/10", "::1/128", "ff00::/8", "224.0.0.0/4",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that waits for others; ``protocol`` is tcp or udp."""

    protocol: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where the kernel sends what goes to a network."""

    network: Network
    interface: str


def is_internal(network: Network | Address) -> bool:
    """Whether all of it is of private use, loopback or the link."""
    whole = ipaddress.ip_network(network)
    return any(whole.version == each.version and whole.subnet_of(each) for each in INTERNAL)  # type: ignore[arg-type]


def address_of(text: str) -> str:
    """An address of ``/proc/net``: the kernel prints each 32-bit word in the machine's byte order."""
    words = [bytes.fromhex(text[n : n + 8]) for n in range(0, len(text), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return str(ipaddress.ip_address(packed))


def listening(proc: Path = Path("/proc")) -> tuple[Listening, ...] | None:
    """Every socket of this network namespace that waits for others; None where the kernel does not tell."""
    tables = [(name, _rows(proc / "net" / name)) for name in ("tcp", "tcp6", "udp", "udp6")]
    if tables[0][1] is None:
        return None
    found = []
    for name, rows in tables:
        wanted = _LISTEN if name.startswith("tcp") else _UNCONNECTED
        for row in (row for row in (rows or [])[1:] if len(row) > 3 and row[3] == wanted):
            address, _, port = row[1].partition(":")
            found.append(Listening(name[:3], address_of(address), int(port, 16)))
    return tuple(sorted(set(found), key=lambda each: (each.protocol, each.port, each.address)))


def sent_packets(proc: Path = Path("/proc")) -> dict[str, int] | None:
    """Packets that each interface but loopback has sent since it was made; None where the kernel does not tell."""
    rows = _rows(proc / "net/dev")
    if rows is None:
        return None
    named = (" ".join(row).partition(":") for row in rows[2:])
    counts = {name.strip(): rest.split() for name, _, rest in named}
    return {name: int(numbers[9]) for name, numbers in counts.items() if name != "lo" and len(numbers) > 9}


def routes(proc: Path = Path("/proc")) -> tuple[Route, ...] | None:
    """The routes that lead to another machine; None where the kernel does not tell."""
    rows = _rows(proc / "net/route")
    if rows is None:
        return None
    return (*_routes4(rows[1:]), *_routes6(_rows(proc / "net/ipv6_route") or []))


def _routes4(rows: list[list[str]]) -> Iterator[Route]:
    for row in rows:
        if len(row) > 7 and not int(row[3], 16) & _REJECT and row[0] != "lo":
            yield Route(ipaddress.ip_network(f"{address_of(row[1])}/{address_of(row[7])}", strict=False), row[0])


def _routes6(rows: list[list[str]]) -> Iterator[Route]:
    for row in rows:
        if len(row) > 9 and not int(row[8], 16) & _REJECT and row[9] != "lo":
            network = ipaddress.IPv6Network((bytes.fromhex(row[0]), int(row[1], 16)), strict=False)
            yield Route(network, row[9])


def ways_out(proc: Path = Path("/proc")) -> tuple[Route, ...] | None:
    """The routes that lead beyond internal networks; empty when the kernel itself has no way out."""
    found = routes(proc)
    return None if found is None else tuple(route for route in found if not is_internal(route.network))


def ipv6_addresses(proc: Path = Path("/proc")) -> tuple[str, ...] | None:
    """IPv6 addresses beside loopback's, each with its interface; None where the kernel does not tell."""
    if _rows(proc / "net/dev") is None:
        return None
    rows = _rows(proc / "net/if_inet6") or []  # without IPv6 there is no such file
    return tuple(f"{ipaddress.IPv6Address(bytes.fromhex(row[0]))} ({row[5]})" for row in rows if row[5] != "lo")


def nameservers(file: Path = Path("/etc/resolv.conf")) -> tuple[str, ...] | None:
    """The DNS servers that the system's resolver asks; None when that is not known."""
    rows = _rows(file)
    if rows is None:
        return None
    return tuple(row[1] for row in rows if len(row) > 1 and row[0] == "nameserver")


def _rows(path: Path) -> list[list[str]] | None:
    try:
        return [line.split() for line in path.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return None
