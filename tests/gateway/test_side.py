"""OpenAI's embeddings, text completions and reranking: with the real client, in front of the real server and faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.fakes import gpt4all, llamacpp, mlx, ollama, vllm
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from tests.servers import LlamaServer
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import create_app, running
from turnout.guard.chain import verify

ANSWER = "def add(a, b):\n    return a + b"
MODEL = "qwen2.5-coder-7b-instruct"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@asynccontextmanager
async def gateway(
    *servers: str | tuple[object, Fake], audit: Path | None = None, slots: int = 0, total: int = 0
) -> AsyncIterator[str]:
    """A gateway in front of URLs and fakes (a dialect's module, its state), the first preferred."""
    async with AsyncExitStack() as stack:
        urls = []
        for server in servers:
            if not isinstance(server, str):
                kind, fake = server
                header = getattr(kind, "SERVER_HEADER", "uvicorn")
                server = await stack.enter_async_context(serving(kind.app(fake), server_header=header))  # type: ignore[attr-defined]
            urls.append(server)
        more = ({"slots": slots} if slots else {}) | ({"total_timeout": total} if total else {})
        custom = [{"name": f"s{n}", "endpoint": url, "priority": n, **more} for n, url in enumerate(urls)]
        logs = {"security": {"audit_log_path": str(audit)}} if audit else {}
        router = await stack.enter_async_context(
            open_router(load_any({"custom_endpoints": custom, "discovery": {"enabled": False}, **logs}))
        )
        _, url = await stack.enter_async_context(running(create_app(router)))
        yield url


async def test_the_openai_client_gets_vectors_packed_and_plain_from_the_endpoint_that_has_the_model() -> None:
    other, fake = Fake([FakeModel("chat-7b")]), Fake([FakeModel("bge-m3", capabilities=("embeddings",))])
    async with (
        gateway((ollama, other), (vllm, fake)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as c,
    ):
        packed = await c.embeddings.create(model="bge-m3", input=["a", "bcd"])
        plain = await c.embeddings.create(model="bge-m3", input="bcd", encoding_format="float")
        for body, said in (
            ({"model": "auto", "input": "a"}, "name one"),
            ({"model": "bge-m3", "input": [1, 2]}, "token numbers"),
            ({"model": "bge-m3", "input": []}, "input is empty"),
            ({"model": "bge-m3", "input": "a", "dimensions": 8}, "dimensions cannot be chosen"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                await c.embeddings.create(**body)  # type: ignore[arg-type]
        with pytest.raises(openai.NotFoundError, match="no server has the model 'nope'"):
            await c.embeddings.create(model="nope", input="a")
    assert [row.embedding for row in packed.data] == [[1.0, 0.5, -1.0], [3.0, 0.5, -1.0]]
    assert plain.data[0].embedding == [3.0, 0.5, -1.0]
    assert (packed.model, packed.usage.prompt_tokens > 0) == ("bge-m3", True)


async def test_a_model_of_that_very_id_is_asked_before_one_of_another_build() -> None:
    """Vectors of two builds do not compare: the name of a model means more than one of them, its id one."""
    asked = "qwen2.5-coder-7b"
    first, second = Fake([FakeModel(f"{asked}-instruct")]), Fake([FakeModel(asked)])
    async with gateway((vllm, first), (ollama, second)) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/embeddings", json={"model": asked, "input": "a"}) as reply:
            assert reply.headers["x-turnout-endpoint"] == "s1"
            assert reply.headers["x-turnout-model"] == f"{asked}:latest"


async def test_a_text_is_gone_on_with_by_the_real_server(llama: LlamaServer) -> None:
    async with gateway(llama.url) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        prompt = "The capital of France is"
        whole = await client.completions.create(model="smol", prompt=prompt, max_tokens=4, temperature=0)
        stream = await client.completions.create(
            model="smol", prompt=[prompt], max_tokens=4, temperature=0, stream=True
        )
        chunks = [chunk async for chunk in stream]
        with pytest.raises(openai.BadRequestError, match="does not support embeddings"):
            await client.embeddings.create(model="smol", input="a")
        with pytest.raises(openai.BadRequestError, match="Infill is not supported"):
            await client.completions.create(model="smol", prompt="a", suffix="b")
        async with aiohttp.ClientSession() as session:
            body = {"model": "smol", "query": "a", "documents": ["b"]}
            async with session.post(f"{url}/v1/rerank", json=body) as reply:
                assert reply.status == 400
                assert "does not support reranking" in (await reply.json())["error"]["message"]
    assert whole.choices[0].text == "".join(c.choices[0].text for c in chunks if c.choices) == " Paris.\n\n"
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 4)
    assert chunks[-1].usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("kind", "field"),
    [(ollama, "suffix"), (llamacpp, "input_suffix"), (vllm, "suffix")],
    ids=["ollama", "llama", "vllm"],
)
async def test_the_middle_is_filled_in_where_a_server_can(kind: object, field: str) -> None:
    fake = Fake([FakeModel("coder", capabilities=("chat", "fim"))])
    async with gateway((kind, fake)) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        made = await client.completions.create(
            model="coder", prompt="def add(", suffix="pass", max_tokens=9, stop=["\n\n"], extra_body={"seed": 7}
        )
    assert made.choices[0].text == ANSWER
    assert made.usage.completion_tokens == 4
    (sent,) = fake.seen
    assert sent[field] == "pass"
    assert (sent.get("options") or sent)["seed"] == 7
    assert (sent.get("options") or sent)["stop"] == ["\n\n"]


@pytest.mark.parametrize(("kind", "said"), [(mlx, "fill in the middle"), (gpt4all, "go on with a text")])
async def test_where_nobody_can_it_is_said_and_nothing_is_asked(kind: object, said: str) -> None:
    fake = Fake()
    async with gateway((kind, fake)) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        with pytest.raises(openai.BadRequestError, match=f"has no means to {said}"):
            await client.completions.create(model=MODEL, prompt="a", suffix="b")
        async with aiohttp.ClientSession() as session:
            async with session.post(
                f"{url}/v1/rerank", json={"model": MODEL, "query": "a", "documents": ["b"]}
            ) as reply:
                assert reply.status == 400
                assert "has no means to rank" in (await reply.json())["error"]["message"]
    assert fake.seen == []


async def test_documents_are_ranked_by_relevance() -> None:
    fake = Fake([FakeModel("bge-reranker")])
    body = {"model": "bge-reranker", "query": "q", "documents": ["a", {"text": "abc"}, "ab"]}
    async with gateway((vllm, fake)) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/rerank", json=body | {"top_n": 2, "return_documents": True}) as reply:
            answer = await reply.json()
        async with session.post(f"{url}/v1/rerank", json=body | {"documents": []}) as reply:
            assert reply.status == 400
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [(1, 0.3), (2, 0.2)]
    assert answer["results"][0]["document"] == {"text": "abc"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_server_that_fails_before_its_first_word_is_passed_over(stream: bool) -> None:
    bad, good = Fake(fault="error"), Fake()
    async with gateway((vllm, bad), (vllm, good)) as url, aiohttp.ClientSession() as session:
        body = {"model": MODEL, "prompt": "a", "stream": stream}
        async with session.post(f"{url}/v1/completions", json=body) as reply:
            text = await reply.text()
            assert reply.headers["x-turnout-endpoint"] == "s1"
            assert reply.content_type == ("text/event-stream" if stream else "application/json")
    assert "return a + b" in text
    assert (len(bad.seen), len(good.seen)) == (1, 1)


@pytest.mark.parametrize(("fault", "status"), [("busy", 503), ("error", 502), ("overflow", 400)])
async def test_when_all_fail_the_first_failure_is_told(fault: str, status: int) -> None:
    async with gateway((vllm, Fake(fault=fault))) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "a", "stream": True}) as reply:
            answer = await reply.json()
            assert (reply.status, "Retry-After" in reply.headers) == (status, status == 503)
    assert answer["error"]["code"]


async def test_every_side_request_is_in_the_audit_log(tmp_path: Path) -> None:
    log, fake = tmp_path / "audit.jsonl", Fake()
    async with gateway((vllm, fake), audit=log) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        await client.embeddings.create(model=MODEL, input="a secret text")
        await client.completions.create(model=MODEL, prompt="a secret text")
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="nope", input="a secret text")
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    ends = [row for row in rows if row["phase"] == "end"]
    assert (len(ends), verify(log).ok) == (3, True)
    assert "secret" not in log.read_text("utf-8")
    assert [(r["model"], r["service"]) for r in ends][:2] == [(MODEL, "s0"), (MODEL, "s0")]
    assert ends[1]["tokens_out"] == 4
    assert ends[2]["error"] == "no_suitable_model"


