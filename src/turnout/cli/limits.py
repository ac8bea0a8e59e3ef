"""What ``turnout key`` and ``turnout token`` share: their options, and how a change is made and logged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from turnout.cli.output import loaded_config
from turnout.errors import StorageError, UsageError
from turnout.guard.keys import require_patterns

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAX_DAYS = 36_500


def patterns(option: str, given: tuple[str, ...], *, paths: bool = False) -> tuple[str, ...]:
    """The patterns of an option, which is no limit only where it was not given: a variable may have been empty.

    Raises:
        UsageError: one of them is none.
    """
    found: list[str] = []
    for text in given:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise UsageError(f"{option} {text[:40]!r} names nothing", hint=f"leave {option} out to allow everything")
        require_patterns(option, parts, paths=paths)
        found += parts
    return tuple(found)


def routes_of(given: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns of ``--routes``. Raises as ``patterns``."""
    return patterns("--routes", given, paths=True)


def seconds(text: str) -> int:
    """A time such as ``10m``; 0 for ``never``.

    Raises:
        UsageError: it is none.
    """
    if text == "never":
        return 0
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    meant = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < meant <= _MAX_DAYS * _SECONDS["d"]:
        raise UsageError(f"{text[:40]!r} is not a time", hint="for example 12h, 30d, 8w or never")
    return meant


def per_minute(text: str | None) -> int:
    """A rate such as ``60/min``; 0 for none.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return 0
    found = re.fullmatch(r"([0-9]{1,6})(/min)?", text)
    if found is None or not int(found[1]):
        raise UsageError(f"{text[:40]!r} is not a rate", hint="for example 60/min")
    return int(found[1])


@contextmanager
def logged(config_file: str | None) -> Iterator[Callable[..., None]]:
    """What writes to the audit log, for as long as something is changed. Raises AuditError: it cannot be opened."""
    from turnout.build import open_audit_log

    audit = open_audit_log(loaded_config(config_file))
    try:
        yield audit.event if audit is not None else lambda *_, **__: None
    finally:
        if audit is not None:
            audit.close()


def make(change: Callable[[], None], what: str, note: Callable[..., None]) -> None:
    """Write a change of the keys or tokens to the audit log, then make it: one that cannot be logged is not made."""
    note("config", service=what)
    try:
        change()
    except StorageError as error:
        note("config", service=what, error=error.code)
        raise


def keys_file() -> Path:
    """Where the keys are."""
    from turnout.config import data_dir
    from turnout.guard.keys import keys_path

    return keys_path(data_dir())
