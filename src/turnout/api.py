"""The library: ``quick_route`` for one question, ``LocalLLMRouter`` for a workspace and a conversation (SPEC LIB)."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from turnout import config_load
from turnout.backends import DEFAULT_URLS
from turnout.build import load, open_editor, open_router
from turnout.config import LoadedConfig, RouterConfig
from turnout.errors import NoServiceError, UsageError
from turnout.fleet.agents import detect_coding_agent
from turnout.fleet.host import detect_os
from turnout.session import Session, open_sessions
from turnout.types import (
    ChatRequest,
    Event,
    ExecutionResult,
    FallbackLevel,
    FileContext,
    Finish,
    FinishReason,
    Message,
    Notice,
    Position,
    ReasoningDelta,
    Route,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageReport,
    message,
)

if TYPE_CHECKING:
    from turnout.code.apply import Outcome
    from turnout.code.preview import Preview
    from turnout.context.store import SessionStore
    from turnout.fleet.catalog import EndpointStatus
    from turnout.router import Router


def build_system_prompt(*, agent: str = "", code_intelligence: bool = False) -> str:
    """The system prompt of our own sessions (SPEC LIB-4).

    Args:
        agent: name of the coding agent that calls, or "".
        code_intelligence: whether code context is gathered.
    """
    host = detect_os()
    code = "on: facts about the user's code follow their question" if code_intelligence else "off"
    return "\n".join(
        (
            "You are a local coding assistant on an air-gapped machine.",
            f"Operating system: {host.platform} {host.release}, architecture: {platform.machine()}.",
            f"Called by: {agent or 'a person or program'}. Code intelligence: {code}.",
            "Guidelines: write concise and accurate code; use the semantic information that is given;",
            "make no external calls and propose none; stay on the task.",
        )
    )


def build_messages(query: str, *, workspace: str = "", agent: str = "") -> tuple[Message, ...]:
    """System prompt and user message for one question."""
    system = build_system_prompt(agent=agent, code_intelligence=bool(workspace))
    return message("system", system), message("user", query)


def load_any(config: RouterConfig | LoadedConfig | Mapping[str, object] | str | Path | None) -> LoadedConfig:
    """A configuration from whatever the caller has: values, a dict, a path, or None for the usual places.

    Raises:
        ConfigError: it is wrong.
    """
    if isinstance(config, LoadedConfig):
        return config
    if isinstance(config, RouterConfig):
        return LoadedConfig(config)
    if isinstance(config, Mapping):
        return load_config_from_dict(config)
    return load(config)


def load_config_from_dict(data: Mapping[str, object]) -> LoadedConfig:
    """A configuration from a dict with the keys of the YAML file.

    Raises:
        ConfigError: with the key path and the nearest valid key.
    """
    return config_load.load_config_from_dict(data, kinds=DEFAULT_URLS)


async def quick_route(
    query: str, config: RouterConfig | LoadedConfig | Mapping[str, object] | str | Path | None = None
) -> str:
    """Answer one question with the best local model: discover, classify, select, execute.

    Args:
        query: the question.
        config: a RouterConfig, a dict, a path, or None for the usual places.

    Raises:
        NoServiceError: no local LLM service answered; ``probed`` says what was tried.
        TurnoutError: any other failure, in its own class.

    Example::

        import asyncio, turnout
        print(asyncio.run(turnout.quick_route("Write a Python function that adds two numbers")))
    """
    async with LocalLLMRouter(None, config=config) as router:
        return await router.route(query)


async def discover_services(
    config: RouterConfig | LoadedConfig | Mapping[str, object] | str | Path | None = None,
) -> tuple[EndpointStatus, ...]:
    """Every endpoint that was looked at, with its state, reason and models."""
    async with open_router(load_any(config), whole=True) as router:
        return router.catalog.endpoints


class LocalLLMRouter:
    """Routes a conversation about a workspace.

    Args:
        workspace: directory whose code may be read as context, or None.
        config: a RouterConfig, a dict, a path, or None for the usual places.
        session_id: continue and keep this session in the store; None keeps the conversation in memory only, and so
            does ``sessions.store: false`` in the configuration.

    Example::

        async with turnout.LocalLLMRouter(".") as router:
            print(await router.route("Explain the main loop", {"file": "app.py", "position": {"line": 10}}))
            async for piece in router.stream("And in one sentence?"):
                print(piece, end="", flush=True)
    """

    def __init__(
        self,
        workspace: str | Path | None,
        config: RouterConfig | LoadedConfig | Mapping[str, object] | str | Path | None = None,
        session_id: str | None = None,
    ) -> None:
        self.workspace = str(Path(workspace).resolve()) if workspace is not None else ""
        self.session_id = session_id or ""
        self._loaded = load_any(config)
        self._agent = detect_coding_agent().name
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._router: Router | None = None
        self._store: SessionStore | None = None
        self._session = Session(self.session_id, None)

    async def initialize(self) -> None:
        """Find the servers and open the session. Called on first use when you do not call it.

        Raises:
            UsageError: it is open in another event loop, whose connections are of no use here.
        """
        if self._loop not in (None, asyncio.get_running_loop()):
            hint = "open, use and close it within one asyncio.run()"
            raise UsageError("this router was opened in another event loop", hint=hint)
        async with self._opening:
            if self._router is None:
                await self._open()

    async def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            store = await self._open_store()
            self._router = await self._stack.enter_async_context(open_router(self._loaded, store=store))
        except BaseException:
            await self._close()
            raise

    async def _open_store(self) -> SessionStore | None:
        if not self.session_id:
            return None
        store = self._store = await asyncio.to_thread(open_sessions, self._loaded)
        if store is not None:
            self._session = Session(self.session_id, store)
            await self._session.refresh()
        return store

    async def aclose(self) -> None:
        """Close every connection and stop what was started. Safe to call twice."""
        async with self._opening:  # what is being opened is closed when it is open
            await self._close()

    async def _close(self) -> None:
        self._router = self._loop = None
        await self._stack.aclose()
        if self._store is not None:
            self._store.close()
            self._store = None

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def route(self, query: str, file_context: Mapping[str, object] | None = None) -> str:
        """The answer's text.

        Args:
            query: the question.
            file_context: ``{"file": path, "position": {"line": n, "character": n}}``, both 0-based as in LSP.

        Raises:
            TurnoutError: NoServiceError, NoSuitableModelError, QueryFailedError and others, each its own class.
        """
        return (await self.execute(query, file_context)).text

    async def execute(self, query: str, file_context: Mapping[str, object] | None = None) -> ExecutionResult:
        """The answer with the way it went: level, model, service, attempts, usage."""
        async with aclosing(self.events(query, file_context)) as events:
            return await collect(events)

    async def stream(self, query: str, file_context: Mapping[str, object] | None = None) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece. Close the iterator (``aclosing``) to cancel."""
        async with aclosing(self.events(query, file_context)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    yield event.text

    async def propose_edits(self, answer: str) -> Preview:
        """What an answer's edits would change in the workspace, with a diff for each file; nothing is written.

        Example::

            proposed = await router.propose_edits(await router.route("Rename parse to read in app.py"))
            for change in proposed.changes:
                print("\\n".join(change.diff()))
            await router.apply(proposed)

        Raises:
            UsageError: the router has no workspace.
        """
        async with open_editor(self._loaded, self._edited()) as editor:
            return await editor.preview(answer)

    async def apply(self, proposed: Preview, *, doubtful: bool = False, despite_errors: bool = False) -> Outcome:
        """Write all of it or nothing. Arguments as ``Editor.apply``.

        Raises:
            EditError: it cannot be applied; the files are as they were.
            StorageError, AuditError, UsageError: nothing was changed.
        """
        async with open_editor(self._loaded, self._edited()) as editor:
            return await editor.apply(proposed, doubtful=doubtful, despite_errors=despite_errors)

    async def undo(self, *, force: bool = False) -> Outcome:
        """Take back what was applied last. ``force``: also what was changed in its files since. Raises as ``apply``."""
        async with open_editor(self._loaded, self._edited(), asks=False) as editor:
            return await editor.undo(force=force)

    def _edited(self) -> Path:
        if not self.workspace:
            raise UsageError("edits need a workspace", hint='LocalLLMRouter(".") gives one')
        return Path(self.workspace)

    async def events(self, query: str, file_context: Mapping[str, object] | None = None) -> AsyncGenerator[Event, None]:
        """Everything that happens, as events (types.py)."""
        await self.initialize()
        router = self._router
        if router is None:
            raise NoServiceError
        system, user = build_messages(query, workspace=self.workspace, agent=self._agent)
        request = ChatRequest(
            messages=(system, user),
            file_context=parse_file_context(file_context),
            agent=self._agent,
            workspace=self.workspace,
        )
        async with aclosing(self._session.events(router, request)) as events:
            async for event in events:
                yield event

    async def feedback(self, request_id: str, *, good: bool, note: str = "") -> None:
        """Say whether an answer was any good (``execute(...).route.request_id``); it moves the model's score a little.

        Raises:
            UsageError: no such request is in the decision log, or nothing was decided for it.
            StorageError: it cannot be kept.
        """
        await self.initialize()
        if self._router is not None:
            await self._router.feedback(request_id, good=good, note=note)


def parse_file_context(given: Mapping[str, object] | None) -> FileContext | None:
    """The owner's dict as a value.

    Raises:
        UsageError: it has no file, or its position is not made of whole numbers from 0 on.
    """
    if given is None:
        return None
    file, position = given.get("file"), given.get("position")
    if not isinstance(file, str) or not file:
        raise UsageError("file_context needs a file", hint='{"file": "app.py", "position": {"line": 0}}')
    if position is None:
        return FileContext(file)
    line = position.get("line", 0) if isinstance(position, Mapping) else None
    character = position.get("character", 0) if isinstance(position, Mapping) else None
    for value in (line, character):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError("file_context.position needs whole numbers from 0 on", hint="0-based, as in LSP")
    assert isinstance(line, int)
    assert isinstance(character, int)
    return FileContext(file, Position(line, character))


async def collect(events: AsyncIterator[Event]) -> ExecutionResult:
    """A whole answer from its events."""
    text: list[str] = []
    reasoning: list[str] = []
    notices: list[Notice] = []
    calls: dict[int, ToolCall] = {}
    usage = Usage()
    finish: FinishReason = "stop"
    route: Route | None = None
    started = 0.0
    async for event in events:
        match event:
            case TextDelta(piece):
                text.append(piece)
            case ReasoningDelta(piece, _):
                reasoning.append(piece)
            case ToolCallDelta():
                calls[event.index] = _joined(calls.get(event.index), event)
            case UsageReport(counts):
                usage = counts
            case Finish(reason):
                finish = reason
            case Notice():
                notices.append(event)
            case Started(taken):
                route, started = taken, time.monotonic()
            case _:
                pass
    if route is not None:  # its last attempt had only begun
        *failed, answered = route.attempts
        answered = replace(answered, seconds=answered.seconds + time.monotonic() - started)
        route = replace(route, attempts=(*failed, answered))
    return _result("".join(text), "".join(reasoning), tuple(calls.values()), usage, finish, notices, route)


def _joined(call: ToolCall | None, delta: ToolCallDelta) -> ToolCall:
    if call is None:
        return ToolCall(delta.call_id, delta.name, delta.arguments, delta.item_id, delta.namespace)
    return ToolCall(
        call.call_id or delta.call_id,
        call.name or delta.name,
        call.arguments + delta.arguments,
        call.item_id or delta.item_id,
        call.namespace or delta.namespace,
    )


def _result(
    text: str,
    reasoning: str,
    calls: tuple[ToolCall, ...],
    usage: Usage,
    finish: FinishReason,
    notices: Sequence[Notice],
    route: Route | None,
) -> ExecutionResult:
    return ExecutionResult(
        text=text,
        level=route.level if route else FallbackLevel.FAILED,
        model=route.sent_model if route else "",
        service=route.service if route else "",
        attempts=route.attempts if route else (),
        usage=usage,
        finish=finish,
        reasoning=reasoning,
        tool_calls=calls,
        notices=tuple(notices),
        route=route,
    )