async def test_a_client_that_leaves_frees_the_server() -> None:
    fake = Fake(fault="hang")
    async with gateway((vllm, fake)) as url, aiohttp.ClientSession() as session:
        body = {"model": MODEL, "prompt": "a"}
        asked = asyncio.ensure_future(session.post(f"{url}/v1/completions", json=body))
        while not fake.seen:
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        fake.fault = ""
        async with session.post(f"{url}/v1/completions", json=body) as reply:
            assert reply.status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/completions", {"prompt": "a"}),
    ],
)
async def test_servers_that_hang_have_one_time_together(path: str, body: dict[str, object]) -> None:
    """As a chat has, and not five minutes each for a first byte and two more to wait for a place."""
    fakes = [Fake(fault="hang") for _ in range(3)]
    async with (
        asyncio.timeout(30),
        gateway(*((vllm, fake) for fake in fakes), slots=1, total=1000) as url,
        aiohttp.ClientSession() as session,
    ):
        both = [session.post(url + path, json={"model": MODEL, **body}) for _ in range(2)]
        first, second = await asyncio.gather(*both)
        answers = [await first.json(), await second.json()]
    assert first.status == 504
    assert answers[0]["error"]["code"] == "timeout"
    assert second.status in (503, 504)  # whoever waits for a place is told that the server is busy
    asked = sum(path in (where for _, where in fake.requests) for fake in fakes)
    assert 0 < asked < 3, "those that come when the time is over are not asked"


