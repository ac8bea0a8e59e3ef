"""Servers that lie and callers that misuse: each test is a defect that an attack found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fakes import ollama
from tests.fakes.base import Fake, running
from tests.fakes.liar import CHAT, CHUNKED, DONE, SSE, Say, answer, event, lying, models
from turnout.api import LocalLLMRouter, collect, load_any, quick_route
from turnout.backends import lanes
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.context import store
from turnout.errors import QueryFailedError, StreamBrokenError, UsageError
from turnout.fleet.discovery import MAX_MODELS
from turnout.guard import network
from turnout.types import ChatRequest, ExecutionResult, Json, ToolCallDelta, message
from turnout.wire import anthropic, openai_chat
from turnout.wire.calls import Calls

ASKED = ChatRequest((message("user", "hi"),))
HONEST: Mapping[str, Say] = {"/v1/models": models("m"), CHAT: SSE + event("hello") + DONE}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def config_of(*urls: str, **more: object) -> LoadedConfig:
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    return load_any({"custom_endpoints": custom, "discovery": {"enabled": False}, **more})


async def ask(*urls: str, request: ChatRequest = ASKED, **more: object) -> ExecutionResult:
    async with open_router(config_of(*urls, **more)) as router:
        return await collect(router.route(request))


async def test_a_model_of_endless_size_does_not_end_the_search() -> None:
    row = {"name": "m", "digest": "1" * 64, "details": {"parameter_size": "9" * 400 + "B"}}
    routes: Mapping[str, Say] = {
        "/": answer(b"Ollama is running", kind="text/plain"),
        "/api/version": answer({"version": "0.33.0"}),
        "/api/status": answer({"cloud": {"disabled": True}}),
        "/api/tags": answer({"models": [row]}),
        "/api/ps": answer({"models": []}),
    }
    async with (
        lying(routes) as liar,
        running(ollama.app(Fake())) as honest,
        open_router(config_of(liar, honest)) as router,
    ):
        assert [s.health for s in router.catalog.endpoints] == ["online", "online"]
        assert router.catalog.endpoints[0].models[0].parameters == 0


async def test_a_model_list_without_end_is_cut() -> None:
    names = [f"m{n}" for n in range(MAX_MODELS + 5)]
    async with lying({"/v1/models": models(*names)}) as url, open_router(config_of(url)) as router:
        (status,) = router.catalog.endpoints
    assert [m.id for m in status.models] == names[:MAX_MODELS]
    assert [name for name, reason in status.excluded if "beyond the first" in reason] == names[MAX_MODELS:]


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_a_server_that_dies_after_its_headers_is_replaced(whole: bool) -> None:
    async def die(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await writer.drain()

    request = ASKED
    good = dict(HONEST)
    if whole:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
        request = openai_chat.parse_request(body)
        good[CHAT] = answer({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]})
    async with lying({"/v1/models": models("m"), CHAT: die}) as dying, lying(good) as other:
        result = await ask(dying, other, request=request)
    assert result.service == "s1"
    assert [a.error.code if a.error else "" for a in result.attempts] == ["stream_broken", ""]


class _Id(str):
    """An id that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        _Id.compared += 1
        return str.__eq__(self, other)


def test_a_tool_call_is_not_compared_with_all_before_it() -> None:
    rows: list[Json] = [{"id": _Id(f"c{n}"), "function": {"name": "f", "arguments": "{}"}} for n in range(1000)]
    events = Calls().events(rows)
    assert [e.call_id for e in events if isinstance(e, ToolCallDelta)] == [f"c{n}" for n in range(1000)]
    assert _Id.compared < 10_000


def test_tool_results_in_tool_results_are_refused() -> None:
    block: dict[str, object] = {"type": "text", "text": "x"}
    for _ in range(400):
        block = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": [block]}]}).encode()
    with pytest.raises(UsageError, match="holds another tool result"):
        anthropic.parse_request(body)


