"""Ollama 0.33 (facts/services.md section 1), or 0.24 as it was recorded (tests/recordings/ollama).

``options``: ``api`` "0.24" for that version's lists, which tell neither capabilities nor trained windows, and for its
words of an overflow; ``status`` False for servers before /api/status; ``cloud`` True where it is not switched off;
``parameters``, the Modelfile's parameters as /api/show writes them; ``default_window``, what it allocates by itself.
It counts in ``reloads`` how often a request with another window made it load a model anew.

Omitted: pulling, creating, copying and deleting models, blobs, the Responses and Anthropic routes,
``/api/embeddings``, web search, images of ``/api/generate``, CORS, the wait while a model loads. It never proxies: a
model of another machine whose cloud is not switched off is answered with 502.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    STRUCTURED,
    THOUGHT,
    TOOL,
    WORDS,
    Fake,
    FakeModel,
    called,
    served,
)
from tests.fakes.openai_chat import Dialect, openai_error

SERVER_HEADER = ""
MODELS = 2
LACKS = {
    "busy_count": "it tells nobody what runs or waits",
    "count": "it has no route that counts",
    "loading": "it is up at once; a request waits while its model loads",
    "needs_key": "it has no keys",
    "slots": "OLLAMA_NUM_PARALLEL is told nobody",
    "speed": "told in an answer's own statistics alone",
}
BUSY = "server busy, please try again.  maximum pending requests exceeded"
DIED = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"
NAMES = {"chat": "completion", "embeddings": "embedding", "fim": "insert"}

Handler = Callable[[Request], Awaitable[Response]]
Shape = Callable[[dict[str, object], dict[str, object]], dict[str, object]]


class Runners:
    """Which models are loaded, and with which windows."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.automatic = {model.id for model in fake.models}
        self.leaving: list[FakeModel] = []

    def use(self, model: FakeModel, body: dict[str, object]) -> None:
        """Load a model as a request wants it; another window than the one it has loads it anew."""
        options = body.get("options")
        wanted = options.get("num_ctx") if isinstance(options, dict) else None
        default = int(str(self.fake.options.get("default_window", 8192)))
        stays = wanted == model.window if wanted else model.id in self.automatic
        if model.resident and stays:
            return
        if model.resident:
            self.fake.options["reloads"] = int(str(self.fake.options.get("reloads", 0))) + 1
        self.automatic.discard(model.id)
        if not wanted:
            self.automatic.add(model.id)
        model.window, model.resident = wanted or default, True

    def stop(self, model: FakeModel) -> None:
        """Its runner ends after the answer: /api/ps has it once more."""
        if model.resident:
            model.resident = False
            self.leaving.append(model)


def failed(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status)


def _details(fake: Fake, model: FakeModel) -> dict[str, object]:
    if model.remote:
        return {"parent_model": "", "format": "", "family": "", "families": None, "parameter_size": ""}
    told = {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": f"{model.parameters / 1e9:.1f}B",
        "quantization_level": model.quantization,
    }
    newer = {"context_length": model.max_window, "embedding_length": 3584}
    return told | ({} if fake.options.get("api") == "0.24" else newer)


def _row(fake: Fake, model: FakeModel) -> dict[str, object]:
    told: dict[str, object] = {"name": model.id, "model": model.id}
    if model.remote:
        told |= {"remote_model": model.id.partition(":")[0], "remote_host": "https://cloud.invalid:443"}
    told |= {
        "modified_at": "2026-11-25T09:39:34.464652839Z",
        "size": 235 if model.remote else model.size,
        "digest": model.digest,
        "details": _details(fake, model),
    }
    newer = {"capabilities": [NAMES.get(name, name) for name in model.capabilities]}
    return told | ({} if fake.options.get("api") == "0.24" else newer)


