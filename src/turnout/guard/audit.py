"""The audit log: JSON lines, each carrying the hash of the one before (SPEC SEC-3).

Several processes may append to one file: a record is one write under a lock, and whoever finds that the file has grown
reads its tail to continue sequence and chain. A query's text is never in it, only a keyed hash of it.

``previous_hash`` is the SHA-256 of the previous record's line, without its newline; when a killed writer left a half
line after that record, the half line (and the newline before it) is hashed with it. ``chain.py`` reads all of it back.
Full files are renamed and the chain goes on in a new one. By default lines are not forced to the disk one by one: they
survive the death of the process, those of the last second perhaps not a loss of power.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Literal

import msgspec

from turnout.errors import AuditError, StorageError
from turnout.files import lock_folder, replace_file, unlock_folder
from turnout.guard.audit_key import BINARY, audit_key, lock_file, unlock_file
from turnout.guard.chain import (
    CHECKPOINT,
    CONTINUED,
    DAMAGED_LINE,
    EVERY,
    FIRST_HASH,
    GAP,
    HALF_LINE,
    LOG_REPLACED,
    RETIRED,
    ROTATED,
    SIGNED,
    Head,
    Link,
    begun,
    checkpoint_text,
    ended,
    hash_at,
    last_of,
    last_record,
    newest,
    read_head,
    rotated_files,
    rotated_name,
    still_has,
)
from turnout.guard.records import EditedFile, QueryEnd, QueryStart, Record, attempt_of, encode
from turnout.guard.signing import Signer
from turnout.guard.syslog import LocalSyslog

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody reads would hold up every query
SEAL_SECONDS = 1.0  # a log that is written to is signed so often
_HINT = "free space, change security.audit_log_path, or set security.audit_enabled: false"

log = logging.getLogger("turnout")


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a log is kept.

    Attributes:
        rotate_bytes, rotate_seconds: a file that is larger, or whose first record is older, is full; 0 for never.
        keep_seconds: a full file is deleted when its last record is older; 0 for never.
        continue_on_failure: go on without records when they cannot be written; how many were lost is told later.
        fsync: force each write to the disk, or what was written when the head is; ``never`` leaves it to the system.
        syslog: a local socket that gets a copy of every line, "" for none.
    """

    rotate_bytes: int = 0
    rotate_seconds: float = 0.0
    keep_seconds: float = 0.0
    continue_on_failure: bool = False
    fsync: Literal["never", "second", "always"] = "never"
    syslog: str = ""


@dataclass(frozen=True, slots=True)
class Seal:
    """Who signs a log's checkpoints and its head, and the head's file."""

    signer: Signer
    head: Path


DEFAULT_KEEPING = Keeping()


