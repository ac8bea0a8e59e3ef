"""``turnout chat``: a conversation at a terminal, or one question a line from a pipe."""

from __future__ import annotations

import asyncio
import difflib
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack

import click

from turnout.backends.base import clean
from turnout.cli.ask import NO_END, Screen, only_embedded, require_store, route_lines, seen
from turnout.cli.output import cell, loaded_config, note, report_error, table, waiting
from turnout.cli.request import Wanted, build_request, question_options
from turnout.errors import EXIT_DONE, AuditError, NoServiceError, StorageError, TurnoutError, UsageError
from turnout.types import ChatRequest, message

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.context.store import SessionStore
    from turnout.router import Router
    from turnout.session import Outlook, Session
    from turnout.types import ExecutionResult

_T = TypeVar("_T")
_COMMAND = re.compile(r"/([A-Za-z?]*)(?:[ \t]+([^\n]*))?\Z")
_MOST_LISTED = 20


class _Cancelled(Exception):
    """Ctrl-C, while something ran."""


@click.command()
@click.option(
    "--session",
    "name",
    metavar="NAME",
    help="Begin or go on with this conversation. Default: a new one, named after the time.",
)
@question_options
@click.option("--embedded", is_flag=True, help="Use the bundled demonstration model and look for no server.")
@click.pass_context
def chat(context: click.Context, name: str | None, embedded: bool, **given: Unpack[Wanted]) -> None:
    """Have a conversation: what was said is sent along, shortened when it must be.

    On a terminal: Alt+Enter or a backslash at the end of a line makes another line, a pasted block stays one piece, the
    arrow keys bring back earlier questions, Ctrl-C cancels the answer that is coming, Ctrl-D leaves; `/help` lists the
    commands. From a pipe: one question or command a line, and nothing but the answers on stdout.

    The conversation is kept as plain text, unless `sessions.store` is false (docs/sessions.md).

    \b
    turnout chat
    turnout chat --session parser --file src/parser.py
    printf '%s\\n' "What is a monad?" "And in Python?" | turnout chat
    """
    context.exit(converse(context.obj, name, given, embedded=embedded))


def converse(config_file: str | None, name: str | None, given: Wanted, *, embedded: bool, known: bool = False) -> int:
    """Hold a conversation until it is left; returns the exit code.

    Args:
        name: of the conversation, None for a new one.
        known: it must be there already.
    """
    loaded = loaded_config(config_file)
    if name is not None:
        require_store(loaded, name)
    return asyncio.run(_converse(only_embedded(loaded) if embedded else loaded, name, given, embedded, known))


async def _converse(loaded: LoadedConfig, name: str | None, given: Wanted, embedded: bool, known: bool) -> int:
    from turnout.build import open_router
    from turnout.session import Session, new_session_id, open_sessions

    async with AsyncExitStack() as stack:
        store = await asyncio.to_thread(open_sessions, loaded)
        if store is not None:
            stack.callback(store.close)
        session = Session(name or new_session_id(), store)
        await session.refresh()
        if known and session.kept is None:
            from turnout.cli.session import unknown

            raise unknown(store, session.id)
        with waiting("starting the bundled model" if embedded else "looking for servers"):
            router = await stack.enter_async_context(open_router(loaded, embedded=embedded, store=store))
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        talk = Chat(loaded, router, store, session, given, terminal=terminal, named=name is not None)
        with talk.ctrl_c.taken() if terminal else nullcontext():
            async with aclosing(talk.lines()) as lines:
                async for line in lines:
                    if not await talk.take(line):
                        break
        talk.say_goodbye()
        return talk.code


