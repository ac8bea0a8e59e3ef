"""kill -9 from outside, at instants drawn inside an apply: after the next start the workspace is before or after."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.code.test_apply import BOTH, NEW, OLD, contents
from turnout.code.apply import Editor

# Applies once and takes it back, tells how long the apply took, then applies for good and tells that it begins.
CHILD = """
import asyncio, sys, time
from pathlib import Path
from turnout.code.apply import Editor

root, data, answer = Path(sys.argv[1]), Path(sys.argv[2]), sys.stdin.read()

async def main():
    editor = Editor(root, data, audit=None)
    proposed = await editor.preview(answer)
    began = time.perf_counter()
    await editor.apply(proposed)
    took = time.perf_counter() - began
    await editor.undo()
    proposed = await editor.preview(answer)
    print(took, flush=True)
    await editor.apply(proposed)
    print("done", flush=True)

asyncio.run(main())
"""


def _killed(root: Path, rng: random.Random) -> str:
    """What the workspace is after a kill at a random instant of an apply, and after the next start: its state then."""
    command = [sys.executable, "-c", CHILD, str(root), str(root.parent / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(BOTH)
        child.stdin.close()
        took = float(child.stdout.readline())
        until = time.perf_counter() + rng.uniform(0, 1.2 * took)
        while time.perf_counter() < until:  # a sleep would be longer than the apply
            pass
        os.kill(child.pid, signal.SIGKILL)
    found = contents(root)
    half = "" if found in (OLD, NEW) else "half"
    asyncio.run(Editor(root, root.parent / "data", audit=None).recover())
    assert contents(root) in (OLD, NEW), found
    return half or ("after" if found == NEW else "before")


def _kill(tmp_path: Path, times: int) -> set[str]:
    rng, seen = random.Random(times), set[str]()
    for turn in range(times):
        root = tmp_path / str(turn) / "work"
        root.mkdir(parents=True)
        for name, data in OLD.items():
            (root / name).write_bytes(data)
        seen.add(_killed(root, rng))
    return seen


def test_a_few_kills_leave_all_or_nothing(tmp_path: Path) -> None:
    assert _kill(tmp_path, 4) <= {"before", "half", "after"}


@pytest.mark.heavy
def test_a_hundred_kills_leave_all_or_nothing(tmp_path: Path) -> None:
    assert _kill(tmp_path, 100) == {"before", "half", "after"}, "drawn inside it: some were half written"
