"""The audit log as the pipeline writes it: requests that overlap share a write.

A start record is in the file before its query runs. An end record of a request that overlaps another may wait a moment
for the next start; a killed process then leaves a start without an end, never an end without its query.
"""

from __future__ import annotations

import asyncio
import logging

from turnout.errors import AuditError
from turnout.guard.audit import SEAL_SECONDS, AuditLog
from turnout.guard.records import QueryEnd, QueryStart

HOLD_SECONDS = 0.005

log = logging.getLogger("turnout")


class Trail:
    """One event loop's way to the log.

    Attributes:
        alarm: the last end that could not be written, or None.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._running = 0
        self._starting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sealing: asyncio.TimerHandle | None = None
        self.alarm: AuditError | None = None

    async def start(self, record: QueryStart) -> None:
        """Write that a query begins; the starts of one turn of the loop are one write.

        Raises:
            AuditError: the line cannot be written; run nothing, and write no end.
        """
        if not self._running and not self._starting:
            self._audit.start(record)
            self._running += 1
            return
        self._audit.start(record, hold=True)
        loop = asyncio.get_running_loop()
        if not self._starting:
            loop.call_soon(self._write_starts)
        written: asyncio.Future[None] = loop.create_future()
        self._starting.append(written)
        self._running += 1
        try:
            await written
        except asyncio.CancelledError:
            who = record.request_id, record.session_id, record.principal, record.query, record.agent
            self.end(QueryEnd(*who, error="cancelled"))
            raise
        except AuditError:
            self._running -= 1
            raise

    def end(self, record: QueryEnd) -> None:
        """Write how a query ended.

        The answer has been given: an end that cannot be written is an alarm, and the next query is refused.
        """
        self._running -= 1
        hold = self._running > 0
        try:
            self._audit.end(record, hold=hold)
        except AuditError as error:
            self._raise_alarm(error)
        if self._sealing is None:
            self._sealing = asyncio.get_running_loop().call_later(SEAL_SECONDS, self._seal_aside)
        if hold and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._write_ends)

    def _write_starts(self) -> None:
        starting, self._starting = self._starting, []
        failure: AuditError | None = None
        try:
            self._audit.flush()
        except AuditError as error:
            failure = error
        for written in starting:
            if written.done():
                continue
            if failure is None:
                written.set_result(None)
            else:
                written.set_exception(AuditError(failure.message, hint=failure.hint))

    def _write_ends(self) -> None:
        self._timer = None
        try:
            self._audit.flush()
        except AuditError as error:
            self._raise_alarm(error)

    def _seal_aside(self) -> None:
        """In a thread: a disk may take its time."""
        self._sealing = None
        asyncio.get_running_loop().run_in_executor(None, self._seal)

    def _seal(self) -> None:
        try:
            self._audit.seal()
        except AuditError as error:
            self._raise_alarm(error)

    def _raise_alarm(self, error: AuditError) -> None:
        self.alarm = error
        log.error("%s", error)
