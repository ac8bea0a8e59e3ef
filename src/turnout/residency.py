"""What is loaded, in the user's hands: warm, unload and pin a model through its server's own means."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.errors import NoSuitableModelError, TurnoutError
from turnout.fleet.pins import Pin, changing, cold, read_pins, write_pins
from turnout.routing.advice import ALL_MODELS, few_of, usable
from turnout.routing.capabilities import CapabilityTable
from turnout.routing.select import asked_for
from turnout.types import Candidate, Endpoint, Model

if TYPE_CHECKING:
    from turnout.backends.base import Told
    from turnout.fleet.watch import Fleet
    from turnout.guard.network import HttpClient

LOOK_EVERY, FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0, 1800.0  # seconds

log = logging.getLogger("turnout")


def found(pool: Sequence[Candidate], asked: str, table: CapabilityTable) -> tuple[Candidate, ...]:
    """The served models that ``MODEL`` or ``MODEL@ENDPOINT`` means.

    Raises:
        NoSuitableModelError: no server has it; says what there is.
    """
    matching = tuple(asked_for(pool, asked, table))
    if not matching:
        there = few_of(sorted({c.label.replace(" @ ", "@") for c in pool}))
        hint = f"there are: {there}; {ALL_MODELS}" if there else ""
        raise NoSuitableModelError(f"no server has the model {asked!r}", hint=hint)
    return matching


def the_one(pool: Sequence[Candidate], asked: str, table: CapabilityTable) -> Candidate:
    """The served model that is meant, when only one is.

    Raises:
        NoSuitableModelError: none is, or several are: says how to name one.
    """
    matching = found(pool, asked, table)
    exact = [c for c in matching if c.model.id == asked] or list(matching)
    if len(exact) > 1:
        names = ", ".join(c.label.replace(" @ ", "@") for c in exact)
        raise NoSuitableModelError(f"{asked!r} is at several servers", hint=f"name one: {names}")
    return exact[0]


async def warm(client: HttpClient, candidate: Candidate, told: Told) -> None:
    """Have the server load the model and keep it.

    Raises:
        ModelBlockedError: it is not the model that was recorded.
        BackendError: it has no means to, or it failed.
    """
    usable((candidate,))
    await BY_KIND[candidate.endpoint.kind].load(client, candidate.endpoint, candidate.model, told)


async def unload(client: HttpClient, candidate: Candidate) -> None:
    """Have the server free the model's memory.

    Raises:
        BackendError: it has no means to, or it failed.
    """
    await BY_KIND[candidate.endpoint.kind].unload(client, candidate.endpoint, candidate.model)


@asynccontextmanager
async def keep_warm(
    client: HttpClient, fleet: Fleet, pins: Callable[[], frozenset[Pin]], changed: Callable[[], None]
) -> AsyncIterator[None]:
    """Load pinned models again when their server dropped them, for as long as the context is open.

    Args:
        pins: reads the list, which other processes change.
        changed: told when it has changed.
    """
    keeping = asyncio.create_task(_keep_warm(client, fleet, pins, changed))
    try:
        yield
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def _keep_warm(
    client: HttpClient, fleet: Fleet, pins: Callable[[], frozenset[Pin]], changed: Callable[[], None]
) -> None:
    """What is cold again soon after a load, or was not loaded, waits for a pause that grows: there may be no room."""
    waits: dict[Pin, tuple[float, float]] = {}
    last: frozenset[Pin] = frozenset()
    loading: dict[str, asyncio.Task[None]] = {}  # one load at a time at each endpoint; a long one holds up no other
    async with asyncio.TaskGroup() as loads:
        while True:
            wanted = pins()
            if wanted != last:
                last = wanted
                changed()
            needed = {Pin(m.id, status.endpoint.name): (status, m) for status, m in cold(wanted, fleet.catalog)}
            now = time.monotonic()
            # One that stayed loaded for as long as its pause may be loaded at once the next time.
            waits = {this: wait for this, wait in waits.items() if this in needed or now < wait[0]}
            loading = {url: task for url, task in loading.items() if not task.done()}
            for this, (status, model) in needed.items():
                due, wait = waits.get(this, (0.0, FIRST_WAIT))
                if status.endpoint.url not in loading and now >= due:
                    waits[this] = now + wait, min(LONGEST_WAIT, wait * 2)
                    loading[status.endpoint.url] = loads.create_task(_load(client, fleet, status.endpoint, model))
            await asyncio.sleep(LOOK_EVERY)


async def _load(client: HttpClient, fleet: Fleet, endpoint: Endpoint, model: Model) -> None:
    try:
        await BY_KIND[endpoint.kind].load(client, endpoint, model, log.debug)
        fleet.nudge(endpoint.url)
    except TurnoutError as error:
        log.warning("the pinned model %s @ %s was not loaded: %s", model.id, endpoint.name, error)
    except Exception:  # what one server answers must not end the care for the others' models
        log.exception("the pinned model %s @ %s was not loaded", model.id, endpoint.name)


def pin(path: Path, candidate: Candidate) -> None:
    """Add the model to the list of those that stay loaded.

    Raises:
        StorageError: the list cannot be read or written.
    """
    with changing(path):
        write_pins(path, read_pins(path) | {Pin(candidate.model.id, candidate.endpoint.name)})


def unpin(path: Path, asked: str) -> tuple[Pin, ...]:
    """Take ``MODEL`` or ``MODEL@ENDPOINT`` off the list; returns what was on it. The server need not be there.

    Raises:
        NoSuitableModelError: it is not pinned.
        StorageError: the list cannot be read or written.
    """
    with changing(path):
        pins = read_pins(path)
        model, _, endpoint = asked.rpartition("@")
        gone = tuple(sorted(p for p in pins if _plain(p.model) == _plain(asked) or _is_pin(p, model, endpoint)))
        if not gone:
            there = ", ".join(f"{p.model}@{p.endpoint}" for p in sorted(pins)) or "nothing"
            raise NoSuitableModelError(f"{asked!r} is not pinned", hint=f"pinned: {there}")
        write_pins(path, pins - set(gone))
    return gone


def _is_pin(pin: Pin, model: str, endpoint: str) -> bool:
    return _plain(pin.model) == _plain(model) and pin.endpoint == endpoint


def _plain(model: str) -> str:
    """Without the tag that a name has when it has none."""
    return model.removesuffix(":latest")
