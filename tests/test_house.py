"""The house rules that no linter has: sizes, no registry's host name, documents that lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.check_requirements import lines_of
from tests.requirements import ROWS, Proven

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 600
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [
        f"{n.name}: {(n.end_lineno or 0) - n.lineno + 1} lines"
        for n in functions
        if (n.end_lineno or 0) - n.lineno >= 60
    ]
    assert long == []


def test_no_file_names_a_package_registry() -> None:
    registry = re.compile(
        r"pypi\.org|pythonhosted\.org|registry\.npmjs|crates\.io|proxy\.golang|deb\.debian\.org", re.IGNORECASE
    )
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    files = [ROOT / name for name in listed if name and name != "tests/test_house.py"]
    found = [
        str(f.relative_to(ROOT)) for f in files if f.is_file() and registry.search(f.read_text("utf-8", "replace"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/security.md",
        "docs/sessions.md",
        "docs/agents.md",
        "docs/edits.md",
    ],
)
def test_the_documents_lead_to_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:src|tests|docs|bench)/[\w./]+)", text)
    places = [(ROOT / name).parent / link for link in links] + [ROOT / path.split("::")[0] for path in paths]
    assert [str(place) for place in places if not place.exists()] == []


def test_agents_are_told_briefly() -> None:
    assert (ROOT / "AGENTS.md").read_text().count("\n") < 60


def test_the_readmes_python_runs_as_written() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    import turnout

    assert {"quick_route"} <= names & set(turnout.__all__)


@pytest.mark.parametrize("code", sorted({c for _, _, proof in ROWS if isinstance(proof, Proven) for c in proof.code}))
def test_requirements_name_code_that_exists(code: str) -> None:
    path, body = lines_of(code)
    assert path.is_file()
    assert body
