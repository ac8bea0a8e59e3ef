"""Refusals in the caller's own format, whatever it asked for."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from turnout.errors import (
    EndpointLoadingError,
    QueryFailedError,
    StoppingError,
    StreamBrokenError,
    TurnoutError,
    UsageError,
)
from turnout.gateway.exchange import exchange_of
from turnout.gateway.formats import ANTHROPIC, OLLAMA_CHAT, OPENAI_CHAT, RESPONSES, AnyFormat, ChatFormat
from turnout.wire.base import encode

MAX_OTHERS = 4


class HttpError(UsageError):
    """The request cannot be served as HTTP: no such path, too large, not from here, no key. ``headers`` go with the
    answer; ``code`` is for programs."""

    def __init__(
        self, status: int, message: str, *, hint: str, headers: Mapping[str, str] | None = None, code: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code or self.code
        self.status, self.headers = status, headers or {}


def format_of(scope: Scope) -> ChatFormat:
    """The format of whoever sent this: Anthropic's clients always say their version, the path tells of the others."""
    path: str = scope["path"]
    if path.startswith("/api/"):
        return OLLAMA_CHAT
    if any(name == b"anthropic-version" for name, _ in scope["headers"]) or path.startswith("/v1/messages"):
        return ANTHROPIC
    return RESPONSES if path.startswith("/v1/responses") else OPENAI_CHAT


def cause_of(error: TurnoutError) -> TurnoutError:
    """What to tell the client: of a failed plan the error that decided, and what else was tried."""
    if not isinstance(error, QueryFailedError) or error.cause is None:
        return error
    others = dict.fromkeys(a.error.message for a in error.attempts if a.error is not None)
    others.pop(error.cause.message, None)
    if not others:
        return error.cause
    return error.cause.saying(f"{error.cause.message}; also tried: {'; '.join(list(others)[:MAX_OTHERS])}")


class _Refusal(Response):
    """Tells the exchange too: most of what goes wrong before the pipeline has no other record."""

    code = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).error = self.code
        await super().__call__(scope, receive, send)


def refusal(error: TurnoutError, spoken: AnyFormat) -> Response:
    """The whole answer to a request that failed before any output."""
    cause = cause_of(error)
    known, headers = (error.status, dict(error.headers)) if isinstance(error, HttpError) else (0, {})
    status, body = spoken.error(cause, known)
    if isinstance(cause, StoppingError):
        headers |= {"Retry-After": "5", "Connection": "close"}
    if isinstance(cause, StreamBrokenError) and cause.received:
        body = _with(body, received=cause.received)
    if status in (503, 529):
        wait = cause.retry_after if isinstance(cause, EndpointLoadingError) else 0.0
        headers.setdefault("Retry-After", str(max(1, round(wait))))
    made = _Refusal(body, status_code=status, headers=headers, media_type="application/json")
    made.code = cause.code
    return made


def _with(body: bytes, **more: str) -> bytes:
    told = msgspec.json.decode(body, type=dict[str, object])
    error = told["error"]
    return encode({**told, "error": {**error, **more} if isinstance(error, dict) else error})
