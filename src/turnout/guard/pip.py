"""pip in a child: what the user's own environment tells it, and its steps as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from turnout.guard.process import Network, spawn

_READS = ("PIP_", "SSL_", "REQUESTS_", "CURL_", "XDG_", "NETRC", "APPDATA")
# Where pip installs and downloads to is ours to say.
_PLACES = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_DEST", "PIP_PYTHON", "PIP_DRY_RUN")
_STEPS = ("Collecting ", "Processing ", "Building wheel", "Installing collected")
_KEPT_LINES = 20
_LINE_BYTES = 1 << 20  # it names all packages in one line


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended. ``told``: the last lines of its output, then what it wrote to standard error."""

    ok: bool
    told: str

    @property
    def last(self) -> str:
        """The last line, or that there is none."""
        lines = [line.strip() for line in self.told.splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it gave no reason"


def pip_variables() -> dict[str, str]:
    """What the user's own environment tells pip of index, proxy and certificates; what ``spawn`` would not pass on."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_READS) or name.upper().endswith("_PROXY")) and name not in _PLACES
    }


async def run_pip(
    command: Sequence[str], env: Mapping[str, str], network: Network, progress: Callable[[str], None]
) -> Ended:
    """Run it to its end.

    Args:
        command: the whole of it, with its program.
        env: variables beside those that every child gets.
        network: "cut" where it is given all that it needs.
        progress: told each step in words.

    Raises:
        OSError: it cannot be started.
    """
    child = await spawn(command, env=env, line_bytes=_LINE_BYTES, network=network)
    said: list[str] = []
    try:
        while line := (await child.read_line(None)).decode("utf-8", "replace"):
            said = [*said[-_KEPT_LINES:], line.strip()]
            if line.startswith(_STEPS):
                step = line.split(" (from")[0].partition(" ;")[0].partition(":")[0]
                progress(step.partition("==")[0].strip())
        await child.read_all()
    finally:
        await child.stop()
    return Ended(child.returncode == 0, "\n".join((*said, child.errors)))
