"""Tokens as they are made and read: signed here, narrower than their key, and gone when they should be."""

from __future__ import annotations

import base64
import json
import os
import random
import stat
import string
import time
from pathlib import Path

import pytest

from turnout.errors import NotPermittedError, StorageError, UsageError
from turnout.guard import keys, tokens
from turnout.guard.keys import Clock, Key, Keyring, Keys, Limits
from turnout.guard.tokens import Token, Tokenring, Wanted, mint, verified, within

NOW = 1_800_000_000.0


class Times:
    """A wall clock and a ticking one, both set by hand."""

    def __init__(self) -> None:
        self.wall, self.ticks = NOW, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return keys.keys_path(tmp_path / "data")


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def ring(path: Path, times: Times) -> Tokenring:
    return Tokenring(Keyring(path, Clock(lambda: times.wall, lambda: times.ticks)))


def add_key(path: Path, name: str = "ci", **limits: object) -> str:
    with keys.changing(path) as known:
        changed, text = keys.add(known, name, Limits(**limits), NOW)  # type: ignore[arg-type]
        keys.write_keys(path, changed)
    return text


def minted(path: Path, key: str = "", now: float = NOW, **wanted: object) -> tuple[str, Token]:
    with tokens.changing_tokens(path) as (known, there):
        granter = next((each for each in known.keys if each.name == key), None)
        changed, made, text = mint(known, there, Wanted(**wanted), now, granter)  # type: ignore[arg-type]
        if not path.exists():
            keys.write_keys(path, known)
        tokens.write_tokens(tokens.tokens_path(path), changed)
    return text, made


def state(ring: Tokenring, shown: str) -> str:
    grant = ring.find(shown)
    return grant.state if grant is not None else "unknown"


def test_a_token_is_not_kept_and_its_file_is_for_its_owner_alone(path: Path, ring: Tokenring) -> None:
    text, made = minted(path)
    file = tokens.tokens_path(path)
    assert text not in file.read_text()
    assert text.rpartition(".")[2] not in file.read_text()
    assert made.id in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert state(ring, text) == "active"


def test_no_change_of_a_token_is_taken_for_one(path: Path, ring: Tokenring) -> None:
    """Each character changed, left out or doubled; its parts swapped with another's; and what says it may more."""
    text, _ = minted(path, role="user", name="x")
    other, _ = minted(path, role="admin")
    letters = string.ascii_letters + string.digits + "-_.=!\u00e9"
    choose = random.Random(1)
    forged = {text[:n] + choose.choice(letters.replace(text[n], "")) + text[n + 1 :] for n in range(3, len(text))}
    forged |= {text[:n] + text[n + 1 :] for n in range(3, len(text))} | {
        text[:n] + text[n] + text[n:] for n in range(3, len(text))
    }
    said = json.loads(base64.urlsafe_b64decode(text[3:].partition(".")[0] + "=="))
    more = base64.urlsafe_b64encode(json.dumps(said | {"role": "admin"}).encode()).rstrip(b"=").decode()
    mac = text.rpartition(".")[2]
    forged |= {f"tt-{more}.{mac}", f"{text.rpartition('.')[0]}.{other.rpartition('.')[2]}", f"tt-.{mac}", f"tt-{mac}"}
    forged |= {
        f"tt-{text[3:].partition('.')[0]}.",
        text.upper(),
        text + "\n",
        " " + text,
        "tt-",
        "tt-.",
        "tt-" + "." * 64,
    }
    forged -= {text}
    assert len(forged) > 500
    assert {state(ring, each) for each in forged} == {"unknown"}
    assert state(ring, text) == "active"
    known = keys.read_keys(path)
    assert known is not None
    assert verified(text, "00" * 32) is None, "another installation's secret"
    assert keys.digest_of(text, known.hash_key) != mac, "a key's hash is no token's signature"


def test_it_ends_and_no_clock_brings_it_back(path: Path, ring: Tokenring, times: Times) -> None:
    text, _ = minted(path, lasting=60)
    assert state(ring, text) == "active"
    times.pass_by(59.9)
    assert state(ring, text) == "active"
    times.pass_by(0.2)
    assert state(ring, text) == "expired"
    times.wall -= 3600
    assert state(ring, text) == "expired"
    fresh, _ = minted(path, now=times.wall, lasting=60)
    assert state(ring, fresh) == "expired", "made by the clock that was set back: rather shut than open"


def test_a_clock_that_is_set_back_gives_it_no_time(path: Path, ring: Tokenring, times: Times) -> None:
    text, _ = minted(path, lasting=60)
    assert state(ring, text) == "active"
    times.pass_by(30)
    assert state(ring, text) == "active"
    times.wall -= 86_400
    times.pass_by(29.9)
    assert state(ring, text) == "active"
    times.pass_by(0.2)
    assert state(ring, text) == "expired"


def test_a_clock_set_back_is_said_once(caplog: pytest.LogCaptureFixture, times: Times) -> None:
    clock = Clock(lambda: times.wall, lambda: times.ticks)
    times.wall -= 30
    assert clock() == NOW
    assert not caplog.records
    for _ in range(3):
        times.wall -= 1000
        times.pass_by(1)
        clock()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert clock() == NOW + 3


@pytest.mark.parametrize("how", ["one", "all", "file", "secret"])
def test_what_revokes_it(how: str, path: Path, ring: Tokenring) -> None:
    add_key(path)
    text, made = minted(path, "ci")
    other, _ = minted(path, "ci")
    assert [state(ring, each) for each in (text, other)] == ["active", "active"]
    file = tokens.tokens_path(path)
    there = tokens.read_tokens(file)
    assert there is not None
    if how == "one":
        tokens.write_tokens(file, tokens.revoke(there, [made.id], NOW))
    elif how == "all":
        tokens.write_tokens(file, tokens.revoke_all())
    elif how == "file":
        file.unlink()
    else:
        path.unlink()
        add_key(path)
    gone = "unknown" if how == "secret" else "revoked"
    assert [state(ring, each) for each in (text, other)] == [gone, "active" if how == "one" else gone]
    after, _ = minted(path, "ci")
    assert state(ring, after) == "active"
    assert state(ring, text) == gone


