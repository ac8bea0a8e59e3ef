"""The machine that a bundle is for: a version of Python and a kind of processor, under Linux with glibc."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from turnout.errors import BundleError

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
# Wheels for older systems run on newer ones; 2.28 is the glibc of RHEL 8.
_NEWEST_GLIBC, _OLDEST_GLIBC = 28, 5
_AS_WE_SAY = {"arm64": "aarch64", "amd64": "x86_64"}
_GLIBC = re.compile(r"manylinux_(\d+)_(\d+)_")
_OLD_NAMES = {"manylinux1_": (2, 5), "manylinux2010_": (2, 12), "manylinux2014_": (2, 17)}


@dataclass(frozen=True, slots=True)
class Target:
    """``python`` as in 3.11, ``machine`` as the kernel of that machine calls it."""

    python: str
    machine: str

    @property
    def name(self) -> str:
        """As it is in the bundle's name."""
        return f"linux_{self.machine}-cp{self.python.replace('.', '')}"

    @property
    def is_here(self) -> bool:
        """Whether this process runs on such a machine."""
        return self == _here() and sys.platform == "linux"

    def pip_options(self) -> list[str]:
        """What pip is told so that it takes wheels for that machine, whatever this one is."""
        tags = [f"manylinux_2_{minor}" for minor in range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1)]
        tags += [*(name.rstrip("_") for name in reversed(_OLD_NAMES)), "linux"]
        platforms = [part for tag in tags for part in ("--platform", f"{tag}_{self.machine}")]
        version = self.python.replace(".", "")
        abis = ["--abi", f"cp{version}", "--abi", "abi3", "--abi", "none"]
        return ["--python-version", self.python, "--implementation", "cp", *abis, *platforms]


def target_of(python: str = "", machine: str = "") -> Target:
    """That of this process, but for what is given.

    Raises:
        BundleError: nothing can be made for it.
    """
    here = _here()
    wanted = Target(python or here.python, machine or here.machine)
    if wanted.python not in PYTHONS or wanted.machine not in MACHINES:
        hint = f"--python {'|'.join(PYTHONS)}, --arch {'|'.join(MACHINES)}"
        raise BundleError(f"no bundle can be made for Python {wanted.python} on {wanted.machine}", hint=hint)
    return wanted


def _here() -> Target:
    machine = platform.machine().lower()
    return Target(f"{sys.version_info[0]}.{sys.version_info[1]}", _AS_WE_SAY.get(machine, machine))


def oldest_glibc(wheels: Iterable[str]) -> str:
    """The oldest glibc under which all these wheels run, told by their names."""
    needed = (2, 5)
    for name in wheels:
        last = name.removesuffix(".whl").rpartition("-")[2]
        found = [(int(major), int(minor)) for major, minor in _GLIBC.findall(last)]
        found += [version for old, version in _OLD_NAMES.items() if old in last]
        needed = max(needed, min(found, default=needed))
    return f"{needed[0]}.{needed[1]}"
