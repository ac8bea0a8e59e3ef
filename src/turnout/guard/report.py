"""Reports that can be checked later and elsewhere, with the public key alone (SPEC PROOF-1).

A JSON report carries its signature in it and is compared byte by byte with what it would be written as; a page for
people ends in a line with the signature of everything before it. Changing a single byte of either shows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from turnout.errors import StorageError
from turnout.files import read_file
from turnout.guard.signing import PublicKey, Signer
from turnout.types import Json

_SIGNED_AS = b"turnout report\n"
_LAST_LINE = re.compile(rb"<!-- turnout signature ([0-9a-f]{128}) of key ([0-9a-f]{16}) -->\n")

_NAMED = re.compile(rb'^\{\s*"key": "([0-9a-f]{16})"| of key ([0-9a-f]{16}) -->\n$')

State = Literal["unchanged", "changed", "unsigned"]


def signed_json(report: dict[str, Json], signer: Signer) -> bytes:
    """A report with its signature. Raises StorageError: there is no key."""
    body = _encode({"key": signer.public.fingerprint, "report": report})
    return _encode({"key": signer.public.fingerprint, "report": report, "signature": signer.sign(_SIGNED_AS + body)})


def signed_page(page: str, signer: Signer) -> bytes:
    """A page (Markdown, HTML) with its signature. Raises StorageError: there is no key."""
    body = page.encode("utf-8", "replace")
    line = f"<!-- turnout signature {signer.sign(_SIGNED_AS + body)} of key {signer.public.fingerprint} -->\n"
    return body + line.encode("ascii")


def check(path: Path, public: PublicKey) -> State:
    """Whether a report is as it was signed with this key. ``unsigned``: it has no signature at all.

    Raises:
        StorageError: it cannot be read.
    """
    content = _content(path)
    if content.startswith(b"{"):
        return _check_json(content, public)
    return _check_page(content, public)


def read_report(path: Path, public: PublicKey) -> dict[str, Json] | None:
    """What a JSON report says; None when it is not as it was signed with this key.

    Raises:
        StorageError: it cannot be read.
    """
    if check(path, public) != "unchanged":
        return None
    found = json.loads(_content(path))
    return found["report"] if isinstance(found, dict) and isinstance(found.get("report"), dict) else None


def named_key(path: Path) -> str:
    """The fingerprint of the key that a report says it was signed with, "" where it names none: nobody vouches for it.

    Raises:
        StorageError: it cannot be read.
    """
    content = _content(path)
    found = _NAMED.search(content, 0, 64) or _NAMED.search(content, max(0, len(content) - 128))
    return (found[1] or found[2]).decode() if found else ""


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise StorageError(f"the report {path} cannot be read: {error.strerror or error}") from error


def _check_page(content: bytes, public: PublicKey) -> State:
    start = content.rfind(b"<!-- turnout signature ")
    if start < 0:
        return "unsigned"
    found = _LAST_LINE.fullmatch(content[start:])
    good = found is not None and found[2].decode() == public.fingerprint
    if found is None or not good:
        return "changed"
    return "unchanged" if public.signed(found[1].decode(), _SIGNED_AS + content[:start]) else "changed"


def _check_json(content: bytes, public: PublicKey) -> State:
    try:
        found = json.loads(content)
        same = _encode(found) == content
    except (ValueError, RecursionError):
        return "changed"
    signature = found.pop("signature", None)
    if not isinstance(signature, str):
        return "unsigned"
    return "unchanged" if same and public.signed(signature, _SIGNED_AS + _encode(found)) else "changed"


def _encode(value: Json) -> bytes:
    """Readable, and the same for the same values: ASCII, two spaces, keys in their order of the alphabet."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")
