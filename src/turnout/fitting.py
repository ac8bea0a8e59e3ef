"""Fitting a request into the window of the model that an attempt goes to, and learning from what came back (WIN-1).

Nothing is sent that the server would cut without a word: what is near the limit is counted exactly where the server
counts, and with a margin where it does not; afterwards the server's own count is compared with ours.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.context.calibration import MARGIN, Calibration, from_json, observe, possible, to_json
from turnout.context.compaction import NOTHING_KNOWN, Fitted, conversation_key, fit, history_key
from turnout.context.tokens import TokenCounter, get_token_counter, request_features
from turnout.errors import BackendError, ContextOverflowError
from turnout.fleet.learned import MOST_WINDOW, believable
from turnout.request import answer_room
from turnout.types import Attempt, Candidate, ChatRequest, FallbackLevel, Image, Message, Notice, Usage

if TYPE_CHECKING:
    from turnout.config import ContextConfig
    from turnout.decided import Decided
    from turnout.fleet.watch import Fleet
    from turnout.guard.network import HttpClient
    from turnout.summary import Summarizer

# A model's first reports are all learned from, and one of so many later: each costs more than a short answer's routing.
LEARNED_FIRST, LEARNED_LATER = 40, 512
MANY = 1000  # messages: fitting more takes so long that others are answered meanwhile
MAX_EXACT = 512  # remembered counts
MOST_SHARE, LEAST_SHARED = 2.0, 100  # a factor, tokens: what a server may say of a conversation, and of which
NEAR_A_CUT = 0.6  # of the room, from where on a server that would say nothing is asked for its count
LEAST_ANSWER = 64  # tokens of an answer that are worth asking for
# A report that is so much lower than our count comes from a prompt that was cut, or from a server that leaves out what
# it had in its cache. The first reports about as much every time: its window, which is learned from the second on.
CUT_SHARE, CUT_SHARE_UNSURE, LEAST_CUT, ALIKE = 0.7, 0.5, 256, 0.8
SURE = 0.08  # a margin: our counts of this model are good
LEAST_LEARNED = 1024  # tokens
# What a cache gave may look like speed: where a server does not tell, no more than this is believed.


@dataclass(frozen=True, slots=True)
class Fit:
    """What to send.

    Attributes:
        fitted: the messages, and what was done to them.
        max_tokens: the most the answer may have, where the client's own limit leaves no room; else None.
        estimate: our count of the prompt in tokens, tools included; 0 when it was so short that nobody counted.
        exact: the server counted.
        margin: the share by which the true count may be higher.
    """

    fitted: Fitted
    max_tokens: int | None = None
    estimate: int = 0
    exact: bool = False
    margin: float = MARGIN

    @property
    def most(self) -> int:
        """As many tokens as the prompt may have."""
        return self.estimate if self.exact else int(self.estimate * (1 + self.margin))

    @property
    def least(self) -> int:
        """As many tokens as it surely has."""
        return self.estimate if self.exact else int(self.estimate / (1 + self.margin))


@dataclass(slots=True)
class Refused:
    """What one request has learned of one candidate from its refusals.

    Attributes:
        window: the window that the server named, 0 when it named none.
        scale: how many tokens the server counts for each of ours.
    """

    window: int = 0
    scale: float = 1.0


@dataclass(slots=True)
class Refusals:
    """What one request has learned, by candidate."""

    known: dict[str, Refused] = field(default_factory=dict)

    def of(self, candidate: Candidate) -> Refused:
        """What the candidate's refusals told."""
        return self.known.setdefault(candidate.label, Refused())


