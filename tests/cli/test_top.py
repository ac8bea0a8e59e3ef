"""``turnout top`` live: the frame and its changes, and the program on a terminal of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack

import pytest
from rich.console import Console

from tests.cli.conftest import configure, usual_signals
from tests.fakes import FAKES
from tests.fakes.base import Fake, running
from turnout.api import load_any
from turnout.build import open_router
from turnout.cli.top import _frame
from turnout.fleet.watch import Fleet
from turnout.types import Health


def shown(fleet: Fleet) -> str:
    console = Console(width=160, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123 - closed with it
    console.print(_frame(fleet))
    console.file.close()
    return console.export_text()


async def test_a_frame_shows_what_is_loaded_and_what_changed() -> None:
    vllm = FAKES["vllm"]
    async with AsyncExitStack() as stack:
        async with running(vllm.app(Fake(busy=1)), server_header=vllm.SERVER_HEADER) as url:
            config = load_any(
                {
                    "custom_endpoints": [{"name": "gpu", "endpoint": url, "api_style": "native"}],
                    "discovery": {"enabled": False, "interval": 1000},
                }
            )
            fleet = (await stack.enter_async_context(open_router(config, watch=True, whole=True))).fleet
            first = shown(fleet)
            assert "gpu" in first
            assert "qwen2.5-coder-7b-instruct" in first
            assert "online" in first
        async with asyncio.timeout(30):
            while fleet.catalog.endpoints[0].health is not Health.OFFLINE:
                await fleet.changed(fleet.catalog.generation)
        assert "gpu: online -> offline: nothing answers" in " ".join(shown(fleet).split())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_it_draws_on_a_terminal_until_ctrl_c() -> None:
    import pty

    configure("http://127.0.0.1:9")
    pid, terminal = pty.fork()
    if pid == 0:
        usual_signals()
        os.environ.update(TERM="xterm", COLUMNS="120", LINES="40")
        os.execv(sys.executable, [sys.executable, "-c", "from turnout.cli import main; main()", "top"])
    drawn = b""
    while b"changes" not in drawn:
        drawn += os.read(terminal, 4096)
    os.kill(pid, signal.SIGINT)
    try:
        while data := os.read(terminal, 4096):
            drawn += data
    except OSError:
        pass  # how a terminal whose last user has gone ends on Linux
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b"fake0" in drawn
    assert b"Traceback" not in drawn
