"""Unified diffs, as git and diff write them and as models do, and the patch envelopes that Codex's models write. Pure.

Counts of lines in a hunk's head are believed only where they are right, since models do not count; a hunk
without a head is one all the same.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from turnout.code.proposal import Change, Gone, Hunk, Hunks, Moved, ProposedEdit, Unclear, Whole

DIFF, ENVELOPE = "diff", "patch"
_HEAD = re.compile(r"@@+(?:\s*-(\d+)(?:,(\d+))?\s+\+(\d+)(?:,(\d+))?)?(?:\s*@@+)?\s?(.*)")
_EXTENDED = re.compile(
    r"(?:index [0-9a-f]+\.\.|(?:old|new) mode |(?:dis)?similarity index |new file mode |deleted file mode )"
)
_NULL = "/dev/null"
BEGIN, END = re.compile(r"\s*\*{3} Begin Patch\s*"), re.compile(r"\s*\*{3} End Patch\s*")
_FILE = re.compile(r"\*{3} (Add|Delete|Update) File:(.*\S.*)")
_MOVE = re.compile(r"\*{3} Move to:(.*\S.*)")


def begins_diff(lines: Sequence[str], at: int) -> bool:
    """Whether a file's diff begins at this line."""
    line = lines[at]
    return line.startswith("diff --git ") or (
        line.startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ ")
    )


@dataclass(slots=True)
class _File:
    """What was read of one file's part."""

    line: int
    old: str = ""
    new: str = ""
    born: bool = False
    gone: bool = False
    moved: bool = False
    odd: str = ""
    hunks: list[Hunk] = field(default_factory=list)


