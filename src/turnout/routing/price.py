"""What a request takes at each candidate, in seconds, and what it costs others. Pure (SPEC PRICE-1).

Whoever asks waits for the queue, a load, the part of the prompt that is not cached, and the answer. Others wait too:
streams that stall while this prompt is read, a model that is pushed out and loaded again, a prefix that is pushed out
of its slot and read again. A choice that ignores them is 2.2 times worse (facts/routing.md, Placement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from turnout.fleet.learned import Hardware, Speed
from turnout.types import Candidate, TaskCategory

# Where nothing was observed, neither of the model nor of its server: a middling GPU, since one request is enough to
# find out that it is none, and what is thought slow is never asked. Billions of parameters times tokens of a prompt a
# second, bytes of weights read a second while answering, and from a disk.
COMPUTE, BANDWIDTH, DISK = 8000.0, 200e9, 1e9
UNKNOWN_ACTIVE, UNKNOWN_BYTES = 8.0, 5e9  # of a model of which nobody says how large it is
ANSWER = 300  # tokens, where nobody says how long the answer will be
STREAMED = 0.5  # how much a second counts in which the answer comes
STALLED = 0.5  # the share of a prompt's reading by which each stream beside it is held up
IDLE = 600.0  # seconds after which every third conversation has come back, and so has need of what was pushed out
# Points of a score of 100 that the first second is worth; ten are worth as much as five and a half by themselves.
WORTH_OF_TIME, LONGER = 2.0, 0.75
EAGER = {"fast": 4.0, "balanced": 1.0}
# What a speed or a size may be, and seconds: beyond it, nobody knows better than by the size, and no price is endless.
LEAST, MOST, MOST_SECONDS = 1e-6, 1e18, 1e9
EASY, HARD = 1.5, 0.7  # how much more time counts for an easy request, and how much less for a hard one


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: tokens of the prompt and, as far as one can say, of the answer."""

    prompt: int
    answer: int = ANSWER


@dataclass(frozen=True, slots=True)
class Situation:
    """What a candidate's endpoint is busy with.

    Attributes:
        running, waiting: requests there.
        slots: requests it serves at once, 0 for any number.
        reading: seconds until the prompts that are read now are: most servers read one at a time.
        cached: tokens of this conversation that its cache holds.
        pushed_out: seconds to load the model that has to go for this one, by how likely it is needed again.
        lost: tokens of another conversation that lose their place in the cache, by the same.
        service: seconds that a request takes there, on the average; 0.0 when nobody knows.
        doubt: how far behind others the endpoint's health puts it; no matter of seconds.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    reading: float = 0.0
    cached: int = 0
    pushed_out: float = 0.0
    lost: float = 0.0
    service: float = 0.0
    doubt: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds: what whoever asks waits for, and in ``harm`` what others do; ``observed``: not guessed from size."""

    queue: float
    load: float
    prefill: float
    decode: float
    harm: float = 0.0
    observed: bool = False

    @property
    def seconds(self) -> float:
        """Until the answer is there."""
        return self.queue + self.load + self.prefill + self.decode

    @property
    def first(self) -> float:
        """Until it begins."""
        return self.queue + self.load + self.prefill

    @property
    def weighed(self) -> float:
        """All that counts: who reads an answer while it comes waits half as much."""
        return self.first + STREAMED * self.decode + self.harm


NO_PRICE = Price(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens of a prompt and of an answer a second, and seconds to load."""

    prefill: float
    decode: float
    load: float


def pace(candidate: Candidate, speed: Speed, hardware: Hardware) -> Pace:
    """How fast a candidate is: as observed, else by what its server did with other models, else by its size."""
    active = _sound(candidate.active, UNKNOWN_ACTIVE)
    read = _sound(candidate.read_bytes, UNKNOWN_BYTES)
    size = _sound(candidate.model.size or candidate.bytes, UNKNOWN_BYTES)
    return Pace(
        _sound(speed.prefill, 0.0) or _sound(hardware.compute, COMPUTE) / active,
        _sound(speed.decode, 0.0) or _sound(hardware.bandwidth, BANDWIDTH) / read,
        _sound(speed.load, 0.0) or size / _sound(hardware.disk, DISK),
    )


def _sound(value: float, otherwise: float) -> float:
    """A speed or a size, if it can be one."""
    return value if LEAST <= value <= MOST else otherwise


def price(candidate: Candidate, work: Work, at: Situation, speed: Speed, hardware: Hardware) -> Price:
    """The price of a request at a candidate."""
    its = pace(candidate, speed, hardware)
    fresh = max(0, work.prompt - min(at.cached, work.prompt))
    prefill, decode = fresh / its.prefill, work.answer / its.decode
    beside = max(0, min(at.running, at.slots - 1) if at.slots else at.running)
    ahead = max(0, at.running + at.waiting - at.slots + 1) if at.slots else 0
    # Whoever is served now is on the average half done.
    each = at.service or prefill + decode
    queue = max(0.0, ahead - 0.5) / at.slots * each if ahead else 0.0
    queue = max(queue, at.reading)
    load = 0.0 if candidate.model.resident is not False else its.load
    harm = STALLED * prefill * beside + at.pushed_out + at.lost / its.prefill
    found = Price(queue, load, prefill, decode * (1 + 0.2 * beside), harm, bool(speed.prefill and speed.decode))
    parts = (found.queue, found.load, found.prefill, found.decode, found.harm)
    if min(parts) >= 0.0 and sum(parts) <= MOST_SECONDS:
        return found
    queue, load, prefill, decode, harm = (min(MOST_SECONDS, max(0.0, s)) for s in parts)  # 0.0 of what is no number
    return Price(queue, load, prefill, decode, harm, found.observed)


def likely_back(idle: float) -> float:
    """How likely a conversation goes on that has been idle for so many seconds."""
    return math.exp(-max(0.0, idle) / IDLE)


def value(
    candidate: Candidate, price: Price, category: TaskCategory | None, policy: str, difficulty: float = 0.5
) -> float:
    """What a candidate is worth for a request, in points of its score: less for every second.

    Args:
        policy: ``balanced`` or ``fast``; for any other the score alone counts.
        difficulty: of the request, 0 to 1.
    """
    score = candidate.scores.get(category, 0.0) if category is not None else 0.0
    eager = EAGER.get(policy, 0.0)
    if category is None:
        eager = 1.0
    eager *= EASY + (HARD - EASY) * min(1.0, max(0.0, difficulty))
    return score - eager * WORTH_OF_TIME * float(price.weighed**LONGER)
