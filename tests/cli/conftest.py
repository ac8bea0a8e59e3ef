"""A clean home for each test, and the command line run in this process or as the program itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fakes.base import running
from tests.fakes.llm import openai_app
from tests.servers import WEIGHTS
from turnout.cli import cli


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data and configuration directories of its own beside it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("TURNOUT_CONFIG", raising=False)
    monkeypatch.delenv("TURNOUT_DEBUG", raising=False)
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return here


def run(*args: str, stdin: bytes | str | None = None) -> Result:
    """One command line in this process. A traceback, or an error that nobody caught, fails the test."""
    result = CliRunner().invoke(cli, args, input=stdin, prog_name="turnout")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


async def run_beside(*args: str, stdin: bytes | str | None = None) -> Result:
    """The same while servers run in this loop."""
    return await asyncio.to_thread(run, *args, stdin=stdin)


def program(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The program itself in a process of its own."""
    command = [sys.executable, "-c", "from turnout.cli import main; main()", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def usual_signals() -> None:
    """For a child, before it becomes another program: tests that are run in the background hand on ignored signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def configure(*urls: str, **more: object) -> Path:
    """``./turnout.yaml`` with these endpoints alone, most preferred first (JSON is YAML)."""
    custom = [{"name": f"fake{n}", "endpoint": url, "priority": n} for n, url in enumerate(urls)]
    path = Path("turnout.yaml")
    path.write_text(json.dumps({"custom_endpoints": custom, "discovery": {"enabled": False}, **more}))
    return path


class Fakes:
    """Starts fake OpenAI-compatible servers in the test's loop."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, *models: str, fault: str = "", window: int = 8192) -> str:
        app = openai_app(models or ("qwen2.5-coder-7b-instruct",), window)
        app.state.fake.fault = fault
        return await self._stack.enter_async_context(running(app))


@pytest.fixture
async def fakes() -> AsyncIterator[Fakes]:
    async with AsyncExitStack() as stack:
        yield Fakes(stack)


def as_terminal(*args: str, answer: bytes = b"", columns: int = 200) -> tuple[int, str]:
    """The program on a terminal of its own, so many characters wide: exit code and all that it showed."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS=str(columns), LINES="50")
        os.execv(sys.executable, [sys.executable, "-c", "from turnout.cli import main; main()", *args])
    shown = b""
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
        if answer and b"[y/N]" in shown:
            os.write(terminal, answer)
            answer = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.fixture
def with_weights(tmp_path: Path) -> None:
    """The bundled model, installed in this test's data directory."""
    folder = tmp_path / "data" / "embedded"
    folder.mkdir(parents=True)
    (folder / WEIGHTS.name).symlink_to(WEIGHTS)
