"""The learned classifier: its arithmetic, that what is pasted decides nothing, and what it says of plain cases."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing import classify
from turnout.routing.classifier import (
    CATEGORIES,
    IDF_STEP,
    LETTERS_WEIGH,
    OUTPUTS,
    PLACE_BITS,
    PLACES_WEIGH,
    SHAPE_WEIGHS,
    WORD_BITS,
    Classifier,
    Head,
    hash_of,
    read_file,
    shipped,
)
from turnout.routing.classify import classify_task
from turnout.routing.features import _FILE, _unwrapped, features, letters, request_of
from turnout.types import TaskCategory

BODY = (files("turnout.routing") / "classifier.bin").read_bytes()
OURS = Path(__file__).parents[2] / "train" / "queries.jsonl"
CODE = "```python\ndef review(plan):\n    return [why(design) for document in plan]\n```"
LOG = "\n".join(f"2026-01-02 10:00:0{n} INFO review of the design document" for n in range(9))
PLAIN = [
    ("Add a --dry-run option to the export command", "coding"),
    ("fix the failing login test", "coding"),
    ("rename the function parse to parse_header everywhere", "coding"),
    ("Schreibe eine Funktion, die zwei Listen zusammenführt", "coding"),
    ("把按钮的颜色改成蓝色", "coding"),
    ("Should we use Postgres or SQLite for this? What are the trade-offs?", "reasoning"),
    ("Explain the difference between a mutex and a semaphore", "reasoning"),
    ("Let's think about how to design the plugin system before any code is written", "reasoning"),
    ("Where is the retry limit used in this code base?", "analysis"),
    ("Why does our worker crash when the queue is empty?", "analysis"),
    ("Review this change for security problems", "analysis"),
    ("Write a README with installation instructions", "documentation"),
    ("Add docstrings to the public functions", "documentation"),
    ("Update the changelog for version 2.1", "documentation"),
]


@pytest.mark.parametrize(("query", "category"), PLAIN)
def test_plain_cases(query: str, category: str) -> None:
    found = classify_task(query)
    assert found.category == category
    assert found.evidence
    assert found.confidence == max(found.scores.values())


@pytest.mark.parametrize(("query", "category"), PLAIN)
def test_what_is_pasted_and_how_it_is_wrapped_decides_nothing(query: str, category: str) -> None:
    changed = (
        f"{query}\n\n{CODE}",
        f"{query}\n{LOG}",
        f"<user_query>\n{query}\n</user_query>",
        f"<environment_details>\n# Open files\nreview.md\n</environment_details>\n{query}",
    )
    assert [classify_task(text).category for text in changed] == [category] * len(changed)


def test_the_workspace_is_needed_unless_a_query_stands_by_itself() -> None:
    assert classify_task("Where is the retry limit used in this code base?").needs_code_context
    assert not classify_task("What is the difference between TCP and UDP?").needs_code_context


def test_the_sums_are_those_of_plain_arithmetic() -> None:
    weights = read_file(BODY)
    found = features("Why does our parser drop the last line? Please check src/parser.py and tell me.")

    def row(table: bytes, place: int, width: int) -> list[int]:
        return [
            v - 256 if v > 127 and n < OUTPUTS else v for n, v in enumerate(table[place * width : (place + 1) * width])
        ]

    expected = list(weights.head.bias)
    blocks = (
        (list(found.words), WORD_BITS, 1.0),
        ([g for word in found.alphabet for g in letters(word)], WORD_BITS, LETTERS_WEIGH),
    )
    for names, bits, weigh in blocks:
        rows = [row(weights.words, hash_of(name, bits), OUTPUTS + 1) for name in names]
        norm = IDF_STEP * math.sqrt(sum(r[OUTPUTS] ** 2 for r in rows))
        for n in range(OUTPUTS):
            expected[n] += weigh / norm * weights.head.scales[n] * sum(r[n] for r in rows)
    for found_names, weigh in ((found.places, PLACES_WEIGH), (found.shape, SHAPE_WEIGHS)):
        rows = [row(weights.places, hash_of(name, PLACE_BITS), OUTPUTS) for name in found_names]
        for n in range(OUTPUTS):
            expected[n] += weigh * weights.head.scales[n] * sum(r[n] for r in rows)
    assert Classifier(weights).scores(found) == pytest.approx(expected)


@given(st.text(max_size=400))
def test_whatever_is_asked_gets_shares_of_one(query: str) -> None:
    found = classify_task(query)
    assert found.category in CATEGORIES
    assert 0.0 <= found.difficulty <= 1.0
    if query.strip():
        assert sum(found.scores.values()) == pytest.approx(1.0)


def test_nothing_and_lone_surrogates_are_no_error() -> None:
    assert classify_task(" \n").category is TaskCategory.CODING
    assert classify_task("fix \ud800 the test").category in CATEGORIES


def test_the_rules_are_there_still() -> None:
    assert classify_task("hello", "rules").evidence == ("no rule is sure: coding by default, at confidence 0.50",)


def test_what_was_asked_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "_remembered", {})
    for n in range(classify.MAX_REMEMBERED + 5):
        classify_task(f"secret {n}")
    assert len(classify._remembered) == classify.MAX_REMEMBERED
    assert all(len(key) == 16 for key in classify._remembered)
    assert not any("secret" in text for text in map(str, classify._remembered.values()) if "evidence" not in text)


def test_who_needs_no_evidence_gets_the_same_without_it() -> None:
    query = "Fix the failing test of the parser, and say what was wrong"
    quick = classify_task(query, explained=False)
    whole = classify_task(query)
    assert (quick.evidence, bool(whole.evidence)) == ((), True)
    assert replace(whole, evidence=()) == quick


def test_the_request_is_told_from_what_is_under_it() -> None:
    request, code, log = request_of(
        f"Why is this slow?\n{CODE}\n{LOG}\nint main() {{ return 0; }}\nsee src/app/main.py"
    )
    assert request.split() == ["Why", "is", "this", "slow?", "zcode", "zlogline", "zcodeline", "see", "zfile"]
    assert (code, log) == (1, 9)


PYTHON = """\
import os
from x import y

