"""The OpenAI chat protocol as fakes serve it; a ``Dialect`` says in what a server differs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.fakes.base import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    STRUCTURED,
    THOUGHT,
    TOOL,
    WORDS,
    Fake,
    called,
)

USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": ANSWER_TOKENS,
    "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
}


def openai_error(message: str, kind: str = "invalid_request_error", code: object = None) -> dict[str, object]:
    """The usual error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def llama_overflow(fake: Fake) -> dict[str, object]:
    """llama-server's refusal of a prompt that exceeds the window, which what stands before it passes on."""
    window = fake.models[0].window
    text = f"request ({window + 1} tokens) exceeds the available context size ({window} tokens), try increasing it"
    told = {"code": 400, "message": text, "type": "exceed_context_size_error"}
    return {"error": told | {"n_prompt_tokens": window + 1, "n_ctx": window}}


def _internal(fake: Fake) -> Response:
    return JSONResponse(openai_error("boom", "server_error"), 500)


def _busy(fake: Fake) -> Response:
    return JSONResponse(openai_error("server overloaded", "overloaded_error"), 503, headers={"Retry-After": "2"})


def _unauthorized(fake: Fake) -> Response:
    return JSONResponse(openai_error("Invalid API Key", "authentication_error"), 401)


@dataclass(frozen=True)
class Dialect:
    """In what a server differs.

    Attributes:
        owner: ``owned_by`` of the model list, "" for rows without one.
        key_headers: in which it takes a key besides Bearer, lower case.
        reasoning: the field of a model's reasoning.
        unknown_model: the answer to a model it does not have; None: it answers with the model that it has.
        overflow: the refusal of a prompt that exceeds the window; None: it has none.
        usage_always: usage is in the stream without being asked for.
        comments: SSE comments among the events.
        schema_field: where a JSON schema is asked for.
        delta: what every delta carries.
    """

    owner: str = ""
    key_headers: tuple[str, ...] = ()
    reasoning: str = "reasoning_content"
    unknown_model: Callable[[Fake, str], Response] | None = None
    overflow: Callable[[Fake], Response] | None = None
    busy: Callable[[Fake], Response] = _busy
    error: Callable[[Fake], Response] = _internal
    unauthorized: Callable[[Fake], Response] = _unauthorized
    loading: Callable[[Fake], Response] | None = None
    usage_always: bool = False
    comments: bool = False
    schema_field: str = "response_format"
    delta: Mapping[str, object] = field(default_factory=dict)


async def chat(request: Request, fake: Fake, dialect: Dialect) -> Response:
    """POST of a chat completion."""
    if not fake.has_key(fake.headers[-1], *dialect.key_headers):
        return dialect.unauthorized(fake)
    body = await request.json()
    fake.seen.append(body)
    fault = fake.take_fault()
    if (refused := await refusal(fake, dialect, fault)) is not None:
        return refused
    if dialect.unknown_model is not None and fake.model(body.get("model")) is None:
        return dialect.unknown_model(fake, str(body.get("model")))
    if not body.get("stream"):
        return JSONResponse(whole(body, dialect) if fault != "error_200" else openai_error("boom", "server_error"))
    return StreamingResponse(stream(fake, body, dialect, fault), media_type="text/event-stream")


async def refusal(fake: Fake, dialect: Dialect, fault: str) -> Response | None:
    """What a fault answers before the model begins."""
    match fault:
        case "error":
            return dialect.error(fake)
        case "busy":
            return dialect.busy(fake)
        case "loading" if dialect.loading is not None:
            return dialect.loading(fake)
        case "overflow" if dialect.overflow is not None:
            return dialect.overflow(fake)
        case "malformed":
            return Response(b"\x00\xffnot json", media_type="text/event-stream")
        case "html":
            return Response("<html>app</html>", media_type="text/html")
        case "empty_200":
            return Response(b"", media_type="text/event-stream")
        case "hang":
            await asyncio.Event().wait()
        case _:
            pass
    return None


def answer_of(body: dict[str, object], dialect: Dialect) -> tuple[list[tuple[str, str]], str]:
    """The deltas, ``(field, text)``, of the answer that a request gets, and its finish reason."""
    if body.get("tools"):
        return [], "tool_calls"
    schema = body.get(dialect.schema_field)
    if isinstance(schema, dict) and schema.get("type") in ("json_schema", "object"):
        return [("content", STRUCTURED)], "stop"
    thoughts = THOUGHT if body.get("reasoning_effort") else ()
    return [*((dialect.reasoning, t) for t in thoughts), *(("content", w) for w in WORDS)], "stop"


