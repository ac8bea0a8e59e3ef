"""Fixtures for every test, and the coverage context that says which test ran which line."""

from __future__ import annotations

import os
from collections.abc import Iterator

import coverage
import pytest

from tests.servers import llama, llama_factory

__all__ = ["llama", "llama_factory"]

# A container's gateway is a candidate address: no test may dial it, also one that is run outside the namespace.
os.environ["TURNOUT_LOOPBACK_ONLY"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    measuring = coverage.Coverage.current()
    if measuring is not None:
        measuring.switch_context(item.nodeid)
    return (yield)
