"""SGLang 0.5.23 (facts/services.md section 14; shapes read in its source, nothing recorded).

``/health`` has the real server generate a token, which takes a second and more: here it never answers. The Ollama
emulation is here as far as a fingerprint meets it, with its dummy digest. A refusal is one flat object.

Omitted: the Responses and Anthropic routes, ``/generate``, adapters, sessions, LoRA rows, the profiling, weight and
cache routes, ``/server_info``, ``/metrics`` (a flag), the warm-up after the port opened, in which ``/ready`` is 503.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import PROMPT_TOKENS, Fake, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = "uvicorn"
LACKS = {
    "loading": "the port is not open until the model is loaded",
    "size": "no reply that is asked for has a size",
    "quantization": "no reply that is asked for has it",
    "digest": "no digests over HTTP",
    "max_window": "the configured maximum is all it tells",
    "load": "one model per process",
    "unload": "one model per process",
    "remote": "it proxies to nobody",
    "unknown_model": "the name is not looked at: the model that it has answers",
}
OLLAMA_DIGEST = "sha256:sglang" + 58 * "0"


def _refused(text: str, status: int, kind: str = "BadRequestError") -> Response:
    return JSONResponse({"object": "error", "message": text, "type": kind, "param": None, "code": status}, status)


def _unauthorized(fake: Fake) -> Response:
    return JSONResponse({"error": "Unauthorized"}, 401)


def _overflow(fake: Fake) -> Response:
    window = fake.models[0].window
    if fake.options.get("answer_too_long"):
        return _refused(
            f"Requested token count exceeds the model's maximum context length of {window} tokens. You requested a"
            f" total of {window + 600} tokens: {window + 100} tokens from the input messages and 500 tokens for the"
            " completion. Please reduce the number of tokens in the input messages or the completion to fit within the"
            " limit.",
            400,
        )
    text = f"The input ({window + 1} tokens) is longer than the model's context length ({window} tokens)."
    return _refused(text, 400)


DIALECT = Dialect(
    overflow=_overflow,
    busy=lambda fake: _refused("The request queue is full.", 503, "503"),
    error=lambda fake: _refused("Internal server error: boom", 500, "InternalServerError"),
    unauthorized=_unauthorized,
)


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "0.5.23"
    model = fake.models[0]

    async def models(request: Request) -> Response:
        row = {"id": model.id, "object": "model", "created": 1764000000, "owned_by": "sglang", "root": model.id}
        return JSONResponse({"object": "list", "data": [row | {"parent": None, "max_model_len": model.window}]})

    async def info(request: Request) -> Response:
        able = model.capabilities
        told = {
            "model_path": f"/models/{model.id}",
            "served_model_name": model.id,
            "tokenizer_path": f"/models/{model.id}",
            "is_generation": "chat" in able,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "load_format": "auto",
            "disaggregation_mode": "null",
            "has_image_understanding": "vision" in able,
            "has_audio_understanding": False,
            "model_type": model.family,
            "architectures": ["Qwen2ForCausalLM"],
        }
        if not fake.options.get("old"):
            told["tool_call_parser"] = "qwen25" if "tools" in able else None
            told["reasoning_parser"] = "qwen3" if "thinking" in able else None
        return JSONResponse(told)

    async def loads(request: Request) -> Response:
        rank = {
            "dp_rank": 0,
            "num_running_reqs": fake.busy,
            "num_waiting_reqs": 0,
            "max_running_requests": fake.slots,
            "max_total_num_tokens": 200_000,
            "gen_throughput": fake.speed,
            "queues": {"waiting": 0},
        }
        return JSONResponse({"timestamp": "2026-01-01T00:00:00+00:00", "version": fake.version, "loads": [rank]})

    async def chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def tokenize(request: Request) -> Response:
        body = await request.json()
        if ("prompt" in body) == ("messages" in body):
            return _refused("Exactly one of 'prompt' or 'messages' must be provided.", 400, "Bad Request")
        # What add_generation_prompt says is taken as it is said; without it, messages are rendered as for a chat.
        count = PROMPT_TOKENS - 3 if "prompt" in body or "add_generation_prompt" in body else PROMPT_TOKENS
        return JSONResponse({"tokens": list(range(count)), "count": count, "max_model_len": model.max_window})

    async def greeting(request: Request) -> Response:
        return JSONResponse("SGLang is running")

    async def health(request: Request) -> Response:
        await asyncio.Event().wait()
        return Response()

    async def ready(request: Request) -> Response:
        return Response()

    async def tags(request: Request) -> Response:
        details = {"format": "sglang", "family": model.id, "parameter_size": "unknown"}
        row = {"name": model.id, "model": model.id, "modified_at": "2026-01-01T00:00:00.000Z", "size": 0}
        return JSONResponse({"models": [row | {"digest": OLLAMA_DIGEST, "details": details}]})

    async def missing(request: Request, _: Exception) -> Response:
        return _refused("Not Found", 404, "404") if _keyed(request) else _unauthorized(fake)

    def _keyed(request: Request) -> bool:
        open_path = request.url.path.startswith(("/health", "/ready", "/metrics"))
        return open_path or fake.has_key(fake.headers[-1])

    def guarded(path: str, endpoint: object, *methods: str) -> Route:
        async def answer(request: Request) -> Response:
            made: Response = await endpoint(request) if _keyed(request) else _unauthorized(fake)  # type: ignore[operator]
            return made

        return Route(path, answer, methods=list(methods or ("GET",)))

    return served(
        fake,
        [
            guarded("/", greeting),
            guarded("/v1/models", models),
            guarded("/model_info", info),
            guarded("/v1/loads", loads),
            guarded("/v1/chat/completions", chat, "POST"),
            guarded("/v1/embeddings", embeddings, "POST"),
            guarded("/tokenize", tokenize, "POST"),
            guarded("/v1/tokenize", tokenize, "POST"),
            guarded("/health", health),
            guarded("/health_generate", health),
            guarded("/ready", ready),
            guarded("/api/tags", tags),
        ],
        exception_handlers={404: missing},
    )
