"""A conversation that several processes continue, and what of it would be sent (SPEC CTX-2, CTX-4)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from tests.fakes.base import running
from tests.fakes.llm import WORDS, openai_app
from turnout.api import LocalLLMRouter
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.errors import StorageError
from turnout.run import Run
from turnout.session import Session, new_session_id
from turnout.types import ChatRequest, Event, Principal, TextDelta, message

ANSWER = "".join(WORDS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def config_for(url: str, **more: object) -> dict[str, object]:
    return {"custom_endpoints": [{"name": "fake0", "endpoint": url}], "discovery": {"enabled": False}, **more}


def users(body: dict[str, object]) -> list[str]:
    return [m["content"] for m in body["messages"] if m["role"] == "user"]  # type: ignore[attr-defined]


async def test_two_routers_that_continue_one_session_read_each_other() -> None:
    app = openai_app()
    async with running(app) as url:
        config = config_for(url)
        async with LocalLLMRouter(None, config, "s") as one, LocalLLMRouter(None, config, "s") as two:
            await one.route("a")
            await two.route("b")
            await two.route("c")
            await one.route("d")
            await asyncio.gather(one.route("e"), two.route("f"), one.route("g"))
            await one.route("h")
    seen = [users(body) for body in app.state.fake.seen]
    assert seen[:4] == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    assert sorted(seen[7]) == list("abcdefgh")
    assert seen[7][-1] == "h"
    assert len(app.state.fake.seen[7]["messages"]) == 1 + 2 * 7 + 1


async def test_an_answer_that_is_cut_short_leaves_nothing_in_the_conversation(tmp_path: Path) -> None:
    app = openai_app()
    async with running(app) as url:
        async with LocalLLMRouter(None, config_for(url), "s") as router:
            await router.route("a")
            app.state.fake.fault = "stall"
            async with aclosing(router.stream("b")) as pieces:
                assert await anext(pieces)
            app.state.fake.fault = ""
            await router.route("c")
    assert users(app.state.fake.seen[2]) == ["a", "c"]


async def test_a_turn_that_is_cut_short_once_it_was_kept_is_read_from_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "sessions.db")

    class CutShort:
        """A router whose caller leaves while the exchange is written."""

        def begin(self, request: ChatRequest, principal: Principal) -> Run:
            return Run(request, principal, "a", "1")

        async def route(self, request: ChatRequest, principal: Principal, run: Run) -> AsyncGenerator[Event, None]:
            yield TextDelta("x")
            both = (request.messages[-1], message("assistant", "x"))
            store.append(principal.id, request.session_id, Exchange(tuple(StoredMessage(m, 0, 1) for m in both)))
            raise asyncio.CancelledError

    session = Session("s", store)
    with pytest.raises(asyncio.CancelledError):
        async for _ in session.events(CutShort(), ChatRequest((message("user", "a"),))):  # type: ignore[arg-type]
            pass
    await session.refresh()
    assert [m.text for m in session.messages] == ["a", "x"]
    store.close()


async def test_an_exchange_that_the_disk_refuses_stays_in_this_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    app = openai_app()
    async with running(app) as url:
        async with LocalLLMRouter(None, config_for(url), "s") as router:
            await router.route("a")
            store = router._store
            assert store is not None

            def full(*_: object) -> None:
                raise StorageError("the disk is full")

            with monkeypatch.context() as patched:
                patched.setattr(store, "append", full)
                result = await router.execute("b")
            assert [n.code for n in result.notices] == ["not_recorded"]
            await router.route("c")
            assert users(app.state.fake.seen[2]) == ["a", "b", "c"]


async def test_undo_without_a_place_on_the_disk_takes_back_what_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    app = openai_app()
    async with running(app) as url:
        async with LocalLLMRouter(None, config_for(url), "s") as router:
            await router.route("a")
            store, session = router._store, router._session
            assert store is not None

            def full(*_: object) -> None:
                raise StorageError("the disk is full")

            with monkeypatch.context() as patched:
                patched.setattr(store, "append", full)
                await router.route("b")
            assert await session.undo() == "b"
            kept = store.load("local", "s")
            assert kept is not None
            assert [m.message.text for m in kept.messages] == ["a", ANSWER]
            assert await session.undo() == "a"
            assert await session.undo() is None
            assert session.messages == ()


@pytest.mark.parametrize("change", ["undo", "mark_compact"])
async def test_a_change_that_is_cut_short_and_done_all_the_same_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with closing(open_store(tmp_path / "s.db")) as store:
        asked = (message("user", "a"), message("assistant", "b"))
        store.append("local", "s", Exchange(tuple(StoredMessage(m, 1.0, 1) for m in asked), "m", "r"))
        session = Session("s", store)
        await session.refresh()
        begun, done, usual = asyncio.Event(), threading.Event(), getattr(store, change)
        loop = asyncio.get_running_loop()

        def late(*key: str) -> bool:
            loop.call_soon_threadsafe(begun.set)
            done.wait(10)
            return bool(usual(*key))

        monkeypatch.setattr(store, change, late)
        changing = asyncio.create_task(session.undo() if change == "undo" else session.compact())
        await begun.wait()
        changing.cancel()
        done.set()
        with pytest.raises(asyncio.CancelledError):
            await changing
        while (kept := await asyncio.to_thread(store.load, "local", "s")) and kept.messages and not kept.compact_at:
            await asyncio.sleep(0)
        await session.refresh()
    assert (session.messages, session.compact_at) == (((), ()) if change == "undo" else (asked, (2,)))


async def test_nothing_is_stored_when_nothing_is_to_be(tmp_path: Path) -> None:
    app = openai_app()
    async with running(app) as url:
        async with LocalLLMRouter(None, config_for(url, sessions={"store": False}), "s") as router:
            await router.route("a")
            await router.route("b")
    assert users(app.state.fake.seen[1]) == ["a", "b"]
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {
        "audit.log",
        "audit.key",
        "learned.json",
        "decisions.jsonl",
        "signing",
    }


async def test_what_was_asked_to_be_compacted_goes_along_with_the_next_request(tmp_path: Path) -> None:
    store = open_store(tmp_path / "sessions.db")
    for kept in (None, store):
        session = Session("s", kept)
        assert not await session.compact()
        app = openai_app()
        async with running(app) as url, LocalLLMRouter(None, config_for(url)) as router:
            assert router._router is not None
            router._router._store = kept
            for question in ("a", "b"):
                async with aclosing(session.events(router._router, ChatRequest((message("user", question),)))) as es:
                    assert [e async for e in es]
                assert await session.compact()
        request = session.continued(ChatRequest((message("system", "x"), message("user", "next"))))
        assert request.compact_at == (2, 4)
        assert request.session_id == "s"
        assert [m.text for m in request.messages] == ["x", "a", ANSWER, "b", ANSWER, "next"]
    again = Session("s", store)
    await again.refresh()
    assert again.compact_at == (2, 4)
    store.close()


def test_new_names_are_plain_and_differ() -> None:
    from turnout.context.store import check_session_id

    made = {new_session_id() for _ in range(20)}
    assert len(made) > 15
    for name in made:
        check_session_id(name)
