from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.base import running
from tests.fakes.liar import CHAT, DONE, SSE, Say, answer, event, lying, models
from tests.fakes.llm import openai_app
from turnout.api import collect, load_any
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.build import open_router
from turnout.config import LoadedConfig, SecurityConfig
from turnout.errors import EndpointDownError, QueryFailedError, StreamBrokenError
from turnout.fleet import watch
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.dedupe import Facts
from turnout.fleet.discovery import targets
from turnout.fleet.health import Record
from turnout.fleet.host import HostInfo
from turnout.fleet.watch import IDENTIFY_EVERY, Fleet, assemble, pause
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import ChatRequest, Endpoint, Health, Model, message

HOST = HostInfo("linux", "6", "x86_64")
HI = ChatRequest((message("user", "hi"),))
AN_HOUR, A_MINUTE = 3_600_000, 60_000
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(watch, "SOONEST", 3600.0)


def config_of(*urls: str, interval: int = AN_HOUR, timeout: int = A_MINUTE) -> LoadedConfig:
    """These endpoints alone, most preferred first. Looks come of themselves and end late: only on purpose."""
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    discovery = {"enabled": False, "interval": interval, "timeout": timeout}
    return load_any({"custom_endpoints": custom, "discovery": discovery})


@asynccontextmanager
async def fleet_of(*urls: str, interval: int = AN_HOUR, timeout: int = A_MINUTE) -> AsyncIterator[Fleet]:
    config = config_of(*urls, interval=interval, timeout=timeout).config
    async with open_client(AllowList.from_config(SecurityConfig())) as client:
        async with Fleet(client, config, HOST) as fleet:
            yield fleet


def states(fleet: Fleet) -> list[str]:
    return [status.health.value for status in fleet.catalog.endpoints]


class Gate:
    """Servers that accept and say nothing until they may."""

    def __init__(self) -> None:
        self.open, self.asked = asyncio.Event(), asyncio.Event()

    def then(self, said: bytes) -> Say:
        async def say(writer: asyncio.StreamWriter) -> None:
            self.asked.set()
            await self.open.wait()
            writer.write(said)
            await writer.drain()

        return say


# A refresh.


async def test_those_that_hang_hold_up_neither_the_start_nor_the_others() -> None:
    gate = Gate()
    slow = {"/.well-known/serviceinfo": gate.then(answer({})), "/v1/models": models("late")}
    async with AsyncExitStack() as stack:
        quick = [await stack.enter_async_context(running(openai_app((f"m{n}",)))) for n in range(7)]
        hanging = [await stack.enter_async_context(lying(slow)) for _ in range(3)]
        fleet = await stack.enter_async_context(fleet_of(*hanging, *quick))
        catalog = await fleet.refresh(whole=False)  # the limit of a probe is a minute: a wait for it would be seen
        assert len(catalog.serving) == 7
        assert [s.health for s in catalog.endpoints[:3]] == [Health.UNKNOWN] * 3
        assert catalog.waits
        gate.open.set()
        assert len((await fleet.refresh()).serving) == 10
        assert not fleet.catalog.waits


async def test_what_hangs_for_ever_is_offline_when_its_time_is_up() -> None:
    gate = Gate()
    async with lying({"/.well-known/serviceinfo": gate.then(b"")}) as hanging, fleet_of(hanging, timeout=50) as fleet:
        await fleet.refresh()
        assert [(s.health, s.reason) for s in fleet.catalog.endpoints] == [(Health.OFFLINE, "no answer within 0.05 s")]
        gate.open.set()


async def test_refreshes_are_one_at_a_time_and_those_who_wait_share_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    app, begun = openai_app(), []
    look_at_all = Fleet._look_at_all
    monkeypatch.setattr(Fleet, "_look_at_all", lambda fleet, run: begun.append(run) or look_at_all(fleet, run))
    async with running(app) as url, fleet_of(url) as fleet:
        await fleet.refresh()
        app.state.fake.paths.clear()
        first = asyncio.create_task(fleet.refresh())
        await asyncio.sleep(0)
        others = [asyncio.create_task(fleet.refresh(whole=n % 2 == 0)) for n in range(9)]
        await asyncio.gather(first, *others)
        assert len(begun) == 3
        assert app.state.fake.paths == ["/v1/models"] * 2
        await fleet.refresh()
        assert len(begun) == 4


