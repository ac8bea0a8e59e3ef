"""What a newcomer to the fleet ran into: each once, from the outside."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import turnout
from tests.cli.conftest import configure, run, run_beside
from tests.fakes import FAKES
from tests.fakes.base import Fake, FakeModel, running
from tests.isolated import is_isolated
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.errors import NoServiceError, NoSuitableModelError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.routing.capabilities import load_table
from turnout.routing.select import asked_for, candidates
from turnout.types import ChatRequest, Endpoint, Health, Model, message


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def serving(kind: str, fake: Fake, port: int = 0):  # type: ignore[no-untyped-def]
    return running(FAKES[kind].app(fake), port, server_header=FAKES[kind].SERVER_HEADER)


@pytest.mark.parametrize("style", ["native", "openai", "custom"])
async def test_another_machines_model_is_left_out_however_its_server_is_spoken_to(style: str) -> None:
    fake = Fake(models=[FakeModel("qwen2.5-coder:7b"), FakeModel("far:latest", remote=True)])
    async with serving("ollama", fake) as url:
        custom = {"name": "box", "endpoint": url, "api_style": style}
        (status,) = await turnout.discover_services({"custom_endpoints": [custom], "discovery": {"enabled": False}})
    assert [model.id for model in status.models] == ["qwen2.5-coder:7b"]


@pytest.mark.parametrize("kind", ["ollama", "openwebui", "llamacpp", "vllm"])
async def test_an_address_with_v1_is_the_same_server(kind: str) -> None:
    async with serving(kind, Fake()) as url:
        custom = {"name": "box", "endpoint": f"{url}/v1", "api_style": "native"}
        (status,) = await turnout.discover_services({"custom_endpoints": [custom], "discovery": {"enabled": False}})
    assert (status.endpoint.kind, status.health) == (kind, Health.ONLINE), status.reason


async def test_a_server_that_has_just_started_is_found_by_the_name_of_its_model() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving("vllm", Fake()))
        async with serving("vllm", Fake(models=[FakeModel("late")])) as gone:
            port = int(gone.rpartition(":")[2])
        endpoints = [{"name": "a", "endpoint": first}, {"name": "b", "endpoint": gone}]
        config = load_any({"custom_endpoints": endpoints, "discovery": {"enabled": False}})
        router = await stack.enter_async_context(open_router(config, whole=True))
        router.fleet._refreshed = 0.0
        asked = ChatRequest((message("user", "hello"),), model="late")
        with pytest.raises(NoServiceError, match="b at .* may have it, and is offline"):
            await collect(router.route(asked))
        await stack.enter_async_context(serving("vllm", Fake(models=[FakeModel("late")]), port))
        router.fleet._refreshed = 0.0
        assert (await collect(router.route(asked))).service == "b"


def test_a_place_that_is_not_there_is_no_reason_to_go_elsewhere() -> None:
    box = Endpoint("box", "x", "http://127.0.0.1:1")
    models = (Model("qwen2.5-coder:7b"), Model("llama-3.1-8b@q4_k_m"))
    pool = candidates(Catalog((EndpointStatus(box, Health.ONLINE, "", 0.0, models=models),)), load_table())

    def meant(asked: str) -> list[str]:
        return [c.model.id for c in asked_for(pool, asked, load_table())]

    assert meant("qwen2.5-coder:7b@box") == ["qwen2.5-coder:7b"]
    assert meant("qwen2.5-coder:7b@ollama") == []
    assert meant("llama-3.1-8b@q4_k_m") == ["llama-3.1-8b@q4_k_m"]
    assert meant("llama-3.1-8b@q4_k_m@box") == ["llama-3.1-8b@q4_k_m"]


async def test_what_is_pinned_is_not_unloaded_and_unpinned_by_the_name_it_was_pinned_by() -> None:
    fake = Fake(models=[FakeModel("smol:latest", resident=False)])
    async with serving("ollama", fake) as url:
        configure(custom_endpoints=[{"name": "box", "endpoint": url, "api_style": "native"}])
        assert (await run_beside("models", "pin", "smol@box")).exit_code == 0
        refused = await run_beside("models", "unload", "smol")
        assert (refused.exit_code, "turnout models unpin smol:latest@box" in refused.stderr) == (2, True)
        assert fake.models[0].resident
    assert run("models", "unpin", "smol@box").stdout == "smol:latest @ box is no longer pinned\n"


def test_a_network_outside_the_allow_list_is_refused_before_anything_is_scanned() -> None:
    configure(discovery={"scan_cidrs": ["203.0.113.0/29"]})
    result = run("config", "check")
    assert result.exit_code == 4
    assert "discovery.scan_cidrs.0: 203.0.113.0/29: " in result.stderr


def test_a_list_that_was_tampered_with_is_found_by_the_check() -> None:
    Path("inventory.yaml").write_text("servers: [{name: a, endpoint: http://8.8.8.8:1}]")
    configure(discovery={"inventory": "inventory.yaml"})
    assert run("config", "check").exit_code == 4
    configure(discovery={"inventory": "absent.yaml"})
    assert "absent.yaml: the file cannot be read" in run("config", "check").stderr


@pytest.mark.parametrize(("address", "code"), [("127.0.0.1:99999", 4), ("abc def", 4), ("8.8.8.8:53", 4), ("", 4)])
def test_an_address_that_cannot_be_explained_is_refused_in_a_sentence(address: str, code: int) -> None:
    configure()
    result = run("discover", "--explain", address)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "internal error" not in result.stderr


async def test_what_serves_stands_first() -> None:
    async with serving("vllm", Fake()) as url:
        configure("http://127.0.0.1:9", url)
        lines = (await run_beside("discover")).stdout.splitlines()
        data = json.loads((await run_beside("discover", "--json")).stdout)
    assert [line.split("\t")[0] for line in lines[1:]] == ["fake1", "fake0"]
    assert [service["name"] for service in data["services"]] == ["fake0", "fake1"]


@pytest.mark.isolated
async def test_a_key_reaches_a_default_port_only_when_its_own_kind_is_there() -> None:
    if not is_isolated():
        pytest.skip("NOT ISOLATED: the default ports may be in use here: run `make test`")
    config = {"services": {"vllm": {"key": "secret"}}}
    other, own = Fake(), Fake(key="secret")
    async with serving("sglang", other, 8000):
        found = await turnout.discover_services(config)
    assert [s.endpoint.kind for s in found if s.health is Health.ONLINE] == ["sglang"]
    assert other.headers
    assert not any("authorization" in headers for headers in other.headers)
    async with serving("vllm", own, 8000):
        found = await turnout.discover_services(config)
    assert [(s.endpoint.kind, len(s.models)) for s in found if s.health is Health.ONLINE] == [("vllm", 1)]
    assert own.headers[-1]["authorization"] == "Bearer secret"


async def test_a_model_whose_server_is_away_is_not_said_to_be_nobodys() -> None:
    """An agent gives up at 404 and comes again at 503."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving("vllm", Fake()))
        async with serving("vllm", Fake(models=[FakeModel("smol")])) as gone:
            endpoints = [{"name": "a", "endpoint": first}, {"name": "b", "endpoint": gone}]
            config = load_any({"custom_endpoints": endpoints, "discovery": {"enabled": False}})
            router = await stack.enter_async_context(open_router(config, whole=True))
        await router.refresh()
        for asked in ("smol", "smol@b"):
            with pytest.raises(NoServiceError, match=f"'{asked}' cannot be reached: b at .* has it, and is offline"):
                await collect(router.route(ChatRequest((message("user", "hello"),), model=asked)))
        with pytest.raises(NoServiceError, match="b at .* has it"):
            await collect(router.route(ChatRequest((message("user", "hello"),), model="other@b")))
        with pytest.raises(NoSuitableModelError):
            await collect(router.route(ChatRequest((message("user", "hello"),), model="nobodys")))
