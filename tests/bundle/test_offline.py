"""A whole bundle in a root of its own, with the network cut: it installs, and a question is answered.

The bundle is made from the packages that are installed here; TURNOUT_TEST_BUNDLE names another, which
``make test-bundle`` makes from the package index.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.bundle.wheelhouse import make_wheelhouse
from tests.servers import WEIGHTS
from turnout.bundle.make import Wanted, make
from turnout.bundle.target import target_of
from turnout.embedded import weights_path
from turnout.guard.signing import Signer

pytestmark = [pytest.mark.heavy, pytest.mark.isolated, pytest.mark.timeout(600)]
GIVEN = os.environ.get("TURNOUT_TEST_BUNDLE", "")
QUESTION = "Write a Python function that adds two numbers"
RUN = f"""\
set -eu
"$PYTHON" -c 'import socket; print("interfaces:", *(name for _, name in socket.if_nameindex()))'
if "$PYTHON" -m ensurepip --version 2>/dev/null; then echo "there is a pip"; fi
ls -A / /home "$HOME" /tmp /etc
sh "/carried over"/turnout-bundle-*/install.sh --python "$PYTHON"
PATH=$HOME/.local/share/turnout-env/bin:$PATH
turnout --version
turnout ask --embedded --max-tokens 100 "{QUESTION}"
turnout code status
if [ -d "/carried over"/turnout-bundle-*/serena ]; then
    mkdir work
    printf 'def total(prices: list[int]) -> int:\\n    return sum(prices)\\n' >work/shop.py
    turnout code symbols total --workspace work
    turnout code stop --all
fi
turnout audit verify
echo "user: $(id -u)"
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the unpacked bundle."""
    place = tmp_path_factory.mktemp("offline")
    path = Path(GIVEN) if GIVEN else _made(place)
    with tarfile.open(path) as opened:
        opened.extractall(place / "unpacked", filter="data")
    return place / "unpacked"


def _made(place: Path) -> Path:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the engine of the bundled model is not installed")
    weights = weights_path(place / "data")
    weights.parent.mkdir(parents=True)
    weights.symlink_to(WEIGHTS)
    lock = make_wheelhouse(place / "wheels")
    wanted = Wanted(target_of(), (place / "wheels",), True, False, place / "data", lock)
    return asyncio.run(make(wanted, place / "bundle.tar", Signer(place / "signing"))).path


@pytest.mark.parametrize("which", ["own", "system"])
def test_it_installs_and_answers_where_nothing_else_is(which: str, bundle: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("no unshare and setpriv of util-linux here")
    python, prefix = _python(which)
    (tmp_path / "root").mkdir()
    command = ["unshare", "--mount", "sh", str(Path(__file__).with_name("root.sh")), str(tmp_path / "root")]
    command += [str(bundle), python, prefix, "sh", "-c", RUN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "interfaces: lo\n" in done.stdout
    assert "there is a pip" not in done.stdout
    assert "verified: every file is as it was signed" in done.stderr
    assert "turnout 0.1.0\n" in done.stdout
    assert "route: turnout-demo-smollm2-135m @ embedded" in done.stderr
    assert "def " in done.stdout
    with_serena = any(bundle.glob("*/serena"))
    assert ("installed: serena 2.1.0" in done.stdout) == with_serena
    assert ("shop.py:1:1\tfunction\ttotal" in done.stdout) == with_serena
    assert f"user: {0 if _alone() else 1000}" in done.stdout
    assert list((tmp_path / "root").iterdir()) == []


def _alone() -> bool:
    """Whether this user namespace has one user, so that nobody else can be had in it."""
    return int(Path("/proc/self/uid_map").read_text().split()[2]) == 1


def _python(which: str) -> tuple[str, str]:
    """A Python of the version that the bundle is for, and where it lies."""
    if which == "own":
        return f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}", sys.base_prefix
    python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if not Path(python).exists() or sys.base_prefix == "/usr":
        pytest.skip(f"there is no {python} beside the one that runs the tests")
    return python, "/usr"
