"""Pinned models are loaded again, whatever one of the servers does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from turnout import residency
from turnout.backends.ollama import Ollama
from turnout.errors import GuardError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.pins import Pin, read_pins
from turnout.types import Endpoint, Health, Model


def keeping(names: str, rounds: Callable[[], None] = lambda: None) -> Any:
    """``keep_warm`` for a cold model "m" at each of these endpoints; ``rounds`` is called once in each round."""
    statuses = tuple(
        EndpointStatus(
            Endpoint(name, "ollama", f"http://127.0.0.1:{n + 1}"),
            Health.ONLINE,
            "",
            0.0,
            models=(Model("m", resident=False),),
        )
        for n, name in enumerate(names)
    )
    fleet: Any = SimpleNamespace(catalog=Catalog(statuses), nudge=lambda url: None)

    def pins() -> frozenset[Pin]:
        rounds()
        return frozenset(Pin("m", name) for name in names)

    client: Any = None
    return residency.keep_warm(client, fleet, pins, lambda: None)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "LOOK_EVERY", 0.0)


async def test_a_server_that_is_refused_breaks_or_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, loaded, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def load(self: object, client: object, endpoint: Endpoint, model: Model, told: object) -> None:
        if endpoint.name == "a":
            raise GuardError("its name leads elsewhere now", target="x")
        if endpoint.name == "b":
            raise LookupError("nonsense")
        if endpoint.name == "c":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        loaded.set()

    monkeypatch.setattr(Ollama, "load", load)
    async with asyncio.timeout(10), keeping("abcd", tried.set):
        await loaded.wait()
        tried.clear()
        await tried.wait()
    assert cancelled.is_set(), "closing ends a load that hangs"


async def test_a_server_that_drops_at_once_what_it_loaded_is_not_asked_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []
    count, many = 0, asyncio.Event()

    async def load(self: object, client: object, endpoint: Endpoint, model: Model, told: object) -> None:
        loads.append(endpoint.name)

    def rounds() -> None:
        nonlocal count
        count += 1
        if count == 50:
            many.set()

    monkeypatch.setattr(Ollama, "load", load)
    async with asyncio.timeout(10), keeping("a", rounds):
        await many.wait()
    assert loads == ["a"]


def test_pins_that_are_set_at_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    path, start = tmp_path / "pins.json", Barrier(8)

    def pin(name: str) -> None:
        start.wait()
        for n in range(5):
            candidate: Any = SimpleNamespace(model=Model(f"{name}{n}"), endpoint=Endpoint("box", "", "http://x"))
            residency.pin(path, candidate)

    threads = [Thread(target=pin, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_pins(path)) == 40
    assert [file.name for file in tmp_path.iterdir()] == ["pins.json"]
