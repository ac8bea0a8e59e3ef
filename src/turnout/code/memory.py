"""How much memory a process and all that it has started take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def tree_memory(pid: int, proc: Path = Path("/proc")) -> int:
    """Resident bytes of a process and its descendants; 0 where the system has no ``/proc``."""
    found = {child: (parent, pages) for child, parent, pages in _processes(proc)}
    if not found:
        return 0
    tree, size = {pid}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {child for child, (parent, _) in found.items() if parent in tree}
    return sum(pages for child, (_, pages) in found.items() if child in tree) * os.sysconf("SC_PAGE_SIZE")


def _processes(proc: Path) -> Iterator[tuple[int, int, int]]:
    """Number, parent and resident pages of each."""
    for folder in proc.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            yield int(folder.name), int(fields[1]), int(fields[21])
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
