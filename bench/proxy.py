"""CPU per request of the gateway's raw lane beside a bare Starlette + aiohttp proxy, in the same run.

    python bench/proxy.py [REQUESTS]

A stub upstream, each proxy in a process of its own, 16 requests in flight, 2 KB bodies; the CPU time is what the
kernel accounted to the proxy's process. Rounds alternate, medians are printed, and the ratio is what counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time

import aiohttp
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ROUNDS, IN_FLIGHT = 5, 16
ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "stub-7b",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 1000}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 250, "total_tokens": 750},
    }
).encode()
BODY = json.dumps({"model": "stub-7b", "messages": [{"role": "user", "content": "y" * 1900}]}).encode()


def stub() -> Starlette:
    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "stub-7b", "object": "model", "max_model_len": 32768}]})

    async def chat(request: Request) -> Response:
        await request.body()
        return Response(ANSWER, media_type="application/json")

    async def cpu(_: Request) -> Response:
        return JSONResponse(_cpu())

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/cpu", cpu),
        ]
    )


def bare(upstream: str) -> Starlette:
    session: list[aiohttp.ClientSession] = []

    async def chat(request: Request) -> Response:
        if not session:
            session.append(aiohttp.ClientSession(auto_decompress=False))
        body = json.loads(await request.body())
        body["model"] = "stub-7b"
        headers = {"Content-Type": "application/json"}
        url = upstream + "/v1/chat/completions"
        async with session[0].post(url, data=json.dumps(body).encode(), headers=headers) as reply:
            return Response(await reply.read(), status_code=reply.status, media_type="application/json")

    async def cpu(_: Request) -> Response:
        return JSONResponse(_cpu())

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/cpu", cpu)])


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _gateway(upstream: str, port: int) -> None:
    from turnout.build import open_router
    from turnout.config import CustomEndpoint, DiscoveryConfig, LoadedConfig, RouterConfig
    from turnout.gateway.app import calm_collector, create_app, running

    config = RouterConfig(
        custom_endpoints=(CustomEndpoint(name="stub", endpoint=upstream),), discovery=DiscoveryConfig(enabled=False)
    )

    async def cpu(_: Request) -> Response:
        return JSONResponse(_cpu())

    async with open_router(LoadedConfig(config)) as router:
        calm_collector()
        app = create_app(router)
        app.router.routes.append(Route("/cpu", cpu))
        async with running(app, port=port) as (server, _):
            await server


async def _uvicorn(app: Starlette, port: int) -> None:
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off")
    await uvicorn.Server(config).serve()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(role: str, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--role", role, *args])


async def _wait(client: aiohttp.ClientSession, url: str) -> None:
    for _ in range(400):
        try:
            async with client.get(url + "/cpu") as reply:
                if reply.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit(f"{url} did not start")


async def _load(client: aiohttp.ClientSession, url: str, count: int) -> float:
    async def worker(number: int) -> None:
        for _ in range(number):
            async with client.post(url + "/v1/chat/completions", data=BODY) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()

    before = await _read_cpu(client, url)
    await asyncio.gather(*(worker(count // IN_FLIGHT) for _ in range(IN_FLIGHT)))
    return (await _read_cpu(client, url) - before) / (count // IN_FLIGHT * IN_FLIGHT) * 1e6


async def _read_cpu(client: aiohttp.ClientSession, url: str) -> float:
    async with client.get(url + "/cpu") as reply:
        return float(await reply.json())


async def main(count: int) -> None:
    ports = [_free_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    children = [_child("stub", str(ports[0]))]
    children += [_child("bare", str(ports[1]), urls[0])]
    try:
        async with aiohttp.ClientSession() as client:
            await _wait(client, urls[0])
            children.append(_child("gateway", str(ports[2]), urls[0]))
            await _wait(client, urls[1])
            await _wait(client, urls[2])
            figures: dict[str, list[float]] = {"bare": [], "gateway": []}
            for url in urls[1:]:
                await _load(client, url, count // 4)
            for _ in range(ROUNDS):
                figures["bare"].append(await _load(client, urls[1], count))
                figures["gateway"].append(await _load(client, urls[2], count))
    finally:
        for child in children:
            child.terminate()
            child.wait()
    bare_us, ours_us = (statistics.median(figures[name]) for name in ("bare", "gateway"))
    pairs = [ours / base for ours, base in zip(figures["gateway"], figures["bare"], strict=True)]
    print(f"bare Starlette + aiohttp  {bare_us:7.0f} us CPU per request (median of {ROUNDS} x {count})")
    print(f"turnout raw lane          {ours_us:7.0f} us CPU per request")
    print(f"ratio                     {statistics.median(pairs):7.2f}  (min {min(pairs):.2f}, max {max(pairs):.2f})")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--role":
        role, port, *rest = sys.argv[2:]
        started = time.monotonic()
        os.environ.setdefault("TURNOUT_DATA_DIR", f"/tmp/turnout-bench-{os.getpid()}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if role == "gateway":
                runner.run(_gateway(rest[0], int(port)))
            else:
                runner.run(_uvicorn(stub() if role == "stub" else bare(rest[0]), int(port)))
    else:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
