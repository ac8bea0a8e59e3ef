"""One run of a real agent: a gateway process in front of scripted servers, and what can be seen of it afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.agents.coder import MODEL, WINDOW
from tests.agents.installed import DIR, FILE, Agent, Place, Start
from tests.fakes.scripted import Scripted, scripted

LONGEST = 90.0  # seconds that an agent may take
# Faster than in life, where the gateway sends a sign of life after 5 s and every 10: no test waits that long.
SOON = 1.0


@dataclass(frozen=True)
class Run:
    """What was seen of one.

    Attributes:
        code: the agent's exit code; None when it did not end by itself.
        said: all that it wrote.
        seconds: that it took.
        made: the text of the task's file, None when there is none.
        requests: the gateway's access log of what was asked of models, in order.
        audit: the queries in the audit log.
    """

    code: int | None
    said: str
    seconds: float
    made: str | None
    requests: tuple[dict[str, object], ...]
    audit: tuple[dict[str, object], ...]

    @property
    def statuses(self) -> list[object]:
        return [row["status"] for row in self.requests]


def place_of(root: Path, *, patience: int = 0) -> Place:
    """An empty home and a Git repository below ``root``. The address of the gateway is not known yet."""
    home, project = root / "home", root / "project"
    home.mkdir()
    project.mkdir()
    (project / "README.md").write_text("# A project\n", "utf-8")
    named = ("-c", "user.name=T", "-c", "user.email=t@t")
    for command in (("init", "-q", "-b", "main"), ("add", "."), (*named, "commit", "-q", "-m", "Begin")):
        subprocess.run(("git", *command), cwd=project, env=_env(home), check=True)
    return Place(home, project, "", MODEL, WINDOW, patience)


async def run(
    agent: Agent,
    place: Place,
    servers: Sequence[Scripted],
    *,
    patience: float = SOON,
    longest: float = LONGEST,
    launched: bool = False,
) -> Run:
    """Run the agent's task to its end, in front of servers that end with it.

    Args:
        patience: the gateway's, in seconds: for so long it holds the status of an answer.
        longest: seconds after which the agent is ended.
        launched: by ``turnout launch``, which sets it up.
    """
    root = place.home.parent
    async with scripted(*servers):
        custom = [{"name": f"box{n}", "endpoint": server.url} for n, server in enumerate(servers)]
        gateway_config = {"access_log": True, "patience": int(patience * 1000)}
        config = {"custom_endpoints": custom, "discovery": {"enabled": False}, "gateway": gateway_config}
        (root / "turnout.yaml").write_text(json.dumps(config), "utf-8")
        gateway = Gateway(root)
        url = await asyncio.to_thread(gateway.start)
        try:
            placed = replace(place, url=url)
            start = launch(agent, placed) if launched else agent.prepare(placed)
            code, said, seconds = await _work(agent, placed, start, longest)
        finally:
            lines = await asyncio.to_thread(gateway.stop)
    file = place.project / FILE
    return Run(
        code=code,
        said=said,
        seconds=seconds,
        made=file.read_text("utf-8") if file.exists() else None,
        requests=tuple(row for row in lines if row["method"] == "POST"),
        audit=tuple(row for row in _audit(root) if row["event_type"] == "query"),
    )


class Gateway:
    """``turnout serve`` as a child, with its data below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._code = (
            "from turnout.gateway import completions; from turnout.cli import main;"
            f" completions.KEEP_ALIVE_SECONDS = {SOON}; main()"
        )
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Returns its URL once it listens."""
        command = (sys.executable, "-c", self._code, "serve", "--port", "0")
        env = os.environ | {"TURNOUT_DATA_DIR": str(self._root / "data")}
        env.pop("TURNOUT_CONFIG", None)
        with (self._root / "access.log").open("w") as log:
            self._child = subprocess.Popen(
                command, cwd=self._root, env=env, stdout=log, stderr=subprocess.PIPE, text=True
            )
        assert self._child.stderr is not None
        said: list[str] = []
        for line in self._child.stderr:
            if found := re.search(r"listens on (http://[^\s;]+)", line):
                return found[1]
            said.append(line)
        raise AssertionError("".join(said))

    def stop(self) -> list[dict[str, object]]:
        """Returns its access log."""
        assert self._child is not None
        self._child.send_signal(signal.SIGINT)
        _, said = self._child.communicate(timeout=40)
        assert "Traceback" not in said, said
        return [json.loads(line) for line in (self._root / "access.log").read_text("utf-8").splitlines()]


def launch(agent: Agent, place: Place) -> Start:
    """The agent as ``turnout launch`` sets it up."""
    code = "from turnout.cli import main; main()"
    command = ("-c", code, "launch", agent.name, "--url", place.url, "--model", place.model, "--")
    passed = {name: os.environ[name] for name in ("PYTHONPATH", "TURNOUT_LOOPBACK_ONLY") if name in os.environ}
    return Start((sys.executable, *command), passed | {"TURNOUT_DATA_DIR": str(place.home.parent / "launched")})


async def _work(agent: Agent, place: Place, start: Start, longest: float) -> tuple[int | None, str, float]:
    """Start the agent, wait for it, and end whatever it leaves: its exit code, its words, and the seconds."""
    path = f"{Path(DIR) / 'bin'}:{agent.file.parent}:{os.environ['PATH']}"
    env = _env(place.home) | {"PATH": path} | dict(start.env)
    log = place.home.parent / "said.log"
    began = time.monotonic()
    code: int | None = None
    with log.open("wb") as out:
        for command in filter(None, (start.before, (*start.command, *agent.arguments))):
            child = await asyncio.create_subprocess_exec(
                *command, cwd=place.project, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
            try:
                code = await asyncio.wait_for(child.wait(), longest)
            except TimeoutError:
                code = None
            finally:
                end_all_of(place.home)
                await child.wait()
    return code, log.read_text("utf-8", "replace"), time.monotonic() - began


def _env(home: Path) -> dict[str, str]:
    """Claude Code works for root in a sandbox alone, which this is."""
    told = {"TERM": "dumb", "LANG": "C.UTF-8", "TMPDIR": str(home.parent), "IS_SANDBOX": "1"}
    return {"HOME": str(home), "PATH": os.environ["PATH"], **told}


def end_all_of(home: Path) -> None:
    """End every process that has this home: an agent, its children, and the daemons that some leave."""
    mark = f"HOME={home}\0".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            env = (entry / "environ").read_bytes()
        except OSError:
            continue
        if mark in env:
            with suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _audit(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / "data" / "audit.log").read_text("utf-8").splitlines()]
