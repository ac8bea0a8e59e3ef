"""llama.cpp's server as recorded: the engine in this package, and llama-server alone, asleep and as a router."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.recordings import Exchange, exchanges, replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.base import Inspection
from turnout.backends.lanes import event_lane, raw_lane
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointLoadingError,
    KeyRefusedError,
    RequestRefusedError,
    UnknownModelError,
)
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
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
    Usage,
    UsageReport,
    WireFormat,
    message,
)
from turnout.wire import openai_chat

PIP, SID = "xllamacpp-2026.10.11549", "b11669"
STATES = [
    (PIP, "loading"),
    (PIP, "ready"),
    (PIP, "keyed"),
    (SID, "ready"),
    (SID, "asleep"),
    (SID, "router-idle"),
    (SID, "router-loaded"),
]
BACKEND = BY_KIND["llamacpp"]
BOX = Endpoint("box", "llamacpp", "http://127.0.0.1:1")
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)
Q4 = Model(
    "smol",
    window=1024,
    max_window=8192,
    resident=True,
    capabilities=frozenset({"chat"}),
    parameters=134_515_008,
    size=96_576_768,
    quantization="Q4_1",
)


async def inspected(version: str, state: str) -> Inspection:
    async with replaying("llamacpp", version, state) as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        return await BACKEND.inspect(c, replace(BOX, url=url), 5.0)


@pytest.mark.parametrize(("version", "state"), STATES)
def test_it_names_itself_in_every_state(version: str, state: str) -> None:
    found = identify(replies("llamacpp", version, state))
    assert found is not None
    assert (found.kind, found.evidence.endswith("has the header Server: llama.cpp")) == ("llamacpp", True)


def test_behind_a_proxy_its_model_list_still_tells() -> None:
    proxied = {path: replace(r, headers={}) for path, r in replies("llamacpp", PIP, "ready").items()}
    found = identify(proxied)
    assert found is not None
    assert found.kind == "llamacpp"


@pytest.mark.parametrize("version", [PIP, SID])
async def test_a_running_server_tells_its_window_size_and_quantisation(version: str) -> None:
    found = await inspected(version, "ready")
    slots = {PIP: 2, SID: 1}[version]
    assert found == Inspection(Health.ONLINE, "answers", (Q4,), slots), "2048 tokens shared by two slots are 1024 each"


async def test_discovery_finds_it_by_its_answers_alone() -> None:
    async with replaying("llamacpp", PIP, "ready") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        status = await look(c, Target(Endpoint("found", "", url)), RouterConfig())
    assert (status.endpoint.kind, status.health, status.models) == ("llamacpp", Health.ONLINE, (Q4,))


async def test_a_loading_server_is_loading() -> None:
    assert await inspected(PIP, "loading") == Inspection(Health.LOADING, "loading its model")


async def test_a_keyed_server_needs_its_key() -> None:
    assert await inspected(PIP, "keyed") == Inspection(Health.NEEDS_KEY, "needs a key")


async def test_a_sleeping_server_is_online_with_nothing_loaded() -> None:
    found = await inspected(SID, "asleep")
    asleep = (replace(Q4, resident=False),)
    assert found == Inspection(Health.ONLINE, "asleep, wakes on a request", asleep, slots=1)


async def test_a_routers_models_have_the_window_that_they_will_get() -> None:
    listed = Model("smol-q4", window=1024, max_window=8192, resident=False)
    found = await inspected(SID, "router-idle")
    assert found == Inspection(Health.ONLINE, "answers", (listed, replace(listed, id="smol-q8")))


async def test_a_router_tells_more_of_a_loaded_model() -> None:
    found = await inspected(SID, "router-loaded")
    loaded, other = found.models
    assert loaded == replace(Q4, id="smol-q4", capabilities=frozenset())
    assert (other.id, other.resident, other.window) == ("smol-q8", False, 1024)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        (["--ctx-size", "2048", "--parallel", "2"], 1024),
        (["--ctx-size", "2048", "--kv-unified", "--parallel", "2"], 2048),
        (["--ctx-size", "2048"], 2048),
        (["--ctx-size", "0"], 0),
        (["--ctx-size", "many"], 0),
        ([], 0),
        (None, 0),
    ],
)
def test_a_childs_command_line_tells_its_window(options: list[str] | None, window: int) -> None:
    row = json.loads(replies("llamacpp", SID, "router-idle")["/v1/models"].body)["data"][0]
    row["status"]["args"] = options
    model = BY_KIND["llamacpp"].model(row)  # type: ignore[attr-defined]
    assert model.window == window


@pytest.mark.parametrize(
    ("version", "state", "name", "kind"),
    [
        (PIP, "loading", "chat", EndpointLoadingError),
        (PIP, "keyed", "no-key", KeyRefusedError),
        (PIP, "keyed", "bad-key", KeyRefusedError),
        (SID, "router-idle", "unknown-model", UnknownModelError),
        (PIP, "ready", "overflow", ContextOverflowError),
        (PIP, "ready", "messages-overflow", ContextOverflowError),
        (SID, "router-loaded", "overflow", ContextOverflowError),
        (PIP, "ready", "image", RequestRefusedError),
        (PIP, "ready", "embeddings-off", RequestRefusedError),
        (PIP, "ready", "no-messages", RequestRefusedError),
        (PIP, "ready", "bad-json", RequestRefusedError),
    ],
)
def test_what_its_refusals_mean(version: str, state: str, name: str, kind: type[BackendError]) -> None:
    answer = reply("llamacpp", version, state, name)
    error = BACKEND.error(BOX, answer.status, answer.headers, answer.body)
    assert type(error) is kind
    if isinstance(error, ContextOverflowError):
        assert (error.prompt_tokens, error.window) == (1231, 1024)


def test_the_fields_of_an_overflow_outrank_its_words() -> None:
    answer = reply("llamacpp", PIP, "ready", "overflow")
    reworded = answer.body.replace(b"(1231 tokens)", b"(1 tokens)").replace(b"(1024 tokens)", b"(2 tokens)")
    error = BACKEND.error(BOX, answer.status, answer.headers, reworded)
    assert isinstance(error, ContextOverflowError)
    assert (error.prompt_tokens, error.window) == (1231, 1024)


@pytest.mark.parametrize("version", [PIP, SID])
def test_the_name_of_a_model_is_not_looked_at(version: str) -> None:
    answer = reply("llamacpp", version, "ready", "unknown-model")
    assert (answer.status, answer.json()["model"]) == (200, "smol")  # type: ignore[call-overload, index]


async def stream_of(version: str, request: ChatRequest) -> list[Event]:
    async with (
        replaying("llamacpp", version, "ready") as url,
        open_client(AllowList.from_config(SecurityConfig())) as c,
    ):
        return [event async for event in event_lane(c, BACKEND, replace(BOX, url=url), Q4, request, 1024)]


@pytest.mark.parametrize("version", [PIP, SID])
async def test_what_we_send_is_answered_and_read(version: str) -> None:
    events = await stream_of(version, HELLO)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == said(exchanges("llamacpp", version, "ready")["chat"])
    assert Finish("length") in events
    usage = next(event.usage for event in events if isinstance(event, UsageReport))
    assert (usage.prompt_tokens, usage.completion_tokens) == (33, 8)
    assert usage.cached_tokens == 32, "the same prompt again: all but the last token came from the cache"


async def test_an_overflow_before_the_stream_is_an_error_with_both_numbers() -> None:
    long = replace(HELLO, messages=(message("user", "a " * 1200),))
    with pytest.raises(ContextOverflowError) as caught:
        await stream_of(PIP, long)
    assert (caught.value.prompt_tokens, caught.value.window) == (1231, 1024)


@pytest.mark.parametrize("name", ["chat-stream", "chat-stream-no-usage"])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_a_stream_cut_anywhere_reads_the_same(name: str, piece: int) -> None:
    body = reply("llamacpp", PIP, "ready", name).body
    parser = BACKEND.parser()
    events = [event for at in range(0, len(body), piece) for event in parser.feed(body[at : at + piece])]
    events += parser.close()
    assert parser.finished
    assert [type(event) for event in events].count(Finish) == 1
    assert UsageReport(Usage(33, 8, 32)) in events, "without a usage chunk the timings of the last one tell"
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == said(exchanges("llamacpp", PIP, "ready")["chat"])


async def test_the_raw_lane_hands_its_bytes_on() -> None:
    made = exchanges("llamacpp", PIP, "ready")["chat-stream"]
    request = replace(HELLO, raw=RawBody(WireFormat.OPENAI_CHAT, made.sent))
    async with replaying("llamacpp", PIP, "ready") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        events = [event async for event in raw_lane(c, BACKEND, replace(BOX, url=url), Q4, request)]
    assert b"".join(event.data for event in events if isinstance(event, RawChunk)) == made.reply.body
    assert events[-1] == Finish("length")


def test_a_model_without_a_tool_template_answers_tools_with_prose() -> None:
    for name in ("tools", "tools-required"):
        events = openai_chat.parse_response(reply("llamacpp", PIP, "ready", name).body)
        assert {type(event) for event in events} == {TextDelta, UsageReport, Finish}
    assert "tools" not in Q4.capabilities


async def test_it_counts_a_prompt_as_it_will_read_it() -> None:
    request = replace(HELLO, max_tokens=None, temperature=None)
    async with replaying("llamacpp", PIP, "ready") as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        box = replace(BOX, url=url)
        assert await BACKEND.count_tokens(c, box, request, Q4) == 33
        assert await BACKEND.count_tokens(c, box, request, replace(Q4, resident=False)) == 0, "it would be woken"


def said(made: Exchange) -> str:
    """The text of a whole answer."""
    return str(json.loads(made.reply.body)["choices"][0]["message"]["content"])
