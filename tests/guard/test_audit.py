"""The audit log: keys, chain, several writers, killed writers, full disks, tampering (SPEC SEC-3)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnout.errors import AuditError, EndpointDownError
from turnout.guard import audit_key
from turnout.guard.audit import AuditLog, open_audit
from turnout.guard.chain import ChainReport, verify
from turnout.guard.records import QueryEnd, QueryStart
from turnout.types import AttemptRecord, FallbackLevel

KEYS = [
    *("timestamp", "event_type", "session_id", "model", "service", "query_hash", "tokens_in", "tokens_out"),
    *("success", "error", "phase", "request_id", "principal", "agent", "category", "fallback_level", "attempts"),
    *("sequence", "previous_hash"),
]
SECRET = "where is the rename of frobnicate"
START = QueryStart("r1", "s1", "local", SECRET)
END = QueryEnd(
    "r1",
    "s1",
    "local",
    SECRET,
    model="qwen",
    service="box",
    category="coding",
    fallback_level=1,
    attempts=(
        AttemptRecord(FallbackLevel.PRIMARY, "big", "other", EndpointDownError("refused: " + SECRET), 0.0124),
        AttemptRecord(FallbackLevel.FALLBACK, "qwen", "box", None, 1.5),
    ),
    tokens_in=12,
    tokens_out=34,
    response="an answer",
)

# Appends records until it is killed or has written as many as asked; tells the sequence of each line once it is safe.
WRITER = """
import sys
from pathlib import Path
from turnout.guard.audit import open_audit
from turnout.guard.records import QueryStart
log = open_audit(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    log.start(QueryStart(f"{sys.argv[4]}-{n}", "s", "local", "q" * (n % 50)))
    print(n, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def opened(path: Path, *, log_queries: bool = True, log_responses: bool = False) -> AuditLog:
    return open_audit(path, path.parent / "audit.key", log_queries=log_queries, log_responses=log_responses)


def records(path: Path) -> list[dict[str, object]]:
    """The whole lines; half ones of killed writers are left out."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]


def writer(path: Path, count: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(path.parent / "audit.key"), str(count), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(child: subprocess.Popen[str]) -> None:
    """Wait until it is ready, then let it write."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("\n")
    child.stdin.flush()


def killed(child: subprocess.Popen[str]) -> list[str]:
    """Kill it; the lines that it had still told."""
    os.kill(child.pid, signal.SIGKILL)
    with child:
        assert child.stdout is not None
        return child.stdout.read().splitlines()


def test_every_line_has_the_keys_of_the_specification_in_order(path: Path) -> None:
    log = opened(path)
    log.start(START)
    log.end(END)
    log.event("security:refused", error="8.8.8.8 is outside", service="x")
    first, second, third = records(path)
    assert list(first) == list(second) == list(third) == KEYS
    assert (first["event_type"], first["phase"]) == ("query", "start")
    assert (first["request_id"], first["session_id"]) == ("r1", "s1")
    assert second["attempts"] == [
        {"level": 0, "model": "big", "service": "other", "error": "endpoint_down", "ms": 12},
        {"level": 1, "model": "qwen", "service": "box", "error": None, "ms": 1500},
    ]
    assert (second["tokens_in"], second["tokens_out"], second["success"], second["error"]) == (12, 34, True, None)
    assert (second["category"], second["fallback_level"], second["phase"]) == ("coding", 1, "end")
    assert (third["event_type"], third["success"], third["phase"]) == ("security:refused", False, None)
    at = datetime.fromisoformat(str(first["timestamp"]))
    assert at.tzinfo is not None
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert len(str(first["timestamp"]).partition(".")[2]) == len("123+00:00")


def test_each_line_carries_the_hash_of_the_line_before(path: Path) -> None:
    log = opened(path)
    log.start(START)
    log.end(END)
    lines = path.read_bytes().splitlines()
    first, second = records(path)
    assert (first["sequence"], first["previous_hash"]) == (1, "0" * 64)
    assert (second["sequence"], second["previous_hash"]) == (2, hashlib.sha256(lines[0]).hexdigest())


def test_the_query_is_never_written_and_its_hash_depends_on_the_key(path: Path, tmp_path: Path) -> None:
    log = opened(path)
    log.start(START)
    log.end(END)
    assert SECRET not in path.read_text()
    assert "an answer" not in path.read_text()
    start, end = records(path)
    assert start["query_hash"] == end["query_hash"]
    assert len(str(start["query_hash"])) == 64
    assert start["query_hash"] != hashlib.sha256(SECRET.encode()).hexdigest()
    assert opened(tmp_path / "again.log").query_hash(SECRET) == start["query_hash"]
    elsewhere = open_audit(tmp_path / "other.log", tmp_path / "other.key")
    assert elsewhere.query_hash(SECRET) != start["query_hash"]


def test_without_log_queries_the_hash_is_null(path: Path) -> None:
    opened(path, log_queries=False).start(START)
    assert records(path)[0]["query_hash"] is None


def test_responses_are_written_only_when_asked_for(path: Path) -> None:
    log = opened(path, log_responses=True)
    log.start(START)
    log.end(END)
    assert "response" not in records(path)[0]
    assert records(path)[1]["response"] == "an answer"


def test_log_and_key_are_for_the_owner_alone(path: Path) -> None:
    key = path.parent / "keys" / "audit.key"
    open_audit(path, key).start(START)
    assert [f.stat().st_mode & 0o777 for f in (path, key, key.parent)] == [0o600, 0o600, 0o700]
    key.chmod(0o644)
    open_audit(path, key)
    assert key.stat().st_mode & 0o777 == 0o600


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=4, max_size=4))
@example(["\ud800", "\udfff\n", "\x9b\u2028\x00", "\ud83d"])
def test_no_text_breaks_a_line(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "audit.log"
    model, service, error, query = texts
    log = opened(path, log_responses=True)
    attempt = AttemptRecord(FallbackLevel.PRIMARY, model, service, None, 0)
    log.end(QueryEnd("r", "s", "p", query, model=model, service=service, attempts=(attempt,), response=error))
    log.event("access", error=error, principal=model)
    log.close()
    assert len(path.read_text("ascii").splitlines()) == 2
    assert not any(character < " " for character in path.read_text().replace("\n", ""))
    assert verify(path).ok
    written = records(path)[1]["principal"]
    assert written == model.encode("utf-8", "replace").decode()


def test_a_new_process_continues_the_chain(path: Path) -> None:
    for _ in range(3):
        log = opened(path)
        log.start(START)
        log.close()
    assert [r["sequence"] for r in records(path)] == [1, 2, 3]
    assert verify(path).count == 3


def test_a_line_longer_than_the_tail_that_is_read_first_is_continued(path: Path) -> None:
    opened(path, log_responses=True).end(QueryEnd("r", "s", "p", "q", response="x" * 300_000))
    opened(path).start(START)
    assert verify(path).count == 2
    assert verify(path).ok


def test_the_end_of_a_query_after_close_is_still_written(path: Path) -> None:
    log = opened(path)
    log.start(START)
    log.close()
    log.end(END)
    log.close()
    assert verify(path).count == 2
    assert verify(path).ok


def test_four_processes_append_to_one_chain(path: Path) -> None:
    children = [writer(path, 1_000_000, str(n)) for n in range(4)]
    told: list[list[str]] = []
    try:
        for child in children:
            go(child)
        for child in children:  # each goes on until the last has written its share
            assert child.stdout is not None
            told.append([child.stdout.readline() for _ in range(200)])
    finally:
        for n, child in enumerate(children):
            rest = killed(child)
            if n < len(told):
                told[n] += rest
    assert verify(path).ok
    written = [r for r in records(path) if r["event_type"] == "query"]
    assert [r["sequence"] for r in records(path)] == list(range(1, len(records(path)) + 1))
    for n, lines in enumerate(told):
        mine = [r["request_id"] for r in written if str(r["request_id"]).startswith(f"{n}-")]
        assert mine == [f"{n}-{m}" for m in range(len(mine))]
        assert len(lines) <= len(mine) <= len(lines) + 1
    assert len({r["query_hash"] for r in written}) == 50, "they did not share one key"


def test_a_killed_writer_loses_no_line_it_had_told_of(path: Path) -> None:
    random.seed(7)
    for turn in range(10):
        child = writer(path, 1_000_000, str(turn))
        assert child.stdout is not None
        go(child)
        told = [int(child.stdout.readline()) for _ in range(random.randrange(1, 400))]
        told += [int(line) for line in killed(child)]
        report = verify(path)
        assert report.ok, report
        mine = [r for r in records(path) if str(r.get("request_id")).startswith(f"{turn}-")]
        assert len(told) <= len(mine) <= len(told) + 1
    opened(path).start(START)
    assert verify(path).ok


def test_a_half_line_at_any_byte_is_ended_and_noted(path: Path) -> None:
    log = opened(path)
    for _ in range(3):
        log.start(START)
    log.close()
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert verify(path) == ChainReport(2, ok=True, half_last_line=True)
        log = opened(path)
        log.start(START)
        log.start(START)
        log.close()
        report = verify(path)
        assert report.ok, (cut, report)
        assert path.read_bytes().startswith(whole[:cut]), "what was found must stay"
        complete = cut == len(whole) - 1  # only its newline is missing: a record
        assert (report.half_lines, report.count) == ((0, 5) if complete else (1, 5))
        if not complete:
            note = json.loads(path.read_bytes().splitlines()[3])
            assert (note["event_type"], note["sequence"]) == ("security:half_line", 3)
            assert note["error"] == f"{cut - last} bytes after record 2 are no record"


def test_an_open_log_notices_the_half_line_of_another(path: Path) -> None:
    log = opened(path)
    log.start(START)
    with path.open("ab") as other:
        other.write(b'{"timestamp":"2026-')
    log.end(END)
    assert [json.loads(line)["event_type"] for n, line in enumerate(path.read_bytes().splitlines()) if n != 1] == [
        "query",
        "security:half_line",
        "query",
    ]
    assert verify(path).ok


def test_a_half_line_before_any_record(path: Path) -> None:
    path.write_bytes(b'{"timest')
    assert verify(path) == ChainReport(0, ok=True, half_last_line=True)
    opened(path).start(START)
    assert verify(path) == ChainReport(2, ok=True, half_lines=1)


def damaged_by(data: bytes, change: str) -> bytes:
    lines = data.splitlines(keepends=True)
    match change:
        case "text":
            lines[2] = lines[2].replace(b'"tokens_in":12', b'"tokens_in":13')
        case "sequence":
            lines[2] = lines[2].replace(b'"sequence":3', b'"sequence":9')
        case "removed":
            del lines[2]
        case "swapped":
            lines[2], lines[3] = lines[3], lines[2]
        case "twice":
            lines.insert(2, lines[2])
        case "garbage":
            lines[2] = b"\x00\xff\n"
        case "added":
            lines.insert(2, b"hello\n")
        case "first":
            del lines[0]
        case "half in the middle":
            lines[2] = lines[2][:40] + b"\n"
    return b"".join(lines)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("text", 3),
        ("sequence", 3),
        ("removed", 3),
        ("swapped", 3),
        ("twice", 4),
        ("garbage", 3),
        ("added", 3),
        ("first", 1),
        ("half in the middle", 3),
    ],
)
def test_tampering_is_found(path: Path, change: str, line: int) -> None:
    log = opened(path)
    for _ in range(6):
        log.end(END)
    log.close()
    assert verify(path) == ChainReport(6, ok=True)
    path.write_bytes(damaged_by(path.read_bytes(), change))
    report = verify(path)
    assert (report.ok, report.bad_line) == (False, line), report
    assert report.reason


