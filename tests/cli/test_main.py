"""The top of the command line: help, exit codes, and every error as one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import program, run, usual_signals
from turnout.cli import COMMANDS, EXIT_INTERRUPTED, cli, guarded
from turnout.errors import AuditError, ConfigError, GuardError, NoServiceError, UsageError


def test_help_names_every_command_and_exit_code() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert "0 done, 1 failed, 2 usage, 3 no service, 4 refused by the guard" in result.stdout
    assert "_TURNOUT_COMPLETE=bash_source" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_of_itself_what_the_help_says(name: str) -> None:
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(200) == COMMANDS[name][1]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom turnout.cli import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('asyncio', 'aiohttp', 'msgspec', 'rich', 'yaml', 'turnout.router') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    assert run("--version").stdout == "turnout 0.1.0\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    result = run("aks", "hello")
    assert result.exit_code == 2
    assert "No such command 'aks'" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuditError("m", hint="do this"), 1),
        (UsageError("m", hint="do this"), 2),
        (ConfigError("m", file="f.yaml", line=3, key="a.b", hint="do this"), 2),
        (NoServiceError("m", hint="do this", probed=(("here", "nothing"),)), 3),
        (GuardError("m", hint="do this"), 4),
    ],
)
def test_each_error_is_a_message_a_hint_and_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert guarded(fail) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == ("Error: f.yaml:3: a.b: m" if isinstance(error, ConfigError) else "Error: m")
    assert lines[-1] == "Hint: do this"
    assert ("probed here: nothing" in lines) is (code == 3)


def test_an_unexpected_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a\n\x1b[31mb")

    assert guarded(fail) == 1
    err = capsys.readouterr().err
    assert err == "internal error: ZeroDivisionError: a [31mb; run again with TURNOUT_DEBUG=1 for the traceback\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    assert guarded(fail) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == ""


def test_ctrl_c_while_reading_ends_with_130() -> None:
    command = [sys.executable, "-m", "turnout", "classify", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=usual_signals) as child:
        assert child.stdin is not None
        # More than a pipe holds: when this returns, the command is reading, and it waits for the end.
        child.stdin.write(b"x" * 500_000)
        child.stdin.flush()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert child.returncode == EXIT_INTERRUPTED
    assert (out, err.strip()) == (b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["click", "msgspec"])
def test_a_signal_while_modules_are_imported_ends_it_without_a_word(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    """``click`` is imported before the command line is there, ``msgspec`` with the command's own module."""
    (tmp_path / f"{module}.py").write_text(f"import signal\nsignal.raise_signal({int(number)})\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, "-m", "turnout", "classify", "hello"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, preexec_fn=usual_signals)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


@pytest.mark.parametrize("args", [("classify", "hello"), ("classify", "--json", "hello"), ("--help",)])
def test_a_closed_pipe_is_quiet(args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from turnout.cli import main; main()", *args]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_message() -> None:
    command = [sys.executable, "-c", "from turnout.cli import main; main()", "classify", "hello"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b"Error: No space left on device: standard output\n"
    assert done.returncode == 1


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); from turnout.cli import main; main()"
    (here := tmp_path / "gone").mkdir()
    done = subprocess.run([sys.executable, "-c", code, "doctor"], cwd=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Error: the current directory is gone")


def _with_closed(*descriptors: int, args: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The program with some of its standard streams closed, as the shell's ``>&-`` does."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    command = [sys.executable, "-c", "from turnout.cli import main; main()", *args]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, text=True, check=False, preexec_fn=close, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("args", [("classify", "hello"), ("classify", "--json", "hello")])
def test_a_closed_stdout_is_one_message(args: tuple[str, ...]) -> None:
    done = _with_closed(1, args=args)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Error: standard output is closed"


def test_a_closed_stderr_costs_nothing() -> None:
    done = _with_closed(2, args=("ask", "--help"))
    assert (done.returncode, "Usage" in done.stdout) == (0, True)
    done = _with_closed(2, args=("doctor", "--json"))
    assert '"checks"' in done.stdout


def test_completion_lists_the_commands() -> None:
    env = {**os.environ, "_TURNOUT_COMPLETE": "bash_complete", "COMP_WORDS": "turnout e", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "from turnout.cli import main; main()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,explain", "plain,eval", "plain,env", "plain,embedded"]


def test_the_program_runs() -> None:
    done = program("classify", "--json", "hello", stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert '"category"' in done.stdout
