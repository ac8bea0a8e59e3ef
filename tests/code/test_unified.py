"""Diffs are those of Python's library, but for what would take it minutes."""

from __future__ import annotations

import difflib
import random

import pytest

from turnout.code import unified as module
from turnout.code.unified import unified


def test_a_diff_is_that_of_the_library() -> None:
    chance = random.Random(7)
    for _ in range(500):
        old = [chance.choice("abcdefgh") for _ in range(chance.randint(0, 40))]
        new = [chance.choice((line, line, line, "x", "y")) for line in old][chance.randint(0, 3) :]
        new[chance.randint(0, len(new)) : 0] = chance.choices("abz", k=chance.randint(0, 3))
        assert list(unified(old, new, "a/f", "b/f")) == list(difflib.unified_diff(old, new, "a/f", "b/f", lineterm=""))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([str(n % 150) for n in range(200_000)], [str(n * 7 % 150) for n in range(200_000)]),
        ([str(n) for n in range(20_000)], [str(n ^ 1) for n in range(20_000)]),
    ],
)
def test_what_would_take_minutes_is_one_piece(old: list[str], new: list[str]) -> None:
    old, new = [*"123456", *old, *"654321"], [*"123456", *new, *"654321"]
    found = list(unified(old, new, "a/f", "b/f"))
    assert sum(line.startswith("@@") for line in found) == 1
    stays_and_goes = [line[1:] for line in found[3:] if line[0] != "+"]
    first = int(found[2].partition(",")[0].removeprefix("@@ -")) - 1
    assert stays_and_goes == old[first : first + len(stays_and_goes)]
    assert len(stays_and_goes) > len(old) - 20


def test_one_piece_is_a_diff_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 0)
    old = [*"abcdefgh"]
    assert list(unified(old, [*"abcdXYfgh"], "a/f", "b/f")) == [
        *("--- a/f", "+++ b/f", "@@ -2,7 +2,8 @@", " b", " c", " d", "-e", "+X", "+Y", " f", " g", " h"),
    ]
    assert list(unified([], ["a"], "/dev/null", "b/f"))[2:] == ["@@ -0,0 +1 @@", "+a"]
    assert list(unified(["a"], [], "a/f", "/dev/null"))[2:] == ["@@ -1 +0,0 @@", "-a"]
