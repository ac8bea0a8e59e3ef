"""A rename by who writes at once and shows no edits before, as Serena does: let it write, look, and put all back.

It happens within the lock and the journal of the workspace, so that a kill in the middle is put back by the next edit.
What it came to is previewed, and written, like every other edit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from turnout.code.intelligence import IntelligenceError, NotSupportedError
from turnout.code.journal import Entry, Journal, hash_of
from turnout.code.lsp_servers import LANGUAGES
from turnout.code.preview import FileChange
from turnout.errors import EditError
from turnout.files import read_file
from turnout.guard.records import EditedFile

# The most files that are looked through for the old name, and the most bytes of those that hold it.
MAX_LOOKED, MAX_HELD = 20_000, 64_000_000

_P = ParamSpec("_P")
_T = TypeVar("_T")
log = logging.getLogger("turnout")


class Renamer(Protocol):
    """Renames and writes at once. Raises ``IntelligenceError``; then files may have been changed all the same."""

    async def write_rename(self, path: str, name_path: str, new_name: str) -> None:
        """As ``SymbolWriter.write_rename``."""

    async def give_up(self) -> None:
        """Nothing of what was asked is written any more when this returns."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Tries renames in one workspace.

    Attributes:
        journal: of the workspace.
        root: the workspace, resolved.
        renamer: who writes.
        note: told before and after, for the audit log: the phase, the files, and why they are as before.
    """

    journal: Journal
    root: Path
    renamer: Renamer
    note: Callable[[str, tuple[EditedFile, ...], str], None]

    async def rename(self, path: str, name_path: str, name: str) -> dict[str, bytes]:
        """The files that a rename changes, and what they would hold. When this returns they are as before.

        Raises:
            EditError: it cannot be renamed, and why.
            StorageError, AuditError: nothing was tried.
        """
        old = re.split(r"[./:]", re.sub(r"\[\d+\]$", "", name_path))[-1]
        with self.journal.locked():
            for line in await to_its_end(self.journal.recover):
                log.warning("%s", line)
            entry = await to_its_end(self._begin, path, old, name)
            try:
                await self._written(path, name_path, name)
            finally:
                tried = self._put_back(entry)
        if not tried:
            raise EditError(f"nothing came of renaming {old} to {name}")
        return tried

    def _begin(self, path: str, old: str, name: str) -> Entry:
        files = list(self._holding(old, Path(path).suffix.lower()))
        self.note("start", tuple(EditedFile(c.path, hash_of(c.before), hash_of(c.before)) for c in files), "")
        return self.journal.begin(files, renames=(old, name))

    async def _written(self, path: str, name_path: str, name: str) -> None:
        try:
            await self.renamer.write_rename(path, name_path, name)
        except NotSupportedError as error:
            raise EditError(str(error)) from error
        except BaseException as error:  # it may go on writing
            await _shielded(self.renamer.give_up())
            if isinstance(error, IntelligenceError):
                raise EditError(str(error)) from error
            raise

    def _put_back(self, entry: Entry) -> dict[str, bytes]:
        """At once and in this thread, as nothing may come in between. Returns what the files held."""
        tried = {}
        for file in entry.files:
            try:
                now = read_file(self.root / file.path)
            except OSError:
                file.after = None
                continue
            file.after = hash_of(now)
            if file.after != file.before:
                tried[file.path] = now
        self.journal.put_back(entry)
        self.note("end", tuple(EditedFile(f.path, f.before, f.before) for f in entry.files), "tried")
        return tried

    def _holding(self, name: str, suffix: str) -> Iterator[FileChange]:
        """Every file of the language that has the name in its text, also where edits must not go: Serena may."""
        wanted, held = name.encode(), 0
        for number, path in enumerate(self._files(suffix)):
            if number >= MAX_LOOKED:
                raise EditError(
                    f"the workspace has more than {MAX_LOOKED:,} files in which the name would be looked for"
                )
            try:
                data, status = read_file(path), path.lstat()
            except OSError as error:
                raise EditError(f"{path.relative_to(self.root)} cannot be read: {error.strerror}") from None
            if wanted not in data:
                continue
            held += len(data)
            if held > MAX_HELD:
                raise EditError(f"the files that hold the name have more than {MAX_HELD:,} bytes")
            if path.is_symlink():
                raise EditError(f"{path.relative_to(self.root)} holds the name and is a link")
            shown = path.relative_to(self.root).as_posix()
            if not shown.isascii() and shown != shown.encode("utf-8", "replace").decode():
                raise EditError(f"{shown!a} holds the name, and what it is called itself is no UTF-8")
            yield FileChange(shown, data, data, status.st_mode & 0o7777)

    def _files(self, suffix: str) -> Iterator[Path]:
        known = next((one.suffixes for one in LANGUAGES.values() if suffix in one.suffixes), {suffix: ""})
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if name != ".git")
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix.lower() in known and path.is_file():
                    yield path


async def to_its_end(work: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
    """Run it in a thread, and when this is cancelled wait until it has ended: files are not left to a thread that
    nobody looks after."""
    return await _shielded(asyncio.to_thread(work, *args, **named))


async def _shielded(work: Coroutine[Any, Any, _T]) -> _T:
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
