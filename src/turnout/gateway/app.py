"""The HTTP face: every URL and the middleware order on one page. Loopback only until keys exist."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from turnout import __version__
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.errors import UsageError
from turnout.fleet.catalog import Catalog
from turnout.gateway import completions, ollama, responses, side
from turnout.gateway.refusal import HttpError, format_of, refusal
from turnout.gateway.transport import GatheringProtocol
from turnout.guard.listen import listen
from turnout.router import Router
from turnout.types import Health

LOOPBACK = ("127.0.0.1", "::1", "localhost")
ALLOWED_HOSTS = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
# A loopback page, or what is no page of a site at all: an editor's own view, such as vscode-webview://.
_OWN_ORIGIN = re.compile(
    rb"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?|(?!(?:https?|file|ftp|wss?):)[a-z][a-z0-9+.-]*://[!-~]+",
    re.IGNORECASE,
)
_JSON_TYPE = re.compile(rb"application/(?:[\w.-]+\+)?json[ \t]*(?:;.*)?", re.IGNORECASE)


# What is asked of a model, by POST.
CHAT: dict[str, ASGIApp] = {
    "/v1/chat/completions": completions.openai_chat,
    "/v1/completions": completions.openai_text,
    "/v1/embeddings": side.embeddings,
    "/v1/rerank": side.rerank,
    "/v1/messages": completions.anthropic_messages,
    "/v1/responses": responses.ResponsesEndpoint(),
    "/api/chat": ollama.chat,
    "/api/generate": ollama.generate,
    "/api/embed": ollama.embed,
    "/api/embeddings": ollama.embeddings,
    "/api/show": ollama.show,
}


def create_app(router: Router, *, max_body_bytes: int = 32_000_000) -> Gateway:
    """The application over an open Router.

    Args:
        router: routes the requests.
        max_body_bytes: a larger request body is refused with 413.
    """
    app = Gateway(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in CHAT.items()),
            Route("/v1/responses/{id}", responses.kept_response, methods=["GET", "DELETE"]),
            Route("/v1/models", completions.list_models, methods=["GET"]),
            Route("/v1/models/{id:path}", completions.show_model, methods=["GET"]),
            Route("/api/tags", ollama.tags, methods=["GET"]),
            Route("/api/ps", ollama.running, methods=["GET"]),
            Route("/api/version", ollama.version, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/", root, methods=["GET"]),
        ],
        exception_handlers={404: no_endpoint, 405: no_endpoint},
    )
    # A redirect would be followed by some clients without their body.
    app.router.redirect_slashes = False
    app.state.router = router
    app.state.responses = responses.Shelves()
    app.state.max_body_bytes = max_body_bytes
    return app


class Gateway(Starlette):
    """The checks come first; chat goes straight to its endpoint, since routing costs a tenth of a short answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        chat = CHAT.get(scope["path"]) if scope["method"] == "POST" else None
        if error := _foreign(scope["headers"], chat=chat is not None):
            await refusal(error, format_of(scope))(scope, receive, send)
        elif chat is None:
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await chat(scope, receive, send)


