"""The decision log as a file: several writers, a bounded size, and whatever may be wrong with it."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from turnout.fleet import decisions
from turnout.fleet.decisions import Decision, DecisionLog, Option, Outcome, decode, files_of, read

ONE = Decision(
    at=1_780_000_000.0,
    id="a" * 32,
    who="local",
    policy="balanced",
    category="coding",
    shares={"coding": 0.9, "analysis": 0.1},
    tokens=500,
    needs=("tools",),
    options=(Option("m", "s0", "m-7b", 80.0, priced=True, prefill=0.5, decode=2.0), Option("n", "s1")),
    chosen=0,
    outcome=Outcome(first=0.6, total=2.4, tokens_in=480, tokens_out=100),
)


def numbered(number: int) -> Decision:
    return msgspec.structs.replace(ONE, id=f"{number:032x}")


def test_a_decision_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "data" / "decisions.jsonl")
    log.add(ONE)
    log.save()
    (path,) = files_of(tmp_path / "data" / "decisions.jsonl")
    assert list(read([path])) == [ONE]
    assert path.stat().st_mode & 0o777 == 0o600
    log.save()
    assert len(path.read_bytes().splitlines()) == 1, "nothing new is nothing to write"


def test_many_writers_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    start = threading.Barrier(4)

    def write(first: int) -> None:
        log = DecisionLog(path)
        start.wait()
        for number in range(first, first + 200):
            log.add(numbered(number))
            if number % 7 == 0:
                log.save()
        log.save()

    threads = [threading.Thread(target=write, args=(n * 200,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [d.id for d in read(files_of(path)) if d is not None]
    assert sorted(found) == [f"{n:032x}" for n in range(800)]


def test_full_files_are_moved_aside_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "FILE_BYTES", 1000)
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    for number in range(60):
        log.add(numbered(number))
        log.save()
    files = files_of(path)
    assert [f.name for f in files] == ["decisions.jsonl", *(f"decisions.jsonl.{n}" for n in range(1, 5))]
    assert all(f.stat().st_size <= 1000 for f in files)
    kept = [int(d.id, 16) for d in read(reversed(files)) if d is not None]
    assert kept == list(range(60 - len(kept), 60)), "the newest, in their order"
    assert log.find(f"{kept[0]:032x}") == numbered(kept[0]), "found in an old file too"
    assert log.find("0" * 32) is None


def test_what_a_killed_writer_left_costs_its_own_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    whole = msgspec.json.encode(ONE)
    path.write_bytes(whole + b"\n" + whole[:100])
    log = DecisionLog(path)
    log.add(numbered(1))
    log.save()
    assert list(read([path])) == [ONE, None, numbered(1)]


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "dir", "device"]
)
def test_what_is_no_file_is_told_once_and_holds_nobody_up(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "decisions.jsonl")
    log = DecisionLog(tmp_path / "decisions.jsonl")
    for _ in range(3):
        log.add(ONE)
        log.save()
    assert len(caplog.records) == 1
    assert "routing goes on without them" in caplog.text


def test_of_a_disk_that_is_full_nothing_half_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    log.add(ONE)
    log.save()
    before, left, really = path.read_bytes(), [50], os.write

    def full(file: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room, left[0] = left[0], 0
        return really(file, data[:room])

    monkeypatch.setattr(os, "write", full)
    log.add(numbered(1))
    log.save()
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert "No space left" in caplog.text
    log.add(numbered(2))
    log.save()
    assert list(read([path])) == [ONE, numbered(2)]


def test_what_waits_to_be_written_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = len(msgspec.json.encode(ONE))
    monkeypatch.setattr(decisions, "MANY_HELD", 2 * size)
    monkeypatch.setattr(decisions, "MAX_HELD", 4 * size)
    log = DecisionLog(tmp_path / "decisions.jsonl")
    assert [log.add(ONE) for _ in range(6)] == [False, False, True, True, True, True]
    assert len(caplog.records) == 1
    log.save()
    assert len(list(read([tmp_path / "decisions.jsonl"]))) == 4


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 90_000,
        b'{"at": 1, "id": "a", "who": "b"}',
        *(
            json.dumps(json.loads(msgspec.json.encode(ONE)) | wrong).encode()
            for wrong in (
                {"at": -1},
                {"at": 1e300},
                {"chosen": 2},
                {"chosen": -2},
                {"tokens": -5},
                {"difficulty": 1e300},
                {"outcome": {"total": -1}},
                {"outcome": {"total": 1e300}},
                {"options": [{"model": "m", "at": "s", "prefill": -0.1}], "chosen": 0},
                {"options": [{"model": "m", "at": "s", "decode": 1e300}], "chosen": 0},
                {"options": [{"model": "m", "at": "s", "score": float("nan")}], "chosen": 0},
                {"options": [{"model": "m", "at": "s", "window": -1}], "chosen": 0},
            )
        ),
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_what_cannot_be_is_no_decision(line: bytes) -> None:
    assert decode(line) is None
    assert decode(msgspec.json.encode(ONE)) == ONE


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "turnout")
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.add(msgspec.structs.replace(ONE, options=(Option("\ud800", "s"),)))
    log.add(ONE)
    log.save()
    assert list(read([tmp_path / "decisions.jsonl"])) == [ONE]


def test_a_line_holds_names_numbers_and_times_alone() -> None:
    assert Decision.__struct_fields__ == (
        *("at", "id", "who", "policy", "category", "shares", "difficulty", "code_context", "tokens", "answer"),
        *("needs", "prefer", "options", "more", "rejected", "chosen", "outcome"),
    )
