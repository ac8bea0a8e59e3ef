"""What ``turnout eval route`` does: labelled queries over simulated fleets, or over the servers that run now."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import click

from turnout.cli.evaluate import labelled, read_queries, write_plot
from turnout.cli.fleet import capability_table, look
from turnout.cli.output import print_json, table, waiting
from turnout.cli.plot import EDGE, SIDE, square_plot
from turnout.context.tokens import get_token_counter
from turnout.errors import NoServiceError, UsageError
from turnout.routing.advice import what_to_check
from turnout.routing.classify import classify_task
from turnout.routing.simulate import ASKED, NEAR, Decision, Fleet, Kind, Query, decide, make_fleet, make_query, report
from turnout.types import Model

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.routing.capabilities import CapabilityTable
    from turnout.routing.simulate import Report
    from turnout.types import Json, TaskCategory

NEEDS = ("tools", "vision")
FORMS = ("{}", "{}-q4_k_m", "{}-q8_0.gguf", "models/{}-Q5_K_M.gguf")  # of the ids that simulated servers list
LARGEST = 10_000_000  # tokens of a prompt
HARD = ("window", "capability", "memory", "health", "isolation")


@dataclass(frozen=True)
class _Asked:
    """A line: what it is, what it is said to be, and what it needs; ``tokens`` 0 and ``needs`` None: not said."""

    text: str
    category: TaskCategory
    said: TaskCategory
    tokens: int
    needs: frozenset[str] | None


def evaluate_route(loaded: LoadedConfig, file: Path, *, fleets: int, plot: str | None, as_json: bool) -> None:
    """Measure and show.

    Args:
        fleets: how many are simulated; 0 takes the one that runs.

    Raises:
        UsageError: the file is not as it should be, or no request could be served.
        NoServiceError: no server runs.
    """
    policy = loaded.config.routing.classification
    asked = [_asked(row, where, policy) for where, row in read_queries(file)]
    known = capability_table(loaded)
    decisions = _simulated(asked, known, fleets) if fleets else _live(asked, known, loaded)
    if all(decision.best is None for decision in decisions):
        hint = "`turnout explain` shows what speaks against each"
        raise UsageError("no model could serve any of the queries", hint=hint)
    found = report(decisions)
    if plot is not None:
        write_plot(Path(plot), losses_plot(found.losses))
    right = sum(one.category is one.said for one in asked) / len(asked)
    if as_json:
        chosen = Counter(decision.name for decision in decisions if decision.name)
        print_json({"file": str(file), "fleets": fleets or "live", "queries": len(asked), "accuracy": round(right, 4),
                    **_fields(found), "chosen": dict(chosen.most_common())})  # fmt: skip
        return
    table(("measure", "value"), [("queries", str(len(asked))), ("classified right", f"{right:.1%}"), *_rows(found)])
    if not fleets:
        click.echo()
        chosen = Counter(decision.name or "none" for decision in decisions)
        table(("model", "chosen"), [(name, str(count)) for name, count in chosen.most_common()])


def _asked(row: dict[str, Json], where: str, policy: str) -> _Asked:
    text, label = labelled(row, where)
    tokens, needs = row.get("tokens"), row.get("needs")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 < tokens <= LARGEST):
        raise UsageError(f"{where}: `tokens` is no number from 1 to {LARGEST:,}", hint="correct it or leave it out")
    if needs is not None and not (isinstance(needs, list) and all(need in NEEDS for need in needs)):
        raise UsageError(f"{where}: `needs` is no list of {' and '.join(NEEDS)}", hint="correct it or leave it out")
    wanted = None if needs is None else frozenset(map(str, needs))
    return _Asked(text, label.category, classify_task(text, policy).category, tokens or 0, wanted)


def _simulated(asked: Sequence[_Asked], known: CapabilityTable, fleets: int) -> list[Decision]:
    """Every query at least once, and ``ASKED`` requests of each fleet."""
    random, kinds = Random(1), list(_kinds(known))  # noqa: S311 - the same fleets each time
    decisions: list[Decision] = []
    turn = 0
    each = max(ASKED, -(-len(asked) // fleets))
    for _ in range(fleets):
        fleet = make_fleet(random, kinds)
        queries = [_query(asked[(turn + n) % len(asked)], random) for n in range(each)]
        turn += each
        decisions += decide(fleet, queries, known)
    return decisions


def _kinds(known: CapabilityTable) -> Iterable[Kind]:
    """Every model of the table under the names that servers give it, worth what the table says."""
    for canonical in known.ids:
        row = known.get(canonical)
        if row is None or "chat" not in (row.capabilities or {"chat"}):
            continue
        for form in FORMS:
            server_id = form.format(canonical)
            rating = known.rate(Model(server_id))
            if rating.canonical == canonical:
                yield Kind(server_id, canonical, row.params, row.active, row.window, rating.scores)


def _query(one: _Asked, random: Random) -> Query:
    drawn = make_query(random, one.category)
    needs = drawn.capabilities if one.needs is None else one.needs
    return Query(one.category, one.said, one.tokens or drawn.tokens, needs, drawn.answer)


def _live(asked: Sequence[_Asked], known: CapabilityTable, loaded: LoadedConfig) -> list[Decision]:
    """Every query once, at the servers that run."""
    from turnout.routing.select import candidates

    with waiting("looking for servers"):
        catalog = asyncio.run(look(loaded))
    if not catalog.serving:
        raise NoServiceError(hint=what_to_check(catalog, loaded.config))
    kinds = {}
    for candidate in candidates(catalog, known):
        rating = known.rate(candidate.model)
        name = candidate.canonical or candidate.model.id
        barred = candidate.endpoint.embedded or candidate.model.load_first or candidate.evicts
        if not barred and any(rating.scores.values()):
            kinds[candidate.endpoint.name, candidate.model.id] = Kind(
                candidate.model.id, name, rating.params, rating.active, candidate.window, candidate.scores
            )
    fleet = Fleet(catalog.endpoints, kinds, frozenset(), loaded.config)
    queries = [
        Query(one.category, one.said, one.tokens or get_token_counter("").count(one.text), one.needs or frozenset())
        for one in asked
    ]
    return decide(fleet, queries, known)


def _rows(found: Report) -> list[tuple[str, str]]:
    return [
        ("choices where some model could serve", str(found.decisions)),
        ("choices where none could", str(found.nobody)),
        ("the best one was chosen", f"{found.match:.1%}"),
        (f"at most {NEAR:g} points away", f"{found.near:.1%}"),
        ("none was chosen", f"{found.none:.1%}"),
        ("points lost on the average", f"{found.regret:.2f}"),
        ("gained of what is above the best single model", "" if found.gap is None else f"{found.gap:.0%}"),
        ("another choice after a harmless change", f"{found.moved:.1%}"),
        *((f"hard limit broken: {name}", str(found.broken.get(name, 0))) for name in HARD),
    ]


def _fields(found: Report) -> dict[str, Json]:
    return {
        "decisions": found.decisions,
        "nobody": found.nobody,
        "match": round(found.match, 4),
        "near": round(found.near, 4),
        "none": round(found.none, 4),
        "regret": round(found.regret, 3),
        "gap_closed": None if found.gap is None else round(found.gap, 4),
        "moved": round(found.moved, 4),
        "broken": {name: found.broken.get(name, 0) for name in HARD},
    }


def losses_plot(losses: Sequence[float]) -> str:
    """An SVG image: the share of the choices (upwards) that lose at most so many points (to the right)."""
    most = max(10.0, -(-losses[-1] // 10) * 10)
    low = EDGE + SIDE
    steps = [(loss, (n + 1) / len(losses)) for n, loss in enumerate(losses)]
    # Of losses that are drawn at the same place the last says it all.
    places = {f"{EDGE + SIDE * loss / most:.1f}": f"{low - SIDE * share:.1f}" for loss, share in steps}
    path = " ".join(f"H{x} V{y}" for x, y in places.items())
    line = f'<path d="M{EDGE} {low} {path} H{EDGE + SIDE}" fill="none" stroke="#27c" stroke-width="2"/>\n'
    return square_plot(line, most, "points lost", "share of the choices")
