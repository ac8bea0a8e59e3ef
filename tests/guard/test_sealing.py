"""Rotation, retention, signatures and the signed head of the audit log, and what verification makes of damage."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from turnout.errors import AuditError, StorageError
from turnout.guard import audit
from turnout.guard.audit import AuditLog, Keeping, Seal, open_audit
from turnout.guard.chain import (
    FIRST_HASH,
    ChainReport,
    lines_of,
    log_files,
    read_head,
    rotated_files,
    rotated_name,
    verify,
)
from turnout.guard.records import QueryStart
from turnout.guard.signing import Signer, read_public

START = QueryStart("r", "s", "local", "what is this")
DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "audit.log"


def opened(path: Path, **keeping: object) -> AuditLog:
    data = path.parent.parent / "data"
    seal = Seal(Signer(data), data / "head")
    return open_audit(path, data / "audit.key", keeping=replace(Keeping(), **keeping), seal=seal)


def checked(path: Path) -> ChainReport:
    data = path.parent.parent / "data"
    return verify(path, read_public(data / "signing.pub"), read_head(data / "head"))


def events(path: Path) -> list[str]:
    return [json.loads(line)["event_type"] for file in log_files(path) for line in file.read_bytes().splitlines()]


def write(path: Path, count: int, **keeping: object) -> None:
    log = opened(path, **keeping)
    for _ in range(count):
        log.start(START)
    log.close()


def test_every_five_hundredth_record_is_a_signed_checkpoint_and_the_head_covers_the_end(path: Path) -> None:
    write(path, 1200)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    signed = [line["sequence"] for line in lines if line["event_type"] == "audit:checkpoint"]
    assert signed == [500, 1000]
    report = checked(path)
    assert (report.ok, report.count, report.sealed) == (True, 1202, 1202)


def test_a_full_file_is_renamed_and_the_chain_goes_on(path: Path) -> None:
    write(path, 200, rotate_bytes=20_000)
    files = log_files(path)
    assert len(files) > 3
    for file in files[:-1]:
        last = json.loads(file.read_bytes().splitlines()[-1])
        assert last["event_type"] == "audit:rotated"
        assert file.name == f"audit.log.{last['sequence']:012d}"
    first = json.loads(files[-1].read_bytes().splitlines()[0])
    assert (first["event_type"], first["file"]) == ("audit:continued", files[-2].name)
    assert checked(path).ok
    sequences = [json.loads(line)["sequence"] for file in files for line in file.read_bytes().splitlines()]
    assert sequences == list(range(1, len(sequences) + 1))


def test_a_file_whose_first_record_is_old_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * DAY)
    write(path, 1, rotate_seconds=DAY)
    assert len(log_files(path)) == 2
    monkeypatch.setattr(time, "time", lambda: now - 9 * DAY)  # a clock that is set back
    write(path, 1, rotate_seconds=DAY)
    assert len(log_files(path)) == 2
    assert checked(path).ok


def test_old_files_are_retired_by_a_signed_record_and_what_is_left_verifies(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as last_year:
        last_year.setattr(audit, "_now", lambda: "2025-11-25T10:00:00.000+00:00")
        write(path, 100, rotate_bytes=20_000)
        assert len(rotated_files(path)) == 2
    write(path, 100, rotate_bytes=20_000)
    full = log_files(path)[:-1]
    for file in full:
        os.utime(file, (0, 0))  # anybody can, and it does not count
    gone = json.loads(full[1].read_bytes().splitlines()[-1])["sequence"]
    write(path, 200, rotate_bytes=20_000, keep_seconds=DAY)
    assert [file for file in full if file.exists()] == full[2:]
    assert "audit:retired" in events(path)
    assert checked(path).ok
    # A file that nobody retired is missed.
    full[2].unlink()
    report = checked(path)
    assert (report.ok, report.bad_line, report.bad_file) == (False, 1, full[3].name)
    assert f"records 1 to {gone}" not in report.reason
    assert "are missing, and no signed record says that they were retired" in report.reason


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_and_has_the_name_of_one_is_nobodys_business(path: Path, kind: str) -> None:
    """A pipe that is opened would be waited for, by the gateway and by whoever verifies."""
    write(path, 3, rotate_bytes=300)
    odd = rotated_name(path, 999)
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(path.parent / "nowhere")
    write(path, 3, rotate_bytes=300)
    assert checked(path).ok
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AuditError, match="it is no regular file"):
        checked(path)


def test_bytes_after_the_end_of_a_full_file_are_found(path: Path) -> None:
    write(path, 3, rotate_bytes=300)
    full = rotated_files(path)[0]
    with full.open("ab") as file:
        file.write(b"not ours")
    found = checked(path)
    assert (found.ok, found.bad_file) == (False, full.name)


def test_a_line_longer_than_any_record_is_not_read_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, 3)
    monkeypatch.setattr("turnout.guard.chain.MAX_LINE", 2000)
    with path.open("ab") as file:
        file.write(b"x" * 10_000 + b"\nhalf")
    with path.open("rb") as file:
        read = list(lines_of(file))
    assert [len(line) for line in read[3:]] == [2001, 4]
    found = checked(path)
    assert (found.ok, found.bad_line, found.count) == (False, 4, 3)


def test_an_end_without_a_record_is_not_read_for_ever(path: Path) -> None:
    write(path, 1)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    log = opened(path)
    with pytest.raises(AuditError, match="bytes hold no record; move it away"):
        log.start(START)


def test_a_missing_file_in_the_middle_is_found(path: Path) -> None:
    write(path, 200, rotate_bytes=20_000)
    files = log_files(path)
    files[1].unlink()
    report = checked(path)
    assert (report.ok, report.bad_line, report.bad_file) == (False, 1, files[2].name)


@pytest.mark.parametrize("step", ["before the rename", "before the new file"])
def test_a_rotation_that_was_killed_is_finished_by_the_next_writer(path: Path, step: str) -> None:
    write(path, 200, rotate_bytes=20_000)
    files = log_files(path)
    if step == "before the rename":
        files[-1].unlink()
        files[-2].rename(path)
        (path.parent.parent / "data" / "head").unlink()
    else:
        files[-1].unlink()
        (path.parent.parent / "data" / "head").unlink()
    write(path, 1, rotate_bytes=20_000)
    assert events(path)[-2:] == ["audit:continued", "query"]
    assert [file.name for file in log_files(path)] == [file.name for file in files]
    assert checked(path).ok


def test_a_tail_that_was_cut_off_is_told_from_a_crash(path: Path) -> None:
    write(path, 5)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    report = checked(path)
    assert (report.ok, report.bad_line) == (False, 4)
    assert report.reason == "records 4 to 5, which its head tells of, were cut off"
    path.write_bytes(whole + b'{"half of a line')
    assert checked(path).ok
    path.unlink()
    assert "the log is gone" in checked(path).reason


def test_whoever_writes_next_notes_a_tail_that_was_cut_off(path: Path) -> None:
    write(path, 5)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    write(path, 1)
    assert events(path)[-2:] == ["security:log_replaced", "query"]
    assert checked(path).alarms == ("audit.log:4: security:log_replaced",)


def computed_anew(log: Path) -> bytes:
    """The log without its errors, each line with the hash of the one before: what needs no private key."""
    previous, lines = FIRST_HASH, []
    for line in log.read_bytes().splitlines():
        record = {**json.loads(line), "error": None, "previous_hash": previous}
        lines.append(json.dumps(record, separators=(",", ":")).encode())
        previous = hashlib.sha256(lines[-1]).hexdigest()
    return b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize("when", ["before a start", "while it is open"])
def test_no_writer_signs_a_log_that_was_computed_anew(path: Path, when: str) -> None:
    """Else the next head would cover what somebody has put in the log's place."""
    log = opened(path)
    for number in range(9):
        log.event("access", error=f"what he did, {number}")
    log.seal()
    if when != "while it is open":
        log.close()
        log = opened(path)
    fresh = path.with_name("fresh")
    fresh.write_bytes(computed_anew(path))
    fresh.replace(path)
    log.event("access")
    log.close()
    assert events(path)[-2:] == ["security:log_replaced", "access"]
    assert len(checked(path).alarms) == 1


