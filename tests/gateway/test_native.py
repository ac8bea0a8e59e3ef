"""Clients in front of servers that speak their format: what goes up and comes down, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import anthropic
import ollama as ollama_client
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.fakes import FAKES, llamacpp, ollama, vllm
from tests.fakes.base import ANSWER_TOKENS, PROMPT_TOKENS, Fake, FakeModel
from tests.fakes.base import running as serving
from tests.servers import LlamaServer
from tests.wire.legal import sse
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway import completions
from turnout.gateway.app import create_app, running

QUESTION = [{"role": "user", "content": "Say hello"}]
ANSWER = "def add(a, b):\n    return a + b"
MODEL = FakeModel().id


@dataclass(frozen=True)
class Pair:
    """A client's format in front of a server that speaks it."""

    server: ModuleType
    path: str
    body: dict[str, Any] = field(default_factory=lambda: {"model": MODEL, "messages": QUESTION, "max_tokens": 50})
    # What becomes of ``body``, where that is more than the model.
    sent: dict[str, Any] = field(default_factory=dict)
    type: str = "text/event-stream; charset=utf-8"


PAIRS = {
    "anthropic-llamacpp": Pair(llamacpp, "/v1/messages"),
    "anthropic-vllm": Pair(vllm, "/v1/messages"),
    "responses": Pair(
        vllm,
        "/v1/responses",
        {"model": MODEL, "input": "Say hello", "instructions": "Be brief.", "max_output_tokens": 50},
        {"store": False},
    ),
    "ollama": Pair(
        ollama,
        "/api/chat",
        {"model": MODEL, "messages": QUESTION},
        {"model": f"{MODEL}:latest:local", "truncate": False, "options": {"num_ctx": 8192}},
        "application/x-ndjson",
    ),
    "generate": Pair(
        ollama,
        "/api/generate",
        {"model": MODEL, "prompt": "Say hello", "system": "Be brief.", "template": "{{ .Prompt }}", "context": [1, 2]},
        {"model": f"{MODEL}:latest:local", "truncate": False, "options": {"num_ctx": 8192}},
        "application/x-ndjson",
    ),
    "generate-raw": Pair(
        ollama,
        "/api/generate",
        {"model": MODEL, "prompt": "def add(", "raw": True},
        {"model": f"{MODEL}:latest:local", "truncate": False, "options": {"num_ctx": 8192}},
        "application/x-ndjson",
    ),
}
LINES = ("/api/chat", "/api/generate")  # of JSON
SIGNS = {
    "/api/chat": b'"content":""',
    "/api/generate": b'"response":""',
    "/v1/responses": b"event: response.in_progress",
}
ALL = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@asynccontextmanager
async def gateway(*urls: str, patience: float = 5.0) -> AsyncIterator[str]:
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    # A busy machine takes longer to be told what a server is than a user would wait for it.
    loaded = load_any({"custom_endpoints": custom, "discovery": {"enabled": False, "timeout": 10_000}})
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(loaded))
        _, url = await stack.enter_async_context(running(create_app(router, patience=patience)))
        yield url


@asynccontextmanager
async def before(pair: Pair, *fakes: Fake, patience: float = 5.0) -> AsyncIterator[str]:
    """A gateway in front of fakes of one kind."""
    async with AsyncExitStack() as stack:
        header = pair.server.SERVER_HEADER
        apps = [pair.server.app(fake) for fake in fakes]
        urls = [await stack.enter_async_context(serving(app, server_header=header)) for app in apps]
        yield await stack.enter_async_context(gateway(*urls, patience=patience))


async def post(url: str, path: str, body: object) -> tuple[int, dict[str, str], bytes]:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as reply:
        return reply.status, dict(reply.headers), await reply.read()


@asynccontextmanager
async def ollama_client_of(url: str) -> AsyncIterator[ollama_client.AsyncClient]:
    client = ollama_client.AsyncClient(host=url)
    yield client
    await client._client.aclose()


