"""What state each endpoint is in, and whether asking it is worth a request (SPEC SVC-4, FB-3).

Pure: a record and an outcome give the next record. ``HealthBook`` holds the records and is their only writer. Times are
seconds of the monotonic clock, so setting the machine's clock moves nothing.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointDownError,
    EndpointLoadingError,
    KeyRefusedError,
    ModelChangedError,
    PhaseTimeoutError,
    RequestRefusedError,
    UnknownModelError,
)
from turnout.fleet.catalog import EndpointStatus
from turnout.types import Endpoint, Health

FAILURES_TO_OPEN = 3
FIRST_COOL_DOWN, COOL_DOWN_GROWTH, LONGEST_COOL_DOWN = 1.0, 2.0, 120.0  # seconds, factor, seconds
TRIAL_SECONDS = 10.0  # how long the one request at a half-open endpoint keeps the others away
KEPT_CHANGES, KEPT_EVENTS = 8, 500

# The server answered, and what it answered is no fault of its own.
_ANSWERED = (
    EndpointLoadingError,
    KeyRefusedError,
    UnknownModelError,
    ModelChangedError,
    ContextOverflowError,
    RequestRefusedError,
)
_ANSWERS = (Health.ONLINE, Health.LOADING, Health.NEEDS_KEY)
_HAD_ANSWERED = (*_ANSWERS, Health.DEGRADED)

log = logging.getLogger("turnout")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state; ``at`` is the record's clock."""

    at: float
    before: Health
    after: Health
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one endpoint's health.

    Attributes:
        since: when it took this state.
        changes: the last few changes, oldest first.
        failures: failed answers in a row.
        silences: looks in a row that nothing came back from in time.
        openings: how often in a row the circuit was opened; the cool-down grows with it.
        retry_at: when the open circuit becomes half-open; 0.0 while it is closed.
        by_answers: answers opened it, which a look cannot judge before the cool-down has passed.
        trial_until: until when the one request that tries a half-open endpoint keeps others away.
    """

    health: Health = Health.UNKNOWN
    reason: str = "not looked at yet"
    since: float = 0.0
    changes: tuple[Change, ...] = ()
    failures: int = 0
    silences: int = 0
    openings: int = 0
    retry_at: float = 0.0
    by_answers: bool = False
    trial_until: float = 0.0

    @property
    def open(self) -> bool:
        """The circuit is open or half-open."""
        return self.retry_at > 0.0

    def bars(self, now: float) -> bool:
        """Requests keep away: the cool-down runs, or another request is trying."""
        return self.open and (_runs(self.retry_at, now) or _runs(self.trial_until, now))


def _runs(until: float, now: float) -> bool:
    """A time that is further away than any that is ever set comes from a clock that jumped, and holds nothing up."""
    return 0.0 < until - now <= 2 * LONGEST_COOL_DOWN


def after_look(record: Record, status: EndpointStatus, now: float, jitter: float = 1.0) -> Record:
    """The record after discovery looked at the endpoint.

    A refused connection opens the circuit at once, silence after several looks. An answer closes it, unless failed
    answers opened it and the cool-down still runs: that the server lists its models does not show that it answers.
    """
    if status.health in _ANSWERS:
        return _after_good_look(record, status, now)
    if status.health is Health.OFFLINE and status.silent:
        return _after_silence(record, status, now, jitter)
    if status.health is Health.OFFLINE:
        opened = replace(_opened(record, now, jitter), by_answers=False, silences=0)
        return _in_state(opened, Health.OFFLINE, status.reason, now)
    if record.open and not record.bars(now):
        record = _opened(record, now, jitter)
    return _in_state(replace(record, silences=0), status.health, status.reason, now)


def _after_good_look(record: Record, status: EndpointStatus, now: float) -> Record:
    record = replace(record, silences=0)
    if record.open and record.by_answers:
        if _runs(record.retry_at, now):
            return record
        # Closed on trust: one more failed answer opens it again, for longer.
        record = replace(record, retry_at=0.0, trial_until=0.0, failures=FAILURES_TO_OPEN - 1)
    elif record.open:
        record = _closed(record)
    return _in_state(record, status.health, status.reason, now)


def _after_silence(record: Record, status: EndpointStatus, now: float, jitter: float) -> Record:
    record = replace(record, silences=record.silences + 1)
    if record.health in _HAD_ANSWERED and record.silences < FAILURES_TO_OPEN and not record.open:
        # A server that computes may be slow to answer a look: it is not given up after one.
        reason = f"{status.reason} ({record.silences} of {FAILURES_TO_OPEN} looks)"
        return _in_state(record, Health.DEGRADED, reason, now)
    return _in_state(_opened(record, now, jitter), Health.OFFLINE, status.reason, now)


def after_attempt(record: Record, error: BackendError | None, now: float, jitter: float = 1.0) -> Record:
    """The record after a request was answered (``error`` is None), or failed.

    Args:
        jitter: factor of the cool-down.
    """
    if error is None:
        return _in_state(_closed(record), Health.ONLINE, "answers", now)
    if isinstance(error, _ANSWERED):
        return _after_refusal(record, error, now)
    if _is_total(error):
        return record
    if isinstance(error, EndpointDownError):
        opened = replace(_opened(record, now, jitter), by_answers=False)
        return _in_state(opened, Health.OFFLINE, error.message, now)
    failures = record.failures + 1
    record = replace(record, failures=failures)
    if failures < FAILURES_TO_OPEN and not record.open:
        return record
    opened = replace(_opened(record, now, jitter), by_answers=True)
    return _in_state(opened, Health.DEGRADED, f"{failures} failed answers in a row, the last: {error.message}", now)


def _after_refusal(record: Record, error: BackendError, now: float) -> Record:
    """The server works. An error without a status is our own refusal, made without asking it."""
    if error.status == 0:
        return record
    if not record.open:
        return replace(record, failures=0)
    if isinstance(error, KeyRefusedError):
        return _in_state(_closed(record), Health.NEEDS_KEY, error.message, now)
    loading = isinstance(error, EndpointLoadingError) and not isinstance(error, EndpointBusyError)
    return _in_state(_closed(record), Health.LOADING if loading else Health.ONLINE, error.message, now)


def _is_total(error: BackendError) -> bool:
    """A long answer that met the request's own limit, before or after output had begun: the server worked."""
    cause = error if isinstance(error, PhaseTimeoutError) else error.__cause__
    return isinstance(cause, PhaseTimeoutError) and cause.phase == "total"