@pytest.mark.parametrize("what", ["changed", "of another key", "garbage"])
def test_a_head_that_is_not_ours_is_told_by_the_next_writer(path: Path, tmp_path: Path, what: str) -> None:
    write(path, 5)
    head = tmp_path / "data" / "head"
    found = read_head(head)
    assert found is not None
    if what == "changed":
        found = msgspec.structs.replace(found, sequence=4)
    else:
        found = msgspec.structs.replace(found, signature=Signer(tmp_path / "other").sign(found.text))
    head.write_bytes(msgspec.json.encode(found) if what != "garbage" else b"{")
    write(path, 1)
    assert events(path)[-2:] == ["security:log_replaced", "query"]
    assert checked(path).ok
    assert len(checked(path).alarms) == 1


def test_a_log_that_others_write_and_rotate_meanwhile_is_as_it_was(path: Path) -> None:
    idle = opened(path)
    idle.start(START)
    write(path, 40, rotate_bytes=3000)
    idle.start(START)
    idle.close()
    assert len(log_files(path)) > 3
    assert "security:log_replaced" not in events(path)
    assert checked(path).ok


def test_a_log_that_was_computed_anew_fails_at_its_first_checkpoint(path: Path, tmp_path: Path) -> None:
    write(path, 600)
    forged = tmp_path / "forged" / "logs" / "audit.log"
    write(forged, 600)
    path.write_bytes(forged.read_bytes())
    (tmp_path / "data" / "head").unlink()
    report = verify(path, read_public(tmp_path / "data" / "signing.pub"))
    assert (report.ok, report.bad_line) == (False, 500)
    assert "its signature is not of this key" in report.reason
    # Without a key of his own, he leaves checkpoints out.
    path.unlink()
    log = open_audit(path, tmp_path / "data" / "audit.key")
    for _ in range(600):
        log.start(START)
    log.close()
    report = verify(path, read_public(tmp_path / "data" / "signing.pub"))
    assert (report.bad_line, report.reason) == (500, "a signed checkpoint belongs here")


