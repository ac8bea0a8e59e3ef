"""Small files in the data directory that several processes share: a reader never sees half of one."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file for this user alone, at once or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def lock_folder(folder: Path) -> int:
    """Make and lock a folder; a descriptor for ``unlock_folder``, -1 where there are no locks. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sys.platform == "win32":  # of two changes at the same moment one may be lost there
        return -1
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unlock_folder(descriptor: int) -> None:
    """Let others in."""
    if descriptor >= 0:
        os.close(descriptor)
