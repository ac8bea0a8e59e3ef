"""``turnout eval classify``: measures made by hand, and files that are not as they should be."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.conftest import configure, run
from turnout.routing import classify
from turnout.routing.classifier import ClassificationResult
from turnout.types import TaskCategory

# What is labelled (label, also, needs_code_context), then what is said (category, confidence, needs_code_context).
MADE = (
    (("coding", None, True), ("coding", 0.95, True)),
    (("coding", None, True), ("coding", 0.95, False)),
    (("coding", "analysis", False), ("analysis", 0.55, True)),
    (("coding", None, None), ("reasoning", 0.55, True)),
    (("reasoning", None, False), ("reasoning", 0.75, False)),
    (("reasoning", "documentation", True), ("coding", 0.35, True)),
    (("analysis", None, True), ("analysis", 1.0, True)),
    (("analysis", None, None), ("coding", 0.35, False)),
)
GOOD = '{"text": "add a button to the form", "label": "coding"}'


def write(*lines: str) -> str:
    Path("mine.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return "mine.jsonl"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of MADE, and a classifier that says of each what stands there."""
    said = {
        f"query {n}": ClassificationResult(TaskCategory(category), sure, needs_code_context=needs)
        for n, (_, (category, sure, needs)) in enumerate(MADE)
    }
    monkeypatch.setattr(classify, "classify_task", lambda text, _: said[text])
    keys = ("label", "also", "needs_code_context")
    rows = [{"text": f"query {n}", **dict(zip(keys, label, strict=True))} for n, (label, _) in enumerate(MADE)]
    return write(*map(json.dumps, rows))


