"""The gateways that bench/gateways.py compares: how each is started, and what the kernel says that it used.

Every one is a child of the benchmark with one worker and its default settings, its log included, but for the port, the
upstream and, where there is a switch for it, telemetry. Those of others are in environments of their own, in the
directory that ``get_gateways.sh`` filled.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from load import Target, ask_once
from stub import MODEL

BENCH = Path(__file__).parent
ROOT = BENCH.parent
START_SECONDS = 120.0
CLOCK_SCHED = 2  # Linux: a process's CPU time in nanoseconds, its threads' included (clock_getcpuclockid(3))
TICK = os.sysconf("SC_CLK_TCK")
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TINY = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
LITELLM_KEY = "sk-bench-0123456789abcdef0123456789abcdef"
TENSORZERO = """
import signal, sys
from tensorzero import _start_http_gateway
gateway = _start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
print(gateway.base_url, flush=True)
signal.pause()
"""


class LeftOutError(Exception):
    """Why a contender does not take part."""


@dataclass(frozen=True)
class Plan:
    """How to start one.

    Attributes:
        package: what it is called in the index, and its environment below the directory; "" for what is our own.
        command: the program and its arguments; of a package those of its environment's Python.
        headers: what its clients send.
        chat: where it takes chats of the OpenAI format.
        model: what it calls the stub's model.
        translates: it takes Anthropic messages for a backend of the OpenAI format.
        tells_address: it takes no port, and prints its address.
    """

    name: str
    package: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    chat: str = CHAT
    model: str = MODEL
    translates: bool = False
    tells_address: bool = False


@dataclass
class Contender:
    """One that runs."""

    plan: Plan
    version: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    idle_bytes: int = 0

    def target(self, path: str, **headers: str) -> Target:
        """Where to ask it."""
        return Target(self.port, path, {**self.plan.headers, **headers})

    def cpu_seconds(self) -> float:
        """CPU time of all its processes, as the kernel accounts it."""
        return sum(_process_cpu(pid) for pid in _tree(self.process.pid))

    def resident_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(_resident(pid) for pid in _tree(self.process.pid))

    def last_words(self) -> str:
        """The end of what it printed."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        return " | ".join(line.strip() for line in lines if line.strip())[-400:]

    def stop(self) -> None:
        """End it, and what it started."""
        children = _tree(self.process.pid)[1:]
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def placed(plan: Plan, directory: Path) -> Plan:
    """With the Python of its environment.

    Raises:
        LeftOutError: it is not installed.
    """
    python = directory / plan.package / "bin" / "python"
    if not python.exists():
        raise LeftOutError(f"it is not in {directory} (sh bench/get_gateways.sh {directory})")
    return replace(plan, command=[str(python), *plan.command])


async def start(plan: Plan, port: int, scratch: Path) -> Contender:
    """Start one and wait until it has answered a question.

    Raises:
        LeftOutError: it did not.
    """
    log = scratch / f"{plan.name.replace(' ', '-')}.log"
    home = scratch / f"{plan.name.replace(' ', '-')}.home"
    home.mkdir()
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    env = {**inherited, "HOME": str(home), **plan.env}
    with log.open("wb") as output:
        process = subprocess.Popen(plan.command, stdout=output, stderr=output, env=env, cwd=home)
    contender = Contender(plan, "", process, port, log)
    try:
        await _answering(contender)
        contender.version = _version(plan)
    except BaseException:
        contender.stop()
        raise
    await asyncio.sleep(1.0)
    contender.idle_bytes = contender.resident_bytes()
    return contender


async def _answering(contender: Contender) -> None:
    body = json.dumps({"model": contender.plan.model, **TINY}).encode()
    until, said = time.monotonic() + START_SECONDS, "no answer"
    while time.monotonic() < until:
        if contender.process.poll() is not None:
            raise LeftOutError(f"it ended at once: {contender.last_words()}")
        if contender.plan.tells_address:
            contender.port = _told_port(contender.log)
        try:
            answer = await ask_once(contender.target(contender.plan.chat), body)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        if answer.status == 200:
            return
        said = f"{answer.status} {answer.body[:200]!r}"
        await asyncio.sleep(0.2)
    raise LeftOutError(f"not ready after {START_SECONDS:g} s: {said}; {contender.last_words()}")


def _told_port(log: Path) -> int:
    told = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text("utf-8", "replace"))
    return int(told[1]) if told else 0