def _overflow(fake: Fake) -> Response:
    """With ``truncate`` false. 0.33 passes on its runner's words, which is a llama-server."""
    window = fake.models[0].window
    if fake.options.get("api") == "0.24":
        return failed("the input length exceeds the context length", 400)
    text = f"request ({window + 1} tokens) exceeds the available context size ({window} tokens), try increasing it"
    return failed(text, 400)


V1 = Dialect(
    reasoning="reasoning",
    unknown_model=lambda fake, name: JSONResponse(openai_error(f"model '{name}' not found", "not_found_error"), 404),
    overflow=lambda fake: JSONResponse(openai_error("the input length exceeds the context length"), 400),
    busy=lambda fake: JSONResponse(openai_error(BUSY, "api_error"), 503),
    error=lambda fake: JSONResponse(openai_error(DIED, "api_error"), 500),
)


def _own_name(host: str) -> bool:
    """Whether a server on loopback answers to this Host header."""
    name = host.rpartition(":")[0].strip("[]") if ":" in host else host
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def app(fake: Fake) -> ASGIApp:
    older = fake.options.get("api") == "0.24"
    fake.version = fake.version or ("0.24.0" if older else "0.33.0")
    for model in fake.models:
        model.id = model.id if ":" in model.id else f"{model.id}:latest"
        model.digest = hashlib.sha256(model.id.encode()).hexdigest()
        model.capabilities = tuple(dict.fromkeys((*model.capabilities, "thinking")))
    runners = Runners(fake)

    def named(name: object, *, embeds: bool = False) -> FakeModel | Response:
        """The model that a request names, or why there is none."""
        local = str(name).endswith(":local")
        plain = str(name).removesuffix(":local")
        model = fake.model(plain) or fake.model(f"{plain}:latest")
        if model is None or (local and model.remote):
            unknown = f'model "{name}" not found, try pulling it first' if embeds else f"model '{name}' not found"
            return failed(unknown, 404)
        if model.remote and fake.options.get("cloud"):
            return failed("this fake asks no other machine", 502)
        if model.remote:
            return failed("ollama cloud is disabled: remote model is unavailable", 403)
        return model

    def get(path: str, answer: Callable[[], object]) -> Route:
        async def told(request: Request) -> Response:
            said = answer()
            return PlainTextResponse(said) if isinstance(said, str) else JSONResponse(said)

        return Route(path, guard(told), methods=["GET", "HEAD"])

    def guard(handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            return await handler(request) if _own_name(request.headers.get("host", "")) else Response(status_code=403)

        return guarded

    def running() -> dict[str, object]:
        shown = [model for model in fake.models if model.resident] + runners.leaving
        runners.leaving = []
        expires = {"expires_at": "2026-11-25T09:44:35.763639487Z"}
        rows = [_row(fake, m) | expires | {"size_vram": 0, "context_length": m.window} for m in shown]
        return {"models": [{k: v for k, v in row.items() if k != "capabilities"} for row in rows]}

    async def show(request: Request) -> Response:
        model = named((await request.json()).get("model"))
        if isinstance(model, Response):
            return model
        info = {"general.architecture": model.family, f"{model.family}.context_length": model.max_window}
        return JSONResponse({
            "modelfile": f"FROM /root/.ollama/models/blobs/sha256-{model.digest}\n",
            "parameters": fake.options.get("parameters", ""),
            "template": "{{ .Prompt }}",
            "details": _details(fake, model),
            "model_info": info,
            "capabilities": [NAMES.get(name, name) for name in model.capabilities],
            "modified_at": "2026-11-25T09:39:34.464652839Z",
        })  # fmt: skip

    async def generate(request: Request) -> Response:
        """Without a prompt: a load, or an unload; with one, an answer, or a text that is gone on with or filled in."""
        body = await request.json()
        fake.seen.append(body)
        fault = fake.take_fault()
        if (refused := await _refusal(fake, body, fault)) is not None:
            return refused
        model = named(body.get("model"))
        if isinstance(model, Response):
            return model
        if not body.get("prompt"):
            return JSONResponse({"model": body["model"], "response": "", **_loaded(runners, model, body)})
        if body.get("suffix") and "fim" not in model.capabilities:
            return failed(f"registry.ollama.ai/library/{model.id} does not support insert", 400)
        if body.get("raw") and any(body.get(key) for key in ("template", "system", "context")):
            return failed("raw mode does not support template, system, or context", 400)
        if body.get("think") and "thinking" not in model.capabilities:
            return failed(f'"{model.id}" does not support thinking', 400)
        runners.use(model, body)
        if body.get("stream", True):
            return StreamingResponse(_lines(fake, body, fault, _generated), media_type="application/x-ndjson")
        return JSONResponse(_generated(_whole(body), body))

    async def chat(request: Request) -> Response:
        body = await request.json()
        fake.seen.append(body)
        fault = fake.take_fault()
        if (refused := await _refusal(fake, body, fault)) is not None:
            return refused
        model = named(body.get("model"))
        if isinstance(model, Response):
            return model
        if not body.get("messages"):
            whole = {"message": {"role": "assistant", "content": ""}, **_loaded(runners, model, body)}
            return JSONResponse({"model": body["model"], **whole})
        if body.get("think") and "thinking" not in model.capabilities:
            return failed(f'"{model.id}" does not support thinking', 400)
        if body.get("tools") and "tools" not in model.capabilities:
            return failed(f"registry.ollama.ai/library/{model.id} does not support tools", 400)
        runners.use(model, body)
        if body.get("stream", True):
            return StreamingResponse(_lines(fake, body, fault), media_type="application/x-ndjson")
        return JSONResponse(_whole(body))

    async def embed(request: Request) -> Response:
        body = await request.json()
        model = named(body.get("model"), embeds=True)
        if isinstance(model, Response):
            return model
        runners.use(model, body)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        made = [[float(len(text)), 0.5, -1.0] for text in texts]
        return JSONResponse({"model": body["model"], "embeddings": made, "prompt_eval_count": 3})

    async def v1_chat(request: Request) -> Response:
        return await openai_chat.chat(request, fake, V1)

    async def v1_embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, V1)

    async def missing(request: Request, _: Exception) -> Response:
        return PlainTextResponse("404 page not found", 404)

    async def wrong_method(request: Request, _: Exception) -> Response:
        return PlainTextResponse("405 method not allowed", 405)

    def v1_models() -> dict[str, object]:
        rows = [{"id": m.id, "object": "model", "created": 1764000000, "owned_by": "library"} for m in fake.models]
        return {"object": "list", "data": rows or None}

    cloud = bool(fake.options.get("cloud"))
    status = {"cloud": {"disabled": not cloud, "source": "none" if cloud else "env"}}
    return served(
        fake,
        [
            get("/", lambda: "Ollama is running"),
            get("/api/version", lambda: {"version": fake.version}),
            *([get("/api/status", lambda: status)] if fake.options.get("status", True) else []),
            get("/api/tags", lambda: {"models": [_row(fake, model) for model in fake.models]}),
            get("/api/ps", running),
            get("/v1/models", v1_models),
            Route("/api/show", guard(show), methods=["POST"]),
            Route("/api/generate", guard(generate), methods=["POST"]),
            Route("/api/chat", guard(chat), methods=["POST"]),
            Route("/api/embed", guard(embed), methods=["POST"]),
            Route("/v1/chat/completions", guard(v1_chat), methods=["POST"]),
            Route("/v1/embeddings", guard(v1_embeddings), methods=["POST"]),
        ],
        exception_handlers={404: missing, 405: wrong_method},
    )


