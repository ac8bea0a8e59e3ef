"""Answers over HTTP in any wire format, over the one pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Generic

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from turnout.errors import StoppingError, TurnoutError
from turnout.fleet.callers import calling_agent
from turnout.gateway.exchange import Exchange, decision_headers, exchange_of
from turnout.gateway.formats import ANTHROPIC, OPENAI_CHAT, OPENAI_TEXT, A, Format
from turnout.gateway.listing import Listed, aliases, find, listed, nobody_has
from turnout.gateway.refusal import HttpError, cause_of, format_of, refusal
from turnout.router import Router
from turnout.types import ChatRequest, Event, Principal, RawChunk, RawHead, Route, Started, Text
from turnout.wire.base import Completion

KEEP_ALIVE_SECONDS = 10.0
WATCH_AFTER_SECONDS = 0.05
# Where clients look for the tokens that a prompt and its answer can have; Anthropic's SDK for the last one.
WINDOW_FIELDS = ("context_length", "context_window", "max_model_len", "max_input_tokens")
_JSON = b"application/json"
_BILLING = "x-anthropic-billing-header:"
# Claude Code, Codex, opencode.
_CONVERSATION = frozenset(
    {b"x-claude-code-session-id", b"session-id", b"session_id", b"thread-id", b"x-session-id", b"x-session-affinity"}
)


async def list_models(request: Request) -> Response:
    """One answer for OpenAI's and Anthropic's clients, with the window in every field that agents look at
    (facts/agents.md 5, 7); the aliases for Claude Code's picker come last."""
    found = await listed(request.app.state.router, principal_of(request.scope))
    rows = [_row(one) for one in (*found, *aliases(found))]
    listing = {
        "object": "list",
        "data": rows,
        "has_more": False,
        "first_id": rows[0]["id"] if rows else None,
        "last_id": rows[-1]["id"] if rows else None,
    }
    return Response(msgspec.json.encode(listing), media_type="application/json")


async def show_model(request: Request) -> Response:
    """The row of any name that can be asked for; an id may contain slashes."""
    router, who, name = request.app.state.router, principal_of(request.scope), request.path_params["id"]
    one = await find(router, who, name)
    if one is None:
        error = await nobody_has(router, who, f"no server has the model {name[:200]!r}")
        return refusal(error, format_of(request.scope))
    return Response(msgspec.json.encode(_row(one)), media_type="application/json")


def _row(one: Listed) -> dict[str, object]:
    widest = one.widest
    row: dict[str, object] = {
        "id": one.name,
        "object": "model",
        "type": "model",
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "display_name": one.name,
        "owned_by": widest.endpoint.kind if widest and one.kind == "id" else "turnout",
    }
    if widest is None:
        return row
    return row | dict.fromkeys(WINDOW_FIELDS, widest.window) | {"window_source": widest.window_source}


class ChatEndpoint(Generic[A]):
    """POST of a request in one wire format, as a plain ASGI application.

    The answer runs in the server's own task; a client that leaves cancels it, which frees the backend.
    """

    def __init__(self, spoken: Format[A]) -> None:
        self._format = spoken

    def format_of(self, scope: Scope) -> Format[A]:
        """The format in which this request is read and answered."""
        return self._format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, parse, answer; the query string (``?beta=true``) is ignored."""
        state, spoken = scope["app"].state, self.format_of(scope)
        try:
            asked = spoken.parse(await read_body(scope, receive, state.max_body_bytes))
        except ClientDisconnect:
            return
        except TurnoutError as error:
            await refusal(error, spoken)(scope, receive, send)
            return
        with WhilePresent(receive):
            await ChatAnswer(state.router, asked, spoken).send(scope, receive, send)


def conversation_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What the client calls its conversation, in a header that its agent sends anyway (facts/agents.md section 7b)."""
    found = next((value for name, value in headers if name in _CONVERSATION), b"")
    return found[:200].decode("latin-1")


def beginning_of(chat: ChatRequest) -> str:
    """The first words of its first message, but for Claude Code's billing line."""
    texts = (part.text for part in chat.messages[0].parts if isinstance(part, Text)) if chat.messages else ()
    told = (text.partition("\n")[2].lstrip() if text.startswith(_BILLING) else text for text in texts)
    return next(filter(None, told), "")


openai_chat = ChatEndpoint(OPENAI_CHAT)
openai_text = ChatEndpoint(OPENAI_TEXT)
anthropic_messages = ChatEndpoint(ANTHROPIC)