@ALL
@STREAMED
async def test_bytes_go_up_with_the_named_edits_and_come_down_as_they_are(pair: Pair, stream: bool) -> None:
    fake = Fake()
    unknown = {"top_k": 3, "x_unknown": {"deep": [1, 2.50]}, "metadata": {"user_id": "u"}}
    body = pair.body | {"stream": stream} | unknown
    async with before(pair, fake) as url:
        status, headers, said = await post(url, pair.path, body)
    assert (status, headers["x-turnout-endpoint"]) == (200, "s0")
    assert headers["Content-Type"] == (pair.type if stream else "application/json")
    (sent,) = fake.seen
    assert [{k: v for k, v in sent.items() if k != "request_id"}] == [body | pair.sent]
    assert str(sent.get("request_id", "resp_")).startswith("resp_")
    assert ("POST", pair.path) in fake.requests
    direct = Fake()
    async with serving(pair.server.app(direct), server_header=pair.server.SERVER_HEADER) as server:
        _, _, told = await post(server, pair.path, fake.seen[0])
    assert said == told


async def test_a_stream_is_what_an_ollama_client_gets_that_says_nothing() -> None:
    fake = Fake()
    async with before(PAIRS["ollama"], fake) as url:
        _, headers, said = await post(url, "/api/chat", PAIRS["ollama"].body)
    assert headers["Content-Type"] == "application/x-ndjson"
    assert "stream" not in fake.seen[0]
    assert len(said.splitlines()) > 2