def test_the_measures_are_those_made_by_hand(made: str) -> None:
    found = json.loads(run("eval", "classify", made, "--json").stdout)
    assert (found["queries"], found["policy"]) == (8, "learned")
    assert found["accuracy"] == 0.5
    assert found["accuracy_either"] == 0.625  # the third query's second label was said
    expected = {
        "coding": {"queries": 4, "said": 4, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        "reasoning": {"queries": 2, "said": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        "analysis": {"queries": 2, "said": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        "documentation": {"queries": 0, "said": 0, "precision": None, "recall": None, "f1": None},
    }
    assert found["categories"] == expected
    assert found["macro_f1"] == 0.5  # over the three that occur
    assert found["confusion"]["coding"] == {"coding": 2, "reasoning": 1, "analysis": 1, "documentation": 0}
    assert found["confusion"]["reasoning"] == {"coding": 1, "reasoning": 1, "analysis": 0, "documentation": 0}
    assert found["bins"] == [
        {"queries": 2, "confidence": 0.35, "accuracy": 0.0},
        {"queries": 2, "confidence": 0.55, "accuracy": 0.0},
        {"queries": 1, "confidence": 0.75, "accuracy": 1.0},
        {"queries": 3, "confidence": 0.9667, "accuracy": 1.0},
    ]
    assert found["calibration_error"] == pytest.approx((0.7 + 1.1 + 0.25 + 0.1) / 8, abs=1e-4)
    # Of the six that say so: yes is labelled on four, and said of four, of three of them rightly.
    assert found["needs_code_context"] == {"queries": 4, "said": 4, "precision": 0.75, "recall": 0.75, "f1": 0.75}


def test_precision_is_not_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    always = ClassificationResult(TaskCategory.CODING, 0.5, needs_code_context=True)
    monkeypatch.setattr(classify, "classify_task", lambda *_: always)
    other = '{"query": "why", "category": "analysis", "needs_code_context": false}'
    found = json.loads(run("eval", "classify", write(GOOD, other, other, other), "--json").stdout)
    coding, analysis = found["categories"]["coding"], found["categories"]["analysis"]
    assert (coding["precision"], coding["recall"], coding["f1"]) == (0.25, 1.0, 0.4)
    assert (analysis["precision"], analysis["recall"], analysis["f1"]) == (None, 0.0, 0.0)
    assert found["macro_f1"] == 0.2
    assert (found["confusion"]["analysis"]["coding"], found["confusion"]["coding"]["analysis"]) == (3, 0)
    needs = found["needs_code_context"]
    assert (needs["queries"], needs["said"], needs["precision"], needs["recall"]) == (0, 3, 0.0, None)


def test_the_tables_say_the_same(made: str) -> None:
    lines = run("eval", "classify", made).stdout.splitlines()
    for line in (
        "queries\t8",
        "accuracy or the second label\t0.625",
        "calibration error\t0.269",
        "needs code context: recall\t0.750",
        "documentation\t0\t-\t-\t-",
        "labelled as\tcoding\treasoning\tanalysis\tdocumentation",
        "analysis\t1\t0\t1\t0",
    ):
        assert line in lines


def test_the_plot_has_a_dot_for_each_bin(made: str) -> None:
    assert run("eval", "classify", made, "--plot", "made.svg").exit_code == 0
    image = ET.fromstring(Path("made.svg").read_text("utf-8"))
    dots = image.findall("{http://www.w3.org/2000/svg}circle")
    assert (dots[0].get("cx"), dots[0].get("cy")) == ("155.0", "350.0")
    assert len(dots) == 4


def test_the_shipped_classifier_is_measured() -> None:
    lines = (
        GOOD,
        "",
        '{"query": "write a changelog entry for the release", "category": "documentation", "source": "me"}',
        '{"text": "should we use postgres or sqlite? weigh the trade-offs", "label": "reasoning", "also": null}',
    )
    found = json.loads(run("eval", "classify", write(*lines), "--json").stdout)
    assert (found["queries"], found["accuracy"], found["needs_code_context"]) == (3, 1.0, None)


def test_the_policy_is_the_configured_one_unless_another_is_given() -> None:
    configure(routing={"classification": "rules"})
    of_rules = json.loads(run("eval", "classify", write(GOOD), "--json").stdout)
    assert (of_rules["policy"], of_rules["bins"][0]["confidence"]) == ("rules", 0.5)
    learned = json.loads(run("eval", "classify", "mine.jsonl", "--policy", "learned", "--json").stdout)
    assert learned["policy"] == "learned"
    assert learned["bins"][0]["confidence"] != 0.5


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("not json", "it is no JSON object in UTF-8", "one query on each line"),
        ("[1]", "it is no JSON object in UTF-8", "one query on each line"),
        ('{"text": "caf\udce9", "label": "coding"}', "it is no JSON object in UTF-8", "one query on each line"),
        ("[" * 200_000, "it is no JSON object in UTF-8", "one query on each line"),
        ('{"label": "coding"}', "it has no query", "`text`"),
        ('{"text": " ", "label": "coding"}', "it has no query", "`text`"),
        ('{"text": ["a"], "label": "coding"}', "it has no query", "`text`"),
        ('{"text": "a"}', "`label` is no kind of work", "coding, reasoning"),
        ('{"text": "a", "label": "cooking"}', "`label` is no kind of work", "coding, reasoning"),
        ('{"text": "a", "label": ["coding"]}', "`label` is no kind of work", "coding, reasoning"),
        ('{"text": "a", "label": "coding", "also": 3}', "`also` is no kind of work", "coding, reasoning"),
        ('{"text": "a", "label": "coding", "needs_code_context": 1}', "needs_code_context is not true", "leave it out"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, hint: str) -> None:
    Path("mine.jsonl").write_bytes(f"{GOOD}\n\n{line}\n{GOOD}\n".encode("utf-8", "surrogateescape"))
    result = run("eval", "classify", "mine.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Error: mine.jsonl:3: {message}" in result.stderr
    assert hint in result.stderr.splitlines()[1]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_queries_is_refused(content: bytes) -> None:
    Path("mine.jsonl").write_bytes(content)
    result = run("eval", "classify", "mine.jsonl")
    assert result.exit_code == 2
    assert "Error: mine.jsonl: it holds no query\nHint: a line is" in result.stderr


def test_what_cannot_be_read_or_written_is_named() -> None:
    assert "Error: gone.jsonl: No such file" in run("eval", "classify", "gone.jsonl").stderr
    assert "Error: .: it is no regular file" in run("eval", "classify", ".").stderr
    result = run("eval", "classify", write(GOOD), "--plot", "no/folder.svg")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: no/folder.svg: No such file" in result.stderr


def test_a_plot_does_not_take_the_place_of_the_queries() -> None:
    result = run("eval", "classify", write(GOOD), "--plot", "mine.jsonl")
    assert result.exit_code == 2
    assert "ends in .svg" in result.stderr
    assert Path("mine.jsonl").read_text() == f"{GOOD}\n"
