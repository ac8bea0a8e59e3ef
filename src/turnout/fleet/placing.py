"""Putting a model that came in an archive where a server reads it: everything is verified before anything is there."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from turnout.backends.shelf import Arrangement
from turnout.errors import ArchiveError, StorageError
from turnout.files import lock_folder, open_regular, sync_folder, unlock_folder
from turnout.fleet.packing import require_room
from turnout.guard.model_archive import Archive, Told
from turnout.guard.model_manifest import Part, check_name

_STAGING = ".turnout-import-"


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of it.

    Attributes:
        paths: where its files are now.
        new: those of them that were not there before.
        already: they all were there before, the same.
        left_out: files of the archive that this server has no use for.
    """

    paths: tuple[Path, ...]
    new: tuple[Path, ...]
    already: bool
    left_out: tuple[str, ...]


def place(
    archive: Archive,
    arrangement: Arrangement,
    folder: Path,
    told: Told,
    agreed: Callable[[], None],
    *,
    force: bool = False,
) -> Placed:
    """Unpack and verify an archive beside its place, then move it there.

    Nothing has a name that a server would read before all of it is verified; a folder appears whole.

    Args:
        archive: its signature was checked.
        folder: where the server keeps its models; it is made where its parent is there.
        agreed: is asked when all is verified, and raises what speaks against it.
        force: replace what is there.

    Raises:
        ArchiveError: a file is not the one of the list, or another is there.
        StorageError: it cannot be written.
    """
    wanted = {part: arrangement.places[part.name] for part in archive.manifest.files if part.name in arrangement.places}
    left_out = tuple(part.name for part in archive.manifest.files if part not in wanted)
    for name in (*wanted.values(), *arrangement.written):
        check_name(name)
        _require_no_link(folder, name)
    paths = tuple(folder / name for name in (*wanted.values(), *arrangement.written))
    try:
        owner = _owner(folder)
        with _acting_as(*owner):
            missing = _missing(wanted, arrangement, folder, told, force=force)
            if not missing and all(_same_bytes(folder / n, content) for n, content in arrangement.written.items()):
                return Placed(paths, (), True, left_out)
            new = tuple(path for path in paths if not path.exists())
            with _staging(folder) as staging:
                _unpack(archive, missing, staging, told)
                _verify_rest(archive, missing, told)
                with _acting_as(0, 0):
                    agreed()
                moves = {wanted[part]: staging / str(n) for n, part in enumerate(missing)}
                _publish(arrangement, moves, staging, folder, force=force)
    except OSError as error:
        what = error.strerror or str(error)
        hint = "make room or make it writable, or name another folder: --folder DIR"
        raise StorageError(f"the model cannot be kept in {folder}: {what}; nothing is left of it", hint=hint) from error
    return Placed(paths, new, False, left_out)


def _owner(folder: Path) -> tuple[int, int]:
    """Whose a folder is, or will be when it is made: user and group. Raises OSError."""
    found = next(place for place in (folder, *folder.parents) if place.exists()).stat()
    return found.st_uid, found.st_gid


@contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Where this is root, and on Linux: use files with that user's rights, in this thread alone.

    What root puts into a service's folder belongs to that service then; and where the service puts a link in the way
    meanwhile, what it leads to is only what it could change itself.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None)
    before = libc.setfsgid(gid), libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(before[1])
        libc.setfsgid(before[0])


def _require_no_link(folder: Path, name: str) -> None:
    """Raises ArchiveError: the place leads elsewhere."""
    steps = PurePosixPath(name)
    for place in (folder / steps, *(folder / parent for parent in steps.parents if parent.name)):
        if place.is_symlink():
            raise ArchiveError(f"{place} is a link: what is put there would be elsewhere", hint="remove it")


def _missing(
    wanted: Mapping[Part, str], arrangement: Arrangement, folder: Path, told: Told, *, force: bool
) -> list[Part]:
    """The files that are not there yet; of a folder that appears whole all, when one is not.

    Raises:
        ArchiveError: other files are there, and are not to be replaced.
    """
    there = {part: (folder / name).exists() for part, name in wanted.items()}
    same = {part: there[part] and _same(part, folder / name, told) for part, name in wanted.items()}
    different = next((wanted[part] for part in wanted if there[part] and not same[part]), "")
    whole = folder / arrangement.folder if arrangement.folder else None
    if whole is not None and whole.exists() and not different:
        below = {PurePosixPath(n) for n in (*wanted.values(), *arrangement.written)}
        others = (p for p in sorted(whole.rglob("*")) if not p.is_dir())
        found = [PurePosixPath(p.relative_to(folder).as_posix()) for p in others]
        different = next((str(p) for p in found if p not in below), "")
        different = different or next((wanted[part] for part in wanted if not same[part]), "")
    written = (n for n, content in arrangement.written.items() if not _same_bytes(folder / n, content))
    different = different or next((n for n in written if (folder / n).exists()), "")
    if different and not force:
        hint = "--force replaces it, --name gives the model another name"
        raise ArchiveError(f"{folder / different} is there already, and is another", hint=hint)
    if whole is not None and (different or not all(same.values())):
        return list(wanted)
    return [part for part in wanted if not same[part]]


