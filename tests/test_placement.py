"""Conversations stay where their prefix is, queues are ours, titles push out nobody (GW-4, PRICE-2, PRICE-3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import ollama, vllm
from tests.fakes.base import Fake, FakeModel, running
from tests.servers import LlamaServer
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.gateway.app import create_app
from turnout.gateway.app import running as serving
from turnout.placement import MOST_PREFILL
from turnout.router import Router
from turnout.routing import affinity
from turnout.types import ChatRequest, ExecutionResult, Message, Tool, ToolCall, ToolResult, Usage, message

TOOLS = (Tool("ls", "lists files"),)
MODEL = "qwen2.5-coder-7b-instruct"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@asynccontextmanager
async def fleet(*fakes: Fake, module: object = vllm, **more: object) -> AsyncIterator[Router]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running(module.app(fake))) for fake in fakes]  # type: ignore[attr-defined]
        custom = [
            {"name": f"s{n}", "endpoint": url, "api_style": "native", "max_retries": 0, **more}
            for n, url in enumerate(urls)
        ]
        config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
        yield await stack.enter_async_context(open_router(config))


async def ask(router: Router, request: ChatRequest) -> ExecutionResult:
    return await collect(router.route(request))


def agent(name: str, *more: Message, tools: tuple[Tool, ...] = TOOLS, model: str = "auto") -> ChatRequest:
    messages = (message("system", "You are an agent."), message("user", f"Task {name}."), *more)
    return ChatRequest(messages, model=model, tools=tools, own_history=True)


async def test_many_conversations_spread_and_each_stays_where_it_is() -> None:
    fakes = [Fake() for _ in range(3)]
    async with fleet(*fakes, slots=4) as router:
        first = [r.service for r in await asyncio.gather(*(ask(router, agent(str(n))) for n in range(4)))]
        busy = [asyncio.create_task(ask(router, agent(f"busy {n}"))) for n in range(6)]
        more = (message("assistant", "Yes."), message("user", "Go on."))
        again = [(await ask(router, agent(str(n), *more))).service for n in range(4)]
        await asyncio.gather(*busy)
    assert again == first
    assert len(set(first)) > 1, "on one server all would stay, whoever placed them"


async def test_equal_servers_share_what_runs_at_once() -> None:
    fakes = [Fake(fault="hang") for _ in range(3)]
    async with fleet(*fakes, slots=2) as router:
        asked = [asyncio.create_task(ask(router, agent(str(n)))) for n in range(6)]
        async with asyncio.timeout(10):
            while sum(len(fake.seen) for fake in fakes) < 6:
                await asyncio.sleep(0.01)
        assert [len(fake.seen) for fake in fakes] == [2, 2, 2]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_dead_or_slow_server_keeps_no_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = [Fake(), Fake()]
    async with fleet(*fakes) as router:
        request = agent("x")
        at = (await ask(router, request)).service
        number = int(at[1])
        fakes[number].fault = "error"
        moved = (await ask(router, request)).service
        assert moved != at
        fakes[number].fault = ""
        assert (await ask(router, request)).service == moved, "it stays where its prefix is now"
        monkeypatch.setattr(affinity, "SLOW_SECONDS", -1.0)
        monkeypatch.setattr(affinity, "SLOW", 0.0)  # whatever answers now is late
        for _ in range(affinity.SLOW_ANSWERS):
            await ask(router, request)
        place = next(iter(router._placement._affinity._places.values()))
        assert place.slow >= affinity.SLOW_ANSWERS


async def test_a_much_better_model_is_worth_a_move_at_the_end_of_a_turn_only() -> None:
    strong = Fake([FakeModel("qwen2.5-coder-32b-instruct")], fault="error", faults_left=1)
    weak = Fake([FakeModel("qwen2.5-coder-1.5b-instruct")])
    call = Message("assistant", (ToolCall("c", "ls", "{}"),))
    result = Message("tool", (ToolResult("c", "a.py"),))
    async with fleet(strong, weak) as router:
        start = replace(agent("x"), model="coding")
        assert (await ask(router, start)).service == "s1"
        in_loop = replace(start, messages=(*start.messages, call, result))
        assert (await ask(router, in_loop)).service == "s1"
        next_turn = replace(in_loop, messages=(*in_loop.messages, message("assistant", "ok"), message("user", "go on")))
        assert (await ask(router, next_turn)).service == "s0"


async def test_a_title_takes_a_small_loaded_model_and_no_agents_slot() -> None:
    big = Fake([FakeModel("qwen2.5-coder-32b-instruct")])
    small = Fake([FakeModel("qwen2.5-1.5b-instruct")])
    async with fleet(big, small) as router:
        loop = replace(agent("x"), model="coding", conversation="ses_1")
        title = ChatRequest((message("user", "Write a title."),), model="auto", conversation="ses_1", own_history=True)
        alone = replace(title, conversation="ses_2")
        services = [(await ask(router, request)).service for request in (loop, title, alone)]
    assert services == ["s0", "s1", "s0"]


async def test_a_server_that_never_says_busy_is_asked_one_thing_at_a_time() -> None:
    fake = Fake([FakeModel("a")])
    running_now, most = 0, 0
    async with fleet(fake, module=ollama) as router:

        async def one(n: int) -> ExecutionResult:
            nonlocal running_now, most
            events = []
            async for event in router.route(agent(str(n), tools=())):
                if not events:
                    running_now += 1
                    most = max(most, running_now)
                events.append(event)
                await asyncio.sleep(0)
            running_now -= 1

            async def told():  # type: ignore[no-untyped-def]
                for event in events:
                    yield event

            return await collect(told())

        answers = await asyncio.gather(*(one(n) for n in range(6)))
    assert all(answer.text for answer in answers)
    assert most == 1


async def test_what_changes_with_each_request_is_no_part_of_the_prefix(llama: LlamaServer) -> None:
    """As Claude Code sends it: shown by the real server's own cache counters."""
    config = load_any({"custom_endpoints": [{"name": "real", "endpoint": llama.url}], "discovery": {"enabled": False}})
    long = "You are an agent that follows its instructions to the letter. " * 12
    async with open_router(config) as router, serving(create_app(router)) as (_, url), aiohttp.ClientSession() as http:
        cached = []
        for n in range(3):
            system = [
                {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.330; cch={n:08x};"},
                {"type": "text", "text": f"{long} Started at 2026-11-25T12:0{n}:3{n}.123Z."},
            ]
            rows = [{"role": "user", "content": "Say hi."}, {"role": "system", "content": "# Environment\nLinux"}]
            body = {"model": "smol", "max_tokens": 4, "system": system, "messages": rows}
            async with http.post(url + "/v1/messages", json=body) as reply:
                usage = (await reply.json())["usage"]
            cached.append((usage["cache_read_input_tokens"], usage["input_tokens"]))
    (_, fresh), *later = cached
    assert fresh > 100
    assert all(read > 100 and rest <= 4 for read, rest in later)


async def test_a_server_that_counts_nonsense_is_not_the_fastest_for_long() -> None:
    async with fleet(Fake()) as router:
        (candidate,) = router.pool
        placement, learned = router._placement, router.fleet.learned
        placement.learn_speed(candidate, Usage(10**11, 10**11, 1), 20.0, 60.0)
        assert learned.speed(candidate.endpoint, candidate.model).prefill <= MOST_PREFILL
        for _ in range(120):
            placement.learn_speed(candidate, Usage(2000, 300), 20.0, 60.0)
        speed = learned.speed(candidate.endpoint, candidate.model)
    assert speed.prefill == pytest.approx(100, rel=0.5)
    assert speed.decode == pytest.approx(7.5, rel=0.5)


async def test_servers_that_answer_in_turn_are_all_looked_at() -> None:
    async with fleet(*(Fake() for _ in range(4))) as router:
        learned, pool = router.fleet.learned, router.pool
        for seconds in (1.0, 20.0):
            for _ in range(120):
                for candidate in pool:
                    router._placement.learn_speed(candidate, Usage(2000, 300), seconds, 3 * seconds)
        speeds = [learned.speed(candidate.endpoint, candidate.model).prefill for candidate in pool]
    assert speeds == [pytest.approx(100, rel=0.5)] * 4
