"""The lock file of models: what each was when it was recorded, signed (SPEC SEC-4, PROOF-3).

A served model is held against its record: what its server tells of it, and the digest of its files where they are on
this machine. Whoever has the signing key can sign another file; an old one with a good signature is as good as a new.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from turnout.errors import StorageError
from turnout.files import MAX_FILE_BYTES, read_file, replace_file
from turnout.guard.signing import PublicKey, Signer
from turnout.weights import Verdict

FORMAT = "turnout-models-lock-1"
SHOWN = 16  # digits of a digest for people
_AGAIN = "see what is there with `turnout models`, and record it with `turnout models lock --replace`"


class LockedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file, for people and other tools."""

    name: str
    size: int
    sha256: str


class LockedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model at an endpoint, as it was recorded; what was not told or not known is "" or 0.

    Attributes:
        address: of the endpoint, which may get another name.
        digest: as the server told it.
        weights: SHA-256 of the weights: of the only file, or of the sorted list of all.
        path: the files' place on this machine.
        template: SHA-256 of the chat template.
    """

    id: str
    service: str
    kind: str
    address: str
    digest: str = ""
    weights: str = ""
    path: str = ""
    files: tuple[LockedFile, ...] = ()
    parameters: int = 0
    size: int = 0
    vocabulary: int = 0
    template: str = ""
    quantization: str = ""


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. ``folders``: where weights were looked for beside the places that servers tell."""

    format: str = FORMAT
    made: str
    folders: tuple[str, ...] = ()
    models: tuple[LockedModel, ...] = ()
    signature: str = ""

    @property
    def text(self) -> bytes:
        """What is signed."""
        return b"turnout models lock\n" + msgspec.json.encode(msgspec.structs.replace(self, signature=""))


@dataclass(frozen=True, slots=True)
class Seen:
    """A served model as it is now, as for ``LockedModel``.

    Attributes:
        weights: None when they are not read yet, "" when they are not to be had.
        problem: what is wrong with its files by themselves, or "".
    """

    id: str
    kind: str
    address: str
    digest: str = ""
    weights: str | None = ""
    parameters: int = 0
    size: int = 0
    vocabulary: int = 0
    template: str = ""
    problem: str = ""


def write_lock(path: Path, lock: Lock, signer: Signer) -> Lock:
    """Sign and write it, at once or not at all.

    Raises:
        StorageError: the key cannot be used, or the file not be written.
    """
    signed = msgspec.structs.replace(lock, signature=signer.sign(lock.text))
    data = msgspec.json.format(msgspec.json.encode(signed), indent=1) + b"\n"
    if len(data) > MAX_FILE_BYTES:
        raise StorageError(f"the lock file would have more than {MAX_FILE_BYTES:,} bytes", hint="lock fewer endpoints")
    try:
        replace_file(path, data)
    except OSError as error:
        raise StorageError(f"the lock file {path} cannot be written: {error.strerror or error}") from error
    return signed


def read_lock(path: Path, public: PublicKey) -> Lock | None:
    """The lock file, None when there is none.

    Raises:
        StorageError: there is one, and it cannot be trusted: not ours, changed, cut off, or others may write to it.
    """
    try:
        if os.name == "posix" and path.stat().st_mode & 0o022:
            raise StorageError(f"the lock file {path} may be written by others", hint=f"{_AGAIN}; or chmod go-w {path}")
        data = read_file(path)
    except FileNotFoundError as error:
        if not path.is_symlink():
            return None
        said = f"the lock file {path} leads to a file that is not there"
        raise StorageError(said, hint=_AGAIN) from error
    except OSError as error:
        raise StorageError(f"the lock file {path} cannot be read: {error.strerror or error}", hint=_AGAIN) from error
    if not data.strip():
        raise StorageError(f"the lock file {path} is empty", hint=_AGAIN)
    try:
        lock = msgspec.json.decode(data, type=Lock)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split())[:120]
        raise StorageError(f"the lock file {path} is none, or was cut off: {said}", hint=_AGAIN) from error
    if lock.format != FORMAT:
        said = f"the lock file {path} has a format that this version does not know: {lock.format[:40]!r}"
        raise StorageError(said, hint=_AGAIN)
    if not public.signed(lock.signature, lock.text):
        said = f"the lock file {path} was changed, or another key has signed it (ours is {public.fingerprint})"
        raise StorageError(said, hint=_AGAIN)
    return lock


