"""What every backend must do: one list, run against every fake, and against real servers where they can be had.

A behaviour is a coroutine function that asserts; its name is what ``LACKS`` of a fake and docs/services.md call it.
Where a server lacks a behaviour the suite asserts the lack: the backend then says so instead of guessing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from tests.fakes import FAKES
from tests.fakes.base import (
    ANSWER_TOKENS,
    ARGUMENTS,
    PROMPT_TOKENS,
    THOUGHT,
    TOOL,
    WORDS,
    Fake,
    FakeModel,
    running,
)
from turnout.backends import BY_KIND
from turnout.backends.base import Backend
from turnout.backends.lanes import event_lane
from turnout.config import DiscoveryConfig, RouterConfig, SecurityConfig
from turnout.errors import (
    ContextOverflowError,
    EndpointBusyError,
    NonsenseError,
    PhaseTimeoutError,
    RequestRefusedError,
    ServerFailedError,
    StreamBrokenError,
    UnknownModelError,
)
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.discovery import Target, look
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Event,
    Finish,
    Health,
    Limits,
    Model,
    ReasoningDelta,
    TextDelta,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
    message,
)

PATIENT = RouterConfig(discovery=DiscoveryConfig(timeout=20_000))  # a busy machine is no server without models
QUICK = Limits(connect=2.0, first_byte=5.0, silence=5.0, total=20.0)
QUESTION = ChatRequest((message("user", "Add two numbers"),))
WEATHER = Tool(
    TOOL,
    "the weather of a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


@dataclass
class Case:
    """One server under test. That of a real server (``test_real_servers.py``) overrides the methods with "a fake".

    Attributes:
        url: where it listens.
        fake: its state, for faults; of a real server what is known of it.
        lacks: behaviours that the server does not offer, with the reason.
        question: what it is asked where the behaviour does not care.
        long: a question whose answer takes long.
    """

    kind: str
    url: str
    client: HttpClient
    fake: Fake
    lacks: dict[str, str]
    question: ChatRequest = QUESTION
    long: ChatRequest = QUESTION

    @property
    def backend(self) -> Backend:
        return BY_KIND[self.kind]

    def endpoint(self, **fields: object) -> Endpoint:
        given: dict[str, object] = {"limits": QUICK, "key": self.fake.key, "configured": True, **fields}
        return Endpoint("box", self.kind, self.url, **given)  # type: ignore[arg-type]

    async def look(self, **fields: object) -> EndpointStatus:
        """What discovery finds there, knowing nothing."""
        target = Target(replace(self.endpoint(**fields), kind=""), style="native")
        return await look(self.client, target, PATIENT)

    async def model(self) -> Model:
        """The first model that it lists."""
        return (await self.look()).models[0]

    async def ask(self, request: ChatRequest | None = None, **fields: object) -> list[Event]:
        """All events of an answer."""
        model = await self.model()
        request = replace(request or self.question, **fields)  # type: ignore[arg-type]
        lane = event_lane(self.client, self.backend, self.endpoint(), model, request, model.window)
        async with aclosing(lane) as events:
            return [event async for event in events]

    async def given(self, **state: object) -> None:
        """Bring the server into a state, named by the fields of ``Fake``: a fake is told to."""
        for name, value in state.items():
            setattr(self.fake, name, value)

    async def given_model(self, place: int, **state: object) -> None:
        """Bring a model into a state, named by the fields of ``FakeModel``: a fake is told to."""
        for name, value in state.items():
            setattr(self.fake.models[place], name, value)

    def check_answer(self, text: str, usage: Usage) -> None:
        """Whether this is the whole answer to the question: a fake says the same to everybody."""
        assert text == "".join(WORDS)
        assert usage == Usage(PROMPT_TOKENS, ANSWER_TOKENS)

    def check_speed(self, tokens_per_second: float) -> None:
        """Whether this is how fast it answered: a fake knows."""
        assert tokens_per_second == pytest.approx(self.fake.speed, rel=0.01)

    async def freed(self) -> None:
        """Wait until the server works on nothing for us: a fake notices."""
        await asyncio.wait_for(self.fake.closed.wait(), 5)

    async def is_resident(self) -> bool:
        """Whether the first model is loaded: a fake knows."""
        return self.fake.models[0].resident


def usage_of(events: list[Event]) -> Usage:
    return next((event.usage for event in events if isinstance(event, UsageReport)), Usage())


def kind_of(name: str) -> str:
    """The kind of a fake: one kind may have several, for the ways in which it runs."""
    return str(getattr(FAKES[name], "KIND", name))


@asynccontextmanager
async def serving(name: str, fake: Fake | None = None) -> AsyncIterator[Case]:
    """The fake of that name as it runs; ``fake`` is its state."""
    dialect = FAKES[name]
    models = [FakeModel(), FakeModel("llama-3.1-8b-instruct")][: getattr(dialect, "MODELS", 1)]
    fake = fake or Fake(models)
    async with running(dialect.app(fake), server_header=dialect.SERVER_HEADER) as url:
        async with open_client(AllowList.from_config(SecurityConfig())) as client:
            yield Case(kind_of(name), url, client, fake, dialect.LACKS)


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def identified(case: Case) -> None:
    status = await case.look()
    assert status.endpoint.kind == case.kind
    assert status.evidence
    if case.fake.version:
        assert status.version == case.fake.version


async def online(case: Case) -> None:
    assert (await case.look()).health is Health.ONLINE


async def loading(case: Case) -> None:
    await case.given(fault="loading")
    status = await case.look()
    assert (status.health, status.endpoint.kind) == (Health.LOADING, case.kind), status.reason


async def needs_key(case: Case) -> None:
    await case.given(key="secret")
    without = await case.look(key="")
    assert (without.health, without.endpoint.kind) == (Health.NEEDS_KEY, case.kind), without.reason
    assert (await case.look()).health is Health.ONLINE
    assert said(await case.ask())


async def models(case: Case) -> None:
    found = {model.id for model in (await case.look()).models}
    assert found == {model.id for model in case.fake.models if not model.remote}


async def window(case: Case) -> None:
    model, told = await case.model(), case.fake.models[0]
    assert (model.window, model.window_source) == (told.window, "known")


async def max_window(case: Case) -> None:
    assert (await case.model()).max_window == case.fake.models[0].max_window


async def residency(case: Case) -> None:
    assert (await case.model()).resident is case.fake.models[0].resident


async def size(case: Case) -> None:
    # Some servers tell it in rounded units.
    assert (await case.model()).size == pytest.approx(case.fake.models[0].size, rel=0.01)


async def quantization(case: Case) -> None:
    assert (await case.model()).quantization == case.fake.models[0].quantization


async def capabilities(case: Case) -> None:
    assert set(case.fake.models[0].capabilities) <= (await case.model()).capabilities


async def digest(case: Case) -> None:
    assert (await case.model()).digest == case.fake.models[0].digest


async def slots(case: Case) -> None:
    await case.given(slots=3)
    assert (await case.look()).slots == case.fake.slots


async def busy_count(case: Case) -> None:
    await case.given(busy=1)
    assert (await case.look()).busy == 1


async def speed(case: Case) -> None:
    assert said(await case.ask())
    # Twice: a gauge that whoever reads it sets back must not read as a server that stands still.
    for _ in range(2):
        case.check_speed((await case.look()).speed)


async def remote(case: Case) -> None:
    await case.given_model(-1, remote=True)
    status = await case.look()
    assert case.fake.models[-1].id not in {model.id for model in status.models}
    assert any(reason for _, reason in status.excluded)


async def looking_is_get_only(case: Case) -> None:
    await case.look()
    assert {method for method, _ in case.fake.requests} == {"GET"}


async def chat(case: Case) -> None:
    events = await case.ask()
    case.check_answer(said(events), usage_of(events))
    assert events[-1] == Finish("stop")


async def stream(case: Case) -> None:
    assert sum(isinstance(event, TextDelta) for event in await case.ask()) > 1


async def tools(case: Case) -> None:
    events = await case.ask(messages=(message("user", "What is the weather in Paris?"),), tools=(WEATHER,))
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert calls[0].name == TOOL
    assert calls[0].call_id
    assert json.loads("".join(call.arguments for call in calls)) == json.loads(ARGUMENTS)
    assert events[-1] == Finish("tool_calls")


async def reasoning(case: Case) -> None:
    events = await case.ask(reasoning_effort="high")
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "".join(THOUGHT)


async def structured(case: Case) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    answer = json.loads(said(await case.ask(response_format=wanted)))
    assert list(answer) == ["answer"]
    assert isinstance(answer["answer"], int)


async def embeddings(case: Case) -> None:
    model = await case.model()
    first, second = await case.backend.embed(case.client, case.endpoint(), model, ["a", "bcd"])
    (alone,) = await case.backend.embed(case.client, case.endpoint(), model, ["bcd"])
    assert len(first) == len(second)
    assert first != pytest.approx(second, abs=0.01)
    assert second == pytest.approx(alone, abs=0.01), "in the order of the texts"


async def count(case: Case) -> None:
    used = usage_of(await case.ask()).prompt_tokens
    assert used
    counted = await case.backend.count_tokens(case.client, case.endpoint(), case.question, await case.model())
    assert counted == used


async def overflow(case: Case) -> None:
    window = case.fake.models[0].window
    await case.given(fault="overflow")
    with pytest.raises(ContextOverflowError) as caught:
        await case.ask(messages=(message("user", "a " * window),))
    if "overflow_counts" not in case.lacks:
        assert caught.value.window == window
        uncounted = "overflow_prompt" in case.lacks
        assert caught.value.prompt_tokens == 0 if uncounted else caught.value.prompt_tokens > window


async def busy(case: Case) -> None:
    await case.model()
    await case.given(fault="busy")
    with pytest.raises(EndpointBusyError):
        await case.ask()


async def unknown_model(case: Case) -> None:
    model = replace(await case.model(), id="nobody-has-this")
    request = ChatRequest((message("user", "hello"),))
    lane = event_lane(case.client, case.backend, case.endpoint(), model, request, 4096)
    with pytest.raises(UnknownModelError):
        async with aclosing(lane) as events:
            async for _ in events:
                pass


async def error(case: Case) -> None:
    await case.given(fault="error")
    with pytest.raises(ServerFailedError):
        await case.ask()


async def malformed(case: Case) -> None:
    for fault in ("malformed", "html", "empty_200"):
        await case.given(fault=fault)
        with pytest.raises(NonsenseError):
            await case.ask()


async def drop(case: Case) -> None:
    await case.given(fault="drop")
    with pytest.raises(StreamBrokenError):
        await case.ask()


async def error_under_200(case: Case) -> None:
    await case.given(fault="error_200")
    # The words and the error may come in one piece: then nothing had been handed on, and another server may answer.
    with pytest.raises((StreamBrokenError, ServerFailedError)):
        await case.ask()


async def hang(case: Case) -> None:
    limits = replace(QUICK, first_byte=0.2)
    model = await case.model()
    await case.given(fault="hang")
    request = ChatRequest((message("user", "hello"),))
    lane = event_lane(case.client, case.backend, case.endpoint(limits=limits), model, request, model.window)
    with pytest.raises(PhaseTimeoutError, match="did not begin"):
        async with aclosing(lane) as events:
            async for _ in events:
                pass


async def cancel(case: Case) -> None:
    await case.given(fault="stall")
    model = await case.model()
    lane = event_lane(case.client, case.backend, case.endpoint(), model, case.long, model.window)
    async with aclosing(lane) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    await case.freed()


async def load(case: Case) -> None:
    # Taken before: some list only what is loaded.
    model = replace(await case.model(), resident=False)
    await case.given_model(0, resident=False)
    told: list[str] = []
    await case.backend.load(case.client, case.endpoint(), model, told.append)
    assert await case.is_resident()
    assert told


async def unload(case: Case) -> None:
    await case.given_model(0, resident=True)
    await case.backend.unload(case.client, case.endpoint(), await case.model())
    assert not await case.is_resident()


BEHAVIOURS: tuple[Callable[[Case], Awaitable[None]], ...] = (
    identified,
    online,
    loading,
    needs_key,
    looking_is_get_only,
    models,
    window,
    max_window,
    residency,
    size,
    quantization,
    capabilities,
    digest,
    slots,
    busy_count,
    speed,
    remote,
    chat,
    stream,
    tools,
    reasoning,
    structured,
    embeddings,
    count,
    overflow,
    busy,
    unknown_model,
    error,
    malformed,
    drop,
    error_under_200,
    hang,
    cancel,
    load,
    unload,
)


# What a backend says where its server lacks something: nothing known, or a refusal in clear words.


async def _unknown_window(case: Case) -> None:
    assert (await case.model()).window_source == "guessed" or (await case.model()).window == 0


async def _refuses(call: Awaitable[object]) -> None:
    with pytest.raises(RequestRefusedError, match="has no means to"):
        await call


async def _no_load(case: Case) -> None:
    model = replace(await case.model(), resident=False)
    await _refuses(case.backend.load(case.client, case.endpoint(), model, lambda _: None))


async def _no_unload(case: Case) -> None:
    await _refuses(case.backend.unload(case.client, case.endpoint(), await case.model()))


async def _no_embeddings(case: Case) -> None:
    await _refuses(case.backend.embed(case.client, case.endpoint(), await case.model(), ["a"]))


async def _no_count(case: Case) -> None:
    request = ChatRequest((message("user", "hello"),))
    assert await case.backend.count_tokens(case.client, case.endpoint(), request, await case.model()) == 0


async def _no_speed(case: Case) -> None:
    assert said(await case.ask())
    assert (await case.look()).speed == 0


async def _no_tools(case: Case) -> None:
    model = await case.model()
    assert model.capabilities, "a kind without tools says what its models can do"
    assert "tools" not in model.capabilities


def _field(name: str, nothing: object) -> Callable[[Case], Awaitable[None]]:
    async def check(case: Case) -> None:
        assert getattr(await case.model(), name) == nothing

    return check


async def _any(case: Case) -> None:
    """Nothing of ours shows the lack; an ordinary question is answered all the same."""
    assert said(await case.ask())


LACKING: dict[str, Callable[[Case], Awaitable[None]]] = {
    "window": _unknown_window,
    "max_window": _any,
    "residency": _any,
    "size": _field("size", 0),
    "quantization": _field("quantization", ""),
    "capabilities": _any,
    "digest": _field("digest", ""),
    "load": _no_load,
    "unload": _no_unload,
    "embeddings": _no_embeddings,
    "count": _no_count,
    "speed": _no_speed,
    "tools": _no_tools,
}
