"""How many requests are at an endpoint at once, and who is next (SPEC PRICE-3).

Many servers never say that they are busy: they queue, or swap models back and forth. So the queue is ours: bounded,
with a longest wait, and where one model at a time is loaded those who ask for it go before those who need another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from turnout.errors import EndpointBusyError

LONGEST_QUEUE, LONGEST_WAIT = 64, 120.0  # requests, seconds
TURNS_OF_ONE_MODEL = 8  # then whoever waits for another one is next
RETRY_AFTER = 5.0  # seconds, told to who found the queue full or waited too long


@dataclass(eq=False, slots=True)
class _Waiter:
    model: str
    side: bool
    admitted: asyncio.Future[None]


@dataclass(slots=True)
class _Line:
    """What runs and waits at one endpoint."""

    running: int = 0
    model: str = ""  # of the request that was admitted last
    turns: int = 0  # of that model in a row, while others waited
    waiting: list[_Waiter] = field(default_factory=list)


class Admission:
    """The lines before all endpoints. One writer: the router's event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def load(self, url: str) -> tuple[int, int]:
        """Requests of ours that run and that wait there."""
        line = self._lines.get(url)
        return (line.running, len(line.waiting)) if line is not None else (0, 0)

    @asynccontextmanager
    async def admitted(
        self,
        url: str,
        model: str,
        limit: int,
        *,
        name: str,
        swaps: bool = False,
        side: bool = False,
        patience: float = LONGEST_WAIT,
    ) -> AsyncIterator[None]:
        """A place at an endpoint for as long as the context is open; it is entered when there is one.

        Args:
            limit: requests that it serves at once; 0 for no limit.
            name: the endpoint's, for messages.
            swaps: another model than the last one's would be loaded in its place.
            side: a small request beside a conversation: it lets the others go first.
            patience: seconds to wait for a place at most, if those are fewer than LONGEST_WAIT.

        Raises:
            EndpointBusyError: the queue is full, or the wait was too long.
        """
        line = self._lines.setdefault(url, _Line())
        if limit and (line.running >= limit or line.waiting):
            waiter = _Waiter(model, side, asyncio.get_running_loop().create_future())
            await _wait(line, waiter, limit, swaps, name, max(0.0, min(patience, LONGEST_WAIT)))
        else:
            _enter(line, model)
        try:
            yield
        finally:
            _leave(line, limit, swaps)
            if not line.running and not line.waiting:
                self._lines.pop(url, None)


async def _wait(line: _Line, waiter: _Waiter, limit: int, swaps: bool, name: str, patience: float) -> None:
    if len(line.waiting) >= LONGEST_QUEUE:
        raise _busy(f"{name} is busy, and {LONGEST_QUEUE} requests wait for it already", name)
    line.waiting.append(waiter)
    try:
        async with asyncio.timeout(patience):
            await waiter.admitted
    except BaseException as error:
        if waiter in line.waiting:
            line.waiting.remove(waiter)
        elif not waiter.admitted.cancelled():  # admitted at the very moment at which it gave up
            _leave(line, limit, swaps)
        if isinstance(error, TimeoutError):
            raise _busy(f"{name} was busy for {patience:.3g} s", name) from error
        raise


def _leave(line: _Line, limit: int, swaps: bool) -> None:
    line.running -= 1
    line.waiting = [w for w in line.waiting if not w.admitted.done()]  # who left has not been here to say so
    while line.waiting and line.running < max(1, limit):
        waiter = _next(line, swaps)
        line.waiting.remove(waiter)
        _enter(line, waiter.model)
        waiter.admitted.set_result(None)


def _enter(line: _Line, model: str) -> None:
    line.turns = line.turns + 1 if model == line.model else 1
    line.model, line.running = model, line.running + 1


def _next(line: _Line, swaps: bool) -> _Waiter:
    """Side requests last; where models are swapped, the loaded one's first, but not for ever."""
    able = [w for w in line.waiting if not w.side] or line.waiting
    if not swaps:
        return able[0]
    same = [w for w in able if w.model == line.model]
    others = [w for w in able if w.model != line.model]
    if same and (not others or line.turns < TURNS_OF_ONE_MODEL):
        return same[0]
    return others[0] if others else able[0]


def _busy(said: str, name: str) -> EndpointBusyError:
    return EndpointBusyError(said, endpoint=name, retry_after=RETRY_AFTER)
