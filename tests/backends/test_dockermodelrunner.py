"""Docker Model Runner beyond the common behaviours: names, windows, real digests, plain-text errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.backends.served import case_of
from tests.fakes.base import Fake, FakeModel
from turnout.backends import BY_KIND
from turnout.errors import EndpointBusyError, ServerFailedError
from turnout.guard.network import Reply
from turnout.types import Health

MODEL = "docker.io/ai/smollm2:latest"


async def test_three_gets_tell_everything() -> None:
    async with case_of("dockermodelrunner", Fake()) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
        assert case.fake.requests == [("GET", p) for p in ("/models", "/engines/ps", "/engines/_configure")]
    model = found.models[0]
    assert (model.digest, model.family) == ("d" * 64, "qwen2")
    assert model.parameters == pytest.approx(7.6e9, rel=0.01)
    assert "takes no key" in found.notes[0]


async def test_the_packaged_window_holds_where_nobody_configured_one() -> None:
    async with case_of("dockermodelrunner", Fake(options={"no_configuration": True})) as case:
        assert (await case.model()).window == 32768


@pytest.mark.parametrize("asked_as", ["ai/smollm2", "smollm2", "ai/smollm2:latest", MODEL, f"sha256:{'d' * 64}"])
async def test_what_runs_is_known_by_any_of_its_names(asked_as: str) -> None:
    fake = Fake(models=[FakeModel(MODEL), FakeModel("docker.io/ai/gemma3:latest", resident=False, digest="e" * 64)])
    fake.options["asked_as"] = asked_as
    async with case_of("dockermodelrunner", fake) as case:
        status = await case.look()
        assert [model.resident for model in status.models] == [True, False]
        await case.backend.unload(case.client, case.endpoint(), status.models[0])
        assert not fake.models[0].resident


@pytest.mark.parametrize("path", ["/engines/v1", "/v1", "/engines"])
async def test_base_urls_that_people_write_are_taken(path: str) -> None:
    async with case_of("dockermodelrunner", Fake()) as case:
        endpoint = replace(case.endpoint(), url=f"{case.url}{path}")
        found = await case.backend.inspect(case.client, endpoint, 2)
        assert found.health is Health.ONLINE
        assert await case.backend.embed(case.client, endpoint, found.models[0], ["a"])
        await case.backend.load(case.client, endpoint, found.models[0], lambda _: None)
        assert case.fake.requests[-1][1].endswith("/v1/chat/completions")


async def test_loading_asks_for_no_answer_and_tells_why_it_failed() -> None:
    fake = Fake(models=[FakeModel(resident=False)])
    async with case_of("dockermodelrunner", fake) as case:
        model = await case.model()
        await case.backend.load(case.client, case.endpoint(), model, lambda _: None)
        assert fake.headers[-1]["x-preload-only"] == "true"
        assert fake.seen == []
        fake.fault = "error"
        with pytest.raises(ServerFailedError, match="out of memory"):
            await case.backend.load(case.client, case.endpoint(), model, lambda _: None)


async def test_a_model_that_answers_is_not_unloaded_and_says_so() -> None:
    fake = Fake(busy=1)
    async with case_of("dockermodelrunner", fake) as case:
        with pytest.raises(EndpointBusyError, match="answering a request"):
            await case.backend.unload(case.client, case.endpoint(), await case.model())


def test_behind_a_path_it_is_known_by_its_list() -> None:
    listed = Reply(200, {}, b'{"data":[{"id":"ai/smollm2","owned_by":"docker"}]}')
    found = BY_KIND["dockermodelrunner"].identify({"/v1/models": listed, "/": Reply(404, {}, b"not found")})
    assert found is not None
    assert "owned by docker" in found.evidence


async def test_it_is_known_by_its_greeting_when_it_lists_nothing() -> None:
    async with case_of("dockermodelrunner", Fake(models=[])) as case:
        status = await case.look()
    assert (status.endpoint.kind, status.health, status.reason) == ("dockermodelrunner", Health.ONLINE, "has no model")
