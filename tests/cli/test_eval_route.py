"""``turnout eval route``: what wrong labels cost over simulated fleets, and over a fake one that runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.conftest import Fakes, configure, run, run_beside
from tests.cli.test_eval import GOOD, write
from turnout.routing.classifier import ClassificationResult
from turnout.types import TaskCategory

LABELS = tuple(TaskCategory)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> str:
    """Four queries of each label; the classifier is right, unless a query says what it is taken for."""

    def said(text: str, _: str) -> ClassificationResult:
        return ClassificationResult(TaskCategory(text.rsplit(maxsplit=1)[-1]), 0.9, needs_code_context=False)

    monkeypatch.setattr("turnout.cli.evaluate_route.classify_task", said)
    return write(*(json.dumps({"text": f"{n} {label}", "label": label}) for n in range(4) for label in LABELS))


def test_with_the_right_labels_the_best_is_always_chosen(made: str) -> None:
    ran = run("eval", "route", made, "--fleets", "60", "--plot", "made.svg", "--json")
    found = json.loads(ran.stdout)
    assert (found["queries"], found["accuracy"], found["decisions"] + found["nobody"]) == (16, 1.0, 240)
    assert (found["match"], found["near"], found["none"], found["regret"], found["moved"]) == (1.0, 1.0, 0.0, 0.0, 0.0)
    assert found["gap_closed"] == 1.0
    assert found["broken"] == dict.fromkeys(("window", "capability", "memory", "health", "isolation"), 0)
    assert 0 < sum(found["chosen"].values()) <= 240
    assert ET.fromstring(Path("made.svg").read_text("utf-8")).find("{http://www.w3.org/2000/svg}path") is not None
    assert run("eval", "route", made, "--fleets", "60", "--json").stdout == ran.stdout, "the same fleets each time"


def test_wrong_labels_cost_points(made: str) -> None:
    file = write(*(json.dumps({"text": "a coding", "label": label}) for label in LABELS))
    found = json.loads(run("eval", "route", file, "--fleets", "60", "--json").stdout)
    assert found["accuracy"] == 0.25
    assert found["match"] < 1.0
    assert found["regret"] > 0.0
    assert sum(found["broken"].values()) == 0
    text = run("eval", "route", file, "--fleets", "60").stdout
    assert f"the best one was chosen\t{found['match']:.1%}" in text


async def test_the_fleet_that_runs(fakes: Fakes, made: str) -> None:
    configure(
        await fakes.start("qwen2.5-coder-32b-instruct", "smollm2-135m-instruct"),
        await fakes.start("nomic-embed-text"),
        await fakes.start("llama-3.3-70b-instruct", window=64),
        "http://127.0.0.1:1",
    )
    ran = await run_beside("eval", "route", made, "--live", "--json")
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["fleets"], found["decisions"], found["match"]) == ("live", 16, 1.0)
    assert set(found["chosen"]) <= {"qwen2.5-coder-32b", "llama-3.3-70b-instruct"}
    long = write('{"text": "a coding", "label": "coding", "tokens": 5000, "needs": []}')
    found = json.loads((await run_beside("eval", "route", long, "--live", "--json")).stdout)
    assert found["chosen"] == {"qwen2.5-coder-32b": 1}, "the other's window is too small"
    huge = write('{"text": "a coding", "label": "coding", "tokens": 50000}')
    ran = await run_beside("eval", "route", huge, "--live")
    assert ran.exit_code == 2
    assert "no model could serve any of the queries" in ran.stderr


def test_without_a_server_there_is_no_live_fleet() -> None:
    configure("http://127.0.0.1:1")
    assert run("eval", "route", write(GOOD), "--live").exit_code == 3


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('"tokens": 0', "`tokens` is no number from 1"),
        ('"tokens": true', "`tokens` is no number from 1"),
        ('"tokens": 1e400', "`tokens` is no number from 1"),
        ('"needs": "tools"', "`needs` is no list of tools and vision"),
        ('"needs": ["sight"]', "`needs` is no list of tools and vision"),
        ('"needs": [["tools"]]', "`needs` is no list of tools and vision"),
    ],
)
def test_a_wrong_field_is_named(field: str, message: str) -> None:
    ran = run("eval", "route", write(GOOD, f'{{"text": "a", "label": "coding", {field}}}'))
    assert ran.exit_code == 2
    assert f"Error: mine.jsonl:2: {message}" in ran.stderr


def test_a_plot_is_an_svg() -> None:
    assert "ends in .svg" in run("eval", "route", write(GOOD), "--plot", "mine.jsonl").stderr
