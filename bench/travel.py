"""How fast a model is exported and imported, beside ``sha256sum`` and ``cp`` of the same file in the same run.

PYTHONPATH=src python bench/travel.py [MEGABYTES [FOLDER]]

The file is in the page cache, as after the first reading; each of the four is on the disk when it ends, and each round
does all of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from turnout.backends.shelf import together
from turnout.fleet.packing import pack, sources_at
from turnout.fleet.placing import place
from turnout.guard.model_archive import Archive
from turnout.guard.model_manifest import Manifest
from turnout.guard.signing import Signer

ROUNDS = 5


def nobody(*_: object) -> None:
    pass


def export(here: Path) -> None:
    sources = sources_at([here / "w.gguf"])
    pack(here / "w.tar", Manifest(made="", model="w"), sources, Signer(here / "key"), nobody, nobody)


def bring(here: Path) -> None:
    with closing(Archive(here / "w.tar")) as archive:
        archive.check_signature(archive.key())
        place(archive, together(archive.manifest, "w", ""), here / "to", nobody, nobody)


def copy(here: Path) -> None:
    subprocess.run(["cp", here / "w.gguf", here / "copy"], check=True)
    with (here / "copy").open("rb") as file:
        os.fsync(file.fileno())


def main(megabytes: int, folder: str | None) -> None:
    here = Path(tempfile.mkdtemp(dir=folder))
    try:
        with (here / "w.gguf").open("wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1_000_000))
        steps: dict[str, Callable[[Path], object]] = {
            "sha256sum": lambda at: subprocess.run(["sha256sum", at / "w.gguf"], check=True, capture_output=True),
            "cp and fsync": copy,
            "export": export,
            "import": bring,
        }
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                began = time.perf_counter()
                step(here)
                taken[name].append(time.perf_counter() - began)
            for path in ("w.tar", "copy", "to/w.gguf"):
                (here / path).unlink()
        middle = {name: statistics.median(times) for name, times in taken.items()}
        together_ = middle["sha256sum"] + middle["cp and fsync"]
        for name, seconds in middle.items():
            spread = f"{min(taken[name]):.2f} to {max(taken[name]):.2f}"
            print(f"{name}: {seconds:.2f} s ({spread}), {megabytes / seconds:.0f} MB/s", end="")
            print(f", {together_ / seconds:.0%} of the speed of both" if name in ("export", "import") else "")
    finally:
        shutil.rmtree(here)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2] if len(sys.argv) > 2 else None)
