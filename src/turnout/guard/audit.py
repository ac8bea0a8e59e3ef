"""The audit log: JSON lines, each carrying the hash of the one before (SPEC SEC-3).

Several processes may append to one file: a record is one write under a lock, and whoever finds that the file has grown
reads its tail to continue sequence and chain. A query's text is never in it, only a keyed hash of it.

``previous_hash`` is the SHA-256 of the previous record's line, without its newline; when a killed writer left a half
line after that record, the half line (and the newline before it) is hashed with it. The chain shows any change but one:
the last lines cut off. That takes checkpoints kept elsewhere. Lines are not flushed to the disk one by one: they
survive the death of the process, the last ones perhaps not a loss of power.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from turnout.errors import AuditError
from turnout.types import AttemptRecord

try:
    import fcntl
except ImportError:  # Windows has no flock: there, one process at a time may write one file.
    fcntl = None  # type: ignore[assignment]

FIRST_HASH = "0" * 64
HALF_LINE = "security:half_line"
DAMAGED_LINE = "security:damaged_line"
LOG_REPLACED = "security:log_replaced"
_KEY_BYTES = 32
_TAIL_BYTES = 4096
_BINARY = getattr(os, "O_BINARY", 0)
_HINT = "free space, change security.audit_log_path, or set security.audit_enabled: false"


class QueryStart(msgspec.Struct, frozen=True):
    """What is known when a query begins."""

    request_id: str
    session_id: str
    principal: str
    query: str
    agent: str = ""


class QueryEnd(msgspec.Struct, frozen=True):
    """What is known when it ends. ``error`` is an error's code, "" when it succeeded: never a text that quotes."""

    request_id: str
    session_id: str
    principal: str
    query: str
    agent: str = ""
    model: str = ""
    service: str = ""
    category: str = ""
    fallback_level: int | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    error: str = ""
    response: str = ""


@dataclass(frozen=True, slots=True)
class ChainReport:
    """The result of a verification.

    Attributes:
        count: the records that were read and hold.
        ok: the chain holds from the first line to the last whole one.
        bad_line: 1-based number of the first line that does not, 0 when ``ok``.
        reason: what is wrong there, "" when ``ok``.
        half_lines: unfinished lines of killed writers that the next writer found and noted: no damage.
        half_last_line: the last line has no end: its writer was killed, or is writing it now.
    """

    count: int
    ok: bool
    bad_line: int = 0
    reason: str = ""
    half_lines: int = 0
    half_last_line: bool = False


class _Attempt(msgspec.Struct):
    level: int
    model: str
    service: str
    error: str | None
    ms: int


class _Record(msgspec.Struct, kw_only=True):
    """One line: these keys in this order, null where they do not apply; ``response`` only when responses are logged."""

    timestamp: str = ""
    event_type: str
    session_id: str | None = None
    model: str | None = None
    service: str | None = None
    query_hash: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    success: bool | None = None
    error: str | None = None
    phase: str | None = None
    request_id: str | None = None
    principal: str | None = None
    agent: str | None = None
    category: str | None = None
    fallback_level: int | None = None
    attempts: list[_Attempt] = []
    response: str | msgspec.UnsetType = msgspec.UNSET
    sequence: int = 0
    previous_hash: str = FIRST_HASH


