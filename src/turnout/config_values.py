"""Configured values that have the right type and range and still make no sense, and those that are probably not meant.

Nothing is resolved or dialled here; whether an endpoint is on the allow-list is the guard's business.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import msgspec

from turnout.config import CustomEndpoint, RouterConfig, ServiceConfig
from turnout.config_agents import AGENT_ALIASES
from turnout.hidden import MASK
from turnout.types import Json, TaskCategory

KeyPath: TypeAlias = tuple[str, ...]
# Key path, what is wrong, what would be right.
Problem: TypeAlias = tuple[KeyPath, str, str]

# The languages that `code.language_servers` takes.
CODE_LANGUAGES = (
    "bash",
    "cpp",
    "csharp",
    "elixir",
    "go",
    "haskell",
    "java",
    "kotlin",
    "lua",
    "php",
    "python",
    "ruby",
    "rust",
    "scala",
    "swift",
    "typescript",
    "zig",
)
MAX_SCANNED = 256
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# The largest network of an air-gapped site, by IP version: 10.0.0.0/8 is the largest private one.
SHORTEST_PREFIX = {4: 8, 6: 7}
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_ENDPOINT_EXAMPLE = "for example http://127.0.0.1:11434"
# The owner's defaults that depend on the category (last lines of the owner's file).
TASK_DEFAULTS: dict[TaskCategory, dict[str, object]] = {
    TaskCategory.REASONING: {"min_context": 16_384},
    TaskCategory.ANALYSIS: {
        "min_context": 16_384,
        "require_serena": True,
        "fallback_models": ("codellama-34b-instruct", "qwen2.5-72b-instruct"),
    },
    TaskCategory.DOCUMENTATION: {"fallback_models": ("qwen2.5-32b-instruct", "mistral-nemo-12b")},
}


def impossible(config: RouterConfig, kinds: Mapping[str, str]) -> Iterator[Problem]:
    """Values that have the right type and range and still make no sense."""
    for kind, service in config.services.items():
        yield from _endpoint_problems(("services", kind), service)
    names: set[str] = set()
    for number, custom in enumerate(config.custom_endpoints):
        here = ("custom_endpoints", str(number))
        if not re.fullmatch(r"\w[\w. -]{0,63}", custom.name):
            yield (*here, "name"), f"{shown(custom.name)} is not a name", "letters, digits, . - _ space; at most 64"
        if custom.name in names or custom.name in kinds:
            whose = "a kind of service" if custom.name in kinds else "another endpoint"
            yield (*here, "name"), f"the name {custom.name!r} is taken by {whose}", "choose another name"
        names.add(custom.name)
        for key, value in (("chat_path", custom.chat_path), ("models_path", custom.models_path)):
            if value is not None and (not re.fullmatch(r"/[\w./~-]*", value, re.ASCII) or _climbs(value)):
                yield (*here, key), f"{shown(value)} is not a request path", "for example /v1/models"
        yield from _endpoint_problems(here, custom)
    context = config.context
    if context.compaction_target >= context.compaction_threshold:
        said = f"the target {context.compaction_target} is not below the threshold {context.compaction_threshold}"
        yield ("context", "compaction_target"), said, "for example 0.5 and 0.8"
    yield from _code_problems(config)
    for name, other in AGENT_ALIASES.items():
        if name in config.agents and other in config.agents:
            yield ("agents", other), f"{other} is the same agent as {name}", "put both into one section"
    yield from _gateway_problems(config)
    yield from _security_problems(config)
    yield from _scan_problems(config)


def _code_problems(config: RouterConfig) -> Iterator[Problem]:
    for name, command in config.code.language_servers.items():
        here = ("code", "language_servers", name)
        if name not in CODE_LANGUAGES:
            yield here, f"unknown language {shown(name)}", f"there are: {', '.join(CODE_LANGUAGES)}"
        elif command and not command[0].strip():
            yield here, "the program has no name", "for example [ty, server]"


def _gateway_problems(config: RouterConfig) -> Iterator[Problem]:
    host = config.gateway.host
    if host != "localhost" and (_network(host) is None or "/" in host):
        yield ("gateway", "host"), f"{shown(host)} is not an address of this host", "for example 127.0.0.1 or 0.0.0.0"
    tls = config.gateway.tls
    for given, missing in (("cert", "key"), ("key", "cert"), ("client_ca", "cert")):
        if getattr(tls, given) and not getattr(tls, missing):
            yield ("gateway", "tls", given), f"there is no {missing} that belongs to it", f"set gateway.tls.{missing}"
    for number, name in enumerate(config.gateway.hosts):
        if "/" in name or not _is_host(name):
            hint = "a name or an address, without scheme, port and wildcard"
            yield ("gateway", "hosts", str(number)), f"{shown(name)} is not a host", hint


def _scan_problems(config: RouterConfig) -> Iterator[Problem]:
    for number, text in enumerate(config.discovery.scan_cidrs):
        here = ("discovery", "scan_cidrs", str(number))
        network = _network(text)
        if network is None:
            yield here, f"{shown(text)} is not a network", _network_hint(text)
        elif network.num_addresses > MAX_SCANNED:
            yield here, f"{text} has {network.num_addresses:,} addresses", f"at most {MAX_SCANNED}, for example a /24"
    if config.discovery.inventory_key and not config.discovery.inventory:
        yield ("discovery", "inventory_key"), "there is no inventory that it could be the key of", "set inventory"


def _endpoint_problems(here: KeyPath, section: ServiceConfig | CustomEndpoint) -> Iterator[Problem]:
    if section.endpoint is not None:
        said, hint = _url_problem(section.endpoint)
        if said:
            yield (*here, "endpoint"), f"{shown(section.endpoint)} {said}", hint


def _url_problem(url: str) -> tuple[str, str]:
    """What is wrong with an endpoint's address, and the remedy; ("", "") when nothing is."""
    if url.startswith("unix:"):
        fine = url.startswith("unix:/") and not _climbs(url)
        return ("", "") if fine else ("is not the absolute path of a socket", "for example unix:/run/llama.sock")
    scheme, mark, _ = url.partition("://")
    if not mark:
        bare = re.fullmatch(r"[\w.-]+(:\d+)?(/[\w./-]*)?", url)
        return "has no http:// or https://", f"did you mean http://{url}?" if bare else _ENDPOINT_EXAMPLE
    if scheme not in ("http", "https"):
        return "is neither http://, https:// nor unix:", _ENDPOINT_EXAMPLE
    if not url.isascii() or any(c in url for c in ' \\<>"{}|^`'):
        return "has characters that no address has", _ENDPOINT_EXAMPLE
    if "@" in url:
        return "carries credentials", "use `key`"
    if "?" in url or "#" in url:
        return "has a query or fragment", "only host, port and path"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        said = "has a port that is none" if "ort" in str(error) else "has a malformed host"
        return said, "a port is 1 to 65535" if "port" in said else _ENDPOINT_EXAMPLE
    if not parts.hostname:
        return "has no host", _ENDPOINT_EXAMPLE
    if port == 0:
        return "has a port that is none", "a port is 1 to 65535"
    return ("climbs out with ..", "write the path out") if _climbs(parts.path) else ("", "")


