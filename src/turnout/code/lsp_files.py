"""The files of a workspace as a language server must see them: what is open there, and what changed on the disk.

Characters count in UTF-16 units, as in LSP. A file is decoded as UTF-8, and what is no UTF-8 becomes U+FFFD: since the
server is told that text, its columns are those of the text that everybody else here reads.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from turnout.code.intelligence import IntelligenceError
from turnout.code.search import MAX_FILE_BYTES, is_hidden, is_skipped

# More files than that are not looked through before every question, but in the background, so often (seconds).
WATCHED_AT_ONCE, WATCHED, WATCH_SECONDS = 5000, 50_000, 5.0
MAX_OPEN = 64
CREATED, CHANGED, DELETED = 1, 2, 3
_LINE_END = re.compile(r"\r\n|\r|\n")
# A file written so short a time ago may be written again without a new time stamp.
_RACY_NS = 100_000_000

Stamp = tuple[int, int, int]

# Questions that belong together see the files as they were at this time or later (seconds, monotonic); one that stands
# alone sees them as they are.
AS_OF: ContextVar[float] = ContextVar("as_of", default=math.inf)


def stamp_of(path: Path) -> Stamp | None:
    """What changes when a file does: its time, size and inode; None when there is no plain file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def path_of(uri: str) -> Path | None:
    """The file that a URI names, None for anything but a file."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return None
    text = unquote(parts.path)
    return Path(text[1:] if os.name == "nt" else text)


def lines_of(text: str) -> tuple[str, ...]:
    """The lines as LSP counts them: there is one after the last line end, too."""
    return tuple(_LINE_END.split(text))


def utf16_length(text: str) -> int:
    """UTF-16 units that a text takes."""
    return len(text) + sum(character > "\uffff" for character in text)


def to_code_points(line: str, character: int) -> int:
    """The index in ``line`` of a UTF-16 column; of one within a pair the pair's, of one beyond the end the end."""
    for index, letter in enumerate(line):
        if character <= 0:
            return index
        character -= 2 if letter > "\uffff" else 1
        if character < 0:
            return index
    return len(line)


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        IntelligenceError: it cannot be read, is too large, or is no text.
    """
    try:
        if stamp_of(path) is None or path.stat().st_size > MAX_FILE_BYTES:
            raise IntelligenceError(f"{path.name} is no file, or larger than {MAX_FILE_BYTES:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise IntelligenceError(f"{path.name} cannot be read: {error.strerror}") from error
    if b"\x00" in data[:4096]:
        raise IntelligenceError(f"{path.name} is no text")
    return data.decode("utf-8-sig", "replace")


@dataclass(slots=True)
class Document:
    """A file that is open at the server. ``stamp`` is None when it must be read again."""

    uri: str
    text: str
    lines: tuple[str, ...]
    stamp: Stamp | None
    version: int = 1
    told: int = 0


class Documents:
    """What is open at one server, at most ``MAX_OPEN`` files. ``tell`` sends a notification.

    Attributes:
        changes: grows whenever the server was told of a change.
        changed_at: when that was, in seconds of the loop.
    """

    def __init__(self, languages: Callable[[str], str], tell: Callable[[str, object], None]) -> None:
        self._languages, self._tell = languages, tell
        self._open: OrderedDict[Path, Document] = OrderedDict()
        self.changes, self.changed_at = 0, 0.0

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: Path) -> Document | None:
        """An open file as it was told to the server."""
        return self._open.get(path)

    def refresh(self) -> None:
        """Tell of every open file that changed on the disk or is gone."""
        for path, document in list(self._open.items()):
            if document.stamp is None or document.stamp != stamp_of(path):
                try:
                    self._update(path, document)
                except IntelligenceError:
                    self._close(path)

    def open(self, path: Path) -> Document:
        """A file, open at the server as it is on the disk now.

        Raises:
            IntelligenceError: it cannot be read.
        """
        document = self._open.get(path)
        if document is None:
            return self._begin(path)
        self._open.move_to_end(path)
        if document.stamp is None or document.stamp != stamp_of(path):
            self._update(path, document)
        return document

    def _begin(self, path: Path) -> Document:
        stamp, text = _now(path)
        document = self._open[path] = Document(path.as_uri(), text, lines_of(text), stamp)
        item = {"uri": document.uri, "languageId": self._languages(path.suffix), "version": 1, "text": text}
        self._notify("textDocument/didOpen", {"textDocument": item}, document)
        while len(self._open) > MAX_OPEN:
            self._close(next(iter(self._open)))
        return document

    def _update(self, path: Path, document: Document) -> None:
        document.stamp, text = _now(path)
        if text == document.text:
            return
        document.text, document.lines = text, lines_of(text)
        document.version += 1
        item = {"uri": document.uri, "version": document.version}
        changes = [{"text": text}]
        self._notify("textDocument/didChange", {"textDocument": item, "contentChanges": changes}, document)

    def _close(self, path: Path) -> None:
        document = self._open.pop(path)
        self._notify("textDocument/didClose", {"textDocument": {"uri": document.uri}}, document)

    def _notify(self, method: str, params: object, document: Document) -> None:
        self.changed()
        document.told = self.changes
        self._tell(method, params)

    def changed(self) -> None:
        """Count a change that the server is told of."""
        self.changes += 1
        self.changed_at = asyncio.get_running_loop().time()


def _now(path: Path) -> tuple[Stamp | None, str]:
    stamp = stamp_of(path)
    text = read_text(path)
    fresh = stamp is not None and time.time_ns() - stamp[0] < _RACY_NS
    return (None if fresh else stamp), text


class Watch:
    """Looks which files of a workspace changed: a server reads those that are not open by itself, but only once.

    Args:
        root: the workspace.
        wanted: whether a file of that name is looked at.
    """

    def __init__(self, root: Path, wanted: Callable[[str], bool]) -> None:
        self._root, self._wanted = root, wanted
        self._seen: dict[str, Stamp | None] = {}
        self._one = asyncio.Lock()
        self._asked = self._covered = 0
        self._background: asyncio.Task[list[tuple[str, int]]] | None = None
        self._looked = -math.inf

    async def begin(self) -> None:
        """Remember what is there, before the server looks at it."""
        self._seen = await asyncio.to_thread(stamps, self._root, self._wanted, WATCHED)

    def first(self, wanted: Callable[[str], bool]) -> Path | None:
        """The first file whose name is wanted, or None when there is none."""
        name = min(filter(wanted, self._seen), default=None)
        return self._root / name if name is not None else None

    async def changes(self) -> list[tuple[str, int]]:
        """URI and kind of what was created, changed or deleted since the last look, by a look that begins now.

        Who asks while another looks shares the look after it. Of very many files only what a look in the background
        found until now.
        """
        if len(self._seen) > WATCHED_AT_ONCE:
            return self._found_in_background()
        self._asked += 1
        mine = self._asked
        async with self._one:
            if self._covered >= mine or self._looked >= AS_OF.get():
                return []
            covers, began = self._asked, time.monotonic()
            found = await self._compare()
            self._covered, self._looked = covers, began
            return found

    def _found_in_background(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        if self._background is not None and self._background.done():
            found, self._background = self._background.result(), None
        if self._background is None and time.monotonic() - self._looked > WATCH_SECONDS:
            self._looked = time.monotonic()
            self._background = asyncio.create_task(self._compare())
        return found

    async def _compare(self) -> list[tuple[str, int]]:
        now = await asyncio.to_thread(stamps, self._root, self._wanted, WATCHED)
        before, self._seen = self._seen, now
        kinds = [(name, CHANGED if name in before else CREATED) for name in now if _differs(before, name, now[name])]
        kinds += [(name, DELETED) for name in before if name not in now]
        return [((self._root / name).as_uri(), kind) for name, kind in kinds]

    async def aclose(self) -> None:
        """Stop looking."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])


def stamps(root: Path, wanted: Callable[[str], bool], most: int) -> dict[str, Stamp | None]:
    """The files of a workspace by their relative paths, ``most`` at most; without secrets, links and what is not the
    user's own work. A file written so short a time ago that it may change unseen has no stamp."""
    found: dict[str, Stamp | None] = {}
    racy, cut = time.time_ns() - _RACY_NS, len(str(root)) + 1
    folders = [str(root)]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                if not is_skipped(entry.name):
                    folders.append(entry.path)
            elif wanted(entry.name) and entry.is_file(follow_symlinks=False) and not is_hidden(entry.name):
                stamp = _stamp_of_entry(entry)
                found[entry.path[cut:]] = None if stamp is None or stamp[0] > racy else stamp
                if len(found) >= most:
                    return found
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []  # it vanished, or is not ours to read


def _stamp_of_entry(entry: os.DirEntry[str]) -> Stamp | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _differs(before: dict[str, Stamp | None], name: str, stamp: Stamp | None) -> bool:
    return name not in before or before[name] is None or stamp is None or before[name] != stamp
