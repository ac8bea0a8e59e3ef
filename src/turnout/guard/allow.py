"""What may be dialled. A URL is read strictly, a name must be listed before it is resolved, and the address that is
really dialled must be loopback or in an allowed network (SPEC SEC-1, SEC-2)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from turnout.config import SecurityConfig
from turnout.errors import ConfigError, GuardError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Container engines write these into the hosts file; a DNS server is never asked for them (SPEC SVC-6).
HOSTS_FILE_NAMES = frozenset({"host.docker.internal", "host.containers.internal", "gateway.docker.internal"})
MAX_URL_CHARS = 2048

_URL = re.compile(r"(https?)://([^/?]*)([^\\# ]*)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
# A host whose last label is a number is an address to most resolvers, whatever stands before it.
_NUMBER_LAST = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

# Never a wide network's business: only the very address, or a network within the range, opens these.
_SPECIAL: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "means no particular host: write 127.0.0.1 for this machine"),
        ("::/128", "means no particular host: write [::1] for this machine"),
        ("224.0.0.0/4", "is a multicast address"),
        ("ff00::/8", "is a multicast address"),
        ("255.255.255.255/32", "is the broadcast address"),
        ("169.254.0.0/16", "is link-local, where cloud metadata is served"),
        ("fe80::/10", "is link-local"),
        ("fd00:ec2::254/128", "is a cloud metadata service"),
        ("::/96", "hides an IPv4 address (IPv4-compatible)"),
        ("::ffff:0:0:0/96", "hides an IPv4 address (translated)"),
        ("64:ff9b::/96", "hides an IPv4 address (NAT64)"),
        ("64:ff9b:1::/48", "hides an IPv4 address (NAT64)"),
        ("2002::/16", "hides an IPv4 address (6to4)"),
        ("2001::/32", "hides an IPv4 address (Teredo)"),
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """A destination that was read and allowed.

    Attributes:
        host: lower-case name or address, IPv6 without brackets; "" for ``unix``.
        port: 0 for ``unix``.
        path: the request path with its query, or "".
        socket_path: the socket's absolute path for ``unix``, else "".
    """

    scheme: Literal["http", "https", "unix"]
    host: str
    port: int
    path: str
    socket_path: str = ""


@dataclass(frozen=True, slots=True)
class AllowList:
    """What may be dialled; loopback always may.

    Attributes:
        names: host names, lower-case, matched whole. A listed name must still lead to an allowed address.
        addresses: single addresses.
        networks: networks.
        allow_external: any name and any ordinary address may be dialled; disguises stay refused.
        hosts_file: where the container engines' names for the host are looked up.
    """

    names: frozenset[str] = frozenset({"localhost"})
    addresses: frozenset[Address] = frozenset()
    networks: tuple[Network, ...] = ()
    allow_external: bool = False
    hosts_file: Path = Path("/etc/hosts")

    @classmethod
    def from_config(cls, security: SecurityConfig, loopback_only: bool = False) -> AllowList:
        """The allow-list of a configuration: ``allowed_hosts`` (names, addresses or CIDRs) and ``allowed_cidrs``.

        Args:
            security: the section.
            loopback_only: allow this machine and nothing else, whatever the section says.

        Raises:
            ConfigError: an entry is none of these.
        """
        if loopback_only:
            return cls()
        names: set[str] = {"localhost"}
        addresses: set[Address] = set()
        networks = [_network(cidr, f"security.allowed_cidrs[{i}]") for i, cidr in enumerate(security.allowed_cidrs)]
        for i, entry in enumerate(security.allowed_hosts):
            key = f"security.allowed_hosts[{i}]"
            if "/" in entry:
                networks.append(_network(entry, key))
            elif address := _address(entry.strip("[]")):
                addresses.add(address)
            elif _NAME.fullmatch(entry.lower()) and not _NUMBER_LAST.fullmatch(entry.lower()):
                names.add(entry.lower())
            else:
                hint = 'write it like "gpu1.lan", "10.1.2.3" or "10.1.0.0/16", without scheme and port'
                raise ConfigError(f"{_shown(entry)!r} is not a name, address or CIDR", key=key, hint=hint)
        return cls(frozenset(names), frozenset(addresses), tuple(networks), security.allow_external)

    def check_url(self, url: str) -> Target:
        """Read a URL strictly and check its host, before anything is resolved.

        Args:
            url: ``http://...``, ``https://...``, ``unix:/socket`` or ``unix:/socket:/request/path``.

        Raises:
            GuardError: it is malformed, disguised, or its host is not on the list; the hint is the line to add.
        """
        if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable():
            raise _refusal(url, "is too long, or holds characters that no address has")
        if url.startswith("unix:"):
            return _socket_target(url)
        match = _URL.fullmatch(url)
        if match is None:
            raise _refusal(url, "is not a plain http, https or unix address")
        scheme, authority, path = match.groups()
        if "@" in authority:
            raise _refusal(url, "carries credentials", "set the endpoint's `key` instead")
        host, port = _host_and_port(authority.lower(), url)
        self.check_host(host)
        if scheme == "https":
            return Target("https", host, port or 443, path)
        return Target("http", host, port or 80, path)

    def check_host(self, host: str) -> None:
        """Check a lower-case name or address literal (IPv6 without brackets) as it stands in a URL.

        Raises:
            GuardError: it is disguised, or not on the list.
        """
        if ":" not in host and not _NAME.fullmatch(host):
            raise _refusal(host, "is not a host name")
        if ":" in host or _NUMBER_LAST.fullmatch(host):
            _require_canonical(host)
            self.check_address(host)
            return
        if host not in self.names and not self.allow_external:
            raise _refusal(host, "is not on the allow-list, so it was not even resolved", _line_to_add(host))

    def check_address(self, ip: str, name: str = "") -> None:
        """Check the address that is about to be dialled.

        Args:
            ip: the address as the resolver or the socket layer has it.
            name: the name that led to it, for the message.

        Raises:
            GuardError: it is outside loopback and the allowed networks.
        """
        address = _address(ip)
        said = f"{name} leads to {_shown(ip)}, which" if name else ""
        if address is None:
            raise _refusal(ip, "is not an IP address", said=said)
        if address.is_loopback or address in self.addresses:
            return
        special = next((entry for entry in _SPECIAL if address in entry[0]), None)
        if special is not None:
            if not any(address in network and _within(network, special[0]) for network in self.networks):
                raise _refusal(ip, special[1], said=said)
            return
        if not self.allow_external and not any(address in network for network in self.networks):
            raise _refusal(ip, "is outside the allowed networks", _line_to_add(str(address)), said=said)

    def hosts_file_addresses(self, name: str) -> tuple[str, ...]:
        """The addresses that the hosts file gives for a lower-case name; empty when it has none or cannot be read."""
        try:
            lines = self.hosts_file.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ()
        rows = [line.split("#", 1)[0].lower().split() for line in lines]
        return tuple(row[0] for row in rows if name in row[1:])


def _address(text: str) -> Address | None:
    """The address in ``text``, without zone, an IPv4-mapped one as the IPv4 address that it stands for."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


