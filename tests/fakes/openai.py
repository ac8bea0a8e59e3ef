"""Any server of the OpenAI protocol that tells no more than the protocol has, as dasllama 0.6.6 was recorded.

It has faults and words beside those of dasllama, which refuses nobody and takes no key: the usual ones of the protocol.

Omitted: the completions and Responses routes; dasllama's page at ``/`` and ``timings`` in its usage; embeddings are the
protocol's, dasllama has none.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, served
from tests.fakes.openai_chat import Dialect, openai_error

SERVER_HEADER = "libhv/1.3.4"
_SILENT = "the protocol has no place for it"
LACKS = {
    "busy_count": _SILENT,
    "capabilities": _SILENT,
    "count": "the protocol has no route that counts",
    "digest": _SILENT,
    "load": "the protocol has no route that loads",
    "loading": _SILENT,
    "max_window": _SILENT,
    "quantization": _SILENT,
    "remote": _SILENT,
    "residency": _SILENT,
    "size": _SILENT,
    "slots": _SILENT,
    "speed": _SILENT,
    "unload": "the protocol has no route that unloads",
    "window": "some servers put it into a field of their own, which is then read",
}


def _overflow(fake: Fake) -> Response:
    window = fake.models[0].window
    text = f"the rendered prompt is {window + 1} tokens; the model context is {window} — shorten the conversation"
    return JSONResponse(openai_error(f"{text} or raise --ctx"), 400)


def _unknown(fake: Fake, name: str) -> Response:
    text = f"model '{name}' not found — GET /v1/models lists the served ids"
    return JSONResponse(openai_error(text, "model_not_found"), 404)


DIALECT = Dialect(unknown_model=_unknown, overflow=_overflow)


def app(fake: Fake) -> ASGIApp:
    async def models(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        rows = [
            {"id": model.id, "object": "model", "created": 1751200000, "owned_by": "somebody"} for model in fake.models
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def missing(request: Request, _: Exception) -> Response:
        return JSONResponse(openai_error(f"unknown endpoint: {request.url.path}"), 404)

    return served(
        fake,
        [
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
        ],
        exception_handlers={404: missing},
    )