def principal_of(scope: Scope) -> Principal:
    """Who asks, as the door has found."""
    return exchange_of(scope).principal


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        ClientDisconnect: the client has left.
        HttpError: it has more than ``limit`` bytes.
    """
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the request is larger than {limit // 1_000_000} MB", hint="raise gateway.max_body_mb")


class WhilePresent:
    """Cancels the task it is entered in when the client leaves, and swallows that cancellation.

    It looks only after a moment: most of what ends sooner is not worth a second task.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._look)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.remove_done_callback(self._left)
            self._watch.cancel()
        if not self._gone or self._task is None:
            return False
        return self._task.uncancel() == 0 and kind is asyncio.CancelledError

    def _look(self) -> None:
        self._watch = asyncio.ensure_future(_disconnected(self._receive))
        self._watch.add_done_callback(self._left)

    def _left(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled() and self._task is not None:
            self._gone = True
            self._task.cancel()


class ChatAnswer(Generic[A]):
    """One answer on its way to the client."""

    def __init__(self, router: Router, asked: A, spoken: Format[A]) -> None:
        self.router, self.asked, self.format = router, asked, spoken

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the pipeline and hand its events on, as a stream or as a whole."""
        async with aclosing(answered(self.router, self.asked, scope)) as events:
            if self.asked.stream:
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
            await refusal(error, self.format)(scope, receive, send)
            return
        raw = [event for event in collected if isinstance(event, RawChunk)]
        body = b"".join(event.data for event in raw) if raw else self._render(collected, route)
        if raw and raw[-1].answer:
            self.format.renderer(self.asked, _new_id()).feed(raw[-1])
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", _JSON), length, *route_headers(route)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _render(self, events: list[Event], route: Route | None) -> bytes:
        model = route.sent_model if route else self.asked.model
        return self.format.whole(events, self.asked, model, route.request_id if route else "")

    async def _stream(self, events: AsyncIterator[Event], scope: Scope, receive: Receive, send: Send) -> None:
        """The status line waits for the first output, or a short patience; failures before it have a status."""
        stream = _Stream(self, send, scope["app"].state.patience)
        pulse = asyncio.ensure_future(stream.pulse())
        try:
            async for event in events:
                await stream.take(event)
            await stream.end()
        except TurnoutError as error:
            if stream.begun:
                exchange_of(scope).error = cause_of(error).code
                await stream.fail(error)
            else:
                await refusal(error, self.format)(scope, receive, send)
        except asyncio.CancelledError:
            if not (stream.begun and scope["app"].shared.ending):
                raise
            exchange_of(scope).error = StoppingError.code
            await stream.fail(StoppingError())
        finally:
            pulse.cancel()
            with suppress(asyncio.CancelledError):
                await pulse


def answered(router: Router, asked: ChatRequest | Completion, scope: Scope) -> AsyncGenerator[Event, None]:
    """The events of an answer: a chat goes through the pipeline, a text to the model that is named."""
    if isinstance(asked, Completion):
        return _told(router.side.complete(asked, principal_of(scope)), exchange_of(scope))
    name = conversation_of(scope["headers"])
    agent = calling_agent(scope["headers"], beginning_of(asked)).name
    exchange = exchange_of(scope)
    if name or agent or exchange.workspace:
        asked = replace(asked, conversation=name, agent=agent, workspace=exchange.workspace)
    return router.route(asked, exchange.principal, exchange.begin(router, asked))


async def _told(made: AsyncGenerator[Event, None], exchange: Exchange) -> AsyncGenerator[Event, None]:
    """The same events; of what keeps no record for us, the exchange gets to know its route."""
    async with aclosing(made) as events:
        async for event in events:
            if isinstance(event, Started):
                exchange.aside = event.route
            yield event


class _Stream:
    """The bytes of one streamed answer, in the client's format."""

    def __init__(self, answer: ChatAnswer[A], send: Send, patience: float) -> None:
        self._send, self._patience = send, patience
        self._route: Route | None = None
        self._raw = self._ended = False
        self._whole_event = True
        self._written, self._last_pulse = 0, -1
        self.begun = False
        self._type, self._event_end = answer.format.stream_type, answer.format.event_end
        self._renderer = answer.format.renderer(answer.asked, _new_id())

    async def pulse(self) -> None:
        """Keep the client's patience while nothing comes: a comment or ping, never inside an event."""
        await asyncio.sleep(self._patience)
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
            self._renderer.feed(event)
        elif isinstance(event, RawChunk):
            if event.answer:
                self._renderer.feed(event)
            self._whole_event = event.data.endswith(self._event_end)
            await self._write(event.data)
        elif not self._raw and (data := self._renderer.feed(event)):
            await self._write(data)

    async def fail(self, error: TurnoutError) -> None:
        await self._finish(self._renderer.error(cause_of(error)))

    async def end(self) -> None:
        await self._finish(b"" if self._raw else self._renderer.close())

    async def _finish(self, data: bytes) -> None:
        self._ended = True
        await self._write(data, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if not self.begun:
            self.begun = True
            headers = [(b"content-type", self._type), (b"cache-control", b"no-cache"), *route_headers(self._route)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._written += 1
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def route_headers(route: Route | None) -> list[tuple[bytes, bytes]]:
    """Which way an answer went, for whoever looks."""
    return decision_headers(route) if route is not None else []


def _new_id() -> str:
    return f"{time.time_ns():x}"


async def _disconnected(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
