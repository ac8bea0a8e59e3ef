"""The audit log: JSON lines, each carrying the hash of the one before (SPEC SEC-3).

Several processes may append to one file: a line is one write under a lock, and whoever finds that the file has grown
reads its tail to continue sequence and chain. A query's text is never in it, only a keyed hash of it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from turnout.errors import AuditError
from turnout.types import AttemptRecord, Json

try:
    import fcntl
except ImportError:  # Windows has no flock: there, one process at a time may write one file.
    fcntl = None  # type: ignore[assignment]

FIRST_HASH = "0" * 64
_TAIL_BYTES = 262_144
_HINT = "free space, change security.audit_log_path, or set security.audit_enabled: false"


@dataclass(frozen=True, slots=True)
class QueryStart:
    """What is known when a query begins."""

    request_id: str
    session_id: str
    principal: str
    query: str


@dataclass(frozen=True, slots=True)
class QueryEnd:
    """What is known when it ends."""

    request_id: str
    session_id: str
    principal: str
    query: str
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
    """The result of a verification: ``bad_line`` is 1-based, 0 when the chain holds."""

    lines: int
    ok: bool
    bad_line: int = 0
    reason: str = ""
    half_last_line: bool = False


class AuditLog:
    """An open log. Made by ``open_audit``."""

    def __init__(self, path: Path, key: bytes, *, log_queries: bool, log_responses: bool) -> None:
        self._path, self._key = path, key
        self._log_queries, self._log_responses = log_queries, log_responses
        self._file = -1
        self._inode = 0
        self._size = -1
        self._sequence, self._previous = 0, FIRST_HASH
        self._open()

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            self._inode = os.fstat(self._file).st_ino
        except OSError as error:
            raise self._failure(error) from error
        self._size = -1

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def query_hash(self, query: str) -> str | None:
        """The keyed hash of a query's text, None when queries are not logged."""
        if not self._log_queries:
            return None
        return hmac.new(self._key, query.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def start(self, record: QueryStart) -> None:
        """Write that a query begins.

        Raises:
            AuditError: the line cannot be written; run nothing.
        """
        self._write(
            event_type="query",
            phase="start",
            session_id=record.session_id or None,
            model=None,
            service=None,
            query_hash=self.query_hash(record.query),
            tokens_in=None,
            tokens_out=None,
            success=None,
            error=None,
            request_id=record.request_id,
            principal=record.principal,
        )

    def end(self, record: QueryEnd) -> None:
        """Write how a query ended.

        Raises:
            AuditError: the line cannot be written.
        """
        fields: dict[str, Json] = {
            "event_type": "query",
            "phase": "end",
            "session_id": record.session_id or None,
            "model": record.model or None,
            "service": record.service or None,
            "query_hash": self.query_hash(record.query),
            "tokens_in": record.tokens_in,
            "tokens_out": record.tokens_out,
            "success": not record.error,
            "error": record.error or None,
            "request_id": record.request_id,
            "principal": record.principal,
            "category": record.category or None,
            "fallback_level": record.fallback_level,
            "attempts": [_attempt(a) for a in record.attempts],
        }
        if self._log_responses:
            fields["response"] = record.response
        self._write(**fields)

    def event(self, event_type: str, *, error: str = "", principal: str = "local", service: str = "") -> None:
        """Write an event that is no query: ``security:<what>``, ``access``, ``config`` or ``edit``.

        Raises:
            AuditError: the line cannot be written.
        """
        self._write(
            event_type=event_type,
            session_id=None,
            model=None,
            service=service or None,
            query_hash=None,
            tokens_in=None,
            tokens_out=None,
            success=not error,
            error=error or None,
            principal=principal,
        )

    def _write(self, **fields: Json) -> None:
        try:
            self._reopen_if_moved()
            _lock(self._file)
            try:
                size = os.fstat(self._file).st_size
                if size != self._size:
                    size = self._catch_up(size)
                line = self._line(fields)
                self._append(line, size)
                self._size = size + len(line)
                self._sequence += 1
                self._previous = hashlib.sha256(line.removesuffix(b"\n")).hexdigest()
            finally:
                _unlock(self._file)
        except OSError as error:
            self._size = -1
            raise self._failure(error) from error

    def _line(self, fields: Mapping[str, Json]) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"timestamp": now, **fields, "sequence": self._sequence + 1, "previous_hash": self._previous}
        try:
            return msgspec.json.encode(record) + b"\n"
        except UnicodeEncodeError:
            clean = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in record.items()}
            return msgspec.json.encode(clean) + b"\n"

    def _append(self, line: bytes, size: int) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            if written:
                os.ftruncate(self._file, size)
            raise

    def _reopen_if_moved(self) -> None:
        try:
            moved = os.stat(self._path).st_ino != self._inode  # noqa: PTH116
        except FileNotFoundError:
            moved = True
        if moved:
            self.close()
            self._open()

    def _catch_up(self, size: int) -> int:
        """Continue after what others wrote; a half line that a killed writer left is ended, and stays visible."""
        if size == 0:
            self._sequence, self._previous = 0, FIRST_HASH
            return 0
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._file, size - start, start)
        if not tail.endswith(b"\n"):
            os.write(self._file, b"\n")
            size += 1
            tail = tail[: tail.rfind(b"\n") + 1]
        for line in reversed(tail.splitlines()):
            record = _decode(line)
            if record is not None:
                self._sequence = record.sequence
                self._previous = hashlib.sha256(line).hexdigest()
                return size
        self._sequence, self._previous = 0, FIRST_HASH
        return size

    def _failure(self, error: OSError) -> AuditError:
        return AuditError(f"the audit log {self._path} cannot be written: {error.strerror or error}", hint=_HINT)


class _Link(msgspec.Struct):
    sequence: int
    previous_hash: str


_LINK = msgspec.json.Decoder(_Link)


def _decode(line: bytes) -> _Link | None:
    try:
        return _LINK.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None


def _attempt(record: AttemptRecord) -> Json:
    return {
        "level": int(record.level),
        "model": record.model,
        "service": record.service,
        "error": record.error.code if record.error else None,
        "ms": round(record.seconds * 1000),
    }


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
    try:
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            made = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = key_file.read_bytes()
        else:
            key = secrets.token_bytes(32)
            with os.fdopen(made, "wb") as file:
                file.write(key)
    except OSError as error:
        raise AuditError(
            f"the audit key {key_file} cannot be used: {error.strerror or error}",
            hint="make the data directory writable, or choose another with TURNOUT_DATA_DIR",
        ) from error
    if len(key) < 16:
        raise AuditError(
            f"the audit key {key_file} is damaged", hint="move it away; a new one is made at the next start"
        )
    return key


def verify(path: Path) -> ChainReport:
    """Check the chain of a log from its first line."""
    data = path.read_bytes()
    half = bool(data) and not data.endswith(b"\n")
    lines = data.split(b"\n")[:-1]
    previous, sequence = FIRST_HASH, 0
    for number, line in enumerate(lines, 1):
        record = _decode(line)
        if record is None:
            return ChainReport(len(lines), ok=False, bad_line=number, reason="not a record", half_last_line=half)
        if record.previous_hash != previous:
            return ChainReport(len(lines), ok=False, bad_line=number, reason="the chain is broken", half_last_line=half)
        if record.sequence != sequence + 1:
            return ChainReport(len(lines), ok=False, bad_line=number, reason="a line is missing", half_last_line=half)
        previous, sequence = hashlib.sha256(line).hexdigest(), record.sequence
    return ChainReport(len(lines), ok=True, half_last_line=half)
