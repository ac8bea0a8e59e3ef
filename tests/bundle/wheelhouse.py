"""A wheelhouse without an index: the packages that are installed here, packed again, and a lock of their new hashes.

What it omits: packing leaves out programs that are no entry points, and the tags are those of this machine alone.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from turnout.bundle.own import write_wheel
from turnout.bundle.wheels import lock_text

_HERE = "cp{0}-cp{0}-linux_{1}".format("".join(map(str, sys.version_info[:2])), platform.machine())
_LEFT_OUT = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json")


def locked_names() -> list[str]:
    """What the lock of the bundle holds for this machine."""
    entries = re.findall(r"(?m)^([\w.-]+)==(?!.*(?:emscripten' and|== 'win32'|== 'emscripten'))", lock_text())
    return [name for name in entries if name not in ("pywin32", "httpx2-jsfetch")]


def pack_installed(name: str, folder: Path) -> str:
    """Pack one installed package; its line of the lock. Raises PackageNotFoundError."""
    found = distribution(name)
    info = next(f.parts[0] for f in found.files or () if f.parts[-1] == "METADATA")
    pure = "Root-Is-Purelib: true" in (found.read_text("WHEEL") or "")
    files = {
        file.as_posix(): file.read_binary()
        for file in found.files or ()
        if ".." not in file.parts and file.suffix != ".pyc" and not (file.parts[0] == info and file.name in _LEFT_OUT)
    }
    tag = "py3-none-any" if pure else _HERE
    path = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    write_wheel(path, files, info, tag)
    return f"{name}=={found.version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def make_wheelhouse(folder: Path, *names: str) -> str:
    """Pack these, or everything that Turnout needs and is installed; the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in names or locked_names():
        try:
            lines.append(pack_installed(name, folder))
        except PackageNotFoundError:
            if name != "xllamacpp":  # the engine is an extra
                raise
    return "".join(lines)