def _loaded(runners: Runners, model: FakeModel, body: dict[str, object]) -> dict[str, object]:
    unloads = body.get("keep_alive") == 0
    runners.stop(model) if unloads else runners.use(model, body)
    return {"created_at": "2026-11-25T09:39:34Z", "done": True, "done_reason": "unload" if unloads else "load"}


async def _refusal(fake: Fake, body: dict[str, object], fault: str) -> Response | None:
    match fault:
        case "busy":
            return failed(BUSY, 503)
        case "error":
            return failed(DIED, 500)
        case "overflow" if body.get("truncate") is False:
            return _overflow(fake)
        case "malformed":
            return Response(b"\x00\xffnot json\n", media_type="application/x-ndjson")
        case "html":
            return Response("<html>app</html>", media_type="text/html")
        case "empty_200":
            return Response(b"", media_type="application/x-ndjson")
        case "hang":
            await asyncio.Event().wait()
        case _:
            pass
    return None


def _messages(body: dict[str, object]) -> list[dict[str, object]]:
    """The pieces of an answer. A model that can think does so unless it is told not to."""
    if body.get("tools"):
        functions = [
            {"index": n, "name": TOOL, "arguments": json.loads(arguments)} for n, arguments in enumerate(called(body))
        ]
        return [{"content": "", "tool_calls": [{"id": f"call_ntz96zo{f['index']}", "function": f} for f in functions]}]
    if body.get("format"):
        return [{"content": STRUCTURED}]
    thoughts = () if body.get("think") is False or body.get("raw") or body.get("suffix") else THOUGHT
    return [*({"content": "", "thinking": thought} for thought in thoughts), *({"content": word} for word in WORDS)]


