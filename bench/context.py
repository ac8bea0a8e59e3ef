"""The conversation's budgets: compacting a history of 200,000 tokens, and opening a session of 10,000 messages.

python bench/context.py

Of every work the time on the clock, and the processor time, which other work on the machine hardly changes: none of
these waits for anything but the processor and a file in memory.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from turnout.config import ContextConfig
from turnout.context.compaction import Fitted, fit
from turnout.context.store import Exchange, StoredMessage, open_store
from turnout.context.tokens import TokenCounter
from turnout.types import Message, Text, ToolCall, ToolResult, message

RUNS = 15
WORDS = (
    "the",
    "parser",
    "reads",
    "a",
    "file",
    "and",
    "returns",
    "every",
    "line",
    "that",
    "asked",
    "def",
    "self",
    "None",
)


def prose(chance: random.Random, characters: int) -> str:
    said: list[str] = []
    size = 0
    while size < characters:
        word = chance.choice(WORDS)
        said.append(word if chance.random() > 0.1 else f"{word}.\n")
        size += len(said[-1]) + 1
    return " ".join(said)[:characters]


def agent_history(chance: random.Random, characters: int) -> tuple[Message, ...]:
    """A coding agent's: a short question, then steps of a sentence, one or two calls, and outputs of 0.2 to 12 KB."""
    made = [message("system", prose(chance, 8000))]
    size, number = 8000, 0
    while size < characters:
        made.append(message("user", prose(chance, chance.randrange(60, 600))))
        size += len(made[-1].text)
        for _ in range(chance.randrange(2, 9)):
            calls = []
            for _ in range(chance.choice((1, 1, 1, 2))):
                calls.append(ToolCall(f"call_{number}", "read_file", f'{{"path": "src/part{number}/module.py"}}'))
                number += 1
            made.append(Message("assistant", (Text(prose(chance, chance.randrange(40, 400))), *calls)))
            size += len(made[-1].text)
            for call in calls:
                output = prose(chance, int(200 * 60 ** chance.random()))
                made.append(Message("tool", (ToolResult(call.call_id, output, call.name),)))
                size += len(output)
        made.append(message("assistant", prose(chance, chance.randrange(100, 1500))))
        size += len(made[-1].text)
    return (*made, message("user", "And now?"))


def chat_history(chance: random.Random, messages: int) -> tuple[Message, ...]:
    """A conversation without tools."""
    sizes = (chance.randrange(100, 700) if n % 2 else chance.randrange(40, 300) for n in range(messages))
    return tuple(message("assistant" if n % 2 else "user", prose(chance, size)) for n, size in enumerate(sizes))


def milliseconds(work: Callable[[], object]) -> str:
    """The median of ``RUNS`` on the clock, and the median and the least of the processor time."""
    clock, processor = [], []
    for _ in range(RUNS):
        began, spent = time.perf_counter(), time.process_time()
        work()
        clock.append((time.perf_counter() - began) * 1000)
        processor.append((time.process_time() - spent) * 1000)
    cpu = f"CPU {statistics.median(processor):6.1f} ms, least {min(processor):6.1f}"
    return f"{statistics.median(clock):6.1f} ms, {cpu}"


def compacting(name: str, history: Sequence[Message], window: int) -> None:
    def compact() -> Fitted:
        # A counter of its own each time: nothing is known from the run before.
        return fit(history, window=window, reserve=4096, counter=TokenCounter(4.0), config=ContextConfig())

    fitted = compact()
    what = f"{name}, {len(history)} messages, {fitted.tokens_before:,} -> {fitted.tokens_after:,} tokens"
    print(f"compacting {what:<62} {milliseconds(compact)}   (budget 50)")


def opening(name: str, history: Sequence[Message], folder: str) -> None:
    path = Path(folder) / name / "sessions.db"
    store = open_store(path)
    store.append("local", "s", Exchange(tuple(StoredMessage(m, 1.0, 1) for m in history)))
    store.close()

    def reopen() -> tuple[Message, ...]:
        again = open_store(path)
        session = again.load("local", "s")
        again.close()
        return tuple(m.message for m in session.messages) if session else ()

    assert reopen() == tuple(history)
    what = f"a session, {name}, {len(history):,} messages, {path.stat().st_size / 1e6:.1f} MB"
    print(f"opening    {what:<62} {milliseconds(reopen)}   (budget 100)")


def main() -> None:
    agent, chat = agent_history(random.Random(1), 800_000), chat_history(random.Random(1), 2700)
    for window in (131_072, 32_768, 16_384):
        compacting("an agent's", agent, window)
    compacting("no tools", chat, 131_072)
    with tempfile.TemporaryDirectory() as folder:
        opening("no tools", chat_history(random.Random(1), 10_000), folder)
        opening("an agent's", agent_history(random.Random(1), 16_000_000)[:10_000], folder)


if __name__ == "__main__":
    main()
