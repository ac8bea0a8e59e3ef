"""The keys of the gateway: who may ask it what, in one small file that every process shares.

A key is 32 random bytes, so nobody finds it by guessing, and a slow hash, which makes guessing dear, would only make
every request dear. What is kept is its HMAC-SHA-256 under a random key of the file: the key cannot be read back from
it, and since nobody outside can compute the hash of what he sends, the time of its look-up tells him nothing.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from turnout.errors import StorageError, UsageError
from turnout.files import lock_folder, read_file, replace_file, unlock_folder
from turnout.guard.roles import Role

PREFIX = "tk-"
MAX_TOKEN = 256
DEFAULT_SECONDS = 90 * 86_400  # that a key lasts, where nobody says how long
_HASH_KEY_BYTES = _TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_RESERVED = frozenset({"local", "unknown"})  # whoever asks at this machine, and whoever has no key
_SET = re.compile(r"\[!?+\]?+[^\]]*\]")  # of characters, as fnmatch reads it
_SET_BACK = 60.0  # seconds that a clock goes back before that is said

log = logging.getLogger("turnout")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key, as it is kept.

    Attributes:
        name: whose it is: the principal of its requests.
        digest: the keyed hash of the key, "" once it is revoked.
        role: what it may do at all (``roles.py``).
        created, expires, revoked: seconds since 1970; 0 for never.
        models: patterns of what it may ask for; empty for everything.
        routes: patterns of the paths it may use; empty for all that its role has.
        rate: requests a minute; 0 for no limit.
        concurrent: requests at the same time; 0 for no limit.
        workspaces: absolute directories whose code may be read for its requests; empty for none.
    """

    name: str
    digest: str
    role: Role = "user"
    created: int = 0
    expires: int = 0
    revoked: int = 0
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rate: int = 0
    concurrent: int = 0
    workspaces: tuple[str, ...] = ()

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``; ``now`` in seconds since 1970."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and now >= self.expires else "active"


class Keys(msgspec.Struct, frozen=True):
    """The file. A revoked key stays in it, so that taking the last one away does not open the gateway to everybody."""

    hash_key: str
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a new key may do; the fields of ``Key``, ``lasting`` in seconds from now and 0 for ever."""

    role: Role = "user"
    lasting: int = 0
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rate: int = 0
    concurrent: int = 0
    workspaces: tuple[str, ...] = ()


def keys_path(data_dir: Path) -> Path:
    """Where the keys are kept."""
    return data_dir / "keys.json"


def read_keys(path: Path) -> Keys | None:
    """The keys; None when there is no file, and so none was ever made.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        found = msgspec.json.decode(read_file(path), type=Keys)
        bytes.fromhex(found.hash_key)
    except FileNotFoundError as error:
        if not path.is_symlink():
            return None
        raise StorageError(f"the keys in {path} cannot be read: it leads to a file that is not there") from error
    except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        hint = "bring it back from a backup, or delete it and make new keys"
        raise StorageError(f"the keys in {path} cannot be read: {said}", hint=hint) from error
    if os.name == "posix" and path.stat().st_mode & 0o077:
        hint = f"chmod 600 {path}; if others could read it, delete it and make new keys: its secret signs tokens"
        raise StorageError(f"the keys in {path} may be read by others", hint=hint)
    return found


def digest_of(token: str, hash_key: str) -> str:
    """What is kept of a key."""
    return hmac.digest(bytes.fromhex(hash_key), token.encode("utf-8", "surrogatepass"), "sha256").hex()


@contextmanager
def changing(path: Path) -> Iterator[Keys]:
    """The keys, while nobody else changes them.

    Raises:
        StorageError: they cannot be read, or their directory cannot be made or opened.
    """
    try:
        folder = lock_folder(path.parent)
    except OSError as error:
        raise StorageError(f"the keys cannot be kept in {path}: {error.strerror or error}") from error
    try:
        yield read_keys(path) or Keys(secrets.token_hex(_HASH_KEY_BYTES))
    finally:
        unlock_folder(folder)


def add(keys: Keys, name: str, limits: Limits, now: float) -> tuple[Keys, str]:
    """With a new key; the key itself is returned here and nowhere kept. The name of a revoked one may be used again.

    Raises:
        UsageError: the name is none, or is taken.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        hint = "letters, digits, . - _; at most 64, and neither `local` nor `unknown`"
        raise UsageError(f"{name[:80]!r} is not the name of a key", hint=hint)
    before = next((key for key in keys.keys if key.name == name), None)
    if before is not None and not before.revoked:
        raise UsageError(
            f"there is a key {name!r} already", hint=f"turnout key rotate {name}; for other limits revoke it first"
        )
    token = PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    made = Key(
        name=name,
        digest=digest_of(token, keys.hash_key),
        role=limits.role,
        created=int(now),
        expires=int(now) + limits.lasting if limits.lasting else 0,
        models=limits.models,
        routes=limits.routes,
        rate=limits.rate,
        concurrent=limits.concurrent,
        workspaces=limits.workspaces,
    )
    return _with(keys, made), token


def rotate(keys: Keys, name: str, now: float) -> tuple[Keys, str]:
    """With another key of the same name and limits, that lasts as long again; the old one is worth nothing any more.

    Where the file does not tell how long that was, since somebody edited it, it lasts ``DEFAULT_SECONDS``.

    Raises:
        UsageError: there is none of that name, or it is revoked.
    """
    old = _named(keys, name)
    token = PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    lasting = old.expires - old.created if old.created else 0
    if lasting <= 0:
        lasting = DEFAULT_SECONDS
    expires = int(now) + lasting if old.expires else 0
    fresh = {"digest": digest_of(token, keys.hash_key), "created": int(now), "expires": expires}
    return _with(keys, msgspec.structs.replace(old, **fresh)), token


def revoke(keys: Keys, name: str, now: float) -> Keys:
    """Without that key.

    Raises:
        UsageError: there is none of that name, or it is revoked.
    """
    return _with(keys, msgspec.structs.replace(_named(keys, name), digest="", revoked=int(now)))


def write_keys(path: Path, keys: Keys) -> None:
    """Replace the file at once or not at all, for this user alone.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(keys), indent=1))
    except OSError as error:
        raise StorageError(f"the keys cannot be kept in {path}: {error.strerror or error}") from error


