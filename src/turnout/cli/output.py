"""What people and programs read: tables, JSON, notes and errors. Nothing that a server said is printed raw."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from turnout.backends.base import clean
from turnout.errors import ConfigError, NoServiceError, TurnoutError

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.types import AttemptRecord, Json

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NO_LIMIT = 1_000_000
_GAP = 2
_WRAPPED = 24  # a column with a longer text is wrapped on a narrow terminal

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class PartialError(Exception):
    """A failure under ``--json`` whose document holds, beside the error, what was found all the same."""

    def __init__(self, error: TurnoutError, found: Mapping[str, Json]) -> None:
        super().__init__(str(error))
        self.error, self.found = error, found


def safe(text: str) -> str:
    """Text for a terminal: no control characters but line breaks and tabs, so that no escape sequence survives, and
    none that turn the direction of what follows, so that code reads as it runs."""
    return _UNSAFE.sub("", text)


def cell(text: str) -> str:
    """One line of safe text, not shortened; ``-`` for nothing."""
    return clean(text, _NO_LIMIT) or "-"


def note(text: str) -> None:
    """One line on stderr, beside the answer."""
    click.echo(clean(text, _NO_LIMIT), err=True)


def print_json(value: Json) -> None:
    """One JSON document on stdout, ASCII only: it can neither break a terminal nor an encoding."""
    click.echo(json.dumps(value, indent=2))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    spare: Sequence[str] = (),
    brief: Sequence[Sequence[str]] = (),
) -> None:
    """A table for people on a terminal; in a pipe a line of tab-separated cells each, headed by the names.

    Args:
        columns: the names.
        rows: a text for each column.
        spare: what a narrow terminal goes without, the first to go first.
        brief: the rows in fewer words, for a terminal where ``rows`` do not fit.
    """
    cells = [[cell(text) for text in row] for row in rows]
    if not sys.stdout.isatty():
        for line in (columns, *cells):
            click.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = Table(box=None, pad_edge=False, header_style="bold")
    if brief and sum(width + _GAP for width in _widths(columns, cells).values()) > console.width:
        cells = [[cell(text) for text in row] for row in brief]
    fitting = _fitting(_widths(columns, cells), spare, console.width)
    for name, width in fitting.items():
        shown.add_column(name, overflow="fold", no_wrap=width <= _WRAPPED)
    for line in cells:
        # Text, not str: a server's name must not be read as markup.
        shown.add_row(*(Text(text) for name, text in zip(columns, line, strict=True) if name in fitting))
    console.print(shown)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> dict[str, int]:
    """The characters that each column needs to stand on one line."""
    return {name: max(len(name), *(len(line[n]) for line in cells), 0) for n, name in enumerate(columns)}


def _fitting(widths: dict[str, int], spare: Sequence[str], room: int) -> dict[str, int]:
    """The columns that are shown in ``room`` characters; a wide one is wrapped before a spare one goes."""
    left = dict(widths)
    for name in spare:
        if sum(min(width, _WRAPPED) + _GAP for width in left.values()) <= room:
            break
        del left[name]
    return left


@contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr when that is a terminal.

    Yields:
        A function that changes the text, and with "" ends the spinner.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    status = Console(stderr=True).status(Text(text))

    def update(new: str) -> None:
        if new:
            status.update(Text(cell(new)))
        else:
            status.stop()

    with status:
        yield update


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; elsewhere one line on stderr for each new step."""
    if not sys.stderr.isatty():
        told: list[str] = []

        def tell(step: str, done: int, total: int) -> None:
            if step not in told:
                told.append(step)
                note(step)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda step, done, total: bar.update(task, description=cell(step), completed=done, total=total)


def loaded_config(path: str | None) -> LoadedConfig:
    """The configuration, its warnings told on stderr; a lifted allow-list is never silent (SPEC SEC-1).

    Raises:
        ConfigError: it is wrong.
    """
    from turnout.backends import DEFAULT_URLS
    from turnout.config_load import load_config

    loaded = load_config(path, kinds=DEFAULT_URLS)
    for warning in loaded.warnings:
        note(f"Warning: {warning}")
    if loaded.config.security.allow_external:
        note("Warning: security.allow_external is true: any address may be dialled")
    return loaded


def said(error: TurnoutError) -> str:
    """What happened and where, without the hint."""
    return str(error).removesuffix(f" ({error.hint})")


def report_error(error: TurnoutError) -> None:
    """The error on stderr: what happened, what was probed, what to do next."""
    note(f"Error: {said(error)}")
    if isinstance(error, NoServiceError):
        for where, found in error.probed:
            note(f"probed {where}: {found}")
    if error.hint:
        note(f"Hint: {error.hint}")


def error_fields(error: TurnoutError) -> dict[str, Json]:
    """The error for ``--json``."""
    fields: dict[str, Json] = {"code": error.code, "message": said(error), "hint": error.hint}
    if isinstance(error, ConfigError):
        fields |= {"file": error.file or None, "line": error.line or None, "key": error.key or None}
    if isinstance(error, NoServiceError):
        fields["probed"] = [{"where": where, "found": found} for where, found in error.probed]
    return fields


def attempt_fields(attempt: AttemptRecord) -> dict[str, Json]:
    """One attempt for ``--json``; ``error`` is null when it answered."""
    error = attempt.error
    return {
        "level": int(attempt.level),
        "model": attempt.model,
        "service": attempt.service,
        "error": {"code": error.code, "message": error.message} if error else None,
        "seconds": round(attempt.seconds, 3),
        "waited": round(attempt.waited, 3),
    }
