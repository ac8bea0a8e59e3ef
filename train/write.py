"""The two files that ship, as TOML, from what ``train/models.py`` computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.routing.estimate import Lines
from turnout.routing.evidence import OPINION, Evidence, Result
from turnout.types import Json, TaskCategory

if TYPE_CHECKING:
    from models import Data, Scored

HEAD = """\
# The capability table (SPEC SEL-1), computed by `train/models.py` (`make table DATA=...`): change train/models.toml or the
# script, never this file. Billions of parameters, tokens of window; memory is computed when it is needed, not stored.
# Scores are 0 to 100 points on one scale of ours, on which a 2024 model of eight billion parameters has about 40. How each
# was computed, from which results of which list and date, is in evidence.toml: `turnout models --why MODEL` shows it. Made of
"""
EVIDENCE_HEAD = """\
# Every public result that the scores of models.toml were computed from, written by `train/models.py` from the same files.
# A result is [benchmark, per cent, date, the name in that list]; `expected` and `related` are how far, in points, a model
# lies from what its size, age and family let expect, and a category from what coding lets expect. A score is the mean of
# what speaks for it, each weighed by 1 / noise^2; the results of one suite count as one. `least`: no result, and a smaller
# model of the series has more. Made of
"""
FIELDS = ("params", "active", "sizes", "window", "tier", "capabilities", "aliases", "released")


def write_tables(folder: Path, data: Data, scored: Scored) -> None:
    """``models.toml`` and ``evidence.toml``."""
    digests = [f"#   {name} SHA-256 {digest}" for name, digest in sorted(data.digests.items())]
    (folder / "models.toml").write_text("\n".join((HEAD.rstrip(), *digests, "", *_models(data, scored))), "utf-8")
    text = "\n".join((EVIDENCE_HEAD.rstrip(), *digests, "", *_evidence(scored.evidence)))
    (folder / "evidence.toml").write_text(text, "utf-8")


def _models(data: Data, scored: Scored) -> Iterable[str]:
    yield from _lines(scored.lines)
    yield "[lists]"
    for category, names in data.lists.items():
        yield f"{category} = [" + "".join(f"\n    {_value(name)}," for name in names) + "\n]"
    for key, row in data.rows.items():
        yield f'\n[models."{key}"]'
        yield from (f"{field} = {_value(row[field])}" for field in FIELDS if field in row)
        yield f"source = {_value(_source(scored.evidence.results.get(key, ())))}"
        numbers = ", ".join(f"{c.value} = {n:g}" for c, n in scored.scores[key].items())
        yield f"scores = {{ {numbers} }}"
    yield ""


def _lines(lines: Lines) -> Iterable[str]:
    yield "# What is expected of a model that nobody measured, in points of coding; src/turnout/routing/estimate.py."
    yield "[lines]"
    yield from (
        f"{field} = {getattr(lines, field)}" for field in ("constant", "size", "large", "year", "code", "middle")
    )
    for category, contrast in lines.contrasts.items():
        yield f"contrasts.{category.value} = {{ constant = {contrast.constant}, size = {contrast.size}, code = {contrast.code} }}"
    for field in ("families", "series", "years"):
        yield f"\n[lines.{field}]"
        yield from (f"{_value(key)} = {value}" for key, value in sorted(getattr(lines, field).items()))
    yield ""


def _source(results: Sequence[Result]) -> str:
    """One line for a list of models."""
    from models import BENCHMARKS

    measured = [r for r in results if BENCHMARKS[r.benchmark].suite != OPINION]
    if not measured:
        return (
            "the owner's opinion, January 2025, and an estimate" if results else "estimate: from size, age and family"
        )
    suites = ", ".join(dict.fromkeys(BENCHMARKS[r.benchmark].suite for r in measured))
    kinds = {BENCHMARKS[r.benchmark].category for r in measured}
    rest = "" if kinds == set(TaskCategory) else "; estimate: " + ", ".join(c for c in TaskCategory if c not in kinds)
    results_ = "1 result" if len(measured) == 1 else f"{len(measured)} results"
    return f"{results_} to {max(r.date for r in measured)[:7]} of {suites}{rest}"


def _evidence(evidence: Evidence) -> Iterable[str]:
    yield f"expected = {evidence.expected}"
    yield f"related = {evidence.related}"
    for key, b in evidence.benchmarks.items():
        yield f'\n[benchmarks."{key}"]'
        yield f"title = {_value(b.title)}\nsuite = {_value(b.suite)}\ncategory = {_value(b.category.value)}"
        yield f"source = {_value(b.source)}"
        yield f"middle = {b.middle}\nslope = {b.slope}\nnoise = {b.noise}\nresults = {b.results}"
    yield "\n[least]"
    for key, numbers in evidence.least.items():
        yield f"{_value(key)} = {_numbers(numbers)}"
    yield "\n[results]"
    for key, results in evidence.results.items():
        yield f"{_value(key)} = ["
        yield from (
            f"    [{_value(r.benchmark)}, {float(r.value)}, {_value(r.date)}, {_value(r.listed)}]," for r in results
        )
        yield "]"
    yield ""


def _numbers(numbers: Mapping[TaskCategory, float]) -> str:
    return "{ " + ", ".join(f"{category.value} = {number}" for category, number in numbers.items()) + " }"


def _value(value: Json) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value}"
