"""The gateway as a process: keys before other machines, draining, and a configuration read anew while requests run."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import vllm
from tests.fakes.base import Fake, FakeModel, running
from tests.fakes.llm import openai_app
from tests.fakes.scripted import Scripted, scripted, telling, without_end
from turnout.guard import keys

SERVE = [sys.executable, "-c", "from turnout.cli import main; main()", "serve", "--port", "0"]
QUESTION = [{"role": "user", "content": "Say hello"}]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNOUT_CONFIG", raising=False)
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def configure(url: str, name: str = "one", discovery: Mapping[str, object] | None = None, **gateway: object) -> None:
    config = {
        "custom_endpoints": [{"name": name, "endpoint": url}],
        "discovery": {"enabled": False, **(discovery or {})},
        "gateway": gateway,
    }
    fresh = Path("fresh.yaml")
    fresh.write_text(json.dumps(config), "utf-8")
    fresh.replace("turnout.yaml")


class Process:
    """``turnout serve``, line by line."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.url = ""

    async def says(self, pattern: str) -> str:
        """The next line of standard error that matches; what comes before is passed over."""
        assert self.child.stderr is not None
        async with asyncio.timeout(30):
            while line := (await self.child.stderr.readline()).decode():
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"ended without saying {pattern!r}")

    async def said_last(self) -> str:
        """What is left of standard error, once it has ended."""
        assert self.child.stderr is not None
        return (await self.child.stderr.read()).decode()

    async def ends(self) -> int:
        return await asyncio.wait_for(self.child.wait(), 30)


@asynccontextmanager
async def serving(*args: str) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        *SERVE, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    process = Process(child)
    try:
        process.url = re.findall(r"http://\S+", await process.says("listens"))[0].replace("0.0.0.0", "127.0.0.1")
        await process.says("Found|No server")
        yield process
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def audited(kind: str) -> list[dict[str, object]]:
    lines = Path("data/audit.log").read_text("utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event_type"] == kind]


