"""Who shows many wrong keys: counted by address, for a while, in bounded memory."""

from __future__ import annotations

import pytest

from turnout.gateway.lockout import LOCKED_SECONDS, MAX_PEERS, MAX_WRONG, MINUTE, LockedOutError, Lockout


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def guard(now: list[float]) -> Lockout:
    return Lockout(lambda: now[0])


def wrong(guard: Lockout, address: str, times: int) -> None:
    for _ in range(times):
        guard.count(address)


def test_it_begins_with_the_last_of_a_minute_and_ends_by_itself(guard: Lockout, now: list[float]) -> None:
    wrong(guard, "10.0.0.5", MAX_WRONG - 1)
    guard.require_open("10.0.0.5")
    with pytest.raises(LockedOutError) as first:
        guard.count("10.0.0.5")
    assert first.value.begins
    assert (first.value.status, first.value.headers["Retry-After"]) == (503, "60")
    now[0] += LOCKED_SECONDS - 1.5
    with pytest.raises(LockedOutError) as later:
        guard.require_open("10.0.0.5")
    assert not later.value.begins
    assert later.value.headers["Retry-After"] == "2"
    now[0] += 2
    guard.require_open("10.0.0.5")
    wrong(guard, "10.0.0.5", MAX_WRONG - 1)


def test_few_wrong_ones_are_forgotten(guard: Lockout, now: list[float]) -> None:
    for _ in range(5):
        wrong(guard, "10.0.0.5", MAX_WRONG - 1)
        guard.require_open("10.0.0.5")  # raises for who is shut out
        now[0] += MINUTE


def test_loopback_is_always_listened_to(guard: Lockout) -> None:
    for address in ("127.0.0.1", "127.1.2.3", "::1"):
        wrong(guard, address, MAX_WRONG - 1)
        with pytest.raises(LockedOutError):
            guard.count(address)
        guard.require_open(address)
        with pytest.raises(LockedOutError):
            guard.count(address)


def test_one_address_costs_no_other(guard: Lockout) -> None:
    for address in ("10.0.0.5", "fd00::1", "not an address", ""):
        wrong(guard, address, MAX_WRONG - 1)
    guard.count("fd00:0:0:1::1")
    guard.count("::ffff:10.0.0.6")
    with pytest.raises(LockedOutError):
        guard.count("fd00::2")
    with pytest.raises(LockedOutError):
        guard.count("::ffff:10.0.0.5")
    guard.require_open("10.0.0.6")


def test_the_memory_is_bounded(guard: Lockout) -> None:
    for number in range(MAX_PEERS + 500):
        guard.count(f"10.0.{number // 256}.{number % 256}")
    assert len(guard._peers) == MAX_PEERS
