"""What people do to stored sessions, and time does: undo, marks, summaries, retention under wrong clocks (CTX-2)."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnout.context import store as module
from turnout.context.store import DAY, Exchange, SessionRecord, SessionStore, StoredMessage, open_store
from turnout.types import Message, ToolCall, ToolResult, message

NOW = 1_790_000_000.0  # some day in 2026


class Clock:
    """The store's clock, set by the test."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[SessionStore]:
    opened = open_store(path)
    yield opened
    opened.close()


def asked(question: str, answer: str = "yes", model: str = "m", at: float = 0.0) -> Exchange:
    both = (message("user", question), message("assistant", answer))
    return Exchange(tuple(StoredMessage(m, at, 3) for m in both), model, "best")


def texts(store: SessionStore, name: str = "s") -> list[str]:
    session = store.load("t", name)
    assert session is not None
    return [m.message.text for m in session.messages]


def names(store: SessionStore) -> list[str]:
    return [line.id for line in store.list_sessions("t")]


def test_undo_takes_back_one_exchange_at_a_time(store: SessionStore) -> None:
    for question in ("one", "two"):
        store.append("t", "s", asked(question))
    store.append("t", "other", asked("else"))
    assert store.undo("t", "s")
    assert texts(store) == ["one", "yes"]
    assert store.undo("t", "s")
    assert texts(store) == []
    assert not store.undo("t", "s")
    assert not store.undo("t", "never")
    assert not store.undo("u", "other")
    assert texts(store, "other") == ["else", "yes"]
    store.append("t", "s", asked("again"))
    assert texts(store) == ["again", "yes"]


def test_undo_takes_the_tool_calls_of_the_turn_with_it(store: SessionStore) -> None:
    turn = (
        message("user", "read it"),
        Message("assistant", (ToolCall("c", "read", "{}"),)),
        Message("user", (ToolResult("c", "text"),)),  # as one wire format has it: a user's message that asks nothing
        message("assistant", "it says"),
    )
    store.append("t", "s", asked("one"))
    store.append("t", "s", Exchange(tuple(StoredMessage(m, 0, 1) for m in turn)))
    assert store.undo("t", "s")
    assert texts(store) == ["one", "yes"]


def test_undo_takes_back_what_was_made_of_the_exchange(store: SessionStore) -> None:
    store.append("t", "s", asked("one", at=1.0))
    store.keep_summary("t", "s", "k1", "of what was before")
    store.mark_compact("t", "s")
    store.append("t", "s", asked("two", at=NOW))
    store.mark_compact("t", "s")
    store.keep_summary("t", "s", "k2", "tells of two")
    session = store.load("t", "s")
    assert session is not None
    assert session.compact_at == (2, 4)
    rows = sqlite3.connect(store._path, isolation_level=None)
    rows.execute("UPDATE summaries SET time = 5 WHERE key = 'k1'")
    rows.close()
    store.undo("t", "s")
    session = store.load("t", "s")
    assert session is not None
    assert session.compact_at == (2,)
    assert store.summaries("t", "s") == {"k1": "of what was before"}


def test_a_mark_to_compact_is_the_number_of_messages_once(store: SessionStore) -> None:
    assert not store.mark_compact("t", "s")
    store.append("t", "s", asked("one"))
    assert store.mark_compact("t", "s")
    assert store.mark_compact("t", "s")
    session = store.load("t", "s")
    assert session is not None
    assert session.compact_at == (2,)
    store.save("t", session)
    assert store.load("t", "s") == session


def test_summaries_are_kept_by_key_per_session_and_tenant(store: SessionStore) -> None:
    store.keep_summary("t", "s", "k", "of a session that is not there")
    store.append("t", "s", asked("one"))
    store.append("u", "s", asked("one"))
    store.keep_summary("t", "s", "k", "first")
    store.keep_summary("t", "s", "k", "second \ud800")
    store.keep_summary("t", "s", "l", "other")
    assert store.summaries("t", "s") == {"k": "second ?", "l": "other"}
    assert store.summaries("u", "s") == {}
    store.delete("t", "s")
    assert store.summaries("t", "s") == {}


