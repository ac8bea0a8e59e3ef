"""Any server of the OpenAI protocol, as a real one with an engine of its own was recorded: dasllama."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.recordings import replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.base import Identity, Inspection
from turnout.backends.lanes import event_lane, raw_lane
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import BackendError, ContextOverflowError, RequestRefusedError, UnknownModelError
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import Reply, open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Event,
    Finish,
    Health,
    Model,
    RawBody,
    RawChunk,
    TextDelta,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
    WireFormat,
    message,
)

SERVER = ("dasllama", "0.6.6", "ready")
BACKEND = BY_KIND["openai"]
BOX = Endpoint("box", "openai", "http://127.0.0.1:1")
MODEL = Model("smollm2-135m-q8_0.gguf")
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)
WEATHER = Tool(
    "weather",
    "The weather in a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def test_it_is_known_by_its_model_list_alone() -> None:
    assert identify(replies(*SERVER)) == Identity("openai", "GET /v1/models is an OpenAI model list")


@pytest.mark.parametrize(
    "answer",
    [Reply(200, {}, b"<!doctype html>"), Reply(200, {}, b'{"error":"Unexpected endpoint"}'), Reply(403, {}, b"")],
)
def test_a_status_alone_proves_nothing(answer: Reply) -> None:
    assert identify({"/": answer, "/v1/models": answer}) is None


def test_a_refusal_in_json_is_a_server_that_wants_a_key() -> None:
    found = identify({"/v1/models": Reply(401, {}, b'{"error":"Unauthorized"}')})
    assert found == Identity("openai", "GET /v1/models answers 401 in JSON")


async def test_what_it_does_not_tell_is_left_open() -> None:
    async with replaying(*SERVER) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        found = await BACKEND.inspect(client, replace(BOX, url=url), 5.0)
        status = await look(client, Target(Endpoint("found", "", url)), RouterConfig())
    assert found == Inspection(Health.ONLINE, "answers", (MODEL,))
    assert (MODEL.window, MODEL.resident, MODEL.capabilities) == (0, None, frozenset())
    assert (status.endpoint.kind, status.models) == ("openai", (MODEL,))


@pytest.mark.parametrize("field", ["max_model_len", "context_length", "context_window", "max_context_length"])
def test_a_window_is_read_by_any_of_its_names(field: str) -> None:
    row = json.loads(replies(*SERVER)["/v1/models"].body)["data"][0]
    model = BACKEND.model(row | {field: 4096})  # type: ignore[attr-defined]
    assert (model.window, model.max_window) == (4096, 4096)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("overflow", ContextOverflowError),
        ("overflow-stream", ContextOverflowError),
        ("unknown-model", UnknownModelError),
        ("bad-json", RequestRefusedError),
    ],
)
def test_what_its_refusals_mean(name: str, kind: type[BackendError]) -> None:
    answer = reply(*SERVER, name)
    error = BACKEND.error(BOX, answer.status, answer.headers, answer.body)
    assert type(error) is kind
    if isinstance(error, ContextOverflowError):
        assert (error.prompt_tokens, error.window) == (1231, 1024)


async def stream_of(request: ChatRequest) -> list[Event]:
    async with replaying(*SERVER) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        return [event async for event in event_lane(client, BACKEND, replace(BOX, url=url), MODEL, request, 0)]


async def test_what_we_send_is_answered_and_read() -> None:
    *pieces, usage, end = await stream_of(HELLO)
    assert all(isinstance(piece, TextDelta) for piece in pieces)
    assert usage == UsageReport(Usage(33, 8, 32))
    assert end == Finish("length")


async def test_a_tool_call_in_one_piece_is_read() -> None:
    asked = replace(
        HELLO,
        messages=(message("user", "What is the weather in Paris?"),),
        tools=(WEATHER,),
        tool_choice="required",
        max_tokens=40,
    )
    call, usage, end = await stream_of(asked)
    assert call == ToolCallDelta(0, "call_6_0", "weather", '{"city": "Paris"}')
    assert isinstance(usage, UsageReport)
    assert end == Finish("tool_calls")


async def test_the_raw_lane_takes_out_the_usage_that_we_asked_for() -> None:
    whole = reply(*SERVER, "chat-stream").body
    body = json.dumps(
        {
            "model": "any",
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
        }
    )
    request = replace(HELLO, raw=RawBody(WireFormat.OPENAI_CHAT, body.encode()))
    async with replaying(*SERVER) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        events = [e async for e in raw_lane(client, BACKEND, replace(BOX, url=url), MODEL, request)]
    passed = b"".join(event.data for event in events if isinstance(event, RawChunk))
    usage_chunk = next(event for event in whole.split(b"\n\n") if b'"usage"' in event) + b"\n\n"
    assert passed == whole.replace(usage_chunk, b"")
    assert events[-2:] == [UsageReport(Usage(33, 8, 32)), Finish("length")]
