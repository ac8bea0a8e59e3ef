"""Every command, with every address of the world leading to a recorder: no packet that is not for loopback.

Three commands fetch when they are told to, with pip, and say so: `embedded install` without --file, `code install`, and
`bundle make` without --wheels.
`prove` dials on purpose; `tests/guard/test_prove.py` records it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.conftest import Fakes, configure, program, run_beside
from tests.guard.conftest import whole_world_is_here
from tests.guard.recorder import Recorder, recording
from turnout.cli import cli
from turnout.config import SecurityConfig
from turnout.guard.allow import AllowList

__all__ = ["whole_world_is_here"]

MODEL = "qwen2.5-coder-7b-instruct"
OUTSIDE = "203.0.113.5"

# A command line for every command; "" for those of the sentence above, and what has a test of its own here.
LINES = {
    "ask": "ask --session s hello",
    "chat": "chat --session s",
    "undo": "undo",
    "session list": "session list",
    "session show": "session show s",
    "session export": "session export s",
    "session resume": "session resume s",
    "session prune": "session prune",
    "session delete": "session delete s",
    "explain": "explain hello",
    "classify": "classify hello",
    "eval classify": "eval classify examples.jsonl",
    "eval route": "eval route examples.jsonl",
    "eval replay": "eval replay",
    "feedback": "feedback",
    "discover": "discover",
    "models": "models",
    "models warm": f"models warm {MODEL}",
    "models unload": f"models unload {MODEL}",
    "models pin": f"models pin {MODEL}",
    "models unpin": f"models unpin {MODEL}",
    "models fit": "models fit",
    "models lock": "models lock",
    "models verify": "models verify",
    "models export": "models export tiny --path tiny.gguf",
    "models import": "models import tiny.turnout-model.tar --to lmstudio --folder models",
    "top": "top --json",
    "env": "env codex",
    "launch": "launch codex -- --version",
    "audit tail": "audit tail",
    "audit search": "audit search --query hello",
    "audit stats": "audit stats",
    "audit verify": "audit verify",
    "audit export": "audit export out",
    "key add": "key add ci",
    "key list": "key list",
    "key rotate": "key rotate ci",
    "token mint": "token mint --key ci",
    "token list": "token list",
    "token revoke": "token revoke --all",
    "key revoke": "key revoke ci",
    "config check": "config check",
    "config show": "config show",
    "config init": "config init --force",
    "code install": "",
    "code status": "code status",
    "code symbols": "code symbols total",
    "code references": "code references shop.py:1",
    "code hover": "code hover shop.py:1",
    "code definition": "code definition shop.py:1",
    "code type-definition": "code type-definition shop.py:1",
    "code implementations": "code implementations shop.py:1",
    "code calls": "code calls shop.py:1",
    "code diagnostics": "code diagnostics shop.py",
    "code outline": "code outline shop.py",
    "code stop": "code stop",
    "embedded install": "",
    "embedded status": "embedded status",
    "bundle make": "bundle make --embedded --serena --wheels .",
    "bundle verify": "bundle verify turnout.yaml",
    "serve": "",
    "prove": "",
    "verify": "verify turnout.yaml",
    "doctor": "doctor",
}


@pytest.fixture
def recorder(whole_world_is_here: None) -> Iterator[Recorder]:
    with recording() as made:
        yield made


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))
        if not command.invoke_without_command:
            return
    yield " ".join(path)


def test_no_command_was_forgotten() -> None:
    assert set(commands()) == set(LINES)


@pytest.mark.isolated
async def test_no_command_makes_a_packet_off_the_list(
    recorder: Recorder, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNOUT_LOOPBACK_ONLY")  # what is looked for beyond loopback is in the recorder's world
    configure(
        await fakes.start(MODEL),
        discovery={"enabled": True, "timeout": 5000, "scan_cidrs": ["10.1.2.0/30"], "scan_ports": [9]},
        security={"allowed_hosts": ["gpu1.lan"]},
    )
    Path(".git").mkdir()
    Path("shop.py").write_text("def total(prices: list[int]) -> int:\n    return sum(prices)\n")
    Path("tiny.gguf").write_bytes(b"GGUF")
    Path("examples.jsonl").write_text(json.dumps({"query": "fix this bug", "category": "coding"}) + "\n")
    allow = AllowList.from_config(SecurityConfig())
    left, codes = dict[str, set[str]](), dict[str, int]()
    lines = [*filter(None, LINES.values()), "doctor --air-gap --html page.html", "discover --explain 127.0.0.1:1"]
    for line in (*lines, "discover --scan"):
        if line.startswith("launch"):  # it would take this process's place
            codes[line] = (await asyncio.to_thread(program, *line.split())).returncode
        else:
            codes[line] = (await run_beside(*line.split(), stdin=b"")).exit_code
        if found := recorder.off(allow):
            left[line] = found
    assert left == {}
    assert [codes[LINES[name]] for name in ("ask", "discover", "models", "explain", "key rotate", "models import")] == [
        0
    ] * 6


@pytest.mark.isolated
async def test_the_gateway_makes_none_either_whatever_it_is_asked(recorder: Recorder, fakes: Fakes) -> None:
    configure(await fakes.start(MODEL))
    with subprocess.Popen([*PROGRAM, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            port = int((await asyncio.to_thread(child.stderr.readline)).strip().rpartition(":")[2])
            answers = [await _raw(port, request) for request in REQUESTS]
        finally:
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=30)
    assert recorder.off() == set()
    assert answers == [b"200", *[b"421"] * 4, b"400"]


CHAT = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]})
IMAGE = json.dumps(
    {
        "model": "auto",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "hi"},
                    {"type": "image_url", "image_url": {"url": f"http://{OUTSIDE}/x.png"}},
                ],
            }
        ],
    }
)


def _post(target: str, host: str, body: str = CHAT) -> str:
    head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}"


PATH = "/v1/chat/completions"
# The absolute form of a request, which a proxy would follow, and Host headers of others, as rebinding sends them.
REQUESTS = (
    _post(PATH, "localhost"),
    _post(f"http://{OUTSIDE}{PATH}", OUTSIDE),
    _post(PATH, "evil.example"),
    _post(PATH, "169.254.169.254"),
    _post(PATH, "localhost.evil.example"),
    _post(PATH, "localhost", IMAGE),
)
PROGRAM = [sys.executable, "-c", "from turnout.cli import main; main()"]


async def _raw(port: int, request: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    return answer.split()[1]


BROKEN = """\
import turnout.guard.allow as allow
allow.AllowList.check_host = lambda *_: None
allow.AllowList.check_address = lambda *_, **__: None
from turnout.cli import main
main()
"""


@pytest.mark.isolated
def test_a_guard_that_was_broken_on_purpose_is_caught(recorder: Recorder) -> None:
    configure(f"http://{OUTSIDE}:9", "http://[2001:db8::5]:9")
    subprocess.run([sys.executable, "-c", BROKEN, "discover"], capture_output=True, timeout=60, check=False)
    assert recorder.off() >= {OUTSIDE, "2001:db8::5"}
    done = subprocess.run([*PROGRAM, "discover"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, recorder.off()) == (4, set())


@pytest.mark.isolated
def test_the_recorder_hears_what_leaves(recorder: Recorder) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as used:
        used.sendto(b"x", ("127.0.0.1", 9))
        assert recorder.off() == set()
        used.sendto(b"x", (OUTSIDE, 9))
    assert recorder.off() == {OUTSIDE}