def _version(plan: Plan) -> str:
    if not plan.package:
        return ""
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    return subprocess.run(
        [plan.command[0], "-c", code, plan.package], capture_output=True, text=True, check=True
    ).stdout.strip()


def _process_cpu(pid: int) -> float:
    """Of one process, and of its children that have ended."""
    try:
        waited = sum(int(ticks) for ticks in _stat(pid)[13:15]) / TICK
        return time.clock_gettime((~pid << 3) | CLOCK_SCHED) + waited
    except OSError:
        return 0.0


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


def _tree(root: int) -> list[int]:
    """The process and all that came from it, it first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, ())
    return found


def _stat(pid: int) -> list[str]:
    """``/proc/PID/stat`` from the third field on (proc_pid_stat(5)): state is 0, the parent 1."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def stub(port: int, _: str, __: Path) -> Plan:
    """The upstream itself."""
    return Plan("direct", "", [sys.executable, str(BENCH / "stub.py"), str(port)])


def bare(port: int, upstream: str, _: Path) -> Plan:
    """Starlette, uvicorn and aiohttp, with nothing between."""
    return Plan("bare proxy", "", [sys.executable, str(BENCH / "bare.py"), str(port), upstream])


def turnout(port: int, upstream: str, scratch: Path) -> Plan:
    """``turnout serve`` with a key file: key check, routing, audit log and metrics are on, as they are by default."""
    data, config = scratch / "turnout-data", scratch / "turnout.yaml"
    config.write_text(f"custom_endpoints:\n  - name: stub\n    endpoint: {upstream}\n")
    env = {"TURNOUT_DATA_DIR": str(data), "TURNOUT_LOOPBACK_ONLY": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", "from turnout.cli import main; main()", "--config", str(config)]
    made = subprocess.run(
        [*command, "key", "add", "bench", "--role", "admin"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise LeftOutError(f"no key could be made: {made.stderr.strip()}")
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    return Plan("Turnout", "", [*command, "serve", "--port", str(port)], env, headers, translates=True)


def litellm(port: int, upstream: str, scratch: Path) -> Plan:
    """With its master key as the clients' key, no database, and its price list from the package."""
    config = scratch / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: hosted_vllm/{MODEL}\n"
        f"      api_base: {upstream}/v1\n      api_key: none\ngeneral_settings:\n  master_key: {LITELLM_KEY}\n"
        "litellm_settings:\n  telemetry: false\n"
    )
    env = {"LITELLM_MASTER_KEY": LITELLM_KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = ["-c", "import litellm; litellm.run_server()", "--config", str(config), "--num_workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    headers = {"Authorization": f"Bearer {LITELLM_KEY}"}
    return Plan("LiteLLM", "litellm", command, env, headers, translates=True)


def sglang_router(port: int, upstream: str, _: Path) -> Plan:
    """With its default policy, cache_aware."""
    return Plan("sglang-router", "sglang-router", ["-m", "sglang_router.launch_router", *_rust(port, upstream)])


def vllm_router(port: int, upstream: str, _: Path) -> Plan:
    """With its default policy, cache_aware."""
    return Plan("vllm-router", "vllm-router", ["-m", "vllm_router.launch_router", *_rust(port, upstream)])


def smg(port: int, upstream: str, _: Path) -> Plan:
    """With its default policy, cache_aware."""
    return Plan("smg", "smg", ["-m", "smg.launch_router", *_rust(port, upstream)])


def _rust(port: int, upstream: str) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream]
    return [*listen, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]


def tensorzero(_: int, upstream: str, scratch: Path) -> Plan:
    """The gateway within its Python package, without a database, so nothing is recorded."""
    config = scratch / "tensorzero.toml"
    config.write_text(
        "[gateway]\nobservability.enabled = false\ndisable_pseudonymous_usage_analytics = true\n"
        f'[models."{MODEL}"]\nrouting = ["stub"]\n[models."{MODEL}".providers.stub]\ntype = "openai"\n'
        f'model_name = "{MODEL}"\napi_base = "{upstream}/v1/"\napi_key_location = "none"\n'
    )
    command = ["-c", TENSORZERO, str(config)]
    model = f"tensorzero::model_name::{MODEL}"
    chat = "/openai/v1/chat/completions"
    return Plan("tensorzero", "tensorzero", command, chat=chat, model=model, tells_address=True)


OWN: tuple[Callable[[int, str, Path], Plan], ...] = (bare, turnout)
OTHERS: tuple[Callable[[int, str, Path], Plan], ...] = (litellm, sglang_router, vllm_router, smg, tensorzero)
