"""``turnout key``: what it prints, keeps and writes to the audit log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import run
from turnout.guard.keys import DEFAULT_SECONDS


def audited(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "data" / "audit.log").read_text("utf-8").splitlines()
    return [f"{r['event_type']}: {r['service']}" for r in map(json.loads, lines)]


def test_a_key_is_printed_once_and_every_change_is_in_the_audit_log(tmp_path: Path) -> None:
    made = run(
        "key", "add", "ci", "--expires", "30d", "--models", "qwen*,auto", "--rate", "60/min", "--concurrent", "2"
    )
    token = made.stdout.strip()
    assert token.startswith("tk-")
    assert "shown this once; it expires: 20" in made.stderr
    listed = json.loads(run("key", "list", "--json").stdout)["keys"]
    assert [(k["name"], k["state"], k["models"], k["rate"], k["concurrent"]) for k in listed] == [
        ("ci", "active", ["qwen*", "auto"], 60, 2)
    ]
    assert listed[0]["expires"] - listed[0]["created"] == 30 * 86_400
    fresh = json.loads(run("key", "rotate", "ci", "--json").stdout)
    assert fresh["key"] != token
    assert fresh["expires"] - fresh["created"] == 30 * 86_400
    assert "shown this once; it expires: 20" in run("key", "rotate", "ci").stderr
    revoked = run("key", "revoke", "ci")
    assert "no key is left, so the gateway refuses everybody" in revoked.stderr
    assert "revoked" in run("key", "list").stdout
    assert audited(tmp_path) == [
        "config: key added: ci",
        "config: key rotated: ci",
        "config: key rotated: ci",
        "config: key revoked: ci",
    ]
    everything = "".join(p.read_text("utf-8", "replace") for p in (tmp_path / "data").iterdir() if p.is_file())
    assert token not in everything
    assert fresh["key"] not in everything


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["add", "a/b"], "is not the name of a key"),
        (["add", "ci", "--expires", "5"], "is not a time"),
        (["add", "ci", "--expires", "0d"], "is not a time"),
        (["add", "ci", "--rate", "0"], "is not a rate"),
        (["add", "ci", "--rate", "5/s"], "is not a rate"),
        (["add", "ci", "--rate", ""], "is not a rate"),
        (["add", "ci", "--models", ""], "--models '' names nothing"),
        (["add", "ci", "--models", ","], "--models ',' names nothing"),
        (["add", "ci", "--models", "a", "--models", ""], "--models '' names nothing"),
        (["add", "ci", "--models", "["], "its [ has no ]"),
        (["add", "ci", "--models", "a[]"], "its [ has no ]"),
        (["add", "ci", "--routes", ""], "--routes '' names nothing"),
        (["add", "ci", "--routes", " "], "--routes ' ' names nothing"),
        (["add", "ci", "--routes", "/v1/*,v1"], "--routes 'v1' fits no path"),
        (["add", "ci", "--routes", "/v1/[a"], "its [ has no ]"),
        (["revoke", "ci"], "there is no key 'ci'"),
        (["rotate", "ci"], "there is no key 'ci'"),
    ],
)
def test_what_makes_no_sense_changes_nothing(args: list[str], says: str, tmp_path: Path) -> None:
    result = run("key", *args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "data" / "keys.json").exists()


def test_a_key_lasts_as_long_by_default_as_one_that_is_rotated() -> None:
    made = json.loads(run("key", "add", "ci", "--json").stdout)
    assert made["expires"] - made["created"] == DEFAULT_SECONDS


def test_patterns_are_kept_as_they_are_given() -> None:
    run("key", "add", "ci", "--models", "a[]x]*,", "--models", "[!b]", "--routes", "*/models,/v1/[a-c]*")
    (kept,) = json.loads(run("key", "list", "--json").stdout)["keys"]
    assert (kept["models"], kept["routes"]) == (["a[]x]*", "[!b]"], ["*/models", "/v1/[a-c]*"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_change_that_cannot_be_logged_is_not_made(tmp_path: Path) -> None:
    Path("turnout.yaml").write_text("security: {audit_log_path: /dev/full}", "utf-8")
    result = run("key", "add", "ci")
    assert result.exit_code == 1
    assert "the audit log /dev/full cannot be written" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "data" / "keys.json").exists()


def test_without_a_key_the_list_says_what_that_means() -> None:
    assert "serves this machine alone" in run("key", "list").stderr
    assert json.loads(run("key", "list", "--json").stdout) == {"keys": []}
