"""``turnout prove`` and ``turnout verify``: asked before, written, signed, and checked elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import as_terminal, configure, run
from tests.guard.conftest import HOW
from tests.isolated import is_isolated
from turnout.guard import canaries, canary_gateway
from turnout.guard.protection import Protection
from turnout.guard.signing import Signer

alone = pytest.mark.isolated  # what proves really dials


@pytest.fixture(autouse=True)
def _isolated() -> None:
    if not is_isolated():
        pytest.skip(HOW)


def reports(folder: Path) -> tuple[Path, Path]:
    (document,), (page,) = folder.glob("proof-*.json"), folder.glob("proof-*.md")
    return document, page


@alone
def test_it_asks_before_it_dials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("prove")
    assert result.exit_code == 2
    assert "--yes agrees" in result.stderr
    code, shown = as_terminal("prove", answer=b"n\n")
    assert code == 130
    assert "192.0.2.1:443" in shown
    assert not (tmp_path / "data" / "proofs").exists()
    assert os.environ["TURNOUT_DATA_DIR"] == str(tmp_path / "data")


@alone
def test_a_closed_machine_is_proven_signed_and_verified_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(custom_endpoints=[{"name": "box", "endpoint": "http://127.0.0.1:9", "key": "hunter2-secret"}])
    result = run("prove", "--yes", "--out", "out", "--target", "192.0.2.1:443", "--target", "2001:db8::1")
    assert result.exit_code == 0, result.output
    document, page = reports(Path("out"))
    for file in (document, page):
        assert run("verify", str(file)).exit_code == 0
        assert "hunter2" not in file.read_text()
    report = json.loads(document.read_text())["report"]
    assert report["ok"] is True
    stoppers = {"guard", "second line", "gateway", "this machine", "cut of children"}
    assert {canary["by"] for canary in report["canaries"]} == stoppers
    assert report["children"] == {"cut": "namespace", "found": Protection("namespace").told, "fix": ""}
    assert report["audit"]["records"] >= 2
    assert run("audit", "search", "--event", "security:prove").stdout.count("security:prove") == 2
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "elsewhere"))
    assert "the key beside it" in run("verify", str(document)).stdout
    document.write_text(document.read_text().replace('"verdict": "stopped"', '"verdict": "out"', 1))
    changed = run("verify", str(document), "--json")
    assert (changed.exit_code, json.loads(changed.stdout)["state"]) == (1, "changed")
    assert f"{document}: changed since it was signed" in run("verify", str(document)).stdout
    signer, other = json.loads(document.read_text())["key"], Signer(tmp_path / "other")
    assert other.sign(b"")
    for signed in (document, page):
        foreign = run("verify", str(signed), "--key", str(other.public_file))
        assert (foreign.exit_code, f"it says that its key is {signer}" in foreign.stdout) == (1, True)
    shutil.copy(page, "short.md")
    Path("short.md").write_text("".join(Path("short.md").read_text().splitlines(keepends=True)[:-1]))
    assert "has no signature" in run("verify", "short.md", "--key", "out/signing.pub").stdout
    keyless = run("verify", "short.md")
    assert (keyless.exit_code, "--key FILE: signing/signing.pub" in keyless.stderr) == (1, True)


@alone
def test_what_was_not_stopped_fails_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {"no route": (("unclear", ""), ("unclear", ""))}
    monkeypatch.setattr(canaries, "_JUDGED", canaries._JUDGED | silent)  # a network that says nothing
    result = run("prove", "--yes", "--json", "--target", "192.0.2.1")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["counts"]["out"] == 0
    assert report["counts"]["unclear"] == 4
    assert any("IPAddressDeny" in fix for fix in report["fixes"])


@alone
def test_with_a_lifted_allow_list_the_network_alone_is_left() -> None:
    configure(environment="internal", security={"allow_external": True})
    report = json.loads(run("prove", "--yes", "--json", "--target", "192.0.2.1").stdout)
    assert {c["by"] for c in report["canaries"] if c["door"] == "our HTTP client"} == {"this machine"}
    assert report["fixes"] == ["set security.allow_external: false"]


@alone
def test_what_cannot_be_used_is_one_clear_line() -> None:
    assert run("prove", "--yes", "--target", "10.1.2.3").exit_code == 2
    Path("file").write_text("")
    result = run("prove", "--yes", "--target", "192.0.2.1", "--out", "file/x")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert run("verify", "none.json").exit_code == 1
    assert run("verify", "file", "--key", "none.pub").exit_code == 1


def test_the_whole_takes_less_than_half_a_minute_at_worst() -> None:
    """By its limits, not by a clock: three batches, a start, and the answers."""
    answers = (len(canary_gateway._PROMPTS) + 1) * canary_gateway.ANSWER_SECONDS
    assert 3 * 2 * canaries.SECONDS < 15
    assert canary_gateway.START_SECONDS + answers < 40  # only a gateway that hangs takes all of it
