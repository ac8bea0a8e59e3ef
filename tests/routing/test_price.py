"""What a request takes where: the parts of the price, and that they are weighed as they should be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnout.fleet.learned import Hardware, Speed
from turnout.routing.price import COMPUTE, MOST_SECONDS, Price, Situation, Work, likely_back, price, value
from turnout.types import Candidate, Endpoint, Model, TaskCategory

CODING = TaskCategory.CODING
BOX = Endpoint("box", "vllm", "http://box")
LOADED = Candidate(
    BOX, Model("m", resident=True, size=4_000_000_000), "", 32_768, "known", {CODING: 80.0}, active=8.0, read_bytes=4e9
)
COLD = replace(LOADED, model=replace(LOADED.model, resident=False))
SPEED, NONE = Speed(prefill=1000.0, load=20.0, decode=50.0, seen=4), Hardware()
WORK = Work(prompt=4000, answer=100)


def of(candidate: Candidate = LOADED, at: Situation | None = None, speed: Speed = SPEED) -> Price:
    return price(candidate, WORK, at or Situation(), speed, NONE)


def test_the_parts() -> None:
    assert of() == Price(0.0, 0.0, 4.0, 2.0, 0.0, observed=True)
    assert of(COLD).load == 20.0
    assert of(at=Situation(cached=3000)).prefill == 1.0
    assert of(at=Situation(cached=9000)).prefill == 0.0


def test_a_queue_is_waited_for_by_how_long_requests_take_there() -> None:
    full = Situation(running=2, waiting=1, slots=2, service=10.0)
    assert of(at=full).queue == pytest.approx(1.5 / 2 * 10.0)
    assert of(at=replace(full, running=1, waiting=0)).queue == 0.0
    assert of(at=replace(full, slots=0)).queue == 0.0, "it serves any number"
    assert of(at=Situation(reading=7.0)).queue == 7.0, "most servers read one prompt at a time"


def test_what_others_lose_is_counted() -> None:
    assert of(at=Situation(running=3)).harm == pytest.approx(0.5 * 4.0 * 3)
    assert of(COLD, Situation(pushed_out=12.0)).harm == 12.0
    assert of(at=Situation(lost=2000.0)).harm == pytest.approx(2.0)


def test_what_was_not_observed_follows_from_the_server_then_from_the_size() -> None:
    known = Hardware(compute=16_000.0, bandwidth=400e9, disk=1e9)
    seen = price(COLD, WORK, Situation(), Speed(), known)
    assert (seen.prefill, seen.decode, seen.load) == (pytest.approx(2.0), pytest.approx(1.0), pytest.approx(4.0))
    assert not seen.observed
    guessed = price(LOADED, WORK, Situation(), Speed(), NONE)
    assert guessed.prefill == pytest.approx(4000 * 8.0 / COMPUTE)
    larger = replace(LOADED, active=80.0, read_bytes=40e9)
    assert price(larger, WORK, Situation(), Speed(), NONE).seconds > guessed.seconds * 9


def test_a_policy_weighs_time_against_quality() -> None:
    good, quick = replace(LOADED, scores={CODING: 90.0}), replace(LOADED, scores={CODING: 80.0})
    slow, fast = Price(0.0, 0.0, 2.0, 20.0), Price(0.0, 0.0, 0.2, 3.0)

    def better(policy: str, difficulty: float = 0.5, slow: Price = slow) -> bool:
        return value(good, slow, CODING, policy, difficulty) > value(quick, fast, CODING, policy, difficulty)

    assert better("best")
    assert better("balanced", difficulty=1.0)
    assert not better("balanced", difficulty=0.0)
    assert not better("fast")
    assert not better("balanced", slow=replace(slow, queue=120.0))


seconds = st.floats(0.0, 1e4)
situations = st.builds(
    Situation,
    running=st.integers(0, 40),
    waiting=st.integers(0, 40),
    slots=st.integers(0, 16),
    reading=seconds,
    cached=st.integers(0, 100_000),
    pushed_out=seconds,
    lost=seconds,
    service=seconds,
)
speeds = st.builds(Speed, prefill=st.floats(0, 1e5), load=seconds, decode=st.floats(0, 1e4))


@given(situations, speeds, st.integers(0, 200_000))
def test_a_price_is_never_negative_and_more_to_do_never_costs_less(at: Situation, speed: Speed, prompt: int) -> None:
    speed = Speed(*(v if v > 1e-3 else 0.0 for v in (speed.prefill, speed.load, speed.decode)))
    less, more = (price(COLD, Work(n, 100), at, speed, NONE) for n in (prompt, prompt + 1000))
    assert min(less.queue, less.load, less.prefill, less.decode, less.harm) >= 0.0
    assert more.weighed >= less.weighed - 1e-9
    busier = price(COLD, Work(prompt, 100), replace(at, waiting=at.waiting + 1), speed, NONE)
    assert busier.seconds >= less.seconds - 1e-9


anything = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(-(10**18), 10**18)


@given(
    st.builds(Situation, counts, counts, counts, anything, counts, anything, anything, anything),
    st.builds(Speed, anything, anything, anything),
    st.builds(Hardware, anything, anything, anything),
    st.tuples(anything, anything, anything),
    st.integers(0, 10**12),
    st.booleans(),
)
@example(Situation(), Speed(), Hardware(), (math.inf, math.inf, math.inf), 1000, True)
@example(Situation(), Speed(), Hardware(compute=-1.0), (math.nan, -1.0, 1e-320), 1000, False)
def test_no_claim_of_a_server_makes_a_price_endless_or_negative(
    at: Situation,
    speed: Speed,
    hardware: Hardware,
    sizes: tuple[float, float, float],
    prompt: int,
    resident: bool,
) -> None:
    active, size, read = sizes
    model = replace(LOADED.model, resident=resident, size=0)
    candidate = replace(LOADED, model=model, active=active, bytes=size, read_bytes=read)
    less, more = (price(candidate, Work(n, n), at, speed, hardware) for n in (prompt, prompt + 1000))
    for found in (less, more):
        parts = (found.queue, found.load, found.prefill, found.decode, found.harm)
        assert all(0.0 <= part <= MOST_SECONDS for part in parts)
        assert math.isfinite(value(candidate, found, CODING, "balanced"))
    assert more.prefill >= less.prefill
    assert more.decode >= less.decode


@given(seconds, seconds)
def test_a_longer_time_is_never_worth_more(one: float, other: float) -> None:
    short, long = sorted((one, other))
    for policy in ("balanced", "fast", "best"):
        worth = [value(LOADED, Price(time, 0, 0, 0), CODING, policy) for time in (short, long)]
        assert worth[0] >= worth[1]


def test_who_has_been_idle_for_long_does_not_come_back() -> None:
    assert likely_back(0.0) == 1.0
    assert likely_back(3600.0) < 0.01
    assert likely_back(-5.0) == 1.0, "a clock that jumped back"
