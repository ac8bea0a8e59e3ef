"""One file with all of a model: a signed list, then its files as they are (SPEC UI-5, SEC-4).

It is an uncompressed tar, so that other tools can open it, but none that other tools wrote: every byte around the files
follows from the list and is compared with it. What a tar may hold beside files (links, devices, names that lead
upwards, the same name twice) is therefore not looked for and cannot be there.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from turnout.errors import ArchiveError
from turnout.files import open_regular
from turnout.guard.identity import Role, Stamp, stamp_of
from turnout.guard.model_manifest import (
    FORMAT,
    MANIFEST,
    SUFFIX,
    UNKNOWN,
    Manifest,
    Part,
    check_parts,
    digest_of_weights,
)
from turnout.guard.signing import PublicKey, Signer, public_of

MAX_MANIFEST_BYTES = 4_000_000
# Larger writes to a new file took up to five times as long on ext4 (`bench/travel.py`).
_COPIED_BYTES = 1 << 20
_ANEW = "copy or export it anew; nothing of it was put anywhere"
_END = bytes(2 * tarfile.BLOCKSIZE)

Told: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A file that goes into an archive under a name. ``sha256``: what it has to be, or ""."""

    path: Path
    name: str
    role: Role
    sha256: str = ""


def write_archive(
    out: BinaryIO,
    manifest: Manifest,
    sources: Sequence[Source],
    signer: Signer,
    told: Told,
) -> Manifest:
    """Copy the files behind the list, reading each once; returns the list as it was signed.

    The list has its length from the beginning, so that it can be first and yet tell what was read.

    Args:
        out: a new file, which can be gone back in.
        manifest: without files and signature.
        told: hears ``(what, bytes done, bytes in all)``.

    Raises:
        ArchiveError: a file has changed meanwhile, or is not what it has to be.
        OSError: a file cannot be read, or the archive not be written.
        StorageError: there is no key.
    """
    stamps = [stamp_of(source.path) for source in sources]
    parts = tuple(Part(s.name, stamp[2], UNKNOWN, s.role) for s, stamp in zip(sources, stamps, strict=True))
    pem = signer.public.pem.decode("ascii")
    draft = msgspec.structs.replace(manifest, files=parts, public_key=pem)
    check_parts(draft)
    _put_manifest(out, draft)
    digests, done = dict[Path, str](), 0
    for source, part, stamp in zip(sources, parts, stamps, strict=True):
        out.write(_header(part.name, part.size))
        told_here = partial(_told_of_all, told, done, draft.size)
        digests[source.path] = _copy_in(out, source, stamp, told_here)
        out.write(bytes(-part.size % tarfile.BLOCKSIZE))
        done += part.size
    out.write(_END)
    out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
    read = tuple(
        msgspec.structs.replace(part, sha256=digests[source.path]) for source, part in zip(sources, parts, strict=True)
    )
    final = msgspec.structs.replace(draft, files=read, weights=digest_of_weights(read))
    final = msgspec.structs.replace(final, signature=signer.sign(final.text))
    out.seek(0)
    _put_manifest(out, final)
    out.flush()
    os.fsync(out.fileno())
    return final


def _told_of_all(told: Told, before: int, size: int, done: int) -> None:
    told("reading and copying", before + done, size)


def _put_manifest(out: BinaryIO, manifest: Manifest) -> None:
    content = manifest.content
    out.write(_header(MANIFEST, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE))


def _copy_in(out: BinaryIO, source: Source, before: Stamp, told: Callable[[int], None]) -> str:
    digest, buffer, done = hashlib.sha256(), bytearray(_COPIED_BYTES), 0
    view = memoryview(buffer)
    with open_regular(source.path) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            done += count
            if done > before[2]:
                break
            digest.update(view[:count])
            out.write(view[:count])
            told(done)
    if done != before[2] or stamp_of(source.path) != before:
        raise ArchiveError(f"{source.path} has changed while it was read", hint="export it when nothing writes to it")
    found = digest.hexdigest()
    if source.sha256 and found != source.sha256:
        said = f"{source.path} is not what its name says: its SHA-256 is {found[:16]}…"
        raise ArchiveError(said, hint="have its server fetch the model anew")
    return found


