"""The model list: names that go where they say, each with the window that a request really has."""

from __future__ import annotations

import asyncio
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
from tests.fakes.llm import State, openai_app
from tests.servers import LlamaFactory
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway import listing
from turnout.gateway.app import create_app, running
from turnout.gateway.auth import Door
from turnout.gateway.completions import WINDOW_FIELDS
from turnout.guard import keys
from turnout.guard.tokens import Tokenring
from turnout.types import Principal

CODER = "Qwen/Qwen2.5-Coder-32B-Instruct-GGUF"
CANONICAL = "qwen2.5-coder-32b"
QUESTION = [{"role": "user", "content": "Say hello"}]
VIRTUAL = ["auto", "analysis", "coding", "documentation", "reasoning"]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def gateway(*servers: dict[str, object], key_file: Path | None = None) -> AsyncIterator[str]:
    """A gateway to servers that are named ``s0``, ``s1`` ..., with these fields in the configuration."""
    custom = [{"name": f"s{n}", **fields} for n, fields in enumerate(servers)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(config))
        door = Door(Tokenring(keys.Keyring(key_file))) if key_file else None
        _, url = await stack.enter_async_context(running(create_app(router, door=door)))
        yield url


@asynccontextmanager
async def fakes(*apps: object) -> AsyncIterator[list[dict[str, object]]]:
    async with AsyncExitStack() as stack:
        yield [{"endpoint": await stack.enter_async_context(serving(app))} for app in apps]  # type: ignore[arg-type]


async def rows(url: str, token: str = "x") -> dict[str, dict[str, object]]:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/v1/models", headers={"x-api-key": token}) as reply:
            found = (await reply.json())["data"]
    ids = [row["id"] for row in found]
    assert len(set(map(str.lower, ids))) == len(ids), "a name stands in the list once"
    return {row["id"]: row for row in found}


async def test_a_long_list_lets_other_requests_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{family}-{size}b" for family in ("own", "qwen2.5", "llama-3.1") for size in range(1, 41)]
    monkeypatch.setattr(listing, "SLICE_SECONDS", 0.0)
    async with fakes(openai_app(tuple(names))) as (server,):
        config = {"custom_endpoints": [{"name": "s", **server}], "discovery": {"enabled": False}}
        async with open_router(load_any(config)) as router:
            listing_all = asyncio.ensure_future(listing.listed(router, Principal()))
            turns = 0
            while not listing_all.done():
                await asyncio.sleep(0)
                turns += 1
    assert [one.name for one in listing_all.result()][:120] == names
    assert turns > 120, "a turn for others after each name"


async def chat(url: str, model: str, token: str = "x", words: int = 2, **more: object) -> aiohttp.ClientResponse:
    """The answer's head, its body read."""
    body = {"model": model, "messages": [{"role": "user", "content": "word " * words}], **more}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers={"x-api-key": token}) as reply:
            await reply.read()
    return reply


def window_told(reply: aiohttp.ClientResponse) -> int:
    return int(reply.headers["x-turnout-context"].partition("window=")[2].partition(";")[0])


async def test_every_name_of_the_list_goes_to_a_model_that_it_names_and_is_found() -> None:
    apps = (
        openai_app((CODER, "llama-3.1-8b-instruct", "auto"), window=16384),
        openai_app(("qwen2.5-coder-32b:q8", "llama-3.1-8b-instruct", "mine"), window=4096),
        ollama.app(Fake([FakeModel("llama3.1:8b", window=8192)])),
    )
    async with fakes(*apps) as servers, gateway(*servers) as url:
        listed = await rows(url)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            for name in listed:
                assert (await client.models.retrieve(name)).id == name
        went = {name: (await chat(url, name)).headers["x-turnout-model"] for name in listed}
    ids = [CODER, "llama-3.1-8b-instruct", "auto@s0", "qwen2.5-coder-32b:q8", "mine", "llama3.1:8b"]
    assert list(listed) == [
        *(*ids, CANONICAL),
        *VIRTUAL,
        *(f"claude-local-{name}" for name in (*ids[1:3], *ids[4:], CANONICAL, *VIRTUAL)),
    ]
    real = {name: model for name, model in went.items() if name in ids}
    assert real == {name: name.removesuffix("@s0") for name in ids}
    assert went[CANONICAL] == went[f"claude-local-{CANONICAL}"] == CODER
    assert went["claude-local-mine"] == "mine"
    assert went["claude-local-auto@s0"] == "auto"


