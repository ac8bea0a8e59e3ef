"""Summaries of older turns by the smallest model that is loaded anyway (SPEC CTX-3).

Never by the only slot of the model that is about to answer: its prefix cache would be lost. Whoever does not answer in
time is not asked again for the same turns: what was sent once is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.backends.lanes import event_lane
from turnout.context.tokens import get_token_counter
from turnout.errors import TurnoutError
from turnout.routing.patience import expected_first_byte
from turnout.types import Candidate, ChatRequest, Health, Message, TextDelta, message

if TYPE_CHECKING:
    from turnout.fleet.catalog import EndpointStatus
    from turnout.fleet.watch import Fleet
    from turnout.guard.network import HttpClient
    from turnout.routing.capabilities import CapabilityTable

SUMMARY_TOKENS, SUMMARY_CHARS = 300, 1600
READ_CHARS, READ_EACH = 12_000, 600  # of the older turns, and of each of them
LEAST_CHARS = 20
_ASK = """\
Summarise this conversation between a user and a coding assistant for the assistant, which goes on with it and will \
not see it. Keep the task, what was decided and changed, the names of files, functions and commands, errors that are \
not solved, and what is still to be done. At most 150 words, as a plain list. Write only the summary."""
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)

log = logging.getLogger("turnout")


class Summarizer:
    """Has summaries written.

    Args:
        pool: the models that could write one.
        limit: seconds for one summary; 0.0 has none written.
        told: hears ``model @ endpoint`` of whoever is asked, for the audit log.
    """

    def __init__(
        self,
        client: HttpClient,
        fleet: Fleet,
        table: CapabilityTable,
        pool: Callable[[], Sequence[Candidate]],
        limit: float,
        told: Callable[[str], None],
    ) -> None:
        self._client, self._fleet, self._table, self._pool = client, fleet, table, pool
        self._limit, self._told = limit, told

    async def write(self, left_out: Sequence[Message], answering: Candidate) -> str:
        """A summary of ``left_out``, or "" when nobody can write one in time.

        Args:
            answering: the candidate that the rest is for.
        """
        writer = self._writer(answering) if self._limit else None
        if writer is None:
            return ""
        request = ChatRequest(
            (message("system", _ASK), message("user", _transcript(left_out))),
            max_tokens=SUMMARY_TOKENS,
            temperature=0.0,
        )
        tokens = get_token_counter(writer.canonical or writer.model.id).count_messages(request.messages)
        speed = self._fleet.learned.speed(writer.endpoint, writer.model)
        late = speed.prefill and expected_first_byte(writer, tokens, speed) > self._limit
        if late or tokens + SUMMARY_TOKENS > writer.window:
            return ""
        try:
            self._told(writer.label)
            async with asyncio.timeout(self._limit):
                return _cleaned(await self._ask(writer, request))
        except TimeoutError:
            log.info("%s wrote no summary within %g s", writer.label, self._limit)
        except TurnoutError as error:
            log.info("%s wrote no summary: %s", writer.label, error)
        return ""

    async def _ask(self, writer: Candidate, request: ChatRequest) -> str:
        backend = BY_KIND[writer.endpoint.kind]
        made = event_lane(self._client, backend, writer.endpoint, writer.model, request, writer.window)
        lane = self._fleet.guarded(writer, made)
        async with aclosing(lane) as events:
            return "".join([event.text async for event in events if isinstance(event, TextDelta)])

    def _writer(self, answering: Candidate) -> Candidate | None:
        statuses = {status.endpoint.url: status for status in self._fleet.catalog.endpoints}
        able = [c for c in self._pool() if _is_free(c, statuses.get(c.endpoint.url), answering)]
        able = [c for c in able if not self._fleet.book.bars(c.endpoint)]
        return min(able, key=lambda c: self._table.rate(c.model).params or 1e6, default=None)


def _is_free(candidate: Candidate, status: EndpointStatus | None, answering: Candidate) -> bool:
    """Loaded, and with a slot to spare: two where it is the model that answers."""
    if status is None or status.health is not Health.ONLINE or candidate.endpoint.embedded or candidate.verdict.barred:
        return False
    told = candidate.model.capabilities
    if not candidate.model.resident or (told and "chat" not in told):
        return False
    free = (status.slots or 1) - (status.busy or 0)
    return free >= (2 if candidate.label == answering.label else 1)


def _transcript(messages: Sequence[Message]) -> str:
    """The turns, each cut, the oldest and the newest when there are too many."""
    lines = [line for m in messages if (line := _line(m))]
    if sum(map(len, lines)) <= READ_CHARS:
        return "\n".join(lines)
    head: list[str] = []
    tail: list[str] = []
    left = READ_CHARS
    while lines and left > 0:  # of what was said last, three times as much as of the beginning, which is the task
        from_head = len(head) * 3 <= len(tail)
        line = lines.pop(0 if from_head else -1)
        (head if from_head else tail).append(line)
        left -= len(line)
    return "\n".join([*head, "[...]", *reversed(tail)])


def _line(m: Message) -> str:
    said = [m.text, *(f"[calls {call.name} {call.arguments}]" for call in m.tool_calls)]
    said += [f"[{result.name or 'tool'} gave {result.content}]" for result in m.tool_results]
    text = " ".join(" ".join(piece[:READ_EACH] for piece in said if piece.strip()).split())
    return f"{m.role}: {text[:READ_EACH]}" if text else ""


def _cleaned(text: str) -> str:
    text = _THOUGHT.sub("", text).strip()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    short = "\n".join(line for line in lines if line)[:SUMMARY_CHARS]
    return short if len(short) >= LEAST_CHARS else ""
