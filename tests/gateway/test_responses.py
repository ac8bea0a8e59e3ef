"""POST /v1/responses with the official client, in front of the real server, of several kinds' fakes, and of faults."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes import FAKES, vllm
from tests.fakes.base import Fake
from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from tests.gateway.test_gateway import gateway
from tests.servers import LlamaServer
from tests.wire.legal import check_responses, sse
from turnout.gateway import responses
from turnout.gateway.refusal import HttpError
from turnout.gateway.responses import Kept
from turnout.types import Principal

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


async def test_the_real_model_answers_whole_streamed_and_on(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url, client_of(url) as client:
        whole = await client.responses.create(model="smol", input="Say hello", max_output_tokens=8)
        assert whole.output_text
        assert whole.usage.input_tokens > 0
        assert whole.status in ("completed", "incomplete")
        stream = await client.responses.create(model="auto", input="Say hello", max_output_tokens=8, stream=True)
        events = [event async for event in stream]
        final = events[-1].response  # type: ignore[union-attr]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == final.output_text == whole.output_text
        quiet = await client.responses.create(
            model="smol", input="Say hello", max_output_tokens=8, reasoning={"effort": "none"}
        )
        assert quiet.output_text
        on = await client.responses.create(
            model="smol", input="Again", previous_response_id=final.id, max_output_tokens=8
        )
        assert on.output_text
        assert on.usage.input_tokens > whole.usage.input_tokens
        assert on.previous_response_id == final.id


@pytest.mark.parametrize("kind", ["vllm", "ollama", "llamacpp", "sglang", "mlx", "lmstudio"])
async def test_every_kind_answers_with_text_reasoning_and_calls(kind: str) -> None:
    fake = Fake()
    dialect = FAKES[kind]
    app = dialect.app(fake)
    async with serving(app, server_header=dialect.SERVER_HEADER) as upstream, gateway(upstream) as url:
        async with client_of(url) as client:
            plain = await client.responses.create(model="auto", input="Add", reasoning={"effort": "low"})
            async with client.responses.stream(model="auto", input="Add", tools=[WEATHER]) as stream:  # type: ignore[list-item]
                events = [event.type async for event in stream]
                called = await stream.get_final_response()
    assert plain.output_text == "def add(a, b):\n    return a + b"
    assert (plain.usage.input_tokens, plain.usage.output_tokens) == (11, 4)
    assert [item.type for item in plain.output] in (["reasoning", "message"], ["message"])
    (call,) = called.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    assert call.call_id
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"


def parallel_app(seen: list[dict[str, object]]) -> Starlette:
    """A server whose model makes two calls at once, their pieces interleaved, and answers once it has the results."""

    async def listing(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 8192}]})

    async def chat(request: Request) -> Response:
        body = await request.json()
        seen.append(body)
        return StreamingResponse(_pieces(body), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/models", listing), Route("/v1/chat/completions", chat, methods=["POST"])])


async def _pieces(body: dict[str, object]) -> AsyncIterator[bytes]:
    results = [row["content"] for row in body["messages"] if row["role"] == "tool"]  # type: ignore[attr-defined]
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "mcp__t__time", "arguments": '{"zone":'}},
        {"index": 0, "function": {"arguments": '"Paris"}'}},
        {"index": 1, "function": {"arguments": '"CET"}'}},
    ]
    deltas = [{"content": " and ".join(results)}] if results else [{"tool_calls": [call]} for call in calls]
    for delta in deltas:
        yield b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
    end = {"index": 0, "delta": {}, "finish_reason": "stop" if results else "tool_calls"}
    yield b"data: " + json.dumps({"choices": [end]}).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stateless", [True, False])
async def test_parallel_calls_make_the_round_trip(stream: bool, stateless: bool) -> None:
    seen: list[dict[str, object]] = []
    time = {"type": "function", "name": "time", "parameters": {"type": "object"}}
    tools = [WEATHER, {"type": "namespace", "name": "mcp__t", "description": "T.", "tools": [time]}]
    asked = [{"role": "user", "content": "Weather and time?"}]
    async with serving(parallel_app(seen)) as upstream, gateway(upstream) as url, client_of(url) as client:

        async def ask(**fields: object) -> openai.types.responses.Response:
            answer = await client.responses.create(model="m", tools=tools, stream=stream, **fields)  # type: ignore[call-overload]
            return [event async for event in answer][-1].response if stream else answer

        first = await ask(input=asked, instructions="be brief", store=not stateless)
        weather, clock = first.output
        assert [(c.call_id, c.name, c.namespace) for c in (weather, clock)] == [
            ("a", "weather", None),
            ("b", "time", "mcp__t"),
        ]
        assert [json.loads(c.arguments) for c in (weather, clock)] == [{"city": "Paris"}, {"zone": "CET"}]
        results = [
            {"type": "function_call_output", "call_id": c.call_id, "output": text}
            for c, text in ((weather, "sunny"), (clock, "noon"))
        ]
        if stateless:
            items = [item.model_dump(exclude_none=True) for item in first.output]
            second = await ask(input=[*asked, *items, *results], store=False)
        else:
            second = await ask(input=results, previous_response_id=first.id)
        assert second.output_text == "sunny and noon"
    assert [row["function"]["name"] for row in seen[0]["tools"]] == ["weather", "mcp__t__time"]  # type: ignore[attr-defined]
    assert seen[0]["messages"][0] == {"role": "system", "content": "be brief"}  # type: ignore[index]
    assert seen[1]["messages"] == [
        {"role": "user", "content": "Weather and time?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
                {"id": "b", "type": "function", "function": {"name": "mcp__t__time", "arguments": '{"zone":"CET"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
    ]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("error", 502, "server_failed"),
        ("busy", 503, "busy"),
        ("overflow", 400, "context_length_exceeded"),
        ("html", 502, "nonsense"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_first_word_has_a_status(fault: str, status: int, code: str, stream: bool) -> None:
    app = openai_app()
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        app.state.fake.fault = fault
        body = {"model": app.state.fake.models[0], "input": "hello", "stream": stream}
        async with session.post(f"{url}/v1/responses", json=body) as reply:
            answer = await reply.json(content_type=None)
    assert (reply.status, answer["error"]["code"]) == (status, code)
    assert ("Retry-After" in reply.headers) == (status == 503)
    assert ("8192" in answer["error"]["message"]) or fault != "overflow"


async def test_a_stream_that_breaks_ends_with_response_failed() -> None:
    app = openai_app()
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        app.state.fake.fault = "drop"
        body = {"model": app.state.fake.models[0], "input": "hello", "stream": True}
        async with session.post(f"{url}/v1/responses", json=body) as reply:
            assert reply.content_type == "text/event-stream"
            data = await reply.read()
        failed = sse(data)[-1]["response"]
        async with session.get(f"{url}/v1/responses/{failed['id']}") as reply:
            assert reply.status == 404, "what broke off is no answer to go on from"
    check_responses(data)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert len(app.state.fake.seen) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"input":[]}', 400),
        (b'{"input":"x","temperature":NaN}', 400),
        (b'{"input":"x","model":"nope-1b"}', 404),
        (b'{"input":"x","previous_response_id":"resp_none"}', 404),
        (b'{"input":"x","previous_response_id":5}', 400),
        (b'{"input":[{"type":"item_reference","id":"msg_none"}]}', 404),
        (b'{"input":[{"role":"user","content":[{"type":"input_image","image_url":"http://10.0.0.1/x"}]}]}', 400),
        (b"x" * 1_100_000, 413),
    ],
)
async def test_bad_input_is_refused_in_the_format(body: bytes, status: int) -> None:
    async with serving(openai_app()) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/responses", data=io.BytesIO(body)) as reply:
            answer = await reply.json()
    assert reply.status == status
    assert answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_kept_shown_named_and_forgotten(stream: bool) -> None:
    app = openai_app()
    async with serving(app) as upstream, gateway(upstream) as url, client_of(url) as client:
        answer = await client.responses.create(model="auto", input="Add", stream=stream)  # type: ignore[call-overload]
        first = [event async for event in answer][-1].response if stream else answer
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text
        named = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "On"}]
        await client.responses.create(model="auto", input=named)  # type: ignore[arg-type]
        said = [row["content"] for row in app.state.fake.seen[-1]["messages"]]
        assert said == [first.output_text, "On"]
        await client.responses.delete(first.id)
        for gone in (client.responses.retrieve(first.id), client.responses.delete(first.id)):
            with pytest.raises(openai.NotFoundError, match="send the whole conversation"):
                await gone


@pytest.mark.parametrize("stream", [True, False])
async def test_what_must_not_be_stored_is_not(stream: bool) -> None:
    async with serving(openai_app()) as upstream, gateway(upstream) as url, client_of(url) as client:
        answer = await client.responses.create(model="auto", input="Add", stream=stream, store=False)  # type: ignore[call-overload]
        first = [event async for event in answer][-1].response if stream else answer
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="auto", input="On", previous_response_id=first.id)


async def test_nobody_sees_what_is_kept_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(openai_app()) as upstream, gateway(upstream) as url, client_of(url) as client:
        first = await client.responses.create(model="auto", input="Add")
        monkeypatch.setattr(responses, "principal_of", lambda scope: Principal("another"))
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        named = [{"type": "item_reference", "id": first.output[0].id}]
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="auto", input=named)  # type: ignore[arg-type]


def test_no_number_of_tokens_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shelves, asks = responses.Shelves(), Principal("")

    def of(name: str) -> Kept:
        nonlocal asks
        asks = Principal(name)
        return shelves.of({})

    monkeypatch.setattr(responses, "principal_of", lambda scope: asks)
    other, first = of("other"), of("ci")
    jobs = [of(f"ci/job{n}") for n in range(responses.MAX_SHELVES)]
    assert of("ci/job9") is jobs[9]
    assert of("ci") is not first, "it was not used for longest"
    assert of("other") is other, "and nobody makes another's go"


@asynccontextmanager
async def before_vllm(*fakes: Fake) -> AsyncIterator[tuple[str, openai.AsyncOpenAI]]:
    """A client of a gateway in front of servers that speak this format."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(vllm.app(fake))) for fake in fakes]
        url = await stack.enter_async_context(gateway(*urls))
        yield url, await stack.enter_async_context(client_of(url))


