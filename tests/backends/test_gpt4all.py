"""GPT4All beyond the common behaviours: what must be left out of a request, its switch, and its wordless 500."""

from __future__ import annotations

import pytest

from tests.backends.behaviours import WEATHER, said, serving
from tests.fakes.base import WORDS, Fake
from turnout.backends.lanes import event_lane
from turnout.config import RouterConfig
from turnout.errors import EndpointDownError, ServerFailedError
from turnout.fleet.discovery import Target, look
from turnout.types import ChatRequest, Health, Message, Reasoning, Text, ToolCall, ToolResult, message

AGENT = ChatRequest(
    (
        message("system", "Be short."),
        Message("user", (Text("What is"), Text(" the weather?")), {"name": "ann"}),
        Message("assistant", (Reasoning("hm"), ToolCall("call_1", "weather", '{"city": "Paris"}'))),
        Message("tool", (ToolResult("call_1", "sunny", "weather"),)),
        Message("assistant", (Text("Sunny."),)),
        message("user", "Thanks."),
    ),
    tools=(WEATHER,),
    tool_choice="auto",
    stop=("\n\n",),
    temperature=0.5,
    response_format={"type": "json_object"},
    reasoning_effort="high",
    extras={"seed": 1, "frequency_penalty": 0.0, "min_p": 0.1, "stream_options": {"include_usage": True}},
)


async def test_nothing_that_it_refuses_is_sent() -> None:
    async with serving("gpt4all") as case:
        assert said(await case.ask(AGENT)) == "".join(WORDS)
        (body,) = case.fake.seen
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is the weather?"},
        {"role": "user", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks."},
    ]
    assert set(body) == {"model", "messages", "stream", "max_tokens", "temperature", "min_p"}
    assert (body["max_tokens"], body["stream"]) == (4096, False), "its own limit is 16 tokens"


async def test_without_a_model_it_is_known_by_how_it_refuses_to_chat_by_get() -> None:
    async with serving("gpt4all", Fake(models=[])) as case:
        status = await case.look()
    assert (status.endpoint.kind, status.health, status.reason) == ("gpt4all", Health.ONLINE, "has no model")


async def test_its_switch_is_no_key() -> None:
    async with serving("gpt4all") as case:
        model = await case.model()
        case.fake.options["off"] = True
        status = await look(case.client, Target(case.endpoint()), RouterConfig())
        assert (status.health, status.models) == (Health.DEGRADED, ())
        assert "switched off" in status.reason
        with pytest.raises(EndpointDownError, match="switched off"):
            await anext(event_lane(case.client, case.backend, case.endpoint(), model, AGENT, 2048))


async def test_an_overflow_has_no_words() -> None:
    async with serving("gpt4all", Fake(fault="overflow")) as case:
        with pytest.raises(ServerFailedError, match="or the prompt exceeds the window"):
            await case.ask()


async def test_its_window_is_what_the_application_sets_by_default() -> None:
    async with serving("gpt4all") as case:
        model = await case.model()
    assert (model.window, model.window_source, model.capabilities) == (2048, "guessed", {"chat"})
