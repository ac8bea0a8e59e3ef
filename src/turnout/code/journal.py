"""What files held before edits were written: a set is written whole or not at all, also when the process is killed in
between, and can be taken back.

A folder for each set, in the data directory below tenant and workspace: ``entry.json`` and the old bytes of each file.
It is on the disk before the first file of the workspace changes. Its state says what the next one who looks does with
it: ``writing``, ``undoing`` and ``trying`` are put back, ``applied`` is kept for ``turnout undo``.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from turnout.code.paths import require_unlinked, require_writable
from turnout.code.preview import FileChange
from turnout.errors import EditError, StorageError
from turnout.files import lock_folder, read_file, sync_folder, unlock_folder

# Sets that are kept of a workspace, and how many bytes they may have together; the newest is always kept.
MOST_KEPT, MOST_BYTES = 20, 64_000_000
_ENTRY = "entry.json"
_CALLED = {"writing": "edits", "undoing": "an undo", "trying": "a trial of a rename"}
_BINARY = getattr(os, "O_BINARY", 0)


class _File(msgspec.Struct):
    """Hashes are None where there is no file; ``mode`` is what an old file had, 0 for none."""

    path: str
    before: str | None
    after: str | None
    mode: int


class Entry(msgspec.Struct):
    """One set of files. ``renames``: while somebody else writes them, the old and the new name."""

    number: int
    at: str
    workspace: str
    state: Literal["writing", "applied", "undoing", "trying"]
    token: str
    files: list[_File]
    folders: list[str]
    renames: tuple[str, str] | None = None

    def temporary(self, root: Path, n: int) -> Path:
        """Where the new bytes of a file stand until all are there: beside it, since a rename needs the same disk."""
        return (root / self.files[n].path).parent / f".turnout-{self.token}-{n}"


def hash_of(data: bytes | None) -> str | None:
    """SHA-256 in hex, None of no file."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def journal_folder(data: Path, tenant: str, workspace: Path) -> Path:
    """Where the sets of a workspace are kept, below the data directory."""
    plain = bool(re.fullmatch(r"[\w-]{1,64}", tenant))
    name = tenant if plain else hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    place = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:24]
    return data / "edits" / name / place


