"""The fallback plan: attempts in order, and what an error does to those that are left. Pure (SPEC FB-1 to FB-3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointDownError,
    EndpointLoadingError,
    KeyRefusedError,
    ModelChangedError,
    NonsenseError,
    PhaseTimeoutError,
    ServerFailedError,
    StreamBrokenError,
)
from turnout.routing.price import NO_PRICE, Price, Situation
from turnout.types import Attempt, Candidate, FallbackLevel

FIRST_BACKOFF, BACKOFF_GROWTH, LONGEST_WAIT = 0.25, 2.0, 10.0
LONGEST_TOLD_WAIT = 30.0  # of a server that asks for more the client is told instead
LOADING_WAIT, LOADING_GROWTH, LONGEST_LOADING_WAIT = 1.0, 1.25, 5.0
RETRY_SHARE, MOST_RETRIES = 0.2, 10.0  # of all requests; saved up to so many


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate in its place: ``level`` 0 or 1, why it stands there, what the request takes there, the points that it
    has beyond its score, and what its endpoint was busy with."""

    candidate: Candidate
    level: FallbackLevel
    reason: str
    price: Price | None = None
    bonus: float = 0.0
    at: Situation | None = None


def plan_attempts(
    ranked: Sequence[Ranked], too_small: Sequence[Ranked], smallest: Candidate | None, target: int
) -> tuple[Attempt, ...]:
    """The plan before anything has failed.

    Args:
        ranked: candidates that fit, best first.
        too_small: candidates whose window the request exceeds, best first: only with reduced context (level 2).
        smallest: the smallest available model, the last thing tried (level 3).
        target: tokens that level 2 compacts to at most (``min_context``); 0 for the window's own target.
    """
    plan = [_attempt(r) for r in ranked]
    if not plan:
        plan += [_reduced(r.candidate, target, r.reason) for r in too_small]
    if smallest is not None and all(a.candidate is not smallest for a in plan):
        plan.append(Attempt(FallbackLevel.SMALLEST, smallest, reduced=True, reason="smallest available model"))
    return tuple(plan)


def _attempt(ranked: Ranked) -> Attempt:
    price = ranked.price or NO_PRICE
    reads = price.load + price.prefill
    return Attempt(ranked.level, ranked.candidate, reason=ranked.reason, expected=price.seconds, reads=reads)


def _reduced(candidate: Candidate, target: int, reason: str) -> Attempt:
    return Attempt(FallbackLevel.REDUCED_CONTEXT, candidate, reduced=True, target_window=target, reason=reason)


def after_error(rest: Sequence[Attempt], failed: Attempt, error: BackendError, target: int) -> tuple[Attempt, ...]:
    """What is left of the plan after ``failed`` ended with ``error``.

    Only a context overflow leads to level 2. A refused key and an endpoint that is dead, or died before any output,
    take the endpoint out; one that let a time limit pass comes last; busy, loading and server failures are tried
    elsewhere first and here again later, at most ``max_retries`` times. Never called once output has begun.
    """
    if isinstance(error, ContextOverflowError):
        return _after_overflow(rest, failed, error, target)
    here = failed.candidate.endpoint
    if isinstance(error, ModelChangedError):
        return tuple(a for a in rest if a.candidate.label != failed.candidate.label)
    if isinstance(error, KeyRefusedError | EndpointDownError | StreamBrokenError) or (
        isinstance(error, PhaseTimeoutError) and error.phase == "connect"
    ):
        return tuple(a for a in rest if a.candidate.endpoint != here)
    if isinstance(error, PhaseTimeoutError):
        return tuple(sorted(rest, key=lambda a: a.candidate.endpoint == here))
    if isinstance(error, EndpointLoadingError | ServerFailedError | NonsenseError):
        return _again_later(rest, failed, error)
    return tuple(rest)


def _after_overflow(
    rest: Sequence[Attempt], failed: Attempt, error: ContextOverflowError, target: int
) -> tuple[Attempt, ...]:
    window = error.window or failed.candidate.window
    if failed.reduced:
        # A count of our own has nothing to add to itself.
        again = replace(failed, tries=failed.tries + 1, reason="still too long by the server's count")
        return (again, *rest) if failed.tries < 1 and error.status else tuple(rest)
    larger = [a for a in rest if not a.reduced and a.candidate.window > window]
    others = [a for a in rest if not a.reduced and a.candidate.window <= window]
    return (
        *larger,
        _reduced(failed.candidate, target, "the server said the prompt is too long"),
        *(replace(a, level=FallbackLevel.REDUCED_CONTEXT, reduced=True, target_window=target) for a in others),
        *(a for a in rest if a.reduced),
    )


def _again_later(rest: Sequence[Attempt], failed: Attempt, error: BackendError) -> tuple[Attempt, ...]:
    """The same step once more: after everything that fits the request, and before the smallest model has to do. A load
    takes seconds to minutes: it comes last, and is awaited for as long as a first byte would be."""
    wait, limits = wait_before(failed, error), failed.candidate.endpoint.limits
    again = replace(failed, tries=failed.tries + 1, wait=wait, waited=failed.waited + wait, retry=True)
    if _loads(error):
        return (*rest, replace(again, retry=False)) if again.waited <= limits.first_byte else tuple(rest)
    if failed.tries >= limits.max_retries or wait > LONGEST_TOLD_WAIT:
        return tuple(rest)
    before = [a for a in rest if a.level < FallbackLevel.SMALLEST]
    return (*before, again, *(a for a in rest if a.level >= FallbackLevel.SMALLEST))


def _loads(error: BackendError) -> bool:
    return isinstance(error, EndpointLoadingError) and not isinstance(error, EndpointBusyError)


def sooner(plan: Sequence[Attempt], seconds: float) -> list[Attempt]:
    """The plan after so many seconds: a wait runs also while others are waited for or asked."""
    return [replace(a, wait=max(0.0, a.wait - seconds)) if a.wait else a for a in plan]


def wait_before(failed: Attempt, error: BackendError) -> float:
    """Seconds to wait before the same step: what the server said, else growing backoff (jitter is the caller's)."""
    told = error.retry_after if isinstance(error, EndpointLoadingError) else 0.0
    if told:
        return told
    if _loads(error):
        return min(LONGEST_LOADING_WAIT, LOADING_WAIT * LOADING_GROWTH**failed.tries)
    return min(LONGEST_WAIT, FIRST_BACKOFF * BACKOFF_GROWTH**failed.tries)


class RetryBudget:
    """Retries of all requests together: when everything fails, many clients must not each ask four times.

    Every request earns a share of a retry, so a quiet router always has some left.
    """

    def __init__(self) -> None:
        self._left = MOST_RETRIES

    def earn(self) -> None:
        """A request came."""
        self._left = min(MOST_RETRIES, self._left + RETRY_SHARE)

    def take(self) -> bool:
        """Whether one more retry may be made."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