async def test_an_answer_that_was_complete_is_complete_though_the_connection_stays_open() -> None:
    over = asyncio.Event()

    async def hold(writer: asyncio.StreamWriter) -> None:
        writer.write(SSE + event("hello") + DONE)
        await over.wait()

    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    async with lying({"/v1/models": models("m"), CHAT: hold}) as url:
        assert (await asyncio.wait_for(ask(url), 10)).text == "hello"
        raw = await asyncio.wait_for(ask(url, request=openai_chat.parse_request(body)), 10)
        over.set()
    assert raw.finish == "stop"


@pytest.mark.parametrize("raw", [False, True])
async def test_an_answer_that_is_cut_after_its_finish_reason_is_complete(raw: bool) -> None:
    finish = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'

    async def cut(writer: asyncio.StreamWriter) -> None:
        data = event("hello") + finish
        writer.write(CHUNKED + b"%x\r\n" % len(data) + data + b"\r\n")
        await writer.drain()

    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    async with lying({"/v1/models": models("m"), CHAT: cut}) as url:
        result = await ask(url, request=openai_chat.parse_request(body) if raw else ASKED)
    assert (result.finish, result.text) == ("length", "" if raw else "hello")


async def test_an_answer_without_end_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "WHOLE_ANSWER_BYTES", 1_000_000)

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(SSE)
        while True:
            writer.write(event("x" * 10_000))
            await writer.drain()

    async with lying({"/v1/models": models("m"), CHAT: talk}) as url:
        with pytest.raises(StreamBrokenError, match="without end") as caught:
            await asyncio.wait_for(ask(url), 20)
    assert 500_000 < len(caught.value.received) < 1_100_000


@pytest.mark.parametrize("exact", [False, True])
async def test_one_servers_window_is_not_anothers(exact: bool) -> None:
    told = {"message": "the request exceeds the available context size", "n_prompt_tokens": 9000, "n_ctx": 2048}
    small: Mapping[str, Say] = {"/v1/models": models("m", window=16_000), CHAT: answer({"error": told}, status=400)}
    large: Mapping[str, Say] = {"/v1/models": models("m", window=32_000), CHAT: HONEST[CHAT]}
    query = "word " * 6000
    request = ChatRequest((message("user", query),))
    if exact:
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": query}]}).encode()
        request = openai_chat.parse_request(body)
        assert not request.compactable
    async with lying(small) as one, lying(large) as other:
        result = await ask(one, other, request=request)
    assert result.service == "s1"
    assert [n.code for n in result.notices] == ["fallback"]


async def test_a_session_that_cannot_be_kept_costs_no_answer(tmp_path: Path) -> None:
    async with lying(HONEST) as url, LocalLLMRouter(None, config_of(url), session_id="s") as router:
        assert router._store is not None
        router._store._db.execute("PRAGMA max_page_count = 1")  # the disk is full
        result = await router.execute("x" * 10_000)
    assert result.text == "hello"
    assert [n.code for n in result.notices] == ["not_recorded"]


async def test_an_empty_question_to_the_library_is_refused() -> None:
    async with lying(HONEST) as url:
        for query in ("", " \n"):
            with pytest.raises(UsageError, match="empty"):
                await quick_route(query, config_of(url))


