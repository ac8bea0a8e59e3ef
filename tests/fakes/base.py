"""What every fake server has: models, a key, faults, and a memory of what it was asked.

A fake is one module per dialect with ``app(fake)``, which is faithful to its section of facts/services.md, and
``LACKS``: the behaviours of ``tests/backends/behaviours.py`` that the real server does not offer, each with the reason.
What the fake itself omits stands in its docstring.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

WORDS = ("def ", "add(a, b):", "\n    ", "return a + b")
THOUGHT = ("Adding ", "is easy.")
STRUCTURED = '{"answer": 42}'
TOOL, ARGUMENTS = "weather", '{"city": "Paris"}'
SECOND = '{"city": "London"}'
PROMPT_TOKENS, ANSWER_TOKENS = 11, 4


def counted(text: str) -> int:
    """Tokens of a prompt, by a tokenizer that knows five characters a token; a short one is what the answers report."""
    return PROMPT_TOKENS if len(text) < 400 else len(text) // 5


def called(body: Mapping[str, object]) -> list[str]:
    """The arguments of each call of ``TOOL`` that a model makes: one for each city in the question."""
    return [ARGUMENTS, SECOND] if "Paris and London" in str(body.get("messages")) else [ARGUMENTS]


# What ``Fake.fault`` may be. A fake acts on those that its server can have.
FAULTS = (
    "busy",  # no room for the request, in the server's own words
    "drop",  # the connection is cut after two words
    "drop_first",  # ... and before the first
    "empty_200",  # a 200 without a body
    "error",  # fails with a 5xx
    "error_200",  # an error under 200, after two words
    "hang",  # never answers
    "html",  # a page instead of an answer
    "lying",  # reports a larger window than it has, and cuts the prompt without a word
    "loading",  # up, and loading its model
    "malformed",  # bytes that are nothing
    "overflow",  # the prompt exceeds the window, in the server's own words
    "stall",  # stops after two words and keeps the connection
)


@dataclass
class FakeModel:
    """A model as the fake's server knows it."""

    id: str = "qwen2.5-coder-7b-instruct"
    window: int = 8192
    max_window: int = 32768
    resident: bool = True
    size: int = 4_683_074_048
    parameters: int = 7_615_616_512
    quantization: str = "Q4_K_M"
    family: str = "qwen2"
    capabilities: tuple[str, ...] = ("chat", "tools")
    remote: bool = False
    digest: str = "d" * 64


@dataclass
class Fake:
    """A fake server's state, for the test to set and to read.

    Attributes:
        models: what it has.
        key: the key it wants, or "".
        fault: one of ``FAULTS``, or "".
        faults_left: how often the fault happens; -1 for always.
        options: what only this dialect knows.
        seen: the bodies of chat requests.
        requests: method and path of every request.
        headers: those of every request, names in lower case.
        closed: set when a streamed answer ended, also by the client's leaving.
    """

    models: list[FakeModel] = field(default_factory=lambda: [FakeModel()])
    key: str = ""
    fault: str = ""
    faults_left: int = -1
    version: str = ""
    slots: int = 1
    busy: int = 0
    speed: float = 31.2  # tokens a second of the last answer
    options: dict[str, object] = field(default_factory=dict)
    seen: list[dict[str, object]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def take_fault(self) -> str:
        """The fault of this request."""
        if self.faults_left == 0:
            return ""
        if self.faults_left > 0:
            self.faults_left -= 1
        return self.fault

    def model(self, name: object) -> FakeModel | None:
        """The model of that id."""
        return next((m for m in self.models if m.id == name), None)

    def has_key(self, headers: dict[str, str], *names: str) -> bool:
        """Whether a request carries the key, as Bearer or in one of the headers ``names`` (lower case)."""
        if not self.key or headers.get("authorization") == f"Bearer {self.key}":
            return True
        return any(headers.get(name) == self.key for name in names)


class _Remembered:
    def __init__(self, app: ASGIApp, fake: Fake) -> None:
        self.app, self.fake = app, fake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.fake.requests.append((scope["method"], scope["path"]))
            self.fake.headers.append({k.decode().lower(): v.decode("latin-1") for k, v in scope["headers"]})
        await self.app(scope, receive, send)


def served(fake: Fake, routes: Sequence[BaseRoute], **options: object) -> ASGIApp:
    """An application that remembers what it was asked. ``options`` are Starlette's."""
    app = Starlette(routes=list(routes), **options)  # type: ignore[arg-type]
    return _Remembered(app, fake)


@asynccontextmanager
async def running(
    app: ASGIApp, port: int = 0, *, host: str = "127.0.0.1", server_header: str = "uvicorn"
) -> AsyncIterator[str]:
    """Serve ``app`` in this loop; yields its URL. ``server_header`` "" sends none."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="critical",
        lifespan="off",
        access_log=False,
        server_header=False,
        headers=[("Server", server_header)] if server_header else [],
    )
    # Neither serve() nor shutdown(): each sleeps 100 ms before it ends, and a thousand tests end a server.
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    await server.on_tick(0)
    try:
        yield f"http://{host}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        tasks = list(server.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
