"""The command reference in Markdown, made from the commands themselves: ``python -m turnout.cli.reference``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from turnout.cli import cli

_HEAD = """\
# Command line

This page is made by `python -m turnout.cli.reference`; a test compares the two.

Every command takes `--help`, and all but a conversation (`chat`, `session resume`), `session export`, `serve` and
`launch` take `--json`.
With it, stdout holds one JSON document (of `audit tail` and `audit search` one for each record), also when the command
fails: then it has an `error` with `code`, `message` and `hint`. In a pipe, tables are lines of cells separated by tabs,
headed by the names. Errors, notes and the route go to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; also when the answer was given, but its end could not be written to the audit log |
| 2 | usage: the command line, the query or the configuration is wrong |
| 3 | no local LLM service answered |
| 4 | refused by the guard: a destination is not on the allow-list |
| 130, 143, 129 | ended by Ctrl-C, SIGTERM or a closed terminal; the end of the query is in the audit log |
| 141 | whoever read the output closed the pipe, as `head` does; the query was ended, as with Ctrl-C |

Shell completion: `eval "$(_TURNOUT_COMPLETE=bash_source turnout)"` in bash, with `zsh_source` in zsh, and in fish
`_TURNOUT_COMPLETE=fish_source turnout | source`.
"""


def reference() -> str:
    """The whole page."""
    return _HEAD + "".join(_sections(cli, click.Context(cli, info_name="turnout")))


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    yield _section(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _sections(child, click.Context(child, info_name=name, parent=context))


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    options = [p for p in command.params if isinstance(p, click.Option)]
    rows = "".join(f"| `{_flags(option, context)}` | {_meaning(option)} |\n" for option in options)
    table = f"\n| option | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"\n## {context.command_path}\n\n    {usage}\n\n{_prose(command.help or '')}\n{table}"


def _flags(option: click.Option, context: click.Context) -> str:
    names = ", ".join((*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {option.make_metavar(context)}".replace("|", "\\|")


def _meaning(option: click.Option) -> str:
    shown = f" [default: {option.default}]" if option.show_default else ""
    return f"{option.help or ''}{shown}"


def _prose(text: str) -> str:
    """Help text as Markdown: what Click is told to leave unwrapped becomes a code block."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    blocks = []
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        blocks.append("\n".join(f"    {line}" for line in lines[1:]) if lines[0] == "\b" else paragraph)
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.stdout.write(reference())
