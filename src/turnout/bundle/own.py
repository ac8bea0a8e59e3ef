"""Turnout's own wheel, packed from the files that run: the same bytes from a checkout and from an installed wheel.

In a checkout the metadata is that of the last ``pip install -e .``. Nothing is compressed, so that no version of zlib
has a say in the bytes.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import turnout
from turnout.errors import BundleError

_TIME = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16
_CARRIED = ("METADATA", "entry_points.txt")


def pack_own_wheel(folder: Path) -> Path:
    """Put the wheel of this Turnout into a folder.

    Raises:
        BundleError: it was not installed, or its metadata is that of another version.
        OSError: a file cannot be read or written.
    """
    hint = "install it: `pip install -e .` in a checkout"
    try:
        installed = distribution("turnout")
    except PackageNotFoundError as error:
        raise BundleError("this Turnout has no metadata, which a wheel needs", hint=hint) from error
    if installed.version != turnout.__version__:
        said = f"the metadata of this Turnout is that of {installed.version}, and it is {turnout.__version__}"
        raise BundleError(said, hint=hint)
    files = {f"turnout/{name}": content for name, content in _package(Path(turnout.__file__).parent).items()}
    path = folder / f"turnout-{turnout.__version__}-py3-none-any.whl"
    write_wheel(path, files | _metadata(installed), f"turnout-{turnout.__version__}.dist-info", "py3-none-any")
    return path


def write_wheel(path: Path, files: Mapping[str, bytes], info: str, *tags: str) -> None:
    """Write a wheel of these files; WHEEL and RECORD are made. Raises OSError."""
    pure = str(all(tag.endswith("-none-any") for tag in tags)).lower()
    lines = ("Wheel-Version: 1.0", "Generator: turnout", f"Root-Is-Purelib: {pure}", *(f"Tag: {tag}" for tag in tags))
    everything = dict(sorted({**files, f"{info}/WHEEL": "".join(f"{line}\n" for line in lines).encode()}.items()))
    rows = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in everything.items()]
    everything[f"{info}/RECORD"] = ("".join(rows) + f"{info}/RECORD,,\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        for name, content in everything.items():
            member = zipfile.ZipInfo(name, _TIME)
            member.create_system, member.external_attr = 3, _PLAIN_FILE
            out.writestr(member, content)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _package(folder: Path) -> dict[str, bytes]:
    """The package's files; what Python and editors leave among them is not carried."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        left = path.suffix in (".pyc", ".pyo") or any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not left and not path.name.endswith("~"):
            found["/".join(parts)] = path.read_bytes()
    return found


def _metadata(installed: Distribution) -> dict[str, bytes]:
    """METADATA, entry points and licences, as they were installed."""
    info = f"turnout-{turnout.__version__}.dist-info"
    found = {f"{info}/{name}": (installed.read_text(name) or "").encode() for name in _CARRIED}
    for file in installed.files or ():
        name = file.as_posix()
        if name.startswith(f"{info}/licenses/"):
            found[name] = file.read_binary()
    return found
