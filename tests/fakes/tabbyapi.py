"""TabbyAPI of 2026-08-13 (facts/services.md section 14; shapes read in its source, nothing recorded).

``fake.key`` is the admin key; ``options["key"]`` a plain one, with which only the loaded model is listed and nothing
can be loaded. ``options["inline"]``: a request loads its model. ``options["issues"]``: failures that ``/health`` keeps.
``options["load_fails"]``: a load breaks off. The first model is loaded.

Omitted: the Kobold routes, completions, templates, sampler overrides, LoRAs, lists of draft and embedding models,
downloads.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import PROMPT_TOKENS, Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect, openai_error

SERVER_HEADER = "uvicorn"
MODELS = 2
LACKS = {
    "loading": "the port is not open until the first model is loaded; later, a server that loads has no model",
    "max_window": "no reply has it",
    "size": "no reply has it",
    "quantization": "no reply has it",
    "digest": "no digests over HTTP",
    "busy_count": "no reply has it",
    "speed": "no reply has it",
    "remote": "it proxies to nobody",
    "count": "its count leaves out what opens the answer",
    "busy": "requests wait without a word",
    "unknown_model": "the model that is loaded answers for any other",
}
TEMPLATE = "{% if tools %}{{ tools }}{% endif %}{% for message in messages %}{{ message.content }}{% endfor %}"


def _detail(text: str, status: int) -> Response:
    return JSONResponse({"detail": text}, status)


def _overflow(fake: Fake) -> Response:
    window = fake.models[0].window
    text = f"Prompt length {window + 1} exceeds the available context size of {window} tokens"
    return JSONResponse(openai_error(text, code="context_length_exceeded"), 400)


def _failed(fake: Fake) -> Response:
    text = "Chat completion 1f2e aborted. Maybe the model was unloaded? Please check the server console."
    return _detail(text, 503)


DIALECT = Dialect(
    owner="tabbyAPI",
    key_headers=("x-api-key",),
    overflow=_overflow,
    error=_failed,
    unauthorized=lambda fake: _detail("Please provide an API key", 401),
)


def app(fake: Fake) -> ASGIApp:
    for other in fake.models[1:]:
        other.resident = False

    def loaded() -> FakeModel | None:
        return next((model for model in fake.models if model.resident), None)

    def plain(request: Request) -> bool:
        key = fake.options.get("key")
        return bool(key) and f"Bearer {key}" == request.headers.get("authorization")

    def refused(request: Request, *, admin: bool = False) -> Response | None:
        headers = fake.headers[-1]
        if plain(request):
            return _detail("Invalid admin key", 401) if admin else None
        if fake.has_key(headers, "x-admin-key" if admin else "x-api-key"):
            return None
        given = "authorization" in headers or "x-api-key" in headers
        name = "admin key" if admin else "API key"
        return _detail(f"Invalid {name}" if given else f"Please provide an {name}", 401)

    def card(model: FakeModel, parameters: dict[str, object] | None = None) -> dict[str, object]:
        row = {"id": model.id, "object": "model", "created": 1764000000, "owned_by": "tabbyAPI", "logging": None}
        return row | {"parameters": parameters}

    async def models(request: Request) -> Response:
        if (no := refused(request)) is not None:
            return no
        shown = [model for model in fake.models if model.resident] if plain(request) else fake.models
        return JSONResponse({"object": "list", "data": [card(model) for model in shown]})

    async def current(request: Request) -> Response:
        if (no := refused(request)) is not None:
            return no
        if (model := loaded()) is None:
            return _detail("No models are currently loaded.", 503)
        parameters: dict[str, object] = {
            "max_seq_len": model.window,
            "cache_size": fake.options.get("cache_size", model.window * 2),
            "cache_mode": "FP16",
            "max_batch_size": fake.slots,
            "chunk_size": 2048,
            "use_vision": "vision" in model.capabilities,
            "draft": None,
        }
        if not fake.options.get("old"):
            parameters |= {"prompt_template": "chat_template", "prompt_template_content": TEMPLATE}
        return JSONResponse(card(model, parameters))

    async def props(request: Request) -> Response:
        if (no := refused(request)) is not None:
            return no
        if (model := loaded()) is None:
            return _detail("No models are currently loaded.", 503)
        settings = {"n_ctx": model.window}
        return JSONResponse(
            {"total_slots": fake.slots, "chat_template": TEMPLATE, "default_generation_settings": settings}
        )

    async def load(request: Request) -> Response:
        if (no := refused(request, admin=True)) is not None:
            return no
        wanted = fake.model((await request.json()).get("model_name"))
        if wanted is None:
            return _detail("Could not find the model path for load. Check model name or config.yml?", 400)
        return StreamingResponse(_loading(fake, wanted), media_type="text/event-stream")

    async def unload(request: Request) -> Response:
        if (no := refused(request, admin=True)) is not None:
            return no
        if (model := loaded()) is None:
            return _detail("No models are currently loaded.", 503)
        model.resident = False
        return JSONResponse(None)

    async def chat(request: Request) -> Response:
        if not plain(request) and (no := refused(request)) is not None:
            return no
        asked = fake.model((await request.json()).get("model"))
        if fake.options.get("inline") and (asked is None or not asked.resident):
            if plain(request):
                name = asked.id if asked else "it"
                return _detail(f"Unable to switch model to {name} because an admin key isn't provided", 401)
            if asked is not None:
                _switch(fake, asked)
        if loaded() is None:
            return _detail("No models are currently loaded.", 503)
        if plain(request):
            fake.headers[-1]["x-api-key"] = fake.key
        answer = await openai_chat.chat(request, fake, DIALECT)
        if isinstance(answer, StreamingResponse):
            answer.body_iterator = _as_sent(answer.body_iterator)  # type: ignore[arg-type]
        return answer

    async def embeddings(request: Request) -> Response:
        if fake.options.get("no_embeddings"):
            return _detail("No embedding models are currently loaded.", 503)
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def encode(request: Request) -> Response:
        tokens = list(range(PROMPT_TOKENS - 3))
        return JSONResponse({"tokens": tokens, "length": len(tokens)})

    async def health(request: Request) -> Response:
        issues = fake.options.get("issues", [])
        status = "unhealthy" if issues else "healthy"
        return JSONResponse({"status": status, "issues": issues}, 503 if issues else 200)

    async def info(request: Request) -> Response:
        return JSONResponse({"version": 0.1, "software": {"name": "TabbyAPI"}, "api": {"openai": {"version": 1}}})

    async def missing(request: Request, _: Exception) -> Response:
        return _detail("Not Found", 404)

    return served(
        fake,
        [
            Route("/.well-known/serviceinfo", info),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/model/list", models),
            Route("/v1/model", current),
            Route("/props", props),
            Route("/v1/model/load", load, methods=["POST"]),
            Route("/v1/model/unload", unload, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/token/encode", encode, methods=["POST"]),
        ],
        exception_handlers={404: missing},
    )


def _switch(fake: Fake, wanted: FakeModel) -> None:
    for model in fake.models:
        model.resident = model is wanted


async def _loading(fake: Fake, wanted: FakeModel) -> AsyncIterator[bytes]:
    """A vision part, which is "finished" before the model is, and a ping between the events."""
    for kind in ("vision", "model"):
        for module in (1, 2):
            status = "processing" if module == 1 else "finished"
            event = {"model_type": kind, "module": module, "modules": 2, "status": status}
            yield b"data: " + json.dumps(event).encode() + b"\r\n\r\n"
        yield b": ping - 2026-01-01 00:00:00.000000+00:00\r\n\r\n"
        if kind == "vision" and fake.options.get("load_fails"):
            yield b'data: {"error":{"message":"Insufficient VRAM for model and cache","trace":null}}\r\n\r\n'
            return
    _switch(fake, wanted)


async def _as_sent(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines end as this server ends them, and usage comes with a choice."""
    async for data in stream:
        usual = data.replace(b'"choices": []', b'"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]')
        yield usual.replace(b"\n", b"\r\n")
