"""KoboldCpp 1.11x (facts/services.md section 8), with its emulations of Ollama, llama.cpp, A1111 and ComfyUI.

The first model is loaded; in router mode the others are the configurations of its directory. ``options``: ``admin``
turns ``--admin`` on, ``router`` the router mode, ``websearch`` the web search; ``old`` makes it 1.104, whose ``/props``
names no model and whose token count takes a prompt alone; ``queue`` is how many wait; ``no_llm`` has it serve images
alone; ``linger`` is how many GETs the old process still answers when it starts anew, ``restart`` how many then find
nobody, ``broken`` has it come back without a model; ``ratelimit`` the seconds of ``--ratelimit``.

Omitted: native and Anthropic generation, responses, abort, saved states, image, speech and multiplayer routes, MCP, the
page itself, HTTP/1.0 connections. A failure's 5xx has words of ours: none is recorded.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import openai_chat
from tests.fakes.base import ANSWER_TOKENS, PROMPT_TOKENS, TOOL, WORDS, Fake, FakeModel, called, counted, served
from tests.fakes.openai_chat import Dialect

SERVER_HEADER = "KoboldCppServer 1"
LACKS = {
    "loading": "the port is not open until the model is loaded",
    "max_window": "it tells what it has allocated",
    "size": "the size it tells is made up",
    "quantization": "what it tells is made up",
    "digest": "the digest it tells is made up",
    "slots": "one request at a time, and it always says so",
    "remote": "it proxies to nobody",
    "overflow": "the start of the prompt is cut without a word",
    "unknown_model": "it answers with the model that it has",
    "load": "only with --admin and a directory of configurations",
    "unload": "only with --admin and a directory of configurations",
}
DIGEST = "b5dc5e784f2a3ee1582373093acf69a2f4e2ac1710b253a001712b86a61f88bb"
SIZE = 394998579


def _detail(status: int, kind: str, text: str, **more: str) -> Response:
    return JSONResponse({"detail": {**more, "msg": text, "type": kind}}, status)


def _busy(fake: Fake) -> Response:
    if wait := fake.options.get("ratelimit"):
        text = f"You are sending requests too quickly. Please try again in {wait} seconds."
        return _detail(503, "service_unavailable", text)
    return _detail(503, "service_unavailable", "Server is busy; please try again later.")


def _unauthorized(fake: Fake) -> Response:
    return _detail(401, "unauthorized", "Authentication key is missing or invalid.", error="Unauthorized")


DIALECT = Dialect(
    busy=_busy,
    error=lambda fake: _detail(500, "server_error", "The generation failed."),
    unauthorized=_unauthorized,
)


def _missing(request: Request) -> Response:
    text = "Error: KoboldCpp HTTP Server is running, but this endpoint does not exist. Please check the URL and METHOD."
    return HTMLResponse("" if request.method == "HEAD" else text, 200 if request.method == "HEAD" else 404)


async def _calls(fake: Fake, body: dict[str, object]) -> AsyncIterator[bytes]:
    """A call is made whole first and then sent as if it were streamed; usage is left out."""
    deltas: list[dict[str, object]] = []
    for n, arguments in enumerate(called(body)):
        function = {"name": TOOL, "arguments": ""}
        deltas += [
            {"tool_calls": [{"index": n, "id": f"call_{n + 1}", "type": "function", "function": function}]},
            {"tool_calls": [{"index": n, "function": {"arguments": arguments}}]},
        ]
    for delta in (*deltas, {}):
        row = {"index": 0, "finish_reason": None if delta else "tool_calls", "delta": delta}
        head = {"id": "koboldcpp", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}
        yield b"data: " + json.dumps(head | {"choices": [row]}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
    fake.closed.set()


def _emulated(fake: Fake) -> dict[str, object]:
    """What of others' protocols it answers to a GET, by path."""
    name = _loaded(fake)
    details = {"parent_model": "", "format": "gguf", "family": "koboldcpp", "families": ["koboldcpp"]}
    details |= {"parameter_size": "128M", "quantization_level": "Q4_0"}
    row = {"modified_at": "2024-07-19T15:26:55Z", "expires_at": "2055-06-04T19:06:25Z", "size": SIZE, "size_vram": SIZE}
    row |= {"digest": DIGEST, "details": details}
    tags = {"models": [{"name": name, "model": f"{name}:latest", **row}, {"name": name, "model": name, **row}]}
    system = {"os": "posix", "comfyui_version": "v0.3.4-3-g7126ecf", "python_version": "3.10.12"}
    return {
        "/api/tags": tags,
        "/api/ps": tags,
        "/api/version": {"version": "0.7.0"},
        "/ping": {"status": "healthy"},
        "/system_stats": {"system": system, "devices": [{"name": "koboldcpp", "type": "cuda", "index": 0}]},
        "/object_info": {"KSampler": {}, "CheckpointLoaderSimple": {}},
        "/sdapi/v1/sd-models": [],
        "/sdapi/v1/options": {"samples_format": "png", "sd_model_checkpoint": "inactive"},
        "/sdapi/v1/samplers": [],
        "/speakers_list": ["kobo", "cheery"],
        "/v1/audio/voices": {"status": "ok", "voices": ["kobo", "cheery"]},
    }


