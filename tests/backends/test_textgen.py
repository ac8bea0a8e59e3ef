"""text-generation-webui: known by its refusals, its Host check, the one model it has, and what it is sent to load."""

from __future__ import annotations

import pytest

from tests.backends.behaviours import said
from tests.backends.served import case_of
from tests.fakes.base import WORDS, Fake, FakeModel
from turnout.backends import BY_KIND
from turnout.errors import KeyRefusedError, RequestRefusedError, ServerFailedError
from turnout.fleet.discovery import identify
from turnout.guard.network import Reply
from turnout.types import Endpoint, Health, Model

BACKEND = BY_KIND["textgen"]
BOX = Endpoint("box", "textgen", "http://127.0.0.1:1")
INFO = "/v1/internal/model/info"
ANOTHER = "llama-3.1-8b-instruct.gguf"


def two() -> Fake:
    return Fake(models=[FakeModel(), FakeModel(ANOTHER, resident=False)])


@pytest.mark.parametrize(("status", "word"), [(401, "Unauthorized"), (400, "Invalid host header")])
def test_how_it_refuses_is_evidence(status: int, word: str) -> None:
    refused = Reply(status, {}, b'{"detail":"%s"}' % word.encode())
    found = identify({INFO: refused, "/v1/models": refused})
    assert found is not None
    assert found.kind == "textgen"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404, {}, b'{"detail":"Not Found"}'),
        Reply(401, {}, b'{"error":"Unauthorized"}'),
        Reply(401, {}, b'{"detail":"Not authenticated"}'),
        Reply(400, {}, b"Invalid host header"),
        Reply(200, {}, b'{"model_name":"x"}'),
    ],
)
def test_what_is_like_it_is_not_it(reply: Reply) -> None:
    assert BACKEND.identify({INFO: reply}) is None


async def test_looking_is_one_get() -> None:
    async with case_of("textgen", two()) as case:
        await case.backend.inspect(case.client, case.endpoint(), 5)
        assert case.fake.requests == [("GET", INFO)]


async def test_a_host_that_it_does_not_take_is_told_apart_from_a_failure() -> None:
    async with case_of("textgen", two()) as case:
        status = await case.look(host_header="host.docker.internal:5000")
        assert (status.endpoint.kind, status.health) == ("textgen", Health.DEGRADED)
        assert "--listen" in status.reason
        assert (await case.look(host_header="localhost:5000")).health is Health.ONLINE
        case.fake.options["listen"] = True
        assert (await case.look(host_header="host.docker.internal:5000")).health is Health.ONLINE


def test_the_host_is_named_when_a_request_is_refused_for_it() -> None:
    error = BACKEND.error(BOX, 400, {}, b'{"detail":"Invalid host header"}')
    assert type(error) is RequestRefusedError
    assert "--listen" in error.message


async def test_none_is_no_model() -> None:
    fake = two()
    fake.models[0].resident = False
    async with case_of("textgen", fake) as case:
        status = await case.look()
        assert (status.health, status.reason, status.models) == (Health.ONLINE, "has no model loaded", ())


async def test_only_the_loaded_model_is_listed() -> None:
    async with case_of("textgen", two()) as case:
        status = await case.look()
        assert status.models == (
            Model("qwen2.5-coder-7b-instruct", window=8192, window_source="guessed", resident=True),
        )
        assert status.capacity == 1
        case.url += "/v1"
        assert (await case.look()).models == status.models
        assert said(await case.ask()) == "".join(WORDS)


async def test_a_model_is_loaded_with_the_window_that_was_configured() -> None:
    async with case_of("textgen", two()) as case:
        told: list[str] = []
        box = case.endpoint(window=16384)
        await case.backend.load(case.client, box, Model(ANOTHER), told.append)
        assert case.fake.seen == [{"model_name": ANOTHER, "args": {"ctx_size": 16384}}]
        assert told == [f"loading {ANOTHER}", f"loaded {ANOTHER}"]
        await case.backend.load(case.client, box, Model(ANOTHER), told.append)
        assert told[-1] == f"{ANOTHER} is loaded already"
        assert len(case.fake.seen) == 1
        await case.backend.load(case.client, case.endpoint(), Model("qwen2.5-coder-7b-instruct"), told.append)
        assert case.fake.seen[-1] == {"model_name": "qwen2.5-coder-7b-instruct"}


async def test_another_model_than_the_loaded_one_is_not_unloaded() -> None:
    async with case_of("textgen", two()) as case:
        await case.backend.unload(case.client, case.endpoint(), Model(ANOTHER))
        assert case.fake.models[0].resident
        assert not case.fake.seen


async def test_what_it_does_not_list_is_not_loaded() -> None:
    async with case_of("textgen", two()) as case:
        with pytest.raises(RequestRefusedError, match="does not list"):
            await case.backend.load(case.client, case.endpoint(), Model("nobody-has-this"), lambda _: None)


async def test_its_admin_key_may_be_another_one() -> None:
    fake = two()
    fake.options["admin_key"] = "other"
    async with case_of("textgen", fake) as case:
        with pytest.raises(KeyRefusedError):
            await case.backend.unload(case.client, case.endpoint(), Model("qwen2.5-coder-7b-instruct"))


def test_a_load_that_failed_is_a_failure() -> None:
    assert type(BACKEND.error(BOX, 500, {}, b'{"detail":"Failed to load the model."}')) is ServerFailedError
