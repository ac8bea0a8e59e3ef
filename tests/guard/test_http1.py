"""One HTTP/1.1 connection: what it makes of an answer, however its bytes come, and when it may be used again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guard.listener import CHUNK, END, HELLO, STREAM, Listener, listening, says
from tests.guard.test_allow import SECURITY
from turnout.errors import EndpointDownError, NonsenseError
from turnout.guard.allow import AllowList
from turnout.guard.dial import KEEPALIVE_SECONDS, Connections, Place
from turnout.guard.http1 import MAX_HELD_BYTES, Connection, CutError, NotHttpError, request_head
from turnout.guard.network import HttpClient, open_client
from turnout.types import Limits


class Wire(asyncio.Transport):
    """The other side of a connection under test: keeps what is sent, and whether it reads and is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.reading, self.aborted = True, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0


def asked() -> tuple[Connection, Wire]:
    """A connection on which a request was sent."""
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    connection.send(request_head("GET", "/", "box", {}, None), b"")
    return connection, wire


async def read_all(connection: Connection) -> bytes:
    body = b""
    while piece := await connection.read():
        body += piece
    return body


ANSWERS = {
    "length": (HELLO, b"hello", True),
    "chunked": (STREAM + CHUNK + CHUNK + END, b"hellohello", True),
    "trailers": (STREAM + CHUNK + b"0\r\nX-Sum: 1\r\n\r\n", b"hello", True),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", b"hello", True),
    "a space after the size": (STREAM + b"5 \r\nhello\r\n" + END, b"hello", True),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + HELLO, b"hello", True),
    "told to close": (HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"hello", False),
    "old": (HELLO.replace(b"1.1", b"1.0"), b"hello", False),
}


@pytest.mark.parametrize(("answer", "body", "again"), ANSWERS.values(), ids=ANSWERS)
@given(cuts=st.lists(st.integers(0, 120), max_size=12))
async def test_an_answer_is_the_same_however_its_bytes_come(
    answer: bytes, body: bytes, again: bool, cuts: list[int]
) -> None:
    connection, wire = asked()
    places = [0, *sorted({cut for cut in cuts if cut < len(answer)}), len(answer)]
    for start, end in pairwise(places):
        if start < end:
            connection.data_received(answer[start:end])
    await connection.head()
    assert connection.status == (204 if not body else 200)
    assert all(name.lower() != b"x" for name, _ in connection.raw_headers), "an interim answer's header"
    assert await read_all(connection) == body
    assert (connection.ended, connection.reusable, wire.aborted) == (True, again, False)


@pytest.mark.parametrize("status", [b"101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade", b"000 Nothing"])
@pytest.mark.parametrize("apart", [True, False])
async def test_another_protocol_is_no_answer_and_holds_nobody(status: bytes, apart: bool) -> None:
    connection, wire = asked()
    for data in (
        (b"HTTP/1.1 " + status + b"\r\n\r\n", HELLO) if apart else (b"HTTP/1.1 " + status + b"\r\n\r\n" + HELLO,)
    ):
        connection.data_received(data)
    assert wire.aborted
    with pytest.raises(NotHttpError):
        await connection.head()


async def test_where_nothing_says_how_long_the_body_is_its_end_is_the_connections() -> None:
    connection, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    await connection.head()
    assert not connection.ended
    connection.connection_lost(None)
    assert await read_all(connection) == b"hello"
    assert not connection.reusable


@pytest.mark.parametrize(
    ("head", "lost"),
    [
        (HELLO[:-2], None),
        (STREAM + CHUNK, None),
        (STREAM + CHUNK, ConnectionResetError()),
        (b"HTTP/1.1 200 OK\r\n\r\nhel", ConnectionResetError()),
    ],
)
async def test_what_came_before_a_cut_is_read_and_then_the_cut(head: bytes, lost: Exception | None) -> None:
    connection, _ = asked()
    connection.data_received(head)
    connection.connection_lost(lost)
    await connection.head()
    assert (await connection.read()).startswith(b"hel")
    with pytest.raises(CutError):
        await connection.read()


async def test_an_aborted_answer_is_no_whole_one() -> None:
    connection, wire = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    connection.abort()
    connection.connection_lost(None)
    assert wire.aborted
    assert await connection.read() == b"hello"
    with pytest.raises(CutError):
        await connection.read()


@pytest.mark.parametrize("surplus", [HELLO, b"x", b"\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nno!"])
@pytest.mark.parametrize("apart", [True, False])
async def test_what_was_not_asked_for_is_no_later_answer(surplus: bytes, apart: bool) -> None:
    connection, _ = asked()
    for data in (HELLO, surplus) if apart else (HELLO + surplus,):
        connection.data_received(data)
    await connection.head()
    assert (connection.status, await read_all(connection)) == (200, b"hello")
    assert not connection.reusable


