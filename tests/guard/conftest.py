"""Tests that could dial beyond loopback if the guard failed run only where nothing but loopback exists."""

from __future__ import annotations

import pytest

from tests.isolated import is_isolated


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_isolated():
        return
    reason = "needs a network namespace with loopback alone: run `make test`, or python tests/isolated.py pytest ..."
    for item in items:
        if item.get_closest_marker("isolated"):
            item.add_marker(pytest.mark.skip(reason=reason))
