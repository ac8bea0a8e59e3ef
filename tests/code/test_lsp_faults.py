"""Language servers that crash, hang, send garbage or want to write (``tests/fakes/language_server.py``)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from turnout.code.intelligence import Ability, IntelligenceError, NotSupportedError
from turnout.code.lsp import MAX_STARTS, LanguageServer, Limits
from turnout.code.lsp_servers import LANGUAGES, Server
from turnout.types import Position

SCRIPT = str(Path(__file__).parents[1] / "fakes" / "language_server.py")
TEXT = "def total(): ...\n"
START = Position(0, 4)
Make = Callable[..., LanguageServer]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[LanguageServer] = []
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a.py").write_text(TEXT)

    def begin(what: str, limits: Limits | None = None) -> LanguageServer:
        command = (sys.executable, SCRIPT, what, str(tmp_path / "told.jsonl"))
        patient = limits or Limits(start=30, answer=30, references=30, hung=30)
        made.append(LanguageServer(Server("scripted", command), LANGUAGES["python"], tmp_path / "w", patient))
        return made[-1]

    yield begin
    for one in made:
        await one.aclose()


def told(tmp_path: Path) -> list[dict[str, object]]:
    path = tmp_path / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_good_one(make: Make, tmp_path: Path) -> None:
    good = make("ok")
    assert Ability.WORKSPACE_SYMBOLS in good.abilities, "before it has started, what servers usually can"
    assert await good.hover("a.py", START) == "int"
    assert Ability.WORKSPACE_SYMBOLS not in good.abilities
    with pytest.raises(NotSupportedError, match="workspace_symbols"):
        await good.workspace_symbols("x")
    await good.aclose()
    methods = [str(m["method"]) for m in told(tmp_path) if m["method"] != "workspace/didChangeWatchedFiles"]
    assert methods[:5] == ["initialize", "initialized", "textDocument/didOpen", "textDocument/hover", "shutdown"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("crash", "scripted ended: panicked"),
        ("garbage", "no message"),
        ("binary", "no message"),
        ("short", "no message"),
        ("long", "no message and was ended: the length 33000000"),
    ],
)
async def test_one_that_breaks_is_ended_and_started_again_so_often(make: Make, what: str, says: str) -> None:
    broken = make(what)
    seen = set()
    for _ in range(MAX_STARTS):
        assert [s.name_path for s in await broken.outline("a.py")] == ["total"]
        seen.add(broken.pid)
        with pytest.raises(IntelligenceError, match=says):
            await broken.hover("a.py", START)
    assert len(seen) == MAX_STARTS
    with pytest.raises(IntelligenceError, match="not started again"):
        await broken.hover("a.py", START)


@pytest.mark.parametrize(("what", "says"), [("wrong type", "protocol does not have"), ("refused", "refused")])
async def test_a_bad_answer_is_an_error_and_the_server_goes_on(make: Make, what: str, says: str) -> None:
    bad = make(what)
    with pytest.raises(IntelligenceError, match=says):
        await bad.hover("a.py", START)
    pid = bad.pid
    assert [s.name_path for s in await bad.outline("a.py")] == ["total"]
    assert bad.pid == pid


async def test_an_ability_that_it_claimed_and_does_not_have(make: Make) -> None:
    with pytest.raises(NotSupportedError):
        await make("unknown").hover("a.py", START)


async def test_one_that_hangs_is_given_up_in_time_ended_and_started_again(make: Make) -> None:
    hung = make("hang", Limits(start=30, answer=0.2, references=0.2, hung=0.2))
    await hung.warm_up()
    pid = hung.pid
    with pytest.raises(IntelligenceError, match=r"did not answer textDocument/hover within 0\.2 s"):
        await hung.hover("a.py", START)
    await _ended(pid)
    relaxed = Limits(start=30, answer=30, references=30, hung=30)
    hung._limits = relaxed
    assert [s.name_path for s in await hung.outline("a.py")] == ["total"]
    assert hung.pid not in (0, pid)


async def test_a_question_that_is_given_up_is_cancelled_at_the_server_which_lives_on(
    make: Make, tmp_path: Path
) -> None:
    silent = make("silent", Limits(start=30, answer=30, references=30, hung=30))
    await silent.warm_up()
    asked = asyncio.create_task(silent.hover("a.py", START))
    while not any(m["method"] == "textDocument/hover" for m in told(tmp_path)):
        await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.wait([asked])
    pid = silent.pid
    assert await silent.outline("a.py")
    hover = next(m for m in told(tmp_path) if m["method"] == "textDocument/hover")
    assert [m["params"] for m in told(tmp_path) if m["method"] == "$/cancelRequest"] == [{"id": hover["id"]}]
    assert silent.pid == pid


async def test_an_endless_answer_is_given_up_and_fills_no_memory(make: Make) -> None:
    endless = make("endless", Limits(start=30, answer=1.0, references=1.0, hung=0.1))
    await endless.warm_up()
    pid = endless.pid
    with pytest.raises(IntelligenceError):
        await endless.hover("a.py", START)
    await _ended(pid)


async def test_a_slow_start_goes_on_when_who_waited_has_left(make: Make, tmp_path: Path) -> None:
    slow = make("slow")
    asked = asyncio.create_task(slow.hover("a.py", START))
    while not told(tmp_path):
        await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.wait([asked])
    (tmp_path / "told.go").touch()
    assert await slow.hover("a.py", START) == "int"
    assert [m["method"] for m in told(tmp_path)].count("initialize") == 1


async def test_who_asks_while_it_starts_waits_until_it_has(make: Make, tmp_path: Path) -> None:
    slow = make("slow")
    first = asyncio.create_task(slow.hover("a.py", START))
    while not told(tmp_path):
        await asyncio.sleep(0.01)
    second = asyncio.create_task(slow.outline("a.py"))
    await asyncio.sleep(0)
    (tmp_path / "told.go").touch()
    assert await first == "int"
    assert [s.name_path for s in await second] == ["total"]
    assert [m["method"] for m in told(tmp_path)][:2] == ["initialize", "initialized"]


async def test_one_that_never_starts_is_an_error_in_time(make: Make) -> None:
    slow = make("slow", Limits(start=0.2, answer=30, references=30, hung=30))
    with pytest.raises(IntelligenceError, match="did not answer initialize"):
        await slow.hover("a.py", START)
    with pytest.raises(IntelligenceError, match="UTF-16"):
        await make("utf-8").hover("a.py", START)
    absent = LanguageServer(Server("absent", ("/no/such/program",)), LANGUAGES["python"], Path(SCRIPT).parent)
    with pytest.raises(IntelligenceError, match="cannot be started"):
        await absent.hover("language_server.py", START)


async def test_what_it_wants_written_is_not_written(make: Make, tmp_path: Path) -> None:
    assert await make("writes").hover("a.py", START) == "int"
    assert (tmp_path / "w" / "a.py").read_text() == TEXT
    replies = {str(m["id"]): m for m in told(tmp_path) if "method" not in m}
    assert replies["w"]["result"] == {"applied": False, "failureReason": "this client writes nothing"}
    assert replies["c"]["result"] == [None, {}]
    assert "error" in replies["u"]


@pytest.mark.parametrize(("what", "says"), [("ok", "not the workspace's"), ("moves", "create, move or delete")])
async def test_a_rename_that_reaches_too_far_is_refused(make: Make, what: str, says: str) -> None:
    with pytest.raises(IntelligenceError, match=says):
        await make(what).rename("a.py", START, "sum_up")


async def _ended(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.01)
