"""``turnout bundle``: what people and programs read, keys, and exit codes. What it makes: tests/bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.bundle.wheelhouse import make_wheelhouse
from tests.cli.conftest import run
from turnout.guard.signing import Signer


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheelhouse of two small packages, with their lock in place of Turnout's."""
    lock = make_wheelhouse(tmp_path / "house", "click", "pip")
    monkeypatch.setattr("turnout.bundle.make.lock_text", lambda: lock)
    return tmp_path / "house"


def test_a_bundle_is_made_and_checked(house: Path, tmp_path: Path) -> None:
    made = run("bundle", "make", "--wheels", str(house))
    assert made.exit_code == 0, made.output
    (path,) = Path().glob("turnout-bundle-0.1.0-linux_*-cp3*.tar")
    assert made.stdout.startswith(f"made: {path}, ")
    assert f"SHA-256: {hashlib.sha256(path.read_bytes()).hexdigest()}\n" in made.stdout
    assert "gathering packages from " in made.stderr
    assert "packing Turnout itself\n" in made.stderr
    own = tmp_path / "data" / "signing" / "signing.pub"
    assert str(own) in made.stdout
    checked = run("bundle", "verify", str(path))
    assert (checked.exit_code, "this installation's key" in checked.stdout) == (0, True)
    given = run("bundle", "verify", str(path), "--key", str(own), "--json")
    fields = json.loads(given.stdout)
    assert fields["ok"] is True
    assert fields["checked_with"] == "the key that was given"
    assert fields["files"] == 12


def test_json_says_the_same(house: Path) -> None:
    made = run(
        "bundle", "make", "--wheels", str(house), "-o", "b.tar", "--json", "--python", "3.13", "--arch", "aarch64"
    )
    fields = json.loads(made.stdout)
    assert fields["path"] == "b.tar"
    assert fields["sha256"] == hashlib.sha256(Path("b.tar").read_bytes()).hexdigest()
    assert (fields["packages"], fields["size"]) == (3, Path("b.tar").stat().st_size)


def test_a_bundle_from_elsewhere_needs_its_key(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("bundle", "make", "--wheels", str(house), "-o", "b.tar")
    theirs = str(tmp_path / "data" / "signing" / "signing.pub")
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "elsewhere"))
    without = run("bundle", "verify", "b.tar")
    assert (without.exit_code, "the key inside: is it the one that you were told?" in without.stdout) == (0, True)
    assert Signer(tmp_path / "elsewhere" / "signing").public  # from now on there is a key of its own
    own = run("bundle", "verify", "b.tar")
    assert (own.exit_code, own.stdout) == (1, "")
    assert "Error: b.tar is refused: it was signed with another key" in own.stderr
    assert "checked with this installation's key, and --key FILE is that of whoever made it" in own.stderr
    assert run("bundle", "verify", "b.tar", "--key", theirs).exit_code == 0


def test_one_that_was_changed_is_refused(house: Path) -> None:
    run("bundle", "make", "--wheels", str(house), "-o", "b.tar")
    content = bytearray(Path("b.tar").read_bytes())
    content[len(content) // 2] ^= 1
    Path("b.tar").write_bytes(content)
    result = run("bundle", "verify", "b.tar", "--json")
    fields = json.loads(result.stdout)
    assert (result.exit_code, fields["ok"], fields["error"]["code"]) == (1, False, "bundle")
    assert fields["error"]["message"].startswith("b.tar is refused: changed: wheels/")
    assert run("bundle", "verify", "none.tar").exit_code == 1
    assert run("bundle", "verify", "b.tar", "--key", "none.pub").exit_code == 1


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("bundle", "make", "--wheels", str(tmp_path / "empty"), "-o", "b.tar", "--json")
    fields = json.loads(result.stdout)
    assert (result.exit_code, fields["error"]["code"]) == (1, "bundle")
    assert fields["error"]["message"].startswith("the packages are not all there: no wheel of ")
    assert list(Path().iterdir()) == []
    assert run("bundle", "make", "--python", "2.7").exit_code == 1
