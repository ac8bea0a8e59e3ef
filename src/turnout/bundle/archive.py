"""The one file: a plain tar whose every byte follows from the names and contents of what is in it.

Reading is as strict as writing: a header that is not the one that is written for that name and size is refused, and
with it links, devices, paths upwards, and whatever two programs could understand in two ways.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from turnout.bundle.carried.verify import (
    KEY,
    LIST,
    NAME,
    SIGNATURE,
    RefusedError,
    compare,
    fingerprint,
    raw_key,
    read_list,
)
from turnout.errors import BundleError
from turnout.files import open_regular
from turnout.guard.signing import PublicKey

_BLOCK, _RECORD, _CHUNK = 512, 10_240, 1 << 20
_MAX_SMALL, _MAX_MEMBERS, _MAX_NAME = 8_000_000, 10_000, 255
_SMALL = frozenset({LIST, SIGNATURE, KEY})
_TIME = 315_532_800  # 1980-01-01: no time of anybody's

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checked:
    """A bundle that is as it was signed. ``key`` is the fingerprint, ``size`` in bytes of all files."""

    name: str
    key: str
    files: int
    size: int


def header(name: str, size: int) -> bytes:
    """The header of a member. Raises BundleError: a tar cannot hold that name."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, _TIME
    try:
        if not NAME.fullmatch(name) or len(name) > _MAX_NAME:
            raise ValueError("its name is not one that every system can have")
        if size < 0:  # a number that GNU's header can hold, and no size
            raise ValueError("it has less than nothing in it")
        # What the standard's header has no room for is written as GNU tar does, which BusyBox reads too.
        long = len(name.rpartition("/")[2]) > tarfile.LENGTH_NAME
        return info.tobuf(tarfile.GNU_FORMAT if long else tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError as error:
        raise BundleError(f"the file {name!a} cannot be carried: {error}", hint="rename it") from error


def write_archive(target: Path, folder: str, members: Mapping[str, Path], progress: Progress) -> str:
    """Write the members, in the order of their names, below ``folder``; the SHA-256 of the whole.

    Raises:
        BundleError: a name cannot be carried, or a file changed meanwhile.
        OSError: it cannot be written.
    """
    digest, total = hashlib.sha256(), 0
    with target.open("wb") as out:

        def put(data: bytes) -> None:
            nonlocal total
            out.write(data)
            digest.update(data)
            total += len(data)

        for name, path in sorted(members.items()):
            progress(f"writing {name}")
            size = path.stat().st_size
            put(header(f"{folder}/{name}", size))
            before = total
            with path.open("rb") as file:
                while data := file.read(_CHUNK):
                    put(data)
            if total - before != size:
                raise BundleError(f"{path} changed while it was read", hint="make the bundle again")
            put(bytes(-size % _BLOCK))
        put(bytes(2 * _BLOCK))
        put(bytes(-total % _RECORD))
    return digest.hexdigest()


def check_archive(path: Path, key: PublicKey | None, progress: Progress = lambda _: None) -> Checked:
    """Check a bundle without unpacking it: as ``verify.py`` in it, and that every program unpacks it to that.

    Args:
        path: the file.
        key: the key that must have signed it; None takes the one inside.
        progress: told each file that is read.

    Raises:
        BundleError: it is not as it was made; the message is one line.
    """
    try:
        with open_regular(path) as file:
            return _check(file, os.fstat(file.fileno()).st_size, key, progress)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    except RefusedError as error:
        hint = "do not install it; have it carried over again, and ask who made it for the SHA-256 and the key"
        raise BundleError(f"{path.name} is refused: {error}", hint=hint) from error


def _check(file: BinaryIO, size: int, key: PublicKey | None, progress: Progress) -> Checked:
    found, small, top, total = dict[str, str](), dict[str, bytes](), "", 0
    for full, content in _members(file, size):
        folder, _, name = full.partition("/")
        top = top or folder
        if folder != top or not name:
            raise RefusedError(f"{full} lies outside of {top}")
        if name in found:
            raise RefusedError(f"a second {full}")
        progress(f"checking {name}")
        digest, kept = hashlib.sha256(), b""
        for data in content:
            digest.update(data)
            total += len(data)
            if name in _SMALL and len(kept) < _MAX_SMALL:
                kept += data
        found[name], small[name] = digest.hexdigest(), kept
    for name in (LIST, SIGNATURE, KEY):
        if name not in found:
            raise RefusedError(f"missing: {name}")
    _check_signature(small, key)
    compare(read_list(small[LIST]), found)
    return Checked(top, fingerprint(raw_key(small[KEY], KEY)), len(found), total)


def _check_signature(small: Mapping[str, bytes], key: PublicKey | None) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    inside = PublicKey(Ed25519PublicKey.from_public_bytes(raw_key(small[KEY], KEY)))
    if key is not None and inside.pem != key.pem:
        raise RefusedError(f"it was signed with another key ({inside.fingerprint}) than {key.fingerprint}")
    if not inside.signed(small[SIGNATURE].hex(), small[LIST]):
        raise RefusedError(f"the signature of {LIST} is not that of its key")


def _members(file: BinaryIO, size: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Each member's name and content, which must be read before the next."""
    for number in range(_MAX_MEMBERS):
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            end = file.tell() + _BLOCK
            if size != end + -end % _RECORD or any(file.read()):
                raise RefusedError("something follows its end, or its end is cut off")
            return
        if len(block) < _BLOCK:
            raise RefusedError("it is cut off" if number else "it is no bundle")
        info = _info(block, file, number)
        yield info.name, _content(file, info)
    raise RefusedError(f"it has more than {_MAX_MEMBERS} files")


def _info(block: bytes, file: BinaryIO, number: int) -> tarfile.TarInfo:
    """The member whose header begins with ``block``. Raises RefusedError: it is not as ``header`` writes it."""
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name, rest = file.read(_BLOCK), file.read(_BLOCK)
            block += name + rest
            info = tarfile.TarInfo.frombuf(rest, "ascii", "strict")
            info.name = name.rstrip(b"\0").decode("ascii")
        if header(info.name, info.size) == block:
            return info
        said = (
            f"{info.name!a} is not written as a bundle's file is" if info.isreg() else f"{info.name!a} is no plain file"
        )
    except (tarfile.HeaderError, ValueError, OverflowError):
        said = "it is damaged" if number else "it is no bundle"
    except BundleError as error:
        said = error.message
    raise RefusedError(said)


def _content(file: BinaryIO, info: tarfile.TarInfo) -> Iterator[bytes]:
    left = info.size
    while left > 0:
        data = file.read(min(left, _CHUNK))
        if not data:
            raise RefusedError(f"it is cut off within {info.name}")
        left -= len(data)
        yield data
    if any(file.read(-info.size % _BLOCK)):
        raise RefusedError(f"something lies behind {info.name}")
