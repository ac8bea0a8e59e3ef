"""The text provider, which always works: names in the query, looked up in the workspace within a time budget."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from turnout.code.enrich import (
    SHOWN_DEFINITIONS,
    SHOWN_REFERENCES,
    place_line,
    without_private_keys,
    without_secrets,
)
from turnout.code.excerpt import MAX_LINE, around, beginning, cost
from turnout.code.provider import CodeContext, Excerpt, Reference
from turnout.code.symbols import DEFINES, Symbol, block_end, enclosing, names_around, symbols_in
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
class Found:
    """What the text of a workspace has for a query.

    Attributes:
        root: the workspace.
        names: what was looked for.
        mentioned: the files that the query names, as it writes them.
        here: the file the user is in, where it may be read.
        line: the line that is asked about, 1-based, or 0.
        named: the files of the workspace that are meant by ``mentioned``.
        read: how many files were read.
        cut: why not more was read, "" when everything was.
        unread: the file the user is in, where it may not be read.
    """

    root: Path
    names: tuple[str, ...] = ()
    mentioned: tuple[str, ...] = ()
    here: Path | None = None
    line: int = 0
    definitions: list[Reference] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    named: list[Path] = field(default_factory=list)
    read: int = 0
    cut: str = ""
    unread: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files at hand, the user's own first."""
        return tuple(dict.fromkeys([*([self.here] if self.here else []), *self.named]))[:MAX_OUTLINES]


@dataclass(frozen=True, slots=True)
class _Page:
    """A file as it is looked at: ``name`` is relative to the workspace."""

    name: str
    lines: tuple[str, ...]
    symbols: tuple[Symbol, ...]

    def excerpt(self, first: int, last: int, marked: int = 0) -> Excerpt:
        # Of a line that is long only the beginning is shown: the rest must not cost the time to look for secrets in it.
        lines = (line[: 2 * MAX_LINE] for line in self.lines[first - 1 : last])
        shown = without_secrets("\n".join(lines)).split("\n")
        return Excerpt(self.name, first, tuple(shown), len(self.lines), marked)

    def outline(self) -> list[str]:
        return [f"- {s.title} (line {s.line})" for s in self.symbols]


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
    found = find(query, file_context, workspace, deadline)
    return pack(found, deadline, room) if found is not None else None


def find(query: str, file_context: FileContext | None, workspace: Path, deadline: float) -> Found | None:
    """What there is, before it is decided what of it is sent; None when there is no workspace.

    Raises:
        UsageError: the position is beyond the end of the file.
    """
    root = workspace.resolve()
    if not root.is_dir():
        return None
    names, mentioned = names_in(query), tuple(dict.fromkeys(_FILE.findall(query)))
    found = Found(root, names, mentioned, line=_line(file_context))
    here = inside(root, file_context.file) if file_context else None
    found.here = here if here is not None and _has_text(here) else None
    if found.here is not None and found.line:
        _check_line(_page(root, found.here, 0.0), found.line)
    found.unread = file_context.file if file_context and found.here is None else ""
    found.named += [path for text in mentioned if (path := inside(root, text)) is not None]
    sought = tuple(text for text in mentioned if inside(root, text) is None)
    if names or sought:
        _search(found, names, sought, deadline)
    return found


def pack(
    found: Found,
    deadline: float,
    room: int,
    wholes: Mapping[tuple[str, int], tuple[int, int]] | None = None,
    outlines: Mapping[str, Sequence[str]] | None = None,
) -> CodeContext:
    """What is sent of it. Deterministic, but for what ``deadline`` (monotonic seconds) cuts.

    Args:
        found: what there is.
        deadline: after it, nothing more is read.
        room: characters there is room for.
        wholes: first and last line of definitions that somebody knows better, by path and line.
        outlines: rows of the outlines that somebody knows better, by path.
    """
    pages = {path: _page(found.root, path, deadline) for path in found.files}
    references = _placed(found, pages, deadline)
    listed = [*references[:SHOWN_REFERENCES], *found.definitions[:SHOWN_DEFINITIONS]]
    room -= sum(len(place_line(place)) + 1 for place in listed)
    excerpts = _excerpts(pages, found.here, found.line, room)
    room -= sum(cost(excerpt.lines) for excerpt in excerpts)
    bodies = _bodies(found, pages, excerpts, deadline, room, wholes or {})
    room -= sum(cost(body.lines) for body in bodies)
    return CodeContext(
        "text search",
        references=references,
        definitions=tuple(found.definitions),
        outline=_outline(pages.values(), outlines or {}, room),
        excerpts=excerpts,
        bodies=bodies,
        note=_note(found, len(pages), (*excerpts, *bodies)),
    )


def _line(file_context: FileContext | None) -> int:
    """The line that is asked about, 1-based, or 0."""
    return file_context.position.line + 1 if file_context is not None and file_context.position is not None else 0


def _check_line(page: _Page, line: int) -> None:
    if line > len(page.lines):
        has = f"{len(page.lines)} {'line' if len(page.lines) == 1 else 'lines'}"
        raise UsageError(f"{page.name} has {has}, there is no line {line}", hint="give a line of the file")


