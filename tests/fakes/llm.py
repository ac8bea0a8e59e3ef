"""Fake servers for what cannot be had here and for faults: one app per dialect, faithful to the recorded facts.

Each keeps the requests it saw in ``app.state.seen`` and takes its fault from ``app.state.fault``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["def ", "add(a, b):", "\n    ", "return a + b"]


class State:
    """What a fake does now. ``fault`` is "" or one of the names that the handlers below look for."""

    def __init__(self, models: tuple[str, ...], window: int) -> None:
        self.models, self.window = models, window
        self.fault = ""
        self.faults_left = -1
        self.seen: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.closed = asyncio.Event()
        self.release = asyncio.Event()  # ends a "stall"
        self.hanging = asyncio.Event()  # a "hang" has begun

    def take_fault(self) -> str:
        if self.faults_left == 0:
            return ""
        if self.faults_left > 0:
            self.faults_left -= 1
        return self.fault


def openai_app(models: tuple[str, ...] = ("qwen2.5-coder-7b-instruct",), window: int = 8192) -> Starlette:
    """Any OpenAI-compatible server with ``max_model_len`` in its list (facts/services.md, section 6)."""
    state = State(models, window)

    async def listing(request: Request) -> Response:
        state.paths.append(request.url.path)
        if state.fault == "key":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if state.fault == "html":
            return Response("<html>app</html>", media_type="text/html")
        rows = [{"id": m, "object": "model", "owned_by": "x", "max_model_len": state.window} for m in state.models]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(request: Request) -> Response:
        body = await request.json()
        state.seen.append(body)
        state.headers.append(dict(request.headers))
        fault = state.take_fault()
        if refused := await _refusal(state, fault):
            return refused
        if fault == "error_200" and not body.get("stream"):
            return JSONResponse({"error": {"message": "boom"}})
        if not body.get("stream"):
            return JSONResponse(_whole(body["model"]))
        return StreamingResponse(_openai_stream(state, body, fault), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/models", listing), Route("/v1/chat/completions", chat, methods=["POST"])])
    app.state.fake = state
    return app


async def _refusal(state: State, fault: str) -> Response | None:
    match fault:
        case "error":
            return JSONResponse({"error": {"message": "boom", "type": "server_error"}}, 500)
        case "busy":
            return JSONResponse({"error": {"message": "too many requests"}}, 503, headers={"Retry-After": "0"})
        case "loading":
            return JSONResponse({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, 503)
        case "key":
            return JSONResponse({"error": "Unauthorized"}, 401)
        case "overflow":
            text = f"This model's maximum context length is {state.window} tokens. However, your prompt contains 99999"
            return JSONResponse({"error": {"message": text + " input tokens", "param": "input_tokens"}}, 400)
        case "malformed":
            return Response(b"\x00\xffnot json", media_type="text/event-stream")
        case "html":
            return Response("<html>app</html>", media_type="text/html")
        case "hang":
            state.hanging.set()
            await asyncio.Event().wait()
        case _:
            pass
    return None


def _whole(model: str) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
    }


async def _openai_stream(state: State, body: dict[str, object], fault: str) -> AsyncIterator[bytes]:
    def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
        row = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        return b"data: " + json.dumps(head | {"choices": [row]}).encode() + b"\n\n"

    try:
        if fault == "drop_first":
            raise ConnectionResetError
        if fault == "error_200":
            yield b'data: {"error":{"message":"boom"}}\n\n'
            return
        yield chunk({"role": "assistant", "content": None})
        if body.get("tools"):
            call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            yield chunk({"tool_calls": [call]})
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]})
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]})
            yield chunk({}, "tool_calls")
        else:
            for place, word in enumerate(WORDS):
                yield chunk({"content": word})
                if fault == "drop" and place == 1:
                    raise ConnectionResetError
                if fault == "stall" and place == 1:
                    await state.release.wait()
            yield chunk({}, "stop")
        options = body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"
    finally:
        state.closed.set()