def test_a_head_of_another_key_and_a_changed_one_are_refused(path: Path, tmp_path: Path) -> None:
    write(path, 3)
    head = tmp_path / "data" / "head"
    told = json.loads(head.read_bytes())
    head.write_text(json.dumps({**told, "sequence": 2}))
    assert checked(path) == ChainReport(0, ok=False, reason="the head was changed, or another key signed it")
    head.write_text("{")
    with pytest.raises(StorageError, match="it is no head of an audit log"):
        checked(path)


def mutations(data: bytes, seed: int) -> tuple[bytes, int, str]:
    """A damaged log, the first line at which it differs, and how."""
    rng = random.Random(seed)
    lines = data.splitlines(keepends=True)
    n = rng.randrange(len(lines))
    kind = rng.choice(["byte", "removed", "twice", "swapped", "cut", "foreign", "inserted"])
    match kind:
        case "byte":
            line = bytearray(lines[n])
            place = rng.randrange(len(line) - 1)
            line[place] ^= 1 << rng.randrange(7)
            lines[n] = bytes(line)
        case "removed":
            del lines[n]
        case "twice":
            lines.insert(n, lines[n])
            n += 1
        case "swapped":
            n = rng.randrange(len(lines) - 1)
            lines[n], lines[n + 1] = lines[n + 1], lines[n]
        case "cut":
            size = rng.randrange(sum(map(len, lines)) - 1)
            whole = data[:size]
            return whole, whole.count(b"\n") + 1, kind
        case "foreign":
            lines.insert(n, b"hello\n")
        case "inserted":
            other = lines[rng.randrange(len(lines))]
            if other == lines[n]:
                n += 1
            lines.insert(n, other)
    return b"".join(lines), n + 1, kind


def test_each_of_many_mutations_is_found_at_its_line(path: Path) -> None:
    _mutate(path, 600)


@pytest.mark.heavy
def test_each_of_ten_thousand_mutations_is_found_at_its_line(path: Path) -> None:
    _mutate(path, 10_000)


def _mutate(path: Path, count: int) -> None:
    write(path, 40)
    data = path.read_bytes()
    for seed in range(count):
        changed, line, kind = mutations(data, seed)
        path.write_bytes(changed)
        report = checked(path)
        assert not report.ok, (seed, kind)
        assert report.bad_line == line, (seed, kind, line, report)


# Appends signed records with rotation until it is killed; tells each that is safe.
WRITER = """
import sys
from pathlib import Path
from turnout.guard.audit import Keeping, Seal, open_audit
from turnout.guard.records import QueryStart
from turnout.guard.signing import Signer
data = Path(sys.argv[2])
log = open_audit(Path(sys.argv[1]), data / "audit.key", keeping=Keeping(rotate_bytes=9_000),
                 seal=Seal(Signer(data), data / "head"))
n = 0
while True:
    log.start(QueryStart(f"{sys.argv[3]}-{n}", "s", "local", "q" * (n % 50)))
    print(n, flush=True)
    n += 1
    if n % 7 == 0:
        log.seal()
"""