def require_patterns(what: str, patterns: Iterable[str], *, paths: bool = False) -> None:
    """Refuse what would fit nothing.

    Raises:
        UsageError: a pattern of ``what`` is none.
    """
    for part in patterns:
        if not part.strip():
            raise UsageError(f"{what} {part[:40]!r} names nothing", hint=f"leave {what} out to allow everything")
        if "[" in _SET.sub("", part):
            raise UsageError(f"{what} {part[:40]!r}: its [ has no ]", hint="for example '[ab]*'; [[] is a bracket")
        if paths and not part.startswith(("/", "*")):
            raise UsageError(f"{what} {part[:40]!r} fits no path: they begin with /", hint="for example '/v1/*'")


def day_of(seconds: int) -> str:
    """A moment for people; ``never`` for 0."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "never"


def _named(keys: Keys, name: str) -> Key:
    found = next((key for key in keys.keys if key.name == name), None)
    if found is not None and found.revoked:
        hint = f"`turnout key add {name}` makes a new one of that name"
        raise UsageError(f"the key {name!r} is revoked already", hint=hint)
    if found is None:
        there = ", ".join(key.name for key in keys.keys if not key.revoked)
        raise UsageError(f"there is no key {name[:80]!r}", hint=f"there are: {there}" if there else "turnout key add")
    return found


def _with(keys: Keys, key: Key) -> Keys:
    others = [other for other in keys.keys if other.name != key.name]
    return Keys(keys.hash_key, tuple(sorted([*others, key], key=lambda each: each.name)))


class Clock:
    """Seconds since 1970 that never go back in this process: what has expired stays so, whatever is done to the clock.

    A clock that is set forward and back again leaves them ahead until the next start: rather shut than open.
    """

    def __init__(self, wall: Callable[[], float] = time.time, ticking: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._ticking = wall, ticking
        self._last, self._ticks = wall(), ticking()
        self._said = False

    def __call__(self) -> float:
        """Now."""
        wall, ticks = self._wall(), self._ticking()
        since = self._last + (ticks - self._ticks)
        if wall < since - _SET_BACK and not self._said:
            self._said = True
            log.warning(
                "the clock was set back by %.0f s: keys and tokens expire as if it had not, until the next start",
                since - wall,
            )
        self._last, self._ticks = max(wall, since), ticks
        return self._last


class Watched(ABC):
    """A small file as it is now: each question looks whether it has changed, since what is revoked is so at once.

    Attributes:
        path: the file.
        version: another number after each change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        self._seen: tuple[int, ...] | None = None
        self._problem: StorageError | None = None

    def check(self) -> None:
        """Look whether the file has changed.

        Raises:
            StorageError: the file is there and cannot be read.
        """
        seen = self._identity()
        if seen != self._seen:
            self._seen = seen
            self._reread()
        if self._problem is not None:
            raise self._problem

    @abstractmethod
    def _read(self) -> None:
        """Take over what is in the file, or that there is none. Raises StorageError."""

    def _identity(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return (-1,) if self.path.is_symlink() else None
        except OSError:
            return (-1,)  # reading it says why
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def _reread(self) -> None:
        self.version += 1
        try:
            self._read()
            self._problem = None
        except StorageError as error:
            self._problem = error
            self._seen = (-2,)  # read again at the next look: it may be a passing trouble


class Keyring(Watched):
    """The keys as the file has them now.

    A file that cannot be read opens nothing: ``find`` and ``defined`` raise until it can.
    """

    def __init__(self, path: Path, clock: Callable[[], float] | None = None) -> None:
        super().__init__(path)
        self.now = clock or Clock()
        self._keys: Keys | None = None
        self._by_digest: dict[str, Key] = {}

    @property
    def defined(self) -> bool:
        """Whether a key was ever made, so that nobody is let in without one.

        Raises:
            StorageError: the file is there and cannot be read.
        """
        return self.keys is not None

    @property
    def keys(self) -> Keys | None:
        """All of them, None where there never was one.

        Raises:
            StorageError: the file is there and cannot be read.
        """
        self.check()
        return self._keys

    def find(self, token: str) -> Key | None:
        """The key that a client presents, also when it has expired; None when it is none of ours.

        Raises:
            StorageError: the file is there and cannot be read.
        """
        self.check()
        if self._keys is None or len(token) > MAX_TOKEN:
            return None
        digest = digest_of(token, self._keys.hash_key)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def _read(self) -> None:
        found = read_keys(self.path)
        if found is None and self._keys is not None:
            log.warning("the keys in %s are gone: this machine's programs are let in without one", self.path)
        # Only now: whatever goes wrong in reading must not look as if there were no keys.
        self._keys = found
        self._by_digest = {key.digest: key for key in found.keys if not key.revoked} if found is not None else {}
