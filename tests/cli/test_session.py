"""``turnout session``: what is kept, as it would be sent and whole, exported, deleted, aged; and ``ask --session``."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.conftest import Fakes, configure, run, run_beside
from tests.cli.test_chat import ANSWER, at_terminal, data, kept, long_session, texts
from tests.cli.typist import CTRL_D, Typist
from tests.servers import LlamaServer
from turnout.context import store as module
from turnout.context.store import DAY, open_store

DEAD = "http://127.0.0.1:9"


async def test_ask_begins_and_continues_a_conversation(fakes: Fakes) -> None:
    configure(await fakes.start())
    first = await run_beside("ask", "one", "--session", "s", "--json", stdin=b"")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["session"] == "s"
    second = await run_beside("ask", "two", "--session", "s", stdin=b"")
    assert (second.exit_code, second.stdout) == (0, ANSWER + "\n")
    assert texts() == ["one", ANSWER, "two", ANSWER]
    other = await run_beside("ask", "three", "--json", stdin=b"")
    assert json.loads(other.stdout)["session"] is None
    assert texts() == ["one", ANSWER, "two", ANSWER]
    refused = await run_beside("ask", "four", "--session", "a/b", stdin=b"")
    assert refused.exit_code == 2
    assert "not a plain name" in refused.stderr


async def test_the_history_goes_along_with_a_question_of_ask(llama: LlamaServer) -> None:
    configure(llama.url)
    ask = ("ask", "--session", "s", "--max-tokens", "8", "--json")
    tokens = []
    for question in ("My name is Anna.", "What is my name?"):
        result = await run_beside(*ask, question, stdin=b"")
        tokens.append(json.loads(result.stdout)["usage"]["prompt_tokens"])
    assert tokens[1] > tokens[0] + 15, "the first question, its answer, and the second"


def test_nothing_is_there_and_looking_makes_nothing() -> None:
    configure(DEAD)
    assert run("session", "list").stdout == "name\tlast used\tmessages\ttokens\tmodel\tfirst question\n"
    assert json.loads(run("session", "list", "--json").stdout) == []
    assert run("session", "prune").stdout == "deleted 0 not used for 90 days\n"
    for args in (("show", "s"), ("export", "s"), ("delete", "s")):
        result = run("session", *args)
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [
            "Error: there is no conversation s",
            "Hint: `turnout session list` shows what there is",
        ]
    assert not (data() / "sessions.db").exists()


def test_conversations_are_listed_and_the_nearest_is_named() -> None:
    configure(DEAD)
    long_session("parser", 2)
    long_session("lexer", 1)
    header, first, second = run("session", "list").stdout.splitlines()
    assert header.split("\t")[0] == "name"
    assert first.split("\t")[0] == "lexer"
    assert second.split("\t")[::2] == ["parser", "4", "smol"]
    assert second.split("\t")[5].startswith("Question 0. blue")
    rows = json.loads(run("session", "list", "--json").stdout)
    assert [(row["name"], row["messages"], row["tokens"], row["model"]) for row in rows] == [
        ("lexer", 2, 260, "smol"),
        ("parser", 4, 520, "smol"),
    ]
    result = run("session", "resume", "parsed", stdin=b"")
    assert result.exit_code == 2
    assert "Hint: did you mean parser?" in result.stderr


async def test_show_is_what_would_be_sent_and_full_is_the_original(llama: LlamaServer) -> None:
    said = long_session(turns=10)
    configure(llama.url, context={"preserve_recent_messages": 2})
    shown = (await run_beside("session", "show", "s")).stdout
    assert "As it would be sent to smol @ fake0 now, window 2,048 tokens (known): " in shown
    assert "older messages summarised." in shown
    assert "[Previous conversation summary]" in shown
    assert said[0] not in shown
    assert said[-1] in shown
    full = (await run_beside("session", "show", "s", "--full")).stdout
    assert all(text in full for text in said)
    assert "[Previous conversation summary]" not in full
    data = json.loads((await run_beside("session", "show", "s", "--json")).stdout)
    assert [m["parts"][0]["text"] for m in data["messages"]] == said
    sent = data["sent"]
    assert (sent["model"], sent["window"], sent["window_source"]) == ("smol", 2048, "known")
    assert sent["tokens"] < data["tokens"]
    assert len(sent["messages"]) < len(said)
    assert any("summarised" in step for step in sent["steps"])


def test_without_a_server_the_conversation_is_shown_whole() -> None:
    said = long_session(turns=2)
    configure(DEAD)
    result = run("session", "show", "s")
    assert result.exit_code == 0
    assert all(text in result.stdout for text in said)
    assert "note: shown whole, because no window is known: no local LLM service" in result.stderr
    assert json.loads(run("session", "show", "s", "--json").stdout)["sent"] is None


async def test_hand_overs_are_shown_with_time_model_and_reason(fakes: Fakes) -> None:
    configure(await fakes.start("phi-4", "qwen2.5-coder-7b-instruct"))
    for model in ("phi-4", "qwen2.5-coder-7b-instruct"):
        await run_beside("ask", "hello", "--session", "s", "--model", model, stdin=b"")
    session = kept()
    assert session is not None
    year = time.strftime("%Y-")
    full = (await run_beside("session", "show", "s", "--full")).stdout
    for _, model, reason in session.model_history:
        assert reason
        (line,) = (line for line in full.splitlines() if line.startswith("- ") and f": {model}: {reason}" in line)
        assert line.startswith(f"- {year}")
    assert f"## Assistant, qwen2.5-coder-7b-instruct @ fake0, {year}" in full
    document = json.loads((await run_beside("session", "show", "s", "--full", "--json")).stdout)
    assert [row["model"] for row in document["model_history"]] == ["phi-4", "qwen2.5-coder-7b-instruct"]
    assert "sent" not in document


def test_export_is_whole_exact_in_json_and_harmless_in_markdown() -> None:
    configure(DEAD)
    long_session("s", 1)
    store = open_store(data() / "sessions.db")
    evil = "\x1b]0;title\x07 \ud800 <|end|>"
    store.append("local", "s", module.Exchange((module.StoredMessage(module.message("user", evil), 1e300, 1),)))
    store.close()
    document = json.loads(run("session", "export", "s", "--format", "json").stdout)
    assert document["messages"][-1]["parts"][0]["text"] == evil
    assert document == json.loads(run("session", "show", "s", "--full", "--json").stdout)
    text = run("session", "export", "s").stdout
    assert text.startswith("# Conversation s\n\n3 messages, about 261 tokens, begun ")
    assert "## System" not in text
    assert "\n## User, at no time that a calendar has\n\n]0;title" in text
    assert "\x1b" not in text


def test_delete_says_what_is_gone() -> None:
    configure(DEAD)
    for name in ("a", "b", "c"):
        long_session(name, 1)
    assert run("session", "delete", "a", "b").stdout == "deleted a\ndeleted b\n"
    assert json.loads(run("session", "delete", "c", "--json").stdout) == {"deleted": ["c"]}
    assert json.loads(run("session", "list", "--json").stdout) == []
    failed = run("session", "delete", "c", "--json")
    assert (failed.exit_code, json.loads(failed.stdout)["error"]["code"]) == (2, "invalid_request")


async def test_a_question_of_a_deleted_conversation_is_not_brought_back_by_a_key(fakes: Fakes) -> None:
    configure(await fakes.start())
    long_session("secret", 1)
    await run_beside("session", "delete", "secret")

    def use(chat: Typist) -> None:
        chat.prompt()
        chat.type("\x1b[A", "x", "\r")
        assert "route: " in chat.prompt()
        chat.type(CTRL_D)
        chat.end()

    shown = await at_terminal(use, "--session", "s")
    assert "blue" not in shown
    assert texts()[0] == "x"


def test_retention_is_applied_when_the_store_is_opened_and_by_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(DEAD, sessions={"retention_days": 20})
    long_session("old", 1)
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    run("session", "list")
    now += 15 * DAY
    long_session("new", 1)
    run("session", "list")
    now += 6 * DAY
    assert [row["name"] for row in json.loads(run("session", "list", "--json").stdout)] == ["new"]
    now += 100 * DAY
    result = run("session", "prune")
    assert result.stdout == "deleted 0 not used for 20 days\n"
    assert "note: the clock has jumped" in result.stderr
    assert json.loads(run("session", "prune", "--json").stdout) == {
        "deleted": 0,
        "retention_days": 20,
        "clock_doubted": False,
    }
    assert run("session", "prune", "--force").stdout == "deleted 1 not used for 20 days\n"
    configure(DEAD, sessions={"retention_days": 0})
    assert run("session", "prune").stdout == "nothing is deleted: sessions.retention_days is 0\n"


async def test_what_was_stored_can_be_looked_at_and_deleted_when_nothing_is_stored_any_more() -> None:
    long_session("s", 1)
    configure(DEAD, sessions={"store": False})
    assert "Question 0" in run("session", "show", "s", "--full").stdout
    assert run("session", "delete", "s").exit_code == 0


async def test_resume_goes_on(fakes: Fakes) -> None:
    said = long_session("s", 1)
    configure(await fakes.start())
    result = await run_beside("session", "resume", "s", stdin=b"more\n")
    assert result.exit_code == 0, result.stderr
    assert texts() == [*said, "more", ANSWER]


def test_a_damaged_store_is_kept_aside_and_said() -> None:
    configure(DEAD)
    data().mkdir()
    (data() / "sessions.db").write_bytes(b"no database " * 1000)
    result = run("session", "list")
    assert result.exit_code == 0
    assert len(list(data().glob("sessions.db.corrupt-*"))) == 1
