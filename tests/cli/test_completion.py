"""Completion in real shells, at a terminal: what docs/cli.md says to type, then a word begun and a tab."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.typist import Typist
from turnout.cli.reference import reference

PROGRAM = f"""\
#!{sys.executable}
from turnout.cli import main
main()
"""
# How each shell is started bare, and what it is told.
SHELLS = {
    "bash": (("--norc", "--noprofile", "-i"), 'eval "$(_TURNOUT_COMPLETE=bash_source turnout)"'),
    "zsh": (("-f", "-i"), 'autoload -U compinit; compinit -u -D; eval "$(_TURNOUT_COMPLETE=zsh_source turnout)"'),
    "fish": (("--no-config", "-i"), "_TURNOUT_COMPLETE=fish_source turnout | source"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_commands_and_options(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = shutil.which(shell)
    if where is None:
        pytest.skip(f"there is no {shell} here")
    (program := tmp_path / "bin" / "turnout").parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    options, told = SHELLS[shell]
    assert f"_TURNOUT_COMPLETE={shell}_source" in reference() or f"`{shell}_source`" in reference()
    with Typist(shell=(where, *options)) as typed:
        typed.type(f"{told}; echo re''ady\r")
        typed.see("ready")
        for begun, whole in (
            ("turnout classi", "classify"),
            ("turnout audit ver", "verify"),
            ("turnout ask --sess", "--session"),
        ):
            typed.type(f"{begun}\t")
            typed.see(rf"{begun.rpartition(' ')[0]} {whole}")
            typed.type("\x15")  # the line is taken back
        typed.type("exit\r")
