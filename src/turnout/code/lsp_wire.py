"""The wire to a language server: framed JSON-RPC over the pipes of a child, requests both ways, everything bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec import Raw

from turnout.code.intelligence import IntelligenceError, NotSupportedError
from turnout.guard.process import Child

MAX_MESSAGE = 32_000_000  # bytes; the 5,200 references of a hub symbol take 1 MB
MAX_QUEUED = 32_000_000  # bytes that the server has not taken yet
MAX_HEADERS = 16
MAX_UNANSWERED = 64
METHOD_UNKNOWN, SERVER_CANCELLED, CONTENT_MODIFIED = -32601, -32802, -32801
_STOP_SECONDS = 0.5
_AGAIN_SECONDS = 0.02


class _Failure(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Message(msgspec.Struct):
    id: int | str | None = None
    method: str = ""
    params: Raw = Raw(b"null")
    result: Raw = Raw(b"null")
    error: _Failure | None = None


_DECODER, _ENCODER = msgspec.json.Decoder(_Message), msgspec.json.Encoder()


class Wire:
    """A conversation with one running server. When it breaks (end, garbage, silence) the child is ended and ``broken``
    says why; a new one is made then.

    Args:
        name: what to call the server in errors.
        child: the running server.
        answer: what a request of the server is answered with; raises NotSupportedError for one that nobody knows.
        told: takes the server's notifications.
        hung: seconds without a sign of life, after a question that was given up, until the server counts as hung.
    """

    def __init__(
        self,
        name: str,
        child: Child,
        answer: Callable[[str, Raw], object],
        told: Callable[[str, Raw], None],
        hung: float,
    ) -> None:
        self._name, self._child, self._answer, self._told, self._hung = name, child, answer, told, hung
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.Future[Raw]] = {}
        self._given_up: set[int] = set()
        self._last_id = 0
        self._heard = self._loop.time()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queued = 0
        self._ending: asyncio.Task[None] | None = None
        self.broken = ""
        self._reader = asyncio.create_task(self._read())
        self._writer = asyncio.create_task(self._write())

    async def ask(self, method: str, params: object, seconds: float) -> Raw:
        """The result of a request; a question that is given up is cancelled at the server, too.

        Raises:
            NotSupportedError: the server does not know the method.
            IntelligenceError: it refused, broke, or did not answer within ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._asked(method, params)
        except TimeoutError as error:
            raise IntelligenceError(f"{self._name} did not answer {method} within {seconds:g} s") from error

    async def _asked(self, method: str, params: object) -> Raw:
        while True:  # until the time is up
            try:
                return await self._once(method, params)
            except _ChangedError:  # the protocol wants the question asked again
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _once(self, method: str, params: object) -> Raw:
        if self.broken:
            raise IntelligenceError(self.broken)
        if len(self._pending) + len(self._given_up) >= MAX_UNANSWERED:
            raise IntelligenceError(f"{self._name} is busy: {MAX_UNANSWERED} questions are unanswered")
        self._last_id += 1
        number = self._last_id
        future: asyncio.Future[Raw] = self._loop.create_future()
        self._pending[number] = future
        self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        try:
            return await future
        finally:
            if self._pending.pop(number, None) is not None and not self.broken:
                self._give_up(number)

    def _give_up(self, number: int) -> None:
        self._given_up.add(number)
        self.tell("$/cancelRequest", {"id": number})
        self._loop.call_later(self._hung, self._look, number, self._loop.time())

    def _look(self, number: int, since: float) -> None:
        """A server that was not heard of since a question was given up, and never answered it, hangs."""
        if number in self._given_up and self._heard < since:
            self._break(f"{self._name} hung and was ended: no sign of life for {self._hung:g} s")

    def tell(self, method: str, params: object) -> None:
        """Send a notification. It never waits: what the server does not take is kept, up to a limit."""
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def _send(self, message: object) -> None:
        if self.broken:
            return
        body = _ENCODER.encode(message)
        frame = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        self._queued += len(frame)
        if self._queued > MAX_QUEUED:
            self._break(f"{self._name} takes no more input and was ended")
            return
        self._queue.put_nowait(frame)

    async def _write(self) -> None:
        try:
            while True:
                frame = await self._queue.get()
                await self._child.write(frame)
                self._queued -= len(frame)
        except OSError:
            return  # the reader sees the end, too, and knows more about it

    async def _read(self) -> None:
        try:
            while body := await self._body():
                message = _DECODER.decode(body)
                self._heard = self._loop.time()
                self._take(message)
            self._break(self._end())
        except EOFError:
            self._break(self._end())
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            self._break(f"{self._name} sent what is no message and was ended: {error}")

    async def _body(self) -> bytes:
        """One message; b"" at the end."""
        length = -1
        for _ in range(MAX_HEADERS):
            line = await self._child.read_line(None)
            if not line:
                return b""
            if line in (b"\r\n", b"\n"):
                break
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError("a line that is no header")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if not 0 < length <= MAX_MESSAGE:
            raise ValueError(f"the length {length}")
        return await self._child.read_exactly(length, None)

    def _take(self, message: _Message) -> None:
        if message.method and message.id is not None:
            self._reply(message)
        elif message.method:
            self._told(message.method, message.params)
        elif isinstance(message.id, int):
            self._given_up.discard(message.id)
            future = self._pending.pop(message.id, None)
            if future is not None and not future.done():
                _settle(future, message, self._name)

    def _reply(self, message: _Message) -> None:
        try:
            told: dict[str, object] = {"result": self._answer(message.method, message.params)}
        except NotSupportedError as error:
            told = {"error": {"code": METHOD_UNKNOWN, "message": str(error)}}
        self._send({"jsonrpc": "2.0", "id": message.id, **told})

    def _end(self) -> str:
        said = self._child.errors.strip().rsplit("\n", 1)[-1][:200]
        return f"{self._name} ended" + (f": {said}" if said else "")

    def _break(self, why: str) -> None:
        if self.broken:
            return
        self.broken = why
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(IntelligenceError(why))
        self._ending = asyncio.create_task(self._child.stop(_STOP_SECONDS))

    async def close(self) -> None:
        """End the server, politely where it still listens. Safe to call twice."""
        if not self.broken:
            try:
                await self.ask("shutdown", None, _STOP_SECONDS)
                self.tell("exit", None)
            except IntelligenceError:
                pass  # it is ended all the same
        self._break(f"{self._name} was closed")
        if self._ending is not None:
            await self._ending
        self._reader.cancel()
        self._writer.cancel()
        await asyncio.wait([self._reader, self._writer])


class _ChangedError(Exception):
    """The server wants the question asked again."""


def _settle(future: asyncio.Future[Raw], message: _Message, name: str) -> None:
    failure = message.error
    if failure is None:
        # A copy: a view would keep the whole message.
        future.set_result(message.result.copy())
    elif failure.code == METHOD_UNKNOWN:
        future.set_exception(NotSupportedError(f"{name} has no such ability"))
    elif failure.code in (SERVER_CANCELLED, CONTENT_MODIFIED):
        future.set_exception(_ChangedError())
    else:
        future.set_exception(IntelligenceError(f"{name} refused: {failure.message[:200]}"))
