"""The learned classifier: what kind of work a query is, from weights that ship with the package. Pure.

Linear in the features of ``features.py``, trained by ``train/classifier.py`` (docs/classifier.md is its card). Weights
are bytes in a table by the hash of a feature. All outputs of a feature are looked up at once, as fields of one integer,
and a sum of integers adds them all: that is what makes a query cost a fraction of a millisecond without any library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from operator import getitem
from typing import TypeAlias
from zlib import crc32

import msgspec

from turnout.routing.features import Features, features, letters, shown
from turnout.types import TaskCategory

CATEGORIES = (TaskCategory.CODING, TaskCategory.REASONING, TaskCategory.ANALYSIS, TaskCategory.DOCUMENTATION)
OUTPUTS = len(CATEGORIES) + 2  # and whether the workspace is needed, and how hard it is
WORD_BITS, PLACE_BITS = 17, 14  # hashes of words and letters, of places and shape
LETTERS_WEIGH, PLACES_WEIGH, SHAPE_WEIGHS = 1.0, 0.3, 0.25
IDF_STEP = 0.04
# The workspace is looked at unless a query clearly stands by itself: most need it (facts/routing.md).
NEEDED = -0.5
MAX_CACHED = 40_000  # features and words
SHOWN = 3
_FIELD = 32  # bits
_MASK = (1 << _FIELD) - 1
_Packed: TypeAlias = int
# What a byte of each column of a row is in such an integer: a new question brings hundreds of rows not seen yet.
_FIELDS = (
    *(tuple(((byte + 128) & 255) << (n * _FIELD) for byte in range(256)) for n in range(OUTPUTS)),
    tuple(byte**2 << (OUTPUTS * _FIELD) for byte in range(256)),
)
_ONE = 1 << ((OUTPUTS + 1) * _FIELD)


@dataclass(frozen=True, slots=True)
class ClassificationResult:
    """What kind of work a query is (SPEC TASK-1).

    Attributes:
        category: the kind of work.
        confidence: 0 to 1.
        evidence: the rules or features that decided, for people.
        needs_code_context: answering well needs the user's workspace.
        scores: the raw score of every category.
        difficulty: 0 for what a small model does as well, 1 for what is hard.
    """

    category: TaskCategory
    confidence: float
    evidence: tuple[str, ...] = ()
    needs_code_context: bool = False
    scores: Mapping[TaskCategory, float] = field(default_factory=dict)
    difficulty: float = 0.5


class Head(msgspec.Struct, frozen=True):
    """What stands before the weights.

    Attributes:
        scales: what a step of each output's weights is worth.
        bias: of each output.
        temperature: the scores of the categories are divided by it.
        data: SHA-256 of each file that it was trained with, by name.
    """

    scales: tuple[float, ...]
    bias: tuple[float, ...]
    temperature: float
    data: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Weights:
    """A trained classifier.

    Attributes:
        words: OUTPUTS signed bytes for each hash of a word or a group of letters, then an unsigned one: how rare it is,
            in steps of IDF_STEP.
        places: OUTPUTS signed bytes for each hash of a place or a shape.
    """

    head: Head
    words: bytes
    places: bytes


def hash_of(feature: str, bits: int) -> int:
    """Where a feature stands in its table."""
    return crc32(feature.encode("utf-8", "surrogatepass")) & ((1 << bits) - 1)


def pack_file(weights: Weights) -> bytes:
    """The file of a classifier."""
    return msgspec.json.encode(weights.head) + b"\n" + weights.words + weights.places


def read_file(body: bytes) -> Weights:
    """The classifier of a file.

    Raises:
        ValueError: it is none.
    """
    head, _, tables = body.partition(b"\n")
    size = (OUTPUTS + 1) << WORD_BITS
    if len(tables) != size + (OUTPUTS << PLACE_BITS):
        raise ValueError("the tables of the classifier have another size")
    return Weights(msgspec.json.decode(head, type=Head), tables[:size], tables[size:])


class Classifier:
    """A classifier at work; one for a process."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._words: dict[str, _Packed] = {}
        self._letters: dict[str, _Packed] = {}
        self._places: dict[str, _Packed] = {}
        self._favours: dict[str, tuple[float, ...]] = {}

    def scores(self, found: Features) -> list[float]:
        """Every output, before anything is made of it."""
        total = list(self._weights.head.bias)
        _add(total, self._weights.head.scales, sum(map(self._word, found.words)), 1.0, normal=True)
        _add(total, self._weights.head.scales, sum(map(self._word_letters, found.alphabet)), LETTERS_WEIGH, normal=True)
        _add(total, self._weights.head.scales, sum(map(self._place, found.places)), PLACES_WEIGH, normal=False)
        _add(total, self._weights.head.scales, sum(map(self._place, found.shape)), SHAPE_WEIGHS, normal=False)
        return total

    def classify(self, query: str, *, explained: bool = True) -> ClassificationResult:
        """The kind of work of a query; ``explained``: with the words that speak for it, a quarter of the work."""
        found = features(query)
        total = self.scores(found)
        shares = _softmax([score / self._weights.head.temperature for score in total[: len(CATEGORIES)]])
        best = max(range(len(CATEGORIES)), key=lambda n: shares[n])
        return ClassificationResult(
            CATEGORIES[best],
            shares[best],
            self._evidence(found, best) if explained else (),
            total[-2] > NEEDED,
            dict(zip(CATEGORIES, shares, strict=True)),
            _sigmoid(total[-1]),
        )

    def _evidence(self, found: Features, best: int) -> tuple[str, ...]:
        """The words and groups of words that spoke most for the category."""
        words = [w for w in found.words if w[0] != "t"]
        groups = [g for g in found.shape if g[0] == "k" and not g.startswith("kk")]
        said = [(self._favour(word)[best], f"“{shown(word[1:])}”") for word in words]
        said += [(self._favour(g)[best], f"words of the group {g.lstrip('k1l')}") for g in groups]
        said.sort(reverse=True)
        return tuple(dict.fromkeys(text for favour, text in said[: 2 * SHOWN] if favour > 0))[:SHOWN]

    def _favour(self, feature: str) -> tuple[float, ...]:
        """By how much a feature speaks for each category more than for the next one."""
        known = self._favours.get(feature)
        if known is None:
            packed = self._place(feature) if feature[0] == "k" else self._word(feature)
            known = self._favours[feature] = _favours(packed, self._weights.head.scales)
            _bounded(self._favours)
        return known

    def _word(self, feature: str) -> _Packed:
        known = self._words.get(feature)
        if known is None:
            known = self._words[feature] = _packed(self._weights.words, hash_of(feature, WORD_BITS), OUTPUTS + 1)
            _bounded(self._words)
        return known

    def _word_letters(self, word: str) -> _Packed:
        known = self._letters.get(word)
        if known is None:
            table = self._weights.words
            known = sum(_packed(table, hash_of(group, WORD_BITS), OUTPUTS + 1) for group in letters(word))
            self._letters[word] = known
            _bounded(self._letters)
        return known

    def _place(self, feature: str) -> _Packed:
        known = self._places.get(feature)
        if known is None:
            known = self._places[feature] = _packed(self._weights.places, hash_of(feature, PLACE_BITS), OUTPUTS)
            _bounded(self._places)
        return known


