"""Somebody at a terminal: the program on a pseudo-terminal of its own, typed to, and read as it shows things."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable
from types import TracebackType

PATIENCE = 60.0
CTRL_C, CTRL_D, ENTER, ALT_ENTER, UP = "\x03", "\x04", "\r", "\x1b\r", "\x1b[A"
# The prompt takes pasted blocks as such, and says so to the terminal: that is when it is there, and when it has gone.
_PROMPT, _GONE = "\x1b[?2004h", "\x1b[?2004l"
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Typist:
    """The program on a terminal; ends it when left. ``shown`` is all that it showed, without colours and movements."""

    def __init__(self, *args: str, columns: int = 160) -> None:
        import pty

        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # A real terminal answers where its cursor is; this one cannot.
            os.environ.update(TERM="xterm", COLUMNS=str(columns), LINES="50", PROMPT_TOOLKIT_NO_CPR="1")
            os.execv(sys.executable, [sys.executable, "-c", "from turnout.cli import main; main()", *args])
        self.raw, self._read_until, self.code = "", 0, -1

    def __enter__(self) -> Typist:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.code < 0:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
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
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

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
