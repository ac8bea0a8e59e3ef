"""``turnout config``: check, show or create the configuration."""

from __future__ import annotations

from pathlib import Path

import click

from turnout.cli.output import json_option, loaded_config, note, print_json, safe
from turnout.errors import StorageError, UsageError

_FILE = Path("turnout.yaml")


@click.group()
def config() -> None:
    """Check, show or create the configuration."""


@config.command()
@json_option
@click.pass_obj
def check(config_file: str | None, as_json: bool) -> None:
    """Check the configuration.

    Reads it and the files that it names, and checks every configured endpoint against the allow-list. Nothing is
    dialled.
    """
    from turnout.build import check_tls, read_listed, refuse_outside
    from turnout.cli.request import find_workspace
    from turnout.routing.capabilities import load_table

    loaded = loaded_config(config_file)
    read_listed(loaded, refuse_outside(loaded))
    check_tls(loaded)
    models_file = loaded.config.routing.models_file
    load_table(Path(models_file) if models_file else None)
    find_workspace(None, loaded.config.serena.workspace)
    unserved = _why_not_served(loaded.config.gateway.host)
    if unserved:
        note(f"Warning: {unserved}")
    if as_json:
        warnings = (*loaded.warnings, *((unserved,) if unserved else ()))
        print_json({"file": _name(loaded.file), "ok": True, "warnings": [*warnings]})
        return
    click.echo(f"{_name(loaded.file) or 'built-in defaults, no file found'}: ok")


@config.command()
@json_option
@click.pass_obj
def show(config_file: str | None, as_json: bool) -> None:
    """Show the configuration in effect.

    Defaults are filled in; `null`, `{}` and `[]` mean what docs/configuration.md says of a key that is not given. Keys
    are left out.
    """
    from msgspec.structs import replace

    from turnout.config_values import redacted
    from turnout.fleet.host import loopback_only

    loaded = loaded_config(config_file)
    discovery = replace(loaded.config.discovery, loopback_only=loopback_only(loaded.config))
    values = redacted(replace(loaded.config, discovery=discovery))
    if as_json:
        print_json({"file": _name(loaded.file), "config": values})
        return
    import yaml

    click.echo(f"# {_name(loaded.file) or 'built-in defaults, no file found'}")
    click.echo("# null, {} and [] mean what docs/configuration.md says of a key that is not given")
    click.echo(safe(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)), nl=False)


@config.command()
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def init(force: bool, as_json: bool) -> None:
    """Write an example configuration to ./turnout.yaml."""
    from turnout.backends import DEFAULT_URLS
    from turnout.config_load import example_yaml

    if _FILE.exists() and not force:
        raise UsageError(f"{_FILE} is there already", hint="--force replaces it")
    part = Path(f"{_FILE}.part")
    try:
        # Written aside first: a full disk must not cost the file that is there.
        part.write_text(example_yaml(DEFAULT_URLS), "utf-8")
        part.replace(_FILE)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{_FILE} cannot be written: {error.strerror}", hint="choose another directory") from error
    if as_json:
        print_json({"file": str(_FILE)})
        return
    click.echo(f"wrote {_FILE}; `turnout config check` checks it")


def _why_not_served(host: str) -> str:
    """Why `turnout serve` would refuse; a key may well be made after the file."""
    from turnout.config import data_dir
    from turnout.config_values import LOOPBACK
    from turnout.guard.keys import Keyring, keys_path

    if host in LOOPBACK or Keyring(keys_path(data_dir())).defined:
        return ""
    return f"gateway.host is {host}, and `turnout serve` refuses it as long as there is no key: turnout key add NAME"


def _name(file: Path | None) -> str | None:
    return str(file) if file else None
