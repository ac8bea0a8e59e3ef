"""Where we run, and which addresses lead to the host's servers (SPEC SVC-6; facts/services.md section 15)."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PLATFORMS: dict[str, Literal["windows", "linux", "darwin"]] = {
    "Windows": "windows",
    "Linux": "linux",
    "Darwin": "darwin",
}
_LOOPBACK = "://127.0.0.1"


@dataclass(frozen=True, slots=True)
class HostInfo:
    """The machine. ``wsl`` is "", "nat" or "mirrored"; ``container`` is "", "docker", "podman" or "kubernetes"."""

    platform: Literal["windows", "linux", "darwin"]
    release: str
    architecture: str
    wsl: str = ""
    container: str = ""


def detect_os(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> HostInfo:
    """Look at the environment and a few files; runs and dials nothing.

    Args:
        env: environment variables.
        root: the root directory to look under.
    """
    system = _PLATFORMS.get(platform.system(), "linux")
    container = _container(env, root)
    wsl = "" if container or system != "linux" else _wsl(env, root)
    return HostInfo(system, platform.release(), platform.machine(), wsl, container)


def _container(env: Mapping[str, str], root: Path) -> str:
    if env.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if (root / "run/.containerenv").exists():
        return "podman"
    return "docker" if (root / ".dockerenv").exists() else ""


def _wsl(env: Mapping[str, str], root: Path) -> str:
    try:
        version = (root / "proc/version").read_text("utf-8", "replace").lower()
    except OSError:
        version = ""
    if "microsoft" not in version and not env.get("WSL_DISTRO_NAME"):
        return ""
    return "mirrored" if "mirrored" in env.get("TURNOUT_WSL_NETWORKING", "") else "nat"


def candidate_urls(url: str, host: HostInfo) -> tuple[str, ...]:
    """A default loopback URL and, from inside a container, the aliases that reach the host. Others are not altered."""
    if _LOOPBACK not in url:
        return (url,)
    aliases = {
        "docker": ("host.docker.internal",),
        "podman": ("host.containers.internal", "host.docker.internal"),
    }.get(host.container, ())
    return (url, *(url.replace("127.0.0.1", alias) for alias in aliases))
