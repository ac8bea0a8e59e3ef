"""Small files in the data directory that several processes share: a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

MAX_FILE_BYTES = 8_000_000


def read_file(path: Path) -> bytes:
    """A file of at most a byte more than MAX_FILE_BYTES. Raises OSError as ``open_regular``."""
    with open_regular(path) as file:
        return file.read(MAX_FILE_BYTES + 1)


def open_regular(path: Path) -> BinaryIO:
    """A file to be read. Raises OSError, also of what would be waited for or never end, such as a pipe or a device."""
    return open(path, "rb", opener=only_regular)


def only_regular(path: str, flags: int) -> int:
    """An opener for ``open``. Raises OSError as ``open_regular``."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


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


def lock_folder(folder: Path, *, wait: bool = True) -> int:
    """Make and lock a folder; a descriptor for ``unlock_folder``, -1 where there are no locks. Raises OSError: without
    ``wait`` BlockingIOError, when somebody else has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sys.platform == "win32":  # of two changes at the same moment one may be lost there
        return -1
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unlock_folder(descriptor: int) -> None:
    """Let others in."""
    if descriptor >= 0:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make new names outlive a power cut, where a folder can be told to. Raises OSError."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
