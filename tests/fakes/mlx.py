"""MLX-LM 0.32.2 (facts/services.md section 14, backends.md 3.4; run for its lists and refusals, its source read).

``options["no_cache"]``: its Hugging Face cache directory is missing. ``options["dead"]``: its generation thread died.
Omitted: HTTP/1.0 and answers without a length that end with the connection, ``/v1/completions``, adapters, draft
models, log probabilities, the CORS headers, and that one long prompt keeps all others waiting.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = "BaseHTTP/0.6 Python/3.11.7"
MODELS = 2
LACKS = {
    "loading": "it is up at once, and a request waits for the model",
    "needs_key": "it has no keys",
    "window": "no reply has it",
    "max_window": "no reply has it",
    "residency": "no reply tells which model is loaded",
    "size": "no reply has it",
    "quantization": "no reply has it",
    "capabilities": "no reply has them",
    "digest": "no digests over HTTP",
    "slots": "no reply has them",
    "busy_count": "no reply has it",
    "speed": "no reply has it",
    "remote": "it proxies to nobody",
    "structured": "response_format is not looked at",
    "embeddings": "it has no such path",
    "count": "it has no such path",
    "overflow": "the size of a prompt is not looked at",
    "busy": "requests wait without a word",
    "load": "only a request loads a model",
    "unload": "only a request for another model unloads one",
}
NOT_ON_DISK = (
    "Cannot find an appropriate cached snapshot folder for the specified revision on the local disk and outgoing"
    " traffic has been disabled. To enable repo look-ups and downloads online, set 'HF_HUB_OFFLINE=0' as environment"
    " variable."
)


def _dead(fake: Fake) -> Response:
    return JSONResponse({"error": "generation thread died"}, 404)


DIALECT = Dialect(
    reasoning="reasoning",
    unknown_model=lambda fake, name: JSONResponse({"error": NOT_ON_DISK}, 404),
    error=_dead,
    comments=True,
    delta={"role": "assistant"},
)


def app(fake: Fake) -> ASGIApp:
    async def models(request: Request) -> Response:
        if fake.options.get("no_cache"):
            return Response(b"", media_type="application/json")
        rows = [{"id": model.id, "object": "model", "created": 1764000000} for model in fake.models]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(request: Request) -> Response:
        return _dead(fake) if fake.options.get("dead") else await openai_chat.chat(request, fake, DIALECT)

    async def health(request: Request) -> Response:
        dead = fake.options.get("dead")
        return JSONResponse({"status": "unavailable" if dead else "ok"}, 503 if dead else 200)

    async def missing(request: Request, _: Exception) -> Response:
        return Response(b"Not Found", 404, media_type="application/json")

    return served(
        fake,
        [
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/chat/completions", chat, methods=["POST"]),
            Route("/health", health),
        ],
        exception_handlers={404: missing, 405: missing},
    )
