"""How long a decision takes among 200 candidates: selection and placement, of new and of known conversations.

    python bench/decide.py [SERVERS] [MODELS]

SERVERS (50) with MODELS (4) each. ``anew`` rates all candidates, as after a change of the fleet; ``usual`` is every
request between two changes. Classification of the question is not in it (docs/classifier.md).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from random import Random

from sim import CONFIG, TABLE, TASK, Job, Kind, Machine, Ours, World, request_of

from turnout.fleet.health import HealthBook
from turnout.routing.select import Needs, Selection, Selector
from turnout.types import TaskCategory

NAMES = ("qwen2.5-coder-32b", "qwen3-8b", "llama-3.1-8b-instruct", "gemma-3-27b-it", "mistral-small-24b", "phi-4")
ROUNDS = 400


def main(servers: int, models: int) -> None:
    kinds = tuple(Kind(NAMES[n % len(NAMES)], 800.0, 30.0, 8.0) for n in range(models))
    world = World(tuple(Machine(f"m{n}", kinds, 4, models) for n in range(servers)), "turnout", 1)
    ours, catalog = Ours(world), world.catalog()
    ours.fleet.catalog = catalog
    needs = Needs(TaskCategory.CODING, "", 6000)
    usual = Selector(CONFIG, TABLE, frozenset)

    book = HealthBook()

    def chosen(selector: Selector) -> Selection:
        return selector.select(selector.pool(catalog), needs, lambda: 6000, 6000, book)

    def decide(selector: Selector, session: str) -> None:
        job = Job(session, 6000, 0, 200, False, False, lambda _: None)
        selection, _ = ours.placement.order(request_of(job), "t", chosen(selector), TASK)
        assert len(selection.ranked) == servers * models

    random = Random(1)
    decide(usual, "first")
    cases: dict[str, Callable[[], None]] = {
        "usual, a known conversation": lambda: decide(usual, "first"),
        "usual, a new one": lambda: decide(usual, str(random.random())),
        "anew, a new one": lambda: decide(Selector(CONFIG, TABLE, frozenset), str(random.random())),
    }
    print(f"{servers * models} candidates, {ROUNDS} rounds, processor time\n| | median | p99 |\n|---|---|---|")
    for name, case in cases.items():
        took = []
        for _ in range(ROUNDS):
            began = time.process_time()
            case()
            took.append(1000 * (time.process_time() - began))
        took.sort()
        print(f"| {name} | {statistics.median(took):.2f} ms | {took[int(0.99 * ROUNDS)]:.2f} ms |")


if __name__ == "__main__":
    main(*(int(n) for n in sys.argv[1:3] or ("50", "4")))
