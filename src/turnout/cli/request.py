"""What ``ask``, ``explain`` and ``chat`` share: the question, where it stands in the user's code, its model."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict

import click

from turnout.cli.output import note
from turnout.errors import UsageError
from turnout.types import ChatRequest, FileContext, Position, TaskCategory

if TYPE_CHECKING:
    from turnout.config import LoadedConfig

MAX_QUERY_BYTES = 2_000_000
_MOST_COUNTED = 32 * MAX_QUERY_BYTES
_PATIENCE = 2.0  # seconds

_OPTIONS = (
    click.option("--file", metavar="FILE", help="The file you are in."),
    click.option("--line", type=click.IntRange(min=1), help="The line you are on, from 1."),
    click.option("--column", type=click.IntRange(min=1), help="The column you are at, from 1."),
    click.option("--model", help="A model's id or name, ID@SERVICE, or `auto`."),
    click.option("--category", type=click.Choice([c.value for c in TaskCategory]), help="The kind of work."),
    click.option(
        "--workspace",
        metavar="DIR",
        help="Whose code may be read. Default: serena.workspace, else the nearest directory up with .git, else the "
        "current one when --file lies in it.",
    ),
    click.option("--max-tokens", type=click.IntRange(min=1), help="The most tokens the answer may have."),
)


class Wanted(TypedDict):
    """The values of ``question_options``."""

    file: str | None
    line: int | None
    column: int | None
    model: str | None
    category: str | None
    workspace: str | None
    max_tokens: int | None


class Given(Wanted):
    """The values of ``request_options``."""

    query: str | None


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options that make a request."""
    return click.argument("query", required=False)(question_options(command))


def question_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a request, whose question comes from elsewhere."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_query(query: str | None) -> str:
    """The question from the command line, standard input (``-``, or alone, or attached after it), or both.

    Raises:
        UsageError: it is empty, not text, or larger than MAX_QUERY_BYTES.
    """
    parts = [] if query in (None, "-") else [_argument(query or "")]
    if query == "-" or _is_piped(sys.stdin, alone=query is None):
        parts.append(_read(sys.stdin.buffer))
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        here = click.get_current_context().command_path
        raise UsageError("the query is empty", hint=f'give a question: {here} "...", or pipe text into it')
    size = len(text.encode())
    if size > MAX_QUERY_BYTES:
        raise _too_large(f"{size:,}")
    return text


def _argument(query: str) -> str:
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UsageError("the query is not UTF-8 text", hint="give text") from None
    return query


def _is_piped(stream: object, *, alone: bool) -> bool:
    """Whether to read standard input unasked. With a question at hand only a pipe or file counts: a terminal, a
    service manager's socket or /dev/null must not make the command wait."""
    if stream is None or sys.stdin.isatty():
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return True
    return alone or stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(stream: BinaryIO) -> str:
    with _told_when_slow():
        data = stream.read(_MOST_COUNTED + 1)
    if len(data) > _MOST_COUNTED:
        raise _too_large(f"more than {_MOST_COUNTED:,}")
    if b"\0" in data:
        raise UsageError("standard input is binary (it has NUL bytes)", hint="pipe UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text (byte {error.start:,})", hint="pipe UTF-8 text") from None
    if len(data) > MAX_QUERY_BYTES:
        raise _too_large(f"{len(data):,}")
    return text


@contextmanager
def _told_when_slow() -> Iterator[None]:
    """A pipe that nobody closes would make the command hang without a word; who types at a terminal knows."""
    if sys.stdin.isatty():
        yield
        return
    timer = threading.Timer(_PATIENCE, note, ("waiting for standard input to end; `< /dev/null` attaches nothing",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _too_large(size: str) -> UsageError:
    return UsageError(f"the query has {size} bytes, the most is {MAX_QUERY_BYTES:,}", hint="ask about a part of it")


def build_request(loaded: LoadedConfig, given: Wanted, query: str) -> ChatRequest:
    """The request that the options describe.

    Raises:
        UsageError: options that contradict each other, or a file or directory that is not there.
    """
    from turnout.api import build_messages
    from turnout.fleet.agents import detect_coding_agent

    if given["model"] and given["category"]:
        raise UsageError("--model and --category exclude each other", hint="a model's name needs no kind of work")
    workspace = find_workspace(given["workspace"], loaded.config.serena.workspace) or _here_around(given["file"])
    agent = detect_coding_agent().name
    return ChatRequest(
        messages=build_messages(query, workspace=str(workspace or ""), agent=agent),
        model=given["model"] or "auto",
        max_tokens=given["max_tokens"],
        category=TaskCategory(given["category"]) if given["category"] else None,
        file_context=_file_context(given, workspace),
        agent=agent,
        workspace=str(workspace or ""),
    )


def find_workspace(asked: str | None, configured: str | None) -> Path | None:
    """The directory whose code may be read: asked for, configured, the nearest one up with ``.git``, or none.

    Raises:
        UsageError: it is not a directory.
    """
    for name, source in ((asked, "--workspace"), (configured, "serena.workspace")):
        if name:
            path = Path(name).expanduser().resolve()
            if not path.is_dir():
                raise UsageError(f"{source} {name} is not a directory", hint="give an existing directory")
            return path
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / ".git").exists()), None)


def _here_around(file: str | None) -> Path | None:
    """The current directory when ``file`` lies in it: what is above was not meant."""
    here = Path.cwd().resolve()
    return here if file is not None and Path(file).resolve().is_relative_to(here) else None


def _file_context(given: Wanted, workspace: Path | None) -> FileContext | None:
    name, line, column = given["file"], given["line"], given["column"]
    if name is None:
        if line is not None or column is not None:
            raise UsageError("--line and --column need --file", hint="add --file FILE")
        return None
    if column is not None and line is None:
        raise UsageError("--column needs --line", hint="add --line LINE")
    if workspace is None:
        said = "--file needs a workspace: the file is not below here, and no directory up from here has .git"
        raise UsageError(said, hint="add --workspace DIR")
    path = next((p for p in (Path(name).resolve(), (workspace / name).resolve()) if p.is_file()), None)
    if path is None:
        raise UsageError(f"there is no file {name}", hint="give a path relative to here or to the workspace")
    if not path.is_relative_to(workspace):
        raise UsageError(f"{name} is outside the workspace {workspace}", hint="choose another --workspace")
    position = Position(line - 1, (column or 1) - 1) if line is not None else None
    return FileContext(path.relative_to(workspace).as_posix(), position)
