"""The two ways an answer travels: as neutral events, or as the client's own bytes with a scanner reading along.

Both are generators that must be closed (``aclosing``): closing one closes the connection, which frees the server.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Backend, TextCall
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    NonsenseError,
    RequestRefusedError,
    ServerFailedError,
    StreamBrokenError,
)
from turnout.types import (
    ChatRequest,
    Endpoint,
    Event,
    Finish,
    FinishReason,
    Model,
    RawChunk,
    RawHead,
    UsageReport,
    WireFormat,
)
from turnout.wire import scan, scan_anthropic, scan_ollama, scan_responses
from turnout.wire.base import Completion
from turnout.wire.passing import Edits, Prepare, Scanner

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, StreamReply

ERROR_BYTES = 64_000
WHOLE_ANSWER_BYTES = 64_000_000
# Something that a model says: text, reasoning, or a call.
_WORD = re.compile(
    rb'"(?:content|reasoning|reasoning_content|thinking|text|partial_json|response|delta)"\s*:\s*"(?!")'
    rb'|"tool_calls"\s*:\s*\[\s*\{'
)
_SILENCE: tuple[set[type], ...] = ({Finish}, {Finish, UsageReport})
# Of all formats; the others are "stop".
_FINISH: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
_PREPARE: dict[WireFormat, Prepare] = {
    WireFormat.OPENAI_CHAT: scan.prepare,
    WireFormat.ANTHROPIC: scan_anthropic.prepare,
    WireFormat.OLLAMA: scan_ollama.prepare,
    WireFormat.OLLAMA_GENERATE: scan_ollama.prepare,
    WireFormat.RESPONSES: scan_responses.prepare,
}
# As a server answers whom it does not understand.
_NOT_UNDERSTOOD = frozenset({400, 404, 405, 422, 501})


def chat_lane(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    model: Model,
    request: ChatRequest,
    max_tokens: int | None,
    window: int,
) -> AsyncGenerator[Event, None]:
    """The lane of a chat: the client's bytes where they may go to this server, else its own format.

    Args:
        request: as it is to be asked; ``raw`` is None where it had to be changed.
        max_tokens: as ``raw_lane``.
        window: in tokens, for servers that are told.

    Raises:
        RequestRefusedError: it cannot be translated, and this server does not take it as it is.
    """
    raw = request.raw
    if raw is None or not backend.streams or not backend.takes(endpoint, raw.format):
        require_translatable(request, backend, endpoint)
        return event_lane(client, backend, endpoint, model, request, window)
    passed = raw_lane(client, backend, endpoint, model, request, max_tokens, window)
    if raw.format is backend.wire or request.only:
        return passed
    return native_lane(passed, partial(event_lane, client, backend, endpoint, model, request, window))


def require_translatable(request: ChatRequest | Completion, backend: Backend, endpoint: Endpoint) -> None:
    """Raises RequestRefusedError when the request holds what only its own format has."""
    if request.only:
        raise backend.cannot(f"take {request.only}", endpoint)


def event_lane(
    client: HttpClient, backend: Backend, endpoint: Endpoint, model: Model, request: ChatRequest, window: int
) -> AsyncGenerator[Event, None]:
    """Ask ``backend`` in its own format and yield neutral events.

    Raises:
        BackendError: in the class that decides what is tried next; StreamBrokenError once events have been yielded.
    """
    body = _rendered(backend, request, model, window)
    return _events(client, backend, endpoint, TextCall(backend.chat_path(endpoint), body, backend.parser))


def text_lane(
    client: HttpClient, backend: Backend, endpoint: Endpoint, model: Model, asked: Completion, window: int
) -> AsyncGenerator[Event, None]:
    """As ``chat_lane``, for a text that is gone on with."""
    if asked.raw is not None and backend.takes(endpoint, asked.raw.format):
        return raw_lane(client, backend, endpoint, model, asked, window=window)
    require_translatable(asked, backend, endpoint)
    return _events(client, backend, endpoint, backend.completion(endpoint, asked, model, window))


async def _events(
    client: HttpClient, backend: Backend, endpoint: Endpoint, call: TextCall
) -> AsyncGenerator[Event, None]:
    url = client.request_url(base.at_root(endpoint).url if call.from_root else endpoint.url, call.path)
    headers = base.auth_headers(backend, endpoint) | {"Content-Type": "application/json"}
    async with client.stream(
        "POST", url, body=call.body, headers=headers, limits=endpoint.limits, endpoint=endpoint.name
    ) as reply:
        await _raise_refusal(backend, endpoint, reply)
        if not backend.streams:
            for event in backend.read_whole(await reply.read_all(WHOLE_ANSWER_BYTES)):
                yield event
            return
        parser = call.parser()
        begun, size = False, 0
        try:
            async for data in reply.chunks(empty=True):
                size += len(data)
                if size > WHOLE_ANSWER_BYTES:
                    raise NonsenseError(f"{endpoint.name} answers without end", endpoint=endpoint.name)
                for event in parser.feed(data):
                    begun = True
                    reply.begin()
                    yield event
                if parser.ended:
                    reply.expect_end()
        except BackendError as error:
            _raise_unless(parser.finished, error, backend, endpoint, begun)
        rest: list[Event] = []
        try:
            rest = parser.close()
        except BackendError as error:
            _raise_unless(parser.finished, error, backend, endpoint, begun)
        if backend.silent_overflow and not begun and {type(event) for event in rest} in _SILENCE:
            raise _silent_overflow(endpoint)
        for event in rest:
            begun = True
            yield event
        if not parser.finished:
            what = f"{endpoint.name} ended its answer without an end mark"
            raise (
                StreamBrokenError(what, endpoint=endpoint.name)
                if begun
                else NonsenseError(f"{endpoint.name} answered nothing that its protocol knows", endpoint=endpoint.name)
            )


async def raw_lane(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    model: Model,
    request: ChatRequest | Completion,
    max_tokens: int | None = None,
    window: int = 0,
) -> AsyncGenerator[Event, None]:
    """Forward the client's bytes with their few named edits, and the answer's bytes back.

    ``RawHead`` comes with the first byte of the answer, so everything before it may still fail over. ``window``:
    tokens, for servers that are told.
    """
    assert request.raw is not None
    spoken = request.raw.format
    edits = _edits(backend, model, len(request.raw.body), max_tokens, window)
    body, scanner = _PREPARE[spoken](request.raw.body, edits)
    url = client.request_url(endpoint.url, backend.native_path(endpoint, spoken))
    headers = base.auth_headers(backend, endpoint) | {"Content-Type": "application/json"}
    async with client.stream(
        "POST", url, body=body, headers=headers, limits=endpoint.limits, endpoint=endpoint.name
    ) as reply:
        await _raise_refusal(backend, endpoint, reply)
        if not scanner.stream:
            whole = scanner.feed(await reply.read_all(WHOLE_ANSWER_BYTES))
            if problem := _problem(backend, endpoint, whole, answered=scanner.answered):
                raise problem
            yield RawHead(200, "application/json")
            yield RawChunk(whole, scanner.answer)
        else:
            _require_stream(reply, endpoint, scanner.content_type)
            begun, held = False, b""
            try:
                async for data in reply.chunks(empty=True):
                    held += scanner.feed(data)
                    if scanner.done:
                        reply.expect_end()
                    if not held or (not begun and not _begins(scanner, held, earnest=backend.silent_overflow)):
                        continue
                    if not begun:
                        begun = True
                        reply.begin()
                        yield RawHead(200, scanner.content_type)
                    _see_whether_it_moves(reply, held)
                    yield RawChunk(held, scanner.answer)
                    held = b""
                held += scanner.close()
                if held and begun:
                    yield RawChunk(held, scanner.answer)
            except BackendError as error:
                _raise_unless(scanner.done or bool(scanner.finish), error, backend, endpoint, begun)
            if not begun:
                raise _nothing_said(backend, endpoint, held, ended=scanner.done or bool(scanner.finish))
        if scanner.stream and not scanner.done and not scanner.finish:
            raise StreamBrokenError(f"{endpoint.name} ended its answer without an end mark", endpoint=endpoint.name)
    if scanner.usage is not None:
        yield UsageReport(scanner.usage)
    yield Finish(_FINISH.get(scanner.finish, "stop"))


async def native_lane(
    raw: AsyncGenerator[Event, None], translated: Callable[[], AsyncGenerator[Event, None]]
) -> AsyncGenerator[Event, None]:
    """The raw lane in a format that is not the server's first, or the other lane where it does not understand it.

    What a server has of such a format depends on its version, and some are stricter in it than clients are.
    """
    try:
        async with aclosing(raw) as events:
            async for event in events:
                yield event
    except RequestRefusedError as error:
        if error.status and error.status not in _NOT_UNDERSTOOD:
            raise
    else:
        return
    async with aclosing(translated()) as events:
        async for event in events:
            yield event


def _require_stream(reply: StreamReply, endpoint: Endpoint, wanted: str) -> None:
    kind = reply.headers.get("content-type", "")
    if ("json" in kind or "html" in kind) and not kind.startswith(wanted):
        # An agent that asked for a stream must never be handed JSON (facts/agents.md, 4b: it loops for ever).
        raise NonsenseError(f"{endpoint.name} answered a stream request with {kind}", endpoint=endpoint.name)


async def _raise_refusal(backend: Backend, endpoint: Endpoint, reply: StreamReply) -> None:
    if reply.status == 200:
        return
    body = await reply.read_all(ERROR_BYTES, empty=True)
    raise backend.error(endpoint, reply.status, reply.headers, body)


def _raise_unless(finished: bool, error: BackendError, backend: Backend, endpoint: Endpoint, begun: bool) -> None:
    """An error after the finish reason or the end mark is none: the answer is complete."""
    if finished:
        return
    if begun:
        raise _after_output(error, endpoint) from error
    raise _in_its_words(error, backend, endpoint) from error


def _named(error: BackendError, endpoint: Endpoint) -> BackendError:
    """What a parser found, who knows no endpoint."""
    if error.endpoint or not isinstance(error, NonsenseError | ServerFailedError):
        return error
    return type(error)(f"{endpoint.name}: {error.message}", endpoint=endpoint.name)


def _rendered(backend: Backend, request: ChatRequest, model: Model, window: int) -> bytes:
    body = backend.render(request, model, window)
    room = _room(backend, window, len(body))
    if room and (request.max_tokens is None or request.max_tokens > room):
        return backend.render(replace(request, max_tokens=room), model, window)
    return body


def _edits(backend: Backend, model: Model, sent: int, max_tokens: int | None, window: int) -> Edits:
    room = _room(backend, model.window, sent)
    most = min(max_tokens or room, room) if room else max_tokens
    return Edits(model.id + model.sent_suffix, most, bool(room), backend.told_window(model, window))


def _problem(backend: Backend, endpoint: Endpoint, body: bytes, *, answered: bool) -> BackendError | None:
    """What is wrong with a 200 that is none: an error in disguise, silence, or nonsense."""
    if answered:
        return _silent_overflow(endpoint) if backend.silent_overflow and not _WORD.search(body) else None
    if base.json_object(body).get("error"):
        told = f"the server reports: {base.error_text(body)}"
        return _in_its_words(ServerFailedError(told), backend, endpoint)
    return NonsenseError(f"{endpoint.name} did not answer with a chat completion", endpoint=endpoint.name)


def _in_its_words(error: BackendError, backend: Backend, endpoint: Endpoint) -> BackendError:
    """An error that a server reports under 200 before any output, in the class its words mean."""
    if not isinstance(error, ServerFailedError):
        return _named(error, endpoint)
    told = backend.error(endpoint, 400, {}, error.message.encode("utf-8", "replace"))
    return _named(error, endpoint) if isinstance(told, RequestRefusedError) else told


def _room(backend: Backend, window: int, sent: int) -> int:
    """Tokens for the answer at a server that cuts it short, or the prompt, unless it is told; 0 at all others.

    Three bytes a token is more than what prompts have; whoever fitted the prompt kept at least the least of it free.
    """
    if not backend.answer_limit or not window:
        return 0
    return max(min(backend.answer_limit, window // 4), window - sent // 3)


def _begins(scanner: Scanner, held: bytes, *, earnest: bool) -> bool:
    """Whether an answer has begun: with an event, and ``earnest`` with a word. One that goes on without is handed on
    all the same."""
    return len(held) > ERROR_BYTES or (bool(_WORD.search(held)) if earnest else scanner.begins(held))


def _see_whether_it_moves(reply: StreamReply, passing: bytes) -> None:
    if reply.doubted and _WORD.search(passing):
        reply.begin()


def _nothing_said(backend: Backend, endpoint: Endpoint, held: bytes, *, ended: bool) -> BackendError:
    if backend.silent_overflow and ended:
        return _silent_overflow(endpoint)
    what = "nothing that its protocol knows" if held.strip() else "with an empty stream"
    return NonsenseError(f"{endpoint.name} answered {what}", endpoint=endpoint.name)


def _silent_overflow(endpoint: Endpoint) -> ContextOverflowError:
    what = f"{endpoint.name} answered without a word, as it does when the prompt exceeds its window"
    return ContextOverflowError(what, endpoint=endpoint.name, status=200)


def _after_output(error: BackendError, endpoint: Endpoint) -> BackendError:
    if isinstance(error, StreamBrokenError):
        return error
    return StreamBrokenError(f"the answer broke off: {_named(error, endpoint).message}", endpoint=endpoint.name)
