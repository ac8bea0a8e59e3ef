"""A row of the capability table as it stands in a file, and the user's own file of them."""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from turnout.errors import ConfigError
from turnout.files import open_regular
from turnout.types import TaskCategory

REQUIRED = ("params", "window")
MAX_BYTES = 50_000_000  # of the user's file; 10,000 models take 2 MB
MOST = 10**9  # of any number in a row


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of a table ``[models."NAME"]``: billions, tokens, points of 0 to 100; docs/routing.md."""

    params: float
    window: int
    active: float = 0.0
    tier: int = 0
    source: str = ""
    scores: dict[TaskCategory, float] = {}
    capabilities: tuple[str, ...] = ()
    sizes: tuple[float, ...] = ()
    aliases: tuple[str, ...] = ()
    released: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")] = ""


def read_rows(path: Path) -> tuple[dict[str, Row], list[ConfigError]]:
    """The rows of the user's file, and each mistake in it.

    What is wrong is left out of its row; a row without a size or a window that can be used is left out whole.
    """
    file = str(path)
    try:
        data = tomllib.loads(_text(path))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, or a number of 5,000 digits
        why = error.strerror if isinstance(error, OSError) else error  # its text has the path once more
        hint = 'routing.models_file names a TOML file with a table [models."NAME"] for each model'
        return {}, [ConfigError(f"the models file cannot be read: {why}", file=file, hint=hint)]
    hint = 'each model is a table [models."NAME"]'
    mistakes = [ConfigError("unknown key", file=file, key=key, hint=hint) for key in data if key != "models"]
    models = data.get("models")
    if not isinstance(models, dict) or not models:
        return {}, [*mistakes, ConfigError('no model: each is a table [models."NAME"]', file=file, key="models")]
    rows: dict[str, Row] = {}
    for key, given in models.items():
        row, wrong = _sound(file, key, given)
        mistakes += wrong
        if row is not None:
            rows[key] = row
    return rows, mistakes


def _text(path: Path) -> str:
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return data.decode("utf-8").replace("\r\n", "\n")


def _sound(file: str, key: str, given: object) -> tuple[Row | None, list[ConfigError]]:
    """The row without what is wrong in it."""
    mistakes: list[ConfigError] = []
    left = copy.deepcopy(given)
    while True:
        try:
            return _user_row(file, key, left), mistakes
        except ConfigError as error:
            mistakes.append(error)
            if not _take_out(left, error.key.removeprefix(f"models.{key}").lstrip(".").split(".")):
                return None, mistakes


def _take_out(row: object, path: list[str]) -> bool:
    """Whether what an error names could be taken out of the row, which can do without it."""
    if not isinstance(row, dict) or path[0] in REQUIRED or path[0] not in row:
        return False
    inner = row[path[0]]
    if len(path) > 1 and isinstance(inner, dict) and path[1] in inner:
        del inner[path[1]]
    else:
        del row[path[0]]
    return True


def _user_row(file: str, key: str, row: object) -> Row:
    place = f"models.{key}"
    try:
        parsed = msgspec.convert(row, Row)
    except msgspec.ValidationError as error:
        raise _row_error(file, place, str(error)) from error
    numbers: list[tuple[str, float]] = [("params", parsed.params), ("active", parsed.active), ("window", parsed.window)]
    numbers += [*(("sizes", size) for size in parsed.sizes), ("tier", parsed.tier)]
    for name, value in numbers:
        allowed_zero = name in ("active", "tier")
        if not (0 <= value < MOST) or (value == 0 and not allowed_zero):
            raise ConfigError(f"{str(value)[:30]} is out of range", file=file, key=f"{place}.{name}", hint="above 0")
    if parsed.tier > 3:
        raise ConfigError(f"{parsed.tier} is out of range", file=file, key=f"{place}.tier", hint="1, 2 or 3")
    for category, score in parsed.scores.items():
        if not 0 <= score <= 100:
            raise ConfigError(
                f"{score:g} is out of range", file=file, key=f"{place}.scores.{category}", hint="0 to 100"
            )
    return parsed


def _row_error(file: str, place: str, message: str) -> ConfigError:
    """One line that names the key: where it is, and the nearest valid one."""
    path = re.search(r" - at `(?:key in )?\$\.?([^`]*)`", message)
    key = f"{place}.{path[1]}" if path and path[1] and path[1] != "..." else place
    text = message.split(" - at `", maxsplit=1)[0]
    if unknown := re.search(r"unknown field `([^`]+)`", message):
        near = difflib.get_close_matches(unknown[1], Row.__struct_fields__, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(Row.__struct_fields__)}"
        return ConfigError("unknown key", file=file, key=f"{place}.{unknown[1]}", hint=hint)
    if bad := re.search(r"Invalid enum value '([^']*)'", message):
        near = difflib.get_close_matches(bad[1], list(TaskCategory), 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(TaskCategory)}"
        return ConfigError("unknown category", file=file, key=f"{place}.scores.{bad[1]}", hint=hint)
    if missing := re.search(r"required field `([^`]+)`", message):
        return ConfigError(f"{missing[1]} is missing", file=file, key=place, hint="params and window are required")
    return ConfigError(text, file=file, key=key)