def _loaded(fake: Fake) -> str:
    text = not fake.options.get("no_llm")
    return next((model.id for model in fake.models[:1] if model.resident and text), "inactive")


def _own(fake: Fake) -> dict[str, object]:
    """Its own routes of information, by path; none needs the password."""
    model = fake.models[0]
    software = {"name": "KoboldCpp", "version": fake.version, "homepage": "https://github.com/LostRuins/koboldcpp"}
    known = fake.has_key(fake.headers[-1])
    return {
        "/.well-known/serviceinfo": {"version": "0.2", "software": software, "api": {"koboldai": {"rel_url": "/api"}}},
        "/api/extra/version": {
            "result": "KoboldCpp",
            "version": fake.version,
            "protected": bool(fake.key),
            "llm": _loaded(fake) != "inactive",
            "txt2img": bool(fake.options.get("no_llm")),
            "vision": "vision" in model.capabilities,
            "audio": False,
            "transcribe": False,
            "multiplayer": False,
            "websearch": bool(fake.options.get("websearch")),
            "tts": False,
            "embeddings": True,
            "admin": 1 if fake.options.get("admin") else 0,
        },
        "/api/v1/info/version": {"result": "1.2.5"},
        "/api/v1/model": {"result": _loaded(fake) if known else "koboldcpp/protected-model"},
        "/api/v1/config/max_length": {"value": 896},
        "/api/v1/config/max_context_length": {"value": min(4096, model.window)},
        "/api/extra/true_max_context_length": {"value": model.window},
        "/props": _props(fake, model),
        "/api/admin/list_options": [m.id for m in fake.models[1:]] if fake.options.get("admin") and known else [],
    }


def _props(fake: Fake, model: FakeModel) -> dict[str, object]:
    props: dict[str, object] = {
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "id": 0,
        "id_task": -1,
        "total_slots": 1,
        "modalities": {"vision": "vision" in model.capabilities, "audio": False},
        "n_ctx": model.window,
        "default_generation_settings": {"n_ctx": model.window},
    }
    if not fake.options.get("old"):
        props["model_path"] = _loaded(fake)
    if fake.options.get("router"):
        props["role"] = "router"
    return props


