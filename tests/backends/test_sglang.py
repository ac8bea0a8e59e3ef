"""SGLang beyond the common behaviours: what must not be asked, what it was started for, and its key."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send

from tests.backends.behaviours import serving
from tests.fakes import sglang
from tests.fakes.base import Fake, FakeModel, running
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import ContextOverflowError
from turnout.fleet.discovery import Target, look
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import Endpoint, Health


async def test_nobody_has_it_generate_a_token_to_see_whether_it_is_there() -> None:
    async with serving("sglang") as case:
        assert (await case.look()).health is Health.ONLINE
        assert ("GET", "/health") not in case.fake.requests


async def test_a_path_that_hangs_does_not_hide_a_server() -> None:
    app = sglang.app(Fake())

    async def hangs_once(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/api/config":
            await asyncio.Event().wait()
        await app(scope, receive, send)

    async with running(hangs_once) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        status = await look(client, Target(Endpoint("found", "", url)), RouterConfig())
    assert (status.endpoint.kind, status.health) == ("sglang", Health.ONLINE), status.reason


@pytest.mark.parametrize(
    ("able", "options", "told"),
    [
        (("chat",), {}, {"chat"}),
        (("chat", "tools", "thinking", "vision"), {}, {"chat", "tools", "thinking", "vision"}),
        (("embeddings",), {}, {"embeddings"}),
        (("chat", "tools"), {"old": True}, set()),
    ],
)
async def test_it_tells_what_it_was_started_for(
    able: tuple[str, ...], options: dict[str, object], told: set[str]
) -> None:
    async with serving("sglang", Fake([FakeModel(capabilities=able)], options=options)) as case:
        status = await case.look()
    assert status.models[0].capabilities == told
    assert bool(status.notes) is ("vision" in able)


async def test_a_prompt_that_leaves_no_room_for_the_answer_is_named_with_its_own_size() -> None:
    async with serving("sglang", Fake(fault="overflow", options={"answer_too_long": True})) as case:
        with pytest.raises(ContextOverflowError) as caught:
            await case.ask()
    assert (caught.value.prompt_tokens, caught.value.window) == (8292, 8192)


async def test_its_greeting_tells_when_its_list_does_not() -> None:
    app = sglang.app(Fake())

    async def without_list(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {"path": "/nowhere"} if scope.get("path") == "/v1/models" else scope, receive, send)

    async with running(without_list) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        status = await look(client, Target(replace(Endpoint("found", "", url), configured=True)), RouterConfig())
    assert (status.endpoint.kind, status.evidence) == ("sglang", "its greeting")
    assert status.health is Health.DEGRADED
