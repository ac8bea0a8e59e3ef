"""``turnout audit``: reading, searching, counting, checking and handing over."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from tests.cli.conftest import configure, run
from turnout.cli.audit import _show


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A log with two queries that found no server; its path."""
    configure("http://127.0.0.1:9")
    for question in ("what is a monad", "fix the parser"):
        assert run("ask", question, stdin=b"").exit_code != 0
    return tmp_path / "data" / "audit.log"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_tail_shows_the_newest(asked: Path) -> None:
    shown = run("audit", "tail", "-n", "1")
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) == 2
    assert "query end\tlocal" in shown.stdout
    assert "no_service" in shown.stdout
    raw = run("audit", "tail", "--json")
    assert raw.stdout == asked.read_text()


def test_a_time_that_is_shown_is_one_to_search_by(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        at = run("audit", "tail", "-n", "1").stdout.splitlines()[1].split("\t")[1]
        assert len(lines(run("audit", "search", "--since", at, "--until", at, "--json").stdout)) > 0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("shown_as", ["table", "json"])
def test_what_somebody_else_wrote_into_the_log_reaches_no_terminal(
    asked: Path, monkeypatch: pytest.MonkeyPatch, shown_as: str
) -> None:
    """Neither at once nor while it is followed; and what is followed is shown once, also when a file was renamed."""
    evil = {"timestamp": "", "event_type": "\x1b]0;evil\x07\x9b2J\u202e", "sequence": 9, "previous_hash": ""}
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 1:
            with asked.open("ab") as log:
                log.write(json.dumps(evil, ensure_ascii=shown_as == "table").encode() + b"\n")
                log.write(b"\x1b[2Jno record\n")
        elif len(naps) == 2:
            asked.rename(asked.with_name("audit.log.000000000009"))
        elif len(naps) == 3:
            asked.touch()
        elif len(naps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("turnout.cli.audit.time.sleep", nap)
    more = ("--json",) if shown_as == "json" else ()
    followed = run("audit", "tail", "-n", "0", "-f", *more)
    whole = run("audit", "tail", *more)
    for found in (followed.stdout, whole.stdout):
        assert found.isascii()
        assert not set(found) & {"\x1b", "\x07"}
        assert found.count("evil") == 1


def test_search_finds_by_what_is_given(asked: Path) -> None:
    found = lines(run("audit", "search", "--query", "fix the parser", "--json").stdout)
    assert [record["phase"] for record in found] == ["start", "end"]
    assert lines(run("audit", "search", "--query", "something else", "--json").stdout) == []
    failed = lines(run("audit", "search", "--failed", "--json").stdout)
    assert [record["error"] for record in failed] == ["no_service", "no_service"]
    whose = run("audit", "search", "--request", str(failed[0]["request_id"]), "--since", "1h", "--json")
    assert len(lines(whose.stdout)) == 2
    assert lines(run("audit", "search", "--until", "2020-01-01", "--json").stdout) == []
    assert lines(run("audit", "search", "--principal", "nobody", "--json").stdout) == []
    nothing = run("audit", "search", "--principal", "nobody")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "there is no such record\n")
    wrong = run("audit", "search", "--since", "yesterday")
    assert wrong.exit_code == 2
    assert "'yesterday' is no time" in wrong.stderr


def test_stats_count(asked: Path) -> None:
    found = json.loads(run("audit", "stats", "--json").stdout)
    assert found["event"]["query start"] == found["event"]["query end"] == 2
    assert found["error"] == {"no_service": 2}
    assert "error\tno_service\t2" in run("audit", "stats").stdout


def test_verify_names_what_was_changed(asked: Path) -> None:
    whole = run("audit", "verify")
    assert (whole.exit_code, whole.stdout.splitlines()[1]) == (0, "signed to its end")
    asked.write_bytes(asked.read_bytes().replace(b"no_service", b"xx_service", 1))
    changed = run("audit", "verify")
    assert changed.exit_code == 1
    assert f"{asked}, line 2: it was changed" in changed.stdout
    asked.write_bytes(b"".join(asked.read_bytes().splitlines(keepends=True)[:1]))
    cut = run("audit", "verify", "--json")
    assert cut.exit_code == 1
    report = json.loads(cut.stdout)
    assert (report["ok"], report["bad_line"]) == (False, 2)
    assert "were cut off" in report["reason"]


def test_what_is_exported_verifies_anywhere(asked: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    assert run("audit", "export", str(away)).exit_code == 0
    assert sorted(file.name for file in away.iterdir()) == ["audit.head", "audit.log", "signing.pub"]
    (tmp_path / "data").rename(tmp_path / "gone")
    whole = run("audit", "verify", str(away / "audit.log"))
    assert (whole.exit_code, "signed to its end" in whole.stdout) == (0, True)
    assert "the key beside it, not one that you were given" in whole.stdout
    given = run("audit", "verify", str(away / "audit.log"), "--key", str(away / "signing.pub"), "--json")
    assert json.loads(given.stdout)["fingerprint"] in whole.stdout
    assert {stat.S_IMODE(file.stat().st_mode) for file in away.iterdir()} == {0o600}
    (away / "audit.head").unlink()
    headless = run("audit", "verify", str(away / "audit.log"))
    assert "not checked: its end: no head" in headless.stdout
    assert "no signature covers any of it" in headless.stdout, (
        "so few records have no checkpoint: anybody can write them"
    )
    assert headless.exit_code == 1
    again = run("audit", "export", str(away))
    assert again.exit_code != 0


@pytest.mark.parametrize("what", ["*.head", "signing.pub"])
def test_a_log_whose_own_key_or_head_is_gone_is_not_whole(asked: Path, what: str, tmp_path: Path) -> None:
    """Whoever changes a log takes away what would show it."""
    next((tmp_path / "data" / "signing").glob(what)).unlink()
    found = run("audit", "verify")
    assert (found.exit_code, "not checked: " in found.stdout) == (1, True)


def test_a_key_of_somebody_else_does_not_verify(asked: Path, tmp_path: Path) -> None:
    from turnout.guard.signing import Signer

    other = Signer(tmp_path / "other")
    assert other.sign(b"")
    found = run("audit", "verify", str(asked), "--key", str(other.public_file), "--head", str(_head(tmp_path)))
    assert found.exit_code == 1
    assert "the head was changed, or another key signed it" in found.stdout
    none = run("audit", "verify", str(asked), "--key", str(asked))
    assert none.exit_code != 0
    assert "it is no public key in PEM" in none.stderr


def _head(tmp_path: Path) -> Path:
    return next((tmp_path / "data" / "signing").glob("*.head"))


@pytest.mark.parametrize("command", ["tail", "search", "stats", "verify", "export"])
def test_without_a_log_it_is_one_clear_line(tmp_path: Path, command: str) -> None:
    configure("http://127.0.0.1:9")
    extra = [str(tmp_path / "x")] if command == "export" else []
    found = run("audit", command, *extra)
    assert found.exit_code != 0
    assert "Traceback" not in found.stderr
    assert len(found.stderr.splitlines()) <= 2


def test_lines_that_come_are_cells_like_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    line = b'{"timestamp":"x","event_type":"query","sequence":7,"principal":"local","model":"a\\u001b[31mb"}'
    _show([line], as_json=False, heading=False)
    cells = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (cells[0], cells[2], len(cells)) == ("7", "query", 7)
    assert "\x1b" not in cells[4]
