"""LM Studio: its three ways to list models, its silence, and what it is sent to load and unload."""

from __future__ import annotations

import json

import pytest

from tests.backends.behaviours import said
from tests.backends.served import case_of, raw
from tests.fakes.base import WORDS, Fake, FakeModel
from turnout.backends import BY_KIND
from turnout.errors import BackendError, ContextOverflowError, RequestRefusedError, ServerFailedError, UnknownModelError
from turnout.fleet.discovery import identify
from turnout.guard.network import Reply
from turnout.types import Endpoint, Health, RawChunk, RawHead

BACKEND = BY_KIND["lmstudio"]
BOX = Endpoint("box", "lmstudio", "http://127.0.0.1:1")
WANTED = b'{"error":{"code":"invalid_api_key","message":"An LM Studio API token is required to make requests"}}'
NOTHING_THERE = Reply(200, {}, b'{"error":"Unexpected endpoint or method. (GET /lmstudio-greeting)"}')
OLDER_OVERFLOW = (
    b'{"error":"Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with'
    b' context length of only 4096 tokens, which is not enough."}'
)
ASKED = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}


def two() -> Fake:
    return Fake(models=[FakeModel(), FakeModel("llama-3.1-8b-instruct", resident=False)])


def test_it_is_known_by_how_it_asks_for_a_token() -> None:
    found = identify({"/lmstudio-greeting": Reply(401, {}, WANTED), "/v1/models": Reply(401, {}, WANTED)})
    assert found is not None
    assert found.kind == "lmstudio"


def test_a_200_for_any_path_proves_nothing() -> None:
    assert BACKEND.identify({"/lmstudio-greeting": NOTHING_THERE, "/v1/models": NOTHING_THERE}) is None


async def test_looking_is_one_get() -> None:
    async with case_of("lmstudio", two()) as case:
        await case.backend.inspect(case.client, case.endpoint(), 5)
        assert case.fake.requests == [("GET", "/api/v1/models")]


async def test_a_base_url_with_v1_is_taken_as_people_write_it() -> None:
    async with case_of("lmstudio", two()) as case:
        case.url += "/v1"
        assert (await case.model()).window == 8192
        assert said(await case.ask()) == "".join(WORDS)


@pytest.mark.parametrize(("api", "window", "resident"), [("v0", 8192, True), ("openai", 0, None)])
async def test_older_servers_tell_less(api: str, window: int, resident: bool | None) -> None:
    fake = two()
    fake.options["api"] = api
    async with case_of("lmstudio", fake) as case:
        status = await case.look()
        model = status.models[0]
        assert (status.health, len(status.models)) == (Health.ONLINE, 2)
        assert (model.window, model.resident) == (window, resident)
        assert model.capabilities == (frozenset({"chat", "tools"}) if api == "v0" else frozenset())
        with pytest.raises(RequestRefusedError, match="which it does not list"):
            await case.backend.load(case.client, case.endpoint(), status.models[1], lambda _: None)


async def test_what_is_loaded_says_how_much_it_serves_at_once() -> None:
    fake = two()
    fake.slots = 4
    async with case_of("lmstudio", fake) as case:
        status = await case.look()
        assert (status.slots, status.capacity) == (4, 1)
        fake.models[1].resident = True
        assert (await case.look()).capacity == 2
        fake.models[0].resident = fake.models[1].resident = False
        status = await case.look()
        assert (status.slots, status.capacity) == (0, 1)
        assert [(model.window, model.max_window) for model in status.models] == [(0, 32768)] * 2


async def test_an_instance_with_a_name_of_its_own_is_asked_by_it() -> None:
    fake = two()
    fake.options["named"] = "coder"
    async with case_of("lmstudio", fake) as case:
        model = await case.model()
        assert (model.id, model.window) == ("coder", 8192)
        await case.backend.unload(case.client, case.endpoint(), model)
        assert fake.seen[-1] == {"instance_id": "coder"}


async def test_an_embedding_model_is_no_chat_model() -> None:
    fake = two()
    fake.options["embedder"] = True
    async with case_of("lmstudio", fake) as case:
        embedder = (await case.look()).models[-1]
        assert (embedder.capabilities, embedder.quantization) == (frozenset({"embeddings"}), "F16")


async def test_silence_is_an_overflow_in_both_lanes() -> None:
    fake = two()
    fake.options["silent"] = True
    async with case_of("lmstudio", fake) as case:
        await case.model()
        fake.fault = "overflow"
        with pytest.raises(ContextOverflowError, match="without a word"):
            await case.ask()
        for stream in (True, False):
            with pytest.raises(ContextOverflowError, match="without a word"):
                await raw(case, json.dumps(ASKED | {"stream": stream}).encode())


@pytest.mark.parametrize("stream", [True, False])
async def test_the_raw_lane_hands_on_what_is_said(stream: bool) -> None:
    async with case_of("lmstudio", two()) as case:
        events = await raw(case, json.dumps(ASKED | {"stream": stream}).encode())
        assert isinstance(events[0], RawHead)
        passed = b"".join(event.data for event in events if isinstance(event, RawChunk))
        assert passed.count(b'"role"') == 1
        assert b"return a + b" in passed


async def test_a_call_without_text_is_an_answer() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    async with case_of("lmstudio", two()) as case:
        for stream in (True, False):
            events = await raw(case, json.dumps(ASKED | {"stream": stream, "tools": tools}).encode())
            assert isinstance(events[0], RawHead)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            OLDER_OVERFLOW,
            ContextOverflowError,
        ),
        (b'{"error":"Context size has been exceeded."}', ContextOverflowError),
        (b'{"error":"No models loaded. Please load a model in the developer page."}', UnknownModelError),
        (b'{"error":"The model has crashed without additional information. (Exit code: 6)"}', ServerFailedError),
        (b'{"error":{"message":"\'messages\' field is required","type":"invalid_request_error"}}', RequestRefusedError),
    ],
)
def test_what_its_sentences_mean(body: bytes, kind: type[BackendError]) -> None:
    error = BACKEND.error(BOX, 400, {}, body)
    assert type(error) is kind
    if isinstance(error, ContextOverflowError) and "5000" in error.message:
        assert (error.prompt_tokens, error.window) == (5000, 4096)


async def test_a_model_that_is_loaded_is_not_loaded_again() -> None:
    async with case_of("lmstudio", two()) as case:
        first, second = (await case.look()).models
        told: list[str] = []
        await case.backend.load(case.client, case.endpoint(), first, told.append)
        assert not case.fake.seen
        await case.backend.load(case.client, case.endpoint(), second, told.append)
        assert case.fake.seen == [{"model": "llama-3.1-8b-instruct"}]
        assert told[0] == "qwen2.5-coder-7b-instruct is loaded already"
        assert len(told) == 3
