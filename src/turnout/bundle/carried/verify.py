"""Check an unpacked bundle of Turnout with Python's standard library alone.

    python3 -I -B verify.py [--key signing.pub] [--here]

Every file is listed in SHA256SUMS and has that digest, nothing else lies beside them, and the list is signed (Ed25519).
With ``--key`` it must be that key; without it is the one that came along, whose fingerprint is printed. With ``--here``
the bundle must also be one for this Python and this machine. Standard output is the bundle's id alone.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import os
import platform
import re
import stat
import sys
from pathlib import Path

LIST, SIGNATURE, KEY, ABOUT = "SHA256SUMS", "SHA256SUMS.sig", "signing.pub", "bundle.json"
UNLISTED = frozenset({LIST, SIGNATURE})
NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*/)*[A-Za-z0-9_][A-Za-z0-9._+-]*")
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({NAME.pattern})")
_MAX_SMALL = 8_000_000
_SPKI = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: what precedes the 32 bytes of an Ed25519 key
_SHOWN = 3

# RFC 8032, section 5.1: the curve edwards25519. Points are (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z.
_P, _L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]
_NOTHING = (1).to_bytes(32, "little")  # the neutral point, as it is encoded


class RefusedError(Exception):
    """The bundle is not as it was made; the message is one line."""


def _add(a: _Point, b: _Point) -> _Point:
    e, f = (a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0])
    c, d = 2 * a[3] * b[3] * _D, 2 * a[2] * b[2]
    w, x, y, z = f - e, d - c, d + c, f + e
    return w * x % _P, y * z % _P, x * y % _P, w * z % _P


def _times(factor: int, point: _Point) -> _Point:
    total = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            total = _add(total, point)
        point, factor = _add(point, point), factor >> 1
    return total


def _point(encoded: bytes) -> _Point | None:
    """The point that 32 bytes mean, None when they mean none."""
    number = int.from_bytes(encoded, "little")
    y, odd = number & (1 << 255) - 1, number >> 255
    if len(encoded) != 32 or y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and odd):
        return None
    x = _P - x if x & 1 != odd else x
    return x, y, 1, x * y % _P


def _encoded(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the private half of ``key`` (32 bytes) made these 64 bytes over ``message``."""
    public, base = _point(key), _point((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    number = int.from_bytes(signature[32:], "little")
    if public is None or base is None or len(signature) != 64 or number >= _L:
        return False
    hashed = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % _L
    negated = (-public[0] % _P, public[1], 1, -public[3] % _P)
    return _encoded(_add(_times(number, base), _times(hashed, negated))) == signature[:32]


def raw_key(pem: bytes, where: str) -> bytes:
    """The 32 bytes of a public key in PEM. Raises RefusedError: it is none, or one under which anybody can sign."""
    lines = pem.decode("latin-1").strip().splitlines()
    try:
        if len(lines) < 3 or (lines[0], lines[-1]) != ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"):
            raise ValueError
        body = base64.b64decode("".join(lines[1:-1]), validate=True)
    except (ValueError, binascii.Error):
        body = b""
    if len(body) != 44 or not body.startswith(_SPKI):
        raise RefusedError(f"{where} is no Ed25519 public key in PEM")
    point = _point(body[12:])
    if point is None or _encoded(_times(8, point)) == _NOTHING:
        raise RefusedError(f"{where} is no key that has a private half")
    return body[12:]


def fingerprint(key: bytes) -> str:
    """What people compare; ``turnout`` shows the same."""
    return hashlib.sha256(key).hexdigest()[:16]


def read_list(content: bytes) -> dict[str, str]:
    """What SHA256SUMS lists: name -> digest. Raises RefusedError: it is not as it is written."""
    try:
        lines = content.decode("ascii").split("\n")
    except ValueError:
        lines = ["?"]
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    listed = {match[2]: match[1] for match in found if match}
    names = [match[2] for match in found if match]
    if lines[-1] or None in found or not names or names != sorted(set(names)) or UNLISTED & set(names):
        raise RefusedError(f"{LIST} is damaged")
    return listed


def compare(listed: dict[str, str], found: dict[str, str]) -> None:
    """Raises RefusedError: a file is missing, was added or was changed."""
    lists = (
        ("not in the list", found.keys() - listed.keys() - UNLISTED),
        ("missing", listed.keys() - found.keys()),
        ("changed", {name for name in listed.keys() & found.keys() if listed[name] != found[name]}),
    )
    said = [
        f"{what}: {', '.join(sorted(names)[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
        for what, names in lists
        if names
    ]
    if said:
        raise RefusedError("; ".join(said))


def _refuse_unread(error: OSError) -> None:
    raise error


def digests_in(folder: Path) -> dict[str, str]:
    """Every file below a folder: name -> digest. Raises RefusedError: there is something that is no plain file."""
    found = {}
    for parent, folders, files in os.walk(folder, onerror=_refuse_unread):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode, shown = path.lstat().st_mode, path.relative_to(folder).as_posix()
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise RefusedError(f"{shown!a} is a link, a device or the like")
            with path.open("rb") as file:
                found[ascii(shown)[1:-1]] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def misfit(about: dict[str, str]) -> str:
    """Why the bundle is not for this Python on this machine, "" when it is."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.implementation.name != "cpython" or about["python"] != here:
        return f"this bundle is for CPython {about['python']}, and {sys.executable} is {sys.implementation.name} {here}"
    if sys.platform != "linux" or about["machine"] != platform.machine():
        return f"this bundle is for Linux on {about['machine']}, and this is {sys.platform} on {platform.machine()}"
    try:
        library = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (ValueError, OSError):
        library = ""
    if not library:
        return "this bundle is for systems with glibc, and this one has another C library"
    if [int(part) for part in library.split(".")[:2]] < [int(part) for part in about["glibc"].split(".")]:
        return f"this bundle needs glibc {about['glibc']}, and this system has {library}"
    return ""


def check(folder: Path, key_file: Path | None) -> str:
    """Check all of it; the fingerprint of the key.

    Raises:
        RefusedError: something is not as it was made.
        OSError: something cannot be read.
    """
    small = {}
    for name in (LIST, SIGNATURE, KEY):
        path = folder / name
        if not path.is_file() or path.stat().st_size > _MAX_SMALL:
            raise RefusedError(f"missing: {name}")
        small[name] = path.read_bytes()
    key = raw_key(small[KEY], KEY)
    if key_file is not None and raw_key(key_file.read_bytes(), str(key_file)) != key:
        raise RefusedError(f"it was signed with another key ({fingerprint(key)}) than {key_file}")
    if not signed(key, small[SIGNATURE], small[LIST]):
        raise RefusedError(f"the signature of {LIST} is not that of its key")
    compare(read_list(small[LIST]), digests_in(folder))
    return fingerprint(key)


def main() -> None:
    """The command line: exits with 1 and one line when the bundle is refused."""
    parser = argparse.ArgumentParser(description="Check this bundle of Turnout.", allow_abbrev=False)
    parser.add_argument("--key", type=Path, metavar="FILE", help="the public key that must have signed it")
    parser.add_argument("--here", action="store_true", help="it must be for this Python and this machine")
    given = parser.parse_args()
    folder = Path(__file__).absolute().parent
    try:
        made_with = check(folder, given.key)
        about = json.loads((folder / ABOUT).read_bytes())
        reason = misfit(about) if given.here else ""
    except OSError as error:
        sys.exit(f"Refused: {error.strerror}: {error.filename}")
    except RefusedError as error:
        sys.exit(f"Refused: {error}")
    if reason:
        sys.exit(f"Error: {reason}")
    whose = "the key that was given" if given.key else "the key in the bundle: is it the one that you were told?"
    sys.stderr.write(f"verified: every file is as it was signed with {made_with}, {whose}\n")
    digest = hashlib.sha256((folder / LIST).read_bytes()).hexdigest()
    sys.stdout.write(f"{about['turnout']}-{digest[:12]}\n")


if __name__ == "__main__":
    main()
