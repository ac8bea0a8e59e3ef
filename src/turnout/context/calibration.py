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

# What is counted of texts, in this order. Characters by class, of which the first CHARACTERS are all of ASCII; `rare`
# are j, k, q, v, w, x, y and z. How often a run of them begins: of two or more `spaces`, and `unspaced` words, that
# follow no space. How often one class follows another, where `line` is a line break. `mixed_punctuation` is the end of
# three signs in a row of which none is like the one before it, `consonants` of five small ones, the last not repeated.
# Beyond ASCII: `latin` up to U+02FF (below U+00C0 it is a `symbol`), `cyrillic` with Greek up to U+0530, `arabic` up to
# U+07FF, `indic` up to U+1FFF, `symbol` up to U+2FFF and from U+E000, `kana` up to U+3FFF, `han` up to U+9FFF, `hangul`
# up to U+DFFF, `emoji` from U+10000; runs of what is from U+0800, and small letters of ASCII near a `latin` one.
TEXT_FEATURES = (
    "lower", "upper", "digit", "punctuation", "space", "newline", "tab", "rare",
    "lower_run", "digit_run", "punctuation_run", "space_run", "spaces", "unspaced",
    "space_digit", "line_lower", "line_punctuation", "line_tab", "tab_punctuation", "letter_line", "letter_quote",
    "letter_closing", "lower_upper", "upper_punctuation", "operator_letter", "mixed_punctuation", "consonants",
    "latin", "cyrillic", "arabic", "indic", "symbol", "kana", "han", "hangul", "emoji", "wide_run", "near_latin",
)  # fmt: skip
# And of requests: how many there are of it, or whether it is so.
REQUEST_FEATURES = ("message", "call", "result", "tool", "image", "request", "no_system", "has_tools")
# Texts that a template may drop, or repeat. Their weight is a share of what they would cost elsewhere.
DROPPABLE = ("call_text", "tool_text", "reasoning_text")
TEXTS, COUNTS, SHARES = len(TEXT_FEATURES), len(REQUEST_FEATURES), len(DROPPABLE)
SIZE = TEXTS + COUNTS + SHARES
CHARACTERS, BEYOND = TEXT_FEATURES.index("rare"), TEXT_FEATURES.index("latin")
SCRIPTS = TEXTS - BEYOND
IMAGES = TEXTS + REQUEST_FEATURES.index("image")
OF_TOOLS = frozenset(
    (*(TEXTS + REQUEST_FEATURES.index(name) for name in ("call", "tool", "has_tools")),
     *(TEXTS + COUNTS + DROPPABLE.index(name) for name in ("call_text", "tool_text")))
)  # fmt: skip

# Tokens per count, in the order of TEXT_FEATURES, fitted by `bench/token_weights.py` to the tokenizers of Qwen 2.5,
# Llama 3.2, Gemma 3, Mistral NeMo and DeepSeek V3 (and SmolLM2 for `other`) so that REFERENCE costs the start value.
TEXT_WEIGHTS: dict[str, tuple[float, ...]] = {
    "qwen": (
        0.096, 0.029, 0.98, 0.01, 0.004, 0.0, 0.698, 0.505, 0.309, 0.739, 0.414, 0.712,
        0.214, 0.0, 0.252, 0.0, 0.0, 0.0, 0.562, 0.0, 1.095, 0.0, 0.0, 0.717,
        0.317, 0.455, 1.213, 0.555, 0.338, 0.493, 1.115, 0.391, 0.666, 0.863, 0.767, 2.944,
        0.0, 0.075,
    ),
    "llama": (
        0.086, 0.072, 0.347, 0.049, 0.001, 0.0, 0.651, 0.437, 0.295, 1.038, 0.476, 0.617,
        0.49, 0.039, 0.403, 0.0, 0.0, 0.142, 0.487, 0.0, 0.835, 0.0, 0.0, 0.498,
        0.438, 0.47, 1.372, 0.391, 0.316, 0.491, 0.915, 0.834, 0.641, 0.923, 0.709, 3.668,
        0.0, 0.099,
    ),
    "gemma": (
        0.071, 0.105, 0.924, 0.097, 0.008, 0.241, 0.224, 0.315, 0.312, 0.367, 0.706, 0.415,
        1.088, 0.533, 0.31, 0.0, 0.172, 1.039, 0.513, 0.0, 0.0, 0.0, 0.158, 0.711,
        0.494, 0.29, 0.587, 0.177, 0.252, 0.431, 0.343, 0.72, 0.373, 0.69, 0.595, 3.977,
        0.0, 0.062,
    ),
    "mistral": (
        0.077, 0.266, 0.925, 0.11, 0.004, 0.0, 0.614, 0.343, 0.271, 0.624, 0.482, 0.516,
        0.801, 0.262, 0.553, 0.046, 0.0, 0.458, 0.447, 0.108, 0.339, 0.035, 0.0, 0.0,
        0.429, 0.493, 1.013, 0.344, 0.327, 0.39, 0.534, 0.39, 0.63, 1.21, 0.678, 3.826,
        0.0, 0.092,
    ),
    "deepseek": (
        0.08, 0.189, 0.315, 0.082, 0.003, 0.0, 0.597, 0.348, 0.287, 0.987, 0.564, 0.489,
        0.756, 0.318, 0.121, 0.0, 0.0, 0.413, 0.436, 0.072, 0.297, 0.0, 0.0, 0.485,
        0.557, 0.484, 1.058, 0.755, 0.316, 0.488, 0.65, 0.683, 0.624, 0.694, 0.81, 2.969,
        0.0, 0.091,
    ),
    "smollm2": (
        0.076, 0.225, 0.745, 0.112, 0.0, 0.172, 0.037, 0.342, 0.271, 0.901, 0.64, 0.353,
        0.636, 0.658, 0.422, 0.831, 1.57, 2.029, 0.016, 0.307, 0.0, 0.0, 0.163, 0.367,
        1.044, 0.519, 1.202, 1.212, 0.84, 1.211, 1.798, 1.395, 1.694, 1.704, 2.445, 3.645,
        0.595, 0.147,
    ),
    "other": (
        0.077, 0.19, 0.555, 0.094, 0.004, 0.036, 0.447, 0.319, 0.293, 0.918, 0.587, 0.463,
        0.853, 0.414, 0.377, 0.0, 0.0, 0.541, 0.589, 0.241, 0.197, 0.0, 0.038, 0.35,
        0.539, 0.458, 0.932, 0.53, 0.317, 0.483, 0.505, 0.864, 0.613, 0.907, 0.78, 3.58,
        0.0, 0.087,
    ),
}  # fmt: skip
# Counts per character of plain prose: half English paragraphs, half README files with their markup.
REFERENCE: tuple[float, ...] = (
    0.7344, 0.02661, 0.00635, 0.06429, 0.151, 0.01351, 0.003742, 0.04515, 0.1559,
    0.00366, 0.04658, 0.1434, 0.003059, 0.02446, 0.00108, 0.002062, 0.002924, 0.001056,
    0.0006301, 0.004118, 0.004304, 0.002586, 0.001584, 0.001387, 0.001096, 0.00142, 0.0008709,
    1.101e-05, 1.036e-05, 1.748e-05, 0.0, 4.762e-05, 9.066e-06, 0.0, 0.0, 5.181e-06,
    5.086e-05, 0.0002914,
)  # fmt: skip

