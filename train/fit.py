"""One scale for the results of many benchmarks, and the line of what size, age and family let expect.

Every model has one coding score in points. A benchmark has a middle and a slope by which the logit of its value follows
that score, with a noise of its own; a model's score is pulled towards the line of its size, age, family and series, as far
as little is known of it. All are found in turns, each as the most likely given the others, until nothing moves. The same
results give the same bytes: no random numbers, a fixed order, plain arithmetic.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

from turnout.routing.estimate import (
    UNKNOWN_FAMILY,
    Contrast,
    Lines,
    above_large,
    doublings,
    effective_size,
    is_coder,
    of_size,
)
from turnout.routing.evidence import OPINION, Benchmark, Result, weigh
from turnout.routing.names import ModelName
from turnout.types import TaskCategory

CODING = TaskCategory.CODING
ROUNDS = 300
CENTRE, SPREAD = 47.0, 19.0  # points: mean and deviation of the measured models of the table
# How far (points) models lie from what size, age, family and series let expect, and what families and series lie apart.
EXPECTED, FAMILY, SERIES = 9.0, 7.0, 7.0
RELATED = 12.0  # points by which a category lies from what coding lets expect
STEADY = 6.0  # results by which a benchmark's slope and noise are held to the usual
NOISE, LEAST_NOISE = 10.0, 6.0  # points, the usual and the least: a benchmark is never the work itself
OPINION_NOISE = 18.0  # what one author thinks is worth a ninth of a benchmark
UNMEASURED_NOISE = 12.0  # where nobody measured, his number of a model is worth as much as what coding lets expect
OPINION_COUNTS = 0.5  # and of what he thinks that being made for code costs elsewhere, half is believed
SLOPE_VARIES = 0.25  # of the usual slope
LEAST_WEIGHED = 1e-4  # the weight, in results, of the line for a model of which no size or age is known


@dataclass(frozen=True)
class Subject:
    """A model with results: of the table, or of another name that is there to compare benchmarks by.

    ``params`` and ``active`` are billions, ``year`` 0.0 when nobody says it.
    """

    key: str
    name: ModelName
    params: float
    active: float
    year: float
    listed: bool

    @property
    def known(self) -> bool:
        return bool(self.params and self.year)

    @property
    def effective(self) -> float:
        return effective_size(self.params, self.active)

    @property
    def coder(self) -> bool:
        return is_coder(self.name)


@dataclass(frozen=True)
class Fit:
    """What was found."""

    benchmarks: Mapping[str, Benchmark]
    lines: Lines
    scores: Mapping[str, float]


def fit(
    subjects: Sequence[Subject], results: Mapping[str, Sequence[Result]], benchmarks: Mapping[str, Benchmark]
) -> Fit:
    """Everything that tells of coding."""
    coding = {key: b for key, b in benchmarks.items() if b.category is CODING}
    mine = {s.key: [r for r in results.get(s.key, ()) if r.benchmark in coding] for s in subjects}
    used = [s for s in subjects if mine[s.key]]
    measured = [s.key for s in used if s.listed]
    scores = _scaled({s.key: 6 * doublings(s.effective) + 8 * (s.year - 2024 if s.year else 0) for s in used}, measured)
    found = Fit(coding, Lines(0.0, 6.0, 0.0, 8.0, 0.0, 2024.5), scores)
    for _ in range(ROUNDS):
        fitted = _benchmarks(coding, mine, found.scores)
        lines = line(used, found.scores)
        scores = {}
        for s in used:
            prior = EXPECTED**-2 * (1 if s.known else LEAST_WEIGHED)
            weighed = weigh(mine[s.key], fitted, CODING)
            total = prior * expected(lines, s) + sum(w.points * w.weight for w in weighed)
            scores[s.key] = total / (prior + sum(w.weight for w in weighed))
        found = Fit(fitted, lines, _scaled(scores, measured))
    return replace(found, lines=line(used, found.scores), benchmarks=_benchmarks(coding, mine, found.scores))


def _scaled(scores: Mapping[str, float], measured: Sequence[str]) -> dict[str, float]:
    values = [scores[key] for key in measured]
    middle, wide = fmean(values), pstdev(values)
    return {key: CENTRE + SPREAD * (score - middle) / wide for key, score in scores.items()}


def expected(lines: Lines, s: Subject) -> float:
    """Of a model's size, age, family and series."""
    return (
        lines.constant
        + of_size(lines, s.effective)
        + lines.year * (s.year - lines.middle if s.year else 0.0)
        + (lines.code if s.coder else 0.0)
        + lines.families.get(s.name.family, UNKNOWN_FAMILY if lines.families else 0.0)
        + lines.series.get(s.name.series, 0.0)
    )


def line(subjects: Sequence[Subject], scores: Mapping[str, float]) -> Lines:
    """The line through the models whose size and age are known, then families and series beside it."""
    known = [s for s in subjects if s.known]
    lines = Lines(0.0, 6.0, 0.0, 8.0, 0.0, 2024.5)
    for _ in range(20):
        bare = [scores[s.key] - _apart(lines, s) for s in known]
        rows = [
            [1.0, doublings(s.effective), above_large(s.effective), s.year - lines.middle, float(s.coder)]
            for s in known
        ]
        constant, size, large, year, code = least_squares(rows, bare)
        lines = replace(lines, constant=constant, size=size, large=large, year=year, code=code)
        lines = replace(lines, families=_groups(lines, known, scores, "family", FAMILY))
        lines = replace(lines, series=_groups(lines, known, scores, "series", SERIES))
    return lines


def _apart(lines: Lines, s: Subject) -> float:
    return lines.families.get(s.name.family, UNKNOWN_FAMILY if lines.families else 0.0) + lines.series.get(
        s.name.series, 0.0
    )


