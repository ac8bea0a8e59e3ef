"""The fit of train/fit.py on results that were made from known scores."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from turnout.routing.evidence import Benchmark, Result
from turnout.routing.names import parse_model_name
from turnout.types import TaskCategory

# Two benchmarks of other difficulty and slope; most models have a result on one of them.
MADE = {
    "easy": Benchmark("easy", "A", TaskCategory.CODING, ""),
    "hard": Benchmark("hard", "B", TaskCategory.CODING, ""),
}
SCALES = {"easy": (20.0, 0.09), "hard": (70.0, 0.05)}


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "train"))
    yield importlib.import_module("fit")
    sys.modules.pop("fit", None)


def value(points: float, benchmark: str) -> float:
    middle, slope = SCALES[benchmark]
    return 100 / (1 + math.exp(-slope * (points - middle)))


def test_results_of_two_benchmarks_come_to_one_order(fit: ModuleType) -> None:
    random = Random(3)
    subjects, results, truth = [], {}, {}
    for n in range(60):
        size = random.choice([1, 3, 7, 14, 32, 70])
        key = f"m{n}-{size}b"
        subjects.append(fit.Subject(key, parse_model_name(f"qwen2.5-{size}b"), size, 0.0, 2024.5, listed=True))
        truth[key] = 20 + 6 * math.log2(size) + random.gauss(0, 6)
        on = [list(MADE)[n % 2]] if n % 5 else list(MADE)
        results[key] = [Result(b, value(truth[key] + random.gauss(0, 1), b), "2024-06", key) for b in on]
    found = fit.fit(subjects, results, MADE)
    keys = sorted(truth)
    pairs = [(a, b) for a in keys for b in keys if truth[a] - truth[b] > 4]
    right = sum(found.scores[a] > found.scores[b] for a, b in pairs) / len(pairs)
    assert right > 0.95
    assert found.lines.size > 3
    assert found.benchmarks["hard"].middle > found.benchmarks["easy"].middle + 20
    assert fit.fit(subjects, results, MADE) == found, "nothing is left to chance"


def test_with_one_result_a_model_stays_near_the_line_and_with_many_it_leaves_it(fit: ModuleType) -> None:
    subjects, results = [], {}
    for n in range(20):
        key = f"m{n}"
        subjects.append(fit.Subject(key, parse_model_name("llama-3.1-8b"), 1.0 + n, 0.0, 2024.5, listed=True))
        results[key] = [Result(b, value(30 + n, b), "2024-06", key) for b in MADE]
    one, many = (fit.Subject(k, parse_model_name("phi-4"), 10.0, 0.0, 2024.5, listed=True) for k in ("one", "many"))
    results["one"] = [Result("hard", value(80, "hard"), "2024-06", "one")]
    results["many"] = [Result(b, value(80, b), "2024-06", "many") for b in MADE]
    found = fit.fit([*subjects, one, many], results, MADE)
    assert fit.expected(found.lines, one) < found.scores["one"] < found.scores["many"]
