"""Votes: they move a score slowly and not far, fade, are lost by nobody, and survive what may be wrong with a file."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import StorageError
from turnout.fleet import feedback
from turnout.fleet.feedback import HALF_LIFE, MOST_POINTS, Feedback, Votes, feedback_change, feedback_words

NOW = 1_780_000_000.0
counts = st.floats(0, 1e6)


def vote(box: Feedback, number: int, *, good: bool = True, model: str = "m", note: str = "") -> Votes:
    return box.vote(f"{number:032x}", model, "coding", "local", good=good, note=note)


def test_it_takes_twenty_votes_to_move_a_score_by_half_of_what_they_can() -> None:
    assert feedback_change(Votes()) == 0.0
    assert feedback_change(Votes(good=1)) < 0.5
    assert feedback_change(Votes(good=20)) == MOST_POINTS / 2
    assert feedback_change(Votes(bad=20)) == -MOST_POINTS / 2
    assert feedback_change(Votes(10, 10)) == 0.0
    assert feedback_words(Votes(3, 1)) == "feedback +0.8 (3 good, 1 bad)"


@given(counts, counts, st.floats(0, 1e5))
def test_no_number_of_votes_moves_it_further_and_a_better_one_never_down(good: float, bad: float, more: float) -> None:
    change = feedback_change(Votes(good, bad))
    assert abs(change) <= MOST_POINTS
    assert feedback_change(Votes(good + more, bad)) >= change - 1e-9
    assert feedback_change(Votes(good, bad + more)) <= change + 1e-9
    assert feedback_change(Votes(bad, good)) == pytest.approx(-change)


def test_votes_are_for_one_model_and_kind_of_work(tmp_path: Path) -> None:
    box = Feedback(tmp_path / "feedback.json", clock=lambda: NOW)
    vote(box, 1)
    vote(box, 2, good=False)
    vote(box, 3, model="other")
    assert box.of("m") == {"coding": Votes(1, 1, NOW)}
    assert box.of("other") == {"coding": Votes(1, 0, NOW)}
    assert box.of("third") == {}
    assert (tmp_path / "feedback.json").stat().st_mode & 0o777 == 0o600


def test_a_second_vote_on_the_same_request_changes_the_first() -> None:
    box = Feedback(clock=lambda: NOW)
    for _ in range(5):
        vote(box, 1)
    assert box.of("m")["coding"] == Votes(1, 0, NOW)
    vote(box, 1, good=False, note="it does not compile")
    assert box.of("m")["coding"] == Votes(0, 1, NOW)
    assert box.given[f"{1:032x}"].note == "it does not compile"


def test_they_fade(tmp_path: Path) -> None:
    now = [NOW]
    box = Feedback(tmp_path / "feedback.json", clock=lambda: now[0])
    for number in range(8):
        vote(box, number)
    now[0] += HALF_LIFE
    assert box.of("m")["coding"].good == pytest.approx(4.0)
    assert vote(box, 9).good == pytest.approx(5.0)
    assert vote(box, 1, good=False) == Votes(pytest.approx(4.5), 1.0, now[0]), "what is taken back has faded too"
    now[0] += 1000 * HALF_LIFE
    assert box.of("m")["coding"].good == pytest.approx(0.0)


@pytest.mark.parametrize("step", [-1.0, -1e9, -NOW])
def test_a_clock_that_was_set_back_makes_nothing_explode(step: float) -> None:
    now = [NOW]
    box = Feedback(clock=lambda: now[0])
    vote(box, 1)
    now[0] += step
    assert box.of("m")["coding"].good == 1.0
    assert vote(box, 2) == Votes(2.0, 0.0, now[0])
    assert vote(box, 1, good=False) == Votes(1.0, 1.0, now[0])


def test_votes_of_several_processes_are_all_counted(tmp_path: Path) -> None:
    path = tmp_path / "data" / "feedback.json"
    boxes = [Feedback(path, clock=lambda: NOW) for _ in range(4)]

    def voting(box: Feedback, first: int) -> None:
        for number in range(first, first + 10):
            vote(box, number)

    threads = [threading.Thread(target=voting, args=(box, n * 10)) for n, box in enumerate(boxes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Feedback(path, clock=lambda: NOW).of("m")["coding"].good == 40.0
    assert [p.name for p in path.parent.iterdir()] == ["feedback.json"]


def test_others_see_it_at_their_next_look(tmp_path: Path) -> None:
    here, there = (Feedback(tmp_path / "feedback.json", clock=lambda: NOW) for _ in range(2))
    assert not there.refresh()
    vote(here, 1)
    assert there.of("m") == {}
    assert there.refresh()
    assert there.of("m") == {"coding": Votes(1, 0, NOW)}
    assert not there.refresh()
    assert not here.refresh(), "one's own is no news"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"votes": {"m": 1}}', b'{"votes": {"m": {"coding": {"good": NaN}}}}'],
)
def test_a_damaged_file_counts_for_nothing_and_is_kept_aside(
    tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "feedback.json"
    path.write_bytes(body)
    box = Feedback(path, clock=lambda: NOW)
    assert box.of("m") == {}
    assert not box.refresh()
    assert len([r for r in caplog.records if "counts for nothing" in r.message]) == 1
    assert vote(box, 1) == Votes(1, 0, NOW)
    assert (tmp_path / "feedback.damaged").read_bytes() == body
    assert Feedback(path, clock=lambda: NOW).of("m") == {"coding": Votes(1, 0, NOW)}


@pytest.mark.parametrize("votes", [{"good": -3}, {"bad": -1e9}, {"good": 1e300}, {"good": 1, "at": 1e400}])
def test_counts_that_cannot_be_count_for_nothing(
    tmp_path: Path, votes: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "feedback.json"
    sane = {"good": 2.0, "at": NOW}
    text = json.dumps({"votes": {"m": {"coding": votes, "analysis": sane}}}).replace("Infinity", "1e400")
    path.write_text(text)
    found = Feedback(path, clock=lambda: NOW).of("m")
    assert "coding" not in found
    assert "cannot be" in caplog.text
    assert all(math.isfinite(feedback_change(v)) for v in found.values())


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "dir", "device"]
)
def test_what_is_no_file_holds_nobody_up(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "feedback.json")
    assert Feedback(tmp_path / "feedback.json").of("m") == {}
    assert "counts for nothing" in caplog.text


def test_a_vote_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be kept"):
        vote(Feedback(tmp_path / "file" / "feedback.json"), 1)


def test_it_never_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MAX_MODELS", 5)
    monkeypatch.setattr(feedback, "MAX_GIVEN", 7)
    box = Feedback(clock=lambda: NOW)
    for number in range(20):
        vote(box, number, model=f"m{number}", note="n" * 10_000)
    assert [name for name in (f"m{n}" for n in range(20)) if box.of(name)] == [f"m{n}" for n in range(15, 20)]
    assert len(box.given) == 7
    assert max(len(g.note) for g in box.given.values()) == feedback.MAX_NOTE
