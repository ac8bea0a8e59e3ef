"""Lemonade 11.7 (facts/services.md section 14; fields of its documents and source of 2026-08-22).

``FakeModel.remote`` is a cloud provider's model. Options: ``extra_rows`` (more rows of the list), ``telemetry``; the
body of the last load is put there as ``load``.
Omitted: pulls, downloads, the hub's search, options, aliases, jobs, MCP, audio, image, rerank, Responses and Anthropic
routes, the UDP beacon, the WebSocket, ``/internal``, ``/metrics``, the bodies of its Ollama routes that take a POST.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect, llama_overflow

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "loading": "up at once; a model is loaded by the first request for it",
    "digest": "no digests; those of its Ollama list are zeros",
    "slots": "it tells whether a model is busy, not how many requests it takes",
    "speed": "a route of its own tells it, which is not asked",
    "busy": "requests wait in the engine that it starts",
    "count": "it has no way to count without answering",
}
_LABELS = {"chat": "chat", "tools": "tool-calling", "vision": "vision", "thinking": "reasoning"}
_NO_DIGEST = "sha256:" + "0" * 64


def _refused(status: int, kind: str, text: str, **more: object) -> Response:
    return JSONResponse({"error": {"message": text, "type": kind, "code": kind, **more}}, status)


def _unknown(fake: Fake, name: str) -> Response:
    text = f"Model '{name}' was not found. Available models include: '{fake.models[0].id}'. Use 'lemonade list' or GET"
    return _refused(404, "model_not_found", f"{text} /api/v1/models?show_all=true to see all available models.")


def _streams(fake: Fake) -> bool:
    return bool(fake.seen[-1].get("stream"))


def _overflow(fake: Fake) -> Response:
    told = llama_overflow(fake)
    error = told["error"]
    assert isinstance(error, dict)
    if not _streams(fake):
        about = {"status_code": 400, "details": {"backend": "llama-server", "response": told}}
        return JSONResponse({"error": error | about}, 400)
    # A stream was promised before the engine was asked: its refusal comes under 200, without an end mark.
    return _event({"error": error | {"status_code": 400}})


def _error(fake: Fake) -> Response:
    told = {"message": "llama-server error: exited", "type": "backend_error", "status_code": 500}
    return _event({"error": told}) if _streams(fake) else JSONResponse({"error": told}, 500)


def _event(value: object) -> Response:
    body = b"data: " + JSONResponse(value).body + b"\n\n"
    return Response(body, media_type="text/event-stream")


DIALECT = Dialect(
    unknown_model=_unknown,
    overflow=_overflow,
    error=_error,
    unauthorized=lambda fake: JSONResponse({"error": "Invalid or missing API key"}, 401),
    comments=True,
)


def _row(model: FakeModel) -> dict[str, object]:
    row: dict[str, object] = {
        "id": model.id,
        "object": "model",
        "created": 1234567890,
        "owned_by": "lemonade",
        "checkpoint": model.id if model.remote else f"unsloth/{model.id}-GGUF:{model.quantization}",
        "checkpoints": {},
        "recipe": "cloud" if model.remote else "llamacpp",
        "downloaded": True,
        "update_available": False,
        "suggested": True,
        "source": "",
        "registry_source": "huggingface",
        "labels": [_LABELS[c] for c in model.capabilities if c in _LABELS],
        "components": [],
        "recipe_options": {},
        "size": round(model.size / 2**30, 2),
        "max_context_window": model.max_window,
        "context_length": model.window,
    }
    return row | ({"cloud_provider": "fireworks"} if model.remote else {})


def _loaded(fake: Fake) -> list[dict[str, object]]:
    return [
        {
            "model_name": model.id,
            "checkpoint": f"unsloth/{model.id}-GGUF:{model.quantization}",
            "last_use": 1764000000.5,
            "type": "llm",
            "residency_class": "standard",
            "device": "gpu",
            "pinned": False,
            "recipe": "llamacpp",
            "pid": 4000 + n,
            "launch_command": ["llama-server", "--ctx-size", str(model.window), "--port", str(8001 + n)],
            "recipe_options": {"ctx_size": model.window, "llamacpp_backend": "vulkan"},
            "status": "ready",
            "is_busy": n < fake.busy,
            "is_streaming": False,
            "max_context_window": model.max_window,
            "backend_url": f"http://127.0.0.1:{8001 + n}/v1",
        }
        for n, model in enumerate(fake.models)
        if model.resident and not model.remote
    ]


def _health(fake: Fake) -> dict[str, object]:
    loaded = _loaded(fake)
    return {
        "status": "ok",
        "version": fake.version,
        "websocket_port": 9000,
        "model_loaded": loaded[0]["model_name"] if loaded else None,
        "all_models_loaded": loaded,
        "max_models": {"llm": 2, "embedding": 2, "reranking": 2, "transcription": 2, "image": 2, "tts": 2},
        "pinned_models": {"llm": 0},
        "telemetry": fake.options.get("telemetry", {"enabled": False}),
        "update_check_done": True,
    }


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "11.7.0"

    def refused(request: Request) -> Response | None:
        return None if fake.has_key(fake.headers[-1]) else DIALECT.unauthorized(fake)

    async def models(request: Request) -> Response:
        extra = fake.options.get("extra_rows", [])
        assert isinstance(extra, list)
        data = [*map(_row, fake.models), *extra]
        return refused(request) or JSONResponse({"object": "list", "data": data})

    async def health(request: Request) -> Response:
        return refused(request) or JSONResponse(_health(fake))

    async def chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def load(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        fake.options["load"] = await request.json()
        name = (await request.json())["model_name"]
        model = fake.model(name)
        if model is None:
            return _unknown(fake, name)
        if fake.fault == "busy":
            text = "All loaded models of type llm are pinned. Unload a model first."
            return _refused(409, "slots_pinned_error", text, param="model", requested_model=name)
        model.resident = True
        return JSONResponse({"status": "success", "model_name": name, "checkpoint": name, "recipe": "llamacpp"})

    async def unload(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        name = (await request.json()).get("model_name", "")
        if name and (fake.model(name) is None or not fake.models[0].resident):
            return JSONResponse({"error": f"Model not loaded: {name}"}, 404)
        for model in fake.models:
            if name in ("", model.id):
                model.resident = False
        return JSONResponse({"status": "success", "message": "Model unloaded successfully", "model_name": name})

    async def post_only(request: Request) -> Response:
        return refused(request) or JSONResponse({"error": "Method Not Allowed. Use POST for this endpoint"}, 405)

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def tags(request: Request) -> Response:
        digest = {"digest": _NO_DIGEST, "modified_at": "2024-01-01T00:00:00Z"}
        listed = [{"name": f"{m.id}:latest", "model": f"{m.id}:latest", "size": m.size, **digest} for m in fake.models]
        return refused(request) or JSONResponse({"models": listed})

    async def ps(request: Request) -> Response:
        listed = [
            {"name": f"{row['model_name']}:latest", "size": 0, "digest": _NO_DIGEST, "size_vram": 0}
            for row in _loaded(fake)
        ]
        return refused(request) or JSONResponse({"models": listed})

    async def version(request: Request) -> Response:
        return refused(request) or JSONResponse({"version": "0.16.1"})

    async def missing(request: Request, _: Exception) -> Response:
        """Its own page for every path that is none of the API's and has no extension."""
        path = request.url.path
        if path.startswith(("/api", "/v0", "/v1")) and (answer := refused(request)) is not None:
            return answer
        page = not path.startswith(("/api", "/v0", "/v1", "/static", "/live", "/status", "/internal"))
        if request.method == "GET" and page and "." not in path.rpartition("/")[2]:
            return HTMLResponse("<!doctype html><title>Lemonade</title>")
        told = {"message": "The requested endpoint does not exist", "type": "not_found", "path": path}
        return JSONResponse({"error": told}, 404)

    routes: list[BaseRoute] = [Route("/live", live), Route("/api/tags", tags), Route("/api/ps", ps)]
    routes.append(Route("/api/version", version))
    posts = {"chat/completions": chat, "embeddings": embeddings, "load": load, "unload": unload}
    for prefix in ("/api/v0", "/api/v1", "/v0", "/v1"):
        routes += [Route(f"{prefix}/models", models), Route(f"{prefix}/health", health)]
        for name, post in posts.items():
            routes += [Route(f"{prefix}/{name}", post, methods=["POST"]), Route(f"{prefix}/{name}", post_only)]
    return served(fake, routes, exception_handlers={404: missing})
