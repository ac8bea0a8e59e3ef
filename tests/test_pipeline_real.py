"""End to end against the real llama.cpp server with real weights."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from tests.servers import LlamaServer
from turnout.api import LocalLLMRouter, collect, load_any, quick_route
from turnout.build import open_router
from turnout.context.store import open_store
from turnout.errors import NoServiceError, NoSuitableModelError, QueryFailedError, StreamBrokenError
from turnout.types import ChatRequest, FallbackLevel, Notice, Started, TextDelta, UsageReport, message

pytestmark = pytest.mark.timeout(120)


def config_for(*urls: str, audit: Path, **more: object) -> dict[str, object]:
    """Only these endpoints, most preferred first."""
    custom = [{"name": f"real{n}", "endpoint": url, "priority": n} for n, url in enumerate(urls)]
    return {
        "custom_endpoints": custom,
        "discovery": {"enabled": False},
        "security": {"audit_log_path": str(audit)},
        **more,
    }


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def audit_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_quick_route_answers_with_the_real_model(llama: LlamaServer, tmp_path: Path) -> None:
    config = config_for(llama.url, audit=tmp_path / "audit.log")
    answer = await quick_route("Write a Python function to add two numbers", config)
    assert "def" in answer
    start, end = audit_lines(tmp_path / "audit.log")
    assert (start["phase"], end["phase"]) == ("start", "end")
    assert end["success"] is True
    assert end["service"] == "real0"
    assert isinstance(end["tokens_out"], int)
    assert end["tokens_out"] > 0
    assert "add two numbers" not in (tmp_path / "audit.log").read_text()


async def test_the_stream_says_its_route_first_and_reports_usage(llama: LlamaServer, tmp_path: Path) -> None:
    async with LocalLLMRouter(None, config_for(llama.url, audit=tmp_path / "a.log")) as router:
        events = [event async for event in router.events("Say hello")]
    assert isinstance(events[0], Started)
    assert events[0].route.service == "real0"
    assert events[0].route.window == 2048
    assert events[0].route.window_source == "known"
    pieces = [event for event in events if isinstance(event, TextDelta)]
    assert len(pieces) > 1
    usage = next(event.usage for event in events if isinstance(event, UsageReport))
    assert usage.prompt_tokens > 10


async def test_an_unknown_model_is_an_error_that_names_what_there_is(llama: LlamaServer, tmp_path: Path) -> None:
    # The server itself would answer 200 with whatever it has loaded (facts/backends.md 3.1).
    async with open_router(load_any(config_for(llama.url, audit=tmp_path / "a.log"))) as router:
        request = ChatRequest((message("user", "hi"),), model="no-such-model-13b")
        with pytest.raises(NoSuitableModelError, match="no-such-model-13b") as caught:
            await collect(router.route(request))
    assert "smol" in caught.value.hint


async def test_a_real_overflow_leads_to_level_2_and_succeeds(llama_factory, tmp_path: Path) -> None:
    server = await llama_factory(n_ctx=512)
    # Rare symbols cost the model far more tokens than any estimate says, so the server refuses first.
    turns = [message("user" if n % 2 == 0 else "assistant", "∮∯∰⨌⨍⨎⨏⨐⨑⨒ " * 6 + f" turn {n}.") for n in range(6)]
    config = config_for(server.url, audit=tmp_path / "a.log", context={"preserve_recent_messages": 2})
    async with open_router(load_any(config)) as router:
        request = ChatRequest((*turns, message("user", "Say hello in one word.")), max_tokens=8)
        result = await collect(router.route(request))
    assert result.level is FallbackLevel.REDUCED_CONTEXT
    assert result.text
    assert result.attempts[0].error is not None
    assert result.attempts[0].error.code == "context_length_exceeded"
    assert any(isinstance(n, Notice) and n.code == "compacted" for n in result.notices)


async def test_a_server_killed_in_the_middle_of_a_stream_is_a_clean_error(llama_factory, tmp_path: Path) -> None:
    server = await llama_factory(n_ctx=2048)
    audit = tmp_path / "a.log"
    async with open_router(load_any(config_for(server.url, audit=audit))) as router:
        request = ChatRequest((message("user", "Count from one to two hundred in words."),), max_tokens=400)
        pieces: list[str] = []
        with pytest.raises(StreamBrokenError) as caught:
            async with aclosing(router.route(request)) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        pieces.append(event.text)
                        if len(pieces) == 3:
                            server.kill()
    assert caught.value.received.startswith("".join(pieces[:3]))
    end = audit_lines(audit)[-1]
    assert (end["phase"], end["success"], end["error"]) == ("end", False, "stream_broken")
    await server.gone()


async def test_a_second_server_takes_over_before_the_first_byte(
    llama: LlamaServer, llama_factory, tmp_path: Path
) -> None:
    first = await llama_factory(n_ctx=2048)
    async with open_router(load_any(config_for(first.url, llama.url, audit=tmp_path / "a.log"))) as router:
        first.kill()
        await first.gone()
        result = await collect(router.route(ChatRequest((message("user", "Say hello"),), max_tokens=8)))
    assert result.service == "real1"
    assert [a.service for a in result.attempts] == ["real0", "real1"]
    assert result.attempts[0].error is not None
    assert result.attempts[0].error.code == "endpoint_down"


async def test_cancelling_a_stream_frees_the_server(llama: LlamaServer, tmp_path: Path) -> None:
    audit = tmp_path / "a.log"
    async with open_router(load_any(config_for(llama.url, audit=audit))) as router:
        request = ChatRequest((message("user", "Count from one to two hundred in words."),), max_tokens=1500)
        async with aclosing(router.route(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        end = audit_lines(audit)[-1]
        assert (end["phase"], end["success"], end["error"]) == ("end", False, "cancelled")
        async with aiohttp.ClientSession() as session, asyncio.timeout(0.5):
            while await llama.busy(session):
                await asyncio.sleep(0.02)


async def test_nothing_listening_is_no_service(tmp_path: Path) -> None:
    config = config_for("http://127.0.0.1:9", audit=tmp_path / "a.log")
    with pytest.raises(NoServiceError, match="no local LLM service available") as caught:
        await quick_route("hello", config)
    assert any("127.0.0.1:9" in where for where, _ in caught.value.probed)


async def test_a_wrong_key_is_not_retried(llama_factory, tmp_path: Path) -> None:
    server = await llama_factory(n_ctx=512, api_key="right")
    config = config_for(server.url, audit=tmp_path / "a.log")
    config["custom_endpoints"][0]["key"] = "right"  # type: ignore[index]
    async with open_router(load_any(config)) as router:
        answered = await collect(router.route(ChatRequest((message("user", "hi"),), max_tokens=4)))
        assert answered.service == "real0"
    config["custom_endpoints"][0]["key"] = "wrong"  # type: ignore[index]
    async with open_router(load_any(config)) as router:
        assert [s.health for s in router.catalog.endpoints] == ["needs_key"]
        with pytest.raises((NoServiceError, QueryFailedError)):
            await collect(router.route(ChatRequest((message("user", "hi"),), max_tokens=4)))


async def test_a_loading_server_is_waited_for(llama_factory, tmp_path: Path) -> None:
    server = await llama_factory(n_ctx=512, delay_load=True)
    async with open_router(load_any(config_for(server.url, audit=tmp_path / "a.log"))) as router:
        assert [s.health for s in router.catalog.endpoints] == ["loading"]
        events = router.route(ChatRequest((message("user", "hi"),), max_tokens=4))
        first = await anext(events)
        assert isinstance(first, Notice)
        assert first.code == "loading"
        server.release()
        result = await collect(events)
    assert result.service == "real0"


async def test_a_session_survives_a_restart(llama: LlamaServer, tmp_path: Path) -> None:
    config = config_for(llama.url, audit=tmp_path / "a.log")
    async with LocalLLMRouter(None, config, session_id="s1") as router:
        first = await router.route("Say hello")
    async with LocalLLMRouter(None, config, session_id="s1") as again:
        await again.initialize()
        history = [m.text for m in again._session.messages]
    assert history == ["Say hello", first]


async def test_a_session_keeps_its_system_prompt_and_counts_what_was_sent_compacted(
    llama: LlamaServer, tmp_path: Path
) -> None:
    context = {"preserve_recent_messages": 1, "compaction_target": 0.2}
    config = config_for(llama.url, audit=tmp_path / "a.log", context=context)
    store = open_store(tmp_path / "sessions.db")
    system = message("system", "Be brief.")
    older = [message("assistant" if n % 2 else "user", f"Turn {n}. " + "word " * 300) for n in range(6)]
    counts = []
    try:
        async with open_router(load_any(config), store=store) as router:
            for history in ((), older, ()):
                asked = (system, *history, message("user", "Say hello."))
                result = await collect(router.route(ChatRequest(asked, session_id="s", max_tokens=4)))
                compacted = any(n.code == "compacted" for n in result.notices)
                session = store.load("local", "s")
                assert session is not None
                counts.append((compacted, session.compactions))
    finally:
        store.close()
    assert counts == [(False, 0), (True, 1), (False, 1)]
    assert session.system_prompt == "Be brief."
    assert len(session.messages) == 6, "what was left out of the prompt is still in the store"
