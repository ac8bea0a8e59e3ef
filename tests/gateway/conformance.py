"""Every client format before every backend, behaviour by behaviour: the table in docs/wire.md.

``python -m tests.gateway.conformance`` runs it and writes the table; ``test_conformance.py`` compares. A cell is *yes*,
or what is lost, or why it is refused. A behaviour that is none of them fails: a silent drop is no outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from tests.backends.behaviours import kind_of
from tests.fakes import FAKES
from tests.fakes.base import (
    ANSWER_TOKENS,
    ARGUMENTS,
    PROMPT_TOKENS,
    SECOND,
    STRUCTURED,
    THOUGHT,
    TOOL,
    WORDS,
    Fake,
    FakeModel,
    running,
)
from tests.gateway.callers import NAMES, PNG, RESULT, Caller, Heard, Question, Refused, callers
from tests.servers import LlamaServer, start_llama
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import create_app
from turnout.gateway.app import running as serving

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"
BEGIN, END = "<!-- conformance -->", "<!-- end of conformance -->"
REAL = "llama.cpp, for real"
BACKENDS = (*FAKES, REAL)
ABLE = ("chat", "tools", "vision", "thinking")
Cell = Callable[["Case", Caller], Awaitable[str]]


@dataclass
class Case:
    """One backend behind a gateway.

    Attributes:
        model: the id that is asked for.
        cannot: behaviours that the backend does not offer, with the reason.
        fake: its state, None for the real server.
    """

    url: str
    model: str
    cannot: Mapping[str, str]
    fake: Fake | None = None
    real: LlamaServer | None = None

    def question(self, **fields: object) -> Question:
        asked = Question(self.model, most=0 if self.fake else 12)
        return replace(asked, **fields)  # type: ignore[arg-type]

    def sent(self) -> str:
        """What the fake was sent last."""
        assert self.fake is not None
        return json.dumps(self.fake.seen[-1])

    def is_answer(self, heard: Heard) -> bool:
        """Whether this is the text that the backend says: a fake says the same to everybody."""
        return heard.text == "".join(WORDS) if self.fake else bool(heard.text)

    async def freed(self) -> None:
        """Wait until the backend works on nothing for us."""
        if self.fake is not None:
            await asyncio.wait_for(self.fake.closed.wait(), 5)
            return
        assert self.real is not None
        async with aiohttp.ClientSession() as session, asyncio.timeout(5):
            while await self.real.busy(session):
                await asyncio.sleep(0.01)


async def _both(case: Case, caller: Caller, **fields: object) -> tuple[Heard, Heard]:
    """The answer whole, and streamed."""
    whole = await caller.ask(case.question(**fields))
    return whole, await caller.ask(case.question(**fields, stream=True))


async def text(case: Case, caller: Caller) -> str:
    assert case.is_answer(await caller.ask(case.question()))
    return ""


async def stream(case: Case, caller: Caller) -> str:
    heard = await caller.ask(case.question(stream=True))
    assert case.is_answer(heard)
    if "stream" in case.cannot:
        assert heard.pieces == 1
        return f"lost: it comes in one piece, since {case.cannot['stream']}"
    assert heard.pieces > 1
    return ""


async def tools(case: Case, caller: Caller) -> str:
    return await _calls(case, caller, "What is the weather in Paris?", (ARGUMENTS,))


async def parallel_tools(case: Case, caller: Caller) -> str:
    return await _calls(case, caller, "What is the weather in Paris and London?", (ARGUMENTS, SECOND))


async def _calls(case: Case, caller: Caller, text: str, wanted: tuple[str, ...]) -> str:
    """Whole, streamed, and the way back with the results."""
    for heard in await _both(case, caller, text=text, tools=True):
        assert [(call.name, call.arguments) for call in heard.calls] == [(TOOL, json.loads(one)) for one in wanted]
        ids = [call.id for call in heard.calls if caller.name != "Ollama chat"]
        assert all(ids)
        assert len(set(ids)) == len(ids)
        assert heard.finish in ("tool_calls", "tool_use", "completed", "stop")
    await caller.ask(case.question(text=text, tools=True, after=tuple(heard.calls)))
    assert all(RESULT + json.loads(one)["city"] in case.sent() for one in wanted)
    return ""


async def images(case: Case, caller: Caller) -> str:
    heard = await caller.ask(case.question(image=True))
    assert case.is_answer(heard)
    assert PNG in case.sent()
    return ""


async def reasoning(case: Case, caller: Caller) -> str:
    for heard in await _both(case, caller, think=True):
        assert case.is_answer(heard)
        if "reasoning" in case.cannot:
            assert not heard.reasoning
        else:
            assert heard.reasoning == "".join(THOUGHT)
    return f"lost: {case.cannot['reasoning']}" if "reasoning" in case.cannot else ""


async def structured(case: Case, caller: Caller) -> str:
    for heard in await _both(case, caller, schema=True, most=0 if case.fake else 40):
        assert list(json.loads(heard.text)) == ["answer"]
    assert case.fake is None or heard.text == STRUCTURED
    return ""


async def usage(case: Case, caller: Caller) -> str:
    for heard in await _both(case, caller):
        told = heard.prompt_tokens, heard.answer_tokens
        assert told == (PROMPT_TOKENS, ANSWER_TOKENS) if case.fake else min(told) > 0
    return ""


async def errors(case: Case, caller: Caller) -> str:
    """Before a stream as before a whole answer: a status, words, and what a program looks for."""
    for streamed in (False, True):
        gone = await _refused(caller, replace(case.question(stream=streamed), model="nobody-has-this"))
        assert (gone.status, "nobody-has-this" in gone.message) == (404, True)
    if case.fake is None:
        long = await _refused(caller, case.question(text="word " * 3000))
        assert (long.status, "2048" in long.message) == (400, True)
        return ""
    for fault, status in (("error", 502), ("busy", 503), ("overflow", 400)):
        if fault in case.cannot:
            continue
        case.fake.fault = fault
        for streamed in (False, True):
            told = await _refused(caller, case.question(stream=streamed))
            assert (told.status, bool(told.message)) == (status, True), told
            if caller.name != "Ollama chat":
                assert bool(told.wait) is (status == 503)
                assert told.code, told
            if fault == "overflow" and "overflow_counts" not in case.cannot:
                assert str(case.fake.models[0].window) in told.message
        case.fake.fault = ""
    return ""


async def _refused(caller: Caller, question: Question) -> Refused:
    try:
        heard = await caller.ask(question)
    except Refused as refused:
        return refused
    raise AssertionError(f"this should have failed: {heard}")


async def cancel(case: Case, caller: Caller) -> str:
    if "cancel" in case.cannot:
        return f"no: {case.cannot['cancel']}"
    if case.fake is not None:
        case.fake.fault = "stall"
        case.fake.closed.clear()
    await caller.leave(case.question(most=0 if case.fake else 500))
    await case.freed()
    if case.fake is not None:
        case.fake.fault = ""
    return ""


# Errors last: an endpoint that has failed is looked at with other eyes.
BEHAVIOURS: tuple[Cell, ...] = (
    text, stream, tools, parallel_tools, images, reasoning, structured, usage, cancel, errors,
)  # fmt: skip
COLUMNS = tuple(behaviour.__name__ for behaviour in BEHAVIOURS)


async def cell(case: Case, caller: Caller, behaviour: Cell) -> str:
    """What the table says; raises what went wrong when the outcome is none of the three."""
    name = behaviour.__name__
    try:
        return await behaviour(case, caller) or "yes"
    except Refused as refused:
        if refused.status != 400 or name not in case.cannot:
            raise
        return f"refused: {case.cannot[name]}"


@asynccontextmanager
async def case_of(backend: str) -> AsyncIterator[Case]:
    async with AsyncExitStack() as stack:
        if backend == REAL:
            server = await asyncio.to_thread(start_llama, n_ctx=2048)
            stack.callback(server.stop)
            url = await stack.enter_async_context(gateway(server.url))
            yield Case(url, "smol", REAL_CANNOT, real=server)
            return
        dialect = FAKES[backend]
        models = [FakeModel(capabilities=ABLE), FakeModel("llama-3.1-8b-instruct", capabilities=ABLE)]
        fake = Fake(models[: getattr(dialect, "MODELS", 1)])
        at = await stack.enter_async_context(running(dialect.app(fake), server_header=dialect.SERVER_HEADER))
        url = await stack.enter_async_context(gateway(at))
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as reply:
            first = (await reply.json())["data"][0]
        assert first["owned_by"] == kind_of(backend), first
        lacks = {**dialect.LACKS, **CANNOT.get(backend, {})}
        if "tools" in lacks:
            lacks["parallel_tools"] = lacks["tools"]
        yield Case(url, first["id"], lacks, fake)


# Beside ``LACKS`` of a fake, which is about the behaviours of a backend.
CANNOT = {"gpt4all": {"images": "it takes text alone"}}
_PLAIN = "the model of the tests"
REAL_CANNOT = {
    "tools": f"{_PLAIN} has no template for tools",
    "parallel_tools": f"{_PLAIN} has no template for tools",
    "images": f"{_PLAIN} reads no images",
    "reasoning": f"{_PLAIN} does not think",
}


@asynccontextmanager
async def gateway(server: str) -> AsyncIterator[str]:
    custom = [{"name": "box", "endpoint": server, "api_style": "native", "max_retries": 0}]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    async with open_router(config) as router, serving(create_app(router)) as (_, url):
        yield url


Cells = dict[tuple[str, str], str]


async def run(backend: str) -> Cells:
    """Every cell of one backend, by client and behaviour."""
    async with case_of(backend) as case, callers(case.url) as clients:
        made: Cells = {}
        for behaviour in BEHAVIOURS:
            for name in NAMES:
                try:
                    made[name, behaviour.__name__] = await cell(case, clients[name], behaviour)
                except Exception as error:
                    error.add_note(f"{name} before {backend}: {behaviour.__name__}")
                    raise
        return made


HEAD = """\
## What works before which server

