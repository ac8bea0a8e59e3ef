"""A scripted Serena: an MCP server on standard streams that answers each tool as a test says, one call after another.

``install`` writes it as a program named ``serena`` beside a language server that does nothing, with a folder to control
it by: ``<tool>`` there is a list of what it does at each call, the last one for ever; ``start`` what it does before it
reads anything. It writes down each call, and how it was started. As the real one (facts/serena.md, sections 1.1, 1.5
and 5) it has one queue: while it does not answer, nobody is answered. Omitted: every tool's work, logs, time.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.code.install import SerenaProgram


def says(text: str) -> dict[str, Any]:
    """An answer."""
    return {"text": text}


def refuses(text: str) -> dict[str, Any]:
    """An answer that is marked as an error."""
    return {"text": text, "error": True}


CRASHES = {"crash": True}
LONG_LINE = {"print": "x" * 5_000_000}
SLOW = refuses("Error executing tool find_symbol: TimeoutError: Request timed out (timeout=25.0)")


def prints(text: str, then: dict[str, Any]) -> dict[str, Any]:
    """Something that is no message, and then what ``then`` says."""
    return {"print": text, **then}


@dataclass
class FakeSerena:
    """The program and the folder that controls it."""

    program: SerenaProgram
    control: Path

    def on(self, tool: str, *what: dict[str, Any]) -> None:
        """What a tool does from now on, call by call; ``start`` is what it does first."""
        (self.control / f"{tool}.count").unlink(missing_ok=True)
        (self.control / tool).write_text(json.dumps(what))

    def waits(self, tool: str, then: dict[str, Any]) -> Path:
        """A tool waits until somebody writes to the pipe whose path this is."""
        pipe = self.control / f"{tool}.pipe"
        if not pipe.exists():
            os.mkfifo(pipe)
        self.on(tool, {"wait": str(pipe), **then})
        return pipe

    @property
    def asked(self) -> list[tuple[str, dict[str, Any]]]:
        """Every call of a tool until now, with its arguments."""
        told = self.control / "asked"
        return [tuple(json.loads(line)) for line in told.read_text().splitlines()] if told.exists() else []

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The command line, the environment and the configuration of each start."""
        told = self.control / "starts"
        return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def install(folder: Path, version: str = "2.1.0") -> FakeSerena:
    """A new one in a folder, with a language server for Python beside it."""
    from turnout.code.install import SerenaProgram  # not in the program: it starts often

    control, programs = folder / "control", folder / "bin"
    control.mkdir(parents=True)
    programs.mkdir()
    code = f"import runpy\nrunpy.run_path({__file__!r})['main']({str(control)!r})\n"
    for name, text in (("serena", f"#!{sys.executable} -IS\n{code}"), ("ty", "#!/bin/sh\nexit 1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return FakeSerena(SerenaProgram(programs / "serena", version), control)


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def _next(control: Path, tool: str) -> dict[str, Any]:
    file, count = control / tool, control / f"{tool}.count"
    if not file.exists():
        return {} if tool == "start" else refuses(f"Unknown tool: {tool}")
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    what = json.loads(file.read_text())
    return what[min(number, len(what) - 1)]


def _do(what: dict[str, Any]) -> None:
    if "wait" in what:
        Path(what["wait"]).read_text()
    if "print" in what:
        sys.stdout.write(what["print"] + "\n")
        sys.stdout.flush()
    if "crash" in what:
        sys.stderr.write("Traceback: it went wrong in /home/somebody/secret/place.py\n")
        os._exit(1)


def main(folder: str) -> None:
    """Serve until standard input ends."""
    control, home = Path(folder), Path(os.environ["SERENA_HOME"])
    written = {p.name: json.loads(p.read_text()) for p in [*home.glob("*.yml"), *home.glob("project/*.yml")]}
    start = {"argv": sys.argv[1:], "env": dict(os.environ), "written": written, "pid": os.getpid()}
    with (control / "starts").open("a") as file:
        file.write(json.dumps(start) + "\n")
    _do(_next(control, "start"))
    for line in sys.stdin:
        _serve(control, json.loads(line))


def _serve(control: Path, message: dict[str, Any]) -> None:
    method, number = message["method"], message.get("id")
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        info = {"name": "Serena", "version": "2.1.0"}
        _send({"id": number, "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}})
    elif method == "tools/list":
        _send({"id": number, "result": {"tools": []}})
    elif method == "tools/call":
        tool, arguments = message["params"]["name"], message["params"].get("arguments", {})
        with (control / "asked").open("a") as file:
            file.write(json.dumps([tool, arguments]) + "\n")
        what = _next(control, tool)
        _do(what)
        content = [{"type": "text", "text": what.get("text", "")}]
        _send({"id": number, "result": {"content": content, "isError": bool(what.get("error"))}})
