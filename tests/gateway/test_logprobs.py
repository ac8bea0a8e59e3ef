"""How likely each token was, from the servers that tell it to the clients whose formats have a place for it."""

from __future__ import annotations

from pathlib import Path

import ollama
import openai
import pytest

from tests.gateway.test_models import gateway
from tests.servers import LlamaServer
from turnout.types import Finish, TextDelta
from turnout.wire import ollama as ollama_wire
from turnout.wire import openai_chat

QUESTION = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


async def test_the_openai_client_gets_them_in_both_of_its_formats(llama: LlamaServer) -> None:
    async with gateway({"endpoint": llama.url}) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        chat = await client.chat.completions.create(
            model="smol", messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=2  # type: ignore[arg-type]
        )  # fmt: skip
        asked = {"model": "smol", "input": "Say hello", "max_output_tokens": 6, "store": False}
        asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        whole = await client.responses.create(**asked)  # type: ignore[call-overload]
        events = [event async for event in await client.responses.create(**asked, stream=True)]  # type: ignore[call-overload]
        plain = await client.responses.create(model="smol", input="Say hello", max_output_tokens=6)
    rows = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert "".join(row.token for row in rows) == chat.choices[0].message.content  # type: ignore[union-attr]
    told = whole.output[0].content[0].logprobs
    assert "".join(row.token for row in told) == whole.output_text
    assert {len(row.top_logprobs) for row in told} == {2}
    assert all(row.logprob <= 0 for row in told)
    pieces = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(row.token for piece in pieces for row in piece.logprobs) == whole.output_text
    assert events[-1].response.output[0].content[0].logprobs == told
    assert plain.output[0].content[0].logprobs == []  # type: ignore[union-attr]


async def test_the_ollama_client_gets_them(llama: LlamaServer) -> None:
    async with gateway({"endpoint": llama.url}) as url:
        client = ollama.AsyncClient(host=url, verify=False)
        asked = {"model": "smol", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
        whole = await client.chat(**asked, options={"num_predict": 6})  # type: ignore[call-overload]
        parts = [p async for p in await client.chat(**asked, options={"num_predict": 6}, stream=True)]  # type: ignore[call-overload]
        await client._client.aclose()
    assert "".join(row.token for row in whole.logprobs) == whole.message.content
    assert {len(row.top_logprobs) for row in whole.logprobs} == {2}
    assert "".join(row.token for p in parts for row in p.logprobs or ()) == whole.message.content


def test_an_ollamas_own_reach_an_openai_client() -> None:
    """As its official client reads them (``ollama._types.Logprob``)."""
    row = '{"token":"Hi","logprob":-0.25,"top_logprobs":[{"token":"Hi","logprob":-0.25},{"token":"Yo","logprob":-2}]}'
    line = f'{{"message":{{"role":"assistant","content":"Hi"}},"logprobs":[{row}],"done":false}}\n'
    (event,) = ollama_wire.StreamParser().feed(line.encode())
    assert isinstance(event, TextDelta)
    told = openai_chat.parse_response(openai_chat.render_response([event, Finish()], "m", "1"))[0]
    assert told == event
    assert event.logprobs[0]["bytes"] == [72, 105]
    assert [other["token"] for other in event.logprobs[0]["top_logprobs"]] == ["Hi", "Yo"]  # type: ignore[index,union-attr]


@pytest.mark.parametrize("hostile", ['"x"', "[1]", "[[]]", '[{"token":5,"top_logprobs":{}}]', "{}", "null"])
def test_what_is_none_is_left_out(hostile: str) -> None:
    data = f'data: {{"choices":[{{"delta":{{"content":"a"}},"logprobs":{{"content":{hostile}}}}}]}}\n\n'
    (event,) = openai_chat.StreamParser().feed(data.encode())
    assert isinstance(event, TextDelta)
    assert event.text == "a"
    assert len(event.logprobs) == hostile.count('token"')