async def test_a_path_that_a_server_sits_on_does_not_hide_the_server() -> None:
    gate = Gate()
    async with lying({"/v1/models": models("m"), "/api/config": gate.then(b"")}) as url:
        async with fleet_of(url, timeout=1000) as fleet:
            await fleet.refresh()
            assert states(fleet) == ["online"]
            gate.open.set()


async def test_a_caller_that_leaves_does_not_end_the_refresh_of_the_others() -> None:
    gate = Gate()
    async with lying({"/.well-known/serviceinfo": gate.then(answer({})), "/v1/models": models("m")}) as url:
        async with fleet_of(url) as fleet:
            first, second = (asyncio.create_task(fleet.refresh()) for _ in range(2))
            await gate.asked.wait()
            first.cancel()
            gate.open.set()
            assert (await second).serving


async def test_a_known_server_is_only_inspected_and_now_and_then_identified_anew() -> None:
    asked: list[str] = []

    class Heard(dict[str, Say]):
        def get(self, path: str, default: Say) -> Say:  # type: ignore[override]
            asked.append(path)
            return super().get(path, default)

    async with lying(Heard({"/v1/models": models("m")})) as url, fleet_of(url) as fleet:
        await fleet.refresh()
        probes = len(asked)
        asked.clear()
        for _ in range(IDENTIFY_EVERY):
            await fleet.refresh()
        assert asked.count("/v1/models") in (IDENTIFY_EVERY + 1, IDENTIFY_EVERY + 2)
        assert len(asked) == IDENTIFY_EVERY - 1 + probes


async def test_another_server_at_a_known_address_is_noticed() -> None:
    routes: dict[str, Say] = {"/v1/models": models("m")}
    async with lying(routes) as url, fleet_of(url) as fleet:
        await fleet.refresh()
        assert fleet.catalog.endpoints[0].endpoint.kind == "openai"
        del routes["/v1/models"]
        routes["/.well-known/serviceinfo"] = answer({"software": {"name": "KoboldCpp"}, "version": "1"})
        await fleet.refresh()
        await fleet.refresh()
        assert fleet.catalog.endpoints[0].endpoint.kind == "koboldcpp"


async def test_a_backend_that_stumbles_marks_its_endpoint_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inspect = OpenAICompatible.inspect

    async def stumble(self: OpenAICompatible, client: object, endpoint: Endpoint, timeout: float) -> object:
        if endpoint.name == "s0":
            raise KeyError("unexpected")
        return await inspect(self, client, endpoint, timeout)  # type: ignore[arg-type]

    monkeypatch.setattr(OpenAICompatible, "inspect", stumble)
    async with running(openai_app()) as one, running(openai_app()) as other, fleet_of(one, other) as fleet:
        await fleet.refresh()
        assert states(fleet) == ["degraded", "online"]
    assert "could not be read: KeyError" in fleet.catalog.endpoints[0].reason
    assert "looking at" in caplog.text


async def test_a_slow_look_leaves_a_server_in_use_behind_the_others() -> None:
    gate = Gate()
    routes: dict[str, Say] = {"/v1/models": models("m")}
    async with lying(routes) as url, fleet_of(url, timeout=1000) as fleet:
        await fleet.refresh()
        routes["/v1/models"] = gate.then(b"")
        await fleet.refresh()
        (status,) = fleet.catalog.serving
        assert (status.health, [m.id for m in status.models]) == (Health.DEGRADED, ["m"])
        assert fleet.book.rank(status.endpoint) == 1
        gate.open.set()


# The loop.


def test_the_rhythm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SOONEST", 1.0)
    online, offline = Record(Health.ONLINE), Record(Health.OFFLINE)
    assert [pause(online, quiet, 15.0, 0.0) for quiet in range(6)] == [1, 2, 4, 8, 15, 15]
    assert [pause(offline, quiet, 15.0, 0.0) for quiet in (0, 3, 4, 99)] == [1, 8, 15, 15], (
        "soon seen when it comes back"
    )
    assert pause(Record(Health.LOADING), 9, 15.0, 0.0) == 2.0
    assert pause(Record(Health.DEGRADED, retry_at=103.0), 9, 15.0, 100.0) == 3.0


