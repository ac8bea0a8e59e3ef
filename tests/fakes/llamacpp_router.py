"""llama.cpp's ``llama-server`` as a router of models (facts/services.md section 7, backends.md 3.2; recorded, b11669).

Each model is loaded into a child when it is first asked for, and the one that was used longest ago makes room. A load
is done when the model list has been asked for twice. ``options``: ``max_instances`` (4), ``asleep`` and ``broken``,
sets of ids that sleep and whose children end with exit code 1, and ``rows``, fields for the status of a model by id.

Omitted: downloads and deletions over ``/models``, and what ``llamacpp`` omits.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.fakes import anthropic_chat, llamacpp, openai_chat
from tests.fakes.base import PROMPT_TOKENS, Fake, FakeModel, served
from tests.fakes.llamacpp import DIALECT, guard, refused

KIND = "llamacpp"
MODELS = 2
SERVER_HEADER = "llama.cpp"
LACKS = {
    "busy": "more requests than slots wait; it refuses none",
    "busy_count": "only each child has slots and gauges, for those who name it",
    "speed": "only each child has slots and gauges, for those who name it",
    "digest": "no digests over HTTP",
    "loading": "the router is up at once; a request to a model that is loading waits",
    "remote": "it proxies to nobody",
    "slots": "only each child has slots",
}
LOOKS = 2  # of the model list, until a load is done


class Router:
    """The router's children. A model that is resident has one."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.loading: dict[str, int] = {}
        self.failed: set[str] = set()
        self.used: list[str] = [model.id for model in fake.models if model.resident]
        self.feeds: set[asyncio.Queue[bytes]] = set()

    def named(self, option: str) -> set[str]:
        found = self.fake.options.get(option, ())
        return set(found)  # type: ignore[call-overload, no-any-return]

    def tell(self, model: FakeModel, event: str, **data: object) -> None:
        told = json.dumps({"model": model.id, "event": event, "data": data})
        for feed in self.feeds:
            feed.put_nowait(f"data: {told}\n\n".encode())

    def start(self, model: FakeModel) -> None:
        most = int(str(self.fake.options.get("max_instances", 4)))
        running = [m for m in self.fake.models if m.resident]
        if len(running) >= most:
            oldest = min(running, key=lambda m: self.used.index(m.id))
            self.stop(oldest)
        self.failed.discard(model.id)
        self.loading[model.id] = LOOKS
        self.tell(model, "model_status", status="loading")
        self.tell(model, "status_change", status="loading", progress={"current": "text_model", "value": 0.0})

    def finish(self, model: FakeModel) -> None:
        self.loading.pop(model.id, None)
        if model.id in self.named("broken"):
            self.failed.add(model.id)
            self.tell(model, "status_change", status="unloaded", exit_code=1)
            return
        self.use(model)
        self.tell(model, "status_change", status="loaded", info=llamacpp.row(model))

    def use(self, model: FakeModel) -> None:
        model.resident = True
        self.used = [name for name in self.used if name != model.id] + [model.id]

    def stop(self, model: FakeModel) -> None:
        model.resident = False
        self.tell(model, "status_change", status="unloaded", exit_code=0)

    def status(self, model: FakeModel) -> dict[str, object]:
        args = ["/usr/bin/llama-server", "--port", "33903", "--alias", model.id, "--ctx-size", str(model.window)]
        value, more = "unloaded", {}
        if model.id in self.loading:
            value, more = "loading", {"progress": {"stages": ["text_model"], "current": "text_model", "value": 0.5}}
        elif model.resident:
            value = "sleeping" if model.id in self.named("asleep") else "loaded"
        elif model.id in self.failed:
            more = {"exit_code": 1, "failed": True}
        rows = self.fake.options.get("rows", {})
        return {"value": value, "args": args, "preset": f"[{model.id}]\n", **more, **rows.get(model.id, {})}  # type: ignore[attr-defined]

    def row(self, model: FakeModel) -> dict[str, object]:
        made = llamacpp.row(model) | {"aliases": [], "status": self.status(model), "source": "preset"}
        if not model.resident:
            del made["meta"]
        return made | {"can_remove": False, "context_length": model.max_window}

    def look(self) -> None:
        """Time goes by with every look at the list."""
        for name in list(self.loading):
            self.loading[name] -= 1
            model = self.fake.model(name)
            if self.loading[name] <= 0 and model is not None:
                self.finish(model)

    def child(self, name: object, *, autoload: bool) -> FakeModel | Response:
        """The model that a request goes to, loaded now, or why it goes to none."""
        if not name:
            return refused("model name is missing from the request")
        model = self.fake.model(name)
        if model is None:
            return refused(f"model '{name}' not found")
        if not model.resident and not autoload:
            return refused("model is not loaded")
        if not model.resident:
            self.start(model)
            self.finish(model)
            if not model.resident:
                return refused(f"model name={name} failed to load", "server_error", 500)
        return model


