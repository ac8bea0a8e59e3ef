"""The same list of behaviours against real servers, as far as they can be brought into the state without a switch.

The llama.cpp of the package always runs; ``tests/get_servers.sh`` brings the others.
``python -m tests.backends.test_real_servers`` prints which behaviour is shown with which server, and why not.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import real
from tests.backends.behaviours import BEHAVIOURS, LACKING, Case
from tests.fakes import llamacpp, llamacpp_router, mlx, ollama, openai, openwebui, vllm
from tests.fakes.base import Fake, FakeModel
from tests.real import RealServer
from tests.servers import LlamaServer, start_llama
from turnout.backends.lanes import event_lane
from turnout.config import DiscoveryConfig, RouterConfig, SecurityConfig
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.discovery import Target, look
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, StreamReply, open_client
from turnout.types import ChatRequest, Endpoint, Event, Limits, Model, TextDelta, Usage, message

NAMES = tuple(behaviour.__name__ for behaviour in BEHAVIOURS)
PATIENT = Limits(connect=5.0, first_byte=60.0, silence=60.0, total=120.0)
CONFIG = RouterConfig(discovery=DiscoveryConfig(timeout=20_000))
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=200, temperature=0)
# The weights end most answers after a sentence or two: so many numbers they must give.
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
LONG = replace(
    HELLO,
    messages=(message("user", "Write out the numbers from one to a thousand, one a line."),),
    max_tokens=None,
    response_format={"type": "json_schema", "json_schema": {"name": "numbers", "schema": NUMBERS}},
)
SWITCH = "it does so only when it is broken"
HIDDEN = {
    "busy": "it takes a rush while a model loads: recorded from Ollama 0.24",
    "error": SWITCH,
    "error_under_200": SWITCH,
    "malformed": SWITCH,
    "reasoning": "the test weights do not reason",
}
STATES_OF_ITS_OWN = {("key", "secret"), ("fault", "loading"), ("fault", "drop"), ("fault", "hang"), ("fault", "error")}
IDLE = re.compile(r"^vllm:num_requests_running\{.*\} 0\.0$", re.MULTILINE)
CHAT_ENDED = '"/api/chat"'  # in Ollama's log of requests, when one has ended
Server = RealServer | LlamaServer


@dataclass(frozen=True)
class Real:
    """A real server.

    Attributes:
        start: starts it, with a key or while it loads where the fields of ``Fake`` ask for that.
        models: what it then has; the first is the one that is asked.
        slots: what it was started with.
        lacks: as ``LACKS`` of a fake.
        hidden: behaviours that cannot be shown with it, with the reason.
        only: the only behaviours that are shown with it; empty for all others than the hidden.
        missing: why it cannot be started here, "" when it can.
        tools: fields that this server wants in a request with tools.
        heavy: it takes gigabytes or minutes; its tests bear the marker.
    """

    kind: str
    start: Callable[[Fake], Server]
    models: tuple[FakeModel, ...]
    lacks: dict[str, str]
    slots: int = 0
    hidden: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    missing: str = ""
    tools: dict[str, object] = field(default_factory=dict)
    heavy: bool = False

    def reason(self, name: str) -> str:
        """Why a behaviour is not shown, "" when it is, or its lack is."""
        if self.only:
            return "" if name in self.only else "as the other one of its kind"
        if name in self.lacks and name not in LACKING:
            return self.lacks[name]
        return "" if name in self.lacks else (HIDDEN | self.hidden).get(name, "")


WEIGHTS = FakeModel("smol", window=1024, max_window=8192, quantization="Q4_1")
SMOL = replace(WEIGHTS, size=96_576_768, capabilities=("chat",))
TEMPLATE = {"tools": "the template of the test weights has no tools, and the server says so"}
ALWAYS_AWAKE = {"load": "it is not told to sleep: shown with the one that is"}
NO_SERVER = "no llama-server: run `sh tests/get_servers.sh llama-server DIR`, which names TURNOUT_TEST_LLAMA_SERVER"
NO_OLLAMA = "no ollama: run `sh tests/get_servers.sh ollama DIR`, which names TURNOUT_TEST_OLLAMA"
NO_VLLM = (
    "no vLLM, or no weights for it: run `sh tests/get_servers.sh vllm DIR`, which names TURNOUT_TEST_VLLM and"
    " TURNOUT_TEST_SAFETENSORS"
)
NO_MLX = (
    "no MLX-LM, or no weights for it: run `sh tests/get_servers.sh mlx DIR`, which names TURNOUT_TEST_MLX and"
    " TURNOUT_TEST_SAFETENSORS"
)
NO_DASLLAMA = (
    "no dasllama, or no weights for it: run `sh tests/get_servers.sh dasllama DIR`, which names TURNOUT_TEST_DASLLAMA"
    " and TURNOUT_TEST_GGUF_Q8"
)
NO_OPENWEBUI = (
    "no Open WebUI, or no llama-server behind it: run `sh tests/get_servers.sh openwebui DIR` and"
    " `sh tests/get_servers.sh llama-server DIR`, which name TURNOUT_TEST_OPENWEBUI and TURNOUT_TEST_LLAMA_SERVER"
)


def _package(fake: Fake) -> Server:
    return start_llama(n_ctx=2048, parallel=2, api_key=fake.key, delay_load=fake.fault == "loading")


def _single(*more: str) -> Callable[[Fake], Server]:
    options = ("-c", "2048", "-np", "2", "--metrics", "--embeddings", "--pooling", "mean", *more)
    return lambda fake: real.llama_server(*options, key=fake.key, hold=fake.fault == "loading")


REAL: dict[str, Real] = {
    "llama.cpp-package": Real(
        "llamacpp",
        _package,
        (SMOL,),
        llamacpp.LACKS | TEMPLATE,
        slots=2,
        hidden=ALWAYS_AWAKE | {"embeddings": "it is started without: recorded how it refuses"},
    ),
    "llama-server": Real(
        "llamacpp",
        _single(),
        (SMOL,),
        llamacpp.LACKS | TEMPLATE,
        slots=2,
        hidden=ALWAYS_AWAKE,
        missing="" if real.LLAMA_SERVER else NO_SERVER,
    ),
    "llama-server-asleep": Real(
        "llamacpp",
        _single("--sleep-idle-seconds", "1"),
        (replace(SMOL, resident=False),),
        llamacpp.LACKS | TEMPLATE,
        slots=2,
        only=("identified", "online", "looking_is_get_only", "models", "window", "residency", "size", "slots", "load"),
        missing="" if real.LLAMA_SERVER else NO_SERVER,
    ),
    "llama-server-router": Real(
        "llamacpp",
        lambda fake: real.llama_router(fake.key),
        (SMOL, replace(SMOL, id="other", resident=False)),
        llamacpp_router.LACKS | TEMPLATE,
        missing="" if real.LLAMA_SERVER else NO_SERVER,
    ),
    "ollama": Real(
        "ollama",
        lambda fake: real.ollama(fake.options.get("models")),  # type: ignore[arg-type]
        (
            replace(WEIGHTS, id="smol-tools:latest", window=2048, size=98_363_610),
            FakeModel("smol:latest"),
            FakeModel("far:latest", remote=True),
        ),
        ollama.LACKS | {"overflow_counts": "0.24 names no number"},
        hidden={"looking_is_get_only": "0.24 is asked for its models one by one: in 0.33 the list tells"},
        missing="" if real.OLLAMA else NO_OLLAMA,
    ),
    "dasllama": Real(
        "openai",
        lambda fake: real.dasllama(),
        (FakeModel(Path(real.Q8).name, window=2048),),
        openai.LACKS,
        hidden={
            "cancel": "it does not tell what it works on",
            "embeddings": "it makes none",
            "needs_key": "it takes no key",
        },
        missing="" if real.DASLLAMA and real.Q8 else NO_DASLLAMA,
        tools={"tool_choice": "required"},
    ),
    "vllm": Real(
        "vllm",
        # One request at a time, so that the next is one too many. Of embeddings each text would count as one.
        lambda fake: real.vllm(
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-num-queued-reqs", "1"), key=fake.key
        ),
        (FakeModel("smol", window=2048),),
        vllm.LACKS | {"embeddings": "it was started to generate: shown with the one that embeds"},
        hidden={"busy": "", "error": ""},
        missing="" if real.VLLM and real.SAFETENSORS else NO_VLLM,
        heavy=True,
    ),
    "vllm-pooling": Real(
        "vllm",
        lambda fake: real.vllm("--runner", "pooling", key=fake.key),
        (FakeModel("smol", window=2048),),
        vllm.LACKS,
        only=("identified", "online", "models", "window", "embeddings"),
        missing="" if real.VLLM and real.SAFETENSORS else NO_VLLM,
        heavy=True,
    ),
    "mlx": Real(
        "mlx",
        lambda fake: real.mlx(),
        (FakeModel(real.SAFETENSORS),),
        mlx.LACKS,
        missing="" if real.MLX and real.SAFETENSORS else NO_MLX,
        heavy=True,
    ),
    "openwebui": Real(
        "openwebui",
        lambda fake: real.openwebui(real.llama_router(), connection_type="local", provider="llama.cpp"),
        (SMOL, replace(SMOL, id="other", resident=False)),
        openwebui.LACKS,
        hidden={
            "loading": "its port is not open until it has started",
            "tools": TEMPLATE["tools"],
            "remote": "each connection is of one sort: shown by itself, in tests/cli/test_real_openwebui.py",
        },
        missing="" if real.OPENWEBUI and real.LLAMA_SERVER else NO_OPENWEBUI,
        heavy=True,
    ),
}
HEAVY = (pytest.mark.heavy, pytest.mark.timeout(600))


@dataclass
class RealCase(Case):
    """A real server under test: the one that runs for all tests, or one of its own for what would spoil that."""

    real: Real = field(kw_only=True)
    server: Server = field(kw_only=True)
    own: list[Server] = field(default_factory=list)
    work: list[asyncio.Task[None]] = field(default_factory=list)
    ended: int = 0

    def endpoint(self, **fields: object) -> Endpoint:
        return super().endpoint(**{"limits": PATIENT, **fields})

    @property
    def engine(self) -> str:
        """The URL of the server that has the models."""
        behind = self.server.behind if isinstance(self.server, RealServer) else None
        return behind.url if behind is not None else self.url

    async def look(self, **fields: object) -> EndpointStatus:
        return await look(self.client, Target(replace(self.endpoint(**fields), kind=""), style="native"), CONFIG)

    async def model(self) -> Model:
        first = self.fake.models[0].id
        return next(model for model in (await self.look()).models if model.id == first)

    async def ask(self, request: ChatRequest | None = None, **fields: object) -> list[Event]:
        more = self.real.tools if "tools" in fields else {}
        if self.fake.fault != "drop":
            return await super().ask(request, **fields, **more)
        async with aclosing(await self.long_answer()) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    self.server.process.kill()
        return []

    async def long_answer(self) -> AsyncGenerator[Event, None]:
        model = await self.model()
        return event_lane(self.client, self.backend, self.endpoint(), model, self.long, model.window)

    async def given(self, **state: object) -> None:
        """Start a server of its own in that state, or do to it what brings it there; in others it is already."""
        for name, value in state.items():
            if (name, value) in STATES_OF_ITS_OWN and not (name == "key" and self.fake.key):
                setattr(self.fake, name, value)
                self.server = await asyncio.to_thread(self.real.start, self.fake)
                self.own.append(self.server)
                self.url, self.fake.key = self.server.url, self.server.key or self.fake.key
        if state == {"fault": "hang"}:
            os.killpg(self.server.process.pid, signal.SIGSTOP)
        if state == {"fault": "stall"} and isinstance(self.server, RealServer):
            self.ended = self.server.log.count(CHAT_ENDED)
        if state == {"fault": "error"} and isinstance(self.server, RealServer):
            os.kill(self.server.child("VLLM::EngineCore"), signal.SIGKILL)
        if "busy" in state or state == {"fault": "busy"}:
            await self.keep_busy()

    async def keep_busy(self) -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async with aclosing(await self.long_answer()) as events:
                async for _ in events:
                    begun.set()

        self.work.append(asyncio.create_task(listen()))
        await asyncio.wait_for(begun.wait(), 60)

    async def given_model(self, place: int, **state: object) -> None:
        """Load or unload by the server's own API, past our backends; or wait until it has fallen asleep."""
        if "resident" not in state:
            return
        wanted, told = state["resident"], self.fake.models[place]
        if self.kind == "ollama":
            keep = {"keep_alive": 600 if wanted else 0, "options": {"num_ctx": told.window}}
            await self.post("/api/generate", {"model": told.id, "stream": False, **keep})
        elif len(self.fake.models) > 1:
            await self.post("/models/load" if wanted else "/models/unload", {"model": told.id})
        await until(self.is_resident, bool(wanted))

    async def is_resident(self) -> bool:
        return (await self.model()).resident is True

    async def settle(self) -> None:
        """Bring it into the state that its facts tell."""
        first = self.fake.models[0]
        if self.kind == "ollama" or len(self.fake.models) > 1 or not first.resident:
            await self.given_model(0, resident=first.resident)
        if self.kind == "vllm":
            await until(self._is_idle, True)

    async def freed(self) -> None:
        """By its slots or gauges; of Ollama by its own log of requests that ended, of MLX-LM by its rest.

        Left alone, the long answer takes ten seconds and more.
        """
        await until(self._is_idle, True, 5)

    async def _is_idle(self) -> bool:
        if self.kind == "ollama":
            assert isinstance(self.server, RealServer)
            return self.server.log.count(CHAT_ENDED) > self.ended
        if self.kind == "mlx":
            assert isinstance(self.server, RealServer)
            before = self.server.worked
            await asyncio.sleep(0.5)  # in which it computes for 50 ticks when it does
            return self.server.worked - before < 5
        async with aiohttp.ClientSession() as session:
            if self.kind == "vllm":
                async with session.get(f"{self.url}/metrics") as reply:
                    return IDLE.search(await reply.text()) is not None
            async with session.get(f"{self.engine}/slots?model={self.fake.models[0].id}") as reply:
                return not any(slot["is_processing"] for slot in await reply.json())

    def check_answer(self, text: str, usage: Usage) -> None:
        assert text.strip()
        assert usage.prompt_tokens > 0
        assert 0 < usage.completion_tokens <= 200

    def check_speed(self, tokens_per_second: float) -> None:
        assert 0.1 < tokens_per_second < 100_000

    async def post(self, path: str, body: dict[str, object]) -> None:
        async with aiohttp.ClientSession() as session, session.post(self.engine + path, json=body) as reply:
            await reply.read()


