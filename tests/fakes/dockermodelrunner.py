"""Docker Model Runner of 2026-07 (facts/services.md section 14; fields of its source of 2026-07-22), llama.cpp inside.

Options: ``no_configuration`` (nobody configured a window: the packaged one holds), ``asked_as`` (how requests named
the model that runs). Omitted: pulls, pushes, tags, repackaging, disk usage, logs, metrics, the bodies of kept
requests, Responses, Anthropic, rerank and image routes, installing engines, the bodies of its Ollama POSTs.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect, llama_overflow

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "loading": "up at once; a model is loaded by the first request for it",
    "needs_key": "it takes no key",
    "capabilities": "neither list tells them",
    "slots": "it tells whether an engine is in use, not how many requests it takes",
    "speed": "a route of its own tells it, which is not asked",
    "remote": "it proxies to nobody",
    "busy": "requests wait for an engine",
    "count": "counting would load the model",
}


def _text(text: str, status: int) -> Response:
    return PlainTextResponse(f"{text}\n", status)


def _error(fake: Fake) -> Response:
    told = {"type": "error", "code": None, "message": "llama.cpp terminated unexpectedly", "param": None}
    return JSONResponse(told | {"sequence_number": 1}, 500)


DIALECT = Dialect(
    unknown_model=lambda fake, name: _text("model not found", 404),
    overflow=lambda fake: JSONResponse(llama_overflow(fake), 400),
    error=_error,
)


def _config(model: FakeModel) -> dict[str, object]:
    return {
        "format": "gguf",
        "quantization": model.quantization,
        "parameters": f"{model.parameters / 1e9:.2f}B",
        "architecture": model.family,
        "size": f"{model.size / 2**30:.2f}GiB",
        "gguf": {f"{model.family}.context_length": str(model.max_window), "tokenizer.ggml.model": "gpt2"},
        "context_size": model.max_window,
    }


def _openai_row(model: FakeModel) -> dict[str, object]:
    config = _config(model)
    about = {"context_window": model.max_window, "architecture": model.family, "size": config["size"]}
    about |= {"parameters": config["parameters"], "quantization": model.quantization}
    return {"id": model.id, "object": "model", "created": 1764000000, "owned_by": "docker", "dmr": about}


def _running(fake: Fake) -> list[dict[str, object]]:
    named = str(fake.options.get("asked_as", ""))
    rows = []
    for n, model in enumerate(m for m in fake.models if m.resident):
        row: dict[str, object] = {"backend_name": "llama.cpp", "model_name": named or model.id, "mode": "completion"}
        row["last_used"] = "0001-01-01T00:00:00Z"
        rows.append(row | ({"in_use": True} if n < fake.busy else {}))
    return rows


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "v1.2.0"

    async def root(request: Request) -> Response:
        return PlainTextResponse("Docker Model Runner is running")

    async def version(request: Request) -> Response:
        return JSONResponse({"version": fake.version})

    async def openai_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_openai_row(model) for model in fake.models]})

    async def models(request: Request) -> Response:
        rows = [
            {"id": f"sha256:{m.digest}", "tags": [m.id], "created": 1764000000, "config": _config(m)}
            for m in fake.models
        ]
        return JSONResponse(rows)

    async def ps(request: Request) -> Response:
        return JSONResponse(_running(fake))

    async def configured(request: Request) -> Response:
        if fake.options.get("no_configuration"):
            return JSONResponse([])
        rows = [
            {
                "Backend": "llama.cpp",
                "Model": m.id,
                "ModelID": f"sha256:{m.digest}",
                "Mode": "completion",
                "Config": {"context-size": m.window},
            }
            for m in fake.models
        ]
        return JSONResponse(rows)

    async def chat(request: Request) -> Response:
        if fake.headers[-1].get("x-preload-only") != "true":
            return await openai_chat.chat(request, fake, DIALECT)
        model = fake.model((await request.json()).get("model"))
        if model is None:
            return _text("model not found", 404)
        if fake.fault == "error":
            return _text("unable to load runner: error waiting for runner to be ready: out of memory", 500)
        model.resident = True
        return Response(b"")

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def unload(request: Request) -> Response:
        body = await request.json()
        idle = [
            m
            for n, m in enumerate(fake.models)
            if m.resident and n >= fake.busy and m.id in body["models"] and body["backend"] == "llama.cpp"
        ]
        for model in idle:
            model.resident = False
        return JSONResponse({"unloaded_runners": len(idle)})

    async def tags(request: Request) -> Response:
        rows = [
            {"name": m.id, "model": m.id, "size": 0, "digest": f"sha256:{m.digest}", "details": {"format": "gguf"}}
            for m in fake.models
        ]
        return JSONResponse({"models": rows})

    async def ollama_ps(request: Request) -> Response:
        rows = [{"name": m.id, "model": m.id, "digest": f"sha256:{m.digest}"} for m in fake.models if m.resident]
        return JSONResponse({"models": rows})

    async def ollama_version(request: Request) -> Response:
        return JSONResponse({"version": "0.1.0"})

    async def requests(request: Request) -> Response:
        return JSONResponse([])

    async def missing(request: Request, _: Exception) -> Response:
        known = request.url.path.startswith(("/engines", "/v1", "/models", "/api"))
        return _text("not found" if known else "404 page not found", 404)

    routes: list[BaseRoute] = [
        Route("/", root),
        Route("/version", version),
        Route("/models", models),
        Route("/engines/ps", ps),
        Route("/engines/_configure", configured),
        Route("/engines/unload", unload, methods=["POST"]),
        Route("/engines/requests", requests),
        Route("/api/tags", tags),
        Route("/api/ps", ollama_ps),
        Route("/api/version", ollama_version),
    ]
    for prefix in ("/v1", "/engines/v1", "/engines/llama.cpp/v1"):
        routes.append(Route(f"{prefix}/models", openai_models))
        routes.append(Route(f"{prefix}/chat/completions", chat, methods=["POST"]))
        routes.append(Route(f"{prefix}/embeddings", embeddings, methods=["POST"]))
    return served(fake, routes, exception_handlers={404: missing})
