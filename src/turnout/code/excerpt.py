"""Which lines of a file are sent, within a budget of characters. Pure."""

from __future__ import annotations

from collections.abc import Sequence

# Lines on each side of a position: those that are wanted, and the most where the definition is too long to be sent.
NEAR, FAR = 10, 40
MAX_LINE = 300
_NUMBERED = 10  # characters that the number before a line costs


def cost(lines: Sequence[str]) -> int:
    """Characters that lines take when they are shown."""
    return sum(min(len(line), MAX_LINE) + _NUMBERED for line in lines)


def around(lines: Sequence[str], line: int, blocks: Sequence[tuple[int, int]], room: int) -> tuple[int, int]:
    """First and last line of an excerpt around ``line`` (1-based).

    Args:
        lines: the file's.
        line: what was asked about; it is always in it.
        blocks: what surrounds it, what is wanted most first: the first that fits is sent whole.
        room: characters there is room for.
    """
    near = max(1, line - NEAR), min(len(lines), line + NEAR)
    for first, last in blocks:
        both = min(first, near[0]), max(last, near[1])
        for begin, end in (both, (first, last)):
            if cost(lines[begin - 1 : end]) <= room:
                return begin, end
    reach = (max(1, line - FAR), min(len(lines), line + FAR)) if blocks else near
    return _grown(lines, line, reach, room)


def _grown(lines: Sequence[str], line: int, reach: tuple[int, int], room: int) -> tuple[int, int]:
    first = last = line
    left = room - cost(lines[line - 1 : line])
    while True:
        before = cost(lines[first - 2 : first - 1]) if first > reach[0] else room + 1
        after = cost(lines[last : last + 1]) if last < reach[1] else room + 1
        up = first > reach[0] and before <= left and (line - first <= last - line or after > left)
        if not up and (last >= reach[1] or after > left):
            return first, last
        first, last, left = (first - 1, last, left - before) if up else (first, last + 1, left - after)


def beginning(lines: Sequence[str], most: int, room: int) -> int:
    """The last line of what is sent of a file's beginning: at most ``most`` lines; 0 when not even one fits."""
    for number, line in enumerate(lines[:most]):
        room -= cost((line,))
        if room < 0:
            return number
    return min(most, len(lines))
