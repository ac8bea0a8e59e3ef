"""The door: every request passes here before anything else looks at it.

The Host and Origin of a request, then its key, its route and its limits. Without a key in the file, this machine's own
programs are let in as the person at it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from starlette.types import Scope

from turnout.errors import AuditError, StorageError
from turnout.gateway.exchange import Exchange, path_of
from turnout.gateway.lockout import LockedOutError, Lockout
from turnout.gateway.refusal import HttpError
from turnout.guard.keys import Key, day_of
from turnout.guard.roles import ROLES, ability_for, may
from turnout.guard.tokens import Grant, Tokenring
from turnout.types import Principal

log = logging.getLogger("turnout")

LOOPBACK_HOSTS = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
# Whoever watches over the process has no key; these say that it is alive or ready, and nothing else.
OPEN_ROUTES = frozenset({"/health", "/healthz", "/readyz"})
NOBODY = Principal("unknown", frozenset())
MAX_LOGGED = 30  # refusals of a kind that are written to the audit log each one, in a minute
MAX_BUCKETS = 4096  # keys and tokens whose rate is remembered
# A loopback page, or what is no page of a site at all: an editor's own view, such as vscode-webview://.
_OWN_ORIGIN = re.compile(
    rb"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?|(?!(?:https?|file|ftp|wss?):)[a-z][a-z0-9+.-]*://[!-~]+",
    re.IGNORECASE,
)
_HOST = re.compile(rb"(\[[^\[\]]+\]|[^:@\[\]/]+)(?::[0-9]*)?")
_JSON_TYPE = re.compile(rb"application/(?:[\w.-]+\+)?json[ \t]*(?:;.*)?", re.IGNORECASE)
_HEADERS = frozenset({b"host", b"origin", b"content-type"})
# Where the clients of the wire formats put their key (facts/agents.md, sections 2, 3 and 7).
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
_WORKSPACE = b"x-turnout-workspace"
_LOOKED_AT = _HEADERS | {_WORKSPACE} | frozenset(_KEY_HEADERS)
_WANTED = "Authorization: Bearer KEY, or x-api-key, api-key or x-goog-api-key"


class Door:
    """Who is let in.

    Args:
        ring: the keys, and the tokens that came from them.
        hosts: names of this gateway in the Host header, besides those of loopback.
        require_key: also when no key was ever made: the gateway can be reached from elsewhere.
        workspace: whose code this machine's own programs may have read where there are no keys; "" for nobody's.
        lockout: whom nobody listens to, over reloads.
    """

    def __init__(
        self,
        ring: Tokenring,
        hosts: tuple[str, ...] = (),
        *,
        require_key: bool = False,
        workspace: str = "",
        lockout: Lockout | None = None,
    ) -> None:
        self.ring, self._require_key = ring, require_key
        self._workspaces = (str(Path(workspace).expanduser().absolute()),) if workspace else ()
        self._lockout = lockout or Lockout()
        self._hosts = LOOPBACK_HOSTS | {_bracketed(host).lower().encode() for host in hosts}

    @property
    def keys_readable(self) -> bool:
        """Whether the keys can be read; while they cannot, nobody is let in."""
        try:
            self.ring.keyring.check()
            self.ring.check()
        except StorageError:
            return False
        return True

    def admit(self, exchange: Exchange, scope: Scope, meter: Meter, *, chat: bool) -> None:
        """Let it in, as somebody, or raise why not.

        Raises:
            HttpError: the answer to give.
        """
        seen: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _LOOKED_AT:
                seen.setdefault(name, []).append(value)
        self._check_origin(seen, scope, chat=chat)
        if scope["path"] in OPEN_ROUTES and scope["method"] in ("GET", "HEAD"):
            return
        peer = scope["client"][0] if scope.get("client") else ""
        try:
            if not (self._require_key or self.ring.keyring.defined):
                exchange.workspace = _workspace(seen.get(_WORKSPACE, []), self._workspaces)
                return
            self._lockout.require_open(peer)
            grant = self._presented(seen)
        except StorageError as error:
            log.error("%s", error)
            exchange.principal = NOBODY
            said, hint = "the keys cannot be read, so nobody is let in", "whoever runs the gateway finds why in its log"
            raise HttpError(503, said, hint=hint, code="keys_unreadable") from error
        except LockedOutError:
            exchange.principal = NOBODY
            raise
        if grant is None:
            exchange.principal = NOBODY
            if _shown(seen):
                self._lockout.count(peer)
            raise _unknown(seen)
        exchange.principal = grant.principal
        _check_state(grant)
        for limit in grant.limits:
            _check_route(limit, scope["path"])
        workspaces = grant.limits[-1].workspaces  # a token's are its key's
        implied = workspaces[0] if len(workspaces) == 1 else ""
        exchange.workspace = _workspace(seen.get(_WORKSPACE, []), workspaces) or implied
        meter.enter_all(grant.limits, asks=scope["method"] == "POST")
        exchange.grant = grant

    def _check_origin(self, seen: dict[bytes, list[bytes]], scope: Scope, *, chat: bool) -> None:
        """Refuse what is not sent to this gateway by a program.

        A foreign Host is what a page in a browser sends after DNS rebinding; a foreign Origin is any other page. A
        page's form can post text without asking first, so where an Origin is, a chat must say that it is JSON.
        """
        hosts, origins, types = seen.get(b"host", ()), seen.get(b"origin", ()), seen.get(b"content-type", ())
        if len(hosts) != 1 or not self._is_ours(hosts[0].lower(), scope):
            hint = "use its address, http://localhost, or a name in gateway.hosts"
            raise HttpError(421, "the Host header is not this gateway's", hint=hint, code="foreign_host")
        for origin in origins:
            if not (_OWN_ORIGIN.fullmatch(origin) or origin.partition(b"://")[2].lower() == hosts[0].lower()):
                hint = "call the gateway from this machine"
                raise HttpError(403, "the request comes from another site's page", hint=hint, code="foreign_origin")
        if chat and origins and not (len(types) == 1 and _JSON_TYPE.fullmatch(types[0])):
            raise HttpError(415, "a page must send a chat as JSON", hint="Content-Type: application/json")

    def _is_ours(self, host: bytes, scope: Scope) -> bool:
        """A configured name, or the very address that was dialled: what rebinding leads here is a name."""
        name = _host_name(host)
        if name in self._hosts:
            return True
        dialled = scope.get("server")
        return dialled is not None and name == _bracketed(str(dialled[0])).lower().encode()

    def _presented(self, seen: dict[bytes, list[bytes]]) -> Grant | None:
        for shown in _shown(seen):
            grant = self.ring.find(shown)
            if grant is not None:
                return grant
        return None


def _shown(seen: dict[bytes, list[bytes]]) -> list[str]:
    """What may be a key; a header that is given twice counts once, so that nobody tries many in one request."""
    found = []
    for name in _KEY_HEADERS:
        value = seen.get(name, [b""])[0]
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            value = value if scheme.lower() == b"bearer" else b""
        if value := value.strip():
            found.append(value.decode("latin-1"))
    return found


def _unknown(seen: dict[bytes, list[bytes]]) -> HttpError:
    said = "the key is not known" if _shown(seen) else "a key is needed"
    hint = f"{_WANTED}; `turnout key add NAME` makes one"
    return HttpError(401, said, hint=hint, headers={"WWW-Authenticate": "Bearer"}, code="invalid_api_key")


def _workspace(asked: list[bytes], allowed: tuple[str, ...]) -> str:
    """The directory that a request names, "" when it names none. Who may not have one is not told whether it is there.

    Raises:
        HttpError: it is in none of those that are allowed, links followed.
    """
    if not asked:
        return ""
    try:
        wanted = Path(os.fsdecode(asked[0]))
        path = wanted.resolve()
        if (
            wanted.is_absolute()
            and any(path.is_relative_to(Path(each).resolve()) for each in allowed)
            and path.is_dir()
        ):
            return str(path)
    except (OSError, ValueError, RuntimeError):
        pass  # no path at all: refused below as any other
    hint = "`turnout key add --workspace DIR` allows a directory to a key; without keys, serena.workspace does"
    raise HttpError(403, "the code of that directory is not read for you", hint=hint, code="not_permitted")


def _check_state(grant: Grant) -> None:
    if grant.state == "active":
        return
    token, key = grant.token, grant.limits[-1]
    if token is None:
        said, hint = f"the key {key.name!r} has expired on {day_of(key.expires)}", f"turnout key rotate {key.name}"
    else:
        said, hint = f"the token {token.id} is {grant.state}", "mint another: `turnout token mint`"
    code = f"{grant.state}_{'api_key' if token is None else 'token'}"
    raise HttpError(401, said, hint=hint, headers={"WWW-Authenticate": "Bearer"}, code=code)


def _check_route(key: Key, path: str) -> None:
    ability = ability_for(path)
    # A key's routes may name what only tells of the process, for a scraper that shall do nothing else.
    if not may(key.role, ability) and not (ability == "watch" and path in key.routes):
        roles = " or ".join(role for role in ROLES if may(role, ability))
        said = f"the key {key.name!r} may not use {path[:200]}: its role is {key.role}"
        more = f", or --routes {path}" if ability == "watch" else ""
        raise HttpError(403, said, hint=f"turnout key add NAME --role {roles}{more}", code="not_permitted")
    if key.routes and not any(fnmatchcase(path, pattern) for pattern in key.routes):
        hint = f"it may use: {', '.join(key.routes)}"
        raise HttpError(403, f"the key {key.name!r} may not use {path[:200]}", hint=hint, code="not_permitted")


class Meter:
    """How much each key asks, in this process: requests a minute, as a bucket that fills again, and those that run.

    Too much is 503 with Retry-After and never 429: every agent waits and tries again after 503, while Codex gives up at
    the first 429 (facts/agents.md, section 4). The SDKs treat both alike.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when that was so
        self._running: Counter[str] = Counter()

    def enter_all(self, keys: Sequence[Key], *, asks: bool) -> None:
        """Count a request that several limits hold for: of a token its own, then those of the key it came from.

        Raises:
            HttpError: it is one too many for one of them, and none of them counts it as running.
        """
        entered: list[Key] = []
        try:
            for key in keys:
                if asks:
                    self.take(key)
                else:
                    self.enter(key)
                entered.append(key)
        except HttpError:
            for key in entered:
                self.leave(key)
            raise

    def take(self, key: Key) -> None:
        """Count a request that asks for something.

        Raises:
            HttpError: it is one too many.
        """
        self.enter(key)
        try:
            if key.rate:
                self._take_one(key)
        except HttpError:
            self.leave(key)
            raise

    def enter(self, key: Key) -> None:
        """Count a request that runs; ``leave`` ends it.

        Raises:
            HttpError: as many as are allowed run.
        """
        if key.concurrent and self._running[key.name] >= key.concurrent:
            requests, are = ("request", "is") if key.concurrent == 1 else ("requests", "are")
            said = f"{key.concurrent} {requests} of the key {key.name!r} {are} running, as many as it may have"
            raise HttpError(
                503, said, hint="wait for one to end", headers={"Retry-After": "1"}, code="concurrency_limited"
            )
        self._running[key.name] += 1

    def leave(self, key: Key) -> None:
        """A request has ended."""
        self._running[key.name] -= 1
        if not self._running[key.name]:
            del self._running[key.name]

    def _take_one(self, key: Key) -> None:
        now = self._clock()
        left, then = self._buckets.get(key.name, (float(key.rate), now))
        left = min(key.rate, left + (now - then) * key.rate / 60)
        if left < 1:
            wait = max(1, math.ceil((1 - left) * 60 / key.rate))
            often = "once" if key.rate == 1 else f"{key.rate} times"
            said = f"the key {key.name!r} may ask {often} a minute"
            headers = {"Retry-After": str(wait)}
            raise HttpError(503, said, hint=f"ask again in {wait} s", headers=headers, code="rate_limited")
        if key.name not in self._buckets and len(self._buckets) >= MAX_BUCKETS:
            full = now - 60  # whoever asked last before then has all of its minute again
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if bucket[1] > full}
        self._buckets[key.name] = left - 1, now


