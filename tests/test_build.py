"""A Router as it is built: who stands in when nobody answers, and how servers are looked for again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.llm import openai_app, running
from tests.servers import WEIGHTS
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.errors import NoServiceError
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