def test_a_list_tells_of_each_session_and_of_the_last_questions(store: SessionStore) -> None:
    store.append("t", "a", asked("first of a", model="qwen"))
    store.append("t", "b", asked("first of b"))
    store.append("t", "a", asked("second of a", model="qwen"))
    store.append("u", "a", asked("hers"))
    store.append("t", "long", asked("x" * 30_000))
    first, second, third = store.list_sessions("t")
    assert (first.id, first.messages, first.question) == ("long", 2, "")
    assert (second.id, second.messages, second.tokens) == ("a", 4, 12)
    assert (second.question, second.active_model) == ("first of a", "qwen")
    assert third.id == "b"
    assert store.questions("t") == ("second of a", "first of b", "first of a")
    assert store.questions("t", 2) == ("second of a",), "of the last messages, however many of them ask"


def test_a_store_that_another_writes_to_has_another_version(store: SessionStore, path: Path) -> None:
    before = store.version()
    store.append("t", "s", asked("mine"))
    assert store.version() == before
    other = open_store(path)
    other.append("t", "s", asked("theirs"))
    other.close()
    assert store.version() != before


def test_the_order_of_sessions_is_of_use_whatever_the_clock_says(store: SessionStore, clock: Clock) -> None:
    for name, now in (("a", NOW), ("b", 0.0), ("c", 4e9), ("d", NOW + 1)):
        clock.now = now
        store.append("t", name, asked("one"))
    assert names(store) == ["d", "c", "b", "a"]
    clock.now = 0.0
    store.append("t", "a", asked("two"))
    assert names(store) == ["a", "d", "c", "b"]
    assert texts(store, "a") == ["one", "yes", "two", "yes"]


def live(store: SessionStore, clock: Clock, days: float, step: float = 10.0) -> None:
    """Let time pass, the store opened every few days."""
    end = clock.now + days * DAY
    while clock.now < end:
        clock.now = min(end, clock.now + step * DAY)
        store.prune(90, daily=True)


def test_retention_deletes_what_was_not_used_for_so_long(store: SessionStore, clock: Clock) -> None:
    assert store.prune(90, daily=True).doubtful, "the first look"
    store.append("t", "old", asked("one"))
    store.append("u", "hers", asked("one"))
    live(store, clock, 50)
    store.append("t", "new", asked("one"))
    live(store, clock, 40)
    assert names(store) == ["new", "old"], "not before the last day is over"
    live(store, clock, 2)
    assert names(store) == ["new"]
    assert store.list_sessions("u") == ()
    store.prune(0)
    assert names(store) == ["new"]


def test_retention_looks_once_a_day_and_prune_at_once(store: SessionStore, clock: Clock) -> None:
    store.append("t", "s", asked("one"))
    store.prune(1, daily=True)
    clock.now += 0.9 * DAY
    assert store.prune(1, daily=True).deleted == 0
    clock.now += 0.2 * DAY
    assert store.prune(1, daily=True).deleted == 1
    store.append("t", "s", asked("one"))
    for _ in range(3):
        clock.now += 0.5 * DAY
        found = store.prune(1)
    assert found.deleted == 1


@pytest.mark.parametrize("wrong", [0.0, 4_102_444_800.0, NOW - 60 * DAY, NOW + 200 * DAY])
def test_a_clock_that_jumps_and_comes_back_deletes_nothing(store: SessionStore, clock: Clock, wrong: float) -> None:
    store.append("t", "before", asked("one"))
    live(store, clock, 30)
    right, clock.now = clock.now, wrong
    store.append("t", "meanwhile", asked("one"))
    for _ in range(5):
        store.prune(90, daily=True)
        clock.now += 1.1 * DAY
    assert names(store) == ["meanwhile", "before"]
    clock.now = right + 6 * DAY
    for _ in range(5):
        store.prune(90, daily=True)
        clock.now += 1.1 * DAY
    assert names(store) == ["meanwhile", "before"]


