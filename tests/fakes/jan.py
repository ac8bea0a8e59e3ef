"""Jan's proxy (facts/services.md section 3), with one llama-server behind it for each model.

``options``: ``prefix`` is its path prefix (``/v1``), which is cut off where a path has it; ``trusted`` is a Host name
that it takes besides its own.

Omitted: the responses and completions routes, CORS, MLX models, the files of its page, what remote providers answer.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import PROMPT_TOKENS, Fake, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "loading": "it lists a model when it is loaded",
    "window": "it lists ids alone",
    "max_window": "it lists ids alone",
    "size": "it lists ids alone",
    "quantization": "it lists ids alone",
    "capabilities": "it lists ids alone",
    "digest": "it lists ids alone",
    "slots": "it does not tell",
    "busy_count": "it does not tell",
    "speed": "it does not tell",
    "busy": "a request waits",
    "overflow_counts": "the window is not known before",
    "load": "models are started in its app",
    "unload": "models are stopped in its app",
}
OPEN = ("/", "/openapi.json", "/favicon.ico")
TRUSTED = ("localhost", "127.0.0.1", "0.0.0.0", "host.docker.internal")
PAGE = '<html><head><title>API Docs</title></head><body><script>SwaggerUIBundle({url: "/openapi.json"})</script></body>'


def _loading(fake: Fake) -> Response:
    error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
    return JSONResponse({"error": error}, 503)


DIALECT = Dialect(
    key_headers=("x-api-key",),
    overflow=lambda fake: JSONResponse(openai_chat.llama_overflow(fake), 400),
    loading=_loading,
    error=lambda fake: PlainTextResponse("Proxy request to model failed: connection closed before message", 502),
    unauthorized=lambda fake: PlainTextResponse("Invalid or missing authorization token", 401),
)


def app(fake: Fake) -> ASGIApp:
    async def forwarded(request: Request, path: str) -> Response:
        body = await request.json()
        if not isinstance(body.get("model"), str):
            return PlainTextResponse("Request body must contain a 'model' field", 400)
        if not fake.models:
            return PlainTextResponse("No models are available", 503)
        if fake.model(body["model"]) is None:
            return PlainTextResponse(f"No running session found for model '{body['model']}'", 404)
        if path == "/embeddings":
            answer = await openai_chat.embeddings(request, fake, DIALECT)
        elif path == "/messages/count_tokens":
            fake.seen.append(body)
            answer = JSONResponse({"input_tokens": PROMPT_TOKENS})
        else:
            answer = await openai_chat.chat(request, fake, DIALECT)
        answer.headers["Server"] = "llama.cpp"  # the headers of the server behind it pass through
        return answer

    def listing() -> Response:
        rows = [
            {"id": m.id, "object": "model", "created": 1, "owned_by": "remote" if m.remote else "llama.cpp"}
            for m in fake.models
        ]
        return JSONResponse({"object": "list", "data": rows})

    def refused(path: str) -> Response | None:
        headers = fake.headers[-1]
        host = headers.get("host", "").rsplit(":", 1)[0]
        if path in OPEN:
            return None
        if host not in (*TRUSTED, str(fake.options.get("trusted"))):
            return PlainTextResponse("Invalid host header", 403)
        return None if fake.has_key(headers, "x-api-key") else DIALECT.unauthorized(fake)

    async def proxy(request: Request) -> Response:
        path = request.url.path.removeprefix(str(fake.options.get("prefix", "/v1"))) or "/"
        if (no := refused(path)) is not None:
            return no
        match (request.method, path):
            case ("GET", "/"):
                return HTMLResponse(PAGE)
            case ("GET", "/openapi.json"):
                return JSONResponse({"openapi": "3.0.0", "info": {"title": "👋Jan API", "version": "0.3.14"}})
            case ("GET", "/models"):
                return listing()
            case ("POST", "/chat/completions" | "/embeddings" | "/messages/count_tokens"):
                return await forwarded(request, path)
            case _:
                return PlainTextResponse("Not Found", 404)

    return served(fake, [Route("/{path:path}", proxy, methods=["GET", "POST"])])