def _end(body: dict[str, object]) -> dict[str, object]:
    return {
        "model": body["model"],
        "created_at": "2026-11-25T09:39:36.891549737Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 1099640881,
        "load_duration": 411895071,
        "prompt_eval_count": PROMPT_TOKENS,
        "prompt_eval_duration": 551020590,
        "eval_count": ANSWER_TOKENS,
        "eval_duration": 130926021,
    }


def _generated(line: dict[str, object], body: dict[str, object]) -> dict[str, object]:
    """A line of ``/api/chat`` as ``/api/generate`` has it; the tokens so far come last, but not of raw text."""
    said = {key: value for key, value in line.items() if key not in ("message", "done")}
    message = line["message"]
    assert isinstance(message, dict)
    told = {"response": message["content"]} | ({"thinking": message["thinking"]} if message.get("thinking") else {})
    tokens = {"context": [1, 2, 3]} if line["done"] and not body.get("raw") else {}
    return {
        "model": said.pop("model"),
        "created_at": said.pop("created_at"),
        **told,
        "done": line["done"],
        **said,
    } | tokens


def _as_it_is(line: dict[str, object], body: dict[str, object]) -> dict[str, object]:
    return line


def _whole(body: dict[str, object]) -> dict[str, object]:
    pieces = _messages(body)
    message: dict[str, object] = {"role": "assistant", "content": "".join(str(piece["content"]) for piece in pieces)}
    if thought := "".join(str(piece.get("thinking", "")) for piece in pieces):
        message["thinking"] = thought
    if "tool_calls" in pieces[0]:
        message["tool_calls"] = pieces[0]["tool_calls"]
    return _end(body) | {"message": message}


async def _lines(fake: Fake, body: dict[str, object], fault: str, shape: Shape = _as_it_is) -> AsyncIterator[bytes]:
    def line(value: dict[str, object]) -> bytes:
        return json.dumps(shape(value, body) if "message" in value else value).encode() + b"\n"

    words = 0
    try:
        if fault == "drop_first":
            raise ConnectionResetError
        for piece in _messages(body):
            message = {"role": "assistant", **piece}
            yield line(
                {"model": body["model"], "created_at": "2026-11-25T09:39:36Z", "message": message, "done": False}
            )
            words += bool(piece["content"])
            if words == 2 and fault == "drop":
                raise ConnectionResetError
            if words == 2 and fault == "error_200":
                yield line({"error": DIED})
                return
            if words == 2 and fault == "stall":
                await asyncio.Event().wait()
        yield line(_end(body))
    finally:
        fake.closed.set()
