"""Where we run, and which addresses lead to the host's servers (SPEC SVC-6; facts/services.md section 15)."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from turnout.config import RouterConfig

_PLATFORMS: dict[str, Literal["windows", "linux", "darwin"]] = {
    "Windows": "windows",
    "Linux": "linux",
    "Darwin": "darwin",
}
_LOOPBACK = "://127.0.0.1"


@dataclass(frozen=True, slots=True)
class HostInfo:
    """The machine.

    Attributes:
        wsl: inside the Windows Subsystem for Linux, not in a container there.
        wsl_networking: ``mirrored`` (127.0.0.1 reaches Windows too), ``nat`` (it is the subsystem's own), or "".
        container: what we run in, or "".
        gateway: the default gateway's IPv4 address where it may be the host (in a container, under WSL's NAT), or "".
    """

    platform: Literal["windows", "linux", "darwin"]
    release: str
    architecture: str
    wsl: bool = False
    wsl_networking: Literal["mirrored", "nat", ""] = ""
    container: Literal["docker", "podman", "kubernetes", ""] = ""
    gateway: str = ""


def detect_os(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> HostInfo:
    """Look at the environment and a few files; runs and dials nothing.

    Args:
        env: environment variables.
        root: the root directory to look under.
    """
    system = _PLATFORMS.get(platform.system(), "linux")
    container = _container(env, root)
    # A container inside the subsystem has Microsoft's kernel too, and the container's network.
    networking = "" if container or system != "linux" else _wsl_networking(env, root)
    gateway = _default_gateway(root) if container in ("docker", "podman") or networking == "nat" else ""
    return HostInfo(system, platform.release(), platform.machine(), bool(networking), networking, container, gateway)


def _default_gateway(root: Path) -> str:
    """From the kernel's routing table, whose addresses are hexadecimal in the machine's byte order."""
    try:
        lines = (root / "proc/net/route").read_text("ascii", "replace").splitlines()[1:]
    except OSError:
        return ""
    for fields in (line.split() for line in lines):
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            try:
                return str(IPv4Address(int(fields[2], 16).to_bytes(4, sys.byteorder)))
            except (ValueError, OverflowError):
                return ""
    return ""


def _container(env: Mapping[str, str], root: Path) -> Literal["docker", "podman", "kubernetes", ""]:
    if env.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if (root / "run/.containerenv").exists():
        return "podman"
    return "docker" if (root / ".dockerenv").exists() else ""


def _wsl_networking(env: Mapping[str, str], root: Path) -> Literal["mirrored", "nat", ""]:
    try:
        version = (root / "proc/version").read_text("utf-8", "replace").lower()
    except OSError:
        version = ""
    # The variable is missing under sudo and systemd, the kernel's name is not.
    if "microsoft" not in version and not env.get("WSL_DISTRO_NAME"):
        return ""
    # Only the mirrored mode has this interface; asking wslinfo would mean to run a command.
    return "mirrored" if (root / "sys/class/net/loopback0").exists() else "nat"


def loopback_only(config: RouterConfig, env: Mapping[str, str] = os.environ) -> bool:
    """Whether nothing beyond loopback may be looked for: no host of a container, no gateway, no scan, no beacon."""
    return bool(why_loopback_only(config, env))


def why_loopback_only(config: RouterConfig, env: Mapping[str, str] = os.environ) -> str:
    """The setting that says so, "" when there is none."""
    if config.discovery.loopback_only:
        return "discovery.loopback_only"
    return "TURNOUT_LOOPBACK_ONLY" if env.get("TURNOUT_LOOPBACK_ONLY") == "1" else ""


def on_loopback(host: HostInfo) -> HostInfo:
    """The machine as if nothing but its loopback led to a server (``discovery.loopback_only``)."""
    return replace(host, container="", gateway="")


def candidate_urls(url: str, host: HostInfo) -> tuple[str, ...]:
    """A default loopback URL, then what else may lead to a server of this machine; other URLs are not altered.

    Inside a container that is the host by its aliases (read from the hosts file, never asked of a DNS server) and the
    default gateway; under WSL's NAT the gateway. In a Kubernetes pod only the pod's own loopback is tried.
    """
    if _LOOPBACK not in url:
        return (url,)
    aliases = {
        "docker": ("host.docker.internal",),
        "podman": ("host.containers.internal", "host.docker.internal"),
    }.get(host.container, ())
    places = ("[::1]", *aliases, *((host.gateway,) if host.gateway else ()))
    return (url, *(url.replace("127.0.0.1", place) for place in places))
