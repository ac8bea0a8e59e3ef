"""``turnout code``: what is known about the code of a workspace, asked as the pipeline asks it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from turnout.cli.output import cell, json_option, loaded_config, note, print_json, safe, table, waiting
from turnout.errors import CodeSetupError, TurnoutError, UsageError
from turnout.types import Position

if TYPE_CHECKING:
    from turnout.code.client import HostedIntelligence
    from turnout.code.installed import Installed
    from turnout.code.intelligence import CodeSymbol, Diagnostic, Place
    from turnout.code.protocol import HostStatus, Served
    from turnout.config import LoadedConfig
    from turnout.types import Json

_T = TypeVar("_T")
_PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d{1,9})(?::(?P<character>\d{1,9}))?")
# A word that a quotation mark follows at once is none when it is as short as what says which kind of text this is.
_WORD = re.compile(r"""\b(?!(?:[a-zA-Z]{1,2}|u8R?)["'])[^\W\d]\w*""")
_KEYWORD = re.compile(
    r"abstract|and|as|assert|async|await|class|const|def|del|elif|else|enum|except|export|final|finally|fn|for|from|func"
    r"|function|if|impl|import|in|interface|is|lambda|let|mut|not|or|pass|private|pub|public|raise|return|self|static"
    r"|struct|super|this|trait|try|type|var|while|with|yield"
)
_SEVERITY = {1: "error", 2: "warning", 3: "note", 4: "hint"}
_TO_INSTALL = "`turnout code install` brings Serena and ty; or put a language server on the PATH (docs/code.md)"

_workspace_option = click.option(
    "--workspace", metavar="DIR", help="Whose code it is. Default: as for `turnout ask`, else the current directory."
)
_place_argument = click.argument("place", metavar="FILE:LINE[:CHAR]")


@click.group()
def code() -> None:
    """Ask about the code of a workspace: symbols, uses, types, what is wrong.

    Answers come from Serena and the language servers, which one process holds for each workspace. It starts with the
    first question and ends when nobody asks any more. Lines and characters count from 1; without CHAR the first name
    on the line is meant that is no keyword.
    """


@code.command()
@_workspace_option
@json_option
@click.pass_obj
def status(config_file: str | None, workspace: str | None, as_json: bool) -> None:
    """Show what is installed, what runs, what each can be asked, and what is missing. Starts nothing."""
    from turnout.build import code_installed, hosts_of

    loaded, root = _where(config_file, workspace)
    found = code_installed(loaded.config.code)
    running = asyncio.run(hosts_of(loaded.config.code).running())
    if as_json:
        print_json(_status_fields(found, running, root))
        return
    serena = f"serena {found.serena}" if found.serena else "no Serena"
    servers = ", ".join(f"{server.name} ({language})" for language, server in found.servers.items())
    click.echo(f"installed: {cell(serena)}; {cell(servers) if servers else 'no language server'}")
    if not found.serena:
        note(f"missing: {_TO_INSTALL}")
    if not running:
        click.echo("running: nothing; the first question starts it")
        return
    columns = ("workspace", "process", "MB", "idle s", "warm", "who", "state", "abilities")
    rows = [
        (
            host.workspace + (" (this)" if host.workspace == str(root) else ""),
            str(host.pid),
            str(round(host.memory / 1e6)),
            str(round(host.idle)),
            "yes" if host.warm else "no",
            served.name,
            served.state,
            ", ".join(served.abilities),
        )
        for host in running
        for served in host.served or (_nobody(),)
    ]
    table(columns, rows, spare=("abilities", "idle s", "warm"))


@code.command()
@click.option("--wheelhouse", metavar="DIR", type=Path, help="A directory of wheels, for a machine without an index.")
@click.option(
    "--serena",
    "version",
    type=click.Choice(["2.1.0", "1.7.0"]),
    default="2.1.0",
    show_default=True,
    help="2.x is under the GPL-3.0, 1.7.0 is the last one under the MIT licence.",
)
@json_option
def install(wheelhouse: Path | None, version: str, as_json: bool) -> None:
    """Install Serena and the Python language server ty into an environment of their own."""
    from turnout.code.install import install as put_in_place
    from turnout.config import data_dir

    with waiting("installing") as update:
        told = update if sys.stderr.isatty() else note
        found = asyncio.run(put_in_place(data_dir(), wheelhouse=wheelhouse, serena=version, progress=told))
    if as_json:
        print_json({"path": str(found.path), "version": found.version})
        return
    click.echo(f"installed: Serena {cell(found.version)} in {cell(str(found.path.parent.parent))}")


@code.command()
@_workspace_option
@click.option("--all", "every", is_flag=True, help="Those of every workspace.")
@json_option
@click.pass_obj
def stop(config_file: str | None, workspace: str | None, every: bool, as_json: bool) -> None:
    """End the process of this workspace, and all it has started."""
    from turnout.build import hosts_of

    loaded, root = _where(config_file, workspace)
    hosts = hosts_of(loaded.config.code)

    async def end() -> list[str]:
        roots = [Path(host.workspace) for host in await hosts.running()] if every else [root]
        return [str(each) for each in roots if await hosts.stop(each)]

    ended = _run(end())
    if as_json:
        print_json({"stopped": [*ended]})
        return
    click.echo(f"stopped: {', '.join(map(cell, ended))}" if ended else "nothing runs")


@code.command()
@click.argument("name")
@click.option("--file", "within", metavar="FILE", default="", help="Only in this file or folder of the workspace.")
@click.option("--body", is_flag=True, help="With the text of each definition.")
@_workspace_option
@json_option
@click.pass_obj
def symbols(config_file: str | None, name: str, within: str, body: bool, workspace: str | None, as_json: bool) -> None:
    """Find the definitions of NAME (`total`, `Order/total`); when there is none, what contains it."""
    loaded, root = _where(config_file, workspace)
    path = _relative(within, root) if within else ""

    async def ask(told: HostedIntelligence) -> tuple[CodeSymbol, ...]:
        found = await told.find_symbol(name, path, body=body)
        return found if found or path or body else await told.workspace_symbols(name)

    _show_symbols(_asked(loaded, root, ask), root, as_json)


@code.command()
@click.argument("file")
@_workspace_option
@json_option
@click.pass_obj
def outline(config_file: str | None, file: str, workspace: str | None, as_json: bool) -> None:
    """Show the definitions of FILE in their order."""
    loaded, root = _where(config_file, workspace)
    path = _relative(file, root)
    _show_symbols(_asked(loaded, root, lambda told: told.outline(path)), root, as_json)


@code.command()
@click.argument("file")
@_workspace_option
@json_option
@click.pass_obj
def diagnostics(config_file: str | None, file: str, workspace: str | None, as_json: bool) -> None:
    """Show what is wrong in FILE."""
    loaded, root = _where(config_file, workspace)
    path = _relative(file, root)
    found: tuple[Diagnostic, ...] = _asked(loaded, root, lambda told: told.diagnostics(path))
    rows = [(one.place, _SEVERITY.get(one.severity, "error"), one.message, one.code, one.source) for one in found]
    if as_json:
        keys = ("severity", "message", "code", "source")
        print_json(
            {"diagnostics": [{**_fields(row[0], root), **dict(zip(keys, row[1:], strict=True))} for row in rows]}
        )
        return
    if not rows:
        note(f"nothing is wrong in {path}, as far as they tell")
        return
    table(("place", "severity", "message", "code"), [(_shown(p, root), s, m, c) for p, s, m, c, _ in rows])


@code.command()
@_place_argument
@_workspace_option
@json_option
@click.pass_obj
def hover(config_file: str | None, place: str, workspace: str | None, as_json: bool) -> None:
    """Show signature, type and documentation of what is there."""
    loaded, root = _where(config_file, workspace)
    path, position = _position(place, root)
    found = _asked(loaded, root, lambda told: told.hover(path, position))
    if as_json:
        print_json({"hover": found})
        return
    click.echo(safe(found)) if found else note("nothing is known there")


@code.command()
@_place_argument
@click.option("--outgoing", is_flag=True, help="Whom it calls, instead of who calls it.")
@_workspace_option
@json_option
@click.pass_obj
def calls(config_file: str | None, place: str, outgoing: bool, workspace: str | None, as_json: bool) -> None:
    """Show who calls the function there."""
    loaded, root = _where(config_file, workspace)
    path, position = _position(place, root)
    found = _asked(loaded, root, lambda told: told.calls(path, position, incoming=not outgoing))
    _show_symbols(found, root, as_json)


def _places(
    name: str, text: str, ask: Callable[[HostedIntelligence, str, Position], Awaitable[Sequence[Place]]]
) -> None:
    """Make the command for an ability that tells places."""

    @code.command(name=name, help=text)
    @_place_argument
    @_workspace_option
    @json_option
    @click.pass_obj
    def command(config_file: str | None, place: str, workspace: str | None, as_json: bool) -> None:
        loaded, root = _where(config_file, workspace)
        path, position = _position(place, root)
        found = _asked(loaded, root, lambda told: ask(told, path, position))
        if as_json:
            print_json({"places": [_fields(one, root) for one in found]})
            return
        if not found:
            note("nothing was found")
        for one in found:
            click.echo(f"{cell(_shown(one, root))}: {cell(_text(one, root))}")


_places("references", "Show where what is there is used.", lambda told, *at: told.references(*at))
_places("definition", "Show where what is there is defined.", lambda told, *at: told.definition(*at))
_places(
    "type-definition", "Show where the type of what is there is defined.", lambda told, *at: told.type_definition(*at)
)
_places("implementations", "Show what implements what is there.", lambda told, *at: told.implementations(*at))


def _asked(loaded: LoadedConfig, root: Path, ask: Callable[[HostedIntelligence], Awaitable[_T]]) -> _T:
    """Ask the host of a workspace, which is started when there is none.

    Raises:
        CodeSetupError: there is nothing that it could start.
        UsageError: nobody there can be asked that.
        TurnoutError: no answer came, and why.
    """
    from turnout.build import code_installed, hosts_of
    from turnout.code.client import HostedIntelligence

    if not code_installed(loaded.config.code).knows(root):
        said = f"neither Serena nor a language server is installed for the files of {root}"
        raise CodeSetupError(said, hint=_TO_INSTALL)

    async def run() -> _T:
        async with AsyncExitStack() as stack:
            hosts = hosts_of(loaded.config.code)
            stack.push_async_callback(hosts.aclose)
            return await ask(HostedIntelligence(hosts, root))

    with waiting("asking"):
        return _run(run())


def _run(asking: Awaitable[_T]) -> _T:
    from turnout.code.intelligence import IntelligenceError, NotSupportedError

    async def run() -> _T:
        return await asking

    try:
        return asyncio.run(run())
    except NotSupportedError as error:
        raise UsageError(str(error), hint="`turnout code status` shows who can be asked what") from error
    except IntelligenceError as error:
        raise TurnoutError(str(error), hint="`turnout code status` shows what runs") from error


def _where(config_file: str | None, workspace: str | None) -> tuple[LoadedConfig, Path]:
    from turnout.cli.request import find_workspace

    loaded = loaded_config(config_file)
    return loaded, (find_workspace(workspace, loaded.config.serena.workspace) or Path.cwd()).resolve()


def _relative(name: str, root: Path) -> str:
    """A file's path below the workspace, ``/`` between its parts. Raises UsageError."""
    path = next((p for p in (Path(name).resolve(), (root / name).resolve()) if p.exists()), None)
    if path is None:
        raise UsageError(f"there is no file {name}", hint="give a path relative to here or to the workspace")
    if not path.is_relative_to(root):
        raise UsageError(f"{name} is outside the workspace {root}", hint="choose another --workspace")
    return path.relative_to(root).as_posix()


def _position(place: str, root: Path) -> tuple[str, Position]:
    """Raises UsageError."""
    from turnout.code.lsp_files import utf16_length

    matched = _PLACE.fullmatch(place)
    if matched is None or matched["line"].strip("0") == "":
        raise UsageError(f"{place!r} is no FILE:LINE[:CHAR]", hint="for example shop/models.py:12:5, both from 1")
    path, number = _relative(matched["file"], root), int(matched["line"])
    lines = _lines(path, root)
    if number > len(lines):
        raise UsageError(f"{path} has {len(lines)} lines, there is no line {number}", hint="give a line of the file")
    line = lines[number - 1]
    if matched["character"] is not None:
        at = int(matched["character"]) - 1
        if not 0 <= at <= len(line):
            raise UsageError(f"line {number} of {path} has {len(line)} characters", hint="they count from 1")
        return path, Position(number - 1, utf16_length(line[:at]))
    word = next((w for w in _WORD.finditer(line) if not _KEYWORD.fullmatch(w[0])), None)
    if word is None:
        raise UsageError(f"there is no name on line {number} of {path}", hint="give FILE:LINE:CHAR")
    return path, Position(number - 1, utf16_length(line[: word.start()]))


def _lines(path: str, root: Path) -> tuple[str, ...]:
    """Raises UsageError."""
    from turnout.code.intelligence import IntelligenceError
    from turnout.code.lsp_files import lines_of, read_text

    try:
        return lines_of(read_text(root / path))
    except IntelligenceError as error:
        raise UsageError(str(error)) from error


def _text(place: Place, root: Path) -> str:
    """The line of a place, read where the answer did not bring it along."""
    if place.text:
        return place.text.strip()
    try:
        return _lines(place.path, root)[place.line].strip()
    except (UsageError, IndexError):
        return ""


def _character(place: Place, root: Path) -> int:
    """From 1, in characters as people count them."""
    from turnout.code.lsp_files import to_code_points

    try:
        return to_code_points(_lines(place.path, root)[place.line], place.character) + 1
    except (UsageError, IndexError):
        return place.character + 1


def _shown(place: Place, root: Path) -> str:
    return f"{place.path}:{place.line + 1}:{_character(place, root)}"


def _fields(place: Place, root: Path) -> dict[str, Json]:
    fields: dict[str, Json] = {"path": place.path, "line": place.line + 1, "character": _character(place, root)}
    return fields | {"end_line": max(place.line, place.end_line) + 1, "text": _text(place, root)}


def _show_symbols(found: Sequence[CodeSymbol], root: Path, as_json: bool) -> None:
    if as_json:
        fields: list[Json] = [
            {"name": one.name_path, "kind": one.kind, "info": one.info, "body": one.body, **_fields(one.place, root)}
            for one in found
        ]
        print_json({"symbols": fields})
        return
    if not found:
        note("nothing was found")
        return
    rows = [(_shown(one.place, root), one.kind, one.name_path, one.info) for one in found]
    table(("place", "kind", "name", "info"), rows, spare=("info",))
    for one in found:
        if one.body:
            click.echo(f"\n{cell(_shown(one.place, root))}\n{safe(one.body)}")


def _nobody() -> Served:
    from turnout.code.protocol import Served

    return Served("nobody", ())


def _status_fields(found: Installed, running: Sequence[HostStatus], root: Path) -> dict[str, Json]:
    import msgspec

    hosts: list[Json] = [msgspec.to_builtins(host) for host in running]
    servers: dict[str, Json] = {name: [*server.command] for name, server in found.servers.items()}
    return {
        "workspace": str(root),
        "serena": found.serena or None,
        "language_servers": servers,
        "missing": "" if found.serena else _TO_INSTALL,
        "hosts": hosts,
    }
