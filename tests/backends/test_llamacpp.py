"""llama.cpp's server as recorded: the engine in this package, and llama-server alone, asleep and as a router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from types import ModuleType

import pytest

from tests.fakes import llamacpp, llamacpp_router
from tests.fakes.base import Fake, FakeModel, running
from tests.recordings import Exchange, exchanges, replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.base import Inspection
from turnout.backends.lanes import event_lane, raw_lane
from turnout.backends.llamacpp import PROXIES, RUNS_COMMANDS
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointLoadingError,
    KeyRefusedError,
    PhaseTimeoutError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
)
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, open_client
from turnout.types import (
    ChatRequest,
    Details,
    Endpoint,
    Event,
    Finish,
    Health,
    Limits,
    Model,
    RawBody,
    RawChunk,
    TextDelta,
    Usage,
    UsageReport,
    WireFormat,
    message,
)
from turnout.weights import Weights
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
    (SID, "router-mixed"),
]
BACKEND = BY_KIND["llamacpp"]
NETWORK = SecurityConfig()
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
VOCABULARY, Q4_FILE = 49_152, "/tmp/rec/models/smollm2-135m-q4_1.gguf"
TEMPLATE = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
# The path is as it was written on the command line.
TOLD = {
    PIP: Weights(Q4_FILE, VOCABULARY, TEMPLATE),
    SID: Weights("models/smollm2-135m-q4_1.gguf", VOCABULARY, TEMPLATE),
}


async def inspected(version: str, state: str) -> Inspection:
    async with replaying("llamacpp", version, state) as url, open_client(AllowList.from_config(NETWORK)) as c:
        return await BACKEND.inspect(c, replace(BOX, url=url), 5.0)


@pytest.mark.parametrize(("version", "state"), STATES)
def test_it_names_itself_in_every_state(version: str, state: str) -> None:
    found = identify(replies("llamacpp", version, state))
    assert found is not None
    assert (found.kind, found.evidence.endswith("has the header Server: llama.cpp")) == ("llamacpp", True)


@pytest.mark.parametrize("state", ["ready", "router-idle"])
def test_behind_a_proxy_its_model_list_still_tells(state: str) -> None:
    proxied = {path: replace(r, headers={}) for path, r in replies("llamacpp", SID, state).items()}
    found = identify(proxied)
    assert found is not None
    assert found.kind == "llamacpp"


@pytest.mark.parametrize("version", [PIP, SID])
async def test_a_running_server_tells_its_window_size_and_quantisation(version: str) -> None:
    found = await inspected(version, "ready")
    # The package's has its metrics on, and knows no build of its own.
    expected = {
        PIP: Inspection(Health.ONLINE, "answers", (replace(Q4, weights=TOLD[PIP]),), slots=2, busy=0, waiting=0),
        SID: Inspection(Health.ONLINE, "answers", (replace(Q4, weights=TOLD[SID]),), slots=1, version="b11669-Debian"),
    }
    assert found == expected[version], "2048 tokens shared by two slots are 1024 each"


async def test_discovery_finds_it_by_its_answers_alone() -> None:
    async with replaying("llamacpp", PIP, "ready") as url, open_client(AllowList.from_config(NETWORK)) as c:
        status = await look(c, Target(Endpoint("found", "", url)), RouterConfig())
    told = replace(Q4, weights=TOLD[PIP])
    assert (status.endpoint.kind, status.health, status.models) == ("llamacpp", Health.ONLINE, (told,))


@pytest.mark.parametrize(("state", "notes"), [("tools-on", (RUNS_COMMANDS,)), ("ready", ()), ("asleep", ())])
async def test_tools_that_run_commands_are_told_of(state: str, notes: tuple[str, ...]) -> None:
    async with replaying("llamacpp", SID, state) as url, open_client(AllowList.from_config(NETWORK)) as c:
        target = Target(Endpoint("found", "", url))
        status = await look(c, target, RouterConfig())
        again = await look(c, target, RouterConfig(), status)
    assert (status.notes, again.notes) == (notes, notes), "they are asked for only when it is identified"


async def test_a_loading_server_is_loading() -> None:
    assert await inspected(PIP, "loading") == Inspection(Health.LOADING, "loading its model")


async def test_a_keyed_server_needs_its_key() -> None:
    assert await inspected(PIP, "keyed") == Inspection(Health.NEEDS_KEY, "needs a key")


async def test_a_sleeping_server_is_online_with_nothing_loaded() -> None:
    found = await inspected(SID, "asleep")
    asleep = (replace(Q4, resident=False, weights=TOLD[SID]),)
    expected = Inspection(Health.ONLINE, "asleep, wakes on a request", asleep, slots=1, version="b11669-Debian")
    assert found == expected


async def test_a_routers_models_have_the_window_that_they_will_get() -> None:
    listed = Model("smol-q4", window=1024, max_window=8192, resident=False, weights=Weights(Q4_FILE))
    found = await inspected(SID, "router-idle")
    both = (listed, replace(listed, id="smol-q8", weights=Weights(Q4_FILE.replace("q4_1", "q8_0"))))
    assert found == Inspection(Health.ONLINE, "answers", both, capacity=1, version="b11669-Debian")


async def test_a_router_tells_more_of_a_loaded_model() -> None:
    found = await inspected(SID, "router-loaded")
    loaded, other = found.models
    assert loaded == replace(Q4, id="smol-q4", capabilities=frozenset(), weights=Weights(Q4_FILE, VOCABULARY))
    assert (other.id, other.resident, other.window) == ("smol-q8", False, 1024)


async def test_a_router_says_what_failed_and_what_sleeps() -> None:
    found = await inspected(SID, "router-mixed")
    assert found.reason == "answers; broken failed to load (exit code 1)"
    assert {m.id: m.resident for m in found.models} == {"broken": False, "smol-q4": True, "smol-q8": False}
    assert {m.id: m.size for m in found.models} == {"broken": 0, "smol-q4": 96_576_768, "smol-q8": 143_025_408}
    assert found.capacity == 3


async def test_what_a_routers_model_can_do_is_asked_of_the_loaded_one_alone() -> None:
    async with replaying("llamacpp", SID, "router-mixed") as url, open_client(AllowList.from_config(NETWORK)) as c:
        status = await look(c, Target(Endpoint("found", "", url)), RouterConfig())
    assert {m.id: m.capabilities for m in status.models} == {
        "broken": frozenset(),
        "smol-q4": {"chat"},
        "smol-q8": frozenset(),
    }
    assert status.details == {("smol-q4", ""): Details(capabilities=frozenset({"chat"}))}


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
        (SID, "router-mixed", "chat-broken", ServerFailedError),
        (SID, "router-mixed", "get-props-model-broken-autoload-false", UnknownModelError),
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
        open_client(AllowList.from_config(NETWORK)) as c,
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
    async with replaying("llamacpp", PIP, "ready") as url, open_client(AllowList.from_config(NETWORK)) as c:
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
    async with replaying("llamacpp", PIP, "ready") as url, open_client(AllowList.from_config(NETWORK)) as c:
        box = replace(BOX, url=url)
        assert await BACKEND.count_tokens(c, box, request, Q4) == 33
        assert await BACKEND.count_tokens(c, box, request, replace(Q4, resident=False)) == 0, "it would be woken"


@asynccontextmanager
async def faked(dialect: ModuleType, **options: object) -> AsyncIterator[tuple[Fake, Endpoint, HttpClient]]:
    """A fake with a model that is loaded and one that is not, or with one that sleeps."""
    fake = Fake([FakeModel("first"), FakeModel("second", resident=False)], options=options)
    async with running(dialect.app(fake), server_header=dialect.SERVER_HEADER) as url:
        async with open_client(AllowList.from_config(NETWORK)) as client:
            yield fake, replace(BOX, url=url), client


FIRST, SECOND = Model("first", resident=True), Model("second", resident=False)


async def test_a_load_is_awaited_and_told() -> None:
    told: list[str] = []
    async with faked(llamacpp_router) as (fake, box, client):
        await BACKEND.load(client, replace(box, url=box.url + "/v1"), SECOND, told.append)
        assert fake.models[1].resident
        await BACKEND.load(client, box, SECOND, told.append)
    assert told == ["box: second is loading 50%", "box: second is loaded", "box: second is loaded"]
    assert fake.requests.count(("POST", "/models/load")) == 1, "what is loaded is not loaded again"


async def test_a_load_that_fails_says_how() -> None:
    async with faked(llamacpp_router, broken={"second"}) as (_, box, client):
        with pytest.raises(ServerFailedError, match="box could not load second: exit code 1"):
            await BACKEND.load(client, box, SECOND, lambda _: None)
        with pytest.raises(UnknownModelError):
            await BACKEND.load(client, box, Model("third"), lambda _: None)


async def test_a_load_that_takes_too_long_is_given_up() -> None:
    hurried = Limits(total=0.2)
    async with faked(llamacpp_router, rows={"second": {"value": "loading"}}) as (_, box, client):
        with pytest.raises(PhaseTimeoutError, match="did not load second within 0.2 s"):
            await BACKEND.load(client, replace(box, limits=hurried), SECOND, lambda _: None)


async def test_an_unload_of_what_is_not_loaded_is_done() -> None:
    async with faked(llamacpp_router) as (fake, box, client):
        await BACKEND.unload(client, box, SECOND)
        await BACKEND.unload(client, box, FIRST)
    assert [path for method, path in fake.requests if method == "POST"] == ["/models/unload"]
    assert not fake.models[0].resident


@pytest.mark.parametrize("dialect", [llamacpp, llamacpp_router])
async def test_only_a_load_wakes_a_sleeper(dialect: ModuleType) -> None:
    async with faked(dialect, asleep={"first"}) as (fake, box, client):
        fake.models[0].resident = dialect is llamacpp_router
        status = await look(client, Target(replace(box, kind="")), RouterConfig())
        asleep = status.models[0]
        assert asleep.resident is False
        assert await BACKEND.count_tokens(client, box, HELLO, asleep) == 0
        again = await look(client, Target(replace(box, kind="")), RouterConfig(), status)
        assert again.models[0] == asleep
        assert {method for method, _ in fake.requests} == {"GET"}
        assert "/slots" not in {path for _, path in fake.requests}, "it would wake it, or keep it from falling asleep"
        await BACKEND.load(client, box, asleep, lambda _: None)
        woken = await look(client, Target(replace(box, kind="")), RouterConfig(), status)
    assert woken.models[0].resident is True


async def test_counting_loads_nothing_into_a_router() -> None:
    async with faked(llamacpp_router) as (fake, box, client):
        assert await BACKEND.count_tokens(client, box, HELLO, replace(SECOND, resident=True)) == 0, "it has gone since"
    assert not fake.models[1].resident


async def test_a_routers_changes_are_told_one_by_one() -> None:
    async with faked(llamacpp_router) as (_, box, client):

        async def load_and_unload() -> None:
            await BACKEND.load(client, box, SECOND, lambda _: None)
            await BACKEND.unload(client, box, SECOND)

        feed = BACKEND.changes(client, box)
        assert feed is not None
        async with asyncio.timeout(10), aclosing(feed):
            first = asyncio.create_task(anext(feed))
            while not first.done():  # the feed has no greeting that would say that it is open
                await load_and_unload()
            await load_and_unload()
            seen = [await first]
            while seen[-4:] != ["second is loading", "second is loading 0%", "second is loaded", "second is unloaded"]:
                seen.append(await anext(feed))


async def test_a_server_with_one_model_has_no_feed() -> None:
    async with faked(llamacpp) as (_, box, client):
        feed = BACKEND.changes(client, box)
        assert feed is not None
        assert [line async for line in feed] == []


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        (f"/root/.ollama/models/blobs/sha256-{'a' * 64}", "ollama"),
        (f"C:\\Users\\me\\.ollama\\models\\blobs\\sha256-{'a' * 64}", "ollama"),
        (f"/root/.docker/models/bundles/sha256/{'a' * 64}/model.gguf", "dockermodelrunner"),
        ("/home/me/.lmstudio/models/x/y/z.gguf", "lmstudio"),
        ("/home/me/blobs/sha256-short", ""),
        ("/models/z.gguf", ""),
    ],
)
async def test_weights_from_another_servers_store_tell_whose_child_it_is(path: str, parent: str) -> None:
    async with faked(llamacpp, model_path=path) as (_, box, client):
        status = await look(client, Target(replace(box, kind="")), RouterConfig())
    assert status.child_of == parent


@pytest.mark.parametrize("dialect", [llamacpp, llamacpp_router])
async def test_a_proxy_that_is_on_is_told_of(dialect: ModuleType) -> None:
    async with faked(dialect, cors_proxy=True, metrics=False) as (_, box, client):
        found = await BACKEND.inspect(client, box, 2.0)
    assert (found.notes, found.busy) == ((PROXIES,), None)


async def test_what_a_router_fetches_from_elsewhere_is_told_of() -> None:
    hub = {"args": ["llama-server", "--hf-repo", "somebody/something"]}
    rows = {"first": {"value": "downloading"}, "second": hub}
    async with faked(llamacpp_router, rows=rows) as (_, box, client):
        found = await BACKEND.inspect(client, box, 2.0)
    assert found.notes == (
        "it is downloading first",
        "second is named by its place on a hub: loading it may ask there",
    )
    assert [model.id for model in found.models] == ["second"], "what is not there yet cannot answer"


def said(made: Exchange) -> str:
    """The text of a whole answer."""
    return str(json.loads(made.reply.body)["choices"][0]["message"]["content"])
