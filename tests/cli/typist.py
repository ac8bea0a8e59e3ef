"""Somebody at a terminal: the program on a pseudo-terminal of its own, typed to, and read as it shows things."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

PATIENCE = 15.0
CTRL_C, CTRL_D, ENTER, ALT_ENTER, UP = "\x03", "\x04", "\r", "\x1b\r", "\x1b[A"
# The prompt takes pasted blocks as such, and says so to the terminal: that is when it is there, and when it has gone.
_PROMPT, _GONE = "\x1b[?2004h", "\x1b[?2004l"
# The terminal is the program's own, so that Ctrl-C is a signal to it.
_START = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from turnout.cli import main; main()"
_START_SHELL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Typist:
    """The program on a terminal; ends it when left. ``shown`` is all that it showed, without colours and movements.

    ``shell`` is started instead of the program.
    """

    def __init__(self, *args: str, columns: int = 160, shell: tuple[str, ...] = ()) -> None:
        import pty

        self._terminal, side = pty.openpty()
        # A real terminal answers where its cursor is; this one cannot.
        env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "50", "PROMPT_TOOLKIT_NO_CPR": "1"}
        command = [sys.executable, "-c", _START_SHELL, *shell] if shell else [sys.executable, "-c", _START, *args]
        self._child = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env, start_new_session=True)
        os.close(side)
        self.pid, self.raw, self._read_until = self._child.pid, "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._child.kill()
        self._child.wait()
        os.close(self._terminal)

    def type(self, *pieces: str) -> None:
        """Type it, each piece at once."""
        for piece in pieces:
            os.write(self._terminal, piece.encode())

    def see(self, pattern: str) -> re.Match[str]:
        """Wait until what was shown since the last wait has ``pattern``."""
        return self._wait(lambda raw: re.search(pattern, _plain(raw)), pattern)

    def prompt(self) -> str:
        """Wait for the prompt; returns what was shown since the one before was left."""
        shown = self._wait(lambda raw: re.search(r"(?s)\A(.*)" + re.escape(_PROMPT), raw), "the prompt")[1]
        return _plain(shown.rpartition(_GONE)[2])

    def ask(self, line: str, pattern: str = "") -> str:
        """Type a line at the prompt, and return what is shown until the next one; it must have ``pattern``."""
        self.type(line, ENTER)
        shown = self.prompt()
        assert re.search(pattern, shown), f"{pattern!r} is not in {shown!r}"
        return shown

    def end(self) -> int:
        """Wait until the program has ended; its exit code."""
        while self._more("the end"):
            pass
        return self._child.wait()

    @property
    def shown(self) -> str:
        return _plain(self.raw)

    def _wait(self, found: Callable[[str], re.Match[str] | None], what: str) -> re.Match[str]:
        while not (match := found(self.raw[self._read_until :])):
            if not self._more(what):
                raise AssertionError(f"the program ended before {what!r}: {self.raw[self._read_until :]!r}")
        self._read_until = len(self.raw)
        return match

    def _more(self, what: str) -> bool:
        """Read what is shown next; False when the program has ended."""
        ready, _, _ = select.select([self._terminal], [], [], PATIENCE)
        if not ready:
            raise AssertionError(f"{what!r} did not come: {self.raw[self._read_until :]!r}")
        try:
            data = os.read(self._terminal, 65_536)
        except OSError:  # how Linux says that nobody is at the other end
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


def _plain(raw: str) -> str:
    return _ESCAPES.sub("", raw).replace("\r\n", "\n").replace("\r", "")