async def test_servers_that_come_and_go_are_noticed() -> None:
    routes: dict[str, Say] = {}
    async with lying(routes) as url, fleet_of(url, interval=1000) as fleet:
        fleet.watch()
        await fleet.changed(0)
        assert states(fleet) == ["degraded"]
        routes["/v1/models"] = models("m")
        catalog = await fleet.changed(fleet.catalog.generation)
        assert [s.health for s in catalog.endpoints] == [Health.ONLINE]
        routes["/v1/models"] = models("m", "n")
        catalog = await fleet.changed(catalog.generation)
        assert [m.id for m in catalog.endpoints[0].models] == ["m", "n"]
    assert [(e.endpoint, e.after) for e in fleet.book.events] == [("s0", Health.DEGRADED), ("s0", Health.ONLINE)]


async def test_a_failed_request_makes_a_look_come_soon() -> None:
    async with AsyncExitStack() as stack:
        dying = AsyncExitStack()
        url = await dying.enter_async_context(running(openai_app()))
        router = await stack.enter_async_context(open_router(config_of(url), watch=True))
        generation = (await router.fleet.changed(0)).generation
        await router.refresh()
        await dying.aclose()
        with pytest.raises(QueryFailedError):
            await collect(router.route(HI))
        catalog = await router.fleet.changed(generation)
        assert [s.health for s in catalog.endpoints] == [Health.OFFLINE]
        assert router.fleet.book.events[-1].after is Health.OFFLINE


async def test_a_feed_makes_a_look_come_soon_and_is_read_again_after_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_RECONNECT", 0.001)
    lines: asyncio.Queue[str] = asyncio.Queue()
    opened: list[str] = []

    async def feed(endpoint: Endpoint) -> AsyncGenerator[str, None]:
        opened.append(endpoint.name)
        if len(opened) == 1:
            raise StreamBrokenError("the feed was cut")
        while True:
            yield await lines.get()

    monkeypatch.setattr(OpenAICompatible, "changes", lambda self, client, endpoint: feed(endpoint))
    routes: dict[str, Say] = {"/v1/models": models("m")}
    async with lying(routes) as url, fleet_of(url) as fleet:
        fleet.watch()
        generation = (await fleet.changed(0)).generation
        routes["/v1/models"] = models("n")
        await lines.put("loaded n")
        catalog = await fleet.changed(generation)
        assert [m.id for m in catalog.endpoints[0].models] == ["n"]
        assert opened == ["s0", "s0"]


async def test_closing_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, closed = asyncio.Event(), asyncio.Event()

    async def feed() -> AsyncGenerator[str, None]:
        try:
            reading.set()
            yield "hello"
            await asyncio.Event().wait()
        finally:
            closed.set()

    monkeypatch.setattr(OpenAICompatible, "changes", lambda self, client, endpoint: feed())
    gate = Gate()
    async with lying({"/v1/models": models("m")}) as url, lying({"/.well-known/serviceinfo": gate.then(b"")}) as silent:
        before = asyncio.all_tasks()
        async with fleet_of(url, silent) as fleet:
            await fleet.refresh(whole=False)
            fleet.watch()
            await gate.asked.wait()
            await reading.wait()
            refreshing = asyncio.create_task(fleet.refresh())
            await asyncio.sleep(0)
        await asyncio.wait({refreshing})
        assert closed.is_set()
        assert {t for t in asyncio.all_tasks() - before if "lying.<locals>.serve" not in repr(t)} == set()
        gate.open.set()
        await fleet.aclose()


# What is shown.


def status(name: str, url: str, health: Health = Health.ONLINE, kind: str = "openai") -> EndpointStatus:
    return EndpointStatus(Endpoint(name, kind, url), health, "", 0.0, models=(Model(url),))


