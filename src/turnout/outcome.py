"""How a plan ended, in words: who failed, why, and which failure decided. Pure, but for the clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from turnout.errors import BackendError, ContextOverflowError, PhaseTimeoutError, QueryFailedError, StreamBrokenError
from turnout.types import Attempt, AttemptRecord, Candidate, FallbackLevel, Route

MAX_SHOWN_ATTEMPTS = 8


def route_to(candidate: Candidate, request_id: str, asked: str, reason: str = "the model asked for") -> Route:
    """The way to a candidate that was asked for by the name ``asked``."""
    return Route(
        request_id=request_id,
        requested_model=asked,
        sent_model=candidate.model.id,
        canonical=candidate.canonical,
        service=candidate.endpoint.name,
        url=candidate.endpoint.url,
        level=FallbackLevel.PRIMARY,
        category=None,
        window=candidate.window,
        window_source=candidate.window_source,
        reason=reason,
    )


def reason_of(attempt: Attempt, tried: Sequence[AttemptRecord]) -> str:
    """Why this model answers: its place in the plan, and who did not answer before it."""
    failed = next((a for a in tried if a.error is not None), None)
    return f"{attempt.reason}; {failed.model} @ {failed.service} did not answer" if failed else attempt.reason


def tried_of(attempts: Sequence[AttemptRecord], between: str) -> list[str]:
    """What failed and why, each once, with the number of tries."""
    failures = Counter(
        f"{a.model} @ {a.service}{between}{a.error.message.removeprefix(f'{a.service}: ')}"
        for a in attempts
        if a.error is not None
    )
    return [f"{text} ({tries} tries)" if tries > 1 else text for text, tries in failures.items()]


def record_of(attempt: Attempt, error: BackendError | None, began: float) -> AttemptRecord:
    """An attempt that began at a moment of ``time.monotonic`` and has ended now."""
    model, endpoint = attempt.candidate.model, attempt.candidate.endpoint
    return AttemptRecord(attempt.level, model.id, endpoint.name, error, time.monotonic() - began, attempt.wait)


def broken(error: BackendError, received: str, attempts: Sequence[AttemptRecord]) -> StreamBrokenError:
    """The answer broke off after ``received``."""
    cause = error.__cause__ if isinstance(error.__cause__, PhaseTimeoutError) else error
    return StreamBrokenError(
        error.message,
        endpoint=error.endpoint,
        received=received,
        attempts=tuple(attempts),
        hint=cause.hint,
    )


def failed(attempts: Sequence[AttemptRecord]) -> QueryFailedError:
    """Nobody answered."""
    tried = tried_of(attempts, ": ")
    shown = tried[:MAX_SHOWN_ATTEMPTS]
    shown += [f"and {len(tried) - len(shown)} more"] if len(tried) > len(shown) else []
    cause = cause_of(attempts)
    return QueryFailedError(
        f"no model answered; tried {len(attempts)}: {'; '.join(shown)}",
        attempts=tuple(attempts),
        cause=cause,
        hint=cause.hint if cause else BackendError.advice,
    )


def cause_of(attempts: Sequence[AttemptRecord]) -> BackendError | None:
    """The failure that decided: of each candidate the last one counts, and of those the best candidate's. But a prompt
    that somebody would have taken had it been shorter is what its sender can change."""
    last = {(a.model, a.service): a for a in attempts if a.error is not None}
    best = next(iter(last.values()), None)
    for record in last.values():
        if isinstance(record.error, ContextOverflowError) and record.level <= FallbackLevel.FALLBACK:
            best = record
            break
    if best is None:
        return None
    if isinstance(best.error, ContextOverflowError):  # what the largest window could not take is what must be shorter
        return max((a.error for a in attempts if isinstance(a.error, ContextOverflowError)), key=lambda e: e.window)
    return best.error
