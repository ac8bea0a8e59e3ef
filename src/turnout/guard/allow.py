"""What may be dialled. Pure: a URL is read strictly, a name must be listed before it is resolved, and the address that
is really dialled must be loopback or in an allowed network (SPEC SEC-1, SEC-2)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from turnout.config import SecurityConfig
from turnout.errors import GuardError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Container engines write these into the hosts file; a DNS server is never asked for them (SPEC SVC-6).
HOSTS_FILE_NAMES = frozenset({"host.docker.internal", "host.containers.internal", "gateway.docker.internal"})
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z")
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)\Z")
_NUMBERISH = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*\Z")
_EMBEDDING = tuple(
    ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
)


@dataclass(frozen=True, slots=True)
class Target:
    """A destination that was read and allowed. ``path`` is a URL path, or the socket's for ``unix``."""

    scheme: Literal["http", "https", "unix"]
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class AllowList:
    """Names, single addresses and networks that may be dialled; loopback always may."""

    names: frozenset[str] = frozenset()
    addresses: frozenset[Address] = frozenset()
    networks: tuple[Network, ...] = ()
    allow_external: bool = False
    hosts_file: Path = field(default=Path("/etc/hosts"))

    @classmethod
    def from_config(cls, security: SecurityConfig) -> AllowList:
        """Read ``allowed_hosts`` (names, addresses or CIDRs) and ``allowed_cidrs``."""
        names: set[str] = {"localhost"}
        addresses: set[Address] = set()
        networks: list[Network] = [ipaddress.ip_network(cidr, strict=False) for cidr in security.allowed_cidrs]
        for entry in security.allowed_hosts:
            try:
                if "/" in entry:
                    networks.append(ipaddress.ip_network(entry, strict=False))
                else:
                    addresses.add(ipaddress.ip_address(entry.strip("[]")))
            except ValueError:
                names.add(entry.lower())
        return cls(frozenset(names), frozenset(addresses), tuple(networks), security.allow_external)

    def check_url(self, url: str) -> Target:
        """Read a URL strictly and check its host, before anything is resolved.

        Raises:
            GuardError: it is malformed, disguised, or its host is not on the list; the hint is the line to add.
        """
        if url.startswith("unix:"):
            return _socket_target(url)
        shown = _shown(url)
        match = _URL.match(url) if url.isascii() and url.isprintable() and " " not in url and "\\" not in url else None
        if match is None:
            raise GuardError(f"{shown} is not a plain http, https or unix address", target=shown)
        scheme, authority, path = match.groups()
        if "@" in authority:
            raise GuardError(f"{shown} carries credentials", target=shown, hint="use the endpoint's `key` instead")
        host, port = _host_and_port(authority.lower(), shown, 443 if scheme == "https" else 80)
        self.check_host(host)
        return Target("https" if scheme == "https" else "http", host, port, path)

    def check_host(self, host: str) -> None:
        """Check a name or address literal as it stands in a URL (IPv6 without brackets).

        Raises:
            GuardError: it is disguised, or not on the list.
        """
        if ":" in host:
            self.check_address(host)
            return
        if _NUMBERISH.match(host):
            if not _is_canonical(host):
                raise GuardError(
                    f"{host} is an address in disguise", target=host, hint="write it as four plain numbers"
                )
            self.check_address(host)
            return
        if not _NAME.match(host):
            raise GuardError(f"{_shown(host)!r} is not a host name", target=_shown(host))
        if host not in self.names and not self.allow_external:
            raise GuardError(
                f"{host} is not on the allow-list, so it was not even resolved",
                target=host,
                hint=f'to allow it: security.allowed_hosts: ["{host}"], and its network in security.allowed_cidrs',
            )

    def check_address(self, text: str) -> None:
        """Check the address that is about to be dialled, whatever name led to it.

        Raises:
            GuardError: it is outside loopback and the allowed networks.
        """
        reason = self._reason_against(text)
        if reason:
            raise GuardError(
                f"{_shown(text)} {reason}",
                target=_shown(text),
                hint=f'to allow it: security.allowed_hosts: ["{_shown(text)}"]',
            )

    def _reason_against(self, text: str) -> str:
        try:
            address: Address = ipaddress.ip_address(text)
        except ValueError:
            return "is not an IP address"
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id:
                return "names a network interface"
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
        return self._reason_against_address(address)

    def _reason_against_address(self, address: Address) -> str:
        if address.is_loopback or address in self.addresses:
            return ""
        if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
            return "is no host's address"
        if any(address.version == network.version and address in network for network in self.networks):
            return ""
        if address.is_link_local:
            return "is link-local (cloud metadata lives there)"
        if any(address.version == n.version and address in n for n in _EMBEDDING):
            return "hides an IPv4 address"
        return "" if self.allow_external else "is outside the allowed networks"

    def hosts_file_addresses(self, name: str) -> tuple[str, ...]:
        """Addresses that the hosts file gives for a container alias."""
        try:
            lines = self.hosts_file.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ()
        fields = [line.split("#", 1)[0].split() for line in lines]
        return tuple(row[0] for row in fields if name in (alias.lower() for alias in row[1:]))


def _socket_target(url: str) -> Target:
    path = url.removeprefix("unix:")
    if not path.startswith("/") or "\x00" in path or "/../" in path or not path.isprintable():
        raise GuardError(f"{_shown(url)} is not the absolute path of a socket", target=_shown(url))
    return Target("unix", "", 0, path)


def _host_and_port(authority: str, shown: str, default: int) -> tuple[str, int]:
    host, colon, port = authority, "", ""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host or "%" in host:
            raise GuardError(f"{shown} has a malformed IPv6 address", target=shown)
        colon, port = rest[:1], rest[1:]
    elif ":" in authority:
        host, colon, port = authority.partition(":")
    if not host or host.endswith(".") or (colon and not (port.isdecimal() and 0 < int(port[:6]) < 65536)):
        raise GuardError(f"{shown} has a malformed host or port", target=shown)
    return host, int(port) if port else default


@lru_cache(maxsize=256)
def _is_canonical(host: str) -> bool:
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False


def _shown(text: str) -> str:
    """A destination as it may be printed: no credentials, no control characters, not endless."""
    text = re.sub(r"//[^/?#]*@", "//…@", text)
    return "".join(c if c.isprintable() else "?" for c in text[:120])
