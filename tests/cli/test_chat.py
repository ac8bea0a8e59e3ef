"""``turnout chat`` at a terminal and from a pipe: a real model, real keys, and what is left on the disk afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.cli.conftest import Fakes, configure, run, run_beside, usual_signals
from tests.cli.typist import ALT_ENTER, CTRL_C, CTRL_D, ENTER, PASTE, PASTED, UP, Typist
from tests.fakes.base import running
from tests.fakes.liar import CHAT, DONE, SSE, Say, event, lying, models
from tests.fakes.llm import WORDS, openai_app
from tests.servers import LlamaServer
from turnout.context.store import Exchange, SessionRecord, StoredMessage, open_store
from turnout.types import message

ANSWER = "".join(WORDS)
JSON = {"Content-Type": "application/json"}
STORY = "Write a very long story about a fox and a crow."


@asynccontextmanager
async def recorded(url: str) -> AsyncIterator[tuple[str, list[dict[str, object]]]]:
    """The server at ``url`` behind another address, and the chats that it is sent."""
    seen: list[dict[str, object]] = []

    async def forward(request: Request) -> Response:
        body = await request.body()
        if request.method == "POST":
            seen.append(json.loads(body))
        reply = await client.request(request.method, url + request.url.path, data=body, headers=JSON)
        return StreamingResponse(reply.content.iter_any(), reply.status, media_type=reply.content_type)

    app = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])
    async with aiohttp.ClientSession() as client, running(app) as address:
        yield address, seen


async def at_terminal(use: Callable[[Typist], None], *args: str) -> str:
    """Use ``turnout chat`` at a terminal, beside servers of this loop; returns all that was shown."""

    def sit() -> str:
        with Typist("chat", *args) as terminal:
            use(terminal)
            return terminal.shown

    return await asyncio.to_thread(sit)


def kept(name: str = "s") -> SessionRecord | None:
    store = open_store(data() / "sessions.db")
    try:
        return store.load("local", name)
    finally:
        store.close()


def texts(name: str = "s") -> list[str]:
    session = kept(name)
    return [m.message.text for m in session.messages] if session else []


def data() -> Path:
    return Path(os.environ["TURNOUT_DATA_DIR"])


def audit() -> list[tuple[str, str | None]]:
    lines = [json.loads(line) for line in (data() / "audit.log").read_text().splitlines()]
    return [(line["phase"], line["error"]) for line in lines]


def sent(body: dict[str, object]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in body["messages"] if m["role"] != "system"]  # type: ignore[attr-defined]


async def test_a_conversation_with_a_real_model(llama: LlamaServer) -> None:
    """Asked, asked again with the history, cancelled, asked again, taken back, left; then resumed by a new process."""
    async with recorded(llama.url) as (url, seen):
        configure(url)

        def first(chat: Typist) -> None:
            chat.prompt()
            answer = chat.ask("Say hello to Anna", r"\nroute: smol @ fake0, level 0 \(primary\)")
            assert len(answer) > 20
            chat.ask("Who was that for?", r"route: smol")
            chat.type(STORY, ENTER)
            chat.see(r"smol @ fake0 answers\n[^\n]{12}")
            chat.type(CTRL_C)
            assert "cancelled: neither the question nor what came of the answer is kept" in chat.prompt()
            chat.ask("Say goodbye", r"route: smol")
            chat.ask("/undo", r"taken back: Say goodbye")
            chat.ask("/context", r"window +2,048 tokens \(known\)")
            chat.type(CTRL_C)
            assert "Ctrl-D or /quit leaves" in chat.prompt()
            chat.type("half a line")
            chat.see("half a line")
            chat.type(CTRL_C, "/quit", ENTER)
            assert chat.end() == 0
            assert chat.shown.count("Ctrl-D or /quit leaves") == 1, "half a line is dropped without a word"

        shown = await at_terminal(first, "--session", "s", "--max-tokens", "300")
        one, two, story, four = map(sent, seen)
        assert [role for role, _ in two] == ["user", "assistant", "user"]
        assert two[0] == one[0] == ("user", "Say hello to Anna")
        assert two[1][1].split()[0] in shown
        assert story[-1] == ("user", STORY)
        assert [text for _, text in four[::2]] == ["Say hello to Anna", "Who was that for?", "Say goodbye"]
        assert texts() == [two[0][1], two[1][1], two[2][1], four[3][1]]
        assert len(seen) == 4
        cancelled = ("end", "cancelled")
        assert audit() == [("start", None), ("end", None)] * 2 + [
            ("start", None),
            cancelled,
            ("start", None),
            ("end", None),
        ]

        def again(chat: Typist) -> None:
            assert "conversation s: 4 messages; you last asked: Who was that for?" in chat.prompt()
            chat.type(UP)
            chat.see("Who was that for\\?")
            chat.type(ENTER)
            assert "route: smol" in chat.prompt()
            chat.type("/quit", ENTER)
            assert chat.end() == 0

        await at_terminal(again, "--session", "s", "--max-tokens", "20")
        assert [text for _, text in sent(seen[4])] == [*texts()[:4], "Who was that for?"]


async def test_ctrl_c_frees_a_real_server(llama: LlamaServer) -> None:
    configure(llama.url)

    def use(chat: Typist) -> None:
        chat.prompt()
        chat.type(STORY, ENTER)
        chat.see(r"smol @ fake0 answers\n[^\n]{12}")
        chat.type(CTRL_C)
        chat.prompt()

    await at_terminal(use, "--max-tokens", "1500")
    async with aiohttp.ClientSession() as client, asyncio.timeout(2):
        while await llama.busy(client):
            await asyncio.sleep(0.02)


async def test_ctrl_c_before_the_first_word_cancels_too() -> None:
    app = openai_app()
    app.state.fake.fault = "hang"
    async with running(app) as url:
        configure(url)

        def use(chat: Typist) -> None:
            chat.prompt()
            chat.type("hello", ENTER)
            while not app.state.fake.seen:  # the question has reached the server
                chat.see("looking for a model")
            chat.type(CTRL_C)
            assert "cancelled: neither" in chat.prompt()
            app.state.fake.fault = ""
            chat.ask("hello again", r"route: ")

        await at_terminal(use, "--session", "s")
        assert sent(app.state.fake.seen[1]) == [("user", "hello again")]
    assert texts() == ["hello again", ANSWER]
    assert audit()[1] == ("end", "cancelled")


async def test_ctrl_c_before_a_server_is_asked_cancels_too() -> None:
    async def hang(_: asyncio.StreamWriter) -> None:
        looked.set()
        await asyncio.Event().wait()

    looked, listed = threading.Event(), models("m")
    routes: dict[str, Say] = {"/v1/models": listed, CHAT: SSE + event("hello") + DONE}
    async with lying(routes) as url:
        configure(url, discovery={"enabled": False, "interval": 1000, "timeout": 3000})

        def use(chat: Typist) -> None:
            chat.prompt()
            time.sleep(1.1)  # that long servers are not looked at again
            routes["/v1/models"] = hang
            chat.type("hello", ENTER)
            assert looked.wait(10)
            chat.type(CTRL_C)
            assert "cancelled: neither" in chat.prompt()
            routes["/v1/models"] = listed
            chat.ask("hello again", r"route: ")

        await at_terminal(use, "--session", "s")
    assert texts() == ["hello again", "hello"]


@pytest.mark.parametrize("answering", [True, False])
async def test_a_signal_ends_the_chat_and_not_only_the_answer(answering: bool) -> None:
    app = openai_app()
    app.state.fake.fault = "stall"
    async with running(app) as url:
        configure(url)

        def use(chat: Typist) -> None:
            chat.prompt()
            if answering:
                chat.type("hello", ENTER)
                chat.see("def add")
            os.kill(chat.pid, signal.SIGTERM)
            assert chat.end() == 143

        await at_terminal(use)
    if answering:
        assert audit() == [("start", None), ("end", "cancelled")]


async def test_what_is_typed_on_several_lines_or_pasted_is_one_question() -> None:
    app = openai_app()
    async with running(app) as url:
        configure(url)

        def use(chat: Typist) -> None:
            chat.prompt()
            chat.type("one\\", ENTER, "two", ALT_ENTER, "three", ENTER)
            assert "route: " in chat.prompt()
            chat.type(PASTE + "four\r\nfive\nsix" + PASTED)
            chat.see("six")
            chat.type(ENTER)
            assert "route: " in chat.prompt()

        await at_terminal(use)
    assert [sent(body)[-1][1] for body in app.state.fake.seen] == ["one\ntwo\nthree", "four\nfive\nsix"]


async def test_models_are_chosen_and_the_hand_over_is_told_and_kept(fakes: Fakes) -> None:
    models = await fakes.start("qwen2.5-coder-7b-instruct", "phi-4")
    configure(models, routing={"policy": "best"})

    def use(chat: Typist) -> None:
        chat.prompt()
        chat.ask("/model", r"phi-4 +fake0 +8,192 \(known\)\s+next: auto")
        chat.ask("Write a function", r"route: phi-4")
        chat.ask("/model nonsense-9", r"Error: no server has the model 'nonsense-9'")
        chat.ask("/model qwen2.5-coder-7b-instruct", r"next: qwen2.5-coder-7b-instruct")
        shown = chat.ask("And another", r"route: qwen2.5-coder-7b-instruct @ fake0, level 0 \(primary\), category -")
        assert "handed over from phi-4 to qwen2.5-coder-7b-instruct: " in shown
        chat.ask("/model auto", "next: auto")
        chat.ask("/contxt", r"Error: there is no command /contxt\nHint: did you mean /context\?")
        chat.ask("/zzz", "Hint: /help lists the commands")
        chat.ask("/help", r"/undo +take back")
        chat.type("/mo\t")
        chat.see("del")
        chat.type(" ph\t")
        chat.see("i-4")
        chat.type(ENTER)
        assert "next: phi-4" in chat.prompt()
        chat.type("/quit", ENTER)
        assert chat.end() == 0

    shown = await at_terminal(use, "--session", "s", "--category", "coding")
    assert "`turnout chat --session s` goes on with it" in shown
    session = kept()
    assert session is not None
    assert [model for _, model, _ in session.model_history] == ["phi-4", "qwen2.5-coder-7b-instruct"]
    assert dict(session.messages[-1].metadata) == {"model": "qwen2.5-coder-7b-instruct", "service": "fake0", "level": 0}


def long_session(name: str = "s", turns: int = 10) -> list[str]:
    said = [f"{'Question' if n % 2 == 0 else 'Answer'} {n}. " + "blue " * 100 for n in range(2 * turns)]
    store = open_store(data() / "sessions.db")
    for asked, answered in zip(said[::2], said[1::2], strict=True):
        both = (message("user", asked), message("assistant", answered))
        store.append("local", name, Exchange(tuple(StoredMessage(m, 1e9, 130) for m in both), "smol", "first"))
    store.close()
    return said


async def test_compact_is_for_good_and_undo_takes_it_back(llama: LlamaServer) -> None:
    said = long_session(turns=5)
    async with recorded(llama.url) as (url, seen):
        configure(url, context={"preserve_recent_messages": 2})

        def use(chat: Typist) -> None:
            chat.prompt()
            chat.ask("/context", r"sent next +everything as it is")
            chat.ask("/compact", r"from now on: \d+ older messages summarised; about 1,[\d,]+ tokens become \d{3}\n")
            chat.ask("/context", r"sent next +\d+ older messages summarised: about \d{3} tokens")
            assert marks() == (10,)
            chat.ask("And now?", r"note: \d+ older messages summarised\n")
            chat.ask("/undo", "taken back: And now?")
            assert marks() == (10,)
            chat.ask("/undo", "taken back: Question 8. blue")
            assert marks() == ()
            chat.ask("/new", "a new conversation: ")
            chat.ask("/compact", "nothing was said yet")
            chat.ask("/undo", "nothing was asked yet")
            chat.ask("/sessions", r"s +20\d\d-.* +8 .*smol +Question 0\. blue")

        await at_terminal(use, "--session", "s", "--max-tokens", "10")
    (asked,) = map(sent, seen)
    assert asked[0][1].startswith("[Previous conversation summary]")
    assert [text for _, text in asked[-3:]] == [*said[-2:], "And now?"]
    assert len(asked) < len(said)
    assert texts() == said[:8], "the original"


def marks() -> tuple[int, ...]:
    session = kept()
    assert session is not None
    return session.compact_at


async def test_from_a_pipe_each_line_is_a_question_and_stdout_the_answers(fakes: Fakes) -> None:
    configure(await fakes.start())
    lines = "first\n\n/etc/hosts is what?\r\n/undo\nlast"
    result = await run_beside("chat", "--session", "s", stdin=lines.encode())
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{ANSWER}\n{ANSWER}\ntaken back: /etc/hosts is what?\n{ANSWER}\n"
    assert result.stderr == ""
    assert texts() == ["first", ANSWER, "last", ANSWER]


async def test_a_coprocess_gets_each_answer_before_it_asks_again(fakes: Fakes) -> None:
    configure(await fakes.start())
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-c", "from turnout.cli import main; main()", "chat"]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=usual_signals
    )
    assert child.stdin is not None
    assert child.stdout is not None
    for _ in range(2):
        child.stdin.write(b"hello\n")
        assert (await child.stdout.readexactly(len(ANSWER) + 1)).decode() == ANSWER + "\n"
    child.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(child.communicate(), 20)
    assert (child.returncode, err.strip()) == (130, b"")


async def test_a_question_from_a_pipe_that_fails_is_told_and_the_next_is_asked(fakes: Fakes) -> None:
    configure(await fakes.start())
    result = await run_beside("chat", stdin=b"/nope\nhello\n")
    assert result.exit_code == 2
    assert result.stdout == ANSWER + "\n"
    assert result.stderr.startswith("Error: there is no command /nope")
    for wrong in (b"a\0b\n", b"\xff\n", b"x" * 2_100_000):
        assert (await run_beside("chat", stdin=wrong)).exit_code == 2
    configure("http://127.0.0.1:9")
    assert (await run_beside("chat", stdin=b"hello\n")).exit_code == 3


async def test_nothing_is_on_the_disk_when_nothing_is_to_be_stored() -> None:
    app = openai_app()
    async with running(app) as url:
        configure(url, sessions={"store": False})

        def use(chat: Typist) -> None:
            assert "this conversation is not stored" in chat.prompt()
            chat.ask("the-secret-word", "route: ")
            chat.ask("/context", r"conversation +\S+, in memory")
            chat.ask("/compact", "from now on: nothing of it can be left out")
            chat.ask("and again", "route: ")
            chat.ask("/undo", "taken back: and again")
            chat.ask("/sessions", "conversations are not stored")
            chat.ask("the end", "route: ")
            chat.type(CTRL_D)
            assert chat.end() == 0

        shown = await at_terminal(use)
    assert "goes on with it" not in shown
    seen = [[text for _, text in sent(body)] for body in app.state.fake.seen]
    assert seen == [
        ["the-secret-word"],
        ["the-secret-word", ANSWER, "and again"],
        ["the-secret-word", ANSWER, "the end"],
    ]
    files = sorted(path for path in data().rglob("*") if path.is_file())
    kept = {path.name for path in files if path.parent.name != "signing"}
    assert kept <= {"audit.log", "audit.key", "learned.json", "decisions.jsonl"}
    assert b"secret" not in b"".join(path.read_bytes() for path in files)
    for refused in (("chat", "--session", "s"), ("ask", "hi", "--session", "s")):
        result = await run_beside(*refused, stdin=b"")
        assert result.exit_code == 2
        assert "sessions.store is false: no conversation is kept" in result.stderr


async def test_a_chat_reads_what_another_process_has_added(fakes: Fakes) -> None:
    configure(await fakes.start())

    def use(chat: Typist) -> None:
        chat.prompt()
        chat.ask("mine", "route: ")
        result = run("ask", "theirs", "--session", "s", stdin=b"")
        assert result.exit_code == 0
        chat.ask("/context", "in 4 messages")
        chat.ask("mine again", "route: ")

    await at_terminal(use, "--session", "s")
    assert texts()[::2] == ["mine", "theirs", "mine again"]


async def test_a_chat_without_a_server_says_so_and_waits_for_one(fakes: Fakes) -> None:
    configure("http://127.0.0.1:9")
    url = await fakes.start()

    def use(chat: Typist) -> None:
        chat.prompt()
        chat.ask("hello", r"Error: no local LLM service available\nprobed fake0 http://127.0.0.1:9: offline")
        chat.ask("/context", "Error: no local LLM service")
        chat.type(CTRL_D)
        assert chat.end() == 0

    await at_terminal(use, "--session", "s")
    assert texts() == []
    assert url
