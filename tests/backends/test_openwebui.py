"""Open WebUI beyond the common behaviours: where its models lead, and pages instead of answers."""

from __future__ import annotations

import pytest

from tests.backends.served import case_of
from tests.fakes.base import Fake, FakeModel
from turnout.errors import RequestRefusedError
from turnout.types import Health

OLLAMA_TAG = {
    "name": "gemma3:4b",
    "size": 3_338_801_804,
    "digest": "a" * 64,
    "details": {"family": "gemma3", "quantization_level": "Q4_K_M", "context_length": 131072},
    "capabilities": ["completion", "vision"],
}
ROWS = [
    {"id": "gemma3:4b", "owned_by": "ollama", "ollama": OLLAMA_TAG, "connection_type": "local"},
    {"id": "gpt-5", "owned_by": "openai", "openai": {"id": "gpt-5", "owned_by": "system"}, "urlIdx": 1},
    {"id": "arena-model", "owned_by": "arena", "arena": True},
    {"id": "a_function", "owned_by": "openai", "pipe": {"type": "pipe"}, "connection_type": "local"},
    {"id": "qwen", "openai": {"id": "qwen", "owned_by": "vllm", "max_model_len": 4096}, "connection_type": "local"},
]


async def test_only_what_its_administrator_calls_local_is_used() -> None:
    async with case_of("openwebui", Fake(options={"extra_rows": ROWS})) as case:
        status = await case.look()
    assert {model.id for model in status.models} == {"qwen2.5-coder-7b-instruct", "gemma3:4b", "qwen"}
    assert {name for name, _ in status.excluded} == {"gpt-5", "arena-model", "a_function"}
    assert "1 of its models are of llamacpp: the same as of that server, if it is found by itself" in status.notes
    assert any("of ollama" in note for note in status.notes)


async def test_what_the_server_behind_it_tells_is_read() -> None:
    async with case_of("openwebui", Fake(options={"extra_rows": ROWS})) as case:
        found = {model.id: model for model in (await case.look()).models}
    gemma = found["gemma3:4b"]
    assert (gemma.digest, gemma.quantization, gemma.max_window, gemma.window) == ("a" * 64, "Q4_K_M", 131072, 0)
    assert gemma.capabilities == {"chat", "vision"}
    assert found["qwen"].window == 4096
    # A router's context_length is what the model was trained for.
    assert found["qwen2.5-coder-7b-instruct"].window == 8192


async def test_it_is_reported_and_not_used_unless_it_is_configured() -> None:
    async with case_of("openwebui", Fake()) as case:
        assert "used when it is configured" in (await case.look(configured=False)).unused
        assert (await case.look()).unused == ""


async def test_it_is_known_by_another_name_and_with_a_token_that_its_configuration_refuses() -> None:
    fake = Fake(key="secret", options={"name": "Our AI"})
    async with case_of("openwebui", fake) as case:
        assert (await case.look(key="")).endpoint.kind == "openwebui"
        fake.options["bad_token"] = True
        status = await case.look()
    assert (status.endpoint.kind, status.health, status.version) == ("openwebui", Health.ONLINE, "0.12.4")


async def test_features_that_lead_out_are_noted() -> None:
    features = {"enable_web_search": True, "enable_code_execution": True, "enable_channels": True}
    async with case_of("openwebui", Fake(options={"features": features})) as case:
        notes = (await case.look()).notes
    assert notes[:2] == ("web search is on", "it runs code")


async def test_a_page_instead_of_the_list_is_no_list() -> None:
    async with case_of("openwebui", Fake()) as case:
        found = await case.backend.inspect(case.client, case.endpoint(models_path="/v1/models"), 2)
    assert (found.health, found.reason) == (Health.DEGRADED, "GET /v1/models is not a model list")


async def test_unloading_is_passed_on_where_the_server_behind_it_can() -> None:
    fake = Fake(models=[FakeModel(), FakeModel("far", remote=True)])
    async with case_of("openwebui", fake) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
        with pytest.raises(RequestRefusedError, match="does not support model unloading"):
            await case.backend.unload(case.client, case.endpoint(), found.models[1])
        await case.backend.unload(case.client, case.endpoint(), found.models[0])
        assert not fake.models[0].resident
