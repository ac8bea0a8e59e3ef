"""Servers that lie and callers that misuse: each test is a defect that an attack found."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fakes.liar import CHAT, CHUNKED, DONE, SSE, Say, answer, event, lying, models
from tests.fakes.llm import ollama_app, running
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.errors import UsageError
from turnout.fleet.discovery import MAX_MODELS
from turnout.types import ChatRequest, ExecutionResult, ToolCallDelta, message
from turnout.wire import anthropic, openai_chat

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
    async with lying(routes) as liar, running(ollama_app()) as honest, open_router(config_of(liar, honest)) as router:
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


def test_a_tool_call_is_not_compared_with_all_before_it() -> None:
    rows = [{"id": f"c{n}", "function": {"name": "f", "arguments": "{}"}} for n in range(1000)]
    data = b"data: " + json.dumps({"choices": [{"delta": {"tool_calls": rows}}]}).encode() + b"\n\n"
    parser, steps = openai_chat.StreamParser(), 0

    def count(_: object, kind: str, __: object) -> None:
        nonlocal steps
        steps += kind == "call"

    sys.setprofile(count)
    try:
        events = parser.feed(data)
    finally:
        sys.setprofile(None)
    assert [e.call_id for e in events if isinstance(e, ToolCallDelta)] == [row["id"] for row in rows]
    assert steps < 50 * len(rows)


def test_tool_results_in_tool_results_are_refused() -> None:
    block: dict[str, object] = {"type": "text", "text": "x"}
    for _ in range(400):
        block = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": [block]}]}).encode()
    with pytest.raises(UsageError, match="holds another tool result"):
        anthropic.parse_request(body)
