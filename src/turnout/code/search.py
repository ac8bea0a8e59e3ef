"""The text provider, which always works: names in the query, looked up in the workspace within a time budget."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from turnout.code.provider import CodeContext, Reference
from turnout.types import FileContext, TaskCategory

MAX_FILES, MAX_FILE_BYTES, MAX_NAMES, MAX_FOUND = 5000, 1_000_000, 6, 200
MAX_OUTLINES, MAX_OUTLINED = 2, 40
# Parsing takes seconds for a megabyte, and cannot be interrupted.
_MAX_PARSED = 200_000
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
_DEFINES = (
    r"^\s*(?:export\s+|pub(?:\([a-z]+\))?\s+|async\s+|static\s+|public\s+|private\s+|abstract\s+)*"
    r"(?:def|class|function|func|fn|struct|enum|interface|trait|type|const|let|var|module)\s+(?:\([^)]*\)\s*)?{name}\b"
    r"|^{name}\s*(?::[^=]+)?="
)


_PARSING = threading.Lock()


@dataclass(slots=True)
class _Finds:
    definitions: list[Reference]
    references: list[Reference]
    named: list[Path] = field(default_factory=list)
    files: int = 0
    cut: str = ""


class TextSearch:
    """Searches text. ``budget`` is in seconds."""

    def __init__(self, budget: float = 3.0) -> None:
        self._budget = budget

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path
    ) -> CodeContext | None:
        """Definitions and uses of the names in the query, and the outline of the file at hand."""
        deadline = time.monotonic() + self._budget
        try:
            async with asyncio.timeout(self._budget + 0.2):
                return await asyncio.to_thread(look_up, query[:20_000], file_context, workspace, deadline)
        except (TimeoutError, OSError):
            return None


def names_in(query: str) -> tuple[str, ...]:
    """Identifiers the query names: those in backticks first, then dotted, snake_case, CamelCase, or called ones."""
    files = {Path(name).name for name in _FILE.findall(query)}
    ticked = [name.rsplit(".", 1)[-1] for name in _TICKED.findall(query) if name not in files or name[0].isupper()]
    dotted = [name.rsplit(".", 1)[-1] for name in _DOTTED.findall(query)]
    return tuple(dict.fromkeys([*ticked, *dotted, *_NAME.findall(query)]))[:MAX_NAMES]


def look_up(query: str, file_context: FileContext | None, workspace: Path, deadline: float) -> CodeContext | None:
    """The search itself, in a thread. Stops at ``deadline`` (monotonic seconds) with what it has."""
    root = workspace.resolve()
    if not root.is_dir():
        return None
    names = names_in(query)
    named = tuple(dict.fromkeys([*([file_context.file] if file_context else []), *_FILE.findall(query)]))
    finds = _search(root, names, named, deadline) if names or named else _Finds([], [])
    direct = [path for text in named if (path := inside(root, text)) is not None]
    files = list(dict.fromkeys([*direct, *finds.named]))[:MAX_OUTLINES]
    outline = "\n".join(_outline(root, path) for path in files if time.monotonic() < deadline)
    note = f"looked for {', '.join((*names, *named)) or 'no name'} in {finds.files} files{finds.cut}"
    return CodeContext(
        "text search",
        references=tuple(finds.references),
        definitions=tuple(finds.definitions),
        outline=outline.strip(),
        note=note,
    )


def inside(root: Path, text: str) -> Path | None:
    """The file ``text`` names in the workspace, or None: outside, skipped, secret, absent, or not a plain file."""
    try:
        path = (root / text).resolve()
        parts = path.relative_to(root).parts
        ok = path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
    except (OSError, ValueError):
        return None
    # Judged after links are followed: a harmless name may lead to a secret.
    return path if ok and not any(part in _SKIPPED or _hidden(part) for part in parts) else None


def _hidden(name: str) -> bool:
    # A name that cannot be printed cannot be shown, and half a surrogate pair cannot even be sent.
    return bool(_SECRET_FILE.search(name)) or not name.isprintable()


def _search(root: Path, names: tuple[str, ...], named: tuple[str, ...], deadline: float) -> _Finds:
    either = "|".join(map(re.escape, names)) or r"(?!)"
    whole, defines = re.compile(rf"\b(?:{either})\b"), re.compile(_DEFINES.replace("{name}", f"(?:{either})"))
    wanted = tuple(f"/{name.lstrip('./')}" for name in named)
    finds = _Finds([], [])
    for path in _files(root):
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


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and not _hidden(f))
        for name in sorted(files):
            path = Path(folder) / name
            if not _hidden(name) and not path.is_symlink():
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


def _outline(root: Path, path: Path) -> str:
    text, shown = _text(path), path.relative_to(root).as_posix()
    found = _python_outline(text) if path.suffix == ".py" and len(text) <= _MAX_PARSED else None
    if found is None:
        pattern = re.compile(_DEFINES.replace("{name}", r"(\w+)"))
        lines = enumerate(text.split("\n"), 1)
        found = [(number, line.strip()[:80]) for number, line in lines if pattern.search(line[:200])]
    if not found:
        return ""
    return "\n".join((f"{shown}:", *(f"- {name} (line {line})" for line, name in found[:MAX_OUTLINED])))


def _python_outline(text: str) -> list[tuple[int, str]] | None:
    """Lines and names of classes and functions; None when the text does not parse."""
    # The compiler's warnings about the user's code are not ours to print. The filters are the process's: one at a time.
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return sorted(_defined(tree, ""))


def _defined(node: ast.AST, prefix: str) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.lineno, f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from _defined(child, f"{prefix}{child.name}.")
