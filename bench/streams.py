"""A thousand slow streams at once, and ten thousand clients that leave in the middle of one.

    python bench/streams.py [STREAMS [LEAVERS]]

A stub server that says a word every ``GAP`` seconds, the gateway in a process of its own, clients that note when each
word comes. The same load goes to the stub directly, through the gateway as it is (chat completions on both sides) and
translated (a client of messages). Then clients of four formats leave in the middle, in good order or by a reset; what
is left of them is asked of the gateway, of the stub and of the kernel.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

GAP, WORDS = 0.5, 40  # seconds between two words, and how many
AT_ONCE = 250  # clients that leave
SAY = [{"role": "user", "content": "Say hello"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAY},
    "/v1/messages": {"messages": SAY, "max_tokens": 99},
    "/v1/responses": {"input": "Say hello"},
    "/api/chat": {"messages": SAY},
}


def many_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))


def of_process() -> dict[str, float]:
    """Resident MB, open descriptors, CPU seconds, tasks."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    cpu = used.ru_utime + used.ru_stime
    return {"resident": pages * 4096 / 2**20, "files": files, "cpu": cpu, "tasks": len(asyncio.all_tasks())}


# The stub.


class Stub(asyncio.Protocol):
    """One connection: a listing, what the process has, or words."""

    running = 0

    def __init__(self) -> None:
        self.heard = b""
        self.words = 0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        head, blank, body = self.heard.partition(b"\r\n\r\n")
        if not blank:
            return
        if head.startswith(b"GET"):
            self.heard = body
            about = of_process() | {"running": Stub.running}
            listed = {"data": [{"id": "stub-7b", "object": "model", "max_model_len": 32768}]}
            found = json.dumps(about if head.startswith(b"GET /inside") else listed).encode()
            kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(found), found)
            self.transport.write(b"HTTP/1.1 200 OK\r\n" + kind)
        elif len(body) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
            self.heard = b""
            Stub.running += 1
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            self.say()

    def say(self) -> None:
        finish = None if self.words < WORDS else "stop"
        delta = {"content": f"<{self.words}>"} if finish is None else {}
        row = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "stub-7b"}
        data = b"data: " + json.dumps(head | {"choices": [row]}).encode() + b"\n\n"
        data += b"data: [DONE]\n\n" if finish else b""
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if finish else b""))
        self.words += 1
        self.timer = None if finish else asyncio.get_running_loop().call_later(GAP, self.say)
        if finish:
            self.words = 0
            Stub.running -= 1

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            Stub.running -= 1


async def stub(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


async def gateway(port: int, upstream: str) -> None:
    from turnout.build import open_router
    from turnout.config import CustomEndpoint, DiscoveryConfig, LoadedConfig, RouterConfig
    from turnout.gateway.app import calm_collector, create_app, running
    from turnout.gateway.transport import Limits

    config = RouterConfig(
        custom_endpoints=(CustomEndpoint(name="stub", endpoint=upstream),), discovery=DiscoveryConfig(enabled=False)
    )
    async with open_router(LoadedConfig(config)) as router:
        calm_collector()
        app = create_app(router)

        async def inside(_: Request) -> JSONResponse:
            lines = len(router._placement._admission._lines)
            return JSONResponse(of_process() | {"running": app.in_flight - 1, "lines": lines})

        app.router.routes.append(Route("/inside", inside))
        async with running(app, port=port, limits=Limits(connections=8192)) as (server, _):
            await server


# The clients.


def request(path: str) -> bytes:
    body = json.dumps({"model": "stub-7b", "stream": True, **ASKED[path]}).encode()
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


@dataclass
class Listener(asyncio.Protocol):
    """One stream: when something came, and what."""

    asked: bytes
    over: asyncio.Future[None]
    came: list[float] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.write(self.asked)

    def data_received(self, data: bytes) -> None:
        self.came.append(time.perf_counter())
        self.heard += data
        if b"0\r\n\r\n" in data[-7:]:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    @property
    def whole(self) -> bool:
        """Every word came, in order, and the end."""
        places = [self.heard.find(f"<{n}>".encode()) for n in range(WORDS)]
        ended = b"[DONE]" in self.heard or b"message_stop" in self.heard
        return -1 not in places and places == sorted(places) and ended

    @property
    def gaps(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.came, self.came[1:], strict=False)]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def listen(url: str, path: str, count: int) -> list[Listener]:
    """So many streams, begun over the time of two words."""
    loop, made = asyncio.get_running_loop(), []
    for _ in range(count):
        listener = Listener(request(path), loop.create_future())
        await loop.create_connection(lambda one=listener: one, "127.0.0.1", port_of(url))
        made.append(listener)
        await asyncio.sleep(2 * GAP / count)
    return made


