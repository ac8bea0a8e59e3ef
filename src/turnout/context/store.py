"""Sessions in SQLite (SPEC CTX-2): WAL, several processes, a tenant on every row, migrations by version."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path

from turnout.context.record import (
    Exchange,
    SessionLine,
    SessionRecord,
    StoredMessage,
    decode_message,
    encode_message,
    metadata_of,
    speaks,
)
from turnout.context.tokens import get_token_counter
from turnout.errors import StorageError, UsageError
from turnout.types import Json, Message, Route, message

try:
    import fcntl
except ImportError:  # Windows: two processes that open the store for the very first time at once may see it busy.
    fcntl = None  # type: ignore[assignment]

log = getLogger(__name__)

BUSY_SECONDS = 10.0
DAY = 86_400.0
# A clock that has moved on by more days than this, or than the retention, is not believed at once.
DOUBTFUL_DAYS = 30
# A longer message is not decoded only to be listed or brought back to a prompt.
_SHORT_BYTES = 20_000
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
# A column takes values of any kind from whoever edits the file: read as what it should be, none stops a program.
_SESSION = (
    "SELECT CAST(created AS REAL), CAST(updated AS REAL), CAST(system_prompt AS TEXT), CAST(active_model AS TEXT), "
    "CAST(compactions AS INTEGER), compact_at FROM sessions WHERE tenant = ? AND id = ?"
)
_UPKEEP = "SELECT CAST(time AS REAL), CAST(since AS REAL) FROM upkeep"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MIGRATIONS = (
    """
    CREATE TABLE sessions (
        tenant TEXT NOT NULL, id TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
        system_prompt TEXT NOT NULL DEFAULT '', active_model TEXT NOT NULL DEFAULT '',
        compactions INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (tenant, id));
    CREATE TABLE messages (
        tenant TEXT NOT NULL, session TEXT NOT NULL, place INTEGER NOT NULL, time REAL NOT NULL,
        tokens INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (tenant, session, place),
        FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id) ON DELETE CASCADE);
    CREATE TABLE switches (
        tenant TEXT NOT NULL, session TEXT NOT NULL, time REAL NOT NULL, model TEXT NOT NULL, reason TEXT NOT NULL,
        FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id) ON DELETE CASCADE);
    """,
    """
    ALTER TABLE messages ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';
    CREATE INDEX switches_of_session ON switches (tenant, session);
    """,
    """
    ALTER TABLE sessions ADD COLUMN compact_at TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE sessions ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET used = (SELECT COUNT(*) FROM sessions AS other WHERE other.updated <= sessions.updated);
    CREATE TABLE summaries (
        tenant TEXT NOT NULL, session TEXT NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL, time REAL NOT NULL,
        PRIMARY KEY (tenant, session, key),
        FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id) ON DELETE CASCADE);
    CREATE TABLE upkeep (one INTEGER PRIMARY KEY CHECK (one = 1), time REAL NOT NULL, since REAL NOT NULL);
    """,
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What retention did. ``doubtful``: the clock has jumped, so nothing was deleted and ages count from now on."""

    deleted: int = 0
    doubtful: bool = False


