"""How far discovery looks: one switch ends it at loopback."""

from __future__ import annotations

import pytest

from turnout import build
from turnout.config import DiscoveryConfig, RouterConfig
from turnout.fleet.discovery import targets
from turnout.fleet.host import HostInfo

IN_A_CONTAINER = HostInfo("linux", "6", "x86_64", container="docker", gateway="172.17.0.1")


def hosts(config: RouterConfig) -> set[str]:
    return {
        t.endpoint.url.rpartition(":")[0] for t in targets(config, build.host_of(config)) if not t.endpoint.configured
    }


def test_one_switch_ends_discovery_at_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "detect_os", lambda: IN_A_CONTAINER)
    monkeypatch.delenv("TURNOUT_LOOPBACK_ONLY")
    loopback = {"http://127.0.0.1", "http://[::1]"}
    assert hosts(RouterConfig()) == loopback | {"http://host.docker.internal", "http://172.17.0.1"}
    assert hosts(RouterConfig(discovery=DiscoveryConfig(loopback_only=True))) == loopback
    monkeypatch.setenv("TURNOUT_LOOPBACK_ONLY", "1")
    assert hosts(RouterConfig()) == loopback