@cached
def load(path):
    with open(path) as f:
        return f.read()

print(load('a'))"""
YAML = "version: '3'\nservices:\n  web:\n    image: nginx\n    ports:\n      - 80:80"
SHELL = "#!/bin/bash\nset -e\nfor f in *.txt\ndo\n  echo $f\n  cp $f /tmp\ndone"


@pytest.mark.parametrize(("pasted", "lines"), [(PYTHON, 7), (YAML, 6), (SHELL, 7)], ids=["python", "yaml", "shell"])
def test_code_without_a_fence_brace_or_semicolon_is_told_from_the_request(pasted: str, lines: int) -> None:
    request, code, _ = request_of(f"Why does this fail?\n{pasted}\nIt worked until I changed it.")
    left = [line for line in request.splitlines() if line]
    assert left == ["Why does this fail?", "zcodeline", "It worked until I changed it."]
    assert code == lines


@pytest.mark.parametrize(
    "request_alone",
    [
        "Please do these:\n- add a test\n- fix the docs\n- run make\nThanks",
        "Goal: faster builds\nLimit: two days\nTeam: all of us",
        "if you can:\nmake it shorter, please\nand explain why",
        "git pull\nwhat does this do?",
    ],
)
def test_a_list_and_a_line_of_code_are_the_request(request_alone: str) -> None:
    assert request_of(request_alone) == (request_alone, 0, 0)


@pytest.mark.parametrize("run", ["a", "w-", "/", "..", "a.", "\\", "\u00e4", "~", "@w-", "--a"])
def test_a_long_run_of_what_paths_are_made_of_is_read_once(run: str) -> None:
    """From each of its places anew it would take minutes, of the one loop that serves everybody."""
    assert len(_FILE.sub("", run * 200_000)) in (0, len(run) * 200_000)


def test_tags_without_an_end_are_looked_for_once() -> None:
    """From each beginning anew it would take minutes."""
    assert _unwrapped("<file>" * 300_000 + "a") == "<file>" * 300_000 + "a"
    text = "<rules a=1>x</files></Rules>do<file>this<FILE></file></file><logs>"
    assert _unwrapped(text) == "\ndo\n</file><logs>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see ./a/b.py, --c.py and @src/d", "see zfile , zfile and zfile"),
        ("x.y and 1/2 @e.md \\f\\g h.pyx", "x.y and zfile zfile zfile h.pyx"),
    ],
)
def test_files_are_told_from_words(text: str, found: str) -> None:
    assert request_of(text)[0].split() == found.split()


def test_the_weights_are_of_our_queries_as_they_are_and_small() -> None:
    head: Head = read_file(BODY).head
    assert head.data["queries.jsonl"] == hashlib.sha256(OURS.read_bytes()).hexdigest(), "run `make train`"
    assert {name for name in head.data if name.startswith("queries-dev")}
    assert len(BODY) < 5_000_000


@pytest.mark.parametrize("body", [b"", b"{}\n", BODY[:-1], BODY + b"x"])
def test_another_file_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="size"):
        read_file(body)


def test_words_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.routing.classifier.MAX_CACHED", 50)
    made = Classifier(read_file(BODY))
    for n in range(40):
        made.classify(f"word{n} other{n} thing{n}")
    assert len(made._words) <= 51
    assert made.classify(PLAIN[0][0]) == shipped().classify(PLAIN[0][0])
