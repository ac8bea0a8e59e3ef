"""The decision log: what each request could have been answered by, what was expected of each, and what came of it.

JSON lines in the data directory, for ``turnout eval replay`` and for feedback. Of a request there are names, numbers
and times, and nothing of what was asked or answered. Lines are collected in memory and appended together under the
folder's lock, so several processes may write one file; a full file is moved aside, and the oldest of those deleted.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from turnout.files import lock_folder, unlock_folder

FILE_BYTES, OLD_FILES = 8_000_000, 4
MANY_HELD = 500_000  # bytes that are better written now
MAX_HELD = 8_000_000  # bytes of lines that wait to be written; more than that in one pause is not kept
MAX_LINE = 100_000  # bytes that a reader believes in
MAX_SECONDS, MAX_SCORE, MAX_COUNT, LAST_TIME = 1e9, 1e4, 10**12, 2e11
_BINARY = getattr(os, "O_BINARY", 0)

log = logging.getLogger("turnout")

NONE = 0.0  # the very object, since only that is left out of a line


class Option(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A candidate as it was when the decision fell.

    Attributes:
        model: its server's id; ``name`` the capability table's, or "".
        at: the endpoint's name.
        score: of the category, 0 to 100, feedback counted; ``bonus`` the points beyond it.
        level: its place in the plan: 0 or 1, and 2 where its window is too small.
        resident: None when its server does not tell.
        running, waiting: requests at its endpoint.
        doubt: how far behind others its endpoint's health puts it.
        priced: whether the seconds that follow were worked out: with one candidate there is nothing to decide.
        observed: they follow from what was observed of this very model, not from its size.
    """

    model: str
    at: str
    name: str = ""
    score: float = NONE
    bonus: float = NONE
    level: int = 0
    window: int = 0
    priority: int = 0
    resident: bool | None = None
    running: int = 0
    waiting: int = 0
    doubt: int = 0
    priced: bool = False
    queue: float = NONE
    load: float = NONE
    prefill: float = NONE
    decode: float = NONE
    harm: float = NONE
    observed: bool = False


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What came of it: seconds until the answer began and until it was there, tokens, level, and an error's code."""

    first: float = NONE
    total: float = NONE
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    level: int = 0
    attempts: int = 0
    error: str = ""


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request.

    Attributes:
        at: seconds since the epoch, at its end.
        id: of the request; ``who`` asked.
        policy: that ranked: one of ``routing.policy``, or ``exact`` for a model that was asked for.
        category: the kind of work, "" with ``exact``; ``shares`` how likely each was.
        tokens: of the prompt, estimated; ``answer``: that room is kept free for.
        needs: capabilities that a model must have; ``prefer`` the model or family that the agent prefers.
        options: those that could take it, best first: the first was asked first.
        more: further ones, worse than these; ``rejected``: those that could not take it.
        chosen: the option that answered, -1 when none did.
    """

    at: float
    id: str
    who: str
    policy: str
    category: str = ""
    shares: dict[str, float] = {}
    difficulty: float = 0.5
    code_context: bool = False
    tokens: int = 0
    answer: int = 0
    needs: tuple[str, ...] = ()
    prefer: str = ""
    options: tuple[Option, ...] = ()
    more: int = 0
    rejected: int = 0
    chosen: int = -1
    outcome: Outcome = Outcome()


_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Decision)


def decisions_path(data_dir: Path) -> Path:
    """The file that is written now."""
    return data_dir / "decisions.jsonl"


def files_of(path: Path) -> list[Path]:
    """That file and the full ones before it, as many as there are, the newest first."""
    return [file for file in (path, *(_old(path, n) for n in range(1, OLD_FILES + 1))) if file.exists()]


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class DecisionLog:
    """One process's way to the file. ``add`` belongs to the event loop, ``save`` and ``find`` to any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: deque[bytes] = deque()
        self._held = 0
        self._told = False

    def add(self, decision: Decision) -> bool:
        """Keep a decision for the next ``save``. Whether that should be soon."""
        try:
            line = _ENCODER.encode(decision)
        except UnicodeEncodeError:  # a server's name with half a character in it
            return False
        if self._held + len(line) > MAX_HELD:
            self._tell(f"more decisions come than can be written to {self._path}")
            return True
        self._held += len(line)
        self._lines.append(line)
        return self._held > MANY_HELD

    def save(self) -> None:
        """Append what was added. Blocking; what cannot be written is told once, and gone."""
        lines = []
        while self._lines:  # one at a time: others may be added meanwhile
            lines.append(self._lines.popleft())
        self._held = 0
        if not lines:
            return
        try:
            folder = lock_folder(self._path.parent)
            try:
                _append(self._path, b"".join(line + b"\n" for line in lines))
            finally:
                unlock_folder(folder)
        except OSError as error:
            self._tell(f"decisions cannot be kept in {self._path}: {error.strerror or error}")
        else:
            self._told = False

    def _tell(self, what: str) -> None:
        if not self._told:
            log.warning("%s; routing goes on without them", what)
        self._told = True

    def find(self, request_id: str) -> Decision | None:
        """The decision of a request, None when it is not in the files. Blocking.

        Raises:
            OSError: a file cannot be read.
        """
        self.save()
        mark = f'"id":{msgspec.json.encode(request_id).decode()}'.encode()
        for path in files_of(self._path):
            body = _bytes_of(path)
            place = body.rfind(mark)
            if place >= 0:
                end = body.find(b"\n", place)
                return decode(body[body.rfind(b"\n", 0, place) + 1 : end if end >= 0 else len(body)])
        return None


