"""Show from the coverage data that every bound test executes the code it is about.

Needs a run of the whole suite under ``coverage run`` first; then ``python -m tests.check_requirements``.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from coverage import CoverageData

from tests.requirements import ROWS, Proven

ROOT = Path(__file__).parents[1]
CASES = 3  # of a test that is bound by its name alone


def bound() -> set[str]:
    """The tests that are named, as pytest writes them."""
    return {f"tests/{test}" for _, _, proof in ROWS if isinstance(proof, Proven) for test in proof.tests}


def lines_of(code: str) -> tuple[Path, range]:
    """The file and the body's lines of ``module:qualified.name``."""
    module, _, name = code.partition(":")
    base = ROOT / "src" / Path(*module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    nodes: list[ast.stmt] = ast.parse(path.read_text()).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((n for n in nodes if getattr(n, "name", None) == part), None)
        if found is None:
            raise SystemExit(f"tests/requirements.py names {code}, which does not exist")
        nodes = found.body  # type: ignore[attr-defined]
    return path, range(nodes[0].lineno, (nodes[-1].end_lineno or 0) + 1)


def problems(data: CoverageData) -> list[str]:
    contexts = data.measured_contexts()
    found: list[str] = []
    for requirement, what, proof in ROWS:
        if not isinstance(proof, Proven):
            continue
        for test in proof.tests:
            cases = {c: c.removesuffix("|run") for c in contexts}
            mine = [c for c, case in cases.items() if f"tests/{test}" in (case, case.split("[")[0])]
            if not mine:
                found.append(f"{requirement} ({what}): the test {test} did not run")
                continue
            data.set_query_contexts([f"^{re.escape(c)}$" for c in mine[:CASES]])
            for code in proof.code:
                path, body = lines_of(code)
                if not set(data.lines(str(path)) or ()) & set(body):
                    found.append(f"{requirement} ({what}): {test} does not execute {code}")
    return found


def main() -> int:
    data = CoverageData(str(ROOT / ".coverage"))
    data.read()
    found = problems(data)
    bound = sum(isinstance(proof, Proven) for _, _, proof in ROWS)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.stdout.write(f"requirements: {bound} rows proven, {len(ROWS) - bound} deferred, {len(found)} problems\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
