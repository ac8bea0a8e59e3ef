"""Canaries through the gateway itself: a prompt that names an address, and a backend that leads elsewhere.

A gateway of our own runs as a child, with a server of ours behind it that obeys whatever reaches it: it would fetch
every image by its address, and it answers one of its models with a redirect. What the gateway lets through to it counts
as out.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from turnout.errors import EndpointDownError, TurnoutError
from turnout.guard.allow import AllowList
from turnout.guard.canaries import Canary, Seen, Target, judge, seen_of
from turnout.guard.network import HttpClient, open_client
from turnout.guard.process import spawn
from turnout.types import Json

START_SECONDS, ANSWER_SECONDS, LOOK_SECONDS = 12.0, 5.0, 0.02
MODEL, MOVED = "canary-model", "moved-model"
MAX_BODY = 1_000_000

Body: TypeAlias = dict[str, Json]

# How a prompt carries an image's address in each format, by the path that takes it.
_PROMPTS: dict[str, Callable[[str], Body]] = {
    "/v1/chat/completions": lambda url: _chat([{"type": "image_url", "image_url": {"url": url}}]),
    "/v1/messages": lambda url: {
        **_chat([{"type": "image", "source": {"type": "url", "url": url}}]),
        "max_tokens": 5,
    },
    "/v1/responses": lambda url: {
        "model": MODEL,
        "input": [{"role": "user", "content": [_ASKED_INPUT, {"type": "input_image", "image_url": url}]}],
    },
    "/api/chat": lambda url: {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is this?", "images": [url]}],
        "stream": False,
    },
}
_ASKED_INPUT: Body = {"type": "input_text", "text": "What is this?"}
_ASKED: Body = {"type": "text", "text": "What is this?"}


def _chat(parts: list[Json], model: str = MODEL) -> Body:
    return {"model": model, "messages": [{"role": "user", "content": [_ASKED, *parts]}]}


@dataclass(slots=True)
class _Backend:
    """An OpenAI-compatible server of ours; ``bodies`` is what came to it."""

    elsewhere: str
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(min(int(length[1]), MAX_BODY)) if length else b""
            writer.write(self._answer(head, body))
            await writer.drain()
        writer.close()

    def _answer(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"GET /v1/models "):
            listed: list[Json] = [{"id": name} for name in (MODEL, MOVED)]
            return _http("200 OK", {"object": "list", "data": listed})
        if not head.startswith(b"POST "):
            return _http("404 Not Found", {"error": {"message": "no such page"}})
        self.bodies.append(body)
        if MOVED.encode() in body:
            return _http("307 Temporary Redirect", {}, f"Location: {self.elsewhere}\r\n")
        message: Body = {"role": "assistant", "content": "an image"}
        return _http("200 OK", {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def _http(status: str, body: Json, more: str = "") -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\n{more}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + text


async def fly_through_gateway(target: Target) -> tuple[Canary, ...]:
    """Try what a prompt and a backend can make a gateway do. Takes as long as a gateway takes to start."""
    backend = _Backend(f"http://{target.shown}/v1/chat/completions")
    doors = [f"an image's address in a prompt, {path}" for path in _PROMPTS]
    moved = "a backend that redirects, behind the gateway"
    try:
        async with _gateway(backend, target) as url, open_client(AllowList()) as client:
            seen = [await _prompt(client, url, path, backend, target) for path in _PROMPTS]
            seen.append(await _redirect(client, url, backend))
    except (TurnoutError, OSError) as error:
        seen = [Seen("failed", f"no gateway could be tried: {seen_of(error).found}")] * (len(doors) + 1)
    doors.append(moved)
    return tuple(judge(door, target, each, quiet=False, own=True) for door, each in zip(doors, seen, strict=True))


async def _prompt(client: HttpClient, url: str, path: str, backend: _Backend, target: Target) -> Seen:
    backend.bodies.clear()
    address = f"http://{target.shown}/canary.png"
    status = await _ask(client, url + path, _PROMPTS[path](address))
    if any(address.encode() in body for body in backend.bodies):
        return Seen("reached", "the backend was given the address, and would fetch it")
    if 400 <= status < 500:
        return Seen("gateway", f"refused with status {status}; the backend was not asked")
    return Seen("failed", f"the gateway answered with status {status}")


async def _redirect(client: HttpClient, url: str, backend: _Backend) -> Seen:
    backend.bodies.clear()
    status = await _ask(client, f"{url}/v1/chat/completions", _chat([], MOVED))
    if not backend.bodies:
        return Seen("failed", f"the backend was not asked: status {status}")
    if status >= 400:
        return Seen("gateway", f"the redirect was not followed; the answer was status {status}")
    return Seen("reached", f"it was followed: status {status}")


async def _ask(client: HttpClient, url: str, body: Body) -> int:
    reply = await client.fetch(
        "POST",
        url,
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        timeout=ANSWER_SECONDS,
        max_bytes=MAX_BODY,
    )
    return reply.status


@asynccontextmanager
async def _gateway(backend: _Backend, target: Target) -> AsyncIterator[str]:
    """A gateway with this backend alone, proxy variables set to the target; yields its URL.

    Raises:
        EndpointDownError: it did not start.
    """
    async with await asyncio.start_server(backend.serve, "127.0.0.1", 0, limit=MAX_BODY) as server:
        place = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with tempfile.TemporaryDirectory(prefix="turnout-prove-") as folder:
            file = Path(folder, "turnout.yaml")
            file.write_text(json.dumps(_configuration(place)), "utf-8")
            proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), f"http://{target.shown}")
            env = {**proxies, "TURNOUT_DATA_DIR": folder, "TURNOUT_LOOPBACK_ONLY": "1", "PYTHONPATH": _own_place()}
            child = await spawn(
                [sys.executable, "-m", "turnout", "--config", str(file), "serve", "--port", "0"],
                env=env,
                cwd=Path(folder),
                network="open",
            )
            try:
                yield await _listening(lambda: child.errors, lambda: child.returncode)
            finally:
                await child.stop()


def _configuration(place: str) -> Json:
    return {
        "custom_endpoints": [{"name": "canary", "endpoint": place, "max_retries": 0}],
        "discovery": {"enabled": False},
        "serena": {"enabled": False},
        "security": {"audit_enabled": False},
    }


def _own_place() -> str:
    """Where this very code is, so that the child runs no other."""
    return str(Path(__file__).parents[2])


async def _listening(said: Callable[[], str], ended: Callable[[], int | None]) -> str:
    try:
        async with asyncio.timeout(START_SECONDS):
            while not (found := re.search(r"listens on (http://\S+)", said())):
                if ended() is not None:
                    break
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        found = None
    if found is None:
        raise EndpointDownError(f"the gateway did not start: {said()[-300:]}")
    return found[1]
