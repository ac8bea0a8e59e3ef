"""llama-swap beyond the common behaviours: what is no model, whose servers run, and the feed."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.backends.served import case_of
from tests.fakes.base import Fake, FakeModel
from turnout.backends import BY_KIND, llamaswap
from turnout.backends.base import child_url
from turnout.errors import ServerFailedError, UnknownModelError
from turnout.guard.network import Reply
from turnout.types import Endpoint, Health

TWO = ("qwen2.5-coder-7b-instruct", "llama-3.1-8b-instruct")
OPENAI_ROW = {"object": "model", "created": 1, "owned_by": "llama-swap", "status": {"value": "unloaded"}}


def fake_of_two(**fields: object) -> Fake:
    return Fake(models=[FakeModel(TWO[0]), FakeModel(TWO[1], resident=False)], **fields)  # type: ignore[arg-type]


async def test_its_own_servers_are_named() -> None:
    fake = fake_of_two()
    fake.models[1].resident = True
    async with case_of("llamaswap", fake) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
        assert found.children == ("http://127.0.0.1:5800", "http://127.0.0.1:5801")
        assert found.capacity == 2
        assert case.fake.requests == [("GET", "/v1/models"), ("GET", "/running")]


async def test_a_model_that_another_machine_serves_is_noted_and_is_no_child() -> None:
    async with case_of("llamaswap", fake_of_two(options={"proxies": {TWO[0]: "http://10.0.0.9:8000"}})) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
    assert found.children == ()
    assert found.notes == ("a model of its is served at http://10.0.0.9:8000, not by a process of its own",)
    assert found.capacity == 1


@pytest.mark.parametrize(
    ("parent", "told", "child"),
    [
        ("http://127.0.0.1:8080", "http://localhost:5800", "http://127.0.0.1:5800"),
        ("http://10.0.0.5:8080", "http://127.0.0.1:5800/v1", "http://10.0.0.5:5800"),
        ("http://10.0.0.5:8080", "http://10.0.0.5:5800", "http://10.0.0.5:5800"),
        ("http://[::1]:8080", "http://[::1]:5800", "http://[::1]:5800"),
        ("unix:/run/swap.sock", "http://localhost:5800", "http://127.0.0.1:5800"),
        ("http://10.0.0.5:8080", "http://10.0.0.6:5800", ""),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", ""),
        ("http://127.0.0.1:8080", "http://127.0.0.1", ""),
        ("http://127.0.0.1:8080", "http://127.0.0.1:99999", ""),
        ("http://127.0.0.1:8080", "file:///etc/passwd", ""),
        ("http://127.0.0.1:8080", "", ""),
    ],
)
def test_a_child_is_on_its_parents_machine(parent: str, told: str, child: str) -> None:
    assert child_url(Endpoint("box", "llamaswap", parent), told) == child


async def test_peers_are_remote_and_choices_are_no_models() -> None:
    rows = [
        {"id": "auto-coder", **OPENAI_ROW, "meta": {"llamaswap": {"type": "selector", "targets": [TWO[0]]}}},
        {"id": "night", **OPENAI_ROW, "meta": {"llamaswap": {"type": "profile"}}},
        {"id": "coder", **OPENAI_ROW, "meta": {"llamaswap": {"type": "alias", "modelID": TWO[0]}}},
        {"id": "old/peer", **OPENAI_ROW, "meta": {"llamaswap": {"peerID": "old"}}},
    ]
    async with case_of("llamaswap", fake_of_two(options={"extra_rows": rows})) as case:
        status = await case.look()
    assert {model.id for model in status.models} == {*TWO, "coder"}
    assert [name for name, _ in status.excluded] == ["old/peer"]
    assert status.notes == ("passes requests for 1 of its models to other machines (peers)",)


async def test_what_runs_is_told_by_its_processes() -> None:
    async with case_of("llamaswap", fake_of_two(options={"state": "starting"})) as case:
        status = await case.look()
    assert status.health is Health.ONLINE
    assert status.reason == f"starting {TWO[0]}"
    assert [model.resident for model in status.models] == [False, False]


async def test_the_window_is_read_from_the_command_where_the_list_has_none() -> None:
    async with case_of("llamaswap", fake_of_two(options={"commands": True})) as case:
        running, stopped = (await case.look()).models
    assert (running.window, stopped.window) == (8192, 0)
    assert running.capabilities == frozenset()


@pytest.mark.parametrize(
    ("command", "window"),
    [
        ("llama-server -m m.gguf -c 4096", 4096),
        ("llama-server --ctx-size 4096 --parallel 4", 1024),
        ("llama-server --ctx-size 4096 --parallel 4 --kv-unified", 4096),
        ("vllm serve m --max-model-len 2048 # a comment", 2048),
        ("llama-server -m m.gguf", 0),
        ("llama-server -c -1", 0),
        ("llama-server -c 4096 --alias 'a", 0),
        ("llama-server -c 99999999999999999999", 0),
        ("", 0),
    ],
)
def test_windows_in_commands(command: str, window: int) -> None:
    assert llamaswap._window_of(command) == window


def test_a_version_that_tells_no_build_is_known_by_its_list() -> None:
    listed = Reply(200, {}, json.dumps({"data": [{"id": "m", **OPENAI_ROW}]}).encode())
    found = BY_KIND["llamaswap"].identify({"/v1/models": listed, "/api/version": Reply(404, {}, b"404 page not found")})
    assert found is not None
    assert "owned by llama-swap" in found.evidence


async def test_it_is_known_by_its_build_when_it_lists_nothing() -> None:
    async with case_of("llamaswap", Fake(models=[])) as case:
        status = await case.look()
    assert (status.endpoint.kind, status.health, status.reason) == ("llamaswap", Health.ONLINE, "has no model")


async def test_loading_and_unloading_name_the_model_in_the_path() -> None:
    fake = Fake(models=[FakeModel("org/some model", resident=False)])
    async with case_of("llamaswap", fake) as case:
        endpoint, model = replace(case.endpoint(), url=f"{case.url}/v1"), await case.model()
        told: list[str] = []
        await case.backend.load(case.client, endpoint, model, told.append)
        assert fake.requests[-1] == ("GET", "/upstream/org/some model/")
        assert told[-1] == "org/some model is loaded"
        await case.backend.unload(case.client, endpoint, model)
        assert fake.requests[-1] == ("POST", "/api/models/unload/org/some model")
        assert not fake.models[0].resident


async def test_a_model_that_does_not_start_is_no_success() -> None:
    fake = fake_of_two()
    async with case_of("llamaswap", fake) as case:
        model = await case.model()
        with pytest.raises(UnknownModelError):
            await case.backend.load(case.client, case.endpoint(), replace(model, id="nobody"), lambda _: None)
        fake.fault = "error"
        with pytest.raises(ServerFailedError, match="exited prematurely"):
            await case.backend.load(case.client, case.endpoint(), model, lambda _: None)


async def test_the_feed_says_what_changed() -> None:
    fake = fake_of_two(key="secret")
    async with case_of("llamaswap", fake) as case:
        first, second = (await case.look()).models
        feed = case.backend.changes(case.client, case.endpoint())
        assert feed is not None
        async with aclosing(feed):
            change = asyncio.ensure_future(anext(feed))
            await asyncio.wait_for(_asked(fake, ("GET", "/api/events")), 5)
            await case.backend.unload(case.client, case.endpoint(), first)
            assert await asyncio.wait_for(change, 5) == f"{TWO[0]} stopped"
            await case.backend.load(case.client, case.endpoint(), second, lambda _: None)
            assert await asyncio.wait_for(anext(feed), 5) == f"{TWO[1]} ready"


async def _asked(fake: Fake, request: tuple[str, str]) -> None:
    while request not in fake.requests:
        await asyncio.sleep(0)
