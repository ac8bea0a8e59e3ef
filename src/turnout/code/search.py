"""The text provider, which always works: names in the query, looked up in the workspace within a time budget."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from turnout.code.enrich import (
    SHOWN_DEFINITIONS,
    SHOWN_REFERENCES,
    place_line,
    without_private_keys,
    without_secrets,
)
from turnout.code.excerpt import around, beginning, cost
from turnout.code.provider import CodeContext, Excerpt, Reference
from turnout.code.symbols import DEFINES, Symbol, block_end, enclosing, symbols_in
from turnout.errors import UsageError
from turnout.types import FileContext, TaskCategory

MAX_FILES, MAX_FILE_BYTES, MAX_NAMES, MAX_FOUND = 5000, 1_000_000, 6, 200
MAX_OUTLINES, MAX_OUTLINED = 2, 40
# Of a file that the query names and that has no symbols.
MAX_BEGINNING = 40
_SKIPPED = frozenset(
    (".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", "venv", ".tox", "dist", "build", "target", ".cache")
)
_SECRET_FILE = re.compile(
    r"(?i)^\.env|\.(?:pem|key|p12|pfx|jks|kdbx|keystore|tfstate)$|^id_(?:rsa|dsa|ecdsa|ed25519)|credentials"
    r"|^\.(?:netrc|npmrc|pypirc|pgpass|htpasswd|ssh|aws|gnupg|kube)$"
)
_TICKED = re.compile(r"`([A-Za-z_][\w.]{1,80})(?:\(\))?`")
_NAME = re.compile(
    r"(?<![\w/])(?:[A-Za-z_]\w*_\w+|_\w+|[a-z]+[A-Z]\w*|[A-Z][a-z0-9]+[A-Z]\w*|[A-Z]{2,}[a-z]\w+|[A-Za-z_]\w*(?=\(\)))"
)
# A name after a dot, when what stands before it looks like code: os_utils.join, Config.load, self.total.
_DOTTED = re.compile(r"(?<![\w/.])(?:[A-Z]\w*+|(?=\w*_)\w++|self|this)((?:\.[A-Za-z_]\w{2,})+)\b(?!/)")
_FILE = re.compile(r"(?<![\w/.-])(/?(?:[\w.-]+/)*[\w-]+\.[A-Za-z]\w{0,4})\b")


@dataclass(slots=True)
class _Finds:
    definitions: list[Reference]
    references: list[Reference]
    named: list[Path] = field(default_factory=list)
    files: int = 0
    cut: str = ""


@dataclass(frozen=True, slots=True)
class _Page:
    """A file as it is looked at: ``name`` is relative to the workspace."""

    name: str
    lines: tuple[str, ...]
    symbols: tuple[Symbol, ...]

    def excerpt(self, first: int, last: int, marked: int = 0) -> Excerpt:
        shown = without_secrets("\n".join(self.lines[first - 1 : last])).split("\n")
        return Excerpt(self.name, first, tuple(shown), len(self.lines), marked)

    def outline(self) -> list[str]:
        return [f"{self.name}:", *(f"- {s.title} (line {s.line})" for s in self.symbols[:MAX_OUTLINED])]


class TextSearch:
    """Searches text. ``budget`` is in seconds."""

    def __init__(self, budget: float = 3.0) -> None:
        self._budget = budget

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path, room: int
    ) -> CodeContext | None:
        """The code at the position, definitions and uses of the names in the query, the outline of the file at hand.

        Raises:
            UsageError: the position is beyond the end of the file.
        """
        deadline = time.monotonic() + self._budget
        try:
            async with asyncio.timeout(self._budget + 0.2):
                return await asyncio.to_thread(look_up, query[:20_000], file_context, workspace, deadline, room)
        except (TimeoutError, OSError):
            return None


def names_in(query: str) -> tuple[str, ...]:
    """Identifiers the query names: those in backticks first, then dotted, snake_case, CamelCase, or called ones."""
    files = {Path(name).name for name in _FILE.findall(query)}
    ticked = [name.rsplit(".", 1)[-1] for name in _TICKED.findall(query) if name not in files or name[0].isupper()]
    dotted = [name.rsplit(".", 1)[-1] for name in _DOTTED.findall(query)]
    return tuple(dict.fromkeys([*ticked, *dotted, *_NAME.findall(query)]))[:MAX_NAMES]


def look_up(
    query: str, file_context: FileContext | None, workspace: Path, deadline: float, room: int
) -> CodeContext | None:
    """The search itself, in a thread. Stops at ``deadline`` (monotonic seconds) with what it has.

    Raises:
        UsageError: the position is beyond the end of the file.
    """
    root = workspace.resolve()
    if not root.is_dir():
        return None
    names, mentioned = names_in(query), tuple(dict.fromkeys(_FILE.findall(query)))
    here = inside(root, file_context.file) if file_context else None
    here = here if here is not None and _has_text(here) else None
    direct = [path for text in mentioned if (path := inside(root, text)) is not None]
    sought = tuple(text for text in mentioned if inside(root, text) is None)
    finds = _search(root, names, sought, deadline) if names or sought else _Finds([], [])
    files = list(dict.fromkeys([*([here] if here else []), *direct, *finds.named]))[:MAX_OUTLINES]
    pages = {path: _page(root, path, deadline) for path in files}
    listed = [*finds.references[:SHOWN_REFERENCES], *finds.definitions[:SHOWN_DEFINITIONS]]
    room -= sum(len(place_line(place)) + 1 for place in listed)
    excerpts = _excerpts(pages, here, _line(file_context), room)
    room -= sum(cost(excerpt.lines) for excerpt in excerpts)
    bodies = _bodies(root, finds.definitions[:SHOWN_DEFINITIONS], pages, excerpts, deadline, room)
    room -= sum(cost(body.lines) for body in bodies)
    unread = file_context.file if file_context and here is None else ""
    return CodeContext(
        "text search",
        references=tuple(finds.references),
        definitions=tuple(finds.definitions),
        outline=_outline(pages.values(), room),
        excerpts=excerpts,
        bodies=bodies,
        note=_note((*names, *mentioned), finds.files if names else len(pages), finds.cut, (*excerpts, *bodies), unread),
    )


def _line(file_context: FileContext | None) -> int:
    """The line that is asked about, 1-based, or 0."""
    return file_context.position.line + 1 if file_context is not None and file_context.position is not None else 0


def _note(sought: Sequence[str], read: int, cut: str, sent: Sequence[Excerpt], unread: str) -> str:
    """What was looked for and found, in words."""
    what = f"looked for {', '.join(sought)}" if sought else "no name in the question"
    note = f"{what}, {read} {'file' if read == 1 else 'files'} read{cut}"
    if sent:
        note += f"; sent: {', '.join(f'{e.path} lines {e.first} to {e.last}' for e in sent)}"
    return note + (f"; {unread} is not read: a secret, no text, too large, or outside the workspace" if unread else "")


def _has_text(path: Path) -> bool:
    return bool(_text(path)) or not path.stat().st_size


def _page(root: Path, path: Path, deadline: float) -> _Page:
    text = without_private_keys(_text(path))
    lines = tuple(text.split("\n"))
    if len(lines) > 1 and not lines[-1]:
        lines = lines[:-1]
    symbols = symbols_in(text, lines, path.suffix) if time.monotonic() < deadline else ()
    return _Page(path.relative_to(root).as_posix(), lines, symbols)


def _excerpts(pages: dict[Path, _Page], here: Path | None, line: int, room: int) -> tuple[Excerpt, ...]:
    """The code at the position; without one, the beginning of the file at hand and of files that have no symbols."""
    found: list[Excerpt] = []
    for path, page in pages.items():
        if path == here and line:
            if line > len(page.lines):
                has = f"{len(page.lines)} {'line' if len(page.lines) == 1 else 'lines'}"
                raise UsageError(f"{page.name} has {has}, there is no line {line}", hint="give a line of the file")
            first, last = around(page.lines, line, enclosing(page.symbols, page.lines, line), room)
            found.append(page.excerpt(first, last, line))
        elif page.lines != ("",) and (path == here or not page.symbols):
            most = len(page.lines) if path == here else MAX_BEGINNING
            if last := beginning(page.lines, most, room):
                found.append(page.excerpt(1, last))
        room -= sum(cost(excerpt.lines) for excerpt in found[-1:] if excerpt.path == page.name)
    return tuple(found)


def _bodies(
    root: Path,
    definitions: Sequence[Reference],
    pages: dict[Path, _Page],
    excerpts: Sequence[Excerpt],
    deadline: float,
    room: int,
) -> tuple[Excerpt, ...]:
    """The whole of each definition that is longer than its line, fits, and is not sent already."""
    found: list[Excerpt] = []
    for definition in definitions:
        path = root / definition.path
        if path not in pages:
            if time.monotonic() > deadline:
                break
            pages = {**pages, path: _page(root, path, deadline)}
        page = pages[path]
        if definition.line > len(page.lines):
            continue  # the file was changed in between
        whole = next((s for s in page.symbols if s.line == definition.line), None)
        first, last = (whole.first, whole.last) if whole else (definition.line, block_end(page.lines, definition.line))
        sent = any(e.path == page.name and e.first <= first and last <= e.last for e in (*excerpts, *found))
        price = cost(page.lines[first - 1 : last])
        if last > first and not sent and price <= room:
            found.append(page.excerpt(first, last))
            room -= price
    return tuple(found)


def _outline(pages: Iterable[_Page], room: int) -> str:
    rows = [row for page in pages if page.symbols for row in page.outline()]
    shown: list[str] = []
    for row in rows:
        room -= len(row) + 1
        if room < 0:
            break
        shown.append(row)
    return "\n".join(shown)


def inside(root: Path, text: str) -> Path | None:
    """The file ``text`` names in the workspace, or None: outside, skipped, secret, absent, or not a plain file."""
    try:
        path = (root / text).resolve()
        parts = path.relative_to(root).parts
        ok = path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
    except (OSError, ValueError):
        return None
    # Judged after links are followed: a harmless name may lead to a secret.
    return path if ok and not any(map(is_skipped, parts)) else None


def is_skipped(folder: str) -> bool:
    """Whether a folder of that name is not looked into."""
    return folder in _SKIPPED or is_hidden(folder)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is never shown: a secret, or nothing that can be printed."""
    # A name that cannot be printed cannot be shown, and half a surrogate pair cannot even be sent.
    return bool(_SECRET_FILE.search(name)) or not name.isprintable()