def test_names_are_unique_and_stay() -> None:
    names: dict[tuple[str, str], str] = {}
    late = status("ollama", "http://127.0.0.1:11435")
    assert [s.endpoint.name for s in assemble([late], Facts(), {}, names)] == ["ollama"]
    both = [status("ollama", "http://127.0.0.1:11434"), late]
    for _ in range(2):
        assert [s.endpoint.name for s in assemble(both, Facts(), {}, names)] == ["ollama-11434", "ollama"]
    # It was away, and somebody else took its name meanwhile.
    third = status("ollama", "http://127.0.0.1:9")
    assert [s.endpoint.name for s in assemble([third], Facts(), {}, names)] == ["ollama"]
    assert len({s.endpoint.name for s in assemble([*both, third], Facts(), {}, names)}) == 3


def test_of_a_defaults_silent_addresses_one_is_shown() -> None:
    urls = ["http://127.0.0.1:8080", "http://[::1]:8080", "http://host.docker.internal:8080"]
    mains = dict.fromkeys(urls, urls[0])
    silent = [status("a or b", url, Health.OFFLINE, "") for url in urls]
    assert [s.endpoint.url for s in assemble(silent, Facts(), mains, {})] == urls[:1]
    one = [*silent[:2], status("a", urls[2])]
    assert [s.endpoint.url for s in assemble(one, Facts(), mains, {})] == urls[2:]
    was_there = [silent[0], status("a", urls[1], Health.OFFLINE), silent[2]]
    assert [s.endpoint.url for s in assemble(was_there, Facts(), mains, {})] == urls[1:2]


def test_every_default_is_looked_at_by_both_loopback_addresses() -> None:
    urls = [target.endpoint.url for target in targets(load_any({}).config, HOST)]
    assert {"http://127.0.0.1:11434", "http://[::1]:11434"} <= set(urls)


async def test_one_server_at_two_names_is_used_once() -> None:
    async with running(openai_app()) as url:
        async with fleet_of(url.replace("127.0.0.1", "[::ffff:127.0.0.1]"), url) as fleet:
            await fleet.refresh()
            assert len(fleet.catalog.serving) == 1  # the disguised one is refused
        alias = url.replace("127.0.0.1", "localhost") + "/v1"
        async with fleet_of(url, alias) as fleet:
            await fleet.refresh()
            assert [s.unused for s in fleet.catalog.endpoints] == ["", "the same server as s0"]
            assert len(fleet.catalog.serving) == 1


CHILD = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"object": "list", "data": [{"id": "inner"}]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the process tree")
async def test_a_servers_own_child_is_shown_and_not_used() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = Endpoint("child", "openai", f"http://127.0.0.1:{int(process.stdout.readline())}")
        try:
            async with running(openai_app()) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
                parent = Endpoint("parent", "openai", url)
                async with Fleet(client, config_of().config, HOST, extra=(child, parent)) as fleet:
                    await fleet.refresh()
                    inner, outer = fleet.catalog.endpoints
                    assert inner.unused == f"{outer.endpoint.name} runs it for itself alone"
                    assert fleet.catalog.serving == (outer,)
        finally:
            process.kill()


# A request.


async def test_a_dead_server_costs_a_request_nothing() -> None:
    async with AsyncExitStack() as stack:
        dying = AsyncExitStack()
        first = await dying.enter_async_context(running(openai_app()))
        second = await stack.enter_async_context(running(openai_app()))
        router = await stack.enter_async_context(open_router(config_of(first, second)))
        await dying.aclose()
        met = await collect(router.route(HI))
        assert [a.service for a in met.attempts] == ["s0", "s1"]
        for _ in range(3):
            spared = await collect(router.route(HI))
            assert [a.service for a in spared.attempts] == ["s1"]
        explained = await router.explain(HI)
        assert [a.candidate.endpoint.name for a in explained.attempts] == ["s1"]
        ((candidate, reason),) = explained.selection.rejected
        assert candidate.endpoint.name == "s0"
        assert reason.startswith("left out for")
        assert "connection refused" in reason


async def test_when_all_are_dead_the_nearest_is_tried_all_the_same() -> None:
    app = openai_app()
    async with running(app) as url, open_router(config_of(url)) as router:
        endpoint = router.catalog.endpoints[0].endpoint
        router.fleet.book.attempt(endpoint, EndpointDownError("refused"))
        assert router.fleet.book.bars(endpoint)
        assert (await collect(router.route(HI))).text
        assert not router.fleet.book.troubled


