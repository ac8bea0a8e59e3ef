"""Ollama as recorded: without a model, with models, with one loaded, with models of another machine, and full."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.llm import ollama_app, running
from tests.recordings import exchanges, replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.base import Identity, Inspection
from turnout.backends.lanes import event_lane
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    KeyRefusedError,
    PhaseTimeoutError,
    RequestRefusedError,
    UnknownModelError,
)
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import Reply, open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Event,
    Finish,
    Health,
    Message,
    Model,
    TextDelta,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
    message,
)

VERSION = "0.24.0"
BACKEND = BY_KIND["ollama"]
BOX = Endpoint("box", "ollama", "http://127.0.0.1:1")
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)
IN_PARIS: tuple[Message, ...] = (message("user", "What is the weather in Paris?"),)
LONG: tuple[Message, ...] = (message("user", "a " * 1200),)
WEATHER = Tool(
    "weather",
    "The weather in a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


async def inspected(state: str, asked: list[str] | None = None, *, shows: bool = True) -> Inspection:
    """What is found in a recorded state; ``asked`` takes the models that ``/api/show`` is asked for."""
    async with replaying("ollama", VERSION, state) as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        fetch = c.fetch

        async def noting(method: str, address: str, **more: Any) -> Reply:
            if method == "POST" and asked is not None:
                asked.append(json.loads(more["body"])["model"])
            if method == "POST" and not shows:
                raise PhaseTimeoutError("too long", phase="total")
            return await fetch(method, address, **more)

        c.fetch = noting  # type: ignore[method-assign, assignment]
        return await BACKEND.inspect(c, replace(BOX, url=url), 5.0)


def smol(state: str) -> Model:
    """The plain model as a state's list has it, not loaded. Only of the idle state ``/api/show`` was recorded."""
    rows = json.loads(replies("ollama", VERSION, state)["/api/tags"].body)["models"]
    row = next(row for row in rows if row["name"] == "smol:latest")
    return Model(
        "smol:latest",
        window=4096,
        window_source="guessed",
        resident=False,
        family="llama",
        parameters=134_520_000,
        size=row["size"],
        quantization="Q4_1",
        digest=row["digest"],
    )


@pytest.mark.parametrize("state", ["empty", "idle", "loaded", "remote"])
def test_it_is_known_by_its_greeting_and_its_status(state: str) -> None:
    found = identify(replies("ollama", VERSION, state))
    assert found == Identity("ollama", "its greeting and GET /api/status", VERSION)


def test_before_it_had_a_status_its_digests_are_the_evidence() -> None:
    older = {p: r for p, r in replies("ollama", VERSION, "idle").items() if p != "/api/status"}
    assert identify(older) == Identity("ollama", "its greeting and its digests", VERSION)
    dummy = Reply(200, {}, b'{"models":[{"name":"a","digest":"b5dc5e78"}]}')
    assert BACKEND.identify(older | {"/api/tags": dummy}) is None, "others emulate its API with digests that are none"


def test_without_its_greeting_it_is_something_that_answers_like_it() -> None:
    app = replies("ollama", VERSION, "idle") | {"/": Reply(200, {}, b"<html>")}
    assert BACKEND.identify(app) is None
    found = identify(app)
    assert found is not None
    assert found.kind == "openai"


async def test_without_a_model_it_is_online_and_says_so() -> None:
    assert await inspected("empty") == Inspection(Health.ONLINE, "has no model")


async def test_an_empty_one_is_an_empty_list_over_the_openai_protocol_too() -> None:
    listed = {"/v1/models": replies("ollama", VERSION, "empty")["/v1/models"]}
    assert b'"data":null' in listed["/v1/models"].body
    found = identify(listed)
    assert found is not None
    assert found.kind == "openai"
    async with replaying("ollama", VERSION, "empty") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        seen = await BY_KIND["openai"].inspect(c, Endpoint("box", "openai", url + "/v1"), 5.0)
    assert seen == Inspection(Health.ONLINE, "has no model")


async def test_a_list_without_capabilities_is_completed_model_by_model() -> None:
    models = {model.id: model for model in (await inspected("idle")).models}
    tools, plain = models["smol-tools:latest"], models["smol:latest"]
    assert plain == replace(smol("idle"), max_window=8192, capabilities=frozenset({"chat"}))
    assert tools.capabilities == {"chat", "tools"}
    assert (tools.window, tools.window_source, tools.max_window) == (2048, "known", 8192), "its Modelfile has num_ctx"
    assert len(plain.digest) == 64
    assert plain.digest != tools.digest


async def test_what_a_newer_list_tells_is_not_asked_for_again() -> None:
    app = ollama_app(("qwen2.5-coder:7b", "llama3.2:3b", "big:cloud", "gpt-oss:120b-cloud"), window=16_384)
    async with running(app) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        found = await BACKEND.inspect(client, Endpoint("o", "ollama", url), 2.0)
    loaded, other, *cloud = found.models
    assert (loaded.window, loaded.window_source, loaded.resident) == (16_384, "known", True)
    assert (other.window, other.window_source, other.resident) == (4096, "guessed", False)
    assert (other.max_window, other.capabilities) == (32_768, {"chat", "tools"})
    assert loaded.parameters == 7_600_000_000
    assert [model.remote for model in cloud] == [True, True], "the second by its name alone"
    assert app.state.fake.paths == ["/api/tags"]


