"""OpenAI Responses as vLLM 0.32 serves them (recorded: tests/recordings/vllm; its source).

An answer has the id that the request names as ``request_id`` (``options``: ``own_ids`` for a server that takes none).
One that is cut ends with ``response.completed``.

Omitted: tools, several items of a kind, log-probabilities, its own store, most fields of a response that say what was
asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.fakes import openai_chat
from tests.fakes.base import ANSWER_TOKENS, PROMPT_TOKENS, STRUCTURED, THOUGHT, WORDS, Fake
from tests.fakes.openai_chat import Dialect


async def responses(request: Request, fake: Fake, dialect: Dialect) -> Response:
    """POST of a Responses request."""
    if not fake.has_key(fake.headers[-1], *dialect.key_headers):
        return dialect.unauthorized(fake)
    body = await request.json()
    fake.seen.append(body)
    fault = fake.take_fault()
    if (refused := await openai_chat.refusal(fake, dialect, fault)) is not None:
        return refused
    if (refused := _strict(body)) is not None:
        return refused
    if fake.options.get("own_ids"):
        del body["request_id"]
    if dialect.unknown_model is not None and fake.model(body.get("model")) is None:
        return dialect.unknown_model(fake, str(body.get("model")))
    if not body.get("stream"):
        return JSONResponse(_whole(body) if fault != "error_200" else openai_chat.openai_error("boom", "server_error"))
    return StreamingResponse(_stream(fake, body, fault), media_type="text/event-stream")


def _strict(body: dict[str, object]) -> Response | None:
    """What it refuses of an input."""
    rows = body["input"] if isinstance(body["input"], list) else []
    if any(row.get("encrypted_content") for row in rows):
        text = "Encrypted content is not supported. (parameter=input)"
        return JSONResponse(openai_chat.openai_error(text, "BadRequestError", 400), 400)
    return None


def _cut(body: dict[str, object]) -> bool:
    return isinstance(body.get("max_output_tokens"), int) and body["max_output_tokens"] < ANSWER_TOKENS  # type: ignore[operator]


def _response(body: dict[str, object], status: str, output: list[dict[str, object]]) -> dict[str, object]:
    usage = {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": ANSWER_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
        "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
    }
    return {
        "id": body.get("request_id") or "resp_92fee1b687aad2ff",
        "created_at": 1795633640,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": body["model"],
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "none",
        "tools": [],
        "status": status,
        "usage": usage if status != "in_progress" else None,
    }


def _items(body: dict[str, object]) -> list[tuple[dict[str, object], str, tuple[str, ...]]]:
    """Each item as it begins, the kind of its part, and the texts of its deltas."""
    wanted = body.get("text")
    form = isinstance(wanted, dict) and isinstance(wanted.get("format"), dict) and wanted["format"]["type"] != "text"
    said: dict[str, object] = {"id": "msg_a0cbffdab3e7c132", "content": [], "role": "assistant", "type": "message"}
    thought: dict[str, object] = {"id": "rs_b1", "summary": [], "content": [], "type": "reasoning"}
    effort = body["reasoning"].get("effort") if isinstance(body.get("reasoning"), dict) else None  # type: ignore[attr-defined]
    thinks = [(thought, "reasoning_text", THOUGHT)] if effort not in (None, "none") else []
    return [*thinks, (said, "output_text", (STRUCTURED,) if form else WORDS)]


def _done(item: dict[str, object], kind: str, texts: tuple[str, ...]) -> dict[str, object]:
    part: dict[str, object] = {"text": "".join(texts), "type": kind}
    if kind == "output_text":
        part |= {"annotations": [], "logprobs": None}
    return item | {"content": [part], "status": "completed"}


def _whole(body: dict[str, object]) -> dict[str, object]:
    return _response(body, "incomplete" if _cut(body) else "completed", [_done(*item) for item in _items(body)])


async def _stream(fake: Fake, body: dict[str, object], fault: str) -> AsyncIterator[bytes]:
    number = -1

    def event(kind: str, **data: object) -> bytes:
        nonlocal number
        number += 1
        row = {"type": f"response.{kind}", "sequence_number": number, **data}
        return f"event: response.{kind}\ndata: {json.dumps(row, separators=(',', ':'))}\n\n".encode()

    words = 0
    try:
        if fault == "drop_first":
            raise ConnectionResetError
        yield event("created", response=_response(body, "in_progress", []))
        yield event("in_progress", response=_response(body, "in_progress", []))
        for index, (item, kind, texts) in enumerate(_items(body)):
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            yield event("output_item.added", output_index=index, item=item | {"status": "in_progress"})
            yield event(
                "content_part.added", **place, part={"text": "", "type": kind, "annotations": [], "logprobs": []}
            )
            for text in texts:
                yield event(f"{kind}.delta", **place, delta=text, logprobs=[])
                words += 1
                if words == 2 and fault == "drop":
                    raise ConnectionResetError
                if words == 2 and fault == "error_200":
                    yield b'event: error\ndata: {"error":{"message":"the engine died","code":500}}\n\n'
                    return
                if words == 2 and fault == "stall":
                    await asyncio.Event().wait()
            done = _done(item, kind, texts)
            yield event(f"{kind}.done", **place, text="".join(texts), logprobs=[])
            yield event("content_part.done", **place, part=done["content"][0])  # type: ignore[index]
            yield event("output_item.done", output_index=index, item=done)
        yield event("completed", response=_whole(body))
    finally:
        fake.closed.set()
