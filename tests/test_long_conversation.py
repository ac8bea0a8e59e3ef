"""Sixty turns through a small window of the real llama.cpp server: what was sent is read at the server's side.

Between Turnout and the server stands a proxy of the test's own, which keeps every request's bytes and the server's own
counts. The longer versions: `make test-heavy`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.fakes.base import running as serving
from tests.servers import LlamaFactory
from turnout import summary
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.context.compaction import STUB_MARK, SUMMARY_MARK
from turnout.context.store import open_store
from turnout.gateway.app import create_app, running
from turnout.types import ChatRequest, Message, message

TURNS = 60
CHAT = "/v1/chat/completions"
Row = dict[str, object]


@dataclass(frozen=True)
class Sent:
    """One chat as it reached the server, what the server said of it, and what it answered."""

    messages: tuple[Row, ...]
    prompt_tokens: int
    cached_tokens: int
    answer: str

    @property
    def compacted(self) -> bool:
        return any(STUB_MARK in str(m["content"]) or str(m["content"]).startswith(SUMMARY_MARK) for m in self.messages)


class Recorder:
    """Hands everything on to one server and keeps what it saw.

    It ends answers after ``most`` tokens, as ``llama-server -n`` does, so that a test of many turns ends soon.
    """

    def __init__(self, upstream: str, most: int) -> None:
        self._upstream, self._most = upstream, most
        self.sent: list[Sent] = []
        self.refused: list[Row] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])
        # A connection of its own each time: the server closes idle ones.
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as self._client,
            serving(app, server_header="llama.cpp") as url,
        ):
            yield url

    async def _answer(self, request: Request) -> Response:
        body, path = await request.body(), request.url.path
        chat = json.loads(body) if path == CHAT else {}
        if chat:
            body = json.dumps(chat | {"max_tokens": min(self._most, chat.get("max_tokens") or self._most)}).encode()
        kind = {"Content-Type": "application/json"}
        async with self._client.request(request.method, self._upstream + path, data=body, headers=kind) as reply:
            answer = await reply.read()
        if chat:
            self._keep(chat, reply.status, answer)
        return Response(answer, reply.status, media_type=reply.headers.get("Content-Type"))

    def _keep(self, chat: Row, status: int, answer: bytes) -> None:
        if status != 200:
            self.refused.append(json.loads(answer))
            return
        lines = answer.decode().splitlines() if chat.get("stream") else [f"data: {answer.decode()}"]
        values = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        (usage,) = [value["usage"] for value in values if value.get("usage")]
        messages = chat["messages"]
        assert isinstance(messages, list)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        choices = [value["choices"][0] for value in values if value.get("choices")]
        answer_text = "".join(c.get("delta", c.get("message")).get("content") or "" for c in choices)
        self.sent.append(Sent(tuple(messages), usage["prompt_tokens"], cached, answer_text))


def text_of(row: Row) -> str:
    content = row.get("content") or ""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content)
    return str(content)


def calls_of(row: Row) -> list[tuple[str, str, str]]:
    calls = row.get("tool_calls") or []
    assert isinstance(calls, list)
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def plain(row: Row) -> object:
    """What of a message matters: a client's own bytes and ours may write it differently."""
    return row["role"], text_of(row), calls_of(row), row.get("tool_call_id", "")


def check_prefixes(sent: Sequence[Sent], *, compactions: tuple[int, int]) -> None:
    """Where nothing was compacted anew, the server had the whole request before in its cache already."""
    moved = 0
    for before, now in pairwise(sent):
        same = [plain(m) for m in now.messages[: len(before.messages)]] == [plain(m) for m in before.messages]
        if same:
            # Where two messages meet, a text may be read as other tokens than it was written as.
            assert now.cached_tokens >= before.prompt_tokens - 4
        else:
            moved += 1
            assert now.compacted
    print(f"{moved} of {len(sent) - 1} requests moved the prefix, {max(s.prompt_tokens for s in sent)} tokens at most")
    least, most = compactions
    assert least <= moved <= most