@pytest.mark.parametrize("shows", [True, False])
async def test_a_model_that_is_not_shown_in_time_is_listed_all_the_same(shows: bool) -> None:
    asked: list[str] = []
    found = await inspected("remote", asked, shows=shows)
    assert smol("remote") in found.models
    assert asked == ["smol:latest"], "to show another machine's model, the server would ask that machine"


async def test_a_loaded_models_window_is_the_one_it_was_given() -> None:
    models = {model.id: model for model in (await inspected("loaded")).models}
    assert models["smol:latest"] == replace(smol("loaded"), window=1024, window_source="known", resident=True)
    assert models["smol-tools:latest"].resident is False


async def test_a_model_of_another_machine_is_left_out() -> None:
    async with replaying("ollama", VERSION, "remote") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        found = await BACKEND.inspect(c, replace(BOX, url=url), 5.0)
        status = await look(c, Target(Endpoint("found", "", url)), RouterConfig())
    assert {m.id: m.remote for m in found.models} == {
        "far:latest": True,
        "gpt-oss:120b-cloud": True,
        "smol:latest": False,
    }
    assert (status.endpoint.kind, status.version) == ("ollama", VERSION)
    assert [m.id for m in status.models] == ["smol:latest"]
    assert {name for name, _ in status.excluded} == {"far:latest", "gpt-oss:120b-cloud"}


@pytest.mark.parametrize(
    ("state", "name", "kind"),
    [
        ("busy", "busy", EndpointBusyError),
        ("empty", "unknown-model", UnknownModelError),
        ("loaded", "unknown-model", UnknownModelError),
        ("idle", "cloud-model", UnknownModelError),
        ("remote", "chat", UnknownModelError),
        ("idle", "foreign-host", KeyRefusedError),
        ("loaded", "overflow", ContextOverflowError),
        ("loaded", "overflow-stream", ContextOverflowError),
        ("loaded", "tools", RequestRefusedError),
        ("loaded", "think", RequestRefusedError),
        ("loaded", "bad-json", RequestRefusedError),
    ],
)
def test_what_its_refusals_mean(state: str, name: str, kind: type[BackendError]) -> None:
    answer = reply("ollama", VERSION, state, name)
    error = BACKEND.error(BOX, answer.status, answer.headers, answer.body)
    assert type(error) is kind
    if isinstance(error, ContextOverflowError):
        assert (error.prompt_tokens, error.window) == (0, 0), "this version names no number"


def test_left_to_itself_it_cuts_a_prompt_without_a_word() -> None:
    answer = json.loads(reply("ollama", VERSION, "loaded", "overflow-truncated").body)
    assert answer["prompt_eval_count"] <= 1024
    asked = json.loads(BACKEND.render(replace(HELLO, messages=LONG), Model("smol:latest"), 1024))
    assert asked["truncate"] is False


async def stream_of(request: ChatRequest, model: str = "smol:latest", window: int = 1024) -> list[Event]:
    async with replaying("ollama", VERSION, "loaded") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        lane = event_lane(c, BACKEND, replace(BOX, url=url), Model(model), request, window)
        return [event async for event in lane]


async def test_what_we_send_is_answered_and_read() -> None:
    *pieces, usage, end = await stream_of(HELLO)
    whole = json.loads(reply("ollama", VERSION, "loaded", "chat").body)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == whole["message"]["content"]
    assert usage == UsageReport(Usage(whole["prompt_eval_count"], 8))
    assert end == Finish("length")


async def test_a_tool_call_is_read_with_its_arguments_as_text() -> None:
    asked = replace(HELLO, messages=IN_PARIS, tools=(WEATHER,), max_tokens=40)
    call, usage, end = await stream_of(asked, "smol-tools:latest", 2048)
    assert isinstance(call, ToolCallDelta)
    assert (call.index, call.name, call.arguments) == (0, "weather", '{"city":"Paris"}')
    assert call.call_id.encode() in exchanges("ollama", VERSION, "loaded")["tool-call"].reply.body
    assert isinstance(usage, UsageReport)
    assert end == Finish("tool_calls")


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (replace(HELLO, messages=LONG), ContextOverflowError),
        (replace(HELLO, messages=IN_PARIS, tools=(WEATHER,)), RequestRefusedError),
        (replace(HELLO, reasoning_effort="high"), RequestRefusedError),
    ],
)
async def test_a_refusal_comes_before_any_output(request_: ChatRequest, kind: type[BackendError]) -> None:
    with pytest.raises(kind):
        await stream_of(request_)


@pytest.mark.parametrize("name", ["chat-stream", "tool-call"])
@pytest.mark.parametrize("piece", [1, 7])
def test_a_stream_cut_anywhere_reads_the_same(name: str, piece: int) -> None:
    body = reply("ollama", VERSION, "loaded", name).body
    whole, parser = BACKEND.parser(), BACKEND.parser()
    expected = whole.feed(body) + whole.close()
    events = [event for at in range(0, len(body), piece) for event in parser.feed(body[at : at + piece])]
    assert events + parser.close() == expected
    assert parser.finished