def _note(found: Found, pages: int, sent: Sequence[Excerpt]) -> str:
    """What was looked for and found, in words."""
    sought = (*found.names, *found.mentioned)
    what = f"looked for {', '.join(sought)}" if sought else "no name in the question"
    read = found.read if found.names else pages
    note = f"{what}, {read} {'file' if read == 1 else 'files'} read{found.cut}"
    if sent:
        note += f"; sent: {', '.join(f'{e.path} lines {e.first} to {e.last}' for e in sent)}"
    if found.unread:
        note += f"; {found.unread} is not read: a secret, no text, too large, or outside the workspace"
    return note


def _has_text(path: Path) -> bool:
    return bool(_text(path)) or not path.stat().st_size


def _page(root: Path, path: Path, deadline: float) -> _Page:
    text = without_private_keys(_text(path))
    lines = tuple(text.split("\n"))
    if len(lines) > 1 and not lines[-1]:
        lines = lines[:-1]
    symbols = symbols_in(text, lines, path.suffix) if time.monotonic() < deadline else ()
    return _Page(path.relative_to(root).as_posix(), lines, symbols)


def _placed(found: Found, pages: Mapping[Path, _Page], deadline: float) -> tuple[Reference, ...]:
    """The references, those that are shown with what they stand in: who calls is asked more often than where."""
    placed, texts = list[Reference](), {page.name: page.lines for page in pages.values()}
    for place in found.references[:SHOWN_REFERENCES]:
        if place.path not in texts:
            path = inside(found.root, place.path) if time.monotonic() < deadline else None
            texts[place.path] = tuple(_text(path).split("\n")) if path is not None else ()
        lines = texts[place.path]
        within = names_around(lines, place.line) if 0 < place.line <= len(lines) else ""
        placed.append(replace(place, within=within))
    return (*placed, *found.references[SHOWN_REFERENCES:])


def _excerpts(pages: dict[Path, _Page], here: Path | None, line: int, room: int) -> tuple[Excerpt, ...]:
    """The code at the position; without one, the beginning of the file at hand and of files that have no symbols."""
    found: list[Excerpt] = []
    for path, page in pages.items():
        if path == here and 0 < line <= len(page.lines):
            first, last = around(page.lines, line, enclosing(page.symbols, page.lines, line), room)
            found.append(page.excerpt(first, last, line))
        elif page.lines != ("",) and (path == here or not page.symbols):
            most = len(page.lines) if path == here else MAX_BEGINNING
            if last := beginning(page.lines, most, room):
                found.append(page.excerpt(1, last))
        room -= sum(cost(excerpt.lines) for excerpt in found[-1:] if excerpt.path == page.name)
    return tuple(found)


def _bodies(
    found: Found,
    pages: dict[Path, _Page],
    excerpts: Sequence[Excerpt],
    deadline: float,
    room: int,
    wholes: Mapping[tuple[str, int], tuple[int, int]],
) -> tuple[Excerpt, ...]:
    """The whole of each definition that is longer than its line, fits, and is not sent already."""
    bodies: list[Excerpt] = []
    for definition in found.definitions[:SHOWN_DEFINITIONS]:
        path = found.root / definition.path
        if path not in pages:
            if time.monotonic() > deadline:
                break
            pages = {**pages, path: _page(found.root, path, deadline)}
        page = pages[path]
        if definition.line > len(page.lines):
            continue  # the file was changed in between
        first, last = wholes.get((definition.path, definition.line)) or _whole(page, definition.line)
        last = min(last, len(page.lines))
        sent = any(e.path == page.name and e.first <= first and last <= e.last for e in (*excerpts, *bodies))
        price = cost(page.lines[first - 1 : last])
        if last > first and not sent and price <= room:
            bodies.append(page.excerpt(first, last))
            room -= price
    return tuple(bodies)


def _whole(page: _Page, line: int) -> tuple[int, int]:
    """First and last line of what is defined at a line."""
    whole = next((s for s in page.symbols if s.line == line), None)
    return (whole.first, whole.last) if whole else (line, block_end(page.lines, line))


def _outline(pages: Iterable[_Page], outlines: Mapping[str, Sequence[str]], room: int) -> str:
    known = ((page.name, outlines.get(page.name) or page.outline()) for page in pages)
    rows = [row for name, listed in known if listed for row in (f"{name}:", *listed[:MAX_OUTLINED])]
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


def _search(found: Found, names: tuple[str, ...], named: tuple[str, ...], deadline: float) -> None:
    either = "|".join(map(re.escape, names)) or r"(?!)"
    whole, defines = re.compile(rf"\b(?:{either})\b"), re.compile(DEFINES.replace("{name}", f"(?:{either})"))
    wanted = tuple(f"/{name.lstrip('./')}" for name in named)
    for path in files_of(found.root):
        if time.monotonic() > deadline or found.read >= MAX_FILES:
            found.cut = ", stopped at the limit"
            break
        found.read += 1
        shown = path.relative_to(found.root).as_posix()
        if wanted and f"/{shown}".endswith(wanted):
            found.named.append(path)
        if names and whole.search(text := _text(path)):
            _look_through(text, shown, whole, defines, found)


def _look_through(text: str, shown: str, whole: re.Pattern[str], defines: re.Pattern[str], found: Found) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) < 1000 and whole.search(line):
            into = found.definitions if defines.search(line) else found.references
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
