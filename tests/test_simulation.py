"""The simulator of small fleets, which drives the real selection code; all of it with `make sim`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import sim


@pytest.mark.parametrize("fleet", sim.FLEETS)
@pytest.mark.parametrize("fault", sim.FAULTS)
def test_placement_by_price_is_better_than_what_others_do(fleet: str, fault: str) -> None:
    ours, least_busy, hashed = (
        sim.figures(sim.simulate(fleet, policy, 1, fault)) for policy in ("turnout", "least busy", "sticky by hash")
    )
    assert ours["first"] < least_busy["first"]
    assert ours["cost"] < hashed["cost"]
    if not fault:
        assert ours["reuse"] > max(0.9, least_busy["reuse"])
    assert ours["requests"] > 0


def test_the_same_seed_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "HOUR", 600.0)
    one, other = (sim.figures(sim.simulate("mixed LAN", "turnout", 3, "")) for _ in range(2))
    assert one == other
