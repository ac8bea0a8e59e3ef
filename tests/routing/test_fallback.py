"""The plan: what an error does to the attempts that are left (SPEC FB-2, FB-3); more in ``tests/test_fallback.py``."""

from __future__ import annotations

from dataclasses import replace

from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointDownError,
    EndpointLoadingError,
    ServerFailedError,
)
from turnout.outcome import cause_of
from turnout.routing.fallback import after_error
from turnout.types import Attempt, AttemptRecord, Candidate, Endpoint, FallbackLevel, Model


def attempt_at(name: str, model: str = "m", level: FallbackLevel = FallbackLevel.PRIMARY) -> Attempt:
    endpoint = Endpoint(name, "openai", f"http://127.0.0.1/{name}")
    return Attempt(level, Candidate(endpoint, Model(model), "", 4096, "known", {}))


def test_an_error_keeps_retries_before_the_smallest_model_and_a_load_behind_it() -> None:
    failed, smallest = attempt_at("a"), attempt_at("b", "s", FallbackLevel.SMALLEST)
    for error, order in (
        (EndpointBusyError("x", retry_after=2), ["a", "b"]),
        (ServerFailedError("x"), ["a", "b"]),
        (EndpointLoadingError("x"), ["b", "a"]),
        (EndpointBusyError("x", retry_after=240), ["b"]),
    ):
        assert [a.candidate.endpoint.name for a in after_error((smallest,), failed, error, 0)] == order


def test_a_load_is_awaited_as_long_as_a_first_byte() -> None:
    attempt, waits = attempt_at("a"), list[float]()
    while plan := after_error((), attempt, EndpointLoadingError("x"), 0):
        (attempt,) = plan
        waits.append(attempt.wait)
    assert 295 <= sum(waits) <= attempt.candidate.endpoint.limits.first_byte == 300
    assert (waits[0], waits[-1]) == (1.0, 5.0)
    assert len(waits) < 70


def test_our_own_count_is_not_asked_twice() -> None:
    failed = replace(attempt_at("a", level=FallbackLevel.REDUCED_CONTEXT), reduced=True)
    assert after_error((), failed, ContextOverflowError("x"), 0) == ()
    assert len(after_error((), failed, ContextOverflowError("x", status=400), 0)) == 1


def test_the_failure_that_decided() -> None:
    def cause(*errors: tuple[FallbackLevel, str, BackendError]) -> str:
        found = cause_of([AttemptRecord(level, "m", service, error, 0.0) for level, service, error in errors])
        return found.code if found else ""

    primary, reduced, smallest = FallbackLevel.PRIMARY, FallbackLevel.REDUCED_CONTEXT, FallbackLevel.SMALLEST
    overflow, down, failed = ContextOverflowError("x"), EndpointDownError("x"), ServerFailedError("x")
    assert cause((primary, "a", down), (primary, "b", failed)) == "endpoint_down"
    assert cause((primary, "a", overflow), (reduced, "a", failed)) == "server_failed", "shortening it did not help"
    assert cause((primary, "a", down), (primary, "b", overflow)) == "context_length_exceeded", "b would take less"
    assert cause((primary, "a", down), (smallest, "b", overflow)) == "endpoint_down"
    assert cause((primary, "a", overflow), (reduced, "a", overflow)) == "context_length_exceeded"
