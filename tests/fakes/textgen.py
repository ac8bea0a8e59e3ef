"""text-generation-webui 4.9 (facts/services.md section 10).

The first model is loaded or none is; its directory has them all. ``options``: ``admin_key`` is the key of the routes
that load and unload when it is another one; ``listen`` has it take every Host.

Omitted: completions, images, audio, moderations, LoRAs, logits, the Anthropic route's answers, the Gradio page, and
what it does without a model. How it fails in the middle of a stream has words of ours: none is recorded.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.fakes import openai_chat
from tests.fakes.base import TOOL, Fake, called, counted, served
from tests.fakes.openai_chat import USAGE, Dialect

SERVER_HEADER = "uvicorn"
LACKS = {
    "loading": "the route that loads answers when the model is loaded",
    "window": "no route tells it",
    "max_window": "no route tells it",
    "size": "a name is all it tells",
    "quantization": "a name is all it tells",
    "capabilities": "a name is all it tells",
    "digest": "a name is all it tells",
    "slots": "it does not tell",
    "busy_count": "it does not tell",
    "speed": "it does not tell",
    "remote": "it proxies to nobody",
    "overflow": "the start of the prompt is cut without a word",
    "busy": "a request waits for a lock",
    "unknown_model": "it answers with the model that it has",
}


def _detail(status: int, text: str) -> Response:
    return JSONResponse({"detail": text}, status)


DIALECT = Dialect(unauthorized=lambda fake: _detail(401, "Unauthorized"), comments=True)


async def _calls(fake: Fake, body: dict[str, object]) -> AsyncIterator[bytes]:
    """Its calls come in one block, and end the stream."""
    functions = [{"name": TOOL, "arguments": arguments} for arguments in called(body)]
    calls = [{"type": "function", "function": f, "id": f"call_ab12cd3{n}", "index": n} for n, f in enumerate(functions)]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": fake.models[0].id}
    for delta, finish in (
        ({"role": "assistant", "refusal": None, "content": ""}, None),
        ({"tool_calls": calls}, "tool_calls"),
    ):
        row = {"index": 0, "finish_reason": finish, "delta": delta, "logprobs": None}
        yield b"data: " + json.dumps(head | {"choices": [row], "usage": None}).encode() + b"\n\n"
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield b"data: " + json.dumps(head | {"choices": [], "usage": USAGE}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
    fake.closed.set()


class _HostCheck:
    def __init__(self, app: ASGIApp, fake: Fake) -> None:
        self.app, self.fake = app, fake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {k.decode().lower(): v.decode("latin-1") for k, v in scope.get("headers", [])}
        host = headers.get("host", "").split(":")[0]
        if self.fake.options.get("listen") or host in ("localhost", "127.0.0.1"):
            await self.app(scope, receive, send)
        else:
            await _detail(400, "Invalid host header")(scope, receive, send)


def app(fake: Fake) -> ASGIApp:
    def loaded() -> str:
        return fake.models[0].id if fake.models[0].resident else "None"

    async def own(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        row = {"id": loaded(), "object": "model", "created": 0, "owned_by": "user"}
        match request.url.path:
            case "/v1/models":
                return JSONResponse({"object": "list", "data": [row] if loaded() != "None" else []})
            case "/v1/internal/health":
                return JSONResponse({"status": "ok"})
            case _:
                return JSONResponse({"model_name": loaded(), "lora_names": [], "loader": "llama.cpp"})

    async def admin(request: Request) -> Response:
        key = str(fake.options.get("admin_key") or fake.key)
        if key and fake.headers[-1].get("authorization") != f"Bearer {key}":
            return DIALECT.unauthorized(fake)
        if request.url.path.endswith("/list"):
            return JSONResponse({"model_names": [model.id for model in fake.models]})
        body = await request.json()
        fake.seen.append(body)
        if request.url.path.endswith("/unload"):
            fake.models[0].resident = False
            return JSONResponse("OK")
        if (wanted := fake.model(body["model_name"])) is None:
            return _detail(500, "Failed to load the model.")
        fake.models.remove(wanted)
        fake.models.insert(0, wanted)
        wanted.resident = True
        return JSONResponse("OK")

    async def chat(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        body = await request.json()
        if body.get("tools") and body.get("stream") and not fake.fault:
            fake.seen.append(body)
            return StreamingResponse(_calls(fake, body), media_type="text/event-stream")
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def count(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        missing = [{"type": "missing", "loc": ["body", "text"], "msg": "Field required"}]
        text = (await request.json()).get("text")
        return JSONResponse({"detail": missing} if text is None else {"length": counted(text)})

    async def messages(request: Request) -> Response:
        if fake.key and fake.headers[-1].get("x-api-key") != fake.key:
            return DIALECT.unauthorized(fake)
        return _detail(500, "this fake has no answer here")

    async def described(request: Request) -> Response:
        if request.url.path == "/docs":
            return HTMLResponse("<html><head><title>FastAPI - Swagger UI</title></head></html>")
        return JSONResponse({"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}})

    async def missing(request: Request, _: Exception) -> Response:
        return _detail(404, "Not Found")

    async def wrong_method(request: Request, _: Exception) -> Response:
        return _detail(405, "Method Not Allowed")

    inner = served(
        fake,
        [
            Route("/v1/models", own),
            Route("/v1/internal/health", own),
            Route("/v1/internal/model/info", own),
            Route("/v1/internal/model/list", admin),
            Route("/v1/internal/model/load", admin, methods=["POST"]),
            Route("/v1/internal/model/unload", admin, methods=["POST"]),
            Route("/v1/internal/token-count", count, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/messages", messages, methods=["POST"]),
            Route("/openapi.json", described),
            Route("/docs", described),
        ],
        exception_handlers={404: missing, 405: wrong_method},
    )
    return _HostCheck(inner, fake)
