"""Lemonade beyond the common behaviours: clouds, collections, pinned models, what is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.backends.served import case_of
from tests.fakes.base import Fake, FakeModel
from turnout.errors import EndpointBusyError, UnknownModelError
from turnout.types import Health

ROW = {"object": "model", "created": 1, "owned_by": "lemonade", "downloaded": True}


async def test_its_own_servers_and_limits_are_told() -> None:
    async with case_of("lemonade", Fake(busy=1)) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
        assert case.fake.requests == [("GET", "/v1/models"), ("GET", "/v1/health")]
    assert found.children == ("http://127.0.0.1:8001",)
    assert (found.capacity, found.busy, found.version) == (2, 1, "11.7.0")


async def test_a_base_url_with_its_path_is_taken() -> None:
    fake = Fake()
    async with case_of("lemonade", fake) as case:
        endpoint = replace(case.endpoint(), url=f"{case.url}/api/v1")
        found = await case.backend.inspect(case.client, endpoint, 2)
        assert found.models[0].resident is True
        await case.backend.unload(case.client, endpoint, found.models[0])
        assert not fake.models[0].resident


async def test_only_what_chats_or_embeds_is_a_model() -> None:
    rows = [
        {"id": "flux", **ROW, "recipe": "sd-cpp", "labels": ["image"]},
        {"id": "whisper", **ROW, "recipe": "whispercpp", "labels": ["transcription"]},
        {"id": "omni", **ROW, "recipe": "collection.omni", "labels": ["chat", "tool-calling"]},
        {"id": "router", **ROW, "recipe": "collection.router", "labels": ["chat"]},
        {"id": "nomic", **ROW, "recipe": "llamacpp", "labels": ["embeddings"], "checkpoint": "nomic/nomic:Q4_K_S"},
        {"id": "bare", **ROW, "recipe": "llamacpp", "checkpoint": "a/b:model.safetensors", "size": "large"},
    ]
    async with case_of("lemonade", Fake(options={"extra_rows": rows})) as case:
        found = {model.id: model for model in (await case.look()).models}
    assert {*found} == {"qwen2.5-coder-7b-instruct", "nomic", "bare"}
    assert found["nomic"].capabilities == {"embeddings"}
    assert found["nomic"].quantization == "Q4_K_S"
    assert (found["bare"].capabilities, found["bare"].quantization, found["bare"].size) == (frozenset(), "", 0)


async def test_cloud_models_and_telemetry_are_noted() -> None:
    options = {"telemetry": {"enabled": True, "captures": ["inputs", "outputs"]}}
    fake = Fake(models=[FakeModel(), FakeModel("fireworks.kimi-k2", remote=True)], options=options)
    async with case_of("lemonade", fake) as case:
        status = await case.look()
    assert status.excluded == (("fireworks.kimi-k2", "served by another machine through this server"),)
    assert status.notes == (
        "cloud offload is set up: 1 of its models are served by a provider elsewhere",
        "telemetry is on, with inputs, outputs",
    )


async def test_the_window_to_come_is_known_only_when_it_is_configured() -> None:
    fake = Fake(models=[FakeModel(resident=False), FakeModel("auto", window=32768, max_window=32768, resident=False)])
    async with case_of("lemonade", fake) as case:
        configured, automatic = (await case.look()).models
    assert (configured.window, configured.window_source) == (8192, "known")
    assert (automatic.window, automatic.window_source) == (32768, "guessed")


async def test_it_is_known_by_its_health_when_it_lists_nothing() -> None:
    async with case_of("lemonade", Fake(models=[])) as case:
        status = await case.look()
    assert (status.endpoint.kind, status.health, status.reason) == ("lemonade", Health.ONLINE, "has no model")


async def test_no_room_beside_pinned_models_is_a_matter_of_time() -> None:
    fake = Fake()
    async with case_of("lemonade", fake) as case:
        model = await case.model()
        fake.fault = "busy"
        with pytest.raises(EndpointBusyError, match="are pinned"):
            await case.backend.load(case.client, case.endpoint(), model, lambda _: None)
        with pytest.raises(UnknownModelError):
            await case.backend.unload(case.client, case.endpoint(), replace(model, id="nobody-has-this"))


async def test_loading_pins_nothing() -> None:
    fake = Fake(models=[FakeModel(resident=False)])
    async with case_of("lemonade", fake) as case:
        await case.backend.load(case.client, case.endpoint(), await case.model(), lambda _: None)
        assert fake.options["load"] == {"model_name": fake.models[0].id}
