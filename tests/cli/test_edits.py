"""Edits on the command line: proposed, shown, asked about, written, taken back; and the same in the library."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import configure, run_beside
from tests.cli.test_ask import _speaking
from tests.cli.test_chat import at_terminal
from tests.cli.typist import CTRL_D, Typist
from tests.code.workspaces import server
from tests.fakes.base import running
from turnout.api import LocalLLMRouter
from turnout.errors import EditError, UsageError

ANSWER = """\
This handles it:

app.py
```python
<<<<<<< SEARCH
x = 1
=======
x = 2
>>>>>>> REPLACE
```

and this is new:

notes.txt
```
<<<<<<< SEARCH
=======
one\u202e
>>>>>>> REPLACE
```
"""
OLD, NEW = "x = 1\ny = 1\n", "x = 2\ny = 1\n"
FOUND = "edits are proposed for app.py, notes.txt; nothing is written; --edit shows them and asks, --apply writes them"


@pytest.fixture(autouse=True)
def workspace(home: Path) -> Path:
    (home / ".git").mkdir()
    (home / "app.py").write_text(OLD)
    return home


@asynccontextmanager
async def answering(answer: str = ANSWER) -> AsyncIterator[list[dict[str, object]]]:
    """A server that answers so; what it was asked."""
    seen: list[dict[str, object]] = []
    async with running(_speaking([answer], seen)) as url:
        configure(url)
        yield seen


async def test_edits_are_named_and_nothing_is_written(workspace: Path) -> None:
    async with answering() as seen:
        result = await run_beside("ask", "Set x", stdin=b"")
        kept = await run_beside("ask", "Set x", "--session", "s", stdin=b"")
        data = await run_beside("ask", "Set x", "--json", stdin=b"")
    assert FOUND in result.stderr.splitlines()
    assert "`turnout chat --session s` and /apply writes them" in kept.stderr
    assert [n["code"] for n in json.loads(data.stdout)["notices"]] == ["edits"]
    assert (workspace / "app.py").read_text() == OLD
    assert "SEARCH" not in str(seen[0])


async def test_an_answer_without_edits_says_nothing_of_them() -> None:
    async with answering("```python\nx = 2\n```") as _:
        result = await run_beside("ask", "Set x", stdin=b"")
        applied = await run_beside("ask", "Set x", "--apply", stdin=b"")
    assert "edits" not in result.stderr
    assert applied.exit_code == 1
    assert "the answer proposes nothing that would change a file" in applied.stderr


async def test_apply_writes_and_undo_takes_it_back(workspace: Path) -> None:
    async with answering() as seen:
        result = await run_beside("ask", "Set x", "--apply", stdin=b"")
    assert result.exit_code == 0, result.stderr
    assert "<<<<<<< SEARCH" in str(seen[0]), "the model is told how to write edits"
    assert "-x = 1" in result.stderr.splitlines()
    assert "+one<U+202E>" in result.stderr.splitlines(), "nothing hides in a diff"
    assert "written: app.py: change, +1 -1" in result.stderr
    assert (workspace / "app.py").read_text() == NEW
    assert (workspace / "notes.txt").exists()
    undone = await run_beside("undo")
    assert undone.exit_code == 0, undone.stderr
    assert "put back: notes.txt: delete, +0 -1" in undone.stderr
    assert (workspace / "app.py").read_text() == OLD
    assert not (workspace / "notes.txt").exists()
    again = await run_beside("undo", "--json")
    assert json.loads(again.stdout)["error"]["code"] == "edit"


async def test_json_holds_the_diffs_and_why_nothing_was_written(workspace: Path) -> None:
    async with answering() as _:
        done = await run_beside("ask", "Set x", "--apply", "--json", stdin=b"")
        refused = await run_beside("ask", "Set x", "--apply", "--json", stdin=b"")
        asks = await run_beside("ask", "Set x", "--edit", "--json", stdin=b"")
    first = json.loads(done.stdout)
    assert (first["applied"], first["text"]) == (True, ANSWER)
    assert first["edits"]["files"][0]["diff"] == "--- a/app.py\n+++ b/app.py\n@@ -1,2 +1,2 @@\n-x = 1\n+x = 2\n y = 1"
    second = json.loads(refused.stdout)
    assert (second["applied"], second["error"]["code"], refused.exit_code) == (False, "edit", 1)
    assert "seems to be done" in second["edits"]["problems"][0]["reason"]
    assert asks.exit_code == 2
    undone = json.loads((await run_beside("undo", "--json")).stdout)
    assert [f["path"] for f in undone["undone"]] == ["app.py", "notes.txt"]
    assert (workspace / "app.py").read_text() == OLD


async def test_an_edit_that_adds_errors_is_put_back_unless_told_otherwise(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(server("python", "ty").command[0]).parent))
    wrong = ANSWER.replace("x = 2", "x = nowhere")
    async with answering(wrong) as _:
        refused = await run_beside("ask", "Set x", "--apply", stdin=b"")
        left = (workspace / "app.py").read_text()
        kept = await run_beside("ask", "Set x", "--apply", "--despite-errors", stdin=b"")
        alone = await run_beside("ask", "Set x", "--despite-errors", stdin=b"")
    await run_beside("code", "stop", "--all")
    assert (refused.exit_code, left) == (1, OLD)
    assert "put back, because it adds 1 error: app.py:1: " in refused.stderr
    assert (kept.exit_code, alone.exit_code) == (0, 2)
    assert "new error: app.py:1: " in kept.stderr
    assert (workspace / "app.py").read_text() == "x = nowhere\ny = 1\n"


async def test_without_a_terminal_edit_shows_and_writes_nothing(workspace: Path) -> None:
    async with answering() as _:
        result = await run_beside("ask", "Set x", "--edit", stdin=b"")
        both = await run_beside("ask", "Set x", "--edit", "--apply", stdin=b"")
    assert result.exit_code == 0
    assert "+x = 2" in result.stderr
    assert "nothing is written: there is no terminal to ask at" in result.stderr
    assert (workspace / "app.py").read_text() == OLD
    assert both.exit_code == 2
    (workspace / ".git").rmdir()
    nowhere = await run_beside("ask", "Set x", "--edit", stdin=b"")
    assert "edits need a workspace" in nowhere.stderr


@pytest.mark.parametrize(
    ("replies", "left"),
    [(["y"], (NEW, True)), (["n"], (OLD, False)), (["each", "y", "n"], (NEW, False))],
    ids=["yes", "no", "each"],
)
async def test_edit_asks_at_a_terminal(workspace: Path, replies: list[str], left: tuple[str, bool]) -> None:
    async with answering() as _:
        shown = await asyncio.to_thread(_replying, replies)
    assert "\x1b[31m-x = 1" in shown
    assert "\x1b[32m+x = 2" in shown
    assert ((workspace / "app.py").read_text(), (workspace / "notes.txt").exists()) == left


def _replying(replies: list[str]) -> str:
    """``turnout ask --edit`` at a terminal, each question answered; all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="200", LINES="50")
        os.execv(sys.executable, [sys.executable, "-c", "from turnout.cli import main; main()", "ask", "Set", "--edit"])
    shown, left = b"", list(replies)
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
        if left and shown.count(b"Write ") > len(replies) - len(left) and shown.endswith(b": "):
            os.write(terminal, left.pop(0).encode() + b"\n")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    return shown.decode()


