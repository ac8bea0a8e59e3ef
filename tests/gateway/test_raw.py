"""Bytes that are nearly HTTP, over real sockets: whole answers or an end, and the gateway goes on.

make test-heavy ARGS="tests/gateway/test_raw.py -s"   # 20,000 connections
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httptools
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fakes import vllm
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import Gateway, create_app, running
from turnout.gateway.transport import Limits

AT_ONCE, ROUNDS, HEAVY_ROUNDS = 50, 3, 400
QUICK = Limits(head_seconds=0.3, body_seconds=0.3)  # what hangs is ended soon
BODY = json.dumps({"model": "m-7b", "messages": [{"role": "user", "content": "Say hello"}]}).encode()
STREAM = BODY.replace(b"{", b'{"stream":true,', 1)
HOST = b"Host: localhost\r\n"
LAST = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def _post(body: bytes, more: bytes = b"") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + more
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


REQUESTS = [
    LAST.replace(b"Connection: close\r\n", b""),
    _post(BODY),
    _post(STREAM),
    _post(BODY, b"Expect: 100-continue\r\n"),
    _post(BODY, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
    _post(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"),
    b"POST /api/chat HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    b"GET /v1/models HTTP/1.1\r\n" + HOST + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n",
    b"GET /v1/models?" + b"a" * 3000 + b" HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 140 + b"\r\n",
    _post(b" " * 300_000 + BODY),
]  # fmt: skip
WORDS = [
    b"\r\n", b"\n", b"\0", b"\xff\xfe", b" ", b"0\r\n\r\n", b"Content-Length: 5\r\n", b"Content-Length: 99999\r\n",
    b"-1", b"ffffffff",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n", b"Host: evil\r\n", b"HTTP/1.0", b"HTTP/2.0", b"OPTIONS * ", b"CONNECT a:1 ", b"/..",
]  # fmt: skip


@st.composite
def talks(draw: st.DrawFn) -> tuple[list[bytes], bool]:
    """What is sent over one connection, in pieces, and whether the client then closes its side."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, min(len(data), 700)))
        match draw(st.sampled_from(["byte", "cut", "word", "again", "end"])):
            case "byte":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[place : place + draw(st.integers(1, 40))]
            case "word":
                data[place:place] = draw(st.sampled_from(WORDS))
            case "again":
                data[place:place] = data[place : place + draw(st.integers(1, 60))]
            case _:
                del data[place:]
    if draw(st.integers(0, 3)):
        data += LAST
    places = sorted(draw(st.lists(st.integers(0, max(1, len(data))), max_size=3)))
    pieces = [bytes(data[a:b]) for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return pieces, draw(st.integers(0, 5)) == 5


class Answers:
    """The answers in what a connection was sent; raises for what is none."""

    def __init__(self, data: bytes) -> None:
        self.statuses: list[int] = []
        self.kind, self.body, self.whole = b"", b"", True
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.kind, self.body, self.whole = b"", b"", False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.kind = value

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        self.statuses.append(status)
        self.whole = True
        assert status in (100, 200, 400, 403, 404, 405, 408, 413, 415, 421, 431, 502, 503), (status, self.body)
        assert b"Traceback" not in self.body
        if status >= 400:
            assert self.kind == b"application/json"
            assert json.loads(self.body)["error"]


class Server:
    """A gateway over sockets, in a loop of its own."""

    def __init__(self) -> None:
        self.runner, self.stack = asyncio.Runner(), AsyncExitStack()
        self.complaints: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.app: Gateway

    async def open(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        upstream = await self.stack.enter_async_context(serving(vllm.app(Fake([FakeModel("m-7b")]))))
        config = load_any(
            {"custom_endpoints": [{"name": "one", "endpoint": upstream}], "discovery": {"enabled": False}}
        )
        router = await self.stack.enter_async_context(open_router(config))
        self.app = create_app(router)
        _, url = await self.stack.enter_async_context(running(self.app, limits=QUICK))
        self.port = int(url.rpartition(":")[2])

    async def all(self, many: list[tuple[list[bytes], bool]]) -> None:
        await asyncio.gather(*(self.talk(*one) for one in many))
        assert Answers(await self._said([LAST], closes=False)).statuses == [200]
        async with asyncio.timeout(20):
            while self.app.in_flight:
                await asyncio.sleep(0.01)
        assert self.complaints == []

    async def talk(self, pieces: list[bytes], closes: bool) -> None:
        heard = await self._said(pieces, closes=closes)
        found = Answers(heard)
        self.statuses.update(found.statuses or [0])
        assert found.whole or closes, heard[-300:]

    async def _said(self, pieces: list[bytes], *, closes: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        reading = asyncio.ensure_future(_until_the_end(reader))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if not closes:  # what is kept after whole requests would be kept for some seconds more
                await asyncio.wait({reading}, timeout=4 * QUICK.body_seconds)
            writer.write_eof()
        except OSError:  # it was ended while it still spoke
            pass
        try:
            return await asyncio.wait_for(reading, 20)
        finally:
            writer.close()


async def _until_the_end(reader: asyncio.StreamReader) -> bytes:
    heard = bytearray()
    try:
        while piece := await reader.read(65_536):
            heard += piece
    except OSError:  # a reset, because we sent what nobody read
        pass
    return bytes(heard)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Server]:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    made = Server()
    try:
        made.runner.run(made.open())
        yield made
        assert "Traceback" not in capsys.readouterr().err
    finally:
        made.runner.run(made.stack.aclose())
        made.runner.close()


def _speak(server: Server, rounds: int, number: int | None) -> None:
    @settings(
        max_examples=rounds,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=(Phase.generate,),  # fifty at once do not become fewer in a time that anybody would wait
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(talks(), min_size=AT_ONCE, max_size=AT_ONCE))
    def run(many: list[tuple[list[bytes], bool]]) -> None:
        server.runner.run(server.all(many))

    (run if number is None else seed(number)(run))()


def test_nearly_http_gets_whole_answers_or_an_end(server: Server) -> None:
    _speak(server, ROUNDS, None)
    assert {200, 400, 408, 431} <= set(server.statuses), server.statuses


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_many_thousand_connections(server: Server) -> None:
    _speak(server, HEAVY_ROUNDS, 1)
    print(f"\n{AT_ONCE * HEAVY_ROUNDS:,} connections: {dict(server.statuses)}")