def check_pairs(messages: Sequence[Row]) -> None:
    """Every call with its result behind it, every result with its call before it."""
    asked: list[str] = []
    given: list[str] = []
    for m in messages:
        asked += [call_id for call_id, _, _ in calls_of(m)]
        if m["role"] == "tool":
            assert m["tool_call_id"] in asked
            given.append(str(m["tool_call_id"]))
    assert sorted(asked) == sorted(given)
    assert len(set(given)) == len(given)


def code(n: int) -> str:
    """A fact of turn ``n`` that nothing else says."""
    return f"{COLOURS[n % 8]} {ANIMALS[n // 8]}"


COLOURS = ("red", "blue", "green", "white", "black", "brown", "pink", "gold")
ANIMALS = ("fox", "cat", "dog", "bear", "wolf", "horse", "duck", "mouse")


def config_for(url: str, folder: Path, **context: object) -> dict[str, object]:
    return {
        "custom_endpoints": [{"name": "real", "endpoint": url}],
        "discovery": {"enabled": False},
        "security": {"audit_log_path": str(folder / "audit.log")},
        "context": context,
    }


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


HEAVY = (pytest.mark.heavy, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("window", "words", "compactions"),
    [pytest.param(512, 2, (4, 14), id="short"), pytest.param(2048, 60, (3, 10), id="long", marks=HEAVY)],
)
async def test_a_session_of_sixty_turns(
    llama_factory: LlamaFactory, tmp_path: Path, data_dir: Path, window: int, words: int, compactions: tuple[int, int]
) -> None:
    server = await llama_factory(n_ctx=window)
    recorder = Recorder(server.url, most=3 + words // 4)
    said: list[str] = []
    async with (
        recorder.running() as url,
        LocalLLMRouter(None, config_for(url, tmp_path), session_id="long") as router,
    ):
        for n in range(TURNS):
            question = f"Note: {code(n)}. Ok?" + " word" * words
            result = await router.execute(question)
            sent = recorder.sent[n]
            texts = [text_of(m) for m in sent.messages]
            said.append(question)
            assert texts[0] == text_of(recorder.sent[0].messages[0])
            assert sent.messages[0]["role"] == "system"
            assert "make no external calls" in texts[0]
            assert sent.messages[-1]["role"] == "user"
            assert texts[-10:] == [texts[0], *said][-10:], "the facts of the last turns, and the question"
            assert sent.prompt_tokens + 3 <= window
            said.append(result.text)
    assert [m["role"] for m in recorder.sent[-1].messages[1:4]] == ["user", "assistant", "user"]
    check_prefixes(recorder.sent, compactions=compactions)
    store = open_store(data_dir / "sessions.db")
    session = store.load("local", "long")
    store.close()
    assert session is not None
    assert [m.message.text for m in session.messages] == said, "the original is still there"
    assert session.compactions >= compactions[0]


def turn(n: int, scale: int) -> list[Row]:
    """What an agent adds in one turn: a task, and mostly one or two calls at once with their outputs."""
    rows: list[Row] = [{"role": "user", "content": f"Task: {code(n)}. Go on."}]
    number = (1, 0, 2, 0, 0)[n % 5]
    if not number:
        return rows
    calls = [
        {
            "id": f"call_{n}_{c}",
            "type": "function",
            "function": {"name": "read_file", "arguments": f'{{"path":"p{n}"}}'},
        }
        for c in range(number)
    ]
    rows.append({"role": "assistant", "content": None, "tool_calls": calls})
    for c, call in enumerate(calls):
        output = f"line of {code(n)}\n" * (scale * (10 if n % 7 == 3 else 1 + (n + c) % 3))
        rows.append({"role": "tool", "tool_call_id": call["id"], "content": output})
    return rows


SYSTEM = {"role": "system", "content": "You serve ship Aurelia. The captain is Imre Tolnay."}


@pytest.mark.parametrize(
    ("window", "scale", "compactions"),
    [pytest.param(512, 1, (5, 15), id="short"), pytest.param(2048, 6, (3, 15), id="long", marks=HEAVY)],
)
async def test_an_agent_that_resends_sixty_turns_with_tools(
    llama_factory: LlamaFactory, tmp_path: Path, window: int, scale: int, compactions: tuple[int, int]
) -> None:
    server = await llama_factory(n_ctx=window)
    recorder = Recorder(server.url, most=4)
    context = {"max_tool_output_tokens": 40, "preserve_recent_tool_calls": 2, "preserve_recent_messages": 4}
    history: list[Row] = [SYSTEM]
    async with (
        recorder.running() as url,
        open_router(load_any(config_for(url, tmp_path, **context))) as router,
        running(create_app(router)) as (_, gate),
        aiohttp.ClientSession() as client,
    ):
        for n in range(TURNS):
            rows = turn(n, scale)
            history += rows
            body = {"model": "auto", "messages": history, "max_tokens": 4}
            async with client.post(f"{gate}{CHAT}", json=body) as reply:
                answer = await reply.json()
                assert reply.status == 200, answer
            sent = recorder.sent[n]
            messages = [plain(m) for m in sent.messages]
            assert messages[0] == plain(SYSTEM)
            assert plain(rows[0]) in messages, "the last user message"
            assert messages[-4:] == [plain(m) for m in history[-4:]]
            check_pairs(sent.messages)
            assert sent.prompt_tokens + 4 <= window
            history.append(answer["choices"][0]["message"])
    check_prefixes(recorder.sent, compactions=compactions)
    assert len(recorder.sent[-1].messages) < len(history) / 3


def summary_of(sent: Sent) -> str:
    return next((text for m in sent.messages if (text := text_of(m)).startswith(SUMMARY_MARK)), "")


async def test_a_real_model_writes_the_summary_and_it_stays_as_it_is(
    llama_factory: LlamaFactory, tmp_path: Path
) -> None:
    """One server answers in a small window, another one with the same weights writes: both really, both recorded."""
    answers = Recorder((await llama_factory(n_ctx=768, alias="answers")).url, most=8)
    writes = Recorder((await llama_factory(n_ctx=2048, alias="writes")).url, most=60)
    async with answers.running() as one, writes.running() as other:
        config = config_for(one, tmp_path, summary_timeout=60_000, preserve_recent_messages=4)
        config["custom_endpoints"] = [{"name": "one", "endpoint": one}, {"name": "other", "endpoint": other}]
        async with open_router(load_any(config)) as router:
            history: list[Message] = [message("system", "You keep the log of the ship Aurelia.")]
            after = 0
            while after < 3:  # the turn that is compacted, and two more
                question = f"Note {len(history) // 2}: the {code(len(history))} came aboard at the harbour of Piran."
                history.append(message("user", question + " It weighs twelve stone and eats bread and cheese." * 3))
                request = ChatRequest(tuple(history), model="answers@one")
                result = await collect(router.route(request))
                history.append(message("assistant", result.text))
                after += bool(after or [n for n in result.notices if n.code == "compacted"])
                assert len(history) < 40
    assert answers.refused == writes.refused == []
    (written,) = writes.sent
    asked = "\n".join(map(text_of, written.messages))
    assert code(1) in asked, "the oldest turn was read"
    summaries = [summary_of(sent) for sent in answers.sent]
    assert summaries[:-3] == [""] * (len(summaries) - 3)
    assert summaries[-3] == summaries[-2] == summaries[-1] == f"{SUMMARY_MARK}\n{summary._cleaned(written.answer)}"
    assert len(written.answer) >= summary.LEAST_CHARS
    last = list(map(text_of, answers.sent[-1].messages))
    assert history[1].text not in last
    assert (last[0], last[-1]) == (history[0].text, history[-2].text), "the system prompt and the question"
    check_prefixes(answers.sent, compactions=(1, 1))
