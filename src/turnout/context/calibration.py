"""What the tokens of a model's requests weigh, learned from the prompt tokens that its servers report (SPEC CTX-1).

A count is a weighted sum of what ``turnout.context.tokens`` measures of texts and messages. The weights begin with
those of the model's family and follow the reports by recursive least squares: each report moves them by as much as they
are still uncertain, in the direction that the request can tell of. Reports may be wrong in every way: what cannot be is
ignored, what is unlikely is ignored until it has been said often enough, and no weight leaves sane bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import mul
from statistics import median

# Characters per token of plain prose; the owner's start values.
FAMILY_RATIOS = {"qwen": 3.5, "llama": 3.8}
OTHER_RATIO = 4.0

# What is counted of texts, in this order; `turnout.context.tokens.features` says what each is.
TEXT_FEATURES = (
    "lower", "upper", "digit", "punctuation", "space", "newline", "lower_space", "newline_space", "punctuation_space",
    "punctuation_lower", "punctuation_upper", "punctuation_punctuation", "lower_upper", "upper_lower_upper",
    "digit_upper", "half", "symbol", "whole", "emoji",
)  # fmt: skip
# And of requests: how many there are, whether it is so, and the tokens (by `other`) of texts that templates may drop.
REQUEST_FEATURES = (
    "message", "call", "result", "tool", "image", "request", "no_system", "has_tools", "call_text", "tool_text",
    "reasoning_text",
)  # fmt: skip
TEXTS, SIZE = len(TEXT_FEATURES), len(TEXT_FEATURES) + len(REQUEST_FEATURES)
IMAGES = TEXTS + REQUEST_FEATURES.index("image")

# Tokens per count, in the order of TEXT_FEATURES, fitted by `bench/token_weights.py` to the tokenizers of Qwen 2.5,
# Llama 3.2, Gemma 3, Mistral NeMo and DeepSeek V3 (and SmolLM2 for `other`) so that REFERENCE costs the start value.
TEXT_WEIGHTS: dict[str, tuple[float, ...]] = {
    "qwen": (
        0.099, 0.11, 1.511, 0.134, 0.023, 0.269, 1.169, 0.95, 1.166, 0.82,
        1.194, 0.224, 0.135, 0.541, 1.24, 0.472, 1.118, 0.775, 0.501,
    ),
    "llama": (
        0.094, 0.145, 0.974, 0.147, 0.039, 0.47, 0.979, 0.869, 1.135, 0.897,
        0.956, 0.223, 0.109, 0.575, 2.441, 0.432, 1.633, 0.831, 1.446,
    ),
    "gemma": (
        0.099, 0.209, 1.427, 0.212, 0.055, 0.838, 0.642, 1.058, 1.111, 1.417,
        1.356, 0.0, 0.326, 0.405, 1.397, 0.342, 1.035, 0.622, 1.517,
    ),
    "mistral": (
        0.1, 0.315, 1.497, 0.181, 0.047, 0.664, 0.731, 0.736, 1.041, 0.95,
        0.725, 0.194, 0.134, 0.789, 0.486, 0.383, 1.475, 1.11, 2.937,
    ),
    "deepseek": (
        0.101, 0.255, 0.936, 0.202, 0.05, 0.672, 0.733, 0.729, 1.052, 1.108,
        1.061, 0.066, 0.176, 0.287, 3.365, 0.419, 1.305, 0.616, 0.0,
    ),
    "smollm2": (
        0.112, 0.331, 1.651, 0.275, 0.042, 1.052, 0.514, 0.0, 1.053, 1.429,
        0.975, 0.0, 0.055, 0.879, 1.465, 1.007, 1.257, 1.701, 0.108,
    ),
    "other": (
        0.102, 0.265, 1.249, 0.223, 0.055, 0.72, 0.685, 0.764, 1.035, 1.165,
        1.01, 0.039, 0.201, 0.447, 2.078, 0.413, 1.318, 0.822, 1.373,
    ),
}  # fmt: skip
# Counts per character of plain prose: half English paragraphs, half README files with their markup.
REFERENCE: tuple[float, ...] = (
    0.7293, 0.03054, 0.005964, 0.06369, 0.1535, 0.01688, 0.1213, 0.001753, 0.01941, 0.01483,
    0.002698, 0.01183, 0.001369, 6.449e-05, 3.081e-05, 7.81e-05, 5.073e-05, 3.009e-05, 5.732e-06,
)  # fmt: skip

# Of REQUEST_FEATURES: what templates of the field add.
REQUEST_WEIGHTS = (4.0, 8.0, 4.0, 8.0, 800.0, 3.0, 10.0, 40.0, 0.0, 0.0, 0.0)

# How uncertain a family's weights are, as standard deviations: all of them together and each by itself, as shares; of
# characters beyond ASCII, of which vocabularies differ most; of REQUEST_WEIGHTS, in their units.
TOGETHER, ALIKE, APART, LEAST_APART, BEYOND_ASCII = 0.1, 0.3, 0.15, 0.02, 0.2
REQUEST_SPREAD = (2.0, 8.0, 4.0, 8.0, 400.0, 10.0, 15.0, 50.0, 0.3, 0.5, 0.5)
REQUEST_LEAST = (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0)
REQUEST_MOST = (30.0, 60.0, 60.0, 100.0, 6000.0, 100.0, 200.0, 600.0, 1.0, 1.5, 1.0)
# A weight stays between these multiples of its start, and plain prose between these of its cost.
LEAST_WEIGHT, MOST_WEIGHT, SPARE_WEIGHT = 0.2, 4.0, 0.3
LEAST_COST, MOST_COST = 0.6, 2.0
# By how much a report differs although the weights are right: a share, tokens, and tokens for each image.
NOISE_SHARE, NOISE, NOISE_IMAGE = 0.05, 4.0, 400.0
# In standard deviations: how far a report may move the weights, and from where on it is doubted.
BELIEVED, DOUBTED = 1.0, 3.5
# So many doubted reports in a row that agree are believed: fewer when they say that we count too little.
TOO_LITTLE, TOO_MUCH, AGREEING = 4, 6, 1.25
FORGOTTEN = 0.003  # with each report, of what was learned about how certain the weights are
RESIDUALS, SMALL = 20, 256  # reports remembered for the margin; tokens below which errors are taken as if of so many
MARGIN, LEAST_MARGIN, MOST_MARGIN, TRIAL = 0.15, 0.03, 0.5, 10

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned of one model.

    Attributes:
        family: whose start weights it began with.
        weights: tokens per count, in the order of TEXT_FEATURES and REQUEST_FEATURES.
        covariance: how uncertain they are.
        observations: reports that were learned from.
        ignored: reports that were not.
        doubted: the reports in a row that were ignored last, as shares of what was expected.
        residuals: by which shares the latest reports were above what was expected.
    """

    family: str
    weights: Vector
    covariance: Matrix
    observations: int = 0
    ignored: int = 0
    doubted: Vector = ()
    residuals: Vector = ()

    @property
    def margin(self) -> float:
        """The share by which a true count may exceed the estimate: 0.15 at first, then what the reports showed.

        The second largest error of the latest twenty, so that a single lie does not widen it.
        """
        seen = sorted(self.residuals)[-2:]
        shown = 1.2 * seen[0] if len(seen) == 2 else 0.0
        trust = min(1.0, self.observations / TRIAL)
        return min(MOST_MARGIN, max(LEAST_MARGIN, shown, MARGIN * (1.0 - trust)))

    def share(self, name: str) -> float:
        """How many tokens a droppable text, as REQUEST_FEATURES names it, costs for each that it would elsewhere."""
        added = self.weights[TEXTS + REQUEST_FEATURES.index(name)]
        costs = _dot(self.weights, REFERENCE)
        return max(0.0, 1.0 + added * _dot(TEXT_WEIGHTS["other"], REFERENCE) / costs)


