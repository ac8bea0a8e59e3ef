"""vLLM 0.33 (facts/services.md section 6; recorded from 0.32: facts/backends.md 3.3).

Omitted: the Responses, Anthropic, Cohere and pooling routes, LoRA rows, sleep mode, streamed usage statistics.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import PROMPT_TOKENS, Fake, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = "uvicorn"
LACKS = {
    "loading": "the port is not open until the model is loaded",
    "residency": "one model, always loaded",
    "size": "the model list has no size",
    "quantization": "the model list has none",
    "capabilities": "the model list has none",
    "digest": "no digests over HTTP",
    "load": "one model per process",
    "unload": "one model per process",
    "remote": "it proxies to nobody",
    "max_window": "the configured maximum is all it tells",
}


def _refused(kind: str, status: int, text: str, param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": text, "type": kind, "param": param, "code": status}}, status)


def _overflow(fake: Fake) -> Response:
    window = fake.models[0].window
    text = (
        f"This model's maximum context length is {window} tokens. However, your prompt contains at least {window + 1}"
        " input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input"
        f" prompt. (parameter=input_tokens, value={window + 1})"
    )
    return _refused("BadRequestError", 400, text, "input_tokens")


def _unknown(fake: Fake, name: str) -> Response:
    valid = ", ".join(model.id for model in fake.models)
    return _refused("NotFoundError", 404, f"The model `{name}` does not exist. Valid aliases: {valid}.", "model")


def _busy(fake: Fake) -> Response:
    text = "The engine is currently busy and cannot accept new requests. Please try again later or on a different"
    return _refused("ServiceUnavailableError", 503, f"{text} instance.")


DIALECT = Dialect(
    reasoning="reasoning",
    unknown_model=_unknown,
    overflow=_overflow,
    busy=_busy,
    error=lambda fake: _refused("InternalServerError", 500, "EngineCore encountered an issue."),
    unauthorized=lambda fake: JSONResponse({"error": "Unauthorized"}, 401),
)


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "0.33.0"

    async def models(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        rows = [
            {
                "id": model.id,
                "object": "model",
                "created": 1764000000,
                "owned_by": "vllm",
                "root": f"/models/{model.id}",
                "parent": None,
                "max_model_len": model.window,
                "permission": [],
            }
            for model in fake.models
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def tokenize(request: Request) -> Response:
        await request.json()
        window = fake.models[0].window
        return JSONResponse({"count": PROMPT_TOKENS, "max_model_len": window, "tokens": [], "token_strs": None})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": fake.version})

    async def health(request: Request) -> Response:
        return Response(status_code=503 if fake.fault == "loading" else 200)

    async def metrics(request: Request) -> Response:
        label = f'{{engine="0",model_name="{fake.models[0].id}"}}'
        lines = [f"vllm:num_requests_running{label} {fake.busy}.0", f"vllm:num_requests_waiting{label} 0.0"]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def missing(request: Request, _: Exception) -> Response:
        return JSONResponse({"detail": "Not Found"}, 404)

    return served(
        fake,
        [
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/version", version),
            Route("/health", health),
            Route("/ping", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={404: missing},
    )
