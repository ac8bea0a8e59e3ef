"""The figures of docs/benchmarks.md that a program wrote are those of the newest raw results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "bench" / "results").glob("gateways-*.json"))


@pytest.mark.skipif(not RESULTS, reason="no run of bench/gateways.py is kept")
def test_tables_and_plot_are_made_of_the_raw_results(tmp_path: Path) -> None:
    written = [Path("docs/benchmarks.md"), Path("docs/gateways.svg")]
    (tmp_path / "docs").mkdir()
    for name in written:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code = (
        "import json, pathlib, report, sys; report.show(json.load(open(sys.argv[1])), sys.argv[2], pathlib.Path.cwd())"
    )
    subprocess.run(
        [sys.executable, "-c", code, RESULTS[-1], RESULTS[-1].name],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "bench")},
        check=True,
    )
    assert [(tmp_path / name).read_text() for name in written] == [(ROOT / name).read_text() for name in written]
    assert json.loads(RESULTS[-1].read_text())["commit"]
