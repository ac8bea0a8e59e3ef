"""The conformance table of docs/wire.md is what a run gives (``conformance.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.conformance import BACKENDS, BEHAVIOURS, NAMES, Cells, page, run, written

MADE: dict[str, Cells] = {}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_every_client_before(backend: str) -> None:
    MADE[backend] = await run(backend)
    assert len(MADE[backend]) == len(NAMES) * len(BEHAVIOURS)


async def test_the_table_is_what_the_run_gives() -> None:
    for backend in BACKENDS:
        MADE[backend] = MADE.get(backend) or await run(backend)
    assert written() == page({name: MADE[name] for name in BACKENDS}), "run `python -m tests.gateway.conformance`"
