"""TabbyAPI beyond the common behaviours: its two keys, the model that answers for others, loads that fail."""

from __future__ import annotations

import json

import pytest

from tests.backends.behaviours import serving
from tests.fakes.base import Fake, FakeModel
from turnout.config import RouterConfig
from turnout.errors import BackendError, KeyRefusedError, RequestRefusedError, ServerFailedError, UnknownModelError
from turnout.fleet.catalog import Catalog
from turnout.routing.capabilities import load_table
from turnout.routing.select import Needs, candidates, select
from turnout.types import Health, Model

ADMIN, PLAIN = "the-admin-key", "a-plain-key"


def two_models(**fields: object) -> Fake:
    return Fake([FakeModel(), FakeModel("llama-3.1-8b-instruct")], **fields)  # type: ignore[arg-type]


async def test_a_model_that_another_would_answer_for_is_never_asked() -> None:
    async with serving("tabbyapi") as case:
        status = await case.look()
    loaded, other = status.models
    assert (loaded.resident, loaded.load_first) == (True, False)
    assert (other.resident, other.load_first) == (False, True)
    table = load_table()
    pool = candidates(Catalog((status,)), table)
    selection = select(pool, Needs(None, other.id, 100), RouterConfig(), table)
    assert not selection.ranked
    assert "another model would answer in its place" in {c.model.id: why for c, why in selection.rejected}[other.id]


async def test_a_plain_key_sees_the_loaded_model_and_loads_nothing() -> None:
    async with serving("tabbyapi", two_models(key=ADMIN, options={"key": PLAIN})) as case:
        status = await case.look(key=PLAIN)
        assert [model.id for model in status.models] == [case.fake.models[0].id]
        for change in (
            case.backend.load(case.client, case.endpoint(key=PLAIN), Model("llama-3.1-8b-instruct"), print),
            case.backend.unload(case.client, case.endpoint(key=PLAIN), status.models[0]),
        ):
            with pytest.raises(KeyRefusedError, match="admin key") as caught:
                await change
            assert "admin key" in caught.value.hint
        assert case.fake.models[0].resident


async def test_a_load_is_told_and_ends_with_the_model() -> None:
    async with serving("tabbyapi") as case:
        other, told = (await case.look()).models[1], list[str]()
        await case.backend.load(case.client, case.endpoint(), other, told.append)
        assert case.fake.models[1].resident
        assert [model.id for model in (await case.look()).models if model.resident] == [other.id]
    assert told == ["vision 1 of 2", "vision 2 of 2", "model 1 of 2", "model 2 of 2"]


async def test_a_load_that_breaks_off_under_200_is_a_failure() -> None:
    async with serving("tabbyapi", two_models(options={"load_fails": True})) as case:
        with pytest.raises(ServerFailedError, match="Insufficient VRAM"):
            await case.backend.load(case.client, case.endpoint(), Model("llama-3.1-8b-instruct"), lambda _: None)
        with pytest.raises(RequestRefusedError, match="Could not find the model path"):
            await case.backend.load(case.client, case.endpoint(), Model("nobody-has-this"), lambda _: None)


async def test_only_the_model_that_was_meant_is_unloaded() -> None:
    async with serving("tabbyapi") as case:
        loaded, other = (await case.look()).models
        await case.backend.unload(case.client, case.endpoint(), other)
        assert case.fake.models[0].resident
        await case.backend.unload(case.client, case.endpoint(), loaded)
        await case.backend.unload(case.client, case.endpoint(), loaded)
        status = await case.look()
    assert (status.health, status.reason) == (Health.ONLINE, "has no model loaded")
    assert all(model.load_first for model in status.models)


async def test_a_window_is_no_larger_than_the_cache() -> None:
    async with serving("tabbyapi", two_models(options={"cache_size": 4096})) as case:
        assert (await case.model()).window == 4096


async def test_an_older_server_does_not_tell_what_its_model_can_do() -> None:
    async with serving("tabbyapi", two_models(options={"old": True})) as case:
        assert (await case.model()).capabilities == frozenset()


async def test_a_failure_it_remembers_is_told_and_does_not_stop_it() -> None:
    issue = {"time": "2026-01-01T00:00:00Z", "description": "RuntimeError:\x1b[2J out of memory"}
    async with serving("tabbyapi", two_models(options={"issues": [issue]})) as case:
        status = await case.look()
    assert status.health is Health.ONLINE
    assert status.reason == "answers; failed at 2026-01-01T00:00:00Z: RuntimeError: [2J out of memory"


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, "Unable to switch model to x because an admin key isn't provided", UnknownModelError),
        (401, "Invalid API key", KeyRefusedError),
        (503, "No models are currently loaded.", UnknownModelError),
        (503, "No embedding models are currently loaded.", RequestRefusedError),
        (422, "Chat completions are disabled because a prompt template is not set.", RequestRefusedError),
    ],
)
async def test_what_its_refusals_mean(status: int, text: str, kind: type[BackendError]) -> None:
    async with serving("tabbyapi") as case:
        error = case.backend.error(case.endpoint(), status, {}, json.dumps({"detail": text}).encode())
    assert type(error) is kind


@pytest.mark.parametrize("key", ["", ADMIN])
async def test_a_server_that_wants_no_key_is_noted(key: str) -> None:
    async with serving("tabbyapi", two_models(key=key)) as case:
        status = await case.look()
    assert any("wants no key" in note for note in status.notes) is (not key)
