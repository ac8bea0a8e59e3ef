"""Announcements: a datagram says only where to look, and only of its own sender."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from turnout.config import SecurityConfig
from turnout.errors import UsageError
from turnout.fleet.beacon import MAX_HEARD, SILENT_SECONDS, Heard, announced
from turnout.guard.allow import AllowList
from turnout.guard.datagrams import datagrams

ALLOW = AllowList.from_config(SecurityConfig())


def says(url: object) -> bytes:
    return json.dumps({"service": "lemonade", "hostname": "box", "url": url}).encode()


def test_a_server_announces_itself() -> None:
    found = announced(says("http://10.0.0.7:13305/api/v1/"), "10.0.0.7", ALLOW)
    assert found is not None
    assert (found.url, found.kind, found.configured) == ("http://10.0.0.7:13305", "", False)


@pytest.mark.parametrize(
    ("datagram", "sender"),
    [
        (says("http://10.0.0.8:13305"), "10.0.0.7"),
        (says("http://203.0.113.5:13305"), "203.0.113.5"),
        (says("http://evil.example:13305"), "10.0.0.7"),
        (says("http://10.0.0.7@evil.example:1"), "10.0.0.7"),
        (says("http://user@10.0.0.7:1"), "10.0.0.7"),
        (says("file:///etc/passwd"), "10.0.0.7"),
        (says("http://10.0.0.7:99999"), "10.0.0.7"),
        (says("http://[::1"), "10.0.0.7"),
        (says(5), "10.0.0.7"),
        (b"\xff\x00", "10.0.0.7"),
        (b"[" * 2000, "10.0.0.7"),
        (says("http://10.0.0.7:1") + b" " * 2048, "10.0.0.7"),
        (b"", "10.0.0.7"),
    ],
)
def test_what_is_no_servers_own_word_is_not_looked_at(datagram: bytes, sender: str) -> None:
    assert announced(datagram, sender, ALLOW) is None


def test_silence_is_forgotten_and_a_flood_is_bounded() -> None:
    now = [0.0]
    heard = Heard(ALLOW, clock=lambda: now[0])
    for n in range(MAX_HEARD + 50):
        heard.hear(says(f"http://10.0.{n // 256}.{n % 256}:13305"), f"10.0.{n // 256}.{n % 256}")
    assert len(heard.endpoints()) == MAX_HEARD
    now[0] = SILENT_SECONDS - 1
    heard.hear(says("http://10.0.0.3:13305"), "10.0.0.3")
    now[0] = SILENT_SECONDS + 1
    assert [endpoint.url for endpoint in heard.endpoints()] == ["http://10.0.0.3:13305"]


def test_only_a_new_address_is_news() -> None:
    now = [0.0]
    heard = Heard(ALLOW, clock=lambda: now[0])
    assert [heard.hear(says("http://10.0.0.7:1"), "10.0.0.7") for _ in range(3)] == [True, False, False]
    assert not heard.hear(b"", "10.0.0.7")
    for n in range(MAX_HEARD):
        heard.hear(says(f"http://10.0.1.{n}:1"), f"10.0.1.{n}")
    assert not heard.hear(says("http://10.0.2.1:1"), "10.0.2.1"), "there is no room"
    now[0] = SILENT_SECONDS + 1
    assert heard.hear(says("http://10.0.2.1:1"), "10.0.2.1"), "those that fell silent made room"


async def test_datagrams_are_heard_and_the_socket_is_closed() -> None:
    came: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        async with datagrams(0, lambda data, who: came.put_nowait((data, who)), "127.0.0.1") as port:
            sender.sendto(b"hello", ("127.0.0.1", port))
            assert await asyncio.wait_for(came.get(), 5) == (b"hello", "127.0.0.1")
            with pytest.raises(UsageError, match="cannot be listened on"):
                async with datagrams(port, lambda *_: None, "127.0.0.1"):
                    pass
        async with datagrams(port, lambda *_: None, "127.0.0.1"):
            pass
