"""Runs a command with every address of the world leading to a recorder; fails if it made a packet off the allow-list.

python tests/isolated.py python -m tests.guard.recorded COMMAND...
"""

from __future__ import annotations

import subprocess
import sys

from tests.guard.recorder import recording
from tests.isolated import lead_everywhere_home
from turnout.config import SecurityConfig
from turnout.guard.allow import AllowList


def main(command: list[str]) -> None:
    """Run it; its exit code, or 1."""
    if not command:
        sys.exit("usage: python -m tests.guard.recorded COMMAND...")
    lead_everywhere_home()
    with recording() as recorder:
        code = subprocess.run(command, check=False).returncode
        off = sorted(recorder.off(AllowList.from_config(SecurityConfig())))
    print(f"packets off the allow-list: {', '.join(off) or 'none'}", flush=True)
    sys.exit(code or bool(off))


if __name__ == "__main__":
    main(sys.argv[1:])
