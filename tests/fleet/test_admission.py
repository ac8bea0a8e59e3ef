"""Who may ask an endpoint now, and who is next (SPEC PRICE-3)."""

from __future__ import annotations

import asyncio

import pytest

from turnout.errors import EndpointBusyError
from turnout.fleet import admission
from turnout.fleet.admission import TURNS_OF_ONE_MODEL, Admission

URL = "http://127.0.0.1:1"


class Asked:
    """Requests that stay until they are let go; ``order`` is how they were admitted."""

    def __init__(self, limit: int, *, swaps: bool = False) -> None:
        self.admission, self.order = Admission(), list[str]()
        self._limit, self._swaps = limit, swaps
        self._running: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, model: str = "m", *, side: bool = False) -> None:
        self._running[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._ask(name, model, side))
        await asyncio.sleep(0)

    async def _ask(self, name: str, model: str, side: bool) -> None:
        async with self.admission.admitted(URL, model, self._limit, name="box", swaps=self._swaps, side=side):
            self.order.append(name)
            await self._running[name].wait()

    async def end(self, name: str) -> None:
        self._running[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self._tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[name]


async def test_so_many_run_at_once_and_the_others_in_turn() -> None:
    asked = Asked(2)
    for name in "abcd":
        await asked.ask(name)
    assert asked.order == ["a", "b"]
    assert asked.admission.load(URL) == (2, 2)
    await asked.end("b")
    assert asked.order == ["a", "b", "c"]
    for name in "acd":
        await asked.end(name)
    assert asked.admission.load(URL) == (0, 0)


async def test_without_a_limit_nobody_waits() -> None:
    asked = Asked(0)
    for name in "abc":
        await asked.ask(name)
    assert asked.order == ["a", "b", "c"]
    for name in "abc":
        await asked.end(name)


async def test_where_models_are_swapped_those_of_the_loaded_one_go_first_but_not_for_ever() -> None:
    asked = Asked(1, swaps=True)
    await asked.ask("x0", "x")
    await asked.ask("y", "y")
    for n in range(1, TURNS_OF_ONE_MODEL + 3):
        await asked.ask(f"x{n}", "x")
    for _ in range(TURNS_OF_ONE_MODEL + 2):
        await asked.end(asked.order[-1])
    assert asked.order.index("y") == TURNS_OF_ONE_MODEL
    await asked.end(asked.order[-1])
    await asked.end(asked.order[-1])


async def test_side_requests_let_the_others_go_first() -> None:
    asked = Asked(1)
    await asked.ask("a")
    await asked.ask("title", side=True)
    await asked.ask("b")
    await asked.end("a")
    await asked.end("b")
    assert asked.order == ["a", "b", "title"]
    await asked.end("title")


async def test_who_leaves_the_queue_takes_no_place() -> None:
    asked = Asked(1)
    for name in "abc":
        await asked.ask(name)
    await asked.leave("b")
    await asked.end("a")
    assert asked.order == ["a", "c"]
    await asked.leave("c")
    assert asked.admission.load(URL) == (0, 0)


async def test_who_leaves_as_he_is_admitted_gives_the_place_back() -> None:
    asked = Asked(1)
    for name in "abc":
        await asked.ask(name)
    asked._running["a"].set()
    await asyncio.sleep(0)  # a leaves and admits b, which has not run since
    await asked.leave("b")
    await asyncio.sleep(0)
    assert asked.order == ["a", "c"]
    await asked.end("c")
    assert asked.admission.load(URL) == (0, 0)


async def test_who_leaves_as_a_place_gets_free_takes_none_from_the_count() -> None:
    asked = Asked(1)
    for name in "abcd":
        await asked.ask(name)
    asked._running["a"].set()
    await asked.leave("b")  # a leaves first, and passes b over before b has run to say that it is gone
    await asyncio.sleep(0)
    assert asked.order == ["a", "c"]
    assert asked.admission.load(URL) == (1, 1)
    for name in "cd":
        await asked.end(name)
    assert asked.admission.load(URL) == (0, 0)


async def test_the_queue_is_bounded_and_so_is_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LONGEST_QUEUE", 1)
    monkeypatch.setattr(admission, "LONGEST_WAIT", 0.05)
    asked = Asked(1)
    await asked.ask("a")
    await asked.ask("b")
    with pytest.raises(EndpointBusyError, match="wait for it already") as caught:
        async with asked.admission.admitted(URL, "m", 1, name="box"):
            pass
    assert caught.value.retry_after > 0
    with pytest.raises(EndpointBusyError, match="was busy for"):
        await asked._tasks["b"]
    assert asked.admission.load(URL) == (1, 0)
    await asked.end("a")
