"""Refusals in the caller's own format, whatever it asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from starlette.responses import Response
from starlette.types import Scope

from turnout.errors import EndpointLoadingError, QueryFailedError, TurnoutError, UsageError
from turnout.wire import anthropic as anthropic_wire
from turnout.wire import openai_chat as openai_wire


class HttpError(UsageError):
    """The request cannot be served as HTTP: no such path, too large, not from here. ``headers`` go with the answer."""

    def __init__(self, status: int, message: str, *, hint: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status, self.headers = status, headers or {}


def wire_of(scope: Scope) -> ModuleType:
    """The format of whoever sent this: Anthropic's clients always say their version, all others speak OpenAI."""
    says = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return anthropic_wire if says or scope["path"].startswith("/v1/messages") else openai_wire


def cause_of(error: TurnoutError) -> TurnoutError:
    """What to tell the client: of a failed plan, the error that decided."""
    if isinstance(error, QueryFailedError) and error.cause is not None:
        return error.cause
    return error


def refusal(error: TurnoutError, wire: ModuleType) -> Response:
    """The whole answer to a request that failed before any output."""
    cause = cause_of(error)
    known, headers = (error.status, dict(error.headers)) if isinstance(error, HttpError) else (0, {})
    status, body = wire.render_error(cause, known)
    if status in (503, 529):
        wait = cause.retry_after if isinstance(cause, EndpointLoadingError) else 0.0
        headers["Retry-After"] = str(max(1, round(wait)))
    return Response(body, status_code=status, headers=headers, media_type="application/json")
