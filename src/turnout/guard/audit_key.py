"""The key of the audit log's query hashes, and the lock of the files of a log."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from turnout.errors import AuditError

try:
    import fcntl
except ImportError:  # Windows has no flock: there, one process at a time may write one file.
    fcntl = None  # type: ignore[assignment]

BINARY = getattr(os, "O_BINARY", 0)
_KEY_BYTES = 32

log = logging.getLogger("turnout")


def lock_file(file: int) -> None:
    """Wait until no other process has this descriptor's file. Raises OSError."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def unlock_file(file: int) -> None:
    """Let others in."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)


def audit_key(key_file: Path) -> bytes:
    """The key, made under a lock when the file is empty: two processes that start at once get the same.

    Raises:
        AuditError: it cannot be read or made, or is damaged.
    """
    try:
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(key_file, os.O_RDWR | os.O_CREAT | BINARY, 0o600), "r+b") as file:
            lock_file(file.fileno())
            key = file.read()
            if not key:
                key = secrets.token_bytes(_KEY_BYTES)
                file.write(key)
        if key_file.stat().st_mode & 0o077:
            key_file.chmod(0o600)
            said = "others could read the audit key %s until now, and guess queries by hashes; move it away for another"
            log.warning(said, key_file)
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