class Chat:
    """A conversation that is going on.

    Attributes:
        code: the exit code: of the first question from a pipe that could not be answered.
        ctrl_c: what Ctrl-C does at a terminal.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        router: Router,
        store: SessionStore | None,
        session: Session,
        given: Wanted,
        *,
        terminal: bool,
        named: bool,
    ) -> None:
        self.code, self.ctrl_c = EXIT_DONE, _CtrlC()
        self._loaded, self._router, self._store, self._session = loaded, router, store, session
        self._given, self._terminal, self._named = given, terminal, named
        self._model = given["model"] or "auto"
        self._left = False
        self._looked = time.monotonic()
        self._alarm = router.audit_alarm
        self._answered = session.kept.active_model if session.kept else ""

    async def lines(self) -> AsyncGenerator[str, None]:
        """What the user says, without what is empty."""
        from turnout.cli.prompt import piped_lines, terminal_reader

        if not self._terminal:
            async with aclosing(piped_lines()) as lines:
                async for line in lines:
                    if line:
                        yield line
            return
        self._greet()
        read = terminal_reader(self._questions, self._completions, self.ctrl_c.typing)
        while True:
            try:
                line = (await read()).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if self.ctrl_c.ending:
                    raise
                self._aside("Ctrl-D or /quit leaves")
                continue
            if line:
                yield line

    def _greet(self) -> None:
        kept = self._session.kept
        if kept is not None and kept.messages:
            last = next((m.message.text for m in reversed(kept.messages) if m.message.role == "user"), "")
            self._aside(f"conversation {self._session.id}: {len(kept.messages)} messages; you last asked: {last[:100]}")
        else:
            where = f"conversation {self._session.id}" if self._store else "this conversation is not stored"
            self._aside(f"{where}; /help shows the commands, Ctrl-D leaves")

    def say_goodbye(self) -> None:
        if self._store is not None and self._session.messages and (self._terminal or not self._named):
            self._aside(f"`turnout chat --session {self._session.id}` goes on with it")

    def _questions(self) -> Sequence[str]:
        from turnout.router import LOCAL

        try:
            return self._store.questions(LOCAL.id) if self._store is not None else ()
        except StorageError:  # said with the next question, which needs the store more than the arrow keys do
            return ()

    def _completions(self) -> Mapping[str, Sequence[str]]:
        models = [model.id for status in self._router.catalog.serving for model in status.models]
        return {f"/{name}": ["auto", *models] if name == "model" else [] for name in COMMANDS}

    async def take(self, line: str) -> bool:
        """Do what a line says; False to leave. What goes wrong is told, and the conversation goes on."""
        command = _COMMAND.match(line)
        try:
            if command is None:
                await self._ask(line)
            else:
                await self._stoppable(_named(command[1])(self, (command[2] or "").strip()))
        except _Cancelled:
            self._aside("cancelled")
        except TurnoutError as error:
            report_error(error)
            if not self._terminal:
                self.code = self.code or error.exit_code
        return not self._left

    async def _ask(self, question: str) -> None:
        before, began = sys.maxsize, time.monotonic()
        try:
            await self._stoppable(self._catch_up())
            before, began = len(self._session.messages), time.monotonic()
            result = await self._stoppable(self._answer(self._request(question)))
        except _Cancelled:
            await self._session.refresh()
            if len(self._session.messages) > before:
                self._aside("cancelled as it was complete: question and answer are kept")
            else:
                self._aside("cancelled: neither the question nor what came of the answer is kept")
            return
        self._tell(result, time.monotonic() - began)

    def _request(self, question: str) -> ChatRequest:
        if self._model == "auto":
            given: Wanted = {**self._given, "model": None}
        else:
            given = {**self._given, "model": self._model, "category": None}
        return build_request(self._loaded, given, question)

    async def _answer(self, request: ChatRequest) -> ExecutionResult:
        from turnout.api import collect
        from turnout.cli.notes import log_as_notes

        with waiting("looking for a model") as update:
            screen = Screen(stream=True, update=update)
            try:
                events = self._session.events(self._router, request)
                with log_as_notes(screen.end_line):
                    async with aclosing(seen(events, screen)) as shown:
                        return await collect(shown)
            finally:
                screen.end_line()

    def _tell(self, result: ExecutionResult, seconds: float) -> None:
        for line in route_lines(result, seconds):
            if self._terminal or not line.startswith("route: "):
                self._aside(line)
        for notice in result.notices:
            if notice.code == "edits":
                self._aside(f"{notice.text}; /apply writes them, /revert takes that back")
        if self._answered and result.model != self._answered and result.route is not None:
            self._aside(f"handed over from {self._answered} to {result.model}: {result.route.reason}")
        self._answered = result.model
        alarm = self._router.audit_alarm
        if alarm is not None and alarm is not self._alarm:
            self._alarm = alarm
            raise AuditError(NO_END, hint=alarm.hint)

    async def _catch_up(self) -> None:
        await self._look_again()
        await self._session.refresh()

    async def _look_again(self) -> None:
        """Servers come and go while somebody thinks."""
        if time.monotonic() - self._looked > self._loaded.config.discovery.interval / 1000:
            await self._router.fleet.refresh(whole=False)
            self._looked = time.monotonic()

    async def _stoppable(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run it; Ctrl-C at a terminal ends it alone.

        Raises:
            _Cancelled: Ctrl-C.
        """
        return await self.ctrl_c.ends(work) if self._terminal else await work

    def _aside(self, text: str) -> None:
        """A line beside the conversation: dim on a terminal."""
        click.secho(clean(text, 100_000), dim=True, err=True) if self._terminal else note(text)

    # Commands.

    async def show_help(self, _: str) -> None:
        rows = [(f"/{name} {usage}".strip(), said) for name, (_, usage, said) in COMMANDS.items()]
        table(("command", "meaning"), rows)
        if self._terminal:
            self._aside("Alt+Enter or a backslash at the end: another line. Ctrl-C: cancel an answer. Ctrl-D: leave.")

    async def choose_model(self, name: str) -> None:
        if name and name != "auto":
            # Asked for nothing, so that what no server has is refused now.
            await self._router.explain(ChatRequest((message("user", "?"),), model=name))
        if name:
            self._model = name
            click.echo(f"next: {cell(name)}")
            return
        await self._look_again()
        rows = [
            (model.id, status.endpoint.name, f"{model.window:,} ({model.window_source})" if model.window else "-")
            for status in self._router.catalog.serving
            for model in status.models
        ]
        table(("model", "service", "window"), rows)
        click.echo(f"next: {cell(self._model)}")

    async def show_context(self, _: str) -> None:
        await self._look_again()
        await self._session.refresh()
        ahead = await self._outlook()
        candidate, fitted = ahead.candidate, ahead.fitted
        how = ", chosen as for the last question" if self._model == "auto" and self._session.messages else ""
        left = f"{'; '.join(fitted.steps)}: about {fitted.tokens_after:,} tokens"
        rows = [
            ("conversation", f"{self._session.id}, {'kept' if self._store else 'in memory'}"),
            ("model", f"{candidate.label}{how}"),
            ("window", f"{candidate.window:,} tokens ({candidate.window_source})"),
            ("system prompt", f"about {ahead.system:,} tokens"),
            ("history", f"about {ahead.history:,} tokens in {len(self._session.messages)} messages"),
            ("room for the answer", f"{ahead.room:,} tokens"),
            ("compacted above", f"{ahead.threshold:,} tokens"),
            ("sent next", left if fitted.changed else "everything as it is"),
        ]
        table(("part", "now"), rows)

    async def _outlook(self) -> Outlook:
        from turnout.session import outlook

        request = self._session.continued(self._request("?"))
        request = replace(request, messages=request.messages[:-1])
        return await outlook(self._router, request, self._loaded.config.context)

    async def compact(self, _: str) -> None:
        if not await self._session.compact():
            click.echo("nothing was said yet")
            return
        try:
            ahead = await self._outlook()
        except NoServiceError:
            click.echo("from now on it is compacted; how far, the server that answers next decides: none answers now")
            return
        before, after = ahead.system + ahead.history, ahead.fitted.tokens_after
        done = "; ".join(ahead.fitted.steps) or "nothing of it can be left out"
        click.echo(f"from now on: {cell(done)}; about {before:,} tokens become {min(before, after):,}")

    async def apply_edits(self, how: str) -> None:
        from turnout.build import open_editor
        from turnout.cli import edits

        last = self._session.messages[-1] if self._session.messages else None
        if last is None or last.role != "assistant":
            click.echo("nothing was answered yet")
            return
        async with open_editor(self._loaded, self._workspace()) as editor:
            proposed = await editor.preview(last.text)
            edits.show(proposed)
            edits.tell_outcome(await editor.apply(proposed, despite_errors=how == "--despite-errors"))

    async def revert(self, how: str) -> None:
        from turnout.build import open_editor
        from turnout.cli import edits

        async with open_editor(self._loaded, self._workspace(), asks=False) as editor:
            edits.tell_outcome(await editor.undo(force=how == "--force"), undone=True)

    def _workspace(self) -> Path:
        workspace = self._request("?").workspace
        if not workspace:
            raise UsageError("edits need a workspace", hint="begin the chat with --workspace DIR")
        return Path(workspace)

    async def undo(self, _: str) -> None:
        question = await self._session.undo()
        click.echo("nothing was asked yet" if question is None else f"taken back: {cell(question[:200])}")

    async def begin_anew(self, _: str) -> None:
        from turnout.session import Session, new_session_id

        self._session = Session(new_session_id(), self._store)
        self._answered = ""
        click.echo(f"a new conversation{f': {self._session.id}' if self._store else ''}")

    async def list_sessions(self, _: str) -> None:
        from turnout.cli.session import list_table
        from turnout.router import LOCAL

        if self._store is None:
            click.echo("conversations are not stored: sessions.store is false")
            return
        found = await asyncio.to_thread(self._store.list_sessions, LOCAL.id)
        list_table(found[:_MOST_LISTED])
        if len(found) > _MOST_LISTED:
            click.echo(f"and {len(found) - _MOST_LISTED} more: `turnout session list`")

    async def leave(self, _: str) -> None:
        self._left = True


