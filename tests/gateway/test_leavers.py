"""Clients that leave at any moment: nothing of them stays, neither here nor at the servers."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.fakes import vllm
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from tests.fakes.scripted import Scripted, scripted, telling, without_end
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import create_app, running
from turnout.gateway.transport import Limits
from turnout.router import Router

LEAVERS = 200
_SAY = [{"role": "user", "content": "Say hello"}]
ASKED = {
    "/v1/chat/completions": {"messages": _SAY},
    "/v1/messages": {"messages": _SAY, "max_tokens": 9},
    "/v1/responses": {"input": "Say hello"},
    "/api/chat": {"messages": _SAY},
    "/v1/completions": {"prompt": "def add("},
}


class _Counted:
    """An application that counts what began and what is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.begun, self.over = app, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.over += 1


def _request(path: str, **more: object) -> bytes:
    body = json.dumps({"model": "m-7b", **ASKED[path], **more}).encode()
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


async def _leave(port: int, number: int) -> None:
    """Ask, wait for some of the answer or not, and close: in good order, or by a reset."""
    path = list(ASKED)[number % len(ASKED)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(path, stream=number % 4 != 0))
    await writer.drain()
    if number % 4 in (1, 2):
        await reader.read(10)
    elif number % 3:
        await asyncio.sleep(0.001 * (number % 50))
    if number % 2:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()


def _open_files(router: Router) -> int:
    """But for those of connections to the server that are kept for the next request, both of whose ends are here."""
    gc.collect()
    kept = sum(len(connections) for connections in router.client._connections._kept.values())
    return len(list(Path("/proc/self/fd").iterdir())) - 2 * kept


@pytest.mark.parametrize("slots", [0, 3], ids=["all run", "most wait"])
async def test_of_many_that_leave_nothing_stays(slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    fake = Fake([FakeModel("m-7b", window=32768)])
    server = _Counted(vllm.app(fake))
    async with serving(server) as url:
        more = {"slots": slots} if slots else {}
        custom = [{"name": "one", "endpoint": url, "max_retries": 0, **more}]
        config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
        async with open_router(config) as router:
            app = create_app(router)
            async with running(app) as (_, gateway):
                port = int(gateway.rpartition(":")[2])
                await _whole(port)
                tasks, files = len(asyncio.all_tasks()), _open_files(router)
                fake.fault = "stall"
                await asyncio.gather(*(_leave(port, number) for number in range(LEAVERS)))
                async with asyncio.timeout(60):
                    while app.in_flight or server.over < server.begun or len(asyncio.all_tasks()) > tasks:
                        await asyncio.sleep(0.01)
                assert app.shared.metrics.in_flight == 0
                assert router._placement._admission._lines == {}
                fake.fault = ""
                await _whole(port)  # the places are free, and the server is not thought ill of
                async with asyncio.timeout(30):
                    while _open_files(router) > files:  # the head of the audit log is signed aside, about each second
                        await asyncio.sleep(0.01)
    records = map(json.loads, (tmp_path / "audit.log").read_text("utf-8").splitlines())
    phases = Counter(record["phase"] for record in records if record["event_type"] == "query")
    assert phases["start"] == phases["end"] > LEAVERS / 2, phases


async def _whole(port: int) -> None:
    """An answer to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request("/v1/chat/completions").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:500]


async def test_who_leaves_with_a_second_request_behind_frees_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one runs while the second waits for its turn on the same connection."""
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    fake = Fake([FakeModel("m-7b")], fault="hang")
    async with serving(vllm.app(fake)) as url:
        config = load_any({"custom_endpoints": [{"name": "one", "endpoint": url}], "discovery": {"enabled": False}})
        async with open_router(config) as router:
            app = create_app(router)
            async with running(app) as (_, gateway):
                _, writer = await asyncio.open_connection("127.0.0.1", int(gateway.rpartition(":")[2]))
                writer.write(_request("/v1/chat/completions") + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
                async with asyncio.timeout(10):
                    while not fake.seen:
                        await asyncio.sleep(0.01)
                    writer.close()
                    while app.in_flight:
                        await asyncio.sleep(0.01)


async def test_who_reads_nothing_of_a_stream_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the server's place would be held for as long as the client likes."""
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    over = asyncio.Event()
    one = Scripted(("m-7b",), script=(telling(without_end, asyncio.Event(), over),))
    async with scripted(one):
        config = load_any({"custom_endpoints": [{"name": "one", "endpoint": one.url}], "discovery": {"enabled": False}})
        async with open_router(config) as router:
            app = create_app(router)
            async with running(app, limits=Limits(unread_seconds=0.4)) as (_, gateway):
                for path in ("/v1/chat/completions", "/v1/messages"):
                    over.clear()
                    _, writer = await asyncio.open_connection("127.0.0.1", int(gateway.rpartition(":")[2]), limit=1000)
                    writer.write(_request(path, stream=True))
                    async with asyncio.timeout(20):
                        await over.wait()
                        while app.in_flight:
                            await asyncio.sleep(0.01)
                    writer.close()