async def until(state: Callable[[], Awaitable[bool]], wanted: bool, seconds: float = 20) -> None:
    """Ask a server until it is so: it reports nothing by itself."""
    async with asyncio.timeout(seconds):
        while await state() is not wanted:
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[[str], Server]]:
    """The servers that run for all tests, started when they are first asked for."""
    running: dict[str, Server] = {}

    def get(name: str) -> Server:
        if name not in running:
            running[name] = REAL[name].start(Fake())
        return running[name]

    yield get
    for server in running.values():
        server.stop()


@pytest.fixture
async def case(request: pytest.FixtureRequest, shared: Callable[[str], Server]) -> AsyncIterator[RealCase]:
    chosen = REAL[request.param]
    if chosen.missing:
        pytest.skip(chosen.missing)
    server = await asyncio.to_thread(shared, request.param)
    fake = Fake([replace(model) for model in chosen.models], slots=chosen.slots, key=server.key)
    if chosen.kind == "ollama" and isinstance(server, RealServer):
        store = server.folder / "models"
        fake.options["models"] = store
        manifest = store / "manifests" / "registry.ollama.ai" / "library" / "smol-tools" / "latest"
        fake.models[0].digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    async with open_client(AllowList.from_config(SecurityConfig())) as client:
        note_methods(client, fake)
        made = RealCase(
            chosen.kind, server.url, client, fake, chosen.lacks, question=HELLO, long=LONG, real=chosen, server=server
        )
        try:
            await made.settle()
            fake.requests.clear()
            yield made
        finally:
            for task in made.work:
                task.cancel()
            await asyncio.gather(*made.work, return_exceptions=True)
            for own in made.own:
                own.stop()


