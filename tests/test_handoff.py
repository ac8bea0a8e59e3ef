"""A conversation goes from one model to another of another dialect: nothing is lost, and why is written down."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.fakes import ollama, vllm
from tests.fakes.base import Fake, FakeModel, running
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.context.compaction import SUMMARY_MARK
from turnout.context.store import SessionStore, open_store
from turnout.router import Router
from turnout.types import ChatRequest, ExecutionResult, Image, Message, Reasoning, Text, ToolCall, ToolResult, message

FIRST, SECOND = "qwen2.5-coder-32b-instruct", "llama-3.1-8b-instruct"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return open_store(tmp_path / "sessions.db")


async def opened(stack: AsyncExitStack, big: Fake, small: Fake, store: SessionStore) -> Router:
    """An Ollama with a large window, and a vLLM with a small one."""
    one = await stack.enter_async_context(running(ollama.app(big), server_header=""))
    other = await stack.enter_async_context(running(vllm.app(small)))
    custom = [
        {"name": n, "endpoint": url, "api_style": "native", "priority": p, "max_retries": 0}
        for n, url, p in (("big", one, 0), ("small", other, 5))
    ]
    config = {"custom_endpoints": custom, "discovery": {"enabled": False}, "context": {"summary_timeout": 0}}
    return await stack.enter_async_context(open_router(load_any(config), store=store))


def turns(count: int) -> tuple[Message, ...]:
    """Tool loops with reasoning, parallel calls and an answer each."""
    found: list[Message] = []
    for n in range(count):
        found.append(message("user", f"Look at file {n}."))
        calls = tuple(ToolCall(f"call-{n}-{k}", "read_file", json.dumps({"path": f"{n}-{k}.py"})) for k in range(2))
        found.append(Message("assistant", (Reasoning(f"I should read {n}."), Text("Reading."), *calls)))
        found += [Message("tool", (ToolResult(f"call-{n}-{k}", f"line of {n}-{k}\n" * 40),)) for k in range(2)]
        found.append(message("assistant", f"I changed file {n}."))
    return tuple(found)


async def ask(router: Router, *messages: Message, **fields: object) -> ExecutionResult:
    return await collect(router.route(ChatRequest(messages, session_id="s", **fields)))  # type: ignore[arg-type]


async def test_calls_results_and_reasoning_go_along_in_the_other_dialect(store: SessionStore) -> None:
    big, small = Fake([FakeModel(FIRST)]), Fake([FakeModel(SECOND, window=8192)])
    history = (message("system", "Be brief."), *turns(1), message("user", "And now?"))
    async with AsyncExitStack() as stack:
        router = await opened(stack, big, small, store)
        await ask(router, *history, model=f"{FIRST}:latest")
        await ask(router, *history, model=SECOND)
    native, chat = big.seen[0]["messages"], small.seen[0]["messages"]
    assert isinstance(native, list)
    assert isinstance(chat, list)
    assert [row["role"] for row in native] == [row["role"] for row in chat]
    call, same = native[2]["tool_calls"][1], chat[2]["tool_calls"][1]
    assert call["function"]["arguments"] == {"path": "0-1.py"} == json.loads(same["function"]["arguments"])
    assert same["id"] == "call-0-1" == chat[4]["tool_call_id"]
    assert native[4]["tool_name"] == "read_file"
    assert native[2]["thinking"] == "I should read 0."
    assert "I should read 0." in json.dumps(chat[2])


async def test_a_smaller_window_compacts_and_the_switch_is_recorded_with_its_reason(store: SessionStore) -> None:
    big, small = Fake([FakeModel(FIRST, window=32_768)]), Fake([FakeModel(SECOND, window=4096)])
    history = (message("system", "Be brief."), *turns(16), message("user", "And now?"))
    async with AsyncExitStack() as stack:
        router = await opened(stack, big, small, store)
        before = await ask(router, *history)
        big.fault = "error"
        after = await ask(router, *history, message("assistant", "Done."), message("user", "Go on."))
    assert (before.model, after.model) == (f"{FIRST}:latest", SECOND)
    assert before.notices == ()
    assert after.notices[0].code == "compacted"
    sent = small.seen[-1]["messages"]
    assert isinstance(sent, list)
    assert sent[0]["content"] == "Be brief."
    assert sent[-1]["content"] == "Go on."
    assert any(str(row["content"]).startswith(SUMMARY_MARK) for row in sent)
    called = {call["id"] for row in sent for call in row.get("tool_calls") or ()}
    assert {row["tool_call_id"] for row in sent if row["role"] == "tool"} == called
    kept = store.load("local", "s")
    assert kept is not None
    assert [model for _, model, _ in kept.model_history] == [f"{FIRST}:latest", SECOND]
    assert kept.model_history[1][2].endswith(f"{FIRST}:latest @ big did not answer")
    assert kept.active_model == SECOND


async def test_an_image_is_not_handed_to_a_model_that_cannot_see(store: SessionStore) -> None:
    seeing = Fake([FakeModel(FIRST, capabilities=("chat", "tools", "vision"))])
    blind = Fake([FakeModel(SECOND, capabilities=("chat", "tools"))])
    picture = Message("user", (Text("What is this?"), Image("image/png", "iVBORw0KGgo=")))
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running(ollama.app(seeing), server_header=""))
        other = await stack.enter_async_context(running(ollama.app(blind), server_header=""))
        custom = [
            {"name": n, "endpoint": url, "api_style": "native", "priority": p}
            for n, url, p in (("blind", other, 0), ("seeing", one, 5))
        ]
        config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
        router = await stack.enter_async_context(open_router(config, store=store))
        result = await ask(router, picture)
        later = await ask(router, picture, message("assistant", "A cat."), message("user", "Sure?"))
    assert (result.service, later.service) == ("seeing", "seeing")
    assert blind.seen == []
