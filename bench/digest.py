"""How fast a file of weights is read and digested, beside ``sha256sum``, and how much of a second thread that costs.

python bench/digest.py [FILE]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from turnout.guard.identity import Digests

ROUNDS, BYTES = 7, 1_000_000_000


def ours(file: Path, folder: Path) -> float:
    began = time.perf_counter()
    Digests(folder / "digests.json").digest(file, anew=True)
    return time.perf_counter() - began


def theirs(file: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["sha256sum", file], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def counted(seconds: float, stop: threading.Event | None = None) -> float:
    """Turns a second of a thread that does nothing but Python."""
    turns, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds and not (stop and stop.is_set()):
        turns += 1
    return turns / (time.perf_counter() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "weights.gguf"
        if len(sys.argv) == 1:
            with file.open("wb") as made:
                for _ in range(BYTES // 10_000_000):
                    made.write(os.urandom(10_000_000))
        size = file.stat().st_size
        ours(file, folder)  # into the page cache
        pairs = [(ours(file, folder), theirs(file)) for _ in range(ROUNDS)]
        mine, sums = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        alone, stop = counted(1.0), threading.Event()
        reader = threading.Thread(target=lambda: (ours(file, folder), stop.set()))
        reader.start()
        beside = counted(60.0, stop)
        reader.join()
        began = time.perf_counter()
        known = Digests(folder / "digests.json")
        for _ in range(10_000):
            known.known(file)
        each = (time.perf_counter() - began) / 10_000
    print(f"| what | of {size / 1e9:.2f} GB in the page cache, median of {ROUNDS} |")
    print("| --- | --- |")
    print(f"| `sha256sum` | {size / sums / 1e6:,.0f} MB/s |")
    spread = f"{ratios[ROUNDS // 2]:.0%} ({ratios[0]:.0%} to {ratios[-1]:.0%})"
    print(f"| Turnout | {size / mine / 1e6:,.0f} MB/s, {spread} |")
    print(f"| what a thread of Python keeps of its speed meanwhile | {beside / alone:.0%} |")
    print(f"| whether a file is the one that was read before | {each * 1e6:.1f} us |")


if __name__ == "__main__":
    main()
