"""What is asked of one named model and is no chat: vectors, the order of documents, a text gone on with.

Such a request has no kind of work to find and no conversation to fit: it goes to the endpoints that have the very
model, one after the other until one answers, and into the audit log as every other.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from turnout.backends import BY_KIND
from turnout.backends.lanes import text_lane
from turnout.errors import (
    BackendError,
    NoServiceError,
    TurnoutError,
    UsageError,
)
from turnout.guard.records import QueryEnd, QueryStart
from turnout.outcome import broken, failed, route_to
from turnout.routing.advice import BUNDLED, START_ONE, usable
from turnout.routing.capabilities import CapabilityTable
from turnout.routing.patience import ending, patient
from turnout.routing.select import asked_for, name_behind, nobody_has, permitted
from turnout.types import (
    VIRTUAL_MODELS,
    AttemptRecord,
    Candidate,
    Event,
    FallbackLevel,
    Principal,
    Route,
    Started,
    TextDelta,
    Usage,
    UsageReport,
)
from turnout.wire.base import Completion

if TYPE_CHECKING:
    from turnout.backends.base import Ranks, Vectors
    from turnout.fleet.watch import Fleet
    from turnout.guard.network import HttpClient
    from turnout.guard.trail import Trail
    from turnout.placement import Placement

T = TypeVar("T")


@dataclass(slots=True)
class _Run:
    """One request while it runs."""

    model: str
    query: str
    principal: Principal
    aside: bool = True  # others go first
    id: str = field(default_factory=lambda: f"{random.getrandbits(128):032x}")
    attempts: list[AttemptRecord] = field(default_factory=list)
    answers: Candidate | None = None
    text: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    error: str = "cancelled"

    def note(self, candidate: Candidate, error: BackendError | None, began: float) -> None:
        level, place = FallbackLevel.PRIMARY, candidate.endpoint.name
        self.attempts.append(AttemptRecord(level, candidate.model.id, place, error, time.monotonic() - began))

    def see(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self.text.append(event.text)
        elif isinstance(event, UsageReport):
            self.usage = event.usage

    def route(self) -> Route:
        candidate = self.answers
        assert candidate is not None, "nobody has answered"
        return replace(route_to(candidate, self.id, self.model), attempts=tuple(self.attempts))


def _within(candidate: Candidate, seconds: float) -> Candidate:
    """The candidate with no more than so long for its answer, of which others may have had their part."""
    limits, left = candidate.endpoint.limits, max(1, math.ceil(seconds))
    endpoint = candidate.endpoint
    if left < limits.total:
        endpoint = ending(endpoint, left)
    if left < limits.first_byte:
        endpoint = patient(endpoint, left)
    return replace(candidate, endpoint=endpoint)


class Sidework:
    """Made by the Router, whose client, fleet and audit trail it shares."""

    def __init__(
        self,
        client: HttpClient,
        fleet: Fleet,
        table: CapabilityTable,
        pool: Callable[[], Sequence[Candidate]],
        placement: Placement,
        trail: Trail | None,
    ) -> None:
        self._client, self._fleet, self._table, self._pool = client, fleet, table, pool
        self._placement, self._trail = placement, trail

    async def embed(self, model: str, texts: Sequence[str], principal: Principal) -> tuple[Vectors, Route]:
        """One vector per text. Raises as ``complete``."""

        async def ask(candidate: Candidate) -> AsyncGenerator[Vectors, None]:
            backend = BY_KIND[candidate.endpoint.kind]
            yield await backend.embed(self._client, candidate.endpoint, candidate.model, texts)

        return await self._one(_Run(model, "\n".join(texts), principal), "make embeddings", ask)

    async def rerank(
        self, model: str, query: str, documents: Sequence[str], principal: Principal
    ) -> tuple[Ranks, Route]:
        """``(place, relevance)`` of every document, the most relevant first. Raises as ``complete``."""

        async def ask(candidate: Candidate) -> AsyncGenerator[Ranks, None]:
            backend = BY_KIND[candidate.endpoint.kind]
            yield await backend.rerank(self._client, candidate.endpoint, candidate.model, query, documents)

        return await self._one(_Run(model, query, principal), "rank documents", ask)

    async def complete(self, asked: Completion, principal: Principal) -> AsyncGenerator[Event, None]:
        """Go on with a text, as a stream of events. Close the stream to cancel (``aclosing``).

        Raises:
            UsageError: no model is named.
            NoServiceError: no server answered.
            NoSuitableModelError: no server has the model.
            ModelBlockedError: it is not the one that was recorded.
            QueryFailedError: every endpoint that has it failed.
            StreamBrokenError: the answer broke off after output had begun; carries what came.
            AuditError: the audit log cannot be written, so nothing was run.
        """

        async def ask(candidate: Candidate) -> AsyncGenerator[Event, None]:
            endpoint, model, window = candidate.endpoint, candidate.model, candidate.window
            backend = BY_KIND[endpoint.kind]
            if model.resident is False:
                window = await backend.window_when_loaded(self._client, endpoint, model)
            async with aclosing(text_lane(self._client, backend, endpoint, model, asked, window)) as events:
                async for event in events:
                    yield event

        run, begun = _Run(asked.model, asked.prompt, principal, aside=False), False
        async with aclosing(self._run(run, "go on with a text", ask)) as events:
            async for event in events:
                if not begun:
                    begun = True
                    yield Started(run.route())
                run.see(event)
                yield event

    async def _one(self, run: _Run, what: str, ask: Callable[[Candidate], AsyncGenerator[T, None]]) -> tuple[T, Route]:
        async with aclosing(self._run(run, what, ask)) as made:
            (answer,) = [item async for item in made]
        return answer, run.route()

    async def _run(
        self, run: _Run, what: str, ask: Callable[[Candidate], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        """What the first candidate that answers says. After its first word nothing is tried again.

        All of it has the time that one server may take, as a chat has.
        """
        if self._trail is not None:
            await self._trail.start(QueryStart(run.id, "", run.principal.id, run.query))
        started = time.monotonic()
        try:
            candidates = await self._candidates(run, what)
            until = started + max(candidate.endpoint.limits.total for candidate in candidates)
            for candidate in candidates:
                endpoint, began = candidate.endpoint, time.monotonic()
                if run.attempts and began >= until:
                    break
                self._fleet.book.begin(endpoint)
                try:
                    async with (
                        self._placement.admitted(candidate, aside=run.aside, patience=until - began),
                        aclosing(self._ask(candidate, ask, until)) as made,
                    ):
                        async for item in made:
                            run.answers = candidate
                            yield item
                except BackendError as error:
                    self._fleet.book.attempt(endpoint, error)
                    run.note(candidate, error, began)
                    if run.answers is not None:
                        raise broken(error, "".join(run.text), run.attempts) from error
                    continue
                self._fleet.book.attempt(endpoint, None)
                run.note(candidate, None, began)
                run.error = ""
                return
            raise failed(run.attempts)
        except TurnoutError as error:
            run.error = error.code
            raise
        finally:
            self._end(run)

    def _ask(
        self, candidate: Candidate, ask: Callable[[Candidate], AsyncGenerator[T, None]], until: float
    ) -> AsyncGenerator[T, None]:
        return self._fleet.guarded(candidate, ask(_within(candidate, until - time.monotonic())))

    async def _candidates(self, run: _Run, what: str) -> list[Candidate]:
        """Those that have the very model, the best to ask first."""
        model, who = name_behind(run.model, self._pool()), run.principal
        if not model or model in VIRTUAL_MODELS:
            permitted(who, model, (), self._table)
            said = f"{model!r} is no model" if model else "no model is named"
            raise UsageError(f"{said}: to {what}, name one", hint="GET /v1/models lists them")
        if not self._fleet.catalog.serving:
            await self._fleet.refresh(whole=False)
        if not self._fleet.catalog.serving:
            raise NoServiceError(hint=f"{START_ONE}; {BUNDLED}", probed=self._fleet.catalog.probed)
        found = permitted(who, model, self._named(model), self._table)
        if not found:
            await self._fleet.settled()
            await self._fleet.look_again()
            found = permitted(who, model, self._named(model), self._table)
        if not found:
            raise nobody_has(model, self._pool(), self._fleet.catalog.away)
        if all(c.verdict.barred for c in found) and self._fleet.checking:
            await self._fleet.checked_all()
            found = permitted(who, model, self._named(model), self._table)
        found = usable(found)
        book = self._fleet.book
        well = [c for c in found if not book.bars(c.endpoint)]
        if not well:
            nearest = book.nearest(c.endpoint for c in found)
            well = [c for c in found if c.endpoint == nearest]
        return sorted(
            well, key=lambda c: (book.rank(c.endpoint), c.endpoint.priority, c.model.resident is False, c.label)
        )

    def _named(self, model: str) -> list[Candidate]:
        """By its very id, with or without ``:latest``, before any other name of it: vectors of two builds of a model do
        not compare."""
        able = [c for c in self._pool() if not c.model.load_first]
        same = {model, model.removesuffix(":latest"), f"{model}:latest"}
        return [c for c in able if c.model.id in same] or asked_for(able, model, self._table)

    def _end(self, run: _Run) -> None:
        if self._trail is None:
            return
        answers = run.answers
        self._trail.end(
            QueryEnd(
                request_id=run.id,
                session_id="",
                principal=run.principal.id,
                query=run.query,
                model=answers.model.id if answers else "",
                service=answers.endpoint.name if answers else "",
                fallback_level=int(FallbackLevel.PRIMARY if answers else FallbackLevel.FAILED),
                attempts=tuple(run.attempts),
                tokens_in=run.usage.prompt_tokens,
                tokens_out=run.usage.completion_tokens,
                error=run.error,
                response="".join(run.text),
            )
        )
