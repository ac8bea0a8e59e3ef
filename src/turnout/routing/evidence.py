"""Why a model has its scores: public results on one scale, weighed against what is expected of its size and family.

Results of different benchmarks are made comparable by a benchmark's ``middle`` (the score of a model that solves half
of it) and ``slope``; the fit is ``train/models.py``, what it found lies in ``evidence.toml``. A score is the weighted
mean of its terms, so every one can be computed again from that file. Pure.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import msgspec

from turnout.types import TaskCategory

OPINION = "opinion"  # the suite of the owner's numbers, which are an author's opinion and not a result
EDGE = 1.0  # per cent at both ends of a scale that say nothing more


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A list of results, and what they mean on our scale.

    Attributes:
        title: what was measured and how.
        suite: results of one suite count as one together: they are of the same tasks.
        category: the kind of work it tells of.
        source: whose list it is.
        middle: points of a model with 50 per cent.
        slope: how the value's logit (for an opinion its hundredth) rises with each point.
        noise: how far a result lies from what the model's score lets expect, in points.
        results: how many the fit saw.
    """

    title: str
    suite: str
    category: TaskCategory
    source: str
    middle: float = 50.0
    slope: float = 0.05
    noise: float = 10.0
    results: int = 0

    def measure(self, value: float) -> float:
        """A value in per cent, so that its differences mean the same anywhere."""
        if self.suite == OPINION:
            return value / 100 - 0.5
        share = min(100 - EDGE, max(EDGE, value)) / 100
        return math.log(share / (1 - share))

    def points(self, value: float) -> float:
        """The score that a value speaks for."""
        return self.middle + self.measure(value) / self.slope


@dataclass(frozen=True, slots=True)
class Result:
    """A model's value, in per cent, on the benchmark of this id; ``listed`` is the model's name there."""

    benchmark: str
    value: float
    date: str
    listed: str


@dataclass(frozen=True, slots=True)
class Weighed:
    """A term of a score: what speaks for how many points, and with what weight. Weights have no unit."""

    what: str
    points: float
    weight: float
    result: Result | None = None


def weigh(results: Iterable[Result], benchmarks: Mapping[str, Benchmark], category: TaskCategory) -> list[Weighed]:
    """The results that tell of a category, each as a term."""
    mine = [result for result in results if benchmarks[result.benchmark].category is category]
    together = Counter(benchmarks[result.benchmark].suite for result in mine)
    return [
        Weighed(b.title, b.points(result.value), b.noise**-2 / together[b.suite], result)
        for result in mine
        for b in (benchmarks[result.benchmark],)
    ]


def mean(terms: Sequence[Weighed]) -> float:
    """The score that terms make together."""
    return sum(term.points * term.weight for term in terms) / sum(term.weight for term in terms)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the shipped scores were computed from.

    Attributes:
        results: by canonical name.
        expected: how far a model lies from what its size and family let expect, in points.
        related: how far a category lies from what the coding score lets expect.
        least: by canonical name and category, the score that a smaller model of its series has, where that was taken.
    """

    benchmarks: Mapping[str, Benchmark]
    results: Mapping[str, tuple[Result, ...]]
    expected: float
    related: float
    least: Mapping[str, Mapping[TaskCategory, float]]


class _Rest(msgspec.Struct):
    benchmarks: dict[str, Benchmark]
    expected: float
    related: float
    results: dict[str, tuple[tuple[str, float, str, str], ...]] = {}
    least: dict[str, dict[TaskCategory, float]] = {}


@lru_cache(maxsize=1)
def shipped_evidence() -> Evidence:
    """What the shipped scores were computed from."""
    return read_evidence((files("turnout.routing") / "evidence.toml").read_text("utf-8"))


def read_evidence(text: str) -> Evidence:
    """The same, from a file's text."""
    rest = msgspec.convert(tomllib.loads(text), _Rest)
    results = {name: tuple(Result(*row) for row in rows) for name, rows in rest.results.items()}
    return Evidence(rest.benchmarks, results, rest.expected, rest.related, rest.least)


def coding_terms(evidence: Evidence, model: str, expected: float) -> list[Weighed]:
    """What the coding score of a model is the mean of; ``expected``: of its size, age and family."""
    prior = Weighed("expected of its size, age and family", expected, evidence.expected**-2)
    return [prior, *weigh(evidence.results.get(model, ()), evidence.benchmarks, TaskCategory.CODING)]


def other_terms(evidence: Evidence, model: str, category: TaskCategory, expected: float) -> list[Weighed]:
    """What the score of another category is the mean of; ``expected``: of a model that codes like this one."""
    prior = Weighed("expected of what it is at coding", expected, evidence.related**-2)
    return [prior, *weigh(evidence.results.get(model, ()), evidence.benchmarks, category)]
