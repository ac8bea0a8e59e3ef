"""What the second line of the guard costs a request: how often the gateway calls it, and for how long.

PYTHONPATH=src:. python tests/isolated.py python bench/hook.py
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import timeit

import aiohttp
import uvloop
from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app

from turnout.api import load_any
from turnout.gateway.app import running
from turnout.gateway.live import _live
from turnout.guard import hook

REQUESTS, CALLS = 200, 1_000_000
QUESTION = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


async def calls_per_request() -> tuple[float, float]:
    """All calls, and those for an event that is watched."""
    events: list[str] = []
    real = hook._hook

    def counting(event: str, arguments: tuple[object, ...]) -> None:
        events.append(event)
        real(event, arguments)

    hook._hook = counting  # before the gateway installs it
    async with serving(openai_app()) as backend:
        loaded = load_any(
            {"custom_endpoints": [{"name": "fake", "endpoint": backend}], "discovery": {"enabled": False}}
        )
        async with _live(loaded, beyond_loopback=False) as live, running(live) as (_, url):
            async with aiohttp.ClientSession() as session:
                for number in range(20 + REQUESTS):
                    if number == 20:
                        events.clear()
                    async with session.post(f"{url}/v1/chat/completions", json=QUESTION) as reply:
                        assert reply.status == 200
                        await reply.read()
                return len(events) / REQUESTS, sum(event in hook._WATCHED for event in events) / REQUESTS


def main() -> None:
    real = hook._hook
    nanoseconds = timeit.timeit(lambda: real("open", ("x",)), number=CALLS) / CALLS * 1e9
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TURNOUT_DATA_DIR"] = folder
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            called, watched = runner.run(calls_per_request())
    print(f"{called:.1f} calls for each request, {watched:.1f} of them watched; {nanoseconds:.0f} ns for each call")


if __name__ == "__main__":
    main()
