"""Short-lived tokens: what somebody who has a key hands on for minutes or hours, and never more than he has himself.

A token says itself what it may do, and an HMAC under the key file's secret shows that it was made here
(docs/decisions.md says why it is no public-key signature). It is worth nothing without ``tokens.json``, which has what
was minted and what was revoked, nor without the key that it came from: both are asked at each use, and the narrower of
two limits holds.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from turnout.errors import NotPermittedError, StorageError, UsageError
from turnout.files import read_file, replace_file
from turnout.guard.keys import Key, Keyring, Keys, Watched, changing
from turnout.guard.roles import Role, covers
from turnout.types import Json, Principal

PREFIX = "tt-"
DEFAULT_SECONDS, MAX_SECONDS = 600, 86_400
MAX_LENGTH = 2000  # of a token; headers may be longer, but a file of them is kept
MAX_OF_A_KEY, MAX_LIVE = 200, 2000  # tokens in force: somebody who mints in a loop stops there
MAX_VERIFIED = 4096  # tokens that are known to be good
_MAC_DIGITS = 64
_OF_DIGITS = 16
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_ANOTHER_USE = b"turnout: tokens, form 1"  # the secret of the file hashes keys, and nothing of that fits here


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a token says of itself.

    Attributes:
        id: its name for revocation and lists.
        epoch: that of ``tokens.json``; another one there has revoked all that came before.
        name: what it is for; the principal of its requests is called by it.
        key: the name of the key that it came from, "" of one that was minted at this machine.
        of: the beginning of that key's hash: a key of the same name that is made later is another.
        role, models, routes, rate, concurrent: as of a ``Key``; where one is empty, that key's limit holds alone.
        created, expires: seconds since 1970.
    """

    id: str
    epoch: str
    created: int
    expires: int
    name: str = ""
    key: str = ""
    of: str = ""
    role: Role = "user"
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rate: int = 0
    concurrent: int = 0

    @property
    def principal(self) -> str:
        """Whose requests they are that it lets in; no key is called so."""
        return f"{self.key or 'local'}/{self.name or self.id}"


class Tokens(msgspec.Struct, frozen=True):
    """The file: what is in force or was revoked, until it would have expired. No token can be made from it."""

    epoch: str
    minted: tuple[Token, ...] = ()
    revoked: dict[str, int] = {}

    def state(self, token: Token, now: float) -> str:
        """``active``, ``expired`` or ``revoked``; ``now`` in seconds since 1970."""
        if token.id in self.revoked or token.epoch != self.epoch:
            return "revoked"
        return "expired" if now >= token.expires else "active"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a new token is to be; ``role`` None for the least that its granter may give."""

    lasting: int | None = None
    role: Role | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rate: int = 0
    concurrent: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """Who has shown a key or a token of ours.

    Attributes:
        principal: whose his requests are.
        limits: all that limit him, the narrowest first; the last one is a key, if there is one.
        state: ``active``, ``expired`` or ``revoked``.
        token: what was shown, None for a key.
    """

    principal: Principal
    limits: tuple[Key, ...]
    state: str
    token: Token | None = None


def tokens_path(keys_file: Path) -> Path:
    """Where tokens are listed: beside the keys, whose lock and secret they share."""
    return keys_file.with_name("tokens.json")


def read_tokens(path: Path) -> Tokens | None:
    """What was minted; None when there is no file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        found = msgspec.json.decode(read_file(path), type=Tokens)
        if os.name != "posix" or not path.stat().st_mode & 0o022:
            return found
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        hint = "delete it: every token is revoked then, and new ones can be minted"
        raise StorageError(f"the tokens in {path} cannot be read: {said}", hint=hint) from error
    hint = "delete it: every token is revoked then; or chmod go-w, but others may have put back revoked tokens"
    raise StorageError(f"the tokens in {path} may be written by others", hint=hint)


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Replace the file at once or not at all, for this user alone.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(tokens), indent=1))
    except OSError as error:
        raise StorageError(f"the tokens cannot be kept in {path}: {error.strerror or error}") from error


@contextmanager
def changing_tokens(keys_file: Path) -> Iterator[tuple[Keys, Tokens]]:
    """Keys and tokens, while nobody else changes them.

    Raises:
        StorageError: they cannot be read, or their directory cannot be made or opened.
    """
    with changing(keys_file) as keys:
        yield keys, read_tokens(tokens_path(keys_file)) or Tokens(secrets.token_hex(8))


