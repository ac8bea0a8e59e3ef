"""Conversations stay where their prefix is cached (SPEC GW-4): most of what a fleet can gain (facts/routing.md).

A conversation is known by what its client says of it, else by how it begins: system prompt, tools and first question.
A request without tools is kept apart from the agent's loop it comes from: it has another prefix.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from turnout.routing.fallback import Ranked
from turnout.types import Candidate, ChatRequest, TaskCategory

HELD = 3600.0  # seconds without a request after which no cache is left
MAX_CONVERSATIONS = 4096
# A candidate that is so much better, on the scale of 100, is worth reading the prompt anew: at the end of a turn.
WORTH_MOVING = 10.0
# So many answers in a row that began so much later than expected: the server has become slow.
SLOW, SLOW_SECONDS, SLOW_ANSWERS = 5.0, 2.0, 2


@dataclass(slots=True)
class _Place:
    url: str
    model: str
    at: float
    slow: int = 0


class Affinity:
    """Where conversations are. One writer: the router."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: OrderedDict[bytes, _Place] = OrderedDict()

    def order(
        self, key: bytes, ranked: Sequence[Ranked], category: TaskCategory | None, *, in_loop: bool
    ) -> tuple[Ranked, ...]:
        """The candidates with the conversation's own first, unless another is worth the move.

        Args:
            key: as ``key_of`` gives it.
            in_loop: a tool's result is being answered: never moved by choice.
        """
        place = self._places.get(key)
        if place is None or self._clock() - place.at > HELD or place.slow >= SLOW_ANSWERS:
            return tuple(ranked)
        own = next((r for r in ranked if _is_at(r.candidate, place)), None)
        if own is None or own is ranked[0]:
            return tuple(ranked)
        if not in_loop and category is not None:
            gain = ranked[0].candidate.scores.get(category, 0.0) - own.candidate.scores.get(category, 0.0)
            if gain >= WORTH_MOVING:
                return tuple(ranked)
        return (own, *(r for r in ranked if r is not own))

    def answered(self, key: bytes, candidate: Candidate, seconds: float, expected: float) -> None:
        """The conversation was answered there, ``seconds`` after it was asked where ``expected`` were."""
        last = self._places.pop(key, None)
        late = seconds > max(SLOW_SECONDS, SLOW * expected)
        slow = (last.slow if last is not None and _is_at(candidate, last) else 0) + 1 if late else 0
        self._places[key] = _Place(candidate.endpoint.url, candidate.model.id, self._clock(), slow)
        if len(self._places) > MAX_CONVERSATIONS:
            self._places.popitem(last=False)


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