_Command: TypeAlias = Callable[[Chat, str], Coroutine[Any, Any, None]]
COMMANDS: dict[str, tuple[_Command, str, str]] = {
    "help": (Chat.show_help, "", "this list"),
    "model": (Chat.choose_model, "[NAME|auto]", "who answers from now on; alone: which models there are"),
    "context": (Chat.show_context, "", "the window, what fills it, and what would be sent now"),
    "compact": (Chat.compact, "", "have what was said until here summarised from now on"),
    "apply": (Chat.apply_edits, "[--despite-errors]", "write the edits that the last answer proposes, all or none"),
    "revert": (Chat.revert, "[--force]", "take back what /apply changed last in the workspace"),
    "undo": (Chat.undo, "", "take back the last question and its answer, in the store too"),
    "new": (Chat.begin_anew, "", "begin a new conversation"),
    "sessions": (Chat.list_sessions, "", "the conversations that are kept"),
    "quit": (Chat.leave, "", "leave"),
}


def _named(name: str) -> _Command:
    if name in COMMANDS:
        return COMMANDS[name][0]
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
    raise UsageError(f"there is no command /{name}", hint=hint)


class _CtrlC:
    """Between two prompts Ctrl-C ends what runs instead of the program; what ends the program otherwise (SIGTERM, a
    closed terminal: cli/__init__.py makes a SIGINT of them) still does, and at the prompt a SIGINT is somebody's who
    does, because Ctrl-C is a key there."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._typing = self._asked = False
        self.ending = False  # by a signal that ends the program

    def typing(self, now: bool) -> None:
        """Whether the prompt is there."""
        self._typing, self._asked = now, self._asked and not now

    async def ends(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run it; Ctrl-C ends it alone, also when it was pressed since the prompt was left.

        Raises:
            _Cancelled: Ctrl-C.
        """
        self._task = task = asyncio.create_task(work)
        if self._asked:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise _Cancelled from None
        finally:
            self._task = None

    def _cancel(self) -> None:
        self._asked = True
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()  # once: a second Ctrl-C must not cut short what the first makes it tidy up

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have it so."""
        loop, usual = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
        ending = {n: signal.getsignal(n) for n in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))}

        def stop(number: int, frame: Any) -> None:
            if not self._typing:
                loop.call_soon_threadsafe(self._cancel)
            elif callable(usual):
                usual(number, frame)

        def end(number: int, frame: Any) -> None:
            self.ending = True
            signal.signal(signal.SIGINT, usual)
            handler = ending[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        signal.signal(signal.SIGINT, stop)
        for number, handler in ending.items():
            if callable(handler):
                signal.signal(number, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)
            for number, handler in ending.items():
                signal.signal(number, handler)
