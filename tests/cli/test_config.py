"""``turnout config``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import configure, run


def test_check_says_which_file_is_right() -> None:
    assert run("config", "check").stdout == "built-in defaults, no file found: ok\n"
    configure("http://127.0.0.1:9")
    assert run("config", "check").stdout.endswith("turnout.yaml: ok\n")
    assert json.loads(run("config", "check", "--json").stdout)["ok"] is True


def test_check_refuses_a_wrong_file() -> None:
    Path("turnout.yaml").write_text("routing:\n  policy: bset\n")
    result = run("config", "check")
    assert result.exit_code == 2
    assert "turnout.yaml:2" in result.stderr
    assert "routing.policy" in result.stderr
    assert "best" in result.stderr


def test_check_refuses_a_models_file_without_which_other_commands_go_on() -> None:
    configure(routing={"models_file": "nope.toml"})
    checked = run("config", "check")
    assert checked.exit_code == 2
    assert checked.stderr.count("nope.toml") == 1
    assert "the models file cannot be read: No such file or directory" in checked.stderr
    assert "Hint: routing.models_file names a TOML file" in checked.stderr
    fits = run("models", "fit")
    assert fits.exit_code == 0
    assert "Warning: left out: " in fits.stderr
    assert "the models file cannot be read: No such file or directory" in fits.stderr
    configure(serena={"workspace": "/nope"})
    checked = run("config", "check")
    assert checked.exit_code == 2
    assert "serena.workspace /nope is not a directory" in checked.stderr
    assert run("ask", "Hello").stderr == checked.stderr


def test_check_warns_of_a_gateway_that_would_not_be_served() -> None:
    configure(gateway={"host": "0.0.0.0"})
    checked = run("config", "check")
    assert checked.exit_code == 0
    (warning,) = checked.stderr.splitlines()
    assert warning.startswith("Warning: gateway.host is 0.0.0.0, and `turnout serve` refuses it")
    assert json.loads(run("config", "check", "--json").stdout)["warnings"] == [warning.removeprefix("Warning: ")]
    run("key", "add", "me")
    assert run("config", "check").stderr == ""


def test_show_fills_in_the_defaults_and_hides_keys() -> None:
    configure(custom_endpoints=[{"name": "a", "endpoint": "http://127.0.0.1:9", "key": "s3cret"}])
    shown = run("config", "show")
    assert shown.stdout.splitlines()[0].endswith("turnout.yaml")
    assert "null, {} and [] mean what docs/configuration.md says" in shown.stdout.splitlines()[1]
    assert yaml.safe_load(shown.stdout)["gateway"]["port"] == 4747
    as_json = run("config", "show", "--json")
    assert json.loads(as_json.stdout)["config"]["custom_endpoints"][0]["name"] == "a"
    assert "s3cret" not in shown.output + as_json.output


def test_show_knows_the_variable_that_keeps_discovery_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, shown in (("1", True), ("0", False)):
        monkeypatch.setenv("TURNOUT_LOOPBACK_ONLY", value)
        assert yaml.safe_load(run("config", "show").stdout)["discovery"]["loopback_only"] is shown
        assert json.loads(run("config", "show", "--json").stdout)["config"]["discovery"]["loopback_only"] is shown


def test_init_writes_an_example_that_is_right_and_replaces_only_when_told() -> None:
    assert run("config", "init").exit_code == 0
    assert run("config", "check").exit_code == 0
    file = Path("turnout.yaml")
    file.write_text("mine: 1")
    refused = run("config", "init")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines() == ["Error: turnout.yaml is there already", "Hint: --force replaces it"]
    assert file.read_text() == "mine: 1"
    assert json.loads(run("config", "init", "--force", "--json").stdout) == {"file": "turnout.yaml"}
    assert run("config", "check").exit_code == 0


def test_init_where_nothing_can_be_written_is_one_message() -> None:
    Path("turnout.yaml").mkdir()
    result = run("config", "init", "--force")
    assert result.exit_code == 1
    assert "turnout.yaml cannot be written: Is a directory" in result.stderr
    assert [path.name for path in Path().iterdir()] == ["turnout.yaml"]


def test_a_warning_is_told_beside_the_result() -> None:
    key = {"name": "a", "endpoint": "http://127.0.0.1:9", "key": "${TURNOUT_TEST_UNSET}"}
    configure(environment="internal", security={"allow_external": True}, custom_endpoints=[key])
    result = run("config", "check")
    assert result.exit_code == 0
    unset, lifted = result.stderr.splitlines()
    assert unset.startswith("Warning: custom_endpoints.0.key: ")
    assert lifted == "Warning: security.allow_external is true: any address may be dialled"
