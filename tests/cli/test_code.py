"""``turnout code``: positions as people count them, and what is said where nothing is installed or nobody answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Fakes, configure, run, run_beside
from tests.code.workspaces import server
from tests.fakes.base import FakeModel
from turnout.cli.code import _position

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="hosts need UNIX sockets")

SHOP = '''class Order:
    """What somebody buys."""

    def total(self) -> int:
        return 1


def price(order: Order) -> int:
    shown = "\N{GRINNING FACE}"; return order.total() + len(shown)


def broken() -> int:
    return "x"
'''


@pytest.fixture
def bare(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace where nothing is installed."""
    (home / "shop.py").write_text(SHOP, encoding="utf-8")
    monkeypatch.setenv("PATH", "/nowhere")
    return home


@pytest.fixture
def shop(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same with the real ty on the PATH; the host ends with the test."""
    monkeypatch.setenv("PATH", str(Path(server("python", "ty").command[0]).parent))
    yield bare
    run("code", "stop", "--all")


def told(*args: str) -> object:
    return json.loads(run("code", *args, "--json").stdout)


def test_every_question_is_answered_by_a_real_server(shop: Path) -> None:
    assert run("code", "status").stdout.startswith("installed: no Serena; ty (python)\nrunning: nothing")
    result = run("code", "definition", "shop.py:9:31")
    assert (result.exit_code, result.stdout) == (0, "shop.py:4:9: def total(self) -> int:\n")
    assert run("code", "references", "shop.py:4").stdout == (
        'shop.py:9:31: shown = "\N{GRINNING FACE}"; return order.total() + len(shown)\n'
    )
    assert "def total(self" in run("code", "hover", "shop.py:4").stdout
    assert run("code", "type-definition", "shop.py:8:11").stdout.startswith("shop.py:1:7: class Order")
    assert "shop.py:8:" in run("code", "calls", "shop.py:4").stdout
    assert "Order/total" in run("code", "outline", "shop.py").stdout
    assert "Order/total" in run("code", "symbols", "total").stdout
    found = told("symbols", "Order/total", "--body")
    assert isinstance(found, dict)
    assert (found["symbols"][0]["line"], "return 1" in found["symbols"][0]["body"]) == (4, True)
    found = told("diagnostics", "shop.py")
    assert isinstance(found, dict)
    assert [(d["line"], d["severity"]) for d in found["diagnostics"]] == [(13, "error")]
    assert "shop.py:13:" in run("code", "diagnostics", "shop.py").stdout
    found = told("status")
    assert isinstance(found, dict)
    (host,) = found["hosts"]
    assert (host["workspace"], host["warm"]) == (str(shop.resolve()), True)
    assert host["served"][0]["name"] == "ty"
    assert str(host["pid"]) in run("code", "status").stdout
    assert told("stop") == {"stopped": [str(shop.resolve())]}
    assert told("stop") == {"stopped": []}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("shop.py", "is no FILE:LINE[:CHAR]"),
        ("shop.py:0", "is no FILE:LINE[:CHAR]"),
        ("shop.py:99", "shop.py has 14 lines, there is no line 99"),
        ("shop.py:1:99", "line 1 of shop.py has 12 characters"),
        ("shop.py:3", "there is no name on line 3"),
        ("absent.py:1", "there is no file absent.py"),
        ("/etc/passwd:1", "is outside the workspace"),
    ],
)
def test_a_place_that_is_none(place: str, said: str, bare: Path) -> None:
    result = run("code", "hover", place)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('    return f"{len(items)}"', "len"),
        ("raise u8R'x' from base", "base"),
        ('f("x")', "f"),
        ('total(f"x")', "total"),
    ],
)
def test_what_says_which_text_this_is_is_no_name(line: str, name: str, bare: Path) -> None:
    Path("line.py").write_text(line)
    assert _position("line.py:1", bare)[1].character == line.index(name)


def test_where_nothing_is_installed_it_says_what_to_do(bare: Path) -> None:
    result = run("code", "hover", "shop.py:4")
    assert result.exit_code == 1
    assert "neither Serena nor a language server is installed for the files of" in result.stderr
    assert "turnout code install" in result.stderr
    result = run("code", "status")
    assert result.stdout.startswith("installed: no Serena; no language server\nrunning: nothing")
    assert "turnout code install" in result.stderr


async def test_ask_shows_what_the_question_takes_along(bare: Path, fakes: Fakes) -> None:
    configure(await fakes.start())
    result = await run_beside("ask", "What does `price` do?", "--workspace", ".", "--show-context")
    assert "code context: text search: looked for price" in result.stderr
    assert "no code intelligence is installed" in result.stderr
    assert "## Definition\n- shop.py:8: def price(order: Order) -> int:" in result.stderr
    assert "Definition" not in result.stdout
    result = await run_beside("ask", "What does `price` do?", "--workspace", ".", "--show-context", "--json")
    context = json.loads(result.stdout)["code_context"]
    assert context["text"].startswith("## Definition")
    result = await run_beside("ask", "Hello", "--show-context")
    assert "code context: none: there is no workspace" in result.stderr
    result = await run_beside("ask", "Hello", "--workspace", ".", "--show-context", "--model", FakeModel().id)
    assert "code context: none: an exact model was asked for, and no file is named" in result.stderr
    assert not list(Path(os.environ["TURNOUT_DATA_DIR"]).rglob("*.sock"))


async def test_explain_and_ask_take_what_a_real_server_tells(shop: Path, fakes: Fakes) -> None:
    configure(await fakes.start(window=16_384))
    asked = ("Where is `total` used? Rename it.", "--file", "shop.py", "--line", "4", "--workspace", ".")
    result = await run_beside("ask", *asked, "--show-context")
    assert "code context: ty, text search: " in result.stderr
    assert "## Type Information" in result.stderr
    assert "## References (1 found)\n- shop.py:9 in price: " in result.stderr
    assert "## Current Issues (1)\n- Line 13: " in result.stderr
    result = await run_beside("explain", *asked)
    assert "code context: ty, text search: " in result.stdout
