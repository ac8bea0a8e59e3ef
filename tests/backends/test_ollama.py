"""Ollama as recorded: without a model, with models, with one loaded, with models of another machine, and full."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.fakes import ollama
from tests.fakes.base import Fake, FakeModel, running
from tests.recordings import exchanges, replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.base import Identity, Inspection
from turnout.backends.lanes import event_lane
from turnout.backends.ollama import CLOUD_IS_ON, FOREIGN_NAME
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
)
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.discovery import MAX_DETAILED, Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, Reply, open_client
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
NETWORK = AllowList.from_config(SecurityConfig())
BOX = Endpoint("box", "ollama", "http://127.0.0.1:1")
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)
IN_PARIS: tuple[Message, ...] = (message("user", "What is the weather in Paris?"),)
LONG: tuple[Message, ...] = (message("user", "a " * 1200),)
WEATHER = Tool(
    "weather",
    "The weather in a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


async def inspected(state: str) -> Inspection:
    """What its lists tell in a recorded state."""
    async with replaying("ollama", VERSION, state) as url, open_client(NETWORK) as client:
        return await BACKEND.inspect(client, replace(BOX, url=url), 5.0)


async def looked(state: str) -> EndpointStatus:
    """What discovery knows of a recorded state."""
    async with replaying("ollama", VERSION, state) as url, open_client(NETWORK) as client:
        return await look(client, Target(Endpoint("found", "", url)), RouterConfig())


@asynccontextmanager
async def faked(**options: object) -> AsyncIterator[tuple[Fake, Endpoint, HttpClient]]:
    """A fake with a model that is loaded and one that is not."""
    fake = Fake([FakeModel("first"), FakeModel("second", resident=False)], options=options)
    async with running(ollama.app(fake), server_header="") as url, open_client(NETWORK) as client:
        yield fake, replace(BOX, url=url), client


def smol(state: str) -> Model:
    """The plain model as a state's list has it, not loaded. Only of the idle state ``/api/show`` was recorded."""
    rows = json.loads(replies("ollama", VERSION, state)["/api/tags"].body)["models"]
    row = next(row for row in rows if row["name"] == "smol:latest")
    return Model(
        "smol:latest",
        window=16_384,
        window_source="configured",
        resident=False,
        family="llama",
        parameters=134_520_000,
        size=row["size"],
        quantization="Q4_1",
        digest=row["digest"],
        sent_suffix=":local",
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
    async with replaying("ollama", VERSION, "empty") as url, open_client(NETWORK) as c:
        seen = await BY_KIND["openai"].inspect(c, Endpoint("box", "openai", url + "/v1"), 5.0)
    assert seen == Inspection(Health.ONLINE, "has no model")


async def test_a_list_without_capabilities_is_completed_model_by_model() -> None:
    models = {model.id: model for model in (await looked("idle")).models}
    tools, plain = models["smol-tools:latest"], models["smol:latest"]
    assert plain == replace(smol("idle"), window=8192, max_window=8192, capabilities=frozenset({"chat"}))
    assert tools.capabilities == {"chat", "tools"}
    assert (tools.window, tools.window_source, tools.max_window) == (2048, "known", 8192), "its Modelfile has num_ctx"
    assert len(plain.digest) == 64
    assert plain.digest != tools.digest


async def test_a_model_is_asked_for_once_for_each_digest() -> None:
    async with faked(api="0.24", parameters="num_ctx 2048\nstop x") as (fake, box, client):
        target = Target(replace(box, kind=""))
        seen = await look(client, target, RouterConfig())
        assert {(m.id, m.window, m.window_source) for m in seen.models} == {
            ("first:latest", 8192, "known"),
            ("second:latest", 2048, "known"),
        }
        assert fake.requests.count(("POST", "/api/show")) == 2
        again = await look(client, target, RouterConfig(), seen, anew=True)
        assert again.models == seen.models
        assert fake.requests.count(("POST", "/api/show")) == 2
        fake.models[1].digest = "e" * 64
        await look(client, target, RouterConfig(), again)
    assert fake.requests.count(("POST", "/api/show")) == 3


async def test_so_many_models_are_asked_for_in_a_refresh_and_the_rest_later() -> None:
    fake = Fake([FakeModel(f"m{n}", digest=f"{n:064x}") for n in range(MAX_DETAILED + 3)], options={"api": "0.24"})
    async with running(ollama.app(fake)) as url, open_client(NETWORK) as client:
        first = await look(client, Target(Endpoint("found", "", url)), RouterConfig())
        second = await look(client, Target(Endpoint("found", "", url)), RouterConfig(), first)
    assert sum(bool(model.capabilities) for model in first.models) == MAX_DETAILED
    assert all(model.capabilities for model in second.models)
    assert fake.requests.count(("POST", "/api/show")) == MAX_DETAILED + 3


async def test_what_a_newer_list_tells_is_not_asked_for_again() -> None:
    async with faked() as (fake, box, client):
        status = await look(client, Target(replace(box, kind="")), RouterConfig())
        assert ("POST", "/api/show") not in fake.requests
        before = len(fake.requests)
        await look(client, Target(replace(box, kind="")), RouterConfig(), status)
    loaded, other = status.models
    assert (loaded.window, loaded.window_source, loaded.resident) == (8192, "known", True)
    assert (other.window, other.window_source, other.resident) == (16_384, "configured", False)
    assert (other.max_window, other.capabilities) == (32_768, {"chat", "tools", "thinking"})
    assert loaded.parameters == 7_600_000_000
    assert {path for _, path in fake.requests[before:]} == {"/api/tags", "/api/ps", "/api/status"}


async def test_a_model_that_is_not_shown_is_listed_all_the_same() -> None:
    status = await looked("remote")
    assert status.models == (smol("remote"),), "of this state no /api/show was recorded"
    assert status.details == {}


async def test_a_model_of_another_machine_is_never_asked_for() -> None:
    async with faked(api="0.24") as (fake, box, client):
        fake.models[1].remote = True
        await look(client, Target(replace(box, kind="")), RouterConfig())
    assert fake.requests.count(("POST", "/api/show")) == 1


@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "big:cloud"])
async def test_a_cloud_model_is_known_by_its_name_alone(name: str) -> None:
    fake = Fake([FakeModel(name)])
    async with running(ollama.app(fake)) as url, open_client(NETWORK) as client:
        found = await BACKEND.inspect(client, replace(BOX, url=url), 2.0)
    assert [model.remote for model in found.models] == [True]


