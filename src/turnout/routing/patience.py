"""How long an answer may take to begin: loading the model and reading the prompt, times a margin. Pure.

A server that hangs must not hold a request for as long as the slowest honest one would need (SPEC FB-3).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from turnout.fleet.learned import Speed
from turnout.types import Candidate, Endpoint

# Where nothing was observed: a small machine without a GPU that reads from a slow disk.
PREFILL, DISK, UNKNOWN_LOAD = 50.0, 100e6, 60.0  # tokens a second, bytes a second, seconds
BELIEVED = 500.0  # tokens a second: what was faster may have come from a cache that nobody told of
MARGIN = 4.0
LEAST, MOST = 30.0, 1800.0  # seconds


def expected_load(candidate: Candidate, speed: Speed) -> float:
    """Seconds until the model is loaded; 0.0 when it is."""
    model = candidate.model
    if model.resident:
        return 0.0
    return speed.load or (model.size / DISK if model.size else UNKNOWN_LOAD)


def expected_first_byte(candidate: Candidate, tokens: int, speed: Speed) -> float:
    """Seconds until the answer begins, when nobody else is served.

    Args:
        tokens: of the prompt; what the server has in its cache is not known and counts.
        speed: what was observed there.
    """
    return expected_load(candidate, speed) + tokens / min(BELIEVED, speed.prefill or PREFILL)


def first_byte_limit(candidate: Candidate, tokens: int, speed: Speed, running: int) -> float:
    """Seconds to wait for the answer to begin: what somebody chose, else what follows from the expected time.

    Args:
        running: our other requests there, which may be served first.
    """
    limits = candidate.endpoint.limits
    if not limits.adaptive:
        return limits.first_byte
    expected = expected_first_byte(candidate, tokens, speed) * (1 + running)
    return min(MOST, max(LEAST, MARGIN * expected))


@lru_cache(maxsize=256)
def ending(endpoint: Endpoint, seconds: int) -> Endpoint:
    """The endpoint with so long for all of an attempt."""
    return replace(endpoint, limits=replace(endpoint.limits, total=float(seconds)))


@lru_cache(maxsize=256)
def patient(endpoint: Endpoint, seconds: int) -> Endpoint:
    """The endpoint with so long a wait for the first byte."""
    return replace(endpoint, limits=replace(endpoint.limits, first_byte=float(seconds)))
