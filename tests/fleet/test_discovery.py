from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes import ollama
from tests.fakes.base import Fake, running
from tests.fakes.liar import answer, lying, models
from turnout.api import load_any
from turnout.backends import BACKENDS
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import UsageError
from turnout.fleet.discovery import Target, explain_address, look
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, open_client
from turnout.types import Endpoint, Health


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with open_client(AllowList.from_config(SecurityConfig())) as opened:
        yield opened


async def test_an_address_is_explained_with_every_probe_and_rule(client: HttpClient) -> None:
    async with running(ollama.app(Fake())) as url:
        explained = await explain_address(client, RouterConfig(), url.removeprefix("http://"))
    probes = {probe.path: probe for probe in explained.probes}
    assert set(probes) == {path for backend in BACKENDS for path in backend.probes}
    assert (probes["/"].status, probes["/"].said) == (200, "Server: uvicorn | Ollama is running")
    assert probes["/lmstudio-greeting"].status == 404
    assert [rule.kind for rule in explained.rules] == [backend.kind for backend in BACKENDS]
    first = next(rule for rule in explained.rules if rule.evidence)
    assert (first.kind, first.evidence) == ("ollama", explained.status.evidence)
    assert (explained.status.endpoint.kind, explained.status.health) == ("ollama", Health.ONLINE)
    assert explained.status.models


async def test_nothing_there_is_one_probe_and_a_reason(client: HttpClient) -> None:
    explained = await explain_address(client, RouterConfig(), "http://127.0.0.1:9/")
    (probe,) = explained.probes
    assert (probe.status, probe.said) == (0, "nothing answers at 127.0.0.1:9: connection refused")
    assert not any(rule.evidence for rule in explained.rules)
    assert explained.status.health is Health.OFFLINE


async def test_a_refused_address_is_not_dialled(client: HttpClient) -> None:
    explained = await explain_address(client, RouterConfig(), "203.0.113.1:80")
    assert "outside the allowed networks" in explained.probes[0].said
    assert "outside the allowed networks" in explained.status.reason


async def test_what_a_server_says_is_shown_shortened_and_harmless(client: HttpClient) -> None:
    async with lying({"/v1/models": answer(b"\x1b[2J" + b"x" * 10_000, status=500)}) as url:
        explained = await explain_address(client, RouterConfig(), url)
    said = next(probe.said for probe in explained.probes if probe.path == "/v1/models")
    assert said.isprintable()
    assert 10 < len(said) < 300
    assert explained.status.health is Health.DEGRADED


async def test_a_configured_address_is_asked_with_its_key_and_style(client: HttpClient) -> None:
    async with lying({"/v1/models": models("m")}) as url:
        config = load_any({"custom_endpoints": [{"name": "box", "endpoint": url, "key": "k", "window": 4096}]}).config
        explained = await explain_address(client, config, url.replace("127.0.0.1", "localhost"))
    assert explained.status.endpoint.name == "box"
    assert explained.status.models[0].window == 4096


async def test_the_key_of_a_kind_goes_to_its_default_address_alone(client: HttpClient) -> None:
    row = {"id": "m", "owned_by": "vllm"}
    config = load_any({"services": {"vllm": {"key": "k"}}}).config
    async with lying({"/v1/models": answer({"object": "list", "data": [row]})}) as url:
        default = await look(client, Target(Endpoint("vllm", "", url), main=url), config)
        announced = await look(client, Target(Endpoint("beacon", "", url)), config)
    assert (default.endpoint.kind, default.endpoint.key) == ("vllm", "k")
    assert (announced.endpoint.kind, announced.endpoint.key) == ("vllm", ""), "whoever announces itself may be anybody"


async def test_what_is_no_address_is_said(client: HttpClient) -> None:
    with pytest.raises(UsageError, match="is no address"):
        await explain_address(client, RouterConfig(), "127.0.0.1:port")
