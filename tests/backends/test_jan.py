"""Jan: known by its words alone, its path prefix, its remote models, and how it counts."""

from __future__ import annotations

import pytest

from tests.backends.behaviours import WEATHER, said
from tests.backends.served import case_of
from tests.fakes.base import PROMPT_TOKENS, WORDS, Fake, FakeModel
from turnout.backends import BY_KIND
from turnout.errors import BackendError, EndpointLoadingError, KeyRefusedError, RequestRefusedError, UnknownModelError
from turnout.fleet.discovery import identify
from turnout.guard.network import Reply
from turnout.types import ChatRequest, Endpoint, Health, Message, ToolCall, ToolResult, message

BACKEND = BY_KIND["jan"]
BOX = Endpoint("box", "jan", "http://127.0.0.1:1")
SWAGGER = Reply(200, {}, b'{"info":{"title":"Jan API Server"}}')


@pytest.mark.parametrize(
    "listed",
    [
        Reply(401, {}, b"Invalid or missing authorization token"),
        Reply(403, {}, b"Invalid host header"),
    ],
)
def test_its_plain_words_are_evidence(listed: Reply) -> None:
    found = identify({"/v1/models": listed})
    assert found is not None
    assert found.kind == "jan"


@pytest.mark.parametrize(
    "replies",
    [
        {"/v1/models": Reply(400, {}, b"Invalid host header")},
        {"/v1/models": Reply(400, {}, b'{"detail":"Invalid host header"}')},
        {"/openapi.json": Reply(200, {}, b'{"info":{"title":"January bookings"}}')},
        {"/openapi.json": SWAGGER, "/v1/models": Reply(200, {}, b'{"data":[{"id":"a","created":1700000000}]}')},
    ],
)
def test_what_is_like_it_is_not_it(replies: dict[str, Reply]) -> None:
    assert BACKEND.identify(replies) is None


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_another_prefix_is_found_and_used(prefix: str) -> None:
    fake = Fake(options={"prefix": prefix})
    async with case_of("jan", fake) as case:
        status = await case.look()
        assert (status.endpoint.kind, status.health, len(status.models)) == ("jan", Health.ONLINE, 1)
        assert status.endpoint.chat_path == "/chat/completions"
        box = case.endpoint(chat_path=status.endpoint.chat_path)
        vectors = await case.backend.embed(case.client, box, status.models[0], ["a"])
        assert len(vectors) == 1
        request = ChatRequest((message("user", "hello"),))
        assert await case.backend.count_tokens(case.client, box, request, status.models[0]) == PROMPT_TOKENS
        case.url += prefix
        assert await case.model() == status.models[0]


async def test_the_usual_prefix_takes_one_get() -> None:
    async with case_of("jan", Fake()) as case:
        await case.backend.inspect(case.client, case.endpoint(), 5)
        assert case.fake.requests == [("GET", "/v1/models")]
        assert (await case.look()).endpoint.chat_path == ""
        assert said(await case.ask()) == "".join(WORDS)


async def test_a_host_that_it_does_not_trust_is_told_apart_from_a_key() -> None:
    async with case_of("jan", Fake()) as case:
        status = await case.look(host_header="gpu-box:1337")
        assert (status.endpoint.kind, status.health) == ("jan", Health.DEGRADED)
        assert "trusted hosts" in status.reason


async def test_remote_models_are_noted() -> None:
    async with case_of("jan", Fake(models=[FakeModel("gpt-5", remote=True)])) as case:
        status = await case.look()
        assert (status.models, status.reason) == ((), "has no model running")
        assert status.excluded[0][0] == "gpt-5"
        assert status.notes == ("leads to remote providers: 1 of its models run elsewhere",)


async def test_either_header_carries_the_key() -> None:
    async with case_of("jan", Fake(key="secret")) as case:
        for header in BACKEND.key_headers:
            value = "Bearer secret" if header == "Authorization" else "secret"
            url = case.client.request_url(case.url, "/v1/models")
            assert (await case.client.get_json(url, headers={header: value}, timeout=5)).status == 200


async def test_it_counts_a_conversation_with_tools() -> None:
    call = ToolCall("call_1", "weather", '{"city": "Paris"}')
    messages = (
        message("system", "Be brief."),
        message("user", "Weather?"),
        Message("assistant", (call,)),
        Message("tool", (ToolResult("call_1", "sunny"),)),
    )
    async with case_of("jan", Fake()) as case:
        request = ChatRequest(messages, tools=(WEATHER,))
        assert await case.backend.count_tokens(case.client, case.endpoint(), request, await case.model()) > 0
        sent = case.fake.seen[-1]
        assert sent["system"] == "Be brief."
        assert [row["role"] for row in sent["messages"]] == ["user", "assistant", "user"]  # type: ignore[attr-defined]
        assert sent["tools"] == [
            {"name": "weather", "description": WEATHER.description, "input_schema": dict(WEATHER.schema)}
        ]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, b"No models are available", UnknownModelError),
        (404, b"No running session found for model 'x'", UnknownModelError),
        (400, b"Request body must contain a 'model' field", RequestRefusedError),
        (401, b"Invalid or missing authorization token", KeyRefusedError),
        (403, b"Invalid host header", RequestRefusedError),
        (503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', EndpointLoadingError),
    ],
)
def test_what_its_words_mean(status: int, body: bytes, kind: type[BackendError]) -> None:
    assert type(BACKEND.error(BOX, status, {}, body)) is kind