@asynccontextmanager
async def stalled(session: aiohttp.ClientSession, url: str, model: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream that has begun and waits for its server."""
    body = {"model": model, "messages": QUESTION, "stream": True}
    reply = await session.post(f"{url}/v1/chat/completions", json=body)
    await reply.content.readany()
    try:
        yield reply
    finally:
        reply.close()


async def test_other_machines_are_served_with_keys_alone() -> None:
    refused = await asyncio.create_subprocess_exec(*SERVE, "--host", "0.0.0.0", stderr=subprocess.PIPE)
    _, said = await refused.communicate()
    assert refused.returncode == 2
    assert b"cannot listen on 0.0.0.0" in said
    assert b"turnout key add NAME" in said
    path = keys.keys_path(Path("data"))
    with keys.changing(path) as known:
        changed, token = keys.add(known, "ci", keys.Limits(), time.time())
        keys.write_keys(path, changed)
    async with serving("--host", "0.0.0.0") as process, aiohttp.ClientSession() as session:
        async with session.get(f"{process.url}/v1/models") as reply:
            assert reply.status == 401
        async with session.get(f"{process.url}/", headers={"x-api-key": token}) as reply:
            assert reply.status == 200
        path.unlink()
        async with session.get(f"{process.url}/") as reply:
            assert reply.status == 401
        process.child.terminate()
        assert await process.ends() == 143
        assert process.child.stdout is not None
        lines = [json.loads(line) for line in (await process.child.stdout.read()).splitlines()]
    assert [(line["principal"], line["route"], line["status"]) for line in lines] == [
        ("unknown", "/v1/models", 401),
        ("ci", "/", 200),
        ("unknown", "/", 401),
    ]
    assert all(len(line["request_id"]) == 32 and line["ms"] >= 0 for line in lines)
    assert token not in str(lines)


async def test_a_stream_ends_on_the_router_on_which_it_began_and_new_ones_go_to_the_new() -> None:
    first, second = openai_app(("a-7b",)), openai_app(("b-7b",))
    first.state.fake.fault = "stall"
    async with running(first) as one, running(second) as two, aiohttp.ClientSession() as session:
        configure(one)
        async with serving() as process, stalled(session, process.url, "a-7b") as stream:
            configure(two, "two")
            process.child.send_signal(signal.SIGHUP)
            assert "two (1)" in await process.says("anew")
            async with session.post(
                f"{process.url}/v1/chat/completions", json={"model": "auto", "messages": QUESTION}
            ) as reply:
                assert (reply.status, reply.headers["x-turnout-endpoint"]) == (200, "two")
            assert not first.state.fake.closed.is_set(), "the stream that runs is not touched"
            first.state.fake.release.set()
            assert b"[DONE]" in await asyncio.wait_for(stream.content.read(), 10)
    reloads = [(record["service"], record["success"]) for record in audited("config")]
    assert reloads == [(f"reload of {Path('turnout.yaml').resolve()}", True)]


async def test_a_saved_file_is_read_and_one_that_is_wrong_changes_nothing() -> None:
    first, second = openai_app(("a-7b",)), openai_app(("b-7b",))
    async with running(first) as one, running(second) as two, aiohttp.ClientSession() as session:
        configure(one)
        async with serving() as process:

            async def endpoint() -> str:
                body = {"model": "auto", "messages": QUESTION}
                async with session.post(f"{process.url}/v1/chat/completions", json=body) as reply:
                    return reply.headers["x-turnout-endpoint"]

            assert await endpoint() == "one"
            Path("turnout.yaml").write_text("gateway: {prot: 1}", "utf-8")
            assert "unknown key 'prot'" in await process.says("Error")
            await process.says("stays")
            assert await endpoint() == "one"
            configure("http://203.0.113.9:1", "outside")
            assert "outside" in await process.says("Error")
            assert await endpoint() == "one"
            configure(two, "two", port=4999)
            await process.says("port.* change at the next start")
            await process.says("anew")
            assert await endpoint() == "two"
            configure(two, "two")
            assert "anew" in await process.says("Warning|anew"), "the port is the one that it was started with"
    assert [record["error"] for record in audited("config")] == ["config", "refused_by_guard", None, None]


async def test_a_pipe_in_the_place_of_the_file_holds_nobody_up() -> None:
    async with running(openai_app(("a-7b",))) as url, aiohttp.ClientSession() as session:
        configure(url)
        async with serving() as process:
            os.mkfifo("pipe")
            Path("pipe").replace("turnout.yaml")
            assert "no regular file" in await process.says("Error")
            async with session.get(f"{process.url}/v1/models", timeout=aiohttp.ClientTimeout(10)) as reply:
                assert reply.status == 200


async def test_a_server_that_goes_is_said() -> None:
    async with AsyncExitStack() as stack:
        configure(await stack.enter_async_context(running(openai_app(("a-7b",)))), discovery={"interval": 1000})
        async with serving() as process:
            await stack.aclose()
            assert "nothing answers" in await process.says("INFO one .*online -> offline")


async def test_what_is_kept_for_a_caller_outlives_a_new_configuration() -> None:
    async with running(openai_app(("a-7b",))) as url, aiohttp.ClientSession() as session:
        configure(url)
        async with serving() as process:
            async with session.post(f"{process.url}/v1/responses", json={"model": "auto", "input": "Hello"}) as reply:
                kept = await reply.json()
            process.child.send_signal(signal.SIGHUP)
            await process.says("anew")
            async with session.get(f"{process.url}/v1/responses/{kept['id']}") as reply:
                assert (reply.status, (await reply.json())["output"]) == (200, kept["output"])


async def test_a_stop_lets_what_runs_end_and_refuses_what_is_new() -> None:
    app = openai_app(("a-7b",))
    app.state.fake.fault = "stall"
    async with running(app) as url, aiohttp.ClientSession() as session:
        configure(url)
        async with serving() as process, stalled(session, process.url, "a-7b") as stream:
            process.child.terminate()
            await process.says("1 request may still take 30 s")
            for path, status in (("/v1/models", 503), ("/readyz", 503), ("/healthz", 200)):
                async with session.get(process.url + path) as reply:
                    assert reply.status == status
                    assert ("Retry-After" in reply.headers) == (status == 503)
            app.state.fake.release.set()
            assert b"[DONE]" in await asyncio.wait_for(stream.content.read(), 10)
            assert await process.ends() == 143
    assert [record["error"] for record in audited("query") if record["phase"] == "end"] == [None]


@pytest.mark.parametrize("again", [True, False], ids=["a second signal", "the time is over"])
async def test_a_stop_does_not_wait_for_ever(again: bool) -> None:
    app = openai_app(("a-7b",))
    app.state.fake.fault = "stall"
    async with running(app) as url, aiohttp.ClientSession() as session:
        configure(url, drain_timeout=60_000 if again else 300)
        async with serving() as process, stalled(session, process.url, "a-7b"):
            process.child.terminate()
            await process.says("may still take")
            if again:
                process.child.terminate()
            assert await process.ends() == 143
            await asyncio.wait_for(app.state.fake.closed.wait(), 5)
    assert [record["error"] for record in audited("query") if record["phase"] == "end"] == ["cancelled"]


@pytest.mark.parametrize("again", [True, False], ids=["a second signal", "the time is over"])
async def test_what_is_cut_short_is_told_so_in_its_own_format(again: bool) -> None:
    app = openai_app(("a-7b",))
    app.state.fake.fault = "stall"
    asked = {"model": "a-7b", "messages": QUESTION, "max_tokens": 9}
    async with AsyncExitStack() as stack:
        configure(
            await stack.enter_async_context(running(app)), drain_timeout=60_000 if again else 300, access_log=True
        )
        process = await stack.enter_async_context(serving())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        streams = {}
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
            body = {**asked, "input": "Hello", "stream": True}
            streams[path] = await session.post(process.url + path, json=body)
            await streams[path].content.readany()
        app.state.fake.fault = "hang"
        waiting = {}
        for path, stream in (("/v1/chat/completions", False), ("/v1/messages", True), ("/api/chat", False)):
            app.state.fake.hanging.clear()
            waiting[path] = asyncio.ensure_future(session.post(process.url + path, json={**asked, "stream": stream}))
            await asyncio.wait_for(app.state.fake.hanging.wait(), 10)
        process.child.terminate()
        await process.says("6 requests may still take")
        if again:
            process.child.terminate()
        told = {path: await asyncio.wait_for(reply.content.read(), 10) for path, reply in streams.items()}
        refused = {path: await asyncio.wait_for(reply, 10) for path, reply in waiting.items()}
        errors = {path: json.loads(await reply.read())["error"] for path, reply in refused.items()}
        assert await process.ends() == 143
        assert await process.said_last() == "Ending 6 requests that did not end in time.\n"
        assert process.child.stdout is not None
        lines = [json.loads(line) for line in (await process.child.stdout.read()).splitlines()]
    last = {path: json.loads(data.strip().rpartition(b"data: ")[2]) for path, data in told.items()}
    assert last["/v1/chat/completions"]["error"]["code"] == "stopping"
    assert (last["/v1/messages"]["type"], last["/v1/messages"]["error"]["type"]) == ("error", "overloaded_error")
    assert last["/v1/responses"]["type"] == "response.failed"
    assert errors["/v1/chat/completions"]["code"] == "stopping"
    assert errors["/v1/messages"]["type"] == "overloaded_error"
    assert errors["/api/chat"] == "the gateway is stopping (ask again)"
    for reply in refused.values():
        assert (reply.status, reply.headers["Retry-After"], len(reply.headers["x-turnout-request-id"])) == (
            503,
            "5",
            32,
        )
    assert (
        sorted((line["status"], line["error"]) for line in lines) == [(200, "cancelled")] * 3 + [(503, "cancelled")] * 3
    )


async def test_vectors_that_are_cut_short_are_told_so_and_logged_so() -> None:
    fake = Fake([FakeModel("bge-m3", capabilities=("embeddings",))], fault="hang")
    async with running(vllm.app(fake)) as upstream, aiohttp.ClientSession() as session:
        configure(upstream, drain_timeout=300, access_log=True)
        async with serving() as process:
            asked = {"model": "bge-m3", "input": "a"}
            waiting = asyncio.ensure_future(session.post(f"{process.url}/v1/embeddings", json=asked))
            async with asyncio.timeout(10):
                while ("POST", "/v1/embeddings") not in fake.requests:
                    await asyncio.sleep(0.01)
            process.child.terminate()
            reply = await asyncio.wait_for(waiting, 10)
            assert (reply.status, (await reply.json())["error"]["code"]) == (503, "stopping")
            assert await process.ends() == 143
            assert process.child.stdout is not None
            (line,) = map(json.loads, (await process.child.stdout.read()).splitlines())
    assert (line["route"], line["status"], line["error"]) == ("/v1/embeddings", 503, "stopping")


async def test_who_takes_nothing_of_an_answer_does_not_hold_up_the_end() -> None:
    began, over = asyncio.Event(), asyncio.Event()
    one = Scripted(("a-7b",), script=(telling(without_end, began, over),))
    body = json.dumps({"model": "a-7b", "messages": QUESTION, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with scripted(one):
        configure(one.url, drain_timeout=500)
        async with serving() as process:
            _, writer = await asyncio.open_connection("127.0.0.1", int(process.url.rpartition(":")[2]), limit=1000)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.wait_for(began.wait(), 10)
            process.child.terminate()
            await process.says("1 request may still take")
            assert await process.ends() == 143
            assert await process.said_last() == "Ending 1 request that did not end in time.\n"
            await asyncio.wait_for(over.wait(), 10)
            writer.close()


# The terminal goes while it still says that it listens; then it tells that it handles signals.
SLOW = """\
import os
from contextlib import contextmanager
from turnout.cli import main
from turnout.gateway import live

def say(line, said=live._say):
    said(line)
    while os.isatty(2):
        pass

@contextmanager
def handled(handlers, signals=live._signals):
    with signals(handlers):
        open("handled", "w").close()
        yield

live._say, live._signals = say, handled
main()
"""


@pytest.mark.parametrize("slow", [False, True], ids=["", "at once"])
async def test_a_terminal_that_is_closed_ends_it(slow: bool) -> None:
    configure("http://127.0.0.1:9")
    os.mkfifo("handled")
    handled = asyncio.create_task(asyncio.to_thread(Path("handled").read_bytes)) if slow else None
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", SLOW, *SERVE[3:]] if slow else SERVE
    child = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    try:
        os.close(theirs)
        seen = b""
        while b"No server" not in seen:
            seen += await asyncio.to_thread(os.read, ours, 1000)
        os.close(ours)
        if handled is not None:
            await handled
        child.send_signal(signal.SIGHUP)
        # 1: Click cannot say that it was aborted, to a terminal that is gone.
        assert await asyncio.to_thread(child.wait, 30) in (129, 1)
    finally:
        child.kill()
        child.wait()
