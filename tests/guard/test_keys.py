"""The keys as they are kept: hashed, for their owner alone, and seen by a running process when they change."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.errors import StorageError, UsageError
from turnout.guard import keys
from turnout.guard.keys import Key, Keyring, Keys, Limits

NOW = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return keys.keys_path(tmp_path / "data")


def add(path: Path, name: str, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    with keys.changing(path) as known:
        changed, token = keys.add(known, name, limits, NOW)
        keys.write_keys(path, changed)
    return token


def test_only_a_hash_is_kept_for_the_owner_alone(path: Path) -> None:
    token = add(path, "ci")
    text = path.read_text("utf-8")
    assert len(token) >= 43
    assert token not in text
    assert token.removeprefix(keys.PREFIX) not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = keys.read_keys(path)
    assert found is not None
    assert found.keys[0].digest == keys.digest_of(token, found.hash_key)
    assert keys.digest_of(token, "00" * 32) != found.keys[0].digest, "another installation's hash is another"


def test_a_running_process_sees_what_another_changed(path: Path) -> None:
    ring = Keyring(path)
    assert not ring.defined
    token = add(path, "ci")
    assert ring.defined
    found = ring.find(token)
    assert found is not None
    assert found.name == "ci"
    assert ring.find(token[:-1]) is None
    assert ring.find("") is None
    assert ring.find("x" * 100_000) is None
    with keys.changing(path) as known:
        changed, fresh = keys.rotate(known, "ci", NOW)
        keys.write_keys(path, changed)
    assert (ring.find(token), ring.find(fresh) is not None) == (None, True)
    with keys.changing(path) as known:
        keys.write_keys(path, keys.revoke(known, "ci", NOW))
    assert ring.find(fresh) is None
    assert ring.find("") is None, "a revoked key has no hash, and nothing hashes to that"
    assert ring.defined, "taking the last key away opens the gateway to nobody"


DEEP = b'{"hash_key":"00","x":' + b"[" * 5000


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"hash_key":"zz","keys":[]}', b'{"keys":[]}', b"\xff", DEEP], ids=lambda c: c[:30]
)
def test_a_file_that_cannot_be_read_opens_nothing(path: Path, content: bytes) -> None:
    token = add(path, "ci")
    good, ring = path.read_bytes(), Keyring(path)
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot be read"):
            ring.find(token)
        with pytest.raises(StorageError, match="cannot be read"):
            assert ring.defined
    path.write_bytes(good)
    assert ring.find(token) is not None


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_holds_nobody_up(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    with pytest.raises(StorageError, match="it is no regular file"):
        keys.read_keys(path)


def test_a_key_expires_and_lasts_as_long_again_when_it_is_rotated() -> None:
    known, _ = keys.add(Keys("00" * 32), "ci", Limits(lasting=3600, models=("a*",)), NOW)
    assert [known.keys[0].state(t) for t in (NOW + 3599, NOW + 3600)] == ["active", "expired"]
    known, _ = keys.rotate(known, "ci", NOW + 7200)
    assert (known.keys[0].expires, known.keys[0].models) == (NOW + 10_800, ("a*",))
    known, _ = keys.add(keys.revoke(known, "ci", NOW), "ci", Limits(), NOW)
    assert [(key.name, key.expires, key.revoked) for key in known.keys] == [("ci", 0, 0)]


@pytest.mark.parametrize(("created", "expires"), [(NOW, NOW - 86_400), (NOW, NOW), (0, NOW - 86_400)])
def test_a_rotated_key_is_never_an_expired_one(created: float, expires: float) -> None:
    """Whatever somebody wrote into the file."""
    old = Key(name="ci", digest="x", created=int(created), expires=int(expires))
    known, _ = keys.rotate(Keys("00" * 32, (old,)), "ci", NOW)
    assert known.keys[0].expires == NOW + keys.DEFAULT_SECONDS


@pytest.mark.parametrize("name", ["", "local", "unknown", "a/b", "a b", ".a", "x" * 65, "é", "a\n"])
def test_a_name_is_a_plain_one_and_nobodys_else(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a key"):
        keys.add(Keys("00" * 32), name, Limits(), NOW)


def test_what_is_not_there_is_not_rotated_or_revoked() -> None:
    known, _ = keys.add(Keys("00" * 32), "ci", Limits(), NOW)
    with pytest.raises(UsageError, match="there is no key 'x'.*there are: ci"):
        keys.rotate(known, "x", NOW)
    with pytest.raises(UsageError, match="there is a key 'ci' already"):
        keys.add(known, "ci", Limits(), NOW)


def test_what_is_revoked_is_not_said_to_be_missing() -> None:
    known, _ = keys.add(Keys("00" * 32), "ci", Limits(), NOW)
    known = keys.revoke(known, "ci", NOW)
    for change in (keys.rotate, keys.revoke):
        with pytest.raises(UsageError, match="the key 'ci' is revoked already.*turnout key add ci"):
            change(known, "ci", NOW)


def _add_many(path: Path, who: int) -> None:
    for number in range(10):
        add(path, f"k{who}-{number}")


def test_two_processes_lose_none_of_each_others_keys(path: Path) -> None:
    fork = multiprocessing.get_context("spawn")
    both = [fork.Process(target=_add_many, args=(path, who)) for who in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    found = keys.read_keys(path)
    assert found is not None
    assert len(found.keys) == 20


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_keys_that_others_may_read_let_nobody_in(mode: int, path: Path) -> None:
    """Whoever has the file's secret makes tokens."""
    token, ring = add(path, "ci"), Keyring(path)
    assert ring.find(token) is not None
    path.chmod(mode)
    with pytest.raises(StorageError, match="may be read by others.*chmod 600"):
        ring.find(token)
    path.chmod(0o600)
    assert ring.find(token) is not None


def test_keys_that_are_taken_away_are_missed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(path, "ci")
    ring = Keyring(path)
    assert ring.defined
    path.unlink()
    assert not ring.defined
    assert caplog.messages == [f"the keys in {path} are gone: this machine's programs are let in without one"]


def test_a_link_to_keys_that_are_not_there_opens_nothing(path: Path) -> None:
    """A file that is kept on a share which is not there now is not one that never was."""
    path.parent.mkdir()
    path.symlink_to(path.parent / "share" / "keys.json")
    with pytest.raises(StorageError, match="leads to a file that is not there"):
        Keyring(path).defined  # noqa: B018 - it is what raises
    assert keys.read_keys(path.with_name("none")) is None
