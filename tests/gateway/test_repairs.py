"""What a server leaves out, or writes in its own way, as the official clients get it: complete, in either lane."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.base import ARGUMENTS, SECOND, TOOL
from tests.fakes.liar import SSE, answer
from tests.fakes.scripted import Asked, Scripted, scripted
from tests.gateway.callers import NAMES, Question, callers
from tests.gateway.test_models import gateway

MODEL = "qwen2.5-coder-7b-instruct"
TEXT = "What is the weather in Paris and London?"
Rows = list[dict[str, object]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


def call(arguments: object, **fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": TOOL, "arguments": arguments}, **fields}


def rest(arguments: str, **fields: object) -> dict[str, object]:
    return {"function": {"arguments": arguments}, **fields}


# How a stream has two calls, delta by delta, and how a whole answer has them.
FLAWS: dict[str, tuple[Sequence[Rows], Rows]] = {
    "no ids": (
        [[call("", index=0)], [rest(ARGUMENTS, index=0)], [call("", index=1)], [rest(SECOND, index=1)]],
        [call(ARGUMENTS), call(SECOND)],
    ),
    "empty ids": (
        [[call(ARGUMENTS, index=0, id="")], [call(SECOND, index=1, id="")]],
        [call(ARGUMENTS, id=""), call(SECOND, id=None)],
    ),
    "no index": (
        [[call("", id="a")], [rest(ARGUMENTS)], [call("", id="b")], [rest(SECOND)]],
        [call(ARGUMENTS, id="a"), call(SECOND, id="b")],
    ),
    "neither": ([[call(ARGUMENTS)], [call(SECOND)]], [call(ARGUMENTS), call(SECOND)]),
    "one index for both": (
        [[call(ARGUMENTS, index=0, id="a")], [call(SECOND, index=0, id="b")]],
        [call(ARGUMENTS, index=0, id="a"), call(SECOND, index=0, id="b")],
    ),
    "one id for both": (
        [[call(ARGUMENTS, index=0, id="a")], [call(SECOND, index=1, id="a")]],
        [call(ARGUMENTS, id="a"), call(SECOND, id="a")],
    ),
    "arguments that are no text": (
        [[call(json.loads(ARGUMENTS), index=0, id="a"), call(json.loads(SECOND), index=1, id="b")]],
        [call(json.loads(ARGUMENTS), id="a"), call(json.loads(SECOND), id="b")],
    ),
    "the second flawed": (
        [[call("", index=0, id="a")], [rest(ARGUMENTS, index=0)], [call(SECOND, index=1)]],
        [call(ARGUMENTS, id="a"), call(SECOND)],
    ),
    "nothing": (
        [[call("", index=0, id="a")], [rest(ARGUMENTS, index=0)], [call(SECOND, index=1, id="b")]],
        [call(ARGUMENTS, id="a"), call(SECOND, id="b")],
    ),
}


def _event(delta: dict[str, object], finish: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"
    )


@asynccontextmanager
async def answering(deltas: Sequence[Rows], whole: Rows, finish: str = "tool_calls") -> AsyncIterator[str]:
    """A gateway to a server that makes these calls."""

    async def say(asked: Asked) -> None:
        if asked.stream:
            events = [_event({"role": "assistant", "content": None}), *(_event({"tool_calls": d}) for d in deltas)]
            await asked.say(SSE + b"".join(events) + _event({}, finish) + b"data: [DONE]\n\n")
            return
        message = {"role": "assistant", "content": None, "tool_calls": whole}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 9, "completion_tokens": 3}
        await asked.say(answer({"object": "chat.completion", "choices": [choice], "usage": usage}))

    server = Scripted(script=(say,))
    async with scripted(server), gateway({"endpoint": server.url}) as url:
        yield url


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flaw", FLAWS)
async def test_calls_have_ids_indexes_and_arguments_whatever_the_server_leaves_out(flaw: str, name: str) -> None:
    wanted = [(TOOL, json.loads(ARGUMENTS)), (TOOL, json.loads(SECOND))]
    async with answering(*FLAWS[flaw]) as url, callers(url) as clients:
        for stream in (True, False):
            heard = await clients[name].ask(Question(MODEL, TEXT, tools=True, stream=stream))
            assert [(made.name, made.arguments) for made in heard.calls] == wanted, (flaw, stream)
            if name != "Ollama chat":
                assert len({made.id for made in heard.calls} - {""}) == 2, (flaw, stream)


async def test_a_stream_without_a_flaw_passes_as_it_was_written() -> None:
    deltas, whole = FLAWS["nothing"]
    async with answering(deltas, whole) as url, aiohttp.ClientSession() as session:
        body = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "stream": True}
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            data = await reply.read()
    assert all(_event({"tool_calls": delta}) in data for delta in deltas)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "OpenAI chat"])
async def test_where_a_server_tells_no_usage_it_is_estimated(name: str) -> None:
    """Claude Code and Codex know by it how full the window is; what is passed on in OpenAI's bytes is left as it is."""
    server = Scripted()
    async with scripted(server), gateway({"endpoint": server.url}) as url, callers(url) as clients:
        for stream in (True, False):
            heard = await clients[name].ask(Question(MODEL, "word " * 500, stream=stream))
            assert 400 < heard.prompt_tokens < 1100
            assert 3 < heard.answer_tokens < 30
