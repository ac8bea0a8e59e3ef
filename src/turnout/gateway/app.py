"""The HTTP face: every URL and the middleware order on one page.

A request passes ``auth.Door`` first, whatever it is; ``live.py`` runs all this as a process.
"""

from __future__ import annotations

import asyncio
import difflib
import gc
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from turnout import __version__
from turnout.config import data_dir
from turnout.errors import StoppingError, TurnoutError
from turnout.gateway import completions, ollama, responses, side, tokens
from turnout.gateway.access import AccessLog
from turnout.gateway.auth import OPEN_ROUTES, Door, Meter, RefusalLog
from turnout.gateway.exchange import Exchange, Noted, enter
from turnout.gateway.metrics import UNKNOWN, Metrics
from turnout.gateway.refusal import HttpError, format_of, refusal
from turnout.gateway.transport import GatheringProtocol, Limits, protocol, sweeping
from turnout.guard.handshake import Greeter
from turnout.guard.keys import Keyring, keys_path
from turnout.guard.listen import listen
from turnout.guard.tokens import Tokenring
from turnout.router import Router

DEFAULT_LIMITS = Limits()
PATIENCE_SECONDS = 5.0
LISTED = "`GET /` lists what there is"
TELL_SECONDS = 1.0  # that a request that is ended has to say so
DATE_SECONDS = 1.0  # between two looks at the clock, for the Date header
LOOK_SECONDS = 0.01  # between two looks at whether all have ended

# What is asked of a model, by POST.
CHAT: dict[str, ASGIApp] = {
    "/v1/chat/completions": completions.openai_chat,
    "/v1/completions": completions.openai_text,
    "/v1/embeddings": side.embeddings,
    "/v1/rerank": side.rerank,
    "/v1/messages": completions.anthropic_messages,
    "/v1/messages/count_tokens": side.count_tokens,
    "/v1/responses": responses.ResponsesEndpoint(),
    "/api/chat": ollama.chat,
    "/api/generate": ollama.generate,
    "/api/embed": ollama.embed,
    "/api/embeddings": ollama.embeddings,
    "/api/show": ollama.show,
}


class Shared:
    """What outlives a reload of the configuration: counters, kept answers, and that the process is about to end."""

    def __init__(self) -> None:
        self.meter, self.metrics, self.refusals = Meter(), Metrics(), RefusalLog()
        self.responses = responses.Shelves()
        self.draining = self.ending = False  # nothing new is taken; what runs is cancelled


def create_app(
    router: Router,
    *,
    max_body_bytes: int = 32_000_000,
    patience: float = PATIENCE_SECONDS,
    door: Door | None = None,
    shared: Shared | None = None,
    access: AccessLog | None = None,
) -> Gateway:
    """The application over an open Router.

    Args:
        router: routes the requests.
        max_body_bytes: a larger request body is refused with 413.
        patience: seconds that the status of a stream is held while nothing comes.
        door: who is let in; by default whoever has a key of the data directory, or this machine where it has none.
        shared: what another application of this process counted before.
        access: where each request is written to.
    """
    app = Gateway(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in CHAT.items()),
            Route("/v1/feedback", side.feedback, methods=["POST"]),
            Route("/v1/responses/{id}", responses.kept_response, methods=["GET", "DELETE"]),
            Route("/v1/tokens", tokens.tokens, methods=["GET", "POST"]),
            Route("/v1/tokens/{id}", tokens.token, methods=["DELETE"]),
            Route("/v1/models", completions.list_models, methods=["GET"]),
            Route("/v1/models/{id:path}", completions.show_model, methods=["GET"]),
            Route("/api/tags", ollama.tags, methods=["GET"]),
            Route("/api/ps", ollama.running, methods=["GET"]),
            Route("/api/version", ollama.version, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/", root, methods=["GET"]),
        ],
        exception_handlers={404: no_endpoint, 405: no_endpoint},
    )
    # A redirect would be followed by some clients without their body.
    app.router.redirect_slashes = False
    app.state.router = router
    app.state.max_body_bytes, app.state.patience = max_body_bytes, patience
    app.door = door or Door(Tokenring(Keyring(keys_path(data_dir()))))
    app.shared, app.access = shared or Shared(), access
    app.state.responses = app.shared.responses
    routes = [route for route in app.routes if isinstance(route, Route)]
    app.paths = {r.path: r.path for r in routes} | {r.endpoint: _shown(r) for r in routes if "{" in r.path}
    return app