def posted(fake: Fake) -> list[str]:
    return [path for method, path in fake.requests if method == "POST" and path != "/tokenize"]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_passes_through_is_kept_shown_and_gone_on_from(stream: bool) -> None:
    fake = Fake()
    async with before_vllm(fake) as (_, client):
        answer = await client.responses.create(model="auto", input="Add", stream=stream, extra_body={"min_p": 0.1})  # type: ignore[call-overload]
        events = [event async for event in answer] if stream else []
        first = events[-1].response if stream else answer
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text
        on = await client.responses.create(model="auto", input="On", previous_response_id=first.id)
        named = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "On"}]
        await client.responses.create(model="auto", input=named)  # type: ignore[arg-type]
        await client.responses.delete(first.id)
    assert posted(fake) == ["/v1/responses", "/v1/chat/completions", "/v1/chat/completions"]
    assert (fake.seen[0]["store"], fake.seen[0]["min_p"], fake.seen[0]["request_id"]) == (False, 0.1, first.id)
    assert [row["role"] for row in fake.seen[1]["messages"]] == ["user", "assistant", "user"]  # type: ignore[attr-defined]
    assert on.previous_response_id == first.id


async def test_the_clients_own_reader_of_streams_takes_what_passes_through() -> None:
    async with before_vllm(Fake()) as (_, client):
        async with client.responses.stream(model="auto", input="Add", reasoning={"effort": "low"}) as stream:
            kinds = [event.type async for event in stream]
            final_one = await stream.get_final_response()
        cut = await client.responses.create(model="auto", input="Add", stream=True, max_output_tokens=2)
        ends = [event.type async for event in cut]
    assert final_one.output_text == "def add(a, b):\n    return a + b"
    assert [item.type for item in final_one.output] == ["reasoning", "message"]
    assert (kinds[0], kinds[-1], ends[-1]) == ("response.created", "response.completed", "response.incomplete")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_passes_through_and_must_not_be_stored_is_not(stream: bool) -> None:
    async with before_vllm(Fake()) as (_, client):
        answer = await client.responses.create(model="auto", input="Add", stream=stream, store=False)  # type: ignore[call-overload]
        first = [event async for event in answer][-1].response if stream else answer
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_an_id_that_a_server_has_chosen_takes_nobodys_place() -> None:
    """Another answer of the caller's would be gone, or be another's words."""
    fake = Fake(options={"own_ids": True})
    async with before_vllm(fake) as (_, client):
        first = await client.responses.create(model="auto", input="Add")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


