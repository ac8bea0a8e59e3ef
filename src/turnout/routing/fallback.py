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
    NonsenseError,
    PhaseTimeoutError,
    ServerFailedError,
    StreamBrokenError,
)
from turnout.types import Attempt, Candidate, FallbackLevel

FIRST_BACKOFF, BACKOFF_GROWTH, LONGEST_WAIT = 0.25, 2.0, 10.0
LONGEST_TOLD_WAIT = 30.0  # a Retry-After that is longer is cut to this
LOADING_WAIT = 1.0
RETRY_SHARE, MOST_RETRIES = 0.2, 10.0  # of all requests; saved up to so many


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate in its place: ``level`` 0 or 1, and why it stands there."""

    candidate: Candidate
    level: FallbackLevel
    reason: str


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
    plan = [Attempt(r.level, r.candidate, reason=r.reason) for r in ranked]
    if not plan:
        plan += [_reduced(r.candidate, target, r.reason) for r in too_small]
    if smallest is not None and all(a.candidate is not smallest for a in plan):
        plan.append(Attempt(FallbackLevel.SMALLEST, smallest, reduced=True, reason="smallest available model"))
    return tuple(plan)


def _reduced(candidate: Candidate, target: int, reason: str) -> Attempt:
    return Attempt(FallbackLevel.REDUCED_CONTEXT, candidate, reduced=True, target_window=target, reason=reason)


def after_error(rest: Sequence[Attempt], failed: Attempt, error: BackendError, target: int) -> tuple[Attempt, ...]:
    """What is left of the plan after ``failed`` ended with ``error``.

    Only a context overflow leads to level 2. A refused key and an endpoint that is dead, or died before any output,
    take the endpoint out; busy, loading and server failures are tried elsewhere first and here again later, at most
    ``max_retries`` times. Never called once output has begun.
    """
    if isinstance(error, ContextOverflowError):
        return _after_overflow(rest, failed, error, target)
    if isinstance(error, KeyRefusedError | EndpointDownError | StreamBrokenError) or (
        isinstance(error, PhaseTimeoutError) and error.phase == "connect"
    ):
        return tuple(a for a in rest if a.candidate.endpoint != failed.candidate.endpoint)
    if isinstance(error, EndpointLoadingError | ServerFailedError | NonsenseError):
        return _again_later(rest, failed, error)
    return tuple(rest)


def _after_overflow(
    rest: Sequence[Attempt], failed: Attempt, error: ContextOverflowError, target: int
) -> tuple[Attempt, ...]:
    window = error.window or failed.candidate.window
    larger = [a for a in rest if not a.reduced and a.candidate.window > window]
    reduced = [a for a in rest if a.reduced]
    if not failed.reduced:
        return (*larger, _reduced(failed.candidate, target, "the server said the prompt is too long"), *reduced)
    if failed.tries < 1:
        again = replace(failed, tries=failed.tries + 1, reason="still too long by the server's count")
        return (*larger, again, *reduced)
    return (*larger, *reduced)


def _again_later(rest: Sequence[Attempt], failed: Attempt, error: BackendError) -> tuple[Attempt, ...]:
    limit = failed.candidate.endpoint.limits.max_retries
    if isinstance(error, EndpointLoadingError) and not isinstance(error, EndpointBusyError):
        # A load takes seconds to minutes: it is awaited for as long as a first byte would be.
        limit = max(limit, int(failed.candidate.endpoint.limits.first_byte / LOADING_WAIT))
    if failed.tries >= limit:
        return tuple(rest)
    loading = isinstance(error, EndpointLoadingError) and not isinstance(error, EndpointBusyError)
    again = replace(failed, tries=failed.tries + 1, wait=wait_before(failed, error), retry=not loading)
    return (*rest, again)


def wait_before(failed: Attempt, error: BackendError) -> float:
    """Seconds to wait before the same step: what the server said, else growing backoff (jitter is the caller's)."""
    told = error.retry_after if isinstance(error, EndpointLoadingError) else 0.0
    if told:
        return min(told, LONGEST_TOLD_WAIT)
    if isinstance(error, EndpointLoadingError) and not isinstance(error, EndpointBusyError):
        return LOADING_WAIT
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
