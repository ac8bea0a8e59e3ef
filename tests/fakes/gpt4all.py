"""GPT4All 3.10 (facts/services.md section 9; checks and texts as read in its source, nothing recorded).

``options["off"]``: the switch in the application's settings is off. Omitted: ``/v1/completions``, references to the
application's own documents, limits of numbers, and that requests wait for each other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import Fake, served
from tests.fakes.openai_chat import Dialect, openai_error

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "loading": "it loads inside the request",
    "needs_key": "it has no keys",
    "window": "no reply has it",
    "max_window": "no reply has it",
    "residency": "no reply tells which model is loaded",
    "size": "no reply has it",
    "quantization": "no reply has it",
    "capabilities": "it takes no tools from anybody",
    "digest": "no digests over HTTP",
    "slots": "it is one, which no reply tells",
    "busy_count": "no reply has it",
    "speed": "no reply has it",
    "remote": "the list has installed models alone",
    "stream": "'stream' is refused",
    "tools": "'tools' is refused",
    "reasoning": "reasoning is not told apart",
    "structured": "'response_format' is refused",
    "embeddings": "it has no such path",
    "count": "it has no such path",
    "overflow": "an empty 500, as when a model cannot be loaded",
    "busy": "requests wait without a word",
    "unknown_model": "its default model answers for any other",
    "error_under_200": "it does not stream",
    "cancel": "it does not stream, and nobody knows whether it stops",
    "load": "only a request loads a model",
    "unload": "only a request for another model unloads one",
}
TAKEN = {"model", "messages", "max_tokens", "n", "temperature", "top_p", "min_p", "user", "service_tier"}
# Refused by name when they are given; "stream" only when it is true.
REFUSED = ("seed", "stop", "stream_options", "logit_bias", "top_logprobs", "response_format", "tools", "tool_choice")

DIALECT = Dialect(owner="humanity", error=lambda fake: Response(status_code=500))


def _invalid(text: str) -> Response:
    return JSONResponse(openai_error(text), 400)


def refusal(body: dict[str, object]) -> str:
    """The first thing that is wrong with a request, or ""."""
    for key in ("frequency_penalty", "presence_penalty"):
        if isinstance(body.get(key), float) or body.get(key):
            return f"'{key}' is not supported"
    named = next((key for key in REFUSED if body.get(key) is not None), "stream" if body.get("stream") else "")
    if named:
        return f"'{named}' is not supported"
    if not isinstance(body.get("model"), str):
        return "you must provide a model parameter"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return "Invalid type for 'messages': expected a non-empty array of objects, but got 'null' instead."
    for place, row in enumerate(messages):
        if row.get("role") not in ("system", "user", "assistant"):
            return (
                f"Invalid 'messages[{place}].role': expected one of 'system', 'assistant', or 'user',"
                f" but got '{row.get('role')}' instead."
            )
        if not isinstance(row.get("content"), str):
            return f"'{row.get('content')}' is not of type 'string' - 'content'"
        if more := set(row) - {"role", "content"}:
            return f"Invalid 'messages[{place}]': unrecognized key: '{min(more)}'"
    unknown = sorted(set(body) - TAKEN - {"stream", "logprobs", "parallel_tool_calls"} - set(REFUSED))
    return f"Unrecognized request argument supplied: {unknown[0]}" if unknown else ""


def app(fake: Fake) -> ASGIApp:
    def row(name: str) -> dict[str, object]:
        allowed = {"id": "placeholder", "object": "model_permission", "created": 0, "allow_view": True}
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "humanity",
            "root": name,
            "parent": None,
            "permissions": [allowed],
        }

    def off() -> bool:
        return bool(fake.options.get("off"))

    async def models(request: Request) -> Response:
        if off():
            return Response(status_code=401)
        if request.method == "POST":
            hint = "(HINT: Perhaps you meant to use a different HTTP method?)"
            return JSONResponse(openai_error(f"Not allowed to POST on /v1/models. {hint}"), 405)
        return JSONResponse({"object": "list", "data": [row(model.id) for model in fake.models]})

    async def one(request: Request) -> Response:
        if off():
            return Response(status_code=401)
        found = fake.model(request.path_params["name"])
        return JSONResponse(row(found.id) if found else {})

    async def chat(request: Request) -> Response:
        if off():
            return Response(status_code=401)
        if request.method == "GET":
            return JSONResponse(openai_error("Only POST requests are accepted.", code="method_not_supported"), 405)
        body = await request.json()
        if wrong := refusal(body):
            fake.seen.append(body)
            return _invalid(wrong)
        if fake.fault == "overflow":
            return Response(status_code=500)
        if fake.fault == "drop":
            return StreamingResponse(_cut(), media_type="application/json")
        answering = fake.model(body["model"]) or fake.models[0]
        made = await openai_chat.chat(request, fake, DIALECT)
        if fake.fault:
            return made
        whole = openai_chat.whole(body | {"model": answering.id}, DIALECT)
        return JSONResponse(whole | {"id": "placeholder"})

    return served(
        fake,
        [
            Route("/v1/models", models, methods=["GET", "POST"]),
            Route("/v1/models/{name}", one),
            Route("/v1/chat/completions", chat, methods=["GET", "POST"]),
        ],
    )


async def _cut() -> AsyncIterator[bytes]:
    yield b'{"choices": [{"message": {"content": "def '
    raise ConnectionResetError