def whole(body: dict[str, object], dialect: Dialect) -> dict[str, object]:
    """An answer in one piece."""
    deltas, finish = answer_of(body, dialect)
    message: dict[str, object] = {"role": "assistant", "content": "".join(t for f, t in deltas if f == "content")}
    if thought := "".join(t for f, t in deltas if f != "content"):
        message[dialect.reasoning] = thought
    if finish == "tool_calls":
        calls = [{"name": TOOL, "arguments": arguments} for arguments in called(body)]
        rows = [{"id": f"call_{n}", "type": "function", "function": call} for n, call in enumerate(calls, 1)]
        message |= {"content": None, "tool_calls": rows}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": USAGE,
    }


async def stream(fake: Fake, body: dict[str, object], dialect: Dialect, fault: str) -> AsyncIterator[bytes]:
    """An answer as SSE."""

    def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
        row = {"index": 0, "delta": {**dialect.delta, **delta}, "finish_reason": finish}
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}
        return b"data: " + json.dumps(head | {"choices": [row]}).encode() + b"\n\n"

    deltas, finish = answer_of(body, dialect)
    try:
        if fault == "drop_first":
            raise ConnectionResetError
        yield chunk({"role": "assistant", "content": ""})
        for place, (name, text) in enumerate(deltas):
            if dialect.comments:
                yield b": keepalive 1/1\n\n"
            yield chunk({name: text})
            if place == 1 and fault == "drop":
                raise ConnectionResetError
            if place == 1 and fault == "error_200":
                yield b"data: " + json.dumps(openai_error("the engine died", "server_error")).encode() + b"\n\n"
                return
            if place == 1 and fault == "stall":
                await asyncio.Event().wait()
        if finish == "tool_calls":
            for n, arguments in enumerate(called(body)):
                function = {"name": TOOL, "arguments": ""}
                head = {"index": n, "id": f"call_{n + 1}", "type": "function", "function": function}
                yield chunk({"tool_calls": [head]})
                for piece in (arguments[:8], arguments[8:]):
                    yield chunk({"tool_calls": [{"index": n, "function": {"arguments": piece}}]})
        yield chunk({}, finish)
        options = body.get("stream_options")
        if dialect.usage_always or (isinstance(options, dict) and options.get("include_usage")):
            yield b"data: " + json.dumps({"id": "c1", "choices": [], "usage": USAGE}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"
    finally:
        fake.closed.set()


async def embeddings(request: Request, fake: Fake, dialect: Dialect) -> Response:
    """POST of an embeddings request; every fault but those in the middle of a stream."""
    if not fake.has_key(fake.headers[-1], *dialect.key_headers):
        return dialect.unauthorized(fake)
    if (refused := await refusal(fake, dialect, fake.take_fault())) is not None:
        return refused
    body = await request.json()
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    made = [{"object": "embedding", "index": n, "embedding": [float(len(t)), 0.5, -1.0]} for n, t in enumerate(texts)]
    return JSONResponse({"object": "list", "model": body["model"], "data": made, "usage": {"prompt_tokens": 3}})


async def completions(request: Request, fake: Fake, dialect: Dialect) -> Response:
    """POST of a text completion, streamed; every fault but those in the middle of a stream."""
    if not fake.has_key(fake.headers[-1], *dialect.key_headers):
        return dialect.unauthorized(fake)
    body = await request.json()
    fake.seen.append(body)
    if (refused := await refusal(fake, dialect, fake.take_fault())) is not None:
        return refused
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body.get("model")}
    rows = [*((word, None) for word in WORDS), ("", "stop")]
    chunks = [head | {"choices": [{"index": 0, "text": t, "logprobs": None, "finish_reason": f}]} for t, f in rows]
    data = [json.dumps(chunk) for chunk in (*chunks, head | {"choices": [], "usage": USAGE})]
    return Response("".join(f"data: {row}\n\n" for row in (*data, "[DONE]")), media_type="text/event-stream")


async def rerank(request: Request, fake: Fake, dialect: Dialect) -> Response:
    """POST of documents to rank: the longer, the more relevant."""
    if not fake.has_key(fake.headers[-1], *dialect.key_headers):
        return dialect.unauthorized(fake)
    if (refused := await refusal(fake, dialect, fake.take_fault())) is not None:
        return refused
    body = await request.json()
    ranked = sorted(enumerate(body["documents"]), key=lambda row: -len(row[1]))
    results = [
        {"index": place, "relevance_score": len(text) / 10, "document": {"text": text}} for place, text in ranked
    ]
    return JSONResponse({"id": "rerank-1", "model": body["model"], "usage": {}, "results": results[: body["top_n"]]})
