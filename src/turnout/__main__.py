"""The ``turnout`` command and ``python -m turnout``: a Ctrl-C while everything is imported ends it without a word."""

from __future__ import annotations

import signal


def main() -> None:
    """Make Ctrl-C end the process, as it does any that handles no signals, until a command runs; exits."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a script's shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from turnout.cli import main

    main()


if __name__ == "__main__":
    main()
