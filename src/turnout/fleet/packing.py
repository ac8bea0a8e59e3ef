"""Making one file of a model, to be carried to where nothing can be fetched (SPEC UI-5)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from turnout.errors import ArchiveError, StorageError, UsageError
from turnout.files import open_regular, sync_folder
from turnout.guard.identity import Files, files_at
from turnout.guard.model_archive import Source, Told, write_archive
from turnout.guard.model_manifest import MAX_PARTS, SUFFIX, Manifest, plain_name, role_of
from turnout.guard.signing import Signer

PART = ".part"
_DESCRIBED_BY = frozenset({"config.json", "params.json"})  # of Hugging Face, of Mistral: one is in every such folder
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
SPARE_BYTES = 1_000_000  # a list, and what the file system needs


def sources_at(paths: Sequence[Path]) -> tuple[Source, ...]:
    """The files of a model that somebody names: files, all parts of one that is split, folders whole.

    Raises:
        UsageError: there are none.
        OSError: they cannot be looked at.
    """
    found = dict[Path, Source]()
    for path in paths:
        for source in _sources_below(path) if path.is_dir() else _sources_of_file(path):
            found.setdefault(source.path, source)
    return tuple(found.values())


def sources_of(files: Files) -> tuple[Source, ...]:
    """The files of a served model. Raises as ``sources_at``: a server that tells another folder than a model's, too."""
    first = files.paths[0]
    if files.root is None and len(files.paths) > 1 and first.suffix != ".gguf":
        if not {path.name for path in files.paths} & _DESCRIBED_BY:
            said = f"{first.parent}, which its server tells, has no config.json: it is no folder of one model"
            raise UsageError(said, hint="where it is one after all, name it: --path FOLDER")
        return sources_at([first.parent])
    return tuple(_source(path, files) for path in files.paths)


def _source(path: Path, files: Files) -> Source:
    name = path.relative_to(files.root).as_posix() if files.root is not None else path.name
    return Source(path, name, files.roles.get(path) or role_of(name), files.named.get(path, ""))


def _sources_of_file(path: Path) -> Iterator[Source]:
    files = files_at(path)
    if files is not None:
        yield from (_source(each, files) for each in files.paths)
    elif path.is_file() and role_of(path.name) != "weights":
        yield Source(path, path.name, role_of(path.name))
    else:
        said = f"{path} holds no weights" if path.exists() else f"there is no file {path}"
        raise UsageError(said, hint="give the file of the weights, or their folder")


def _sources_below(folder: Path) -> Iterator[Source]:
    """Every file of a folder but for hidden ones; a link to a file is that file, one to a folder is not followed."""
    paths = [Path(place, name) for place, _, names in _walk(folder) for name in names if name[0] != "."]
    if len(paths) > MAX_PARTS:
        raise UsageError(f"{folder} has {len(paths):,} files", hint="name the folder of one model")
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        yield Source(path, name, role_of(name))


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    def raised(error: OSError) -> None:
        raise error

    for place, below, names in os.walk(folder, onerror=raised):
        below[:] = sorted(name for name in below if name[0] != ".")
        yield place, below, names


def archive_path(out: Path | None, model: str) -> Path:
    """Where an archive goes: into a folder, to a file, or by default here.

    Raises:
        UsageError: it is no folder that is there, and has no name of a file: a disk that is not mounted, most likely.
    """
    name = plain_name(model) + SUFFIX
    if out is None:
        return Path(name)
    if not out.exists() and not out.suffix:
        raise UsageError(f"there is no folder {out}", hint=f"mount or make it; a file is named like {out}.tar")
    return out / name if out.is_dir() else out


def pack(
    path: Path,
    manifest: Manifest,
    sources: Sequence[Source],
    signer: Signer,
    told: Told,
    agreed: Callable[[Manifest], None],
) -> Manifest:
    """Write the archive, at once or not at all.

    Args:
        agreed: is shown what would be there, and raises what speaks against it.

    Raises:
        ArchiveError: a file has changed meanwhile, is not what its name says, or cannot be read.
        StorageError: the archive cannot be written.
    """
    _require_readable(sources)
    _require_room(path.parent, sum(source.path.stat().st_size for source in sources))
    part = path.with_name(path.name + PART)
    try:
        with _new(part) as out:
            made = write_archive(out, manifest, sources, signer, told)
            agreed(made)
            part.replace(path)  # while nobody else can have it
        sync_folder(path.parent)
    except OSError as error:
        what = error.strerror or str(error)
        raise StorageError(f"{path} cannot be written: {what}; nothing is left of it", hint="-o elsewhere") from error
    return made


def _require_readable(sources: Iterable[Source]) -> None:
    """Before anything is written: a model of which a file cannot be read is not begun."""
    for source in sources:
        try:
            open_regular(source.path).close()
        except OSError as error:
            said = f"{source.path} cannot be read: {error.strerror or error}"
            raise ArchiveError(said, hint="run it as who owns the file, or make it readable") from error


def _require_room(folder: Path, size: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"{folder} cannot be written to: {error.strerror or error}", hint="-o elsewhere") from error
    require_room(folder, size, free)


def require_room(folder: Path, size: int, free: int) -> None:
    """Raises StorageError: ``size`` bytes do not fit there."""
    if size + SPARE_BYTES > free:
        said = f"{folder} has no room: {size / 1e9:,.2f} GB are needed, {free / 1e9:,.2f} GB are free"
        raise StorageError(said, hint="make room, or name another place")


@contextmanager
def _new(part: Path) -> Iterator[BinaryIO]:
    """A new file, in place of what a killed export left; it goes when what is done with it fails.

    Raises:
        StorageError: another export is writing it.
        OSError: it cannot be made.
    """
    try:
        descriptor = os.open(part, _NEW, 0o666)
    except FileExistsError:
        _remove_leftover(part)
        descriptor = os.open(part, _NEW, 0o666)
    with os.fdopen(descriptor, "wb") as out:
        _lock(descriptor, part)
        try:
            yield out
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _remove_leftover(part: Path) -> None:
    """Never written over: in a folder of many it may be a link of somebody's to what is not to be changed."""
    if sys.platform == "win32":
        part.unlink()
        return
    # To be written to, or NFS lets nobody lock it alone.
    descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _lock(descriptor, part)
        part.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, part: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), part.lstat()):
            raise FileNotFoundError  # it was just put in its place
    except (BlockingIOError, FileNotFoundError) as error:
        raise StorageError(f"another export is writing {part}", hint="wait for it, or -o another file") from error
