"""Edits on the command line: what an answer proposes as diffs, the question before writing, ``turnout undo``."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.cli.output import PartialError, json_option, loaded_config, note, print_json
from turnout.cli.request import find_workspace
from turnout.errors import TurnoutError, UsageError
from turnout.types import message

if TYPE_CHECKING:
    from turnout.code.apply import Outcome
    from turnout.code.preview import FileChange, Preview
    from turnout.config import LoadedConfig
    from turnout.types import ChatRequest, ExecutionResult, Json

# What a terminal would act upon, or show as something else than it is; it must be seen before it is agreed to.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.command()
@click.option("--workspace", metavar="DIR", help="Whose files were changed. Default: as for `turnout ask`.")
@click.option("--force", is_flag=True, help="Also when a file was changed since; that change is lost.")
@json_option
@click.pass_obj
def undo(config_file: str | None, workspace: str | None, force: bool, as_json: bool) -> None:
    """Take back what `ask --edit`, `ask --apply` or `/apply` changed last in the workspace.

    Once more takes back the set before. Files that were changed since are left alone, and then all of the set is
    (docs/edits.md).
    """
    loaded = loaded_config(config_file)
    root = find_workspace(workspace, loaded.config.serena.workspace) or Path.cwd()
    outcome = asyncio.run(_undone(loaded, root, force=force))
    if as_json:
        print_json({"undone": [_file_fields(change) for change in outcome.changes], "notes": list(outcome.notes)})
    else:
        tell_outcome(outcome, undone=True)


def asking_for_edits(
    request: ChatRequest, *, asks: bool, writes: bool, despite_errors: bool, as_json: bool
) -> ChatRequest:
    """The request, with a word on how edits are written when they are wanted.

    Raises:
        UsageError: there is no workspace, or nobody could be asked.
    """
    if not (asks or writes):
        if despite_errors:
            raise UsageError("--despite-errors writes nothing by itself", hint="add --edit or --apply")
        return request
    from turnout.code.edits import HOW_TO_WRITE

    if asks and writes:
        raise UsageError("--edit and --apply exclude each other", hint="--edit asks, --apply does not")
    if asks and as_json:
        raise UsageError("--edit asks, and --json has nobody to ask", hint="give --apply, or leave --json out")
    if not request.workspace:
        said = "edits need a workspace: no directory up from here has .git"
        raise UsageError(said, hint="add --workspace DIR")
    system, *rest = request.messages
    return replace(request, messages=(message("system", f"{system.text}\n{HOW_TO_WRITE}"), *rest))


def how_to_apply(session: str | None) -> str:
    """What makes proposed edits real."""
    after = f"`turnout chat --session {session}` and /apply" if session else "--edit shows them and asks, --apply"
    return f"nothing is written; {after} writes them"


def tell_proposed(result: ExecutionResult, how: str) -> None:
    """One line when the answer proposes edits."""
    for notice in result.notices:
        if notice.code == "edits":
            note(f"{notice.text}; {how}")


def carry_out(
    loaded: LoadedConfig,
    request: ChatRequest,
    answer: str,
    fields: dict[str, Json],
    *,
    asks: bool,
    despite_errors: bool,
) -> dict[str, Json]:
    """Show the edits of an answer and write them, asked for or not; returns ``fields`` with what was done.

    Raises:
        PartialError: nothing was written; holds the fields.
    """
    root = Path(request.workspace)
    proposed = asyncio.run(_previewed(loaded, root, answer))
    if not fields:
        show(proposed)
    fields = {**fields, "edits": _preview_fields(proposed), "applied": False}
    if asks and proposed.empty:
        note("the answer proposes no edits")
        return fields
    try:
        if asks and not (proposed.problems or proposed.unclear):
            proposed = _agreed(proposed)
            if not proposed.changes:
                return fields
        outcome = asyncio.run(_applied(loaded, root, proposed, doubtful=asks, despite_errors=despite_errors))
    except TurnoutError as error:
        raise PartialError(error, fields) from error
    tell_outcome(outcome)
    return {**fields, "applied": True}


# Each in a loop of its own: the connections of an editor end with the loop.


async def _previewed(loaded: LoadedConfig, root: Path, answer: str) -> Preview:
    from turnout.build import open_editor

    async with open_editor(loaded, root) as editor:
        return await editor.preview(answer)


async def _applied(
    loaded: LoadedConfig, root: Path, proposed: Preview, *, doubtful: bool, despite_errors: bool
) -> Outcome:
    from turnout.build import open_editor

    async with open_editor(loaded, root) as editor:
        return await editor.apply(proposed, doubtful=doubtful, despite_errors=despite_errors)


async def _undone(loaded: LoadedConfig, root: Path, *, force: bool) -> Outcome:
    from turnout.build import open_editor

    async with open_editor(loaded, root, asks=False) as editor:
        return await editor.undo(force=force)


def _agreed(proposed: Preview) -> Preview:
    """What of it the user wants."""
    from turnout.code.apply import chosen

    if not proposed.changes:
        return proposed
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        note("nothing is written: there is no terminal to ask at; --apply writes without asking")
        return chosen(proposed, ())
    count = len(proposed.changes)
    what = "this change" if count == 1 else f"these {count} files"
    choices = click.Choice(("y", "n") if count == 1 else ("y", "n", "each"))
    reply = click.prompt(f"Write {what}?", type=choices, default="n", err=True)
    if reply == "each":
        wanted = [c.path for c in proposed.changes if click.confirm(f"Write {_head(c)}?", default=False, err=True)]
        return chosen(proposed, wanted)
    return proposed if reply == "y" else chosen(proposed, ())


def show(proposed: Preview) -> None:
    """Every file's diff, what is doubtful about it, and what cannot be done, on stderr."""
    for change in proposed.changes:
        click.secho(visible(_head(change)), bold=True, err=True)
        for line in _shown(change):
            click.secho(line, fg=_COLOURS.get(line[:1]), err=True)
        for doubt in change.doubts:
            click.secho(f"look here: {visible(doubt)}", fg="yellow", err=True)
    for problem in proposed.problems:
        where = f"{problem.path} (line {problem.line} of the answer)"
        click.secho(f"cannot be done: {visible(where)}: {visible(problem.reason)}", fg="red", err=True)
        for line in problem.nearest:
            click.echo(f"    {visible(line)}", err=True)
    for unclear in proposed.unclear:
        click.secho(f"not understood: line {unclear.line} of the answer: {visible(unclear.reason)}", fg="red", err=True)


