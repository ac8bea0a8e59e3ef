"""llama-swap of 2026-08 (facts/services.md section 14; fields of its source of 2026-08-22), llama-servers behind it.

``FakeModel.remote`` is a peer's model. Options: ``commands`` (list only what runs: no window in the list, as in a
configuration without capabilities), ``extra_rows`` (more rows of the list), ``proxies`` (model to address), ``state``
(of what runs). A failure to load is in the words of versions before ``src``.
Omitted: the page below ``/ui``, logs, metrics, captures, profiles, hardware, audio, image and ComfyUI routes, the text
and HTML forms of its errors, queue positions and loading text in streams, and what a swap costs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect, llama_overflow

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "loading": "up at once; a model's server is started by the first request for it",
    "max_window": "the configured window is all it tells",
    "size": "it knows commands, not weights",
    "quantization": "it knows commands, not weights",
    "digest": "it knows commands, not weights",
    "slots": "its limit per model is told nowhere",
    "busy_count": "requests in flight are told in its event feed alone",
    "speed": "a route of its own tells it, which is not asked",
    "count": "counting would start the model",
}
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error"}
_CODES = {401: "unauthorized", 404: "not_found", 429: "concurrency_limit", 500: "internal_error"}


def _refused(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    kind = _KINDS.get(status, "rate_limit_error" if status == 429 else "server_error")
    told = {"message": text, "type": kind, "param": None, "code": _CODES[status]}
    return JSONResponse({"src": "llama-swap", "error": told}, status, headers)


def _unauthorized(fake: Fake) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="llama-swap"'}
    return _refused(401, "unauthorized: invalid or missing API key", headers)


DIALECT = Dialect(
    key_headers=("x-api-key",),
    unknown_model=lambda fake, name: _refused(404, "no router for requested model"),
    overflow=lambda fake: JSONResponse(llama_overflow(fake), 400),
    busy=lambda fake: _refused(429, "Too many requests", {"Retry-After": "1"}),
    error=lambda fake: _refused(500, "unspecific error: upstream command exited prematurely"),
    unauthorized=_unauthorized,
)


_CAN = {"function_calling": "tools", "vision": "vision"}


def _row(fake: Fake, model: FakeModel) -> dict[str, object]:
    about: dict[str, object] = {"type": "peer", "peerID": "far"} if model.remote else {"type": "model"}
    row: dict[str, object] = {"id": model.id, "object": "model", "created": 1764000000, "owned_by": "llama-swap"}
    row |= {"status": {"value": "loaded" if model.resident and not model.remote else "unloaded"}}
    if model.remote or fake.options.get("commands"):
        return row | {"meta": {"llamaswap": about}}
    return row | {
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"], "modality": "text->text"},
        "capabilities": {name: True for name, ours in _CAN.items() if ours in model.capabilities},
        "supported_parameters": ["tools", "tool_choice"],
        "context_length": model.window,
        "meta": {"llamaswap": about, "n_ctx": model.window},
    }


def _running(fake: Fake) -> list[dict[str, object]]:
    proxies = fake.options.get("proxies", {})
    assert isinstance(proxies, dict)
    return [
        {
            "model": model.id,
            "state": fake.options.get("state", "ready"),
            "cmd": f"llama-server --port {5800 + n} --model '/models/{model.id}.gguf'\n  -c {2 * model.window} -np 2",
            "proxy": proxies.get(model.id, f"http://localhost:{5800 + n}"),
            "ttl": 0,
            "name": "",
            "description": "",
        }
        for n, model in enumerate(fake.models)
        if model.resident and not model.remote
    ]


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "v221"
    watchers: list[asyncio.Queue[str]] = []

    def set_resident(model: FakeModel, resident: bool) -> None:
        model.resident = resident
        for watcher in watchers:
            watcher.put_nowait(_event(fake))

    def refused(request: Request) -> Response | None:
        return None if fake.has_key(fake.headers[-1], *DIALECT.key_headers) else _unauthorized(fake)

    async def models(request: Request) -> Response:
        extra = fake.options.get("extra_rows", [])
        assert isinstance(extra, list)
        data = [*(_row(fake, model) for model in fake.models), *extra]
        return refused(request) or JSONResponse({"object": "list", "data": data})

    async def running(request: Request) -> Response:
        return refused(request) or JSONResponse({"running": _running(fake)})

    async def version(request: Request) -> Response:
        build = {"version": fake.version, "commit": "0bdb372", "build_date": "2026-08-22T16:29:57Z"}
        return refused(request) or JSONResponse(build)

    async def chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def upstream(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        name = request.path_params["rest"]
        model = next((m for m in fake.models if name == m.id or name.startswith(f"{m.id}/")), None)
        if model is None:
            return _refused(404, "model not found")
        if name == model.id:
            return RedirectResponse(f"/upstream/{name}/", 301)
        if fake.fault == "error":
            return PlainTextResponse("llama-swap: upstream command exited prematurely", 500)
        set_resident(model, True)
        return Response("<html>llama.cpp</html>", media_type="text/html", headers={"Server": "llama.cpp"})

    async def unload(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        name = request.path_params.get("model")
        if name is not None and fake.model(name) is None:
            return _refused(404, "model not found")
        for model in fake.models:
            if name in (None, model.id):
                set_resident(model, False)
        return PlainTextResponse("OK") if name is not None else JSONResponse({"msg": "ok"})

    async def events(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        watcher: asyncio.Queue[str] = asyncio.Queue()
        watchers.append(watcher)

        async def feed() -> AsyncIterator[str]:
            log = json.dumps({"source": "proxy", "data": 'a log that says "modelStatus"\n'})
            yield f"event:message\ndata:{json.dumps({'type': 'logData', 'data': log})}\n\n"
            yield _event(fake)
            yield f"event:message\ndata:{json.dumps({'type': 'inflight', 'data': '{}'})}\n\n"
            while True:
                yield await watcher.get()

        return StreamingResponse(feed(), media_type="text/event-stream")

    async def health(request: Request) -> Response:
        return PlainTextResponse("OK")

    async def root(request: Request) -> Response:
        return RedirectResponse("/ui", 302)

    async def props(request: Request) -> Response:
        return refused(request) or _refused(404, "no model id could be identified")

    async def missing(request: Request, _: Exception) -> Response:
        return PlainTextResponse("404 page not found\n", 404)

    return served(
        fake,
        [
            Route("/v1/models", models),
            Route("/models", models),
            Route("/running", running),
            Route("/api/version", version),
            Route("/api/events", events),
            Route("/api/models/unload", unload, methods=["POST"]),
            Route("/api/models/unload/{model:path}", unload, methods=["POST"]),
            Route("/unload", unload),
            Route("/upstream/{rest:path}", upstream),
            Route("/props", props),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/health", health),
            Route("/wol-health", health),
            Route("/", root),
        ],
        exception_handlers={404: missing},
    )


def _event(fake: Fake) -> str:
    state = {True: "ready", False: "stopped"}
    told = [
        {"id": m.id, "peerID": "far"} if m.remote else {"id": m.id, "state": state[m.resident], "peerID": ""}
        for m in fake.models
    ]
    return f"event:message\ndata:{json.dumps({'type': 'modelStatus', 'data': json.dumps(told)})}\n\n"
