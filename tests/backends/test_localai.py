"""LocalAI beyond the common behaviours: errors without bodies, clouds, its pose as Ollama, older versions."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.backends.behaviours import QUICK, Case
from tests.backends.served import case_of
from tests.fakes.base import Fake, FakeModel
from turnout.backends.lanes import event_lane
from turnout.errors import BackendError, EndpointBusyError, EndpointLoadingError, KeyRefusedError, UnknownModelError
from turnout.types import ChatRequest, Health, Model, message


async def ask(case: Case, model: Model, key: str = "") -> None:
    endpoint = replace(case.endpoint(), key=key or case.fake.key, limits=QUICK)
    lane = event_lane(case.client, case.backend, endpoint, model, ChatRequest((message("user", "hello"),)), 4096)
    async with aclosing(lane) as events:
        async for _ in events:
            pass


async def test_three_gets_tell_everything_while_a_model_is_loaded() -> None:
    fake = Fake(models=[FakeModel(), FakeModel("idle", resident=False)])
    async with case_of("localai", fake) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
        assert sorted(fake.requests) == [("GET", p) for p in ("/.well-known/localai.json", "/api/ps", "/api/tags")]
    assert [model.resident for model in found.models] == [True, False]


async def test_it_poses_as_ollama_in_vain() -> None:
    async with case_of("localai", Fake(options={"poses": True})) as case:
        status = await case.look()
    assert status.endpoint.kind == "localai"
    assert status.models[0].digest == "", "the digest there is the hash of the name"
    assert status.models[0].parameters == 8_000_000_000


async def test_ways_out_are_noted() -> None:
    options = {"open_ways": {"p2p": True, "agents": True, "mcp": True}}
    fake = Fake(models=[FakeModel(), FakeModel("claude", remote=True)], options=options)
    async with case_of("localai", fake) as case:
        status = await case.look()
    assert status.excluded == (("claude", "served by another machine through this server"),)
    assert [note.split(":")[0].split(",")[0] for note in status.notes] == [
        "1 of its models are served by a provider elsewhere (cloud-proxy)",
        "takes part in a p2p network",
        "runs agents",
        "may call tools of MCP servers that a model's configuration names",
    ]


async def test_models_for_sound_are_left_out_and_bare_files_are_not() -> None:
    tags = [
        {"name": "voice:latest", "details": {"family": "piper"}, "capabilities": None},
        {"name": "bare.gguf:latest", "details": {"family": ""}},
        {"name": "code:latest", "details": {"family": "llama-cpp"}, "capabilities": ["completion", "insert"]},
        {"name": "bad\x1b[31m:latest", "details": {"family": ""}},
    ]
    async with case_of("localai", Fake(options={"more_tags": tags})) as case:
        found = {model.id: model for model in (await case.look()).models}
    assert {*found} == {"qwen2.5-coder-7b-instruct", "bare.gguf", "code"}
    assert found["code"].capabilities == {"chat", "fim"}


async def test_a_version_without_ollamas_routes_is_listed_all_the_same() -> None:
    async with case_of("localai", Fake(options={"no_ollama": True})) as case:
        status = await case.look()
        assert [model.id for model in status.models] == ["qwen2.5-coder-7b-instruct"]
        assert status.models[0].resident is None
        case.fake.key = "secret"
        assert (await case.look(key="")).health is Health.NEEDS_KEY


async def test_errors_without_bodies_are_understood() -> None:
    fake = Fake(options={"opaque": True})
    async with case_of("localai", fake) as case:
        model = await case.model()
        with pytest.raises(UnknownModelError):
            await ask(case, replace(model, id="nobody-has-this"))
        fake.fault = "loading"
        with pytest.raises(EndpointBusyError) as busy:
            await ask(case, model)
        assert busy.value.retry_after == 7
        fake.key, fake.fault = "secret", ""
        assert (await case.look(key="")).health is Health.NEEDS_KEY
        with pytest.raises(KeyRefusedError):
            await ask(case, model, key="wrong")


async def test_a_model_on_its_way_to_another_node_is_loading() -> None:
    fake = Fake()
    async with case_of("localai", fake) as case:
        model = await case.model()
        fake.fault = "loading"
        with pytest.raises(EndpointLoadingError) as loading:
            await ask(case, model)
        assert (type(loading.value), loading.value.retry_after) == (EndpointLoadingError, 7)


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "xi-api-key"])
async def test_every_header_it_takes_is_one_that_it_takes(header: str) -> None:
    fake = Fake(key="secret")
    async with case_of("localai", fake) as case:
        assert header in {name.lower() for name in case.backend.key_headers}
        value = "Bearer secret" if header == "authorization" else "secret"
        reply = await case.client.get_json(f"{case.url}/v1/models", headers={header: value}, timeout=2)
        assert reply.status == 200


async def test_unloading_what_is_not_loaded_says_so() -> None:
    async with case_of("localai", Fake(models=[FakeModel(resident=False)])) as case:
        with pytest.raises(BackendError, match="Resource not found"):
            await case.backend.unload(case.client, case.endpoint(), await case.model())