class Journal:
    """The sets of one workspace. Use it within ``locked``.

    Args:
        folder: where they are kept.
        root: the workspace, resolved.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder, self._root = folder, root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes files of this workspace.

        Raises:
            EditError: another process does now.
            StorageError: the journal cannot be used.
        """
        try:
            descriptor = lock_folder(self._folder, wait=False)
        except BlockingIOError:
            raise EditError("another process changes files of this workspace", hint="try again in a moment") from None
        except OSError as error:
            raise self._failure(error) from error
        try:
            yield
        finally:
            unlock_folder(descriptor)

    def begin(self, changes: Sequence[FileChange], renames: tuple[str, str] | None = None) -> Entry:
        """Put on the disk what the files hold now, before anything changes. Raises StorageError.

        Args:
            changes: the files.
            renames: the old and the new name, when somebody else writes them: what they become is not known before.
        """
        numbers = [int(path.name) for path in self._entries()]
        entry = Entry(
            number=max(numbers, default=0) + 1,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            workspace=os.fsencode(self._root).decode("utf-8", "backslashreplace"),
            state="writing" if renames is None else "trying",
            token=secrets.token_hex(6),
            files=[_File(c.path, hash_of(c.before), hash_of(c.after), c.mode) for c in changes],
            folders=_missing_folders(self._root, changes),
            renames=renames,
        )
        try:
            place = self._place(entry)
            place.mkdir(mode=0o700)
            for n, change in enumerate(changes):
                if change.before is not None:
                    _write(place / f"{n}.before", change.before, 0o600)
            self._save(entry)
            _sync(self._folder)
        except OSError as error:
            with suppress(OSError):
                shutil.rmtree(self._place(entry))
            raise self._failure(error) from error
        return entry

    def write(self, entry: Entry, contents: Sequence[bytes | None], modes: Sequence[int]) -> None:
        """Write every file: first all new bytes beside the old, then one rename each. ``put_back`` after a failure.

        Raises:
            EditError: a file is not as it was, or cannot be written.
        """
        path = ""
        try:
            for file in entry.files:  # before a folder is made, perhaps beyond a link
                require_writable(self._root, PurePosixPath(file.path))
            for folder in entry.folders:
                (self._root / folder).mkdir()
            for n, (file, content) in enumerate(zip(entry.files, contents, strict=True)):
                path = file.path
                require_writable(self._root, PurePosixPath(path))
                if content is not None:
                    _write(entry.temporary(self._root, n), content, modes[n])
            for n, (file, content) in enumerate(zip(entry.files, contents, strict=True)):
                path = file.path
                require_writable(self._root, PurePosixPath(path))
                if self._hash(path) != file.before:
                    raise EditError(f"{path} was changed meanwhile")
                self._set(entry, n, content)
            for parent in {(self._root / file.path).parent for file in entry.files}:
                _sync(parent)
        except OSError as error:
            raise EditError(f"{path or self._root} cannot be written: {error.strerror or error}") from error

    def keep(self, entry: Entry) -> None:
        """The set is complete: from now on it is what ``last`` gives. Older ones go. Raises StorageError."""
        entry.state = "applied"
        self._store(entry)
        total = 0
        for newer, place in enumerate(sorted(self._entries(), reverse=True)):
            total += sum(file.stat().st_size for file in place.iterdir())
            if newer and (newer >= MOST_KEPT or total > MOST_BYTES):
                shutil.rmtree(place, ignore_errors=True)

    def last(self) -> Entry | None:
        """The newest complete set. Raises StorageError."""
        places = sorted(self._entries(), reverse=True)
        return self._load(places[0]) if places else None

    def changed_since(self, entry: Entry) -> list[str]:
        """The files of a set that are not as it left them."""
        return [f.path for f in entry.files if not self._is_unlinked(f.path) or self._hash(f.path) != f.after]

    def undo(self, entry: Entry, *, force: bool) -> list[str]:
        """Take a complete set back. With ``force`` also what was changed since. Returns as ``put_back``.

        Raises:
            EditError: a file is a link or read-only, and nothing was changed; or one cannot be written: what was put
                back is complete at the next try.
            StorageError: the journal cannot be used.
        """
        for n, file in enumerate(entry.files):
            self._before(entry, n)
            try:
                require_writable(self._root, PurePosixPath(file.path))
            except EditError as error:
                hint = "nothing was changed; what is in the way must go first"
                raise EditError(f"{file.path} cannot be put back: {error.message}", hint=hint) from None
        if force:
            for file in entry.files:
                file.after = self._hash(file.path)
        entry.state = "undoing"
        self._store(entry)
        return self.put_back(entry)

    def put_back(self, entry: Entry) -> list[str]:
        """Make every file of a set what it was, and forget the set. What somebody else has changed meanwhile stays, and
        so does what is now a link or lies beyond one.

        Returns:
            The files that stay as they are.

        Raises:
            EditError: a file cannot be written; the set is kept for the next try.
            StorageError: what it held is not kept any more.
        """
        foreign = []
        path = ""
        try:
            for n, file in enumerate(entry.files):
                path = file.path
                if not self._is_unlinked(path):
                    foreign.append(path)
                    continue
                entry.temporary(self._root, n).unlink(missing_ok=True)
                now = self._hash(path)
                if now == file.before:
                    continue
                if now != file.after and not self._is_renamed(entry, n):
                    foreign.append(path)
                    continue
                old = self._before(entry, n)
                if old is not None:
                    (self._root / path).parent.mkdir(parents=True, exist_ok=True)
                    _write(entry.temporary(self._root, n), old, file.mode)
                self._set(entry, n, old)
            for folder in reversed(entry.folders):
                if self._is_unlinked(f"{folder}/-"):
                    with suppress(OSError):  # somebody else uses it
                        (self._root / folder).rmdir()
            for parent in {(self._root / file.path).parent for file in entry.files}:
                _sync(parent)
            shutil.rmtree(self._place(entry))
        except OSError as error:
            said = f"{path} cannot be put back: {error.strerror or error}"
            raise EditError(said, hint="make it writable; the next edit or `turnout undo` goes on") from error
        return foreign

    def recover(self) -> list[str]:
        """Put back what was being written when its process died. Returns what is to be told, a line for each set.

        Raises:
            EditError, StorageError: it cannot be done.
        """
        told = []
        for place in sorted(self._entries()):
            if not (place / _ENTRY).exists():  # its process died before any file was changed
                shutil.rmtree(place, ignore_errors=True)
                continue
            entry = self._load(place)
            if entry.state == "applied":
                continue
            what = _CALLED[entry.state]
            foreign = self.put_back(entry)
            stays = f"; changed since and left alone: {', '.join(foreign)}" if foreign else ""
            names = ", ".join(file.path for file in entry.files)
            told.append(f"{what} of {entry.at} had been interrupted: {names} put back as before{stays}")
        return told

    def _is_renamed(self, entry: Entry, n: int) -> bool:
        """Whether a file differs from what it was by the new name alone: that nobody else has done."""
        if entry.renames is None or entry.files[n].before is None:
            return False
        old, now = self._before(entry, n) or b"", read_file(self._root / entry.files[n].path)
        return _words(old, entry.renames) == _words(now, entry.renames)

    def _set(self, entry: Entry, n: int, content: bytes | None) -> None:
        target = self._root / entry.files[n].path
        if content is None:
            target.unlink(missing_ok=True)
        else:
            entry.temporary(self._root, n).replace(target)

    def _is_unlinked(self, path: str) -> bool:
        try:
            require_unlinked(self._root, PurePosixPath(path))
        except EditError:
            return False
        return True

    def _hash(self, path: str) -> str | None:
        try:
            return hash_of(read_file(self._root / path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EditError(f"{path} cannot be read: {error.strerror or error}") from error

    def _entries(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if re.fullmatch("[0-9]+", path.name) and path.is_dir()]
        except OSError as error:
            raise self._failure(error) from error

    def _place(self, entry: Entry) -> Path:
        return self._folder / f"{entry.number:08}"

    def _load(self, place: Path) -> Entry:
        try:
            entry = msgspec.json.decode(read_file(place / _ENTRY), type=Entry)
        except OSError as error:
            raise self._failure(error) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(place, str(error)) from error
        paths = (*(file.path for file in entry.files), *entry.folders)
        if (
            self._place(entry) != place
            or not re.fullmatch("[0-9a-f]{12}", entry.token)
            or not all(map(_is_below, paths))
        ):
            raise _damaged(place, "its entry was changed")
        return entry

    def _before(self, entry: Entry, n: int) -> bytes | None:
        """What a file held. Raises StorageError: that is not what is kept any more."""
        kept = self._place(entry) / f"{n}.before"
        if entry.files[n].before is None:
            return None
        try:
            old = read_file(kept)
        except OSError as error:
            raise _damaged(self._place(entry), f"{kept.name}: {error.strerror or error}") from error
        if hash_of(old) != entry.files[n].before:
            raise _damaged(self._place(entry), f"{kept.name} was changed")
        return old

    def _store(self, entry: Entry) -> None:
        try:
            self._save(entry)
        except OSError as error:
            raise self._failure(error) from error

    def _save(self, entry: Entry) -> None:
        place = self._place(entry)
        new = place / "entry.new"
        new.unlink(missing_ok=True)
        _write(new, msgspec.json.encode(entry), 0o600)
        new.replace(place / _ENTRY)
        _sync(place)

    def _failure(self, error: OSError) -> StorageError:
        said = f"the journal of edits {self._folder} cannot be used: {error.strerror or error}"
        return StorageError(said, hint="make it writable, or set TURNOUT_DATA_DIR")


def _words(data: bytes, renames: tuple[str, str]) -> list[str]:
    """A text in pieces, the new name as if it were the old one."""
    old, new = renames
    return [old if word == new else word for word in re.split(r"(\w+)", data.decode("utf-8", "surrogateescape"))]


def _is_below(text: str) -> bool:
    """Whether a path leads down from a folder. It may be one that no edit may touch: Serena renames there, too."""
    path = Path(text)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in text


def _damaged(place: Path, why: str) -> StorageError:
    hint = "move it away; what it could have taken back stays as it is"
    return StorageError(f"{place} is damaged: {why}", hint=hint)


def _missing_folders(root: Path, changes: Sequence[FileChange]) -> list[str]:
    """The folders that new files need, each after the one that holds it."""
    found: dict[str, None] = {}
    for change in changes:
        if change.after is not None:
            for parent in reversed(PurePosixPath(change.path).parents):
                if not (root / parent).exists():
                    found[parent.as_posix()] = None
    return list(found)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Make a file that is not there yet, on the disk when this returns. ``mode`` 0: what a new file gets."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, mode or 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if mode and hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk, where a folder can be opened for that."""
    with suppress(OSError):
        sync_folder(folder)