class SessionStore:
    """An open store, for any thread. Blocking: call it with ``asyncio.to_thread``. Made by ``open_store``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened, self._file = 0, (0, 0)
        self._db = self._open()

    def _open(self, *, check: bool = False) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone(self._path.parent):
                try:
                    return self._connect(check=check)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                return self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from error

    def _connect(self, *, check: bool = False) -> sqlite3.Connection:
        """The database, made when it is not there; a damaged one is set aside, and the damage raised."""
        self._path.touch(mode=0o600, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        db.text_factory = lambda value: value.decode("utf-8", "replace")
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
                db.execute(f"PRAGMA {pragma}")
            self._migrate(db)
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0] if check else "ok"
            if found != "ok":
                raise _Damage(found)
        except BaseException as error:
            if sys.platform == "win32":
                db.close()  # an open file cannot be renamed there
            if isinstance(error, sqlite3.Error) and _is_damage(error):
                # Elsewhere before it is closed: SQLite then leaves the journal as it is.
                self._set_aside(error)
            db.close()
            raise
        self._opened, self._file = self._opened + 1, _file_at(self._path)
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == len(_MIGRATIONS):
            return
        if version > len(_MIGRATIONS):
            raise StorageError(
                f"the session store {self._path} was written by a newer Turnout (schema {version})",
                hint="use that one, or choose another data directory with TURNOUT_DATA_DIR",
            )
        with _transaction(db, "IMMEDIATE"):
            (version,) = db.execute("PRAGMA user_version").fetchone()
            for script in _MIGRATIONS[version:]:
                for statement in script.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _set_aside(self, error: Exception) -> None:
        kept = self._path.with_name(f"{self._path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        # The journal first: a new database must never meet the old one's.
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(kept.with_name(kept.name + suffix))
        log.warning("the session store was damaged (%s): it is kept as %s, and a new one is begun", error, kept)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _using(self, mode: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._file != _file_at(self._path):  # the old one has no name any more
                    self._db.close()
                    self._db = self._open()
                with _transaction(self._db, mode):
                    yield self._db
            except sqlite3.Error as error:
                if _is_damage(error):
                    damaged, self._db = self._db, self._open(check=True)
                    damaged.close()
                raise self._failure(error) from error

    def append(self, tenant: str, session_id: str, added: Exchange) -> None:
        """Add one exchange; the session is made when it is new. On return it is on the disk.

        Raises:
            UsageError: the tenant or the session id has characters that are not allowed.
            StorageError: the disk refuses.
        """
        key = _key(tenant, session_id)
        now = time.time()
        rows = [_row(m) for m in added.messages]
        with self._using("IMMEDIATE") as db:
            db.execute(
                "INSERT INTO sessions (tenant, id, created, updated, system_prompt, compactions) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, id) DO UPDATE SET updated = excluded.updated, "
                "system_prompt = COALESCE(NULLIF(excluded.system_prompt, ''), system_prompt), "
                "compactions = compactions + excluded.compactions",
                (*key, now, now, _text(added.system_prompt), int(added.compacted)),
            )
            _mark_used(db, key)
            _insert_messages(db, key, rows)
            if added.model:
                _switch(db, key, _text(added.model), _text(added.reason), now)

    def save(self, tenant: str, session: SessionRecord) -> None:
        """Keep a session exactly as given, in place of what was kept under its id.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session.id)
        rows = [_row(m) for m in session.messages]
        history = [(*key, at, _text(model), _text(reason)) for at, model, reason in session.model_history]
        facts = (session.created, session.updated, _text(session.system_prompt), _text(session.active_model))
        with self._using("IMMEDIATE") as db:
            db.execute("DELETE FROM sessions WHERE tenant = ? AND id = ?", key)
            db.execute(
                "INSERT INTO sessions (tenant, id, created, updated, system_prompt, active_model, compactions, "
                "compact_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, *facts, session.compactions, json.dumps(session.compact_at)),
            )
            _mark_used(db, key)
            _insert_messages(db, key, rows)
            db.executemany("INSERT INTO switches VALUES (?, ?, ?, ?, ?)", history)

    def load(self, tenant: str, session_id: str) -> SessionRecord | None:
        """A session, or None.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("DEFERRED") as db:
            row = db.execute(_SESSION, key).fetchone()
            if row is None:
                return None
            messages = db.execute(
                "SELECT body, CAST(time AS REAL), CAST(tokens AS INTEGER), NULLIF(CAST(metadata AS TEXT), '{}') "
                "FROM messages WHERE tenant = ? AND session = ? ORDER BY place",
                key,
            ).fetchall()
            history = db.execute(
                "SELECT CAST(time AS REAL), CAST(model AS TEXT), CAST(reason AS TEXT) FROM switches "
                "WHERE tenant = ? AND session = ? ORDER BY rowid",
                key,
            ).fetchall()
        try:
            stored = tuple(StoredMessage(decode_message(b), at, n, metadata_of(extra)) for b, at, n, extra in messages)
        except ValueError as error:
            raise StorageError(
                f"a message of session {session_id} in {self._path} cannot be read: {error}",
                hint="delete the session, or use another session id",
            ) from error
        created, updated, prompt, active, compactions, marked = row
        marks = tuple(_numbers(marked))
        return SessionRecord(session_id, created, updated, prompt, active, compactions, stored, tuple(history), marks)

    def version(self) -> tuple[int, int]:
        """Changes whenever another process, or another opened store of this one, has written. Cheap: no row is read.

        Raises:
            StorageError: as ``append``.
        """
        with self._using("DEFERRED") as db:
            return self._opened, db.execute("PRAGMA data_version").fetchone()[0]

    def list_sessions(self, tenant: str) -> tuple[SessionLine, ...]:
        """A tenant's sessions, the last used first, in the order of use and not of the clock.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        with self._using("DEFERRED") as db:
            rows = db.execute(
                "SELECT s.id, CAST(s.created AS REAL), CAST(s.updated AS REAL), COUNT(m.place), "
                "CAST(TOTAL(m.tokens) AS INTEGER), CAST(s.active_model AS TEXT), "
                "(SELECT body FROM messages WHERE tenant = s.tenant AND session = s.id AND length(body) < ? "
                "ORDER BY place LIMIT 1) FROM sessions AS s LEFT JOIN messages AS m "
                "ON m.tenant = s.tenant AND m.session = s.id WHERE s.tenant = ? "
                "GROUP BY s.tenant, s.id ORDER BY s.used DESC, s.id",
                (_SHORT_BYTES, _tenant(tenant)),
            ).fetchall()
        return tuple(
            SessionLine(name, created, updated, number, tokens, model, _question(body))
            for name, created, updated, number, tokens, model, body in rows
        )

    def questions(self, tenant: str, most: int = 500) -> tuple[str, ...]:
        """What the tenant asked last, over all sessions, newest first.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        with self._using("DEFERRED") as db:
            rows = db.execute(
                "SELECT body FROM messages WHERE tenant = ? AND length(body) < ? ORDER BY rowid DESC LIMIT ?",
                (_tenant(tenant), _SHORT_BYTES, 2 * most),
            ).fetchall()
        return tuple(asked for (body,) in rows if (asked := _question(body)))[:most]

    def undo(self, tenant: str, session_id: str) -> bool:
        """Take back the last exchange: the last user turn and everything after it, with what was made of it since
        (summaries, marks to compact). Which model answered stays recorded. False when nothing was asked.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("IMMEDIATE") as db:
            found = self._last_turn(db, key)
            if found is None:
                return False
            place, at = found
            db.execute("DELETE FROM messages WHERE tenant = ? AND session = ? AND place >= ?", (*key, place))
            db.execute("DELETE FROM summaries WHERE tenant = ? AND session = ? AND time >= ?", (*key, at))
            left = _count(db, key)
            _set_marks(db, key, [mark for mark in _marks(db, key) if mark <= left])
        self._empty_journal()
        return True

    def _last_turn(self, db: sqlite3.Connection, key: tuple[str, str]) -> tuple[int, float] | None:
        rows = db.execute(
            "SELECT place, time, body FROM messages WHERE tenant = ? AND session = ? ORDER BY place DESC", key
        )
        for place, at, body in rows:
            try:
                if speaks(decode_message(body)):
                    return place, at
            except ValueError:
                continue  # what cannot be read goes with the turn before it
        return None

    def mark_compact(self, tenant: str, session_id: str) -> bool:
        """From here on the conversation is compacted in any case, however much room there is. False: nothing is said.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("IMMEDIATE") as db:
            here = _count(db, key)
            if here:
                _set_marks(db, key, sorted({*_marks(db, key), here}))
            return here > 0

    def keep_summary(self, tenant: str, session_id: str, key: str, text: str) -> None:
        """Keep a summary under a key that stands for what it is of. For a session that is not there nothing is kept.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        row = _key(tenant, session_id)
        with self._using("IMMEDIATE") as db:
            db.execute(
                "INSERT OR REPLACE INTO summaries SELECT tenant, id, ?, ?, ? FROM sessions WHERE tenant = ? AND id = ?",
                (key, _text(text), time.time(), *row),
            )

    def summaries(self, tenant: str, session_id: str) -> Mapping[str, str]:
        """Every summary of a session by its key.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("DEFERRED") as db:
            rows = db.execute(
                "SELECT CAST(key AS TEXT), CAST(text AS TEXT) FROM summaries WHERE tenant = ? AND session = ?", key
            )
            return dict(rows.fetchall())

    def delete(self, tenant: str, session_id: str) -> bool:
        """Remove a session with all its messages; False when there was none.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("IMMEDIATE") as db:
            found = db.execute("DELETE FROM sessions WHERE tenant = ? AND id = ?", key).rowcount > 0
        self._empty_journal()
        return found

    def prune(self, days: int, *, daily: bool = False, force: bool = False) -> Pruned:
        """Delete what was not used for so many days, of every tenant; 0 days delete nothing.

        A clock may be wrong, so what is deleted is never a matter of one look at it. When it was set back by a day or
        more, or has moved on by more than ``days`` and DOUBTFUL_DAYS since retention last looked at it, and at the
        very first look, nothing is deleted and every age counts from now on at the earliest. A session that was last
        used in the future is never deleted.

        Args:
            days: since the last exchange.
            daily: do nothing when it was done less than a day ago.
            force: believe the clock.

        Raises:
            StorageError: as ``append``.
        """
        now = time.time()
        with self._using("DEFERRED") as db:
            row = db.execute(_UPKEEP).fetchone()
        if not days or (daily and row is not None and abs(now - row[0]) < DAY):
            return Pruned()
        with self._using("IMMEDIATE") as db:
            last, since = db.execute(_UPKEEP).fetchone() or (float("-inf"), now)
            doubtful = not -DAY < now - last <= max(days, DOUBTFUL_DAYS) * DAY
            if doubtful:
                since = now
            db.execute("INSERT OR REPLACE INTO upkeep VALUES (1, ?, ?)", (now, since))
            gone = db.execute(
                "DELETE FROM sessions WHERE MAX(updated, ?) < ?",  # what is in the future is not below either
                (float("-inf") if force else since, now - days * DAY),
            ).rowcount
        if gone:
            self._empty_journal()
        return Pruned(gone, doubtful and not force)

    def _empty_journal(self) -> None:
        """What was deleted is still in the journal: have it written back, and the file cut to nothing."""
        with self._lock, suppress(sqlite3.Error):  # another process may be reading from it: then it is emptied later
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _failure(self, error: Exception) -> StorageError:
        if isinstance(error, sqlite3.Error) and _is_damage(error):
            hint = "it was set aside beside its place, and a new one is begun: try again"
        else:
            hint = "free space, make it writable, or choose another data directory with TURNOUT_DATA_DIR"
        return StorageError(f"the session store {self._path} cannot be used: {error}", hint=hint)


