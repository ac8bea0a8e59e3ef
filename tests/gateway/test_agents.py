"""Who calls, at the gateway: it is logged, and what is configured for that agent is what it gets."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.access import AccessLog
from turnout.gateway.app import create_app, running
from turnout.run import in_one_piece
from turnout.types import ChatRequest, Event, Finish, Notice, RawChunk, TextDelta, message

SYSTEM = {"role": "system", "content": "Act as an expert software developer.\nTake requests for changes."}
QUESTION = {"role": "user", "content": "Write a function that adds two numbers"}
AIDER = [SYSTEM, QUESTION]
# Best at coding first. The owner has aider prefer gpt, of which there is none here.
MODELS = ("qwen2.5-coder-32b-instruct", "deepseek-coder-v2", "smollm2-135m")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CLAUDECODE", "1")  # whoever started the gateway is not who asks it
    return tmp_path


@asynccontextmanager
async def gateway(
    *models: str, access: AccessLog | None = None, **config: object
) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(openai_app(models or MODELS)))
        custom = [{"name": "s", "endpoint": server, "max_retries": 0}]
        loaded = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}, **config})
        router = await stack.enter_async_context(open_router(loaded))
        _, url = await stack.enter_async_context(running(create_app(router, access=access)))
        yield await stack.enter_async_context(aiohttp.ClientSession()), url


async def model_for(session: aiohttp.ClientSession, url: str, messages: object, **headers: str) -> tuple[str, str]:
    body = {"model": "auto", "messages": messages}
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as reply:
        assert reply.status == 200
        await reply.read()
        return reply.headers["x-turnout-model"], reply.headers["x-turnout-reason"]


BEST = {"policy": "best"}  # by score alone


async def test_the_logs_name_the_agent(data: Path) -> None:
    lines = io.StringIO()
    access = AccessLog(lines)
    async with gateway(access=access) as (session, url):
        await model_for(session, url, AIDER)
        await model_for(session, url, [QUESTION], **{"User-Agent": "opencode/1.18.33 runtime/bun/1.3.14"})
        await model_for(session, url, [QUESTION], **{"User-Agent": "python/x"})
        body = {"model": "auto", "max_tokens": 9, "messages": [QUESTION]}
        body["system"] = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2;"}]
        body["system"] += [{"type": "text", "text": "You are Claude Code, Anthropic's official CLI"}]  # type: ignore[operator]
        async with session.post(f"{url}/v1/messages", json=body) as reply:
            assert reply.status == 200
        body = {"model": "auto", "input": "hi", "instructions": "You are a coding agent running in the Codex CLI"}
        async with session.post(f"{url}/v1/responses", json=body) as reply:
            assert reply.status == 200
    access.close()
    names = ["aider", "opencode", "", "claude-code", "codex"]
    assert [json.loads(line).get("agent", "") for line in lines.getvalue().splitlines()] == names
    records = [json.loads(line) for line in (data / "audit.log").read_text().splitlines()]
    for phase in ("start", "end"):
        assert [r["agent"] for r in records if r["phase"] == phase] == [name or None for name in names]


async def test_an_agents_model_goes_first_and_a_family_counts_more() -> None:
    async with gateway(routing=BEST) as (session, url):
        best, why = await model_for(session, url, AIDER)
        assert best == MODELS[0]
    async with gateway(routing=BEST, agents={"aider": {"default_model_preference": "smollm2-135m"}}) as (session, url):
        assert await model_for(session, url, AIDER) == ("smollm2-135m", "the model that the calling agent prefers")
        assert await model_for(session, url, [QUESTION]) == (best, why)
    async with gateway(routing=BEST, agents={"aider": {"default_model_preference": "deepseek"}}) as (session, url):
        model, why = await model_for(session, url, AIDER)
        assert model == MODELS[1]
        assert "the agent prefers deepseek" in why
    # What is far worse is not taken for its name.
    async with gateway(routing=BEST, agents={"aider": {"default_model_preference": "smollm"}}) as (session, url):
        assert (await model_for(session, url, AIDER))[0] == best


async def test_a_preference_goes_before_lists_and_yields_to_an_exact_model() -> None:
    lists = {"coding": {"primary_models": [MODELS[1]], "min_context": 512}}
    agents = {"qwen-cli": {"default_model_preference": "smollm2-135m"}}
    qwen = {"User-Agent": "QwenCode/0.24.4 (linux; x64)"}
    async with gateway(task_routing=lists, agents=agents) as (session, url):
        assert (await model_for(session, url, AIDER))[0] == MODELS[1]
        assert (await model_for(session, url, [QUESTION], **qwen))[0] == "smollm2-135m"
        body = {"model": MODELS[0], "messages": [QUESTION]}
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=qwen) as reply:
            assert reply.headers["x-turnout-model"] == MODELS[0]


async def test_an_agent_that_reads_no_streams_gets_one_piece() -> None:
    async def pieces(session: aiohttp.ClientSession, url: str) -> int:
        body = {"model": MODELS[0], "messages": [QUESTION], "stream": True, "max_tokens": 50}
        async with session.post(f"{url}/v1/messages", json=body, headers={"User-Agent": "Cursor/1.0"}) as reply:
            text = await reply.text()
        assert text.count("event: message_stop") == 1
        return text.count("text_delta")

    async with gateway() as (session, url):
        assert await pieces(session, url) > 1
    async with gateway(agents={"cursor": {"supports_streaming": False}}) as (session, url):
        assert await pieces(session, url) == 1


async def test_code_context_is_written_as_the_agent_wants_it(tmp_path: Path) -> None:
    workspace = tmp_path / "work"
    workspace.mkdir()
    (workspace / "shop.py").write_text("def total_of_cart(cart):\n    return sum(cart)\n")
    app = openai_app(MODELS)
    async with serving(app) as server:
        loaded = load_any({"custom_endpoints": [{"name": "s", "endpoint": server}], "discovery": {"enabled": False}})
        async with open_router(loaded) as router:
            for agent, sign in (("aider", "\n## "), ("cursor", "</definition>"), ("qwen-code", "\n```\n")):
                asked = message("user", "Explain total_of_cart in shop.py")
                request = ChatRequest(messages=(asked,), workspace=str(workspace), agent=agent)
                async with aclosing(router.route(request)) as events:
                    assert [event async for event in events]
                sent = app.state.fake.seen[-1]["messages"][-1]["content"]
                assert "return sum(cart)" in sent
                assert sign in sent


async def test_nothing_of_one_piece_comes_before_the_end() -> None:
    ended = False

    async def made() -> AsyncGenerator[Event, None]:
        nonlocal ended
        yield Notice("loading", "x")
        for text in ("a", "b"):
            yield TextDelta(text)
        for data in (b"c", b"d"):
            yield RawChunk(data)
        yield Finish("stop")
        ended = True

    seen = [(event, ended) async for event in in_one_piece(made())]
    assert seen == [
        (Notice("loading", "x"), False),
        (TextDelta("ab"), True),
        (RawChunk(b"cd"), True),
        (Finish("stop"), True),
    ]
