"""Hostile destinations: none is resolved or dialled. In the namespace, listeners wait on the addresses they lead to."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest
from starlette.applications import Starlette
from starlette.responses import RedirectResponse
from starlette.routing import Route

from tests.fakes.llm import running
from turnout.config import SecurityConfig
from turnout.errors import GuardError
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, open_client

pytestmark = pytest.mark.isolated

OUTSIDE = "203.0.113.5"
PORT = 18080
HOSTILE = (
    # public addresses, plain and in disguise
    "http://203.0.113.5:18080/",
    "http://8.8.8.8:18080/",
    "http://3405803781:18080/",
    "http://0xcb007105:18080/",
    "http://0xCB.0x00.0x71.0x05:18080/",
    "http://0313.0.0161.05:18080/",
    "http://203.0.28933:18080/",
    "http://203.28933:18080/",
    "http://203.000.113.005:18080/",
    "http://0203.0.113.5:18080/",
    "http://203.0.113.5.:18080/",
    "http://2130706433:18080/",
    "http://0177.0.0.1:18080/",
    "http://0x7f.1:18080/",
    "http://127.1:18080/",
    "http://127.0.1:18080/",
    "http://0:18080/",
    "http://0.0.0.0:18080/",
    "http://255.255.255.255:18080/",
    "http://224.0.0.1:18080/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.1.2:18080/",
    "http://100.64.0.1:18080/",
    "http://198.18.0.1:18080/",
    "http://192.0.2.1:18080/",
    "http://172.32.0.1:18080/",
    "http://172.15.255.255:18080/",
    "http://192.169.0.1:18080/",
    "http://11.0.0.1:18080/",
    "http://9.255.255.255:18080/",
    # IPv6
    "http://[::ffff:203.0.113.5]:18080/",
    "http://[::ffff:cb00:7105]:18080/",
    "http://[0:0:0:0:0:ffff:203.0.113.5]:18080/",
    "http://[::203.0.113.5]:18080/",
    "http://[64:ff9b::203.0.113.5]:18080/",
    "http://[64:ff9b::cb00:7105]:18080/",
    "http://[2002:cb00:7105::1]:18080/",
    "http://[2001:db8::1]:18080/",
    "http://[2606:4700:4700::1111]:18080/",
    "http://[fe80::1]:18080/",
    "http://[fe80::1%25eth0]:18080/",
    "http://[::1%lo]:18080/",
    "http://[::]:18080/",
    "http://[ff02::1]:18080/",
    "http://[fd00::1]:18080/",
    "http://[::1:18080/",
    "http://::1:18080/",
    "http://[127.0.0.1]:18080/",
    # names
    "http://evil.example:18080/",
    "http://localhost.evil.example:18080/",
    "http://127.0.0.1.evil.example:18080/",
    "http://localhost.:18080/",
    "http://127.0.0.1.:18080/",
    "http://metadata.google.internal/",
    "http://LOCALHOST.EVIL.EXAMPLE:18080/",
    "http://local%68ost:18080/",
    "http://127.0.0.1%2eevil.example:18080/",
    "http://ⓛocalhost:18080/",
    "http://127。0。0。1:18080/",
    "http://①②⑦.⓪.⓪.①:18080/",
    "http://localhost\u200b:18080/",
    "http://-localhost:18080/",
    "http://local host:18080/",
    # userinfo and parser confusion
    "http://127.0.0.1@203.0.113.5:18080/",
    "http://127.0.0.1:80@203.0.113.5:18080/",
    "http://localhost:x@203.0.113.5:18080/",
    "http://user:secret@127.0.0.1:18080/",
    "http://203.0.113.5:18080#@127.0.0.1/",
    "http://203.0.113.5:18080?@127.0.0.1/",
    "http://127.0.0.1:18080\\@203.0.113.5/",
    "http:\\\\203.0.113.5:18080/",
    "http:///203.0.113.5:18080/",
    "http:203.0.113.5:18080",
    "//203.0.113.5:18080/",
    "http://127.0.0.1:18080:80@203.0.113.5/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:18o80/",
    "http://127.0.0.1\t:18080/",
    "http://127.0.0.1\r\nHost: evil.example:18080/",
    " http://203.0.113.5:18080/",
    "http://203.0.113.5:18080/\x00",
    # schemes
    "ftp://127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:18080/",
    "data:text/plain,x",
    "ws://203.0.113.5:18080/",
    "HTTP+unix://x/",
    "unix:relative.sock",
    "unix:/tmp/../etc/x.sock",
    "",
)


def add_address(address: str, alias: int) -> None:
    """Give loopback one more IPv4 address, so that a failing guard would really reach a listener there."""
    set_address, set_mask = 0x8916, 0x891C
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = f"lo:{alias}".encode()
        for call, value in ((set_address, address), (set_mask, "255.255.255.255")):
            body = struct.pack("16sH2s4s8s", name, socket.AF_INET, b"", socket.inet_aton(value), b"")
            fcntl.ioctl(control, call, body)


class Outside:
    """Listeners on addresses that are not allowed, and a resolver under our control."""

    def __init__(self) -> None:
        self.dialled: list[str] = []
        self.resolved: list[str] = []
        self.answers: list[list[str]] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        return self.answers.pop(0) if self.answers else [OUTSIDE]


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    add_address(OUTSIDE, 1)
    add_address("8.8.8.8", 2)
    add_address("169.254.169.254", 3)
    seen = Outside()

    async def took(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.dialled.append(str(writer.get_extra_info("sockname")))
        writer.close()

    servers = [await asyncio.start_server(took, "0.0.0.0", PORT), await asyncio.start_server(took, "::", PORT + 1)]
    yield seen
    for server in servers:
        server.close()
        await server.wait_closed()


def client_for(outside: Outside, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> HttpClient:
    return open_client(AllowList.from_config(SecurityConfig(allowed_hosts=hosts)), resolve=outside.resolve)


async def test_there_are_enough_of_them() -> None:
    assert len(set(HOSTILE)) >= 80


async def test_the_listener_would_notice(outside: Outside) -> None:
    """Without this, the tests below would prove nothing."""
    _, writer = await asyncio.open_connection(OUTSIDE, PORT)
    writer.close()
    await writer.wait_closed()
    while not outside.dialled:
        await asyncio.sleep(0.01)
    assert OUTSIDE in outside.dialled[0]


@pytest.mark.parametrize("url", HOSTILE)
async def test_a_hostile_url_is_neither_resolved_nor_dialled(url: str, outside: Outside) -> None:
    with pytest.raises(GuardError):
        AllowList.from_config(SecurityConfig()).check_url(url)
    async with client_for(outside) as client:
        with pytest.raises(GuardError):
            await client.fetch("GET", url, timeout=1.0, max_bytes=1000)
    assert outside.resolved == []
    assert outside.dialled == []


async def test_the_connection_itself_is_checked_when_the_url_check_is_passed_by(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line: a literal that got past the reading of the URL still meets the socket factory."""
    read = AllowList.check_url
    lenient = AllowList.from_config(SecurityConfig(allow_external=True))
    monkeypatch.setattr(AllowList, "check_url", lambda self, url: read(lenient, url))
    async with client_for(outside) as client:
        for url in (f"http://{OUTSIDE}:{PORT}/", "http://8.8.8.8:18080/"):
            with pytest.raises(GuardError):
                await client.fetch("GET", url, timeout=1.0, max_bytes=1000)
    assert outside.dialled == []


