"""``turnout token``: what it prints, keeps and writes to the audit log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import run
from tests.cli.test_key import audited


def listed() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("token", "list", "--json").stdout)["tokens"]
    return found


def test_a_token_is_minted_listed_and_revoked_and_all_of_it_is_in_the_audit_log(tmp_path: Path) -> None:
    run("key", "add", "ci", "--models", "qwen*", "--rate", "9")
    made = json.loads(
        run("token", "mint", "--key", "ci", "--ttl", "90s", "--models", "qwen3*", "--rate", "5/min", "--json").stdout
    )
    assert made["token"].startswith("tt-")
    assert (made["key"], made["role"], made["models"], made["rate"]) == ("ci", "user", ["qwen3*"], 5)
    assert made["expires"] - made["created"] == 90
    said = run("token", "mint", "--role", "auditor", "--name", "review")
    assert said.stdout.startswith("tt-")
    assert "of local/review, shown this once; it expires: 20" in said.stderr
    assert [(row["principal"], row["state"], row["role"]) for row in listed()] == [
        (f"ci/{made['id']}", "active", "user"),
        ("local/review", "active", "auditor"),
    ]
    shown = [line.split("\t") for line in run("token", "list").stdout.splitlines()[1:]]
    assert [(cells[2], cells[4][-4:], cells[6]) for cells in shown] == [
        ("active", " UTC", "as its key"),
        ("active", " UTC", "all"),
    ]
    run("token", "revoke", made["id"])
    assert [row["state"] for row in listed()] == ["revoked", "active"]
    run("token", "revoke", "--all")
    assert listed() == []
    assert "No token is in force" in run("token", "list").stderr
    notes = audited(tmp_path)
    assert notes[1] == f"config: token minted: {made['id']} for ci/{made['id']}, user, 90 s; models qwen3*"
    assert notes[2].endswith("for local/review, auditor, 600 s")
    assert notes[3:] == [f"config: token revoked: {made['id']}", "config: token revoked: all"]
    everything = "".join(p.read_text("utf-8", "replace") for p in (tmp_path / "data").iterdir() if p.is_file())
    assert made["token"] not in everything
    assert said.stdout.strip() not in everything


def test_the_first_token_shuts_the_gateway_and_says_so() -> None:
    assert "serves nobody without a key or a token" in run("token", "mint").stderr
    assert "serves nobody" not in run("token", "mint").stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["mint", "--ttl", "25h"], 2, "lasts 1 s to 24 h"),
        (["mint", "--ttl", "never"], 2, "lasts 1 s to 24 h"),
        (["mint", "--ttl", "x"], 2, "is not a time"),
        (["mint", "--name", "a b"], 2, "is not the name of a token"),
        (["mint", "--models", ""], 2, "--models '' names nothing"),
        (["mint", "--key", "nobody"], 2, "there is no key 'nobody'"),
        (["mint", "--key", "ci", "--role", "admin"], 4, "the role admin is more than the key's"),
        (["mint", "--key", "ci", "--models", "*"], 4, "not for '*'"),
        (["revoke"], 2, "or give --all"),
        (["revoke", "x", "--all"], 2, "or give --all"),
        (["revoke", "0123"], 2, "no token '0123' is in force"),
    ],
)
def test_what_makes_no_sense_changes_nothing(args: list[str], code: int, says: str, tmp_path: Path) -> None:
    run("key", "add", "ci", "--models", "qwen*")
    result = run("token", *args)
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr
    assert ("security:not_permitted: token mint" in audited(tmp_path)) is (code == 4)
    assert not (tmp_path / "data" / "tokens.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_token_that_cannot_be_logged_is_not_minted(tmp_path: Path) -> None:
    Path("turnout.yaml").write_text("security: {audit_log_path: /dev/full}", "utf-8")
    result = run("token", "mint")
    assert (result.exit_code, result.stdout) == (1, "")
    assert not (tmp_path / "data" / "tokens.json").exists()
    assert not (tmp_path / "data" / "keys.json").exists()
