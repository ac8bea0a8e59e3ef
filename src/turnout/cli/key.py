"""``turnout key``: who may use the gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import click

from turnout.cli.limits import keys_file, logged, make, patterns, per_minute, routes_of, seconds
from turnout.cli.output import json_option, note, print_json, table
from turnout.errors import UsageError

if TYPE_CHECKING:
    from turnout.guard.keys import Key, Keys
    from turnout.guard.roles import Role
    from turnout.types import Json

COLUMNS = ("name", "state", "role", "expires", "models", "routes", "rate", "concurrent", "workspaces", "created")


@click.group()
def key() -> None:
    """Make, list, rotate and revoke the keys of the gateway.

    With the first key the gateway answers nobody without one. A running gateway follows every change at once; the audit
    log has them all.
    """


@key.command()
@click.argument("name")
@click.option("--expires", default="90d", show_default=True, help="For example 12h, 30d or 8w; `never` for ever.")
@click.option(
    "--models", multiple=True, metavar="PATTERN", help="What it may ask for, for example 'qwen*'. Repeatable."
)
@click.option("--routes", multiple=True, metavar="PATTERN", help="Paths it may use, for example '/v1/*'. Repeatable.")
@click.option("--rate", metavar="N/min", help="Requests a minute.")
@click.option("--concurrent", type=click.IntRange(1, 100_000), help="Requests at the same time.")
@click.option(
    "--workspace",
    "workspaces",
    multiple=True,
    metavar="DIR",
    help="Whose code is put into what it asks of `auto` or a category. Of several, the header x-turnout-workspace says "
    "which. Repeatable.",
)
@click.option(
    "--role",
    type=click.Choice(["user", "operator", "auditor", "admin"]),
    default="user",
    show_default=True,
    help="user: ask models. operator: read /metrics too. auditor: look and watch, ask nothing. admin: everything.",
)
@json_option
@click.pass_obj
def add(
    config_file: str | None,
    name: str,
    expires: str,
    models: tuple[str, ...],
    routes: tuple[str, ...],
    rate: str | None,
    concurrent: int | None,
    workspaces: tuple[str, ...],
    role: str,
    as_json: bool,
) -> None:
    """Make a key called NAME and print it, this once: only a hash of it is kept."""
    from turnout.guard import keys

    limits = keys.Limits(
        role=cast("Role", role),
        lasting=seconds(expires),
        models=patterns("--models", models),
        routes=routes_of(routes),
        rate=per_minute(rate),
        concurrent=concurrent or 0,
        workspaces=tuple(map(_directory, workspaces)),
    )
    token = _change(config_file, f"key added: {name}", lambda known, now: keys.add(known, name, limits, now))
    _print_token(name, token, as_json)


@key.command()
@click.argument("name")
@json_option
@click.pass_obj
def rotate(config_file: str | None, name: str, as_json: bool) -> None:
    """Print another key for NAME with the same limits; the old one and its tokens are refused from now on."""
    from turnout.guard import keys

    token = _change(config_file, f"key rotated: {name}", lambda known, now: keys.rotate(known, name, now))
    _print_token(name, token, as_json)


@key.command()
@click.argument("name")
@json_option
@click.pass_obj
def revoke(config_file: str | None, name: str, as_json: bool) -> None:
    """Refuse the key of NAME from now on, and every token that came from it. What it has begun goes on."""
    from turnout.guard import keys

    _change(config_file, f"key revoked: {name}", lambda known, now: (keys.revoke(known, name, now), ""))
    left = [each for each in _all() if each.state(time.time()) == "active"]
    if as_json:
        print_json({"name": name, "revoked": True, "active": len(left)})
        return
    click.echo(f"the key {name} is revoked")
    if not left:
        opens = f"to open it to this machine again, delete {keys_file()}"
        note(f"no key is left, so the gateway refuses everybody; {opens}")


@key.command(name="list")
@json_option
def list_keys(as_json: bool) -> None:
    """List the keys and what each may do; the keys themselves are not kept."""
    found, now = _all(), time.time()
    if as_json:
        print_json({"keys": [_fields(each, now) for each in found]})
        return
    if not found:
        note("There is no key: the gateway serves this machine alone, without one. `turnout key add NAME` makes one.")
        return
    table(COLUMNS, [_cells(each, now) for each in found], spare=("created", "role", "routes", "workspaces"))


def _change(config_file: str | None, what: str, change: Callable[[Keys, float], tuple[Keys, str]]) -> str:
    """Make a change of the keys, as ``limits.make``."""
    from turnout.guard.keys import changing, write_keys

    with logged(config_file) as note_it, changing(keys_file()) as known:
        changed, token = change(known, time.time())
        make(lambda: write_keys(keys_file(), changed), what, note_it)
    return token


def _all() -> tuple[Key, ...]:
    from turnout.guard.keys import read_keys

    found = read_keys(keys_file())
    return found.keys if found is not None else ()


def _print_token(name: str, token: str, as_json: bool) -> None:
    made = next(each for each in _all() if each.name == name)
    if as_json:
        print_json({"key": token, **_fields(made, time.time())})
        return
    from turnout.guard.keys import day_of

    click.echo(token)
    note(f"This is the key of {name}, shown this once; it expires: {day_of(made.expires)}")


def _fields(key: Key, now: float) -> dict[str, Json]:
    """For ``--json``: moments in seconds since 1970; null for never and for no limit."""
    return {
        "name": key.name,
        "state": key.state(now),
        "role": key.role,
        "created": key.created,
        "expires": key.expires or None,
        "revoked": key.revoked or None,
        "models": list(key.models),
        "routes": list(key.routes),
        "rate": key.rate or None,
        "concurrent": key.concurrent or None,
        "workspaces": list(key.workspaces),
    }


def _cells(key: Key, now: float) -> tuple[str, ...]:
    from turnout.guard.keys import day_of

    limits = f"{key.rate}/min" if key.rate else "-", str(key.concurrent or "-")
    allowed = ", ".join(key.models) or "all", ", ".join(key.routes) or "all"
    code = ", ".join(key.workspaces) or "-"
    return key.name, key.state(now), key.role, day_of(key.expires), *allowed, *limits, code, day_of(key.created)


def _directory(name: str) -> str:
    from turnout.cli.request import find_workspace

    if not name.strip():
        raise UsageError("--workspace names nothing", hint="leave it out to have no code read")
    return str(find_workspace(name, None))
