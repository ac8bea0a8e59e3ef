"""Edits with who knows the language behind them: the real ty through a host, the real Serena, who writes at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.code.hosting import appears, end_all
from tests.code.serena_env import serena_dir, why_not
from tests.code.workspaces import make_shop, server
from turnout.api import load_any
from turnout.build import open_editor
from turnout.code.apply import Editor
from turnout.code.client import HostedIntelligence, Hosts
from turnout.code.host import Host
from turnout.code.install import find_serena
from turnout.code.intelligence import Ability, CodeSymbol, IntelligenceError, NotSupportedError, Place, TextEdit
from turnout.code.places import place_of
from turnout.code.serena import SerenaIntelligence
from turnout.code.settings import HostSettings
from turnout.code.workshop import Workshop
from turnout.config import LoadedConfig
from turnout.errors import EditError
from turnout.guard.audit import open_audit
from turnout.types import Position

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="hosts need UNIX sockets")
RENAME = "Rename symbol `Order` to `Basket` in `shop/models.py`\n"
WRONG = """shop/use.py
<<<<<<< SEARCH
    return order.total() + pick(1)
=======
    return order.totals() + pick(1)
>>>>>>> REPLACE
"""
FIRST = "shop/models.py\n<<<<<<< SEARCH\n    return self.price\n=======\n    return 2 * self.price\n>>>>>>> REPLACE\n"


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the workspace, also hidden ones that were left behind."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return make_shop(tmp_path / "work")


@pytest.fixture
async def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoadedConfig]:
    """A configuration; the hosts that were started for it end with the test."""
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "/nowhere")
    yield load_any({"discovery": {"enabled": False}})
    await end_all(tmp_path / "data")


@pytest.fixture
def with_ty(loaded: LoadedConfig, monkeypatch: pytest.MonkeyPatch) -> LoadedConfig:
    monkeypatch.setenv("PATH", str(Path(server("python", "ty").command[0]).parent))
    return loaded


async def test_an_edit_that_adds_an_error_is_put_back_by_the_real_ty(shop: Path, with_ty: LoadedConfig) -> None:
    before = contents(shop)
    async with open_editor(with_ty, shop) as editor:
        proposed = await editor.preview(WRONG)
        with pytest.raises(EditError, match=r"put back, because it adds 1 error: shop/use\.py:7: .*totals") as caught:
            await editor.apply(proposed)
        assert "--despite-errors" in caught.value.hint
        assert contents(shop) == before
        kept = await editor.apply(proposed, despite_errors=True)
        assert [issue.partition(": ")[0] for issue in kept.issues] == ["shop/use.py:7"]
        assert b"totals" in contents(shop)["shop/use.py"]


async def test_the_errors_that_were_there_are_no_new_ones(shop: Path, with_ty: LoadedConfig) -> None:
    moved = "shop/use.py\n<<<<<<< SEARCH\nimport sys\n=======\nimport os\nimport sys\n\nos.getpid()\n>>>>>>> REPLACE\n"
    async with open_editor(with_ty, shop) as editor:
        outcome = await editor.apply(await editor.preview(moved))
    assert (outcome.issues, outcome.notes) == ((), ())


async def test_a_rename_by_the_real_ty_is_shown_first(shop: Path, with_ty: LoadedConfig) -> None:
    before = contents(shop)
    async with open_editor(with_ty, shop) as editor:
        proposed = await editor.preview(RENAME)
        assert proposed.problems == ()
        assert contents(shop) == before
        await editor.apply(proposed)
    after = contents(shop)
    assert {path for path in after if after[path] != before[path]} == {"shop/models.py", "shop/use.py"}
    assert after["shop/use.py"] == before["shop/use.py"].replace(b"Order", b"Basket")
    async with open_editor(with_ty, shop, asks=False) as editor:
        await editor.undo()
    assert contents(shop) == before


@pytest.mark.parametrize("why", ["nothing installed", "switched off"])
async def test_without_code_intelligence_it_is_as_before(
    why: str, shop: Path, loaded: LoadedConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "switched off":
        monkeypatch.setenv("PATH", str(Path(server("python", "ty").command[0]).parent))
        loaded = load_any({"discovery": {"enabled": False}, "serena": {"enabled": False}})
    async with open_editor(loaded, shop) as editor:
        renamed = await editor.preview(RENAME)
        assert "needs a language server" in renamed.problems[0].reason
        await editor.apply(await editor.preview(WRONG))
    assert b"totals" in contents(shop)["shop/use.py"]
    assert not (tmp_path / "data" / "code").exists(), "no host was started"


@asynccontextmanager
async def only_serena(shop: Path, data: Path) -> AsyncIterator[HostedIntelligence]:
    """A host in this process with the real Serena and no language server beside it."""
    program = find_serena(serena_dir("2.1.0"))
    assert program is not None
    workshop = Workshop(shop, SerenaIntelligence(program, shop, data), {})
    place, settings = place_of(shop, data), HostSettings()
    host, hosts = Host(shop, place, workshop, settings), Hosts(data, settings)
    serving = asyncio.create_task(host.serve())
    try:
        await appears(place.socket, serving)
        yield HostedIntelligence(hosts, shop)
    finally:
        await hosts.aclose()
        host.end("the test is over")
        await serving


@pytest.mark.skipif(bool(why_not("2.1.0")), reason=why_not("2.1.0"))
async def test_a_rename_by_the_real_serena_alone_is_tried_put_back_and_then_written(shop: Path, tmp_path: Path) -> None:
    (shop / "shop" / "latin.py").unlink()  # which Serena would spoil, so that it would not rename
    before = contents(shop)
    async with only_serena(shop, tmp_path / "data") as told:
        editor = Editor(shop, tmp_path / "data", audit=None, intelligence=told, renamer=told)
        proposed = await editor.preview(RENAME)
        assert proposed.problems == ()
        assert contents(shop) == before
        await editor.apply(proposed)
        after = contents(shop)
        assert after["shop/use.py"] == before["shop/use.py"].replace(b"Order", b"Basket")
        assert b"class Basket(Item)" in after["shop/models.py"]
        again = await editor.preview("Rename symbol `Order` to `Basket` in `shop/models.py`\n")
        assert [problem.reason for problem in again.problems] == ["Order is defined 0 times in it"]


@dataclass
class Writes:
    """Finds ``total`` and renames it by writing at once, in the files that it is told. It looks at no syntax."""

    root: Path
    files: tuple[str, ...] = ("m.py", "use.py")
    fails: Exception | None = None
    hangs: bool = False
    given_up: bool = False
    wrote: asyncio.Event = field(default_factory=asyncio.Event)

    name = "fake"
    abilities = frozenset((Ability.FIND_SYMBOL, Ability.RENAME))

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        return (CodeSymbol(name, "function", Place(path, 0, 0, 1, 12)),)

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        raise NotSupportedError("it shows none")

    async def write_rename(self, path: str, name_path: str, new_name: str) -> None:
        for name in self.files:
            file = self.root / name
            file.write_bytes(file.read_bytes().replace(b"total", new_name.encode()))
        self.wrote.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails

    async def give_up(self) -> None:
        self.given_up = True


TOTAL = "Rename symbol `total` to `whole` in `m.py`\n"
SMALL = {"m.py": b"def total():\n    return 1\n", "use.py": b"total()\n", "build/use.py": b"total()\n"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    root = tmp_path / "small"
    for name, data in SMALL.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def editor_of(writes: Writes) -> Editor:
    return Editor(writes.root, writes.root.parent / "data", audit=None, intelligence=writes, renamer=writes)  # type: ignore[arg-type]


async def test_what_is_written_at_once_is_put_back_whatever_comes_of_it(small: Path) -> None:
    good = await editor_of(Writes(small)).preview(TOTAL)
    assert [(c.path, c.after) for c in good.changes] == [
        *(("m.py", b"def whole():\n    return 1\n"), ("use.py", b"whole()\n"))
    ]
    assert contents(small) == SMALL
    failed = Writes(small, fails=IntelligenceError("it broke"))
    assert [p.reason for p in (await editor_of(failed).preview(TOTAL)).problems] == ["it broke"]
    assert failed.given_up, "it may go on writing"
    far = await editor_of(Writes(small, files=("m.py", "build/use.py"))).preview(TOTAL)
    assert "neither reads nor writes" in far.problems[0].reason
    nothing = await editor_of(Writes(small, files=())).preview(TOTAL)
    assert "nothing came of renaming" in nothing.problems[0].reason
    assert contents(small) == SMALL


async def test_a_trial_that_is_cancelled_is_put_back(small: Path) -> None:
    writes = Writes(small, hangs=True)
    task = asyncio.create_task(editor_of(writes).preview(TOTAL))
    await writes.wrote.wait()
    with pytest.raises(EditError, match="another process changes files"):
        await editor_of(writes).undo()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (writes.given_up, contents(small)) == (True, SMALL)


async def test_a_link_that_holds_the_name_is_not_written_through(small: Path) -> None:
    (small.parent / "outside.py").write_bytes(b"total()\n")
    (small / "link.py").symlink_to(small.parent / "outside.py")
    writes = Writes(small, files=("link.py",))
    shown = await editor_of(writes).preview(TOTAL)
    assert [p.reason for p in shown.problems] == ["link.py holds the name and is a link"]
    assert (small.parent / "outside.py").read_bytes() == b"total()\n"


async def test_a_file_whose_name_is_no_utf_8_and_that_holds_the_name_is_told_of(small: Path) -> None:
    (small / os.fsdecode(b"b\xff.py")).write_bytes(b"total()\n")
    shown = await editor_of(Writes(small)).preview(TOTAL)
    assert "is no UTF-8" in shown.problems[0].reason


KILLED = """
import asyncio, os, sys
from pathlib import Path
from tests.code.test_edit_symbols import TOTAL, Writes, editor_of

