"""llama.cpp's ``llama-server`` with one model, awake or asleep (facts/services.md section 7, backends.md 3.1).

A model that is not resident is asleep; what wakes the real one wakes it here. It was started with ``--metrics`` and
``--embeddings``, which leaves a causal model's chat on. ``options``: ``tools`` for ``--tools all``, ``model_path``,
``cors_proxy``, ``metrics`` False for the default without, and ``messages`` False for builds before /v1/messages.

Omitted: counting in the Anthropic format, the Responses, native completion, rerank, LoRA and slot-saving routes,
resumable streams, ``timings`` and cached tokens in answers, the CORS header, the page at ``/`` (Debian's build has none
either).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import anthropic_chat, openai_chat
from tests.fakes.base import ANSWER_TOKENS, PROMPT_TOKENS, WORDS, Fake, FakeModel, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = "llama.cpp"
LACKS = {
    "busy": "more requests than slots wait; it refuses none",
    "digest": "no digests over HTTP",
    "remote": "it proxies to nobody",
    "unknown_model": "with one model the name of the model is not looked at",
    "unload": "the one model that it was started with stays, or sleeps when it is idle",
}
BUILD = "b11669-Debian"

Handler = Callable[[Request], Awaitable[Response]]


def refused(message: str, kind: str = "invalid_request_error", code: int = 400, **more: object) -> Response:
    return JSONResponse({"error": {"code": code, "message": message, "type": kind, **more}}, code)


def missing() -> Response:
    return refused("File Not Found", "not_found_error", 404)


def loading(fake: Fake) -> Response:
    return refused("Loading model", "unavailable_error", 503)


def unauthorized(fake: Fake) -> Response:
    return refused("Invalid API Key", "authentication_error", 401)


def _overflow(fake: Fake) -> Response:
    window = fake.models[0].window
    text = f"request ({window + 1} tokens) exceeds the available context size ({window} tokens), try increasing it"
    return refused(text, "exceed_context_size_error", n_prompt_tokens=window + 1, n_ctx=window)


DIALECT = Dialect(
    key_headers=("x-api-key",),
    overflow=_overflow,
    error=lambda fake: refused("the backend failed to decode", "server_error", 500),
    unauthorized=unauthorized,
    loading=loading,
)


def row(model: FakeModel) -> dict[str, object]:
    """Of the model list, what single servers and a router's children that run both tell."""
    return {
        "id": model.id,
        "aliases": [model.id],
        "tags": [],
        "object": "model",
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "created": 1764000000,
        "owned_by": "llamacpp",
        "meta": {
            "vocab_type": 2,
            "n_vocab": 152064,
            "n_ctx": model.window,
            "n_ctx_train": model.max_window,
            "n_embd": 3584,
            "n_params": model.parameters,
            "size": model.size,
            "ftype": model.quantization,
        },
    }


