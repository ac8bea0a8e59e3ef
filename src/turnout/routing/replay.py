"""What another policy would have chosen, from the decision log. Pure.

The direct method: a choice is worth what was expected of it when the decision fell. What would have come of a choice
that was not made nobody knows, and since no policy here chooses by chance there is nothing to weigh by propensity. So
how far expected and observed seconds are apart is told too, for the choices that were made.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from turnout.config import RouterConfig
from turnout.fleet.decisions import Decision, Option
from turnout.routing.capabilities import CapabilityTable
from turnout.routing.fallback import Ranked
from turnout.routing.price import EAGER, Price, Situation
from turnout.routing.select import Needs, by_value, select
from turnout.types import Candidate, Endpoint, Model, TaskCategory

Policy = Literal["best", "balanced", "fast", "lists"]


@dataclass(frozen=True, slots=True)
class Expected:
    """Means over the decisions that were priced: seconds until the answer is there and until it begins, and scores."""

    seconds: float
    first: float
    score: float


@dataclass(frozen=True, slots=True)
class Replay:
    """What came out.

    Attributes:
        decisions: that were read; ``damaged``: lines that were none.
        exact: decisions for an exact model, where no policy chooses; ``alone``: those with one candidate.
        replayed: the others; ``priced`` of them have expected seconds.
        differ: of the replayed, where the policy would choose another candidate; ``other_model`` of these, a model.
        logged, policy: what was expected of the choices that were made and of the policy's; None with nothing priced.
        observed: mean seconds that the first choices took when they answered, and ``expected``: what was expected of
            the same ones; None without any.
        ratio: the median of observed by expected seconds of these.
    """

    decisions: int
    damaged: int
    exact: int
    alone: int
    replayed: int
    priced: int
    differ: int
    other_model: int
    logged: Expected | None
    policy: Expected | None
    observed: float | None
    expected: float | None
    ratio: float | None


def replay(log: Iterable[Decision | None], policy: Policy, config: RouterConfig, table: CapabilityTable) -> Replay:
    """Ask a policy again about every decision.

    Args:
        log: the decisions, None for a line that is none.
        policy: how to choose. ``lists`` are those of the configuration, else the shipped ones.
        config: lists; limits count for nothing, since who broke one is no option.
        table: knows the names on lists.
    """
    config = under(policy, config)
    lines = list(log)
    found = [decision for decision in lines if decision is not None]
    open_ones = [d for d in found if d.category in tuple(TaskCategory) and len(d.options) > 1]
    picks = [(d, d.options[0], again(d, config, table)) for d in open_ones]
    priced = [(logged, pick) for _, logged, pick in picks if logged.priced and pick.priced]
    timed = [
        (d.outcome.total, seconds)
        for d, logged, _ in picks
        if d.chosen == 0 and not d.outcome.error and logged.priced and (seconds := _seconds(logged)) > 0
    ]
    exact = sum(not d.category for d in found)
    return Replay(
        decisions=len(found),
        damaged=len(lines) - len(found),
        exact=exact,
        alone=len(found) - exact - len(open_ones),
        replayed=len(picks),
        priced=len(priced),
        differ=sum(logged is not pick for _, logged, pick in picks),
        other_model=sum((logged.name or logged.model) != (pick.name or pick.model) for _, logged, pick in picks),
        logged=_expected([logged for logged, _ in priced]),
        policy=_expected([pick for _, pick in priced]),
        observed=statistics.fmean(total for total, _ in timed) if timed else None,
        expected=statistics.fmean(seconds for _, seconds in timed) if timed else None,
        ratio=statistics.median(total / seconds for total, seconds in timed) if timed else None,
    )


def again(decision: Decision, config: RouterConfig, table: CapabilityTable) -> Option:
    """The option that the configuration's policy chooses, by the very code that the router decides with; where the
    conversation was, and whether it was a small request beside one, count for nothing.

    Args:
        decision: with a category and an option.
        config: as ``under`` makes it.
        table: knows the names on lists.
    """
    category = TaskCategory(decision.category)
    fitting = [o for o in decision.options if o.level < 2] or list(decision.options)
    pool = {id(c): (c, o) for o in fitting for c in (_candidate(o, category),)}
    needs = Needs(category, "", 0, preference=decision.prefer)
    selection = select([c for c, _ in pool.values()], needs, config, table)
    ranked = [_ranked(r, pool[id(r.candidate)][1]) for r in (*selection.ranked, *selection.too_small)]
    if not ranked:
        return fitting[0]
    if selection.policy in EAGER:
        ranked = list(by_value(ranked, category, selection.policy, decision.difficulty))
    return pool[id(ranked[0].candidate)][1]


def under(policy: Policy, config: RouterConfig) -> RouterConfig:
    """The configuration with this policy in effect for every kind of work."""
    routing = msgspec.structs.replace(config.routing, policy=policy, memory_limit_gb=None)
    lists = config.task_routing if policy == "lists" else {}
    return msgspec.structs.replace(config, routing=routing, task_routing=lists)


def _candidate(option: Option, category: TaskCategory) -> Candidate:
    endpoint = Endpoint(option.at, "openai", f"log:{option.at}", priority=option.priority)
    model = Model(option.model, window=option.window, resident=option.resident)
    scores = {category: option.score}
    return Candidate(endpoint, model, option.name, option.window, "known", scores, "as it was logged")


def _ranked(ranked: Ranked, option: Option) -> Ranked:
    if not option.priced:
        return ranked
    price = Price(option.queue, option.load, option.prefill, option.decode, option.harm, option.observed)
    return replace(ranked, price=price, at=Situation(option.running, option.waiting, doubt=option.doubt))


def _seconds(option: Option) -> float:
    return option.queue + option.load + option.prefill + option.decode


def _expected(options: list[Option]) -> Expected | None:
    if not options:
        return None
    return Expected(
        statistics.fmean(map(_seconds, options)),
        statistics.fmean(_seconds(option) - option.decode for option in options),
        statistics.fmean(option.score for option in options),
    )
