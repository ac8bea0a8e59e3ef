"""``--json``: whatever goes wrong, stdout holds one JSON document with the error; the sentence is on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import configure, run

DEAD, WRONG, OUTSIDE = "dead", "wrong", "outside"


def arrange(state: str) -> None:
    if state == DEAD:
        configure("http://127.0.0.1:9")
    if state == WRONG:
        Path("turnout.yaml").write_text("routing:\n  policy: bset\n")
    if state == OUTSIDE:
        configure("http://8.8.8.8:11434")


@pytest.mark.parametrize(
    ("state", "args", "exit_code", "code"),
    [
        (DEAD, ("ask", "hi"), 3, "no_service"),
        (DEAD, ("ask", "hi", "--line", "3"), 2, "invalid_request"),
        (DEAD, ("ask", "hi", "--line", "0"), 2, "usage"),
        (DEAD, ("ask", "hi", "--nope"), 2, "usage"),
        (DEAD, ("ask", ""), 2, "invalid_request"),
        (WRONG, ("ask", "hi"), 2, "config"),
        (OUTSIDE, ("ask", "hi"), 4, "refused_by_guard"),
        (DEAD, ("ask", "hi", "--embedded"), 1, "embedded"),
        (DEAD, ("explain", "hi"), 3, "no_service"),
        (DEAD, ("explain", ""), 2, "invalid_request"),
        (WRONG, ("explain", "hi"), 2, "config"),
        (DEAD, ("classify", ""), 2, "invalid_request"),
        (DEAD, ("eval", "classify", "gone.jsonl"), 2, "invalid_request"),
        (DEAD, ("discover",), 3, "no_service"),
        (WRONG, ("discover",), 2, "config"),
        (DEAD, ("models",), 3, "no_service"),
        (OUTSIDE, ("models",), 4, "refused_by_guard"),
        (WRONG, ("config", "check"), 2, "config"),
        (OUTSIDE, ("config", "check"), 4, "refused_by_guard"),
        (WRONG, ("config", "show"), 2, "config"),
        (DEAD, ("config", "init"), 2, "invalid_request"),
        (DEAD, ("embedded", "install", "--file", "gone.whl"), 1, "embedded"),
        (DEAD, ("embedded", "status"), 1, "embedded"),
        (DEAD, ("session", "show", "s"), 2, "invalid_request"),
        (DEAD, ("session", "delete", "a/b"), 2, "invalid_request"),
        (WRONG, ("session", "list"), 2, "config"),
        (WRONG, ("env", "codex"), 2, "config"),
        (OUTSIDE, ("env", "codex"), 4, "refused_by_guard"),
        (DEAD, ("env", "gemini"), 2, "invalid_request"),
        (DEAD, ("session", "prune", "--nope"), 2, "usage"),
        (DEAD, ("doctor",), 1, "check_failed"),
        (DEAD, ("dcotor",), 2, "usage"),
    ],
)
def test_a_failure_is_one_json_document(state: str, args: tuple[str, ...], exit_code: int, code: str) -> None:
    arrange(state)
    result = run(*args, "--json", stdin=b"")
    assert result.exit_code == exit_code
    error = json.loads(result.stdout)["error"]
    assert error["code"] == code
    assert error["message"]
    if code == "config":
        assert error["file"].endswith("turnout.yaml")
        assert (error["line"], error["key"]) == (2, "routing.policy")
    if args[0] not in ("doctor", "embedded"):
        assert error["message"].splitlines()[0] in result.stderr


def test_a_failure_without_json_prints_none() -> None:
    for args in (("explain", "hi", "--line", "3"), ("config", "init", "--nope"), ("classify", "", "--", "--json")):
        assert run(*args, stdin=b"").stdout == ""


def test_what_was_found_all_the_same_is_beside_the_error() -> None:
    configure("http://127.0.0.1:9")
    document = json.loads(run("discover", "--json").stdout)
    assert document["services"][0]["state"] == "offline"
    assert json.loads(run("models", "--json").stdout)["models"] == []
    assert json.loads(run("ask", "hi", "--json", stdin=b"").stdout)["attempts"] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_json_is_one_message() -> None:
    configure("http://127.0.0.1:9")
    command = [sys.executable, "-c", "from turnout.cli import main; main()", "config", "check", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b"Error: No space left on device: standard output\n"
    assert done.returncode == 1
