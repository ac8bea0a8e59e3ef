"""Anthropic messages as servers beside their own protocol serve them (recorded at llama.cpp; vLLM's source, 0.32).

Omitted: thoughts' signatures but for an empty one, stop sequences, counting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.fakes import openai_chat
from tests.fakes.base import ANSWER_TOKENS, PROMPT_TOKENS, THOUGHT, TOOL, WORDS, Fake, called
from tests.fakes.openai_chat import Dialect

Check = Callable[[dict[str, object]], Response | None]


async def messages(request: Request, fake: Fake, dialect: Dialect, check: Check) -> Response:
    """POST of a messages request; ``check`` is what the server refuses of it."""
    if not fake.has_key(fake.headers[-1], *dialect.key_headers):
        return dialect.unauthorized(fake)
    body = await request.json()
    fake.seen.append(body)
    fault = fake.take_fault()
    if (refused := await openai_chat.refusal(fake, dialect, fault)) is not None:
        return refused
    if (refused := check(body)) is not None:
        return refused
    if dialect.unknown_model is not None and fake.model(body.get("model")) is None:
        return dialect.unknown_model(fake, str(body.get("model")))
    if not body.get("stream"):
        return JSONResponse(whole(body) if fault != "error_200" else openai_chat.openai_error("boom", "server_error"))
    return StreamingResponse(stream(fake, body, fault), media_type="text/event-stream")


def own_errors(response: Response) -> Response:
    """A refusal in the format's own shape."""
    told = json.loads(bytes(response.body))["error"]
    error = {"type": told["type"], "message": told["message"]}
    return JSONResponse({"type": "error", "error": error}, response.status_code, headers=_kept(response))


def _kept(response: Response) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k == "retry-after"}


def usage(**more: int) -> dict[str, int]:
    return {"cache_read_input_tokens": 0, "input_tokens": PROMPT_TOKENS, **more}


def _head(body: dict[str, object]) -> dict[str, object]:
    return {"id": "chatcmpl-1", "type": "message", "role": "assistant", "content": [], "model": body["model"]}


def _blocks(body: dict[str, object]) -> list[tuple[dict[str, object], str, tuple[str, ...]]]:
    """Each block with the field of its deltas and their texts."""
    if body.get("tools"):
        return [
            ({"type": "tool_use", "id": f"call_{n}", "name": TOOL, "input": {}}, "partial_json", (text[:8], text[8:]))
            for n, text in enumerate(called(body), 1)
        ]
    thought: dict[str, object] = {"type": "thinking", "thinking": "", "signature": ""}
    thinks = body.get("thinking") is not None
    return [*([(thought, "thinking", THOUGHT)] if thinks else []), ({"type": "text", "text": ""}, "text", WORDS)]


def whole(body: dict[str, object]) -> dict[str, object]:
    content = []
    for block, name, texts in _blocks(body):
        text = "".join(texts)
        content.append(block | ({"input": json.loads(text)} if name == "partial_json" else {name: text}))
    stop = "tool_use" if body.get("tools") else "end_turn"
    end = {"stop_reason": stop, "stop_sequence": None, "usage": usage(output_tokens=ANSWER_TOKENS)}
    return _head(body) | {"content": content} | end


async def stream(fake: Fake, body: dict[str, object], fault: str) -> AsyncIterator[bytes]:
    """An answer as SSE."""

    def event(kind: str, **data: object) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()

    kinds = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
    words = 0
    try:
        if fault == "drop_first":
            raise ConnectionResetError
        start = _head(body) | {"stop_reason": None, "stop_sequence": None, "usage": usage(output_tokens=0)}
        yield event("message_start", message=start)
        for index, (block, name, texts) in enumerate(_blocks(body)):
            yield event("content_block_start", index=index, content_block=block)
            for text in texts:
                yield event("content_block_delta", index=index, delta={"type": kinds[name], name: text})
                words += 1
                if words == 2 and fault == "drop":
                    raise ConnectionResetError
                if words == 2 and fault == "error_200":
                    yield event("error", error={"type": "api_error", "message": "the engine died"})
                    return
                if words == 2 and fault == "stall":
                    await asyncio.Event().wait()
            yield event("content_block_stop", index=index)
        stop = "tool_use" if body.get("tools") else "end_turn"
        delta = {"stop_reason": stop, "stop_sequence": None}
        yield event("message_delta", delta=delta, usage={"output_tokens": ANSWER_TOKENS})
        yield event("message_stop")
    finally:
        fake.closed.set()
