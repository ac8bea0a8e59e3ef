"""The pipeline. ``Router.route`` is the page to read first; everything else here serves it (SPEC LIB-3)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.backends.lanes import chat_lane
from turnout.code.provider import is_off, not_gathered_because, room_for
from turnout.config import AgentConfig, RouterConfig
from turnout.context.tokens import TokenCounter, get_token_counter
from turnout.decided import Decided
from turnout.errors import (
    AuditError,
    BackendError,
    CallerLeftError,
    ContextOverflowError,
    ModelBlockedError,
    NoServiceError,
    NoSuitableModelError,
    StorageError,
    TurnoutError,
    UsageError,
)
from turnout.fitting import Fit, Fitter
from turnout.fleet.agents import get_agent_specific_config
from turnout.fleet.catalog import Catalog
from turnout.fleet.pins import Pin
from turnout.guard.audit import AuditLog
from turnout.guard.records import QueryEnd, QueryStart
from turnout.guard.trail import Trail
from turnout.hygiene import tidy
from turnout.inserted import Inserted, without_serena
from turnout.journal import Journal, Voted
from turnout.outcome import broken, failed, reason_of, record_of, route_to, tried_of
from turnout.placement import Placement
from turnout.request import answer_room, capabilities_of, check, classify, query_of
from turnout.residency import the_one, unload, warm
from turnout.routing.advice import BUNDLED, what_to_check
from turnout.routing.capabilities import CapabilityTable
from turnout.routing.classifier import ClassificationResult
from turnout.routing.classify import classify_task
from turnout.routing.fallback import LOADING_WAIT, RetryBudget, after_error, plan_attempts, sooner
from turnout.routing.patience import ending, first_byte_limit, patient
from turnout.routing.select import Needs, Selection, Selector, name_behind, permitted, unsuitable
from turnout.run import Explanation, Run, in_one_piece, new_id, proposed_in
from turnout.sidework import Sidework
from turnout.summary import Summarizer
from turnout.types import (
    VIRTUAL_MODELS,
    Attempt,
    Candidate,
    ChatRequest,
    Event,
    FallbackLevel,
    Health,
    Model,
    Notice,
    Principal,
    Route,
    Started,
    Usage,
    UsageReport,
    message,
)

if TYPE_CHECKING:
    from turnout.backends.base import Told
    from turnout.code.provider import CodeContext, CodeProvider
    from turnout.context.store import SessionStore
    from turnout.fleet.watch import Fleet
    from turnout.guard.network import HttpClient


# Of a server that fails with every one of many models, each try may load another of them.
MAX_ATTEMPTS = 16
LOCAL = Principal()
log = logging.getLogger("turnout")


class Router:
    """Routes requests over a catalog of servers. Made by ``build.open_router``; closed by its context."""

    def __init__(
        self,
        *,
        client: HttpClient,
        config: RouterConfig,
        table: CapabilityTable,
        fleet: Fleet,
        pins: Callable[[], frozenset[Pin]],
        code: CodeProvider,
        audit: AuditLog | None,
        store: SessionStore | None,
        journal: Journal,
    ) -> None:
        self.client, self._config, self._table, self.fleet = client, config, table, fleet
        self._code, self._store, self.journal = code, store, journal
        self._trail = Trail(audit) if audit is not None else None
        self._selector, self._pins = Selector(config, table, pins, journal.votes), pins
        limit = config.context.summary_timeout / 1000
        writer = Summarizer(client, fleet, table, lambda: self._selector.pool(self.catalog), limit, self._tell_summary)
        self._fitter = Fitter(client, config.context, fleet, writer, Decided(store))
        self._inserted = Inserted(store)
        self._audit = audit
        self._budget, self._placement = RetryBudget(), Placement(fleet)
        self.side = Sidework(
            client, fleet, table, lambda: self._selector.pool(self.catalog), self._placement, self._trail
        )

    def _tell_summary(self, label: str) -> None:
        if self._audit is not None:
            self._audit.event("access", service=f"summary of older messages: {label}")

    @property
    def audit_alarm(self) -> AuditError | None:
        """The last answer's end that could not be written to the audit log: it was given all the same, and told."""
        return self._trail.alarm if self._trail is not None else None

    def note(self, event_type: str, *, error: str = "", principal: str = LOCAL.id, service: str = "") -> None:
        """Write to the audit log what is no query. Raises AuditError."""
        if self._audit is not None:
            self._audit.event(event_type, error=error, principal=principal, service=service)

    @property
    def catalog(self) -> Catalog:
        """What runs where, as it was last seen."""
        return self.fleet.catalog

    async def refresh(self) -> Catalog:
        """Look at every endpoint again."""
        return await self.fleet.refresh()

    def capabilities_of(self, model: Model) -> frozenset[str]:
        """What is known of a model whose server does not tell what it can do; empty when nobody knows."""
        return self._table.rate(model).capabilities

    async def feedback(self, request_id: str, principal: Principal = LOCAL, *, good: bool, note: str = "") -> Voted:
        """Count whether an answer was any good; it moves the model's score a little. Raises as ``Journal.feedback``."""
        voted = await self.journal.feedback(request_id, principal, good=good, note=note)
        self.forget_candidates()
        return voted

    def forget_candidates(self) -> None:
        """Rate the served models anew for the next request."""
        self._selector.forget()

    @property
    def pool(self) -> tuple[Candidate, ...]:
        """Every model of every endpoint that can serve, rated."""
        return self._selector.pool(self.catalog)

    def name_behind(self, asked: str) -> str:
        """What is meant by an alias that was made for a picker; any other name is as it is."""
        return name_behind(asked, self.pool)

    def meant(self, asked: str, principal: Principal = LOCAL) -> tuple[Candidate, ...]:
        """Who may answer when this name is asked for, as ``Selector.meant``."""
        return self._selector.meant(asked, self.catalog, principal)

    async def settled(self, candidate: Candidate) -> Candidate:
        """The candidate with the window that its model will have once it is loaded."""
        return (await self._fitter.settled(Attempt(FallbackLevel.PRIMARY, candidate))).candidate

    async def load_model(self, asked: str, told: Told, principal: Principal = LOCAL) -> Candidate:
        """Load ``MODEL`` or ``MODEL@ENDPOINT``. Raises as ``meant``, ``residency.the_one`` and ``residency.warm``."""
        pool = self.meant(asked, principal) if principal.models else self.pool
        candidate = the_one(pool, self.name_behind(asked), self._table)
        await warm(self.client, candidate, told)
        return candidate

    async def unload_model(self, asked: str) -> Candidate:
        """Unload it. Raises as ``residency.the_one`` and ``residency.unload``."""
        candidate = the_one(self._selector.pool(self.catalog), asked, self._table)
        if Pin(candidate.model.id, candidate.endpoint.name) in self._pins():
            hint = f"turnout models unpin {candidate.model.id}@{candidate.endpoint.name}"
            raise UsageError(f"{candidate.label} is pinned: `turnout serve` would load it again", hint=hint)
        await unload(self.client, candidate)
        return candidate

    def begin(self, request: ChatRequest, principal: Principal, request_id: str = "") -> Run:
        """The record of a request that is to be routed."""
        return Run(request, principal, query_of(request), request_id or new_id())

    async def route(
        self, request: ChatRequest, principal: Principal = LOCAL, run: Run | None = None
    ) -> AsyncGenerator[Event, None]:
        """Answer ``request`` as a stream of events. Close the stream to cancel (``aclosing``).

        Args:
            run: the record of this request, for who wants to read it; filled meanwhile.

        Raises:
            NotPermittedError: the principal may not ask for this model.
            UsageError: the request is empty or far too long, its position is beyond the end of the file, or the id of
                its session is not a plain name.
            NoServiceError: no server answered.
            NoSuitableModelError, ModelBlockedError: no server has a model for it, or none the one that was recorded.
            QueryFailedError: every attempt failed.
            StreamBrokenError: the answer broke off after output had begun; carries what came.
            AuditError: the audit log cannot be written, so nothing was run.
        """
        run = run or self.begin(request, principal)
        await self._audit_start(run)
        self._budget.earn()
        try:
            if (name := self.name_behind(request.model)) != request.model:
                request = replace(request, model=name)
            self._check(request, principal)
            request = tidy(request) if request.own_history else request
            run.task = classify(request, self._config.routing.classification)
            if not self.catalog.serving:
                await self.fleet.refresh(whole=False)  # a server may have been started a moment ago
            if self._only_loading():
                yield Notice("loading", "the only server there is loads its model")
                await self._wait_for_load()
            if principal.models and request.model and request.model not in VIRTUAL_MODELS:
                self.meant(request.model, principal)
            await self._wait_for_answers(request, run.task, principal)
            request, run.code, run.inserted = await self._with_code(request, run.task, principal)
            run.no_code = "" if run.code else self._why_no_code(request, run.task)
            selection = self._select(request, run.task, principal)
            selection, run.place = self._placement.order(request, principal.id, selection, run.task)
            run.selection = selection
            for notice in self._notices(request, run.task, run.code):
                yield notice
            async with aclosing(self._in_pieces(request, self._execute(run, request, selection))) as events:
                async for event in events:
                    run.see(event)
                    yield event
            run.error = ""
        except TurnoutError as error:
            run.error = error.code
            raise
        finally:
            self._audit_end(run)
            self.journal.ended(run)
        if problem := await self._record(run):
            yield Notice("not_recorded", problem)
        for notice in proposed_in(run):
            yield notice

    async def explain(self, request: ChatRequest) -> Explanation:
        """The decision with every candidate and why it was or was not taken; no model is called.

        Raises:
            ContextOverflowError: no candidate could take it, however much is left out.
            UsageError, NoServiceError, NoSuitableModelError: as ``route``.
        """
        check(request)
        task = classify(request, self._config.routing.classification, explained=True)
        request, context, _ = await self._with_code(request, task, LOCAL)
        selection, _ = self._placement.order(request, LOCAL.id, self._select(request, task, LOCAL), task)
        note = f"{context.provider}: {context.note}" if context else f"none: {self._why_no_code(request, task)}"
        plan = self._plan(request, selection)
        if not selection.ranked:
            await self._require_one_that_fits(request, plan)
        return Explanation(task, selection, plan, self._tokens(request), note)

    async def count(self, request: ChatRequest, principal: Principal = LOCAL) -> tuple[int, Route]:
        """Tokens of a prompt as the model counts them that would answer now, and which that is. Nothing is generated,
        and no model loaded. Raises as ``route``."""
        asked = replace(request, model=self.name_behind(request.model))
        self._check(asked, principal)
        asked, task = tidy(asked), classify(asked, self._config.routing.classification)
        if not self.catalog.serving:
            await self.fleet.refresh(whole=False)
        if task is None:
            self.meant(asked.model, principal)
        await self._wait_for_answers(asked, task, principal)
        selection, _ = self._placement.order(asked, principal.id, self._select(asked, task, principal), task)
        candidate = (selection.ranked or selection.too_small)[0].candidate
        self.note("access", principal=principal.id, service=f"tokens of a prompt: {candidate.label}")
        tokens, exact = await self._fitter.tokens_of(asked, candidate)
        reason = "counted by the server" if exact else "estimated: the server has not counted"
        route = route_to(candidate, new_id(), request.model, reason)
        return tokens, replace(route, category=task.category if task else None, prompt_tokens=tokens)

    async def _require_one_that_fits(self, request: ChatRequest, plan: Sequence[Attempt]) -> None:
        refused: ContextOverflowError | None = None
        for attempt in sorted(plan, key=lambda a: a.candidate.window):
            try:
                await self._fitter.preview(request, attempt.candidate, LOCAL.id)
            except ContextOverflowError as error:
                refused = error
            else:
                return
        if refused is not None:
            raise refused

    async def preview(
        self, request: ChatRequest, candidate: Candidate, principal: Principal = LOCAL
    ) -> tuple[Fit, TokenCounter]:
        """What would be sent of ``request`` to ``candidate``, and the counter of its model; no server is asked.

        Raises:
            ContextOverflowError: it cannot be made to fit.
        """
        fit = await self._fitter.preview(request, candidate, principal.id)
        return fit, self._fitter.counter(candidate)

    def _agent(self, request: ChatRequest) -> AgentConfig:
        return get_agent_specific_config(request.agent, self._config)

    # Steps of the pipeline, in its order.

    def _check(self, request: ChatRequest, principal: Principal) -> None:
        if not request.model or request.model in VIRTUAL_MODELS:
            permitted(principal, request.model, (), self._table)
        check(request)
        if self._store is not None and request.session_id:
            from turnout.context.store import check_session_id

            check_session_id(request.session_id)  # now, not when the answer is there to be kept

    def _not_gathered(self, request: ChatRequest, task: ClassificationResult | None) -> str:
        return not_gathered_because(self._config.serena, request, task.needs_code_context if task else None)

    def _why_no_code(self, request: ChatRequest, task: ClassificationResult | None) -> str:
        return self._not_gathered(request, task) or "the workspace could not be read in time"

    async def _with_code(
        self, request: ChatRequest, task: ClassificationResult | None, principal: Principal
    ) -> tuple[ChatRequest, CodeContext | None, Mapping[str, str]]:
        if not request.workspace or is_off(self._config.serena) or (task is None and request.file_context is None):
            return request, None, {}
        gather = partial(self._gather, task, principal)
        return await self._inserted.into(principal.id, request, self._agent(request).context_format, gather)

    async def _gather(
        self, task: ClassificationResult | None, principal: Principal, request: ChatRequest
    ) -> CodeContext | None:
        if self._not_gathered(request, task):
            return None
        query, room = request.last_user_text, self._code_room(request, task, principal)
        category = (task or classify_task(query, self._config.routing.classification)).category
        return await self._code.gather(query, category, request.file_context, Path(request.workspace), room)

    def _code_room(self, request: ChatRequest, task: ClassificationResult | None, principal: Principal) -> int:
        """Characters of code that do not cost the request the model it would go to without them."""
        selection = self._select(request, task, principal)
        first = (selection.ranked or selection.too_small)[0].candidate
        if not selection.ranked:  # what is older will be compacted
            system = (m for m in request.messages if m.role == "system")
            request = replace(request, messages=(*system, message("user", request.last_user_text)))
        return room_for(first.window, first.window - self._tokens(request) - answer_room(request, first.window))

    def _only_loading(self) -> bool:
        return not self.catalog.serving and any(s.health is Health.LOADING for s in self.catalog.endpoints)

    async def _wait_for_load(self) -> None:
        """A load is awaited for as long as a first byte would be."""
        patience = max(s.endpoint.limits.first_byte for s in self.catalog.endpoints if s.health is Health.LOADING)
        deadline = time.monotonic() + patience
        while self._only_loading() and time.monotonic() < deadline:
            await asyncio.sleep(LOADING_WAIT)
            await self.refresh()

    async def _wait_for_answers(
        self, request: ChatRequest, task: ClassificationResult | None, principal: Principal
    ) -> None:
        """Where nothing suits: a server that has not been looked at yet is waited for, and whoever asks for a model by
        its name has the servers looked at once more, since one may just have started."""
        exact = task is None and not self._selector.knows(request.model, self.catalog)
        if not self.catalog.waits and not exact and not self.fleet.checking:
            return
        try:
            self._select(request, task, principal)
        except ModelBlockedError:
            await self.fleet.checked_all()
        except (NoSuitableModelError, NoServiceError):
            await self.fleet.settled()
            if exact:
                await self.fleet.look_again()

    def _select(self, request: ChatRequest, task: ClassificationResult | None, principal: Principal) -> Selection:
        if not self.catalog.serving:
            hint = f"{what_to_check(self.catalog, self._config)}; {BUNDLED}"
            raise NoServiceError(hint=hint, probed=self.catalog.probed)
        needs = Needs(
            category=task.category if task else None,
            model="" if task is not None else request.model,
            tokens=0,
            capabilities=capabilities_of(request),
            answer=answer_room(request, 0),
            answer_share=0.5 if request.max_tokens else 0.25,
            preference=self._agent(request).default_model_preference if task is not None else "",
            allowed=principal.models if task is None else (),
        )
        book = self.fleet.book
        pool = self._selector.pool(self.catalog)
        if book.troubled:
            self.fleet.look_behind(book.due(candidate.endpoint for candidate in pool))
        # Tokens never exceed bytes.
        at_most = len(request.raw.body) + needs.answer if request.raw is not None else 0
        selection = self._selector.select(pool, needs, lambda: self._tokens(request), at_most, book)
        if not selection.ranked and not selection.too_small:
            raise unsuitable(pool, needs, selection, self._table, self.catalog.away)
        return selection

    def _in_pieces(self, request: ChatRequest, made: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        return made if self._agent(request).supports_streaming else in_one_piece(made)

    def _plan(self, request: ChatRequest, selection: Selection) -> tuple[Attempt, ...]:
        if request.compactable:
            return plan_attempts(selection.ranked, selection.too_small, selection.smallest, selection.target)
        return plan_attempts((*selection.ranked, *selection.too_small), (), None, 0)

    async def _execute(self, run: Run, request: ChatRequest, selection: Selection) -> AsyncGenerator[Event, None]:
        plan = self._plan(request, selection)
        until = run.started + max((a.candidate.endpoint.limits.total for a in plan), default=0.0)
        while plan and run.failures < MAX_ATTEMPTS:
            attempt, *rest = plan
            endpoint, book = attempt.candidate.endpoint, self.fleet.book
            late = bool(run.attempts) and attempt.wait >= until - time.monotonic()
            if late or (rest and book.bars(endpoint)) or (attempt.retry and not self._budget.take()):
                plan = tuple(rest)
                continue
            attempt = await _in_its_time(attempt)
            began, tried = time.monotonic(), len(run.attempts)
            ended: BackendError | None = BackendError("was given up; the query says why", endpoint=endpoint.name)
            book.begin(endpoint)
            try:
                async with aclosing(self._attempt(run, request, attempt, until)) as events:
                    async for event in events:
                        yield event
                ended = None
            except BackendError as error:
                ended = error
            except (asyncio.CancelledError, GeneratorExit):
                ended = CallerLeftError("whoever asked left before the answer was complete", endpoint=endpoint.name)
                raise
            finally:
                begun = len(run.attempts) > tried
                run.attempts[tried:] = [record_of(attempt, ended, began)]
            book.attempt(endpoint, ended)
            if ended is None:
                return
            if begun:
                raise broken(ended, "".join(run.text), run.attempts) from ended
            rest = sooner(rest, attempt.wait + time.monotonic() - began)
            plan = after_error(rest, attempt, ended, selection.target)
            if not request.compactable:
                plan = tuple(a for a in plan if not a.reduced)
        raise failed(run.attempts)

    async def _attempt(
        self, run: Run, request: ChatRequest, attempt: Attempt, until: float
    ) -> AsyncGenerator[Event, None]:
        """Ask one candidate. The first event is the head of its answer: from there on nothing is tried again."""
        attempt = await self._fitter.settled(attempt)
        candidate, tenant = attempt.candidate, run.principal.id
        fit, usage, first, reading = None, Usage(), 0.0, 0
        aside = self._placement.is_aside(request, tenant)
        try:
            BY_KIND[candidate.endpoint.kind].check(request, candidate.endpoint)
            async with self._placement.admitted(candidate, aside=aside, patience=until - time.monotonic()):
                began, reading = time.monotonic(), self._placement.sent(candidate, attempt.reads)
                fit = await self._fitter.fit(request, attempt, run.refusals, tenant)
                lane = self._lane(request, candidate, fit, until - began)
                async with aclosing(self.fleet.guarded(candidate, lane)) as events:
                    async for event in events:
                        if not first:
                            first = time.monotonic() - began
                            self._placement.begun(candidate, reading)
                            for head in self._heads(run, request, attempt, fit, began):
                                yield head
                        if isinstance(event, UsageReport):
                            usage = event.usage
                        yield event
        except BackendError as error:
            self._fitter.refused(candidate, request, error, fit, run.refusals)
            raise
        finally:
            self._placement.begun(candidate, reading)
        if usage == Usage():
            yield UsageReport(self._fitter.estimated(request, candidate, fit, "".join(run.text)))
        self._placement.answered(run.place, candidate, usage, fit.estimate, first, time.monotonic() - began)
        if cut := self._fitter.answered(candidate, request, fit, usage):
            log.warning("%s", cut.text)
            yield cut

    def _lane(self, request: ChatRequest, candidate: Candidate, fit: Fit, left: float) -> AsyncGenerator[Event, None]:
        backend, fitted, endpoint = BY_KIND[candidate.endpoint.kind], fit.fitted, candidate.endpoint
        if left < endpoint.limits.total - 1.0:  # others have had their part of the request's time
            endpoint = ending(endpoint, max(1, math.ceil(left)))
        if endpoint.limits.adaptive:
            tokens = fit.estimate or (len(request.raw.body) // 3 if request.raw else 0)
            speed = self.fleet.learned.speed(endpoint, candidate.model)
            seconds = first_byte_limit(candidate, tokens, speed, self._placement.others(candidate))
            endpoint = patient(endpoint, math.ceil(seconds))
        raw, most = None if fitted.changed else request.raw, fit.max_tokens or request.max_tokens
        sent = replace(request, messages=tuple(fitted.messages), raw=raw, max_tokens=most)
        return chat_lane(self.client, backend, endpoint, candidate.model, sent, fit.max_tokens, candidate.window)

    def _heads(self, run: Run, request: ChatRequest, attempt: Attempt, fit: Fit, began: float) -> Sequence[Event]:
        run.attempts.append(record_of(attempt, None, began))
        fitted = fit.fitted
        run.compacted = fitted.changed
        candidate = attempt.candidate
        route = replace(
            route_to(candidate, run.id, run.request.model, reason_of(attempt, run.attempts)),
            level=attempt.level,
            category=run.task.category if run.task else None,
            prompt_tokens=fit.estimate,
            attempts=tuple(run.attempts),
            compacted=fitted.changed,
            expected=attempt.expected,
        )
        heads: list[Event] = [Started(route)]
        if fitted.changed:
            heads.append(Notice("compacted", "; ".join(fitted.steps)))
        if len(run.attempts) > 1:
            heads += [Notice("fallback", text) for text in tried_of(run.attempts, " did not answer: ")]
        return heads

    def _notices(
        self, request: ChatRequest, task: ClassificationResult | None, context: CodeContext | None
    ) -> Sequence[Notice]:
        routing = self._config.task_routing.get(task.category) if task else None
        if task is None or routing is None or not routing.require_serena:
            return ()
        return without_serena(request, task.category, context, self._not_gathered(request, task))

    def _tokens(self, request: ChatRequest) -> int:
        if request.raw is not None and not request.messages:
            return len(request.raw.body) // 4
        counter = get_token_counter("")
        return counter.count_messages(request.messages) + counter.count_tools(request.tools)

    async def _record(self, run: Run) -> str:
        """Keep the exchange; what went wrong, because the answer that was given must not be lost by it."""
        if self._store is None or not run.request.session_id or run.route is None:
            return ""
        try:
            await asyncio.to_thread(self._store_exchange, self._store, run)
        except StorageError as error:
            log.error("%s", error)
            return f"this exchange is not in the session: {error.message}"
        return ""

    def _store_exchange(self, store: SessionStore, run: Run) -> None:
        from turnout.context.store import exchange

        if run.route is not None:
            added = exchange(run.request.messages, "".join(run.text), run.route, compacted=run.compacted)
            store.append(run.principal.id, run.request.session_id, added)
            for name, text in run.inserted.items():
                store.keep_summary(run.principal.id, run.request.session_id, name, text)

    async def _audit_start(self, run: Run) -> None:
        if self._trail is not None:
            await self._trail.start(
                QueryStart(run.id, run.request.session_id, run.principal.id, run.query, run.request.agent)
            )

    def _audit_end(self, run: Run) -> None:
        if self._trail is None:
            return
        route = run.route
        self._trail.end(
            QueryEnd(
                request_id=run.id,
                session_id=run.request.session_id,
                principal=run.principal.id,
                query=run.query,
                agent=run.request.agent,
                model=route.sent_model if route else "",
                service=route.service if route else "",
                category=run.task.category if run.task else "",
                fallback_level=int(route.level) if route else int(FallbackLevel.FAILED),
                attempts=tuple(run.attempts),
                tokens_in=run.usage.prompt_tokens,
                tokens_out=run.usage.completion_tokens,
                error=run.error,
                response="".join(run.text),
            )
        )


async def _in_its_time(attempt: Attempt) -> Attempt:
    """The attempt when its wait is over. A little longer than was asked for, and never sooner: many may have been told
    the same."""
    if not attempt.wait:
        return attempt
    seconds = attempt.wait * random.uniform(1.0, 1.25)  # noqa: S311
    await asyncio.sleep(seconds)
    return replace(attempt, wait=seconds)
