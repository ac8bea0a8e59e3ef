"""``turnout token``: access to the gateway that ends by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import click

from turnout.cli.limits import keys_file, logged, make, patterns, per_minute, routes_of, seconds
from turnout.cli.output import json_option, note, print_json, table
from turnout.errors import NotPermittedError, UsageError

if TYPE_CHECKING:
    from turnout.guard.keys import Key, Keys
    from turnout.guard.roles import Role
    from turnout.guard.tokens import Token, Tokens

T = TypeVar("T")
COLUMNS = ("id", "principal", "state", "role", "expires", "models", "routes", "rate", "concurrent")


@click.group()
def token() -> None:
    """Mint, list and revoke short-lived tokens of the gateway.

    A token is used as a key is, lasts 24 hours at most and mints no others. Whoever has a key can mint at a running
    gateway too: POST /v1/tokens. The audit log has every one.
    """


@token.command()
@click.option("--ttl", default="10m", show_default=True, help="How long it lasts, for example 90s, 10m or 8h.")
@click.option("--key", "key_name", metavar="NAME", help="The key it comes from: it may no more, and ends with it.")
@click.option("--name", default="", help="What it is for; its requests are logged as KEY/NAME.")
@click.option("--role", type=click.Choice(["user", "operator", "auditor", "admin"]), help="Default: user.")
@click.option("--models", multiple=True, metavar="PATTERN", help="What it may ask for. Repeatable.")
@click.option("--routes", multiple=True, metavar="PATTERN", help="Paths it may use. Repeatable.")
@click.option("--rate", metavar="N/min", help="Requests a minute.")
@click.option("--concurrent", type=click.IntRange(1, 100_000), help="Requests at the same time.")
@json_option
@click.pass_obj
def mint(
    config_file: str | None,
    ttl: str,
    key_name: str | None,
    name: str,
    role: str | None,
    models: tuple[str, ...],
    routes: tuple[str, ...],
    rate: str | None,
    concurrent: int | None,
    as_json: bool,
) -> None:
    """Mint a token and print it, this once: it is not kept."""
    from turnout.guard import tokens

    wanted = tokens.Wanted(
        lasting=seconds(ttl) or tokens.MAX_SECONDS + 1,
        role=cast("Role | None", role),
        models=patterns("--models", models),
        routes=routes_of(routes),
        rate=per_minute(rate),
        concurrent=concurrent or 0,
        name=name,
    )

    def change(keys: Keys, known: Tokens) -> tuple[Tokens, tuple[Token, str]]:
        now = time.time()
        changed, made, text = tokens.mint(keys, known, wanted, now, _granter(keys, key_name, now))
        return changed, (made, text)

    first = not keys_file().exists()
    made, text = _change(config_file, change, lambda told: tokens.described(told[0]))
    if as_json:
        print_json({"token": text, **tokens.fields(made, "active")})
        return
    from turnout.guard.keys import day_of

    click.echo(text)
    note(f"This is the token {made.id} of {made.principal}, shown this once; it expires: {day_of(made.expires)}")
    if first:
        note("From now on the gateway serves nobody without a key or a token; `turnout key add NAME` makes a key.")


@token.command(name="list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List the tokens that are in force or revoked, until they expire; the tokens themselves are not kept."""
    from turnout.guard import tokens
    from turnout.guard.keys import day_of

    known, now = tokens.read_tokens(tokens.tokens_path(keys_file())), time.time()
    rows = [(each, known.state(each, now)) for each in known.minted] if known is not None else []
    rows = [(each, state) for each, state in rows if state != "expired"]
    if as_json:
        print_json({"tokens": [tokens.fields(each, state) for each, state in rows]})
        return
    if not rows:
        note("No token is in force. `turnout token mint` makes one.")
        return
    cells = [
        (
            *(each.id, each.principal, state, each.role, day_of(each.expires)),
            *(", ".join(each.models) or unset, ", ".join(each.routes) or unset),
            *(f"{each.rate}/min" if each.rate else "-", str(each.concurrent or "-")),
        )
        for each, state in rows
        for unset in ("as its key" if each.key else "all",)
    ]
    table(COLUMNS, cells, spare=("concurrent", "rate", "routes"))


@token.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every token that was ever minted here.")
@json_option
@click.pass_obj
def revoke(config_file: str | None, ids: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Refuse tokens from now on. What they have begun goes on."""
    from turnout.guard import tokens

    if every == bool(ids):
        raise UsageError("name the tokens by their ids, or give --all", hint="`turnout token list` shows the ids")

    def change(_: Keys, known: Tokens) -> tuple[Tokens, str]:
        return (tokens.revoke_all(), "all") if every else (tokens.revoke(known, ids, time.time()), ", ".join(ids))

    gone = _change(config_file, change, lambda told: f"token revoked: {told}")
    if as_json:
        print_json({"revoked": gone if every else list(ids)})
        return
    click.echo("every token is revoked" if every else f"revoked: {gone}")


def _granter(keys: Keys, name: str | None, now: float) -> Key | None:
    if name is None:
        return None
    found = next((key for key in keys.keys if key.name == name), None)
    if found is None or found.state(now) != "active":
        said = "there is no key" if found is None else f"{found.state(now)} is the key"
        raise UsageError(f"{said} {name[:80]!r}", hint="`turnout key list` shows what there is")
    return found


def _change(
    config_file: str | None,
    change: Callable[[Keys, Tokens], tuple[Tokens, T]],
    describe: Callable[[T], str],
) -> T:
    """Make a change of the tokens, as ``limits.make``."""
    from turnout.guard.keys import write_keys
    from turnout.guard.tokens import changing_tokens, tokens_path, write_tokens

    path = keys_file()
    with logged(config_file) as note_it, changing_tokens(path) as (keys, known):
        try:
            changed, told = change(keys, known)
        except NotPermittedError as error:
            note_it("security:not_permitted", service="token mint", error=error.message)
            raise

        def write() -> None:
            if not path.exists():  # the secret that signs tokens is the keys'
                write_keys(path, keys)
            write_tokens(tokens_path(path), changed)

        make(write, describe(told), note_it)
    return told