async def test_the_window_of_every_name_is_the_one_that_a_request_gets() -> None:
    """Known, configured, guessed, allocated at the next load; a larger one elsewhere; the largest for a choice."""
    asleep = FakeModel("phi4:14b", resident=False, max_window=16384)
    store = Fake([asleep], options={"parameters": "num_ctx 12288"})
    apps = (openai_app((CODER,), window=4096), openai_app((CODER, "mine"), window=16384), ollama.app(store))
    async with fakes(*apps) as servers, gateway(*servers) as url:
        listed = await rows(url)
        larger, small = await chat(url, CODER, words=6000), await chat(url, CODER)
        told = {name: window_told(await chat(url, name, tools=[TOOL], stream=True)) for name in ("mine", "phi4:14b")}
    assert {name: row["context_length"] for name, row in listed.items() if name not in VIRTUAL} == {
        CODER: 16384, CANONICAL: 16384, f"claude-local-{CANONICAL}": 16384,
        "mine": 16384, "claude-local-mine": 16384, "phi4:14b": 12288,
        "phi-4": 12288, "claude-local-phi-4": 12288, **{f"claude-local-{name}": 16384 for name in VIRTUAL},
    }  # fmt: skip
    assert {listed[name]["context_length"] for name in VIRTUAL} == {16384}
    assert all(row[field] == row["context_length"] for row in listed.values() for field in WINDOW_FIELDS)
    assert told == {"mine": 16384, "phi4:14b": 12288}
    assert (window_told(small), window_told(larger)) == (4096, 16384), "what fits into one window only goes there"


async def test_a_configured_window_and_a_guess_are_told_as_what_they_are() -> None:
    async with fakes(openai_app(("mine",), window=0)) as servers:
        async with gateway(servers[0] | {"window": 6000}) as url:
            row = (await rows(url))["mine"]
            assert (row["context_length"], row["window_source"]) == (6000, "configured")
        async with gateway(servers[0]) as url:
            row, reply = (await rows(url))["mine"], await chat(url, "mine")
    assert (row["context_length"], row["window_source"]) == (window_told(reply), "guessed")


async def test_a_choice_has_the_window_of_the_models_that_take_tools_when_any_does() -> None:
    """Agents send tools: a window that only a model without them has would be none for them."""
    models = [FakeModel("big:7b", window=32768, capabilities=("chat",)), FakeModel("able:7b", window=8192)]
    embedder = FakeModel("nomic-embed-text", window=65536, capabilities=("embeddings",))
    async with fakes(ollama.app(Fake([*models, embedder]))) as servers, gateway(*servers) as url:
        listed = await rows(url)
        reply = await chat(url, "auto", tools=[TOOL], stream=True)
    assert listed["auto"]["context_length"] == window_told(reply) == 8192
    assert listed["big:7b"]["context_length"] == 32768


async def test_slots_share_the_window_of_the_real_server(llama_factory: LlamaFactory) -> None:
    server = await llama_factory(n_ctx=2048, parallel=2)
    async with gateway({"endpoint": server.url}) as url:
        listed = await rows(url)
        reply = await chat(url, "claude-local-smol", max_tokens=4)
    assert listed["smol"]["context_length"] == listed["auto"]["max_input_tokens"] == window_told(reply) == 1024
    assert reply.headers["x-turnout-model"] == "smol"


