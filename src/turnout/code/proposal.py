"""What an answer proposes to change, as values: made by ``edits.py`` and ``diffs.py``, carried out by ``apply.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

# Of one answer: what a model writes within the largest windows, and what is carried out in seconds.
MAX_ANSWER, MAX_CHANGES = 4_000_000, 500


@dataclass(frozen=True, slots=True)
class Hunk:
    """A place in a file and what becomes of it.

    Attributes:
        lines: (tag, text): `` `` stays, ``-`` goes, ``+`` comes.
        line: where it begins in the old file, 1-based, as the answer has it; 0 when it does not say.
        anchors: lines above it that say where it is meant when its own lines are found several times.
        at_end: it ends where the file ends.
        ends: whether the file's last line has a line break afterwards; None as before.
    """

    lines: tuple[tuple[str, str], ...]
    line: int = 0
    anchors: tuple[str, ...] = ()
    at_end: bool = False
    ends: bool | None = None

    @property
    def before(self) -> tuple[str, ...]:
        """The lines that are looked for."""
        return tuple(text for tag, text in self.lines if tag != "+")

    @property
    def after(self) -> tuple[str, ...]:
        """The lines that are there afterwards."""
        return tuple(text for tag, text in self.lines if tag != "-")


@dataclass(frozen=True, slots=True)
class Hunks:
    """Places in a file change."""

    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole of a file. ``new``: only where there is none, or an empty one."""

    content: str
    new: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """The file is deleted. ``hunks``: what the answer believes to be in it."""

    hunks: tuple[Hunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """The file gets another path, and ``hunks`` change."""

    to: str
    hunks: tuple[Hunk, ...] = ()


@dataclass(frozen=True, slots=True)
class NewBody:
    """A definition is replaced by another of the same name. ``symbol``: ``total``, ``Order.total``, ``Order/total``."""

    symbol: str
    body: str


@dataclass(frozen=True, slots=True)
class NewName:
    """A symbol and all its uses are renamed."""

    symbol: str
    name: str


Change: TypeAlias = Hunks | Whole | Gone | Moved | NewBody | NewName


@dataclass(frozen=True, slots=True)
class ProposedEdit:
    """One edit of an answer.

    Attributes:
        path: as the answer has it, not checked.
        line: of the answer, 1-based, where it begins.
        form: how it was written, for people.
    """

    path: str
    change: Change
    line: int
    form: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """What looks like an edit and is not carried out; ``line`` of the answer, 1-based, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """All edits of an answer in their order, and what of it could not be understood."""

    edits: tuple[ProposedEdit, ...] = ()
    unclear: tuple[Unclear, ...] = ()


# A name of a file as people and models write it. Whether it may be written to is the business of ``paths.py``.
_BARE = frozenset(
    (
        *("makefile", "dockerfile", "containerfile", "justfile", "rakefile", "gemfile", "procfile", "vagrantfile"),
        *("jenkinsfile", "license", "licence", "readme", "changelog", "authors", "contributing", "codeowners"),
    )
)
_PRODUCTS = re.compile(r"(?i)\w+\.(?:js|net|io|ai)")
_SUFFIX = re.compile(r"(?:\.[A-Za-z]\w{0,11}|\.\w{1,4}[A-Za-z])$")
_UNLIKELY = re.compile(r"[\s`\"'<>|*?,;=(){}]|://|\.\.\.|\.$")
_DECORATED = re.compile(
    r"(?:>\s*)?(#{1,6}\s+)?(?:[-*+]\s+|\d{1,3}[.)]\s+)?(?:[*_]{2})?"
    r"((?:(?:new|updated|modified|full|complete)\s+)?(?:file\s?(?:name|path)?|path)\s*:\s*)?(?:[*_]{2})?\s*"
    r"(`{1,2})?([^`\s][^`]*?)(`{1,2})?(?:[*_]{2})?\s*"
    r"(?:\((?:new|new file|create|created|updated|modified|full file|complete file)\))?\s*:?\s*(?:[*_]{2})?:?",
    re.IGNORECASE,
)
_TICKED = re.compile(r"`([^`\n]{1,300})`")
_MAKES = re.compile(
    r"(?i)(?:\d{1,3}[.)]\s+|[-*+]\s+|#{1,6}\s+)*(?:now,?\s+|then,?\s+|first,?\s+|next,?\s+)?"
    r"(?:create|add|write|rewrite|save|overwrite)\b"
)
_CITED = re.compile(r"\d+:\d+:|:\d+(?:-\d+)?$|#L\d+")


def is_path(text: str) -> bool:
    """Whether it reads as a file's path, good or bad."""
    if not text or len(text) > 300 or _UNLIKELY.search(text):
        return False
    name = re.split(r"[/\\]", text)[-1]
    if not name:
        return False
    return bool(_SUFFIX.search(name)) or name.lower() in _BARE or (name.startswith(".") and len(name) > 2)


def path_in_line(line: str) -> tuple[str, bool]:
    """The path that a line of prose names, "" for none, and whether naming it is all that the line does.

    Only then is the block below it the file itself: code below "as in `app.py`" is an example.
    """
    line = line.strip()
    if not line or len(line) > 400:
        return "", False
    found = _DECORATED.fullmatch(line)
    if found is not None:
        heading, label, ticked, text, _ = found.groups()
        text = text.strip("*_") if not is_path(text) else text
        product = not (ticked or label or heading is None) and _PRODUCTS.fullmatch(text)
        if is_path(text) and not product and not _CITED.search(text):
            return text, True
    names = [name for name in _TICKED.findall(line) if is_path(name)]
    if len(names) != 1:
        return "", False
    return names[0], bool(_MAKES.match(line)) and line.endswith(":")


def path_in_info(info: str) -> tuple[str, str, bool]:
    """Language and path of a fence's info string (``python src/app.py``, ``python:app.py``, ``js title="a.js"``), and
    whether it cites lines of the file: then the block shows what is there, and changes nothing."""
    words = info.split()
    if not words:
        return "", "", False
    first = words[0]
    language, colon, rest = first.partition(":")
    named = re.search(r"(?:title|file|filename|path|name)\s*=\s*[\"']?([^\"'\s}]+)", info)
    wanted = [named[1]] if named else [*([rest] if colon else []), *([first] if is_path(first) else []), *words[1:]]
    if _CITED.match(first) or any(_CITED.search(word) for word in wanted):
        return "", "", True
    path = next((word for word in wanted if is_path(word)), "")
    return ("" if path == first else language.lower().strip("{}.")), path, False
