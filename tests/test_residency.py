"""Pinned models are kept warm: loaded again when their server dropped them, with a growing pause when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from tests.fakes import FAKES
from tests.fakes.base import Fake, FakeModel, running
from turnout import residency
from turnout.api import load_any
from turnout.config import SecurityConfig
from turnout.fleet import watch
from turnout.fleet.host import HostInfo
from turnout.fleet.pins import Pin
from turnout.fleet.watch import Fleet
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.residency import FIRST_WAIT, keep_warm

BOTH = frozenset({Pin("a:7b", "box"), Pin("gone:1b", "box")})


class Kept:
    """A server with one model, and the loop that keeps what is pinned. ``pins`` may be changed meanwhile."""

    def __init__(self, fake: Fake, url: str, fleet: Fleet) -> None:
        self.fake, self.url, self.fleet = fake, url, fleet
        self.pins: frozenset[Pin] = BOTH
        self.rounds, self.changes = 0, 0

    def read(self) -> frozenset[Pin]:
        self.rounds += 1
        return self.pins

    def changed(self) -> None:
        self.changes += 1

    @property
    def loads(self) -> int:
        return self.fake.requests.count(("POST", "/api/generate"))

    async def resident(self, wanted: bool) -> None:
        """Wait until the catalog says so."""
        async with asyncio.timeout(20):
            while self.fleet.catalog.endpoints[0].models[0].resident is not wanted:
                await self.fleet.changed(self.fleet.catalog.generation)

    async def some_rounds(self) -> None:
        """Wait until the loop has gone round: one more may have begun before."""
        async with asyncio.timeout(20):
            until = self.rounds + 3
            while self.rounds < until:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def kept(fake: Fake, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    monkeypatch.setattr(residency, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(residency, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(watch, "NUDGE_GAP", 0.0)
    ollama = FAKES["ollama"]
    async with running(ollama.app(fake), server_header=ollama.SERVER_HEADER) as url:
        custom = [{"name": "box", "endpoint": url, "api_style": "native"}]
        config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}}).config
        async with open_client(AllowList.from_config(SecurityConfig())) as client:
            async with Fleet(client, config, HostInfo("linux", "6", "x86_64")) as fleet:
                await fleet.refresh()
                fleet.watch()
                made = Kept(fake, url, fleet)
                async with keep_warm(client, fleet, made.read, made.changed):
                    yield made


def cold() -> Fake:
    return Fake([FakeModel("a:7b", resident=False)])


async def test_a_dropped_model_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    async with kept(cold(), clock, monkeypatch) as box:
        await box.resident(True)
        assert box.loads == 1
        box.fake.models[0].resident = False  # the server needed the room for another
        box.fleet.nudge(box.url)
        await box.resident(False)
        await box.some_rounds()
        assert box.loads == 1, "not at once: the two would push each other out for ever"
        clock[0] += FIRST_WAIT
        await box.resident(True)
        assert (box.loads, box.changes) == (2, 1)
        box.pins = frozenset()
        await box.some_rounds()
        box.fake.models[0].resident = False
        box.fleet.nudge(box.url)
        await box.resident(False)
        clock[0] += FIRST_WAIT
        await box.some_rounds()
        assert not box.fake.models[0].resident, "what is no longer pinned is left alone"
        assert box.changes == 2


async def test_a_load_that_fails_is_tried_again_after_a_pause_that_grows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake, clock = cold(), [1000.0]
    fake.fault = "error"
    async with kept(fake, clock, monkeypatch) as box:
        tries = []
        for seconds in (0.0, FIRST_WAIT - 1, 1.0, FIRST_WAIT, FIRST_WAIT):
            clock[0] += seconds
            await box.some_rounds()
            tries.append(box.loads)
        assert tries == [1, 1, 2, 2, 3]
        assert caplog.text.count("the pinned model a:7b @ box was not loaded") == 3
        fake.fault = ""
        clock[0] += 4 * FIRST_WAIT
        await box.resident(True)
        assert box.loads == 4


async def test_closing_ends_a_load_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = cold()
    fake.fault = "hang"
    before = asyncio.all_tasks()
    async with kept(fake, [0.0], monkeypatch) as box:
        async with asyncio.timeout(20):
            while not box.loads:
                await asyncio.sleep(0.001)
    assert asyncio.all_tasks() - before == set()
