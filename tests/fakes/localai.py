"""LocalAI 4.9.0 (facts/services.md section 5; fields of its source of 2026-08-22).

``FakeModel.remote`` is a cloud-proxy model. Options: ``opaque`` (errors without bodies), ``poses`` ("/" is Ollama's
greeting), ``no_ollama`` (a version before its Ollama routes), ``open_ways`` (capabilities of its description),
``more_tags`` (more rows of its Ollama list).
Omitted: galleries, settings, p2p, agents, MCP, accounts and quotas, admin roles, Responses, Anthropic, rerank, audio,
image and realtime routes, the bodies of its Ollama POSTs, its page.
"""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect, llama_overflow

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "window": "it stands in the model's file alone",
    "max_window": "it stands in the weights alone",
    "size": "its Ollama list says 0",
    "digest": "its Ollama list has the hash of the name",
    "slots": "limits stand in the model's file alone",
    "busy_count": "told to nobody",
    "speed": "told to nobody",
    "overflow_counts": "it names a window, which no list tells",
    "count": "its tokenizer loads the model and knows no chat template",
}
_TAG = {"chat": "completion", "tools": "tools", "vision": "vision", "thinking": "thinking", "embeddings": "embedding"}


def _refused(fake: Fake, status: int, text: str, kind: str = "", headers: dict[str, str] | None = None) -> Response:
    if fake.options.get("opaque"):
        return Response(b"", status, headers)
    return JSONResponse({"error": {"code": status, "message": text, "type": kind}}, status, headers)


def _unauthorized(fake: Fake) -> Response:
    headers = {"WWW-Authenticate": "Bearer"}
    return _refused(fake, 401, "An authentication key is required", "invalid_request_error", headers)


def _unknown(fake: Fake, name: str) -> Response:
    text = f'model "{name}" not found. To see available models, call GET /v1/models'
    return _refused(fake, 404, text, "invalid_request_error")


def _busy(fake: Fake) -> Response:
    text = f'model "{fake.models[0].id}" is at capacity (max_concurrent=1); retry after 5s'
    told = {"error": {"type": "admission_rejected", "message": text}}
    return JSONResponse(told, 503, headers={"Retry-After": "5"})


def _loading(fake: Fake) -> Response:
    name, headers = fake.models[0].id, {"Retry-After": "7"}
    if fake.options.get("opaque"):
        return Response(b"", 503, headers)
    told = {"code": "model_loading", "message": f"model {name} is staging on node a", "type": "model_loading"}
    state = {"phase": "staging", "node": "a", "bytes": 1, "total_bytes": 2, "eta_seconds": 7}
    return JSONResponse({"error": told, "loading": state}, 503, headers=headers)


def _overflow(fake: Fake) -> Response:
    error = llama_overflow(fake)["error"]
    assert isinstance(error, dict)
    return _refused(fake, 500, f"rpc error: code = Internal desc = {error['message']}")


DIALECT = Dialect(
    key_headers=("x-api-key", "xi-api-key"),
    reasoning="reasoning",
    unknown_model=_unknown,
    overflow=_overflow,
    busy=_busy,
    loading=_loading,
    error=lambda fake: _refused(fake, 500, "rpc error: code = Unavailable desc = error reading from server: EOF"),
    unauthorized=_unauthorized,
)