@lru_cache(maxsize=1)
def shipped() -> Classifier:
    """The one that comes with the package."""
    return Classifier(read_file((files("turnout.routing") / "classifier.bin").read_bytes()))


def _packed(table: bytes, place: int, width: int) -> _Packed:
    """The outputs at a place as fields of one integer, each 128 too large; then the square of its rarity, and a one."""
    return sum(map(getitem, _FIELDS, table[place * width : (place + 1) * width]), _ONE)


def _add(total: list[float], scales: Sequence[float], packed: _Packed, weight: float, *, normal: bool) -> None:
    count = packed >> ((OUTPUTS + 1) * _FIELD)
    if not count:
        return
    if normal:
        norm = IDF_STEP * math.sqrt((packed >> (OUTPUTS * _FIELD)) & _MASK)
        if not norm:
            return
        weight /= norm
    for n in range(OUTPUTS):
        total[n] += weight * scales[n] * (((packed >> (n * _FIELD)) & _MASK) - 128 * count)


def _favours(packed: _Packed, scales: Sequence[float]) -> tuple[float, ...]:
    each = [scales[n] * (((packed >> (n * _FIELD)) & _MASK) - 128) for n in range(len(CATEGORIES))]
    return tuple(one - max(other for m, other in enumerate(each) if m != n) for n, one in enumerate(each))


def _bounded(cache: dict[str, _Packed] | dict[str, tuple[float, ...]]) -> None:
    if len(cache) > MAX_CACHED:
        cache.clear()


def _softmax(scores: Iterable[float]) -> list[float]:
    found = list(scores)
    most = max(found)
    each = [math.exp(score - most) for score in found]
    return [value / sum(each) for value in each]


def _sigmoid(score: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(30.0, max(-30.0, score))))
