"""Answers and uses that the HTTP client must survive: found by attacking it."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import pytest

from tests.guard.listener import HELLO, listening, says
from turnout.errors import EndpointDownError, NonsenseError
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client


async def test_an_ipv6_address_in_a_url_is_dialled() -> None:
    async with listening(says(HELLO), "::1") as listener, open_client(AllowList()) as client:
        reply = await client.get_json(f"http://[::1]:{listener.port}/x", timeout=5)
    assert reply.body == b"hello"
    assert f"Host: [::1]:{listener.port}\r\n" in listener.heads[0]


async def test_a_small_compressed_answer_is_not_made_a_large_one() -> None:
    bomb = gzip.compress(bytes(100_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with listening(says(head, bomb)) as listener, open_client(AllowList()) as client:
        tracemalloc.start()
        try:
            with pytest.raises(NonsenseError, match="compressed"):
                await client.get_json(f"http://127.0.0.1:{listener.port}/", timeout=20)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 10_000_000


async def test_a_closed_client_opens_nothing_more() -> None:
    async with listening(says(HELLO)) as listener:
        async with open_client(AllowList()) as client:
            await client.get_json(f"http://127.0.0.1:{listener.port}/", timeout=5)
        with pytest.raises(EndpointDownError, match="was closed"):
            await client.get_json(f"http://127.0.0.1:{listener.port}/", timeout=5)
        await asyncio.wait_for(listener.gone.wait(), 5)
    assert len(listener.dialled) == 1
