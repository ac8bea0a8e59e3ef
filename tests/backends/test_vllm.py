"""vLLM beyond the common behaviours: its engine's states, adapters, its key, and who is counted."""

from __future__ import annotations

import pytest

from tests.backends.behaviours import WEATHER, Case, serving
from tests.fakes.base import PROMPT_TOKENS, Fake
from turnout.errors import RequestRefusedError
from turnout.fleet.discovery import identify
from turnout.guard.network import Reply
from turnout.types import ChatRequest, Health, Image, Message, Text, message

UNAUTHORIZED = Reply(401, {"server": "uvicorn"}, b'{"error":"Unauthorized"}')


async def test_an_adapter_has_its_models_window() -> None:
    async with serving("vllm", Fake(options={"adapter": "sql-lora"})) as case:
        models = (await case.look()).models
    assert [(m.id, m.window) for m in models] == [("qwen2.5-coder-7b-instruct", 8192), ("sql-lora", 8192)]


@pytest.mark.parametrize(("state", "words", "resident"), [("dead", "restarted", True), ("asleep", "no request", False)])
async def test_the_engine_may_be_gone_while_the_list_answers(state: str, words: str, resident: bool) -> None:
    async with serving("vllm", Fake(options={state: True})) as case:
        status = await case.look()
    assert (status.health, status.models[0].resident) == (Health.DEGRADED, resident)
    assert words in status.reason


async def test_who_waits_is_counted_once() -> None:
    async with serving("vllm", Fake(busy=3)) as case:
        status = await case.look()
    assert (status.busy, status.waiting) == (3, 2), "the same requests are there again by reason"


async def test_looking_again_costs_three_gets() -> None:
    async with serving("vllm") as case:
        await case.backend.inspect(case.client, case.endpoint(), 2.0)
        assert sorted(case.fake.requests) == [("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models")]


def test_a_refusal_that_others_share_is_no_evidence() -> None:
    assert identify({"/v1/models": UNAUTHORIZED, "/version": UNAUTHORIZED}).kind == "openai"  # type: ignore[union-attr]
    told = {"/v1/models": UNAUTHORIZED, "/version": Reply(200, {}, b'{"version":"0.33.0\\u001b[2J"}')}
    found = identify(told)
    assert found is not None
    assert (found.kind, found.version) == ("vllm", "0.33.0 [2J")


async def test_tools_without_a_parser_are_a_bad_request_not_a_failure() -> None:
    async with serving("vllm", Fake(options={"no_tool_parser": True})) as case:
        with pytest.raises(RequestRefusedError, match="tool-call-parser"):
            await case.ask(tools=(WEATHER,))


async def counted(case: Case, request: ChatRequest, **endpoint: object) -> int:
    model = await case.model()
    return await case.backend.count_tokens(case.client, case.endpoint(**endpoint), request, model)


async def test_an_image_is_not_counted_as_its_placeholder() -> None:
    shown = Message("user", (Text("What is this?"), Image(media_type="image/png", data="aGk=")))
    async with serving("vllm") as case:
        assert await counted(case, ChatRequest((shown,))) == 0


async def test_an_address_with_v1_reaches_what_is_beside_it() -> None:
    async with serving("vllm", Fake(busy=1)) as case:
        case.url += "/v1"
        status = await case.look()
        assert (status.health, status.busy) == (Health.ONLINE, 1)
        assert await counted(case, ChatRequest((message("user", "hello"),))) == PROMPT_TOKENS
