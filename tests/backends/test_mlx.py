"""MLX-LM as recorded, and beyond the common behaviours: a list without a body, a dead engine, 404 for everything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.backends.behaviours import serving
from tests.recordings import replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.lanes import event_lane
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import RequestRefusedError, ServerFailedError, UnknownModelError
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import Reply, open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Finish,
    Health,
    Model,
    TextDelta,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
    message,
)

VERSION = "0.32.2"
BACKEND = BY_KIND["mlx"]
BOX = Endpoint("box", "mlx", "http://127.0.0.1:1")
SMOL = Model("/tmp/rec/smol")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
IN_PARIS = ChatRequest(
    (message("user", "What is the weather in Paris?"),),
    tools=(Tool("weather", "The weather in a city", CITY),),
    tool_choice="required",
    max_tokens=40,
    temperature=0,
)
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)


async def looked_at(state: str) -> EndpointStatus:
    async with replaying("mlx", VERSION, state) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        return await look(client, Target(Endpoint("found", "", url)), RouterConfig())


@pytest.mark.parametrize(("state", "ids"), [("ready", [SMOL.id]), ("no-cache", [])])
async def test_discovery_finds_it_by_its_answers_alone(state: str, ids: list[str]) -> None:
    status = await looked_at(state)
    assert (status.endpoint.kind, status.health, [m.id for m in status.models]) == ("mlx", Health.ONLINE, ids)
    assert ("cache directory is missing" in status.reason) is (not ids)
    assert any("HF_HUB_OFFLINE" in note for note in status.notes)


@pytest.mark.parametrize("path", ["/", "/v1/models"])
def test_another_server_of_python_is_not_taken_for_it(path: str) -> None:
    answers = replies("mlx", VERSION, "ready")
    assert identify(answers).kind == "mlx"  # type: ignore[union-attr]
    foreign = Reply(200, answers[path].headers, b'{"object":"list","data":[{"id":"a","owned_by":"me"}]}')
    assert identify(answers | {path: foreign}).kind == "openai"  # type: ignore[union-attr]


async def test_its_stream_is_read_past_the_comments() -> None:
    async with replaying("mlx", VERSION, "ready") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        events = [event async for event in event_lane(c, BACKEND, replace(BOX, url=url), SMOL, HELLO, 0)]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Hello! I'm here to help with"
    assert UsageReport(Usage(33, 8, 32)) in events
    assert events[-1] == Finish("length")


async def test_its_recorded_tool_call_comes_in_one_piece() -> None:
    async with replaying("mlx", VERSION, "tools") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        events = [event async for event in event_lane(c, BACKEND, replace(BOX, url=url), SMOL, IN_PARIS, 0)]
    call, usage, end = events
    assert isinstance(call, ToolCallDelta)
    assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
    assert call.call_id
    assert usage == UsageReport(Usage(168, 29, 167))
    assert end == Finish("tool_calls")


@pytest.mark.parametrize(
    ("state", "name", "kind"),
    [
        ("no-cache", "unknown-model", UnknownModelError),
        ("hub-allowed", "unknown-model", UnknownModelError),
        ("ready", "unknown-model", UnknownModelError),
        ("ready", "no-messages", RequestRefusedError),
        ("ready", "bad-json", RequestRefusedError),
    ],
)
def test_what_its_recorded_refusals_mean(state: str, name: str, kind: type[Exception]) -> None:
    answer = reply("mlx", VERSION, state, name)
    assert type(BACKEND.error(BOX, answer.status, answer.headers, answer.body)) is kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Conversation roles must alternate user/assistant/user/assistant/...", RequestRefusedError),
        ("generation thread died", ServerFailedError),
    ],
)
def test_a_404_means_more(text: str, kind: type[Exception]) -> None:
    assert type(BACKEND.error(BOX, 404, {}, b'{"error": "%s"}' % text.encode())) is kind


async def test_a_dead_engine_is_not_asked() -> None:
    async with serving("mlx") as case:
        model = await case.model()
        case.fake.options["dead"] = True
        status = await case.look()
        assert (status.health, status.models) == (Health.DEGRADED, ())
        assert "restarted" in status.reason
    assert model.resident is None


async def test_an_answer_is_not_cut_at_its_own_short_limit() -> None:
    async with serving("mlx") as case:
        await case.ask()
        await case.ask(max_tokens=7)
    assert [body["max_tokens"] for body in case.fake.seen] == [4096, 7]