@pytest.mark.parametrize(
    ("options", "notes"), [({}, ()), ({"cloud": True}, (CLOUD_IS_ON,)), ({"status": False, "api": "0.24"}, ())]
)
async def test_a_cloud_that_is_not_switched_off_is_told_of(options: dict[str, object], notes: tuple[str, ...]) -> None:
    async with faked(**options) as (_, box, client):
        assert (await BACKEND.inspect(client, box, 2.0)).notes == notes


@pytest.mark.parametrize("status", [True, False])
async def test_where_it_is_understood_every_request_says_that_the_model_is_local(status: bool) -> None:
    async with faked(status=status, api="0.24", cloud=True) as (fake, box, client):
        seen = await look(client, Target(replace(box, kind="")), RouterConfig())
        first = seen.models[0]
        fake.models[0].remote = True  # since we looked
        lane = event_lane(client, BACKEND, box, first, HELLO, first.window)
        with pytest.raises(UnknownModelError if status else ServerFailedError):
            [event async for event in lane]
        with pytest.raises(UnknownModelError if status else ServerFailedError):
            await BACKEND.embed(client, box, first, ["a"])
        with pytest.raises(UnknownModelError if status else ServerFailedError):
            await BACKEND.load(client, box, first, lambda _: None)
    assert (seen.evidence, first.sent_suffix) == (
        ("its greeting and GET /api/status", ":local") if status else ("its greeting and its digests", "")
    )


