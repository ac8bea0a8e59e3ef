"""Older turns summarised by a model that is loaded anyway: in time, sticky, never by the session's only slot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.fakes import ollama, vllm
from tests.fakes.base import Fake, FakeModel, running
from tests.test_fitting import ask, talk
from turnout.api import load_any
from turnout.build import open_router
from turnout.context.compaction import SUMMARY_MARK, Form
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.decided import Decided
from turnout.router import Router
from turnout.types import ChatRequest, Message, message


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


BIG, SMALL = "qwen2.5-coder-32b-instruct", "qwen2.5-1.5b-instruct"


@asynccontextmanager
async def two(
    small: Fake | None = None, big: Fake | None = None, **context: object
) -> AsyncIterator[tuple[Router, Fake, Fake]]:
    """A large model that answers and a small one, each loaded at a server of its own."""
    big = big or Fake([FakeModel(BIG, window=4096)])
    small = small or Fake([FakeModel(SMALL, window=8192)])
    async with running(vllm.app(big)) as one, running(vllm.app(small)) as other:
        custom = [
            {"name": name, "endpoint": url, "api_style": "native"} for name, url in (("big", one), ("small", other))
        ]
        config = {"custom_endpoints": custom, "discovery": {"enabled": False}, "context": context}
        async with open_router(load_any(config)) as router:
            yield router, big, small


def summary_in(body: dict[str, object]) -> str:
    rows = body["messages"]
    assert isinstance(rows, list)
    return next((str(row["content"]) for row in rows if str(row["content"]).startswith(SUMMARY_MARK)), "")


def chats(fake: Fake) -> list[dict[str, object]]:
    return [body for body in fake.seen if body.get("stream")]


WRITTEN = f"{SUMMARY_MARK}\ndef add(a, b):\nreturn a + b"  # what every fake answers


async def test_a_smaller_loaded_model_writes_the_summary_and_it_stays(data_dir: Path) -> None:
    history = talk(6000)
    async with two() as (router, big, small):
        first = await ask(router, *history, model=f"{BIG}@big")
        assert first.notices[0].code == "compacted"
        assert "summarised by a model" in first.notices[0].text
        grown: tuple[Message, ...] = (*history, message("assistant", "Yes."), message("user", "And?"))
        await ask(router, *grown, model=f"{BIG}@big")
    one, two_ = chats(big)
    assert summary_in(one) == summary_in(two_) == WRITTEN
    assert len(chats(small)) == 1, "the second request took what was written"
    asked = json.dumps(chats(small)[0])
    assert "Turn 0." in asked
    assert chats(small)[0]["max_tokens"] == 300
    assert "summary of older messages" in (data_dir / "audit.log").read_text()


@pytest.mark.parametrize("fault", ["error", "hang", "drop", "empty_200"])
async def test_who_does_not_write_in_time_is_not_asked_again(fault: str) -> None:
    small = Fake([FakeModel(SMALL, window=8192)], fault=fault)
    async with two(small, summary_timeout=400) as (router, big, _):
        first = await ask(router, *talk(6000), model=f"{BIG}@big")
        small.fault = ""
        await ask(router, *talk(6000), model=f"{BIG}@big")
    one, again = chats(big)
    assert first.text
    assert summary_in(one) == summary_in(again)
    assert "Turn" in summary_in(one), "the first sentences of the turns"
    assert len(chats(small)) <= 1


def variants() -> Iterator[tuple[str, Fake, Fake, dict[str, object]]]:
    big = Fake([FakeModel(BIG, window=4096)])
    yield "switched off", Fake([FakeModel(SMALL)]), big, {"summary_timeout": 0}
    yield "busy", Fake([FakeModel(SMALL)], busy=1), Fake([FakeModel(BIG, window=4096)]), {}
    yield "too small a window", Fake([FakeModel(SMALL, window=512)]), Fake([FakeModel(BIG, window=4096)]), {}


@pytest.mark.parametrize(("small", "big", "context"), [v[1:] for v in variants()], ids=[v[0] for v in variants()])
async def test_without_a_writer_the_first_sentences_stand(small: Fake, big: Fake, context: dict[str, object]) -> None:
    async with two(small, big, **context) as (router, answering, writing):
        await ask(router, *talk(6000), model=f"{BIG}@big")
    assert "Turn" in summary_in(chats(answering)[0])
    assert chats(writing) == []


async def test_the_only_slot_of_the_model_that_answers_is_left_alone() -> None:
    alone = Fake([FakeModel(BIG, window=8192)], slots=1)  # large enough to write a summary
    async with running(vllm.app(alone)) as url:
        config = {
            "custom_endpoints": [{"name": "big", "endpoint": url, "api_style": "native"}],
            "discovery": {"enabled": False},
        }
        async with open_router(load_any(config)) as router:
            await ask(router, *talk(12_000))
    assert len(chats(alone)) == 1


async def test_a_summary_that_does_not_fit_gives_way_to_the_first_sentences() -> None:
    long = "x" * 1500
    async with two() as (router, big, _):
        router._fitter._summarizer.write = always(long)  # type: ignore[method-assign]
        await ask(router, *talk(6000), model=f"{BIG}@big", max_tokens=2000)
        await ask(router, *talk(6000), model=f"{BIG}@big", max_tokens=2000)
    assert summary_in(chats(big)[0]) == summary_in(chats(big)[1])


def always(text: str) -> object:
    async def write(*_: object) -> str:
        return text

    return write


async def test_a_model_that_is_not_loaded_is_not_loaded_for_it() -> None:
    small = Fake([FakeModel(SMALL, resident=False)])
    big = Fake([FakeModel(BIG, window=4096)])
    async with running(vllm.app(big)) as one, running(ollama.app(small), server_header="") as other:
        custom = [{"name": n, "endpoint": url, "api_style": "native"} for n, url in (("big", one), ("small", other))]
        async with open_router(load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})) as router:
            await ask(router, *talk(6000), model=f"{BIG}@big")
    assert small.seen == []
    assert not small.models[0].resident


async def test_what_was_decided_for_a_session_is_there_for_the_next_process(tmp_path: Path) -> None:
    big, small = Fake([FakeModel(BIG, window=4096)]), Fake([FakeModel(SMALL, window=8192)])
    history = talk(6000)
    async with running(vllm.app(big)) as one, running(vllm.app(small)) as other:
        custom = [{"name": n, "endpoint": url, "api_style": "native"} for n, url in (("big", one), ("small", other))]
        config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
        for asked in range(3):
            store = open_store(tmp_path / "sessions.db")
            async with open_router(config, store=store) as router:
                more = (message("assistant", "Yes."), message("user", f"And {asked}?")) if asked else ()
                await ask(router, *history, *more, model=f"{BIG}@big", session_id="s")
            store.close()
    # The first is decided before the session is there: only from the second on there is a place to keep it.
    first, second, third = (summary_in(body) for body in chats(big))
    assert first == second == third == WRITTEN
    assert len(chats(small)) == 2


async def test_who_leaves_while_a_session_is_recalled_has_recalled_nothing(data_dir: Path) -> None:
    request = ChatRequest((message("user", "hello"),), session_id="s")
    form = Form(text="what was said")
    with closing(open_store(data_dir / "sessions.db")) as store:
        store.append("t", "s", Exchange((StoredMessage(request.messages[0], 0, 1),)))
        await Decided(store).remember("t", request, 4096, b"key", form)
        decided = Decided(store)
        leaving = asyncio.ensure_future(decided.recall("t", request))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await decided.recall("t", request)
        assert decided.of(request, 4096) == {b"key": form}
