"""``turnout models --capabilities`` and ``--why``: the whole table, and the terms of a score add up to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import configure, run


def test_the_whole_table_is_listed_with_its_sources() -> None:
    found = json.loads(run("models", "--capabilities", "--json").stdout)["models"]
    assert len(found) >= 150
    scores = [row["scores"]["coding"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(row["source"] and row["needs"]["bytes"] > 0 for row in found)
    lines = run("models", "--capabilities", "--name", "QWEN3-CODER").stdout.splitlines()
    assert lines[0].split("\t")[:2] == ["model", "parameters"]
    assert {line.split("\t")[0] for line in lines[1:]} == {
        "qwen3-coder-30b-a3b",
        "qwen3-coder-480b-a35b",
        "qwen3-coder-next",
    }


@pytest.mark.parametrize("category", ["coding", "reasoning", "analysis", "documentation"])
@pytest.mark.parametrize("model", ["qwen2.5-coder:32b-instruct-q2_K", "glm-4.5-air", "our-own-70b", "phi4-altered-x"])
def test_the_terms_make_the_score(model: str, category: str) -> None:
    one = json.loads(run("models", "--why", model, "--json").stdout)["scores"][category]
    expected = sum(term["points"] for term in one["expected"])
    terms = one["terms"]
    if terms:
        assert terms[0]["points"] == pytest.approx(expected, abs=0.05)
        expected = sum(t["points"] * t["weight"] for t in terms) / sum(t["weight"] for t in terms)
    expected = max(expected, one["least"] or 0) + sum(one["build"].values())
    assert one["score"] == pytest.approx(min(99, max(1, expected)), abs=0.2)


def test_why_names_each_result_with_its_list_and_date() -> None:
    text = run("models", "--why", "qwen3:32b").stdout
    assert "aider polyglot, 225 exercises, solved at the second try (as Qwen3 32B)\t40\t2025-05-08" in text
    assert run("models", "--why", "nomic-embed-text").stdout.startswith("nomic-embed-text: no row")


def test_a_size_that_nobody_tells_is_said_to_be_assumed() -> None:
    assert "3 billion parameters, assumed" in run("models", "--why", "no-size").stdout
    assert "assumed" not in run("models", "--why", "no-name-3b").stdout


def test_a_users_score_is_said_to_be_his_and_a_mistake_is_told() -> None:
    Path("mine.toml").write_text(
        '[models."phi-4"]\nparams = 14.7\nwindow = 16384\nscores = { coding = 77, reasoning = 140 }\n', "utf-8"
    )
    configure(routing={"models_file": "mine.toml"})
    ran = run("models", "--why", "phi4:14b", "--json")
    found = json.loads(ran.stdout)
    assert found["scores"]["coding"]["written"] == found["scores"]["coding"]["score"] == 77
    assert found["scores"]["reasoning"]["written"] is None
    assert found["scores"]["reasoning"]["expected"][0] == {"what": "coding in the user's file", "points": 77}
    assert "Warning: left out: " in ran.stderr
    assert "models.phi-4.scores.reasoning" in ran.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--capabilities", "--name", "no-such"), "no model of the capability table has 'no-such' in its name"),
        (("--name", "phi"), "--name is a part of --capabilities"),
        (("--why", " "), "--why is given alone, with the name of a model"),
        (("--capabilities", "--why", "phi-4"), "--why is given alone"),
        (("--capabilities", "pin", "x"), "belong to `turnout models` alone"),
    ],
)
def test_what_does_not_go_together_is_refused(args: tuple[str, ...], says: str) -> None:
    ran = run("models", *args)
    assert ran.exit_code == 2
    assert says in ran.stderr
