"""The signing key of this installation: Ed25519, so that whoever has the public key alone can check what it signed
(SPEC PROOF-2). It signs the audit log's checkpoints and heads, the lock file of models and reports.

The private key is a file for its owner alone. Whoever can read it can sign: keep copies of heads and reports elsewhere.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.errors import StorageError
from turnout.files import lock_folder, read_file, replace_file, unlock_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE, PUBLIC = "signing.key", "signing.pub"
WHICH = f"give signing/{PUBLIC} of the data directory of the installation that signed"
_SIGNATURE = re.compile(r"[0-9a-f]{128}")  # in one spelling, so that not even that can be changed

# RFC 8032, 5.1: the field; and y of the points of small order, under which anybody can sign.
_FIELD = 2**255 - 19
_SMALL = (
    *(0, 1, _FIELD - 1),
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
)


log = logging.getLogger("turnout")


class Signer:
    """The key pair in a folder, made at its first use. Of any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return _private(self._folder)

    @property
    def public_file(self) -> Path:
        """Where the public key is, in PEM."""
        return self._folder / PUBLIC

    def sign(self, what: bytes) -> str:
        """The signature, 128 hexadecimal digits.

        Raises:
            StorageError: the key cannot be read or made.
        """
        return self._key.sign(what).hex()

    @cached_property
    def public(self) -> PublicKey:
        """What checks it. Raises StorageError as ``sign``."""
        return PublicKey(self._key.public_key())


class PublicKey:
    """Checks signatures."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @cached_property
    def pem(self) -> bytes:
        """As a file has it; ``openssl pkey -pubin`` reads it."""
        from cryptography.hazmat.primitives import serialization as form

        return self._key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def fingerprint(self) -> str:
        """The beginning of the SHA-256 of the raw key, for people: 16 hexadecimal digits."""
        return hashlib.sha256(self._key.public_bytes_raw()).hexdigest()[:16]

    def signed(self, signature: str, what: bytes) -> bool:
        """Whether the private key made this signature under ``what``."""
        from cryptography.exceptions import InvalidSignature

        if not _SIGNATURE.fullmatch(signature):
            return False
        try:
            self._key.verify(bytes.fromhex(signature), what)
        except InvalidSignature:
            return False
        return True


def read_public(path: Path) -> PublicKey:
    """A public key from its file.

    Raises:
        StorageError: it is not there, or is none.
    """
    try:
        key = public_of(read_file(path))
    except OSError as error:
        said = f"the public key {path} cannot be read: {error.strerror}"
        raise StorageError(said, hint=WHICH) from error
    if key is None:
        said = f"the public key {path} cannot be read: it is no public key in PEM, or not Ed25519"
        raise StorageError(said, hint=WHICH)
    return key


def public_of(pem: bytes) -> PublicKey | None:
    """A public key in PEM, None when it is none, or one that has no private half."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, Ed25519PublicKey):
        return None
    y = int.from_bytes(key.public_bytes_raw(), "little") & ((1 << 255) - 1)
    return PublicKey(key) if y < _FIELD and y not in _SMALL else None


def _keep_public(folder: Path) -> None:
    """What a key that is gone has signed is checked with its public key. Raises OSError."""
    path = folder / PUBLIC
    if not path.exists():
        return
    with suppress(StorageError):
        kept = path.with_name(f"signing-{read_public(path).fingerprint}.pub")
        path.replace(kept)
        log.warning(
            "the signing key in %s is gone, so a new one is made: what the old one signed is checked with %s",
            folder,
            kept,
        )


def _private(folder: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = folder / PRIVATE
    try:
        locked = lock_folder(folder)
        try:
            if not os.path.lexists(path):  # a link to a place that is not there now is no missing key
                made = Ed25519PrivateKey.generate()
                _keep_public(folder)
                replace_file(folder / PUBLIC, PublicKey(made.public_key()).pem)
                pem = made.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
                replace_file(path, pem)
        finally:
            unlock_folder(locked)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            hint = f"chmod 600 {path}; if others could read it, move it away: a new one is made, and say so to auditors"
            raise StorageError(f"the signing key {path} may be read by others", hint=hint)
        key = form.load_pem_private_key(read_file(path), None)
    except (OSError, ValueError, TypeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no private key in PEM"
        hint = "bring it back from a backup, or move it away: a new one is made, and auditors need its public key"
        raise StorageError(f"the signing key {path} cannot be used: {said}", hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"the signing key {path} is not Ed25519", hint="move it away: a new one is made")
    return key