class AuditLog:
    """An open log, for any thread. Made by ``open_audit``; a process that forks opens its own."""

    def __init__(self, path: Path, key: bytes, *, log_queries: bool, log_responses: bool) -> None:
        self._path, self._key = path, key
        self._log_queries, self._log_responses = log_queries, log_responses
        self._mutex = threading.Lock()
        self._file = -1
        self._identity = (0, 0)
        self._regular = True
        self._size = -1
        self._sequence, self._previous = 0, FIRST_HASH
        self._held: list[_Record] = []
        self._hashes: dict[str, str | None] = {}  # of the queries that are running, by request id
        try:
            self._open()
        except OSError as error:
            raise self._failure(error) from error

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _BINARY, 0o600)
        status = os.fstat(self._file)
        self._identity = (status.st_dev, status.st_ino)
        self._regular = stat.S_ISREG(status.st_mode)
        self._size = -1

    def close(self) -> None:
        """Write what is held and close the file. The end of a query that still runs opens it again: nothing is lost.

        Raises:
            AuditError: held records cannot be written.
        """
        with self._mutex:
            try:
                self._write()
            finally:
                self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def query_hash(self, query: str) -> str | None:
        """The keyed hash of a query's text, None when queries are not logged."""
        if not self._log_queries:
            return None
        return hmac.digest(self._key, query.encode("utf-8", "surrogatepass"), "sha256").hex()

    def start(self, record: QueryStart, *, hold: bool = False) -> None:
        """Write that a query begins.

        Args:
            record: what begins.
            hold: as in ``end``; run nothing before ``flush`` has returned.

        Raises:
            AuditError: the line cannot be written; run nothing.
        """
        query_hash = self.query_hash(record.query)
        line = _Record(
            event_type="query",
            phase="start",
            session_id=record.session_id or None,
            query_hash=query_hash,
            request_id=record.request_id,
            principal=record.principal,
            agent=record.agent or None,
        )
        self._add(line, hold=hold)
        self._hashes[record.request_id] = query_hash

    def end(self, record: QueryEnd, *, hold: bool = False) -> None:
        """Write how a query ended.

        Args:
            record: how it ended.
            hold: write it together with the next record, or at ``flush`` or ``close``: one write for both.

        Raises:
            AuditError: the line cannot be written.
        """
        known = record.request_id in self._hashes
        line = _Record(
            event_type="query",
            phase="end",
            session_id=record.session_id or None,
            model=record.model or None,
            service=record.service or None,
            query_hash=self._hashes.pop(record.request_id) if known else self.query_hash(record.query),
            tokens_in=record.tokens_in,
            tokens_out=record.tokens_out,
            success=not record.error,
            error=record.error or None,
            request_id=record.request_id,
            principal=record.principal,
            agent=record.agent or None,
            category=record.category or None,
            fallback_level=record.fallback_level,
            attempts=[_attempt(a) for a in record.attempts],
            response=record.response if self._log_responses else msgspec.UNSET,
        )
        self._add(line, hold=hold)

    def flush(self) -> None:
        """Write what is held.

        Raises:
            AuditError: it cannot be written. Ends are kept for the next try; starts are dropped: run none of them.
        """
        with self._mutex:
            try:
                self._write()
            except AuditError:
                self._drop_starts()
                raise

    def _drop_starts(self) -> None:
        for record in self._held:
            if record.phase == "start" and record.request_id:
                self._hashes.pop(record.request_id, None)
        self._held = [record for record in self._held if record.phase != "start"]

    def event(
        self, event_type: str, *, error: str = "", principal: str = "local", service: str = "", session_id: str = ""
    ) -> None:
        """Write an event that is no query: ``security:<what>``, ``access``, ``config`` or ``edit``.

        Raises:
            AuditError: the line cannot be written.
        """
        line = _Record(
            event_type=event_type,
            session_id=session_id or None,
            service=service or None,
            success=not error,
            error=error or None,
            principal=principal,
        )
        self._add(line)

    def _add(self, record: _Record, *, hold: bool = False) -> None:
        record.timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._mutex:
            self._held.append(record)
            if hold:
                return
            try:
                self._write()
            except AuditError:
                self._held.pop()  # its caller is told; what was held before waits for the next try
                raise

    def _write(self) -> None:
        if not self._held:
            return
        before = self._sequence, self._previous
        try:
            self._lock_current()
            try:
                self._append(self._held)
            finally:
                _unlock(self._file)
        except OSError as error:
            self._sequence, self._previous = before
            self._size = -1
            raise self._failure(error) from error
        self._held = []

    def _lock_current(self) -> None:
        """Lock the file that the path names now: it may be rotated or deleted at any time, also while we wait."""
        while True:
            if self._file < 0:
                self._open()
            _lock(self._file)
            try:
                now = os.stat(self._path)  # noqa: PTH116 (a microsecond faster, on every record)
            except FileNotFoundError:
                now = None
            if now is not None and (now.st_dev, now.st_ino) == self._identity:
                return
            self._close()

    def _append(self, records: Iterable[_Record]) -> None:
        size = os.fstat(self._file).st_size
        lead = self._catch_up(size) if self._regular and size != self._size else b""
        data = lead + b"".join(map(self._link, records))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            if written and self._regular:
                with suppress(OSError):  # then the half line stays, and the next writer ends it
                    os.ftruncate(self._file, size)
            raise
        self._size = size + len(data)

    def _link(self, record: _Record) -> bytes:
        """The next line of the chain."""
        record.sequence, record.previous_hash = self._sequence + 1, self._previous
        line = _encode(record)
        self._sequence, self._previous = record.sequence, hashlib.sha256(line).hexdigest()
        return line + b"\n"

    def _catch_up(self, size: int) -> bytes:
        """Continue after what is in the file now; what must be written first to end a half line and note the find."""
        known, known_hash = self._sequence, self._previous
        cut = known > 0 and (size == 0 or size < self._size)
        last, since = self._last_record(size)
        self._sequence = last.sequence if last else 0
        self._previous = hashlib.sha256(since.removesuffix(b"\n")).hexdigest() if since else FIRST_HASH
        lead = b"" if since.endswith(b"\n") or not since else b"\n"
        stray = since.partition(b"\n")[2] if last else since
        if stray:
            kind = HALF_LINE if lead and b"\n" not in stray else DAMAGED_LINE
            lead += self._note(kind, f"{len(stray)} bytes after record {self._sequence} are no record")
        if cut:
            found = f"the log was moved, deleted or cut after record {known}, whose hash is {known_hash}"
            lead += self._note(LOG_REPLACED, found)
        return lead

    def _note(self, event_type: str, found: str) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return self._link(_Record(timestamp=now, event_type=event_type, success=False, error=found))

    def _last_record(self, size: int) -> tuple[_Link | None, bytes]:
        """The last record and the file's bytes from its beginning on; without one, all bytes."""
        reach = _TAIL_BYTES
        while True:
            start = max(0, size - reach)
            tail = _read(self._file, start, size - start)
            lines = tail.split(b"\n")
            for n in range(len(lines) - 1, 0 if start else -1, -1):
                record = _decode(lines[n])
                if record is not None:
                    return record, b"\n".join(lines[n:])
            if start == 0:
                return None, tail
            reach *= 16

    def _failure(self, error: OSError) -> AuditError:
        return AuditError(f"the audit log {self._path} cannot be written: {error.strerror or error}", hint=_HINT)


