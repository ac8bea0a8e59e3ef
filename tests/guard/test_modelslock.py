"""The verdict on a served model beside what was recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from turnout.errors import StorageError
from turnout.guard.modelslock import Lock, LockedFile, LockedModel, Seen, judged, read_lock, same_weights, write_lock
from turnout.guard.signing import Signer

A, B, C = "a" * 64, "b" * 64, "c" * 64
OLLAMA = LockedModel(id="q:7b", service="ollama", kind="ollama", address="127.0.0.1:11434", digest=A, weights=B, size=9)
FILE = LockedModel(
    id="smol", service="cpp", kind="llamacpp", address="127.0.0.1:8080", weights=B, parameters=5, template=C, path="/m"
)
HIDDEN = LockedModel(id="h", service="lms", kind="lmstudio", address="127.0.0.1:1234", parameters=7, size=9)
LOCK = Lock(made="2026-11-25", models=(OLLAMA, FILE, HIDDEN))
SEEN_OLLAMA = Seen("q:7b", "ollama", "127.0.0.1:11434", digest=A, size=9)
SEEN_FILE = Seen("smol", "llamacpp", "127.0.0.1:8080", weights=B, parameters=5, template=C)
SEEN_HIDDEN = Seen("h", "lmstudio", "127.0.0.1:1234", parameters=7, size=9)


@pytest.mark.parametrize(
    ("seen", "state", "says"),
    [
        (SEEN_OLLAMA, "verified", "its server tells aaaa"),
        (replace(SEEN_OLLAMA, weights=B), "verified", "its weights are bbbb"),
        (replace(SEEN_OLLAMA, digest=C), "mismatch", "its digest is cccc"),
        (replace(SEEN_OLLAMA, digest=C, weights=B), "mismatch", "its digest is cccc"),
        (replace(SEEN_OLLAMA, weights=C), "mismatch", "its weights are cccc"),
        (replace(SEEN_OLLAMA, digest=""), "mismatch", "it could be verified when it was recorded"),
        (replace(SEEN_OLLAMA, problem="a blob is damaged"), "mismatch", "a blob is damaged"),
        (replace(SEEN_OLLAMA, weights=None), "checking", ""),
        (SEEN_FILE, "verified", "its weights are bbbb"),
        (replace(SEEN_FILE, weights=C), "mismatch", "its weights are cccc"),
        (replace(SEEN_FILE, weights=""), "mismatch", "it could be verified when it was recorded"),
        (replace(SEEN_FILE, template=A), "mismatch", "its chat template is another"),
        (replace(SEEN_FILE, template="", parameters=0), "verified", "its weights"),
        (SEEN_HIDDEN, "unverified", "its server tells no digest"),
        (replace(SEEN_HIDDEN, parameters=8), "mismatch", "it has 8 parameters, recorded was 7"),
        (replace(SEEN_HIDDEN, size=8), "mismatch", "it has 8 bytes"),
        (replace(SEEN_HIDDEN, parameters=0, size=0), "unverified", ""),
        (replace(SEEN_HIDDEN, vocabulary=1), "unverified", ""),
        (replace(SEEN_OLLAMA, id="new:1b", digest=C), "unverified", "it is not in the lock file"),
        (replace(SEEN_OLLAMA, id="new:1b"), "verified", "the same weights as q:7b @ ollama"),
        (replace(SEEN_OLLAMA, address="10.0.0.2:11434"), "verified", "the same weights as q:7b @ ollama"),
        (replace(SEEN_OLLAMA, address="10.0.0.2:11434", digest=C), "mismatch", "other weights under this name"),
        (replace(SEEN_FILE, address="127.0.0.1:8081", weights=C), "mismatch", "other weights under this name"),
        (replace(SEEN_FILE, address="127.0.0.1:8081", weights=None), "checking", ""),
        (Seen("q:7b", "openai", "10.0.0.2:80"), "unverified", "it is not in the lock file"),
        (Seen("q:7b", "dockermodelrunner", "10.0.0.2:80", digest=C), "unverified", "it is not in the lock file"),
        (Seen("q:7b", "openai", "127.0.0.1:11434"), "mismatch", "it could be verified when it was recorded"),
        (Seen("other", "llamacpp", "10.0.0.2:80", weights=B), "verified", "the same weights as q:7b"),
    ],
)
def test_the_verdict(seen: Seen, state: str, says: str) -> None:
    verdict = judged(LOCK, seen)
    assert verdict.state == state
    assert says in verdict.why
    barred = state == "mismatch" or (state == "checking" and seen.address in (OLLAMA.address, FILE.address))
    assert bool(verdict.barred) is barred


def test_a_file_has_what_was_written_and_only_that(tmp_path: Path) -> None:
    path, signer = tmp_path / "models.lock.json", Signer(tmp_path / "signing")
    written = write_lock(path, LOCK, signer)
    assert read_lock(path, signer.public) == written
    assert read_lock(tmp_path / "none", signer.public) is None
    text = path.read_text()
    assert text.index('"made"') < text.index('"models"'), "for people too"


def test_every_byte_of_the_lock_is_signed(tmp_path: Path) -> None:
    """Whatever value is changed, the signature does not hold; nothing can be added that nobody signed."""
    signer = Signer(tmp_path / "signing")
    signed = msgspec.structs.replace(LOCK, signature=signer.sign(LOCK.text))
    assert signer.public.signed(signed.signature, signed.text)
    other = {str: "x", int: 1, tuple: (LockedFile("x", 1, A),)}
    for name in LockedModel.__struct_fields__:
        changed = msgspec.structs.replace(FILE, **{name: other[type(getattr(FILE, name))]})
        lock = msgspec.structs.replace(signed, models=(OLLAMA, changed, HIDDEN))
        assert not signer.public.signed(lock.signature, lock.text), name
    for lock in (
        msgspec.structs.replace(signed, made="2026-11-26"),
        msgspec.structs.replace(signed, folders=("/tmp",)),
        msgspec.structs.replace(signed, models=signed.models[::-1]),
        msgspec.structs.replace(signed, models=signed.models[:2]),
    ):
        assert not signer.public.signed(lock.signature, lock.text)


def test_same_weights_are_found_by_either_digest() -> None:
    rows = [("one", A, ""), ("two", A, B), ("three", "", B), ("four", "", ""), ("five", "", "")]
    assert same_weights(rows) == {"one": ("two",), "two": ("one", "three"), "three": ("two",), "four": (), "five": ()}


def test_a_link_to_a_lock_that_is_not_there_is_no_missing_lock(tmp_path: Path) -> None:
    (tmp_path / "models.lock.json").symlink_to(tmp_path / "share" / "models.lock.json")
    with pytest.raises(StorageError, match="leads to a file that is not there"):
        read_lock(tmp_path / "models.lock.json", Signer(tmp_path / "signing").public)
