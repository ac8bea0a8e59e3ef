"""Real agents phone home: they run only where nothing is beyond loopback."""

from __future__ import annotations

import pytest

from tests.isolated import is_isolated


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not is_isolated():
        pytest.skip("NOT ISOLATED: real agents run only in a network namespace: run `make test-agents DIR=...`")
