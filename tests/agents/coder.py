"""A model that does the task of ``tests/agents/installed.py``, for servers of ``tests/fakes/scripted.py``.

Omitted: everything that a real model adds, such as another way than the straight one. It counts four bytes a token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.agents.installed import FILE, TEXT, Agent, Place
from tests.fakes.liar import CHUNKED, DONE, SSE, answer, event
from tests.fakes.scripted import FINISH, Asked, Fault, Scripted, chunk, refusing

MODEL, WINDOW = "qwen2.5-coder-7b-instruct", 65_536
TALK = "First I think about what hello means, to whom it is said, and why. " * 400
DONE_WORDS = "It is done."


@dataclass
class Coder:
    """What the servers of one run do to each question.

    Attributes:
        agent, place: whose words it speaks, and where its file belongs.
        faults: what is done to the first question of the task itself, to the second, and so on, instead of an answer.
        room: bytes by which a question may exceed the first one before it is refused as too long; the model says more
            than that before its first call. 0 for no such limit.
        steps: the questions of the task itself, in order; titles, commit messages and summaries are not among them.
        refused: how many were too long.
    """

    agent: Agent
    place: Place
    faults: Sequence[Fault] = ()
    room: int = 0
    steps: list[dict[str, object]] = field(default_factory=list)
    refused: int = 0

    def server(self, window: int = WINDOW) -> Scripted:
        """One that has this model."""
        return Scripted(models=(MODEL,), window=window, script=(self.answer,))

    async def answer(self, asked: Asked) -> None:
        """As the agent's model would."""
        if self.room and self.steps and _size(asked.body) > (limit := _size(self.steps[0]) + self.room):
            self.refused += 1
            said = f"maximum context length is {limit // 4} tokens. However, your prompt contains"
            fault = f"This model's {said} {_size(asked.body) // 4} input tokens."
            await refusing(400, fault, "invalid_request_error", code="context_length_exceeded")(asked)
            return
        if not self._is_step(asked):
            await _say(asked, "Add a greeting")
            return
        self.steps.append(asked.body)
        if len(self.steps) <= len(self.faults):
            await self.faults[len(self.steps) - 1](asked)
        else:
            await self.work(asked)

    async def work(self, asked: Asked) -> None:
        """The next step of the task."""
        if self.agent.call is None:
            await _say(asked, f"{FILE}\n```python\n{TEXT}```\n")
        elif (self.place.project / FILE).exists():
            await _say(asked, DONE_WORDS)
        else:
            await _call(asked, *self.agent.call(self.place), TALK if self.room else "I write it. ")

    def _is_step(self, asked: Asked) -> bool:
        """By the tool that does it; of an agent that has none, its questions alone are streamed."""
        if self.agent.call is None:
            return asked.stream
        return self.agent.call(self.place)[0] in tools_of(asked.body)


def rows_of(body: dict[str, object]) -> list[dict[str, object]]:
    """Its messages."""
    rows = body["messages"]
    assert isinstance(rows, list)
    return rows


def tools_of(body: dict[str, object]) -> dict[str, object]:
    """Its tools: their parameters by their names."""
    tools = body.get("tools") or []
    assert isinstance(tools, list)
    return {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}


def cut_off(words: str) -> Fault:
    """A stream that begins, and whose connection is then closed."""

    async def speak(asked: Asked) -> None:
        await asked.say(CHUNKED + chunk(event(words)))

    return speak


def silent(seconds: float, then: Fault) -> Fault:
    """Not a byte for so long, as while a model loads or reads a long prompt."""

    async def wait(asked: Asked) -> None:
        await asyncio.sleep(seconds)
        await then(asked)

    return wait


def _size(body: dict[str, object]) -> int:
    return len(json.dumps(body))


def _usage(asked: Asked, said: str) -> dict[str, int]:
    return {"prompt_tokens": _size(asked.body) // 4, "completion_tokens": len(said) // 4 + 1}


def _row(row: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(row).encode() + b"\n\n"


async def _say(asked: Asked, text: str) -> None:
    usage = _usage(asked, text)
    if asked.stream:
        words = b"".join(map(event, text.splitlines(keepends=True)))
        await asked.say(SSE + words + FINISH + _row({"choices": [], "usage": usage}) + DONE)
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    await asked.say(answer({"object": "chat.completion", "choices": [choice], "usage": usage}))


async def _call(asked: Asked, name: str, arguments: dict[str, object], first: str) -> None:
    """A call as llama.cpp streams it: name and id, then the arguments in pieces."""
    text = json.dumps(arguments)
    pieces: list[dict[str, object]] = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}},
        *({"index": 0, "function": {"arguments": text[at : at + 16]}} for at in range(0, len(text), 16)),
    ]
    rows: list[dict[str, object]] = [
        *({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": _usage(asked, first + text)},
    ]
    await asked.say(SSE + event(first) + b"".join(map(_row, rows)) + DONE)
