"""Bundles of a few small files with the real installer and checker in them, and what somebody could do to them."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tarfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from turnout.bundle.archive import write_archive
from turnout.bundle.carried.verify import LIST, SIGNATURE
from turnout.guard.signing import Signer

TOP = "turnout-bundle-0.1.0-linux_x86_64-cp311"


def write_small(folder: Path, signer: Signer) -> None:
    """The files of a bundle, listed and signed."""
    (folder / "wheels").mkdir(parents=True)
    for name in ("install.sh", "verify.py", "README.txt"):
        (folder / name).write_bytes(files("turnout.bundle.carried").joinpath(name).read_bytes())
    about = {"turnout": "0.1.0", "python": "{}.{}".format(*sys.version_info), "machine": platform.machine()}
    (folder / "bundle.json").write_text(json.dumps({**about, "glibc": "2.5"}, indent=2))
    (folder / "requirements.txt").write_text("")
    (folder / "wheels" / "pip-1-py3-none-any.whl").write_bytes(b"no wheel, and never looked into")
    (folder / "signing.pub").write_bytes(signer.public.pem)
    sign(folder, signer)


def sign(folder: Path, signer: Signer) -> None:
    """List what is there, and sign the list."""
    names = sorted(members(folder).keys() - {LIST, SIGNATURE})
    text = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / LIST).write_text(text)
    (folder / SIGNATURE).write_bytes(bytes.fromhex(signer.sign(text.encode())))


def members(folder: Path) -> dict[str, Path]:
    """Every plain file by its name in the bundle."""
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def archive(folder: Path, target: Path) -> Path:
    """The folder as one file, as `bundle make` writes it."""
    write_archive(target, TOP, members(folder), lambda _: None)
    return target


def _replace(name: str, content: bytes) -> Callable[[Path, Signer], None]:
    return lambda folder, _: (folder / name).write_bytes(content) and None


def _add(folder: Path, _: Signer) -> None:
    (folder / "wheels" / "extra-1-py3-none-any.whl").write_bytes(b"x")


def _listed_anew(folder: Path, _: Signer) -> None:
    """A changed file, its digest put into the list, the signature left as it was."""
    signature = (folder / SIGNATURE).read_bytes()
    (folder / "README.txt").write_text("something else\n")
    sign(folder, Signer(folder.parent / "another"))
    (folder / SIGNATURE).write_bytes(signature)


def _signed_by_another(folder: Path, _: Signer) -> None:
    (folder / "README.txt").write_text("something else\n")
    sign(folder, Signer(folder.parent / "another"))


def _unlist(folder: Path, signer: Signer) -> None:
    """A file that the signed list does not name."""
    kept = (folder / "README.txt").read_bytes()
    (folder / "README.txt").unlink()
    sign(folder, signer)
    (folder / "README.txt").write_bytes(kept)


# What was done -> (how, what is said).
TAMPERED: dict[str, tuple[Callable[[Path, Signer], None], str]] = {
    "a wheel changed": (_replace("wheels/pip-1-py3-none-any.whl", b"another"), "changed: wheels/pip-1"),
    "the installer changed": (_replace("install.sh", b"rm -rf /\n"), "changed: install.sh"),
    "a file emptied": (_replace("requirements.txt", b"x"), "changed: requirements.txt"),
    "a file added": (_add, "not in the list: wheels/extra-1"),
    "a file removed": (lambda folder, _: (folder / "README.txt").unlink(), "missing: README.txt"),
    "a file unlisted": (_unlist, "not in the list: README.txt"),
    "the list changed": (_listed_anew, "the signature of SHA256SUMS is not that of its key"),
    "the list damaged": (_replace(LIST, b"hello\n"), "the signature of SHA256SUMS"),
    "the list removed": (lambda folder, _: (folder / LIST).unlink(), "missing: SHA256SUMS"),
    "the signature removed": (lambda folder, _: (folder / SIGNATURE).unlink(), "missing: SHA256SUMS.sig"),
    "the signature cut": (_replace(SIGNATURE, b"x" * 63), "the signature of SHA256SUMS"),
    "the key removed": (lambda folder, _: (folder / "signing.pub").unlink(), "missing: signing.pub"),
    "the key damaged": (_replace("signing.pub", b"-----BEGIN"), "is no Ed25519 public key"),
    "signed by another key": (_signed_by_another, "the signature of SHA256SUMS"),
}


def _member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, 0o644, 315_532_800
    return info


# Members that no bundle has, put before the first one, and what is said.
_KIND, _NAME = "'turnout-bundle.*' is no plain file", "cannot be carried"
HOSTILE = {
    "a path upwards": (_member(f"{TOP}/../../evil", tarfile.REGTYPE), _NAME),
    "an absolute path": (_member("/etc/evil", tarfile.REGTYPE), _NAME),
    "a hidden file": (_member(f"{TOP}/.evil", tarfile.REGTYPE), _NAME),
    "a name with a line break": (_member(f"{TOP}/evil\nname", tarfile.REGTYPE), _NAME),
    "a symbolic link": (_member(f"{TOP}/evil", tarfile.SYMTYPE, "/etc"), _KIND),
    "a hard link": (_member(f"{TOP}/evil", tarfile.LNKTYPE, f"{TOP}/README.txt"), _KIND),
    "a device": (_member(f"{TOP}/evil", tarfile.CHRTYPE), _KIND),
    "a block device": (_member(f"{TOP}/evil", tarfile.BLKTYPE), _KIND),
    "a pipe": (_member(f"{TOP}/evil", tarfile.FIFOTYPE), _KIND),
    "a directory": (_member(f"{TOP}/wheels", tarfile.DIRTYPE), _KIND),
    "a sparse file": (_member(f"{TOP}/evil", tarfile.GNUTYPE_SPARSE), "is not written as a bundle's file is"),
    "an old plain file": (_member(f"{TOP}/evil", tarfile.AREGTYPE), "is not written as a bundle's file is"),
    "a header of pax": (_member(f"{TOP}/evil", tarfile.XHDTYPE), _KIND),
    "a file elsewhere": (_member("elsewhere/README.txt", tarfile.REGTYPE), "lies outside of elsewhere"),
    "a file in no folder": (_member("evil", tarfile.REGTYPE), "evil lies outside of evil"),
    "the same file": (_member(f"{TOP}/README.txt", tarfile.REGTYPE), "a second turnout-bundle.*README"),
    "a file that is not listed": (_member(f"{TOP}/evil", tarfile.REGTYPE), "not in the list: evil"),
}
