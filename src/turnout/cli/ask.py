"""``turnout ask``: a question in, the answer on stdout as it comes, the route it took on stderr."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Unpack

import click

from turnout.cli import edits
from turnout.cli.output import (
    PartialError,
    attempt_fields,
    json_option,
    loaded_config,
    note,
    print_json,
    safe,
    waiting,
)
from turnout.cli.request import Given, build_request, read_query, request_options
from turnout.errors import AuditError, NoServiceError, QueryFailedError, StreamBrokenError, TurnoutError, UsageError
from turnout.types import ChatRequest, Event, ExecutionResult, ReasoningDelta, Route, Started, TextDelta

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.run import Run
    from turnout.types import Json

_OFFER = "No local server answered. Use the bundled demonstration model (SmolLM2 135M, small, for trying out only)?"


NO_END = "the answer was given, but how it ended could not be written to the audit log"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``alarm``: its end is not in the audit log. ``run``: what is known of how it came about."""

    result: ExecutionResult
    alarm: AuditError | None
    run: Run | None


@dataclass(slots=True)
class Screen:
    """Where the answer goes while it comes. ``update`` changes the spinner's text, "" ends it. ``shows_context``: the
    code that was sent along is told before."""

    stream: bool
    update: Callable[[str], None]
    shows_context: bool = False
    run: Run | None = None
    last: str = "\n"

    def begin(self, run: Run) -> None:
        """This is the record of what is asked."""
        self.run = run

    def see(self, event: Event) -> None:
        match event:
            case Started(route):
                if self.shows_context and self.run is not None:
                    self.update("")
                    show_context(self.run)
                self.update(f"{route.sent_model} @ {route.service} answers")
            case ReasoningDelta():
                self.update("the model is thinking")
            case TextDelta(text) if self.stream:
                self.update("")
                self.write(text)
            case _:
                pass

    def write(self, text: str) -> None:
        shown = safe(text)
        click.echo(shown, nl=False)
        self.last = shown[-1:] or self.last

    def end_line(self) -> None:
        if self.last != "\n":
            self.write("\n")