Made by `python -m tests.gateway.conformance`; `tests/gateway/test_conformance.py` fails when a run says something else.
The official Python clients of the four formats ask each kind of server, by its fake in `tests/fakes`, and the real
llama.cpp server. Tools: calls whole and streamed, with ids of their own, and their results on the way back. Usage: the
server's own counts, whole and streamed. Cancel: the client leaves in the middle of a stream and the server is freed.
Errors: an unknown model; a failure, busy with `Retry-After` and an overflow with the number where the server has them
([services.md](services.md)); before a stream as before a whole answer. *yes*: nothing is lost. Anything else stands
below: lost, or refused with 400 and the reason; nothing is dropped without a word.
"""
ALL = "all four"


def page(cells: Mapping[str, Cells]) -> str:
    """The part of docs/wire.md; what is the same stands in one row."""
    notes: dict[str, int] = {}
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for backend, made in cells.items():
        by_client = {name: tuple(made[name, column] for column in COLUMNS) for name in NAMES}
        same = len(set(by_client.values())) == 1
        for client, row in [(ALL, by_client[NAMES[0]])] if same else by_client.items():
            rows.setdefault((client, row), []).append(backend)
    lines = ["| server | client | " + " | ".join(column.replace("_", " ") for column in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for (client, row), backends in rows.items():
        told = " | ".join(_cell(said, notes) for said in row)
        lines.append(f"| {', '.join(backends)} | {client} | {told} |")
    listed = [f"{number}. {note}" for note, number in notes.items()]
    return "\n".join([HEAD, *lines, "", *listed]) + "\n"


def _cell(said: str, notes: dict[str, int]) -> str:
    kind, colon, why = said.partition(": ")
    return f"{kind} {notes.setdefault(why, len(notes) + 1)}" if colon else said


def written() -> str:
    """What the document has."""
    return PAGE.read_text("utf-8").partition(f"{BEGIN}\n")[2].partition(END)[0]


async def main() -> None:
    """Run everything and write the document."""
    made = page(dict(zip(BACKENDS, await asyncio.gather(*map(run, BACKENDS)), strict=True)))
    text = PAGE.read_text("utf-8")
    head, _, tail = text.partition(f"{BEGIN}\n")
    PAGE.write_text(f"{head}{BEGIN}\n{made}{END}{tail.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["TURNOUT_DATA_DIR"] = home
        asyncio.run(main())