def mint(keys: Keys, tokens: Tokens, wanted: Wanted, now: float, granter: Key | None) -> tuple[Tokens, Token, str]:
    """With a new token; the token itself is returned and nowhere kept.

    Args:
        keys: the file's, with its secret.
        tokens: what there is.
        wanted: what it is to be.
        now: seconds since 1970.
        granter: the key that it comes from, None for whoever has the files.

    Raises:
        NotPermittedError: the granter may not do that himself.
        UsageError: it would last too long or be too large, there are too many, or its name is none.
    """
    if wanted.name and not _NAME.fullmatch(wanted.name):
        raise UsageError(f"{wanted.name[:80]!r} is not the name of a token", hint="letters, digits, . - _; at most 64")
    if wanted.lasting is not None and not 0 < wanted.lasting <= MAX_SECONDS:
        raise UsageError(f"a token lasts 1 s to 24 h, not {wanted.lasting} s", hint="for longer, make a key")
    kept = _living(tokens, now)
    name = granter.name if granter is not None else ""
    if len(kept.minted) >= MAX_LIVE or sum(each.key == name for each in kept.minted) >= MAX_OF_A_KEY:
        raise UsageError("too many tokens are in force", hint="wait until some expire: `turnout token list`")
    if granter is not None:
        _require_narrower(wanted, granter, now)
    lasting = wanted.lasting or DEFAULT_SECONDS
    ends = int(now) + lasting
    if granter is not None and granter.expires:
        ends = min(ends, granter.expires)
    token = Token(
        id=secrets.token_hex(8),
        epoch=kept.epoch,
        created=int(now),
        expires=ends,
        name=wanted.name,
        key=name,
        of=granter.digest[:_OF_DIGITS] if granter is not None else "",
        role=wanted.role or _least(granter),
        models=wanted.models,
        routes=wanted.routes,
        rate=wanted.rate,
        concurrent=wanted.concurrent,
    )
    text = _signed(token, keys.hash_key)
    if len(text) > MAX_LENGTH:
        raise UsageError(f"the token would have {len(text)} characters", hint="fewer or shorter patterns")
    return msgspec.structs.replace(kept, minted=(*kept.minted, token)), token, text


def revoke(tokens: Tokens, ids: Iterable[str], now: float) -> Tokens:
    """Without those.

    Raises:
        UsageError: one of them is not in force.
    """
    there = {token.id for token in tokens.minted if tokens.state(token, now) == "active"}
    gone = dict(tokens.revoked)
    for each in ids:
        if each not in there:
            raise UsageError(f"no token {each[:80]!r} is in force", hint="`turnout token list` shows their ids")
        gone[each] = int(now)
    return _living(msgspec.structs.replace(tokens, revoked=gone), now)


def revoke_all() -> Tokens:
    """Without any: what was minted until now belongs to an epoch that is over, also what no file tells of."""
    return Tokens(secrets.token_hex(8))


def described(token: Token) -> str:
    """For the audit log."""
    what = [
        f"{name} {', '.join(given)}" for name, given in (("models", token.models), ("routes", token.routes)) if given
    ]
    lasting = token.expires - token.created
    return "; ".join((f"token minted: {token.id} for {token.principal}, {token.role}, {lasting} s", *what))


def fields(token: Token, state: str) -> dict[str, Json]:
    """For people and programs: moments in seconds since 1970, null for no limit of its own."""
    return {
        "id": token.id,
        "principal": token.principal,
        "key": token.key or None,
        "state": state,
        "role": token.role,
        "created": token.created,
        "expires": token.expires,
        "models": list(token.models),
        "routes": list(token.routes),
        "rate": token.rate or None,
        "concurrent": token.concurrent or None,
    }


def within(patterns: Iterable[str], allowed: Iterable[str]) -> str:
    """The first of ``patterns`` that may fit what none of ``allowed`` fits, "" when there is none.

    What is refused here may be within after all where both have sets or question marks; that no token opens more than
    its key does not rest on this, but on both being asked at each use.
    """
    rows = tuple(each.lower() for each in allowed)
    return next((each for each in patterns if not any(_fits_all(each.lower(), row) for row in rows)), "")


def _fits_all(pattern: str, wider: str) -> bool:
    if pattern == wider:
        return True
    if any(sign in wider for sign in "?[") and any(sign in pattern for sign in "*?["):
        return False
    return "[" not in pattern and fnmatchcase(pattern, wider)


def _require_narrower(wanted: Wanted, granter: Key, now: float) -> None:
    """Raises NotPermittedError: the granter may not do all of that himself."""
    hint = f"a token may no more than the key {granter.name!r}, which it comes from"
    too_much = ""
    if wanted.role is not None and not covers(granter.role, wanted.role):
        too_much = f"the role {wanted.role} is more than the key's, {granter.role}"
    elif granter.models and (more := within(wanted.models, granter.models)):
        too_much = f"the key may ask for {', '.join(granter.models)}, not for {more[:80]!r}"
    elif granter.routes and (more := within(wanted.routes, granter.routes)):
        too_much = f"the key may use {', '.join(granter.routes)}, not {more[:80]!r}"
    elif granter.rate and wanted.rate > granter.rate:
        too_much = f"the key may ask {granter.rate} times a minute, not {wanted.rate}"
    elif granter.concurrent and wanted.concurrent > granter.concurrent:
        too_much = f"the key may ask {granter.concurrent} at once, not {wanted.concurrent}"
    elif granter.expires and wanted.lasting is not None and now + wanted.lasting > granter.expires:
        too_much = f"the key expires in {max(0, round(granter.expires - now))} s, before the token would"
    if too_much:
        raise NotPermittedError(too_much, hint=hint)


