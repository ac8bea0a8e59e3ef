"""Looking further when the configuration asks: announcements, scans now and then, and their end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes import FAKES
from tests.fakes.base import Fake, running
from tests.fakes.liar import lying
from tests.isolated import is_isolated
from turnout.config import DiscoveryConfig, RouterConfig, SecurityConfig
from turnout.errors import AuditError
from turnout.fleet import search, watch
from turnout.fleet.host import HostInfo
from turnout.fleet.watch import Fleet
from turnout.guard.allow import AllowList
from turnout.guard.audit import AuditLog, open_audit
from turnout.guard.network import open_client
from turnout.types import Health

pytestmark = pytest.mark.isolated
HERE = "127.0.0.1/32"


@pytest.fixture(autouse=True)
def may_look_further(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_isolated():
        pytest.skip("NOT ISOLATED: this test needs a network namespace: run `make test`")
    monkeypatch.delenv("TURNOUT_LOOPBACK_ONLY")
    monkeypatch.setattr(watch, "PUBLISH_EVERY", 0.01)


def of(**section: object) -> DiscoveryConfig:
    return DiscoveryConfig(enabled=False, **section)  # type: ignore[arg-type]


@asynccontextmanager
async def searching(section: DiscoveryConfig, audit: AuditLog | None = None) -> AsyncIterator[Fleet]:
    """A fleet that knows nobody, watched, while it is searched as configured."""
    config, allow = RouterConfig(discovery=section), AllowList.from_config(SecurityConfig())
    async with open_client(allow) as client, Fleet(client, config, HostInfo("linux", "6", "x86_64")) as fleet:
        fleet.watch()
        async with search.keep_on(client, config, fleet, allow, audit):
            yield fleet


async def online_at(fleet: Fleet, *urls: str) -> None:
    """Wait until servers are known there."""
    async with asyncio.timeout(20):
        while {s.endpoint.url for s in fleet.catalog.endpoints if s.health is Health.ONLINE} != set(urls):
            await fleet.changed(fleet.catalog.generation)


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        return int(taken.getsockname()[1])


def announce(port: int, url: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(json.dumps({"service": "lemonade", "url": f"{url}/api/v1/"}).encode(), ("127.0.0.1", port))


async def test_who_is_heard_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_udp_port()
    monkeypatch.setattr(search, "PORT", port)
    async with running(FAKES["lemonade"].app(Fake()), server_header="") as url:
        async with searching(of(beacon=True)) as fleet:
            announce(port, url)
            await online_at(fleet, url)
            (status,) = fleet.catalog.endpoints
            assert (status.endpoint.kind, status.endpoint.configured) == ("lemonade", False)
        async with searching(of(beacon=True)):
            pass  # its port was given back


async def test_a_port_that_is_taken_is_said_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        monkeypatch.setattr(search, "PORT", taken.getsockname()[1])
        async with searching(of(beacon=True)):
            pass
    assert "announcements are not heard" in caplog.text


@pytest.mark.parametrize("alone", ["configuration", "environment"])
async def test_one_switch_ends_both(alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_udp_port()
    monkeypatch.setattr(search, "PORT", port)
    monkeypatch.setattr(search, "scan", None)  # whoever scans fails
    if alone == "environment":
        monkeypatch.setenv("TURNOUT_LOOPBACK_ONLY", "1")
    section = of(beacon=True, scan_cidrs=(HERE,), loopback_only=alone == "configuration")
    async with searching(section):
        await asyncio.sleep(0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("0.0.0.0", port))


async def test_a_later_scan_finds_who_came_later_and_each_is_audited(tmp_path: Path) -> None:
    port = free_tcp_port()
    section = of(scan_cidrs=(HERE,), scan_ports=(port,), scan_rate=1000, scan_interval=1)
    audit = open_audit(tmp_path / "audit.log", tmp_path / "audit.key", log_queries=True, log_responses=False)
    vllm = FAKES["vllm"]
    async with searching(section, audit) as fleet:
        await lines_of(tmp_path / "audit.log", "scan ends: 0 servers")
        async with running(vllm.app(Fake()), port) as url:
            await online_at(fleet, url)
            assert fleet.catalog.endpoints[0].endpoint.kind == "vllm"
    audit.close()


async def lines_of(file: Path, wanted: str) -> None:
    """Wait until a line of the audit log says so: nobody tells when one is written."""
    async with asyncio.timeout(20):
        while wanted not in (file.read_text("utf-8") if file.exists() else ""):
            await asyncio.sleep(0.01)


def free_tcp_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_what_cannot_be_written_down_is_not_scanned_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        tries = 0

        def event(self, *_: object, **__: object) -> None:
            self.tries += 1
            if self.tries == 1:
                raise AuditError("no space left")

    async with running(FAKES["vllm"].app(fake := Fake())) as url:
        section = of(scan_cidrs=(HERE,), scan_ports=(int(url.rpartition(":")[2]),), scan_rate=1000, scan_interval=1)
        async with searching(section, Full()) as fleet:  # type: ignore[arg-type]
            await online_at(fleet, url)
    assert "no scan: no space left" in caplog.text
    assert fake.requests


async def test_closing_ends_a_scan_that_is_under_way() -> None:
    asked = asyncio.Event()

    async def hang(_: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with lying({"/v1/models": hang}) as url:
        before = asyncio.all_tasks()
        section = of(scan_cidrs=(HERE,), scan_ports=(int(url.rpartition(":")[2]),), timeout=60_000)
        async with searching(section):
            await asked.wait()
        left = {task for task in asyncio.all_tasks() - before if "lying.<locals>.serve" not in repr(task)}
    assert left == set()