class Dies(Writes):
    async def write_rename(self, path, name_path, new_name):
        await Writes.write_rename(self, path, name_path, new_name)
        (self.root / "use.py").write_bytes(b"total()  # mine\\n" if sys.argv[2] == "mine" else b"whole()\\n")
        os.kill(os.getpid(), 9)

asyncio.run(editor_of(Dies(Path(sys.argv[1]))).preview(TOTAL))
"""


@pytest.mark.parametrize("whose", ["serena's", "mine"])
async def test_a_trial_that_is_killed_is_put_back_by_the_next_edit_and_others_changes_stay(
    whose: str, small: Path
) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED, str(small), whose], check=False, cwd=Path(__file__).parents[2])
    assert died.returncode == -signal.SIGKILL
    assert (small / "m.py").read_bytes() == b"def whole():\n    return 1\n"
    told = await editor_of(Writes(small)).recover()
    assert [line.partition(" of 2")[0] for line in told] == ["a trial of a rename"]
    left = {"use.py": b"total()  # mine\n"} if whose == "mine" else {}
    assert contents(small) == SMALL | left
    assert ("changed since and left alone: use.py" in told[0]) == (whose == "mine")


async def test_a_trial_is_in_the_audit_log(small: Path) -> None:
    audit = open_audit(small.parent / "audit.log", small.parent / "audit.key", log_queries=True, log_responses=False)
    writes = Writes(small)
    data = small.parent / "data"
    await Editor(small, data, audit=audit, intelligence=writes, renamer=writes).preview(TOTAL)  # type: ignore[arg-type]
    audit.close()
    lines = (small.parent / "audit.log").read_text().splitlines()
    assert ['"phase":"start"' in line for line in lines if "m.py" in line] == [True, False]
    assert '"error":"tried"' in lines[-1]
    assert os.fsdecode(small) in lines[-1]
