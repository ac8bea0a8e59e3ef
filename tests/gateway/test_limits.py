"""What a client may take before it has asked anything: raw bytes over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import create_app, running
from turnout.gateway.transport import Limits, _Gathering

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
QUICK = Limits(head_seconds=0.4, body_seconds=0.8, connections=3)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


@asynccontextmanager
async def gateway(limits: Limits) -> AsyncIterator[int]:
    async with open_router(load_any({"discovery": {"enabled": False}})) as router:
        async with running(create_app(router), limits=limits) as (_, url):
            yield int(url.rpartition(":")[2])


class Client:
    """One connection, spoken over in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, object]]:
        """The status and body of one answer of known length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        length = int(re.findall(rb"content-length: (\d+)", head)[0])
        return int(head[9:12]), json.loads(await self.reader.readexactly(length))

    async def end(self) -> bytes:
        """What still comes until the other side closes."""
        return await asyncio.wait_for(self.reader.read(), 10)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("begun", "limit"),
    [(b"", 0.4), (b"GET", 0.4), (HEAD, 0.4), (POST, 0.8), (POST + b'{"model":', 0.8)],
    ids=["silence", "half a line", "half the headers", "no body", "half a body"],
)
async def test_a_request_that_does_not_come_in_is_ended(begun: bytes, limit: float) -> None:
    async with gateway(QUICK) as port, client(port) as one:
        began = asyncio.get_running_loop().time()
        await one.send(begun)
        status, body = await one.answer()
        assert status == 408
        assert f"within {limit:g} s" in str(body)
        assert asyncio.get_running_loop().time() - began >= limit
        assert await one.end() == b""


async def test_bytes_that_drip_do_not_help() -> None:
    """A client that is cut off while it sends may not get to read the 408."""
    async with gateway(QUICK) as port, client(port) as one, asyncio.timeout(10):
        reading = asyncio.ensure_future(one.answer())
        await one.send(HEAD)
        with suppress(ConnectionError):
            while not reading.done():
                await one.send(b"a: b\r\n")
                await asyncio.wait({reading}, timeout=0.05)
        with suppress(ConnectionError):
            assert (await reading)[0] == 408


async def test_a_connection_that_is_kept_has_its_time_anew_for_each_request() -> None:
    async with gateway(QUICK) as port, client(port) as one:
        for _ in range(4):
            await one.send(HEAD)
            await asyncio.sleep(0.15)  # less than the limit each time, more than it in all
            await one.send(b"\r\n")
            assert (await one.answer())[0] == 200
        await one.send(HEAD)
        assert (await one.answer())[0] == 408


@pytest.mark.parametrize("piece", [1000, 500_000], ids=["in small pieces", "in large pieces"])
async def test_headers_without_an_end_are_not_taken(piece: int) -> None:
    """The client is cut off while it sends: whether it still reads the 431 is up to its system."""
    async with gateway(Limits()) as port, client(port) as one:
        await one.send(HEAD + b"a: ")
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 64_000_000:
                await one.send(b"x" * piece)
                sent += piece
                await asyncio.sleep(0)
        assert sent < 64_000_000


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (b"a: b\r\n" * 120, 200),
        (b"a: b\r\n" * 128, 431),
        (b"a: " + b"x" * 60_000 + b"\r\n", 200),
        (b"a: " + b"x" * 65_600 + b"\r\n", 431),
    ],
)
async def test_whole_headers_are_bounded_in_size_and_number(more: bytes, status: int) -> None:
    async with gateway(Limits()) as port, client(port) as one:
        await one.send(HEAD + more + b"\r\n")
        assert (await one.answer())[0] == status


async def test_a_long_address_is_refused() -> None:
    async with gateway(Limits()) as port, client(port) as one:
        await one.send(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await one.answer())[0] == 431


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_an_error_that_clients_can_read(data: bytes) -> None:
    async with gateway(Limits()) as port, client(port) as one:
        await one.send(data)
        status, body = await one.answer()
        assert status == 400
        assert body["error"]["code"] == "http_400"  # type: ignore[index]
        assert await one.end() == b""


async def test_too_many_connections_are_refused_and_a_place_that_is_free_again_is_taken() -> None:
    limits = Limits(connections=3)
    async with gateway(limits) as port, client(port), client(port):
        async with client(port) as third:
            await third.send(HEAD + b"\r\n")
            assert (await third.answer())[0] == 200
            async with client(port) as fourth:
                assert (await fourth.answer())[0] == 503
                assert await fourth.end() == b""
        async with asyncio.timeout(5):
            while True:
                async with client(port) as again:
                    await again.send(HEAD + b"\r\n")
                    if (await again.answer())[0] == 200:
                        return


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("pieces", [1, 2], ids=["at once", "apart"])
@pytest.mark.parametrize(
    ("length", "body"),
    [(b"Content-Length: 2", b"{}"), (b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n")],
    ids=["of known length", "chunked"],
)
async def test_an_offer_of_another_protocol_is_passed_over_and_the_body_is_read(
    length: bytes, body: bytes, pieces: int
) -> None:
    """As Java's own client makes it with its first request; the parser would take the body for the other protocol."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + OFFER + length + b"\r\n\r\n"
    async with gateway(Limits()) as port, client(port) as one:
        for _ in range(2):
            for piece in [head + body] if pieces == 1 else [head, body]:
                await one.send(piece)
                await asyncio.sleep(0.02)
            status, answer = await one.answer()
            assert (status, "messages is missing" in str(answer)) == (400, True)
        await one.send(HEAD + b"\r\n")
        assert (await one.answer())[0] == 200


async def test_many_offers_in_one_piece_are_each_passed_over() -> None:
    async with gateway(Limits()) as port, client(port) as one:
        await one.send((HEAD + OFFER + b"\r\n") * 300)
        for _ in range(300):
            assert (await one.answer())[0] == 200


async def test_what_is_no_request_leaves_no_line_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway(Limits()) as port:
        for data in (b"hello\r\n\r\n", b"CONNECT /x HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            async with client(port) as one:
                await one.send(data)
                assert (await one.answer())[0] == 400
        async with client(port) as one:
            await one.send(HEAD + OFFER + b"\r\n")
            assert (await one.answer())[0] == 200
    assert capsys.readouterr().err == ""


def test_what_is_held_for_a_client_that_is_gone_is_dropped_without_a_word() -> None:
    """On uvloop, as `turnout serve`: writing to what is closed raises there."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop has no build for this system")
    complaints: list[object] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        gone = asyncio.Event()

        class Client(asyncio.Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                gone.set()

        transport, _ = await loop.create_connection(Client, *server.sockets[0].getsockname())
        gathering = _Gathering(transport, loop)
        transport.abort()
        await gone.wait()
        gathering.write(b"late")
        await asyncio.sleep(0)
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert complaints == []
