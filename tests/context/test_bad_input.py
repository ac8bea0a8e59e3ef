"""What sessions must survive: ids that are paths, a clock that jumps, half characters, two processes that migrate."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes import llamacpp
from tests.fakes.base import Fake, FakeModel, running
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.cli.output import print_json
from turnout.cli.session import _fields, _line_fields, markdown
from turnout.config import LoadedConfig
from turnout.context import store as module
from turnout.context.compaction import SUMMARY_MARK
from turnout.context.store import Exchange, SessionStore, StoredMessage, open_store
from turnout.errors import StorageError, UsageError
from turnout.router import Router
from turnout.session import Session
from turnout.types import ChatRequest, message


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def config_of(url: str) -> LoadedConfig:
    return load_any({"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}})


@asynccontextmanager
async def routed(fake: Fake, path: Path) -> AsyncIterator[tuple[Router, SessionStore]]:
    store = open_store(path)
    try:
        async with running(llamacpp.app(fake), server_header="llama.cpp") as url:
            async with open_router(config_of(url), store=store) as router:
                yield router, store
    finally:
        store.close()


@pytest.mark.parametrize("name", ["../other", "a/b", "..\\x", "C:x", "\ud800", "a\n", "x" * 129])
async def test_a_session_id_that_is_no_name_is_refused_before_a_model_is_asked(tmp_path: Path, name: str) -> None:
    fake = Fake()
    async with routed(fake, tmp_path / "s.db") as (router, _):
        with pytest.raises(UsageError, match="session id"):
            await collect(router.route(ChatRequest((message("user", "hi"),), session_id=name)))
    assert fake.seen == []


async def test_the_library_makes_no_file_outside_for_a_session_id_that_is_a_path(data_dir: Path) -> None:
    async with running(llamacpp.app(Fake()), server_header="llama.cpp") as url:
        with pytest.raises(UsageError, match="session id"):
            await LocalLLMRouter(None, config_of(url), session_id="../../out").route("hi")
    assert {p.name for p in data_dir.parent.iterdir()} == {"data"}


async def test_half_characters_go_through_compaction_store_and_server(tmp_path: Path) -> None:
    fake = Fake([FakeModel(window=1024)])
    older = [message("assistant" if n % 2 else "user", f"{n} \udfff. " + "word " * 100) for n in range(20)]
    asked = (message("system", "sys \ud800"), *older, message("user", "hi \ud83d"))
    async with routed(fake, tmp_path / "s.db") as (router, store):
        result = await collect(router.route(ChatRequest(asked, session_id="s", max_tokens=50)))
        session = store.load("local", "s")
    assert [n.code for n in result.notices] == ["compacted"]
    system, summary, *_, last = fake.seen[0]["messages"]  # type: ignore[misc]
    assert (system["content"], last["content"]) == ("sys ?", "hi ?")
    assert summary["content"].startswith(f"{SUMMARY_MARK}\n- User: 0 ?.")
    assert session is not None
    assert session.messages[0].message.text == "hi \ud83d"


def said(text: str) -> Exchange:
    return Exchange((StoredMessage(message("user", text), 1.5, 1),), "m", "r")


HOUR, IN_1970, IN_2100 = 3600.0, 0.0, 4_102_444_800.0


def test_a_clock_that_jumps_changes_no_order_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_764_000_000.0
    path, told = tmp_path / "s.db", list[str]()
    for number, at in enumerate((now, now - HOUR, IN_1970, -5.0, IN_2100, now, now + HOUR)):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda at=at: at))
        store = open_store(path)
        store.append("t", "s", said(f"m{number}"))
        told.append(f"m{number}")
        session = store.load("t", "s")
        assert session is not None
        assert [m.message.text for m in session.messages] == told
        assert [(line.id, line.updated) for line in store.list_sessions("t")] == [("s", session.updated)]
        store.close()
    assert (session.created, session.updated) == (now, now + HOUR)


# Opens the store when it is told to, and adds one message.
OPENER = """
import sys
from pathlib import Path
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.types import message
sys.stdin.readline()
store = open_store(Path(sys.argv[1]))
store.append("t", "s", Exchange((StoredMessage(message("user", sys.argv[2]), 0, 1),)))
"""


@pytest.mark.parametrize("others", [False, True], ids=["nobody", "another process"])
async def test_a_store_that_is_removed_while_it_is_open_is_begun_anew(tmp_path: Path, others: bool) -> None:
    path = tmp_path / "s.db"
    with closing(open_store(path)) as store:
        session = Session("s", store)
        store.append("local", "s", said("before"))
        path.unlink()
        if others:
            another = open_store(path)
            another.append("local", "s", said("by another"))
        store.append("local", "s", said("after"))
        if others:
            another.append("local", "s", said("by another"))
            another.close()
        await session.refresh()
        seen = [m.text for m in session.messages]
    assert seen == (["by another", "after", "by another"] if others else ["after"])
    with closing(open_store(path)) as store:
        found = store.load("local", "s")
        assert found is not None
        assert [m.message.text for m in found.messages] == seen


MESSAGE = "UPDATE messages SET {} WHERE place = 0 AND session = 'edited'"
EDITED = [
    *(MESSAGE.format(f"body = '{body}'") for body in (
        "", "[]", '{"role":"user","parts":"abc","extras":{}}', '{"role":"user","parts":[5],"extras":{}}',
        '{"role":5,"parts":[],"extras":{}}', '{"role":"user","parts":[{"kind":"text","text":5}],"extras":{}}',
        '{"role":"user","parts":[],"extras":5}', "[" * 100_000,
    )),
    *(MESSAGE.format(f"metadata = '{text}'") for text in ("", "[]", "5", "[" * 100_000)),
    MESSAGE.format("body = 5"), MESSAGE.format("time = 'abc'"), MESSAGE.format("time = 1e300"),
    MESSAGE.format("tokens = 'abc'"), MESSAGE.format("tokens = 1e300"),
    *(f"UPDATE sessions SET compact_at = '{marks}'" for marks in ("", "5", '["x"]', "[null, [1]]", '{"a":1}')),
    "UPDATE sessions SET created = 'x', updated = 'x', compactions = 'x', active_model = x'ff', system_prompt = x'ff'",
    "UPDATE switches SET time = 'x', model = x'ff', reason = x'ff'",
    "INSERT OR REPLACE INTO upkeep VALUES (1, 'x', 'y')",
    "INSERT OR REPLACE INTO summaries SELECT tenant, id, x'ff', x'ff', 'x' FROM sessions",
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITED, ids=[edit[:70] for edit in EDITED])
async def test_a_row_that_was_edited_by_hand_spoils_no_more_than_its_session(tmp_path: Path, edit: str) -> None:
    def store_of() -> SessionStore:
        with sqlite3.connect(path) as db:
            db.execute(edit)
        return open_store(path)

    path = tmp_path / "s.db"
    with closing(open_store(path)) as store:
        for name in ("edited", "edited", "other"):
            store.append("local", name, replace(said("q"), model="m", reason="why"))
    with closing(store_of()) as store:
        store.prune(90)
        store.summaries("local", "edited")
        print_json([_line_fields(line) for line in store.list_sessions("local")])
        with suppress(StorageError):  # which names the session and says what to do
            found = store.load("local", "edited")
            assert found is not None
            print_json(_fields(found))
            assert markdown(found, None)
        other = store.load("local", "other")
        assert other is not None
        assert [m.message.text for m in other.messages] == ["q"]
    for each in (Session.undo, Session.compact):
        with closing(store_of()) as store, suppress(StorageError):
            await each(Session("edited", store))
    with closing(store_of()) as store:
        assert store.delete("local", "edited")


def test_processes_that_migrate_an_old_store_at_once_keep_what_is_in_it(tmp_path: Path) -> None:
    for turn in range(3):
        path = tmp_path / str(turn) / "sessions.db"
        path.parent.mkdir()
        old = sqlite3.connect(path, isolation_level=None)
        old.executescript(module._MIGRATIONS[0])
        old.execute("PRAGMA user_version = 1")
        old.execute("INSERT INTO sessions (tenant, id, created, updated) VALUES ('t', 's', 1, 2)")
        body = b'{"role":"user","parts":[{"kind":"text","text":"old","extras":{}}],"extras":{}}'
        old.executemany("INSERT INTO messages VALUES ('t', 's', ?, 1.5, 7, ?)", [(n, body) for n in range(500)])
        old.close()
        command = [sys.executable, "-c", OPENER, str(path)]
        children = [subprocess.Popen([*command, f"new{n}"], stdin=subprocess.PIPE) for n in range(4)]
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        assert [child.wait() for child in children] == [0] * 4
        store = open_store(path)
        session = store.load("t", "s")
        store.close()
        assert session is not None
        texts = [m.message.text for m in session.messages]
        assert texts[:500] == ["old"] * 500
        assert sorted(texts[500:]) == ["new0", "new1", "new2", "new3"]
        assert not list(path.parent.glob("*corrupt*"))