async def test_a_redirect_is_not_followed(outside: Outside) -> None:
    async def redirect(_: object) -> RedirectResponse:
        return RedirectResponse(f"http://{OUTSIDE}:{PORT}/")

    async with running(Starlette(routes=[Route("/", redirect)])) as url, client_for(outside) as client:
        reply = await client.fetch("GET", f"{url}/", timeout=2.0, max_bytes=1000)
    assert reply.status == 307
    assert outside.dialled == []


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
async def test_a_proxy_in_the_environment_is_ignored(
    variable: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://{OUTSIDE}:{PORT}")
    async with running(Starlette(routes=[])) as url, client_for(outside) as client:
        reply = await client.fetch("GET", f"{url}/", timeout=2.0, max_bytes=1000)
    assert reply.status == 404
    assert outside.dialled == []


async def test_a_name_that_resolves_inside_and_then_outside_is_caught(outside: Outside) -> None:
    outside.answers = [["127.0.0.1"], [OUTSIDE]]
    app = Starlette(routes=[])
    async with running(app) as url, client_for(outside, hosts=("gpu.lan",)) as client:
        port = url.rsplit(":", 1)[1]
        first = await client.fetch(
            "GET", f"http://gpu.lan:{port}/", timeout=2.0, max_bytes=1000, headers={"Connection": "close"}
        )
        assert first.status == 404
        with pytest.raises(GuardError, match=OUTSIDE):
            await client.fetch("GET", f"http://gpu.lan:{PORT}/", timeout=2.0, max_bytes=1000)
    assert outside.resolved == ["gpu.lan", "gpu.lan"]
    assert outside.dialled == []


async def test_one_bad_address_among_good_ones_refuses_the_name(outside: Outside) -> None:
    outside.answers = [["127.0.0.1", OUTSIDE]]
    async with client_for(outside, hosts=("gpu.lan",)) as client:
        with pytest.raises(GuardError):
            await client.fetch("GET", f"http://gpu.lan:{PORT}/", timeout=2.0, max_bytes=1000)
    assert outside.dialled == []


async def test_a_container_alias_is_read_from_the_hosts_file_and_never_resolved(
    outside: Outside, tmp_path: object, make_hosts: Callable[[str], AllowList]
) -> None:
    allow = make_hosts(f"{OUTSIDE} host.docker.internal\n")
    async with open_client(allow, resolve=outside.resolve) as client:
        with pytest.raises(GuardError):
            await client.fetch("GET", f"http://host.docker.internal:{PORT}/", timeout=1.0, max_bytes=1000)
    assert outside.resolved == []
    assert outside.dialled == []


@pytest.fixture
def make_hosts(tmp_path: object) -> Callable[[str], AllowList]:
    from dataclasses import replace
    from pathlib import Path

    def make(text: str) -> AllowList:
        path = Path(str(tmp_path)) / "hosts"
        path.write_text(text)
        return replace(AllowList.from_config(SecurityConfig()), hosts_file=path)

    return make


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://127.9.8.7:1/",
        "http://[::1]:1/",
        "http://localhost:1/",
        "http://192.168.1.100:8000",
        "http://10.1.2.3/v1",
        "http://172.16.0.1:1/",
        "http://host.docker.internal:11434",
        "https://LOCALHOST:1/",
        "unix:/run/llm.sock",
    ],
)
async def test_what_is_allowed_is_allowed(url: str) -> None:
    assert AllowList.from_config(SecurityConfig()).check_url(url).scheme in ("http", "https", "unix")


async def test_the_refusal_says_which_line_to_add() -> None:
    with pytest.raises(GuardError, match=r"gpu1\.lan") as caught:
        AllowList.from_config(SecurityConfig()).check_url("http://gpu1.lan:8000")
    assert 'security.allowed_hosts: ["gpu1.lan"' in caught.value.hint
