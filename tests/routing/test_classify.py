from __future__ import annotations

import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.classify import LOOKED_AT
from turnout.routing.classify import by_rules as classify_task
from turnout.types import TaskCategory

RULES = json.loads((files("turnout.routing") / "rules.json").read_text())


def test_the_owners_table_is_whole() -> None:
    assert {category: len(patterns) for category, patterns in RULES["patterns"].items()} == {
        "coding": 7,
        "reasoning": 7,
        "analysis": 6,
        "documentation": 6,
    }
    assert len(RULES["keyword_weights"]) == 26
    assert sum(weight for _, weight in RULES["keyword_weights"].values()) == pytest.approx(12.3)
    assert len(RULES["code_context_words"]) == 8


# Worked out by hand: 0.5 per pattern, half the weight per word.
@pytest.mark.parametrize(
    ("query", "category", "confidence"),
    [
        ("Write a function that parses dates", "coding", 0.5 + 0.15),
        ("Fix the bug", "coding", 0.5 + 0.2 + 0.25),
        ("FIX THE BUG", "coding", 0.95),
        ("add tests", "coding", 0.5),
        ("fix fix fix the pipeline", "coding", 0.2),
        ("How should I approach caching?", "reasoning", 0.5 + 0.15),
        ("design the system", "reasoning", 0.5 + 0.2),
        ("What are the trade-offs between A and B", "reasoning", 0.5),
        ("find potential vulnerabilities", "analysis", 0.5),
        ("performance review of the parser", "analysis", 0.5 + 0.15 + 0.25),
        ("what could go wrong here", "analysis", 0.5),
        ("write documentation", "documentation", 0.5 + 0.5),
        ("create a readme", "documentation", 0.5 + 0.4),
        ("describe how this works", "documentation", 0.5),
        ("refactor the code: fix the bug, debug and test it, add logging", "coding", 1.0),
    ],
)
def test_patterns_and_words(query: str, category: str, confidence: float) -> None:
    result = classify_task(query)
    assert result.category == category
    assert result.confidence == pytest.approx(confidence)


@pytest.mark.parametrize("query", ["", "hello", "the latest prefix of the contest", "explain", "compile 漢字 \ud800"])
def test_an_unsure_query_is_coding(query: str) -> None:
    result = classify_task(query)
    assert (result.category, result.confidence) == (TaskCategory.CODING, 0.5)
    assert result.evidence[-1].startswith("no rule is sure")


def test_the_least_sure_score_counts() -> None:
    assert classify_task("a recommendation: recommend").category is TaskCategory.REASONING


@pytest.mark.parametrize("words", RULES["code_context_words"])
def test_words_that_need_code_context(words: str) -> None:
    assert classify_task(f"please {words.upper()} it").needs_code_context
    assert not classify_task("please write a function").needs_code_context


def test_analysis_needs_code_context() -> None:
    assert classify_task("audit").needs_code_context


def test_the_evidence_names_every_rule_that_fired() -> None:
    assert classify_task("Please fix   the\nbug").evidence == (
        "coding: “fix the bug”",
        "coding: the word fix",
        "coding: the word bug",
    )
    assert classify_task("fix the bug").scores[TaskCategory.CODING] == pytest.approx(0.95)


def test_of_ten_megabytes_the_beginning_and_the_end_decide() -> None:
    filler = "x " * 5_000_000
    assert classify_task(f"write a readme\n{filler}").category is TaskCategory.DOCUMENTATION
    assert classify_task(f"{filler}\nwrite a readme").category is TaskCategory.DOCUMENTATION
    middle = f"{'x ' * LOOKED_AT}write a readme{'x ' * LOOKED_AT}"
    assert classify_task(middle).category is TaskCategory.CODING


@given(st.text(), st.sampled_from(["", "fix the bug ", "audit ", "design "]))
def test_what_always_holds(text: str, start: str) -> None:
    result = classify_task(start + text)
    assert 0.2 <= result.confidence <= 1
    assert result.evidence
    assert result == classify_task(start + text)
    assert result.scores[result.category] == max(result.scores.values()) or result.confidence == 0.5
