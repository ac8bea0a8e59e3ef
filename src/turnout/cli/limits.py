"""What options of ``turnout key`` and ``turnout token`` mean: times, rates and patterns."""

from __future__ import annotations

import re

from turnout.errors import UsageError
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
