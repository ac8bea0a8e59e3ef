"""Tests that could dial beyond loopback if the guard failed run only where nothing is beyond loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.isolated import is_isolated, lead_everywhere_home

HOW = "NOT ISOLATED: this test needs a network namespace: run `make test` or `python tests/isolated.py pytest`"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("isolated") is not None and not is_isolated():
        pytest.skip(HOW)


@pytest.fixture(scope="module")
def whole_world_is_here() -> Iterator[None]:
    """Every address, public ones too, leads to this machine: what a failing guard dials reaches the test's listener."""
    if not is_isolated():
        pytest.skip(HOW)
    lead_everywhere_home()
    yield
    lead_everywhere_home(undo=True)