class DiffReader:
    """Reads diffs from lines.

    Args:
        lines: of the answer, or of a block in it.
        first: the number in the answer of ``lines[0]``, 1-based.
        path: the file when the diff itself names none.
        loose: it stands in prose: what is no line of a diff ends it.

    Attributes:
        at: the index of the first line that was not read.
        edits: what was read.
        unclear: what was not understood.
    """

    def __init__(self, lines: Sequence[str], at: int, first: int, path: str = "", *, loose: bool = False) -> None:
        self.at = at
        self.edits: list[ProposedEdit] = []
        self.unclear: list[Unclear] = []
        self._lines, self._first, self._path, self._loose = lines, first, path, loose
        self._file: _File | None = None

    def read(self) -> None:
        """Read as far as it goes."""
        while self.at < len(self._lines):
            line = self._lines[self.at]
            if begins_diff(self._lines, self.at):
                self._begin()
            elif self._file is not None and self._extended(line):
                self.at += 1
            elif line.startswith("@@") or (line[:1] in ("+", "-") and not self._loose):
                self._hunk()
            elif self._loose and line.strip():
                break
            else:
                self.at += 1
        self._close()

    def _begin(self) -> None:
        line = self._lines[self.at]
        if line.startswith("diff --git "):
            self._close()
            self._file = _File(self._number)
            self._file.old, self._file.new = _two_names(line.removeprefix("diff --git "))
            self.at += 1
            return
        if self._file is None or self._file.hunks or not self._file.old:
            self._close()
            self._file = _File(self._number)
        old, new = _name(line[4:]), _name(self._lines[self.at + 1][4:])
        if old.startswith("a/") and (new.startswith("b/") or new == _NULL):
            old = old[2:]
        if new.startswith("b/") and (self._lines[self.at][4:].lstrip('"').startswith("a/") or old == _NULL):
            new = new[2:]
        self._file.old, self._file.new = old, new
        self.at += 2

    def _extended(self, line: str) -> bool:
        file = self._file
        assert file is not None
        if file.hunks:
            return False
        word, _, rest = line.partition(" ")
        if line.startswith(("rename from ", "rename to ")):
            file.moved = True
            if line.startswith("rename from "):
                file.old = _name(line[12:])
            else:
                file.new = _name(line[10:])
            return True
        if line.startswith(("copy from ", "copy to ")):
            file.odd = "it copies a file"
        elif line.startswith(("GIT binary patch", "Binary files ")):
            file.odd = "it changes a binary file"
        file.born |= line.startswith("new file mode ")
        file.gone |= line.startswith("deleted file mode ")
        return bool(_EXTENDED.match(line)) or bool(file.odd) or (word, rest) == ("", "")

    @property
    def _number(self) -> int:
        return self._first + self.at

    def _hunk(self) -> None:
        if self._file is None:
            self._file = _File(self._number, self._path, self._path)
        line = self._lines[self.at]
        start = old = new = 0
        counted, anchor = False, ""
        if line.startswith("@@"):
            head = _HEAD.match(line)
            assert head is not None
            if counted := head[1] is not None:
                start, old, new = int(head[1][:9]), int((head[2] or "1")[:9]), int((head[4] or "1")[:9])
            anchor = head[5].strip().strip("@").strip()
            self.at += 1
        body, ends = self._body(old, new, counted=counted)
        if any(tag != " " for tag, _ in body):
            self._file.hunks.append(Hunk(tuple(body), start, (anchor,) if anchor else (), ends=ends))

    def _body(self, old: int, new: int, *, counted: bool) -> tuple[list[tuple[str, str]], bool | None]:
        """The lines of a hunk that begins here, and what it says of the file's last line break."""
        found: list[tuple[str, str]] = []
        seen_old = seen_new = 0
        exact, bare = -1, 0
        ends: bool | None = None
        while self.at < len(self._lines):
            line = self._lines[self.at]
            full = counted and seen_old >= old and seen_new >= new
            if line.startswith(("@@", "diff --git ")) or self._next_file(full):
                break
            if line.startswith("\\"):
                ends = not (found and found[-1][0] != "-")
                self.at += 1
                continue
            if self._loose and (full or (line and line[0] not in " +-")):
                break
            tag, text = (line[0], line[1:]) if line[:1] in (" ", "+", "-") else (" ", line)
            found.append((tag, text))
            bare = bare + 1 if not line else 0
            seen_old, seen_new = seen_old + (tag != "+"), seen_new + (tag != "-")
            if counted and (seen_old, seen_new) == (old, new):
                exact = len(found)
            self.at += 1
        if exact >= 0 and not any(text.strip() for _, text in found[exact:]):
            return found[:exact], ends
        return found[: len(found) - bare], ends

    def _next_file(self, full: bool) -> bool:
        """Whether ``--- `` here begins another file, and is no line of SQL or Lua that goes."""
        if not begins_diff(self._lines, self.at):
            return False
        after = self._lines[self.at + 2] if self.at + 2 < len(self._lines) else "@@"
        return full or after.startswith("@@")

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        change = _change_of(file)
        if isinstance(change, str):
            self.unclear.append(Unclear(file.line, f"a diff was not understood: {change}"))
            return
        path = file.old if isinstance(change, Gone | Moved) else file.new
        self.edits.append(ProposedEdit(path, change, file.line, DIFF))


def _change_of(file: _File) -> Change | str:
    """The change that a file's diff makes, or what is wrong with it."""
    hunks = tuple(file.hunks)
    if file.odd:
        return file.odd
    if not file.new or not file.old:
        return "it names no file"
    if file.born or file.old == _NULL:
        if any(tag == "-" for hunk in hunks for tag, _ in hunk.lines):
            return "it makes a new file and takes lines out of it"
        lines = [text for hunk in hunks for text in hunk.after]
        ends = hunks[-1].ends if hunks else None
        return Whole("\n".join(lines) + ("" if ends is False or not lines else "\n"), new=True)
    if file.gone or file.new == _NULL:
        return Gone(hunks)
    if file.moved and file.old != file.new:
        return Moved(file.new, hunks)
    return Hunks(hunks) if hunks else "it has no line that changes"