def _header(name: str, size: int) -> bytes:
    """What precedes a file in a tar: owner, times and modes are nobody's."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


class Archive:
    """An archive that is open for reading, its list read and its outer form checked, its key and contents not yet.

    Raises:
        ArchiveError: it is none, was cut off, or has more or other things in it than its list.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            self.manifest = self._manifest()
            self._places = dict(self._laid_out())
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        self._file.close()

    def key(self) -> PublicKey:
        """The key that came in the archive itself. Raises ArchiveError: that is none."""
        found = public_of(self.manifest.public_key.encode("utf-8", "replace"))
        if found is None:
            raise ArchiveError(f"{self.path} names no key that signed it", hint=_ANEW)
        return found

    def check_signature(self, key: PublicKey) -> None:
        """Raises ArchiveError: the list was changed, or another key has signed it."""
        if not key.signed(self.manifest.signature, self.manifest.text):
            carried = public_of(self.manifest.public_key.encode("utf-8", "replace"))
            by = f", whose fingerprint may be {carried.fingerprint}" if carried is not None else ""
            said = f"{self.path} was changed, or is signed by another key than {key.fingerprint}{by}"
            raise ArchiveError(said, hint="find out where it comes from; nothing of it was put anywhere")

    def copy(self, part: Part, out: BinaryIO, told: Callable[[int], None]) -> None:
        """Write a file of it.

        Args:
            told: hears how many bytes were written until now.

        Raises:
            ArchiveError: it is not the file of the list.
            OSError: reading or writing failed.
        """
        self._file.seek(self._places[part.name])
        digest, buffer, left = hashlib.sha256(), bytearray(_COPIED_BYTES), part.size
        view = memoryview(buffer)
        while left:
            count = self._file.readinto(view[: min(left, _COPIED_BYTES)])  # type: ignore[attr-defined]
            if not count:
                raise ArchiveError(f"{self.path} ends before its list does", hint=_ANEW)
            digest.update(view[:count])
            out.write(view[:count])
            left -= count
            told(part.size - left)
        if digest.hexdigest() != part.sha256:
            raise ArchiveError(f"{part.name} in {self.path} is not what was signed: its SHA-256 differs", hint=_ANEW)

    def read(self, part: Part) -> bytes:
        """A small file of it. Raises as ``copy``, also ArchiveError: it is large."""
        if part.size > MAX_MANIFEST_BYTES:
            raise ArchiveError(f"{part.name} in {self.path} is larger than such a file is", hint=_ANEW)
        out = io.BytesIO()
        self.copy(part, out, lambda _: None)
        return out.getvalue()

    def _manifest(self) -> Manifest:
        size = 0
        with suppress(tarfile.HeaderError, ValueError, UnicodeError):
            size = tarfile.TarInfo.frombuf(self._file.read(tarfile.BLOCKSIZE), "utf-8", "strict").size
        self._file.seek(0)
        if not 0 < size <= MAX_MANIFEST_BYTES or self._file.read(tarfile.BLOCKSIZE) != _header(MANIFEST, size):
            raise ArchiveError(f"{self.path} is no model that Turnout exported", hint=f"give a file *{SUFFIX}")
        content = self._file.read(size)
        try:
            manifest = msgspec.json.decode(content, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            said = " ".join(str(error).split())[:120]
            raise ArchiveError(f"the list in {self.path} cannot be read: {said}", hint=_ANEW) from error
        if manifest.format != FORMAT:
            said = f"{self.path} has a format that this version does not know: {manifest.format[:40]!r}"
            raise ArchiveError(said, hint="import it with the version that exported it, or a newer one")
        if manifest.content != content or any(self._file.read(-size % tarfile.BLOCKSIZE)):
            raise ArchiveError(f"the list in {self.path} is not as it was written", hint=_ANEW)
        check_parts(manifest)
        if manifest.weights != digest_of_weights(manifest.files):
            raise ArchiveError(f"{self.path} tells another digest of its weights than its files have", hint=_ANEW)
        return manifest

    def _laid_out(self) -> Iterator[tuple[str, int]]:
        """Where each file begins, everything around them being what follows from the list."""
        at = self._file.tell()
        end = _length(self.manifest)
        there = os.fstat(self._file.fileno()).st_size
        if there != end:
            what = f"{end - there:,} bytes less" if there < end else f"{there - end:,} bytes more"
            raise ArchiveError(f"{self.path} has {what} than its list says", hint=_ANEW)
        for part in self.manifest.files:
            expected = _header(part.name, part.size)
            self._file.seek(at)
            found = self._file.read(len(expected))
            if found != expected:
                raise ArchiveError(f"{self.path} has {_shown(found)} where {part.name} should be", hint=_ANEW)
            yield part.name, at + len(expected)
            at += len(expected) + part.size
            self._file.seek(at)
            padding = -part.size % tarfile.BLOCKSIZE
            if any(self._file.read(padding)):
                raise ArchiveError(f"{self.path} has something hidden behind {part.name}", hint=_ANEW)
            at += padding
        if any(self._file.read()):
            raise ArchiveError(f"{self.path} has more in it than its list", hint=_ANEW)


def _length(manifest: Manifest) -> int:
    content = len(manifest.content)
    names = [(MANIFEST, content), *((part.name, part.size) for part in manifest.files)]
    end = sum(len(_header(name, size)) + size + -size % tarfile.BLOCKSIZE for name, size in names) + len(_END)
    return end + -end % tarfile.RECORDSIZE


def _shown(header: bytes) -> str:
    """What stands in a tar where something else should, for people."""
    try:
        info = tarfile.TarInfo.frombuf(header[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return "something"
    what = "a file" if info.isfile() else "a link" if info.islnk() or info.issym() else "a folder or device"
    return f"{what} called {info.name[:80]!r}"