class AuditLog:
    """An open log, for any thread. Made by ``open_audit``; a process that forks opens its own."""

    def __init__(
        self,
        path: Path,
        key: bytes,
        *,
        log_queries: bool,
        log_responses: bool,
        keeping: Keeping = DEFAULT_KEEPING,
        seal: Seal | None = None,
    ) -> None:
        self._path, self._name = path, os.fspath(path)
        self._keyed = hmac.new(key, digestmod="sha256")
        self._log_queries, self._log_responses = log_queries, log_responses
        self._keeping, self._seal = keeping, seal
        self._syslog = LocalSyslog(keeping.syslog) if keeping.syslog else None
        self._mutex = threading.Lock()
        self._file = -1
        self._identity = (0, 0)
        self._regular = True
        self._size = -1
        self._begun = 0.0  # when the file's first record was written, 0 when that is not known
        self._ended = False  # the file says that it is full, and has still its name
        self._continued = False  # a file was full a moment ago
        self._sequence, self._previous = 0, FIRST_HASH
        self._length, self._last = 0, (0, 0)  # of the last line, and where it begins when the file is as we left it
        self._sealed, self._sealed_at, self._anew = 0, 0.0, False
        self._lost = 0
        self._held: list[Record] = []
        self._hashes: dict[str, str | None] = {}  # of the queries that are running, by request id
        try:
            self._open()
        except OSError as error:
            raise self._failure(error) from error

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | BINARY | _NO_WAIT, 0o600)
        status = os.fstat(self._file)
        self._identity = (status.st_dev, status.st_ino)
        self._regular = stat.S_ISREG(status.st_mode)
        self._size, self._begun = -1, 0.0

    def close(self) -> None:
        """Write what is held, sign the head and close. The end of a query that still runs opens it again.

        Raises:
            AuditError: held records cannot be written, or the head cannot.
        """
        with self._mutex:
            try:
                self._write()
                unsealed = self._unsealed()
            finally:
                self._close()
        if unsealed is not None:
            self._write_head(*unsealed)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def seal(self) -> None:
        """Sign how far the log has come, and keep that apart from it: then no tail can be cut off unnoticed.

        Raises:
            AuditError: it cannot be kept.
        """
        with self._mutex:
            unsealed = self._unsealed()
        if unsealed is not None:
            self._write_head(*unsealed)

    def _unsealed(self) -> tuple[Head, int] | None:
        """The head as it would be now, and a descriptor of the log; None when it is signed already."""
        if self._seal is None or not self._regular or self._file < 0 or self._sequence == self._sealed:
            return None
        self._sealed, self._sealed_at = self._sequence, time.monotonic()
        return Head(self._sequence, self._previous, _now()), os.dup(self._file)

    def _write_head(self, head: Head, file: int) -> None:
        assert self._seal is not None
        try:
            if self._keeping.fsync == "second":
                os.fsync(file)
            signed = msgspec.structs.replace(head, signature=self._seal.signer.sign(head.text))
            locked = lock_folder(self._seal.head.parent)
            try:
                before = None if self._anew else _head_or_none(self._seal.head)
                if before is None or before.sequence < head.sequence:  # another process may have been faster
                    replace_file(self._seal.head, msgspec.json.encode(signed) + b"\n")
                self._anew = False
            finally:
                unlock_folder(locked)
        except (OSError, StorageError) as error:
            raise self._failure(error) from error
        finally:
            os.close(file)

    def query_hash(self, query: str) -> str | None:
        """The keyed hash of a query's text, None when queries are not logged."""
        if not self._log_queries:
            return None
        keyed = self._keyed.copy()
        keyed.update(query.encode("utf-8", "surrogatepass"))
        return keyed.hexdigest()

    def start(self, record: QueryStart, *, hold: bool = False) -> None:
        """Write that a query begins.

        Args:
            record: what begins.
            hold: as in ``end``; run nothing before ``flush`` has returned.

        Raises:
            AuditError: the line cannot be written; run nothing.
        """
        query_hash = self.query_hash(record.query)
        line = Record(
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
        line = Record(
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
            attempts=[attempt_of(a) for a in record.attempts],
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
        self,
        event_type: str,
        *,
        error: str = "",
        principal: str = "local",
        service: str = "",
        session_id: str = "",
        model: str = "",
    ) -> None:
        """Write an event that is no query: ``security:<what>``, ``access``, ``config``, ``edit`` or
        ``feedback``.

        Raises:
            AuditError: the line cannot be written.
        """
        line = Record(
            event_type=event_type,
            session_id=session_id or None,
            model=model or None,
            service=service or None,
            success=not error,
            error=error or None,
            principal=principal,
        )
        self._add(line)
        if self._seal is not None and time.monotonic() - self._sealed_at > SEAL_SECONDS:
            self.seal()

    def edit(
        self,
        phase: str,
        files: tuple[EditedFile, ...],
        *,
        error: str = "",
        principal: str = "local",
        workspace: str = "",
    ) -> None:
        """Write that files of a workspace are about to change (``start``) or how that ended (``end``).

        Raises:
            AuditError: the line cannot be written; change nothing.
        """
        line = Record(
            event_type="edit",
            phase=phase,
            service=workspace or None,
            success=None if phase == "start" else not error,
            error=error or None,
            principal=principal,
            files=files,
        )
        self._add(line)

    def _add(self, record: Record, *, hold: bool = False) -> None:
        record.timestamp = _now()
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
            size, lead = self._ready()
            try:
                retired = self._expired() if self._continued else []
                if retired or self._lost:
                    lead += b"".join(map(self._link, [*map(self._retired, retired), *self._gap()]))
                self._put(size, lead + b"".join(map(self._link, self._held)))
                self._continued = False
                for file in retired:
                    file.unlink(missing_ok=True)
            finally:
                unlock_file(self._file)
        except (OSError, StorageError) as error:
            self._sequence, self._previous = before
            self._size = -1
            if not self._keeping.continue_on_failure:
                raise self._failure(error) from error
            if not self._lost:
                log.error("%s; queries are run without records", self._failure(error))
            self._lost += len(self._held)
        else:
            self._lost = 0
        self._held = []

    def _gap(self) -> list[Record]:
        if not self._lost:
            return []
        lost = f"{self._lost} records before this one could not be written"
        return [Record(timestamp=_now(), event_type=GAP, success=False, error=lost)]

    def _ready(self) -> tuple[int, bytes]:
        """Lock the file to write to: its size, and what must be written first. One that is full is renamed before.

        A process that is killed meanwhile leaves a file that says that it is full; the next one renames it.
        """
        while True:
            size = self._lock_current()
            try:
                lead = self._catch_up(size) if self._regular and size != self._size else b""
                if not self._regular or not (self._ended or self._is_full(size)):
                    return size, lead
                if not self._ended:
                    self._put(size, lead + self._link(Record(timestamp=_now(), event_type=ROTATED)))
                self._path.rename(rotated_name(self._path, self._sequence))
            except BaseException:
                self._close()
                raise
            self._close()
            self._ended = False

    def _is_full(self, size: int) -> bool:
        keeping = self._keeping
        if not size:
            return False
        if keeping.rotate_bytes and size >= keeping.rotate_bytes:
            return True
        if not keeping.rotate_seconds:
            return False
        self._begun = self._begun or begun(self._file)
        return time.time() - self._begun > keeping.rotate_seconds

    def _expired(self) -> list[Path]:
        """The full files that were last written too long ago, the oldest first."""
        if not self._keeping.keep_seconds:
            return []
        oldest = time.time() - self._keeping.keep_seconds
        return [*takewhile(lambda file: ended(file) < oldest, rotated_files(self._path))]

    def _retired(self, file: Path) -> Record:
        found = last_of(file)
        until, until_hash = (found[0].sequence, found[1]) if found else (0, "")
        return Record(timestamp=_now(), event_type=RETIRED, file=file.name, until=until, until_hash=until_hash)

    def _lock_current(self) -> int:
        """Lock the file that the path names now: it may be rotated or deleted at any time, also while we wait. Its
        size."""
        while True:
            if self._file < 0:
                self._open()
            lock_file(self._file)
            try:
                now = os.stat(self._name)  # noqa: PTH116 (a microsecond faster, on every record)
            except FileNotFoundError:
                now = None
            if now is not None and (now.st_dev, now.st_ino) == self._identity:
                return now.st_size
            self._close()

    def _put(self, size: int, data: bytes) -> None:
        """Write at the end of the file, which has ``size`` bytes: all of it or nothing."""
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
        self._last = self._size - self._length - 1, self._length
        if self._keeping.fsync == "always" and self._regular:
            os.fsync(self._file)
        if self._syslog is not None:
            self._syslog.send(data)

    def _link(self, record: Record) -> bytes:
        """The next line of the chain; a checkpoint before it where one belongs."""
        due = self._seal is not None and record.event_type not in SIGNED and not (self._sequence + 1) % EVERY
        lead = self._line(Record(timestamp=_now(), event_type=CHECKPOINT)) if due else b""
        return lead + self._line(record)

    def _line(self, record: Record) -> bytes:
        record.sequence, record.previous_hash = self._sequence + 1, self._previous
        if self._seal is not None and record.event_type in SIGNED:
            until, until_hash = record.until or 0, record.until_hash or ""
            link = Link(record.event_type, record.sequence, record.previous_hash, "", until, until_hash)
            record.signature = self._seal.signer.sign(checkpoint_text(link))
        line = encode(record)
        self._sequence, self._previous = record.sequence, hashlib.sha256(line).hexdigest()
        self._length = len(line)
        return line + b"\n"

    def _catch_up(self, size: int) -> bytes:
        """Continue after what is in the file now; what must be written first to end a half line and note the find."""
        known, known_hash, wrong = self._known()
        last, since = last_record(self._file, size)
        self._ended = last is not None and last.event_type == ROTATED and since.count(b"\n") == 1
        self._sequence = last.sequence if last else 0
        self._previous = hashlib.sha256(since.removesuffix(b"\n")).hexdigest() if since else FIRST_HASH
        full = newest(self._path) if not since else None
        if full is not None:
            self._sequence, self._previous = full[1].sequence, full[2]
        lead = b"" if since.endswith(b"\n") or not since else b"\n"
        stray = since.partition(b"\n")[2] if last else since
        before = self._sequence
        if stray:
            kind = HALF_LINE if lead and b"\n" not in stray else DAMAGED_LINE
            lead += self._note(kind, f"{len(stray)} bytes after record {self._sequence} are no record")
        unmoved = self._size > 0 and hash_at(self._file, *self._last) == known_hash
        if before < known:
            wrong = f"the log was moved, deleted or cut after record {known}, whose hash is {known_hash}"
        elif known and not (wrong or unmoved or still_has(self._path, known, known_hash)):
            wrong = f"record {known} is another than was written, whose hash is {known_hash}"
        if wrong:
            self._anew = True
            lead += self._note(LOG_REPLACED, wrong)
        if full is not None:
            self._continued = True
            lead += self._link(Record(timestamp=_now(), event_type=CONTINUED, file=full[0]))
        return lead

    def _known(self) -> tuple[int, str, str]:
        """How far the log had come when this process, or by its head another one, last wrote; what is wrong with that
        head, or ""."""
        if self._sequence or self._seal is None:
            return self._sequence, self._previous, ""
        try:
            head = read_head(self._seal.head)
        except StorageError as error:
            return 0, FIRST_HASH, error.message
        if head is None:
            return 0, FIRST_HASH, ""
        with suppress(StorageError):  # a key that cannot be used is told of when something is to be signed
            if not self._seal.signer.public.signed(head.signature, head.text):
                return 0, FIRST_HASH, "the head of the log was changed, or another key signed it"
        return head.sequence, head.hash, ""

    def _note(self, event_type: str, found: str) -> bytes:
        return self._link(Record(timestamp=_now(), event_type=event_type, success=False, error=found))

    def _failure(self, error: OSError | StorageError) -> AuditError:
        if isinstance(error, StorageError):
            return AuditError(f"the audit log {self._path} cannot be signed: {error.message}", hint=error.hint)
        return AuditError(f"the audit log {self._path} cannot be written: {error.strerror or error}", hint=_HINT)


def _now() -> str:
    """As ``isoformat`` writes it, whose result for the second is kept: it is most of the time that this takes."""
    second, fraction = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(second)}.{fraction:03d}+00:00"


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def _head_or_none(path: Path) -> Head | None:
    """The head, None also where it cannot be read: verification tells of that."""
    try:
        return read_head(path)
    except StorageError:
        return None


def open_audit(
    path: Path,
    key_file: Path,
    *,
    log_queries: bool = True,
    log_responses: bool = False,
    keeping: Keeping = DEFAULT_KEEPING,
    seal: Seal | None = None,
) -> AuditLog:
    """Open or create the log.

    Args:
        path: the log file; created with mode 0600.
        key_file: holds the key of the query hashes; created with mode 0600 when it is absent.
        log_queries: write the keyed hash of each query.
        log_responses: write the answers' text.
        keeping: rotation, retention, and what happens when nothing can be written.
        seal: who signs it; without one, a chain alone.

    Raises:
        AuditError: one of the files cannot be used.
    """
    key = audit_key(key_file)
    return AuditLog(path, key, log_queries=log_queries, log_responses=log_responses, keeping=keeping, seal=seal)