async def test_questions_asked_at_once_open_one_router(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(store, "open_store", lambda path: opened.append(path) or store.SessionStore(path))
    async with lying(HONEST) as url:
        router = LocalLLMRouter(None, config_of(url), session_id="s")
        assert await asyncio.gather(*(router.route(f"question {n}") for n in range(4))) == ["hello"] * 4
        await router.aclose()
    assert len(opened) == 1


def test_a_router_belongs_to_one_event_loop(tmp_path: Path) -> None:
    router = LocalLLMRouter(None, load_any({"discovery": {"enabled": False}}))
    with asyncio.Runner() as first:
        first.run(router.initialize())
        with pytest.raises(UsageError, match="another event loop"), asyncio.Runner() as other:
            other.run(router.route("hi"))
        first.run(router.aclose())


async def test_a_router_that_is_closed_under_a_question_opens_nothing_more() -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def hang(_: asyncio.StreamWriter) -> None:
        asked.set()
        await over.wait()

    silent: Mapping[str, Say] = {"/v1/models": models("m"), CHAT: hang}
    async with lying(silent) as one, lying(HONEST) as other:
        router = LocalLLMRouter(None, config_of(one, other))
        asking = asyncio.create_task(router.route("hi"))
        await asked.wait()
        await router.aclose()
        with pytest.raises(QueryFailedError, match="the router was closed"):
            await asyncio.wait_for(asking, 10)
        over.set()


async def test_of_hundreds_of_models_that_fail_a_few_are_tried_and_said_in_one_line() -> None:
    refusing: Mapping[str, Say] = {
        "/v1/models": models(*(f"m{n}" for n in range(300))),
        CHAT: answer({"error": "no"}, status=400),
    }
    async with lying(refusing) as url:
        with pytest.raises(QueryFailedError, match="tried 16: .*; and 8 more ") as caught:
            await ask(url)
    assert len(caught.value.attempts) == 16
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("streamed", [False, True], ids=["events", "the client's bytes"])
@pytest.mark.parametrize(
    ("head", "piece"),
    [(SSE, b": keepalive 0/3007\n\n"), (SSE, b"\n"), (SSE, b"d"), (SSE.replace(b"200 OK", b"500 Failed"), b"sorry ")],
    ids=["comments", "empty lines", "a line without end", "an error without end"],
)
async def test_what_is_no_answer_is_no_beginning_of_one(head: bytes, piece: bytes, streamed: bool) -> None:
    async def keep_alive(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    request = openai_chat.parse_request(body.encode()) if streamed else ASKED
    limits = {"first_byte_timeout": 150, "timeout": 1000, "total_timeout": 2000, "max_retries": 0}
    async with lying({"/v1/models": models("m"), CHAT: keep_alive}) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url, **limits}], "discovery": {"enabled": False}}
        async with open_router(load_any(config)) as router:
            with pytest.raises(QueryFailedError, match="did not begin to answer within 0.15 s"):
                await collect(router.route(request))


EMPTY = b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize("streamed", [False, True], ids=["events", "the client's bytes"])
@pytest.mark.parametrize("piece", [EMPTY, b": keepalive\n\n"], ids=["empty deltas", "comments"])
async def test_what_does_not_move_an_answer_on_keeps_it_alive_for_a_while_only(
    piece: bytes, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "STILL_SILENCES", 3)
    pieces: list[float] = []

    async def stay(writer: asyncio.StreamWriter) -> None:
        writer.write(SSE + event("hello"))
        while True:
            writer.write(piece)
            await writer.drain()
            pieces.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    request = openai_chat.parse_request(body.encode()) if streamed else ASKED
    async with lying({"/v1/models": models("m"), CHAT: stay}) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url, "timeout": 300}], "discovery": {"enabled": False}}
        async with open_router(load_any(config)) as router, asyncio.timeout(20):
            with pytest.raises(StreamBrokenError, match="said nothing more within 0.9 s"):
                await collect(router.route(request))
    assert pieces[-1] - pieces[0] >= 0.9


@pytest.mark.parametrize("streamed", [False, True], ids=["events", "the client's bytes"])
async def test_a_word_now_and_then_among_what_is_empty_keeps_an_answer_alive(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a server that holds back a call's arguments, or a thought, until it is whole."""
    monkeypatch.setattr(network, "STILL_SILENCES", 3)

    async def think(writer: asyncio.StreamWriter) -> None:
        writer.write(SSE)
        for n in range(7 * 30):
            writer.write(event("x") if n % 30 == 0 else EMPTY)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(DONE)

    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    request = openai_chat.parse_request(body.encode()) if streamed else ASKED
    async with lying({"/v1/models": models("m"), CHAT: think}) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url, "timeout": 300}], "discovery": {"enabled": False}}
        async with open_router(load_any(config)) as router, asyncio.timeout(20):
            result = await collect(router.route(request))
    assert result.finish == "stop"