def _climbs(path: str) -> bool:
    return ".." in re.split(r"[/:]", unquote(path))


def _security_problems(config: RouterConfig) -> Iterator[Problem]:
    security = config.security
    sealed = config.environment == "air-gapped"
    if sealed and security.allow_external:
        hint = "allow_external: false, or environment: internal"
        yield ("security", "allow_external"), "an air-gapped environment allows nothing external", hint
    for path, text in _networks(config):
        network = _network(text)
        if network is None:
            yield path, f"{shown(text)} is not a network", _network_hint(text)
        elif sealed and (said := _reaches_out(network)):
            said = f"{text} {said}, and an air-gapped environment allows nothing external"
            yield path, said, "for example 10.0.0.0/8, or environment: internal"
    for number, host in enumerate(security.allowed_hosts):
        if "/" not in host and not _is_host(host):
            hint = "a name, an address or a CIDR, without scheme, port and wildcard"
            yield ("security", "allowed_hosts", str(number)), f"{shown(host)} is not a host", hint
        elif "://" in host:
            yield (
                ("security", "allowed_hosts", str(number)),
                f"{shown(host)} is not a host",
                "without http:// and port",
            )


def _networks(config: RouterConfig) -> Iterator[tuple[KeyPath, str]]:
    for number, cidr in enumerate(config.security.allowed_cidrs):
        yield ("security", "allowed_cidrs", str(number)), cidr
    for number, host in enumerate(config.security.allowed_hosts):
        if "/" in host and "://" not in host:
            yield ("security", "allowed_hosts", str(number)), host


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _reaches_out(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """Why a network is more than a site's own, or "". Two halves of the internet are the internet."""
    if network.prefixlen == 0:
        return "is every address"
    shortest = SHORTEST_PREFIX[network.version]
    if network.prefixlen < shortest:
        return f"is too large (the shortest prefix is /{shortest})"
    return "is a public network" if network.is_global else ""


def _network_hint(text: str) -> str:
    try:
        return f"did you mean {ipaddress.ip_network(text, strict=False)}?"
    except ValueError:
        return "for example 192.168.0.0/16"


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        # A name whose last label is a number is read as an address by most resolvers.
        last = text.lower().rpartition(".")[2]
        return bool(_HOST.fullmatch(text.lower())) and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last)
    return True