class Fitter:
    """Fits requests, and learns from answers; made once for a router."""

    def __init__(
        self, client: HttpClient, config: ContextConfig, fleet: Fleet, summarizer: Summarizer, decided: Decided
    ) -> None:
        self._client, self._config, self._fleet = client, config, fleet
        self._summarizer, self._decided = summarizer, decided
        self._exact: OrderedDict[bytes, int] = OrderedDict()
        self._counters: dict[str, tuple[Calibration, TokenCounter]] = {}
        self._reports = 0
        self._allocated: dict[tuple[str, str, str], int] = {}
        # Most of a prompt was counted by the server with the turn before: what was measured of it, and its tokens.
        self._counted: OrderedDict[bytes, tuple[tuple[float, ...], int]] = OrderedDict()
        self._cut: dict[str, int] = {}  # by candidate: tokens that were read when a prompt was last cut

    def counter(self, candidate: Candidate) -> TokenCounter:
        """The counter for a candidate's model."""
        return self._learned(candidate)[1]

    def _learned(self, candidate: Candidate) -> tuple[Calibration, TokenCounter]:
        name = candidate.canonical or candidate.model.id
        if name not in self._counters:
            calibration = from_json(self._fleet.learned.counts(name), name)
            self._counters[name] = calibration, get_token_counter(name, calibration)
        return self._counters[name]

    def _observe(self, candidate: Candidate, request: ChatRequest, messages: Sequence[Message], tokens: int) -> None:
        """Learn how a model's tokens count from what its server said of a prompt."""
        calibration, _ = self._learned(candidate)
        self._reports += 1
        if calibration.observations >= LEARNED_FIRST and self._reports % LEARNED_LATER:
            return
        name = candidate.canonical or candidate.model.id
        calibration = observe(calibration, request_features(messages, request.tools), tokens)
        self._counters[name] = calibration, get_token_counter(name, calibration)
        self._fleet.learned.learn_counts(name, to_json(calibration))

    async def settled(self, attempt: Attempt) -> Attempt:
        """The attempt with the window that its model will have once it is loaded."""
        candidate = attempt.candidate
        model, endpoint = candidate.model, candidate.endpoint
        if model.resident is not False or model.window_source == "guessed":
            return attempt
        key = (endpoint.url, model.id, model.digest)
        if key not in self._allocated:
            told = await BY_KIND[endpoint.kind].window_when_loaded(self._client, endpoint, model)
            self._allocated = {**dict(islice(self._allocated.items(), MAX_EXACT)), key: told}
        window = self._allocated[key]
        return attempt if window == candidate.window else replace(attempt, candidate=replace(candidate, window=window))

    async def preview(self, request: ChatRequest, candidate: Candidate, tenant: str) -> Fit:
        """What would be sent, by our count alone; no server is asked, and nothing decided or learned.

        Raises:
            ContextOverflowError: it cannot be made to fit.
        """
        await self._decided.recall(tenant, request)
        attempt = Attempt(FallbackLevel.PRIMARY, candidate)
        return await self._compacted(request, attempt, candidate.window, self._share(request, candidate), Refused())

    async def fit(self, request: ChatRequest, attempt: Attempt, refusals: Refusals, tenant: str) -> Fit:
        """What to send of a request to the candidate of an attempt.

        Args:
            tenant: whose session it is.

        Raises:
            ContextOverflowError: it does not fit and may not be compacted, or cannot be.
        """
        candidate = attempt.candidate
        told = refusals.of(candidate)
        window = min(candidate.window, told.window or candidate.window)
        if (
            request.raw is not None
            and len(request.raw.body) + max(request.max_tokens or 0, answer_room(request, window)) <= window
        ):
            # Tokens never exceed bytes: nothing to count, nothing to cut.
            return Fit(Fitted(request.messages, 0, 0))
        if not request.compactable:
            return await self._as_it_is(request, candidate, window)
        await self._decided.recall(tenant, request)
        found, scale = await self._surely(request, attempt, window, told)
        if told.scale > 1.0 or found.fitted.decided is None or not found.fitted.new:
            return _with_limit(request, found, window)
        key, form = found.fitted.decided
        await self._decided.remember(tenant, request, window, key, form)
        if found.fitted.left_out and (text := await self._summarizer.write(found.fitted.left_out, candidate)):
            await self._decided.remember(tenant, request, window, key, replace(form, text=text))
            written = await self._compacted(request, attempt, window, scale, told)
            if not written.fitted.new:
                return _with_limit(request, written, window)
            await self._decided.remember(tenant, request, window, key, form)  # with that summary it does not fit
        return _with_limit(request, found, window)

    async def _surely(self, request: ChatRequest, attempt: Attempt, window: int, told: Refused) -> tuple[Fit, float]:
        """A fit that holds by the server's count, where that can be had and may matter; and the scale it has."""
        candidate, room = attempt.candidate, window - answer_room(request, window)
        backend = BY_KIND[candidate.endpoint.kind]
        margin = self.counter(candidate).margin
        careful = 1 + margin if backend.cuts_silently and not backend.counts else 1.0
        scale = max(told.scale, careful * self._share(request, candidate))
        try:
            found = await self._compacted(request, attempt, window, scale, told)
        except ContextOverflowError:  # by our count alone
            if not (counted := await self._counted_share(request, candidate)):
                raise
            scale = max(told.scale, counted)
            found = await self._compacted(request, attempt, window, scale, told)
        if found.most <= room * (NEAR_A_CUT if backend.cuts_silently else 1.0):
            return found, scale
        exact = await self._count(request, candidate, found.fitted.messages)
        if exact > room:
            scale *= 1.02 * exact / found.estimate
            found = await self._compacted(request, attempt, window, scale, told)
            exact = await self._count(request, candidate, found.fitted.messages)
        return replace(found, estimate=exact or found.estimate, exact=bool(exact)), scale

    async def _compacted(self, request: ChatRequest, attempt: Attempt, window: int, scale: float, told: Refused) -> Fit:
        """A fit by our count, with ``scale`` tokens of the server's for each of ours.

        After a refusal it is compacted to the target at once, whatever our count says.
        """
        counter = self.counter(attempt.candidate)
        tools = counter.count_request((), request.tools)
        room = max(1, int(min(window, attempt.target_window or window) / scale) - tools)
        was_refused = told.scale > 1.0
        fitting = partial(
            fit,
            request.messages,
            window=room,
            reserve=min(answer_room(request, window), room // 2),
            counter=counter,
            config=self._config,
            target=int(room * self._config.compaction_target) if was_refused else None,
            known=NOTHING_KNOWN if was_refused else self._decided.of(request, window),
            compact_at=request.compact_at,
        )
        try:
            fitted = await asyncio.to_thread(fitting) if len(request.messages) > MANY else fitting()
        except ContextOverflowError as error:
            raise _never_fits(attempt.candidate, int((error.prompt_tokens + tools) * scale), window) from error
        share = self._share(request, attempt.candidate)
        return Fit(fitted, estimate=int((fitted.tokens_after + tools) * share), margin=counter.margin)

    def _share(self, request: ChatRequest, candidate: Candidate) -> float:
        """The server's tokens for each of ours, as it counted this conversation the last time."""
        if (counted := self._counted.get(_talk(request, candidate))) is None:
            return 1.0
        features, tokens = counted
        return min(MOST_SHARE, max(1 / MOST_SHARE, tokens / max(1.0, self._learned(candidate)[0].expect(features))))

    async def _counted_share(self, request: ChatRequest, candidate: Candidate) -> float:
        """The same as the server counts it now; 0 when it does not count."""
        exact = await self._count(request, candidate, request.messages)
        return exact / max(1, self.counter(candidate).count_request(request.messages, request.tools))

    def _note_count(self, request: ChatRequest, candidate: Candidate, fit: Fit, tokens: int) -> None:
        if not fit.estimate or len(request.messages) < 2 or tokens < LEAST_SHARED:
            return
        talk = _talk(request, candidate)
        self._counted.pop(talk, None)
        self._counted[talk] = request_features(fit.fitted.messages, request.tools), tokens
        if len(self._counted) > MAX_EXACT:
            self._counted.popitem(last=False)

    async def _as_it_is(self, request: ChatRequest, candidate: Candidate, window: int) -> Fit:
        """A request of a client that keeps its own history is sent whole, or refused with the number."""
        counter = self.counter(candidate)
        share = self._share(request, candidate)
        estimate = int(counter.count_request(request.messages, request.tools) * share)
        fit = Fit(Fitted(request.messages, estimate, estimate), None, estimate, margin=counter.margin)
        if fit.most <= window:
            return _with_limit(request, fit, window)
        cuts = BY_KIND[candidate.endpoint.kind].cuts_silently
        if candidate.window_source in ("guessed", "learned") and not cuts:
            return fit  # the server says so itself when it is too long
        if exact := await self._count(request, candidate, request.messages):
            fit = replace(fit, estimate=exact, exact=True)
        # What is surely too long where the server would say so, what may be where it would not.
        if (fit.most + LEAST_ANSWER if cuts else fit.least) > window:
            raise _too_long(candidate, fit, window)
        return _with_limit(request, fit, window)

    async def tokens_of(self, request: ChatRequest, candidate: Candidate) -> tuple[int, bool]:
        """The tokens of a prompt, and whether the server has counted them; else they are our estimate."""
        if exact := await self._count(request, candidate, request.messages):
            return exact, True
        ours = self.counter(candidate).count_request(request.messages, request.tools)
        return int(ours * self._share(request, candidate)), False

    def estimated(self, request: ChatRequest, candidate: Candidate, fit: Fit, answer: str) -> Usage:
        """The usage of an answer whose server tells none: agents know by it when a window is nearly full."""
        counter = self.counter(candidate)
        prompt = fit.estimate or counter.count_request(fit.fitted.messages, request.tools)
        return Usage(prompt, counter.count(answer))

    async def _count(self, request: ChatRequest, candidate: Candidate, messages: Sequence[Message]) -> int:
        """The server's own count; 0 when it has none to give, or none that can be."""
        sent = replace(request, messages=tuple(messages), raw=None)
        key = history_key(messages) + repr((candidate.endpoint.url, candidate.model.id, request.tools)).encode()
        if (known := self._exact.get(key)) is not None:
            return known
        backend = BY_KIND[candidate.endpoint.kind]
        try:
            exact = await backend.count_tokens(self._client, candidate.endpoint, sent, candidate.model)
        except BackendError:
            return 0
        calibration, features = self._learned(candidate)[0], request_features(messages, request.tools)
        if not exact or not possible(calibration, features, exact):
            return 0
        self._observe(candidate, request, messages, exact)
        self._exact[key] = exact
        if len(self._exact) > MAX_EXACT:
            self._exact.popitem(last=False)
        return exact

    def refused(
        self, candidate: Candidate, request: ChatRequest, error: BackendError, fit: Fit | None, refusals: Refusals
    ) -> None:
        """Learn from a refusal: for this request, and for others where the server hides its window."""
        if not isinstance(error, ContextOverflowError) or not error.status:
            return
        if error.prompt_tokens and fit is not None:
            self._observe(candidate, request, fit.fitted.messages, error.prompt_tokens)
        told = refusals.of(candidate)
        counted = fit.estimate if fit is not None else 0
        # At least so many, else it had not been refused.
        real = min(error.prompt_tokens, MOST_WINDOW) or candidate.window
        named = error.window if believable(error.window) else 0
        told.scale = max(told.scale * 1.1, 1.05 * real / counted if counted else 1.5)
        told.window = named or told.window
        if named and named != candidate.window:
            self._fleet.learn_window(candidate.endpoint, candidate.model, named)
        elif not named and candidate.window_source in ("guessed", "learned"):
            if fit is not None and 0 < fit.least < candidate.window:
                self._fleet.learn_window(candidate.endpoint, candidate.model, fit.least)

    def answered(self, candidate: Candidate, request: ChatRequest, fit: Fit, usage: Usage) -> Notice | None:
        """Learn from an answer; what its reader must know of it.

        Args:
            usage: as the server reported it; zeros when it did not.
        """
        total = usage.prompt_tokens + usage.completion_tokens
        if candidate.window_source in ("guessed", "learned") and total > candidate.window:
            self._fleet.learn_window(candidate.endpoint, candidate.model, total)
        if not _was_cut(fit, usage):
            self._note_count(request, candidate, fit, usage.prompt_tokens)
            if usage.prompt_tokens:
                self._observe(candidate, request, fit.fitted.messages, usage.prompt_tokens)
            return None
        before, self._cut[candidate.label] = self._cut.get(candidate.label, 0), total
        if total >= LEAST_LEARNED and ALIKE <= before / total <= 1 / ALIKE:
            self._fleet.learn_window(candidate.endpoint, candidate.model, max(before, total))
        read = f"{candidate.label} read {usage.prompt_tokens:,} of about {fit.estimate:,} tokens"
        return Notice("truncated", f"{read}: it has cut the prompt, or leaves out what it had cached")


def _talk(request: ChatRequest, candidate: Candidate) -> bytes:
    """What a conversation with one model is known by."""
    return conversation_key(request.messages) + f"{candidate.endpoint.url}\n{candidate.model.id}".encode()


def _with_limit(request: ChatRequest, fit: Fit, window: int) -> Fit:
    """Leave the answer no more room than there is: servers refuse what cannot fit, or cut the prompt for it."""
    if not request.max_tokens:
        return fit
    if fit.most + request.max_tokens <= window:
        return fit
    return replace(fit, max_tokens=max(LEAST_ANSWER, window - fit.most))


def _too_long(candidate: Candidate, fit: Fit, window: int) -> ContextOverflowError:
    guess = candidate.window_source in ("guessed", "learned")
    hint = "shorten or compact the conversation"
    if guess:
        hint += f", or set `window` of {candidate.endpoint.name} in the configuration if it has more"
    return ContextOverflowError(
        f"the prompt has {'' if fit.exact else 'about '}{fit.estimate} tokens, {candidate.label} has room for {window}",
        endpoint=candidate.endpoint.name,
        prompt_tokens=fit.estimate,
        window=window,
        hint=hint,
    )


def _never_fits(candidate: Candidate, tokens: int, window: int) -> ContextOverflowError:
    """What cannot be left out is too long by itself."""
    hint = "shorten the message, ask about a part of it, or use a model with a larger window"
    if candidate.window_source in ("guessed", "learned"):
        hint += f", or set `window` of {candidate.endpoint.name} in the configuration if it has more"
    return ContextOverflowError(
        f"the system prompt and the last user message have about {tokens:,} tokens; {candidate.label} has room for"
        f" {window:,} ({candidate.window_source}), the answer's share included",
        endpoint=candidate.endpoint.name,
        prompt_tokens=tokens,
        window=window,
        hint=hint,
    )


def _was_cut(fit: Fit, usage: Usage) -> bool:
    """The server read far fewer tokens than it was sent. Images count as they please, and a cache that is told of is no
    cut."""
    if usage.cached_tokens or usage.prompt_tokens < LEAST_CUT:
        return False
    if any(isinstance(part, Image) for m in fit.fitted.messages for part in m.parts):
        return False
    return usage.prompt_tokens < (CUT_SHARE if fit.exact or fit.margin <= SURE else CUT_SHARE_UNSURE) * fit.least
