"""What is logged while a command writes an answer, told beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from turnout.cli.output import note


class _Notes(logging.Handler):
    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        self._before()
        note(f"Warning: {record.getMessage()}")


@contextmanager
def log_as_notes(before: Callable[[], None]) -> Iterator[None]:
    """What is logged meanwhile is told on lines of its own on stderr.

    Args:
        before: ends the line that is being written on stdout.
    """
    logger, handler = logging.getLogger("turnout"), _Notes(before)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
