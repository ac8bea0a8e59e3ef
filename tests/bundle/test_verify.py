"""Ed25519 as ``verify.py`` has it, against RFC 8032 and against cryptography's."""

from __future__ import annotations

import base64
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from turnout.bundle.carried.verify import RefusedError, fingerprint, raw_key, read_list, signed
from turnout.guard.signing import PublicKey, public_of

# RFC 8032, section 7.1: public key, message, signature.
VECTORS = (
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
)
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_the_vectors_of_the_standard(key: str, message: str, signature: str) -> None:
    assert signed(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))
    assert not signed(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message) + b"x")


def test_it_agrees_with_cryptography() -> None:
    chance = random.Random(25)
    for size in range(20):
        private = Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))
        public, message = private.public_key(), chance.randbytes(size)
        signature = private.sign(message)
        key = raw_key(PublicKey(public).pem, "it")
        assert key == public.public_bytes_raw()
        assert fingerprint(key) == PublicKey(public).fingerprint
        assert signed(key, signature, message)
        place = chance.randrange(64)
        changed = bytes(b ^ (1 << chance.randrange(8)) if i == place else b for i, b in enumerate(signature))
        assert not signed(key, changed, message)
        # The same signature with another number, which a lax check takes as well.
        again = (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")
        assert not signed(key, signature[:32] + again, message)
        assert not signed(key, signature[:63], message)
        assert not signed(chance.randbytes(32), signature, message)
    assert not signed(b"\xff" * 32, signature, message)


SPKI = bytes.fromhex("302a300506032b6570032100")
SMALL = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # zero, written otherwise
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # one
)


@pytest.mark.parametrize("sign", [0, 0x80])
@pytest.mark.parametrize("key", SMALL)
def test_a_key_under_which_anybody_can_sign_is_none(key: str, sign: int) -> None:
    """Points of small order: with R = 0 and S = 0 some eighth of all messages at least is signed."""
    raw = bytearray.fromhex(key)
    raw[31] |= sign
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(SPKI + raw) + b"\n-----END PUBLIC KEY-----\n"
    with pytest.raises(RefusedError, match="it is no key that has a private half"):
        raw_key(pem, "it")
    assert public_of(pem) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0" * 64 + "  a",
        "0" * 64 + " a\n",
        "0" * 63 + "  a\n",
        "0" * 64 + "  ../a\n",
        "0" * 64 + "  /a\n",
        "0" * 64 + "  SHA256SUMS\n",
        ("0" * 64 + "  a\n") * 2,
        "0" * 64 + "  b\n" + "0" * 64 + "  a\n",
        "0" * 64 + "  a\r\n",
        "0" * 64 + "  \u00e4\n",
    ],
)
def test_a_list_that_is_not_as_it_is_written_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="SHA256SUMS is damaged"):
        read_list(text.encode())


@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_none(text: str) -> None:
    with pytest.raises(RefusedError, match="it is no Ed25519 public key"):
        raw_key(text.encode(), "it")
