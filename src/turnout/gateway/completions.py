"""Chat over HTTP: OpenAI chat completions and Anthropic messages, over the one pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from types import ModuleType

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from turnout.errors import EndpointLoadingError, QueryFailedError, TurnoutError, UsageError
from turnout.router import Router
from turnout.routing.select import VIRTUAL
from turnout.types import ChatRequest, Event, Principal, RawChunk, RawHead, Route, Started
from turnout.wire import anthropic as anthropic_wire
from turnout.wire import openai_chat as openai_wire

KEEP_ALIVE_SECONDS = 10.0
PATIENCE_SECONDS = 5.0
_SSE = b"text/event-stream; charset=utf-8"


async def list_models(request: Request) -> Response:
    """Real ids, then the virtual models, with the window in every field that agents look at (facts/agents.md 5, 7)."""
    router: Router = request.app.state.router
    rows = []
    seen: set[str] = set()
    windows = []
    for status in router.catalog.serving:
        for model in status.models:
            if model.id in seen:
                continue
            seen.add(model.id)
            windows.append(model.window)
            rows.append(_row(model.id, status.endpoint.kind, model.window))
    rows += [_row(name, "turnout", max(windows, default=0)) for name in sorted(VIRTUAL, key=lambda n: (n != "auto", n))]
    listing = {
        "object": "list",
        "data": rows,
        "has_more": False,
        "first_id": rows[0]["id"],
        "last_id": rows[-1]["id"],
    }
    return Response(msgspec.json.encode(listing), media_type="application/json")


def _row(model_id: str, owner: str, window: int) -> dict[str, object]:
    row: dict[str, object] = {
        "id": model_id,
        "object": "model",
        "type": "model",
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "display_name": model_id,
        "owned_by": owner,
    }
    return row | {"context_length": window, "context_window": window, "max_model_len": window} if window else row


async def openai_chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    return await _answer(request, openai_wire)


async def anthropic_messages(request: Request) -> Response:
    """POST /v1/messages; the query string (``?beta=true``) is ignored."""
    return await _answer(request, anthropic_wire)


async def _answer(request: Request, wire: ModuleType) -> Response:
    try:
        body = await _read(request)
        chat = _parse(body, wire)
    except ClientDisconnect:
        return Response(status_code=499)
    except TurnoutError as error:
        return _refusal(error, wire)
    return ChatResponse(request, chat, wire)


def _parse(body: bytes, wire: ModuleType) -> ChatRequest:
    chat: ChatRequest = wire.parse_request(body)
    return replace(chat, compactable=not chat.model or chat.model in VIRTUAL)


async def _read(request: Request) -> bytes:
    limit = request.app.state.max_body_bytes
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError(limit)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLargeError(limit)
        pieces.append(piece)
    return b"".join(pieces)


class TooLargeError(UsageError):
    """The body exceeds the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request is larger than {limit // 1_000_000} MB", hint="raise gateway.max_body_mb")


def _cause(error: TurnoutError) -> TurnoutError:
    if isinstance(error, QueryFailedError) and error.cause is not None:
        return error.cause
    return error


def _refusal(error: TurnoutError, wire: ModuleType) -> Response:
    cause = _cause(error)
    status, body = wire.render_error(cause)
    headers = {}
    if status in (503, 529):
        wait = cause.retry_after if isinstance(cause, EndpointLoadingError) else 0.0
        headers["Retry-After"] = str(max(1, round(wait)))
    if isinstance(error, TooLargeError):
        status = 413
    return Response(body, status_code=status, headers=headers, media_type="application/json")


class ChatResponse(Response):
    """Runs the pipeline while the client is there: a client that leaves cancels it, which frees the server."""

    def __init__(self, request: Request, chat: ChatRequest, wire: ModuleType) -> None:
        super().__init__()
        self.request, self.chat, self.wire = request, chat, wire
        self.router: Router = request.app.state.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call: the answer raced against the disconnect."""
        work = asyncio.ensure_future(self._respond(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await gone
            with suppress(asyncio.CancelledError):
                await work

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.router.route(self.chat, Principal())) as events:
            if self.chat.stream:
                await self._stream(events, scope, receive, send)
            else:
                await self._whole(events, scope, receive, send)

    async def _whole(self, events: AsyncIterator[Event], scope: Scope, receive: Receive, send: Send) -> None:
        collected: list[Event] = []
        route: Route | None = None
        try:
            async for event in events:
                if isinstance(event, Started):
                    route = event.route
                collected.append(event)
        except TurnoutError as error:
            await _refusal(error, self.wire)(scope, receive, send)
            return
        raw = [event.data for event in collected if isinstance(event, RawChunk)]
        body = b"".join(raw) if raw else self._render(collected, route)
        headers = {name.decode(): value.decode() for name, value in _route_headers(route)}
        await Response(body, headers=headers, media_type="application/json")(scope, receive, send)

    def _render(self, events: list[Event], route: Route | None) -> bytes:
        model = route.sent_model if route else self.chat.model
        body: bytes = self.wire.render_response(events, model, route.request_id if route else "")
        return body

    async def _stream(self, events: AsyncIterator[Event], scope: Scope, receive: Receive, send: Send) -> None:
        """The status line waits for the first output, or a short patience; failures before it have a status."""
        stream = _Stream(self, send)
        pulse = asyncio.ensure_future(stream.pulse())
        try:
            async for event in events:
                await stream.take(event)
            await stream.end()
        except TurnoutError as error:
            if stream.begun:
                await stream.fail(error)
            else:
                await _refusal(error, self.wire)(scope, receive, send)
        finally:
            pulse.cancel()
            with suppress(asyncio.CancelledError):
                await pulse


class _Stream:
    """The bytes of one streamed answer, in the client's format."""

    def __init__(self, response: ChatResponse, send: Send) -> None:
        self._send = send
        self._route: Route | None = None
        self._raw = self._ended = False
        self._whole_event = True
        self._written, self._last_pulse = 0, -1
        self.begun = False
        chat = response.chat
        self._renderer: openai_wire.StreamRenderer | anthropic_wire.StreamRenderer
        if response.wire is openai_wire:
            include = chat.raw is not None and openai_wire.peek(chat.raw.body).include_usage
            self._renderer = openai_wire.StreamRenderer(chat.model, _new_id(), include)
        else:
            self._renderer = anthropic_wire.StreamRenderer(chat.model, _new_id())

    async def pulse(self) -> None:
        """Keep the client's patience while nothing comes: a comment or ping, never inside an event."""
        await asyncio.sleep(PATIENCE_SECONDS)
        while True:
            before = self._written
            if (not self.begun or before == self._last_pulse) and self._whole_event and not self._ended:
                await self._write(self._renderer.keep_alive())
            self._last_pulse = self._written
            await asyncio.sleep(KEEP_ALIVE_SECONDS)

    async def take(self, event: Event) -> None:
        if isinstance(event, Started):
            self._route = event.route
        elif isinstance(event, RawHead):
            self._raw = True
        elif isinstance(event, RawChunk):
            self._whole_event = event.data.endswith(b"\n\n")
            await self._write(event.data)
        elif not self._raw and (data := self._renderer.feed(event)):
            await self._write(data)

    async def fail(self, error: TurnoutError) -> None:
        await self._finish(self._renderer.error(_cause(error)))

    async def end(self) -> None:
        await self._finish(b"" if self._raw else self._renderer.close())

    async def _finish(self, data: bytes) -> None:
        self._ended = True
        await self._write(data, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if not self.begun:
            self.begun = True
            headers = [(b"content-type", _SSE), (b"cache-control", b"no-cache"), *_route_headers(self._route)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._written += 1
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _route_headers(route: Route | None) -> list[tuple[bytes, bytes]]:
    if route is None:
        return []
    pairs = (
        ("x-turnout-request-id", route.request_id),
        ("x-turnout-model", route.sent_model),
        ("x-turnout-service", route.service),
        ("x-turnout-level", str(int(route.level))),
    )
    return [(name.encode(), value.encode("ascii", "replace")) for name, value in pairs]


def _new_id() -> str:
    return f"{time.time_ns():x}"


async def _disconnected(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