def props(fake: Fake, model: FakeModel) -> dict[str, object]:
    """``/props`` of a server with one model."""
    tools = "tools" in model.capabilities
    return {
        "default_generation_settings": {"params": {}, "n_ctx": model.window},
        "total_slots": fake.slots,
        "model_alias": model.id,
        "model_ftype": model.quantization,
        "model_path": fake.options.get("model_path", f"/models/{model.id}.gguf"),
        "modalities": {"vision": "vision" in model.capabilities, "video": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": fake.options.get("metrics", True),
        "ui_settings": {},
        "chat_template": "{% for message in messages %}{% endfor %}",
        "chat_template_caps": {"supports_tools": tools, "supports_tool_calls": tools, "supports_system_role": True},
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "build_info": fake.version,
        "is_sleeping": not model.resident,
        "cors_proxy_enabled": fake.options.get("cors_proxy", False),
    }


def metrics(fake: Fake) -> Response:
    """``/metrics``. The gauge of the speed is of the answers that ended since it was read, and 0 without one."""
    answered, fake.options["metered"] = len(fake.seen) - int(str(fake.options.get("metered", 0))), len(fake.seen)
    tokens = ANSWER_TOKENS * len(fake.seen)
    values: Mapping[str, tuple[str, float]] = {
        "tokens_predicted_total": ("counter", tokens),
        "tokens_predicted_seconds_total": ("counter", tokens / fake.speed),
        "predicted_tokens_seconds": ("gauge", fake.speed if answered else 0),
        "requests_processing": ("gauge", fake.busy),
        "requests_deferred": ("gauge", 0),
        "n_tokens_max": ("gauge", 0),
    }
    lines = [f"# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value:g}" for name, (kind, value) in values.items()]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def slots(fake: Fake, model: FakeModel) -> Response:
    """``/slots``, which wakes."""
    model.resident = True
    rows = [
        {"id": n, "n_ctx": model.window, "speculative": False, "is_processing": n < fake.busy}
        for n in range(fake.slots)
    ]
    return JSONResponse(rows)


def tools(fake: Fake) -> Response:
    """``/tools``, refused by default."""
    if not fake.options.get("tools"):
        return JSONResponse({"error": {"message": "this feature is disabled", "type": "feature_disabled"}}, 403)
    return JSONResponse([{"display_name": "Run a command", "tool": "exec_shell_command", "type": "server"}])


def health(fake: Fake) -> Response:
    """Open without the key, and well while busy or asleep."""
    return loading(fake) if fake.fault == "loading" else JSONResponse({"status": "ok"})


def guard(fake: Fake, handler: Handler) -> Handler:
    """While it loads every route says so; every route but ``/health`` wants the key."""

    async def guarded(request: Request) -> Response:
        if fake.fault == "loading":
            return loading(fake)
        return await handler(request) if fake.has_key(fake.headers[-1], "x-api-key") else unauthorized(fake)

    return guarded


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or BUILD
    model = fake.models[0]

    async def models(request: Request) -> Response:
        emulated = {"name": model.id, "model": model.id, "size": "", "digest": "", "capabilities": ["completion"]}
        return JSONResponse({"models": [emulated], "object": "list", "data": [row(model)]})

    async def chat(request: Request) -> Response:
        model.resident = True
        return await openai_chat.chat(request, fake, DIALECT)

    async def messages(request: Request) -> Response:
        """It refuses nothing of a request, and has the words of its own protocol for what it cannot do."""
        model.resident = True
        if fake.options.get("messages") is False:
            return missing()
        return await anthropic_chat.messages(request, fake, DIALECT, lambda _: None)

    async def embeddings(request: Request) -> Response:
        model.resident = True
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def completions(request: Request) -> Response:
        model.resident = True
        return await openai_chat.completions(request, fake, DIALECT)

    async def infill(request: Request) -> Response:
        """As its native completions stream (seen at the package's server, 2026-11)."""
        model.resident = True
        body = await request.json()
        fake.seen.append(body)
        if "fim" not in model.capabilities:
            text = "Infill is not supported by this model: prefix token is missing. "
            return refused(text, "not_supported_error", 501)
        rows = [{"index": 0, "content": word, "tokens": [1], "stop": False, "id_slot": -1} for word in WORDS]
        end = {"index": 0, "content": "", "tokens": [], "stop": True, "stop_type": "limit", "model": model.id,
               "tokens_predicted": ANSWER_TOKENS, "tokens_evaluated": PROMPT_TOKENS}  # fmt: skip
        data = "".join(f"data: {json.dumps(row)}\n\n" for row in (*rows, end))
        return Response(data, media_type="text/event-stream")

    async def count(request: Request) -> Response:
        model.resident = True
        return JSONResponse({"input_tokens": PROMPT_TOKENS, "object": "response.input_tokens"})

    async def tokenize(request: Request) -> Response:
        model.resident = True
        return JSONResponse({"tokens": []})

    async def one(request: Request) -> Response:
        match request.url.path:
            case "/props":
                return JSONResponse(props(fake, model))
            case "/slots":
                return slots(fake, model)
            case "/metrics" if fake.options.get("metrics", True):
                return metrics(fake)
            case "/metrics":
                text = "This server does not support metrics endpoint. Start it with `--metrics`"
                return refused(text, "not_supported_error", 501)
            case _:
                return tools(fake)

    async def healthy(request: Request) -> Response:
        return health(fake)

    return served(fake, [
        *(Route(path, healthy) for path in ("/health", "/v1/health")),
        *(Route(path, guard(fake, models)) for path in ("/models", "/v1/models")),
        *(Route(path, guard(fake, one)) for path in ("/props", "/slots", "/metrics", "/tools")),
        Route("/tokenize", guard(fake, tokenize), methods=["POST"]),
        Route("/v1/chat/completions", guard(fake, chat), methods=["POST"]),
        Route("/v1/chat/completions/input_tokens", guard(fake, count), methods=["POST"]),
        Route("/v1/messages", guard(fake, messages), methods=["POST"]),
        Route("/v1/embeddings", guard(fake, embeddings), methods=["POST"]),
        Route("/v1/completions", guard(fake, completions), methods=["POST"]),
        Route("/infill", guard(fake, infill), methods=["POST"]),
        Route("/{path:path}", guard(fake, nowhere), methods=["GET", "POST", "PUT", "DELETE"]),
    ])  # fmt: skip


async def nowhere(request: Request) -> Response:
    """A wrong method is a missing file too."""
    return missing()
