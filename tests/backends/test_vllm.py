"""vLLM as recorded, and beyond the common behaviours: its engine's states, adapters, its key, and who is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.backends.behaviours import WEATHER, Case, serving
from tests.fakes.base import PROMPT_TOKENS, Fake
from tests.recordings import replaying, reply
from turnout.backends import BY_KIND
from turnout.backends.lanes import event_lane
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import (
    ContextOverflowError,
    EndpointBusyError,
    KeyRefusedError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
)
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, Reply, open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Event,
    Finish,
    Health,
    Image,
    Message,
    Model,
    Text,
    TextDelta,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
    message,
)

VERSION = "0.32.0"
BACKEND = BY_KIND["vllm"]
BOX = Endpoint("box", "vllm", "http://127.0.0.1:1")
SMOL = Model("smol", window=1024, max_window=1024)
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
IN_PARIS = ChatRequest(
    (message("user", "What is the weather in Paris?"),),
    tools=(Tool("weather", "The weather in a city", CITY),),
    tool_choice="required",
    max_tokens=40,
    temperature=0,
)
UNAUTHORIZED = Reply(401, {"server": "uvicorn"}, b'{"error":"Unauthorized"}')


@asynccontextmanager
async def recorded(state: str) -> AsyncIterator[tuple[HttpClient, Endpoint]]:
    async with replaying("vllm", VERSION, state) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        yield client, replace(BOX, url=url)


async def answer_to(request: ChatRequest) -> list[Event]:
    async with recorded("ready") as (client, box):
        return [event async for event in event_lane(client, BACKEND, box, SMOL, request, SMOL.window)]


@pytest.mark.parametrize(
    ("state", "health", "words", "models"),
    [
        ("ready", Health.ONLINE, "answers", (replace(SMOL, resident=True),)),
        ("keyed", Health.NEEDS_KEY, "key", ()),
        ("dead", Health.DEGRADED, "restarted", (replace(SMOL, resident=True),)),
    ],
)
async def test_discovery_finds_it_by_its_answers_alone(
    state: str, health: Health, words: str, models: tuple[Model, ...]
) -> None:
    async with recorded(state) as (client, box):
        status = await look(client, Target(replace(box, kind="")), RouterConfig())
    assert (status.endpoint.kind, status.version, status.health) == ("vllm", VERSION, health)
    assert words in status.reason
    assert [(m.id, m.window, m.resident) for m in status.models] == [(m.id, m.window, m.resident) for m in models]
    if state == "ready":
        assert (status.busy, status.waiting) == (0, 0)


async def test_its_recorded_stream_is_read_to_the_end() -> None:
    events = await answer_to(HELLO)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Hello! I'm here to help with"
    assert UsageReport(Usage(33, 8)) in events
    assert events[-1] == Finish("length")


async def test_its_recorded_tool_call_is_put_together() -> None:
    events = await answer_to(IN_PARIS)
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert (calls[0].name, "".join(call.arguments for call in calls)) == ("weather", '{"city": "Paris"}')
    assert calls[0].call_id
    assert events[-1] == Finish("tool_calls")


def test_a_call_of_the_tool_that_was_named_is_one_though_it_says_stop() -> None:
    body = reply("vllm", VERSION, "ready", "tools-named").body
    assert b'"finish_reason":"stop"' in body
    assert BACKEND.read_whole(body)[-1] == Finish("tool_calls")


async def test_its_recorded_counts_agree_with_its_usage() -> None:
    async with recorded("ready") as (client, box):
        assert await BACKEND.count_tokens(client, box, HELLO, SMOL) == 33
        assert await BACKEND.count_tokens(client, box, IN_PARIS, SMOL) == 168


@pytest.mark.parametrize(
    ("state", "name", "kind"),
    [
        ("ready", "overflow", ContextOverflowError),
        ("ready", "unknown-model", UnknownModelError),
        ("ready", "image", RequestRefusedError),
        ("ready", "answer-too-long", RequestRefusedError),
        ("ready", "no-messages", RequestRefusedError),
        ("ready", "bad-json", RequestRefusedError),
        ("keyed", "no-key", KeyRefusedError),
        ("keyed", "bad-key", KeyRefusedError),
        ("busy", "busy", EndpointBusyError),
        ("dead", "chat", ServerFailedError),
        ("dead", "chat-stream", ServerFailedError),
        ("pooling", "embeddings-unknown-model", UnknownModelError),
    ],
)
def test_what_its_recorded_refusals_mean(state: str, name: str, kind: type[Exception]) -> None:
    answer = reply("vllm", VERSION, state, name)
    error = BACKEND.error(BOX, answer.status, answer.headers, answer.body)
    assert type(error) is kind
    if isinstance(error, ContextOverflowError):
        assert (error.window, error.prompt_tokens) == (1024, 0), "it stops counting one after the window"


@pytest.mark.parametrize(("state", "name"), [("ready", "embeddings"), ("pooling", "chat")])
def test_a_path_that_its_model_is_not_for_is_told_in_words(state: str, name: str) -> None:
    answer = reply("vllm", VERSION, state, name)
    assert (answer.status, answer.body) == (404, b'{"detail":"Not Found"}')
    with pytest.raises(RequestRefusedError, match="another use of its model"):
        raise BACKEND.error(BOX, answer.status, answer.headers, answer.body)


async def test_one_that_embeds_gives_its_recorded_vector() -> None:
    async with recorded("pooling") as (client, box):
        (vector,) = await BACKEND.embed(client, box, SMOL, ["hello"])
    assert len(vector) == 576


async def test_an_adapter_has_its_models_window() -> None:
    async with serving("vllm", Fake(options={"adapter": "sql-lora"})) as case:
        models = (await case.look()).models
    assert [(m.id, m.window) for m in models] == [("qwen2.5-coder-7b-instruct", 8192), ("sql-lora", 8192)]


@pytest.mark.parametrize(("state", "words", "resident"), [("dead", "restarted", True), ("asleep", "no request", False)])
async def test_the_engine_may_be_gone_while_the_list_answers(state: str, words: str, resident: bool) -> None:
    async with serving("vllm", Fake(options={state: True})) as case:
        status = await case.look()
    assert (status.health, status.models[0].resident) == (Health.DEGRADED, resident)
    assert words in status.reason


async def test_who_waits_is_counted_once() -> None:
    async with serving("vllm", Fake(busy=3)) as case:
        status = await case.look()
    assert (status.busy, status.waiting) == (3, 2), "the same requests are there again by reason"


async def test_looking_again_costs_three_gets() -> None:
    async with serving("vllm") as case:
        await case.backend.inspect(case.client, case.endpoint(), 2.0)
        assert sorted(case.fake.requests) == [("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models")]


def test_a_refusal_that_others_share_is_no_evidence() -> None:
    assert identify({"/v1/models": UNAUTHORIZED, "/version": UNAUTHORIZED}).kind == "openai"  # type: ignore[union-attr]
    told = {"/v1/models": UNAUTHORIZED, "/version": Reply(200, {}, b'{"version":"0.33.0\\u001b[2J"}')}
    found = identify(told)
    assert found is not None
    assert (found.kind, found.version) == ("vllm", "0.33.0 [2J")


async def test_tools_without_a_parser_are_a_bad_request_not_a_failure() -> None:
    async with serving("vllm", Fake(options={"no_tool_parser": True})) as case:
        with pytest.raises(RequestRefusedError, match="tool-call-parser"):
            await case.ask(tools=(WEATHER,))


async def counted(case: Case, request: ChatRequest, **endpoint: object) -> int:
    model = await case.model()
    return await case.backend.count_tokens(case.client, case.endpoint(**endpoint), request, model)


async def test_an_image_is_not_counted_as_its_placeholder() -> None:
    shown = Message("user", (Text("What is this?"), Image(media_type="image/png", data="aGk=")))
    async with serving("vllm") as case:
        assert await counted(case, ChatRequest((shown,))) == 0


async def test_an_address_with_v1_reaches_what_is_beside_it() -> None:
    async with serving("vllm", Fake(busy=1)) as case:
        case.url += "/v1"
        status = await case.look()
        assert (status.health, status.busy) == (Health.ONLINE, 1)
        assert await counted(case, ChatRequest((message("user", "hello"),))) == PROMPT_TOKENS
