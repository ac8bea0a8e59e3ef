"""LM Studio 0.4 (facts/services.md section 2; its source is closed: error texts are from reports).

``options``: ``api`` is ``v1`` (0.4), ``v0`` (0.3.6) or ``openai`` (older); ``jit`` False lists only what is
loaded; ``silent`` makes an overflow the GGUF engine's: a 200 without a word; ``named`` gives the instance of the first
model a name of its own; ``embedder`` adds an embedding model.

Omitted: the responses, messages, completions and native chat routes, downloads, the internal WebSocket API, ``ttl``,
evictions, variants, and models of other machines (LM Link), which look like its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, FakeModel, served
from tests.fakes.openai_chat import USAGE, Dialect

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "loading": "a cold model is loaded inside the request that asks for it",
    "digest": "no digests over HTTP",
    "busy_count": "its queue is seen by its own command alone",
    "speed": "told in an answer's own statistics alone",
    "remote": "models of LM Link look like its own",
    "count": "its tokenizer is behind its WebSocket alone",
    "busy": "it queues without end",
}
APIS = ("openai", "v0", "v1")
EXPRESS = {"X-Powered-By": "Express"}


def _json(value: object, status: int = 200) -> Response:
    return JSONResponse(value, status, headers=EXPRESS)


def _sse(*events: str) -> Response:
    return Response("".join(f"{event}\n\n" for event in events), media_type="text/event-stream", headers=EXPRESS)


def _failed(fake: Fake, text: str) -> Response:
    """A failure: a plain string under 400, or in the stream, which is 200 by then."""
    if not fake.seen[-1].get("stream"):
        return _json({"error": text}, 400)
    return _sse("event: error\ndata: " + json.dumps({"error": {"message": text}}))


def _overflow(fake: Fake) -> Response:
    window = fake.models[0].window
    if fake.options.get("silent"):
        return _silence(fake)
    return _failed(
        fake,
        "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: "
        f"{window + 800}>= n_ctx: {window}). Try to load the model with a larger context length, or provide a shorter"
        " input.",
    )


def _silence(fake: Fake) -> Response:
    message = {"role": "assistant", "content": "", "tool_calls": []}
    if not fake.seen[-1].get("stream"):
        return _json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE})
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    chunks = (role, end, {"choices": [], "usage": USAGE})
    return _sse(*(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]")


def _unknown(fake: Fake, name: str) -> Response:
    listed = ", ".join(model.id for model in fake.models)
    text = f'Invalid model identifier "{name}". Please specify a valid downloaded model (e.g., {listed}).'
    return _json(openai_chat.openai_error(text, code="model_not_found"), 400)


def _unauthorized(fake: Fake) -> Response:
    text = "An LM Studio API token is required to make requests to this server, but none was provided using the"
    return _json(
        {"error": {"type": "invalid_request", "code": "invalid_api_key", "message": f"{text} Authorization"}}, 401
    )


DIALECT = Dialect(
    unknown_model=_unknown,
    overflow=_overflow,
    error=lambda fake: _failed(fake, "The model has crashed without additional information. (Exit code: 6)"),
    unauthorized=_unauthorized,
)


def _instance(fake: Fake, model: FakeModel) -> str:
    return str(fake.options["named"]) if "named" in fake.options and model is fake.models[0] else model.id


def _row(fake: Fake, model: FakeModel) -> dict[str, object]:
    config = {
        "context_length": model.window,
        "eval_batch_size": 512,
        "parallel": fake.slots,
        "flash_attention": True,
        "offload_kv_cache_to_gpu": True,
    }
    capabilities = {"vision": "vision" in model.capabilities, "trained_for_tool_use": "tools" in model.capabilities}
    return {
        "type": "llm",
        "publisher": "lmstudio-community",
        "key": model.id,
        "display_name": model.id,
        "architecture": model.family,
        "quantization": {"name": model.quantization, "bits_per_weight": 4},
        "size_bytes": model.size,
        "params_string": f"{model.parameters / 1e9:.1f}B",
        "loaded_instances": [{"id": _instance(fake, model), "config": config}] if model.resident else [],
        "max_context_length": model.max_window,
        "format": "gguf",
        "capabilities": capabilities,
        "description": None,
    }


EMBEDDER = {
    "type": "embedding",
    "publisher": "nomic-ai",
    "key": "text-embedding-nomic-embed-text-v1.5",
    "display_name": "Nomic Embed Text v1.5",
    "quantization": {"name": "F16", "bits_per_weight": 16},
    "size_bytes": 274290560,
    "params_string": None,
    "loaded_instances": [],
    "max_context_length": 2048,
    "format": "gguf",
}


def _older_row(model: FakeModel) -> dict[str, object]:
    loaded = {"loaded_context_length": model.window} if model.resident else {}
    return {
        "id": model.id,
        "object": "model",
        "type": "vlm" if "vision" in model.capabilities else "llm",
        "publisher": "lmstudio-community",
        "arch": model.family,
        "compatibility_type": "gguf",
        "quantization": model.quantization,
        "state": "loaded" if model.resident else "not-loaded",
        "max_context_length": model.max_window,
        "capabilities": ["tool_use"] if "tools" in model.capabilities else [],
        **loaded,
    }


def app(fake: Fake) -> ASGIApp:
    async def anything(request: Request, _: Exception | None = None) -> Response:
        return _json({"error": f"Unexpected endpoint or method. ({request.method} {request.url.path})"})

    def keyed(answer: Callable[[], Response], since: str = "openai") -> Callable[[Request], object]:
        async def handler(request: Request) -> Response:
            if APIS.index(since) > APIS.index(str(fake.options.get("api", "v1"))):
                return await anything(request)
            return answer() if fake.has_key(fake.headers[-1]) else _unauthorized(fake)

        return handler

    def listed() -> list[FakeModel]:
        return [m for m in fake.models if m.resident or fake.options.get("jit", True)]

    def models_v1() -> Response:
        extra = [EMBEDDER] if fake.options.get("embedder") else []
        return _json({"models": [*(_row(fake, m) for m in fake.models), *extra]})

    def models_v0() -> Response:
        return _json({"object": "list", "data": [_older_row(m) for m in fake.models]})

    def models() -> Response:
        rows = [{"id": m.id, "object": "model", "owned_by": "organization_owner"} for m in listed()]
        return _json({"data": rows, "object": "list"})

    async def change(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return _unauthorized(fake)
        body = await request.json()
        fake.seen.append(body)
        if request.url.path.endswith("/unload"):
            model = next((m for m in fake.models if _instance(fake, m) == body["instance_id"]), None)
            answer: dict[str, object] = {"instance_id": body["instance_id"]}
        else:
            model = fake.model(body["model"])
            answer = {"type": "llm", "instance_id": body["model"], "load_time_seconds": 9.099, "status": "loaded"}
        if model is None:
            return _unknown(fake, str(body))
        model.resident = request.url.path.endswith("/load")
        return _json(answer)

    async def chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    return served(
        fake,
        [
            Route("/lmstudio-greeting", lambda request: _json({"lmstudio": True})),
            Route("/api/v1/models", keyed(models_v1, "v1")),
            Route("/api/v1/models/load", change, methods=["POST"]),
            Route("/api/v1/models/unload", change, methods=["POST"]),
            Route("/api/v0/models", keyed(models_v0, "v0")),
            Route("/v1/models", keyed(models)),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
        ],
        exception_handlers={404: anything, 405: anything},
    )