def _kill_writers(path: Path, times: int) -> None:
    rng = random.Random(times)
    path.parent.mkdir(parents=True)
    for turn in range(times):
        command = [sys.executable, "-c", WRITER, str(path), str(path.parent.parent / "data"), str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            told = [child.stdout.readline() for _ in range(rng.randrange(1, 200))]
            os.kill(child.pid, signal.SIGKILL)
            told += child.stdout.read().splitlines()
        report = checked(path)
        assert report.ok, (turn, report)
        text = b"".join(file.read_bytes() for file in log_files(path))
        mine = [f'"{turn}-{n}"'.encode() in text for n in range(len(told))]
        assert all(mine), "a record that was told of is lost"


def test_killed_writers_lose_nothing_and_the_chain_holds_over_rotations(path: Path) -> None:
    _kill_writers(path, 6)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_three_hundred_killed_writers(path: Path) -> None:
    _kill_writers(path, 300)


def test_several_writers_rotate_one_log(path: Path) -> None:
    path.parent.mkdir(parents=True)
    command = [sys.executable, "-c", WRITER, str(path), str(path.parent.parent / "data")]
    children = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
    try:
        for child in children:
            assert child.stdout is not None
            for _ in range(150):
                child.stdout.readline()
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
    assert len(log_files(path)) > 5
    report = checked(path)
    assert report.ok, report
    assert not report.alarms


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_during_a_rotation_refuses_and_goes_on_afterwards(path: Path) -> None:
    log = opened(path, rotate_bytes=4000)
    while path.stat().st_size < 4000:
        log.start(START)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        limit(path.stat().st_size + 50)
        with pytest.raises(AuditError, match="File too large"):
            log.start(START)
    finally:
        limit(resource.RLIM_INFINITY)
    log.start(START)
    log.close()
    assert checked(path).ok
    assert len(log_files(path)) == 2


def test_who_wants_to_continue_without_records_is_told_how_many_are_missing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = opened(path, continue_on_failure=True)
    log.start(START)
    try:
        limit(path.stat().st_size + 50)
        for _ in range(3):
            log.start(START)
    finally:
        limit(resource.RLIM_INFINITY)
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    log.start(START)
    log.close()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["event_type"] for line in lines] == ["query", "security:audit_gap", "query"]
    assert lines[1]["error"] == "3 records before this one could not be written"
    assert checked(path).alarms == ("audit.log:2: security:audit_gap",)


def test_every_line_is_copied_to_the_local_syslog(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(place))
        syslog.settimeout(10)
        log = opened(path, syslog=str(place))
        log.start(START)
        assert syslog.recv(65_536) == b"<110>turnout: " + path.read_bytes().rstrip(b"\n")
    log.start(START)  # nobody listens any more
    log.close()
    assert checked(path).count == 2


@pytest.mark.parametrize("what", ["garbage", "for others", "a folder", "a link"])
def test_a_signing_key_that_cannot_be_used_is_one_clear_line(path: Path, tmp_path: Path, what: str) -> None:
    write(path, 1)
    key = tmp_path / "data" / "signing.key"
    match what:
        case "garbage":
            key.write_text("no key")
        case "for others":
            key.chmod(0o644)
        case "a folder":
            key.unlink()
            key.mkdir()
        case "a link":
            key.unlink()
            key.symlink_to(tmp_path / "share" / "signing.key")
    log = opened(path)
    log.start(START)
    with pytest.raises(AuditError) as caught:
        log.close()
    assert str(key) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_signing_key_is_said_and_the_old_public_one_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = Signer(tmp_path)
    signature, fingerprint = old.sign(b"what it signed"), old.public.fingerprint
    (tmp_path / "signing.key").unlink()
    assert Signer(tmp_path).public.fingerprint != fingerprint
    assert read_public(tmp_path / f"signing-{fingerprint}.pub").signed(signature, b"what it signed")
    (said,) = caplog.messages
    assert "is gone, so a new one is made" in said


def test_forced_writes_go_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(file))
    write(path, 3, fsync="always")
    assert len(forced) == 3
    write(path, 3, fsync="second")
    assert len(forced) == 4
    write(path, 3, fsync="never")
    assert len(forced) == 4