def tell_outcome(outcome: Outcome, *, undone: bool = False) -> None:
    """What was done, a line for each file."""
    for line in outcome.notes:
        note(line)
    for change in outcome.changes:
        note(f"{'put back' if undone else 'written'}: {_head(change)}")
    for issue in outcome.issues:
        note(f"new error: {issue}")
    if outcome.changes and not undone:
        note("`turnout undo` takes it back")


def visible(text: str) -> str:
    """Text for a terminal in which nothing hides: what cannot be seen is shown as its code."""
    return _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text)


def _shown(change: FileChange) -> Iterator[str]:
    for line in change.diff():
        yield from visible(line.replace("\r\n", "\n").removesuffix("\r")).split("\n")


def _head(change: FileChange) -> str:
    more, less = change.counts()
    return f"{change.path}: {change.action}, +{more} -{less}"


def _preview_fields(proposed: Preview) -> dict[str, Json]:
    return {
        "files": [_file_fields(change) for change in proposed.changes],
        "problems": [
            {"path": p.path, "line": p.line, "reason": p.reason, "nearest": list(p.nearest)} for p in proposed.problems
        ],
        "not_understood": [{"line": u.line, "reason": u.reason} for u in proposed.unclear],
    }


def _file_fields(change: FileChange) -> dict[str, Json]:
    more, less = change.counts()
    return {
        "path": change.path,
        "action": change.action,
        "added": more,
        "removed": less,
        "doubts": list(change.doubts),
        "diff": "\n".join(change.diff()),
    }
