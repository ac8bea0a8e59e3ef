"""What the decision log costs: CPU for a line, from the record of a request to the file, for one and more candidates.

python bench/journal.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from turnout.config import RouterConfig
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.decisions import DecisionLog
from turnout.fleet.feedback import Feedback
from turnout.fleet.learned import Hardware, Speed
from turnout.journal import Journal
from turnout.outcome import route_to
from turnout.routing.capabilities import load_table
from turnout.routing.classify import classify_task
from turnout.routing.price import Situation, Work, price
from turnout.routing.select import Needs, candidates, select
from turnout.run import Run
from turnout.types import ChatRequest, Endpoint, Health, Model, Principal

MODELS = ("qwen2.5-coder:7b", "llama3.1:8b", "gemma2:9b", "phi4:14b", "mistral-nemo:12b")
ROUNDS, REQUESTS, TOGETHER = 7, 20_000, 1000


def request_of(models: tuple[str, ...]) -> Run:
    """A request that has ended."""
    table, box = load_table(), Endpoint("box", "openai", "http://127.0.0.1:1")
    status = EndpointStatus(box, Health.ONLINE, "", 0.0, models=tuple(Model(m, window=32_768) for m in models))
    task, work = classify_task("Fix the parser"), Work(500)
    selection = select(candidates(Catalog((status,)), table), Needs(task.category, "", 500), RouterConfig(), table)
    speed = Speed(333.3, 1.1, 44.7, 4)
    if len(models) > 1:
        ranked = (
            replace(r, price=price(r.candidate, work, Situation(), speed, Hardware()), at=Situation())
            for r in selection.ranked
        )
        selection = replace(selection, work=work, ranked=tuple(ranked))
    run = Run(ChatRequest(()), Principal(), "", "0" * 32)
    run.task, run.selection, run.first, run.error = task, selection, time.monotonic(), ""
    run.route = route_to(selection.ranked[0].candidate, run.id, "auto")
    return run


def cost(run: Run) -> float:
    """Seconds of CPU for a line; the best of some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(DecisionLog(Path(folder) / "decisions.jsonl"), Feedback(), lambda *_, **__: None)
        rounds = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for number in range(1, REQUESTS + 1):
                journal.ended(run)
                if number % TOGETHER == 0:
                    journal.save()
            rounds.append((time.process_time() - began) / REQUESTS)
    return min(rounds)


if __name__ == "__main__":
    for models in (MODELS[:1], MODELS):
        print(f"{len(models)} candidates: {cost(request_of(models)) * 1e6:.1f} us of CPU")
