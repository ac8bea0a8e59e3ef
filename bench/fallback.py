"""What two dead servers and a slow one add to an answer that a good one gives.

    python bench/fallback.py [REQUESTS]

Four servers with the same model: the first refuses connections, the second accepts them and answers nothing at all, the
third begins to answer only after its limit, the fourth is good. All four were well when the router looked at them. The
time added is that until the first event, less the median of the good server alone.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.scripted import Asked, Scripted, good, scripted

if TYPE_CHECKING:
    from turnout.router import Router

CONNECT, FIRST_BYTE, SLOW = 0.5, 1.0, 2.0  # seconds: two limits, and what the slow server takes
LIMITS = CONNECT + 2 * FIRST_BYTE  # of the three that stand before the good one
FIRST, PAUSE = 10, 0.05  # requests that meet what nobody knows yet; seconds between two askers' requests


async def slowly(asked: Asked) -> None:
    await asyncio.sleep(SLOW)
    await good(asked)


async def one(router: Router) -> tuple[float, str]:
    """Seconds until the first event, and who answered."""
    from turnout.types import ChatRequest, Started, message

    began, service, first = time.perf_counter(), "", 0.0
    async with aclosing(router.route(ChatRequest((message("user", "Write a function that adds."),)))) as events:
        async for event in events:
            first = first or time.perf_counter() - began
            if isinstance(event, Started):
                service = event.route.service
    return first, service


async def many(router: Router, count: int, askers: int) -> list[tuple[float, str]]:
    """As many requests in the order they ended, from so many askers."""
    found: list[tuple[float, str]] = []

    async def asker() -> None:
        for _ in range(count // askers):
            found.append(await one(router))
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(asker() for _ in range(askers)))
    return found


def tell(what: str, times: Sequence[float], alone: float) -> None:
    added = sorted((seconds - alone) * 1000 for seconds in times)
    p99 = added[min(len(added) - 1, int(len(added) * 0.99))]
    verdict = "under" if p99 < LIMITS * 1000 else "OVER"
    line = f"p50 {statistics.median(added):8.1f} ms, p99 {p99:8.1f} ms, most {added[-1]:8.1f} ms"
    print(f"{what:32} {line}  {verdict} the limits")


async def measure(count: int) -> None:
    from turnout.api import load_any
    from turnout.build import open_router

    for askers in (1, 8):
        servers = [Scripted(), Scripted(), Scripted(script=[slowly]), Scripted()]
        async with scripted(*servers):
            custom = [
                {
                    "name": name,
                    "endpoint": server.url,
                    "priority": place,
                    "timeout": int(CONNECT * 1000),
                    "first_byte_timeout": int(FIRST_BYTE * 1000),
                }
                for place, (name, server) in enumerate(zip(("dead", "silent", "slow", "good"), servers, strict=True))
            ]
            only = load_any({"custom_endpoints": custom[3:], "discovery": {"enabled": False}})
            async with open_router(only) as router:
                await many(router, 20, 1)
                alone = statistics.median(seconds for seconds, _ in await many(router, count, askers))
            loaded = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
            async with open_router(loaded, whole=True) as router:
                assert len(router.catalog.serving) == 4
                router.fleet.watch()
                await servers[0].stop()
                servers[1].silent = True
                found = await many(router, count, askers)
        print(f"{askers} at a time, the good one alone: {alone * 1000:.1f} ms; the limits together: {LIMITS:g} s")
        tell(f"  the first {FIRST} requests", [seconds for seconds, _ in found[:FIRST]], alone)
        tell("  the others", [seconds for seconds, _ in found[FIRST:]], alone)
        tell("  all", [seconds for seconds, _ in found], alone)
        late = sum(seconds - alone > 0.1 for seconds, _ in found)
        who = dict(Counter(service for _, service in found))
        asked = len(servers[2].asked)
        print(f"  100 ms or more were added to {late} of {len(found)}; answered by {who}; the slow one: {asked} asked")


def main() -> None:
    os.environ["TURNOUT_DATA_DIR"] = tempfile.mkdtemp()
    os.environ["TURNOUT_LOOPBACK_ONLY"] = "1"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200))


if __name__ == "__main__":
    main()