def prior(model_name: str) -> Calibration:
    """What is assumed of a model of which nothing was learned, by its name."""
    return _prior(_family(model_name))


def of_ratio(ratio: float) -> Calibration:
    """A start value by itself: so many characters per token whatever they are, two beyond Latin, one where a script has
    no spaces."""
    share = 1.0 / ratio
    weights = [share] * 6 + [0.0] * (TEXTS - 10) + [0.5, 1.0, 1.0, 1.0]
    return replace(_prior("other"), weights=(*weights, *REQUEST_WEIGHTS))


def observe(calibration: Calibration, features: Sequence[float], reported: float) -> Calibration:
    """What is known after a server has reported the prompt tokens of a request.

    Args:
        features: of the whole request, by ``tokens.request_features``.
        reported: all tokens of the prompt, those from a cache included. Whatever it is, nothing is raised.
    """
    start = _prior(calibration.family)
    least, most = _bounds(calibration.family)
    if not _dot(least, features) <= reported <= _dot(most, features) + NOISE:
        return replace(calibration, ignored=calibration.ignored + 1)
    expected = max(1.0, _dot(calibration.weights, features))
    error = reported - expected
    noise = (NOISE_SHARE * expected) ** 2 + NOISE**2 + (NOISE_IMAGE * features[IMAGES]) ** 2
    spread = [_dot(row, features) for row in calibration.covariance]
    variance = max(0.0, _dot(spread, features)) + noise
    seen = (*calibration.residuals, error / max(SMALL, expected))[-RESIDUALS:]
    if error * error > DOUBTED * DOUBTED * variance:
        return _doubt(replace(calibration, residuals=seen), features, reported / expected)
    moved = math.copysign(min(abs(error), BELIEVED * math.sqrt(variance)), error) / variance
    kept, scaled = 1.0 - FORGOTTEN, [s / variance for s in spread]
    covariance = tuple(
        tuple([kept * (c - a * b) + FORGOTTEN * q for c, b, q in zip(row, spread, begun, strict=True)])
        for row, begun, a in zip(calibration.covariance, start.covariance, scaled, strict=True)
    )
    return Calibration(
        calibration.family,
        _bounded((w + moved * s for w, s in zip(calibration.weights, spread, strict=True)), calibration.family),
        covariance,
        calibration.observations + 1,
        calibration.ignored,
        (),
        seen,
    )