@click.command()
@request_options
@click.option("--embedded", is_flag=True, help="Use the bundled demonstration model and look for no server.")
@click.option("--show-context", is_flag=True, help="Show the code that is sent along, and who was asked for it.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("--session", metavar="NAME", help="Begin or go on with this conversation, and keep what is said.")
@click.option("--edit", is_flag=True, help="Show the edits that the answer proposes as diffs, and ask before writing.")
@click.option("--apply", is_flag=True, help="Write the edits that the answer proposes, all or none, without asking.")
@click.option("--despite-errors", is_flag=True, help="With --edit or --apply: keep edits that add errors, too.")
@json_option
@click.pass_obj
def ask(
    config_file: str | None,
    embedded: bool,
    show_context: bool,
    no_stream: bool,
    session: str | None,
    edit: bool,
    apply: bool,
    despite_errors: bool,
    as_json: bool,
    **given: Unpack[Given],
) -> None:
    """Ask a question and stream the answer of the best local model.

    QUERY is the question; `-` reads it from standard input. Text that is piped in is attached after QUERY
    (`< /dev/null` attaches nothing). The answer goes to stdout, the route it took to stderr.

    Edits that the answer proposes for files of the workspace are only named, unless --edit or --apply is given;
    `turnout undo` takes them back (docs/edits.md).

    \b
    turnout ask "Write a Python function that adds two numbers"
    git diff | turnout ask "Review this change"
    turnout ask "Why does this loop end early?" --file app.py --line 42
    turnout ask --edit "Handle an empty list in total()" --file app.py
    """
    query = read_query(given["query"])
    loaded = loaded_config(config_file)
    request = build_request(loaded, given, query)
    if session is not None:
        require_store(loaded, session)
        request = replace(request, session_id=session)
    request = edits.asking_for_edits(request, asks=edit, writes=apply, despite_errors=despite_errors, as_json=as_json)
    stream = not (no_stream or as_json)
    began = time.monotonic()
    try:
        shown = show_context and not as_json
        answer = _answer(loaded, request, embedded=embedded, stream=stream, shows_context=shown)
    except TurnoutError as error:
        if as_json:
            raise PartialError(error, _failure_fields(error)) from error
        if not stream and isinstance(error, StreamBrokenError):
            click.echo(safe(error.received))
        raise
    seconds = time.monotonic() - began
    fields = {**_result_fields(answer.result, seconds), "session": session} if as_json else {}
    if as_json and show_context:
        fields["code_context"] = _context_fields(answer.run)
    if not as_json:
        _tell(answer.result, seconds, streamed=stream)
        if not (edit or apply):
            edits.tell_proposed(answer.result, edits.how_to_apply(session))
    if answer.alarm is not None:
        raise PartialError(AuditError(NO_END, hint=answer.alarm.hint), fields)
    if edit or apply:
        fields = edits.carry_out(loaded, request, answer.result.text, fields, asks=edit, despite_errors=despite_errors)
    if as_json:
        print_json(fields)


def _tell(result: ExecutionResult, seconds: float, *, streamed: bool) -> None:
    if not streamed:
        click.echo(safe(result.text))
    for line in route_lines(result, seconds):
        note(line)


def _answer(loaded: LoadedConfig, request: ChatRequest, *, embedded: bool, stream: bool, shows_context: bool) -> Answer:
    if embedded:
        return asyncio.run(
            _run(only_embedded(loaded), request, embedded=True, stream=stream, shows_context=shows_context)
        )
    try:
        return asyncio.run(_run(loaded, request, embedded=False, stream=stream, shows_context=shows_context))
    except NoServiceError as error:
        if _agreed(loaded):
            return asyncio.run(
                _run(only_embedded(loaded), request, embedded=True, stream=stream, shows_context=shows_context)
            )
        hint = f"{error.hint}; `turnout ask --embedded` asks the bundled model alone{_install_first()}"
        raise NoServiceError(error.message, hint=hint, probed=error.probed) from error


async def _run(
    loaded: LoadedConfig, request: ChatRequest, *, embedded: bool, stream: bool, shows_context: bool
) -> Answer:
    from turnout.api import collect
    from turnout.build import open_router
    from turnout.cli.notes import log_as_notes
    from turnout.session import Session, open_sessions

    with waiting("starting the bundled model" if embedded else "looking for servers") as update:
        screen = Screen(stream, update, shows_context)
        try:
            with log_as_notes(screen.end_line):
                async with AsyncExitStack() as stack:
                    store = await asyncio.to_thread(open_sessions, loaded) if request.session_id else None
                    if store is not None:
                        stack.callback(store.close)
                    session = Session(request.session_id, store)
                    await session.refresh()
                    router = await stack.enter_async_context(open_router(loaded, embedded=embedded, store=store))
                    async with aclosing(seen(session.events(router, request, screen.begin), screen)) as events:
                        return Answer(await collect(events), router.audit_alarm, screen.run)
        finally:
            screen.end_line()


def show_context(run: Run) -> None:
    """The code that is sent along with a question, on stderr."""
    if run.code is None:
        note(f"code context: none: {run.no_code}" if run.no_code else "code context: none")
        return
    note(f"code context: {run.code.provider}: {run.code.note}")
    for added in run.inserted.values():
        click.echo(f"{safe(added).strip()}\n", err=True)


def _context_fields(run: Run | None) -> Json:
    if run is None or run.code is None:
        return None
    return {"provider": run.code.provider, "note": run.code.note, "text": "".join(run.inserted.values()).strip()}


async def seen(events: AsyncGenerator[Event, None], screen: Screen) -> AsyncGenerator[Event, None]:
    """The events, each shown as it comes."""
    async with aclosing(events):
        async for event in events:
            screen.see(event)
            yield event


def require_store(loaded: LoadedConfig, session: str) -> None:
    """Refuse to go on with a conversation that is not to be kept.

    Raises:
        UsageError: the name is not plain, or nothing is stored.
    """
    from turnout.context.store import check_session_id

    check_session_id(session)
    if not loaded.config.sessions.store:
        said = f"{loaded.place('sessions.store')} is false: no conversation is kept"
        raise UsageError(said, hint="set it to true, or leave --session out")


def only_embedded(loaded: LoadedConfig) -> LoadedConfig:
    """The same configuration with no server to look for, so that the bundled model is alone and therefore chosen."""
    import msgspec

    config = loaded.config
    alone = msgspec.structs.replace(
        config,
        services={},
        custom_endpoints=(),
        discovery=msgspec.structs.replace(config.discovery, enabled=False),
    )
    return msgspec.structs.replace(loaded, config=alone)


def _agreed(loaded: LoadedConfig) -> bool:
    from turnout.cli.embedded import can_run

    if not can_run():
        return False
    if loaded.config.embedded.fallback:
        return True
    return sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(_OFFER, default=False, err=True)


def _install_first() -> str:
    from turnout.cli.embedded import can_run

    return "" if can_run() else " (`turnout embedded install` first)"


def route_lines(result: ExecutionResult, seconds: float) -> Iterator[str]:
    """What is told beside an answer: notices, failed attempts, and the route it took."""
    for notice in result.notices:
        # Fallback notices say what the attempts below say, and edits are told with what can be done about them.
        if notice.code not in ("fallback", "edits"):
            yield f"note: {notice.text}"
    for line, seconds_of_each in _failed_attempts(result).items():
        tries = f"{len(seconds_of_each)} tries, " if len(seconds_of_each) > 1 else ""
        yield f"tried: {line} ({tries}{sum(seconds_of_each):.2f} s)"
    if result.finish == "length":
        yield "note: the answer ends at its token limit; --max-tokens raises it"
    if result.route is not None:
        yield f"route: {_route_line(result.route, result, seconds)}"


def _failed_attempts(result: ExecutionResult) -> dict[str, list[float]]:
    """What failed and why, each once, with the seconds of every try."""
    found: dict[str, list[float]] = {}
    for attempt in result.attempts:
        if attempt.error is not None:
            line = f"{attempt.model} @ {attempt.service}: {attempt.error.message}"
            found.setdefault(line, []).append(attempt.seconds)
    return found


def _route_line(route: Route, result: ExecutionResult, seconds: float) -> str:
    usage = result.usage
    return ", ".join(
        (
            f"{route.sent_model} @ {route.service}",
            f"level {int(route.level)} ({route.level.name.lower().replace('_', ' ')})",
            f"category {route.category or '-'}",
            f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out",
            f"{seconds:.2f} s",
        )
    )


def _route_fields(route: Route) -> dict[str, Json]:
    return {
        "request_id": route.request_id,
        "requested_model": route.requested_model,
        "model": route.sent_model,
        "canonical": route.canonical,
        "service": route.service,
        "url": route.url,
        "level": int(route.level),
        "category": route.category.value if route.category else None,
        "window": route.window,
        "window_source": route.window_source,
        "prompt_tokens_estimate": route.prompt_tokens,
        "reason": route.reason,
    }


def _result_fields(result: ExecutionResult, seconds: float) -> dict[str, Json]:
    usage = result.usage
    return {
        "text": result.text,
        "reasoning": result.reasoning,
        "finish": result.finish,
        "route": _route_fields(result.route) if result.route else None,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "attempts": [attempt_fields(attempt) for attempt in result.attempts],
        "notices": [{"code": n.code, "text": n.text} for n in result.notices],
        "seconds": round(seconds, 3),
    }


def _failure_fields(error: TurnoutError) -> dict[str, Json]:
    attempts = error.attempts if isinstance(error, QueryFailedError | StreamBrokenError) else ()
    return {
        "text": error.received if isinstance(error, StreamBrokenError) else "",
        "attempts": [attempt_fields(attempt) for attempt in attempts],
    }
