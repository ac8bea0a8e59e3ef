"""The question and where it stands: each bad input gives one message, exit code 2 and no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Fakes, configure, program, run, run_beside
from turnout.cli.request import MAX_QUERY_BYTES, Given, build_request, find_workspace
from turnout.config import LoadedConfig, RouterConfig
from turnout.errors import UsageError
from turnout.types import FileContext, Position, TaskCategory

NOTHING: Given = {
    "query": None,
    "file": None,
    "line": None,
    "column": None,
    "model": None,
    "category": None,
    "workspace": None,
    "max_tokens": None,
}
DEFAULTS = LoadedConfig(RouterConfig())


@pytest.mark.parametrize("command", ["ask", "explain", "classify"])
@pytest.mark.parametrize(
    ("query", "stdin", "says"),
    [
        ("", b"", "the query is empty"),
        ("  \n", b"", "the query is empty"),
        (None, b"", "the query is empty"),
        ("-", b" ", "the query is empty"),
        ("-", b"\x7fELF\x00\x01", "binary (it has NUL bytes)"),
        ("what is this?", b"\x89PNG\xff\xfe", "not UTF-8 text (byte 0)"),
        ("-", b"x" * 10_485_760, "the query has 10,485,760 bytes, the most is 2,000,000"),
        ("y" * 10_000_000, b"", "the query has 10,000,000 bytes, the most is 2,000,000"),
        ("-", b"z" * 64_000_002, "the query has more than 64,000,000 bytes"),
        ("a" * 1_500_000, b"b" * 1_500_000, "the query has 3,000,002 bytes"),
        ("caf\udce9", b"", "the query is not UTF-8 text"),
    ],
)
def test_a_bad_query_is_refused(command: str, query: str | None, stdin: bytes, says: str) -> None:
    result = run(command, *([query] if query is not None else []), stdin=stdin)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, hint = result.stderr.splitlines()
    assert says in first
    assert first.startswith("Error: ")
    assert hint.startswith("Hint: ")
    assert "turnout" not in hint or f'turnout {command} "..."' in hint


def test_a_query_of_exactly_the_most_is_read() -> None:
    assert run("classify", "-", stdin=b"x" * MAX_QUERY_BYTES).exit_code == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--line", "3"), "--line and --column need --file"),
        (("--file", "a.py", "--column", "3"), "--column needs --line"),
        (("--file", "a.py", "--line", "0"), "0 is not in the range x>=1"),
        (("--file", "a.py"), "there is no file a.py"),
        (("--file", "/etc/hostname"), "--file needs a workspace"),
        (("--file", "../a.py"), "--file needs a workspace"),
        (("--workspace", ".", "--file", "gone.py"), "there is no file gone.py"),
        (("--workspace", ".", "--file", "/etc/hostname"), "/etc/hostname is outside the workspace"),
        (("--workspace", "gone"), "--workspace gone is not a directory"),
        (("--model", "m", "--category", "coding"), "--model and --category exclude each other"),
        (("--category", "cooking"), "'cooking' is not one of"),
        (("--max-tokens", "0"), "0 is not in the range x>=1"),
    ],
)
def test_options_that_make_no_sense_are_refused(args: tuple[str, ...], says: str) -> None:
    result = run("ask", "hello", *args)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_configured_workspace_that_is_gone_is_named() -> None:
    configure(serena={"workspace": "gone"})
    result = run("explain", "hello")
    assert result.exit_code == 2
    assert "serena.workspace gone is not a directory" in result.stderr


def test_piped_text_is_attached_after_the_query() -> None:
    done = program("classify", "--json", "--explain", "Explain", input="the error: refactor")
    assert "refactor" in done.stdout
    assert (
        program("classify", "--json", "-", input="refactor").stdout
        == program("classify", "--json", "refactor", stdin=subprocess.DEVNULL).stdout
    )


def test_a_pipe_that_stays_open_is_said_to_be_waited_for() -> None:
    command = [sys.executable, "-c", "from turnout.cli import main; main()", "classify", "hello"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stderr is not None
        told = child.stderr.readline()
        rest, more = child.communicate()
    assert told == "waiting for standard input to end; `< /dev/null` attaches nothing\n"
    assert (child.returncode, more) == (0, "")
    assert "category\tcoding" in rest


def test_a_socket_is_read_only_when_there_is_no_query() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = program("classify", "hello", stdin=theirs)
    assert done.returncode == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"refactor this")
        ours.shutdown(socket.SHUT_WR)
        alone = program("classify", "--explain", stdin=theirs)
    assert "refactor this" in alone.stdout


def test_positions_are_from_1_outside_and_from_0_inside(home: Path) -> None:
    (home / ".git").mkdir()
    (home / "pkg").mkdir()
    (home / "pkg" / "a.py").write_text("x = 1\n")
    os.chdir(home / "pkg")
    request = build_request(DEFAULTS, {**NOTHING, "file": "a.py", "line": 1, "column": 5}, "why?")
    assert request.workspace == str(home)
    assert request.file_context == FileContext("pkg/a.py", Position(0, 4))
    whole = build_request(DEFAULTS, {**NOTHING, "file": "pkg/a.py", "category": "analysis"}, "why?")
    assert whole.file_context == FileContext("pkg/a.py")
    assert whole.category is TaskCategory.ANALYSIS
    assert whole.last_user_text == "why?"


def test_without_git_the_workspace_is_the_current_directory_and_never_above(home: Path) -> None:
    (home / "pkg").mkdir()
    (home / "pkg" / "a.py").write_text("x = 1\n")
    (home / "b.py").write_text("x = 1\n")
    request = build_request(DEFAULTS, {**NOTHING, "file": "pkg/a.py"}, "why?")
    assert request.workspace == str(home)
    assert request.file_context == FileContext("pkg/a.py")
    assert build_request(DEFAULTS, NOTHING, "why?").workspace == ""
    os.chdir(home / "pkg")
    assert build_request(DEFAULTS, {**NOTHING, "file": "a.py"}, "why?").workspace == str(home / "pkg")
    with pytest.raises(UsageError, match="not below here"):
        build_request(DEFAULTS, {**NOTHING, "file": "../b.py"}, "why?")
    (home / ".git").mkdir()
    assert build_request(DEFAULTS, {**NOTHING, "file": "../b.py"}, "why?").workspace == str(home)


async def test_the_line_asked_about_is_sent_and_one_beyond_the_end_is_refused(fakes: Fakes, home: Path) -> None:
    configure(await fakes.start())
    (home / "app.py").write_text("for row in rows:\n    if row:\n        break\n")
    args = ("explain", "Why does this loop end early?", "--file", "app.py", "--line")
    shown = await run_beside(*args, "3", stdin=b"")
    assert "code context: text search: no name in the question, 1 file read; sent: app.py lines 1 to 3" in shown.stdout
    beyond = await run_beside(*args, "4", stdin=b"")
    assert beyond.exit_code == 2
    assert "Error: app.py has 3 lines, there is no line 4" in beyond.stderr


def test_the_workspace_asked_for_comes_before_the_configured_one(home: Path, tmp_path: Path) -> None:
    assert find_workspace(None, None) is None
    assert find_workspace(None, str(tmp_path)) == tmp_path
    assert find_workspace(str(home), str(tmp_path)) == home
    with pytest.raises(UsageError):
        find_workspace(str(tmp_path / "gone"), None)
