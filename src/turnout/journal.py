"""What became of each decision: the decision log, and what people say of answers.

``Journal`` writes from the pipeline's own record of a request, on the event loop but without a file: a task saves what
was collected, and whoever closes the router saves the rest.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from turnout.errors import StorageError, UsageError
from turnout.fleet.decisions import NONE, Decision, DecisionLog, Option, Outcome
from turnout.fleet.feedback import Feedback, Votes, feedback_change
from turnout.routing.fallback import Ranked
from turnout.routing.select import Selection
from turnout.run import Run
from turnout.types import FallbackLevel, Json, Principal, TaskCategory

SAVE_EVERY = 5.0  # seconds
MAX_OPTIONS = 16
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Voted:
    """A vote that was counted: on which model at which kind of work, and all votes on it there."""

    model: str
    category: str
    votes: Votes


def vote_fields(voted: Voted) -> dict[str, Json]:
    """For JSON; ``change``: points by which all votes move the score."""
    votes = voted.votes
    return {
        "model": voted.model,
        "category": voted.category,
        "good": round(votes.good, 3),
        "bad": round(votes.bad, 3),
        "change": round(feedback_change(votes), 3),
    }


class Journal:
    """Made once for a router.

    Args:
        log: where decisions are kept, or None.
        votes: where feedback is kept.
        note: writes to the audit log, as ``Router.note``.
    """

    def __init__(self, log: DecisionLog | None, votes: Feedback, note: Callable[..., None]) -> None:
        self._log, self.votes, self._note = log, votes, note
        self.full = asyncio.Event()  # more is collected than should wait

    def ended(self, run: Run) -> None:
        """Keep how a request ended. One for which there was no choice, an exact model at one server, is left out."""
        if self._log is None or run.selection is None or (run.task is None and len(run.selection.ranked) < 2):
            return
        if self._log.add(decision_of(run, run.selection, time.time())):
            self.full.set()

    def save(self) -> None:
        """Write what was collected. Blocking."""
        if self._log is not None:
            self._log.save()

    async def feedback(self, request_id: str, who: Principal, *, good: bool, note: str = "") -> Voted:
        """Count whether the answer to a request of one's own was any good; the same request again changes the vote.

        Raises:
            UsageError: no request of theirs is known by the id, or no kind of work was decided for it.
            StorageError: the vote cannot be kept, or the decision log cannot be read.
            AuditError: it cannot be written down, so it is not counted.
        """
        if self._log is None:
            raise UsageError("decisions are not kept, so no answer is known", hint="routing.log_decisions: true")
        found = await asyncio.to_thread(_find, self._log, request_id)
        if found is None or found.who != who.id:
            hint = (
                "the id is in x-turnout-request-id and in `turnout ask --json`; `turnout feedback` lists the last; "
                "where an exact model was asked for that one server has, there was no choice to judge"
            )
            raise UsageError(f"no request of yours has the id {request_id[:80]!r}", hint=hint)
        if not found.category or found.chosen < 0:
            why = "an exact model was asked for" if not found.category else "no model answered it"
            raise UsageError(f"there is no choice to judge in {request_id}: {why}")
        option = found.options[found.chosen]
        model = option.name or option.model
        verdict = "good" if good else "bad"
        self._note("feedback", principal=who.id, service=f"{verdict}: {model}, {found.category}, request {request_id}")
        votes = await asyncio.to_thread(
            self.votes.vote, request_id, model, found.category, who.id, good=good, note=note
        )
        return Voted(model, found.category, votes)


def _find(log: DecisionLog, request_id: str) -> Decision | None:
    if not _ID.fullmatch(request_id):
        return None
    try:
        return log.find(request_id)
    except OSError as error:
        raise StorageError(f"the decision log cannot be read: {error.strerror or error}") from error


@asynccontextmanager
async def keep_on(journal: Journal, changed: Callable[[], None]) -> AsyncIterator[None]:
    """Save now and then, and say when others have given feedback, for as long as the context is open."""
    saving = asyncio.create_task(_keep_on(journal, changed))
    try:
        yield
    finally:
        saving.cancel()
        with suppress(asyncio.CancelledError):
            await saving


async def _keep_on(journal: Journal, changed: Callable[[], None]) -> None:
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(journal.full.wait(), SAVE_EVERY)
        journal.full.clear()
        await asyncio.to_thread(journal.save)
        if await asyncio.to_thread(journal.votes.refresh):
            changed()


def decision_of(run: Run, selection: Selection, now: float) -> Decision:
    """The record of a request that has ended; ``now``: seconds since the epoch."""
    task, route, needs, usage = run.task, run.route, selection.needs, run.usage
    category = task.category if task is not None else None
    fits = len(selection.ranked)
    shown = (selection.ranked + selection.too_small)[:MAX_OPTIONS]
    chosen = -1
    if route is not None:
        for n, ranked in enumerate(shown):
            if ranked.candidate.model.id == route.sent_model and ranked.candidate.endpoint.name == route.service:
                chosen = n
                break
    return Decision(
        at=_short(now),
        id=run.id,
        who=run.principal.id,
        policy=selection.policy,
        category=category or "",
        shares={c: _short(share) for c, share in task.scores.items()} if task is not None else {},
        difficulty=_short(task.difficulty) if task is not None else 0.5,
        code_context=task.needs_code_context if task is not None else False,
        tokens=selection.work.prompt if selection.work else route.prompt_tokens if route else 0,
        answer=needs.answer if needs else 0,
        needs=tuple(needs.capabilities) if needs else (),
        prefer=needs.preference if needs else "",
        options=tuple([_option(r, category, fits=n < fits) for n, r in enumerate(shown)]),
        more=fits + len(selection.too_small) - len(shown),
        rejected=len(selection.rejected),
        chosen=chosen,
        outcome=Outcome(
            _short(run.first - run.started) if run.first else NONE,
            _short(time.monotonic() - run.started),
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            route.level if route is not None else FallbackLevel.FAILED,
            len(run.attempts),
            run.error,
        ),
    )


def _option(ranked: Ranked, category: TaskCategory | None, *, fits: bool) -> Option:
    candidate, price, at = ranked.candidate, ranked.price, ranked.at
    known = (
        candidate.model.id,
        candidate.endpoint.name,
        candidate.canonical,
        candidate.scores.get(category, NONE) if category is not None else NONE,
        ranked.bonus or NONE,
        ranked.level if fits else FallbackLevel.REDUCED_CONTEXT,
        candidate.window,
        candidate.endpoint.priority,
        candidate.model.resident,
    )
    if price is None or at is None:
        return Option(*known)
    return Option(
        *known,
        at.running,
        at.waiting,
        at.doubt,
        True,
        _short(price.queue),
        _short(price.load),
        _short(price.prefill),
        _short(price.decode),
        _short(price.harm),
        price.observed,
    )


def _short(value: float) -> float:
    """Four digits after the point; ``round`` takes three times as long."""
    return int(value * 10_000) / 10_000 if value else NONE