def _two_names(text: str) -> tuple[str, str]:
    """The names after ``diff --git``: ambiguous where they have blanks, so only equal ones are believed then."""
    quoted = re.fullmatch(r'("(?:[^"\\]|\\.)*") ("(?:[^"\\]|\\.)*")', text)
    halves = (quoted[1], quoted[2]) if quoted else (text[: len(text) // 2], text[len(text) // 2 + 1 :])
    if not quoted and halves[0][2:] != halves[1][2:]:
        words = text.split(" ")
        if len(words) != 2:
            return "", ""
        halves = words[0], words[1]
    old, new = _name(halves[0]), _name(halves[1])
    return (old[2:], new[2:]) if old.startswith("a/") and new.startswith("b/") else (old, new)


def _name(text: str) -> str:
    """A path as a diff's head has it: without what follows a tab, and unquoted as git quotes it."""
    text = text.partition("\t")[0].strip()
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        found = ast.literal_eval(f"b{text}")
        return found.decode() if isinstance(found, bytes) else text
    except (SyntaxError, ValueError):
        return text


class EnvelopeReader:
    """Reads one envelope, ``*** Begin Patch`` to ``*** End Patch``; arguments and attributes as ``DiffReader``."""

    def __init__(self, lines: Sequence[str], at: int, first: int) -> None:
        self.at = at
        self.edits: list[ProposedEdit] = []
        self.unclear: list[Unclear] = []
        self._lines, self._first = lines, first

    def read(self) -> None:
        """Read it, or say what is wrong with it: then none of it is carried out."""
        began = self._first + self.at
        self.at += 1
        problem = ""
        while self.at < len(self._lines) and not END.fullmatch(self._lines[self.at]):
            if BEGIN.fullmatch(self._lines[self.at]):
                problem = "it is not finished"
                break
            head = _FILE.fullmatch(self._lines[self.at])
            if head is not None:
                self._one(head[1], head[2].strip())
                continue
            if self._lines[self.at].strip() and not problem:
                problem = f"line {self._first + self.at} belongs to no file"
            self.at += 1
        if self.at == len(self._lines):
            problem = "it is not finished: `*** End Patch` is missing"
        elif not problem or END.fullmatch(self._lines[self.at]):
            self.at += 1
        if problem:
            self.edits = []
            self.unclear = [Unclear(began, f"a patch was not understood: {problem}")]

    def _one(self, what: str, path: str) -> None:
        number = self._first + self.at
        self.at += 1
        if what == "Delete":
            self.edits.append(ProposedEdit(path, Gone(), number, ENVELOPE))
            return
        if what == "Add":
            lines = []
            while self.at < len(self._lines) and self._lines[self.at].startswith("+"):
                lines.append(self._lines[self.at][1:])
                self.at += 1
            content = "".join(f"{line}\n" for line in lines)
            self.edits.append(ProposedEdit(path, Whole(content, new=True), number, ENVELOPE))
            return
        to = ""
        if self.at < len(self._lines) and (move := _MOVE.fullmatch(self._lines[self.at])):
            to, self.at = move[1].strip(), self.at + 1
        hunks = self._hunks()
        if not hunks and not to:
            self.unclear.append(Unclear(number, f"a patch was not understood: nothing changes in {path}"))
            return
        self.edits.append(ProposedEdit(path, Moved(to, hunks) if to else Hunks(hunks), number, ENVELOPE))

    def _hunks(self) -> tuple[Hunk, ...]:
        found: list[Hunk] = []
        anchors: list[str] = []
        body: list[tuple[str, str]] = []
        bare, at_end = 0, False

        def close() -> None:
            nonlocal anchors, body, bare, at_end
            kept = body[: len(body) - bare]
            if any(tag != " " for tag, _ in kept):
                found.append(Hunk(tuple(kept), 0, tuple(anchors), at_end=at_end))
                anchors = []
            body, bare, at_end = [], 0, False

        while self.at < len(self._lines):
            line = self._lines[self.at]
            if line.startswith("*** End of File"):
                at_end = True
            elif line.startswith("***"):
                break
            elif line.startswith("@@"):
                close()
                if anchor := line.strip("@ \t"):
                    anchors.append(anchor)
            else:
                body.append((line[0], line[1:]) if line[:1] in (" ", "+", "-") else (" ", line))
                bare = bare + 1 if not line else 0
            self.at += 1
        close()
        return tuple(found)
