"""``turnout env``: what a coding agent must be told to use the gateway."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from turnout.cli.output import json_option, loaded_config, note, print_json, safe, table, waiting
from turnout.cli.recipes import AGENTS, KEY_VARIABLE, NO_KEY, Agent, Recipe, Target, agent_called
from turnout.cli.target import Offer, address_of, ask_gateway, key_given, look_around
from turnout.errors import GuardError, KeyRefusedError, NoServiceError, StorageError, UsageError
from turnout.files import replace_file

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.types import Json

_END = "TURNOUT"
_UNKNOWN_KEY = "PUT-THE-KEY-HERE"


@dataclass(frozen=True, slots=True)
class Setup:
    """An agent's recipe for one gateway. ``source``: who told the window; ``warnings``: what may go wrong."""

    agent: Agent
    target: Target
    recipe: Recipe
    source: str
    warnings: tuple[str, ...]


@click.command()
@click.argument("name", metavar="[AGENT]", required=False)
@click.option("--model", default="auto", show_default=True, help="What the agent asks for.")
@click.option("--url", metavar="URL", help="The gateway's address, without a path. Default: gateway.host and port.")
@click.option("--write", is_flag=True, help="Write the agent's files; asks before it replaces one.")
@json_option
@click.pass_obj
def env(config_file: str | None, name: str | None, model: str, url: str | None, write: bool, as_json: bool) -> None:
    """Print what AGENT must be told to use the gateway; without AGENT, list the agents.

    \b
        eval "$(turnout env claude)"
        turnout env codex --write

    Variables are printed for a shell. Files are printed with their paths, in a form that `eval` passes over. The key is
    taken from $TURNOUT_KEY. The window is the gateway's, or the servers' when it does not run.
    """
    if name is None:
        _list(as_json)
        return
    agent = agent_called(name)
    loaded = loaded_config(config_file)
    with waiting("asking the gateway"):
        made = asyncio.run(_setup(loaded, agent, model, url))
    for warning in made.warnings:
        note(f"Warning: {warning}")
    written = _write(made) if write else ()
    if as_json:
        print_json(_fields(made) | {"written": [str(path) for path in written]})
    elif write:
        _tell_written(made, written)
    else:
        click.echo(safe("\n".join(_lines(made))))


async def _setup(loaded: LoadedConfig, agent: Agent, model: str, url: str | None) -> Setup:
    """With what can be found out; a gateway that does not run is no obstacle, nor is our own at an address that we may
    not dial.

    Raises:
        GuardError: the address that was given is not on the allow-list.
    """
    address = checked_url(url) if url else address_of(loaded.config.gateway)
    key, warnings = key_given(), list[str]()
    if address.startswith("https:"):
        means = "by its own means (of Node.js: NODE_EXTRA_CA_CERTS=FILE)"
        warnings.append(f"{agent.name} must trust the authority of {address} too, {means}")
    offer = Offer({}, "")
    try:
        offer = await ask_gateway(loaded, address, key, model)
    except KeyRefusedError as error:
        if key == NO_KEY:
            key = _UNKNOWN_KEY  # which is a warning of its own
        else:
            warnings.append(f"{error.message}: {error.hint}")
    except (NoServiceError, GuardError) as error:
        if url and isinstance(error, GuardError):
            raise
        warnings.append(error.message)
        if not url:
            offer = await look_around(loaded, model)
            key = _UNKNOWN_KEY if key == NO_KEY and _has_keys() else key
    return set_up(agent, address, key, model, offer, tuple(warnings))


def set_up(agent: Agent, url: str, key: str, model: str, offer: Offer, warnings: tuple[str, ...] = ()) -> Setup:
    """The recipe with the model's window filled in.

    Raises:
        UsageError: no model can be called so.
    """
    if not model.isprintable() or not 0 < len(model) <= 200:
        raise UsageError("that is no model's name", hint="`turnout models` lists them")
    window = offer.windows.get(model, 0)
    found = list(warnings)
    if offer.windows and model not in offer.windows:
        found.append(f"{offer.source} lists no model {model!r}; there are: {some_names(offer)}")
    elif not window:
        found.append(f"the window of {model!r} is not known, so {agent.name} is not told the true one")
    elif window < agent.window:
        found.append(f"{agent.name} needs a window of {agent.window} tokens or more; {model!r} has {window}")
    if window and model in offer.guessed:
        found.append(f"the window of {model!r} is a guess, {window} tokens: its server does not tell")
    if key == _UNKNOWN_KEY:
        found.append(f"the gateway has keys: set {KEY_VARIABLE} to one; `turnout key add NAME` makes one")
    target = Target(url, key, model, window)
    return Setup(agent, target, agent.make(target), offer.source if window else "", tuple(found))