def item(role: str, *texts: str) -> dict[str, object]:
    return {"role": role, "content": [{"type": "output_text", "text": text} for text in texts]}


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
TRANSLATED: dict[str, dict[str, object]] = {
    "tools": {"tools": [WEATHER]},
    "two that lead": {"input": [item("developer", "a"), item("developer", "b"), item("user", "c")]},
    "a system message that does not lead": {"input": [item("user", "a"), item("system", "b")]},
    "an answer of two parts": {"input": [item("user", "a"), item("assistant", "b", "c"), item("user", "d")]},
    "a call": {"input": [item("user", "a"), CALL, {"type": "function_call_output", "call_id": "c", "output": "x"}]},
    "a proof": {"input": [item("user", "a"), {"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
    "a summary": {"reasoning": {"effort": "low", "summary": "auto"}},
    "background": {"background": True},
    "a time of day": {"instructions": "Now: 2026-11-25T12:34:56Z."},
}


@pytest.mark.parametrize("asked", TRANSLATED.values(), ids=TRANSLATED)
async def test_what_such_a_server_would_get_wrong_is_translated(asked: dict[str, object]) -> None:
    fake = Fake()
    async with before_vllm(fake) as (url, _), aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/responses", json={"model": "auto", "input": "Add", **asked}) as reply:
            assert reply.status == 200, await reply.text()
    assert posted(fake) == ["/v1/chat/completions"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_build_before_the_route_is_asked_by_translation(stream: bool) -> None:
    fake = Fake(options={"responses": False})
    async with before_vllm(fake) as (_, client):
        answer = await client.responses.create(model="auto", input="Add", stream=stream)  # type: ignore[call-overload]
        first = [event async for event in answer][-1].response if stream else answer
        assert (await client.responses.retrieve(first.id)).output_text == "def add(a, b):\n    return a + b"
    assert posted(fake) == ["/v1/responses", "/v1/chat/completions"]


def kept_answer(name: str, text: str = "") -> bytes:
    return json.dumps({"id": name, "output": [{"id": f"msg_{name}", "text": text}]}).encode()


def test_the_answer_that_was_not_used_for_longest_goes_first() -> None:
    kept = Kept(most=2)
    kept.add(kept_answer("a"), [])
    kept.add(kept_answer("b"), [])
    kept.get("a")
    kept.add(kept_answer("c"), [])
    with pytest.raises(HttpError):
        kept.get("b")
    assert kept.get("a").body == kept_answer("a")


def test_what_is_kept_never_exceeds_its_bytes() -> None:
    kept = Kept(most_bytes=10_000)
    for number in range(50):
        kept.add(kept_answer(str(number), "x" * 100), [{"role": "user", "content": "y" * 1000}])
        held = [kept.get(name) for name in list(kept._answers)]
        assert sum(answer.size for answer in held) == kept._bytes <= 10_000
    kept.drop("49")
    assert sum(answer.size for answer in kept._answers.values()) == kept._bytes
    before = list(kept._answers)
    kept.add(kept_answer("large", "x" * 20_000), [])
    assert list(kept._answers) == before


def test_what_cannot_be_written_is_not_kept_and_costs_no_answer() -> None:
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    kept = Kept()
    kept.add(kept_answer("a"), [{"x": deep}])  # type: ignore[dict-item]
    with pytest.raises(HttpError):
        kept.get("a")
