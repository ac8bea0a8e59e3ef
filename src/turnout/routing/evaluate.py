"""How good a classifier of queries is, from what it said of labelled ones. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from turnout.routing.classifier import ClassificationResult
from turnout.types import TaskCategory

BINS = 10


@dataclass(frozen=True, slots=True)
class Label:
    """What people say of a query.

    Attributes:
        category: the kind of work.
        also: a second one that can be defended.
        needs_code_context: answering well needs the workspace; None when nobody said.
    """

    category: TaskCategory
    also: TaskCategory | None = None
    needs_code_context: bool | None = None


Judged: TypeAlias = tuple[Label, ClassificationResult]


@dataclass(frozen=True, slots=True)
class Score:
    """How well one answer is found; each 0 to 1.

    Attributes:
        labelled: how many queries have this label.
        said: of how many it was said.
        hits: of how many rightly.
    """

    labelled: int
    said: int
    hits: int

    @property
    def precision(self) -> float | None:
        """None when it was said of no query."""
        return self.hits / self.said if self.said else None

    @property
    def recall(self) -> float | None:
        """None when no query has the label."""
        return self.hits / self.labelled if self.labelled else None

    @property
    def f1(self) -> float | None:
        """None when it was neither said nor a label."""
        both = self.labelled + self.said
        return 2 * self.hits / both if both else None


@dataclass(frozen=True, slots=True)
class Bin:
    """The queries of one tenth of confidence.

    Attributes:
        queries: how many; never 0.
        confidence: their mean.
        accuracy: the share of them that was right.
    """

    queries: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of a classifier on a set of queries; shares are 0 to 1.

    Attributes:
        accuracy: the share whose label was said.
        accuracy_either: the same, where the second label is as good.
        macro_f1: the mean F1 of the categories that are a label or were said.
        categories: the score of each.
        confusion: how many queries of a label were called what.
        calibration_error: how far confidence is from accuracy in a bin, weighed by its queries.
        bins: those with queries, the least sure first.
        code_context: of the queries where it is labelled whether the workspace is needed, that it is; None without any.
    """

    queries: int
    accuracy: float
    accuracy_either: float
    macro_f1: float
    categories: Mapping[TaskCategory, Score]
    confusion: Mapping[TaskCategory, Mapping[TaskCategory, int]]
    calibration_error: float
    bins: tuple[Bin, ...]
    code_context: Score | None


def evaluate(judged: Sequence[Judged]) -> Evaluation:
    """The measures of what was said of labelled queries.

    Args:
        judged: at least one.
    """
    right = [result.category is label.category for label, result in judged]
    either = [result.category in (label.category, label.also) for label, result in judged]
    categories = {
        category: _score((label.category is category, result.category is category) for label, result in judged)
        for category in TaskCategory
    }
    f1s = [score.f1 for score in categories.values() if score.f1 is not None]
    pairs = Counter((label.category, result.category) for label, result in judged)
    bins = _bins([(result.confidence, hit) for (_, result), hit in zip(judged, right, strict=True)])
    context = [(label.needs_code_context, r.needs_code_context) for label, r in judged]
    known = [(wanted, said) for wanted, said in context if wanted is not None]
    return Evaluation(
        len(judged),
        sum(right) / len(judged),
        sum(either) / len(judged),
        sum(f1s) / len(f1s),
        categories,
        {label: {said: pairs[label, said] for said in TaskCategory} for label in TaskCategory},
        sum(abs(b.confidence - b.accuracy) * b.queries for b in bins) / len(judged),
        bins,
        _score(known) if known else None,
    )


def _score(each: Iterable[tuple[bool, bool]]) -> Score:
    """Of pairs of what is labelled and what was said."""
    counts = Counter(each)
    hits = counts[True, True]
    return Score(hits + counts[True, False], hits + counts[False, True], hits)


def _bins(each: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, hit in each:
        groups[min(int(confidence * BINS), BINS - 1)].append((confidence, hit))
    return tuple(
        Bin(len(group), sum(sure for sure, _ in group) / len(group), sum(hit for _, hit in group) / len(group))
        for group in groups
        if group
    )
