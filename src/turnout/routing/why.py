"""Why a model has its scores: every term of each category, for ``turnout models --why``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from turnout.routing.capabilities import CapabilityTable, ModelCapability, Rating, build_of
from turnout.routing.estimate import Term, bounded, effective_size, is_coder, terms
from turnout.routing.evidence import Evidence, Weighed, coding_terms, mean, other_terms
from turnout.routing.names import ModelName, parse_model_name
from turnout.types import Model, TaskCategory


@dataclass(frozen=True, slots=True)
class Scored:
    """How one category's score came about.

    Attributes:
        score: what it is in the end, 1 to 99.
        weighed: what it is the weighted mean of; empty when somebody wrote it down.
        expected: what the first of them is the sum of.
        least: the score of a smaller model of its series, where that was taken; 0.0 where not.
        build: what is added for the build that a server has, by what it is.
        written: the score in the user's file, or None.
    """

    score: float
    weighed: tuple[Weighed, ...]
    expected: tuple[Term, ...]
    least: float
    build: Mapping[str, float]
    written: float | None = None


@dataclass(frozen=True, slots=True)
class Reasons:
    """All of a model's scores. ``row`` is the model that it is, ``like`` the one that it was made from."""

    row: ModelCapability | None
    like: ModelCapability | None
    source: str
    scores: Mapping[TaskCategory, Scored]


def scored(evidence: Evidence, table: CapabilityTable, row: ModelCapability, category: TaskCategory) -> Scored:
    """A shipped row's score."""
    sums = terms(table.lines, row.name, row.params, row.active, row.year)
    weighed = coding_terms(evidence, row.id, sum(term.points for term in sums))
    if category is not TaskCategory.CODING:
        coding = mean(weighed)
        contrast = table.lines.contrasts[category]
        away = contrast.of(effective_size(row.params, row.active), is_coder(row.name))
        sums = (Term("coding, before it is rounded", coding), Term(f"{category} from coding", away))
        weighed = other_terms(evidence, row.id, category, coding + away)
    least = evidence.least.get(row.id, {}).get(category, 0.0)
    return Scored(bounded(max(mean(weighed), least)), tuple(weighed), sums, least, {})


def why(model: Model, table: CapabilityTable, shipped: CapabilityTable, evidence: Evidence) -> Reasons:
    """Why a served model, or any name, has its scores.

    Args:
        table: the table in use.
        shipped: the one without the user's file.
    """
    rating, name = table.rate(model), parse_model_name(model.id)
    if name.purpose != "chat":
        return Reasons(None, None, rating.source, {})
    row = table.resolve(model.id)
    like = row or table.base_of(name)
    finetune = row is None and (like is not None or bool(name.derived))
    build = build_of(name, model.quantization.lower() or name.quantization, finetune=finetune)
    found = {}
    for category in TaskCategory:
        if like is not None and shipped.get(like.id) is like:
            one = scored(evidence, table, like, category)
        elif like is not None and category in like.scores:
            one = Scored(0.0, (), (), 0.0, {}, like.scores[category])
        else:
            one = Scored(0.0, (), _estimated(table, category, name, rating, like), 0.0, {})
        found[category] = replace(one, score=rating.scores[category], build=build)
    return Reasons(row, None if row else like, rating.source, found)


def _estimated(
    table: CapabilityTable, category: TaskCategory, name: ModelName, rating: Rating, like: ModelCapability | None
) -> tuple[Term, ...]:
    """What adds up to a score that nobody wrote down and no result speaks for."""
    if like is not None and TaskCategory.CODING in like.scores:
        coding: tuple[Term, ...] = (Term("coding in the user's file", like.scores[TaskCategory.CODING]),)
    else:
        coding = terms(table.lines, name, rating.params, rating.active, like.year if like else 0.0)
    if category is TaskCategory.CODING:
        return coding
    away = table.lines.contrasts[category].of(effective_size(rating.params, rating.active), is_coder(name))
    return (*coding, Term(f"{category} from coding", away))
