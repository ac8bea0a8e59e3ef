"""What a proof records beside its canaries: which code ran, and what the machine's network looked like."""

from __future__ import annotations

import hashlib
import platform
import site
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from turnout.guard import kernel
from turnout.types import Json

_HOOKS = ("sitecustomize", "usercustomize")  # what Python imports at each start, if it is there


def installation() -> dict[str, Json]:
    """Python, every installed package with the SHA-256 of its RECORD (which holds those of its files), and what runs by
    itself when Python starts."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": [*_packages(distributions())],
        "pth": [*_pth_files(_site_folders())],
        "start_hooks": [name for name in _HOOKS if name in sys.modules],
    }


def network() -> dict[str, Json]:
    """Listening sockets, routes, DNS servers, IPv6 addresses; null where the system does not tell."""
    sockets, routes = kernel.listening(), kernel.routes()
    servers, addresses = kernel.nameservers(), kernel.ipv6_addresses()
    return {
        "listening": None if sockets is None else [f"{s.protocol} {_shown(s.address)}:{s.port}" for s in sockets],
        "routes": None if routes is None else [f"{r.network} by {r.interface}" for r in routes],
        "nameservers": None if servers is None else [*servers],
        "ipv6_addresses": None if addresses is None else [*addresses],
    }


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _packages(found: Iterable[Distribution]) -> list[dict[str, Json]]:
    rows: dict[tuple[str, str], dict[str, Json]] = {}
    for each in found:
        name, version = str(each.metadata["Name"] or ""), each.version
        record = each.read_text("RECORD")
        digest = hashlib.sha256(record.encode("utf-8", "surrogateescape")).hexdigest() if record else None
        rows.setdefault((name.lower(), version), {"name": name, "version": version, "record_sha256": digest})
    return [rows[key] for key in sorted(rows)]


def _site_folders() -> list[Path]:
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [Path(folder) for folder in dict.fromkeys(folders)]


def _pth_files(folders: Iterable[Path]) -> list[dict[str, Json]]:
    """``runs_code``: it has a line that Python executes at each start."""
    rows: list[dict[str, Json]] = []
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.pth")):
        content = path.read_bytes()
        runs = any(line.startswith((b"import ", b"import\t")) for line in content.splitlines())
        rows.append({"file": str(path), "sha256": hashlib.sha256(content).hexdigest(), "runs_code": runs})
    return rows