async def test_both_sdks_ask_by_canonical_name_and_by_alias_whole_and_streamed() -> None:
    app = openai_app((CODER,))
    async with fakes(app) as servers, gateway(*servers) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as one:
            whole = await one.chat.completions.create(model=CANONICAL, messages=QUESTION)  # type: ignore[arg-type]
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x") as other:
            picked = [model.id async for model in other.models.list() if model.id.startswith("claude")]
            assert (await other.models.retrieve(picked[0])).max_input_tokens == 8192
            async with other.messages.stream(model=picked[0], messages=QUESTION, max_tokens=9) as stream:  # type: ignore[arg-type]
                said = await stream.get_final_text()
    assert whole.choices[0].message.content == said
    assert picked[0] == f"claude-local-{CANONICAL}"
    assert {body["model"] for body in app.state.fake.seen} == {CODER}


async def test_an_id_that_looks_like_an_alias_is_meant_as_it_is() -> None:
    app = openai_app(("claude-local-mine", "mine"))
    async with fakes(app) as servers, gateway(*servers) as url:
        listed = await rows(url)
        reply = await chat(url, "claude-local-mine")
    assert reply.headers["x-turnout-model"] == "claude-local-mine"
    assert [name for name in listed if name.startswith("claude-local-mine")] == ["claude-local-mine"]


NAMES = {CODER: CODER, CANONICAL: CODER, "llama-3.1-8b-instruct": "llama-3.1-8b-instruct"}


@pytest.mark.parametrize(
    ("patterns", "open_names"),
    [
        ((CODER,), (CODER, CANONICAL)),
        ((CODER.lower(),), (CODER, CANONICAL)),
        ((CANONICAL,), (CODER, CANONICAL)),
        (("qwen2.5-coder",), (CODER, CANONICAL)),
        (("qwen2.5*",), (CODER, CANONICAL)),
        (("qwen/*",), (CODER, CANONICAL)),
        (("*@s0",), tuple(NAMES)),
        ((f"claude-local-{CANONICAL}",), (CODER, CANONICAL)),
        (("claude-local-*",), ()),
        (("llama*",), ("llama-3.1-8b-instruct",)),
        (("auto",), ()),
    ],
)
async def test_a_key_opens_a_model_by_all_of_its_names_or_by_none(
    patterns: tuple[str, ...], open_names: tuple[str, ...], data_dir: Path
) -> None:
    path = keys.keys_path(data_dir)
    with keys.changing(path) as known:
        changed, token = keys.add(known, "ci", keys.Limits(models=patterns), 1.0)
        keys.write_keys(path, changed)
    app = openai_app((CODER, "llama-3.1-8b-instruct"))
    state: State = app.state.fake
    async with fakes(app) as servers, gateway(*servers, key_file=path) as url:
        listed = await rows(url, token)
        for name, model in NAMES.items():
            status = 200 if name in open_names else 403
            for spelled in (name, name.upper(), f"{name}@s0", f"claude-local-{name}"):
                assert (await chat(url, spelled, token)).status == status, (spelled, patterns)
            assert (name in listed) is (name in open_names)
            assert all(body["model"] == model for body in state.seen)
            state.seen.clear()
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{url}/v1/models/{name}", headers={"x-api-key": token}) as reply:
                    assert reply.status == (200 if status == 200 else 404)
                async with session.post(
                    f"{url}/v1/completions", json={"model": name, "prompt": "x"}, headers={"x-api-key": token}
                ) as reply:
                    assert (reply.status == 403) is (status == 403), await reply.text()
    assert json.dumps(list(listed)).count("llama") == (2 if "llama-3.1-8b-instruct" in open_names else 0)


async def test_a_key_for_one_build_never_reaches_another_by_the_name_they_share(data_dir: Path) -> None:
    path = keys.keys_path(data_dir)
    with keys.changing(path) as known:
        changed, token = keys.add(known, "ci", keys.Limits(models=("qwen2.5-coder-32b:q4*",)), 1.0)
        keys.write_keys(path, changed)
    small, large = openai_app(("qwen2.5-coder-32b:q4_k_m",)), openai_app(("qwen2.5-coder-32b:q8_0",))
    async with fakes(large, small) as servers, gateway(*servers, key_file=path) as url:
        small.state.fake.fault = "error"
        reply = await chat(url, CANONICAL, token)
        listed = await rows(url, token)
    assert reply.status == 502
    assert large.state.fake.seen == []
    assert [name for name in listed if "q8" in name] == []
