"""Train the classifier that ships with the package, and write its card.

    python train/classifier.py DATA     DATA: the folder with queries-dev*.jsonl; `make train DATA=...` calls this

In an environment of its own with numpy and scipy. The queries of others are read there and stay there; what is kept are
the weights, with the SHA-256 of each file. Queries of our own writing are in train/queries.jsonl. The same data gives the
same bytes: one thread, a fixed order, no random numbers.

Logistic regression over hashed features (``turnout.routing.features``), classes weighted alike, one model for the
categories, one for ``needs_code_context`` and one for the difficulty. Validation leaves whole sources out.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from card import Row, write_card
from scipy import sparse
from scipy.optimize import minimize, minimize_scalar

from turnout.routing.classifier import (
    CATEGORIES,
    IDF_STEP,
    LETTERS_WEIGH,
    OUTPUTS,
    PLACE_BITS,
    PLACES_WEIGH,
    SHAPE_WEIGHS,
    WORD_BITS,
    Head,
    Weights,
    hash_of,
    pack_file,
)
from turnout.routing.features import features, letters

ROOT = Path(__file__).parents[1]
OUT = ROOT / "src/turnout/routing/classifier.bin"
WORDS, PLACES = 1 << WORD_BITS, 1 << PLACE_BITS
RARE = 2  # features of fewer queries are not used
RIDGE, ROUNDS, FOLDS = 0.3, 120, 10
OWN_WEIGHS = 1.0


class Measured(NamedTuple):
    """A query's features by their hashes; of letters how often."""

    words: np.ndarray
    letters: np.ndarray
    times: np.ndarray
    places: np.ndarray
    shape: np.ndarray


class Fitted(NamedTuple):
    """Weights by hash, of words and then of places, and the bias."""

    weights: np.ndarray
    bias: np.ndarray


def measure(text: str) -> Measured:
    found = features(text)
    groups: dict[int, int] = {}
    for word in found.alphabet:
        for group in letters(word):
            place = hash_of(group, WORD_BITS)
            groups[place] = groups.get(place, 0) + 1
    order = sorted(groups)
    return Measured(
        _hashes(found.words, WORD_BITS),
        np.array(order, int),
        np.array([groups[place] for place in order], float),
        _hashes(found.places, PLACE_BITS),
        _hashes(found.shape, PLACE_BITS),
    )


def _hashes(found: frozenset[str], bits: int) -> np.ndarray:
    return np.array(sorted({hash_of(feature, bits) for feature in found}), int)


def rarity(rows: Sequence[Measured]) -> np.ndarray:
    """Of each hash, in steps as they are kept; 0 for what is too rare to say anything."""
    seen = np.zeros(WORDS)
    for row in rows:
        seen[row.words] += 1
        seen[row.letters] += 1
    idf = np.log((1 + len(rows)) / (1 + seen)) + 1
    return np.where(seen >= RARE, np.clip(np.round(idf / IDF_STEP), 0, 255), 0)


def matrix(rows: Sequence[Measured], steps: np.ndarray) -> sparse.csr_matrix:
    indices, values, ends = [], [], [0]
    for row in rows:
        for places, times, weigh in (
            (row.words, np.ones(len(row.words)), 1.0),
            (row.letters, row.times, LETTERS_WEIGH),
        ):
            idf = steps[places] * IDF_STEP
            norm = np.sqrt((times * idf * idf).sum())
            indices.append(places)
            values.append(weigh * times * idf / norm if norm else 0 * idf)
        for places, weigh in ((row.places, PLACES_WEIGH), (row.shape, SHAPE_WEIGHS)):
            indices.append(places + WORDS)
            values.append(np.full(len(places), weigh))
        ends.append(ends[-1] + sum(map(len, indices[-4:])))
    return sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(indices), np.array(ends)), shape=(len(rows), WORDS + PLACES)
    )


def fit(data: sparse.csr_matrix, target: np.ndarray, weigh: np.ndarray, ridge: float) -> Fitted:
    """Multinomial logistic regression; ``target`` holds a share for each output."""
    used = np.unique(data.indices)
    small = data[:, used].tocsr()
    turned = small.T.tocsr()
    width, outputs = len(used), target.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: width * outputs].reshape(width, outputs), flat[width * outputs :]
        shares = softmax(small @ weights + bias)
        miss = weigh[:, None] * (shares - target)
        slope = np.concatenate([(turned @ miss + ridge * weights).ravel(), miss.sum(0)])
        cost = -(weigh[:, None] * target * np.log(shares + 1e-12)).sum() + ridge / 2 * (weights**2).sum()
        return float(cost), slope

    start = np.zeros(width * outputs + outputs)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ROUNDS}).x
    whole = np.zeros((WORDS + PLACES, outputs))
    whole[used] = found[: width * outputs].reshape(width, outputs)
    return Fitted(whole, found[width * outputs :])


def softmax(scores: np.ndarray) -> np.ndarray:
    each = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(each / each.sum(1, keepdims=True))