def _ollama_row(model: FakeModel) -> dict[str, object]:
    name = model.id if ":" in model.id else f"{model.id}:latest"
    engine = "cloud-proxy" if model.remote else "llama-cpp"
    return {
        "name": name,
        "model": name,
        "modified_at": "2026-11-22T00:00:00Z",
        "size": 0,
        "digest": f"sha256:{hashlib.sha256(model.id.encode()).hexdigest()}",
        "details": {
            "format": "gguf",
            "family": engine,
            "families": [engine],
            "parameter_size": f"{model.parameters / 1e9:.0f}B",
            "quantization_level": model.quantization,
        },
        "capabilities": [_TAG[c] for c in model.capabilities if c in _TAG],
    }


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "v4.9.0 (82c191a)"

    def refused(request: Request) -> Response | None:
        return None if fake.has_key(fake.headers[-1], *DIALECT.key_headers) else _unauthorized(fake)

    async def about(request: Request) -> Response:
        ways = {"config_metadata": True, "mcp": False, "agents": False, "p2p": False, "tracing": True}
        more = fake.options.get("open_ways", {})
        assert isinstance(more, dict)
        endpoints = {"models": "/v1/models", "models_capabilities": "/v1/models/capabilities"}
        return JSONResponse({"version": fake.version, "endpoints": endpoints, "capabilities": ways | more})

    async def readyz(request: Request) -> Response:
        if fake.fault == "loading":
            return JSONResponse({"status": "starting", "reason": "startup preload in progress"}, 503)
        return Response(b"")

    async def healthz(request: Request) -> Response:
        return Response(b"")

    async def version(request: Request) -> Response:
        return refused(request) or JSONResponse({"version": fake.version})

    async def models(request: Request) -> Response:
        rows = [{"id": model.id, "object": "model"} for model in fake.models]
        return refused(request) or JSONResponse({"object": "list", "data": rows})

    async def capabilities(request: Request) -> Response:
        rows = [
            {"id": m.id, "object": "model", "capabilities": list(m.capabilities), "input_modalities": ["text"]}
            for m in fake.models
        ]
        return refused(request) or JSONResponse({"object": "list", "data": rows})

    async def system(request: Request) -> Response:
        loaded = [{"id": model.id, "backend": "llama-cpp"} for model in fake.models if model.resident]
        return refused(request) or JSONResponse({"backends": ["llama-cpp"], "loaded_models": loaded})

    async def tags(request: Request) -> Response:
        more = fake.options.get("more_tags", [])
        assert isinstance(more, list)
        rows = [*map(_ollama_row, fake.models), *more]
        return refused(request) or JSONResponse({"models": rows or None})

    async def ps(request: Request) -> Response:
        loaded = [m for m in fake.models if m.resident and fake.fault != "loading"]
        rows = [_ollama_row(m) | {"expires_at": "2026-11-23T00:00:00Z", "size_vram": 0} for m in loaded]
        return refused(request) or JSONResponse({"models": rows or None})

    async def ollama_version(request: Request) -> Response:
        return refused(request) or JSONResponse({"version": "0.9.0"})

    async def root(request: Request) -> Response:
        return PlainTextResponse("Ollama is running") if fake.options.get("poses") else HTMLResponse("<title>LocalAI")

    async def chat(request: Request) -> Response:
        answer = await openai_chat.chat(request, fake, DIALECT)
        answer.headers["X-Correlation-ID"] = "1"
        return answer

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def load(request: Request) -> Response:
        name = (await request.json()).get("model")
        model = fake.model(name)
        if (answer := refused(request)) is not None:
            return answer
        if model is None or fake.fault == "error":
            return JSONResponse({"loaded": None, "message": "failed to load model: could not load model"}, 500)
        model.resident = True
        return JSONResponse({"loaded": [name], "message": "model loaded"})

    async def shutdown(request: Request) -> Response:
        model = fake.model((await request.json()).get("model"))
        if (answer := refused(request)) is not None:
            return answer
        if model is None or not model.resident:
            return _refused(fake, 404, "Resource not found")
        model.resident = False
        return JSONResponse({"message": "model stopped"})

    async def missing(request: Request, _: Exception) -> Response:
        return refused(request) or _refused(fake, 404, "Resource not found")

    routes: list[BaseRoute] = [
        Route("/.well-known/localai.json", about),
        Route("/readyz", readyz),
        Route("/healthz", healthz),
        Route("/version", version),
        Route("/v1/models", models),
        Route("/models", models),
        Route("/v1/models/capabilities", capabilities),
        Route("/system", system),
        Route("/backend/load", load, methods=["POST"]),
        Route("/backend/shutdown", shutdown, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/", root),
    ]
    if not fake.options.get("no_ollama"):
        routes += [Route("/api/tags", tags), Route("/api/ps", ps), Route("/api/version", ollama_version)]
    return served(fake, routes, exception_handlers={404: missing})
