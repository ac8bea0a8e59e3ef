"""kill -9 while a store is written, at instants inside the operation (SPEC CTX-2). All 200: `make test-heavy`."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from turnout.context.store import open_store

# Says "b N" before and "a N" after each exchange. Every size: of one page, of many, and of enough for checkpoints.
WRITER = """
import os, sys
from pathlib import Path
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.types import message
path, session = Path(sys.argv[1]), sys.argv[2]
os.write(1, b"b -1\\n")
store = open_store(path)
os.write(1, b"a -1\\n")
for n in range(1_000_000):
    both = (message("user", f"{n} asked " + "x" * (n * 7919 % 90_000)), message("assistant", f"{n} answered"))
    added = Exchange(tuple(StoredMessage(m, n, 1) for m in both), f"m{n % 3}", "r")
    os.write(1, b"b %d\\n" % n)
    store.append("t", session, added)
    os.write(1, b"a %d\\n" % n)
"""


def expected(count: int) -> list[str]:
    exchanges = ((f"{n} asked " + "x" * (n * 7919 % 90_000), f"{n} answered") for n in range(count))
    return [text for both in exchanges for text in both]


@dataclass
class Landed:
    """Where kills landed: in an operation (and of these, whether it was safe already), or between two."""

    before_commit: int = 0
    behind_commit: int = 0
    between: int = 0

    @property
    def inside(self) -> int:
        return self.before_commit + self.behind_commit


class Victim:
    """A process that writes until it is killed, and what it has said."""

    def __init__(self, path: Path, session: str) -> None:
        command = [sys.executable, "-c", WRITER, str(path), session]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._said = self._process.stdout
        self.acknowledged = 0

    def hear(self) -> str:
        """ "b" when it begins an operation, "a" when it has ended it, "" when it is dead."""
        what, _, number = self._said.readline().decode().partition(" ")
        if what == "a":
            self.acknowledged = int(number) + 1
        return what

    def durations(self, number: int) -> list[float]:
        """Seconds of its next operations, as they are seen from here."""
        found = []
        for _ in range(number):
            assert self.hear() == "b"
            began = time.perf_counter()
            assert self.hear() == "a"
            found.append(time.perf_counter() - began)
        return found

    def killed_within(self, seconds: float) -> bool:
        """End it that long after it begins its next operation; whether it was in one then."""
        assert self.hear() == "b"
        time.sleep(seconds)
        os.kill(self._process.pid, signal.SIGKILL)
        last = "b"
        with self._process:
            while what := self.hear():
                last = what
        return last == "b"


def check_whole(path: Path, session: str) -> int:
    """The exchanges that are there, after everything that must hold of them."""
    raw = sqlite3.connect(path, isolation_level=None, timeout=0)
    raw.execute("BEGIN IMMEDIATE")  # at once: nothing waits for the dead
    assert raw.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    raw.execute("ROLLBACK")
    raw.close()
    store = open_store(path)
    try:
        found = store.load("t", session)
        texts = [m.message.text for m in found.messages] if found else []
        assert texts == expected(len(texts) // 2)
        assert found is None or found.active_model == f"m{(len(texts) // 2 - 1) % 3}"
    finally:
        store.close()
    assert list(path.parent.glob("*corrupt*")) == []
    return len(texts) // 2


def kill_and_look(path: Path, session: str, chance: random.Random, landed: Landed) -> int:
    victim = Victim(path, session)
    usual = statistics.median(victim.durations(chance.randrange(4, 12)))
    inside = victim.killed_within(chance.random() * usual)
    kept = check_whole(path, session)
    assert victim.acknowledged <= kept <= victim.acknowledged + inside
    landed.between += not inside
    landed.behind_commit += kept > victim.acknowledged
    landed.before_commit += inside and kept == victim.acknowledged
    return kept


HEAVY = (pytest.mark.heavy, pytest.mark.timeout(600))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=HEAVY)])
def test_a_writer_killed_inside_an_operation_loses_nothing_it_had_told_of(tmp_path: Path, kills: int) -> None:
    path, chance, landed = tmp_path / "sessions.db", random.Random(4), Landed()
    # One store for all: what a kill leaves is what the next one finds.
    kept = {f"s{n}": kill_and_look(path, f"s{n}", chance, landed) for n in range(kills)}
    print(landed)
    assert landed.inside >= kills / 5
    assert {session: check_whole(path, session) for session in kept} == kept, "later kills took nothing either"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=HEAVY)])
def test_a_process_killed_while_it_makes_the_store_is_in_nobodys_way(tmp_path: Path, kills: int) -> None:
    chance, inside, made = random.Random(5), 0, 0
    usual = statistics.median(opening(tmp_path / f"usual{n}" / "sessions.db") for n in range(3))
    for n in range(kills):
        path = tmp_path / str(n) / "sessions.db"
        victim = Victim(path, "s")
        within = victim.killed_within(chance.random() * usual)
        made += path.exists()
        path.parent.mkdir(exist_ok=True)
        assert victim.acknowledged <= check_whole(path, "s") <= victim.acknowledged + within
        inside += within
    print(f"{kills} kills: {inside} while it was made, {made} with a file there")
    assert inside >= kills / 5


def opening(path: Path) -> float:
    victim = Victim(path, "s")
    (seconds,) = victim.durations(1)
    victim.killed_within(0)
    return seconds