def _network(text: str, key: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{_shown(text)!r} is not a CIDR", key=key, hint='write it like "10.1.0.0/16"') from None


def _within(network: Network, other: Network) -> bool:
    return network.network_address in other and network.prefixlen >= other.prefixlen


def _socket_target(url: str) -> Target:
    socket_path, colon, path = url.removeprefix("unix:").partition(":")
    if not socket_path.startswith("/") or "/../" in f"{socket_path}/" or (colon and not path.startswith("/")):
        raise _refusal(url, "is not the absolute path of a socket", "write it like unix:/run/llama.sock")
    if any(c in path for c in " \\#"):
        raise _refusal(url, "has a malformed request path")
    return Target("unix", "", 0, path, socket_path)


def _host_and_port(authority: str, url: str) -> tuple[str, int]:
    """Host (IPv6 without brackets) and port, 0 when there is none."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or ":" not in host or "%" in host:
            raise _refusal(url, "has a malformed IPv6 address, or names an interface")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = authority.partition(":")
        rest = colon + port
    if rest and (colon != ":" or not _PORT.fullmatch(port) or int(port) > 65535):
        raise _refusal(url, "has a malformed port")
    if not host or host.endswith("."):
        raise _refusal(url, "ends its host name with a dot" if host else "has no host")
    return host, int(port) if port else 0


def _require_canonical(host: str) -> None:
    """Refuse the spellings of an address that programs read differently."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise _refusal(host, _disguise(host), "write four plain decimal numbers, like 127.0.0.1") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        raise _refusal(host, "is an IPv4 address in disguise (IPv4-mapped)", f"write {address.ipv4_mapped}")
    if str(address) != host:
        raise _refusal(host, "is not written in the short canonical form", f"write [{address}]")


def _disguise(host: str) -> str:
    parts = host.split(".")
    if ":" in host:
        return "is not an IPv6 address"
    if any(part.startswith("0x") for part in parts):
        return "is an address in disguise (hexadecimal)"
    if any(part.startswith("0") and part != "0" for part in parts):
        return "is an address in disguise (leading zeros, which some programs read as octal)"
    if len(parts) == 1:
        return "is an address in disguise (one decimal number)"
    if len(parts) < 4 and all(part.isdecimal() for part in parts):
        return "is an address in disguise (shortened)"
    return "ends like an IPv4 address and is none"


def _line_to_add(host: str) -> str:
    return f'to allow it, add to the configuration: security.allowed_hosts: ["{host}"]'


def _refusal(target: str, reason: str, hint: str = "", *, said: str = "") -> GuardError:
    shown = _shown(target)
    return GuardError(f"{said or shown or 'an empty address'} {reason}", target=shown, hint=hint)


def _shown(text: str) -> str:
    """A destination as it may be printed: no credentials, no control characters, not endless."""
    head, at, tail = text.rpartition("@")
    if at:
        text = f"{head.partition(':')[0]}:…@{tail}"
    return "".join(c if c.isprintable() else "?" for c in text[:120])