def doubtful(config: RouterConfig, kinds: Mapping[str, str]) -> Iterator[tuple[KeyPath, str]]:
    """Key path and warning of what is allowed and probably not meant."""
    yield from _shared_addresses(config, kinds)
    for path, text in _networks(config):
        network = _network(text)
        if network is not None and not network.is_private:
            yield path, f"{text} is not a private network: addresses of the internet may be dialled"


def _shared_addresses(config: RouterConfig, kinds: Mapping[str, str]) -> Iterator[tuple[KeyPath, str]]:
    """Endpoints at an address that an earlier one has. Kinds that share a default port are told apart by discovery."""
    endpoints: list[tuple[KeyPath, str | None, bool]] = []
    endpoints += [(("custom_endpoints", str(n)), c.endpoint, False) for n, c in enumerate(config.custom_endpoints)]
    endpoints += [
        (("services", kind), service.endpoint, service.endpoint == kinds[kind])
        for kind, service in config.services.items()
        if service.enabled
    ]
    seen: dict[str, tuple[KeyPath, bool]] = {}
    for path, url, usual in endpoints:
        if not url:
            continue
        first, first_usual = seen.setdefault(url.rstrip("/"), (path, usual))
        if first != path and not (usual and first_usual):
            yield (*path, "endpoint"), f"the same address as {dotted(first)}, which is the one that is used"


def dotted(path: KeyPath) -> str:
    """A key path for people, one line whatever its keys are."""
    return ".".join(part if part.isprintable() and len(part) <= 64 else shown(part) for part in path)


def shown(value: object) -> str:
    """A value as a message may carry it: one short line, no credentials."""
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    if isinstance(value, str):
        masked = re.sub(r"//.*@", "//…@", value)
        return repr(masked if len(masked) <= 64 else f"{masked[:60]}…")
    return str(value)[:64] if isinstance(value, int | float) else f"a {type(value).__name__}"


def redacted(config: RouterConfig) -> dict[str, Json]:
    """The configuration as plain values, keys replaced by asterisks."""
    data: dict[str, Json] = msgspec.to_builtins(config)
    for section in (*dict(data["services"]).values(), *list(data["custom_endpoints"])):  # type: ignore[arg-type]
        if isinstance(section, dict) and section.get("key"):
            section["key"] = MASK
    return data
