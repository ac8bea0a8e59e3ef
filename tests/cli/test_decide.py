"""``turnout classify`` and ``turnout explain``."""

from __future__ import annotations

import json

from tests.cli.conftest import Fakes, configure, run, run_beside


def test_classify_says_what_and_why() -> None:
    lines = dict(line.split("\t") for line in run("classify", "refactor this", stdin=b"").stdout.splitlines())
    assert lines["category"] == "coding"
    assert "refactor" in lines["evidence"]
    unsure = dict(line.split("\t") for line in run("classify", "hello", stdin=b"").stdout.splitlines())
    assert (unsure["confidence"], unsure["evidence"]) == (
        "0.50",
        "no rule is sure: coding by default, at confidence 0.50",
    )
    fields = json.loads(run("classify", "--json", "where is the definition of x", stdin=b"").stdout)
    assert fields["needs_code_context"] is True
    assert set(fields["scores"]) == {"coding", "reasoning", "analysis", "documentation"}


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
    assert table[0] == ["decision", "model", "service", "level", "window", "reason"]
    rows = {row[1]: row for row in table[1:]}
    assert rows["qwen2.5-coder-32b-instruct"][0] == "chosen"
    assert rows["qwen2.5-coder-32b-instruct"][3] == "0 primary"
    assert rows["nomic-embed-text"][0] == "not taken"
    assert "embeddings" in rows["nomic-embed-text"][5]
    assert "too small" in rows["qwen2.5-coder-7b-instruct"][5] or "smallest" in rows["qwen2.5-coder-7b-instruct"][5]


async def test_explain_as_json_lists_the_plan_in_its_order(fakes: Fakes) -> None:
    configure(await fakes.start("a-7b"), await fakes.start("b-70b"))
    fields = json.loads((await run_beside("explain", "--json", "Write a function", stdin=b"")).stdout)
    assert fields["task"]["category"] == "coding"
    assert [(c["decision"], c["model"], c["level"]) for c in fields["candidates"]][:2] == [
        ("chosen", "b-70b", 0),
        ("then 2", "a-7b", 1),
    ]


async def test_explain_of_an_exact_model(fakes: Fakes) -> None:
    configure(await fakes.start("a-7b", "b-70b"))
    result = await run_beside("explain", "--model", "a-7b", "hello", stdin=b"")
    assert "task: not classified, an exact model was asked for" in result.stdout
    assert "chosen\ta-7b\tfake0\t0 primary" in result.stdout
    assert "not taken\tb-70b\tfake0\t-" in result.stdout


def test_explain_without_a_server_is_exit_3() -> None:
    configure("http://127.0.0.1:9")
    assert run("explain", "hello", stdin=b"").exit_code == 3
