"""What a model is expected to be good for before anybody measured it: from size, age, family and being made for code.

The constants are fitted to public results by ``train/models.py`` and lie in ``models.toml``. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from turnout.routing.names import ModelName
from turnout.types import TaskCategory

_CODE_LINES = frozenset({"codellama", "codegemma", "codeqwen", "codestral", "devstral", "devstral-2",
                         "starcoder", "starcoder2",
                         "wizardcoder", "wizardcoder-python", "magicoder", "opencoder", "deepcoder"})  # fmt: skip
# A model of a family that nobody measured goes behind one that is known: those that are good are measured soon.
UNKNOWN_FAMILY = -5.0
EARLIEST, LATEST = 2020.0, 2030.0  # years beyond which the line says nothing more
SMALLEST, LARGE = 0.1, 8.0  # billions: what is smaller is all alike; above this a doubling is worth less
_PARTS = re.compile(r"[-.]")
_BITS = (
    (r"[dt]?i?q1", 2.0),
    (r"[dt]?i?q2|int2|2(?:\.\d+)?_?b", 2.8),
    (r"[dt]?i?q3|3(?:\.\d+|_\d+)?_?b", 3.7),
    (r"[dt]?i?q4|u?int4|4(?:\.\d+|_\d+)?_?b|awq|gptq|mxfp4|nvfp4|nf4|w4", 4.7),
    (r"[dt]?i?q5|5(?:\.\d+|_\d+)?_?b", 5.6),
    (r"[dt]?i?q6|6(?:\.\d+|_\d+)?_?b|mxfp6", 6.6),
    (r"[dt]?i?q8|u?int8|8(?:\.\d+|_\d+)?_?b|fp8|w8|mxfp8", 8.5),
    (r"b?fp?16", 16.0),
    (r"fp?32", 32.0),
)
_COMMON_BITS = 4.7  # what local servers serve when they do not say


@dataclass(frozen=True, slots=True)
class Contrast:
    """How far a category's score is from the one of coding, in points; for a doubling of the size, and for a coder."""

    constant: float
    size: float
    code: float

    def of(self, effective: float, coder: bool) -> float:
        """The difference of a model."""
        return self.constant + self.size * doublings(effective) + (self.code if coder else 0.0)


@dataclass(frozen=True, slots=True)
class Lines:
    """What is expected of a model's coding, in points of a score, and of its other categories from that.

    Attributes:
        constant: of a dense model of one billion parameters in ``middle``.
        size, large: for each doubling of the size, and what of that is gone above ``LARGE``.
        year: for each year after ``middle``.
        code: for a model that is made for code.
        middle: the year of release that is taken when nobody knows it.
        families, series: how far each is from that line, pulled to 0 by how little is known.
        years: of each series in the table.
        contrasts: of the other categories.
    """

    constant: float
    size: float
    large: float
    year: float
    code: float
    middle: float
    families: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, float] = field(default_factory=dict)
    years: Mapping[str, float] = field(default_factory=dict)
    contrasts: Mapping[TaskCategory, Contrast] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Term:
    """One reason for an estimate: what it is, and its points."""

    what: str
    points: float


def doublings(effective: float) -> float:
    """Of one billion parameters, below 0 for fewer; of three billion where nobody says how many."""
    return math.log2(max(effective, SMALLEST) if effective else 3.0)


def above_large(effective: float) -> float:
    """Doublings of ``LARGE``, 0 for what is smaller."""
    return max(0.0, doublings(effective) - math.log2(LARGE))


def effective_size(params: float, active: float) -> float:
    """Billions; experts count as the geometric mean of total and active parameters."""
    return math.sqrt(params * active) if active else params


def of_size(lines: Lines, effective: float) -> float:
    """Points for a model's size."""
    return lines.size * doublings(effective) + lines.large * above_large(effective)


def is_coder(name: ModelName) -> bool:
    """Whether a model is made for code, by its name."""
    return "coder" in name.series or "code" in _PARTS.split(name.series) or name.series in _CODE_LINES


_UNTOLD = "3 billion parameters, assumed: the name does not tell"


def terms(lines: Lines, name: ModelName, params: float, active: float, year: float = 0.0) -> tuple[Term, ...]:
    """What adds up to the coding score that is expected of a model, without its build.

    Args:
        year: of its release, 0 for its series' own.
    """
    effective = effective_size(params, active)
    when = min(LATEST, max(EARLIEST, year or lines.years.get(name.series, lines.middle)))
    found = [
        Term("every model", lines.constant),
        Term(f"{effective:.3g} billion parameters" if effective else _UNTOLD, of_size(lines, effective)),
        Term(f"released about {when:.1f}", lines.year * (when - lines.middle)),
    ]
    if is_coder(name):
        found.append(Term("made for code", lines.code))
    if name.family not in lines.families:
        return (*found, Term("a family that nobody measured", UNKNOWN_FAMILY))
    found.append(Term(f"family {name.family}", lines.families[name.family]))
    if name.series in lines.series:
        found.append(Term(f"series {name.series}", lines.series[name.series]))
    return tuple(found)


def estimate(
    lines: Lines, name: ModelName, params: float, active: float, year: float = 0.0
) -> dict[TaskCategory, float]:
    """Every category's score without evidence, not yet bounded."""
    coding = sum(term.points for term in terms(lines, name, params, active, year))
    return spread(lines, coding, effective_size(params, active), is_coder(name))


def spread(lines: Lines, coding: float, effective: float, coder: bool) -> dict[TaskCategory, float]:
    """Every category's expected score, from the one of coding."""
    others = {c: coding + contrast.of(effective, coder) for c, contrast in lines.contrasts.items()}
    return {TaskCategory.CODING: coding, **others}


def bits_of(quantization: str) -> float:
    """Bits that a weight takes, as the name of a quantisation says; the usual where it says nothing."""
    lowered = quantization.lower().replace("-", "_")
    return next((bits for pattern, bits in _BITS if re.match(pattern, lowered)), _COMMON_BITS)


def quantization_penalty(quantization: str) -> float:
    """Points, 0 or less: below four bits a model loses quickly; down to four bits hardly anything."""
    return min(0.0, (bits_of(quantization) - 4.0) * 8.0) if quantization else 0.0


def bounded(points: float) -> float:
    """A score: 1 to 99."""
    return max(1.0, min(99.0, round(points, 1)))