def _models(fake: Fake) -> Response:
    row = {"object": "model", "created": 1, "owned_by": "koboldcpp", "status": {"value": "loaded"}, "root": "koboldcpp"}
    rest = [model.id for model in fake.models[1:]] if fake.options.get("router") else []
    return JSONResponse({"object": "list", "data": [{"id": name, **row} for name in (_loaded(fake), *rest)]})


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or "1.115.2"
    # The loaded model has the name of its file in a namespace; the others are files.
    fake.models[0].id = f"koboldcpp/{fake.models[0].id.removeprefix('koboldcpp/')}"
    started, leaving = [time.monotonic() - 1000], list[str]()
    lingering = [int(str(fake.options.get("linger", 0)))]

    def perf() -> Response:
        return JSONResponse(
            {
                "last_process_speed": 812.5,
                "last_eval_speed": fake.speed,
                "last_token_count": ANSWER_TOKENS,
                "last_input_count": PROMPT_TOKENS,
                "total_gens": len(fake.seen),
                "stop_reason": 1,
                "queue": fake.options.get("queue", 0),
                "idle": 0 if fake.busy else 1,
                "uptime": time.monotonic() - started[0],
                "idletime": 12.5,
            }
        )

    def start_anew(filename: str) -> None:
        started[0] += 10  # a younger process
        loads = filename != "unload_model"
        if loads:
            fake.models[0].id = "koboldcpp/" + filename.partition(".")[0]
        fake.models[0].resident = loads and not fake.options.get("broken")
        fake.options["down"] = fake.options.get("restart", 0)

    async def look(request: Request) -> Response:
        path = request.url.path
        if leaving and lingering[0]:
            lingering[0] -= 1  # the old process goes on for a moment
        elif leaving:
            start_anew(leaving.pop())
        if down := int(str(fake.options.get("down", 0))):
            fake.options["down"] = down - 1
            return Response(status_code=503)
        if path == "/api/extra/perf":
            return perf()
        if path in ("/v1/models", "/models"):
            return _models(fake)
        if path == "/slots":
            error = {
                "code": 501,
                "message": "This server does not support slots endpoint.",
                "type": "not_supported_error",
            }
            return JSONResponse({"error": error}, 501)
        if path in ("/", "/api", "/v1"):
            return HTMLResponse("<html><head><title>KoboldAI Lite</title></head></html>")
        found = (_own(fake) | _emulated(fake)).get(path)
        return JSONResponse(found) if found is not None else _missing(request)

    async def count(request: Request) -> Response:
        body = await request.json()
        fake.seen.append(body)
        if fake.options.get("old"):
            return JSONResponse({"value": 1 if not body.get("prompt") else PROMPT_TOKENS, "ids": [1]})
        prompt = body.get("prompt") or "".join(str(row.get("content")) for row in body.get("messages", []))
        tokens = counted(prompt)
        return JSONResponse({"value": tokens, "ids": [1] * tokens, "prompt": prompt})

    async def chat(request: Request) -> Response:
        if not fake.has_key(fake.headers[-1]):
            return _unauthorized(fake)
        body = await request.json()
        if body.get("tools") and body.get("stream") and not fake.fault:
            fake.seen.append(body)
            return StreamingResponse(_calls(fake, body), media_type="text/event-stream")
        return await openai_chat.chat(request, fake, DIALECT)

    async def reload(request: Request) -> Response:
        body = await request.json()
        fake.seen.append(body)
        known = fake.options.get("admin") and fake.has_key(fake.headers[-1])
        names = [model.id for model in fake.models[1:]]
        if not known or body["filename"] not in ("unload_model", *names):
            return JSONResponse({"success": False})
        leaving.append(str(body["filename"]))
        return JSONResponse({"success": True})

    def keyed(answer: Callable[[dict[str, object]], object]) -> Callable[[Request], object]:
        async def handler(request: Request) -> Response:
            return JSONResponse(answer(await request.json())) if fake.has_key(fake.headers[-1]) else _unauthorized(fake)

        return handler

    async def embeddings(request: Request) -> Response:
        return await openai_chat.embeddings(request, fake, DIALECT)

    said = {"message": {"role": "assistant", "content": "".join(WORDS)}, "done": True, "done_reason": "stop"}
    show = {"capabilities": ["completion"], "details": {}, "model_info": {}, "modelfile": "KoboldCpp"}
    return served(
        fake,
        [
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/api/extra/tokencount", count, methods=["POST"]),
            Route("/api/admin/reload_config", reload, methods=["POST"]),
            Route("/api/show", lambda request: JSONResponse(show), methods=["POST"]),
            Route("/api/chat", keyed(lambda body: {"model": body.get("model"), **said}), methods=["POST"]),
            Route("/api/generate", keyed(lambda body: {"response": "".join(WORDS), "done": True}), methods=["POST"]),
            Route("/{path:path}", look),
        ],
    )