async def inside(url: str) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    writer.write(b"GET /inside HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    found: dict[str, float] = json.loads(await reader.readexactly(length))
    writer.close()
    return found


async def streams(name: str, url: str, path: str, count: int, process: str) -> None:
    before = await inside(process)
    made = await listen(url, path, count)
    await asyncio.sleep(GAP * WORDS / 2)
    middle = await inside(process)
    await asyncio.wait([one.over for one in made], timeout=GAP * WORDS + 60)
    after = await inside(process)
    gaps = sorted(gap for one in made for gap in one.gaps)
    each = (middle["resident"] - before["resident"]) * 1024 / count
    cpu = (after["cpu"] - before["cpu"]) / (count * (WORDS + 1)) * 1e6
    print(
        f"{name:<12} {sum(one.whole for one in made)} of {count} whole; gap: median {gaps[len(gaps) // 2]:.3f} s,"
        f" p99.9 {gaps[int(len(gaps) * 0.999)]:.3f} s, longest {gaps[-1]:.3f} s;"
        f" {each:.1f} KB a stream, {cpu:.0f} us CPU a word; {middle['running']:.0f} ran at once",
        flush=True,
    )
    for one in [one for one in made if not one.whole][:3]:
        print(f"  lost: {len(one.came)} pieces, the last {bytes(one.heard[-300:])!r}", flush=True)


async def leave(url: str, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    writer.write(request(list(ASKED)[number % len(ASKED)]))
    if number % 5:
        await reader.read(1000)
        await asyncio.sleep(GAP * (number % 7) / 4)
    if number % 2:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()


async def leavers(url: str, upstream: str, count: int) -> None:
    before, there = await inside(url), await inside(upstream)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await leave(url, number)

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    took = time.perf_counter() - began
    while (after := await inside(url))["running"] and time.perf_counter() - began - took < 60:
        await asyncio.sleep(0.05)
    freed = time.perf_counter() - began - took
    await asyncio.sleep(1)
    after, left = await inside(url), await inside(upstream)
    print(f"{count} clients left within {took:.0f} s; {freed:.2f} s after the last of them no request ran")
    for name in ("running", "tasks", "lines", "files", "resident"):
        print(f"  gateway {name:<9} {before[name]:.0f} before, {after[name]:.0f} after")
    for name in ("running", "files"):
        print(f"  stub    {name:<9} {there[name]:.0f} before, {left[name]:.0f} after")


async def main(count: int, leaving: int) -> None:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    upstream, url = (f"http://127.0.0.1:{port}" for port in ports)
    children = [subprocess.Popen([sys.executable, __file__, "--role", "stub", ports[0]])]
    try:
        await up(upstream)
        children.append(subprocess.Popen([sys.executable, __file__, "--role", "gateway", ports[1], upstream]))
        await up(url)
        await streams("warm-up", url, "/v1/chat/completions", 50, url)
        await streams("direct", upstream, "/v1/chat/completions", count, upstream)
        await streams("passed on", url, "/v1/chat/completions", count, url)
        await streams("translated", url, "/v1/messages", count, url)
        await leavers(url, upstream, leaving)
    finally:
        for child in children:
            child.kill()
            child.wait()


async def up(url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await inside(url)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return


if __name__ == "__main__":
    many_files()
    if "--role" in sys.argv:
        role, *rest = sys.argv[2:]
        os.environ["TURNOUT_DATA_DIR"] = tempfile.mkdtemp(prefix="turnout-bench-")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(stub(int(rest[0])) if role == "stub" else gateway(int(rest[0]), rest[1]))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(*(int(n) for n in (*sys.argv[1:], 1000, 10_000)[:2])))
