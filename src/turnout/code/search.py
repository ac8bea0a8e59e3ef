"""The text provider, which always works: names in the query, looked up in the workspace within a time budget."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from turnout.code.provider import CodeContext, Reference
from turnout.types import FileContext, TaskCategory

MAX_FILES, MAX_FILE_BYTES, MAX_NAMES, MAX_FOUND = 5000, 1_000_000, 6, 200
_SKIPPED = frozenset(
    (".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", "venv", ".tox", "dist", "build", "target", ".cache")
)
_SECRET_FILE = re.compile(
    r"(?i)^\.env|\.(?:pem|key|p12|pfx|keystore)$|^id_(?:rsa|dsa|ecdsa|ed25519)|credentials|\.netrc$"
)
_TICKED = re.compile(r"`([A-Za-z_][\w.]{1,80})(?:\(\))?`")
_NAME = re.compile(r"\b(?:[A-Za-z]+_\w+|_\w+|[a-z]+[A-Z]\w*|[A-Z][a-z0-9]+(?:[A-Z]\w*)+|[A-Za-z_]\w*(?=\(\)))")
_FILE = re.compile(r"(?<![\w/])((?:[\w.-]+/)*[\w-]+\.[A-Za-z]{1,5})\b")
_DEFINES = (
    r"^\s*(?:export\s+|pub(?:\([a-z]+\))?\s+|async\s+|static\s+|public\s+|private\s+|abstract\s+)*"
    r"(?:def|class|function|func|fn|struct|enum|interface|trait|type|const|let|var|module)\s+(?:\([^)]*\)\s*)?{name}\b"
    r"|^{name}\s*(?::[^=]+)?="
)


@dataclass(slots=True)
class _Finds:
    definitions: list[Reference]
    references: list[Reference]
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
    """Identifiers the query names, in its order: in backticks, in snake_case or CamelCase, or called."""
    ticked = [name.rsplit(".", 1)[-1] for name in _TICKED.findall(query)]
    return tuple(dict.fromkeys([*ticked, *_NAME.findall(query)]))[:MAX_NAMES]


def look_up(query: str, file_context: FileContext | None, workspace: Path, deadline: float) -> CodeContext | None:
    """The search itself, in a thread. Stops at ``deadline`` (monotonic seconds) with what it has."""
    root = workspace.resolve()
    if not root.is_dir():
        return None
    names = names_in(query)
    named = [*_FILE.findall(query), *([file_context.file] if file_context else [])]
    files = [path for text in dict.fromkeys(named) if (path := inside(root, text)) is not None]
    finds = _search(root, names, deadline) if names else _Finds([], [])
    outline = "\n".join(_outline(root, path) for path in files[:2])
    note = f"looked for {', '.join(names) or 'no name'} in {finds.files} files{finds.cut}"
    return CodeContext(
        "text search",
        references=tuple(finds.references),
        definitions=tuple(finds.definitions),
        outline=outline.strip(),
        note=note,
    )


def inside(root: Path, text: str) -> Path | None:
    """The file ``text`` names in the workspace, or None: outside, secret, absent, or not a file."""
    if "\x00" in text or _SECRET_FILE.search(Path(text).name):
        return None
    try:
        path = (root / text).resolve()
        ok = path.is_relative_to(root) and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
    except (OSError, ValueError):
        return None
    return path if ok else None


def _search(root: Path, names: tuple[str, ...], deadline: float) -> _Finds:
    whole = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")
    defines = re.compile(_DEFINES.replace("{name}", "(?:" + "|".join(map(re.escape, names)) + ")"))
    finds = _Finds([], [])
    for path in _files(root):
        if time.monotonic() > deadline or finds.files >= MAX_FILES:
            finds.cut = ", stopped at the limit"
            break
        finds.files += 1
        text = _text(path)
        if not whole.search(text):
            continue
        shown = path.relative_to(root).as_posix()
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) < 1000 and whole.search(line):
                into = finds.definitions if defines.search(line) else finds.references
                if len(into) < MAX_FOUND:
                    into.append(Reference(shown, number, line.strip()))
    return finds


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED and not (Path(folder) / f).is_symlink())
        for name in sorted(files):
            path = Path(folder) / name
            if not _SECRET_FILE.search(name) and not path.is_symlink():
                yield path


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return ""
        data = path.read_bytes()
    except OSError:
        return ""
    return "" if b"\x00" in data[:4096] else data.decode("utf-8", "replace")


def _outline(root: Path, path: Path) -> str:
    text, shown = _text(path), path.relative_to(root).as_posix()
    if path.suffix == ".py":
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return f"{shown}: does not parse"
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = sorted((n.lineno, n.name) for n in ast.walk(tree) if isinstance(n, kinds))
        return "\n".join((f"{shown}:", *(f"- {name} (line {line})" for line, name in found[:40])))
    pattern = re.compile(_DEFINES.replace("{name}", r"(\w+)"))
    lines = [(n, line.strip()[:80]) for n, line in enumerate(text.splitlines(), 1) if pattern.search(line[:200])]
    return "\n".join((f"{shown}:", *(f"- {line} (line {n})" for n, line in lines[:40])))
