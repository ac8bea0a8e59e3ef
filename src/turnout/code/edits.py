"""The edits that an answer proposes (SPEC CODE-4): what models write to change files, told apart from examples. Pure.

Understood are search/replace blocks, unified diffs, patch envelopes, whole files under their path, and a definition
under "replace symbol X in path". Code that names no file is an example, whatever it looks like. What is half an edit is
reported with the reason, never guessed. One pass over the lines, so that a long answer costs what its length is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from turnout.code.diffs import BEGIN, DiffReader, EnvelopeReader, begins_diff
from turnout.code.proposal import (
    MAX_ANSWER,
    MAX_CHANGES,
    Hunk,
    Hunks,
    NewBody,
    NewName,
    Proposal,
    ProposedEdit,
    Unclear,
    Whole,
    is_path,
    path_in_info,
    path_in_line,
)

BLOCK, WHOLE, SYMBOL = "search/replace block", "whole file", "symbol"
HOW_TO_WRITE = """\
When files are to change, write each change as a block like this, with the path of the file on the line before it:

path/to/file.py
```
<<<<<<< SEARCH
the lines that are there now, exactly as they are
=======
the lines that replace them
>>>>>>> REPLACE
```

Paths are relative to the workspace. SEARCH holds whole lines, enough of them to be found once. For a new file it
is empty."""
"""What a model is told that is to change files: any other form it knows is understood too."""

_OPENS = re.compile(r"([<-]{5,12}) ?(?:SEARCH|ORIGINAL)\b:?>?[ \t]*(.*)")
_CLOSES = re.compile(r"[>+]{5,12} ?(?:REPLACE|UPDATED)\b.*")
_DIVIDES = re.compile(r"={5,12}[ \t]*")
_AT_LINE = re.compile(r":start_line:\s*(\d{1,9})\s*")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(.*)")
_SYMBOL = re.compile(
    r"(?i)[\s#*>\d.-]*replace (?:the )?(?:whole )?(?:symbol|function|method|class) (`?)([\w./:]+)\1 (?:in|of) (`?)"
    r"([^\s`]+?)\3(?: (?:with|by|as follows))?[\s*:.]*"
)
_RENAME = re.compile(
    r"(?i)[\s#*>\d.-]*rename (?:the )?(?:symbol|function|method|class|variable) (`?)([\w./]+)\1 (?:to|as|into) "
    r"(`?)([^\s`]+)\3 in (`?)([^\s`]+?)\5[\s*:.]*"
)
_PROSE = frozenset(("md", "markdown", "mdx", "rst", "txt"))
_DIFF_LANGUAGES = frozenset(("diff", "patch", "udiff", "git"))
# What a block of a language is the whole of; a shell block below the name of a program is a command to run it.
_SUFFIXES = {
    "python": "py pyi pyw", "py": "py pyi pyw", "bash": "sh bash", "sh": "sh bash", "shell": "sh bash", "zsh": "sh zsh",
    "console": "", "shellsession": "", "output": "", "javascript": "js mjs cjs jsx", "js": "js mjs cjs jsx",
    "typescript": "ts tsx mts cts", "ts": "ts tsx mts cts", "rust": "rs", "go": "go", "java": "java",
    "json": "json jsonc", "yaml": "yaml yml", "toml": "toml", "html": "html htm", "css": "css", "sql": "sql",
    "ruby": "rb", "kotlin": "kt kts", "powershell": "ps1", "bat": "bat cmd",
}  # fmt: skip
_PROSE = frozenset(("md", "markdown", "rst", "txt", "adoc"))


@dataclass(frozen=True, slots=True)
class _Fence:
    indent: int
    mark: str
    info: str

    def closes(self, other: _Fence) -> bool:
        same = self.mark[0] == other.mark[0] and len(self.mark) >= len(other.mark)
        return same and not self.info and self.indent <= other.indent


def parse_edits(answer: str) -> Proposal:
    """Every edit that an answer proposes, in order, and what could not be understood, with the reason."""
    if len(answer) > MAX_ANSWER:
        return Proposal((), (Unclear(1, f"the answer has {len(answer):,} characters, the most is {MAX_ANSWER:,}"),))
    reader = _Reader(answer.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"))
    reader.read()
    changes = sum(max(1, len(getattr(edit.change, "hunks", ()))) for edit in reader.edits)
    if changes > MAX_CHANGES:
        return Proposal((), (Unclear(1, f"the answer proposes {changes:,} changes, the most is {MAX_CHANGES}"),))
    return Proposal(tuple(reader.edits), tuple(sorted(reader.unclear, key=lambda u: u.line)))


class _Reader:
    """One pass over the lines of an answer."""

    def __init__(self, lines: list[str]) -> None:
        self.edits: list[ProposedEdit] = []
        self.unclear: list[Unclear] = []
        self._lines, self._at = lines, 0
        self._said = ""  # the line of prose before, as long as no block has used it
        self._heading = ""  # the path that the heading above names
        self._path = ""  # of the search/replace block before
        self._around: _Fence | None = None  # the fence that only decorates what is in it
        self._fences = True

    def read(self) -> None:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            fence = _fence(line) if self._fences or self._around is not None else None
            if _OPENS.fullmatch(line.strip()):
                self._block()
            elif BEGIN.fullmatch(line):
                self._envelope()
            elif fence is not None and self._around is not None and fence.closes(self._around):
                self._around, self._said = None, ""
                self._at += 1
            elif fence is not None and self._fences:
                self._fenced(fence)
            elif self._around is None and begins_diff(self._lines, self._at):
                self._diff()
            else:
                self._prose(line)

    def _prose(self, line: str) -> None:
        self._at += 1
        if not line.strip():
            return
        self._said = line
        if line.lstrip().startswith(("#", "**")):
            path, alone = path_in_line(line)
            self._heading = path if alone else ""
        renamed = _RENAME.fullmatch(line[:500])
        if renamed is not None and is_path(renamed[6]) and self._around is None:
            self.edits.append(ProposedEdit(renamed[6], NewName(renamed[2], renamed[4]), self._at, SYMBOL))

    def _diff(self) -> None:
        self._take(DiffReader(self._lines, self._at, 1, loose=True))

    def _envelope(self) -> None:
        self._take(EnvelopeReader(self._lines, self._at, 1))

    def _take(self, reader: DiffReader | EnvelopeReader) -> None:
        reader.read()
        self.edits += reader.edits
        self.unclear += reader.unclear
        self._at, self._said = reader.at, ""

    # Search/replace blocks.

    def _block(self) -> None:
        began = self._at
        opening = _OPENS.fullmatch(self._lines[began].strip())
        assert opening is not None
        self._at += 1
        while self._at < len(self._lines):
            line = self._lines[self._at].strip()
            if _CLOSES.fullmatch(line):
                break
            if _OPENS.fullmatch(line):
                self._doubt(began, "a search/replace block has no end before the next one begins")
                return
            self._at += 1
        if self._at == len(self._lines):
            self._doubt(began, "a search/replace block is not finished: `>>>>>>> REPLACE` is missing")
            return
        inner = self._lines[began + 1 : self._at]
        self._at += 1
        path = self._path_of_block(opening[2].strip())
        indent = len(self._lines[began]) - len(self._lines[began].lstrip())
        edit = _block_of([_without(line, indent) for line in inner], len(opening[1]))
        if isinstance(edit, str):
            self._doubt(began, edit)
        elif not path:
            self._doubt(began, "a search/replace block names no file")
        else:
            self.edits.append(ProposedEdit(path, edit, began + 1, BLOCK))

    def _path_of_block(self, on_marker: str) -> str:
        named = on_marker.strip("`*:<> ")
        if not is_path(named):
            named = path_in_line(self._said)[0] or _bare(self._said)
        self._path, self._said = named or self._path, ""
        return self._path

    # Fences.

    def _fenced(self, fence: _Fence) -> None:
        self._around = None
        language, path, cites = path_in_info(fence.info)
        if self._decorates():
            if path:
                self._said = path
            self._around, self._at = fence, self._at + 1
            return
        began, end = self._at, self._end_of(fence)
        if end < 0:
            self._unfinished(fence, path)
            return
        lines = [_without(line, fence.indent) for line in self._lines[began + 1 : end]]
        said, self._said, self._at = self._said, "", end + 1
        if cites:
            return
        symbol = _SYMBOL.fullmatch(said[:500])
        if symbol is not None and is_path(symbol[4]):
            self.edits.append(ProposedEdit(symbol[4], NewBody(symbol[2], "\n".join(lines)), began + 1, SYMBOL))
        elif language in _DIFF_LANGUAGES or (not language and _looks_like_diff(lines)):
            reader = DiffReader(lines, 0, began + 2, path or path_in_line(said)[0] or self._heading)
            reader.read()
            self.edits += reader.edits
            self.unclear += reader.unclear
        else:
            self._whole(lines, began, language, path, said)
        self._heading = ""

    def _whole(self, lines: list[str], began: int, language: str, path: str, said: str) -> None:
        named, alone = path_in_line(said)
        path = path or (named if alone else "")
        suffix = path.rpartition(".")[2].lower()
        if path:
            if language in _SUFFIXES and "." in path and suffix not in _SUFFIXES[language].split():
                return
            if suffix in _PROSE and self._goes_on():
                said = f"{path} may go on after its fence: a text with fences of its own needs a longer one around it"
                self._doubt(began, said)
                return
            content = "".join(f"{line}\n" for line in lines)
            self.edits.append(ProposedEdit(path, Whole(content), began + 1, WHOLE))
        elif self._heading and not named and self._heading.rpartition(".")[2] in _SUFFIXES.get(language, "").split():
            said = f"text stands between the heading {self._heading} and the code: it may be a part of the file only"
            self._doubt(began, said)

    def _goes_on(self) -> bool:
        """Whether a fence without a language follows that closes nothing: the one before may have been an inner one."""
        is_open = False
        for fence in map(_fence, self._lines[self._at :]):
            if fence is not None and not fence.info and not is_open:
                return True
            is_open = bool(fence.info) if fence is not None else is_open
        return False

    def _decorates(self) -> bool:
        """Whether the fence that begins here holds blocks or a patch: its first line, or the one after a path, says."""
        at, seen = self._at + 1, 0
        while at < len(self._lines) and seen < 2:
            line = self._lines[at].strip()
            if _OPENS.fullmatch(line) or BEGIN.fullmatch(line):
                return True
            if line:
                if not path_in_line(line)[1]:
                    return False
                seen += 1
            at += 1
        return False

    def _end_of(self, fence: _Fence) -> int:
        """Where a fence is closed, -1 nowhere. One that opens inside, with a language, is closed first."""
        open_fences = [fence]
        for at in range(self._at + 1, len(self._lines)):
            found = _fence(self._lines[at])
            if found is None:
                continue
            if found.closes(open_fences[-1]):
                open_fences.pop()
                if not open_fences:
                    return at
            elif found.info and found.mark[0] == fence.mark[0] and len(found.mark) >= len(fence.mark):
                open_fences.append(found)
        return -1

    def _unfinished(self, fence: _Fence, path: str) -> None:
        """A fence without its end: blocks in it have ends of their own, and all else is cut off."""
        named, alone = path_in_line(self._said)
        path = path or (named if alone else "")
        if path or fence.info.split()[:1] == ["diff"]:
            self._doubt(self._at, f"the block of code {f'of {path} ' if path else ''}is not finished")
        self._fences = False
        self._at += 1
        if fence.info.split()[:1] == ["diff"]:  # not even its whole hunks: it may lack the half that makes them right
            self._at = len(self._lines)

    def _doubt(self, at: int, reason: str) -> None:
        self.unclear.append(Unclear(at + 1, reason))


def _fence(line: str) -> _Fence | None:
    found = _FENCE.fullmatch(line)
    if found is None or ("`" in found[3] and found[2][0] == "`"):
        return None
    return _Fence(len(found[1]), found[2], found[3].strip())


def _bare(line: str) -> str:
    """The path that is all of a line and has no suffix: above a block it is one, elsewhere prose (``read/write``)."""
    text = line.strip(" \t`*#:")
    return text if "/" in text and len(text.split()) == 1 and len(text) <= 300 else ""


def _without(line: str, indent: int) -> str:
    """The line without the indentation of the list that the block stands in."""
    return line[indent:] if not line[:indent].strip() else line


def _block_of(lines: list[str], width: int) -> Hunks | Whole | str:
    """What a search/replace block changes, or what is wrong with it. ``width``: of its markers."""
    line = 0
    if lines and (told := _AT_LINE.fullmatch(lines[0])):
        line = int(told[1])
        lines = lines[1:]
        if lines and re.fullmatch(r"-{5,}\s*", lines[0]):
            lines = lines[1:]
    dividers = [n for n, text in enumerate(lines) if _DIVIDES.fullmatch(text)]
    if len(dividers) > 1:
        dividers = [n for n in dividers if len(lines[n].strip()) == width]
    if len(dividers) != 1:
        count = "several lines" if dividers else "no line"
        return f"a search/replace block has {count} `=======`"
    search, replacement = lines[: dividers[0]], lines[dividers[0] + 1 :]
    if search == replacement:
        return "a search/replace block changes nothing"
    if not any(text.strip() for text in search):
        return Whole("".join(f"{text}\n" for text in replacement), new=True)
    return Hunks((Hunk(_marked(search, replacement), line),))


def _marked(search: list[str], replacement: list[str]) -> tuple[tuple[str, str], ...]:
    """Both as lines of a hunk: what is the same at the beginning and at the end stays as the file has it."""
    shorter, first, last = min(len(search), len(replacement)), 0, 0
    while first < shorter and search[first] == replacement[first]:
        first += 1
    while last < shorter - first and search[-1 - last] == replacement[-1 - last]:
        last += 1
    return (
        *((" ", text) for text in search[:first]),
        *(("-", text) for text in search[first : len(search) - last]),
        *(("+", text) for text in replacement[first : len(replacement) - last]),
        *((" ", text) for text in search[len(search) - last :]),
    )


def _looks_like_diff(lines: list[str]) -> bool:
    first = next((n for n, line in enumerate(lines) if line.strip()), -1)
    return first >= 0 and (begins_diff(lines, first) or bool(re.match(r"@@ -\d", lines[first])))
