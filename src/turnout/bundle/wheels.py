"""The packages of a bundle: which there must be, how they are had, and what they say of themselves.

``run.lock`` beside this file is ``requirements/run.lock`` without what only builds, and with pip, which installs the
rest on a machine that has none (CONTRIBUTING.md says how it is made; a test holds the two against each other).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.resources import files
from pathlib import Path

from turnout.bundle.target import Target
from turnout.embedded import ENGINE
from turnout.errors import BundleError
from turnout.guard.pip import Ended, pip_variables, run_pip

# -P: a module in the working directory, which may be anybody's, must not take the place of an installed one.
_PIP = (sys.executable, "-P", "-m", "pip")
_QUIET = ("--no-input", "--disable-pip-version-check", "--no-color")
_WANTED = re.compile(r"(?m)^(?=[A-Za-z0-9])")
_MISSED = re.compile(r"No matching distribution found for (\S+)")
_MIXED = re.compile(r"(?s)DO NOT MATCH THE HASHES.*?\n\s+(\S+) from ")
_REASONS = (
    ("No module named pip", "this Python has no pip"),
    ("No space left on device", "the disk is full"),
    ("connection broken by", "your package index cannot be reached"),
)
# Serena needs it, and it is on indexes as source alone (facts/serena.md).
_AS_SOURCE = ("proxy_tools",)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel. ``digest`` is its SHA-256, ``licences`` what it says of them: an expression, or names."""

    path: Path
    name: str
    version: str
    digest: str
    expression: str
    licences: tuple[str, ...]


def lock_text() -> str:
    """The lock that came with this Turnout."""
    return files("turnout.bundle").joinpath("run.lock").read_text("utf-8")


async def gather(
    lock: str, folder: Path, target: Target, sources: Sequence[Path], *, engine: bool, progress: Progress
) -> None:
    """Put every wheel of the lock for that machine into ``folder``, each with a hash that is there.

    Args:
        lock: requirements with hashes, as pip reads them.
        folder: where they go.
        target: the machine.
        sources: folders of wheels; none asks the user's own package index through pip.
        engine: whether that of the demonstration model is among them.
        progress: told each step in words.

    Raises:
        BundleError: one is missing, or has none of the hashes.
        OSError: a file cannot be written.
    """
    folder.mkdir()
    wanted = folder.parent / "run.lock"
    wanted.write_text("".join(e for e in _WANTED.split(lock) if engine or not e.startswith(ENGINE)), "utf-8")
    command = ["download", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    await _pip([*command, *target.pip_options(), "-r", str(wanted)], sources, folder.parent, progress)


async def gather_serena(
    packages: Sequence[str], folder: Path, target: Target, sources: Sequence[Path], progress: Progress
) -> None:
    """Put what ``turnout code install --wheelhouse`` needs into ``folder``; the rest as ``gather``."""
    folder.mkdir()
    if not sources:
        await _pip(["wheel", "--no-deps", "--wheel-dir", str(folder), *_AS_SOURCE], (), folder.parent, progress)
    command = ["download", "--only-binary", ":all:", "--dest", str(folder), *target.pip_options()]
    await _pip([*command, "--find-links", str(folder), *packages], sources, folder.parent, progress)


async def _pip(command: list[str], sources: Sequence[Path], scratch: Path, progress: Progress) -> None:
    """Run pip to its end. With ``sources`` it sees these folders alone, else what the user has set up for it."""
    if sources:
        settings = {"PIP_CONFIG_FILE": os.devnull}
        command = [
            *command,
            "--no-index",
            *(part for source in sources for part in ("--find-links", str(source.absolute()))),
        ]
    else:
        settings = pip_variables()
    # What is built from source has the times of its files in it otherwise.
    settings |= {"TMPDIR": str(scratch), "SOURCE_DATE_EPOCH": "315532800"}
    try:
        ended = await run_pip([*_PIP, *command, *_QUIET], settings, "cut" if sources else "open", progress)
    except OSError as error:
        raise BundleError(
            f"pip did not start: {error.strerror or error}", hint="give the wheels with --wheels DIR"
        ) from error
    if not ended.ok:
        hint = "on a connected machine `turnout bundle make` without --wheels asks your package index"
        raise BundleError(f"the packages are not all there: {_reason(ended)}", hint=hint if sources else "")


def _reason(ended: Ended) -> str:
    if mixed := _MIXED.search(ended.told):
        return f"{mixed[1]} has another SHA-256 than the lock tells: it is not the file that was locked"
    if missed := _MISSED.search(ended.told):
        return f"no wheel of {missed[1].partition(';')[0]} that runs there"
    return next((ours for theirs, ours in _REASONS if theirs in ended.told), ended.last)


def read_wheel(path: Path) -> Wheel:
    """What a wheel says of itself. Raises BundleError: it is none."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(path) as wheel:
            (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
            said = HeaderParser().parsestr(wheel.read(name).decode("utf-8", "replace"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path.name} is no wheel", hint="take it out of the folder") from error
    classified = [c.rpartition(" :: ")[2] for c in said.get_all("Classifier", []) if c.startswith("License :: ")]
    free = (said.get("License") or "").strip().splitlines()
    licences = tuple(dict.fromkeys(classified)) or tuple(line for line in free[:1] if len(line) < 100)
    expression = (said.get("License-Expression") or "").strip()
    named = re.sub(r"[-_.]+", "-", str(said["Name"])).lower()
    return Wheel(path, named, str(said["Version"]), digest, expression, licences)
