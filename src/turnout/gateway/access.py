"""The access log: a JSON line for each request, written by a thread of its own so that a full pipe delays nobody."""

from __future__ import annotations

import logging
import queue
import threading
import time
from datetime import UTC, datetime
from typing import IO

import msgspec
from starlette.types import Scope

from turnout.gateway.exchange import Exchange, path_of

MAX_WAITING = 10_000  # lines; a reader that is slower loses some, and is told how many

log = logging.getLogger("turnout")


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    timestamp: str
    request_id: str
    principal: str
    client: str = ""
    agent: str = ""
    method: str
    path: str
    route: str
    status: int
    ms: float
    model: str = ""
    endpoint: str = ""
    level: int | None = None
    error: str = ""
    lost_before: int = 0


class AccessLog:
    """Lines on their way to ``stream``; ``close`` writes what waits."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._waiting: queue.Queue[_Line | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._writer = threading.Thread(target=self._write, name="access log", daemon=True)
        self._writer.start()

    def write(self, exchange: Exchange, scope: Scope, route: str) -> None:
        """Add the line of a request that is over."""
        client, run, went = scope.get("client"), exchange.run, exchange.route
        line = _Line(
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            request_id=exchange.id,
            principal=exchange.principal.id,
            client=client[0] if client else "",
            agent=run.request.agent if run is not None else "",
            method=scope["method"],
            path=path_of(scope),
            route=route,
            status=exchange.status,
            ms=round((time.monotonic() - exchange.started) * 1000, 1),
            error=exchange.refused or (run.error if run is not None else "") or exchange.error,
            lost_before=self._lost,
        )
        if went is not None:
            line.model, line.endpoint, line.level = went.sent_model, went.service, int(went.level)
        try:
            self._waiting.put_nowait(line)
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def close(self, patience: float = 2.0) -> None:
        """Write what waits, for at most ``patience`` seconds."""
        try:
            self._waiting.put(None, timeout=patience)
        except queue.Full:
            return
        self._writer.join(patience)

    def _write(self) -> None:
        encoder = msgspec.json.Encoder()
        while (line := self._waiting.get()) is not None:
            try:
                self._stream.write(encoder.encode(line).decode() + "\n")
                if self._waiting.empty():
                    self._stream.flush()
            except (OSError, ValueError) as error:
                log.error("the access log cannot be written: %s", error)
                self._lost += 1