@pytest.mark.parametrize(
    "endless",
    [b"HTTP/1.1 200 OK\r\nX: ", STREAM + CHUNK + b"0\r\nX: ", STREAM + CHUNK + b"5;x="],
    ids=["header", "trailer", "chunk extension"],
)
async def test_what_does_not_end_is_given_up(endless: bytes) -> None:
    connection, wire = asked()
    connection.data_received(endless)
    for _ in range(200):
        if not wire.aborted:
            connection.data_received(b"y" * 1000)
    assert wire.aborted
    with pytest.raises(NotHttpError):
        await connection.head()
        await read_all(connection)


async def test_a_server_waits_for_a_slow_reader() -> None:
    connection, wire = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MAX_HELD_BYTES))
    await connection.head()
    connection.data_received(bytes(MAX_HELD_BYTES + 1))
    assert not wire.reading
    assert len(await connection.read()) == MAX_HELD_BYTES + 1
    assert wire.reading


async def test_a_request_has_what_was_given_and_nothing_twice() -> None:
    head = request_head("POST", "/v1/x?a=1", "box:1", {"host": "other", "Authorization": "Bearer k"}, 3)
    assert head.split(b"\r\n") == [
        b"POST /v1/x?a=1 HTTP/1.1",
        b"Accept: */*",
        b"Accept-Encoding: identity",
        b"host: other",
        b"Authorization: Bearer k",
        b"Content-Length: 3",
        b"",
        b"",
    ]


@pytest.mark.parametrize("bad", ["a\r\nX: 1", "a\nX: 1", "a\rX: 1", "a\0"])
def test_no_header_holds_another(bad: str) -> None:
    for headers in ({"X": bad}, {bad: "x"}):
        with pytest.raises(ValueError, match="line break"):
            request_head("GET", "/", "box", headers, None)


# Kept connections.


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with open_client(AllowList.from_config(SECURITY)) as made:
        yield made


async def test_two_requests_at_once_are_two_connections_and_both_are_kept(client: HttpClient) -> None:
    async with listening(says(HELLO)) as listener:
        url = f"http://127.0.0.1:{listener.port}/"
        for _ in range(2):
            await asyncio.gather(*(client.get_json(url, timeout=5) for _ in range(2)))
        assert len(listener.dialled) == 2


async def test_an_answer_that_its_reader_left_is_nobody_elses(client: HttpClient) -> None:
    async def begins_and_goes_on(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + CHUNK)
        await left.wait()
        writer.write(CHUNK + END)

    left = asyncio.Event()
    async with listening(begins_and_goes_on) as listener:
        url = f"http://127.0.0.1:{listener.port}/"
        for number in range(2):
            async with client.stream("GET", url, body=None, headers=None, limits=Limits(), endpoint="box") as reply:
                assert (await anext(reply.chunks())).startswith(b"hello")
            left.set()
            assert len(listener.dialled) == number + 1


async def test_a_connection_that_nobody_needs_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.guard.dial.KEEPALIVE_SECONDS", 0.05)
    async with listening(says(HELLO)) as listener, open_client(AllowList.from_config(SECURITY)) as client:
        await client.get_json(f"http://127.0.0.1:{listener.port}/", timeout=5)
        await asyncio.wait_for(listener.gone.wait(), 5)
        assert KEEPALIVE_SECONDS < 5, "common servers close after 5 s, and must not be first"


async def test_closing_ends_what_is_under_way_and_what_is_kept(client: HttpClient) -> None:
    connections = Connections(AllowList.from_config(SECURITY), _nobody, lambda _: None)
    async with listening(says(HELLO)) as listener:
        place = Place("http", "127.0.0.1", listener.port)
        used, kept = await connections.dial(place, 5), await connections.dial(place, 5)
        kept.send(request_head("GET", "/", "box", {}, None), b"")
        await kept.head()
        assert await read_all(kept) == b"hello"
        connections.release(place, kept)
        assert connections.kept(place) is kept
        connections.release(place, kept)
        await connections.aclose()
        assert used.closed
        assert kept.closed
        with pytest.raises(EndpointDownError, match="was closed"):
            await connections.dial(place, 5)


async def test_the_second_address_is_dialled_when_the_first_is_silent() -> None:
    """Loopback has many addresses; a full queue is a server that does not accept."""
    connections = Connections(AllowList.from_config(SECURITY), _nobody, lambda _: None)
    listener = Listener(says(HELLO))
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        listener.port = full.getsockname()[1]
        await listener.start("127.0.0.3")
        try:
            place = Place("http", "gpu1.lan", listener.port)
            found = await connections._first(place, ["127.0.0.2", "127.0.0.3"], 0.4)
            connections.drop(found)
            await asyncio.wait_for(listener.gone.wait(), 5)
        finally:
            await listener.stop()
    assert listener.dialled == ["127.0.0.3"]


async def test_a_compressed_answer_is_refused(client: HttpClient) -> None:
    packed = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"
    async with listening(says(packed)) as listener:
        with pytest.raises(NonsenseError, match="compressed"):
            await client.get_json(f"http://127.0.0.1:{listener.port}/", timeout=5)


async def _nobody(_: str, __: int) -> list[str]:
    return []