async def test_a_chat_applies_and_reverts(workspace: Path) -> None:
    def use(terminal: Typist) -> None:
        terminal.prompt()
        assert "edits are proposed for app.py, notes.txt; /apply writes them" in terminal.ask("Set x")
        assert "written: app.py: change, +1 -1" in terminal.ask("/apply")
        assert (workspace / "app.py").read_text() == NEW
        assert "put back: app.py" in terminal.ask("/revert")
        assert (workspace / "app.py").read_text() == OLD
        assert "there is nothing to undo" in terminal.ask("/revert")
        terminal.type(CTRL_D)

    async with answering() as _:
        await at_terminal(use)


async def test_the_library_proposes_applies_and_undoes(workspace: Path) -> None:
    async with running(_speaking([ANSWER], [])) as url:
        config = {"discovery": {"enabled": False}, "custom_endpoints": [{"name": "s", "endpoint": url}]}
        async with LocalLLMRouter(workspace, config) as router:
            proposed = await router.propose_edits(await router.route("Set x"))
            assert [(c.path, c.counts()) for c in proposed.changes] == [("app.py", (1, 1)), ("notes.txt", (1, 0))]
            await router.apply(proposed)
            assert (workspace / "app.py").read_text() == NEW
            await router.undo()
            assert (workspace / "app.py").read_text() == OLD
            with pytest.raises(EditError):
                await router.undo()
        async with LocalLLMRouter(None, config) as router:
            with pytest.raises(UsageError, match="edits need a workspace"):
                await router.propose_edits(ANSWER)