def _least(granter: Key | None) -> Role:
    return "user" if granter is None or covers(granter.role, "user") else granter.role


def _living(tokens: Tokens, now: float) -> Tokens:
    """Without what has expired anyway."""
    minted = tuple(token for token in tokens.minted if now < token.expires)
    ids = {token.id for token in minted}
    return Tokens(tokens.epoch, minted, {each: when for each, when in tokens.revoked.items() if each in ids})


def _signed(token: Token, hash_key: str) -> str:
    said = urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=")
    return f"{PREFIX}{said.decode()}.{_mac(said, hash_key)}"


def _mac(said: bytes, hash_key: str) -> str:
    own = hmac.digest(bytes.fromhex(hash_key), _ANOTHER_USE, "sha256")
    return hmac.digest(own, said, "sha256").hex()


def verified(text: str, hash_key: str) -> Token | None:
    """What a token says, None when it was not made with this secret."""
    said, dot, mac = text.removeprefix(PREFIX).encode("utf-8", "surrogatepass").rpartition(b".")
    if not dot or len(mac) != _MAC_DIGITS or not hmac.compare_digest(mac, _mac(said, hash_key).encode()):
        return None
    try:
        return msgspec.json.decode(urlsafe_b64decode(said + b"=" * (-len(said) % 4)), type=Token)
    except (msgspec.DecodeError, ValueError):
        return None  # made here, by a Turnout that wrote another form


class Tokenring(Watched):
    """Who is let in by what he shows: keys and tokens as the files have them now.

    What was found good is remembered until one of the files changes, at most ``MAX_VERIFIED`` of it.
    """

    def __init__(self, keyring: Keyring) -> None:
        super().__init__(tokens_path(keyring.path))
        self.keyring = keyring
        self._tokens: Tokens | None = None
        self._good: dict[str, Grant] = {}
        self._good_at = (-1, -1)

    @property
    def tokens(self) -> Tokens | None:
        """All of them, None where there never was one.

        Raises:
            StorageError: the file is there and cannot be read.
        """
        self.check()
        return self._tokens

    def find(self, shown: str) -> Grant | None:
        """Whose key or token that is, also when it is worth nothing any more; None when it is none of ours.

        Raises:
            StorageError: one of the files is there and cannot be read.
        """
        if not shown.startswith(PREFIX):
            key = self.keyring.find(shown)
            return None if key is None else of_key(key, self.keyring.now())
        if len(shown) > MAX_LENGTH:
            return None
        keys, tokens = self.keyring.keys, self.tokens
        if keys is None:
            return None
        files = self.keyring.version, self.version
        if files != self._good_at:
            self._good, self._good_at = {}, files
        grant = self._good.get(shown)
        if grant is None:
            token = verified(shown, keys.hash_key)
            if token is None:
                return None
            grant = _of_token(token, keys, tokens, self.keyring.now())
            if grant.state == "active":
                if len(self._good) >= MAX_VERIFIED:
                    del self._good[next(iter(self._good))]
                self._good[shown] = grant
            return grant
        now = self.keyring.now()
        if any(limit.expires and now >= limit.expires for limit in grant.limits):
            del self._good[shown]
            return Grant(grant.principal, grant.limits, "expired", grant.token)
        return grant

    def _read(self) -> None:
        self._tokens = read_tokens(self.path)


def of_key(key: Key, now: float) -> Grant:
    """Whoever has shown a key."""
    return Grant(_principal(key.name, (key,)), (key,), key.state(now))


def _of_token(token: Token, keys: Keys, tokens: Tokens | None, now: float) -> Grant:
    own = Key(
        name=token.principal,
        digest="",
        role=token.role,
        created=token.created,
        expires=token.expires,
        models=token.models,
        routes=token.routes,
        rate=token.rate,
        concurrent=token.concurrent,
    )
    state = tokens.state(token, now) if tokens is not None else "revoked"
    limits: tuple[Key, ...] = (own,)
    if token.key:
        parent = next((key for key in keys.keys if key.name == token.key), None)
        if parent is None or parent.revoked or not hmac.compare_digest(parent.digest[:_OF_DIGITS], token.of):
            state = "revoked"
        else:
            limits = (own, parent)
            state = parent.state(now) if state == "active" else state
    return Grant(_principal(token.principal, limits), limits, state, token)


def _principal(name: str, limits: tuple[Key, ...]) -> Principal:
    return Principal(name, frozenset({limits[0].role}), tuple(each.models for each in limits if each.models))