def _search(root: Path, names: tuple[str, ...], named: tuple[str, ...], deadline: float) -> _Finds:
    either = "|".join(map(re.escape, names)) or r"(?!)"
    whole, defines = re.compile(rf"\b(?:{either})\b"), re.compile(DEFINES.replace("{name}", f"(?:{either})"))
    wanted = tuple(f"/{name.lstrip('./')}" for name in named)
    finds = _Finds([], [])
    for path in files_of(root):
        if time.monotonic() > deadline or finds.files >= MAX_FILES:
            finds.cut = ", stopped at the limit"
            break
        finds.files += 1
        shown = path.relative_to(root).as_posix()
        if wanted and f"/{shown}".endswith(wanted):
            finds.named.append(path)
        if names and whole.search(text := _text(path)):
            _look_through(text, shown, whole, defines, finds)
    return finds


def _look_through(text: str, shown: str, whole: re.Pattern[str], defines: re.Pattern[str], finds: _Finds) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) < 1000 and whole.search(line):
            into = finds.definitions if defines.search(line) else finds.references
            if len(into) < MAX_FOUND:
                into.append(Reference(shown, number, line.strip()))


def files_of(root: Path) -> Iterator[Path]:
    """The files of a workspace in their order, without secrets, links and what is not the user's own work."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not is_skipped(f))
        for name in sorted(files):
            path = Path(folder) / name
            if not is_hidden(name) and not path.is_symlink():
                yield path


def _text(path: Path) -> str:
    """The text of a plain file; "" for a pipe or device (reading would not end), a large or a binary file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return ""
        data = path.read_bytes()
    except OSError:
        return ""
    return "" if b"\x00" in data[:4096] else data.decode("utf-8", "replace").replace("\r\n", "\n")
