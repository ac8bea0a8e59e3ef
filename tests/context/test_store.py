"""The session store: exact round trips, threads, processes, damage, full and read-only disks (SPEC CTX-2)."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier, Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.context import record
from turnout.context import store as module
from turnout.context.store import (
    Exchange,
    SessionRecord,
    SessionStore,
    StoredMessage,
    decode_message,
    encode_message,
    exchange,
    open_store,
)
from turnout.errors import StorageError, UsageError
from turnout.types import (
    FallbackLevel,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Route,
    Text,
    ToolCall,
    ToolResult,
    message,
)

# Appends exchanges until it is killed or has written as many as asked; tells each one once it is safe.
WRITER = """
import sys
from pathlib import Path
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.types import message
store = open_store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    store.append("t", "s", Exchange((StoredMessage(message("user", f"{sys.argv[2]}-{n}"), n, 1),), "m", "r"))
    print(n, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SessionStore]:
    opened = open_store(path)
    yield opened
    opened.close()


def said(*texts: str, model: str = "", reason: str = "") -> Exchange:
    return Exchange(tuple(StoredMessage(message("user", text), 1.5, len(text)) for text in texts), model, reason)


def texts(session: SessionRecord | None) -> list[str]:
    assert session is not None
    return [m.message.text for m in session.messages]


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(child: subprocess.Popen[str]) -> None:
    """Wait until it is ready, then let it write."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("\n")
    child.stdin.flush()


def joined(text: str) -> str:
    """Two surrogates that make a character are that character in JSON; a lone one stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20).map(joined)
ANY_JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
EXTRAS = st.dictionaries(ANY_TEXT, ANY_JSON, max_size=3)
PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, ANY_TEXT, EXTRAS),
    st.builds(Image, ANY_TEXT, ANY_TEXT, ANY_TEXT),
    st.builds(Reasoning, ANY_TEXT, ANY_TEXT),
    st.builds(ToolCall, ANY_TEXT, ANY_TEXT, ANY_TEXT, ANY_TEXT, ANY_TEXT),
    st.builds(ToolResult, ANY_TEXT, ANY_TEXT, ANY_TEXT, st.booleans()),
)
MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(PARTS, max_size=4).map(tuple),
    EXTRAS,
)


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_every_message_comes_back_exactly(value: Message) -> None:
    assert decode_message(encode_message(value)) == value


