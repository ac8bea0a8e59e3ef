from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointDownError,
    EndpointLoadingError,
    KeyRefusedError,
    NonsenseError,
    PhaseTimeoutError,
    RequestRefusedError,
    ServerFailedError,
    StreamBrokenError,
    UnknownModelError,
)
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.health import (
    FAILURES_TO_OPEN,
    FIRST_COOL_DOWN,
    KEPT_CHANGES,
    LONGEST_COOL_DOWN,
    TRIAL_SECONDS,
    HealthBook,
    Record,
    after_attempt,
    after_look,
)
from turnout.types import Endpoint, Health

BOX = Endpoint("box", "openai", "http://127.0.0.1:1", configured=True)
ONLINE = Record(Health.ONLINE, "answers", since=10.0)
DOWN = EndpointDownError("nothing answers at box: connection refused", endpoint="box")
FAILURES: tuple[BackendError, ...] = (
    PhaseTimeoutError("did not begin", phase="first byte"),
    PhaseTimeoutError("did not accept", phase="connect"),
    ServerFailedError("boom", status=500),
    NonsenseError("html"),
    StreamBrokenError("cut"),
)
NO_FAULT: tuple[BackendError, ...] = (
    KeyRefusedError("refused the key", status=401),
    EndpointBusyError("busy", status=503),
    EndpointBusyError("rate limit", status=429, retry_after=3.0),
    EndpointLoadingError("loading", status=503),
    ContextOverflowError("too long", status=400),
    UnknownModelError("no such model", status=404),
    RequestRefusedError("invalid", status=400),
)


def seen(health: Health, reason: str = "said so", *, silent: bool = False) -> EndpointStatus:
    return EndpointStatus(BOX, health, reason, 0.0, silent=silent)


def opened_by_answers(now: float = 20.0) -> Record:
    record = ONLINE
    for _ in range(FAILURES_TO_OPEN):
        record = after_attempt(record, ServerFailedError("boom", status=500), now)
    return record


def named(errors: tuple[BackendError, ...]) -> list[object]:
    return [pytest.param(error, id=error.message) for error in errors]


def test_a_state_has_its_reason_and_its_time_and_remembers_the_last_changes() -> None:
    record = Record()
    for now in range(1, 30):
        health = Health.ONLINE if now % 2 else Health.LOADING
        record = after_look(record, seen(health, f"look {now}"), float(now))
    assert (record.health, record.reason, record.since) == (Health.ONLINE, "look 29", 29.0)
    assert [change.at for change in record.changes] == [float(n) for n in range(30 - KEPT_CHANGES, 30)]
    assert (record.changes[-1].before, record.changes[-1].after) == (Health.LOADING, Health.ONLINE)
    same = after_look(record, seen(Health.ONLINE, "has no model"), 40.0)
    assert (same.since, same.reason, same.changes) == (29.0, "has no model", record.changes)


@pytest.mark.parametrize("health", [Health.ONLINE, Health.LOADING, Health.NEEDS_KEY, Health.DEGRADED])
def test_a_look_that_was_answered_opens_nothing(health: Health) -> None:
    record = after_look(Record(), seen(health), 5.0)
    assert (record.health, record.reason, record.since, record.open) == (health, "said so", 5.0, False)


def test_a_refused_connection_opens_at_once_and_one_good_look_closes() -> None:
    for record in (after_attempt(ONLINE, DOWN, 20.0), after_look(ONLINE, seen(Health.OFFLINE), 20.0)):
        assert record.health is Health.OFFLINE
        assert record.bars(20.5)
        back = after_look(record, seen(Health.ONLINE), 20.6)
        assert (back.health, back.open, back.openings, back.failures) == (Health.ONLINE, False, 0, 0)


@pytest.mark.parametrize("error", named(FAILURES))
def test_failures_in_a_row_open(error: BackendError) -> None:
    record = ONLINE
    for _ in range(FAILURES_TO_OPEN - 1):
        record = after_attempt(record, error, 20.0)
        assert (record.open, record.health) == (False, Health.ONLINE)
    record = after_attempt(record, error, 20.0)
    assert record.bars(20.5)
    assert record.health is Health.DEGRADED
    assert error.message in record.reason


def test_a_success_between_failures_starts_the_count_anew() -> None:
    record = ONLINE
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            record = after_attempt(record, FAILURES[2], 20.0)
        record = after_attempt(record, None, 21.0)
    assert (record.failures, record.open) == (0, False)


@pytest.mark.parametrize("error", named(NO_FAULT))
def test_what_is_no_fault_of_the_server_never_opens(error: BackendError) -> None:
    record = ONLINE
    for now in range(20):
        record = after_attempt(record, error, float(now))
    assert record == ONLINE
    closed = after_attempt(opened_by_answers(), error, 20.1)
    assert not closed.open
    assert closed.health in (Health.ONLINE, Health.LOADING, Health.NEEDS_KEY)


def test_our_own_refusal_says_nothing_of_the_server() -> None:
    record = opened_by_answers()
    assert after_attempt(record, ContextOverflowError("too long"), 20.1) == record


def test_a_long_answer_that_met_its_limit_is_no_failure() -> None:
    total = PhaseTimeoutError("did not finish", phase="total")
    broken = StreamBrokenError("the answer broke off")
    broken.__cause__ = total
    record = ONLINE
    for error in (total, broken) * FAILURES_TO_OPEN:
        record = after_attempt(record, error, 20.0)
    assert record == ONLINE