# Of REQUEST_FEATURES: what templates of the field add.
REQUEST_WEIGHTS = (4.0, 8.0, 4.0, 8.0, 800.0, 3.0, 10.0, 40.0)

# How uncertain a family's weights are, as standard deviations: all of them together and each by itself, as shares; of
# characters beyond ASCII, of which vocabularies differ most; of REQUEST_WEIGHTS and shares, in their units.
TOGETHER, ALIKE, APART, LEAST_APART, BEYOND_ASCII = 0.05, 0.5, 0.2, 0.02, 0.5
REQUEST_SPREAD = (3.0, 12.0, 4.0, 12.0, 400.0, 10.0, 15.0, 80.0)
REQUEST_LEAST = (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
REQUEST_MOST = (30.0, 60.0, 60.0, 100.0, 6000.0, 100.0, 200.0, 600.0)
SHARE_SPREAD, MOST_SHARE = 0.5, 2.0
# A weight stays between these multiples of its start, and plain prose between these of its cost.
LEAST_WEIGHT, MOST_WEIGHT, SPARE_WEIGHT = 0.2, 4.0, 0.3
LEAST_COST, MOST_COST = 0.6, 2.0
# By how much a report differs although the weights are right: a share, tokens, and tokens for each image.
NOISE_SHARE, NOISE, NOISE_IMAGE = 0.03, 4.0, 400.0
# In standard deviations: how far a report may move the weights, and from where on it is doubted.
BELIEVED, DOUBTED = 2.0, 3.5
# So many doubted reports in a row that agree are believed: fewer when they say that we count too little.
TOO_LITTLE, TOO_MUCH, AGREEING = 4, 6, 1.25
FORGOTTEN, MOST_FORGOTTEN = 0.003, 0.5  # with each report, of what was learned about how certain the weights are
RESIDUALS, SMALL = 20, 256  # reports remembered for the margin; tokens below which errors are taken as if of so many
MARGIN, LEAST_MARGIN, MOST_MARGIN, TRIAL = 0.15, 0.05, 0.5, 10

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned of one model.

    Attributes:
        family: whose start weights it began with.
        weights: tokens per count, in the order of TEXT_FEATURES and REQUEST_FEATURES, then the shares of DROPPABLE.
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

        Half as much again as the second largest error of the latest twenty: a single lie does not widen it.
        """
        seen = sorted(self.residuals)[-2:]
        shown = 1.5 * seen[0] if len(seen) == 2 else 0.0
        trust = min(1.0, self.observations / TRIAL)
        return min(MOST_MARGIN, max(LEAST_MARGIN, shown, MARGIN * (1.0 - trust)))

    def expect(self, features: Sequence[float]) -> float:
        """The tokens of a request, by ``tokens.request_features``."""
        return _dot(self.weights[: TEXTS + COUNTS], _slope(self.weights, features))


def prior(model_name: str) -> Calibration:
    """What is assumed of a model of which nothing was learned, by its name."""
    return _prior(_family(model_name))


def of_ratio(ratio: float) -> Calibration:
    """A start value by itself: so many characters per token whatever they are, two beyond Latin, one where a script has
    no spaces."""
    share = 1.0 / ratio
    weights = [share] * CHARACTERS + [0.0] * (BEYOND - CHARACTERS) + [0.5] * 3 + [1.0] * (SCRIPTS - 5) + [0.0] * 2
    return replace(_prior("other"), weights=(*weights, *_prior("other").weights[TEXTS:]))


def possible(calibration: Calibration, features: Sequence[float], reported: float) -> bool:
    """Whether a request, by ``tokens.request_features``, may have so many tokens with any weights that are sane."""
    start = _prior(calibration.family)
    least, most = (replace(start, weights=bound).expect(features) for bound in _bounds(calibration.family))
    return least <= reported <= most + NOISE


def observe(calibration: Calibration, features: Sequence[float], reported: float) -> Calibration:
    """What is known after a server has reported the prompt tokens of a request.

    Args:
        features: of the whole request, by ``tokens.request_features``.
        reported: all tokens of the prompt, those from a cache included. Whatever it is, nothing is raised.
    """
    start = _prior(calibration.family)
    if not possible(calibration, features, reported):
        return replace(calibration, ignored=calibration.ignored + 1)
    slope = _slope(calibration.weights, features)
    expected = max(1.0, calibration.expect(features))
    error = reported - expected
    noise = (NOISE_SHARE * expected) ** 2 + NOISE**2 + (NOISE_IMAGE * slope[IMAGES]) ** 2
    spread = [_dot(row, slope) for row in calibration.covariance]
    variance = max(0.0, _dot(spread, slope)) + noise
    seen = (*calibration.residuals, error / max(SMALL, expected))[-RESIDUALS:]
    if error * error > DOUBTED * DOUBTED * variance:
        return _doubt(replace(calibration, residuals=seen), reported / expected)
    moved = math.copysign(min(abs(error), BELIEVED * math.sqrt(variance)), error) / variance
    scaled = [s / variance for s in spread]
    # What surprises says that less was known than it seemed: a lie that was believed is outweighed by what follows.
    forgotten = min(MOST_FORGOTTEN, FORGOTTEN * max(1.0, (error * error / variance) ** 2))
    covariance = tuple(
        tuple([c - a * b + forgotten * (q - c + a * b) for c, b, q in zip(row, spread, begun, strict=True)])
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


def _doubt(calibration: Calibration, share: float) -> Calibration:
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
    if weights is None or triangle is None or residuals is None:
        return start
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


def _numbers(value: object) -> Vector | None:
    if not isinstance(value, list) or not all(type(n) in (int, float) and abs(n) < 1e12 for n in value):
        return None
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
    weights = (*TEXT_WEIGHTS[family], *REQUEST_WEIGHTS, *[1.0] * SHARES)
    spreads = [
        *(
            APART * w + LEAST_APART if i < BEYOND else BEYOND_ASCII * w + LEAST_APART
            for i, w in enumerate(weights[:TEXTS])
        ),
        *REQUEST_SPREAD,
        *[SHARE_SPREAD] * SHARES,
    ]
    # Families differ from each other in some ways, and so may a model from its family.
    ways = [[w - o for w, o in zip(each, TEXT_WEIGHTS["other"], strict=True)] for each in TEXT_WEIGHTS.values()]
    ways = [[ALIKE * d for d in way] + [0.0] * (SIZE - TEXTS) for way in ways]
    ways.append([TOGETHER * w if i < TEXTS else 0.0 for i, w in enumerate(weights)])
    # A template without tools leaves out all that has to do with them.
    ways.append([w if i in OF_TOOLS else 0.0 for i, w in enumerate(weights)])
    covariance = tuple(
        tuple(sum(way[i] * way[j] for way in ways) + (spreads[i] ** 2 if i == j else 0.0) for j in range(SIZE))
        for i in range(SIZE)
    )
    return Calibration(family, weights, covariance)


@lru_cache(maxsize=16)
def _bounds(family: str) -> tuple[Vector, Vector]:
    texts = TEXT_WEIGHTS[family]
    return (
        (*(LEAST_WEIGHT * w for w in texts), *REQUEST_LEAST, *[0.0] * SHARES),
        (*(MOST_WEIGHT * w + SPARE_WEIGHT for w in texts), *REQUEST_MOST, *[MOST_SHARE] * SHARES),
    )


def _slope(weights: Vector, features: Sequence[float]) -> Vector:
    """By how much the count changes with each weight: the features, those of droppable texts by their share."""
    texts = features[:TEXTS]
    costs = []
    for n in range(SHARES):
        dropped = features[TEXTS * (n + 1) : TEXTS * (n + 2)]
        costs.append(_dot(weights, dropped))
        if costs[-1]:
            share = weights[n - SHARES]
            texts = [t + share * d for t, d in zip(texts, dropped, strict=True)]
    return (*texts, *features[TEXTS * (SHARES + 1) :], *costs)


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
