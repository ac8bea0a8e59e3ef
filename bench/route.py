"""How often the best model that can serve is chosen, in a thousand small fleets, judged by results nobody has seen.

    PYTHONPATH=src:train python bench/route.py DATA [FLEETS]     `make route DATA=...`

A share of the public results is hidden, the capability table is computed from the rest by the code of train/models.py,
and the real selection chooses among models under ids that real servers list. What is true is what the hidden results
say, on the scale of the fit over all. Models without a hidden result are in no fleet, nor are builds below four bits,
of which no result tells. All results but a few are of coding, so that is what is asked. Seconds have no part: selection
ranks by score, and placement, which weighs seconds, comes after it. The same data gives the same figures.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

from models import BENCHMARKS, Data, Scored, read, score

from turnout.routing.capabilities import CapabilityTable, load_table
from turnout.routing.estimate import quantization_penalty, terms
from turnout.routing.evidence import OPINION, Result, mean, weigh
from turnout.routing.names import parse_model_name
from turnout.routing.simulate import ASKED, Kind, Report, decide, make_fleet, make_query, report
from turnout.types import TaskCategory

ROOT = Path(__file__).parents[1]
CODING = TaskCategory.CODING
TASKS = {"aider-polyglot": 225, "aider-edit": 133, "aider-refactor": 89, "humaneval": 164, "humaneval+": 164,
         "mbpp": 378, "mbpp+": 378, "bigcode-full-instruct": 1140, "bigcode-full-complete": 1140,
         "bigcode-hard-instruct": 148, "bigcode-hard-complete": 148, "swe-verified": 500}  # fmt: skip
Hidden = Callable[[str, Result], bool]


def suite(result: Result) -> str:
    return BENCHMARKS[result.benchmark].suite


def halved(key: str, result: Result) -> bool:
    """Every other result, by a hash of what it is."""
    text = f"{key}|{result.benchmark}|{result.value}|{result.date}"
    return suite(result) != OPINION and hashlib.sha256(text.encode()).digest()[0] % 2 == 0


SPLITS: Mapping[str, Hidden] = {
    "half of all results": halved,
    "all of aider": lambda _, r: suite(r) == "aider",
    "all of EvalPlus": lambda _, r: suite(r) == "EvalPlus",
    "all of BigCodeBench": lambda _, r: suite(r) == "BigCodeBench",
    "all of SWE-bench": lambda _, r: suite(r) == "SWE-bench",
}


def served_ids() -> dict[str, list[str]]:
    """The ids that real servers list, by the model each is, as people wrote down."""
    found: dict[str, list[str]] = {}
    for group in tomllib.loads((ROOT / "tests/routing/held_out_ids.toml").read_text()).values():
        for server_id, canonical in group.items():
            name = parse_model_name(server_id)
            if canonical and not quantization_penalty(name.quantization) and "base" not in name.variants:
                found.setdefault(canonical, []).append(server_id)
    return found


def table_of(scored: Scored) -> CapabilityTable:
    """The shipped table with other scores."""
    shipped = load_table()
    rows = {key: replace(row, scores=scored.scores[key]) for key in shipped.ids if (row := shipped.get(key))}
    return CapabilityTable(rows, shipped.aliases, scored.lines)


def kinds_of(data: Data, whole: Scored, hidden: Hidden, noise: Random | None = None) -> list[Kind]:
    """Each id of a model with a hidden result, and what that says.

    Args:
        noise: adds what chance alone would change, were the same tasks drawn anew.
    """
    found = []
    for canonical, ids in sorted(served_ids().items()):
        rows = [
            r
            for r in data.results.get(canonical, ())
            if hidden(canonical, r) and r.benchmark in whole.evidence.benchmarks
        ]
        told = weigh([_drawn(r, noise) for r in rows], whole.evidence.benchmarks, CODING)
        row = load_table().get(canonical)
        if told and row:
            truth = {CODING: mean(told)}
            found += [Kind(i, canonical, row.params, row.active, row.window, truth) for i in sorted(ids)]
    return found


def _drawn(result: Result, noise: Random | None) -> Result:
    if noise is None or result.benchmark not in TASKS:
        return result
    share = min(0.99, max(0.01, result.value / 100))
    apart = 100 * math.sqrt(share * (1 - share) / TASKS[result.benchmark])
    return replace(result, value=min(99.0, max(1.0, result.value + noise.gauss(0, apart))))


def run(kinds: list[Kind], table: CapabilityTable, fleets: int) -> Report:
    random = Random(1)
    found = []
    for _ in range(fleets):
        fleet = make_fleet(random, kinds)
        found += decide(fleet, [make_query(random, CODING) for _ in range(ASKED)], table)
    return report(found)


def by(scores: Mapping[str, float]) -> CapabilityTable:
    """The shipped table with the same number for every category, by another rule than ours."""
    shipped = load_table()
    rows = {
        key: replace(row, scores=dict.fromkeys(TaskCategory, scores[key]))
        for key in shipped.ids
        if (row := shipped.get(key))
    }
    return CapabilityTable(rows, shipped.aliases, shipped.lines)


def show(hidden: str, chooser: str, found: Report) -> None:
    gap = "" if found.gap is None else f"{found.gap:.0%}"
    broken, count = sum(found.broken.values()), found.decisions
    print(f"| {hidden} | {chooser} | {found.match:.1%} | {found.near:.1%} | {found.regret:.2f} ", end="")
    print(f"| {gap} | {found.none:.1%} | {broken} | {found.moved:.1%} | {count} |")


def main(folder: Path, fleets: int) -> None:
    data = read(folder)
    whole = score(data)
    rows = [row for row in map(load_table().get, load_table().ids) if row]
    sizes = by({row.id: min(99.0, 10 * math.log2(1 + row.params)) for row in rows})
    owner = whole.evidence.benchmarks["owner-coding"]
    thought = {key: owner.points(numbers[CODING]) for key, numbers in data.opinions.items()}
    print("| hidden | chosen by | best | within 3 points | regret | gap closed | none | broken | moved | decisions |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, hidden in SPLITS.items():
        kinds = kinds_of(data, whole, hidden)
        seen = score(data, lambda key, r, hidden=hidden: not hidden(key, r))  # type: ignore[misc]
        show(name, "this table", run(kinds, table_of(seen), fleets))
        again = {kind.canonical: kind.truth[CODING] for kind in kinds_of(data, whole, hidden, Random(2))}
        show(
            name,
            "the hidden results, tasks drawn anew",
            run(kinds, by({r.id: again.get(r.id, 0.0) for r in rows}), fleets),
        )
        by_line = {r.id: sum(t.points for t in terms(seen.lines, r.name, r.params, r.active, r.year)) for r in rows}
        show(name, "the owner's numbers, else size, age and family", run(kinds, by(by_line | thought), fleets))
        show(name, "parameters", run(kinds, sizes, fleets))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
