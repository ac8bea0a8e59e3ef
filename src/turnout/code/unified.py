"""Unified diffs in bounded time: where a comparison would take minutes, what differs is shown as one piece. Pure."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

_CONTEXT = 3
MOST_STEPS = 10_000_000  # comparisons: a second or two


class _TooMuchError(Exception):
    """Comparing takes more steps than it may."""


class _Matcher(difflib.SequenceMatcher[str]):
    """One that gives up. Its own search looks, for every line of a range, at each place where the other text has it."""

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new)
        places = Counter(new)
        most = len(new) if len(new) < 200 else len(new) // 100 + 1  # a line that is there more often is left out of it
        tried = ((count if (count := places[line]) <= most else 0) for line in old)
        self._lines = len(old)
        self._steps = [0, *accumulate(1 + count for count in tried)]
        self._left = MOST_STEPS

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> difflib.Match:
        self._left -= self._steps[self._lines if ahi is None else ahi] - self._steps[alo]
        if self._left < 0:
            raise _TooMuchError
        return super().find_longest_match(alo, ahi, blo, bhi)


def unified(old: Sequence[str], new: Sequence[str], was: str, becomes: str) -> Iterator[str]:
    """The lines of a diff without line breaks, its head included; nothing where nothing differs.

    Args:
        old, new: lines.
        was, becomes: the names in its head.
    """
    if list(old) == list(new):
        return
    matcher = _Matcher(old, new)
    try:
        groups = list(matcher.get_grouped_opcodes(_CONTEXT))
    except _TooMuchError:
        groups = [_one_piece(old, new)]
    yield f"--- {was}"
    yield f"+++ {becomes}"
    for group in groups:
        yield f"@@ -{_range(group[0][1], group[-1][2])} +{_range(group[0][3], group[-1][4])} @@"
        for tag, first, last, new_first, new_last in group:
            if tag == "equal":
                yield from (f" {line}" for line in old[first:last])
                continue
            yield from (f"-{line}" for line in old[first:last])
            yield from (f"+{line}" for line in new[new_first:new_last])


def _one_piece(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """From the first line that differs to the last one, and some lines around."""
    shorter, first, last = min(len(old), len(new)), 0, 0
    while first < shorter and old[first] == new[first]:
        first += 1
    while last < shorter - first and old[-1 - last] == new[-1 - last]:
        last += 1
    before, after = min(_CONTEXT, first), min(_CONTEXT, last)
    old_end, new_end = len(old) - last, len(new) - last
    pieces = [
        ("equal", first - before, first, first - before, first),
        ("replace", first, old_end, first, new_end),
        ("equal", old_end, old_end + after, new_end, new_end + after),
    ]
    return [piece for piece in pieces if piece[1] < piece[2] or piece[3] < piece[4]]


def _range(first: int, last: int) -> str:
    """Lines as a diff counts them: what is empty stands after the line before."""
    length = last - first
    if length == 1:
        return str(first + 1)
    return f"{first + 1 if length else first},{length}"
