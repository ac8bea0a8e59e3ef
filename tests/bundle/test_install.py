"""The installer, with real packages and no index: what it makes, and what it leaves when something goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle.conftest import Whole
from tests.bundle.small import sign
from turnout.bundle.archive import check_archive

# What must not lead Python or pip anywhere.
MISLEADING = {
    "PYTHONPATH": "/nonexistent",
    "PYTHONHOME": "",
    "PIP_INDEX_URL": "http://203.0.113.5/simple",
    "PIP_TARGET": "/nonexistent/target",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PYTHONPLATLIBDIR": "nowhere",
    "PYTHONHASHSEED": "none",
    "CDPATH": "/tmp",
}


def install(folder: Path, home: Path, *args: str) -> tuple[int, str]:
    """Run the installer for a user with this home, started from there."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), **MISLEADING}
    command = ["sh", os.path.relpath(folder / "install.sh", home), "--python", sys.executable, *args]
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=110, check=False, umask=0)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_it_installs_without_an_index_and_what_works_is_kept(whole: Whole, tmp_path: Path) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    assert check_archive(whole.made.path, whole.signer.public).key == whole.made.key
    code, told = install(whole.folder, home, "--key", str(whole.signer.public_file))
    assert code == 0, told
    prefix = home / ".local" / "share" / "turnout-env"
    command = prefix / "bin" / "turnout"
    assert told.splitlines()[-1].endswith(f"put {prefix / 'bin'} on your PATH; turnout doctor says what is missing")
    assert f"signed with {whole.made.key}, the key that was given" in told
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home)}

    def run(*args: str) -> str:
        return subprocess.run([command, *args], env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    assert not [path for path in prefix.rglob("*") if path.lstat().st_mode & 0o022 and not path.is_symlink()]
    assert run("--version") == "turnout 0.1.0\n"
    assert "installed: serena 2.1.0" in run("code", "status")
    # The installed one checks the bundle it came from, and packs itself to the wheel that is in there.
    assert "as it was made" in run("bundle", "verify", str(whole.made.path), "--key", str(whole.signer.public_file))
    assert not list(whole.folder.rglob("__pycache__"))
    _again_and_broken(whole, home, prefix)
    assert run("--version") == "turnout 0.1.0\n"


def _again_and_broken(whole: Whole, home: Path, prefix: Path) -> None:
    """The same bundle once more makes nothing new; one that fails on the way leaves everything as it was."""
    before = sorted(prefix.iterdir())
    was = (prefix / "bin" / "turnout").readlink()
    code, told = install(whole.folder, home, "--no-serena")
    assert (code, "already there: " in told, "Serena" in told) == (0, True, False)
    assert sorted(prefix.iterdir()) == before
    broken = home / "broken"
    _spoil(whole, broken)
    code, told = install(broken, home)
    assert (code, "Error: pip did not install it" in told) == (1, True), told
    assert f"Nothing of it was kept in {prefix}." in told
    assert sorted(prefix.iterdir()) == before
    assert (prefix / "bin" / "turnout").readlink() == was


def _spoil(whole: Whole, broken: Path) -> None:
    """A bundle that is rightly signed, whose requirements want another wheel than the one that is inside."""
    shutil.copytree(whole.folder, broken)
    text = (broken / "requirements.txt").read_text()
    place = text.index("--hash=sha256:") + len("--hash=sha256:")
    (broken / "requirements.txt").write_text(text[:place] + "0" * 64 + text[place + 64 :])
    sign(broken, whole.signer)


def test_a_wheel_with_another_hash_than_the_requirements_is_not_installed(whole: Whole, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    _spoil(whole, broken)
    code, told = install(broken, tmp_path, "--prefix", "here")
    assert (code, "Error: pip did not install it" in told) == (1, True), told
    assert not (tmp_path / "here").exists()


def test_what_is_not_ours_is_not_touched(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "turnout").write_text("another")
    code, told = install(whole.folder, tmp_path, "--prefix", str(tmp_path))
    assert (code, "is there, and is no link that this made" in told) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]
    (tmp_path / "file").write_text("")
    code, told = install(whole.folder, tmp_path, "--prefix", "file")
    assert (code, "cannot be made" in told) == (1, True)


@pytest.mark.heavy
def test_a_package_that_is_not_inside_is_named(whole: Whole, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole.folder, broken)
    next((broken / "wheels").glob("click-*")).unlink()
    lines = [line for line in (broken / "requirements.txt").read_text().splitlines(True) if "click" not in line]
    (broken / "requirements.txt").write_text("".join(lines))
    sign(broken, whole.signer)
    code, told = install(broken, tmp_path, "--prefix", "here")
    assert (code, "No matching distribution found for click" in told) == (1, True), told
    assert not (tmp_path / "here").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_installation_that_is_ended_leaves_nothing_that_looks_whole(
    number: signal.Signals, whole: Whole, tmp_path: Path
) -> None:
    prefix = tmp_path / "here"
    command = ["sh", str(whole.folder / "install.sh"), "--prefix", str(prefix), "--python", sys.executable]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stderr is not None
        while "making an environment" not in child.stderr.readline():
            pass
        while not list(prefix.glob("turnout-*/bin/python")):
            os.sched_yield()
        os.killpg(child.pid, number)
        child.communicate(timeout=60)
    assert child.returncode != 0
    assert not (prefix / "bin").exists()
    assert prefix.exists() == (number == signal.SIGKILL)
    code, told = install(whole.folder, tmp_path, "--prefix", "here", "--no-serena")
    assert (code, "making an environment" in told) == (0, True), told
