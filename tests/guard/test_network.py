"""The one HTTP client: what it refuses to dial, its time limits, and that leaving it frees the server."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.guard.listener import CHUNK, END, HELLO, STREAM, Listener, Resolver, listening, says
from tests.guard.test_allow import HOSTILE, SECURITY
from turnout.config import SecurityConfig
from turnout.errors import (
    EndpointDownError,
    GuardError,
    NonsenseError,
    PhaseTimeoutError,
    RequestRefusedError,
    StreamBrokenError,
)
from turnout.guard.allow import AllowList
from turnout.guard.dial import Connections, Place
from turnout.guard.http1 import request_head
from turnout.guard.network import HttpClient, StreamReply, open_client
from turnout.types import Limits

OUTSIDE = "203.0.113.5"


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with open_client(AllowList.from_config(SECURITY)) as made:
        yield made


@pytest.fixture
def asked_of_system(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every name that the system's own resolver is asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def url_of(listener: Listener, path: str = "/") -> str:
    return f"http://127.0.0.1:{listener.port}{path}"


def stream(
    client: HttpClient, url: str, limits: Limits, body: bytes | None = None
) -> AbstractAsyncContextManager[StreamReply]:
    return client.stream("POST", url, body=body, headers=None, limits=limits, endpoint="box")


# Nothing leaves.


@pytest.fixture
async def everywhere(whole_world_is_here: None) -> AsyncIterator[Listener]:
    """A listener that hears every IPv4 and IPv6 address, so that a failing guard would really reach it."""
    async with listening(says(HELLO), "0.0.0.0", "::") as listener:
        yield listener


@pytest.mark.isolated
@pytest.mark.parametrize(
    "ip",
    [OUTSIDE, "8.8.8.8", "169.254.169.254", "240.0.0.1", "2001:4860:4860::8888", "64:ff9b::808:808", "2002:808:808::1"],
)
async def test_the_stage_is_real_an_unguarded_client_gets_out(everywhere: Listener, ip: str) -> None:
    host = f"[{ip}]" if ":" in ip else ip
    async with aiohttp.ClientSession() as unguarded, unguarded.get(f"http://{host}:{everywhere.port}/") as answer:
        assert await answer.read() == b"hello"
    assert everywhere.dialled == [ip]


@pytest.mark.isolated
@pytest.mark.parametrize(("url", "words"), HOSTILE)
async def test_no_hostile_url_is_resolved_or_dialled(
    everywhere: Listener, asked_of_system: list[str], url: str, words: str
) -> None:
    resolver, told = Resolver([OUTSIDE]), list[GuardError]()
    allow = AllowList.from_config(SECURITY)
    async with open_client(allow, resolve=resolver, on_refusal=told.append) as client:
        with pytest.raises(GuardError, match=words) as caught:
            await client.fetch("GET", url.replace("{p}", str(everywhere.port)), timeout=5, max_bytes=100)
    assert told == [caught.value]
    assert (everywhere.dialled, resolver.asked, asked_of_system) == ([], [], [])


def _dialling(allow: AllowList, resolve: Resolver | None = None) -> Connections:
    return Connections(allow, resolve or Resolver(), lambda _: None)


@pytest.mark.isolated
@pytest.mark.parametrize(
    "ip", [OUTSIDE, "8.8.8.8", "169.254.169.254", "2001:4860:4860::8888", "::ffff:8.8.8.8", "0.0.0.0"]
)
async def test_the_socket_alone_refuses_addresses(everywhere: Listener, ip: str) -> None:
    """The last line: the checks of the URL and of what a name leads to are stepped over."""
    connections = _dialling(AllowList.from_config(SECURITY))
    with pytest.raises(GuardError):
        await connections._first(Place("http", "gpu1.lan", everywhere.port), [ip], 5)
    assert everywhere.dialled == []


@pytest.mark.isolated
async def test_the_resolver_alone_refuses_names(everywhere: Listener, asked_of_system: list[str]) -> None:
    resolver = Resolver(["10.0.0.5"])
    connections = _dialling(AllowList.from_config(SECURITY), resolver)
    for name in ("evil.example", "gateway.docker.internal", "gpu1.lan.", "0x7f000001", "8.8.8.8", "::ffff:8.8.8.8"):
        with pytest.raises(GuardError):
            await connections.dial(Place("http", name, everywhere.port), 5)
    assert (everywhere.dialled, resolver.asked, asked_of_system) == ([], [], [])


@pytest.mark.isolated
async def test_the_socket_dials_only_the_allowed_of_several(everywhere: Listener) -> None:
    connections = _dialling(AllowList.from_config(SECURITY))
    place = Place("http", "gpu1.lan", everywhere.port)
    connection = await connections._first(place, [OUTSIDE, "10.0.0.5", "8.8.8.8"], 5)
    connection.send(request_head("GET", "/", "gpu1.lan", {}, None), b"")
    await connection.head()
    connections.drop(connection)
    assert everywhere.dialled == ["10.0.0.5"]


@pytest.mark.isolated
@pytest.mark.parametrize(
    "answer",
    [
        [OUTSIDE],
        ["10.0.0.5", OUTSIDE],
        [OUTSIDE, "10.0.0.5"],
        ["127.0.0.1", "2001:db8::1"],
        ["::ffff:8.8.8.8"],
        ["64:ff9b::7f00:1"],
        ["169.254.169.254"],
        ["0.0.0.0"],
        ["fe80::1%lo"],
        ["2130706433"],
    ],
)
async def test_a_listed_name_gets_nowhere_when_it_leads_outside(everywhere: Listener, answer: list[str]) -> None:
    resolver, told = Resolver(answer), list[GuardError]()
    allow = AllowList.from_config(SECURITY)
    async with open_client(allow, resolve=resolver, on_refusal=told.append) as client:
        with pytest.raises(GuardError, match=r"gpu1\.lan leads to") as caught:
            await client.fetch("GET", f"http://gpu1.lan:{everywhere.port}/", timeout=5, max_bytes=100)
    assert told == [caught.value]
    assert everywhere.dialled == []


@pytest.mark.isolated
async def test_a_name_that_leads_inside_first_and_outside_then(whole_world_is_here: None) -> None:
    resolver = Resolver(["10.0.0.5"], [OUTSIDE])
    hang_up = says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", then_hang_up=True)
    async with listening(hang_up, "0.0.0.0") as listener:
        url = f"http://gpu1.lan:{listener.port}/"
        async with open_client(AllowList.from_config(SECURITY), resolve=resolver) as client:
            assert (await client.fetch("GET", url, timeout=5, max_bytes=100)).body == b"hello"
            with pytest.raises(GuardError):
                await client.fetch("GET", url, timeout=5, max_bytes=100)
    assert resolver.asked == ["gpu1.lan", "gpu1.lan"]
    assert listener.dialled == ["10.0.0.5"]


@pytest.mark.isolated
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "place", ["http://203.0.113.5:{p}/", "http://evil.example:{p}/", "//8.8.8.8:{p}/", "/elsewhere"]
)
async def test_redirects_are_not_followed(whole_world_is_here: None, status: int, place: str) -> None:
    async def redirect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        where = place.replace("{p}", str(listener.port))
        writer.write(f"HTTP/1.1 {status} Moved\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())

    resolver = Resolver([OUTSIDE])
    async with listening(redirect, "0.0.0.0") as listener:
        async with open_client(AllowList.from_config(SECURITY), resolve=resolver) as client:
            reply = await client.fetch("GET", url_of(listener), timeout=5, max_bytes=100)
    assert reply.status == status
    assert (len(listener.heads), listener.dialled, resolver.asked) == (1, ["127.0.0.1"], [])


@pytest.mark.isolated
async def test_proxies_and_passwords_of_the_environment_are_not_used(
    whole_world_is_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password hunter2\n")
    netrc.chmod(0o600)
    async with listening(says(HELLO), "0.0.0.0") as proxy, listening(says(HELLO)) as server:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{OUTSIDE}:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("NETRC", str(netrc))
        async with open_client(AllowList.from_config(SECURITY)) as client:
            await client.fetch("GET", url_of(server), timeout=5, max_bytes=100)
            with pytest.raises(EndpointDownError, match="nothing answers"):
                await client.fetch("GET", "https://127.0.0.1:9/", timeout=5, max_bytes=100)
        assert proxy.dialled == []
        assert "authorization" not in server.heads[0].lower()


@pytest.mark.isolated
async def test_allow_external_lets_names_and_public_addresses_out(everywhere: Listener) -> None:
    resolver = Resolver(["8.8.8.8"])
    allow = AllowList.from_config(SecurityConfig(allow_external=True))
    async with open_client(allow, resolve=resolver) as client:
        for host in (OUTSIDE, "api.example"):
            await client.fetch("GET", f"http://{host}:{everywhere.port}/", timeout=5, max_bytes=100)
        with pytest.raises(GuardError):
            await client.fetch("GET", f"http://169.254.169.254:{everywhere.port}/", timeout=5, max_bytes=100)
    assert everywhere.dialled == [OUTSIDE, "8.8.8.8"]


async def test_localhost_is_resolved_by_nobody(asked_of_system: list[str]) -> None:
    resolver = Resolver([OUTSIDE])
    for host in ("127.0.0.1", "::1"):
        async with listening(says(HELLO), host) as listener:
            async with open_client(AllowList.from_config(SECURITY), resolve=resolver) as client:
                await client.fetch("GET", f"http://LocalHost:{listener.port}/", timeout=5, max_bytes=100)
        assert listener.dialled == [host]
    assert (resolver.asked, asked_of_system) == ([], [])


async def test_container_names_come_from_the_hosts_file_only(tmp_path: Path, asked_of_system: list[str]) -> None:
    hosts = tmp_path / "hosts"
    allow = AllowList(names=frozenset({"host.docker.internal"}), hosts_file=hosts)
    resolver = Resolver([OUTSIDE])
    async with listening(says(HELLO)) as listener:
        url = f"http://host.docker.internal:{listener.port}/"
        hosts.write_text("127.0.0.1 host.docker.internal\n")
        async with open_client(allow, resolve=resolver) as client:
            assert (await client.fetch("GET", url, timeout=5, max_bytes=100)).status == 200
        async with open_client(allow, resolve=resolver) as client:
            hosts.write_text("127.0.0.1 localhost\n")
            with pytest.raises(EndpointDownError, match="unknown"):
                await client.fetch("GET", url, timeout=5, max_bytes=100)
            hosts.write_text(f"{OUTSIDE} host.docker.internal\n")
            with pytest.raises(GuardError):
                await client.fetch("GET", url, timeout=5, max_bytes=100)
    assert (resolver.asked, asked_of_system, len(listener.dialled)) == ([], [], 1)


async def test_the_system_resolver_is_asked_for_listed_names_alone(
    asked_of_system: list[str], client: HttpClient
) -> None:
    for url in ("http://gpu1.lan:9/", "http://evil.example:9/"):
        with pytest.raises((EndpointDownError, GuardError)):
            await client.fetch("GET", url, timeout=5, max_bytes=100)
    assert asked_of_system == ["gpu1.lan"]


async def test_cookies_are_not_kept(client: HttpClient) -> None:
    cookie = b"HTTP/1.1 200 OK\r\nSet-Cookie: id=7; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with listening(says(cookie)) as listener:
        for _ in range(2):
            await client.fetch("GET", url_of(listener), timeout=5, max_bytes=100)
    assert len(listener.heads) == 2
    assert "cookie" not in "".join(listener.heads).lower()


# Requests and answers.


async def test_a_request_arrives_as_it_was_written(client: HttpClient) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await reader.readexactly(3))
        writer.write(b"HTTP/1.1 418 Short\r\nX-Thing: A\r\nContent-Length: 5\r\n\r\nhello")

    bodies: list[bytes] = []
    async with listening(take) as listener:
        reply = await client.fetch(
            "POST", url_of(listener, "/v1/x%2Fy?a=%20b"), body=b"abc", headers={"Host": "box.lan", "X-Key": "k"},
            timeout=5, max_bytes=100,
        )  # fmt: skip
    head = listener.heads[0].splitlines()
    assert head[0] == "POST /v1/x%2Fy?a=%20b HTTP/1.1"
    assert [line for line in head if line.startswith(("Host", "X-Key"))] == ["Host: box.lan", "X-Key: k"]
    assert "Accept-Encoding: identity" in head
    assert bodies == [b"abc"]
    assert (reply.status, reply.headers["x-thing"], reply.body) == (418, "A", b"hello")


async def test_connections_are_kept_for_the_next_request(client: HttpClient) -> None:
    async with listening(says(HELLO)) as listener:
        for _ in range(3):
            await client.get_json(url_of(listener), timeout=5)
        assert len(listener.dialled) == 1
        assert "Accept: application/json" in listener.heads[2]
        await client.aclose()
        await asyncio.wait_for(listener.gone.wait(), 5)


async def test_a_kept_connection_that_the_server_closes_is_replaced_by_a_new_one(client: HttpClient) -> None:
    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readuntil(b"\r\n\r\n")  # the next request comes on the same connection, and finds it closed
        writer.close()

    async with listening(answers_once) as listener:
        for _ in range(3):
            reply = await client.fetch("POST", url_of(listener), body=b"", timeout=5, max_bytes=100)
            assert reply.body == b"hello"
    assert len(listener.dialled) == 3


async def test_what_a_new_connection_was_closed_upon_is_not_sent_again(client: HttpClient) -> None:
    """It may be what the server died of."""
    async with listening(says(then_hang_up=True)) as listener:
        with pytest.raises(EndpointDownError, match="closed the connection before it answered"):
            await client.fetch("POST", url_of(listener), body=b"x" * 100_000, timeout=5, max_bytes=100)
    assert (len(listener.dialled), len(listener.heads)) == (1, 1)


@pytest.mark.parametrize(("began", "asked"), [(b"", 3), (b"HTTP/1.1 200 OK\r\n", 2)], ids=["not a byte", "a line"])
async def test_after_a_kept_connection_a_new_one_is_tried_once_unless_an_answer_had_begun(
    client: HttpClient, began: bytes, asked: int
) -> None:
    async def answers_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = len(listener.heads) == 1
        writer.write(HELLO if first else began)
        if not first:
            writer.close()

    async with listening(answers_once) as listener:
        await client.fetch("POST", url_of(listener), body=b"", timeout=5, max_bytes=100)
        with pytest.raises(EndpointDownError, match="closed the connection before it answered"):
            await client.fetch("POST", url_of(listener), body=b"", timeout=5, max_bytes=100)
    assert len(listener.heads) == asked


async def test_json_and_nonsense(client: HttpClient) -> None:
    for body, value in ((b'{"a": [1, null]}', {"a": [1, None]}), (b"<html>", None), (b"", None), (b"[" * 5000, None)):
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with listening(says(answer, body)) as listener:
            reply = await client.get_json(url_of(listener), timeout=5)
        if value is not None:
            assert reply.json() == value
            continue
        with pytest.raises(NonsenseError):
            reply.json()


async def test_unix_sockets(client: HttpClient, tmp_path: Path) -> None:
    listener = Listener(says(HELLO))
    path = tmp_path / "s.sock"
    await listener.start_unix(path)
    try:
        url = client.request_url(f"unix:{path}", "/v1/models?x=1")
        for _ in range(2):
            assert (await client.get_json(url, timeout=5)).body == b"hello"
    finally:
        await listener.stop()
    assert [head.split()[1] for head in listener.heads] == ["/v1/models?x=1"] * 2
    assert len(listener.dialled) == 1
    with pytest.raises(EndpointDownError, match="no such file"):
        await client.get_json(f"unix:{tmp_path}/none.sock:/", timeout=5)


async def test_a_line_break_in_a_header_is_never_sent(client: HttpClient) -> None:
    async with listening(says(HELLO)) as listener:
        with pytest.raises(RequestRefusedError, match="line break"):
            await client.get_json(url_of(listener), headers={"Authorization": "Bearer k\r\nX-Evil: 1"}, timeout=5)
        await client.aclose()
    assert listener.heads == []


# Bounds.


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000,
        STREAM + b"30d40\r\n" + b"x" * 200_000,
    ],
    ids=["length", "until close", "chunked"],
)
async def test_a_body_without_end_stops_at_the_bound(client: HttpClient, answer: bytes) -> None:
    async with listening(says(answer)) as listener:
        with pytest.raises(NonsenseError, match="more than 100,000 bytes"):
            await client.fetch("GET", url_of(listener), timeout=20, max_bytes=100_000)
        await asyncio.wait_for(listener.gone.wait(), 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 " + b"y" * 100_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50\r\n\r\n",
    ],
    ids=["long header", "many headers", "long reason", "ssh", "tls"],
)
async def test_what_is_not_http_or_too_much_of_it(client: HttpClient, answer: bytes) -> None:
    async with listening(says(answer)) as listener:
        with pytest.raises(NonsenseError, match="does not speak HTTP"):
            await client.fetch("GET", url_of(listener), timeout=5, max_bytes=100)


# Failures and time limits, each in its phase.


async def test_nothing_listens(client: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EndpointDownError, match="nothing answers at box: connection refused"):
        async with stream(client, f"http://127.0.0.1:{port}/", Limits()):
            pass


async def test_an_unknown_name() -> None:
    async with open_client(AllowList.from_config(SECURITY), resolve=Resolver()) as client:
        with pytest.raises(EndpointDownError, match="unknown"):
            await client.get_json("http://gpu1.lan:1/", timeout=5)


async def test_a_server_without_tls_behind_https(client: HttpClient) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 no TLS here\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        with pytest.raises(EndpointDownError, match="no secure connection"):
            await client.get_json(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout=5)


async def test_hung_up_before_the_headers(client: HttpClient) -> None:
    async with listening(says(then_hang_up=True)) as listener:
        with pytest.raises(EndpointDownError, match="closed the connection"):
            async with stream(client, url_of(listener), Limits()):
                pass


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", STREAM + CHUNK])
async def test_cut_in_the_middle_of_the_body(client: HttpClient, head: bytes) -> None:
    pieces: list[bytes] = []
    async with listening(says(head, then_hang_up=True)) as listener:
        with pytest.raises(StreamBrokenError, match="box cut the connection"):
            async with stream(client, url_of(listener), Limits()) as reply:
                async for piece in reply.chunks():
                    pieces.append(piece)
    assert b"".join(pieces) == b"hello"


async def _expect_timeout(client: HttpClient, url: str, limits: Limits, phase: str) -> PhaseTimeoutError:
    with pytest.raises(PhaseTimeoutError) as caught:
        async with stream(client, url, limits) as reply:
            async for _ in reply.chunks():
                pass
    assert (caught.value.phase, caught.value.endpoint) == (phase, "box")
    return caught.value


async def test_connect_limit(client: HttpClient) -> None:
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # the kernel answers no further SYN once the queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        await _expect_timeout(client, url, Limits(connect=0.1, first_byte=60), "connect")


@pytest.mark.parametrize("answer", [b"", STREAM], ids=["no headers", "headers without a body"])
async def test_first_byte_limit(client: HttpClient, answer: bytes) -> None:
    async with listening(says(answer)) as listener:
        error = await _expect_timeout(client, url_of(listener), Limits(first_byte=0.2, silence=60), "first byte")
        assert "0.2 s" in error.message
        await asyncio.wait_for(listener.gone.wait(), 5)


@pytest.mark.parametrize("head", [STREAM + CHUNK, b"HTTP/1.1 200 OK\r\n\r\nhello"], ids=["chunked", "until close"])
async def test_silence_limit(client: HttpClient, head: bytes) -> None:
    async with listening(says(head)) as listener:
        await _expect_timeout(client, url_of(listener), Limits(first_byte=60, silence=0.1), "silence")
        await asyncio.wait_for(listener.gone.wait(), 5)


async def test_total_limit(client: HttpClient) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        while not writer.is_closing():
            writer.write(CHUNK)
            await asyncio.sleep(0.01)

    async with listening(babble) as listener:
        await _expect_timeout(client, url_of(listener), Limits(total=0.3), "total")
        await asyncio.wait_for(listener.gone.wait(), 5)


async def test_total_limit_before_the_headers(client: HttpClient) -> None:
    async with listening(says(b"")) as listener:
        await _expect_timeout(client, url_of(listener), Limits(total=0.1), "total")


async def test_a_slow_reader_is_not_the_servers_silence(client: HttpClient) -> None:
    async with listening(says(STREAM + CHUNK, CHUNK + END)) as listener:
        async with stream(client, url_of(listener), Limits(first_byte=0.1, silence=0.1)) as reply:
            got = b""
            async for piece in reply.chunks():
                got += piece
                await asyncio.sleep(0.3)  # the reader's own work, longer than the limit: what is tested
    assert got == b"hellohello"


async def test_the_body_may_be_read_in_another_task(client: HttpClient) -> None:
    async with listening(says(STREAM + CHUNK)) as listener:
        with pytest.raises(PhaseTimeoutError) as caught:
            async with stream(client, url_of(listener), Limits(silence=0.1)) as reply:
                await asyncio.create_task(reply.read_all(100))
    assert caught.value.phase == "silence"


# Leaving frees the server.


async def test_leaving_in_the_middle_closes_at_once(client: HttpClient) -> None:
    async with listening(says(STREAM + CHUNK)) as listener:
        async with stream(client, url_of(listener), Limits()) as reply:
            assert await anext(reply.chunks()) == b"hello"
        await asyncio.wait_for(listener.gone.wait(), 5)


async def test_cancelled_while_waiting_for_headers(client: HttpClient) -> None:
    async def hold(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        arrived.set()

    arrived = asyncio.Event()
    async with listening(hold) as listener:
        task = asyncio.create_task(client.get_json(url_of(listener), timeout=60))
        await asyncio.wait_for(arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(listener.gone.wait(), 5)


async def test_cancelled_while_reading(client: HttpClient) -> None:
    async def read() -> None:
        async with stream(client, url_of(listener), Limits()) as reply:
            async for _ in reply.chunks():
                begun.set()

    begun = asyncio.Event()
    async with listening(says(STREAM + CHUNK)) as listener:
        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(listener.gone.wait(), 5)


async def test_leaving_does_not_wait_for_an_upload_that_nobody_reads(client: HttpClient) -> None:
    async def answer_and_read_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + CHUNK)
        await left.wait()

    left = asyncio.Event()
    async with listening(answer_and_read_nothing) as listener:
        async with stream(client, url_of(listener), Limits(), body=bytes(60_000_000)) as reply:
            await anext(reply.chunks())
            connection = reply._connection
            assert connection is not None
            dialled = connection.transport.get_extra_info("socket")
            while not connection.transport.get_write_buffer_size():  # until no more fits between us and the server
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert dialled.fileno() == -1
        left.set()


@pytest.mark.parametrize("length", [b"", b"Content-Length: 9\r\n"], ids=["whole", "cut"])
async def test_an_end_is_one_while_the_request_is_not_read(client: HttpClient, length: bytes) -> None:
    done = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\n" + length + b"\r\nno")
        writer.write_eof()
        await done.wait()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        asked = client.fetch("POST", url, body=b"x" * 20_000_000, timeout=20, max_bytes=10)
        if length:
            with pytest.raises(StreamBrokenError):
                await asked
        else:
            reply = await asked
            assert (reply.status, reply.body) == (413, b"no")
        done.set()


async def test_a_whole_answer_leaves_the_connection_open(client: HttpClient) -> None:
    async with listening(says(STREAM + CHUNK + END)) as listener:
        for _ in range(2):
            async with stream(client, url_of(listener), Limits()) as reply:
                assert await reply.read_all(100) == b"hello"
        assert len(listener.dialled) == 1


async def test_what_was_not_read_of_an_answer_is_nobody_elses(client: HttpClient) -> None:
    """Its caller left when it was whole, so that the connection is kept."""
    numbers = itertools.count(1)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % next(numbers))

    async with listening(answer) as listener:
        async with stream(client, url_of(listener), Limits()) as unread:
            while not unread._connection.ended:
                await asyncio.sleep(0)
        async with stream(client, url_of(listener), Limits()) as reply:
            assert await reply.read_all(100) == b"2"
        assert len(listener.dialled) == 1, "or this shows nothing"


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of many connections, of which the usual limit has not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_answer_waits_for_another_one_to_end(client: HttpClient, many_files: None) -> None:
    """One that waited for a connection would fail at its limit to connect, as if its server were away."""
    async with listening(says(STREAM + CHUNK)) as listener, AsyncExitStack() as stack, asyncio.timeout(30):
        limits = Limits(connect=60, first_byte=60, silence=60)
        for _ in range(600):
            reply = await stack.enter_async_context(stream(client, url_of(listener), limits))
            assert await anext(reply.chunks()) == b"hello"
        assert len(listener.heads) == 600
