"""Where a request goes among those that could take it, and when: stickiness, slots, queues (SPEC GW-4, PRICE-3)."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.context.compaction import conversation_key
from turnout.context.tokens import get_token_counter
from turnout.fleet.admission import LONGEST_WAIT, Admission
from turnout.routing.affinity import (
    MAX_CONVERSATIONS,
    WORTH_ITS_PRICE,
    WORTH_MOVING,
    Affinity,
    in_tool_loop,
    key_of,
)
from turnout.routing.classifier import ClassificationResult
from turnout.routing.fallback import Ranked
from turnout.routing.patience import expected_first_byte
from turnout.routing.price import ANSWER, DISK, EAGER, NO_PRICE, UNKNOWN_BYTES, Situation, Work, pace, price, value
from turnout.routing.select import Selection, by_value
from turnout.types import (
    VIRTUAL_MODELS,
    Candidate,
    ChatRequest,
    Usage,
)

if TYPE_CHECKING:
    from turnout.fleet.catalog import EndpointStatus
    from turnout.fleet.watch import Fleet


BYTES_PER_TOKEN = 4
BELIEVED_PREFILL, LEAST_PREFILL = 5000.0, 200  # tokens a second, tokens
# Tokens a second that a server may have read and written: one that counts nonsense is not the fastest for long.
MOST_PREFILL, MOST_DECODE = 100_000.0, 10_000.0
# By how much a speed may grow at once where a cache may have helped that nobody tells of.
CACHED_TIMES = 1.5
SERVICE_SHARE = 0.1  # of the newest request in how long one takes
LEAST_DECODED, IN_ONE_PIECE = 8, 0.02  # tokens; the share of the time in which an answer in one piece comes


class Placement:
    """Made once for a router, and used by its event loop alone."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._affinity, self._admission = Affinity(), Admission()
        self._loops: OrderedDict[tuple[str, str], None] = OrderedDict()  # conversations that use tools
        self._statuses: dict[str, EndpointStatus] = {}
        self._statuses_of = -1  # the catalog's generation
        self._clock = time.monotonic
        self._reading: dict[str, dict[int, float]] = {}  # by URL: when prompts of ours that are read should be
        self._sent = 0
        self._service: dict[str, float] = {}  # by URL: seconds that a request there takes, on the average

    def order(
        self, request: ChatRequest, tenant: str, selection: Selection, task: ClassificationResult | None
    ) -> tuple[Selection, bytes]:
        """The selection with a price for each candidate, the best place for this request first.

        Returns:
            It, and the key for ``answered``: b"" where nothing is to be decided, and of a request beside a talk,
            which has no place of its own.
        """
        if len(selection.ranked) == 1 and not (selection.too_small or selection.rejected):
            return selection, b""  # there is nothing to decide, now or the next time
        self._note_loop(request, tenant)
        key = _key(request, tenant)
        category = task.category if task else None
        difficulty = task.difficulty if task else 0.5
        work = work_of(request)
        ranked = self._priced(work, key, selection.ranked)
        selection = replace(selection, ranked=ranked, work=work)
        if len(ranked) < 2:
            return selection, key
        if self.is_aside(request, tenant) and request.model in VIRTUAL_MODELS:
            return replace(selection, ranked=self._small_first(ranked, selection.smallest)), b""
        weighs = selection.policy in EAGER
        if weighs:
            ranked = by_value(ranked, category, selection.policy, difficulty)
        else:
            ranked = self._free_first(ranked)

        def worth(it: Ranked) -> float:
            return it.bonus + value(it.candidate, it.price or NO_PRICE, category, "balanced", difficulty)

        margin = WORTH_ITS_PRICE if weighs else WORTH_MOVING
        ranked = self._affinity.order(key, ranked, worth, in_loop=in_tool_loop(request), margin=margin)
        return replace(selection, ranked=ranked), key

    def _priced(self, work: Work, key: bytes, ranked: tuple[Ranked, ...]) -> tuple[Ranked, ...]:
        learned, found = self._fleet.learned, []
        for r in ranked:
            candidate, at = r.candidate, self._situation(key, r.candidate)
            speed = learned.speed(candidate.endpoint, candidate.model)
            its = price(candidate, work, at, speed, learned.hardware(candidate.endpoint))
            found.append(replace(r, price=its, at=at))
        return tuple(found)

    def _situation(self, key: bytes, candidate: Candidate) -> Situation:
        running, waiting = self._admission.load(candidate.endpoint.url)
        status, slots = self._status(candidate), self._limit(candidate)
        if status is not None:
            running, waiting = max(running, status.busy or 0), max(waiting, status.waiting or 0)
        reading, doubt = self._read_in(candidate.endpoint.url), self._fleet.book.rank(candidate.endpoint)
        if not key:
            return Situation(running, waiting, slots, reading, doubt=doubt)
        return Situation(
            running,
            waiting,
            slots,
            reading,
            self._affinity.cached(key, candidate, slots),
            self._pushed_out(candidate, status),
            self._affinity.lost(key, candidate, slots),
            self._service.get(candidate.endpoint.url, 0.0),
            doubt,
        )

    def _pushed_out(self, candidate: Candidate, status: EndpointStatus | None) -> float:
        """Seconds to load again what has to go for this model, by how likely somebody needs it soon."""
        if status is None or candidate.model.resident is not False:
            return 0.0
        loaded = [model for model in status.models if model.resident]
        if not loaded or (status.capacity and len(loaded) < status.capacity):
            return 0.0
        disk = self._fleet.learned.hardware(candidate.endpoint).disk or DISK
        url = candidate.endpoint.url
        return max(self._affinity.needed(url, m.id) * (m.size or UNKNOWN_BYTES) / disk for m in loaded)

    def is_aside(self, request: ChatRequest, tenant: str) -> bool:
        """A title, a commit message: a request without tools beside a conversation that uses them."""
        return not request.tools and bool(request.conversation) and (tenant, request.conversation) in self._loops

    def admitted(
        self, candidate: Candidate, *, aside: bool, patience: float = LONGEST_WAIT
    ) -> AbstractAsyncContextManager[None]:
        """A place at the candidate's endpoint; waits and raises as ``Admission.admitted``."""
        endpoint, status = candidate.endpoint, self._status(candidate)
        swaps = status is not None and (status.capacity or 1) == 1 and len(status.models) > 1
        limit = self._limit(candidate)
        return self._admission.admitted(
            endpoint.url, candidate.model.id, limit, name=endpoint.name, swaps=swaps, side=aside, patience=patience
        )

    def others(self, candidate: Candidate) -> int:
        """Requests of ours at the candidate's endpoint, but for this one."""
        return max(0, self._admission.load(candidate.endpoint.url)[0] - 1)

    def sent(self, candidate: Candidate, seconds: float) -> int:
        """Its prompt is being read from now on, which takes so long; the number is for ``begun``."""
        self._sent += 1
        if seconds:
            reading = self._reading.setdefault(candidate.endpoint.url, {})
            reading[self._sent] = max(self._clock(), max(reading.values(), default=0.0)) + seconds
        return self._sent

    def begun(self, candidate: Candidate, number: int) -> None:
        """It answers, or has failed."""
        reading = self._reading.get(candidate.endpoint.url)
        if reading is not None:
            reading.pop(number, None)

    def _read_in(self, url: str) -> float:
        """Seconds until the prompts that are read there should be; what takes much longer is believed no more."""
        reading = self._reading.get(url)
        return max(0.0, max(reading.values()) - self._clock()) if reading else 0.0

    def answered(
        self, key: bytes, candidate: Candidate, usage: Usage, tokens: int, seconds: float, whole: float
    ) -> None:
        """It was answered there.

        Args:
            key: as ``order`` gave it.
            usage: as the server reported it; zeros when it did not.
            tokens: of the prompt, where ``usage`` does not say.
            seconds: until the answer began.
            whole: until it was there.
        """
        self.learn_speed(candidate, usage, seconds, whole)
        url = candidate.endpoint.url
        self._service[url] = self._service.get(url, whole) * (1 - SERVICE_SHARE) + whole * SERVICE_SHARE
        if not key:
            return
        prompt = usage.prompt_tokens or tokens
        speed = self._fleet.learned.speed(candidate.endpoint, candidate.model)
        expected = expected_first_byte(candidate, prompt, speed) * (1 + self.others(candidate))
        self._affinity.answered(key, candidate, seconds, expected, prompt + usage.completion_tokens)

    def learn_speed(self, candidate: Candidate, usage: Usage, seconds: float, whole: float) -> None:
        """How fast the model read and answered, or loaded. What came in one piece says only how long both took."""
        learned, endpoint, model = self._fleet.learned, candidate.endpoint, candidate.model
        if not 0.0 < seconds <= whole < math.inf:
            return
        fresh, answer = max(0, usage.prompt_tokens - usage.cached_tokens), usage.completion_tokens
        last = learned.speed(endpoint, model)
        if model.resident is False:
            load = max(0.1, seconds - (fresh / last.prefill if last.prefill else 0.0))
            learned.learn_speed(endpoint, model, load=load)
            learned.learn_hardware(endpoint, disk=(model.size or candidate.bytes) / load)
            return
        prefill = decode = 0.0
        if answer >= LEAST_DECODED and whole - seconds > IN_ONE_PIECE * whole:
            decode = (answer - 1) / (whole - seconds)
            if fresh >= LEAST_PREFILL:
                prefill = fresh / seconds
        elif answer >= LEAST_DECODED:
            its = pace(candidate, last, learned.hardware(endpoint))
            slower = whole / max(1e-3, fresh / its.prefill + answer / its.decode)
            decode = its.decode / slower
            prefill = its.prefill / slower if fresh >= LEAST_PREFILL else 0.0
        elif fresh >= LEAST_PREFILL:
            prefill = fresh / seconds
        if prefill and not usage.cached_tokens:  # it may have been read from a cache that is not told of
            prefill = min(prefill, last.prefill * CACHED_TIMES or BELIEVED_PREFILL)
        prefill, decode = min(prefill, MOST_PREFILL), min(decode, MOST_DECODE)
        learned.learn_speed(endpoint, model, prefill=prefill, decode=decode)
        learned.learn_hardware(endpoint, compute=prefill * candidate.active, bandwidth=decode * candidate.read_bytes)

    def _note_loop(self, request: ChatRequest, tenant: str) -> None:
        if not request.tools or not request.conversation:
            return
        self._loops.pop((tenant, request.conversation), None)
        self._loops[tenant, request.conversation] = None
        if len(self._loops) > MAX_CONVERSATIONS:
            self._loops.popitem(last=False)

    def _free_first(self, ranked: tuple[Ranked, ...]) -> tuple[Ranked, ...]:
        """Of servers that have the first candidate's model, those with a free slot first, the cheapest of them."""
        first = ranked[0].candidate.model.id
        equal = [r for r in ranked if r.candidate.model.id == first]
        if len(equal) < 2:
            return ranked
        equal.sort(key=self._use)
        return (*equal, *(r for r in ranked if r.candidate.model.id != first))

    def _use(self, ranked: Ranked) -> tuple[int, bool, int, float]:
        candidate, price = ranked.candidate, ranked.price or NO_PRICE
        running, _ = self._admission.load(candidate.endpoint.url)
        limit = self._limit(candidate)
        in_doubt = self._fleet.book.rank(candidate.endpoint)
        return in_doubt, bool(limit) and running >= limit, candidate.endpoint.priority, price.weighed + running / 1000

    def _small_first(self, ranked: tuple[Ranked, ...], smallest: Candidate | None) -> tuple[Ranked, ...]:
        """The smallest model first if it is loaded: nothing is loaded, and nobody's only slot taken, for a title."""
        small = [r for r in ranked if r.candidate is smallest and r.candidate.model.resident]
        return (*small, *(r for r in ranked if r not in small))

    def _limit(self, candidate: Candidate) -> int:
        """Requests that its endpoint serves at once: as configured, as it tells, or as its kind does; 0 for any."""
        status = self._status(candidate)
        told = status.slots if status is not None else 0
        return candidate.endpoint.slots or told or BY_KIND[candidate.endpoint.kind].default_slots

    def _status(self, candidate: Candidate) -> EndpointStatus | None:
        catalog = self._fleet.catalog
        if catalog.generation != self._statuses_of:
            self._statuses = {status.endpoint.url: status for status in catalog.endpoints}
            self._statuses_of = catalog.generation
        return self._statuses.get(candidate.endpoint.url)


def work_of(request: ChatRequest) -> Work:
    """What a request asks to be done, in tokens, by its length alone."""
    if request.raw is not None:
        prompt = len(request.raw.body) // BYTES_PER_TOKEN
    else:
        counter = get_token_counter("")
        prompt = counter.count_messages(request.messages) + counter.count_tools(request.tools)
    return Work(prompt, min(request.max_tokens or ANSWER, ANSWER))


def _key(request: ChatRequest, tenant: str) -> bytes:
    said = request.session_id or request.conversation
    return key_of(request, tenant, b"" if said else conversation_key(request.messages))
