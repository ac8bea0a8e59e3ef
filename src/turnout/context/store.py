"""Sessions in SQLite (SPEC CTX-2): WAL, several processes, a tenant on every row, migrations by version."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from turnout.context.tokens import get_token_counter
from turnout.errors import StorageError, UsageError
from turnout.types import Image, Json, Message, Part, Reasoning, Role, Route, Text, ToolCall, ToolResult, message

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
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
)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its time (seconds since the epoch) and tokens."""

    message: Message
    time: float
    tokens: int


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it was kept."""

    id: str
    created: float
    updated: float
    system_prompt: str
    active_model: str
    compactions: int
    messages: tuple[StoredMessage, ...]
    model_history: tuple[tuple[float, str, str], ...]

    @property
    def total_tokens(self) -> int:
        """Tokens of all messages."""
        return sum(m.tokens for m in self.messages)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one answered query adds to a session."""

    messages: tuple[StoredMessage, ...]
    model: str
    reason: str


class SessionStore:
    """An open store. Blocking: call it from a thread. Made by ``open_store``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.note = ""
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self._connect()
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError) and self._path.exists():
                return self._set_aside(error)
            raise self._failure(error) from error
        except OSError as error:
            raise self._failure(error) from error

    def _connect(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                db.execute(f"PRAGMA {pragma}")
            _migrate(db)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        kept = self._path.with_name(f"{self._path.name}.corrupt-{int(time.time())}")
        self._path.rename(kept)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self.note = f"the session store was damaged ({error}); it is kept as {kept}, and a new one was made"
        return self._connect()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._failure(error) from error
                raise

    def append(self, tenant: str, session_id: str, exchange: Exchange) -> None:
        """Add one exchange; the session is made when it is new.

        Raises:
            UsageError: the session id has characters that are not allowed.
            StorageError: the disk refuses.
        """
        check_session_id(session_id)
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO sessions (tenant, id, created, updated) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (tenant, id) DO UPDATE SET updated = excluded.updated",
                (tenant, session_id, now, now),
            )
            (place,) = db.execute(
                "SELECT COALESCE(MAX(place) + 1, 0) FROM messages WHERE tenant = ? AND session = ?",
                (tenant, session_id),
            ).fetchone()
            db.executemany(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (tenant, session_id, place + n, m.time, m.tokens, encode_message(m.message))
                    for n, m in enumerate(exchange.messages)
                ],
            )
            self._switch(db, tenant, session_id, exchange, now)

    def _switch(self, db: sqlite3.Connection, tenant: str, session_id: str, exchange: Exchange, now: float) -> None:
        (active,) = db.execute(
            "SELECT active_model FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id)
        ).fetchone()
        if active == exchange.model:
            return
        db.execute(
            "UPDATE sessions SET active_model = ? WHERE tenant = ? AND id = ?", (exchange.model, tenant, session_id)
        )
        row = (tenant, session_id, now, exchange.model, exchange.reason)
        db.execute("INSERT INTO switches VALUES (?, ?, ?, ?, ?)", row)

    def load(self, tenant: str, session_id: str) -> SessionRecord | None:
        """A session, or None.

        Raises:
            UsageError, StorageError: as ``append``.
        """
        check_session_id(session_id)
        key = (tenant, session_id)
        with self._transaction() as db:
            row = db.execute(
                "SELECT created, updated, system_prompt, active_model, compactions FROM sessions "
                "WHERE tenant = ? AND id = ?",
                key,
            ).fetchone()
            if row is None:
                return None
            messages = db.execute(
                "SELECT body, time, tokens FROM messages WHERE tenant = ? AND session = ? ORDER BY place", key
            ).fetchall()
            history = db.execute(
                "SELECT time, model, reason FROM switches WHERE tenant = ? AND session = ? ORDER BY rowid", key
            ).fetchall()
        stored = tuple(StoredMessage(decode_message(body), at, tokens) for body, at, tokens in messages)
        created, updated, prompt, active, compactions = row
        return SessionRecord(session_id, created, updated, prompt, active, compactions, stored, tuple(history))

    def list_sessions(self, tenant: str) -> tuple[tuple[str, float], ...]:
        """``(id, last used)`` of a tenant's sessions, newest first."""
        with self._transaction() as db:
            found = db.execute("SELECT id, updated FROM sessions WHERE tenant = ? ORDER BY updated DESC", (tenant,))
            return tuple(found.fetchall())

    def delete(self, tenant: str, session_id: str) -> bool:
        """Remove a session with all its messages; False when there was none."""
        check_session_id(session_id)
        with self._transaction() as db:
            return db.execute("DELETE FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id)).rowcount > 0

    def _failure(self, error: Exception) -> StorageError:
        return StorageError(
            f"the session store {self._path} cannot be used: {error}",
            hint="free space, make it writable, or choose another data directory with TURNOUT_DATA_DIR",
        )


def _migrate(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise sqlite3.OperationalError(f"its version {version} is newer than this program knows ({len(_MIGRATIONS)})")
    if version == len(_MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        for script in _MIGRATIONS[version:]:
            for statement in script.split(";"):
                if statement.strip():
                    db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        db.execute("COMMIT")
    except sqlite3.Error:
        db.execute("ROLLBACK")
        raise


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


def exchange(request: Sequence[Message], answer: str, route: Route) -> Exchange:
    """What a request and its answer add to a session: the newest user turn and the answer."""
    now = time.time()
    counter = get_token_counter(route.canonical or route.sent_model)
    user = next((m for m in reversed(request) if m.role == "user"), message("user", ""))
    both = (user, message("assistant", answer))
    stored = tuple(StoredMessage(m, now, counter.count_message(m)) for m in both)
    return Exchange(stored, route.sent_model, route.reason)


_KINDS: dict[str, type[Text | Image | Reasoning | ToolCall | ToolResult]] = {
    "text": Text, "image": Image, "reasoning": Reasoning, "call": ToolCall, "result": ToolResult
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode_message(value: Message) -> bytes:
    """A message as JSON; lone surrogates become question marks."""
    parts: list[dict[str, Any]] = [{"kind": _NAMES[type(part)], **_fields(part)} for part in value.parts]
    return msgspec.json.encode({"role": value.role, "parts": parts, "extras": dict(value.extras)})


def _fields(part: Part) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name in type(part).__dataclass_fields__:
        value = getattr(part, name)
        if isinstance(value, str):
            found[name] = value.encode("utf-8", "replace").decode()
        else:
            found[name] = value if isinstance(value, bool) else dict(value)
    return found


class _StoredBody(msgspec.Struct):
    role: Role
    parts: list[dict[str, Any]]
    extras: dict[str, Any] = {}


def decode_message(body: bytes) -> Message:
    """The message that ``encode_message`` wrote."""
    data = msgspec.json.decode(body, type=_StoredBody)
    parts = tuple(_KINDS[row.pop("kind")](**row) for row in data.parts)
    return Message(data.role, parts, data.extras)
