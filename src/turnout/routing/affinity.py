"""Conversations stay where their prefix is cached (SPEC GW-4): most of what a fleet can gain (facts/routing.md).

A conversation is known by what its client says of it, else by how it begins: system prompt, tools and first question.
A request without tools is kept apart from the agent's loop it comes from: it has another prefix.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice

from turnout.routing.fallback import Ranked
from turnout.routing.price import likely_back
from turnout.types import Candidate, ChatRequest

HELD = 3600.0  # seconds without a request after which no cache is left
MAX_CONVERSATIONS = 4096
# A candidate that is worth so much more, on the scale of 100, is worth a move at the end of a turn: by its score alone
# under the policies that look at nothing else, and where the price of reading the prompt anew is counted already.
WORTH_MOVING, WORTH_ITS_PRICE = 10.0, 1.5
# Of a server that does not say how many prefixes it keeps: one with pages for many.
MANY_SLOTS = 64
# Whoever was answered a moment ago is most likely in a tool loop. Two loops in one slot push each other out at every
# step, so that is priced as so many prompts read again. Found with `make sim`; 4 to 8 steps, and 10 to 30 seconds, do
# about as well.
LOOP_STEPS, LOOP_SECONDS = 5.0, 15.0
# So many answers in a row that began so much later than expected: the server has become slow.
SLOW, SLOW_SECONDS, SLOW_ANSWERS = 5.0, 2.0, 2


@dataclass(slots=True)
class _Place:
    url: str
    model: str
    at: float
    slow: int = 0
    tokens: int = 0  # of its prefix, as its server has it


class Affinity:
    """Where conversations are. One writer: the router."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: OrderedDict[bytes, _Place] = OrderedDict()
        self._at: dict[str, OrderedDict[bytes, None]] = {}  # by URL, in the order of their last answers

    def order(
        self,
        key: bytes,
        ranked: Sequence[Ranked],
        worth: Callable[[Ranked], float],
        *,
        in_loop: bool,
        margin: float = WORTH_MOVING,
    ) -> tuple[Ranked, ...]:
        """The candidates with the conversation's own first, unless another is worth the move.

        Args:
            key: as ``key_of`` gives it.
            worth: what a candidate is worth for it, on a scale of 100.
            in_loop: a tool's result is being answered: never moved to another model by choice.
            margin: by how much more another has to be worth.
        """
        place = self._places.get(key)
        if place is None or self._clock() - place.at > HELD or place.slow >= SLOW_ANSWERS:
            return tuple(ranked)
        own = next((r for r in ranked if _is_at(r.candidate, place)), None)
        if own is None or own is ranked[0]:
            return tuple(ranked)
        same = ranked[0].candidate.model.id == own.candidate.model.id
        if (same or not in_loop) and worth(ranked[0]) - worth(own) >= margin:
            moved = replace(ranked[0], reason=f"{ranked[0].reason}; worth the move from {own.candidate.label}")
            return (moved, *ranked[1:])
        return (own, *(r for r in ranked if r is not own))

    def answered(self, key: bytes, candidate: Candidate, seconds: float, expected: float, tokens: int = 0) -> None:
        """The conversation was answered there, ``seconds`` after it was asked where ``expected`` were; its server has
        ``tokens`` of it now."""
        last = self._places.pop(key, None)
        late = seconds > max(SLOW_SECONDS, SLOW * expected)
        slow = (last.slow if last is not None and _is_at(candidate, last) else 0) + 1 if late else 0
        self._places[key] = _Place(candidate.endpoint.url, candidate.model.id, self._clock(), slow, tokens)
        if last is not None and last.url != candidate.endpoint.url:
            self._at[last.url].pop(key, None)
        here = self._at.setdefault(candidate.endpoint.url, OrderedDict())
        here.pop(key, None)
        here[key] = None  # the newest last
        if len(self._places) > MAX_CONVERSATIONS:
            gone, place = self._places.popitem(last=False)
            self._at[place.url].pop(gone, None)

    def cached(self, key: bytes, candidate: Candidate, slots: int) -> int:
        """Tokens of the conversation that the candidate's server has in its cache, as far as one can know."""
        place = self._places.get(key)
        if place is None or not _is_at(candidate, place) or self._clock() - place.at > HELD:
            return 0
        return place.tokens if key in islice(reversed(self._at[place.url]), slots or MANY_SLOTS) else 0

    def lost(self, key: bytes, candidate: Candidate, slots: int) -> float:
        """Tokens that are read again as a conversation loses its slot to this one: by how likely it comes back, how
        soon."""
        here = self._at.get(candidate.endpoint.url)
        kept = slots or MANY_SLOTS
        if here is None or len(here) < kept or key in islice(reversed(here), kept):
            return 0.0
        oldest = next(islice(reversed(here), kept - 1, kept))
        place = self._places[oldest]
        idle = max(0.0, self._clock() - place.at)
        return place.tokens * (likely_back(idle) + LOOP_STEPS * math.exp(-idle / LOOP_SECONDS))

    def needed(self, url: str, model: str) -> float:
        """How likely some conversation goes on with this model there soon, 0 to 1."""
        now = self._clock()
        here = (self._places[key] for key in islice(reversed(self._at.get(url, OrderedDict())), MANY_SLOTS))
        return max((likely_back(now - place.at) for place in here if place.model == model), default=0.0)


def _is_at(candidate: Candidate, place: _Place) -> bool:
    return candidate.endpoint.url == place.url and candidate.model.id == place.model


def key_of(request: ChatRequest, tenant: str, beginning: bytes) -> bytes:
    """What a conversation is known by.

    Args:
        beginning: a digest of its system messages and its first other one, for a client that does not name it.
    """
    said = request.session_id or request.conversation
    digest = blake2b(digest_size=16)
    for text in (tenant, request.model, said, "tools" if request.tools else ""):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    if not said:
        digest.update(beginning)
        digest.update("\0".join(tool.name for tool in request.tools).encode("utf-8", "surrogatepass"))
    return digest.digest()


def in_tool_loop(request: ChatRequest) -> bool:
    """Whether the newest message is a tool's result."""
    return bool(request.messages and request.messages[-1].tool_results)
