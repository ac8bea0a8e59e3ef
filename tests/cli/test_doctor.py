"""``turnout doctor``: each check, whether it holds, and the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import Fakes, configure, run, run_beside
from turnout.guard import protection
from turnout.guard.chain import verify
from turnout.guard.protection import Protection


def states(result: Result) -> dict[str, str]:
    return {line.split("\t")[0]: line.split("\t")[1] for line in result.stdout.splitlines()[1:]}


async def test_all_is_well_with_a_server_and_without_the_bundled_model(fakes: Fakes) -> None:
    configure(await fakes.start())
    result = await run_beside("doctor")
    assert result.exit_code == 0, result.stdout
    assert states(result) == {
        "python": "ok",
        "configuration": "ok",
        "data directory": "ok",
        "keys": "ok",
        "audit log": "ok",
        "allow-list": "ok",
        "services": "ok",
        "children": "ok",
        "bundled model": "warn",
    }
    report = json.loads((await run_beside("doctor", "--json")).stdout)
    assert report["ok"] is True
    assert report["checks"][-1]["fix"] == "run `turnout embedded install`"


def test_no_server_fails_and_says_what_to_start() -> None:
    configure("http://127.0.0.1:9")
    result = run("doctor")
    assert result.exit_code == 1
    assert "services\tfail\tnone can answer\tsee that a server runs at http://127.0.0.1:9" in result.stdout


def test_keys_that_cannot_be_read_fail_with_the_fix_of_key_list(tmp_path: Path) -> None:
    run("key", "add", "ci")
    path = tmp_path / "data" / "keys.json"
    assert f"keys\tok\t{path}, 1 active" in run("doctor").stdout
    path.write_bytes(b"garbage")
    result = run("doctor")
    assert (result.exit_code, states(result)["keys"]) == (1, "fail")
    assert f"the keys in {path} cannot be read" in result.stdout
    hint = "bring it back from a backup, or delete it and make new keys"
    assert hint in result.stdout
    assert hint in run("key", "list").stderr


def test_keys_that_let_nobody_in_are_a_warning() -> None:
    run("key", "add", "ci")
    run("key", "revoke", "ci")
    result = run("doctor")
    assert states(result)["keys"] == "warn"
    assert "the gateway refuses everybody" in result.stdout


def test_the_bundled_model_makes_a_missing_server_a_warning(with_weights: None) -> None:
    configure("http://127.0.0.1:9")
    result = run("doctor")
    assert result.exit_code == 0
    assert (states(result)["services"], states(result)["bundled model"]) == ("warn", "ok")


def test_damaged_weights_fail(tmp_path: Path, with_weights: None) -> None:
    (file,) = (tmp_path / "data" / "embedded").iterdir()
    file.unlink()
    file.write_bytes(b"GGUF")
    assert states(run("doctor"))["bundled model"] == "fail"


def test_a_wrong_configuration_fails_and_the_rest_is_still_checked() -> None:
    Path("turnout.yaml").write_text("nonsense: 1\n")
    result = run("doctor")
    assert result.exit_code == 1
    assert states(result)["configuration"] == "fail"
    assert states(result)["data directory"] == "ok"


def test_what_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "file" / "data"))
    result = run("doctor")
    assert result.exit_code == 1
    assert (states(result)["data directory"], states(result)["audit log"]) == ("fail", "fail")
    assert "TURNOUT_DATA_DIR" in result.stdout


def test_an_endpoint_outside_the_allow_list_fails_with_the_line_to_add() -> None:
    configure("http://8.8.8.8:1")
    result = run("doctor")
    assert result.exit_code == 1
    assert states(result)["allow-list"] == "fail"
    assert "security.allowed" in result.stdout


def test_a_lifted_allow_list_and_no_audit_are_warnings() -> None:
    configure(environment="internal", security={"allow_external": True, "audit_enabled": False})
    assert (states(run("doctor"))["allow-list"], states(run("doctor"))["audit log"]) == ("warn", "warn")


def test_a_changed_line_of_the_audit_log_fails_with_its_number(tmp_path: Path) -> None:
    configure("http://127.0.0.1:9")
    for _ in range(2):
        run("ask", "hello", stdin=b"")
    log = tmp_path / "data" / "audit.log"
    whole = run("doctor")
    assert states(whole)["audit log"] == "ok"
    assert f"{log}, 5 records, unbroken" in whole.stdout
    log.write_bytes(log.read_bytes().replace(b"no_service", b"xx_service", 1))
    changed = run("doctor")
    assert changed.exit_code == 1
    assert f"audit log\tfail\t{log}: audit.log, line 2: it was changed" in changed.stdout


def test_the_record_that_doctor_writes_keeps_the_chain(tmp_path: Path) -> None:
    for _ in range(2):
        run("doctor")
    log = tmp_path / "data" / "audit.log"
    report = verify(log)
    assert (report.ok, report.count) == (True, 2)
    assert {json.loads(line)["event_type"] for line in log.read_text().splitlines()} == {"access"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_audit_log_that_takes_no_record_fails() -> None:
    configure("http://127.0.0.1:9", security={"audit_log_path": "/dev/full"})
    result = run("doctor")
    assert result.exit_code == 1
    assert "audit log\tfail\tthe audit log /dev/full cannot be written: No space left on device" in result.stdout
    configure("http://127.0.0.1:9", security={"audit_log_path": "/dev/null"})
    assert states(run("doctor"))["audit log"] == "ok"


def test_children_that_have_the_network_are_a_warning_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "_known", Protection("none", "it is not allowed"))
    result = run("doctor")
    assert states(result)["children"] == "warn"
    assert "they have the network that Turnout has: it is not allowed\tfor a namespace: " in result.stdout