class _Link(msgspec.Struct):
    event_type: str
    sequence: int
    previous_hash: str


_LINK = msgspec.json.Decoder(_Link)
_ENCODER = msgspec.json.Encoder()


def _decode(line: bytes) -> _Link | None:
    try:
        return _LINK.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _encode(record: _Record) -> bytes:
    """ASCII alone: no line separator or terminal control of Unicode can break or repaint a line."""
    try:
        line = _ENCODER.encode(record)
        if line.isascii():
            return line
    except UnicodeEncodeError:
        pass  # a lone surrogate, replaced below
    import json

    text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False).encode("utf-8", "replace")
    return json.dumps(json.loads(text), separators=(",", ":")).encode("ascii")


def _attempt(record: AttemptRecord) -> _Attempt:
    error = record.error.code if record.error else None
    return _Attempt(int(record.level), record.model, record.service, error, round(record.seconds * 1000))


def _read(file: int, start: int, length: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    pieces = []
    while length > 0 and (piece := os.read(file, length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _lock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def _unlock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)


def open_audit(path: Path, key_file: Path, *, log_queries: bool = True, log_responses: bool = False) -> AuditLog:
    """Open or create the log.

    Args:
        path: the log file; created with mode 0600.
        key_file: holds the key of the query hashes; created with mode 0600 when it is absent.
        log_queries: write the keyed hash of each query.
        log_responses: write the answers' text.

    Raises:
        AuditError: one of the files cannot be used.
    """
    return AuditLog(path, _key(key_file), log_queries=log_queries, log_responses=log_responses)


def _key(key_file: Path) -> bytes:
    """The key, made under a lock when the file is empty: two processes that start at once get the same."""
    try:
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(key_file, os.O_RDWR | os.O_CREAT | _BINARY, 0o600), "r+b") as file:
            _lock(file.fileno())
            key = file.read()
            if not key:
                key = secrets.token_bytes(_KEY_BYTES)
                file.write(key)
        if key_file.stat().st_mode & 0o077:
            key_file.chmod(0o600)
    except OSError as error:
        raise AuditError(
            f"the audit key {key_file} cannot be used: {error.strerror or error}",
            hint="make the data directory writable, or choose another with TURNOUT_DATA_DIR",
        ) from error
    if len(key) < _KEY_BYTES:
        raise AuditError(
            f"the audit key {key_file} is damaged", hint="move it away; a new one is made at the next start"
        )
    return key


def verify(path: Path) -> ChainReport:
    """Check the chain of a log from its first line.

    Raises:
        AuditError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _verify(file)
    except OSError as error:
        raise AuditError(
            f"the audit log {path} cannot be read: {error.strerror or error}", hint="give the path of an audit log"
        ) from error


def _verify(lines: Iterable[bytes]) -> ChainReport:
    count = half_lines = stray = 0
    since = None
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return _stray(count, stray) or ChainReport(count, ok=True, half_lines=half_lines, half_last_line=True)
        body = line[:-1]
        record = _decode(body)
        if record is None:
            stray = stray or number
            if since is None:
                since = hashlib.sha256(body)
            else:
                since.update(b"\n" + body)
            continue
        if stray and record.event_type == HALF_LINE:
            half_lines, stray = half_lines + 1, 0
        if stray:
            break
        if record.sequence != count + 1:
            reason = f"its sequence is {record.sequence} where {count + 1} belongs: lines are missing or out of order"
            return ChainReport(count, ok=False, bad_line=number, reason=reason)
        if record.previous_hash != (since.hexdigest() if since else FIRST_HASH):
            reason = "it was not written after the line before it: that line or this one was changed"
            return ChainReport(count, ok=False, bad_line=number, reason=reason)
        count, since = count + 1, hashlib.sha256(body)
    return _stray(count, stray) or ChainReport(count, ok=True, half_lines=half_lines)


def _stray(count: int, line: int) -> ChainReport | None:
    return ChainReport(count, ok=False, bad_line=line, reason="it is no record of this log") if line else None