def note_methods(client: HttpClient, fake: Fake) -> None:
    """Keep the methods of our requests where a fake keeps those that it saw."""
    stream = client.stream

    def noted(method: str, url: str, **more: Any) -> AbstractAsyncContextManager[StreamReply]:
        fake.requests.append((method, url))
        return stream(method, url, **more)

    client.stream = noted  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(server, name, marks=HEAVY if REAL[server].heavy else ())
        for server in REAL
        for name in NAMES
        if not REAL[server].reason(name)
    ],
    indirect=["case"],
)
async def test_behaviour(case: RealCase, name: str) -> None:
    behave = LACKING[name] if name in case.lacks else BEHAVIOURS[NAMES.index(name)]
    await behave(case)


@pytest.mark.parametrize("case", ["llama-server-asleep"], indirect=True)
async def test_a_server_falls_asleep_while_it_is_looked_at(case: RealCase) -> None:
    await case.ask()
    status = await case.look()
    assert status.models[0].resident is True
    async with asyncio.timeout(15):
        while status.models[0].resident:
            await asyncio.sleep(0.2)  # often enough that a request which counts as work would keep it awake
            status = await look(case.client, Target(case.endpoint()), CONFIG, status)
    assert status.reason == "asleep, wakes on a request"


@pytest.mark.parametrize("case", ["llama-server-router"], indirect=True)
async def test_a_routers_feed_tells_of_each_change(case: RealCase) -> None:
    feed = case.backend.changes(case.client, case.endpoint())
    assert feed is not None
    seen: list[str] = []
    async with asyncio.timeout(30), aclosing(feed):
        first = asyncio.create_task(anext(feed))
        while not first.done():  # the feed has no greeting that would say that it is open
            await case.given_model(0, resident=False)
            await case.given_model(0, resident=True)
        seen.append(await first)
        await case.given_model(0, resident=False)
        while seen[-1] != "smol is unloaded" or "smol is loaded" not in seen:
            seen.append(await anext(feed))


def table() -> str:
    """The table behaviour x real server: shown, lacking, or why it is not shown, as a footnote."""
    notes: list[str] = []
    lines = ["| behaviour | " + " | ".join(REAL) + " |", "|---|" + "---|" * len(REAL)]
    for name in NAMES:
        cells = []
        for chosen in REAL.values():
            reason = chosen.reason(name)
            lack = "" if chosen.only else chosen.lacks.get(name, "")
            if not reason and not lack:
                cells.append("shown")
                continue
            note = reason or lack
            if note not in notes:
                notes.append(note)
            cells.append(f"{'lacks it' if lack else 'not shown'} ({notes.index(note) + 1})")
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
