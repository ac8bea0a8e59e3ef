"""What kind of work a query is (SPEC TASK-1 to TASK-3): by what was learned, or by the owner's rules, which are
patterns, weighted words and a default."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files

import msgspec

from turnout.routing.classifier import ClassificationResult, shipped
from turnout.types import TaskCategory

MAX_REMEMBERED = 512
PATTERN_SCORE, KEYWORD_FACTOR, LEAST_SCORE, DEFAULT_CONFIDENCE = 0.5, 0.5, 0.2, 0.5
# What is asked stands at the beginning or the end; the middle of a long paste decides nothing.
LOOKED_AT = 8192


class _Rules(msgspec.Struct, frozen=True):
    patterns: dict[TaskCategory, tuple[str, ...]]
    keyword_weights: dict[str, tuple[TaskCategory, float]]
    code_context_words: tuple[str, ...]


@lru_cache(maxsize=1)
def _rules() -> _Rules:
    return msgspec.json.decode((files("turnout.routing") / "rules.json").read_bytes(), type=_Rules)


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[TaskCategory, re.Pattern[str]], ...]:
    return tuple(
        (category, re.compile(pattern, re.IGNORECASE))
        for category, patterns in _rules().patterns.items()
        for pattern in patterns
    )


@lru_cache(maxsize=1)
def _words() -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(map(re.escape, _rules().keyword_weights)) + r")\b")


def classify_task(query: str, policy: str = "learned", *, explained: bool = True) -> ClassificationResult:
    """The kind of work of a query, with confidence and evidence.

    Args:
        query: what is asked.
        policy: ``learned`` or ``rules``.
        explained: with evidence, which ``learned`` can leave out to be quicker.

    Example::

        classify_task("Refactor this function").category  # TaskCategory.CODING
    """
    if policy == "rules":
        return by_rules(query)
    if not query.strip():
        return ClassificationResult(TaskCategory.CODING, DEFAULT_CONFIDENCE, ("nothing is said: coding by default",))
    kind = b"explained" if explained else b""
    key = blake2b(query.encode("utf-8", "surrogatepass"), digest_size=16, key=kind).digest()
    known = _remembered.get(key)
    if known is None:
        known = _remembered[key] = shipped().classify(query, explained=explained)
        if len(_remembered) > MAX_REMEMBERED:
            _remembered.pop(next(iter(_remembered)), None)
    return known


# An agent asks many times with the same newest question. By a digest: nobody's words are kept.
_remembered: dict[bytes, ClassificationResult] = {}


def by_rules(query: str) -> ClassificationResult:
    """The owner's rules, with those that fired.

    A word counts once, as a whole word: "test" is no part of "latest".
    """
    text = (query if len(query) <= 2 * LOOKED_AT else f"{query[:LOOKED_AT]}\n{query[-LOOKED_AT:]}").lower()
    scores = dict.fromkeys(TaskCategory, 0.0)
    evidence: list[str] = []
    for category, pattern in _patterns():
        if match := pattern.search(text):
            scores[category] += PATTERN_SCORE
            evidence.append(f"{category}: “{' '.join(match[0].split())}”")
    for word in dict.fromkeys(_words().findall(text)):
        category, weight = _rules().keyword_weights[word]
        scores[category] += KEYWORD_FACTOR * weight
        evidence.append(f"{category}: the word {word}")
    best = max(scores, key=lambda c: scores[c])
    confidence = min(1.0, scores[best])
    if confidence < LEAST_SCORE:
        best, confidence = TaskCategory.CODING, DEFAULT_CONFIDENCE
        evidence.append(f"no rule is sure: coding by default, at confidence {confidence:.2f}")
    needs = best is TaskCategory.ANALYSIS or any(word in text for word in _rules().code_context_words)
    return ClassificationResult(best, confidence, tuple(evidence), needs, scores)
