"""The gateway with the official Ollama client, in front of the real server, of real bytes, and of faults."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import ollama
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.fakes import llamacpp
from tests.fakes import ollama as fake_ollama
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from tests.recordings import replies, reply
from tests.servers import LlamaServer
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway import completions
from turnout.gateway.app import create_app, running

QUESTION = [{"role": "user", "content": "Say hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ANSWER = "def add(a, b):\n    return a + b"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@asynccontextmanager
async def gateway(*urls: str, max_body: int = 1_000_000, patience: float = 5.0) -> AsyncIterator[str]:
    # No retries: what they are is for tests/test_fallback.py, and each takes its pause.
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(config))
        _, url = await stack.enter_async_context(
            running(create_app(router, max_body_bytes=max_body, patience=patience))
        )
        yield url


@asynccontextmanager
async def recorded() -> AsyncIterator[str]:
    """Real bytes of Ollama 0.24, whatever the wording of the question."""
    kind = ("ollama", "0.24.0", "loaded")
    bodies = {"/api/embed": "embed-two", "smol:latest": "chat-stream", "smol-tools:latest": "tool-call"}

    async def get(request: Request) -> Response:
        found = replies(*kind)[request.url.path]
        return Response(found.body, found.status)

    async def post(request: Request) -> Response:
        asked = (await request.json())["model"].removesuffix(":local")
        found = reply(*kind, bodies.get(request.url.path) or bodies[asked])
        return Response(found.body, found.status, {"Content-Type": found.headers["content-type"]})

    routes = [Route("/{path:path}", get, methods=["GET"]), Route("/{path:path}", post, methods=["POST"])]
    async with serving(Starlette(routes=routes)) as url:
        yield url


@asynccontextmanager
async def speaking(url: str) -> AsyncIterator[ollama.AsyncClient]:
    """The official client, closed at the end."""
    client = ollama.AsyncClient(host=url)
    try:
        yield client
    finally:
        await client._client.aclose()


@asynccontextmanager
async def before(*fakes: Fake, kind: object = fake_ollama, patience: float = 5.0) -> AsyncIterator[ollama.AsyncClient]:
    """A client of a gateway in front of fakes."""
    header = getattr(kind, "SERVER_HEADER", "uvicorn")
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(kind.app(f), server_header=header)) for f in fakes]  # type: ignore[attr-defined]
        url = await stack.enter_async_context(gateway(*urls, patience=patience))
        yield await stack.enter_async_context(speaking(url))


async def test_the_client_gets_a_real_answer_whole_and_streamed(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url, speaking(url) as client:
        whole = await client.chat("smol:latest", QUESTION, options={"num_predict": 8, "num_ctx": 8515})
        assert whole.message.content
        assert (whole.done, whole.done_reason) == (True, "length")
        assert whole.prompt_eval_count > 0
        assert whole.eval_count == 8
        assert whole.total_duration >= whole.eval_duration > 0
        parts = [p async for p in await client.chat("auto", QUESTION, stream=True, options={"num_predict": 8})]
        told = await client.generate("smol", "Say hello", system="Be brief.", options={"num_predict": 8})
    assert len(parts) > 2
    assert "".join(p.message.content for p in parts)
    assert [p.done for p in parts] == [*(False for _ in parts[1:]), True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 8)
    assert told.response


async def test_a_text_is_gone_on_with_by_the_real_server_and_what_it_cannot_do_is_its_word(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url, speaking(url) as client:
        options = {"num_predict": 4, "temperature": 0}
        whole = await client.generate("smol", "The capital of France is", raw=True, options=options)
        parts = [
            p async for p in await client.generate(
                "smol", "The capital of France is", raw=True, options=options, stream=True
            )
        ]  # fmt: skip
        with pytest.raises(ollama.ResponseError, match="Infill is not supported by this model") as infill:
            await client.generate("smol", "def f(", suffix="return 1")
        with pytest.raises(ollama.ResponseError, match="does not support embeddings") as embed:
            await client.embed("smol", "a")
    assert whole.response == "".join(p.response for p in parts) == " Paris.\n\n"
    assert (whole.done_reason, whole.eval_count) == ("length", 4)
    assert infill.value.status_code == embed.value.status_code == 400


async def test_recorded_bytes_of_the_server_reach_its_own_client() -> None:
    options = {"num_predict": 8, "temperature": 0, "num_ctx": 99}
    question = [{"role": "user", "content": "Say hello."}]
    async with recorded() as upstream, gateway(upstream) as url, speaking(url) as client:
        parts = [p async for p in await client.chat("smol", question, stream=True, options=options)]
        (called,) = [
            call async for p in await client.chat("smol-tools", question, stream=True, tools=[TOOL])
            for call in p.message.tool_calls or ()
        ]  # fmt: skip
        made = await client.embed("smol", ["a", "bcd"])
        (row,) = [row for row in (await client.list()).models if row.model == "smol:latest"]
        loaded = [row.model for row in (await client.ps()).models]
    assert "".join(p.message.content for p in parts) == "I'm so glad you're here!"
    assert (parts[-1].done_reason, parts[-1].prompt_eval_count, parts[-1].eval_count) == ("length", 12, 8)
    assert round(made.embeddings[0][0], 7) == -0.0123183
    assert len(made.embeddings) == 2
    assert (row.details.family, row.details.quantization_level) == ("llama", "Q4_1")
    assert "smol:latest" in loaded
    assert (called.function.name, called.function.arguments) == ("weather", {"city": "Paris"})


async def test_tools_images_and_thoughts_reach_an_openai_server_and_come_back() -> None:
    app = openai_app(("vision",))
    history = [
        {"role": "user", "content": "What is it?", "images": [PNG]},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Paris"}}},
            {"function": {"name": "weather", "arguments": {"city": "Rome"}}},
        ]},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
        {"role": "tool", "content": "sun", "tool_name": "weather"},
    ]  # fmt: skip
    async with serving(app) as upstream, gateway(upstream) as url, speaking(url) as client:
        for _ in range(2):
            parts = [p async for p in await client.chat("vision", history, tools=[TOOL], stream=True, think="high")]
    first, second = app.state.fake.seen
    assert first == second, "invented ids are the same every time"
    picture, calls, rain, sun = first["messages"]
    assert picture["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert calls["reasoning_content"] == "hm"
    assert [c["id"] for c in calls["tool_calls"]] == [rain["tool_call_id"], sun["tool_call_id"]]
    assert len({rain["tool_call_id"], sun["tool_call_id"]}) == 2
    assert first["reasoning_effort"] == "high"
    (call,) = [c for p in parts for c in p.message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})
    assert parts[-1].done_reason == "stop"


async def test_what_would_load_a_model_anew_is_not_sent_on_and_the_rest_is() -> None:
    fake = Fake([FakeModel("qwen", window=4096)])
    options = {"num_ctx": 8515, "num_gpu": 1, "seed": 7, "top_k": 3, "penalize_newline": True, "temperature": 0}
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}}
    async with before(fake) as client:
        await client.chat("qwen", QUESTION, options=options, keep_alive=0, format=schema, think=False)
        await client.chat("qwen", QUESTION, think=True)
    sent, thinking = fake.seen
    wanted = {"num_ctx": 4096, "seed": 7, "top_k": 3, "penalize_newline": True, "temperature": 0}
    assert sent["options"] == wanted
    assert "keep_alive" not in sent
    assert (sent["format"], sent["think"], thinking["think"]) == (schema, False, True)


async def test_sampling_reaches_an_openai_server_under_its_own_names() -> None:
    app = openai_app(("m",))
    async with serving(app) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        body = {"model": "m", "messages": QUESTION, "options": {"seed": 7, "num_ctx": 9, "num_predict": 5}, "x_new": 1}
        async with session.post(f"{url}/api/chat", json=body) as reply:
            assert reply.headers["Content-Type"] == "application/x-ndjson"
            lines = [json.loads(line) for line in (await reply.text()).splitlines()]
    assert lines[-1]["done"] is True, "a stream is what is given unless it is refused"
    (sent,) = app.state.fake.seen
    assert (sent["seed"], sent["max_tokens"], sent["x_new"]) == (7, 5, 1)
    assert not {"options", "num_ctx", "keep_alive"} & sent.keys()


async def test_names_are_known_with_and_without_latest() -> None:
    tagged, plain = Fake([FakeModel("qwen"), FakeModel("qwen:32b")]), openai_app(("phi",))
    async with (
        serving(fake_ollama.app(tagged)) as one,
        serving(plain) as other,
        gateway(one, other) as url,
        speaking(url) as client,
    ):
        for name in ("qwen", "qwen:latest", "phi", "phi:latest", "auto", "auto:latest", "coding:latest"):
            assert (await client.chat(name, QUESTION)).message.content == ANSWER
            assert (await client.show(name)).modelinfo
        with pytest.raises(ollama.ResponseError, match="no server has the model") as missing:
            await client.chat("nope:latest", QUESTION)
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as unknown:
            await client.show("nope")
    assert [body["model"] for body in tagged.seen[:2]] == ["qwen:latest:local", "qwen:latest:local"]
    assert missing.value.status_code == unknown.value.status_code == 404


async def test_lists_tell_the_true_window_and_what_models_can() -> None:
    fake = Fake([
        FakeModel("qwen", window=4096, capabilities=("chat", "tools", "fim")),
        FakeModel("nomic-embed-text", resident=False, capabilities=("embeddings",)),
    ])  # fmt: skip
    async with before(fake) as client:
        rows = {row.model: row for row in (await client.list()).models}
        shown, virtual = await client.show("qwen"), await client.show("auto")
        async with aiohttp.ClientSession() as session:
            base = str(client._client.base_url)
            async with session.post(f"{base}/api/show", json={"name": "qwen"}) as answer:
                named = await answer.json()
            async with session.get(f"{base}/api/tags") as answer:
                tags = {row["name"]: row for row in (await answer.json())["models"]}
            async with session.get(f"{base}/api/version") as answer:
                version = (await answer.json())["version"]
            async with session.head(f"{base}/") as answer:
                assert answer.status == 200
        loaded = (await client.ps()).models
    virtuals = ["auto", "analysis", "coding", "documentation", "reasoning"]
    assert list(rows) == list(tags) == ["qwen:latest", "nomic-embed-text:latest", *virtuals]
    assert tags["qwen:latest"]["details"]["context_length"] == tags["auto"]["details"]["context_length"] == 4096
    assert shown.modelinfo["qwen2.context_length"] == named["model_info"]["qwen2.context_length"] == 4096
    assert shown.parameters.split() == ["num_ctx", "4096"]
    assert (shown.capabilities, virtual.capabilities) == (
        ["completion", "tools", "insert", "thinking"],
        ["completion", "tools", "thinking"],
    )
    assert "Suffix" in shown.template
    assert "Tools" in shown.template
    assert "embedding" in tags["nomic-embed-text:latest"]["capabilities"]
    assert [(row.model, row.context_length) for row in loaded] == [("qwen:latest", 4096)]
    assert version.split("+")[0].split(".") == ["0", "33", "0"]
    assert "turnout" in version


async def test_vectors_come_from_the_model_that_is_named_in_both_ways() -> None:
    fake = Fake([FakeModel("nomic-embed-text", capabilities=("embeddings",))])
    async with before(fake) as client:
        made = await client.embed("nomic-embed-text", ["a", "bcd"])
        (alone,) = (await client.embed("nomic-embed-text:latest", "bcd")).embeddings
        old = await client.embeddings("nomic-embed-text", "bcd")
        for model, text, said in (("nomic-embed-text", [], "input is empty"), ("auto", "a", "name one")):
            with pytest.raises(ollama.ResponseError, match=said):
                await client.embed(model, text)
        with pytest.raises(ollama.ResponseError, match="dimensions cannot be chosen"):
            await client.embed("nomic-embed-text", "a", dimensions=8)
    assert [list(v) for v in made.embeddings] == [[1.0, 0.5, -1.0], [3.0, 0.5, -1.0]]
    assert list(alone) == list(old.embedding) == [3.0, 0.5, -1.0]
    assert (made.model, made.prompt_eval_count) == ("nomic-embed-text:latest", 2)


async def test_the_middle_is_filled_in_by_ollama_and_by_llamacpp() -> None:
    for kind in (fake_ollama, llamacpp):
        fake = Fake([FakeModel("coder", capabilities=("chat", "fim"))])
        async with before(fake, kind=kind) as client:
            parts = [p async for p in await client.generate("coder", "def add(", suffix="pass", stream=True)]
            whole = await client.generate("coder", "def add(", suffix="pass", options={"num_predict": 9})
        assert "".join(p.response for p in parts) == whole.response == ANSWER
        assert whole.eval_count == 4
        sent = fake.seen[-1]
        if kind is fake_ollama:
            assert (sent["prompt"], sent["suffix"], sent["options"]) == (
                "def add(", "pass", {"num_ctx": 8192, "num_predict": 9}
            )  # fmt: skip
            assert "raw" not in sent
        else:
            assert (sent["input_prefix"], sent["input_suffix"], sent["n_predict"]) == ("def add(", "pass", 9)


async def test_asking_for_nothing_loads_and_nothing_unloads() -> None:
    fake = Fake([FakeModel("qwen", resident=False)])
    async with before(fake) as client:
        assert (await client.generate("qwen")).done_reason == "load"
        assert fake.models[0].resident
        assert (await client.chat("auto", [])).done_reason == "load"
        for keep in (0, "0s"):
            with pytest.raises(ollama.ResponseError, match="not unloaded for a client") as refused:
                await client.generate("qwen", keep_alive=keep)
            assert refused.value.status_code == 403
    assert fake.models[0].resident


async def test_nothing_is_loaded_for_what_is_no_json() -> None:
    fake = Fake([FakeModel("qwen", resident=False)])
    async with serving(fake_ollama.app(fake)) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        for path in ("/api/chat", "/api/generate"):
            async with session.post(url + path, data=b'{"model":"qwen","options":"\xff"}') as reply:
                assert (reply.status, list(await reply.json())) == (400, ["error"])
    assert not fake.models[0].resident


async def test_managing_models_is_refused_with_a_sentence() -> None:
    async with before(Fake()) as client:
        for verb in (client.pull("a"), client.push("a"), client.create("a", from_="b"), client.copy("a", "b")):
            with pytest.raises(ollama.ResponseError, match="at the servers that have them") as refused:
                await verb
            assert refused.value.status_code == 403
        with pytest.raises(ollama.ResponseError, match="at the servers that have them"):
            await client.delete("a")
        async with aiohttp.ClientSession() as session:
            async with session.head(f"{client._client.base_url}/api/blobs/sha256:{'a' * 64}") as blob:
                assert blob.status == 403
            async with session.get(f"{client._client.base_url}/api/nothing") as nothing:
                assert (nothing.status, list(await nothing.json())) == (404, ["error"])


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("error", 502, "model runner has unexpectedly stopped"),
        ("busy", 503, "server busy"),
        ("overflow", 400, "maximum context length is 4096 tokens"),
        ("malformed", 502, "s0 (did not answer with a chat completion|answered nothing that its protocol knows)"),
    ],
)
async def test_a_failure_has_this_formats_shape(fault: str, status: int, said: str) -> None:
    fake = Fake([FakeModel("qwen", window=4096)], fault=fault)
    async with before(fake) as client:
        with pytest.raises(ollama.ResponseError, match=said) as failed:
            await client.chat("qwen", QUESTION)
        assert failed.value.status_code == status
        with pytest.raises(ollama.ResponseError, match=said) as streamed:
            [p async for p in await client.chat("qwen", QUESTION, stream=True)]
        assert streamed.value.status_code == status


async def test_a_stream_that_breaks_ends_with_an_error_that_the_client_raises() -> None:
    fake, got = Fake([FakeModel("qwen")], fault="drop"), []
    async with before(fake) as client:
        with pytest.raises(ollama.ResponseError, match="in the middle of its answer"):
            async for part in await client.chat("qwen", QUESTION, stream=True):
                got.append(part.message.content)
    assert "".join(got) == "def add(a, b):"


async def test_a_client_waits_through_empty_pieces_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "KEEP_ALIVE_SECONDS", 0.05)
    fake = Fake([FakeModel("qwen")], fault="stall")
    async with before(fake, patience=0.05) as client:
        stream, pieces = await client.chat("qwen", QUESTION, stream=True), []
        async for part in stream:
            pieces.append(part)
            if len(pieces) == 8:
                break
        await stream.aclose()
        await asyncio.wait_for(fake.closed.wait(), 5)
    assert "".join(p.message.content for p in pieces) == "def add(a, b):"
    assert not any(p.done for p in pieces)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/chat", b"", 400),
        ("/api/chat", b"[]", 400),
        ("/api/chat", b"[" * 100_000, 400),
        ("/api/chat", b'{"model":5,"messages":[]}', 400),
        ("/api/chat", b'{"model":"m","messages":"x"}', 400),
        ("/api/chat", b'{"model":"m","messages":[5]}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"robot","content":"x"}]}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":[]}]}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":""}]}', 400),
        ("/api/chat", b'{"messages":[{"role":"user","content":"x","images":["http://203.0.113.5/x"]}]}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"no"}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":"x"}],"think":7}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":"x"}],"format":"xml"}', 400),
        ("/api/chat", b'{"messages":[{"role":"user","content":"x"}],"options":{"num_predict":"many"}}', 400),
        ("/api/chat", b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{}]}', 400),
        ("/api/chat", b'{"model":"nope-1b","messages":[{"role":"user","content":"x"}]}', 404),
        ("/api/chat", b"x" * 1_100_000, 413),
        ("/api/chat", b"{}", 400),
        ("/api/generate", b'{"model":"nope-1b"}', 404),
        ("/api/generate", b'{"model":"m","prompt":"x","template":"{{ .Prompt }}"}', 400),
        ("/api/generate", b'{"model":"m","prompt":"x","context":[1,2]}', 400),
        ("/api/generate", b'{"model":"m","prompt":"x","raw":true,"system":"y"}', 400),
        ("/api/generate", b'{"prompt":"x","raw":true}', 400),
        ("/api/embed", b'{"model":"m","input":[[1,2]]}', 400),
        ("/api/embed", b'{"model":"nope-1b","input":"x"}', 404),
        ("/api/embeddings", b'{"model":"m"}', 400),
        ("/api/show", b"{}", 404),
        ("/api/show", b"null", 400),
    ],
)  # fmt: skip
async def test_bad_input_is_an_error_of_one_sentence(path: str, body: bytes, status: int) -> None:
    async with serving(openai_app(("m",))) as upstream, gateway(upstream) as url, aiohttp.ClientSession() as session:
        async with session.post(url + path, data=io.BytesIO(body)) as answer:
            told = json.loads(await answer.read())
    assert answer.status == status
    assert list(told) == ["error"]
    assert told["error"]
    assert "Traceback" not in told["error"]


@pytest.mark.parametrize("name", ["chat-stream", "tool-call"])
def test_a_stream_has_the_shape_of_the_servers_own(name: str) -> None:
    from turnout.wire import ollama as client_wire
    from turnout.wire import ollama_server

    recorded = reply("ollama", "0.24.0", "loaded", name).body
    renderer = ollama_server.StreamRenderer(json.loads(recorded.splitlines()[0])["model"])
    made = b"".join(renderer.feed(event) for event in client_wire.parse_response(recorded)) + renderer.close()
    lines = [[json.loads(line) for line in data.splitlines()] for data in (recorded, made)]
    for own, ours in zip(*lines, strict=True):
        assert list(own) == list(ours)
        for key in own:
            if key != "created_at" and not key.endswith("_duration"):
                assert own[key] == ours[key]