def _same(part: Part, path: Path, told: Told) -> bool:
    if not path.is_file() or path.stat().st_size != part.size:
        return False
    digest, done = hashlib.sha256(), 0
    with open_regular(path) as file:
        while data := file.read(4_000_000):
            digest.update(data)
            done += len(data)
            told(f"comparing {path.name}", done, part.size)
    return digest.hexdigest() == part.sha256


def _same_bytes(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder on the same file system, which goes with what is left in it, at the latest when the next is made."""
    made = _make(folder)
    try:
        _remove_leftovers(folder)
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=_STAGING))
        lock = lock_folder(staging)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            unlock_folder(lock)
    finally:
        for new in made:
            with suppress(OSError):  # what is in use now is not empty
                new.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make it; the folders that were not there, the innermost first."""
    made = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        made.append(place)
    for place in reversed(made):
        place.mkdir()
        _give(place)
    return made


def _remove_leftovers(folder: Path) -> None:
    """What imports left that were killed: none is alive that has it locked."""
    for left in folder.glob(f"{_STAGING}????????"):  # as tempfile names them
        if left.is_symlink():
            continue
        with suppress(OSError):  # somebody else's, or somebody is at work in it
            lock = lock_folder(left, wait=False)
            if lock >= 0:
                shutil.rmtree(left, ignore_errors=True)
                unlock_folder(lock)


def _unpack(archive: Archive, parts: list[Part], staging: Path, told: Told) -> None:
    """Each file under its number: no server takes that for a model."""
    size, done = sum(part.size for part in parts), 0
    require_room(staging.parent, size, shutil.disk_usage(staging).free)
    for number, part in enumerate(parts):
        with (staging / str(number)).open("xb") as out:
            archive.copy(part, out, partial(_told_of_all, told, done, size))
            out.flush()
            os.fsync(out.fileno())
        done += part.size


def _verify_rest(archive: Archive, unpacked: list[Part], told: Told) -> None:
    """What is not wanted here is part of what was signed, too."""
    rest = [part for part in archive.manifest.files if part not in unpacked]
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        for part in rest:
            archive.copy(part, nowhere, partial(_told_of_all, told, 0, part.size))


def _told_of_all(told: Told, before: int, size: int, done: int) -> None:
    told("unpacking and verifying", before + done, size)


def _publish(arrangement: Arrangement, moves: Mapping[str, Path], staging: Path, folder: Path, *, force: bool) -> None:
    """Move what is verified to its place; when that fails half-way, what was new there is taken away."""
    moves = dict(moves)
    for number, (name, content) in enumerate(arrangement.written.items()):
        moves[name] = staging / f"written-{number}"
        _write(moves[name], content)
    whole = arrangement.folder
    below = {name: path for name, path in moves.items() if whole and PurePosixPath(name).is_relative_to(whole)}
    steps = {name: path for name, path in moves.items() if name not in below}
    if any(name not in arrangement.written for name in below):
        tree = staging / "tree"
        for name, path in below.items():
            target = tree / PurePosixPath(name).relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        for path in (tree, *tree.rglob("*")):
            _give(path, folder)
            if path.is_dir():
                sync_folder(path)
        steps = {whole: tree, **steps}
    else:
        steps |= below
    done, made = list[tuple[Path, Path | None]](), list[Path]()
    try:
        for number, (name, path) in enumerate(steps.items()):
            target, old = folder / name, staging / f"old-{number}"
            made = [*_make(target.parent), *made]
            _give(path, folder)
            if target.exists() and not force:
                raise ArchiveError(f"{target} has appeared meanwhile", hint="see what is there, and import again")
            done.append((target, _swap(path, target, old)))
            sync_folder(target.parent)
    except BaseException:
        _take_back(done)
        for new in made:
            with suppress(OSError):  # somebody has put something there meanwhile
                new.rmdir()
        raise


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _swap(path: Path, target: Path, aside: Path) -> Path | None:
    """Move a file or folder to its place; what was there is put aside, or stays when that fails."""
    if not target.exists():
        path.rename(target)  # a folder that somebody else has put there meanwhile is not taken away
        return None
    target.rename(aside)
    try:
        path.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    return aside


def _take_back(done: list[tuple[Path, Path | None]]) -> None:
    for target, before in reversed(done):
        with suppress(OSError):
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            if before is not None:
                before.rename(target)


def _give(path: Path, like: Path | None = None) -> None:
    """What root puts into a service's folder belongs to that service; on Linux it does already."""
    if sys.platform != "linux" and hasattr(os, "geteuid") and os.geteuid() == 0:
        owner = (like or path.parent).stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
