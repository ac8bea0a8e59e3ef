"""``turnout launch``: a coding agent on the gateway, set up beside what the user has, which is not touched."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click

from turnout.cli.env import Setup, checked_url, set_up, some_names, write_private
from turnout.cli.output import loaded_config, note, waiting
from turnout.cli.recipes import Agent, ConfigFile, agent_called
from turnout.cli.target import address_of, ask_gateway, key_given
from turnout.errors import NoSuitableModelError, UsageError

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@click.command()
@click.argument("name", metavar="AGENT")
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--model", default="auto", show_default=True, help="What the agent asks for.")
@click.option("--url", metavar="URL", help="The gateway's address, without a path. Default: gateway.host and port.")
@click.pass_obj
def launch(config_file: str | None, name: str, arguments: tuple[str, ...], model: str, url: str | None) -> int:
    """Run AGENT on the gateway, with ARGS as its own arguments.

    \b
        turnout launch claude
        turnout launch codex --model coding -- exec "Add a test"

    It gets the configuration that `turnout env AGENT` prints, in a directory of its own below the data directory; your
    own files are left alone. Its exit code is the command's.
    """
    agent = agent_called(name)
    if not agent.install:
        hint = f'eval "$(turnout env {agent.name})", then run your program'
        raise UsageError(f"{agent.name} is a library, not a program", hint=hint)
    loaded = loaded_config(config_file)
    address, key = checked_url(url) if url else address_of(loaded.config.gateway), key_given()
    _require_installed(agent, address, key, model)
    with waiting("asking the gateway"):
        offer = asyncio.run(ask_gateway(loaded, address, key, model))
    if offer.windows and model not in offer.windows:
        hint = f"there are: {some_names(offer)}"
        raise NoSuitableModelError(f"{offer.source} has no model {model!r}", hint=hint)
    made = set_up(agent, address, key, model, offer)
    for warning in made.warnings:
        note(f"Warning: {warning}")
    return _run(made, arguments)


def _require_installed(agent: Agent, url: str, key: str, model: str) -> None:
    from turnout.cli.target import Offer

    program = set_up(agent, url, key, model, Offer({}, "")).recipe.command[0]
    if shutil.which(program) is None:
        hint = f"`{agent.install}`, from your site's index or from files brought along"
        raise UsageError(f"{agent.name} is not installed: there is no program {program} on PATH", hint=hint)


def _run(made: Setup, arguments: tuple[str, ...]) -> int:
    from turnout.config import data_dir
    from turnout.guard.process import become

    home = (data_dir() / "agents" / made.agent.name).absolute()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = home / made.recipe.own_folder
    for file in made.recipe.files:
        if not _is_there(folder / file.name, file):
            write_private(folder / file.name, file.text)
    command = [part.replace("{folder}", str(folder)) for part in made.recipe.command]
    return become([*command, *arguments], environment(made, home, os.environ))


def _is_there(path: Path, file: ConfigFile) -> bool:
    """What an agent has added at the end of its file, such as the folders that it may work in, is kept."""
    try:
        return file.seed or path.read_text("utf-8").startswith(file.text) if path.exists() else False
    except (OSError, UnicodeDecodeError):
        return False


def environment(made: Setup, home: Path, current: Mapping[str, str]) -> dict[str, str]:
    """All variables of the agent: the user's, but for those that would lead it elsewhere, and its own."""
    env = {name: value for name, value in current.items() if name not in made.recipe.unset}
    own = {name: str(home / place) for name, place in made.recipe.own.items()}
    env |= {**made.recipe.env, **own}
    env["PWD"] = str(Path.cwd())  # opencode believes it
    if any(env.get(proxy) for proxy in _PROXIES):
        host = urlsplit(made.target.url).hostname or ""
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = ",".join(part for part in (env.get(name, ""), host) if part)
    return env
