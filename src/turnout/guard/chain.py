"""The audit log read back: its files in their order, its chain, its signatures (SPEC PROOF-2).

Every line carries its sequence and the hash of the line before, across all files of a log. Every ``EVERY``-th record is
a signed checkpoint, so that nobody can compute the chain anew without the private key; the signed head, a small file
kept apart, tells how far the log had come, so that a tail that was cut off is told from a crash. Checking takes the
public key alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from turnout.errors import AuditError, StorageError
from turnout.files import open_regular, read_file
from turnout.guard.signing import PublicKey

FIRST_HASH = "0" * 64
EVERY = 500
HALF_LINE = "security:half_line"
DAMAGED_LINE = "security:damaged_line"
LOG_REPLACED = "security:log_replaced"
GAP = "security:audit_gap"
CHECKPOINT, ROTATED, CONTINUED, RETIRED = "audit:checkpoint", "audit:rotated", "audit:continued", "audit:retired"
SIGNED = frozenset({CHECKPOINT, ROTATED, RETIRED})
ALARMS = frozenset({DAMAGED_LINE, LOG_REPLACED, GAP})
MAX_ALARMS = 20
_DIGITS = 12
_TAIL_BYTES, _MAX_REACH = 4096, 16_000_000
MAX_LINE = 64_000_000  # bytes; no record has so many


class Link(msgspec.Struct):
    """What of a record makes the chain; ``until`` and ``until_hash`` are of the last record of a retired file."""

    event_type: str
    sequence: int
    previous_hash: str
    signature: str = ""
    until: int = 0
    until_hash: str = ""


class Head(msgspec.Struct, frozen=True):
    """How far a log has come, signed. ``hash`` is the SHA-256 of the line of record ``sequence``."""

    sequence: int
    hash: str
    timestamp: str
    signature: str = ""

    @property
    def text(self) -> bytes:
        """What is signed."""
        return f"turnout audit head\n{self.sequence}\n{self.hash}\n{self.timestamp}\n".encode()


@dataclass(frozen=True, slots=True)
class ChainReport:
    """The result of a verification.

    Attributes:
        count: the sequence of the last record that was read and holds.
        ok: the chain holds from the first line to the last whole one, and so does every signature that was checked.
        bad_line: 1-based number of the first line that does not, in ``bad_file``; 0 when ``ok``, or when it is no line.
        reason: what is wrong there, "" when ``ok``.
        half_lines: unfinished lines of killed writers that the next writer found and noted: no damage.
        half_last_line: the last line has no end: its writer was killed, or is writing it now.
        bad_file: the name of the file with ``bad_line``.
        sealed: the last record that a signature covers; 0 for none, or without a public key.
        alarms: what the log itself tells that went wrong, ``FILE:LINE: event``; the first MAX_ALARMS.
    """

    count: int
    ok: bool
    bad_line: int = 0
    reason: str = ""
    half_lines: int = 0
    half_last_line: bool = False
    bad_file: str = ""
    sealed: int = 0
    alarms: tuple[str, ...] = ()


def checkpoint_text(link: Link) -> bytes:
    """What the signature in a record is made under."""
    end = f"{link.until}\n{link.until_hash}\n" if link.event_type == RETIRED else ""
    return f"turnout {link.event_type}\n{link.sequence}\n{link.previous_hash}\n{end}".encode()


def rotated_name(path: Path, last: int) -> Path:
    """The name of a full file, by the sequence of its last record."""
    return path.with_name(f"{path.name}.{last:0{_DIGITS}d}")


def rotated_files(path: Path) -> list[Path]:
    """The full files of a log, the oldest first. Raises OSError."""
    ours = re.compile(re.escape(path.name) + rf"\.\d{{{_DIGITS}}}")
    return sorted(each for each in path.parent.iterdir() if ours.fullmatch(each.name) and each.is_file())


def log_files(path: Path) -> list[Path]:
    """All files of a log, the oldest first. Raises OSError."""
    return [*rotated_files(path), *([path] if path.exists() else [])]


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file with their line ends; of one that is too long for a record only the beginning."""
    while line := file.readline(MAX_LINE):
        cut = len(line) == MAX_LINE and not line.endswith(b"\n")
        yield line + b"\n" if cut else line
        while cut:
            rest = file.readline(MAX_LINE)
            cut = bool(rest) and not rest.endswith(b"\n")


