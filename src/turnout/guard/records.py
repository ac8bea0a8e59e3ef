"""The lines of the audit log, and what is known of a query when they are written (SPEC SEC-3)."""

from __future__ import annotations

import msgspec

from turnout.guard.chain import FIRST_HASH
from turnout.types import AttemptRecord


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


class Attempt(msgspec.Struct):
    level: int
    model: str
    service: str
    error: str | None
    ms: int


class EditedFile(msgspec.Struct, frozen=True):
    """One file of an edit: SHA-256 of its bytes before and after, None where there is no file."""

    path: str
    before: str | None
    after: str | None


class Record(msgspec.Struct, kw_only=True):
    """One line: these keys in this order, null where they do not apply; ``response`` only when responses are logged,
    ``files`` only of an edit."""

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
    attempts: list[Attempt] = []
    response: str | msgspec.UnsetType = msgspec.UNSET
    files: tuple[EditedFile, ...] | msgspec.UnsetType = msgspec.UNSET
    file: str | msgspec.UnsetType = msgspec.UNSET
    until: int | msgspec.UnsetType = msgspec.UNSET
    until_hash: str | msgspec.UnsetType = msgspec.UNSET
    sequence: int = 0
    previous_hash: str = FIRST_HASH
    signature: str | msgspec.UnsetType = msgspec.UNSET


_ENCODER = msgspec.json.Encoder()


def encode(record: Record) -> bytes:
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


def attempt_of(record: AttemptRecord) -> Attempt:
    error = record.error.code if record.error else None
    return Attempt(int(record.level), record.model, record.service, error, round(record.seconds * 1000))
