"""A bare Starlette + aiohttp proxy: read the request, rewrite the model, forward it, hand the answer on.

    python bench/bare.py PORT UPSTREAM

What a gateway in Python costs at least; the measure that bench/gateways.py holds Turnout to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from stub import MODEL


def bare(upstream: str) -> Starlette:
    """The application."""
    session: list[aiohttp.ClientSession] = []

    async def chat(request: Request) -> Response:
        if not session:
            session.append(aiohttp.ClientSession(auto_decompress=False))
        body = json.loads(await request.body())
        body["model"] = MODEL
        headers = {"Content-Type": "application/json"}
        url = upstream + "/v1/chat/completions"
        reply = await session[0].post(url, data=json.dumps(body).encode(), headers=headers)
        if body.get("stream"):
            return StreamingResponse(_pieces(reply), reply.status, media_type="text/event-stream")
        async with reply:
            return Response(await reply.read(), status_code=reply.status, media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


async def _pieces(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with reply:
        async for piece in reply.content.iter_any():
            yield piece


if __name__ == "__main__":
    uvicorn.run(
        bare(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