def test_a_listing_does_not_show_that_it_answers_before_the_cool_down_has_passed() -> None:
    record = opened_by_answers(20.0)
    looked = after_look(record, seen(Health.ONLINE), 20.5)
    assert (looked.health, looked.bars(20.5)) == (Health.DEGRADED, True)
    looked = after_look(looked, seen(Health.ONLINE), 20.0 + FIRST_COOL_DOWN)
    assert (looked.health, looked.open) == (Health.ONLINE, False)
    again = after_attempt(looked, FAILURES[2], 30.0)  # closed on trust: one failure is enough now
    assert again.bars(30.0 + 1.5 * FIRST_COOL_DOWN)
    assert not after_attempt(again, None, 33.0).open


def test_the_cool_down_grows_to_a_bound_and_a_success_resets_it() -> None:
    record, now, waits = ONLINE, 0.0, []
    for _ in range(12):
        record = after_attempt(record, DOWN, now)
        waits.append(record.retry_at - now)
        now = record.retry_at
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert waits[-1] == LONGEST_COOL_DOWN
    record = after_attempt(record, None, now)
    assert after_attempt(record, DOWN, now).retry_at == now + FIRST_COOL_DOWN


def test_requests_that_were_under_way_do_not_lengthen_the_cool_down() -> None:
    record = after_attempt(ONLINE, DOWN, 20.0)
    assert after_attempt(record, DOWN, 20.2).retry_at == record.retry_at


def test_a_server_that_is_slow_once_is_degraded_and_after_several_looks_offline() -> None:
    record = after_look(ONLINE, seen(Health.OFFLINE, "no answer", silent=True), 20.0)
    assert (record.health, record.open) == (Health.DEGRADED, False)
    assert "no answer" in record.reason
    for _ in range(FAILURES_TO_OPEN - 1):
        record = after_look(record, seen(Health.OFFLINE, "no answer", silent=True), 21.0)
    assert (record.health, record.open) == (Health.OFFLINE, True)
    never = after_look(Record(), seen(Health.OFFLINE, silent=True), 20.0)
    assert never.health is Health.OFFLINE


_ERRORS = st.sampled_from([None, DOWN, *FAILURES, *NO_FAULT])
_LOOKS = st.builds(seen, st.sampled_from(list(Health)), silent=st.booleans())
_TIMES = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


@given(st.lists(st.tuples(st.one_of(_ERRORS, _LOOKS), _TIMES), max_size=30), _TIMES)
def test_whatever_happens_whenever_it_is_tried_again(steps: list[tuple[object, float]], now: float) -> None:
    """Times in any order: a clock that jumps holds no endpoint up for longer than the longest cool-down."""
    record = Record()
    for step, at in steps:
        if isinstance(step, EndpointStatus):
            record = after_look(record, step, at)
        else:
            record = after_attempt(record, step, at)  # type: ignore[arg-type]
    assert len(record.changes) <= KEPT_CHANGES
    assert not record.bars(now) or not record.bars(now + 2 * LONGEST_COOL_DOWN)
    assert not after_attempt(record, None, now).open


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_book_lets_one_request_decide_at_a_half_open_endpoint() -> None:
    clock = Clock()
    book = HealthBook(clock=clock, jitter=lambda: 1.0)
    book.look(seen(Health.ONLINE))
    assert not book.troubled
    book.attempt(BOX, DOWN)
    assert book.troubled
    assert "connection refused" in book.bars(BOX)
    assert book.due([BOX]) == []
    clock.now += FIRST_COOL_DOWN
    assert (book.bars(BOX), book.rank(BOX), book.due([BOX])) == ("", 1, [BOX])
    book.begin(BOX)
    assert book.bars(BOX)
    clock.now += TRIAL_SECONDS  # the one that tried was cancelled
    assert not book.bars(BOX)
    book.begin(BOX)
    book.attempt(BOX, None)
    assert (book.bars(BOX), book.rank(BOX), book.troubled) == ("", 0, False)


def test_the_book_keeps_changes_as_events_and_tells_of_those_by_attempts() -> None:
    book, told = HealthBook(), []
    book.on_change = told.append
    book.look(seen(Health.ONLINE))
    book.attempt(BOX, None)
    book.attempt(BOX, DOWN)
    assert [(e.endpoint, e.before, e.after) for e in book.events] == [
        ("box", Health.UNKNOWN, Health.ONLINE),
        ("box", Health.ONLINE, Health.OFFLINE),
    ]
    assert "refused" in book.events[-1].reason
    assert told == [BOX]


def test_a_default_address_where_nothing_listens_is_no_news() -> None:
    book = HealthBook()
    found = Endpoint("ollama", "", "http://127.0.0.1:2")
    book.look(EndpointStatus(found, Health.OFFLINE, "refused", 0.0))
    assert not book.events
    book.look(EndpointStatus(found, Health.ONLINE, "answers", 0.0))
    assert len(book.events) == 1


def test_of_many_open_ones_the_nearest_is_named_and_loading_stands_last() -> None:
    clock = Clock()
    book = HealthBook(clock=clock, jitter=lambda: 1.0)
    other = Endpoint("other", "openai", "http://127.0.0.1:3")
    book.attempt(other, DOWN)
    clock.now += 0.3
    book.attempt(BOX, DOWN)
    assert book.nearest([BOX, other]) == other
    loading = Endpoint("slow", "openai", "http://127.0.0.1:4")
    book.look(EndpointStatus(loading, Health.LOADING, "loads", 0.0))
    assert (book.bars(loading), book.rank(loading)) == ("", 2)