class Gateway(Starlette):
    """The door comes first; chat goes straight to its endpoint, since routing costs a tenth of a short answer."""

    door: Door
    shared: Shared
    access: AccessLog | None
    paths: Mapping[object, str]
    in_flight = 0
    _idle: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        chat = CHAT.get(scope["path"]) if scope["method"] == "POST" else None
        exchange = Exchange()
        enter(scope, exchange)
        answer = Noted(exchange, send)
        self.in_flight += 1
        self.shared.metrics.in_flight += 1
        try:
            if (error := self._refused(exchange, scope, chat=chat is not None)) is not None:
                await refusal(error, format_of(scope))(scope, receive, answer)
            elif chat is None:
                await super().__call__(scope, receive, answer)
            else:
                scope["app"] = self
                await chat(scope, receive, answer)
        except asyncio.CancelledError:
            if not self.shared.ending:
                raise
            if not exchange.status:
                await refusal(StoppingError(), format_of(scope))(scope, receive, answer)
        finally:
            self._ended(exchange, scope, "" if chat is None else scope["path"])

    def _refused(self, exchange: Exchange, scope: Scope, *, chat: bool) -> TurnoutError | None:
        """Why this request is not served, or None; the one place where that is decided."""
        try:
            self.door.admit(exchange, scope, self.shared.meter, chat=chat)
        except HttpError as error:
            exchange.refused = error.code
            if error.status != 415:
                self.shared.refusals.write(error, exchange, scope, self.state.router.note)
            return error
        if not self.shared.draining or scope["path"] in OPEN_ROUTES:
            return None
        exchange.refused = StoppingError.code
        return StoppingError()

    def _ended(self, exchange: Exchange, scope: Scope, chat: str) -> None:
        shared = self.shared
        for limit in exchange.grant.limits if exchange.grant is not None else ():
            shared.meter.leave(limit)
        path = scope["path"]
        route = chat or self.paths.get(path) or self.paths.get(scope.get("endpoint")) or ollama.managed_at(path)
        route = route or UNKNOWN
        shared.metrics.ended(exchange, route)
        if self.access is not None:
            self.access.write(exchange, scope, route)
        exchange.run = None  # a connection that is kept has its last scope, which must not keep what was asked
        shared.metrics.in_flight -= 1
        self.in_flight -= 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None

    async def idle(self) -> None:
        """Wait until no request runs; new ones must go elsewhere, or be refused."""
        while self.in_flight:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()


async def health(request: Request) -> Response:
    """Alive; says nothing about the servers behind."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def ready(request: Request) -> Response:
    """Whether a request would be let in and find a server that can answer."""
    if request.app.shared.draining:
        state = "stopping"
    elif not request.app.door.keys_readable:
        state = "the keys cannot be read"
    else:
        state = "ready" if request.app.state.router.catalog.serving else "no server can answer"
    status, headers = (200, None) if state == "ready" else (503, {"Retry-After": "5"})
    return Response(msgspec.json.encode({"status": state}), status, headers, media_type="application/json")


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    text, kind = request.app.shared.metrics.text(request.app.state.router)
    return Response(text, headers={"Content-Type": kind})


async def root(request: Request) -> Response:
    """Who this is and what there is; some clients look here before anything else."""
    served = [f"{method} {path}" for path, methods in _endpoints(request.app).items() for method in methods]
    about = {"name": "turnout", "version": __version__, "endpoints": served}
    return Response(msgspec.json.encode(about), media_type="application/json")


async def no_endpoint(request: Request, error: Exception) -> Response:
    """A path or method that is not served."""
    assert isinstance(error, HTTPException)
    asked: str = request.scope["path"]  # not request.url, which raises for a query that is not UTF-8
    if refused := ollama.managed(asked):
        return refusal(refused, format_of(request.scope))
    path = asked[:200]
    if error.status_code == 405:
        allowed = {*(error.headers or {}).get("Allow", "").split(", ")} - {"HEAD"}  # it has no order
        said, hint = f"{path} does not take {request.method}", f"it takes {' and '.join(sorted(allowed))}"
    else:
        near = difflib.get_close_matches(path, _endpoints(request.app), 1)
        said, hint = f"there is no {path}", f"did you mean {near[0]}? `GET /` lists all" if near else LISTED
    return refusal(HttpError(error.status_code, said, hint=hint, headers=error.headers), format_of(request.scope))


def _endpoints(app: Starlette) -> dict[str, list[str]]:
    """Every path with its methods."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    return {_shown(route): sorted((route.methods or set()) - {"HEAD"}) for route in routes}


