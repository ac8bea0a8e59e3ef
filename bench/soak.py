"""Mixed load with random faults for as long as one likes: does memory stay flat, and does every request end?

    python bench/soak.py [SECONDS]

``turnout serve`` as a process before five fakes (two vLLM, Ollama, llama-server, a vLLM for vectors) which fail, hang,
drop, stall, are slow or busy at random. Clients of every format, streamed and not: most read to the end, some leave,
some read slowly, some send what is no request. Meanwhile the configuration is changed, broken and read anew. At the end
every answer must have been well formed, every query of the audit log must have its end, and nothing may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes import llamacpp, ollama, vllm
from tests.fakes.base import Fake, FakeModel, running
from tests.gateway.fuzzing import BODIES, EYES, PLAIN, VECTORS, Answer, Case, Wrong, check

from turnout.guard.chain import log_files

WORKERS, PAUSE = 24, 0.15  # clients, and the longest that one waits before its next request
SAMPLE, RELOAD = 5.0, 20.0  # seconds between two looks at the process, two changes of its configuration
WARM_UP = 0.2  # share of the time that memory may grow in
PATIENCE = 60.0  # seconds after which a request counts as one without an end
JUDGED = 600.0  # seconds that must have passed before growth is judged: caches fill in the first minutes
GROWTH = 30.0  # MB an hour that count as flat: a sample differs from the next by as much as a minute of that
FAULTS = ("error", "error_200", "busy", "loading", "drop", "drop_first", "malformed", "html", "empty_200", "overflow",
          "hang", "stall")  # fmt: skip
FAULTY, SLOW = 0.2, 0.3  # shares of the servers' answers
NO_REQUESTS = [
    b"",
    b"{",
    b"[]",
    b'{"model":7}',
    b'{"model":"auto","messages":[{}]}',
    b"\xff" * 50,
    b'{"model":"nope","input":"a","messages":[{"role":"user","content":"a"}],"prompt":"a","query":"a","documents":["a"]}',
]


# The servers.


@dataclass
class Moody(Fake):
    """Fails at random, and forgets what it was asked."""

    def __post_init__(self) -> None:
        self.seen, self.requests, self.headers = (deque(maxlen=20) for _ in range(3))  # type: ignore[assignment]

    def take_fault(self) -> str:
        return random.choice(FAULTS) if random.random() < FAULTY else ""


class Counted:
    """Counts what runs; slow at random, and rid of what hangs."""

    active = 0

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pause = random.uniform(0.01, 0.2) if random.random() < SLOW and scope["method"] == "POST" else 0.0

        async def slowly(message: Any) -> None:
            if pause:
                await asyncio.sleep(pause)
            await send(message)

        Counted.active += 1
        try:
            async with asyncio.timeout(20):
                await self.app(scope, receive, slowly)
        finally:
            Counted.active -= 1


async def servers() -> None:
    """Serve the fakes, and at the last address how many requests run."""

    async def active(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(Counted.active).encode()})

    fakes = [
        (vllm, Moody([FakeModel(EYES, window=32768)])),
        (vllm, Moody([FakeModel(EYES, window=32768)])),
        (ollama, Moody([FakeModel(PLAIN, capabilities=("chat", "tools", "vision", "fim"))])),
        (llamacpp, Moody([FakeModel("mistral-nemo-12b")], slots=4)),
        (vllm, Moody([FakeModel(VECTORS, capabilities=("embeddings",))])),
    ]
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for kind, fake in fakes:
            served = running(Counted(kind.app(fake)), server_header=kind.SERVER_HEADER)
            urls.append(await stack.enter_async_context(served))
        urls.append(await stack.enter_async_context(running(active)))
        print(json.dumps(urls), flush=True)
        await asyncio.Event().wait()


# The clients.


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    begun: int = 0
    stop: bool = False


async def client(session: aiohttp.ClientSession, url: str, tally: Tally) -> None:
    while not tally.stop:
        case = some_case()
        tally.begun += 1
        try:
            outcome = await asyncio.wait_for(ask(session, url, case), PATIENCE)
        except TimeoutError:
            outcome = "no end"
        except Wrong as error:
            outcome = "wrong"
            tally.wrong.append(f"{error}: {case.path} {case.body[:300]!r}")
        except (aiohttp.ClientError, ConnectionError) as error:
            outcome = "cut"
            tally.wrong.append(f"{type(error).__name__} {error}: {case.path} {case.body[:300]!r}")
        tally.outcomes[outcome] += 1
        await asyncio.sleep(random.uniform(0, PAUSE))


def some_case() -> Case:
    path = random.choice([*BODIES, "/v1/models", "/api/tags", "/healthz"])
    if path not in BODIES:
        return Case("GET", path)
    body = json.dumps(random.choice(BODIES[path])).encode()
    return Case("POST", path, random.choice(NO_REQUESTS) if random.random() < 0.1 else body)


async def ask(session: aiohttp.ClientSession, url: str, case: Case) -> str:
    """One request; what the answer was, or that its client left."""
    manner = random.choices(["read", "slowly", "leave", "leave early"], [75, 5, 12, 8])[0]
    request = session.request(case.method, url + case.path, data=case.body or None)
    if manner == "leave early":
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_whole(request, case), random.uniform(0, 0.1))
        return "left early"
    async with request as reply:
        if manner == "leave":
            await reply.content.readany()
            reply.close()
            return "left"
        pieces = []
        async for piece in reply.content.iter_any():
            pieces.append(piece)
            if manner == "slowly":
                await asyncio.sleep(0.3)
        return check(case, Answer(reply.status, reply.headers.get("Content-Type", ""), b"".join(pieces)))


async def _whole(request: Any, case: Case) -> None:
    async with request as reply:
        check(case, Answer(reply.status, reply.headers.get("Content-Type", ""), await reply.read()))


# The gateway.


def write_config(urls: list[str], number: int) -> None:
    """Into effect by renaming, as editors do; every fourth is wrong."""
    names = ("eyes", "twin", "plain", "nemo", "vectors")
    limits = {"timeout": 1500, "first_byte_timeout": 1500, "total_timeout": 15_000, "max_retries": 1}
    endpoints = [
        {"name": name, "endpoint": url, "api_style": "native", "priority": 1 + (place + number) % 3, **limits}
        for place, (name, url) in enumerate(zip(names, urls, strict=True))
    ]
    endpoints[2]["slots"] = 6
    config = {"custom_endpoints": endpoints, "discovery": {"enabled": False, "interval": 5000}}
    text = json.dumps(config) if number % 4 != 3 else "gateway: {prot: 1}"
    Path("fresh.yaml").write_text(text, "utf-8")
    Path("fresh.yaml").replace("turnout.yaml")


async def reloads(urls: list[str], gateway: subprocess.Popen[bytes], tally: Tally) -> int:
    number = 0
    while not tally.stop:
        await asyncio.sleep(RELOAD)
        number += 1
        write_config(urls, number)
        if number % 2:
            gateway.send_signal(signal.SIGHUP)
    write_config(urls, 0)
    return number


@dataclass(frozen=True)
class Sample:
    second: float
    resident: float  # MB
    files: int


def sample(pid: int, began: float) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024
    return Sample(time.monotonic() - began, resident, len(list(Path(f"/proc/{pid}/fd").iterdir())))


async def samples(pid: int, seconds: float) -> list[Sample]:
    began, found = time.monotonic(), []
    while time.monotonic() - began < seconds:
        await asyncio.sleep(min(SAMPLE, seconds / 20))
        found.append(sample(pid, began))
    return found


def slope(found: list[Sample]) -> float:
    """MB an hour, by least squares."""
    mean_x, mean_y = (sum(values) / len(found) for values in zip(*((s.second, s.resident) for s in found), strict=True))
    above = sum((s.second - mean_x) * (s.resident - mean_y) for s in found)
    return above / sum((s.second - mean_x) ** 2 for s in found) * 3600


def audited(file: Path) -> tuple[int, int, int]:
    """Queries that began, that ended, and ids without exactly one of each."""
    phases: dict[str, Counter[str]] = {"start": Counter(), "end": Counter()}
    for part in log_files(file):
        with part.open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                if record["event_type"] == "query":
                    phases[record["phase"]][record["request_id"]] += 1
    start, end = phases["start"], phases["end"]
    odd = sum(1 for name in start.keys() | end.keys() if (start[name], end[name]) != (1, 1))
    return start.total(), end.total(), odd


async def settled(session: aiohttp.ClientSession, url: str, control: str) -> tuple[int, int]:
    """Requests that still run at the gateway and at the servers, once nothing changes any more; 0, 0 is right."""
    left = (-1, -1)
    for _ in range(60):
        async with session.get(f"{url}/metrics") as reply:
            here = int(float(re.findall(r"^turnout_requests_in_flight (\S+)", await reply.text(), re.MULTILINE)[0])) - 1
        async with session.get(control) as reply:
            there = int(await reply.text())
        if (left := (here, there)) == (0, 0):
            break
        await asyncio.sleep(0.5)
    return left


async def soak(seconds: float) -> int:
    said = Path("gateway.err")
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--servers", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    *urls, control = json.loads(await child.stdout.readline())
    write_config(urls, 0)
    serve = [sys.executable, "-c", "from turnout.cli import main; main()", "serve", "--port", "0"]
    gateway = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=said.open("wb"))
    try:
        while not (found := re.findall(r"(http://\S+)\nFound", said.read_text("utf-8"))):
            assert gateway.poll() is None, said.read_text("utf-8")
            await asyncio.sleep(0.1)
        return await _measured(seconds, urls, control, found[0], gateway, said)
    finally:
        gateway.kill()
        child.kill()
        await child.wait()
        gateway.wait()


async def _measured(
    seconds: float, urls: list[str], control: str, url: str, gateway: subprocess.Popen[bytes], said: Path
) -> int:
    tally, began = Tally(), time.monotonic()
    idle = sample(gateway.pid, began)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        clients = [asyncio.ensure_future(client(session, url, tally)) for _ in range(WORKERS)]
        changing = asyncio.ensure_future(reloads(urls, gateway, tally))
        found = await samples(gateway.pid, seconds)
        tally.stop = True
        await asyncio.gather(*clients)
        took, changes = time.monotonic() - began, await changing
        left = await settled(session, url, control)
    await asyncio.sleep(20)  # connections that were kept are closed
    after = sample(gateway.pid, began)
    gateway.send_signal(signal.SIGTERM)
    ended = await asyncio.to_thread(gateway.wait, 60)
    queries = audited(Path("data/audit.log"))
    warm = found[int(len(found) * WARM_UP) :]
    words = said.read_text("utf-8")
    growth = slope(warm)
    print(f"{took:.0f} s, {tally.begun:,} requests, {tally.begun / took:.0f} a second")
    print(f"answers: {dict(tally.outcomes.most_common())}")
    print(f"configuration: {changes} changes, {words.count('anew')} read, {words.count('stays.')} refused")
    print(
        f"resident MB: {idle.resident:.0f} idle, {warm[0].resident:.0f} after {warm[0].second:.0f} s,"
        f" {warm[-1].resident:.0f} at the end, at most {max(s.resident for s in found):.0f};"
        f" slope {growth:+.1f} MB an hour; at each tenth {[round(s.resident) for s in found[:: len(found) // 10 or 1]]}"
    )
    print(f"descriptors: {idle.files} idle, at most {max(s.files for s in found)}, {after.files} after")
    print(f"audit: {queries[0]:,} began, {queries[1]:,} ended, {queries[2]} without exactly one of each")
    print(f"left running: {left[0]} at the gateway, {left[1]} at the servers; exit code {ended}")
    problems = tally.wrong + [f"{name}: {tally.outcomes[name]}" for name in ("no end",) if tally.outcomes[name]]
    problems += ["a traceback in the log"] if "Traceback" in words else []
    problems += ["requests without an end in the audit log"] if queries[2] else []
    problems += ["something is left"] if left != (0, 0) or after.files > idle.files + 2 else []
    problems += ["an answer is missing"] if tally.begun != tally.outcomes.total() else []
    problems += ["memory grows"] if growth > GROWTH and took >= JUDGED else []
    for problem in problems[:20]:
        print(f"WRONG: {problem}")
    if problems:
        print(f"see {Path.cwd()}")
    return len(problems)


if __name__ == "__main__":
    if "--servers" in sys.argv:
        asyncio.run(servers())
    else:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        os.chdir(tempfile.mkdtemp(prefix="turnout-soak-"))
        os.environ |= {"TURNOUT_DATA_DIR": "data", "TURNOUT_CONFIG": ""}
        sys.exit(bool(asyncio.run(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 600))))
