"""One request at the gateway and its answer: who asks, what became of it, and the headers that say so."""

from __future__ import annotations

import random
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.types import Message, Scope, Send

from turnout.types import ChatRequest, FallbackLevel, Principal, Route

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from turnout.guard.tokens import Grant
    from turnout.router import Router
    from turnout.run import Run

MAX_HEADER = 200
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_LOCAL = Principal()


class Exchange:
    """What is known of a request while it is served. Written by its own task only.

    Attributes:
        principal: who asks.
        grant: the key or token that was presented, None where none is needed.
        workspace: whose code may be read for it, "" for nobody's.
        status: of the answer, 0 before it begins and when the client left before.
        run: the pipeline's record, None of what is no chat.
        aside: which way an answer went that the pipeline has no record of, such as vectors.
        refused: why it was refused at the door, "" when it was let in.
        error: code of the error that it was answered with, "" for none.
    """

    __slots__ = ("_id", "aside", "error", "grant", "principal", "refused", "run", "started", "status", "workspace")

    def __init__(self) -> None:
        self._id = ""
        self.started = time.monotonic()
        self.principal = _LOCAL
        self.grant: Grant | None = None
        self.workspace = ""
        self.status = 0
        self.run: Run | None = None
        self.aside: Route | None = None
        self.refused = self.error = ""

    def begin(self, router: Router, chat: ChatRequest) -> Run:
        """The record of the query that this request is."""
        self.run = router.begin(chat, self.principal, self._id)
        return self.run

    @property
    def route(self) -> Route | None:
        """Which way its answer went, None as long as there is none."""
        return self.run.route if self.run is not None else self.aside

    @property
    def id(self) -> str:
        """Ours: in the answer's header, the audit log and the access log."""
        if self.run is not None:
            return self.run.id
        if self.aside is not None:
            return self.aside.request_id
        self._id = self._id or f"{random.getrandbits(128):032x}"
        return self._id


def enter(scope: Scope, exchange: Exchange) -> None:
    """From here on it is the one of this request."""
    scope["turnout.exchange"] = exchange


def exchange_of(scope: Scope) -> Exchange:
    """The one of this request.

    Raises:
        KeyError: the request has not come through the door.
    """
    exchange: Exchange = scope["turnout.exchange"]
    return exchange


class Noted:
    """``send`` that notes the status, and adds to every answer what its endpoint did not say."""

    __slots__ = ("_exchange", "_send")

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange, self._send = exchange, send

    def __call__(self, message: Message) -> Awaitable[None]:
        """As ``send``; of the pieces of a stream nothing is looked at."""
        if message["type"] == "http.response.start":
            self._exchange.status = message["status"]
            if self._exchange.route is None:  # else the endpoint has said all
                message["headers"] = [*message["headers"], *_headers_left(self._exchange)]
        return self._send(message)


def decision_headers(route: Route) -> list[tuple[bytes, bytes]]:
    """Which way an answer went."""
    known = _known(route.sent_model, route.service, route.category or "exact", route.reason, route.level)
    window = _window(route.window, route.window_source, compacted=route.compacted)
    context = f"prompt={route.prompt_tokens}; ".encode() + window if route.prompt_tokens else window
    found = [*request_id_headers(route.request_id), *known, (b"x-turnout-context", context)]
    if route.expected:
        found.append((b"x-turnout-expected-ms", b"%d" % round(route.expected * 1000)))
    return found


def request_id_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Our id, also under the name that OpenAI's API has for it: SDKs put it into their errors, and Qwen Code takes an
    error in the middle of a stream for one of the network, and asks again, only when there is one."""
    told = request_id.encode()
    return [(b"x-turnout-request-id", told), (b"x-request-id", told)]


@lru_cache(maxsize=1024)
def _known(model: str, endpoint: str, category: str, reason: str, level: int) -> tuple[tuple[bytes, bytes], ...]:
    """What is the same for most answers."""
    return (
        _header("model", model),
        _header("endpoint", endpoint),
        _header("category", category),
        _header("reason", reason),
        _header("fallback-level", str(int(level))),
    )


def _headers_left(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    run = exchange.run
    headers = request_id_headers(exchange.id)
    if run is not None and run.error != "cancelled":  # it has failed; else it still waits for its server
        last = run.attempts[-1:]
        headers += [_header("model", a.model) for a in last] + [_header("endpoint", a.service) for a in last]
        headers += [_header("category", run.task.category)] if run.task else []
        headers += [_header("reason", run.error), _header("fallback-level", str(int(FallbackLevel.FAILED)))]
    return headers


@lru_cache(maxsize=1024)
def _window(tokens: int, source: str, *, compacted: bool) -> bytes:
    return f"window={tokens}; source={source}{'; compacted' if compacted else ''}".encode("ascii", "replace")


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    """ASCII of one line, whatever a server calls its models."""
    text = _CONTROL.sub("?", value).encode("ascii", "replace")
    return f"x-turnout-{name}".encode(), text[:MAX_HEADER].strip() or b"-"


def path_of(scope: Scope) -> str:
    """The path of a request, for logs: one line, bounded."""
    return _CONTROL.sub("?", scope["path"])[:MAX_HEADER]