class RefusalLog:
    """Refusals on their way to the audit log: whoever knocks all day does not fill the disk.

    Of each kind ``MAX_LOGGED`` a minute are written; how many more there were is said in the next minute's first. A
    lock-out is written once, when it begins.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = 0.0
        self._written: Counter[str] = Counter()
        self._more: Counter[str] = Counter()

    def write(self, error: HttpError, exchange: Exchange, scope: Scope, note: Callable[..., None]) -> None:
        """Write one; ``note`` is the router's. What cannot be written is told in the log, and refused all the same."""
        now = self._clock()
        if now - self._minute >= 60:
            self._minute = now
            self._written.clear()
        kind = error.code
        if isinstance(error, LockedOutError):
            if not error.begins:
                self._more[kind] += 1
                return
        elif self._written[kind] >= MAX_LOGGED:
            self._more[kind] += 1
            return
        self._written[kind] += 1
        client = scope.get("client")
        more = self._more.pop(kind, 0)
        before = f"; {more} more before" if more else ""
        said = f"{error.status} {scope['method']} {path_of(scope)} from {client[0] if client else '-'}{before}"
        try:
            note(f"security:{kind}", error=said, principal=exchange.principal.id)
        except AuditError as problem:
            log.error("%s", problem)


def _host_name(host: bytes) -> bytes:
    """What a Host header names, without its port; nothing where it is none."""
    found = _HOST.fullmatch(host)
    return found[1] if found is not None else b""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