class _Damage(sqlite3.DatabaseError):
    """What a check of the whole file found."""


def _is_damage(error: sqlite3.Error) -> bool:
    # The low byte is the primary code; the rest says where, for example in an index.
    return isinstance(error, _Damage) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def _file_at(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


@contextmanager
def _transaction(db: sqlite3.Connection, mode: str) -> Iterator[None]:
    db.execute(f"BEGIN {mode}")
    try:
        yield
        db.execute("COMMIT")
    finally:
        # SQLite may have rolled back on its own, on a full disk for example.
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time opens, migrates or sets aside the stores of a folder."""
    handle = -1
    try:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            # A network file system may refuse to lock a folder; SQLite's own locks are left then.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _insert_messages(
    db: sqlite3.Connection, key: tuple[str, str], rows: Sequence[tuple[float, int, bytes, str]]
) -> None:
    (place,) = db.execute(
        "SELECT COALESCE(MAX(place) + 1, 0) FROM messages WHERE tenant = ? AND session = ?", key
    ).fetchone()
    db.executemany(
        "INSERT INTO messages (tenant, session, place, time, tokens, body, metadata) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(*key, n, *row) for n, row in enumerate(rows, place)],
    )


def _switch(db: sqlite3.Connection, key: tuple[str, str], model: str, reason: str, now: float) -> None:
    changed = db.execute(
        "UPDATE sessions SET active_model = ? WHERE tenant = ? AND id = ? AND active_model <> ?", (model, *key, model)
    )
    if changed.rowcount:
        db.execute("INSERT INTO switches VALUES (?, ?, ?, ?, ?)", (*key, now, model, reason))


def _mark_used(db: sqlite3.Connection, key: tuple[str, str]) -> None:
    """The last of all that were used: an order that no clock changes."""
    db.execute("UPDATE sessions SET used = 1 + (SELECT MAX(used) FROM sessions) WHERE tenant = ? AND id = ?", key)


def _count(db: sqlite3.Connection, key: tuple[str, str]) -> int:
    row = db.execute("SELECT COUNT(*) FROM messages WHERE tenant = ? AND session = ?", key).fetchone()
    return int(row[0])


def _marks(db: sqlite3.Connection, key: tuple[str, str]) -> list[int]:
    row = db.execute("SELECT compact_at FROM sessions WHERE tenant = ? AND id = ?", key).fetchone()
    return _numbers(row[0])


def _numbers(text: str | bytes) -> list[int]:
    """The numbers of a stored list; what is no number was written by somebody else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [n for n in found if type(n) is int] if isinstance(found, list) else []


def _set_marks(db: sqlite3.Connection, key: tuple[str, str], marks: list[int]) -> None:
    db.execute("UPDATE sessions SET compact_at = ? WHERE tenant = ? AND id = ?", (json.dumps(marks), *key))


def _question(body: bytes | None) -> str:
    """What a stored message asks, "" when it is no question or cannot be read."""
    if body is None:
        return ""
    try:
        found = decode_message(body)
    except ValueError:
        return ""
    return found.text if speaks(found) else ""


def open_store(path: Path) -> SessionStore:
    """Open or make the store; a damaged file is kept beside it under another name.

    Raises:
        StorageError: it cannot be read or written.
    """
    return SessionStore(path)


def check_session_id(session_id: str) -> None:
    """Refuse ids that are not plain names.

    Raises:
        UsageError: with what is allowed.
    """
    if not _ID.match(session_id):
        raise UsageError(
            "the session id is not a plain name", hint="letters, digits, dot, dash, underscore; at most 128"
        )


def _key(tenant: str, session_id: str) -> tuple[str, str]:
    check_session_id(session_id)
    return _tenant(tenant), session_id


def _tenant(tenant: str) -> str:
    # Never replaced like other text: two tenants must not become one.
    try:
        tenant.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the principal's id is no valid text", hint="use plain characters") from error
    return tenant


def exchange(request: Sequence[Message], answer: str, route: Route, *, compacted: bool) -> Exchange:
    """What a request and its answer add to a session: the newest user turn and the answer.

    Args:
        request: the messages as they were asked, before anything was added or shortened.
        answer: the answer's text.
        route: the way it went; the answer's metadata say which model on which service, and the fallback level.
        compacted: what was sent was shortened to fit.
    """
    now = time.time()
    counter = get_token_counter(route.canonical or route.sent_model)
    user = next((m for m in reversed(request) if m.role == "user"), message("user", ""))
    given = message("assistant", answer)
    by: dict[str, Json] = {"model": route.sent_model, "service": route.service, "level": int(route.level)}
    stored = (
        StoredMessage(user, now, counter.count_message(user)),
        StoredMessage(given, now, counter.count_message(given), by),
    )
    system = "\n\n".join(m.text for m in request if m.role == "system")
    return Exchange(stored, route.sent_model, route.reason, system, compacted)


def _row(stored: StoredMessage) -> tuple[float, int, bytes, str]:
    return stored.time, stored.tokens, encode_message(stored.message), json.dumps(dict(stored.metadata))


def _text(value: str) -> str:
    """SQLite's text has no lone surrogates: they become question marks."""
    return value.encode("utf-8", "replace").decode()
