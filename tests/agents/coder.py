"""A model that does the task of ``tests/agents/installed.py``, and servers that have it: faults where a test wants them.

Omitted: everything that a real model adds, such as another way than the straight one.
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


@dataclass
class Coder:
    """What the servers of one run do to each question.

    Attributes:
        agent, place: whose words it speaks, and where its file belongs.
        faults: what is done to the first question of the task itself, to the second, and so on, instead of an answer.
        limit: bytes; a question that has more is refused as too long for the window. 0 for none.
        talkative: it says much before its first call.
        steps: the questions of the task itself, in order; titles, commit messages and summaries are not among them.
    """

    agent: Agent
    place: Place
    faults: Sequence[Fault] = ()
    limit: int = 0
    talkative: bool = False
    steps: list[dict[str, object]] = field(default_factory=list)

    def server(self) -> Scripted:
        """One that has this model."""
        return Scripted(models=(MODEL,), window=WINDOW, script=(self.answer,))

    async def answer(self, asked: Asked) -> None:
        """As the agent's model would."""
        if self.limit and len(json.dumps(asked.body)) > self.limit:
            await refusing(400, *_too_long(asked, self.limit), code="context_length_exceeded")(asked)
            return
        if not self._is_step(asked):
            await _say(asked, "Add a greeting")
            return
        self.steps.append(asked.body)
        if len(self.steps) <= len(self.faults):
            await self.faults[len(self.steps) - 1](asked)
            return
        await self.work(asked)

    async def work(self, asked: Asked) -> None:
        """The next step of the task."""
        if self.agent.call is None:
            await _say(asked, f"{FILE}\n```python\n{TEXT}```\n")
        elif any(row["role"] == "tool" for row in rows_of(asked.body)):
            await _say(asked, "It is done.")
        else:
            await _call(asked, *self.agent.call(self.place), TALK if self.talkative else "I write it. ")

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


def tools_of(body: dict[str, object]) -> dict[str, dict[str, object]]:
    """Its tools: their parameters by their names."""
    tools = body.get("tools") or []
    assert isinstance(tools, list)
    return {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}


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


async def _say(asked: Asked, text: str) -> None:
    if asked.stream:
        words = text.splitlines(keepends=True)
        await asked.say(SSE + b"".join(map(event, words)) + FINISH + DONE)
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    await asked.say(answer({"object": "chat.completion", "choices": [choice]}))


async def _call(asked: Asked, name: str, arguments: dict[str, object], first: str) -> None:
    """A call as llama.cpp streams it: name and id, then the arguments in pieces."""
    text = json.dumps(arguments)
    pieces: list[dict[str, object]] = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}},
        *({"index": 0, "function": {"arguments": text[at : at + 16]}} for at in range(0, len(text), 16)),
    ]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    deltas = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces]
    rows = b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in (*deltas, end))
    await asked.say(SSE + event(first) + rows + DONE)


def _too_long(asked: Asked, limit: int) -> tuple[str, str]:
    has = len(json.dumps(asked.body)) // 4
    return (
        f"This model's maximum context length is {limit // 4} tokens. However, your messages resulted in {has} tokens.",
        "invalid_request_error",
    )
