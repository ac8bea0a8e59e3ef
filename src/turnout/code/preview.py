"""What files would hold after proposed edits: computed in memory, nothing is written. Shown as diffs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from turnout.code.match import changed, closed, opened
from turnout.code.paths import checked
from turnout.code.proposal import Gone, Hunks, Moved, NewBody, NewName, ProposedEdit, Unclear, Whole
from turnout.code.replace import with_new_body
from turnout.code.search import MAX_FILE_BYTES, files_of
from turnout.code.symbols import parsed
from turnout.code.unified import unified
from turnout.errors import EditError

_SEARCHED = 5000
_MARK = r"(?:#|//|--|/\*+|<!--|\{/\*|;|%|\*)"
# Lines that stand for code that is left out. A lone ``...`` is Python.
_LEFT_OUT = re.compile(
    rf"(?i)\s*(?:{_MARK}\s*\(?(?:\.{{3,}}|…)|(?:\.{{3,}}|…)\s*\(?(?:rest|existing|unchanged|remaining|other|same|previous)\b"
    rf"|{_MARK}\s*\(?(?:the\s+)?(?:rest of|existing|remaining|other|previous)\b.{{0,50}}"
    r"\b(?:unchanged|(?:remains?|stays?|is|are) (?:the same|as is|as before)|same as before|goes? here|omitted)"
    rf"|{_MARK}\s*\(?(?:the\s+)?rest of (?:the |your )?(?:code|file|class|function|methods?|module|implementation)\b)"
)
_REDACTED = "[redacted]"
_SHORT = 10


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file before and after.

    Attributes:
        path: relative to the workspace, with ``/``.
        before, after: its bytes; None where there is no file.
        mode: its permissions, 0 for what a new file gets.
        doubts: why it may not be what was meant, for people; such a change is made only when somebody has seen them.
    """

    path: str
    before: bytes | None
    after: bytes | None
    mode: int = 0
    doubts: tuple[str, ...] = ()

    @property
    def action(self) -> str:
        """``create``, ``delete`` or ``change``."""
        return "create" if self.before is None else "delete" if self.after is None else "change"

    def diff(self) -> list[str]:
        """The lines of a unified diff, its head included, without line breaks."""
        return list(_diff_of(self))

    def counts(self) -> tuple[int, int]:
        """Lines that come and that go."""
        body = self.diff()[2:]
        return sum(line.startswith("+") for line in body), sum(line.startswith("-") for line in body)


@dataclass(frozen=True, slots=True)
class Problem:
    """An edit that cannot be carried out: the path and line of the answer, why, and the nearest lines of the file."""

    path: str
    line: int
    reason: str
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """What proposed edits come to.

    Attributes:
        workspace: resolved.
        changes: every file that would change, once, in the order of the answer.
        problems: edits that cannot be carried out; as long as there is one, nothing of the answer is.
        unclear: what of the answer could not be understood.
    """

    workspace: Path
    changes: tuple[FileChange, ...] = ()
    problems: tuple[Problem, ...] = ()
    unclear: tuple[Unclear, ...] = ()

    @property
    def empty(self) -> bool:
        """The answer proposes nothing."""
        return not (self.changes or self.problems or self.unclear)


@dataclass(frozen=True, slots=True)
class _Held:
    before: bytes | None
    now: bytes | None
    mode: int
    doubts: tuple[str, ...] = ()


