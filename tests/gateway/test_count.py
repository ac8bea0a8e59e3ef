"""``POST /v1/messages/count_tokens``: the number that the model's own server has, where it counts."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import anthropic
import pytest

from tests.fakes import FAKES, ollama
from tests.fakes.base import PROMPT_TOKENS, Fake, FakeModel
from tests.gateway.test_models import fakes, gateway
from tests.servers import LlamaServer
from turnout.config import data_dir

SYSTEM = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"}, {"type": "text", "text": "Be short."}]
MESSAGES = [{"role": "user", "content": "Say hello"}, {"role": "system", "content": "Today is Sunday."}]
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
PATH = "/v1/messages/count_tokens"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


@pytest.mark.parametrize("model", ["smol", "auto", "claude-local-auto"])
async def test_the_count_is_what_the_real_server_then_reads(llama: LlamaServer, model: str) -> None:
    async with gateway({"endpoint": llama.url}) as url, anthropic.AsyncAnthropic(base_url=url, api_key="x") as client:
        counted = await client.messages.count_tokens(model=model, system=SYSTEM, messages=MESSAGES)  # type: ignore[arg-type]
        answer = await client.messages.create(model=model, system=SYSTEM, messages=MESSAGES, max_tokens=4)  # type: ignore[arg-type]
        raw = await client.messages.with_raw_response.count_tokens(model=model, messages=MESSAGES)  # type: ignore[arg-type]
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 10
    assert raw.headers["x-turnout-model"] == "smol"
    assert raw.headers["x-turnout-reason"] == "counted by the server"


async def test_a_server_that_does_not_count_is_not_asked_and_the_number_is_an_estimate() -> None:
    fake = Fake([FakeModel("llama3.1:8b")])
    async with fakes(ollama.app(fake)) as servers, gateway(*servers) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as client:
            asked = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "word " * 1000}]}
            raw = await client.messages.with_raw_response.count_tokens(**asked)  # type: ignore[arg-type]
            small = (await raw.parse()).input_tokens
            large = (await client.messages.count_tokens(**asked, tools=[TOOL])).input_tokens  # type: ignore[arg-type]
    assert 700 < small < 2000
    assert small < large
    assert raw.headers["x-turnout-reason"].startswith("estimated")
    assert fake.seen == []


async def test_a_choice_is_counted_by_the_model_that_would_answer() -> None:
    """The one that takes tools, where some are sent; the one with room, where the prompt is long."""
    plain = Fake([FakeModel("llama3.3:70b", window=4096, capabilities=("chat",))])
    able = Fake([FakeModel("qwen2.5-coder-7b-instruct", window=16384)])
    async with fakes(ollama.app(plain), FAKES["llamacpp"].app(able)) as servers, gateway(*servers) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as client:
            count = client.messages.with_raw_response.count_tokens
            went = [
                (await count(model="auto", messages=[{"role": "user", "content": text}], **more)).headers  # type: ignore[arg-type]
                for text, more in (("Why?", {}), ("Why?", {"tools": [TOOL]}), ("word " * 6000, {}))
            ]
    assert [head["x-turnout-model"] for head in went] == ["llama3.3:70b", able.models[0].id, able.models[0].id]
    assert f"prompt={PROMPT_TOKENS};" in went[1]["x-turnout-context"]
    assert '"tokens of a prompt: llama3.3:70b @ s0"' in (data_dir() / "audit.log").read_text("utf-8")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"model": "auto", "messages": []}, 400, "invalid_request_error"),
        ({"model": "auto", "messages": [{"role": "user", "content": ""}]}, 400, "invalid_request_error"),
        ({"model": "nobody-has-this", "messages": MESSAGES}, 404, "not_found_error"),
        ([], 400, "invalid_request_error"),
    ],
)
async def test_errors_are_in_anthropics_form(body: object, status: int, kind: str) -> None:
    async with fakes(FAKES["llamacpp"].app(Fake([FakeModel()]))) as servers, gateway(*servers) as url:
        async with aiohttp.ClientSession() as session, session.post(f"{url}{PATH}?beta=true", json=body) as reply:
            answer = await reply.json()
    assert (reply.status, answer["type"], answer["error"]["type"]) == (status, "error", kind)


async def test_nobody_there_is_retryable() -> None:
    async with gateway({"endpoint": "http://127.0.0.1:9"}) as url, aiohttp.ClientSession() as session:
        async with session.post(url + PATH, json={"model": "auto", "messages": MESSAGES}) as reply:
            answer = await reply.json()
    assert (reply.status, answer["error"]["type"]) == (503, "overloaded_error")