def _doubt(calibration: Calibration, features: Sequence[float], share: float) -> Calibration:
    """Ignore a report, unless the last ones have all said the same: then begin anew from what they say."""
    doubted = (*calibration.doubted, share)[-TOO_MUCH:]
    latest = doubted[-(TOO_LITTLE if share > 1 else TOO_MUCH) :]
    if len(latest) < (TOO_LITTLE if share > 1 else TOO_MUCH) or max(latest) > AGREEING * min(latest):
        return replace(calibration, ignored=calibration.ignored + 1, doubted=doubted)
    scaled = [w * median(latest) for w in calibration.weights[:TEXTS]]
    return replace(
        _prior(calibration.family),
        weights=_bounded((*scaled, *calibration.weights[TEXTS:]), calibration.family),
        observations=calibration.observations + 1,
        ignored=calibration.ignored,
        residuals=calibration.residuals,
    )


def to_json(calibration: Calibration) -> dict[str, object]:
    """A calibration as plain JSON; ``from_json`` reads it."""
    return {
        "family": calibration.family,
        "weights": [_rounded(w) for w in calibration.weights],
        "covariance": [_rounded(c) for i, row in enumerate(calibration.covariance) for c in row[: i + 1]],
        "observations": calibration.observations,
        "ignored": calibration.ignored,
        "residuals": [_rounded(r) for r in calibration.residuals],
    }


