"""What is known of one request while it runs, and of one that is only decided."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from turnout.code.provider import CodeContext
from turnout.errors import EndpointLoadingError
from turnout.fitting import Refusals
from turnout.routing.classifier import ClassificationResult
from turnout.routing.select import Selection
from turnout.types import (
    Attempt,
    AttemptRecord,
    ChatRequest,
    Event,
    Notice,
    Principal,
    RawChunk,
    Route,
    Started,
    TextDelta,
    Usage,
    UsageReport,
)

_NAMED = 5  # files that are named of those that an answer proposes to change


@dataclass(slots=True)
class Run:
    """What is known of one request while it runs. Written by its own pipeline only."""

    request: ChatRequest
    principal: Principal
    query: str  # the words whose keyed hash is logged
    id: str
    started: float = field(default_factory=time.monotonic)
    task: ClassificationResult | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    route: Route | None = None
    first: float = 0.0  # when the answer began, by the clock of ``started``; 0 as long as it has not
    usage: Usage = field(default_factory=Usage)
    text: list[str] = field(default_factory=list)
    error: str = "cancelled"
    compacted: bool = False  # what was sent to the model that answers
    refusals: Refusals = field(default_factory=Refusals)
    selection: Selection | None = None
    code: CodeContext | None = None  # what was gathered for this question
    no_code: str = ""  # why nothing was
    inserted: Mapping[str, str] = field(default_factory=dict)  # of it in the user's turn, by what it is kept under
    place: bytes = b""  # what its conversation is known by

    @property
    def failures(self) -> int:
        """Attempts that failed, but for those that a busy or loading server will serve later."""
        return sum(not isinstance(a.error, EndpointLoadingError) for a in self.attempts)

    def see(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self.text.append(event.text)
        elif isinstance(event, UsageReport):
            self.usage = event.usage
        elif isinstance(event, Started):
            self.route, self.first = event.route, time.monotonic()


def proposed_in(run: Run) -> tuple[Notice, ...]:
    """Which files the answer proposes to change, for who asked about a workspace: they decide what becomes of it."""
    if not run.request.workspace:
        return ()
    from turnout.code.edits import parse_edits

    proposal = parse_edits("".join(run.text))
    paths = tuple(dict.fromkeys(edit.path for edit in proposal.edits))
    if not paths:
        return ()
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return (Notice("edits", f"edits are proposed for {', '.join(paths[:_NAMED])}{more}"),)


async def in_one_piece(made: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same answer, its text together and nothing of it before all is there: for who does not read streams."""
    async with aclosing(made) as events:
        whole: list[Event] = []
        async for event in events:
            last = whole[-1] if whole else None
            if isinstance(event, Started | Notice):
                yield event
            elif isinstance(event, TextDelta) and isinstance(last, TextDelta):
                whole[-1] = TextDelta(last.text + event.text, last.logprobs + event.logprobs)
            elif isinstance(event, RawChunk) and isinstance(last, RawChunk):
                whole[-1] = RawChunk(last.data + event.data, event.answer)
            else:
                whole.append(event)
    for event in whole:
        yield event


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision that was not carried out.

    Attributes:
        classification: the kind of work, None when an exact model was asked for.
        selection: every candidate, taken or not, with the reason.
        attempts: the plan.
        prompt_tokens: estimate of the prompt, code context included.
        context_note: which code context would be sent.
    """

    classification: ClassificationResult | None
    selection: Selection
    attempts: tuple[Attempt, ...]
    prompt_tokens: int
    context_note: str


def new_id() -> str:
    """The id of a request: 128 random bits in hex."""
    return f"{random.getrandbits(128):032x}"
