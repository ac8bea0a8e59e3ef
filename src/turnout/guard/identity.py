"""What a model's files are: where they lie on this machine and their SHA-256, at the speed of the disk (SPEC SEC-4).

A file that was read once is known by device, inode, size and both times of change, and not read again while they are
the same. Whoever can set a file's ctime (root, with the clock) can deceive that, and so can a writer who has it mapped
in a file system in memory, where that changes no time; ``turnout models verify`` reads all.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from turnout.files import only_regular, open_regular, read_file, replace_file

# Device, inode, size, mtime and ctime in nanoseconds.
Stamp: TypeAlias = tuple[int, int, int, int, int]
# What a file is to its model.
Role: TypeAlias = Literal["weights", "projector", "adapter", "licence", "manifest", "other"]

BUFFER_BYTES = 4_000_000
MAX_KNOWN = 4096
# A change within a tick of the kernel's clock after a file was read might not show in its ctime: CONFIG_HZ=100.
TICK_NS = 20_000_000
MAX_FILES = 512  # of one model
MAX_ENTRIES = 4096  # of its folder
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf\Z")
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".npz")
_MAGIC = b"GGUF"
OF_A_MODEL = (".safetensors", ".json", ".model", ".tiktoken", ".txt", ".jinja", ".py", ".bin", ".npz", ".gguf")


@dataclass(frozen=True, slots=True)
class Files:
    """The files that a model is.

    Attributes:
        paths: all of them.
        weights: those whose digest names the model: one file's own, else that of the sorted list of all.
        named: of files that are called after their digest, the digest.
        root: of files that are known by their place below a folder, that folder.
        roles: of files whose names do not tell, what they are.
    """

    paths: tuple[Path, ...]
    weights: tuple[Path, ...]
    named: Mapping[Path, str] = field(default_factory=dict)
    root: Path | None = None
    roles: Mapping[Path, Role] = field(default_factory=dict)


class StoppedError(Exception):
    """Reading was ended before the end of a file."""


def stamp_of(path: Path) -> Stamp:
    """What tells an unchanged file. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Digests:
    """The digests of files, remembered in a small file for this user alone. Of any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._known: dict[Stamp, str] | None = None
        self.stopped = threading.Event()

    def known(self, path: Path) -> str | None:
        """The digest of a file as it is now, None when it was not read since it changed. Raises OSError."""
        with self._mutex:
            return self._read().get(stamp_of(path))

    def forget(self) -> None:
        """Read the file of digests anew at the next question."""
        with self._mutex:
            self._known = None

    def digest(self, path: Path, told: Callable[[int], None] = lambda _: None, *, anew: bool = False) -> str:
        """The SHA-256 of a file in hexadecimal digits; ``told`` hears of bytes that were read.

        Args:
            anew: read it in any case.

        Raises:
            OSError: it cannot be read, or changes all the time.
            StoppedError: ``stopped`` was set meanwhile.
        """
        if not anew and (known := self.known(path)) is not None:
            return known
        for _ in range(3):
            before = stamp_of(path)
            if time.time_ns() - before[4] < TICK_NS:
                time.sleep(TICK_NS / 1e9)
            found = self._hashed(path, told)
            if stamp_of(path) == before:
                self._remember(before, found)
                return found
        raise OSError(f"{path} changes while it is read")

    def _hashed(self, path: Path, told: Callable[[int], None]) -> str:
        digest, buffer = hashlib.sha256(), bytearray(BUFFER_BYTES)
        view = memoryview(buffer)
        with open(path, "rb", buffering=0, opener=only_regular) as file:
            with suppress(OSError):
                # Pages that somebody has mapped and written become clean: only the next write to one is a change.
                os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := file.readinto(buffer):
                digest.update(view[:count])  # without the GIL
                told(count)
                if self.stopped.is_set():
                    raise StoppedError
        return digest.hexdigest()

    def _read(self) -> dict[Stamp, str]:
        if self._known is None:
            self._known = {}
            with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):  # then the files are read anew
                if os.name != "posix" or not self._path.stat().st_mode & 0o022:
                    self._known = dict(msgspec.json.decode(read_file(self._path), type=list[tuple[Stamp, str]]))
        return self._known

    def _remember(self, stamp: Stamp, digest: str) -> None:
        with self._mutex:
            self._known = None  # other processes read files too
            known = self._read()
            known.pop(stamp, None)
            known[stamp] = digest
            kept = list(known.items())[-MAX_KNOWN:]
            with suppress(OSError):  # not kept, not lost: it is read again the next time
                replace_file(self._path, msgspec.json.encode(kept))


def weights_digest(files: Files, digest: Callable[[Path], str | None]) -> str | None:
    """The digest of a model's weights, None when a file's is not known: a single file's own; of several that of the
    list that ``sha256sum`` would write of their sorted names. Raises as ``digest``."""
    made = [(path.name, each) for path in files.weights if (each := digest(path)) is not None]
    return digest_of(made) if len(made) == len(files.weights) else None


def digest_of(made: Sequence[tuple[str, str]]) -> str:
    """The digest of weights, from the names and digests of their files."""
    if len(made) == 1:
        return made[0][1]
    lines = (f"{each}  {name}\n" for name, each in sorted(made, key=lambda one: one[0]))
    return hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()


def misnamed(files: Files, digest: Callable[[Path], str | None]) -> str:
    """What is wrong with files that are called after their digest, or "". Raises as ``digest``."""
    for path, name in files.named.items():
        found = digest(path)
        if found is not None and found != name:
            return f"{path} is not what its name says: its SHA-256 is {found[:16]}…"
    return ""


def files_at(path: Path) -> Files | None:
    """The files of weights at a path: a file, all parts of one that is split, or a folder; None when there are none.

    Raises:
        OSError: they cannot be looked at.
    """
    if path.is_dir():
        entries = list(islice(path.iterdir(), MAX_ENTRIES + 1))
        if len(entries) > MAX_ENTRIES:
            return None
        found = sorted(p for p in entries if p.suffix in OF_A_MODEL and p.name[0] != "." and p.is_file())
        has_weights = any(p.suffix in _WEIGHTS for p in found)
        return Files(tuple(found), tuple(found)) if has_weights and len(found) <= MAX_FILES else None
    if not path.is_file() or not _are_weights(path):
        return None
    split = _PART.fullmatch(path.name)
    if split is None:
        return Files((path,), (path,))
    if int(split[3]) > MAX_FILES:
        return None
    parts = tuple(path.with_name(f"{split[1]}-{n:05d}-of-{split[3]}.gguf") for n in range(1, int(split[3]) + 1))
    return Files(parts, parts)


def _are_weights(path: Path) -> bool:
    """Whether a file may be what a server says. It may name any file that we can read, whose digest is nobody's
    business, or one of the system's own, which have no size and may never end."""
    if not path.stat().st_size:
        return False
    if path.suffix in _WEIGHTS:
        return True
    with open_regular(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def find_files(path: str, model: str, folders: Iterable[Path]) -> Files | None:
    """The files of a model on this machine, None when they cannot be found or looked at.

    Args:
        path: where its server says that they are, or "".
        model: its id, which in some servers is the place.
        folders: where they may be under the same name.
    """
    whole = [Path(path)] if path else []
    whole += [Path(model)] if Path(model).is_absolute() else []
    names = [part for part in (Path(path).name, model, f"{model}.gguf") if part and ".." not in Path(part).parts]
    here = [folder / name for folder in folders for name in names if not Path(name).is_absolute()]
    for place in (*(p for p in whole if p.is_absolute()), *here):
        with suppress(OSError, ValueError):  # ValueError: a name that no file has
            if (found := files_at(place)) is not None:
                return found
    return None
