"""The card of the classifier: docs/classifier.md, written by ``train/classifier.py``."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from turnout.routing.classifier import CATEGORIES, NEEDED, Classifier, read_file
from turnout.routing.classify import by_rules

NAMES = tuple(category.value for category in CATEGORIES)
DRAWS = 1000  # of the bootstrap over sources
BINS = 10
MOST_SOURCES = 12


class Row(NamedTuple):
    """A labelled query; ``also`` is a second label that can be defended."""

    text: str
    category: int
    also: int | None
    needs: bool
    difficulty: int
    lang: str
    source: str
    own: bool


CHANGES: Mapping[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "small letters": str.lower,
    "a typing error in every third long word": lambda text: " ".join(
        word[:2] + word[3:2:-1] + word[4:]
        if n % 3 == 0 and len(word) > 5 and word.isascii() and word.isalpha()
        else word
        for n, word in enumerate(text.split(" "))
    ),
    "wrapped in tags": lambda text: f"<user_query>\n{text}\n</user_query>",
    "an agent's environment before it": lambda text: (
        "<environment_details>\n# Files\nsrc/app.ts\nsrc/review.md\n# Time\n12:00\n</environment_details>\n" + text
    ),
    "a file appended": lambda text: (
        text + "\n\n```python\n" + "def total(rows):\n    return sum(row.value for row in rows)\n" * 30 + "```"
    ),
    "a log appended": lambda text: text + "\n" + "2026-01-02 10:00:00 INFO worker started, 3 jobs\n" * 40,
    "please before it": lambda text: f"please {text}",
}


def write_card(
    path: Path,
    rows: Sequence[Row],
    own: int,
    shares: np.ndarray,
    needs: np.ndarray,
    data: Mapping[str, str],
    fold: np.ndarray,
) -> None:
    """Write the page.

    Args:
        rows: the real queries.
        own: how many of our own were trained with.
        shares: what was predicted of each real query by a model that knows nothing of its source.
        needs: the same of ``needs_code_context``, over 0 for yes.
        data: SHA-256 of each file.
        fold: of each row.
    """
    labels = np.array([row.category for row in rows])
    also = np.array([-1 if row.also is None else row.also for row in rows])
    guess, rules = shares.argmax(1), _by_rules(rows)
    context = np.array([row.needs for row in rows])
    text = HEAD.format(rows=len(rows), sources=len({row.source for row in rows}), own=own, folds=len(set(fold)))
    text += "\n| | macro-F1 (95 % interval over sources) | accuracy | or the second label | worst recall |\n|---|---|---|---|---|\n"
    for name, found in (
        ("this classifier", guess),
        ("the owner's rules", rules),
        ("always coding", np.zeros_like(labels)),
    ):
        low, high = _interval(labels, found, [row.source for row in rows])
        either = ((found == labels) | (found == also)).mean()
        worst = min(_recalls(labels, found))
        text += f"| {name} | {macro_f1(labels, found):.3f} ({low:.3f} to {high:.3f}) | {(found == labels).mean():.3f} | {either:.3f} | {worst:.2f} |\n"
    text += "\n| class | queries | precision | recall |\n|---|---|---|---|\n"
    for number, name in enumerate(NAMES):
        told = guess == number
        precision = (labels[told] == number).mean() if told.any() else 0.0
        text += f"| {name} | {(labels == number).sum()} | {precision:.2f} | {_recalls(labels, guess)[number]:.2f} |\n"
    text += f"\n{_by('language', [row.lang for row in rows], labels, guess, 99)}\n{_by('source', [row.source for row in rows], labels, guess, MOST_SOURCES)}"
    text += f"\nCalibration: expected error {calibration_error(shares, labels):.3f} ({BINS} bins of confidence).\n"
    right = (needs > NEEDED)[context].mean()
    text += (
        f"\n`needs_code_context`: area under the curve {area(context, needs):.3f}, recall {right:.2f}, "
        f"precision {context[needs > NEEDED].mean():.2f}.\n"
    )
    text += _shipped(rows) + "\n## Data\n\n| file | SHA-256 |\n|---|---|\n"
    text += "".join(f"| {name} | `{digest}` |\n" for name, digest in sorted(data.items()))
    path.write_text(text, "utf-8")


def macro_f1(labels: np.ndarray, found: np.ndarray) -> float:
    each = []
    for number in range(len(NAMES)):
        hits = ((labels == number) & (found == number)).sum()
        each.append(2 * hits / max(1, (labels == number).sum() + (found == number).sum()))
    return float(np.mean(each))


def calibration_error(shares: np.ndarray, labels: np.ndarray) -> float:
    sure, right = shares.max(1), shares.argmax(1) == labels
    places = np.minimum((sure * BINS).astype(int), BINS - 1)
    return float(
        sum(abs(sure[places == b].mean() - right[places == b].mean()) * (places == b).mean() for b in set(places))
    )


def area(truth: np.ndarray, scores: np.ndarray) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    yes = truth.sum()
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * (len(truth) - yes)))


def _recalls(labels: np.ndarray, found: np.ndarray) -> list[float]:
    return [float((found[labels == n] == n).mean()) if (labels == n).any() else 0.0 for n in range(len(NAMES))]


def _interval(labels: np.ndarray, found: np.ndarray, sources: Sequence[str]) -> tuple[float, float]:
    places: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(sources):
        places[source].append(number)
    each, random = [np.array(p) for p in places.values()], np.random.RandomState(0)
    draws = []
    for _ in range(DRAWS):
        drawn = np.concatenate([each[i] for i in random.randint(len(each), size=len(each))])
        draws.append(macro_f1(labels[drawn], found[drawn]))
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def _by(what: str, groups: Sequence[str], labels: np.ndarray, found: np.ndarray, most: int) -> str:
    counts = sorted(set(groups), key=lambda g: (-list(groups).count(g), g))[:most]
    text = f"| {what} | queries | accuracy |\n|---|---|---|\n"
    for group in counts:
        here = np.array([g == group for g in groups])
        text += f"| {group} | {here.sum()} | {(found == labels)[here].mean():.2f} |\n"
    return text


def _by_rules(rows: Sequence[Row]) -> np.ndarray:
    return np.array([CATEGORIES.index(by_rules(row.text).category) for row in rows])


def _shipped(rows: Sequence[Row]) -> str:
    """What the classifier as it ships does: decisions that change with harmless changes, and its time."""
    body = (Path(__file__).parents[1] / "src/turnout/routing/classifier.bin").read_bytes()
    classifier = Classifier(read_file(body))
    some = [row.text for row in rows[::7]]
    before = [classifier.classify(text).category for text in some]
    text = "\n| harmless change | decisions that change |\n|---|---|\n"
    for name, change in CHANGES.items():
        after = [classifier.classify(change(query)).category for query in some]
        text += f"| {name} | {statistics.mean(a is not b for a, b in zip(after, before, strict=True)):.1%} |\n"
    long = [(query * (4000 // len(query) + 1))[:4000] for query in some if query]
    times = []
    for query in long:
        began = time.perf_counter()
        classifier.classify(query)
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    return text + (
        f"\nA query of 4,000 characters takes {times[len(times) // 2]:.2f} ms (p50), {times[int(0.99 * len(times))]:.2f} ms (p99), "
        f"words that were never seen before included; the file has {len(body):,} bytes.\n"
    )


HEAD = """\
# The classifier

