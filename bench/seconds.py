"""How far the expected seconds of an answer are from what the real llama.cpp server takes (SPEC PRICE-1).

    python bench/seconds.py

One server, one thread, the test's weights, and beside it a fake that only embeds: where nothing is to be decided,
nothing is expected. After 20 requests of all three kinds, 15 of each are compared: prompts that were never seen (cold),
the same ones with a turn more (warm), and those with as much again added (half cached).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes import vllm
from tests.fakes.base import Fake, FakeModel, running
from tests.servers import start_llama

from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.router import Router
from turnout.types import ChatRequest, message

LEARNED, MEASURED, ANSWER = 20, 15, 48
WORDS = ("parser", "window", "token", "cache", "server", "model", "file", "line", "error", "test", "value", "queue")


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) + str(chance.randrange(100)) for _ in range(count))


async def ask(router: Router, *texts: str) -> tuple[float, float]:
    """Expected and taken, in seconds."""
    roles = ("user", "assistant")
    turns = tuple(message(roles[n % 2], text) for n, text in enumerate(texts))
    began = time.monotonic()
    result = await collect(router.route(ChatRequest(turns, model="auto", max_tokens=ANSWER)))
    assert result.route is not None
    assert result.route.expected > 0
    return result.route.expected, time.monotonic() - began


async def main() -> None:
    chance = random.Random(1)
    server = await asyncio.to_thread(start_llama)
    os.environ["TURNOUT_DATA_DIR"] = tempfile.mkdtemp()
    beside = vllm.app(Fake([FakeModel("embedder", capabilities=("embeddings",))]))
    found: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": [], "half cached": []}
    async with running(beside, server_header=vllm.SERVER_HEADER) as other:
        custom = [{"name": "real", "endpoint": server.url}, {"name": "beside", "endpoint": other}]
        await measured(load_any({"custom_endpoints": custom, "discovery": {"enabled": False}}), chance, found)
    server.stop()
    for kind, pairs in found.items():
        errors = sorted(abs(expected - taken) / taken for expected, taken in pairs)
        taken = median(t for _, t in pairs)
        print(f"| {kind} | {taken:.2f} s | {median(errors):.0%} | {errors[int(0.9 * len(errors))]:.0%} |")


async def measured(config: LoadedConfig, chance: random.Random, found: dict[str, list[tuple[float, float]]]) -> None:
    async with open_router(config) as router:
        for number in range(LEARNED // 3 + 1 + MEASURED):
            text = words(chance, chance.randrange(60, 240))
            more = words(chance, len(text.split()))
            for kind, texts in (
                ("cold", (text,)),
                ("warm", (text, "Yes.", "Go on with it.")),
                ("half cached", (text, "Yes.", "Go on with it.", "Done.", more)),
            ):
                pair = await ask(router, *texts)
                if number > LEARNED // 3:
                    found[kind].append(pair)


if __name__ == "__main__":
    asyncio.run(main())