class Draft:
    """The files of a workspace with edits that are not written. ``root`` is resolved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, _Held] = {}

    def take(self, edit: ProposedEdit) -> None:
        """Carry out one edit. Raises EditError: it cannot be; says why."""
        path = checked(self.root, edit.path)
        match edit.change:
            case Whole(content, new):
                self._whole(path, content, new=new)
            case Hunks(hunks):
                self.put(path, closed(changed(opened(self.content(path)), hunks)))
            case Gone(hunks):
                left = changed(opened(self.content(path)), hunks) if hunks else None
                if left is not None and left.lines:
                    raise EditError("it holds more than what the edit believes to delete")
                self._files[path] = replace(self._held(path), now=None)
            case Moved(to, hunks):
                self._move(path, checked(self.root, to), closed(changed(opened(self.content(path)), hunks)))
            case NewBody(symbol, body):
                page = opened(self.content(path))
                text = with_new_body(page.text, symbol, body, PurePosixPath(path).suffix)
                self.put(path, closed(replace(page, text=text)))
            case NewName():
                said = "renaming a symbol needs a language server or Serena, and there is none"
                raise EditError(said, hint="search and replace does it too")

    def content(self, path: str) -> bytes:
        """What a file holds now. Raises EditError: there is none."""
        now = self._held(path).now
        if now is None:
            raise EditError("there is no such file", hint=self._like(path))
        return now

    def touched(self, path: str) -> bool:
        """Whether an edit has changed it."""
        return path in self._files and self._files[path].now != self._files[path].before

    def put(self, path: str, data: bytes) -> None:
        """A file's new content. Raises EditError: it is too large."""
        if len(data) > MAX_FILE_BYTES:
            raise EditError(f"it would have {len(data):,} bytes, the most is {MAX_FILE_BYTES:,}")
        self._files[path] = replace(self._held(path), now=data)

    def changes(self) -> tuple[FileChange, ...]:
        """Every file that is not as it was."""
        return tuple(
            FileChange(path, held.before, held.now, held.mode, (*held.doubts, *_left_out(held), *_broken(path, held)))
            for path, held in self._files.items()
            if held.now != held.before
        )

    def _whole(self, path: str, content: str, *, new: bool) -> None:
        held = self._held(path)
        page = opened(held.now or b"")
        after = closed(page.with_content(content))
        if new and held.now and page.text.strip() and after != held.now:
            raise EditError("it is there already, and the edit means to make a new file")
        if held.now is not None and len(page.lines) >= _SHORT:
            there = [line for line in page.lines if line.strip()]
            left = set(content.split("\n"))
            gone = sum(line not in left for line in there)
            if gone * 2 > len(there) and content.count("\n") * 2 < len(page.lines):
                doubt = f"{gone} of its {len(there)} lines of text would go: the code may be a part of it"
                self._files[path] = replace(held, doubts=(*held.doubts, doubt))
        self.put(path, after)

    def _move(self, path: str, to: str, data: bytes) -> None:
        held, there = self._held(path), self._held(to)
        if there.now is not None:
            raise EditError(f"{to} is there already")
        self._files[to] = replace(there, mode=held.mode)
        self.put(to, data)
        self._files[path] = replace(held, now=None)

    def _held(self, path: str) -> _Held:
        if path not in self._files:
            file = self.root / path
            try:
                data, mode = (file.read_bytes(), file.stat().st_mode & 0o7777) if file.exists() else (None, 0)
            except OSError as error:
                raise EditError(f"it cannot be read: {error.strerror}") from None
            self._files[path] = _Held(data, data, mode)
        return self._files[path]

    def _like(self, path: str) -> str:
        name = PurePosixPath(path).name
        for _, file in zip(range(_SEARCHED), files_of(self.root), strict=False):
            if file.name == name:
                return f"did the answer mean {file.relative_to(self.root).as_posix()}?"
        return ""


@lru_cache(maxsize=32)  # shown, counted and printed one after the other
def _diff_of(change: FileChange) -> tuple[str, ...]:
    was = f"a/{change.path}" if change.before is not None else "/dev/null"
    becomes = f"b/{change.path}" if change.after is not None else "/dev/null"
    return tuple(unified(_lines(change.before), _lines(change.after), was, becomes))


def preview(root: Path, edits: Sequence[ProposedEdit], unclear: tuple[Unclear, ...] = ()) -> Preview:
    """All edits in their order, each after the ones before. Blocking. ``root`` is resolved."""
    draft, problems = Draft(root), []
    for edit in edits:
        try:
            draft.take(edit)
        except EditError as error:
            problems.append(problem_of(edit, error))
    return Preview(root, draft.changes(), tuple(problems), unclear)


def problem_of(edit: ProposedEdit, error: EditError) -> Problem:
    """Why an edit cannot be carried out."""
    reason = f"{error.message} ({error.hint})" if error.hint else error.message
    return Problem(edit.path, edit.line, reason, error.nearest)


def _left_out(held: _Held) -> Iterator[str]:
    """Lines that come and stand for others."""
    old = set(_lines(held.before))
    for line in _lines(held.now):
        if line in old:
            continue
        if _LEFT_OUT.match(line):
            yield f"{line.strip()[:80]!a} stands for code that is left out"
        if _REDACTED in line:
            yield f"it brings {_REDACTED}, which stands for a secret that the model was not shown"


def _broken(path: str, held: _Held) -> Iterator[str]:
    """What the language's own parser says, where it had nothing to say before."""
    if not path.endswith((".py", ".pyi")) or held.now is None:
        return
    problem = syntax_problem(held.now)
    if problem and (held.before is None or not syntax_problem(held.before)):
        yield f"it is no Python any more: {problem}"


def syntax_problem(data: bytes) -> str:
    """What is wrong with the syntax of a Python file, "" when nothing is."""
    try:
        page = opened(data)
        parsed(page.text + "\n")
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (EditError, ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _lines(data: bytes | None) -> list[str]:
    """A file's lines to be shown. A missing last line break is shown as diff shows it."""
    if not data:
        return []
    try:
        page = opened(data)
    except EditError:
        return [f"({len(data):,} bytes)"]
    lines = page.lines
    if page.newline == "\r\n":
        lines = [f"{line}\r" for line in lines]
    if not page.ends:
        lines[-1] += "\n\\ No newline at end of file"
    return lines
