"""Where the hosts of this user are: for each workspace a socket, a lock and a log, named by a digest."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Of a socket's path: sun_path has 104 bytes with its end on some systems.
_MAX_PATH = 100
_NAME = len("/0123456789abcdef.sock")


@dataclass(frozen=True, slots=True)
class HostPlace:
    """The files of one workspace's host. ``lock`` is held as long as the host lives."""

    socket: Path
    lock: Path
    log: Path


def place_of(workspace: Path, data_dir: Path) -> HostPlace:
    """Where the host of a workspace is; the machine is part of its name, since a home may be shared by several.

    Raises:
        OSError: its directory cannot be made, or is not this user's alone.
    """
    told = f"{platform.node()}\n{workspace.resolve()}".encode("utf-8", "surrogateescape")
    name, folder = hashlib.sha256(told).hexdigest()[:16], _private(_folder(data_dir))
    logs = _private(data_dir / "code" / "logs")
    return HostPlace(folder / f"{name}.sock", folder / f"{name}.lock", logs / f"{name}.log")


def sockets(data_dir: Path) -> Iterator[Path]:
    """The sockets of this machine's hosts, also of those that have ended without a word.

    Raises:
        OSError: as ``place_of``.
    """
    yield from sorted(path for path in _private(_folder(data_dir)).glob("*.sock") if not path.name.startswith("."))


def is_held(place: HostPlace) -> bool:
    """Whether a host lives, or begins to. Who begins meanwhile waits the moment that this takes."""
    import fcntl

    try:
        lock = os.open(place.lock, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _folder(data_dir: Path) -> Path:
    wanted = data_dir.absolute() / "code" / "run"
    if len(os.fsencode(wanted)) + _NAME <= _MAX_PATH:
        return wanted
    digest = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"turnout-{os.getuid()}-{digest}"


def _private(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a directory of this user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder
