"""A Router as it is built: who stands in when nobody answers, how servers are looked for, and the site's inventory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.base import running
from tests.fakes.llm import openai_app
from tests.isolated import is_isolated
from tests.servers import WEIGHTS
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.errors import ConfigError, GuardError, NoServiceError
from turnout.router import Router
from turnout.types import ChatRequest, message

HELLO = ChatRequest((message("user", "Say hello"),), max_tokens=4)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def with_weights(data_dir: Path) -> None:
    (data_dir / "embedded").mkdir(parents=True)
    (data_dir / "embedded" / WEIGHTS.name).symlink_to(WEIGHTS)


def config_for(url: str, *, fallback: bool) -> LoadedConfig:
    custom = [{"name": "box", "endpoint": url}]
    return load_any(
        {"custom_endpoints": custom, "discovery": {"enabled": False}, "embedded": {"fallback": fallback}},
    )


def serving(router: Router) -> list[str]:
    return [status.endpoint.name for status in router.catalog.serving]


NOBODY = "http://127.0.0.1:9"


async def test_the_bundled_model_stands_in_where_the_user_agreed(with_weights: None) -> None:
    async with open_router(config_for(NOBODY, fallback=False)) as router:
        assert serving(router) == []
    async with open_router(config_for(NOBODY, fallback=True)) as router:
        assert serving(router) == ["embedded"]
        assert [a.candidate.endpoint.name for a in (await router.explain(HELLO)).attempts] == ["embedded"]
        assert (await collect(router.route(HELLO))).service == "embedded"
    async with LocalLLMRouter(None, config_for(NOBODY, fallback=True)) as library:
        assert (await library.execute("Say hello")).service == "embedded"


async def test_it_stands_in_as_soon_as_the_others_are_gone_and_steps_back(with_weights: None) -> None:
    app = openai_app()
    async with running(app) as url, open_router(config_for(url, fallback=True)) as router:
        assert serving(router) == ["box"]
        app.state.fake.fault = "key"
        await router.refresh()
        assert serving(router) == ["embedded"]
        app.state.fake.fault = ""
        await router.refresh()
        assert serving(router) == ["box", "embedded"]
        assert (await collect(router.route(HELLO))).service == "box"


async def test_an_agreement_without_a_model_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with open_router(config_for(NOBODY, fallback=True)) as router:
        with pytest.raises(NoServiceError):
            await collect(router.route(HELLO))
    said = [record.message for record in caplog.records if "embedded.fallback" in record.message]
    assert len(said) == 1
    assert "turnout embedded install" in said[0]


async def test_a_server_that_came_up_a_moment_ago_is_found() -> None:
    app = openai_app()
    app.state.fake.fault = "key"
    async with running(app) as url, open_router(config_for(url, fallback=False)) as router:
        assert serving(router) == []
        app.state.fake.fault = ""
        assert (await collect(router.route(HELLO))).service == "box"


def with_inventory(folder: Path, *servers: dict[str, object], **section: object) -> LoadedConfig:
    file = folder / "inventory.yaml"
    file.write_text(json.dumps({"servers": servers}))
    return load_any({"discovery": {"enabled": False, "inventory": str(file), **section}})


async def test_the_sites_inventory_is_looked_at_and_drift_is_said(tmp_path: Path) -> None:
    async with running(openai_app(("listed", "stray"))) as url:
        there = {"name": "gpu-1", "endpoint": url, "models": [{"id": "listed"}]}
        away = {"name": "gpu-2", "endpoint": NOBODY}
        async with open_router(with_inventory(tmp_path, there, away), whole=True) as router:
            by_name = {status.endpoint.name: status for status in router.catalog.endpoints}
            assert (await collect(router.route(HELLO))).service == "gpu-1"
    assert [model.id for model in by_name["gpu-1"].models] == ["listed"]
    assert by_name["gpu-1"].notes == ("inventory: the list does not name it (stray)",)
    assert by_name["gpu-2"].notes == ("inventory: it is offline",)


async def test_an_inventory_leads_nowhere_outside_and_nowhere_without_its_signature(tmp_path: Path) -> None:
    outside = with_inventory(tmp_path, {"name": "gpu-1", "endpoint": "http://203.0.113.5:8000"})
    with pytest.raises(GuardError, match=r"inventory\.yaml: endpoint gpu-1: .*outside the allowed networks"):
        async with open_router(outside):
            pass
    unsigned = with_inventory(tmp_path, inventory_key=str(tmp_path / "site.pem"))
    with pytest.raises(ConfigError, match="cannot be read"):
        async with open_router(unsigned):
            pass


@pytest.mark.isolated
async def test_a_scan_that_is_asked_for_is_done_first_and_audited(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_isolated():
        pytest.skip("NOT ISOLATED: this test needs a network namespace: run `make test`")
    monkeypatch.delenv("TURNOUT_LOOPBACK_ONLY")
    async with running(openai_app()) as url:
        section = {"scan_cidrs": ["127.0.0.1/32"], "scan_ports": [int(url.rpartition(":")[2])]}
        loaded = load_any({"discovery": {"enabled": False, **section}})
        async with open_router(loaded) as router:
            assert serving(router) == []
        async with open_router(loaded, scan=True) as router:
            assert [status.endpoint.url for status in router.catalog.serving] == [url]
    told = [json.loads(line).get("service") or "" for line in (data_dir / "audit.log").read_text("utf-8").splitlines()]
    assert [line.partition(":")[0] for line in told if line.startswith("scan")] == ["scan begins", "scan ends"]
