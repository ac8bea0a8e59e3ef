"""Open WebUI 0.12.4 as recorded (tests/recordings/openwebui), with a llama-server router behind it.

``FakeModel.remote`` is a model of a connection that is called external, as each one is until somebody changes that.
Options: ``features`` (of its configuration as a person who is logged in sees it), ``extra_rows`` (more rows of the
list), ``alone`` (the server behind it is gone: its models stay in the list all the same).
Omitted: everything that people do on its page, files, knowledge, tools, pipelines, tasks, the pass-through routes
``/openai`` and ``/ollama`` but for the refusal of a switched-off Ollama, and the Anthropic route.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect, llama_overflow

SERVER_HEADER = "uvicorn"
MODELS = 2
LACKS = {
    "slots": "it passes on what a list tells, not how many requests are served",
    "busy_count": "it passes on what a list tells, not what runs",
    "speed": "it passes on what a list tells, not what runs",
    "capabilities": "it passes on the list of llama.cpp, which tells none",
    "digest": "no digests but those of an Ollama behind it",
    "load": "a request for a model is passed on, and that is all",
    "count": "it passes on requests to count, which may load a model",
}


def _unauthorized(fake: Fake) -> Response:
    sent = "authorization" in fake.headers[-1] or "x-api-key" in fake.headers[-1]
    return JSONResponse({"detail": "401 Unauthorized" if sent else "Not authenticated"}, 401)


DIALECT = Dialect(
    key_headers=("x-api-key",),
    unknown_model=lambda fake, name: JSONResponse({"detail": "Model not found"}, 400),
    overflow=lambda fake: JSONResponse(llama_overflow(fake), 400),
    busy=lambda fake: JSONResponse(
        {"detail": "server busy, please try again.  maximum pending requests exceeded"}, 503
    ),
    error=lambda fake: JSONResponse({"detail": "Open WebUI: Server Connection Error"}, 500),
    unauthorized=_unauthorized,
)


def _row(model: FakeModel) -> dict[str, object]:
    upstream: dict[str, object] = {
        "id": model.id,
        "object": "model",
        "created": 1764000000,
        "owned_by": "llamacpp",
        "meta": {
            "n_ctx": model.window,
            "n_ctx_train": model.max_window,
            "n_params": model.parameters,
            "size": model.size,
            "ftype": model.quantization,
        },
        "status": {"value": "loaded" if model.resident else "unloaded", "args": ["--ctx-size", str(model.window)]},
        "context_length": model.max_window,
    }
    kind = {"connection_type": "external" if model.remote else "local", "provider": "" if model.remote else "llama.cpp"}
    own: dict[str, object] = {
        "name": model.id,
        "owned_by": "openai",
        "openai": upstream | kind,
        "urlIdx": 0,
        "tags": [],
    }
    loaded = {} if model.remote else {"loaded": model.resident}
    return upstream | kind | own | loaded | {"actions": [], "filters": []}


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "0.12.4"

    def refused(request: Request) -> Response | None:
        return None if fake.has_key(fake.headers[-1], *DIALECT.key_headers) else _unauthorized(fake)

    async def config(request: Request) -> Response:
        more = fake.options.get("features", {})
        assert isinstance(more, dict)
        features: dict[str, object] = {"auth": bool(fake.key), "enable_signup": False, "enable_login_form": True}
        if fake.has_key(fake.headers[-1], *DIALECT.key_headers):
            features |= more
        name = fake.options.get("name", "Open WebUI")
        return JSONResponse({"status": True, "name": name, "version": fake.version, "features": features})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": fake.version, "deployment_id": ""})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": True})

    async def ready(request: Request) -> Response:
        if fake.fault == "loading":
            return JSONResponse({"detail": "Startup not complete"}, 503)
        return JSONResponse({"status": True})

    async def models(request: Request) -> Response:
        extra = fake.options.get("extra_rows", [])
        assert isinstance(extra, list)
        return refused(request) or JSONResponse({"data": [*map(_row, fake.models), *extra]})

    async def chat(request: Request) -> Response:
        if fake.options.get("alone"):
            return refused(request) or JSONResponse({"detail": "Model '' was not found"}, 404)
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def unload(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        name = (await request.json())["model"]
        model = fake.model(name)
        if model is None:
            return JSONResponse({"detail": f'Model "{name}" not found'}, 404)
        if model.remote:
            return JSONResponse({"detail": 'Provider "default" does not support model unloading'}, 400)
        model.resident = False
        return JSONResponse({"success": True})

    async def no_ollama(request: Request) -> Response:
        off = "The Ollama API is disabled. Please enable it to use this feature."
        return refused(request) or JSONResponse({"detail": off}, 503)

    async def openapi(request: Request) -> Response:
        return JSONResponse({"openapi": "3.1.0", "info": {"title": "Open WebUI", "version": "0.1.0"}, "paths": {}})

    async def page(request: Request) -> Response:
        return HTMLResponse("<!doctype html><title>Open WebUI</title>")

    async def missing(request: Request, _: Exception) -> Response:
        return JSONResponse({"detail": "Method Not Allowed"}, 405)

    routes: list[BaseRoute] = [
        Route("/api/config", config),
        Route("/api/version", version),
        Route("/health", health),
        Route("/openapi.json", openapi),
        Route("/ready", ready),
        Route("/api/models/unload", unload, methods=["POST"]),
        Route("/ollama/api/tags", no_ollama),
    ]
    for prefix in ("/api", "/api/v1"):
        routes.append(Route(f"{prefix}/models", models))
        routes.append(Route(f"{prefix}/chat/completions", chat, methods=["POST"]))
        routes.append(Route(f"{prefix}/embeddings", embeddings, methods=["POST"]))
    # The page answers whatever nothing else answers, with 200.
    routes.append(Route("/{path:path}", page))
    return served(fake, routes, exception_handlers={404: missing, 405: missing})