def from_json(value: object, model_name: str) -> Calibration:
    """The calibration that ``to_json`` wrote of a model; what is assumed of it when that is damaged or another's."""
    start = prior(model_name)
    if not isinstance(value, dict) or value.get("family") != start.family:
        return start
    weights, triangle, residuals = map(_numbers, map(value.get, ("weights", "covariance", "residuals")))
    observations, ignored = map(_count, map(value.get, ("observations", "ignored")))
    if len(weights) != SIZE or len(triangle) != SIZE * (SIZE + 1) // 2 or len(residuals) > RESIDUALS:
        return start
    rows = [triangle[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] for i in range(SIZE)]
    variances = [row[-1] for row in rows]
    if any(not 0.0 <= v <= 2 * begun[i] for i, (v, begun) in enumerate(zip(variances, start.covariance, strict=True))):
        return start
    if any(c * c > 1.01 * variances[i] * variances[j] for i, row in enumerate(rows) for j, c in enumerate(row)):
        return start
    covariance = tuple(tuple(rows[max(i, j)][min(i, j)] for j in range(SIZE)) for i in range(SIZE))
    return replace(
        start,
        weights=_bounded(weights, start.family),
        covariance=covariance,
        observations=observations,
        ignored=ignored,
        residuals=residuals,
    )


def _numbers(value: object) -> Vector:
    if not isinstance(value, list) or not all(type(n) in (int, float) and abs(n) < 1e12 for n in value):
        return ()
    return tuple(map(float, value))


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0


def _rounded(number: float) -> float:
    return float(f"{number:.7g}")


def _family(model_name: str) -> str:
    lowered = model_name.lower()
    return next((family for family in TEXT_WEIGHTS if family in lowered), "other")


@lru_cache(maxsize=16)
def _prior(family: str) -> Calibration:
    weights = (*TEXT_WEIGHTS[family], *REQUEST_WEIGHTS)
    ascii_only = TEXT_FEATURES.index("half")
    spreads = [
        *(
            APART * w + LEAST_APART if i < ascii_only else BEYOND_ASCII * w + LEAST_APART
            for i, w in enumerate(weights[:TEXTS])
        ),
        *REQUEST_SPREAD,
    ]
    # Families differ from each other in some ways, and so may a model from its family.
    ways = [[w - o for w, o in zip(each, TEXT_WEIGHTS["other"], strict=True)] for each in TEXT_WEIGHTS.values()]
    ways = [[ALIKE * d for d in way] + [0.0] * len(REQUEST_FEATURES) for way in ways]
    ways.append([TOGETHER * w if i < TEXTS else 0.0 for i, w in enumerate(weights)])
    covariance = tuple(
        tuple(sum(way[i] * way[j] for way in ways) + (spreads[i] ** 2 if i == j else 0.0) for j in range(SIZE))
        for i in range(SIZE)
    )
    return Calibration(family, weights, covariance)


@lru_cache(maxsize=16)
def _bounds(family: str) -> tuple[Vector, Vector]:
    texts = TEXT_WEIGHTS[family]
    return (
        (*(LEAST_WEIGHT * w for w in texts), *REQUEST_LEAST),
        (*(MOST_WEIGHT * w + SPARE_WEIGHT for w in texts), *REQUEST_MOST),
    )


def _bounded(weights: Iterable[float], family: str) -> Vector:
    least, most = _bounds(family)
    inside = [min(max(w, low), high) for w, low, high in zip(weights, least, most, strict=True)]
    share = _dot(inside, REFERENCE) / _dot(TEXT_WEIGHTS[family], REFERENCE)
    allowed = min(max(share, LEAST_COST), MOST_COST)
    if allowed != share:
        inside[:TEXTS] = [w * allowed / share for w in inside[:TEXTS]]
    return tuple(inside)


def _dot(weights: Sequence[float], counts: Sequence[float]) -> float:
    return float(sum(map(mul, weights, counts)))
