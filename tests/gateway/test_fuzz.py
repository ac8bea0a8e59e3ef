"""Whatever is sent to whichever route: a well-formed answer or error in the caller's format, and nothing left behind.

make test-heavy ARGS="tests/gateway/test_fuzz.py -s"   # 100,000 cases, some minutes
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from starlette.routing import Route

from tests.fakes import ollama, vllm
from tests.fakes.base import Fake, FakeModel
from tests.fakes.base import running as serving
from tests.gateway.fuzzing import BODIES, EYES, PLAIN, VECTORS, Answer, Case, bodies_of, cases, check, outside, told
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway.app import Gateway, create_app

CASES = 800
PARTS, BATCHES, BATCH = 4, 25, 1000  # of the long run
MAX_GROWTH = 100_000_000  # bytes, from a fifth of them to the last
MAX_BODY = 200_000


class _Complaints(logging.Handler):
    """What a log would have that somebody has to look into."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.records.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


class Target:
    """A gateway before three servers, in a loop of its own that runs while something is asked."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.fakes = [
            Fake([FakeModel(EYES)]),
            Fake([FakeModel(PLAIN, capabilities=("chat", "tools", "vision", "fim"))]),
            Fake([FakeModel(VECTORS, capabilities=("embeddings",))]),
        ]
        self.complaints = _Complaints()
        self.stack = AsyncExitStack()
        self.outcomes: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    async def open(self) -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.complaints.records.append(str(context))
        )
        urls = [
            await self.stack.enter_async_context(serving(kind.app(fake), server_header=kind.SERVER_HEADER))
            for kind, fake in zip((vllm, ollama, vllm), self.fakes, strict=True)
        ]
        custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
        config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
        self.router = await self.stack.enter_async_context(open_router(config))
        while {status.endpoint.kind for status in self.router.catalog.serving} != {"vllm", "ollama"}:
            await self.router.refresh()  # a busy machine may be too slow for the first look
        self.app: Gateway = create_app(self.router, max_body_bytes=MAX_BODY)
        self.tasks = len(asyncio.all_tasks())

    def targets(self) -> list[tuple[str, str]]:
        """Every route of the application and some of none; those that take a body more often."""
        known = [(m, r.path) for r in self.app.routes if isinstance(r, Route) for m in sorted(r.methods or ())]
        posts = [target for target in known if target[0] == "POST"]
        return [*posts, *posts, *posts, *known, ("POST", "/api/pull"), ("GET", "/nothing/here"), ("POST", "//v1/")]

    def ask(self, case: Case) -> Answer | None:
        """Send it and see that nothing is left; None of a client that left."""
        return self.runner.run(asyncio.wait_for(self._ask(case), 30))

    async def _ask(self, case: Case) -> Answer | None:
        for fake in self.fakes:
            fake.fault = case.fault
            fake.seen.clear()
            fake.requests.clear()
            fake.headers.clear()
        client = _Client(case)
        await self.app(client.scope(), client.receive, client.send)
        assert not self.complaints.records, self.complaints.records
        await self.settled()
        for fake in self.fakes:
            assert not any(outside(body) for body in fake.seen), "an address of the outside went to a server"
        self.asked[case.path if case.path in BODIES else "other"] += 1
        return None if client.left else Answer(client.status, client.kind, bytes(client.body))

    async def settled(self) -> None:
        """Nothing runs, waits or is counted any more, at the gateway or for it."""
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > self.tasks + 1:  # and the one that looks
                await asyncio.sleep(0)
        assert (self.app.in_flight, self.app.shared.metrics.in_flight) == (0, 0)
        assert self.router._placement._admission._lines == {}

    async def close(self) -> None:
        await self.stack.aclose()


class _Client:
    """The other side of an ASGI call, which minds the order of what is sent to it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        size = max(1, -(-len(case.body) // case.pieces))
        self.rest = [case.body[at : at + size] for at in range(0, len(case.body), size)] or [b""]
        self.status, self.kind, self.body = 0, "", bytearray()
        self.sent, self.ended, self.left = 0, asyncio.Event(), False
        self.leaving = asyncio.Event()
        if case.leaves == 0:
            self.leaving.set()

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
            "method": self.case.method, "path": self.case.path, "raw_path": b"", "root_path": "",
            "query_string": self.case.query, "headers": list(self.case.headers), "client": ("127.0.0.1", 9),
            "server": ("127.0.0.1", 8),
        }  # fmt: skip

    async def receive(self) -> dict[str, Any]:
        if self.leaving.is_set() and not self.case.leaves:
            self.left = True
            return {"type": "http.disconnect"}
        if self.rest:
            return {"type": "http.request", "body": self.rest.pop(0), "more_body": bool(self.rest)}
        waits = [asyncio.ensure_future(self.ended.wait()), asyncio.ensure_future(self.leaving.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        assert not self.ended.is_set(), "more after the end"
        if message["type"] == "http.response.start":
            assert not self.status, "two heads"
            self.status = message["status"]
            headers = {name.lower(): value for name, value in message["headers"]}
            assert all(b"\n" not in value and b"\r" not in value for value in headers.values())
            self.kind = headers.get(b"content-type", b"").decode()
            return
        assert self.status, "a body without a head"
        self.body += message.get("body", b"")
        self.sent += 1
        if self.sent == self.case.leaves:
            self.left = True
            self.leaving.set()
        if not message.get("more_body", False):
            self.ended.set()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    made = Target()
    logging.getLogger().addHandler(made.complaints)
    try:
        made.runner.run(made.open())
        yield made
    finally:
        made.runner.run(made.close())
        made.runner.close()
        logging.getLogger().removeHandler(made.complaints)


def fuzz(target: Target, examples: int, number: int | None) -> None:
    """So many cases; those of ``number``, or the same ones every time."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(cases(target.targets()))
    def run(case: Case) -> None:
        answer = target.ask(case)
        target.outcomes["left" if answer is None else check(case, answer)] += 1

    (run if number is None else seed(number)(run))()


def test_what_the_cases_are_made_of_is_answered(target: Target) -> None:
    """Else what is near to it is far from what clients send."""
    posts = {path for method, path in target.targets() if method == "POST"} - {"/api/pull", "//v1/"}
    assert all(bodies_of(path) for path in posts)
    for path, bodies in BODIES.items():
        for body in bodies:
            case = Case("POST", path, _json(body), ((b"host", b"127.0.0.1"),))
            answer = target.ask(case)
            assert answer is not None
            assert (answer.status, check(case, answer) in ("whole", "stream")) == (200, True), (
                f"{told(case)} {answer.body[-1500:]!r}"
            )


def _json(body: dict[str, Any]) -> bytes:
    import json

    return json.dumps(body).encode()


def test_whatever_is_sent_is_answered_in_the_callers_format_and_leaves_nothing(target: Target) -> None:
    fuzz(target, CASES, None)
    assert set(target.asked) == {*BODIES, "other"}
    assert {"left", "refused", "failed", "whole", "stream"} <= set(target.outcomes)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_hundred_thousand_cases_in_bounded_memory(target: Target, part: int) -> None:
    used: list[int] = []
    began = time.monotonic()
    for number in range(BATCHES):
        fuzz(target, BATCH, part * BATCHES + number)
        gc.collect()
        used.append(_resident())
    took, asked = time.monotonic() - began, sum(target.outcomes.values())
    print(f"\n{asked:,} cases in {took:.0f} s: {dict(target.outcomes)}; resident MB: {[u >> 20 for u in used[4::5]]}")
    assert asked >= BATCHES * BATCH * 0.9
    assert used[-1] - used[BATCHES // 5] < MAX_GROWTH


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096
