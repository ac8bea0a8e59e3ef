"""Scanning: only the networks that are named, capped, GETs only, audited; in a namespace where they are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.fakes import vllm
from tests.fakes.base import Fake, running
from tests.isolated import is_isolated, lead_everywhere_home
from turnout.config import DiscoveryConfig, RouterConfig, SecurityConfig
from turnout.fleet.scan import addresses, scan
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client


@pytest.fixture
def hosts_of_our_own() -> Iterator[None]:
    if not is_isolated():
        pytest.skip("NOT ISOLATED: this test needs a network namespace: run `make test`")
    lead_everywhere_home()
    yield
    lead_everywhere_home(undo=True)


def test_the_addresses_of_a_network() -> None:
    assert addresses("10.0.0.0/30", (1, 2)) == [
        "http://10.0.0.1:1",
        "http://10.0.0.1:2",
        "http://10.0.0.2:1",
        "http://10.0.0.2:2",
    ]
    assert addresses("fd00::/127", (1,)) == ["http://[fd00::]:1", "http://[fd00::1]:1"]
    with pytest.raises(ValueError, match="the most is 256"):
        addresses("10.0.0.0/16", (1,))


@pytest.mark.isolated
async def test_a_scan_finds_what_is_there_and_tells_the_audit_log(hosts_of_our_own: None) -> None:
    fake, said = Fake(), list[tuple[str, str]]()
    async with running(vllm.app(fake), host="10.77.0.3") as url:
        port = int(url.rpartition(":")[2])
        section = DiscoveryConfig(scan_cidrs=("10.77.0.0/29",), scan_ports=(port,))
        config = RouterConfig(discovery=section)
        async with open_client(AllowList.from_config(SecurityConfig())) as client:
            found = await scan(client, config, audit=lambda *line: said.append(line), rate=1000)
    assert [endpoint.url for endpoint in found] == [f"http://10.77.0.3:{port}"]
    assert {method for method, _ in fake.requests} == {"GET"}
    assert [what for what, _ in said] == ["scan begins", "scan ends"]
    assert "6 addresses in 10.77.0.0/29" in said[0][1]


@pytest.mark.isolated
async def test_what_the_allow_list_does_not_hold_is_not_dialled(hosts_of_our_own: None) -> None:
    dialled: list[object] = []

    async def heard(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(writer.get_extra_info("sockname"))
        writer.close()

    server = await asyncio.start_server(heard, "203.0.113.3", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        config = RouterConfig(discovery=DiscoveryConfig(scan_cidrs=("203.0.113.0/29",), scan_ports=(port,)))
        async with open_client(AllowList.from_config(SecurityConfig())) as client:
            assert await scan(client, config, audit=lambda *_: None, rate=1000) == ()
    assert dialled == []
