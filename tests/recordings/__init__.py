"""What real servers answered, byte for byte; each kind's README.md says how it was taken."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.fakes.base import running
from turnout.guard.network import Reply
from turnout.types import Json

HERE = Path(__file__).parent
# What the server that replays sets by itself.
_OF_THE_CONNECTION = ("connection", "content-length", "date", "keep-alive", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One recorded request and its answer. ``sent`` is the request's body."""

    name: str
    method: str
    path: str
    sent: bytes
    reply: Reply


@cache
def exchanges(kind: str, version: str, state: str) -> Mapping[str, Exchange]:
    """Every exchange of a state, by name."""
    files = sorted((HERE / kind / version / state).glob("*.json"))
    assert files, f"nothing was recorded of {kind} {version} {state}"
    return MappingProxyType({file.stem: _read(file) for file in files})


def reply(kind: str, version: str, state: str, name: str) -> Reply:
    """The answer of one exchange."""
    return exchanges(kind, version, state)[name].reply


def replies(kind: str, version: str, state: str) -> dict[str, Reply]:
    """The answers to plain GETs, by path: what ``Backend.identify`` takes."""
    found = exchanges(kind, version, state).values()
    return {made.path: made.reply for made in found if made.name.startswith("get-")}


@asynccontextmanager
async def replaying(kind: str, version: str, state: str) -> AsyncIterator[str]:
    """A server that gives the recorded answers; yields its URL.

    A GET is known by its path and query, a POST by its path and a body that means the same JSON: a request that nobody
    recorded is answered with 418, so what a backend sends is proven too. Not faithful: the pieces in which a body came,
    and headers of the connection.
    """
    gets = replies(kind, version, state)
    posts = [made for made in exchanges(kind, version, state).values() if made.method == "POST"]

    async def answer(request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        sent = _json(await request.body())
        found = gets.get(path) if request.method == "GET" else None
        if request.method == "POST":
            found = next((made.reply for made in posts if made.path == path and _json(made.sent) == sent), None)
        if found is None:
            return PlainTextResponse(f"nobody recorded {request.method} {path} {sent}", 418)
        headers = {k: v for k, v in found.headers.items() if k not in _OF_THE_CONNECTION}
        return Response(found.body, found.status, headers)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    async with running(app) as url:
        yield url


def _read(file: Path) -> Exchange:
    record = msgspec.json.decode(file.read_bytes())
    request, response = record["request"], record["response"]
    headers = {name.lower(): value for name, value in response["headers"]}
    answer = Reply(response["status"], headers, _bytes(response["body"]))
    return Exchange(file.stem, request["method"], request["path"], _bytes(request["body"]), answer)


def _bytes(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def _json(body: bytes) -> Json:
    try:
        return msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")