def test_an_ordinary_message_is_read_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that only the values have would come back all the same, four times as slowly."""
    monkeypatch.delattr(record, "_by_json")
    parts = (Text("a", {"b": [1]}), Image("a", "b", "c"), Reasoning("a", "b"))
    value = Message("user", (*parts, ToolCall("a", "b", "c", "d", "e"), ToolResult("a", "b", "c", True)), {"d": None})
    assert decode_message(encode_message(value)) == value


@settings(max_examples=30, deadline=None)
@given(st.lists(st.builds(StoredMessage, MESSAGES, st.floats(0, 1e10), st.integers(0, 10**9), EXTRAS), max_size=4))
def test_every_session_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, messages: list[StoredMessage]
) -> None:
    store = open_store(tmp_path_factory.mktemp("any") / "sessions.db")
    history = ((1.0, "a", "first"), (2.0, "b", "larger window"), (3.0, "a", ""))
    session = SessionRecord("s", 1.25, 2.5, "be brief", "a", 3, tuple(messages), history)
    store.save("t", session)
    assert store.load("t", "s") == session
    store.save("t", session)
    assert store.load("t", "s") == session
    assert session.total_tokens == sum(m.tokens for m in messages)
    store.close()


def test_lone_surrogates_outside_messages_become_question_marks(store: SessionStore) -> None:
    store.save("t", SessionRecord("s", 0, 0, "a\ud800b", "m\udc80", 0, (), ((1.0, "m\udc80", "\udfff"),)))
    found = store.load("t", "s")
    assert found is not None
    assert (found.system_prompt, found.active_model, found.model_history) == ("a?b", "m?", ((1.0, "m?", "?"),))


def test_exchanges_add_up_and_survive_a_restart(path: Path) -> None:
    store = open_store(path)
    store.append("t", "s", said("one", "two", model="m", reason="first choice"))
    store.append("t", "s", said("three", model="m", reason="again"))
    store.append("t", "s", said("four", model="n", reason="m is gone"))
    store.append("t", "s", said("five"))
    store.close()
    store = open_store(path)
    session = store.load("t", "s")
    assert session is not None
    assert texts(session) == ["one", "two", "three", "four", "five"]
    assert session.total_tokens == 3 + 3 + 5 + 4 + 4
    assert session.active_model == "n"
    assert [(model, reason) for _, model, reason in session.model_history] == [
        ("m", "first choice"),
        ("n", "m is gone"),
    ]
    assert session.created <= session.updated
    store.close()


def test_an_answered_request_adds_its_newest_turn_and_the_answer() -> None:
    route = Route("r", "auto", "qwen", "", "box", "", FallbackLevel.PRIMARY, None, 8192, "known", reason="best score")
    asked = [message("system", "be brief"), message("user", "old"), message("assistant", "x"), message("user", "new")]
    added = exchange(asked, "done", route, compacted=True)
    assert [(m.message.role, m.message.text) for m in added.messages] == [("user", "new"), ("assistant", "done")]
    assert all(m.tokens > 0 for m in added.messages)
    assert (added.model, added.reason) == ("qwen", "best score")
    assert (added.system_prompt, added.compacted) == ("be brief", True)


def test_the_system_prompt_is_kept_and_compactions_are_counted(store: SessionStore) -> None:
    for prompt, compacted in (("first", False), ("second", True), ("", True)):
        store.append("t", "s", Exchange((), system_prompt=prompt, compacted=compacted))
    store.append("t", "other", Exchange(()))
    session, other = store.load("t", "s"), store.load("t", "other")
    assert session is not None
    assert other is not None
    assert (session.system_prompt, session.compactions) == ("second", 2)
    assert (other.system_prompt, other.compactions) == ("", 0)


def test_tenants_see_only_their_own(store: SessionStore) -> None:
    store.append("anna", "s", said("hers"))
    store.append("bert", "s", said("his"))
    store.append("bert", "later", said("his too"))
    assert texts(store.load("anna", "s")) == ["hers"]
    assert store.load("anna", "later") is None
    assert [line.id for line in store.list_sessions("bert")] == ["later", "s"]
    assert store.delete("anna", "s")
    assert not store.delete("anna", "s")
    assert store.load("anna", "s") is None
    assert store.list_sessions("anna") == ()
    assert texts(store.load("bert", "s")) == ["his"]


def test_a_deleted_session_leaves_no_rows(store: SessionStore, path: Path) -> None:
    store.append("t", "s", said("one", model="m"))
    store.keep_summary("t", "s", "k", "of one")
    store.delete("t", "s")
    rows = sqlite3.connect(path)
    for table in ("sessions", "messages", "switches", "summaries"):
        assert rows.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)
    rows.close()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\n", "x" * 129, "ä", "a\x00"])
def test_session_ids_are_plain_names(store: SessionStore, name: str) -> None:
    with pytest.raises(UsageError, match="at most 128"):
        store.append("t", name, said("one"))
    with pytest.raises(UsageError):
        store.load("t", name)
    with pytest.raises(UsageError):
        store.delete("t", name)
    assert store.list_sessions("t") == ()


@pytest.mark.parametrize("name", ["a", "x" * 128, "A-1_b.c", "..", "-"])
def test_plain_session_ids_are_taken(store: SessionStore, name: str) -> None:
    store.append("t", name, said("one"))
    assert texts(store.load("t", name)) == ["one"]


def test_a_tenant_that_is_no_text_is_refused_not_changed(store: SessionStore) -> None:
    store.append("a?", "s", said("secret"))
    with pytest.raises(UsageError):
        store.load("a\ud800", "s")


def test_file_and_folder_are_for_the_owner_alone(store: SessionStore, path: Path) -> None:
    store.append("t", "s", said("one"))
    files = sorted(f.name for f in path.parent.iterdir())
    assert files == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
    assert {f.stat().st_mode & 0o777 for f in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_many_threads_share_one_store(store: SessionStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.append("t", f"s{n % 2}", said(str(n))), range(80)))
        loaded = list(pool.map(lambda n: store.load("t", f"s{n}"), range(2)))
    assert [sorted(map(int, texts(session))) for session in loaded] == [list(range(0, 80, 2)), list(range(1, 80, 2))]


def test_two_processes_open_migrate_and_append_at_once(path: Path) -> None:
    children = [writer(path, str(n), 50) for n in range(2)]
    for child in children:
        go(child)
    for child in children:
        with child:
            assert child.stdout is not None
            assert len(child.stdout.read().splitlines()) == 50
        assert child.returncode == 0
    store = open_store(path)
    found = texts(store.load("t", "s"))
    store.close()
    assert len(found) == 100
    for n in range(2):
        assert [text for text in found if text.startswith(f"{n}-")] == [f"{n}-{m}" for m in range(50)]


def test_a_store_of_the_first_schema_is_migrated_with_what_is_in_it(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(module._MIGRATIONS[0])
    old.execute("PRAGMA user_version = 1")
    old.execute("INSERT INTO sessions (tenant, id, created, updated) VALUES ('t', 's', 1, 2)")
    body = b'{"role":"user","parts":[{"kind":"text","text":"h\xc3\xbc","extras":{}}],"extras":{}}'
    old.execute("INSERT INTO messages VALUES ('t', 's', 0, 1.5, 7, ?)", (body,))
    old.close()
    store = open_store(path)
    assert store.load("t", "s") == SessionRecord("s", 1, 2, messages=(StoredMessage(message("user", "hü"), 1.5, 7),))
    store.append("t", "s", said("more"))
    assert texts(store.load("t", "s")) == ["hü", "more"]
    store.close()


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    store.append("t", "s", said("one"))
    store.close()
    monkeypatch.setattr(module, "_MIGRATIONS", (*module._MIGRATIONS, "CREATE TABLE more (a); BROKEN;"))
    with pytest.raises(StorageError, match="syntax error"):
        open_store(path)
    monkeypatch.undo()
    store = open_store(path)
    assert texts(store.load("t", "s")) == ["one"]
    store.close()


def test_a_store_of_a_newer_program_is_left_alone(path: Path) -> None:
    open_store(path).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StorageError, match="newer Turnout") as caught:
        open_store(path)
    assert "TURNOUT_DATA_DIR" in caught.value.hint
    assert [f.name for f in path.parent.iterdir()] == ["sessions.db"]


def test_what_is_no_database_is_set_aside_not_deleted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    for turn in range(2):
        path.write_bytes(b"no database " * 1000)
        path.with_name("sessions.db-wal").write_bytes(b"its journal")
        store = open_store(path)
        store.append("t", "s", said("one"))
        assert texts(store.load("t", "s")) == ["one"]
        store.close()
        kept = sorted(path.parent.glob("sessions.db.corrupt-*Z"))
        assert [f.read_bytes() for f in kept] == [b"no database " * 1000] * (turn + 1)
        assert kept[-1].with_name(kept[-1].name + "-wal").read_bytes() == b"its journal"
        assert str(kept[-1]) in caplog.text


def test_damage_found_while_reading_is_said_and_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(path)
    for _ in range(50):
        store.append("t", "s", said("x" * 2000))
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))
    damaged = path.read_bytes()
    store = open_store(path)
    with pytest.raises(StorageError) as caught:
        store.load("t", "s")
    assert "set aside" in caught.value.hint
    (kept,) = path.parent.glob("sessions.db.corrupt-*Z")
    assert kept.read_bytes() == damaged
    assert str(kept) in caplog.text
    store.append("t", "s", said("new"))
    assert texts(store.load("t", "s")) == ["new"]
    store.close()


def test_those_who_find_the_same_damage_at_once_set_it_aside_once(path: Path) -> None:
    at_once = Barrier(6)

    def open_and_append(n: int) -> None:
        at_once.wait()
        store = open_store(path)
        store.append("t", "s", said(str(n)))
        store.close()

    path.parent.mkdir()
    with ThreadPoolExecutor(6) as pool:
        for turn in range(1, 11):
            path.write_bytes(b"no database " * 1000)
            list(pool.map(open_and_append, range(6)))
            assert len(list(path.parent.glob("sessions.db.corrupt-*Z"))) == turn
            store = open_store(path)
            assert sorted(texts(store.load("t", "s"))) == list("012345")
            store.close()


def test_a_migration_that_another_process_does_first_is_not_done_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("BEGIN IMMEDIATE")
    for statement in "".join(module._MIGRATIONS).split(";"):
        other.execute(statement)
    other.execute(f"PRAGMA user_version = {len(module._MIGRATIONS)}")
    old_version_was_read = Event()
    transaction = module._transaction

    def told(db: sqlite3.Connection, mode: str) -> AbstractContextManager[None]:
        old_version_was_read.set()
        return transaction(db, mode)

    monkeypatch.setattr(module, "_transaction", told)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_store, path)
        assert old_version_was_read.wait(20)
        other.execute("COMMIT")
        opening.result().close()
    other.close()


def test_an_exchange_that_cannot_be_kept_whole_is_not_kept_at_all(store: SessionStore) -> None:
    store.append("t", "s", said("one"))
    too_large = StoredMessage(message("user", "three"), 0, 2**70)
    with pytest.raises(OverflowError):
        store.append("t", "s", Exchange((*said("two").messages, too_large)))
    assert texts(store.load("t", "s")) == ["one"]
    store.append("t", "s", said("four"))
    assert texts(store.load("t", "s")) == ["one", "four"]


def test_a_message_that_nobody_wrote_is_a_storage_error(store: SessionStore, path: Path) -> None:
    store.append("t", "s", said("one"))
    rows = sqlite3.connect(path, isolation_level=None)
    for body in (b"{", b"[]", b'{"role":"user","parts":[{"kind":"song"}],"extras":{}}'):
        rows.execute("UPDATE messages SET body = ?", (body,))
        with pytest.raises(StorageError, match="a message of session s"):
            store.load("t", "s")
    rows.close()


def test_a_place_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.db").mkdir()
    for path in (tmp_path / "file" / "sessions.db", tmp_path / "folder.db"):
        with pytest.raises(StorageError) as caught:
            open_store(path)
        assert str(path) in caught.value.message
        assert "TURNOUT_DATA_DIR" in caught.value.hint
        assert "\n" not in str(caught.value)


# Root may write anywhere: then it is tried as nobody, with paths that need no right on the folders above.
LOCKED = """
import os, sys
from pathlib import Path
from turnout.context.store import open_store
from turnout.errors import StorageError
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    open_store(Path("sessions.db"))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_disk_is_one_clear_line(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "locked"
    if there:
        open_store(folder / "sessions.db").close()
        (folder / "sessions.db").chmod(0o444)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    command = [sys.executable, "-c", LOCKED, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = run.stdout.splitlines()
    assert line.startswith("the session store sessions.db cannot be used: ")
    assert "make it writable" in line


# The disk is full after the first exchange, and has room again later.
FULL = """
import resource, sys
from pathlib import Path
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.errors import StorageError
from turnout.types import message
def said(text): return Exchange((StoredMessage(message("user", text), 0, 1),), "m", "r")
path = Path(sys.argv[1])
store = open_store(path)
store.append("t", "s", said("one"))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
size = path.with_name(path.name + "-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, hard))
try:
    store.append("t", "s", said("x" * 50_000))
except StorageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.append("t", "s", said("two"))
print([m.message.text for m in store.load("t", "s").messages])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_loses_no_exchange_it_had_taken(path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    error, kept = run.stdout.splitlines()
    assert error.startswith(f"the session store {path} cannot be used: ")
    assert "free space" in error
    assert kept == "['one', 'two']"


def test_a_store_that_stays_busy_is_a_storage_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    store = open_store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        store.append("t", "s", said("one"))
    assert store.load("t", "s") is None, "reading goes on beside a writer"
    other.execute("ROLLBACK")
    other.close()
    store.append("t", "s", said("one"))
    assert texts(store.load("t", "s")) == ["one"]
    store.close()


def test_a_closed_store_is_a_storage_error(path: Path) -> None:
    store = open_store(path)
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.append("t", "s", said("one"))
