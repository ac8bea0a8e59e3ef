"""``turnout serve``."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys

import aiohttp

from tests.cli.conftest import Fakes, configure, program, run


def test_it_listens_on_loopback_only_without_a_key() -> None:
    result = run("serve", "--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "cannot listen on 0.0.0.0" in result.stderr
    assert run("serve", "--port", "70000").exit_code == 2


def test_a_port_in_use_is_one_clear_line() -> None:
    configure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = program("serve", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"Error: the gateway cannot listen on 127.0.0.1:{port}: Address already in use",
        "Hint: choose another --port",
    ]


async def test_it_says_its_address_answers_and_ends_on_ctrl_c(fakes: Fakes) -> None:
    configure(await fakes.start())
    command = [sys.executable, "-c", "from turnout.cli import main; main()", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            url = await _address(child)
            async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as reply:
                listed = json.loads(await reply.text())
        finally:
            child.send_signal(signal.SIGINT)
            rest = child.communicate(timeout=30)[1]
    assert any(row["id"] == "qwen2.5-coder-7b-instruct" for row in listed["data"])
    assert [line for line in rest.splitlines() if not line.startswith("Found ")] == []
    assert child.returncode in (0, 130)


async def _address(child: subprocess.Popen[str]) -> str:
    import asyncio

    assert child.stderr is not None
    line = await asyncio.to_thread(child.stderr.readline)
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    return found[0]