@ALL
@STREAMED
async def test_usage_is_counted_and_the_query_is_in_the_audit_log(pair: Pair, stream: bool, tmp_path: Path) -> None:
    async with before(pair, Fake()) as url:
        await post(url, pair.path, pair.body | {"stream": stream})
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
            lines = [line for line in (await reply.text()).splitlines() if line.startswith("turnout_tokens_total")]
    counted = {line.partition('token_type="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}
    side = pair.body.get("raw")  # whose tokens are in the log alone (docs/gateway.md)
    assert (counted["input"], counted["output"]) == ((0, 0) if side else (PROMPT_TOKENS, ANSWER_TOKENS))
    log = (tmp_path / "data" / "audit.log").read_text("utf-8").splitlines()
    (end,) = [row for line in log if (row := json.loads(line))["phase"] == "end"]
    assert (end["tokens_in"], end["tokens_out"], end["error"]) == (PROMPT_TOKENS, ANSWER_TOKENS, None)


FAULTS = {"error": 502, "overflow": 400, "html": 502, "malformed": 502, "empty_200": 502}
CODES = {"error": "server_failed", "overflow": "context_length_exceeded"}


@ALL
@pytest.mark.parametrize("fault", FAULTS)
@STREAMED
async def test_a_failure_before_the_first_word_has_its_status(pair: Pair, fault: str, stream: bool) -> None:
    async with before(pair, Fake(fault=fault)) as url:
        got, _, said = await post(url, pair.path, pair.body | {"stream": stream})
    answer = json.loads(said)
    assert got == FAULTS[fault], answer
    if pair.path in LINES:
        assert list(answer) == ["error"]
    elif pair.path == "/v1/responses":
        assert answer["error"]["code"] == CODES.get(fault, "nonsense")
    else:
        assert (answer["type"], answer["error"]["code"]) == ("error", CODES.get(fault, "nonsense"))


@pytest.mark.parametrize(
    "pair", [PAIRS["anthropic-vllm"], PAIRS["responses"], PAIRS["ollama"]], ids=["vllm", "responses", "ollama"]
)
@STREAMED
async def test_a_busy_server_is_503_with_a_wait(pair: Pair, stream: bool) -> None:
    async with before(pair, Fake(fault="busy")) as url:
        status, headers, _ = await post(url, pair.path, pair.body | {"stream": stream})
    assert (status, "Retry-After" in headers) == (503, True)


@ALL
async def test_a_stream_that_breaks_before_its_first_word_is_asked_of_the_next_server(pair: Pair) -> None:
    async with before(pair, Fake(fault="drop_first"), Fake()) as url:
        status, headers, _ = await post(url, pair.path, pair.body | {"stream": True})
    assert (status, headers["x-turnout-endpoint"]) == (200, "s1")


@ALL
async def test_a_stream_that_breaks_ends_with_the_formats_own_error_and_is_not_retried(pair: Pair) -> None:
    bad, other = Fake(fault="drop"), Fake()
    async with before(pair, bad, other) as url:
        status, _, said = await post(url, pair.path, pair.body | {"stream": True})
    assert status == 200, said
    assert b"add(a, b):" in said or b"Adding" in said
    last = said.splitlines()[-1] if pair.path in LINES else said.rstrip().splitlines()[-1].partition(b"data: ")[2]
    error = json.loads(last)["error"] if pair.path != "/v1/responses" else json.loads(last)["response"]["error"]
    assert "in the middle of its answer" in (error if isinstance(error, str) else error["message"])
    assert isinstance(error, str) or error["code"] in ("stream_broken", "server_error")
    assert said.count(b"event: response.created") == (pair.path == "/v1/responses"), "one head, the server's own"
    assert (len(bad.seen), other.seen) == (1, [])


@ALL
@STREAMED
async def test_what_a_server_cannot_do_is_asked_of_the_next_one(pair: Pair, stream: bool) -> None:
    bad, good = Fake(fault="error"), Fake()
    async with before(pair, bad, good) as url:
        status, headers, said = await post(url, pair.path, pair.body | {"stream": stream})
    assert (status, headers["x-turnout-endpoint"]) == (200, "s1")
    assert DIED not in said
    (sent,) = good.seen
    assert {k: v for k, v in sent.items() if k != "request_id"} == pair.body | {"stream": stream} | pair.sent


DIED = b"died"


@ALL
async def test_an_error_under_200_after_words_ends_the_stream(pair: Pair) -> None:
    async with before(pair, Fake(fault="error_200"), Fake()) as url:
        status, headers, said = await post(url, pair.path, pair.body | {"stream": True})
    assert status == 200
    # Words and error may come in one piece: then nothing had been handed on, and the other server answered.
    assert (
        b"stream_broken" in said
        or b"broke off" in said
        or b"response.failed" in said
        or headers["x-turnout-endpoint"] == "s1"
    )


@ALL
async def test_a_client_that_leaves_frees_the_server(pair: Pair) -> None:
    fake = Fake(fault="stall")
    async with before(pair, fake) as url, aiohttp.ClientSession() as session:
        reply = await session.post(url + pair.path, json=pair.body | {"stream": True})
        await reply.content.readany()
        reply.close()
        await asyncio.wait_for(fake.closed.wait(), 5)
    assert fake.closed.is_set()


@ALL
async def test_signs_of_life_are_the_formats_own_between_its_events(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "KEEP_ALIVE_SECONDS", 0.05)
    wanted = SIGNS.get(pair.path, b"event: ping")
    async with before(pair, Fake(fault="stall"), patience=0.05) as url, aiohttp.ClientSession() as session:
        said = b""
        async with session.post(url + pair.path, json=pair.body | {"stream": True}) as reply, asyncio.timeout(5):
            while said.count(wanted) < 2:
                said += await reply.content.readany()
    whole = said.splitlines() if pair.path in LINES else [p for p in said.split(b"\n\n") if p]
    for one in whole:
        json.loads(one if pair.path in LINES else one.partition(b"data: ")[2])


async def test_a_stream_that_waits_and_then_passes_through_has_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps a client's patience before the server's first word is of the answer that comes."""
    fake = Fake(fault="stall")
    monkeypatch.setattr(completions, "KEEP_ALIVE_SECONDS", 0.05)
    async with before(PAIRS["responses"], fake, patience=0.0) as url, aiohttp.ClientSession() as session:
        said, body = b"", {"model": "auto", "input": "Add", "stream": True}
        async with session.post(f"{url}/v1/responses", json=body) as reply, asyncio.timeout(10):
            while b"output_text.delta" not in said or said.count(b"event: response.in_progress") < 4:
                said += await reply.content.readany()
    rows = [row for row in sse(said[: said.rindex(b"\n\n") + 2]) if "response" in row]
    assert len({row["response"]["id"] for row in rows}) == 1  # type: ignore[index]
    assert rows[0]["type"] == "response.created"


async def test_the_official_clients_read_what_comes_through() -> None:
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    for server in (llamacpp, vllm):
        fake = Fake()
        async with before(Pair(server, "/v1/messages"), fake) as url:
            async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as client:
                asked: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 50}
                async with client.messages.stream(**asked, thinking={"type": "adaptive"}) as stream:
                    final = await stream.get_final_message()
                called = await client.messages.create(**asked, tools=[tool])
        assert [block.type for block in final.content] == ["thinking", "text"]
        assert (final.content[1].text, final.stop_reason) == (ANSWER, "end_turn")  # type: ignore[union-attr]
        assert (final.usage.input_tokens, final.usage.output_tokens) == (PROMPT_TOKENS, ANSWER_TOKENS)
        assert (called.content[0].input, called.stop_reason) == ({"city": "Paris"}, "tool_use")  # type: ignore[union-attr]
        assert [path for method, path in fake.requests if method == "POST"] == ["/v1/messages"] * 2
    async with before(PAIRS["ollama"], Fake()) as url:
        async with ollama_client_of(url) as client:
            parts = [part async for part in await client.chat(MODEL, QUESTION, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == ANSWER
    assert (parts[-1].done_reason, parts[-1].prompt_eval_count) == ("stop", PROMPT_TOKENS)


async def test_what_only_an_ollama_can_be_told_goes_past_servers_that_cannot() -> None:
    """A template, and the tokens of an earlier answer: translated they would be lost."""
    other, fake = Fake(), Fake()
    async with (
        serving(vllm.app(other)) as first,
        serving(ollama.app(fake), server_header=ollama.SERVER_HEADER) as second,
        gateway(first, second) as url,
    ):
        for more in ({"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"raw": True, "images": ["aGk="]}):
            body = {"model": MODEL, "prompt": "Say hello", "stream": False, **more}
            status, headers, said = await post(url, "/api/generate", body)
            assert (status, headers["x-turnout-endpoint"]) == (200, "s1"), said
            assert more.items() <= fake.seen[-1].items()
        async with ollama_client_of(url) as client:
            parts = [part async for part in await client.generate(MODEL, "Hi", context=[1, 2], stream=True)]
    assert other.seen == []
    assert (parts[-1].context, parts[-1].prompt_eval_count) == ([1, 2, 3], PROMPT_TOKENS)


async def test_where_no_ollama_is_that_is_said() -> None:
    fake = Fake()
    async with serving(vllm.app(fake)) as server, gateway(server) as url:
        for more, told in (
            ({"template": "{{ .Prompt }}"}, "has no means to take 'template' of /api/generate"),
            ({"context": [1], "raw": True, "system": "x"}, "'system' of /api/generate and 'context' of"),
            ({"context": [1], "model": "auto"}, "context is one model's own"),
            ({"context": [1], "raw": True, "model": "coding:latest"}, "context is one model's own"),
        ):
            status, _, said = await post(url, "/api/generate", {"model": MODEL, "prompt": "x", **more})
            assert (status, told in json.loads(said)["error"]) == (400, True), said
    assert fake.seen == []


async def test_a_question_to_generate_is_translated_for_others() -> None:
    fake = Fake()
    async with serving(vllm.app(fake)) as server, gateway(server) as url:
        body = {"model": MODEL, "prompt": "Say hello", "system": "Be brief.", "stream": False}
        _, _, said = await post(url, "/api/generate", body)
    assert json.loads(said)["response"] == ANSWER
    assert [row["role"] for row in fake.seen[0]["messages"]] == ["system", "user"]  # type: ignore[attr-defined]


# Where the other lane is taken.


@STREAMED
async def test_a_build_before_the_route_is_asked_in_its_own_format(stream: bool) -> None:
    fake, pair = Fake(options={"messages": False}), PAIRS["anthropic-llamacpp"]
    async with before(pair, fake) as url:
        status, _, said = await post(url, pair.path, pair.body | {"stream": stream})
    assert status == 200
    assert b"add(a, b):" in said
    posted = [path for method, path in fake.requests if method == "POST"]
    assert posted == ["/v1/messages", "/v1/chat/completions"]


async def test_what_a_stricter_server_does_not_know_is_translated() -> None:
    fake, pair = Fake(options={"blocks": ("text", "tool_use", "tool_result")}), PAIRS["anthropic-vllm"]
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    rows = [*QUESTION, {"role": "assistant", "content": [thought, {"type": "text", "text": "hi"}]}, *QUESTION]
    async with before(pair, fake) as url:
        status, _, said = await post(url, pair.path, pair.body | {"messages": rows})
        without, _, _ = await post(url, pair.path, {"model": MODEL, "messages": QUESTION})
    assert (status, without) == (200, 200)
    assert json.loads(said)["content"][0]["text"] == ANSWER
    posted = [path for method, path in fake.requests if method == "POST"]
    assert posted == ["/v1/messages", "/v1/chat/completions"] * 2


# By facts: no window can be told there, tool calls or messages are lost, or nobody knows how well it does.
TRANSLATED = sorted(set(FAKES) - {"llamacpp", "llamacpp-router", "vllm", "gpt4all", "openwebui"})


@pytest.mark.parametrize("kind", TRANSLATED)
async def test_servers_that_do_not_speak_it_well_are_asked_in_their_own_format(kind: str) -> None:
    fake = Fake(models=[FakeModel() for _ in range(getattr(FAKES[kind], "MODELS", 1))])
    for number, model in enumerate(fake.models):
        model.id += str(number) if number else ""
    async with (
        serving(FAKES[kind].app(fake), server_header=FAKES[kind].SERVER_HEADER) as server,
        gateway(server) as url,
    ):
        body = {"model": "auto", "messages": QUESTION, "max_tokens": 50}
        status, _, said = await post(url, "/v1/messages", body)
    assert status == 200, said
    posted = [path for method, path in fake.requests if method == "POST"]
    assert posted
    assert not any(path.endswith("/messages") for path in posted)


async def test_a_prompt_of_claude_code_goes_up_with_its_system_messages_where_templates_want_them() -> None:
    fake, pair = Fake(), PAIRS["anthropic-llamacpp"]
    cached = {"cache_control": {"type": "ephemeral"}}
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330; cch=1a2b;"},
        {"type": "text", "text": "You are an agent.", **cached},
    ]
    rows = [
        {"role": "user", "content": [{"type": "text", "text": "go", **cached}]},
        {"role": "system", "content": [{"type": "text", "text": "# Environment", **cached}]},
    ]
    kept = {"thinking": {"type": "adaptive"}, "context_management": {"edits": []}, "output_config": {"effort": "high"}}
    async with before(pair, fake) as url:
        status, _, _ = await post(
            url, "/v1/messages?beta=true", pair.body | kept | {"system": system, "messages": rows}
        )
    assert status == 200
    joined = [{"type": "text", "text": "You are an agent.\n\n# Environment", **cached}]
    assert fake.seen == [pair.body | kept | {"system": joined, "messages": rows[:1]}]


# The real server, by what it received.


@dataclass
class Heard:
    """What passed a listener between the gateway and a server."""

    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def overheard(server: str, header: str) -> AsyncIterator[tuple[str, Heard]]:
    """A listener in front of a server; yields its URL and what it hears."""
    heard = Heard()
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def passed(request: Request) -> Response:
            body = await request.body()
            if request.method == "POST":
                heard.posted.append((request.url.path, json.loads(body)))
            reply = await session.request(request.method, server + request.url.path, data=body or None)
            kind = reply.headers.get("Content-Type", "")
            if request.method == "GET":
                return Response(await reply.read(), reply.status, media_type=kind)
            heard.answers.append(b"")

            async def pieces() -> AsyncIterator[bytes]:
                async for piece in reply.content.iter_any():
                    heard.answers[-1] += piece
                    yield piece

            return StreamingResponse(pieces(), reply.status, media_type=kind)

        app = Starlette(routes=[Route("/{path:path}", passed, methods=["GET", "POST"])])
        async with serving(app, server_header=header) as url:
            yield url, heard


@STREAMED
async def test_the_real_server_is_spoken_to_in_the_clients_format(llama: LlamaServer, stream: bool) -> None:
    body = {
        "model": "smol", "max_tokens": 8, "stream": stream, "system": "Be brief.", "temperature": 0,
        "messages": [*QUESTION, {"role": "system", "content": "# Environment"}], "thinking": {"type": "adaptive"},
    }  # fmt: skip
    async with overheard(llama.url, "llama.cpp") as (server, heard), gateway(server) as url:
        status, headers, said = await post(url, "/v1/messages", body)
    assert status == 200
    tidied = body | {"system": "Be brief.\n\n# Environment", "messages": QUESTION}
    assert heard.posted == [("/v1/messages", tidied)]
    assert said == heard.answers[0]
    assert headers["x-turnout-model"] == "smol"
    if stream:
        kinds = [line.partition(b": ")[2] for line in said.splitlines() if line.startswith(b"event:")]
        assert (kinds[0], kinds[-1]) == (b"message_start", b"message_stop")
    else:
        answer = json.loads(said)
        assert answer["content"][0]["text"]
        assert answer["stop_reason"] in ("max_tokens", "end_turn")


async def test_the_real_server_says_the_number_when_a_prompt_is_too_long(llama: LlamaServer) -> None:
    body = {"model": "smol", "max_tokens": 8, "messages": [{"role": "user", "content": "word " * 3000}]}
    async with gateway(llama.url) as url:
        status, _, said = await post(url, "/v1/messages", body)
    assert status == 400
    assert "prompt is too long: 30" in json.loads(said)["error"]["message"]
