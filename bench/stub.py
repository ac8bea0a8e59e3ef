"""The upstream of bench/gateways.py: a server of the OpenAI format that answers at once, or piece by piece.

    python bench/stub.py PORT

``chunks=N gap=MS`` anywhere in a streamed request says how many pieces, and how long from one to the next. TCP_NODELAY
is set, and head and body go out in one write: without that, Nagle's algorithm and the delayed acknowledgement add 40 ms
to every answer, through every proxy.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from typing import cast

import httptools
import uvloop

MODEL = "stub-7b"
WORD = "lorem"  # every piece of text has it once, and nothing else does
_STREAM = re.compile(rb'"stream": ?true')
_PACE = re.compile(rb"chunks=(\d+) gap=(\d+)")
_BASE = {"id": "chatcmpl-1", "created": 1764000000, "model": MODEL}
_COUNT = 7_654_321  # where the prompt's tokens are put
_USAGE = {"prompt_tokens": _COUNT, "completion_tokens": 64, "total_tokens": 64}
_MESSAGE = {"role": "assistant", "content": f"{WORD} ipsum dolor sit amet, " * 38}


def _json(body: object) -> bytes:
    data = json.dumps(body).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def _event(choices: list[object], **more: object) -> bytes:
    body = _BASE | {"object": "chat.completion.chunk", "choices": choices, **more}
    return _chunk(b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _delta(delta: object, finish: str | None = None) -> bytes:
    return _event([{"index": 0, "delta": delta, "finish_reason": finish}])


CHAT = _json(
    _BASE
    | {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
)
MODELS = _json({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "max_model_len": 131072}]})
INFO = _json({"model_path": MODEL, "served_model_name": MODEL, "is_generation": True, "status": "ok", "version": "1"})
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = _delta({"role": "assistant", "content": f"{WORD} "})
PIECE = _delta({"content": f"{WORD} "})
LAST = _delta({}, "stop") + _event([], usage=_USAGE) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
# What routers ask their workers before they believe in them.
KNOWN = {b"/v1/models": MODELS, b"/models": MODELS} | dict.fromkeys(
    (b"/health", b"/health_generate", b"/get_model_info", b"/model_info", b"/get_server_info", b"/server_info"), INFO
)


def _counted(answer: bytes, body: bytes | bytearray) -> bytes:
    """The answer with a count that its prompt could have: a gateway may learn from it."""
    return answer.replace(b"%d" % _COUNT, b"%7d" % (len(body) // 5))


class Stub(asyncio.Protocol):
    """One connection; a client asks again only after the answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._path, self._body = b"", bytearray()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body.clear()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if not self._path.startswith(b"/v1/chat/completions"):
            self._transport.write(KNOWN.get(self._path.partition(b"?")[0], MISSING))
        elif _STREAM.search(self._body):
            pace = _PACE.search(self._body)
            self._transport.write(HEAD + FIRST)
            pieces, gap = (int(pace[1]), int(pace[2]) / 1000) if pace else (4, 0.0)
            self._later(pieces - 1, gap, self._loop.time() + gap)
        else:
            self._transport.write(_counted(CHAT, self._body))

    def _later(self, left: int, gap: float, due: float) -> None:
        """The next piece at ``due``, whatever the one before it was late."""
        self._loop.call_at(due, self._write, left, gap, due)

    def _write(self, left: int, gap: float, due: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(PIECE if left else _counted(LAST, self._body))
        if left:
            self._later(left - 1, gap, due + gap)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
