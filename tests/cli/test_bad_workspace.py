"""What is wrong with a workspace keeps no question from its answer: one clear line, and the answer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import Fakes, configure, run, run_beside
from tests.code.workspaces import server
from tests.fakes.base import running
from tests.fakes.llm import openai_app
from turnout.api import LocalLLMRouter, load_any

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="hosts need UNIX sockets")
QUESTION = "What does total() do?"
ANSWER = "def add(a, b):\n    return a + b\n"


@pytest.fixture
def programs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only directory of the PATH; hosts end with the test."""
    place = home.parent / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))
    yield place
    run("code", "stop", "--all")


async def asked(*more: str) -> Result:
    return await run_beside("ask", QUESTION, "--show-context", *more, stdin=b"")


def said(result: Result) -> str:
    """The line about the code, of a question that was answered."""
    assert (result.exit_code, result.stdout) == (0, ANSWER), result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("code context:")]
    return line


def with_ty(programs: Path) -> None:
    (programs / "ty").symlink_to(server("python", "ty").command[0])


async def test_no_workspace(fakes: Fakes, programs: Path) -> None:
    configure(await fakes.start())
    assert said(await asked()) == "code context: none: there is no workspace"


async def test_an_unknown_language(fakes: Fakes, home: Path, programs: Path) -> None:
    configure(await fakes.start())
    with_ty(programs)
    (home / "a.zyx").write_text("total = 1\n")
    line = said(await asked("--workspace", ".", "--file", "a.zyx", "--line", "1"))
    assert line.startswith("code context: text search: looked for total, ")
    assert line.endswith("no code intelligence is installed for it (`turnout code install`)")
    (home / "b.py").write_text("def total():\n    return 1\n")
    beside = said(await asked("--workspace", ".", "--file", "a.zyx", "--line", "1"))
    assert "ty told " in beside, "of the file that it knows"
    assert "sent: a.zyx lines 1 to 1" in beside


async def test_something_else_that_is_called_serena(fakes: Fakes, home: Path, programs: Path) -> None:
    configure(await fakes.start())
    (home / "a.py").write_text("def total():\n    return 1\n")
    (programs / "serena").write_text("#!/bin/sh\necho serena 0.9.1\n")
    (programs / "serena").chmod(0o755)
    with_ty(programs)
    line = said(await asked("--workspace", "."))
    assert line.startswith("code context: ty, text search: ")
    assert "serena on the PATH is not Serena" in line


@pytest.mark.parametrize("hosted", [False, True], ids=["text search", "host"])
async def test_a_workspace_that_vanishes(hosted: bool, home: Path, programs: Path) -> None:
    """It goes while the servers are looked for, after the command line has found it; its host runs already."""
    work = home / "work"
    work.mkdir()
    (work / "a.py").write_text("def total():\n    return 1\n")
    if hosted:
        with_ty(programs)
    app, vanishes = openai_app(("qwen2.5-coder-7b-instruct",), 8192), False

    async def vanishing(scope: object, receive: object, send: object) -> None:
        if vanishes:
            shutil.rmtree(work, ignore_errors=True)
        await app(scope, receive, send)  # type: ignore[arg-type]

    async with running(vanishing) as url:  # type: ignore[arg-type]
        configure(url)
        assert ("ty told " in said(await asked("--workspace", "work"))) == hosted
        vanishes = True
        line = said(await asked("--workspace", "work"))
    assert line == "code context: none: the workspace could not be read in time"


async def test_a_file_outside_of_the_workspace(fakes: Fakes, home: Path, programs: Path) -> None:
    """The command line refuses it as it refuses one that is not there; a program's question is answered without it."""
    url = await fakes.start()
    configure(url)
    (home / "work").mkdir()
    (home / "secret.py").write_text("total = 'outside'\n")
    refused = await asked("--workspace", "work", "--file", "secret.py")
    assert refused.exit_code == 2
    assert "is outside the workspace" in refused.stderr
    config = load_any({"custom_endpoints": [{"name": "f", "endpoint": url}], "discovery": {"enabled": False}})
    async with LocalLLMRouter(str(home / "work"), config=config) as router:
        result = await router.execute(QUESTION, {"file": "../secret.py", "position": {"line": 0, "character": 0}})
    assert result.text == ANSWER.rstrip("\n")


@pytest.mark.heavy
async def test_a_hundred_thousand_files(fakes: Fakes, home: Path, programs: Path) -> None:
    configure(await fakes.start())
    with_ty(programs)
    work = home / "work"
    for folder in range(200):
        (work / f"many{folder:03}").mkdir(parents=True)
        for number in range(500):
            (work / f"many{folder:03}" / f"m{number}.py").write_text(f"def total{number}() -> int:\n    return 1\n")
    line = said(await asked("--workspace", "work", "--file", "work/many000/m7.py", "--line", "1"))
    assert "sent: many000/m7.py lines 1 to 2" in line
