"""The ``turnout`` command. A command's module is imported when the command is used, so that ``--help`` stays fast."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from turnout import __version__
from turnout.errors import EXIT_DONE, EXIT_FAILED, TurnoutError

if TYPE_CHECKING:
    from turnout.types import Json

EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as of a program that SIGPIPE ends: whoever read has seen enough, nothing failed
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Name -> (module in this package, what --help says). The module holds a command of that name and help text.
COMMANDS: dict[str, tuple[str, str]] = {
    "ask": ("ask", "Ask a question and stream the answer of the best local model."),
    "chat": ("chat", "Have a conversation: what was said is sent along, shortened when it must be."),
    "undo": ("edits", "Take back what `ask --edit`, `ask --apply` or `/apply` changed last in the workspace."),
    "session": ("session", "List, show, resume, export or delete conversations."),
    "explain": ("decide", "Show which model a question would go to, with every candidate and why; runs nothing."),
    "code": ("code", "Ask about the code of a workspace: symbols, uses, types, what is wrong."),
    "classify": ("decide", "Show what kind of work a question is, and what spoke for it."),
    "eval": ("evaluate", "Measure what Turnout decides on examples of your own."),
    "feedback": ("feedback", "Say whether an answer was any good; without a request, list the last ones."),
    "discover": ("fleet", "Look for local LLM servers and show the state of each."),
    "models": ("models", "List the models that the local servers offer."),
    "top": ("top", "Show live what is loaded where, who waits, tokens per second and changes of state."),
    "serve": ("serve", "Run the gateway that coding agents connect to."),
    "env": ("env", "Print what AGENT must be told to use the gateway; without AGENT, list the agents."),
    "launch": ("launch", "Run AGENT on the gateway, with ARGS as its own arguments."),
    "audit": ("audit", "Read, search, count, check and hand over the audit log."),
    "key": ("key", "Make, list, rotate and revoke the keys of the gateway."),
    "token": ("token", "Mint, list and revoke short-lived tokens of the gateway."),
    "config": ("config", "Check, show or create the configuration."),
    "embedded": ("embedded", "Install or inspect the bundled demonstration model."),
    "bundle": ("bundle", "Carry Turnout to a machine without a package index, in one signed file."),
    "prove": ("prove", "Try to get out through every door, and write a signed report of what stopped it."),
    "verify": ("prove", "Check that a signed report is as it was written."),
    "doctor": ("doctor", "Check this installation and say how to fix what is wrong."),
}

EPILOG = """\b
Exit codes: 0 done, 1 failed, 2 usage, 3 no service, 4 refused by the guard.
Shell completion: eval "$(_TURNOUT_COMPLETE=bash_source turnout)"  (or zsh_source, fish_source)
"""


class _ReaderLeftError(Exception):
    """Whoever read what the command prints has closed the pipe."""


@contextmanager
def _as_reader_left() -> Iterator[None]:
    """Say so before Click sees it, who calls it a failure."""
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderLeftError from error


class CommandLine(click.Group):
    """The top group: loads commands on use, and turns every error into one clear message and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"turnout.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(command, click.Command)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as __main__.py leaves it: from here on it is told
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _as_reader_left():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _as_reader_left():
            return super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line and exit with its code."""
        options["standalone_mode"] = False
        given = args[0] if args else options.get("args")
        as_json = _asks_for_json(sys.argv[1:] if given is None else given)
        sys.exit(guarded(lambda: super(CommandLine, self).main(*args, **options), as_json=as_json))


def _asks_for_json(args: Sequence[str]) -> bool:
    """Read from the arguments themselves: a line that Click refuses is answered in JSON too."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options


def guarded(run: Callable[[], object], *, as_json: bool = False) -> int:
    """Run a command; returns its exit code, having told on stderr what went wrong.

    Args:
        run: the command.
        as_json: tell it on stdout too, as one JSON document ``{"error": ...}``.
    """
    try:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        code = run()
    except _ReaderLeftError:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - for what is still in the buffers
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere.fileno(), stream.fileno())
        return EXIT_CLOSED_PIPE
    except Exception as error:  # noqa: BLE001 - the last seam: a user sees a sentence, never a traceback
        return _report(error, as_json=as_json)
    except KeyboardInterrupt:
        return _report(click.Abort(), as_json=as_json)
    return code if isinstance(code, int) else EXIT_DONE


def _require_streams() -> None:
    """Give a closed stderr a place to write to; an answer that nobody could read is refused before it is made."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stderr.write("Error: standard output is closed\nHint: redirect it, for example to a file\n")
        sys.exit(EXIT_FAILED)


def _as_interrupts() -> list[int]:
    """Let SIGTERM and a closed terminal end the command as Ctrl-C does: what runs is stopped, the audit line written.

    Returns a list that takes the signal's number, for the exit code. A signal that is ignored (nohup) stays so.
    """
    ended: list[int] = []

    def interrupt(number: int, _: object) -> None:
        ended.append(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # no command runs yet
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # how a script's shell starts what runs behind it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)
    return ended


def _report(error: Exception, *, as_json: bool) -> int:
    from turnout.cli.output import PartialError, error_fields, print_json, report_error

    found: Mapping[str, Json] = {}
    if isinstance(error, PartialError):
        found, error = error.found, error.error
    if isinstance(error, click.ClickException):
        error.show()
        fields, code = _plain_fields("usage", error.format_message()), error.exit_code
    elif isinstance(error, click.Abort):
        fields, code = _plain_fields("cancelled", "interrupted"), EXIT_INTERRUPTED
    elif isinstance(error, TurnoutError):
        report_error(error)
        fields, code = error_fields(error), error.exit_code
    else:
        fields, code = _plain_fields("internal", _report_unexpected(error)), EXIT_FAILED
    if as_json:
        with suppress(OSError):  # a full disk under standard output has been told on stderr
            print_json({**found, "error": fields})
    return code


def _plain_fields(code: str, message: str) -> dict[str, Json]:
    return {"code": code, "message": message, "hint": ""}


def _report_unexpected(error: Exception) -> str:
    if os.environ.get("TURNOUT_DEBUG") == "1":
        raise error
    from turnout.cli.output import safe

    if isinstance(error, FileNotFoundError) and not _is_somewhere():
        click.echo("Error: the current directory is gone\nHint: change to one that is there", err=True)
        return "the current directory is gone"
    if isinstance(error, OSError) and error.strerror:
        # Our own files have errors of their own; what is written without a name is what the command prints.
        unnamed = "standard output" if error.errno in _FULL else ""
        where = error.filename or unnamed
        message = f"{error.strerror}: {where}" if where else error.strerror
        click.echo(safe(f"Error: {message}"), err=True)
        return message
    text = " ".join(str(error).split())
    message = f"{type(error).__name__}: {text}"
    click.echo(safe(f"internal error: {message}; run again with TURNOUT_DEBUG=1 for the traceback"), err=True)
    return message


def _is_somewhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 (nothing more to import in an emergency)
    except OSError:
        return False
    return True


@click.group(cls=CommandLine, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Configuration file. Default: $TURNOUT_CONFIG, ./turnout.yaml, ./local-llm-router.yaml, the user's own.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config_file: str | None) -> None:
    """Route questions to the best local model. Nothing leaves your network."""
    ctx.obj = config_file


def main() -> None:
    """The entry point of the ``turnout`` command; exits."""
    _require_streams()
    ended = _as_interrupts()
    try:
        cli.main(prog_name="turnout")
    except SystemExit:
        if ended:
            raise SystemExit(128 + ended[0]) from None
        raise
