"""A fleet of hundreds: how long a refresh takes, and what keeping it up to date costs.

    python bench/fleet.py [ENDPOINTS] [SILENT] [SECONDS]

ENDPOINTS (500) servers of three kinds on loopback addresses 127.x.y.z, in two other processes; SILENT (25) of them
accept connections and never answer. The steady state is watched for SECONDS (60) at the default interval.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

import uvloop

PORT = 8080
PROCESSES = 2


def reply(body: object, server: str) -> bytes:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nServer: {server}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def routes(number: int) -> Mapping[bytes, bytes]:
    """What server ``number`` answers: llama.cpp, vLLM or Ollama, with a model of its own."""
    model = f"qwen2.5-coder-7b-{number}"
    row: dict[str, object] = {"id": model, "object": "model", "created": 1764000000}
    match number % 3:
        case 0:
            meta = {"n_ctx": 8192, "n_ctx_train": 32768, "n_params": 7_615_616_512, "size": 4_683_074_048}
            listing = {"object": "list", "data": [row | {"owned_by": "llamacpp", "meta": meta}]}
            props = {"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}}
            found: dict[str, object] = {"/v1/models": listing, "/props": props, "/health": {"status": "ok"}}
            return {path.encode(): reply(body, "llama.cpp") for path, body in found.items()}
        case 1:
            listing = {"object": "list", "data": [row | {"owned_by": "vllm", "max_model_len": 8192}]}
            found = {"/v1/models": listing, "/version": {"version": "0.33.0"}}
            return {path.encode(): reply(body, "uvicorn") for path, body in found.items()}
        case _:
            details = {"family": "qwen2", "parameter_size": "7.6B", "quantization_level": "Q4_K_M"}
            tag = {"name": model, "model": model, "size": 4_683_074_048, "digest": f"{number:064x}"}
            tags = {"models": [tag | {"details": details, "capabilities": ["completion", "tools"]}]}
            found = {"/": "Ollama is running", "/api/version": {"version": "0.33.0"}, "/api/tags": tags}
            found |= {"/api/status": {"cloud": {"disabled": True}}, "/api/ps": {"models": []}}
            return {path.encode(): reply(body, "x") for path, body in found.items()}


MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"


class Canned(asyncio.Protocol):
    """Answers each request at once from a table; nothing at all when there is none."""

    def __init__(self, table: Mapping[bytes, bytes] | None) -> None:
        self._table, self._rest = table, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        if self._table is not None:
            self._transport.write(b"".join(self._table.get(head.split(b" ", 2)[1], MISSING) for head in heads))


def address(number: int) -> str:
    return f"127.{1 + number // 250}.0.{1 + number % 250}"


async def serve(numbers: range, silent: int, ready: Connection) -> None:
    loop = asyncio.get_running_loop()
    for number in numbers:
        table = None if number < silent else routes(number)
        await loop.create_server(lambda table=table: Canned(table), address(number), PORT, backlog=64)
    ready.send(None)
    await asyncio.Event().wait()


def fakes(numbers: range, silent: int, ready: Connection) -> None:
    asyncio.run(serve(numbers, silent, ready))


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(endpoints: int, silent: int, seconds: float) -> None:
    from turnout.api import load_any
    from turnout.build import open_router

    custom = [{"name": f"s{n}", "endpoint": f"http://{address(n)}:{PORT}"} for n in range(endpoints)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    began, used = time.perf_counter(), cpu()
    async with open_router(config) as router:
        usable = time.perf_counter() - began
        await router.fleet.settled()
        print(f"usable after {usable:.2f} s, everything identified after {time.perf_counter() - began:.2f} s", end="")
        print(f" ({cpu() - used:.2f} s CPU): {len(router.catalog.serving)} of {endpoints} serve")
        for _ in range(3):
            began, used = time.perf_counter(), cpu()
            await router.refresh()
            print(f"a full refresh: {time.perf_counter() - began:.2f} s ({cpu() - used:.2f} s CPU)", end="")
            print(f", {len(router.catalog.serving)} serve")
        router.fleet.watch()
        await asyncio.sleep(20)  # the looks after the first ones have spread out
        began, used = time.perf_counter(), cpu()
        await asyncio.sleep(seconds)
        share = (cpu() - used) / (time.perf_counter() - began)
        print(f"steady state, each looked at every {router.fleet._interval:g} s: {share:.1%} of one core")
        print(f"{len(router.catalog.serving)} serve; changes of state: {len(router.fleet.book.events)}")


def main() -> None:
    given = [int(arg) for arg in sys.argv[1:]]
    endpoints, silent, seconds = (*given, *(500, 25, 60)[len(given) :])
    os.environ["TURNOUT_DATA_DIR"] = tempfile.mkdtemp()
    share = -(-endpoints // PROCESSES)
    spawn, children = multiprocessing.get_context("spawn"), []
    for first in range(0, endpoints, share):
        mine, theirs = spawn.Pipe()
        numbers = range(first, min(endpoints, first + share))
        child = spawn.Process(target=fakes, args=(numbers, silent, theirs), daemon=True)
        child.start()
        children.append((child, mine))
    for _, ready in children:
        ready.recv()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as `turnout serve` runs
            runner.run(measure(endpoints, silent, seconds))
    finally:
        for child, _ in children:
            child.kill()


if __name__ == "__main__":
    main()
