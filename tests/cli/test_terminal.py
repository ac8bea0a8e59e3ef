"""On a terminal: tables for people, in a pipe none of that."""

from __future__ import annotations

import asyncio
import json
import re

from tests.cli.conftest import Fakes, as_terminal, configure, run
from turnout.cli.output import _fitting, _widths


def test_a_table_is_laid_out_on_a_terminal_and_plain_in_a_pipe() -> None:
    configure("http://127.0.0.1:9")
    code, shown = as_terminal("discover")
    assert code == 3
    assert "\x1b[" in shown
    assert "\t" not in shown
    piped = run("discover").stdout
    assert "\x1b" not in piped
    assert piped.count("\t") == 18


def lines_of(columns: int, *args: str) -> list[str]:
    """The table as it stands on a terminal of that width, without colours and the spinner."""
    _, shown = as_terminal(*args, columns=columns)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "")
    lines = [line.rstrip() for line in text.splitlines()]
    return lines[next(n for n, line in enumerate(lines) if line.startswith(("service ", "id "))) :]


def test_a_narrow_terminal_shows_fewer_columns_and_shorter_words() -> None:
    configure("http://127.0.0.1:9", "http://127.0.0.1:13")
    wide, first, *_ = lines_of(200, "discover")
    columns = ["service", "kind", "address", "version", "state", "reason", "models", "loaded", "window", "busy"]
    assert wide.split() == columns
    assert "http://127.0.0.1:9 " in first
    assert "nothing answers at 127.0.0.1:9: connection refused" in first
    for width in (80, 60):
        header, *rows = lines_of(width, "discover")
        first, second = (row for row in rows if row.startswith("fake"))
        assert {"service", "address", "state", "reason"} <= set(header.split()) < set(wide.split())
        assert ("window" in header) == (width == 80)
        assert max(map(len, (header, first, second))) <= width
        assert {"fake0", "127.0.0.1:9", "offline"} <= set(first.split())
        assert {"fake1", "127.0.0.1:13", "offline"} <= set(second.split())
        assert "nothing answers" in first


async def test_a_decision_shows_level_and_window_on_a_narrow_terminal(fakes: Fakes) -> None:
    configure(await fakes.start("qwen2.5-coder-32b-instruct"), await fakes.start("qwen2.5-coder-7b-instruct"))
    _, shown = await asyncio.to_thread(as_terminal, "explain", "Write a function", columns=80)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "")
    head = next(line for line in text.splitlines() if line.startswith("decision"))
    assert head.split() == ["decision", "model", "service", "level", "window", "seconds", "reason"]
    assert "(known)" in text
    assert max(map(len, text.splitlines()[text.splitlines().index(head) :])) <= 80


def test_what_a_model_needs_is_whole_on_a_narrow_terminal() -> None:
    _, shown = as_terminal("models", "fit", "--memory", "24", columns=80)
    head, first, *_ = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "").splitlines()[1:]
    assert head.split() == ["model", "parameters", "window", "needs", "fits", "coding", "reasoning"]
    assert re.search(r" \d+\.\d GB +yes ", first)


def test_a_long_word_is_wrapped_and_whole_columns_stay() -> None:
    cells = [["x" * 70, "known", "8192"]]
    assert list(_fitting(_widths(("id", "source", "window"), cells), ("source",), 80)) == ["id", "source", "window"]
    assert list(_fitting(_widths(("id", "source", "window"), cells), ("source",), 35)) == ["id", "window"]


def test_json_is_json_on_a_terminal_too() -> None:
    code, shown = as_terminal("config", "show", "--json")
    assert code == 0
    assert json.loads(shown)["file"] is None


def test_a_name_is_not_read_as_markup() -> None:
    configure(custom_endpoints=[{"name": "a", "endpoint": "unix:/run/[red]x[/red].sock"}])
    assert "[red]x[/red]" in as_terminal("discover")[1]
