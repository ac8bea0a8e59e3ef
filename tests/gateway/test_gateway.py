"""The gateway with the real client libraries, in front of the real server and of faults."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import anthropic
import openai
import pytest

from tests.fakes import ollama
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from tests.servers import LlamaServer
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import create_app, running

QUESTION = [{"role": "user", "content": "Say hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@asynccontextmanager
async def gateway(*urls: str, max_body: int = 1_000_000) -> AsyncIterator[str]:
    # No retries: what they are is for tests/test_fallback.py, and each takes its pause.
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(config))
        _, url = await stack.enter_async_context(running(create_app(router, max_body_bytes=max_body)))
        yield url


async def test_the_openai_sdk_gets_a_real_answer_whole_and_streamed(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        whole = await client.chat.completions.create(model="smol", messages=QUESTION, max_tokens=8)  # type: ignore[call-overload]
        assert whole.choices[0].message.content
        assert whole.usage.prompt_tokens > 0
        stream = await client.chat.completions.create(model="auto", messages=QUESTION, max_tokens=8, stream=True)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert all(c.usage is None for c in chunks), "usage was asked for by us and must not reach a client that did not"


async def test_the_anthropic_sdk_gets_a_real_answer_whole_and_streamed(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url, anthropic.AsyncAnthropic(base_url=url, api_key="x") as client:
        whole = await client.messages.create(model="smol", messages=QUESTION, max_tokens=8)  # type: ignore[arg-type]
        assert whole.content[0].type == "text"
        assert whole.usage.input_tokens > 0
        async with client.messages.stream(model="auto", messages=QUESTION, max_tokens=8) as stream:  # type: ignore[arg-type]
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
    assert text
    assert final.stop_reason in ("end_turn", "max_tokens")


async def test_one_tool_call_reaches_the_anthropic_sdk() -> None:
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    async with serving(openai_app()) as upstream, gateway(upstream) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as client:
            async with client.messages.stream(
                model="auto",
                messages=QUESTION,
                max_tokens=50,
                tools=[tool],  # type: ignore[arg-type,list-item]
            ) as stream:
                final = await stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert [(b.type, b.name, b.input) for b in final.content] == [("tool_use", "weather", {"city": "Paris"})]  # type: ignore[union-attr]


async def test_unknown_fields_survive_the_raw_lane() -> None:
    app = openai_app()
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        body = {"model": app.state.fake.models[0], "messages": QUESTION, "min_p": 0.1, "x_unknown": {"deep": [1, 2]}}
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            assert reply.status == 200
            assert reply.headers["x-turnout-endpoint"] == "s0"
    assert app.state.fake.seen == [body]


async def test_an_ollama_behind_an_openai_client_is_translated() -> None:
    fake = Fake([FakeModel(window=4096)])
    async with serving(ollama.app(fake)) as upstream, gateway(upstream) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            answer = await client.chat.completions.create(model="auto", messages=QUESTION)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "def add(a, b):\n    return a + b"
    sent = fake.seen[0]
    assert sent["truncate"] is False
    assert sent["options"] == {"num_ctx": 4096}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("error", 502, "server_failed"),
        ("busy", 503, "busy"),
        ("key", 502, "key_refused"),
        ("overflow", 400, "context_length_exceeded"),
        ("html", 502, "nonsense"),
    ],
)
async def test_a_failure_has_the_status_and_code_that_agents_understand(fault: str, status: int, code: str) -> None:
    app = openai_app()
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        app.state.fake.fault = fault
        body = {"model": app.state.fake.models[0], "messages": QUESTION, "stream": True}
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            answer = await reply.json(content_type=None)
            assert (reply.status, answer["error"]["code"]) == (status, code)
            assert ("Retry-After" in reply.headers) == (status == 503)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_under_200_before_any_output_fails_over(stream: bool) -> None:
    bad, good = openai_app(), openai_app()
    async with serving(bad) as first, serving(good) as second, gateway(first, second) as url:
        bad.state.fake.fault = "error_200"
        async with aiohttp.ClientSession() as session:
            body = {"model": good.state.fake.models[0], "messages": QUESTION, "stream": stream}
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                assert reply.status == 200
                assert reply.headers["x-turnout-endpoint"] == "s1"
                assert "boom" not in (await reply.read()).decode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("model", ["smol", "auto"])
async def test_a_model_that_lacks_what_is_needed_is_400_with_the_reason(
    llama: LlamaServer, path: str, model: str
) -> None:
    openai_tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    tool = {"name": "weather", "input_schema": {"type": "object"}} if path == "/v1/messages" else openai_tool
    body = {"model": model, "messages": QUESTION, "max_tokens": 8, "tools": [tool]}
    async with gateway(llama.url) as url, aiohttp.ClientSession() as session:
        async with session.post(url + path, json=body) as reply:
            answer = await reply.json()
    assert reply.status == 400
    assert "smol @ s0: lacks tools" in answer["error"]["message"]
    assert "no server has" not in answer["error"]["message"]
    assert (answer["error"]["type"], answer["error"]["code"]) == ("invalid_request_error", "no_suitable_model")


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
async def test_an_image_by_address_is_refused_and_nothing_is_asked(role: str) -> None:
    app = openai_app()
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        content = [
            {"type": "image_url", "image_url": {"url": "http://203.0.113.5/x.png"}},
            {"type": "text", "text": "?"},
        ]
        body = {"model": app.state.fake.models[0], "messages": [{"role": role, "content": content}, *QUESTION]}
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            assert (reply.status, "by its address" in await reply.text()) == (400, True)
    assert app.state.fake.seen == []


async def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_retried() -> None:
    app, other = openai_app(), openai_app()
    async with serving(app) as upstream, serving(other) as second, gateway(upstream, second) as url:
        app.state.fake.fault = "drop"
        async with aiohttp.ClientSession() as session:
            body = {"model": app.state.fake.models[0], "messages": QUESTION, "stream": True}
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                text = (await reply.read()).decode()
    assert '"code":"stream_broken"' in text
    assert "def " in text
    assert len(app.state.fake.seen) == 1
    assert other.state.fake.seen == []


async def test_a_client_that_leaves_frees_the_server() -> None:
    app = openai_app()
    app.state.fake.fault = "stall"
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        body = {"model": app.state.fake.models[0], "messages": QUESTION, "stream": True}
        reply = await session.post(f"{url}/v1/chat/completions", json=body)
        await reply.content.readany()
        reply.close()
        await asyncio.wait_for(app.state.fake.closed.wait(), 5)
    assert app.state.fake.closed.is_set()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"model":"auto"}', 400),
        (b'{"model":"auto","messages":[]}', 400),
        (b'{"model":5,"messages":[{"role":"user","content":"x"}]}', 400),
        (b'{"messages":[{"role":"user","content":""}]}', 400),
        (b'{"messages":[{"role":"robot","content":"x"}]}', 400),
        (b'{"model":"nope-1b","messages":[{"role":"user","content":"x"}]}', 404),
        (b"[" * 100_000, 400),
        (b'{"messages":[{"role":"user","content":"\xff"}]}', 400),
        (b"x" * 1_100_000, 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_bad_input_is_refused_in_the_callers_format(body: bytes, status: int, path: str) -> None:
    async with serving(openai_app()) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        async with session.post(url + path, data=io.BytesIO(body)) as reply:
            answer = json.loads(await reply.read())
    assert reply.status == status
    assert answer["error"]["message"]
    assert "Traceback" not in str(answer)


async def test_another_host_is_refused() -> None:
    async with serving(openai_app()) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/v1/models", headers={"Host": "evil.example"}) as reply:
            assert reply.status == 421
            assert (await reply.json())["error"]["type"] == "invalid_request_error"
        async with session.get(f"{url}/v1/models", headers={"Host": "localhost:1"}) as reply:
            assert reply.status == 200


async def test_the_model_list_satisfies_both_sdks_and_tells_the_window(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as one:
            listed = [m.id async for m in one.models.list()]
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as other:
            shown = [m.id async for m in other.models.list()]
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as reply:
            rows = {row["id"]: row for row in (await reply.json())["data"]}
    virtual = ["auto", "analysis", "coding", "documentation", "reasoning"]
    assert listed == shown == ["smol", *virtual, *(f"claude-local-{name}" for name in ("smol", *virtual))]
    assert rows["smol"]["context_length"] == rows["smol"]["max_model_len"] == 2048


ENDPOINTS = (
    "POST /v1/chat/completions, POST /v1/completions, POST /v1/embeddings, POST /v1/rerank, POST /v1/messages, "
    "POST /v1/messages/count_tokens, POST /v1/responses, POST /api/chat, POST /api/generate, POST /api/embed, "
    "POST /api/embeddings, POST /api/show, POST /v1/feedback, DELETE /v1/responses/{id}, GET /v1/responses/{id}, "
    "GET /v1/tokens, POST /v1/tokens, DELETE /v1/tokens/{id}, GET /v1/models, GET /v1/models/{id}, GET /api/tags, "
    "GET /api/ps, GET /api/version, GET /metrics, GET /healthz, GET /readyz, GET /health, GET /"
)


@pytest.mark.parametrize(
    ("method", "path", "status", "hint"),
    [
        ("GET", "/v1/chat/completions", 405, "it takes POST"),
        ("OPTIONS", "/v1/chat/completions", 405, "it takes POST"),
        ("GET", "/v1/messages", 405, "it takes POST"),
        ("POST", "/v1/models", 405, "it takes GET"),
        ("DELETE", "/v1/models/a", 405, "it takes GET"),
        ("POST", "/", 405, "it takes GET"),
        ("GET", "/v1/responses", 405, "it takes POST"),
        ("POST", "/v1/responses/resp_1", 405, "it takes DELETE and GET"),
        ("POST", "/v1/messages/batches", 404, "did you mean /v1/messages"),
        ("POST", "/v1/chat/completions/", 404, "did you mean /v1/chat/completions? "),
        ("POST", "/chat/completions", 404, "did you mean /v1/chat/completions? "),
        ("POST", "/v1/v1/messages", 404, "did you mean /v1/messages? "),
        ("GET", "/v1/model/a", 404, "did you mean /v1/models"),
        ("GET", "/favicon.ico", 404, "`GET /` lists "),
    ],
)
async def test_what_is_not_there_is_a_short_error_in_the_callers_format_that_names_what_is(
    method: str, path: str, status: int, hint: str
) -> None:
    async with gateway() as url, aiohttp.ClientSession() as session:
        async with session.request(method, url + path, allow_redirects=False) as reply:
            plain = await reply.json()
            assert reply.status == status
            assert ("Allow" in reply.headers) == (status == 405)
        async with session.request(method, url + path, headers={"anthropic-version": "2023-06-01"}) as reply:
            other = await reply.json()
            assert reply.status == status
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    for answer in (plain, other):
        assert path in answer["error"]["message"]
        assert hint in answer["error"]["message"]
        assert len(answer["error"]["message"]) < 120
    assert (other["type"], other["error"]["type"]) == ("error", kind)
    assert ("type" in plain) is path.startswith("/v1/messages")
    if "type" not in plain:
        assert plain["error"]["type"] == "invalid_request_error"


async def test_without_a_server_the_error_is_for_whoever_calls_an_api_or_runs_the_gateway() -> None:
    async with gateway("http://127.0.0.1:9") as url, aiohttp.ClientSession() as session:
        for path, body in (("chat/completions", {"messages": QUESTION}), ("embeddings", {"model": "m", "input": "x"})):
            async with session.post(f"{url}/v1/{path}", json={"model": "auto", **body}) as reply:
                told = (await reply.json())["error"]["message"]
            assert reply.status == 503
            assert "`embedded.fallback: true` uses the bundled demonstration model" in told
            assert "--embedded" not in told


async def test_the_error_for_a_model_that_nobody_has_says_how_many_there_are() -> None:
    app = openai_app(tuple(f"m{n:02}-7b" for n in range(20)))
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/v1/models") as reply:
            names = [row["id"] for row in (await reply.json())["data"] if not row["id"].startswith("claude-local-")]
        async with session.get(f"{url}/v1/models/nope") as reply:
            told = (await reply.json())["error"]["message"]
    assert f"{names[7]} and {len(names) - 8} more; GET /v1/models lists them" in told


async def test_the_readme_names_every_endpoint() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    async with gateway() as url, aiohttp.ClientSession() as session, session.get(f"{url}/") as reply:
        about = await reply.json()
    assert ", ".join(about["endpoints"]) == ENDPOINTS
    assert [endpoint for endpoint in about["endpoints"] if f"`{endpoint}`" not in readme] == []


async def test_one_model_is_shown_also_when_its_id_has_slashes() -> None:
    model = "org/family/model-7b"
    async with serving(openai_app((model,), window=4096)) as upstream, gateway(upstream) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as one:
            assert (await one.models.retrieve("auto")).id == "auto"
            with pytest.raises(openai.NotFoundError, match="no server has the model 'gone/model'"):
                await one.models.retrieve("gone/model")
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as other:
            assert (await other.models.retrieve(model)).id == model
            with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
                await other.models.retrieve("gone")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models/{model}") as reply:
            assert (await reply.json())["context_length"] == 4096


async def test_the_root_answers_get_and_head() -> None:
    async with gateway() as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/") as reply:
            assert (await reply.json())["name"] == "turnout"
        async with session.head(f"{url}/") as reply:
            assert (reply.status, await reply.read()) == (200, b"")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("https://[::1]:8443", 200),
        ("HTTP://LOCALHOST:1", 200),
        ("vscode-webview://1a2b", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost:80@evil.example", 403),
        ("http://127.0.0.1.nip.io", 403),
        ("file://", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_another_sites_page_is_refused(origin: str, status: int) -> None:
    app = openai_app()
    body = {"model": "auto", "messages": QUESTION}
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        for path in ("/v1/chat/completions", "/v1/messages"):
            async with session.post(url + path, json=body, headers={"Origin": origin}) as reply:
                answer = await reply.json()
                assert reply.status == status
                if status == 403:
                    assert "another site" in answer["error"]["message"]
                    assert ("type" in answer) is (path == "/v1/messages")
        async with session.get(f"{url}/v1/models", headers={"Origin": origin}) as reply:
            assert reply.status == status
    assert bool(app.state.fake.seen) is (status == 200)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_a_page_must_say_that_a_chat_is_json_and_a_program_need_not(kind: str, status: int) -> None:
    data = json.dumps({"model": "auto", "messages": QUESTION}).encode()
    async with serving(openai_app()) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        headers = {"Content-Type": kind}
        async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers) as reply:
            assert reply.status == 200
        headers["Origin"] = "http://localhost:3000"
        async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers) as reply:
            assert reply.status == status
