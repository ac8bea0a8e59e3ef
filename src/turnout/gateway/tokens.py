"""``/v1/tokens``: whoever has a key mints tokens that may no more than he, lists them and takes them back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from turnout.errors import NotPermittedError, TurnoutError, UsageError
from turnout.gateway.completions import read_body
from turnout.gateway.exchange import exchange_of
from turnout.gateway.formats import OPENAI_CHAT
from turnout.gateway.refusal import HttpError, refusal
from turnout.guard import tokens as guarded
from turnout.guard.keys import Key, Keys, require_patterns
from turnout.guard.roles import Role, may
from turnout.guard.tokens import Token, Tokens, Wanted
from turnout.router import Router
from turnout.wire.base import decode_object, encode

T = TypeVar("T")
_MOST = 999_999


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for a token; ``ttl`` in seconds."""

    ttl: int | None = None
    role: Role | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rate: int = 0
    concurrent: int = 0
    name: str = ""


async def tokens(request: Request) -> Response:
    """GET: those that this key has minted, for a role that audits everybody's. POST: mint one."""
    return await _answered(request, _mint if request.method == "POST" else _listed)


async def token(request: Request) -> Response:
    """DELETE: revoke one, by its id."""
    return await _answered(request, _revoke)


async def _answered(request: Request, how: Callable[[Request, Key], object]) -> Response:
    try:
        answer = how(request, _key_of(request))
        if asyncio.iscoroutine(answer):
            answer = await answer
    except ClientDisconnect:
        return Response(status_code=499)
    except TurnoutError as error:
        return refusal(_noted(request, error), OPENAI_CHAT)
    return Response(encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


def _noted(request: Request, error: TurnoutError) -> TurnoutError:
    """The error, in the audit log as those of the door are where somebody may not do what he wants."""
    if isinstance(error, NotPermittedError):
        error = HttpError(403, error.message, hint=error.hint, code=error.code)
    if isinstance(error, HttpError) and error.status in (401, 403):
        app = request.app
        app.shared.refusals.write(error, exchange_of(request.scope), request.scope, app.state.router.note)
    return error


def _key_of(request: Request) -> Key:
    """Raises HttpError: no key was shown, or a token."""
    grant = exchange_of(request.scope).grant
    if grant is None:
        hint = "`turnout key add NAME` makes one, and from then on everybody needs one"
        raise HttpError(403, "tokens come from a key, and here nobody needs one", hint=hint, code="not_permitted")
    if grant.token is not None:
        hint = "ask with the key that this token came from"
        raise HttpError(403, "a token mints, lists and revokes no tokens", hint=hint, code="not_permitted")
    return grant.limits[0]


async def _mint(request: Request, key: Key) -> object:
    wanted = _wanted(await read_body(request.scope, request.receive, request.app.state.max_body_bytes))
    now = request.app.door.ring.keyring.now()

    def change(keys: Keys, known: Tokens) -> tuple[Tokens, tuple[Token, str]]:
        changed, made, text = guarded.mint(keys, known, wanted, now, _as_it_is_now(keys, key))
        return changed, (made, text)

    made, text = await _changed(request, key, change, lambda told: guarded.described(told[0]))
    return {"token": text, **guarded.fields(made, "active")}


def _listed(request: Request, key: Key) -> object:
    ring = request.app.door.ring
    known, now = ring.tokens, ring.keyring.now()
    found = known.minted if known is not None else ()
    mine = (each for each in found if each.key == key.name or may(key.role, "audit"))
    states = ((each, known.state(each, now)) for each in mine) if known is not None else ()
    return {"tokens": [guarded.fields(each, state) for each, state in states if state != "expired"]}


async def _revoke(request: Request, key: Key) -> object:
    wanted: str = request.path_params["id"]
    now = request.app.door.ring.keyring.now()

    def change(keys: Keys, known: Tokens) -> tuple[Tokens, str]:
        theirs = {each.id for each in known.minted if each.key != key.name}
        if wanted in theirs and not may(key.role, "manage"):
            hint = "its own key, or that of an admin, revokes it"
            raise HttpError(403, "another key has minted this token", hint=hint, code="not_permitted")
        return guarded.revoke(known, (wanted,), now), wanted

    await _changed(request, key, change, lambda gone: f"token revoked: {gone}")
    return {"id": wanted, "revoked": True}


async def _changed(
    request: Request,
    key: Key,
    change: Callable[[Keys, Tokens], tuple[Tokens, T]],
    describe: Callable[[T], str],
) -> T:
    """Note the change, then make it: one that cannot be logged is not made. In a thread, since it waits for a lock."""
    router: Router = request.app.state.router
    keys_file: Path = request.app.door.ring.keyring.path

    def work() -> T:
        with guarded.changing_tokens(keys_file) as (keys, known):
            changed, told = change(keys, known)
            router.note("config", principal=key.name, service=describe(told))
            guarded.write_tokens(guarded.tokens_path(keys_file), changed)
            return told

    return await asyncio.to_thread(work)


def _as_it_is_now(keys: Keys, key: Key) -> Key:
    """The key as the file has it at this moment. Raises HttpError: it was revoked or rotated meanwhile."""
    for each in _active(keys):
        if each.name == key.name and each.digest == key.digest:
            return each
    raise HttpError(401, f"the key {key.name!r} was just revoked", hint="make another", code="invalid_api_key")


def _active(keys: Keys) -> Iterable[Key]:
    return (each for each in keys.keys if not each.revoked)


def _wanted(body: bytes) -> Wanted:
    """Raises UsageError: it is no request for a token."""
    try:
        asked = msgspec.convert(decode_object(body or b"{}"), _Asked)
    except msgspec.ValidationError as error:
        hint = "ttl (seconds), role, models, routes, rate (a minute), concurrent, name: all may be left out"
        raise UsageError(str(error)[:200], hint=hint) from error
    if not 0 <= asked.rate <= _MOST or not 0 <= asked.concurrent <= _MOST:
        raise UsageError("rate and concurrent are whole numbers", hint="0 leaves the limit to the key")
    require_patterns("models", asked.models)
    require_patterns("routes", asked.routes, paths=True)
    return Wanted(asked.ttl, asked.role, asked.models, asked.routes, asked.rate, asked.concurrent, asked.name)