def app(fake: Fake) -> ASGIApp:
    fake.version = fake.version or llamacpp.BUILD
    router = Router(fake)

    async def models(request: Request) -> Response:
        answer = {"data": [router.row(model) for model in fake.models], "object": "list"}
        router.look()
        return JSONResponse(answer)

    async def change(request: Request) -> Response:
        model = fake.model((await request.json()).get("model"))
        if model is None:
            return llamacpp.missing()
        starts = request.url.path.endswith("/load")
        running = model.resident or model.id in router.loading
        if starts == running:
            return refused(f"model is {'already' if running else 'not'} running")
        router.start(model) if starts else router.stop(model)
        return JSONResponse({"success": True})

    async def feed(request: Request) -> Response:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        router.feeds.add(queue)

        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield await queue.get()
            finally:
                router.feeds.discard(queue)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def of_child(request: Request) -> Response:
        """A GET that names its model, or the router's own properties."""
        name, path = request.query_params.get("model"), request.url.path
        if path == "/props" and not name:
            return JSONResponse({
                "role": "router",
                "max_instances": fake.options.get("max_instances", 4),
                "models_autoload": True,
                "model_alias": "llama-server",
                "model_path": "none",
                "default_generation_settings": {"params": None, "n_ctx": 0},
                "ui_settings": {},
                "build_info": fake.version,
                "cors_proxy_enabled": fake.options.get("cors_proxy", False),
            })  # fmt: skip
        if path == "/tools":
            return llamacpp.tools(fake)
        child = router.child(name, autoload=request.query_params.get("autoload") != "false")
        if isinstance(child, Response):
            return child
        if path == "/slots":
            return llamacpp.slots(fake, child)
        asleep = child.id in router.named("asleep")
        told = llamacpp.props(fake, child) | {"is_sleeping": asleep}
        return llamacpp.metrics(fake) if path == "/metrics" else JSONResponse(told)

    async def to_child(request: Request) -> Response:
        """A POST that names its model: it is loaded, or woken."""
        body = await request.json()
        child = router.child(body.get("model"), autoload=request.query_params.get("autoload") != "false")
        if isinstance(child, Response):
            return child
        router.use(child)
        fake.options["asleep"] = router.named("asleep") - {child.id}
        match request.url.path:
            case "/v1/chat/completions":
                return await openai_chat.chat(request, fake, DIALECT)
            case "/v1/messages":
                return await anthropic_chat.messages(request, fake, DIALECT, lambda _: None)
            case "/v1/embeddings":
                return await openai_chat.embeddings(request, fake, DIALECT)
            case "/tokenize":
                return JSONResponse({"tokens": []})
            case _:
                return JSONResponse({"input_tokens": PROMPT_TOKENS, "object": "response.input_tokens"})

    async def healthy(request: Request) -> Response:
        return llamacpp.health(fake)

    chats = ("/v1/chat/completions", "/v1/chat/completions/input_tokens", "/v1/messages")
    posts = (*chats, "/v1/embeddings", "/tokenize")
    return served(fake, [
        *(Route(path, healthy) for path in ("/health", "/v1/health")),
        *(Route(path, guard(fake, models)) for path in ("/models", "/v1/models")),
        *(Route(path, guard(fake, change), methods=["POST"]) for path in ("/models/load", "/models/unload")),
        Route("/models/sse", guard(fake, feed)),
        *(Route(path, guard(fake, of_child)) for path in ("/props", "/slots", "/metrics", "/tools")),
        *(Route(path, guard(fake, to_child), methods=["POST"]) for path in posts),
        Route("/{path:path}", guard(fake, llamacpp.nowhere), methods=["GET", "POST", "PUT", "DELETE"]),
    ])  # fmt: skip