def test_what_is_from_the_future_stays_and_ages_when_the_clock_is_right(store: SessionStore, clock: Clock) -> None:
    clock.now = 0.0
    store.append("t", "1970", asked("one"))
    clock.now = 4e9
    store.append("t", "2096", asked("one"))
    clock.now = NOW
    store.prune(90)
    live(store, clock, 91)
    assert names(store) == ["2096"]
    assert store.prune(90, force=True).deleted == 0


def test_prune_by_hand_says_when_it_doubts_the_clock_and_can_be_forced(store: SessionStore, clock: Clock) -> None:
    store.append("t", "s", asked("one"))
    store.prune(90)
    clock.now += 100 * DAY
    assert store.prune(90) == module.Pruned(0, doubtful=True)
    assert names(store) == ["s"]
    assert store.prune(90, force=True) == module.Pruned(1)


def test_what_is_deleted_is_not_in_the_files_any_more(store: SessionStore, path: Path, clock: Clock) -> None:
    """Many a SQLite is built to overwrite by itself, and hides here that it would have to be asked."""
    store.prune(1)
    for name in ("deleted", "undone", "aged"):
        store.append("t", name, asked(f"{name}-secret " * 500))
    store.append("t", "stays", asked("harmless"))
    files = [path, path.with_name("sessions.db-wal")]
    assert b"deleted-secret" in b"".join(f.read_bytes() for f in files)
    store.delete("t", "deleted")
    store.undo("t", "undone")
    clock.now += 2 * DAY
    assert store.prune(1).deleted == 4 - 1
    assert b"-secret" not in b"".join(f.read_bytes() for f in files)


def test_a_store_of_the_second_schema_is_migrated_with_what_is_in_it(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path, isolation_level=None)
    for script in module._MIGRATIONS[:2]:
        old.executescript(script)
    old.execute("PRAGMA user_version = 2")
    for name, updated in (("late", 30.0), ("early", 10.0), ("middle", 20.0)):
        facts = (name, 1.0, updated, "be brief", "m", 2)
        old.execute("INSERT INTO sessions VALUES ('t', ?, ?, ?, ?, ?, ?)", facts)
        body = module.encode_message(message("user", f"to {name}"))
        old.execute("INSERT INTO messages VALUES ('t', ?, 0, 1.5, 7, ?, '{\"a\": 1}')", (name, body))
        old.execute("INSERT INTO switches VALUES ('t', ?, 1.5, 'm', 'first')", (name,))
    old.close()
    store = open_store(path)
    kept = StoredMessage(message("user", "to early"), 1.5, 7, {"a": 1})
    expected = SessionRecord("early", 1.0, 10.0, "be brief", "m", 2, (kept,), ((1.5, "m", "first"),))
    assert store.load("t", "early") == expected
    assert names(store) == ["late", "middle", "early"]
    store.append("t", "early", asked("more"))
    assert names(store) == ["early", "late", "middle"]
    assert store.mark_compact("t", "late")
    store.keep_summary("t", "late", "k", "v")
    store.close()
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (3,)


# Appends exchanges of two messages to one session, undoing one in three.
CONTINUE = """
import sys
from pathlib import Path
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.types import message
store = open_store(Path(sys.argv[1]))
for n in range(40):
    both = message("user", f"{sys.argv[2]}-{n}"), message("assistant", f"to {sys.argv[2]}-{n}")
    store.append("t", "s", Exchange(tuple(StoredMessage(m, n, 1) for m in both), sys.argv[2], "r"))
    store.version(), store.mark_compact("t", "s")
    if n % 3 == 0:
        store.undo("t", "s")
"""


def test_two_processes_that_continue_one_session_add_whole_exchanges(path: Path) -> None:
    command = [sys.executable, "-c", CONTINUE, str(path)]
    children = [subprocess.Popen([*command, name]) for name in ("x", "y")]
    assert [child.wait() for child in children] == [0, 0]
    store = open_store(path)
    found = texts(store)
    session = store.load("t", "s")
    store.close()
    assert session is not None
    assert len(found) == 2 * 2 * (40 - 14)
    assert [f"to {question}" for question in found[::2]] == found[1::2]
    assert set(session.compact_at) <= set(range(2, len(found) + 1, 2))
