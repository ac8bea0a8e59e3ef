"""``turnout session``: the conversations that are kept."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Unpack

import click

from turnout.cli.chat import converse
from turnout.cli.output import cell, json_option, loaded_config, note, print_json, safe, said, table, waiting
from turnout.cli.request import Wanted, question_options
from turnout.errors import NoServiceError, NoSuitableModelError, UsageError
from turnout.types import ChatRequest, Image, Message, Part, Principal, Reasoning, Text, ToolCall, ToolResult, message

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.context.record import SessionLine, SessionRecord, StoredMessage
    from turnout.context.store import SessionStore
    from turnout.session import Outlook
    from turnout.types import Json

_MINE = Principal().id


@click.group()
def session() -> None:
    """List, show, resume, export or delete conversations.

    Where they are kept, and for how long: docs/sessions.md.
    """


@session.command("list")
@json_option
@click.pass_obj
def list_(config_file: str | None, as_json: bool) -> None:
    """List the conversations that are kept, the last used first."""
    with _store(loaded_config(config_file)) as store:
        found = store.list_sessions(_MINE) if store is not None else ()
    if as_json:
        print_json([_line_fields(line) for line in found])
    else:
        list_table(found)


def list_table(found: Sequence[SessionLine]) -> None:
    """The conversations as a table, for ``/sessions`` too."""
    columns = ("name", "last used", "messages", "tokens", "model", "first question")
    rows = [
        (line.id, _when(line.updated), str(line.messages), f"{line.tokens:,}", cell(line.active_model), cell(q))
        for line in found
        for q in (line.question[:80],)
    ]
    table(columns, rows, spare=("tokens", "model"))


@session.command()
@click.argument("name")
@click.option("--full", is_flag=True, help="The original, whole; no server is asked.")
@json_option
@click.pass_obj
def show(config_file: str | None, name: str, full: bool, as_json: bool) -> None:
    """Show a conversation as it would be sent now, and say what of it is summarised or left out.

    Asks the servers for the window of the model that answered last. The hand-overs between models are listed with their
    reasons.
    """
    loaded = loaded_config(config_file)
    found = _load(loaded, name)
    ahead = None if full else _ahead(loaded, found)
    if as_json:
        print_json(_fields(found) | ({} if full else {"sent": _sent_fields(ahead)}))
        return
    click.echo(safe(markdown(found, ahead)), nl=False)


@session.command()
@click.argument("name")
@question_options
@click.option("--embedded", is_flag=True, help="Use the bundled demonstration model and look for no server.")
@click.pass_context
def resume(context: click.Context, name: str, embedded: bool, **given: Unpack[Wanted]) -> None:
    """Go on with a conversation: `turnout chat --session NAME`, for one that is there."""
    context.exit(converse(context.obj, name, given, embedded=embedded, known=True))


@session.command()
@click.argument("name")
@click.option(
    "--format", "kind", type=click.Choice(["markdown", "json"]), default="markdown", help="Default: markdown."
)
@click.pass_obj
def export(config_file: str | None, name: str, kind: str) -> None:
    """Write a whole conversation to stdout.

    JSON holds everything exactly. Markdown is for reading: control characters are left out.
    """
    found = _load(loaded_config(config_file), name)
    if kind == "json":
        print_json(_fields(found))
    else:
        click.echo(safe(markdown(found, None)), nl=False)


@session.command()
@click.argument("names", nargs=-1, required=True)
@json_option
@click.pass_obj
def delete(config_file: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """Delete conversations. What is deleted is overwritten on the disk (docs/sessions.md)."""
    with _store(loaded_config(config_file)) as store:
        for name in names:
            if store is None or not store.delete(_MINE, name):
                raise unknown(store, name)
            if not as_json:
                click.echo(f"deleted {name}")
    if as_json:
        print_json({"deleted": [*names]})


@session.command()
@click.option("--force", is_flag=True, help="Believe the clock, also when it has jumped.")
@json_option
@click.pass_obj
def prune(config_file: str | None, force: bool, as_json: bool) -> None:
    """Delete the conversations that are older than `sessions.retention_days`.

    When the clock was set back, or has moved on by more than that, nothing is deleted and ages count from now on.
    """
    loaded = loaded_config(config_file)
    days = loaded.config.sessions.retention_days
    from turnout.context.store import Pruned

    with _store(loaded, prune=False) as store:
        done = store.prune(days, force=force) if store is not None else Pruned()
    if as_json:
        print_json({"deleted": done.deleted, "retention_days": days, "clock_doubted": done.doubtful})
        return
    if not days:
        click.echo("nothing is deleted: sessions.retention_days is 0")
        return
    click.echo(f"deleted {done.deleted} not used for {days} days")
    if done.doubtful:
        note("note: the clock has jumped, or retention looked at it for the first time: ages count from now on")


@contextmanager
def _store(loaded: LoadedConfig, *, prune: bool = True) -> Iterator[SessionStore | None]:
    from turnout.session import kept_sessions

    store = kept_sessions(loaded, prune=prune)
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def _load(loaded: LoadedConfig, name: str) -> SessionRecord:
    with _store(loaded) as store:
        found = store.load(_MINE, name) if store is not None else None
        if found is None:
            raise unknown(store, name)
        return found


def unknown(store: SessionStore | None, name: str) -> UsageError:
    """There is no conversation of that name; names the nearest."""
    names = [line.id for line in store.list_sessions(_MINE)] if store is not None else []
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "`turnout session list` shows what there is"
    return UsageError(f"there is no conversation {name}", hint=hint)


def _ahead(loaded: LoadedConfig, found: SessionRecord) -> Outlook | None:
    """What would be sent; None, and a note, when no server can say."""
    try:
        with waiting("looking for servers"):
            return asyncio.run(_outlook(loaded, found))
    except (NoServiceError, NoSuitableModelError) as error:
        note(f"note: shown whole, because no window is known: {said(error)}")
        return None


async def _outlook(loaded: LoadedConfig, found: SessionRecord) -> Outlook:
    from turnout.build import open_router
    from turnout.session import kept_sessions, outlook

    system = (message("system", found.system_prompt),) if found.system_prompt else ()
    messages = (*system, *(m.message for m in found.messages))
    request = ChatRequest(messages, session_id=found.id, compact_at=found.compact_at)
    async with AsyncExitStack() as stack:
        store = await asyncio.to_thread(kept_sessions, loaded, prune=False)
        if store is not None:
            stack.callback(store.close)
        router = await stack.enter_async_context(open_router(loaded, whole=True, store=store))
        served = {model.id for status in router.catalog.serving for model in status.models}
        model = found.active_model if found.active_model in served else "auto"
        return await outlook(router, replace(request, model=model), loaded.config.context)


def markdown(found: SessionRecord, ahead: Outlook | None) -> str:
    """A conversation for reading: as it would be sent, or whole when ``ahead`` is None."""
    lines = [
        f"# Conversation {found.id}",
        "",
        (
            f"{len(found.messages)} messages, about {found.total_tokens:,} tokens, begun {_when(found.created)}, last "
            f"used {_when(found.updated)}. Shortened for {found.compactions} of its questions."
        ),
    ]
    if found.compact_at:
        lines += ["", f"`/compact` was asked for after message {', '.join(map(str, found.compact_at))}."]
    if found.model_history:
        lines += ["", "Handed over to:", ""]
        lines += [f"- {_when(at)}: {model}: {reason}" for at, model, reason in found.model_history]
    if ahead is None:
        shown = [(_heading(m), m.message) for m in found.messages]
    else:
        candidate, fitted = ahead.candidate, ahead.fitted
        what = "; ".join(fitted.steps) if fitted.changed else "everything as it is"
        window = f"{candidate.window:,} tokens ({candidate.window_source})"
        lines += ["", f"As it would be sent to {candidate.label} now, window {window}: {what}."]
        shown = [(m.role.capitalize(), m) for m in fitted.messages if m.role != "system"]
    if found.system_prompt:
        lines += ["", "## System", "", found.system_prompt]
    for heading, m in shown:
        lines += ["", f"## {heading}", "", *map(_part, m.parts)]
    return "\n".join(lines) + "\n"


def _heading(stored: StoredMessage) -> str:
    model, service = stored.metadata.get("model"), stored.metadata.get("service")
    by = f", {model} @ {service}" if model else ""
    return f"{stored.message.role.capitalize()}{by}, {_when(stored.time)}"


def _part(part: Part) -> str:
    match part:
        case Text(text):
            return text
        case Reasoning(text):
            return f"[thinking] {text}"
        case ToolCall():
            return f"[calls {part.name}] {part.arguments}"
        case ToolResult():
            return f"[result of {part.name or part.call_id}] {part.content}"
        case Image():
            return f"[image {part.media_type}]"


def _when(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return "at no time that a calendar has"


def _line_fields(line: SessionLine) -> dict[str, Json]:
    return {
        "name": line.id,
        "created": line.created,
        "updated": line.updated,
        "messages": line.messages,
        "tokens": line.tokens,
        "model": line.active_model,
        "question": line.question,
    }


def _fields(found: SessionRecord) -> dict[str, Json]:
    return {
        "name": found.id,
        "created": found.created,
        "updated": found.updated,
        "system_prompt": found.system_prompt,
        "model": found.active_model,
        "model_history": [{"time": at, "model": model, "reason": why} for at, model, why in found.model_history],
        "compactions": found.compactions,
        "compact_at": [*found.compact_at],
        "tokens": found.total_tokens,
        "messages": [
            {**_message_fields(m.message), "time": m.time, "tokens": m.tokens, "metadata": dict(m.metadata)}
            for m in found.messages
        ],
    }


def _sent_fields(ahead: Outlook | None) -> dict[str, Json] | None:
    if ahead is None:
        return None
    candidate, fitted = ahead.candidate, ahead.fitted
    return {
        "model": candidate.model.id,
        "service": candidate.endpoint.name,
        "window": candidate.window,
        "window_source": candidate.window_source,
        "tokens": fitted.tokens_after,
        "steps": [*fitted.steps],
        "messages": [_message_fields(m) for m in fitted.messages],
    }


def _message_fields(m: Message) -> dict[str, Json]:
    from turnout.context.record import encode_message

    fields: dict[str, Json] = json.loads(encode_message(m))
    return fields
