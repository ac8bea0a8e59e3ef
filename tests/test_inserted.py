"""Code context in conversations: gathered once for each new question, and sent again as it was (SPEC CODE-2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.base import running
from tests.fakes.llm import openai_app
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.code.provider import CodeContext
from turnout.config import LoadedConfig
from turnout.inserted import asks_anew
from turnout.router import Router
from turnout.types import (
    ChatRequest,
    ExecutionResult,
    FileContext,
    Message,
    Principal,
    TaskCategory,
    Text,
    ToolCall,
    ToolResult,
    message,
)


class Counted:
    """Code context that says how many were asked for before it, from whoever is told."""

    def __init__(self, provider: str = "serena, text search") -> None:
        self.asked: list[str] = []
        self.provider = provider

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path, room: int
    ) -> CodeContext | None:
        self.asked.append(query)
        return CodeContext(self.provider, type_information=f"fact {len(self.asked)}")


class Talk:
    """A router on one fake server, with code from a ``Counted``."""

    def __init__(self, router: Router, code: Counted, seen: list[dict[str, object]], workspace: str) -> None:
        self.router, self.code, self._seen, self._workspace = router, code, seen, workspace
        router._code = code

    async def say(self, *messages: Message, principal: str = "local", **more: object) -> ExecutionResult:
        request = ChatRequest(messages, workspace=self._workspace, **more)  # type: ignore[arg-type]
        return await collect(self.router.route(request, Principal(principal)))

    @property
    def sent(self) -> list[list[object]]:
        """The contents of each request's messages."""
        return [[m["content"] for m in body["messages"]] for body in self._seen]  # type: ignore[attr-defined]


@pytest.fixture
async def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Talk]:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    async with AsyncExitStack() as stack:
        app = openai_app(window=16_384)
        url = await stack.enter_async_context(running(app))
        router = await stack.enter_async_context(open_router(load_any(config_of(url))))
        yield Talk(router, Counted(), app.state.fake.seen, str(tmp_path))


def config_of(url: str) -> dict[str, object]:
    return {"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}}


ONE, TWO = message("user", "What does total() do?"), message("user", "And average()?")
SAID = message("assistant", "It adds.")
CALL = Message("assistant", (ToolCall("c1", "read", "{}"),))
RESULT = Message("tool", (ToolResult("c1", "def total(): ..."),))


async def test_a_question_has_its_code_in_every_later_turn(talk: Talk) -> None:
    await talk.say(ONE)
    await talk.say(ONE, SAID, TWO)
    await talk.say(message("system", "Today is another day."), ONE, message("assistant", "It sums."), TWO, SAID, ONE)
    first, second, third = talk.sent
    assert first == ["What does total() do?\n\n## Type Information\nfact 1"]
    assert second[0] == first[0]
    assert second[2] == "And average()?\n\n## Type Information\nfact 2"
    assert third[1:4:2] == [first[0], second[2]]
    assert third[5] == "What does total() do?\n\n## Type Information\nfact 3"
    assert talk.code.asked == [ONE.text, TWO.text, ONE.text]


async def test_a_tools_result_has_nothing_gathered_and_the_question_keeps_its_code(talk: Talk) -> None:
    await talk.say(ONE)
    await talk.say(ONE, CALL, RESULT)
    anthropic = Message("user", (ToolResult("c1", "def total(): ..."), Text("a reminder")))
    await talk.say(ONE, CALL, anthropic)
    assert talk.code.asked == [ONE.text]
    assert {sent[0] for sent in talk.sent} == {"What does total() do?\n\n## Type Information\nfact 1"}


async def test_conversations_of_others_and_of_no_workspace_have_none_of_it(talk: Talk, tmp_path: Path) -> None:
    await talk.say(ONE)
    await talk.say(ONE, CALL, RESULT, principal="another")
    await collect(talk.router.route(ChatRequest((ONE, CALL, RESULT))))
    other = ChatRequest((ONE, CALL, RESULT), workspace=str(tmp_path / "other"))
    await collect(talk.router.route(other))
    await talk.say(message("user", "Something before."), SAID, ONE, CALL, RESULT)
    assert [sent[0] for sent in talk.sent[1:4]] == [ONE.text] * 3
    assert talk.sent[4][2] == ONE.text


async def test_an_exact_model_gets_the_clients_own_words(talk: Talk) -> None:
    await talk.say(ONE)
    model = talk.router.pool[0].model.id
    await talk.say(ONE, SAID, TWO, model=model)
    assert talk.sent[1] == [ONE.text, SAID.text, TWO.text]


def test_who_asks_anew() -> None:
    request = ChatRequest((ONE,))
    assert asks_anew(request)
    assert asks_anew(replace(request, messages=(ONE, message("assistant", "It"))))  # a beginning of the answer
    assert not asks_anew(replace(request, messages=(ONE, CALL, RESULT)))
    assert not asks_anew(replace(request, messages=()))


async def test_a_session_has_it_in_the_next_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "shop.py").write_text("def total(cart):\n    return sum(cart)\n")
    app = openai_app(window=16_384)
    async with running(app) as url:
        for question in ("What does `total` do?", "And why?"):
            async with LocalLLMRouter(tmp_path, config_of(url), session_id="shop") as router:
                await router.route(question)
            (tmp_path / "shop.py").write_text("def total(cart):\n    return 0\n")
    first, second = ([m["content"] for m in body["messages"]] for body in app.state.fake.seen)
    assert "return sum(cart)" in first[1]
    assert second[:2] == first
    assert second[3] == "And why?"


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("serena, text search", None),
        ("text search", "analysis asks for code context of Serena, and there is none: text search alone answered"),
    ],
)
async def test_mandatory_serena_is_missed_aloud(provider: str, said: str | None, talk: Talk) -> None:
    loaded = load_any({"task_routing": {"analysis": {"min_context": 1}}})
    assert isinstance(loaded, LoadedConfig)
    talk.router._config = loaded.config
    talk.code.provider = provider
    result = await talk.say(ONE, category=TaskCategory.ANALYSIS)
    assert [n.text for n in result.notices if n.code == "no_code_context"] == ([said] if said else [])
    result = await talk.say(ONE, CALL, RESULT, category=TaskCategory.ANALYSIS)
    assert not [n for n in result.notices if n.code == "no_code_context"]
