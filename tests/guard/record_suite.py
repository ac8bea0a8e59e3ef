"""A pytest plugin: every test with every address of the world leading to a recorder.

    PYTHONPATH=src python tests/isolated.py python -m pytest -p tests.guard.record_suite

A test that makes a packet for an address that the default allow-list does not hold is named at the end, and the run
fails. Left out are the tests marked ``isolated``, which stage such packets on purpose and look at them themselves.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.guard.recorder import Recorder
from tests.isolated import is_isolated, lead_everywhere_home
from turnout.config import SecurityConfig
from turnout.guard.allow import AllowList

ALLOW = AllowList.from_config(SecurityConfig())
_found: dict[str, set[str]] = {}
_recorder: list[Recorder] = []


def pytest_sessionstart() -> None:
    if not is_isolated():
        raise pytest.UsageError("run it through tests/isolated.py: every address of the world is to lead here")
    _recorder.append(Recorder())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if item.get_closest_marker("isolated") is not None:
        result = yield
        _recorder[0].off(ALLOW)
        return result
    try:
        lead_everywhere_home()
    except FileExistsError:  # a fixture of this module does already, until its end
        result = yield
    else:
        try:
            result = yield
        finally:
            lead_everywhere_home(undo=True)
    if left := _recorder[0].off(ALLOW):
        _found[item.nodeid] = left
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("packets off the allow-list")
    for test, addresses in _found.items():
        terminalreporter.line(f"{test}: {', '.join(sorted(addresses))}")
    terminalreporter.line(f"{len(_found)} tests made such packets")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
