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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import msgspec

from turnout.context.tokens import get_token_counter
from turnout.errors import StorageError, UsageError
from turnout.types import (
    NOTHING,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Route,
    Text,
    ToolCall,
    ToolResult,
    message,
)

try:
    import fcntl
except ImportError:  # Windows: two processes that open the store for the very first time at once may see it busy.
    fcntl = None  # type: ignore[assignment]

log = getLogger(__name__)

BUSY_SECONDS = 10.0
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
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
)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its time (seconds since the epoch), its tokens, and what else is known of it."""

    message: Message
    time: float
    tokens: int
    metadata: Mapping[str, Json] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is kept.

    Attributes:
        created, updated: seconds since the epoch.
        compactions: how often its conversation was shortened to fit.
        messages: the full history, oldest first: what compaction leaves out is still here.
        model_history: ``(time, model, reason)`` of every switch, oldest first.
    """

    id: str
    created: float
    updated: float
    system_prompt: str = ""
    active_model: str = ""
    compactions: int = 0
    messages: tuple[StoredMessage, ...] = ()
    model_history: tuple[tuple[float, str, str], ...] = ()

    @property
    def total_tokens(self) -> int:
        """Tokens of all messages."""
        return sum(m.tokens for m in self.messages)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one answered query adds to a session.

    Attributes:
        model: answered, for ``reason``; "" leaves the model as it is.
        system_prompt: led the conversation; "" leaves the session's as it is.
        compacted: what was sent was shortened to fit.
    """

    messages: tuple[StoredMessage, ...]
    model: str = ""
    reason: str = ""
    system_prompt: str = ""
    compacted: bool = False


class SessionStore:
    """An open store, for any thread. Blocking: call it with ``asyncio.to_thread``. Made by ``open_store``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
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
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
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
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, *facts, session.compactions))
            _insert_messages(db, key, rows)
            db.executemany("INSERT INTO switches VALUES (?, ?, ?, ?, ?)", history)

    def load(self, tenant: str, session_id: str) -> SessionRecord | None:
        """A session, or None.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("DEFERRED") as db:
            row = db.execute(
                "SELECT created, updated, system_prompt, active_model, compactions FROM sessions "
                "WHERE tenant = ? AND id = ?",
                key,
            ).fetchone()
            if row is None:
                return None
            messages = db.execute(
                "SELECT body, time, tokens, metadata FROM messages WHERE tenant = ? AND session = ? ORDER BY place", key
            ).fetchall()
            history = db.execute(
                "SELECT time, model, reason FROM switches WHERE tenant = ? AND session = ? ORDER BY rowid", key
            ).fetchall()
        try:
            stored = tuple(StoredMessage(decode_message(b), at, n, _metadata(extra)) for b, at, n, extra in messages)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"a message of session {session_id} in {self._path} cannot be read: {error}",
                hint="delete the session, or use another session id",
            ) from error
        created, updated, prompt, active, compactions = row
        return SessionRecord(session_id, created, updated, prompt, active, compactions, stored, tuple(history))

    def list_sessions(self, tenant: str) -> tuple[tuple[str, float], ...]:
        """``(id, last used)`` of a tenant's sessions, newest first.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        with self._using("DEFERRED") as db:
            found = db.execute(
                "SELECT id, updated FROM sessions WHERE tenant = ? ORDER BY updated DESC, id", (_tenant(tenant),)
            )
            return tuple(found.fetchall())

    def delete(self, tenant: str, session_id: str) -> bool:
        """Remove a session with all its messages; False when there was none.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        key = _key(tenant, session_id)
        with self._using("IMMEDIATE") as db:
            return db.execute("DELETE FROM sessions WHERE tenant = ? AND id = ?", key).rowcount > 0

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
        route: the way it went.
        compacted: what was sent was shortened to fit.
    """
    now = time.time()
    counter = get_token_counter(route.canonical or route.sent_model)
    user = next((m for m in reversed(request) if m.role == "user"), message("user", ""))
    both = (user, message("assistant", answer))
    stored = tuple(StoredMessage(m, now, counter.count_message(m)) for m in both)
    system = "\n\n".join(m.text for m in request if m.role == "system")
    return Exchange(stored, route.sent_model, route.reason, system, compacted)


def _row(stored: StoredMessage) -> tuple[float, int, bytes, str]:
    return stored.time, stored.tokens, encode_message(stored.message), json.dumps(dict(stored.metadata))


def _text(value: str) -> str:
    """SQLite's text has no lone surrogates: they become question marks."""
    return value.encode("utf-8", "replace").decode()


_KINDS: dict[str, type[Text | Image | Reasoning | ToolCall | ToolResult]] = {
    "text": Text, "image": Image, "reasoning": Reasoning, "call": ToolCall, "result": ToolResult
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode_message(value: Message) -> bytes:
    """A message as JSON in ASCII, with escapes: lone surrogates, large numbers and NaN survive."""
    parts = [{"kind": _NAMES[type(part)], **_fields(part)} for part in value.parts]
    return json.dumps({"role": value.role, "parts": parts, "extras": dict(value.extras)}).encode("ascii")


def _fields(part: Part) -> dict[str, Json]:
    values = ((name, getattr(part, name)) for name in type(part).__dataclass_fields__)
    return {name: value if isinstance(value, str | bool) else dict(value) for name, value in values}


def decode_message(body: bytes) -> Message:
    """The message that ``encode_message`` wrote.

    Raises:
        ValueError, KeyError, TypeError: it did not write this.
    """
    data = _parsed(body)
    parts = tuple(_KINDS[row.pop("kind")](**row) for row in data["parts"])
    return Message(data["role"], parts, data["extras"])


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Three times slower, for what no strict JSON has: lone surrogates, NaN, numbers beyond every range.
        return json.loads(body)  # type: ignore[no-any-return]


def _metadata(text: str) -> Mapping[str, Json]:
    return NOTHING if text == "{}" else json.loads(text)