def test_every_changed_byte_before_the_last_line_is_found(path: Path) -> None:
    log = opened(path)
    for _ in range(3):
        log.start(START)
    log.close()
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n")
    for place in range(0, last, 3):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert not verify(path).ok, place


def test_a_record_before_a_half_line_is_protected_too(path: Path) -> None:
    opened(path).end(END)
    with path.open("ab") as other:
        other.write(b'{"half')
    opened(path).end(END)
    assert verify(path).ok
    path.write_bytes(path.read_bytes().replace(b'"tokens_in":12', b'"tokens_in":13', 1))
    assert verify(path).bad_line == 1


def test_a_half_line_after_foreign_lines_does_not_excuse_them(path: Path) -> None:
    opened(path).start(START)
    with path.open("ab") as other:
        other.write(b'hello\n{"half')
    opened(path).start(START)
    assert json.loads(path.read_bytes().splitlines()[3])["event_type"] == "security:damaged_line"
    assert (verify(path).ok, verify(path).bad_line) == (False, 2)


def test_foreign_lines_are_noted_and_stay_damage(path: Path) -> None:
    log = opened(path)
    log.start(START)
    with path.open("ab") as other:
        other.write(b"hello\n")
    log.start(START)
    assert (verify(path).ok, verify(path).bad_line) == (False, 2)
    assert json.loads(path.read_bytes().splitlines()[2])["event_type"] == "security:damaged_line"


