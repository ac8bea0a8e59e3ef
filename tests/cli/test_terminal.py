"""On a terminal: tables for people, in a pipe none of that."""

from __future__ import annotations

import json

from tests.cli.conftest import as_terminal, configure, run


def test_a_table_is_laid_out_on_a_terminal_and_plain_in_a_pipe() -> None:
    configure("http://127.0.0.1:9")
    code, shown = as_terminal("discover")
    assert code == 3
    assert "\x1b[" in shown
    assert "\t" not in shown
    piped = run("discover").stdout
    assert "\x1b" not in piped
    assert piped.count("\t") == 14


def test_json_is_json_on_a_terminal_too() -> None:
    code, shown = as_terminal("config", "show", "--json")
    assert code == 0
    assert json.loads(shown)["file"] is None


def test_a_name_is_not_read_as_markup() -> None:
    configure(custom_endpoints=[{"name": "a", "endpoint": "unix:/run/[red]x[/red].sock"}])
    assert "[red]x[/red]" in as_terminal("discover")[1]