def some_names(offer: Offer) -> str:
    """The first models of an offer, and how many more there are."""
    from turnout.routing.advice import few_of

    return few_of(list(offer.windows))


def checked_url(url: str) -> str:
    """A gateway's address.

    Raises:
        UsageError: it is none.
    """
    text = url.rstrip("/").removesuffix("/v1")
    if not text.startswith(("http://", "https://")) or not text.isprintable() or set(text) & set(" \"'$`\\<>@?#"):
        raise UsageError(f"{url[:80]!r} is not a gateway's address", hint="for example http://127.0.0.1:4747")
    return text


def _has_keys() -> bool:
    from turnout.config import data_dir
    from turnout.guard.keys import Keyring, keys_path

    return Keyring(keys_path(data_dir())).defined


def _list(as_json: bool) -> None:
    if as_json:
        print_json({"agents": [{"name": a.name, "wire": a.wire, "window": a.window or None} for a in AGENTS]})
        return
    rows = [(a.name, a.wire, f"{a.window // 1024}k" if a.window else "-", _shape(a)) for a in AGENTS]
    table(("agent", "speaks", "smallest window", "set up by"), rows)
    note('eval "$(turnout env AGENT)" sets one up, turnout launch AGENT runs it; docs/agents.md')


def _shape(agent: Agent) -> str:
    recipe = agent.make(Target("", NO_KEY, "auto", 1))
    names = [file.name for file in recipe.files if not file.seed]
    return " and ".join((*names, *(("variables",) if recipe.env else ())))


def _lines(made: Setup) -> Iterator[str]:
    """For a shell, and for people."""
    target, recipe = made.target, made.recipe
    window = f"window {target.window} ({made.source})" if target.window else "window not known"
    yield f"# {made.agent.name}: {target.url}, model {target.model}, {window}"
    if recipe.unset:
        yield f"unset {' '.join(recipe.unset)}"
    for name, value in recipe.env.items():
        yield f"export {name}={shlex.quote(value)}"
    for path, text in _files(made):
        yield f"# {path} (`turnout env {made.agent.name} --write` writes it):"
        yield f": <<'{_END}'"
        yield text.rstrip("\n")
        yield _END
    for line in recipe.notes:
        yield f"# {line}"


def _files(made: Setup) -> Iterator[tuple[Path, str]]:
    folder = Path(made.recipe.folder).expanduser()
    return ((folder / file.name, file.text) for file in made.recipe.files if not file.seed)


def _fields(made: Setup) -> dict[str, Json]:
    target, recipe = made.target, made.recipe
    return {
        "agent": made.agent.name,
        "url": target.url,
        "model": target.model,
        "window": target.window or None,
        "window_from": made.source or None,
        "env": dict(recipe.env),
        "unset": list(recipe.unset),
        "files": [{"path": str(path), "text": text} for path, text in _files(made)],
        "command": [part.replace("{folder}", recipe.folder) for part in recipe.command],
        "notes": list(recipe.notes),
        "warnings": list(made.warnings),
    }


def _write(made: Setup) -> tuple[Path, ...]:
    """Write the agent's files where it looks for them; one that is there and differs is replaced by consent alone."""
    files = list(_files(made))
    if not files:
        raise UsageError(f"{made.agent.name} has no file, only variables", hint=f"turnout env {made.agent.name}")
    written = []
    for path, text in files:
        if path.exists() and path.read_text("utf-8", "replace") != text:
            if not sys.stdin.isatty():
                hint = "move it away, take over what is printed without --write, or answer in a terminal"
                raise UsageError(f"{path} is there and is not the same", hint=hint)
            if not click.confirm(f"{path} is there and is not the same. Replace it?", err=True):
                continue
        write_private(path, text)
        written.append(path)
    return tuple(written)


def write_private(path: Path, text: str) -> None:
    """Write a file that this user alone can read; a key may be in it.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        replace_file(path.resolve(), text.encode())  # a link stays one
    except OSError as error:
        hint = "make the directory writable"
        raise StorageError(f"{path} cannot be written: {error.strerror}", hint=hint) from error


def _tell_written(made: Setup, written: tuple[Path, ...]) -> None:
    for path in written:
        click.echo(safe(f"# written: {path}"))
    for name, value in made.recipe.env.items():
        click.echo(safe(f"export {name}={shlex.quote(value)}"))