Made by `make train DATA=...` (`train/classifier.py`), with the weights in `src/turnout/routing/classifier.bin`. What it
says of a query: the category with its confidence, the features that spoke for it, whether the workspace is needed, and how
hard it is. `turnout classify --explain` shows them; `routing.classification: rules` uses the owner's rules instead.

**Method.** Logistic regression over hashed features: words and up to three in a row, groups of three to five letters, how
sentences begin, the first and the last sentence, what the text looks like, and groups of words in a dozen languages. What
is pasted under a request (code, logs, files, tags) is taken out first. No library, no download; weights are bytes.

**Data.** {rows} real queries of {sources} sources, labelled by language models, and {own} queries of our own writing
(`train/queries.jsonl`). The real ones stay where they are. Changes, time and size
below are of the weights that ship; all else was predicted by models that had seen no query of the same source ({folds}
folds). Of the sources those with most queries are shown.

**What it is bad at.** Telling a question about the code at hand from one about how things are in general when neither a
file nor "this" is named; wishes that are still being thought about from wishes that are to be built; long saved prompts of
many steps, of which each step is something else; short turns ("go on", "and now the same there"), whose kind is that of
the turn before, which it does not see. Languages with few queries below are guesses.

`turnout eval classify FILE` measures the same on labelled queries of your own, for the weights that ship; `--policy rules`
does so for the owner's rules. On the files below it would say too much good: the weights that ship have seen them.
"""
