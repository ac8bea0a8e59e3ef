"""How long a first byte is awaited: what loading and reading should take, with a margin (SPEC FB-3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnout.fleet.learned import Speed
from turnout.routing.patience import LEAST, MARGIN, MOST, first_byte_limit
from turnout.types import Candidate, Endpoint, Limits, Model

FOLLOWS = Limits()


def candidate(*, resident: bool | None = True, size: int = 0, limits: Limits = FOLLOWS) -> Candidate:
    endpoint = Endpoint("box", "openai", "http://127.0.0.1:1", limits=limits)
    return Candidate(endpoint, Model("m", resident=resident, size=size), "", 8192, "known", {})


def test_a_short_question_to_a_loaded_model_is_given_the_least() -> None:
    assert first_byte_limit(candidate(), 100, Speed(), 0) == LEAST


def test_a_long_prompt_is_given_the_time_to_read_it() -> None:
    slow = first_byte_limit(candidate(), 30_000, Speed(prefill=20.0), 0)
    fast = first_byte_limit(candidate(), 30_000, Speed(prefill=2000.0), 0)
    assert slow == MOST
    assert fast == pytest.approx(MARGIN * 60), "what is faster may have come from a cache"
    assert first_byte_limit(candidate(), 30_000, Speed(), 0) > fast


@pytest.mark.parametrize("resident", [False, None])
def test_a_model_that_may_not_be_loaded_is_given_the_time_to_load(resident: bool | None) -> None:
    cold = candidate(resident=resident, size=8_000_000_000)
    assert first_byte_limit(cold, 100, Speed(), 0) > MARGIN * 80
    assert first_byte_limit(cold, 100, Speed(load=20.0), 0) == pytest.approx(MARGIN * 22)
    assert first_byte_limit(candidate(resident=resident), 100, Speed(), 0) > MARGIN * 60


def test_requests_of_ours_that_run_there_come_first() -> None:
    alone = first_byte_limit(candidate(), 2000, Speed(prefill=100.0), 0)
    assert first_byte_limit(candidate(), 2000, Speed(prefill=100.0), 2) == pytest.approx(3 * alone)


def test_what_somebody_chose_rules() -> None:
    chosen = candidate(limits=replace(FOLLOWS, first_byte=5.0, adaptive=False))
    assert first_byte_limit(chosen, 30_000, Speed(), 3) == 5.0
