"""Custom endpoints: each way of speaking to one, with its key and its paths, from discovery to the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.fakes import FAKES
from tests.fakes.base import WORDS, Fake, FakeModel, running
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.types import ChatRequest, Health, message

HI = ChatRequest((message("user", "Add two numbers"),))
USUAL = {"chat_path": "/v1/chat/completions", "models_path": "/v1/models"}
ODD = {"chat_path": "/inside/talk", "models_path": "/inside/catalog"}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def moved(app: ASGIApp) -> ASGIApp:
    """A server of the protocol at other paths, and at those alone."""
    inside = {path: USUAL[name] for name, path in ODD.items()}

    async def at_odd_paths(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = inside.get(scope["path"], "/nowhere")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return at_odd_paths


def config_of(url: str, **section: object) -> LoadedConfig:
    custom = [{"name": "box", "endpoint": url, **section}]
    return load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})


@pytest.mark.parametrize(
    ("style", "server", "paths", "kind"),
    [
        ("native", "koboldcpp", {}, "koboldcpp"),
        ("native", "openai", {}, "openai"),
        ("openai", "openai", {}, "openai"),
        ("openai", "vllm", USUAL, "vllm"),
        ("openai", "openai", ODD, "openai"),
        ("custom", "openai", ODD, "openai"),
        ("custom", "vllm", USUAL, "openai"),
    ],
)
async def test_it_is_found_and_answers_with_its_key_at_its_paths(
    style: str, server: str, paths: dict[str, str], kind: str
) -> None:
    dialect, fake = FAKES[server], Fake(key="secret")
    app = moved(dialect.app(fake)) if paths == ODD else dialect.app(fake)
    async with running(app, server_header=dialect.SERVER_HEADER) as url:
        async with open_router(config_of(url, api_style=style, key="wrong", **paths)) as router:
            (status,) = router.catalog.endpoints
            assert (status.health, status.endpoint.name) == (Health.NEEDS_KEY, "box"), status.reason
        fake.requests.clear()
        async with open_router(config_of(url, api_style=style, key="secret", **paths)) as router:
            (status,) = router.catalog.endpoints
            assert (status.health, status.endpoint.kind) == (Health.ONLINE, kind), status.reason
            answer = await collect(router.route(HI))
    assert (answer.text, answer.service) == ("".join(WORDS), "box")
    assert fake.requests[-1] == ("POST", "/v1/chat/completions")
    assert fake.headers[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("style", ["openai", "custom"])
async def test_paths_are_those_of_the_openai_format_also_at_a_server_with_one_of_its_own(style: str) -> None:
    ollama, fake = FAKES["ollama"], Fake([FakeModel("qwen2.5-coder:7b")])
    async with running(ollama.app(fake), server_header=ollama.SERVER_HEADER) as url:
        async with open_router(config_of(url, api_style=style, **USUAL)) as router:
            assert (await collect(router.route(HI))).text == "".join(WORDS)
    assert fake.requests[-1] == ("POST", "/v1/chat/completions")


async def test_a_native_server_that_is_none_of_the_known_kinds_is_said_to_be_none() -> None:
    async with running(moved(FAKES["openai"].app(Fake()))) as url:
        async with open_router(config_of(url, api_style="native", **ODD)) as router:
            (status,) = router.catalog.endpoints
    assert (status.health, status.models) == (Health.DEGRADED, ())
