"""``turnout classify`` and ``turnout explain``."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Fakes, configure, run, run_beside


def test_classify_says_what_and_why() -> None:
    lines = dict(line.split("\t") for line in run("classify", "refactor this", stdin=b"").stdout.splitlines())
    assert lines["category"] == "coding"
    assert "refactor" in lines["evidence"]
    assert 0.5 < float(lines["confidence"]) <= 1.0
    fields = json.loads(run("classify", "--json", "where is the definition of x", stdin=b"").stdout)
    assert fields["needs_code_context"] is True
    assert set(fields["scores"]) == {"coding", "reasoning", "analysis", "documentation"}
    assert 0.0 <= fields["difficulty"] <= 1.0


def test_what_was_read_as_the_request_is_shown() -> None:
    asked = "Why is this slow?\n```\nfor review in plan: pass\n```\n2026-01-02 10:00:00 INFO started"
    fields = json.loads(run("classify", "--explain", "--json", asked, stdin=b"").stdout)
    assert fields["request"].split() == ["Why", "is", "this", "slow?", "[code]", "[log]"]
    assert (fields["policy"], fields["lines_of_log"]) == ("learned", 1)
    assert "request\tWhy is this slow?" in run("classify", "--explain", asked, stdin=b"").stdout


def test_the_owners_rules_may_classify() -> None:
    configure(routing={"classification": "rules"})
    fields = json.loads(run("classify", "--json", "hello", stdin=b"").stdout)
    assert fields["evidence"] == ["no rule is sure: coding by default, at confidence 0.50"]


async def test_explain_names_every_candidate_and_runs_nothing(fakes: Fakes) -> None:
    configure(
        await fakes.start("qwen2.5-coder-32b-instruct"),
        await fakes.start("qwen2.5-coder-7b-instruct", window=64, fault="error"),
        await fakes.start("nomic-embed-text"),
    )
    result = await run_beside("explain", "Write a function", stdin=b"")
    assert result.exit_code == 0, result.stderr
    assert "task: coding, confidence" in result.stdout
    assert "policy: balanced" in result.stdout
    table = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    parts = ["seconds", "queue", "load", "read", "write", "harm"]
    assert table[0] == ["decision", "model", "service", "level", "window", *parts, "reason"]
    rows = {row[1]: row for row in table[1:]}
    assert rows["qwen2.5-coder-32b-instruct"][0] == "chosen"
    assert rows["qwen2.5-coder-32b-instruct"][3] == "0 primary"
    assert rows["nomic-embed-text"][0] == "not taken"
    assert float(rows["qwen2.5-coder-32b-instruct"][5]) > 0.0
    assert "embeddings" in rows["nomic-embed-text"][-1]
    assert "too small" in rows["qwen2.5-coder-7b-instruct"][-1] or "smallest" in rows["qwen2.5-coder-7b-instruct"][-1]


async def test_explain_as_json_lists_the_plan_in_its_order(fakes: Fakes) -> None:
    configure(await fakes.start("a-7b"), await fakes.start("b-70b"), routing={"policy": "best"})
    fields = json.loads((await run_beside("explain", "--json", "Write a function", stdin=b"")).stdout)
    assert fields["task"]["category"] == "coding"
    assert [(c["decision"], c["model"], c["level"]) for c in fields["candidates"]][:2] == [
        ("chosen", "b-70b", 0),
        ("then 2", "a-7b", 1),
    ]
    seconds = fields["candidates"][0]["seconds"]
    assert seconds["total"] == pytest.approx(
        sum(seconds[part] for part in ("queue", "load", "prefill", "decode")), abs=0.01
    )
    assert seconds["observed"] is False


async def test_explain_of_an_exact_model(fakes: Fakes) -> None:
    configure(await fakes.start("a-7b", "b-70b"))
    result = await run_beside("explain", "--model", "a-7b", "hello", stdin=b"")
    assert "task: not classified, an exact model was asked for" in result.stdout
    assert "chosen\ta-7b\tfake0\t0 primary" in result.stdout
    assert "not taken\tb-70b\tfake0\t-" in result.stdout


def test_explain_without_a_server_is_exit_3() -> None:
    configure("http://127.0.0.1:9")
    assert run("explain", "hello", stdin=b"").exit_code == 3
