"""Where the lines of a chat come from: a terminal with editing and history, or a pipe, one question a line."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from turnout.cli.request import MAX_QUERY_BYTES
from turnout.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings

Complete = Callable[[], Mapping[str, Sequence[str]]]


def terminal_reader(
    questions: Callable[[], Sequence[str]], complete: Complete, typing: Callable[[bool], None]
) -> Callable[[], Awaitable[str]]:
    """A function that reads a question: Enter ends it, unless the line ends in a backslash; Alt+Enter begins a line; a
    pasted block stays one piece.

    It raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C, both at the empty prompt.

    Args:
        questions: those of earlier conversations, newest first. They come from the store, and nothing is written: what
            is deleted there is gone here.
        complete: what Tab offers: every command, with what may follow it.
        typing: hears when the prompt is there and keys are its own, and when it is left.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import Application
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History

    class Earlier(History):
        def load_history_strings(self) -> Iterator[str]:
            yield from questions()

        def store_string(self, string: str) -> None:
            """Nothing: the store keeps the question with its answer."""

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            typed, offered = document.text_before_cursor, complete()
            command, space, begun = typed.partition(" ")
            for word in offered.get(command, ()) if space else offered:
                if word.startswith(begun if space else typed):
                    yield Completion(word, start_position=-len(begun if space else typed))

    session = PromptSession[str](
        history=Earlier(),
        multiline=True,
        key_bindings=_keys(),
        completer=Commands(),
        complete_while_typing=False,
    )

    def drawn(app: Application[str]) -> None:
        typing(not app.is_done)  # drawn a last time while Ctrl-C is still a key

    session.app.after_render += drawn

    async def read() -> str:
        # Ctrl-C is a key here. A signal is somebody who ends the program, and that is not the prompt's to handle.
        return await session.prompt_async("> ", prompt_continuation=". ", handle_sigint=False)

    return read


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys, typing = KeyBindings(), has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=typing)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


async def piped_lines() -> AsyncGenerator[str, None]:
    """The lines of standard input as they come.

    Raises:
        UsageError: one is not text, or too long.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[bytes](1)

    def pump() -> None:
        # A reader that is left behind in a read must hold no lock of Python's: the interpreter would wait for it.
        with suppress(RuntimeError):  # the loop has ended, and nobody wants the rest
            for piece in _pieces():
                asyncio.run_coroutine_threadsafe(queue.put(piece), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(b""), loop).result()

    threading.Thread(target=pump, daemon=True).start()
    rest = b""
    while piece := await queue.get():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield _text(line)
        if len(rest) > MAX_QUERY_BYTES:
            raise UsageError(f"a line has more than {MAX_QUERY_BYTES:,} bytes", hint="one question a line")
    if rest:
        yield _text(rest)


def _pieces() -> Iterator[bytes]:
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError):
        yield sys.stdin.buffer.read()
        return
    while piece := os.read(number, 65_536):
        yield piece


def _text(line: bytes) -> str:
    if b"\0" in line:
        raise UsageError("standard input is binary (it has NUL bytes)", hint="pipe UTF-8 text")
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UsageError("standard input is not UTF-8 text", hint="pipe UTF-8 text") from None