def head_path(folder: Path, log: Path) -> Path:
    """Where the head of a log is kept by default: it has the log's place in its name, for a folder may have several."""
    place = hashlib.sha256(str(log.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return folder / f"audit-{place}.head"


def read_head(path: Path) -> Head | None:
    """The head; None when there is none.

    Raises:
        StorageError: there is a file, and it cannot be read.
    """
    try:
        return msgspec.json.decode(read_file(path), type=Head)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no head of an audit log"
        raise StorageError(f"the head {path} cannot be read: {said}", hint="bring it back from a copy") from error


_LINK = msgspec.json.Decoder(Link)


def decode_link(line: bytes) -> Link | None:
    """The link of a line, None when it is no record."""
    try:
        return _LINK.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Stamp(msgspec.Struct):
    timestamp: str


def begun(file: int) -> float:
    """When a log file was begun, by its first record; now, where that does not tell."""
    return _time_of(_read(file, 0, _TAIL_BYTES).partition(b"\n")[0])


def ended(path: Path) -> float:
    """When the last record of a full file was written; now, where that does not tell. Anybody can set the times of the
    file itself, and would have it deleted by us. Raises OSError."""
    with open_regular(path) as file:
        _, since = last_record(file.fileno(), os.fstat(file.fileno()).st_size)
    return _time_of(since.partition(b"\n")[0])


def _time_of(line: bytes) -> float:
    try:
        return datetime.fromisoformat(msgspec.json.decode(line, type=_Stamp).timestamp).timestamp()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return time.time()


def newest(path: Path) -> tuple[str, Link, str] | None:
    """The newest full file of a log: its name, its last record and the hash of that line."""
    files = rotated_files(path)
    found = last_of(files[-1]) if files else None
    return (files[-1].name, *found) if found else None


def last_of(path: Path) -> tuple[Link, str] | None:
    """The last record of a full file, and the hash of its line."""
    with open_regular(path) as file:
        last, since = last_record(file.fileno(), os.fstat(file.fileno()).st_size)
    return (last, hashlib.sha256(since.removesuffix(b"\n")).hexdigest()) if last else None


def last_record(file: int, size: int) -> tuple[Link | None, bytes]:
    """The last record and the file's bytes from its beginning on; without one, all bytes.

    Raises:
        OSError: the file cannot be read, or its end, longer than any record, holds none.
    """
    reach = _TAIL_BYTES
    while True:
        start = max(0, size - reach)
        tail = _read(file, start, size - start)
        lines = tail.split(b"\n")
        for n in range(len(lines) - 1, 0 if start else -1, -1):
            record = decode_link(lines[n])
            if record is not None:
                return record, b"\n".join(lines[n:])
        if start == 0:
            return None, tail
        if reach >= MAX_LINE:
            raise OSError(errno.EFBIG, f"its last {MAX_LINE:,} bytes hold no record; move it away")
        reach = min(reach * 16, MAX_LINE)


def hash_at(file: int, start: int, length: int) -> str:
    """The SHA-256 of a part of an open file. Raises OSError."""
    return hashlib.sha256(_read(file, start, length)).hexdigest()


def still_has(path: Path, sequence: int, digest: str) -> bool:
    """Whether a record of a log is the one whose line has that hash; True also where its file is gone, which
    verification tells of. Raises OSError."""
    found = _line_of(path, sequence)
    if found is None:
        first = rotated_name(path, sequence).name
        full = (_line_of(file, sequence) for file in rotated_files(path) if file.name >= first)
        found = next((line for line in full if line is not None), None)
    return found is None or hashlib.sha256(found).hexdigest() == digest


def _line_of(path: Path, sequence: int) -> bytes | None:
    """The line of a record, that of the one before it where there is none, and None where all are later."""
    with open_regular(path) as file:
        first = decode_link(_read(file.fileno(), 0, _TAIL_BYTES).partition(b"\n")[0])
        if first is not None and first.sequence > sequence:
            return None
        for line in _lines_backwards(file.fileno(), os.fstat(file.fileno()).st_size):
            link = decode_link(line)
            if link is not None and link.sequence <= sequence:
                return line
    return None


def _lines_backwards(file: int, end: int) -> Iterator[bytes]:
    rest, reach = b"", _TAIL_BYTES
    while end:
        start = max(0, end - reach)
        first, *lines = (_read(file, start, end - start) + rest).split(b"\n")
        yield from reversed(lines)
        rest, end, reach = first, start, min(reach * 16, _MAX_REACH)
    yield rest


def _read(file: int, start: int, length: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    pieces = []
    while length > 0 and (piece := os.read(file, length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def verify(path: Path, public: PublicKey | None = None, head: Head | None = None) -> ChainReport:
    """Check a log from its first line on, with the full files beside it.

    Args:
        path: the log; its full files are found by their names.
        public: checks the signatures; without it, the chain alone is checked.
        head: how far it had come; read it before, since the log goes on being written.

    Raises:
        AuditError: a file cannot be read.
    """
    if head is not None and public is not None and not public.signed(head.signature, head.text):
        return ChainReport(0, ok=False, reason="the head was changed, or another key signed it")
    check = _Check(public, head)
    try:
        with ExitStack() as stack:
            files = log_files(path) if path.parent.is_dir() else []
            if not files and head is not None:
                return ChainReport(0, ok=False, reason=f"the log is gone; it had {head.sequence} records")
            opened = [(each.name, stack.enter_context(open_regular(each))) for each in files or [path]]
            for name, file in opened:
                check.file(name, lines_of(file))
    except OSError as error:
        raise AuditError(
            f"the audit log {path} cannot be read: {error.strerror or error}", hint="give the path of an audit log"
        ) from error
    return check.report()


_NO_RECORD = "it is no record of this log"


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    line: int


class _Check:
    """One pass over the lines of all files; it stops at the first that is wrong."""

    def __init__(self, public: PublicKey | None, head: Head | None) -> None:
        self._public, self._head = public, head
        # This line; those of the last and of the first record.
        self._at = self._before = self._start = _Place("", 0)
        self._count, self._sealed, self._half_lines = 0, 0, 0
        self._since: hashlib._Hash | None = None  # of the last record, with what a killed writer left after it
        self._stray: _Place | None = None
        self._half = False
        self._beginning = (0, "")  # the record before the first one that is there, until it is found to be retired
        self._suspect: tuple[_Place, int, str] | None = None  # whose hash before is wrong, its sequence and own hash
        self._bad: ChainReport | None = None
        self._alarms: list[str] = []

    def file(self, name: str, lines: Iterable[bytes]) -> None:
        """The next file."""
        if not self._before.file:
            self._before = _Place(name, 0)
        if self._half and self._bad is None:  # a full file ends with a whole line: its last record says that it is full
            self._refuse(self._at, _NO_RECORD)
        for number, line in enumerate(lines, 1):
            if self._bad is not None:
                return
            self._at = _Place(name, number)
            self._line(line)

    def report(self) -> ChainReport:
        """What was found."""
        if self._bad is None:
            self._end()
        found = self._bad or ChainReport(self._count, ok=True, half_last_line=self._half)
        return replace(found, half_lines=self._half_lines, sealed=self._sealed, alarms=tuple(self._alarms))

    def _line(self, line: bytes) -> None:
        body = line.removesuffix(b"\n")
        self._half = len(body) == len(line)
        if self._half:
            return
        link = decode_link(body)
        if self._suspect is not None:
            self._accuse(link is not None and link.previous_hash == self._suspect[2])
        elif link is not None:
            self._record(link, body)
        else:
            self._stray = self._stray or self._at
            if self._since is None:
                self._since = hashlib.sha256(body)
            else:
                self._since.update(b"\n" + body)

    def _record(self, link: Link, body: bytes) -> None:
        if self._stray is not None and link.event_type == HALF_LINE:
            self._half_lines, self._stray = self._half_lines + 1, None
        if self._stray is not None:
            return self._refuse(self._stray, _NO_RECORD)
        if self._since is None and link.sequence > 1:
            self._count, self._start = link.sequence - 1, self._at
            self._beginning = self._count, link.previous_hash
        elif link.sequence != self._count + 1:
            found, belongs = link.sequence, self._count + 1
            if self._beginning[0] and self._before == self._start and found < belongs:  # the first one is a stranger
                return self._refuse(self._start, f"its sequence is {self._count}, and that of the next is {found}")
            reason = f"its sequence is {found} where {belongs} belongs: lines are missing, added or out of order"
            return self._refuse(self._at, reason)
        elif link.previous_hash != (self._since.hexdigest() if self._since else FIRST_HASH):
            self._suspect = self._at, link.sequence, hashlib.sha256(body).hexdigest()
            return None
        self._count, self._before, self._since = link.sequence, self._at, hashlib.sha256(body)
        if link.event_type in ALARMS and len(self._alarms) < MAX_ALARMS:
            self._alarms.append(f"{self._at.file}:{self._at.line}: {link.event_type}")
        return self._signatures(link)

    def _signatures(self, link: Link) -> None:
        head, public = self._head, self._public
        if head is not None and link.sequence == head.sequence and self._since is not None:
            if self._since.hexdigest() != head.hash:
                return self._refuse(self._at, "it was changed after the head of the log was signed")
            self._sealed = link.sequence if public is not None else 0
        if link.event_type not in SIGNED:
            due = public is not None and not link.sequence % EVERY
            return self._refuse(self._at, "a signed checkpoint belongs here") if due else None
        if public is not None:
            if not public.signed(link.signature, checkpoint_text(link)):
                return self._refuse(self._at, "its signature is not of this key, or is of something else")
            self._sealed = max(self._sealed, link.sequence - 1)
        if link.event_type == RETIRED and (link.until, link.until_hash) == self._beginning:
            self._beginning = 0, ""
        return None

    def _end(self) -> None:
        """What only the end shows."""
        head = self._head
        if self._suspect is not None:
            _, sequence, digest = self._suspect
            self._accuse(head is not None and (head.sequence, head.hash) == (sequence, digest))
        elif self._stray is not None:
            self._refuse(self._stray, _NO_RECORD)
        elif self._beginning[0]:
            reason = f"records 1 to {self._beginning[0]} are missing, and no signed record says that they were retired"
            self._refuse(self._start, reason)
        elif head is not None and self._count < head.sequence:
            after = _Place(self._before.file, self._before.line + 1)
            self._refuse(after, f"records {self._count + 1} to {head.sequence}, which its head tells of, were cut off")

    def _accuse(self, the_later_is_whole: bool) -> None:
        """Of two lines that do not fit together, which one was changed: the line after them tells."""
        if self._suspect is None:
            return
        if the_later_is_whole:
            self._refuse(self._before, "it was changed: the line after it holds the hash of something else")
        else:
            self._refuse(self._suspect[0], "it was changed: it was not written after the line before it")

    def _refuse(self, place: _Place, reason: str) -> None:
        self._bad = ChainReport(self._count, ok=False, bad_line=place.line, reason=reason, bad_file=place.file)