def decode(line: bytes) -> Decision | None:
    """A decision of its line; None of what is no decision, or has a number that cannot be."""
    try:
        found = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if _sane(found) else None


def read(paths: Iterable[Path]) -> Iterator[Decision | None]:
    """The decisions of files, file by file; None for each line that is none.

    Raises:
        OSError: a file cannot be read.
    """
    for path in paths:
        with _open(path, os.O_RDONLY) as file:
            while line := file.readline(MAX_LINE):
                yield decode(line)


def _sane(decision: Decision) -> bool:
    outcome = decision.outcome
    seconds = [outcome.first, outcome.total]
    points = [decision.difficulty, *decision.shares.values()]
    counts = [decision.tokens, decision.answer, outcome.tokens_in, outcome.tokens_out, decision.more]
    for option in decision.options:
        seconds += (option.queue, option.load, option.prefill, option.decode, option.harm)
        points += (option.score, option.bonus)
        counts += (option.window, option.priority)
    return (
        all(0.0 <= value <= MAX_SECONDS for value in seconds)
        and all(abs(value) <= MAX_SCORE for value in points)
        and all(0 <= value <= MAX_COUNT for value in counts)
        and 0.0 <= decision.at <= LAST_TIME
        and -1 <= decision.chosen < len(decision.options)
    )


def _append(path: Path, data: bytes) -> None:
    with _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        size = os.fstat(file.fileno()).st_size
        if not size or size + len(data) <= FILE_BYTES:
            _write(file.fileno(), size, data)
            return
    for number in range(OLD_FILES - 1, 0, -1):
        if _old(path, number).exists():
            _old(path, number).replace(_old(path, number + 1))
    path.replace(_old(path, 1))
    with _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        _write(file.fileno(), 0, data)


def _write(file: int, size: int, data: bytes) -> None:
    """Append; of what cannot be written whole, nothing stays."""
    if size:
        os.lseek(file, size - 1, os.SEEK_SET)
        if os.read(file, 1) != b"\n":  # a writer was killed in the middle of a line
            data = b"\n" + data
    written = 0
    try:
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError:
        os.ftruncate(file, size)
        raise


def _bytes_of(path: Path) -> bytes:
    with _open(path, os.O_RDONLY) as file:
        return file.read(FILE_BYTES + MAX_HELD)


def _open(path: Path, flags: int) -> IO[bytes]:
    """A regular file, for this user alone. Raises OSError, also of what would be waited for, such as a pipe."""
    file = os.open(path, flags | _BINARY | getattr(os, "O_NONBLOCK", 0), 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(file, "rb" if flags == os.O_RDONLY else "r+b", buffering=-1 if flags == os.O_RDONLY else 0)
