"""One connection to a host of code intelligence: any number of questions at once, each with its own time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import msgspec

from turnout.code import protocol as say
from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    IntelligenceError,
    NotSupportedError,
    Place,
    TextEdit,
)
from turnout.code.provider import CodeContext
from turnout.errors import UsageError
from turnout.guard.dial import dial_unix

_PLACES: msgspec.json.Decoder[tuple[Place, ...]] = msgspec.json.Decoder(tuple[Place, ...])
_SYMBOLS: msgspec.json.Decoder[tuple[CodeSymbol, ...]] = msgspec.json.Decoder(tuple[CodeSymbol, ...])
_OF_FILE: Mapping[Ability, msgspec.json.Decoder[Any]] = {
    Ability.OUTLINE: _SYMBOLS,
    Ability.DIAGNOSTICS: msgspec.json.Decoder(tuple[Diagnostic, ...]),
}
_AT: Mapping[Ability, msgspec.json.Decoder[Any]] = {
    Ability.HOVER: msgspec.json.Decoder(str),
    Ability.REFERENCES: _PLACES,
    Ability.DEFINITION: _PLACES,
    Ability.TYPE_DEFINITION: _PLACES,
    Ability.IMPLEMENTATIONS: _PLACES,
}
_ANSWERS: Mapping[type, msgspec.json.Decoder[Any]] = {
    say.Gather: msgspec.json.Decoder(CodeContext | None),
    say.Status: msgspec.json.Decoder(say.HostStatus),
    say.FindSymbol: _SYMBOLS,
    say.WorkspaceSymbols: _SYMBOLS,
    say.Calls: _SYMBOLS,
    say.Rename: msgspec.json.Decoder(tuple[TextEdit, ...]),
}
_NOTHING = msgspec.json.Decoder(type(None))
_ANSWER = msgspec.json.Decoder(say.Answer)


class HostGoneError(IntelligenceError):
    """The host ended, or is none: a new one may be started."""


class LateError(IntelligenceError):
    """There was no answer in time."""


class HostConnection:
    """Made by ``open_connection``; closed by ``aclose``. Used by one event loop."""

    def __init__(self, hello: say.Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, asyncio.Future[say.Answer]] = {}
        self._last = 0
        self._gone = False
        self._listener = asyncio.create_task(self._listen())

    @property
    def gone(self) -> bool:
        """Whether it is of no use any more."""
        return self._gone

    @overload
    async def ask(self, asked: say.Gather, seconds: float) -> CodeContext | None: ...
    @overload
    async def ask(self, asked: say.Status, seconds: float) -> say.HostStatus: ...
    @overload
    async def ask(self, asked: say.Stop | say.WriteSymbol | say.WriteRename, seconds: float) -> None: ...
    @overload
    async def ask(
        self, asked: say.FindSymbol | say.WorkspaceSymbols | say.Calls, seconds: float
    ) -> tuple[CodeSymbol, ...]: ...
    @overload
    async def ask(self, asked: say.Rename, seconds: float) -> tuple[TextEdit, ...]: ...
    @overload
    async def ask(self, asked: say.At | say.OfFile, seconds: float) -> Any: ...
    async def ask(self, asked: say.Asked, seconds: float) -> object:
        """The answer to one question.

        Raises:
            UsageError: it cannot be asked like that, such as at a position beyond the end of the file.
            NotSupportedError: nobody there can.
            LateError: none came in time.
            HostGoneError: the host ended meanwhile.
            IntelligenceError: there is none, and why.
        """
        if self._gone:
            raise HostGoneError("the host of the code intelligence has ended")
        self._last += 1
        number, coming = self._last, asyncio.get_running_loop().create_future()
        self._waiting[number] = coming
        try:
            async with asyncio.timeout(seconds):
                self._send(number, seconds, asked)
                await self._writer.drain()
                answer = await coming
        except TimeoutError:
            self._forget(number)
            raise LateError(f"the code intelligence did not answer within {seconds:.1f} s") from None
        except ConnectionError as error:
            raise HostGoneError("the host of the code intelligence has ended") from error
        except asyncio.CancelledError:
            self._forget(number)
            raise
        finally:
            del self._waiting[number]
        return _found(answer, asked)

    async def ended(self) -> None:
        """Wait until the host has closed it."""
        await asyncio.wait([self._listener])

    async def aclose(self) -> None:
        """Leave; what was asked is given up."""
        self._gone = True
        self._writer.close()
        self._listener.cancel()
        await asyncio.wait([self._listener])
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def _send(self, number: int, seconds: float, asked: say.Asked) -> None:
        line = say.line_of(say.Request(number, max(1, round(seconds * 1000)), asked))
        if len(line) > say.MAX_REQUEST:
            raise IntelligenceError(f"the question has {len(line):,} bytes, the most is {say.MAX_REQUEST:,}")
        self._writer.write(line)

    def _forget(self, number: int) -> None:
        if not self._gone:
            self._send(0, 1.0, say.Cancel(number))

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                answer = _ANSWER.decode(line)
                if answer.id == 0:  # it has not understood us and leaves
                    return
                coming = self._waiting.get(answer.id)
                if coming is not None and not coming.done():
                    coming.set_result(answer)
        except (OSError, ValueError, msgspec.DecodeError, RecursionError):
            return  # whoever waits is told below
        finally:
            self._gone = True
            self._writer.close()
            for coming in self._waiting.values():
                if not coming.done():
                    coming.set_exception(HostGoneError("the host of the code intelligence has ended"))


async def open_connection(path: Path, seconds: float) -> HostConnection:
    """A connection to the host at a socket, of whatever version it is.

    Raises:
        OSError: nobody answers there in time (``TimeoutError``), or no host of ours.
    """
    async with asyncio.timeout(seconds):
        reader, writer = await dial_unix(str(path), say.MAX_ANSWER + 1)
        try:
            hello = msgspec.json.decode(await reader.readline(), type=say.Hello)
        except (ValueError, msgspec.DecodeError) as error:
            writer.transport.abort()
            raise ConnectionResetError(f"what listens at {path} is no host of code intelligence") from error
        except BaseException:
            writer.transport.abort()
            raise
    return HostConnection(hello, reader, writer)


def _found(answer: say.Answer, asked: say.Asked) -> object:
    problem = answer.problem
    if problem is None:
        return _decoder(asked).decode(answer.found)
    if problem.kind == "usage":
        raise UsageError(problem.message, hint=problem.hint)
    kinds = {"not_supported": NotSupportedError, "late": LateError}
    raise kinds.get(problem.kind, IntelligenceError)(problem.message)


def _decoder(asked: say.Asked) -> msgspec.json.Decoder[Any]:
    if isinstance(asked, say.At):
        return _AT[asked.ability]
    if isinstance(asked, say.OfFile):
        return _OF_FILE[asked.ability]
    return _ANSWERS.get(type(asked), _NOTHING)
