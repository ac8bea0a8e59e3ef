"""What Prometheus may read: plain counters while requests run, made into its format when somebody asks.

Names and labels that OpenTelemetry has conventions for (``gen_ai``) follow them; docs/gateway.md has the list.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from turnout.gateway.exchange import Exchange
from turnout.types import FallbackLevel, Health, Route

if TYPE_CHECKING:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.metrics_core import Metric

    from turnout.router import Router
    from turnout.run import Run

# Seconds. OpenTelemetry's own advice, and longer: a local server may load a model first.
DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300.0, 900.0)
FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 120.0, 600.0)
MAX_NAMES = 256  # different models, or endpoints; what comes later is one label
OTHER, UNKNOWN = "other", "unknown"


# Route, model, endpoint, level ("" of what was no query) and status.
_Key: TypeAlias = tuple[str, str, str, str, int]
_LEVELS = {level: str(int(level)) for level in FallbackLevel}


class _Histogram:
    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def add(self, other: _Histogram) -> None:
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class _Series:
    __slots__ = ("cached", "compacted", "durations", "first", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.durations, self.first = _Histogram(DURATIONS), _Histogram(FIRST_TOKEN)
        self.tokens_in = self.tokens_out = self.cached = self.compacted = 0

    def add(self, other: _Series) -> None:
        self.durations.add(other.durations)
        self.first.add(other.first)
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.cached += other.cached
        self.compacted += other.compacted


class _Names:
    """Label values that come from elsewhere, bounded in number."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= MAX_NAMES:
                return OTHER
            self._known.add(name)
        return name


class Metrics:
    """The counters of one process, over all reloads of its configuration."""

    def __init__(self) -> None:
        self._series: dict[_Key, _Series] = {}
        self._retries: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[str] = Counter()
        self._models, self._endpoints = _Names(), _Names()
        self.in_flight = 0

    def ended(self, exchange: Exchange, route: str) -> None:
        """Count a request that is over; ``route`` is the path of the table that it took, never the client's own."""
        run = exchange.run
        if exchange.refused:
            self._refused[exchange.refused] += 1
        model, endpoint, level = self._decided(run, exchange.route)
        key = route, model, endpoint, level, exchange.status
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        series.durations.observe(time.monotonic() - exchange.started)
        if run is None:
            return
        if run.first:
            series.first.observe(run.first - exchange.started)
        usage = run.usage
        series.tokens_in += usage.prompt_tokens
        series.tokens_out += usage.completion_tokens
        series.cached += usage.cached_tokens
        series.compacted += run.compacted
        if len(run.attempts) > 1:
            for attempt in run.attempts[:-1]:
                if attempt.error is not None:
                    self._retries[self._endpoints(attempt.service), attempt.error.code] += 1

    def _decided(self, run: Run | None, route: Route | None) -> tuple[str, str, str]:
        if route is not None:
            return self._models(route.sent_model), self._endpoints(route.service), _LEVELS[route.level]
        if run is None:
            return "", "", ""
        failed = _LEVELS[FallbackLevel.FAILED]
        if run.attempts:
            return self._models(run.attempts[-1].model), self._endpoints(run.attempts[-1].service), failed
        return UNKNOWN, "", failed  # what the client wrote is no label: it may write anything

    def text(self, router: Router) -> tuple[bytes, str]:
        """The exposition and its content type."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Reading(self, router))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def families(self, router: Router) -> Iterator[Metric]:
        """Every metric as it is now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        requests = CounterMetricFamily(
            "turnout_requests", "Requests that are over.", labels=("route", "model", "endpoint", "level", "status")
        )
        for key, series in self._series.items():
            requests.add_metric([str(part) for part in key], sum(series.durations.counts))
        yield requests
        yield from self._answers()
        retries = CounterMetricFamily(
            "turnout_retries", "Attempts that failed and were followed by another.", labels=("endpoint", "error_type")
        )
        for (endpoint, error), count in self._retries.items():
            retries.add_metric((endpoint, error), count)
        yield retries
        refused = CounterMetricFamily("turnout_refused", "Requests refused at the door.", labels=("error_type",))
        for error, count in self._refused.items():
            refused.add_metric((error,), count)
        yield refused
        yield GaugeMetricFamily("turnout_requests_in_flight", "Requests that run, this one too.", value=self.in_flight)
        yield from _of_router(router)

    def _answers(self) -> Iterator[Metric]:
        """What the queries among them took, by model and endpoint."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ("route", "gen_ai_response_model", "endpoint")
        merged: dict[tuple[str, str, str], _Series] = {}
        for (route, model, endpoint, level, _), series in self._series.items():
            if level:
                merged.setdefault((route, model, endpoint), _Series()).add(series)
        durations = HistogramMetricFamily(
            "gen_ai_server_request_duration_seconds", "From the request to the end of its answer.", labels=labels
        )
        first = HistogramMetricFamily(
            "gen_ai_server_time_to_first_token_seconds", "From the request to the answer's beginning.", labels=labels
        )
        tokens = CounterMetricFamily(
            "turnout_tokens",
            "Tokens as the servers counted them; cached ones are input too.",
            labels=("gen_ai_token_type", "gen_ai_response_model", "endpoint"),
        )
        compactions = CounterMetricFamily(
            "turnout_compactions", "Conversations that were sent shortened.", labels=("endpoint",)
        )
        sums: Counter[tuple[str, str, str]] = Counter()
        cuts: Counter[str] = Counter()
        for (route, model, endpoint), series in merged.items():
            _add_histogram(durations, (route, model, endpoint), series.durations, DURATIONS)
            _add_histogram(first, (route, model, endpoint), series.first, FIRST_TOKEN)
            if endpoint:
                sums["input", model, endpoint] += series.tokens_in
                sums["output", model, endpoint] += series.tokens_out
                sums["cached", model, endpoint] += series.cached
                cuts[endpoint] += series.compacted
        for labelled, count in sums.items():
            tokens.add_metric(labelled, count)
        for endpoint, count in cuts.items():
            compactions.add_metric((endpoint,), count)
        yield from (durations, first, tokens, compactions)


class _Reading:
    """The collector of one scrape."""

    def __init__(self, metrics: Metrics, router: Router) -> None:
        self._metrics, self._router = metrics, router

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client calls."""
        return self._metrics.families(self._router)


def _of_router(router: Router) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    health = GaugeMetricFamily("turnout_endpoint_health", "1 for the state it is in.", labels=("endpoint", "state"))
    for status in router.catalog.endpoints[:MAX_NAMES]:
        for state in Health:
            health.add_metric((status.endpoint.name, state.value), status.health is state)
    yield health
    yield CounterMetricFamily(
        "turnout_guard_refusals", "Connections that the egress guard refused.", value=router.client.refusals
    )
    alarm = router.audit_alarm is not None
    yield GaugeMetricFamily("turnout_audit_alarm", "1: an answer's end could not be logged.", value=alarm)


def _add_histogram(
    family: HistogramMetricFamily, labels: tuple[str, ...], found: _Histogram, bounds: tuple[float, ...]
) -> None:
    buckets, running = [], 0
    for bound, count in zip((*map(str, bounds), "+Inf"), found.counts, strict=True):
        running += count
        buckets.append((bound, running))
    family.add_metric(labels, buckets, found.total)