@pytest.mark.parametrize("how", ["deleted", "renamed", "emptied", "exchanged"])
def test_a_log_that_goes_away_underneath_is_begun_again_and_says_so(path: Path, how: str) -> None:
    log = opened(path)
    log.start(START)
    log.end(END)
    last = hashlib.sha256(path.read_bytes().splitlines()[-1]).hexdigest()
    match how:
        case "deleted":
            path.unlink()
        case "renamed":
            path.rename(path.with_name("audit.log.1"))
        case "emptied":
            os.truncate(path, 0)
        case "exchanged":
            path.with_name("new").touch()
            path.with_name("new").replace(path)
    log.start(START)
    note, begun = records(path)
    assert (note["event_type"], note["sequence"]) == ("security:log_replaced", 1)
    assert note["error"] == f"the log was moved, deleted or cut after record 2, whose hash is {last}"
    assert begun["phase"] == "start"
    assert verify(path).ok


def test_a_cut_log_says_so(path: Path) -> None:
    log = opened(path)
    log.start(START)
    size = path.stat().st_size
    log.end(END)
    os.truncate(path, size)
    log.start(START)
    assert [r["event_type"] for r in records(path)] == ["query", "security:log_replaced", "query"]


def test_a_log_in_a_place_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "audit.log", tmp_path / "folder"):
        with pytest.raises(AuditError) as caught:
            open_audit(path, tmp_path / "audit.key")
        assert str(path) in caught.value.message
        assert "\n" not in str(caught.value)
        for advice in ("free space", "security.audit_log_path", "security.audit_enabled: false"):
            assert advice in caught.value.hint