@pytest.mark.parametrize(("able", "told"), [((), True), (("chat", "thinking"), True), (("chat", "tools"), False)])
def test_an_effort_is_not_sent_to_a_model_that_does_not_think(able: tuple[str, ...], told: bool) -> None:
    """There it is an error, and agents send one with every request."""
    request = ChatRequest((message("user", "hi"),), reasoning_effort="high")
    body = json.loads(BACKEND.render(request, Model("m", capabilities=frozenset(able)), 4096))
    assert (body.get("think") == "high") is told


def test_the_word_local_keeps_a_request_on_the_machine() -> None:
    """0.24 in the same state: with it an unknown model, without it a refusal of the cloud that is switched off."""
    assert reply("ollama", VERSION, "remote", "chat-local").status == 404
    assert reply("ollama", VERSION, "remote", "chat").status == 403


async def test_a_foreign_name_is_refused_and_that_is_no_key() -> None:
    foreign = replace(BOX, host_header="example.invalid")
    async with faked() as (_, box, client):
        found = await BACKEND.inspect(client, replace(foreign, url=box.url), 2.0)
    assert found == Inspection(Health.DEGRADED, FOREIGN_NAME)


async def test_a_load_is_kept_for_ever_and_an_unload_is_awaited() -> None:
    told: list[str] = []
    async with replaying("ollama", VERSION, "idle") as url, open_client(NETWORK) as client:
        box, plain = replace(BOX, url=url), replace(smol("idle"), window_source="guessed")  # recorded without a window
        await BACKEND.load(client, box, plain, told.append)
        await BACKEND.unload(client, box, plain)
    assert told == ["box is loading smol:latest", "box has loaded smol:latest"]
    async with faked() as (fake, box, client):
        first = (await BACKEND.inspect(client, box, 2.0)).models[0]
        await BACKEND.unload(client, box, first)
        assert fake.requests[-2:] == [("GET", "/api/ps")] * 2, "it was still there when it was said to be unloaded"


async def test_no_request_of_ours_loads_a_model_anew() -> None:
    async with faked() as (fake, box, client):

        async def second() -> Model:
            return (await BACKEND.inspect(client, box, 2.0)).models[1]

        async def chat() -> None:
            model = await second()
            [event async for event in event_lane(client, BACKEND, box, model, HELLO, model.window)]

        await chat()
        assert (await second()).window == 16_384
        await BACKEND.embed(client, box, await second(), ["a"])
        await chat()
        await BACKEND.load(client, box, await second(), lambda _: None)
        assert [body.get("options", {}).get("num_ctx") for body in fake.seen] == [16_384] * 3  # type: ignore[attr-defined]
    assert "reloads" not in fake.options


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    loaded = replace(smol("loaded"), window=1024, window_source="known")
    async with replaying("ollama", VERSION, "loaded") as url, open_client(NETWORK) as client:
        first, second = await BACKEND.embed(client, replace(BOX, url=url), loaded, ["a", "bcd"])
    assert len(first) == len(second) == 576
    assert first != second


async def test_of_older_words_of_an_overflow_no_number_is_made_up() -> None:
    async with faked(api="0.24") as (fake, box, client):
        first = (await BACKEND.inspect(client, box, 2.0)).models[0]
        fake.fault = "overflow"
        with pytest.raises(ContextOverflowError) as caught:
            [event async for event in event_lane(client, BACKEND, box, first, HELLO, first.window)]
    assert (caught.value.prompt_tokens, caught.value.window) == (0, 0)


async def test_a_loaded_models_window_is_the_one_it_was_given() -> None:
    models = {model.id: model for model in (await inspected("loaded")).models}
    assert models["smol:latest"] == replace(smol("loaded"), window=1024, window_source="known", resident=True)
    assert models["smol-tools:latest"].resident is False


async def test_a_model_of_another_machine_is_left_out() -> None:
    async with replaying("ollama", VERSION, "remote") as url, open_client(NETWORK) as c:
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
        ("idle", "foreign-host", RequestRefusedError),
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
    async with replaying("ollama", VERSION, "loaded") as url, open_client(NETWORK) as c:
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