async def test_a_side_request_waits_for_a_slot_as_a_chat_does() -> None:
    fake = Fake(fault="hang")
    async with gateway((vllm, fake), slots=1) as url, aiohttp.ClientSession() as session:
        body = {"model": MODEL, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
        first = asyncio.ensure_future(session.post(f"{url}/v1/chat/completions", json=body))
        while not fake.seen:
            await asyncio.sleep(0.01)
        fake.fault = ""
        second = asyncio.ensure_future(session.post(f"{url}/v1/completions", json=body))
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        assert len(fake.seen) == 1
        first.cancel()
        async with await second as reply:
            assert reply.status == 200
        await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b"{"),
        ("/v1/embeddings", b'{"model":5,"input":"a"}'),
        ("/v1/embeddings", b'{"model":"m","input":{"a":1}}'),
        ("/v1/embeddings", b'{"model":"m","input":["a",""]}'),
        ("/v1/embeddings", b'{"model":"m","input":"a","encoding_format":"zip"}'),
        ("/v1/completions", b"[]"),
        ("/v1/completions", b'{"model":"m"}'),
        ("/v1/completions", b'{"model":"m","prompt":[1,2]}'),
        ("/v1/completions", b'{"model":"m","prompt":["a","b"]}'),
        ("/v1/completions", b'{"model":"m","prompt":"a","n":2}'),
        ("/v1/completions", b'{"model":"m","prompt":"a","logprobs":1}'),
        ("/v1/completions", b'{"model":"m","prompt":"a","echo":true}'),
        ("/v1/completions", b'{"model":"m","prompt":"a","suffix":7}'),
        ("/v1/completions", b'{"model":"m","prompt":"a","stream":1}'),
        ("/v1/rerank", b'{"model":"m","documents":["a"]}'),
        ("/v1/rerank", b'{"model":"m","query":"a","documents":"b"}'),
        ("/v1/rerank", b'{"model":"m","query":"a","documents":[5]}'),
    ],
)
async def test_bad_input_is_an_openai_error(path: str, body: bytes) -> None:
    async with gateway((vllm, Fake([FakeModel("m")]))) as url, aiohttp.ClientSession() as session:
        async with session.post(url + path, data=body) as reply:
            answer = await reply.json()
    assert reply.status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]
