"""Fixtures for every test, and the coverage contexts that say which bound test ran which line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import coverage
import pytest

from tests.check_requirements import CASES, bound
from tests.servers import llama, llama_factory

__all__ = ["llama", "llama_factory"]

# A container's gateway is a candidate address: no test may dial it, also one that is run outside the namespace.
os.environ["TURNOUT_LOOPBACK_ONLY"] = "1"

_measuring: list[coverage.Coverage] = []
_bound = bound()
_measured: Counter[str] = Counter()


def pytest_sessionstart() -> None:
    """Measuring costs half as much again, so only what ``check_requirements`` asks about is measured."""
    measuring = coverage.Coverage.current()
    if measuring is not None:
        _measuring.append(measuring)
        measuring.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    name = item.nodeid.split("[")[0]
    wanted = item.nodeid in _bound or (name in _bound and _measured[name] < CASES)
    if not (_measuring and wanted):
        return (yield)
    _measured[name] += item.nodeid not in _bound
    _measuring[0].start()
    _measuring[0].switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        _measuring[0].stop()