def _shown(route: Route) -> str:
    return route.path.replace(":path", "")


class _Server(uvicorn.Server):
    """uvicorn's parts without its loop, which looks ten times a second whether it is over, and without its ideas about
    signals: they are the process's, and SIGTERM means more than an end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        config.load()
        self.lifespan = config.lifespan_class(config)
        self.over = asyncio.Event()

    async def run_until_over(self) -> None:
        """Keep the date that answers carry."""
        while not self.over.is_set():
            await self.on_tick(0)
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self.over.wait()

    def greeter(self, tls: ssl.SSLContext, limits: Limits, refused: Callable[[str, str], None]) -> Greeter:
        """What takes connections where there is TLS."""
        kind = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        make = partial(kind, config=self.config, server_state=self.server_state, app_state={})
        return Greeter(tls, limits.head_seconds, make, refused)

    async def close(self, grace: float) -> None:
        """Take no more connections, close those that wait, and give the others ``grace`` seconds to end."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(grace):
                # uvicorn tells nobody that a connection has ended.
                while self.server_state.tasks or self.server_state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()

    async def cancel_running(self) -> None:
        """Cancel every request that runs, and wait a moment for what it says to that."""
        self._cut_off_idlers()
        await asyncio.sleep(0)  # they are told, and end as those whose client left
        if not (tasks := set(self.server_state.tasks)):
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=TELL_SECONDS)
        self._cut_off_idlers()

    def _cut_off_idlers(self) -> None:
        """Who takes nothing of an answer would not take its end either."""
        for connection in cast("list[GatheringProtocol]", list(self.server_state.connections)):
            if connection.flow.write_paused:
                connection.transport.abort()


def calm_collector() -> None:
    """Let the garbage collector leave what is there for good alone and look less often: a tenth of a short answer's CPU
    was its looking (`make bench`). For a process that only serves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@asynccontextmanager
async def running(
    app: ASGIApp,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    limits: Limits = DEFAULT_LIMITS,
    grace: int = 5,
    ending: Callable[[], None] | None = None,
    tls: ssl.SSLContext | None = None,
    refused: Callable[[str, str], None] = lambda _peer, _why: None,
) -> AsyncIterator[tuple[asyncio.Task[None], str]]:
    """Serve ``app``; yields the server's task and its URL once it listens.

    Args:
        app: the application.
        host: an address of this machine.
        port: 0 takes a free one.
        limits: what a client may take before it has asked anything.
        grace: seconds that requests have to end when all is over.
        ending: called when all is over, for an application that answers a request that is then cancelled at once.
        tls: what to listen with, None for plain HTTP.
        refused: told who has no certificate that ``tls`` wants, and why.

    Raises:
        ListenError: it cannot listen there.
    """
    listener = listen(host, port)
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
    )
    server = _Server(config)
    await server.startup([listener] if tls is None else [])
    greeting = asyncio.create_task(server.greeter(tls, limits, refused).run(listener)) if tls is not None else None
    task = asyncio.create_task(server.run_until_over())
    try:
        shown = f"[{host}]" if ":" in host else host
        url = f"http{'s' if tls is not None else ''}://{shown}:{listener.getsockname()[1]}"
        async with sweeping(lambda: server.server_state.connections, limits):
            yield task, url
    finally:
        if ending is not None:
            ending()
            await server.cancel_running()
        server.over.set()
        await task
        if greeting is not None:
            greeting.cancel()
            with suppress(asyncio.CancelledError):
                await greeting
        await server.close(grace)
