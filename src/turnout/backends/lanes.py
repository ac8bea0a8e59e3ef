"""The two ways an answer travels: as neutral events, or as the client's own bytes with a scanner reading along.

Both are generators that must be closed (``aclosing``): closing one closes the connection, which frees the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.base import Backend
from turnout.errors import BackendError, NonsenseError, ServerFailedError, StreamBrokenError
from turnout.types import ChatRequest, Endpoint, Event, Finish, FinishReason, Model, RawChunk, RawHead, UsageReport
from turnout.wire import openai_chat

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, StreamReply

ERROR_BYTES = 64_000
WHOLE_ANSWER_BYTES = 64_000_000
_FINISH: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"}


async def event_lane(
    client: HttpClient, backend: Backend, endpoint: Endpoint, model: Model, request: ChatRequest, window: int
) -> AsyncGenerator[Event, None]:
    """Ask ``backend`` in its own format and yield neutral events.

    Raises:
        BackendError: in the class that decides what is tried next; StreamBrokenError once events have been yielded.
    """
    url = client.request_url(endpoint.url, backend.chat_path(endpoint))
    headers = base.auth_headers(backend, endpoint) | {"Content-Type": "application/json"}
    body = backend.render(request, model, window)
    async with client.stream(
        "POST", url, body=body, headers=headers, limits=endpoint.limits, endpoint=endpoint.name
    ) as reply:
        await _raise_refusal(backend, endpoint, reply)
        if not backend.streams:
            for event in backend.read_whole(await reply.read_all(WHOLE_ANSWER_BYTES)):
                yield event
            return
        parser = backend.parser()
        begun, size = False, 0
        try:
            async for data in reply.chunks():
                size += len(data)
                if size > WHOLE_ANSWER_BYTES:
                    raise NonsenseError(f"{endpoint.name} answers without end", endpoint=endpoint.name)
                for event in parser.feed(data):
                    begun = True
                    yield event
                if parser.ended:
                    reply.expect_end()
        except BackendError as error:
            _raise_unless(parser.finished, error, endpoint, begun)
        try:
            for event in parser.close():
                yield event
        except BackendError as error:
            _raise_unless(parser.finished, error, endpoint, begun)
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
    request: ChatRequest,
    max_tokens: int | None = None,
) -> AsyncGenerator[Event, None]:
    """Forward the client's bytes with their few named edits, and the answer's bytes back.

    ``RawHead`` comes with the first byte of the answer, so everything before it may still fail over.
    """
    assert request.raw is not None
    peek = openai_chat.peek(request.raw.body)
    body = openai_chat.edit_request(
        request.raw.body, model=model.id, max_tokens=max_tokens, ask_usage=bool(peek.stream) and not peek.include_usage
    )
    url = client.request_url(endpoint.url, backend.chat_path(endpoint))
    headers = base.auth_headers(backend, endpoint) | {"Content-Type": "application/json"}
    streaming = bool(peek.stream)
    scanner = openai_chat.Scanner(strip_usage=streaming and not peek.include_usage, stream=streaming)
    async with client.stream(
        "POST", url, body=body, headers=headers, limits=endpoint.limits, endpoint=endpoint.name
    ) as reply:
        await _raise_refusal(backend, endpoint, reply)
        if not peek.stream:
            whole = scanner.feed(await reply.read_all(WHOLE_ANSWER_BYTES))
            if not scanner.answered:
                raise _not_an_answer(endpoint, whole)
            yield RawHead(200, "application/json")
            yield RawChunk(whole)
        else:
            _require_stream(reply, endpoint)
            begun = False
            try:
                async for data in reply.chunks():
                    forward = scanner.feed(data)
                    if not forward:
                        continue
                    if not begun:
                        begun = True
                        yield RawHead(200, "text/event-stream; charset=utf-8")
                    yield RawChunk(forward)
                    if scanner.done:
                        reply.expect_end()
                if rest := scanner.close():
                    yield RawChunk(rest)
            except BackendError as error:
                _raise_unless(scanner.done or bool(scanner.finish), error, endpoint, begun)
            if not begun:
                raise NonsenseError(f"{endpoint.name} answered with an empty stream", endpoint=endpoint.name)
        if peek.stream and not scanner.done and not scanner.finish:
            raise StreamBrokenError(f"{endpoint.name} ended its answer without an end mark", endpoint=endpoint.name)
    if scanner.usage is not None:
        yield UsageReport(scanner.usage)
    yield Finish(_FINISH.get(scanner.finish, "stop"))


def _require_stream(reply: StreamReply, endpoint: Endpoint) -> None:
    kind = reply.headers.get("content-type", "")
    if "json" in kind or "html" in kind:
        # An agent that asked for a stream must never be handed JSON (facts/agents.md, 4b: it loops for ever).
        raise NonsenseError(f"{endpoint.name} answered a stream request with {kind}", endpoint=endpoint.name)


async def _raise_refusal(backend: Backend, endpoint: Endpoint, reply: StreamReply) -> None:
    if reply.status == 200:
        return
    body = await reply.read_all(ERROR_BYTES)
    raise backend.error(endpoint, reply.status, reply.headers, body)


def _raise_unless(finished: bool, error: BackendError, endpoint: Endpoint, begun: bool) -> None:
    """An error after the finish reason or the end mark is none: the answer is complete."""
    if not finished:
        raise _after_output(error, endpoint) if begun else _in_its_words(error, endpoint) from error


def _not_an_answer(endpoint: Endpoint, body: bytes) -> BackendError:
    """A 200 that is none: an error in disguise, or nonsense."""
    if base.json_object(body).get("error"):
        return base.classify_error(endpoint, 400 if base.is_overflow(body) else 500, {}, body)
    return NonsenseError(f"{endpoint.name} did not answer with a chat completion", endpoint=endpoint.name)


def _in_its_words(error: BackendError, endpoint: Endpoint) -> BackendError:
    """An error that a server reports under 200 before any output, in the class its words mean."""
    body = error.message.encode("utf-8", "replace")
    if isinstance(error, ServerFailedError) and base.is_overflow(body):
        return base.classify_error(endpoint, 400, {}, body)
    return error


def _after_output(error: BackendError, endpoint: Endpoint) -> BackendError:
    if isinstance(error, StreamBrokenError):
        return error
    return StreamBrokenError(f"the answer broke off: {error.message}", endpoint=endpoint.name)
