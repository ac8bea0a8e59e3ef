"""Where a request goes among those that could take it, and when: stickiness, slots, queues (SPEC GW-4, PRICE-3)."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.context.compaction import conversation_key
from turnout.fleet.admission import LONGEST_WAIT, Admission
from turnout.routing.affinity import MAX_CONVERSATIONS, Affinity, in_tool_loop, key_of
from turnout.routing.fallback import Ranked
from turnout.routing.patience import expected_first_byte
from turnout.routing.select import Selection
from turnout.types import VIRTUAL_MODELS, Candidate, ChatRequest, TaskCategory

if TYPE_CHECKING:
    from turnout.fleet.catalog import EndpointStatus
    from turnout.fleet.watch import Fleet


class Placement:
    """Made once for a router, and used by its event loop alone."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._affinity, self._admission = Affinity(), Admission()
        self._loops: OrderedDict[tuple[str, str], None] = OrderedDict()  # conversations that use tools
        self._statuses: dict[str, EndpointStatus] = {}
        self._statuses_of = -1  # the catalog's generation

    def order(
        self, request: ChatRequest, tenant: str, selection: Selection, category: TaskCategory | None
    ) -> tuple[Selection, bytes]:
        """The selection with the conversation's own candidate first, else one of the equal ones that is free.

        Returns:
            It, and the key for ``answered``; b"" where there is nothing to remember.
        """
        self._note_loop(request, tenant)
        ranked = selection.ranked
        if len(ranked) < 2:
            return selection, b""
        if self.is_aside(request, tenant) and request.model in VIRTUAL_MODELS:
            return replace(selection, ranked=self._small_first(ranked, selection.smallest)), b""
        key = _key(request, tenant)
        ranked = self._affinity.order(key, self._free_first(ranked), category, in_loop=in_tool_loop(request))
        return replace(selection, ranked=ranked), key

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

    def answered(self, key: bytes, candidate: Candidate, tokens: int, seconds: float) -> None:
        """It was answered there; ``seconds`` until it began, of a prompt of ``tokens``."""
        if not key:
            return
        speed = self._fleet.learned.speed(candidate.endpoint, candidate.model)
        expected = expected_first_byte(candidate, tokens, speed) * (1 + self.others(candidate))
        self._affinity.answered(key, candidate, seconds, expected)

    def _note_loop(self, request: ChatRequest, tenant: str) -> None:
        if not request.tools or not request.conversation:
            return
        self._loops.pop((tenant, request.conversation), None)
        self._loops[tenant, request.conversation] = None
        if len(self._loops) > MAX_CONVERSATIONS:
            self._loops.popitem(last=False)

    def _free_first(self, ranked: tuple[Ranked, ...]) -> tuple[Ranked, ...]:
        """Of servers that have the first candidate's model, those with a free slot first, the least used of them."""
        first = ranked[0].candidate.model.id
        equal = [r for r in ranked if r.candidate.model.id == first]
        if len(equal) < 2:
            return ranked
        equal.sort(key=lambda r: self._use(r.candidate))
        return (*equal, *(r for r in ranked if r.candidate.model.id != first))

    def _use(self, candidate: Candidate) -> tuple[int, bool, int, int]:
        running, waiting = self._admission.load(candidate.endpoint.url)
        limit = self._limit(candidate)
        in_doubt = self._fleet.book.rank(candidate.endpoint)
        return in_doubt, bool(limit) and running >= limit, candidate.endpoint.priority, running + waiting

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


def _key(request: ChatRequest, tenant: str) -> bytes:
    said = request.session_id or request.conversation
    return key_of(request, tenant, b"" if said else conversation_key(request.messages))