# Root may write anywhere: then it is tried as nobody, with paths that need no right on the folders above.
LOCKED = """
import os, sys
from pathlib import Path
from turnout.guard.audit import open_audit
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
open_audit(Path("locked/audit.log"), Path("audit.key"))
"""


def test_a_folder_that_is_read_only_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    tmp_path.chmod(0o777)
    command = [sys.executable, "-c", LOCKED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "AuditError: the audit log locked/audit.log cannot be written: Permission denied" in run.stderr


def test_damaged_and_unusable_keys_are_said(tmp_path: Path) -> None:
    key = tmp_path / "audit.key"
    key.write_bytes(b"short")
    with pytest.raises(AuditError, match="is damaged"):
        open_audit(tmp_path / "audit.log", key)
    with pytest.raises(AuditError, match="Is a directory"):
        open_audit(tmp_path / "audit.log", tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such modes")
def test_a_key_that_others_could_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = tmp_path / "audit.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    open_audit(tmp_path / "audit.log", key).close()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    (said,) = caplog.messages
    assert said.startswith(f"others could read the audit key {key} until now")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.log")
    log = open_audit(tmp_path / "audit.log", tmp_path / "audit.key")
    with pytest.raises(AuditError, match="cannot be written"):
        for _ in range(1000):
            log.start(START)


def test_a_key_file_left_empty_by_a_killed_start_is_filled(tmp_path: Path) -> None:
    key = tmp_path / "audit.key"
    key.touch()
    open_audit(tmp_path / "audit.log", key)
    assert len(key.read_bytes()) == 32


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    log = open_audit(Path("/dev/full"), tmp_path / "audit.key")
    for _ in range(2):
        with pytest.raises(AuditError) as caught:
            log.start(START)
        assert caught.value.message == "the audit log /dev/full cannot be written: No space left on device"
        assert "free space" in caught.value.hint
    log.close()


# The disk is full before the first record and in the middle of the second; then there is room again.
FULL = """
import resource, sys
from pathlib import Path
from turnout.errors import AuditError
from turnout.guard.audit import open_audit
from turnout.guard.records import QueryStart
path = Path(sys.argv[1])
log = open_audit(path, Path(sys.argv[2]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for name in ("first", "second"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    for _ in range(2):
        try:
            log.start(QueryStart("refused", "s", "local", "q"))
        except AuditError as error:
            print(error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    log.start(QueryStart(name, "s", "local", "q"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_line_that_did_not_fit_is_taken_back(path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(path), str(path.parent / "audit.key")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"the audit log {path} cannot be written: File too large"] * 4
    assert [r["request_id"] for r in records(path)] == ["first", "second"]
    assert verify(path) == ChainReport(2, ok=True)


def test_without_flock_one_process_still_writes_a_chain(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_key, "fcntl", None)
    log = opened(path)
    log.start(START)
    log.end(END)
    assert verify(path) == ChainReport(2, ok=True)


def test_verifying_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be read: No such file"):
        verify(tmp_path / "none.log")
    (tmp_path / "empty.log").touch()
    assert verify(tmp_path / "empty.log") == ChainReport(0, ok=True)
