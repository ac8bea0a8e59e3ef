"""Serena and the language server ``ty`` in an environment of their own, from a package index or a wheelhouse.

Serena pins some 35 packages exactly, and is under the GPL from version 2 on: it shares neither our environment nor our
process (facts/serena.md, section 0). 1.7.0 is its last version under the MIT licence.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from turnout.errors import CodeSetupError
from turnout.files import lock_folder, unlock_folder
from turnout.guard.pip import pip_variables, run_pip
from turnout.guard.process import Network, spawn

SERENA_VERSIONS = ("2.1.0", "1.7.0")
TY_VERSION = "0.0.107"
_PACKAGE = "serena-agent"
_DONE = ".turnout-installed"
_BIN = "Scripts" if sys.platform == "win32" else "bin"
_SERENA, _TY = (f"{name}.exe" if sys.platform == "win32" else name for name in ("serena", "ty"))
# It adds the commit of the git repository that its environment lies in, if there is one.
_SAYS = re.compile(r"^Serena (\d+\.\d+[\w.]*)(?:-\S*)?\s*$", re.MULTILINE)
_VERSION_SECONDS = 30.0
# -P: a module in the working directory, which may be anybody's, must not take the place of an installed one.
_PYTHON = (sys.executable, "-P", "-m")
_REASONS = (
    ("ensurepip is not available", "this Python cannot make environments: install its venv package"),
    ("No module named venv", "this Python cannot make environments: install its venv package"),
    ("No module named ensurepip", "this Python cannot make environments: install its venv package"),
    ("No space left on device", "the disk is full"),
    ("connection broken by", "the package index cannot be reached"),
    ("Requires-Python", "it is not made for this version of Python"),
    ("to install build dependencies did not", "a package is there as source: `pip wheel` makes a wheel of it"),
    ("(from versions: none)", "the package is not there, or the index cannot be reached"),
    ("No matching distribution found", "that version is not there"),
)
_OFFLINE = "on a connected machine `pip wheel --wheel-dir DIR {packages}`, copy DIR here, and add `--wheelhouse DIR`"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SerenaProgram:
    """An installed Serena. ``version`` is "" when only the program itself can tell."""

    path: Path
    version: str


def environment_dir(data_dir: Path) -> Path:
    """The environment that ``install`` makes."""
    return data_dir.absolute() / "code" / "venv"


def find_serena(data_dir: Path, env: Mapping[str, str] = os.environ) -> SerenaProgram | None:
    """The Serena that ``install`` brought, else the one on the PATH, else None. The PyPI package ``serena``, which is
    something else, is no Serena."""
    ours = environment_dir(data_dir)
    if (ours / _DONE).is_file() and (ours / _BIN / _SERENA).is_file():
        return SerenaProgram(ours / _BIN / _SERENA, _version_in(ours) or "")
    # Relative entries would name programs of whatever directory is current.
    entries = [entry for entry in env.get("PATH", os.defpath).split(os.pathsep) if Path(entry).is_absolute()]
    found = shutil.which("serena", path=os.pathsep.join(entries))
    if found is None:
        return None
    version = _version_in(Path(found).resolve().parent.parent)
    return None if version is None else SerenaProgram(Path(found), version)


def _version_in(environment: Path) -> str | None:
    """The version of ``serena-agent`` there, "" when that cannot be seen, None when it is the other package."""
    libraries = [*environment.glob("lib/python3*/site-packages"), environment / "Lib" / "site-packages"]
    for library in libraries:
        for folder in library.glob("serena_agent-*.dist-info"):
            return folder.name.removesuffix(".dist-info").partition("-")[2]
    return None if any(any(library.glob("serena-*.dist-info")) for library in libraries) else ""


async def ask_version(program: Path) -> str:
    """The version that a Serena tells of itself, "" when it is none or does not answer."""
    with tempfile.TemporaryDirectory() as home:  # it makes its directories even for that
        try:
            child = await spawn(
                [str(program), "--version"], env={"SERENA_HOME": home, "SERENA_USAGE_REPORTING": "false"}
            )
        except OSError:
            return ""
        try:
            async with asyncio.timeout(_VERSION_SECONDS):
                told = _SAYS.search((await child.read_all()).decode("utf-8", "replace"))
        except TimeoutError:
            return ""
        finally:
            await child.stop()
    return told[1] if told else ""


async def install(
    data_dir: Path,
    *,
    wheelhouse: Path | None = None,
    serena: str = SERENA_VERSIONS[0],
    progress: Progress = lambda _: None,
) -> SerenaProgram:
    """Make the environment; nothing is done when it is there with that version.

    Args:
        data_dir: our data directory.
        wheelhouse: a directory of wheels; None asks the user's own package index through pip.
        serena: one of ``SERENA_VERSIONS``.
        progress: told each step in words.

    Raises:
        CodeSetupError: it cannot be made, or what was installed is not Serena.
    """
    if serena not in SERENA_VERSIONS:
        hint = f"take {' or '.join(SERENA_VERSIONS)}"
        raise CodeSetupError(f"Serena {serena} is no version that Turnout can speak with", hint=hint)
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise CodeSetupError(f"there is no directory {wheelhouse}", hint="give the directory that holds the wheels")
    place = environment_dir(data_dir)
    try:
        lock = await asyncio.to_thread(lock_folder, place.parent)
        try:
            return await _install(place, wheelhouse, serena, progress)
        finally:
            unlock_folder(lock)
    except OSError as error:
        hint = "make it writable, free 400 MB, or choose another place with TURNOUT_DATA_DIR"
        raise CodeSetupError(f"{place} cannot be written: {error.strerror or error}", hint=hint) from error


async def _install(place: Path, wheelhouse: Path | None, serena: str, progress: Progress) -> SerenaProgram:
    program, wanted = place / _BIN / _SERENA, packages(serena)
    if _is_done(place, wanted) and await ask_version(program) == serena:
        progress(f"already installed: Serena {serena} and ty {TY_VERSION}")
        return SerenaProgram(program, serena)
    (place / _DONE).unlink(missing_ok=True)
    progress(f"making an environment in {place}")
    # Our own pip installs into it, where there is one: some systems' Python comes without what brings pip along.
    own = importlib.util.find_spec("pip") is not None
    venv = [*_PYTHON, "venv", "--clear", *(("--without-pip",) if own else ()), str(place)]
    await _run(venv, "the environment was not made", progress, serena, "cut")
    inside = str(place / _BIN / "python")
    pip = [*_PYTHON, "pip", "--python", inside] if own else [inside, "-P", "-m", "pip"]
    pip += ["install", "--no-input", "--disable-pip-version-check"]
    source = ["--no-index", "--find-links", str(wheelhouse.absolute())] if wheelhouse is not None else []
    progress(f"installing {' and '.join(wanted)} from {wheelhouse or 'your package index'}")
    network: Network = "open" if wheelhouse is None else "cut"
    await _run([*pip, *source, *wanted], f"pip did not install {wanted[0]}", progress, serena, network)
    told = await ask_version(program)
    if told != serena or not (place / _BIN / _TY).is_file():
        raise CodeSetupError(
            f"what pip installed in {place} is not Serena {serena}" + (f" but {told}" if told else ""),
            hint=f"see whether the index's {_PACKAGE} is that of oraios",
        )
    (place / _DONE).write_text("\n".join(wanted), "utf-8")
    progress(f"installed: Serena {serena} and ty {TY_VERSION}")
    return SerenaProgram(program, serena)


def packages(serena: str) -> tuple[str, str]:
    """What pip is asked for; a wheelhouse holds them and all that they need."""
    return f"{_PACKAGE}=={serena}", f"ty=={TY_VERSION}"


def _is_done(place: Path, wanted: tuple[str, ...]) -> bool:
    try:
        return (place / _DONE).read_text("utf-8") == "\n".join(wanted)
    except OSError:
        return False


async def _run(command: list[str], failed: str, progress: Progress, serena: str, network: Network) -> None:
    """Run a step to its end, and tell of what pip does.

    Raises:
        CodeSetupError: it failed.
        OSError: it cannot be started.
    """
    ended = await run_pip(command, pip_variables(), network, progress)
    if not ended.ok:
        reason = next((ours for theirs, ours in _REASONS if theirs in ended.told), ended.last)
        raise CodeSetupError(f"{failed}: {reason}", hint=_OFFLINE.format(packages=" ".join(packages(serena))))