def _opened(record: Record, now: float, jitter: float) -> Record:
    if record.open and _runs(record.retry_at, now):
        return record  # a request that was under way when it opened
    openings = record.openings + 1
    cool_down = min(LONGEST_COOL_DOWN, FIRST_COOL_DOWN * COOL_DOWN_GROWTH ** min(openings - 1, 30)) * jitter
    return replace(record, openings=openings, retry_at=now + cool_down, trial_until=0.0)


def _closed(record: Record) -> Record:
    return replace(record, failures=0, silences=0, openings=0, retry_at=0.0, by_answers=False, trial_until=0.0)


def _in_state(record: Record, health: Health, reason: str, now: float) -> Record:
    if health is record.health:
        return record if reason == record.reason else replace(record, reason=reason)
    changes = (*record.changes, Change(now, record.health, health, reason))[-KEPT_CHANGES:]
    return replace(record, health=health, reason=reason, since=now, changes=changes)


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """A change of an endpoint's state, for people; ``at`` in seconds since the epoch."""

    at: float
    endpoint: str
    url: str
    before: Health
    after: Health
    reason: str


class HealthBook:
    """Every endpoint's record, by its URL. The only writer of records.

    Attributes:
        events: the last changes of all endpoints, oldest first.
        on_change: called after an attempt changed an endpoint's state.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311
    ) -> None:
        self._clock, self._jitter = clock, jitter
        self._records: dict[str, Record] = {}
        self._troubled: set[str] = set()
        self.events: deque[FleetEvent] = deque(maxlen=KEPT_EVENTS)
        self.on_change: Callable[[Endpoint], None] | None = None

    def record(self, endpoint: Endpoint) -> Record:
        """What is known of an endpoint."""
        return self._records.get(endpoint.url) or Record()

    def since(self, record: Record) -> float:
        """When the record took its state, in seconds since the epoch."""
        return time.time() - (self._clock() - record.since)

    @property
    def troubled(self) -> bool:
        """Some endpoint is not simply online, so plans have to be looked at."""
        return bool(self._troubled)

    def look(self, status: EndpointStatus) -> Record:
        """Discovery's outcome."""
        endpoint, now = status.endpoint, self._clock()
        before = self.record(endpoint)
        return self._write(endpoint, before, after_look(before, status, now, self._jitter()))

    def attempt(self, endpoint: Endpoint, error: BackendError | None) -> None:
        """A request's outcome, told once when it has ended."""
        before = self._records.get(endpoint.url)
        if error is None and before is not None and before.health is Health.ONLINE and not before.failures:
            return
        before = before or Record()
        after = self._write(endpoint, before, after_attempt(before, error, self._clock(), self._jitter()))
        if self.on_change is not None and after.health is not before.health:
            self.on_change(endpoint)

    def begin(self, endpoint: Endpoint) -> None:
        """A request goes to an endpoint. Where the circuit is half-open, it is the one that decides."""
        if endpoint.url in self._troubled and (record := self.record(endpoint)).open:
            self._records[endpoint.url] = replace(record, trial_until=self._clock() + TRIAL_SECONDS)

    def bars(self, endpoint: Endpoint) -> str:
        """Why no request goes there now, or ""."""
        if endpoint.url not in self._troubled:
            return ""
        record, now = self.record(endpoint), self._clock()
        if not record.bars(now):
            return ""
        wait = max(record.retry_at, record.trial_until) - now
        return f"left out for {wait:.0f} s more: {record.reason}"

    def rank(self, endpoint: Endpoint) -> int:
        """0 for an endpoint that is online; others stand behind: 1 in doubt, 2 loading."""
        if endpoint.url not in self._troubled:
            return 0
        return 2 if self.record(endpoint).health is Health.LOADING else 1

    def due(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Those with a half-open circuit, which a look may decide."""
        if not self._troubled:
            return []
        now = self._clock()
        return [e for e in endpoints if (record := self.record(e)).open and not record.bars(now)]

    def nearest(self, endpoints: Iterable[Endpoint]) -> Endpoint:
        """The endpoint whose circuit is the first to become half-open."""
        return min(endpoints, key=lambda endpoint: self.record(endpoint).retry_at)

    def _write(self, endpoint: Endpoint, before: Record, after: Record) -> Record:
        self._records[endpoint.url] = after
        well = not after.open and after.health not in (Health.DEGRADED, Health.LOADING)
        (self._troubled.discard if well else self._troubled.add)(endpoint.url)
        if after.health is not before.health and not _is_no_news(endpoint, before, after):
            event = FleetEvent(time.time(), endpoint.name, endpoint.url, before.health, after.health, after.reason)
            self.events.append(event)
            log.info("%s (%s): %s -> %s: %s", event.endpoint, event.url, event.before, event.after, event.reason)
        return after


def _is_no_news(endpoint: Endpoint, before: Record, after: Record) -> bool:
    """Nothing listens at an address that nobody configured."""
    return before.health is Health.UNKNOWN and after.health is Health.OFFLINE and not endpoint.configured
