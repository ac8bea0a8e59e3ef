"""What the cut of children costs a start: medians of starts that take turns.

PYTHONPATH=src:. python bench/cut.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from turnout.guard import launcher

STARTS = 50


def main() -> None:
    launched = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())]
    commands = {
        "the program alone": ["/bin/true"],
        "launched, network open": [*launched, "open", "/bin/true"],
        "launched, network cut": [*launched, "cut", "/bin/true"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True)
            took[name].append(time.perf_counter() - began)
    for name, times in took.items():
        print(f"{name}: {statistics.median(times) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