def _groups(
    lines: Lines, subjects: Sequence[Subject], scores: Mapping[str, float], kind: str, wide: float
) -> dict[str, float]:
    """How far each family or series lies apart, pulled to nothing by how few models speak for it."""
    left: dict[str, list[float]] = defaultdict(list)
    before = lines.families if kind == "family" else lines.series
    for s in subjects:
        group = getattr(s.name, kind)
        if group:
            left[group].append(
                scores[s.key]
                - expected(lines, s)
                + before.get(group, UNKNOWN_FAMILY if before and kind == "family" else 0.0)
            )
    return {group: sum(each) / (len(each) + (EXPECTED / wide) ** 2) for group, each in sorted(left.items())}


def _benchmarks(
    benchmarks: Mapping[str, Benchmark], results: Mapping[str, Sequence[Result]], scores: Mapping[str, float]
) -> dict[str, Benchmark]:
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key in sorted(results):
        for result in results[key]:
            pairs[result.benchmark].append((scores[key], benchmarks[result.benchmark].measure(result.value)))
    many = [_slope(each) for key, each in pairs.items() if len(each) >= 15 and benchmarks[key].suite != OPINION]
    usual = fmean(many) if many else 0.067
    return {key: calibrated(b, pairs[key], usual) for key, b in benchmarks.items() if pairs[key]}


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = fmean(p[0] for p in pairs), fmean(p[1] for p in pairs)
    return sum((p[0] - x) * (p[1] - y) for p in pairs) / sum((p[0] - x) ** 2 for p in pairs)


def calibrated(benchmark: Benchmark, pairs: Sequence[tuple[float, float]], usual: float) -> Benchmark:
    """Middle, slope and noise of a benchmark, from scores and measures; held to the usual where there are few.

    What the owner wrote is no share of solved tasks: its slope is its own.
    """
    opinion = benchmark.suite == OPINION
    x, y = fmean(p[0] for p in pairs), fmean(p[1] for p in pairs)
    apart = sum((p[0] - x) ** 2 for p in pairs)
    joint = sum((p[0] - x) * (p[1] - y) for p in pairs)
    # As many points of a model's noise as the slope may vary: what a few results say of it counts by how far apart they are.
    hold = 0.0 if opinion else (NOISE / SLOPE_VARIES) ** 2
    slope = (joint + usual * hold) / (apart + hold)
    slope = max(slope, 0.0027 if opinion else usual / 3)
    left = sum(((p[1] - y) / slope - (p[0] - x)) ** 2 for p in pairs)
    noise = math.sqrt((left + STEADY * NOISE**2) / (max(0, len(pairs) - 2) + STEADY))
    return replace(
        benchmark,
        middle=x - y / slope,
        slope=slope,
        noise=max(noise, OPINION_NOISE if opinion else LEAST_NOISE),
        results=len(pairs),
    )


def contrasts(
    subjects: Sequence[Subject], opinions: Mapping[str, Mapping[TaskCategory, float]], worth: float
) -> dict[TaskCategory, Contrast]:
    """How far each category lies from coding, by the owner's numbers: nobody has measured it.

    Args:
        opinions: the owner's numbers by model.
        worth: points of a score that one of his is worth.
    """
    mine = [s for s in subjects if s.key in opinions]
    rows = [[1.0, doublings(s.effective), float(s.coder)] for s in mine]
    found = {}
    for category in TaskCategory:
        if category is CODING:
            continue
        gaps = [worth * (opinions[s.key][category] - opinions[s.key][CODING]) for s in mine]
        constant, size, code = least_squares(rows, gaps)
        found[category] = Contrast(constant, size, OPINION_COUNTS * code)
    return found


def others(
    found: Fit,
    subjects: Sequence[Subject],
    results: Mapping[str, Sequence[Result]],
    benchmarks: Mapping[str, Benchmark],
) -> dict[str, Benchmark]:
    """The benchmarks of the other categories, on the scale of what coding lets expect of a model."""
    usual = fmean(b.slope for b in found.benchmarks.values() if b.suite != OPINION)
    owner = next((b for b in found.benchmarks.values() if b.suite == OPINION), None)
    whole = {}
    for key, benchmark in benchmarks.items():
        if benchmark.category is CODING:
            continue
        if benchmark.suite == OPINION and owner is not None:
            # One author with one scale: what he means by a number is known from coding alone.
            whole[key] = replace(
                benchmark, middle=owner.middle, slope=owner.slope, noise=UNMEASURED_NOISE, results=owner.results
            )
            continue
        pairs = []
        for s in subjects:
            if s.key in found.scores:
                at = found.scores[s.key] + found.lines.contrasts[benchmark.category].of(s.effective, s.coder)
                pairs += [(at, benchmark.measure(r.value)) for r in results.get(s.key, ()) if r.benchmark == key]
        if pairs:
            whole[key] = calibrated(benchmark, pairs, usual)
    return whole


def least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The coefficients; a hair of ridge keeps what no row tells of at 0."""
    width = len(rows[0])
    left = [[sum(r[i] * r[j] for r in rows) + (1e-6 if i == j else 0.0) for j in range(width)] for i in range(width)]
    right = [sum(r[i] * v for r, v in zip(rows, values, strict=True)) for i in range(width)]
    for i in range(width):
        for j in range(i + 1, width):
            share = left[j][i] / left[i][i]
            left[j] = [a - share * b for a, b in zip(left[j], left[i], strict=True)]
            right[j] -= share * right[i]
    found = [0.0] * width
    for i in reversed(range(width)):
        found[i] = (right[i] - sum(left[i][j] * found[j] for j in range(i + 1, width))) / left[i][i]
    return found
