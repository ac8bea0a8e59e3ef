"""``turnout serve`` as a process: what it says when it starts, and when it does not start."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from tests.fakes.base import running
from tests.fakes.llm import openai_app

COMMAND = [sys.executable, "-c", "from turnout.cli import main; main()", "serve", "--port", "0"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNOUT_CONFIG", raising=False)
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def configure(*urls: str, **more: object) -> None:
    custom = [{"name": f"box{n}", "endpoint": url} for n, url in enumerate(urls)]
    Path("turnout.yaml").write_text(
        json.dumps({"custom_endpoints": custom, "discovery": {"enabled": False}} | more), "utf-8"
    )


class Serving:
    """The process, once it has said its two lines on standard error."""

    async def __aenter__(self) -> Self:
        self.child = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
        assert self.child.stderr is not None
        address = await asyncio.to_thread(self.child.stderr.readline)
        found = re.search(r"http://\S+", address)
        assert found is not None, address
        self.url = found[0]
        self.found = await asyncio.to_thread(self.child.stderr.readline)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.child.send_signal(signal.SIGINT)
        await asyncio.to_thread(self.child.communicate, timeout=30)


async def test_it_says_what_it_found() -> None:
    async with running(openai_app(("a", "b"))) as one, running(openai_app(("c",))) as two:
        configure(one, two)
        async with Serving() as serving:
            assert serving.found == "Found 2 servers with 3 models: box0 (2), box1 (1)\n"
    records = [json.loads(line) for line in Path("data/audit.log").read_text("utf-8").splitlines()]
    assert [record["event_type"] for record in records] == ["start"]


async def test_it_says_what_to_do_when_nothing_is_found_and_finds_it_later() -> None:
    app = openai_app()
    app.state.fake.fault = "key"
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    async with running(app) as url:
        configure(url)
        async with Serving() as serving, aiohttp.ClientSession() as session:
            assert serving.found.startswith("No server is found yet: start one such as ")
            assert "every 15 s and when a request comes" in serving.found
            async with session.post(f"{serving.url}/v1/chat/completions", json=body) as reply:
                assert reply.status == 503
            app.state.fake.fault = ""
            async with session.post(f"{serving.url}/v1/chat/completions", json=body) as reply:
                assert reply.status == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_it_does_not_start_when_the_audit_log_cannot_be_written() -> None:
    configure("http://127.0.0.1:9", security={"audit_log_path": "/dev/full"})
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the audit log /dev/full cannot be written: No space left on device\n")
    assert "listens" not in done.stderr
