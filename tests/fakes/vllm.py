"""vLLM 0.33 (facts/services.md section 6; recorded from 0.32: tests/recordings/vllm).

``options``: ``adapter`` is the id of a LoRA row; ``asleep`` and ``dead`` are states of the engine, which the front
end's list does not show; ``no_tool_parser``: it was started without a parser of tool calls;
``responses`` False: a build before that route.

Of /v1/messages it knows what 0.32 knows (its source); ``options`` ``blocks`` are the kinds of blocks that it knows, for
older ones.

Omitted: the Cohere and pooling routes, all of Responses that ``responses_chat`` names, counting in Anthropic's format,
streamed usage statistics, several engines, and all but three of the metrics. One process here both generates and
embeds: the real one has the paths of either.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import anthropic_chat, openai_chat, responses_chat
from tests.fakes.base import PROMPT_TOKENS, Fake, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = "uvicorn"
BLOCKS = (
    "text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking", "tool_addition",
    "tool_removal",
)  # fmt: skip
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
    "slots": "no reply has them",
    "speed": "it counts tokens and tells no rate",
    "overflow_prompt": "it stops counting one after the window",
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
    return _refused("Service Unavailable", 503, f"{text} instance.")


DIALECT = Dialect(
    reasoning="reasoning",
    unknown_model=_unknown,
    overflow=_overflow,
    busy=_busy,
    error=lambda fake: _refused(
        "InternalServerError", 500, "EngineCore encountered an issue. See stack trace (above) for the root cause."
    ),
    unauthorized=lambda fake: JSONResponse({"error": "Unauthorized"}, 401),
)


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "0.33.0"

    async def models(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        model, adapter = fake.models[0], fake.options.get("adapter")
        common = {"object": "model", "created": 1764000000, "owned_by": "vllm", "permission": []}
        own = {"id": model.id, "root": f"/models/{model.id}", "parent": None, "max_model_len": model.window}
        lora = {"id": adapter, "root": f"/loras/{adapter}", "parent": model.id, "max_model_len": None}
        return JSONResponse({"object": "list", "data": [row | common for row in ([own, lora] if adapter else [own])]})

    async def chat(request: Request) -> Response:
        body = await request.json()
        if body.get("tools") and fake.options.get("no_tool_parser"):
            text = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return _refused("BadRequestError", 400, text)
        return await openai_chat.chat(request, fake, DIALECT)

    def strict(body: dict[str, object]) -> Response | None:
        """What its types do not allow."""
        rows = body["messages"] if isinstance(body.get("messages"), list) else []
        assert isinstance(rows, list)
        blocks = [b for row in rows for b in (row["content"] if isinstance(row["content"], list) else ())]
        known = fake.options.get("blocks", BLOCKS)
        tools = body.get("tools") or []
        assert isinstance(known, tuple)
        assert isinstance(tools, list)
        bad = [b["type"] for b in blocks if b["type"] not in known] + [t for t in tools if "input_schema" not in t]
        if "max_tokens" in body and not bad:
            return None
        return _refused("Bad Request", 400, "1 validation error: {'type': 'missing', 'loc': ('body', ...)}")

    async def messages(request: Request) -> Response:
        answer = await anthropic_chat.messages(request, fake, DIALECT, strict)
        return anthropic_chat.own_errors(answer) if answer.status_code not in (200, 401) else answer

    async def responses(request: Request) -> Response:
        return await responses_chat.responses(request, fake, DIALECT)

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    async def completions(request: Request) -> Response:
        return await openai_chat.completions(request, fake, DIALECT)

    async def rerank(request: Request) -> Response:
        return await openai_chat.rerank(request, fake, DIALECT)

    async def tokenize(request: Request) -> Response:
        count = PROMPT_TOKENS if "messages" in await request.json() else PROMPT_TOKENS - 3
        window = fake.models[0].window
        tokens = list(range(count))
        return JSONResponse({"count": count, "max_model_len": window, "tokens": tokens, "token_strs": None})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": fake.version})

    async def health(request: Request) -> Response:
        return Response(status_code=503 if fake.options.get("dead") else 200)

    async def load(request: Request) -> Response:
        return JSONResponse({"server_load": 0})

    async def metrics(request: Request) -> Response:
        label = f'engine="0",model_name="{fake.models[0].id}"'
        asleep = bool(fake.options.get("asleep"))
        lines = [
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{label}}} {fake.busy}.0",
            f"vllm:num_requests_waiting{{{label}}} 2.0",
            f'vllm:num_requests_waiting_by_reason{{{label},reason="capacity"}} 7.0',
            f'vllm:engine_sleep_state{{{label},sleep_state="awake"}} {float(not asleep)}',
            f'vllm:engine_sleep_state{{{label},sleep_state="weights_offloaded"}} {float(asleep)}',
            f'vllm:engine_sleep_state{{{label},sleep_state="discard_all"}} 0.0',
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def missing(request: Request, _: Exception) -> Response:
        if request.url.path.startswith("/v1") and not fake.has_key(fake.headers[-1]):
            return DIALECT.unauthorized(fake)
        return JSONResponse({"detail": "Not Found"}, 404)

    async def not_allowed(request: Request, _: Exception) -> Response:
        return JSONResponse({"detail": "Method Not Allowed"}, 405)

    return served(
        fake,
        [
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/messages", messages, methods=["POST"]),
            *([Route("/v1/responses", responses, methods=["POST"])] if fake.options.get("responses", True) else []),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/rerank", rerank, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/version", version),
            Route("/health", health),
            Route("/ping", health),
            Route("/load", load),
            Route("/metrics", metrics),
        ],
        exception_handlers={404: missing, 405: not_allowed},
    )