@pytest.mark.parametrize("how", ["revoke", "rotate", "anew", "expire"])
def test_it_ends_with_the_key_it_came_from(how: str, path: Path, ring: Tokenring, times: Times) -> None:
    add_key(path, lasting=3600)
    text, _ = minted(path, "ci")
    loose, _ = minted(path)
    assert state(ring, text) == "active"
    with keys.changing(path) as known:
        if how == "rotate":
            known, _ = keys.rotate(known, "ci", NOW)
        elif how != "expire":
            known = keys.revoke(known, "ci", NOW)
        if how == "anew":
            known, _ = keys.add(known, "ci", Limits(role="admin"), NOW)
        if how == "expire":
            known = Keys(known.hash_key, tuple(Key(name="ci", digest=k.digest, expires=int(NOW)) for k in known.keys))
        keys.write_keys(path, known)
    assert state(ring, text) == ("expired" if how == "expire" else "revoked")
    assert state(ring, loose) == "active"


def test_it_never_outlives_its_key(path: Path) -> None:
    add_key(path, lasting=90)
    assert minted(path, "ci")[1].expires == NOW + 90
    with pytest.raises(NotPermittedError, match="the key expires in 90 s"):
        minted(path, "ci", lasting=91)


@pytest.mark.parametrize("seconds", [0, -1, 86_401])
def test_it_lasts_a_day_at_most(seconds: int, path: Path) -> None:
    with pytest.raises(UsageError, match="a token lasts 1 s to 24 h"):
        minted(path, lasting=seconds)
    assert not tokens.tokens_path(path).exists()


def test_who_mints_in_a_loop_stops_and_what_has_expired_makes_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_OF_A_KEY", 5)
    add_key(path)
    for _ in range(5):
        minted(path, "ci", lasting=60)
    with pytest.raises(UsageError, match="too many tokens are in force"):
        minted(path, "ci")
    minted(path)
    minted(path, "ci", now=NOW + 61)
    there = tokens.read_tokens(tokens.tokens_path(path))
    assert there is not None
    assert len(there.minted) == 2


def test_a_token_is_of_a_bounded_length(path: Path) -> None:
    with pytest.raises(UsageError, match="the token would have"):
        minted(path, models=tuple(f"model-{n}" for n in range(400)))


def test_what_is_remembered_is_bounded(path: Path, ring: Tokenring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_VERIFIED", 3)
    texts = [minted(path)[0] for _ in range(6)]
    assert [state(ring, text) for text in texts * 2] == ["active"] * 12
    assert len(ring._good) == 3
    for n in range(100):
        assert state(ring, f"tt-wrong{n}.{'0' * 64}") == "unknown"
    assert len(ring._good) == 3, "what is forged is not remembered"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"epoch":"x","minted":[{}]}'])
def test_a_file_that_cannot_be_read_lets_no_token_in_and_keys_as_before(
    content: bytes, path: Path, ring: Tokenring
) -> None:
    key = add_key(path)
    text, _ = minted(path, "ci")
    file = tokens.tokens_path(path)
    good = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be read"):
        ring.find(text)
    assert state(ring, key) == "active"
    file.write_bytes(good)
    assert state(ring, text) == "active"


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such modes")
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_list_that_others_may_write_lets_no_token_in(mode: int, path: Path, ring: Tokenring) -> None:
    """They could take a revoked one out of those that are."""
    text, _ = minted(path)
    tokens.tokens_path(path).chmod(mode)
    with pytest.raises(StorageError, match="may be written by others.*every token is revoked then"):
        ring.find(text)


WITHIN = [
    (("a",), ("*",), ""),
    (("*",), ("*",), ""),
    (("*",), ("a*",), "*"),
    (("ab*",), ("a*",), ""),
    (("A-7B",), ("a*",), ""),
    (("?",), ("*",), ""),
    (("*",), ("?",), "*"),
    (("a?",), ("a?",), ""),
    (("[ab]",), ("*",), "[ab]"),
    (("[a]b",), ("*]b",), "[a]b"),
    (("a", "z"), ("a", "b"), "z"),
    ((), ("a",), ""),
]


@pytest.mark.parametrize(("patterns", "allowed", "beyond"), WITHIN)
def test_patterns_that_are_within_others(patterns: tuple[str, ...], allowed: tuple[str, ...], beyond: str) -> None:
    assert within(patterns, allowed) == beyond


def test_patterns_that_are_within_never_fit_what_the_others_do_not() -> None:
    """Random patterns over a small alphabet, all words of up to four letters."""
    from fnmatch import fnmatchcase
    from itertools import product

    words = ["".join(word) for size in range(5) for word in product("ab]", repeat=size)]
    choose = random.Random(2)
    made = ["".join(choose.choice("ab*?[]!") for _ in range(choose.randint(1, 4))) for _ in range(300)]
    pairs = [(one, two) for one in made for two in choose.sample(made, 20) if not within([one], [two])]
    assert len(pairs) > 100
    for one, two in pairs:
        assert all(fnmatchcase(word, two) for word in words if fnmatchcase(word, one)), (one, two)


def test_what_was_found_good_is_not_computed_again(path: Path) -> None:
    text, _ = minted(path, now=time.time())
    ring = Tokenring(Keyring(path))
    first = ring.find(text)
    assert first is not None
    assert ring.find(text) is first