def fit_all(measured: Sequence[Measured], rows: Sequence[Row], steps: np.ndarray) -> Fitted:
    """All outputs: the categories, then what is over 0 when the workspace is needed, then the difficulty's."""
    data = matrix(measured, steps)
    labels = np.array([row.category for row in rows])
    weigh = np.array([OWN_WEIGHS if row.own else 1.0 for row in rows])
    share = weigh.sum() / len(CATEGORIES) / np.bincount(labels, weights=weigh, minlength=len(CATEGORIES))
    main = fit(data, np.eye(len(CATEGORIES))[labels], weigh * share[labels], RIDGE)
    parts = [main]
    for values in ([float(r.needs) for r in rows], [(r.difficulty - 1) / 2 for r in rows]):
        yes = np.array(values)
        two = fit(data, np.stack([1 - yes, yes], 1), weigh, 2 * RIDGE)
        parts.append(Fitted(two.weights[:, 1:] - two.weights[:, :1], two.bias[1:] - two.bias[:1]))
    return Fitted(np.hstack([p.weights for p in parts]), np.concatenate([p.bias for p in parts]))


def folds(rows: Sequence[Row]) -> np.ndarray:
    """The fold of each row: sources stay whole, the largest are shared out first."""
    sizes = [0] * FOLDS
    where: dict[str, int] = {}
    sources = [row.source for row in rows if not row.own]
    for source in sorted(set(sources), key=lambda s: (-sources.count(s), s)):
        where[source] = int(np.argmin(sizes))
        sizes[where[source]] += sources.count(source)
    return np.array([-1 if row.own else where[row.source] for row in rows])


def validate(measured: Sequence[Measured], rows: Sequence[Row]) -> np.ndarray:
    """The scores of every real query, by models that saw no other query of its source."""
    fold = folds(rows)
    scores = np.zeros((len(rows), OUTPUTS))
    for number in range(FOLDS):
        train, test = np.where(fold != number)[0], np.where(fold == number)[0]
        steps = rarity([measured[i] for i in train])
        model = fit_all([measured[i] for i in train], [rows[i] for i in train], steps)
        scores[test] = matrix([measured[i] for i in test], steps) @ model.weights + model.bias
        print(f"fold {number + 1} of {FOLDS}: {len(test)} queries", file=sys.stderr)
    return scores


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    def loss(value: float) -> float:
        return float(-np.log(softmax(scores / value)[np.arange(len(labels)), labels] + 1e-12).mean())

    return round(float(minimize_scalar(loss, bounds=(0.3, 3.0), method="bounded").x), 3)


def quantised(model: Fitted, steps: np.ndarray, heat: float, data: dict[str, str]) -> Weights:
    """As bytes; what a feature's rarity multiplies is multiplied already."""
    whole = model.weights.copy()
    whole[:WORDS] *= (steps * IDF_STEP)[:, None]
    scales = np.array([np.quantile(np.abs(column[column != 0]), 0.9995) / 127 for column in whole.T])
    signed = np.clip(np.round(whole / scales), -127, 127).astype(np.int8)
    words = np.hstack([signed[:WORDS].view(np.uint8), steps.astype(np.uint8)[:, None]])
    head = Head(
        tuple(float(f"{s:.6g}") for s in scales),
        tuple(float(f"{b:.6g}") for b in model.bias),
        heat,
        dict(sorted(data.items())),
    )
    return Weights(head, words.tobytes(), signed[WORDS:].view(np.uint8).tobytes())


def read(path: Path, *, own: bool) -> list[Row]:
    names = [category.value for category in CATEGORIES]
    rows = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        also = names.index(row["also"]) if row["also"] else None
        source = "" if own else row["source"]
        rows.append(
            Row(
                row["text"],
                names.index(row["label"]),
                also,
                row["needs_code_context"],
                row["difficulty"],
                row["lang"],
                source,
                own,
            )
        )
    return rows


def main(folder: Path) -> None:
    began = time.monotonic()
    files = sorted(folder.glob("queries-dev*.jsonl"))
    if not files:
        raise SystemExit(f"{folder} has no queries-dev*.jsonl")
    ours = ROOT / "train/queries.jsonl"
    rows = [row for path in files for row in read(path, own=False)] + read(ours, own=True)
    data = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (*files, ours)}
    measured = [measure(row.text) for row in rows]
    real = [row for row in rows if not row.own]
    scores = validate(measured, rows)[: len(real)]
    heat = temperature(scores[:, : len(CATEGORIES)], np.array([row.category for row in real]))
    steps = rarity(measured)
    OUT.write_bytes(pack_file(quantised(fit_all(measured, rows, steps), steps, heat, data)))
    shares = softmax(scores[:, : len(CATEGORIES)] / heat)
    write_card(ROOT / "docs/classifier.md", real, len(rows) - len(real), shares, scores[:, -2], data, folds(real))
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
