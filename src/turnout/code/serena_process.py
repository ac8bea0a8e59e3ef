"""One running Serena: a child of ours that speaks MCP over its standard streams.

The official SDK speaks; the process is started and bound to us in guard/process.py, as every child is, so the SDK gets
streams over ours in place of its own client for standard streams. It takes half a second to import, and brings an HTTP
client: it is imported here when a Serena starts, and nowhere else.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from turnout.code.intelligence import IntelligenceError
from turnout.code.serena_answers import refusal, scrubbed
from turnout.guard.process import Child, spawn

if TYPE_CHECKING:
    from mcp.client.session import ClientSession
    from mcp.shared.message import SessionMessage

# The longest answer: no question asks for more than a twentieth of that.
MAX_LINE = 4 << 20
# Lines that are no message, such as what a library prints, before the child counts as broken.
MAX_GARBAGE = 100
_LEAVE_SECONDS = 1.0

log = logging.getLogger("turnout.code")


class EndedError(IntelligenceError):
    """It ended, or cannot be understood any more."""


class _Stream:
    """What both directions have in common for the SDK: there is nothing to close, since the child is ours."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def aclose(self) -> None:
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class _Messages(_Stream):
    """Messages from the child, one a line."""

    _garbage = 0

    async def receive(self) -> SessionMessage | Exception:
        from anyio import EndOfStream
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        while True:
            try:
                line = await self._child.read_line(None)
            except OSError as error:
                log.warning("Serena: %s", error)
                raise EndOfStream from error
            if not line or self._garbage > MAX_GARBAGE:
                raise EndOfStream
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError:
                self._garbage += 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        from anyio import EndOfStream

        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None


class _Requests(_Stream):
    """Messages to the child."""

    async def send(self, item: SessionMessage, /) -> None:
        from anyio import BrokenResourceError

        text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await self._child.write(text.encode() + b"\n")
        except ConnectionError as error:
            raise BrokenResourceError from error


class SerenaProcess:
    """A Serena that has said hello. Whoever started it calls ``stop``."""

    def __init__(
        self, child: Child, session: ClientSession, speaking: asyncio.Task[None], hidden: Mapping[str, str]
    ) -> None:
        self._child, self._session, self._speaking, self._hidden = child, session, speaking, hidden
        self._broken = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether it is of no more use."""
        return self._broken or self._child.returncode is not None or self._speaking.done()

    async def call(self, tool: str, arguments: Mapping[str, object]) -> str:
        """What a tool answers, as text. There is no time limit; a cancelled call goes on at the other side.

        Raises:
            EndedError: it ended meanwhile.
            IntelligenceError: the tool refused; or the answer is none.
        """
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED

        try:
            result = await self._session.call_tool(tool, dict(arguments))
        except MCPError as error:
            # Its end, or so much nonsense that reading was given up.
            self._broken = self._broken or error.code == CONNECTION_CLOSED
            if self.ended:
                raise EndedError("Serena ended") from error
            raise refusal(error.message, self._hidden) from error
        except (RuntimeError, ValueError) as error:
            raise IntelligenceError("Serena's answer is none that was expected") from error
        text = "".join(part.text for part in result.content if part.type == "text")
        if result.is_error:
            raise refusal(text, self._hidden)
        return text

    async def stop(self) -> None:
        """End it and everything it started. Safe to call twice."""
        self._speaking.cancel()
        await asyncio.wait([self._speaking], timeout=_LEAVE_SECONDS)
        await self._child.stop()


async def start_serena(
    command: Sequence[str], env: Mapping[str, str], home: Path, hidden: Mapping[str, str], seconds: float
) -> SerenaProcess:
    """Start a Serena and wait until it has said hello.

    Args:
        command: the start line.
        env: variables beside the usual ones.
        home: its working directory.
        hidden: directories that no message names, and what it says instead.
        seconds: how long it may take.

    Raises:
        IntelligenceError: it cannot be started, ends, or says nothing in time.
    """
    await asyncio.to_thread(importlib.import_module, "mcp.client.session")
    try:
        child = await spawn(command, env=env, cwd=home, line_bytes=MAX_LINE)
    except OSError as error:
        raise IntelligenceError(f"Serena cannot be started: {error.strerror or error}") from error
    ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
    speaking = asyncio.create_task(_speak(child, ready))
    try:
        await asyncio.wait((ready, speaking), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _give_up(child, speaking, ready)
        raise
    if ready.done():
        return SerenaProcess(child, ready.result(), speaking, hidden)
    late = not speaking.done()
    await _give_up(child, speaking, ready)
    if late:
        raise IntelligenceError(f"Serena did not start in {seconds:g} s")
    raise EndedError(f"Serena did not start: {scrubbed(_last_line(child.errors), hidden)}")


async def _give_up(child: Child, speaking: asyncio.Task[None], ready: asyncio.Future[ClientSession]) -> None:
    ready.cancel()
    speaking.cancel()
    await asyncio.wait([speaking], timeout=_LEAVE_SECONDS)
    await child.stop()


async def _speak(child: Child, ready: asyncio.Future[ClientSession]) -> None:
    """Hold the session open: it must be left in the task that entered it."""
    from mcp.client.session import ClientSession
    from mcp.shared.exceptions import MCPError

    try:
        async with ClientSession(_Messages(child), _Requests(child)) as session:
            await session.initialize()
            await session.list_tools()
            ready.set_result(session)
            await asyncio.get_running_loop().create_future()
    except (MCPError, RuntimeError, ValueError) as error:
        log.debug("Serena: %s", error)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it gave no reason")