async def test_of_two_dead_ones_the_one_that_is_nearest_to_its_next_try_is_tried() -> None:
    async with running(openai_app()) as one, running(openai_app()) as other:
        async with open_router(config_of(one, other)) as router:
            first, second = (status.endpoint for status in router.catalog.endpoints)
            for endpoint in (first, first, second):
                router.fleet.book.attempt(endpoint, EndpointDownError("refused"))
            record = router.fleet.book.record(first)
            router.fleet.book._records[first.url] = replace(record, retry_at=record.retry_at + 50)
            explained = await router.explain(HI)
            assert [a.candidate.endpoint for a in explained.attempts] == [second]
            assert [c.endpoint for c, _ in explained.selection.rejected] == [first]


async def test_failed_answers_are_told_and_a_broken_server_is_left_out() -> None:
    broken, good = openai_app(), openai_app()
    async with running(broken) as one, running(good) as other, open_router(config_of(one, other)) as router:
        broken.state.fake.fault = "error"
        # Of different conversations: one that was answered at the second would stay there.
        asked = [ChatRequest((message("user", f"hi {n}"),)) for n in range(5)]
        services = [[a.service for a in (await collect(router.route(one))).attempts] for one in asked]
        assert services == [["s0", "s1"]] * 3 + [["s1"]] * 2
        assert router.fleet.book.record(router.catalog.endpoints[0].endpoint).health is Health.DEGRADED


async def test_a_stream_that_breaks_after_it_began_is_told_too() -> None:
    app = openai_app()
    async with running(app) as url, open_router(config_of(url)) as router:
        app.state.fake.fault = "drop"
        with pytest.raises(StreamBrokenError):
            await collect(router.route(HI))
        assert router.fleet.book.record(router.catalog.endpoints[0].endpoint).failures == 1


async def test_a_request_that_was_cancelled_says_nothing_of_the_server() -> None:
    app = openai_app()
    async with running(app) as url, open_router(config_of(url)) as router:
        record = router.fleet.book.record(router.catalog.endpoints[0].endpoint)
        async with aclosing(router.route(HI)) as events:
            await anext(events)
        assert router.fleet.book.record(router.catalog.endpoints[0].endpoint) == record


@pytest.mark.parametrize("fault", ["key", "busy", "overflow"])
async def test_what_is_no_fault_of_the_server_bars_nobody(fault: str) -> None:
    app = openai_app()
    async with running(app) as url, open_router(config_of(url)) as router:
        app.state.fake.fault = fault
        for _ in range(4):
            with pytest.raises(QueryFailedError):
                await collect(router.route(HI))
        assert not router.fleet.book.troubled


async def test_a_loading_server_stands_behind_the_others() -> None:
    async with running(openai_app()) as one, running(openai_app()) as other:
        async with open_router(config_of(one, other)) as router:
            first = router.catalog.endpoints[0]
            router.fleet.book.look(EndpointStatus(first.endpoint, Health.LOADING, "loading", 0.0))
            explained = await router.explain(HI)
            assert [a.candidate.endpoint.name for a in explained.attempts] == ["s1", "s0"]
            assert explained.attempts[1].reason.partition(", about")[0].endswith("behind others: loading")


async def test_a_model_whose_server_has_not_answered_yet_is_waited_for() -> None:
    gate = Gate()
    late = {
        "/.well-known/serviceinfo": gate.then(answer({})),
        "/v1/models": models("rare"),
        CHAT: SSE + event("hello") + DONE,
    }
    async with running(openai_app()) as quick, lying(late) as slow, open_router(config_of(quick, slow)) as router:
        assert router.catalog.waits
        asking = asyncio.create_task(collect(router.route(ChatRequest(HI.messages, model="rare"))))
        await gate.asked.wait()
        gate.open.set()
        assert (await asking).service == "s1"


async def test_a_server_that_was_started_meanwhile_is_found_by_the_next_request() -> None:
    routes: dict[str, Say] = {}
    async with lying(routes) as url, open_router(config_of(url)) as router:
        assert not router.catalog.serving
        routes |= {"/v1/models": models("m"), CHAT: SSE + event("hello") + DONE}
        assert (await collect(router.route(HI))).text == "hello"