def records_of(lock: Lock, model: str, address: str) -> list[LockedModel]:
    """The records of a model: those of its endpoint, else those of its name anywhere."""
    named = [record for record in lock.models if record.id == model]
    return [record for record in named if record.address == address] or named


def judged(lock: Lock, seen: Seen) -> Verdict:
    """What a served model is beside what was recorded. Pure."""
    if seen.problem:
        return Verdict("mismatch", seen.problem, seen.problem)
    weights = seen.weights or ""
    records = [r for r in lock.models if (r.id, r.address) == (seen.id, seen.address)]
    if not records:
        return _new_here(lock, seen)
    differences = [difference(record, seen) for record in records]
    fitting = [record for record, said in zip(records, differences, strict=True) if not said]
    if not fitting:
        why = differences[0]
        return _mismatch(why, weights)
    if seen.weights is None:
        return Verdict("checking", "its files are being read", "its files have changed and are being read")
    proof = next((_proven(r, seen) for r in fitting if _proven(r, seen)), "")
    if proof:
        return Verdict("verified", proof, weights=weights)
    return Verdict("unverified", "its server tells no digest; what it tells is as it was", weights=weights)


def _mismatch(why: str, weights: str) -> Verdict:
    return Verdict("mismatch", why, f"{why}: `turnout models verify` tells more", weights)


def _new_here(lock: Lock, seen: Seen) -> Verdict:
    """A model that was not at its endpoint when that was recorded: known weights are known under any name, and a known
    name is not one for others."""
    weights = seen.weights or ""
    twin = next((r for r in lock.models if _proven(r, seen)), None)
    if twin is not None:
        return Verdict("verified", f"the same weights as {twin.id} @ {twin.service}", weights=weights)
    if seen.weights is None:
        return Verdict("checking", "its files are being read")
    for record in (r for r in lock.models if r.id == seen.id):
        told = record.kind == seen.kind and record.digest and seen.digest
        if told or (record.weights and seen.weights):
            return _mismatch(f"{record.service} has other weights under this name in the lock file", weights)
    return Verdict("unverified", "it is not in the lock file", weights=weights)


def _proven(record: LockedModel, seen: Seen) -> str:
    if record.weights and record.weights == seen.weights:
        return f"its weights are {record.weights[:SHOWN]}…"
    if record.digest and record.digest == seen.digest:
        return f"its server tells {record.digest[:SHOWN]}…"
    return ""


def difference(record: LockedModel, seen: Seen) -> str:
    """What speaks against a served model being the recorded one, or "". Pure."""
    if record.digest and seen.digest and record.digest != seen.digest:
        return f"its digest is {seen.digest[:SHOWN]}…, recorded was {record.digest[:SHOWN]}…"
    if record.weights and seen.weights and record.weights != seen.weights:
        return f"its weights are {seen.weights[:SHOWN]}…, recorded was {record.weights[:SHOWN]}…"
    told = (
        ("parameters", record.parameters, seen.parameters),
        ("bytes", record.size, seen.size),
        ("tokens in its vocabulary", record.vocabulary, seen.vocabulary),
    )
    for what, before, now in told:
        if before and now and before != now:
            return f"it has {now:,} {what}, recorded was {before:,}"
    if record.template and seen.template and record.template != seen.template:
        return "its chat template is another than was recorded"
    if (record.digest or record.weights) and seen.weights is not None and not _proven(record, seen):
        return "it could be verified when it was recorded, and neither its digest nor its files can be had now"
    return ""


def same_weights(found: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, ...]]:
    """Which of the models, ``(label, digest, weights)``, are the same as which others: by label. Pure."""
    rows = list(found)
    return {
        label: tuple(
            other
            for other, told, files in rows
            if other != label and ((weights and files == weights) or (digest and told == digest))
        )
        for label, digest, weights in rows
    }