async def health(request: Request) -> Response:
    """Alive; says nothing about the servers behind."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def root(request: Request) -> Response:
    """Who this is and what there is; some clients look here before anything else."""
    about = {"name": "turnout", "version": __version__, "endpoints": _endpoints(request.app)}
    return Response(msgspec.json.encode(about), media_type="application/json")


async def no_endpoint(request: Request, error: Exception) -> Response:
    """A path or method that is not served."""
    assert isinstance(error, HTTPException)
    if refused := ollama.managed(request.url.path):
        return refusal(refused, format_of(request.scope))
    path, hint = request.url.path[:200], f"there are: {', '.join(_endpoints(request.app))}"
    said = f"there is no {path}" if error.status_code == 404 else f"{path} does not take {request.method}"
    return refusal(HttpError(error.status_code, said, hint=hint, headers=error.headers), format_of(request.scope))


def _endpoints(app: Starlette) -> list[str]:
    routes = [route for route in app.routes if isinstance(route, Route)]
    return [
        f"{method} {route.path.replace(':path', '')}"
        for route in routes
        for method in sorted(route.methods or ())
        if method != "HEAD"
    ]


def _foreign(headers: Iterable[tuple[bytes, bytes]], *, chat: bool) -> HttpError | None:
    """Why a request is not one of this machine's own programs, or None.

    A foreign Host is what a page in a browser sends after DNS rebinding; a foreign Origin is any other page. A page's
    form can post text without asking first, so where an Origin is, a chat must say that it is JSON.
    """
    hosts, origins, types = [], [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"origin":
            origins.append(value)
        elif name == b"content-type":
            types.append(value)
    if len(hosts) != 1 or _host_name(hosts[0].lower()) not in ALLOWED_HOSTS:
        return HttpError(421, "the Host header is not this gateway's", hint="use http://127.0.0.1 or http://localhost")
    if not all(_OWN_ORIGIN.fullmatch(origin) for origin in origins):
        return HttpError(403, "the request comes from another site's page", hint="call the gateway from this machine")
    if chat and origins and not (len(types) == 1 and _JSON_TYPE.fullmatch(types[0])):
        return HttpError(415, "a page must send a chat as JSON", hint="Content-Type: application/json")
    return None


def _host_name(host: bytes) -> bytes:
    return host[: host.index(b"]") + 1] if host.startswith(b"[") and b"]" in host else host.split(b":", 1)[0]


def serve(loaded: LoadedConfig, host: str | None = None, port: int | None = None) -> None:
    """Run the gateway until a signal ends it.

    Raises:
        UsageError: the address is not loopback.
        ListenError: the port is in use.
    """
    gateway = loaded.config.gateway
    address = host or gateway.host
    if address not in LOOPBACK:
        raise UsageError(f"the gateway listens on loopback only, not on {address}", hint="use --host 127.0.0.1")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(loaded, address, gateway.port if port is None else port))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; it has no build for Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def calm_collector() -> None:
    """Let the garbage collector leave what is there for good alone and look less often: a tenth of a short answer's CPU
    was its looking (`make bench`). For a process that only serves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _serve(loaded: LoadedConfig, host: str, port: int) -> None:
    async with open_router(loaded, watch=True) as router:
        calm_collector()
        app = create_app(router, max_body_bytes=loaded.config.gateway.max_body_mb * 1_000_000)
        async with running(app, host, port) as (server, url):
            sys.stderr.write(f"Turnout listens on {url}\n{_found(router.catalog, loaded.config.discovery.interval)}\n")
            sys.stderr.flush()
            await server


def _found(catalog: Catalog, interval: int) -> str:
    """What there is to route to, or what to do; ``interval`` in milliseconds."""
    serving = catalog.serving
    if serving:
        models = sum(len(status.models) for status in serving)
        names = ", ".join(f"{status.endpoint.name} ({len(status.models)})" for status in serving)
        return f"Found {_counted(len(serving), 'server')} with {_counted(models, 'model')}: {names}"
    loading = [status.endpoint.name for status in catalog.endpoints if status.health is Health.LOADING]
    if loading:
        return f"No model can answer yet; still loading: {', '.join(loading)}"
    return (
        "No server is found yet: start one such as llama-server or Ollama, or name yours in the configuration"
        f" (`turnout config init`). It is looked for every {interval / 1000:g} s and when a request comes."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@asynccontextmanager
async def running(
    app: Starlette, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[tuple[asyncio.Task[None], str]]:
    """Serve ``app``; yields the server's task and its URL once it listens.

    Raises:
        ListenError: it cannot listen there.
    """
    listener = listen(host, port)
    config = uvicorn.Config(
        app,
        http=GatheringProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(0.01)
    try:
        actual = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        yield task, f"http://{shown}:{actual}"
    finally:
        server.should_exit = True
        await task
