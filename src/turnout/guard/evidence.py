"""What a proof records beside its canaries: which code ran, and what the machine's network looked like."""

from __future__ import annotations

import hashlib
import os
import platform
import site
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from turnout.files import only_regular
from turnout.guard import kernel
from turnout.types import Json

_HOOKS = ("sitecustomize", "usercustomize")  # what Python imports at each start, if it is there
_STEER = ("PYTHON", "LD_", "DYLD_")  # begin the names of variables that decide which code is loaded
_HASHES = ("sha256", "sha384", "sha512")
MAX_CHANGED = 20  # files of a package that are named


def installation() -> dict[str, Json]:
    """Python, every installed package with the SHA-256 of its RECORD, the files that are not as it says, Turnout's own
    code, which variables decide what is loaded, and what runs by itself when Python starts."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": [*_packages(distributions())],
        "pth": [*_pth_files(_site_folders())],
        "start_hooks": [*_start_hooks()],
        "variables": [*sorted(name for name in os.environ if name.startswith(_STEER))],
        "code_sha256": _code(Path(__file__).parents[1]),
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
        key = name.lower(), version
        if key not in rows:
            changed: list[Json] = [*_changed(each)[:MAX_CHANGED]]
            rows[key] = {"name": name, "version": version, "record_sha256": digest, "changed": changed}
    return [rows[key] for key in sorted(rows)]


def _changed(package: Distribution) -> list[str]:
    """The files of a package that are not there, or not as its RECORD says."""
    found = []
    for file in package.files or ():
        if file.hash is None or file.hash.mode not in _HASHES:
            continue
        digest = _digest(Path(str(file.locate())), file.hash.mode)
        if digest is None or urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            found.append(str(file))
    return found


def _digest(path: Path, mode: str = "sha256") -> bytes | None:
    try:
        with open(path, "rb", opener=only_regular) as file:
            return hashlib.file_digest(file, mode).digest()
    except (OSError, ValueError):
        return None


def _code(folder: Path) -> str:
    """The SHA-256 of the list that ``sha256sum`` would write of a folder's Python files, in the order of their names:
    a copy that is run where it lies has no RECORD."""
    files = sorted(folder.rglob("*.py"), key=lambda file: file.relative_to(folder).as_posix())
    lines = (f"{(_digest(file) or b'').hex()}  {file.relative_to(folder).as_posix()}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _start_hooks() -> Iterable[dict[str, Json]]:
    for name in _HOOKS:
        if name in sys.modules:
            file = str(getattr(sys.modules[name], "__file__", None) or "")
            digest = _digest(Path(file)) if file else None
            yield {"name": name, "file": file, "sha256": digest.hex() if digest else None}


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
