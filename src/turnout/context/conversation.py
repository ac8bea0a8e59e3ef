"""A conversation as a value (SPEC CTX-2), with the pure functions that make the next one from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from turnout.context.tokens import get_token_counter
from turnout.types import Message


@dataclass(frozen=True, slots=True)
class Turn:
    """A message with the time it came (seconds since the epoch) and its tokens."""

    message: Message
    time: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Switch:
    """A hand-over to another model (SPEC CTX-5)."""

    time: float
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and what is known about them.

    Attributes:
        turns: the messages, oldest first.
        system_prompt: ours, or "".
        active_model: the model that answered last, or "".
        model_history: every hand-over, oldest first.
        compactions: how often what was sent had to be compacted.
    """

    turns: tuple[Turn, ...] = ()
    system_prompt: str = ""
    active_model: str = ""
    model_history: tuple[Switch, ...] = ()
    compactions: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of all messages."""
        return sum(turn.tokens for turn in self.turns)


def add(conversation: Conversation, message: Message, now: float) -> Conversation:
    """The conversation with one more message, counted for the active model."""
    tokens = get_token_counter(conversation.active_model).count_message(message)
    return replace(conversation, turns=(*conversation.turns, Turn(message, now, tokens)))


def switch_model(conversation: Conversation, model: str, reason: str, now: float) -> Conversation:
    """The conversation handed to another model: counted anew, the hand-over recorded."""
    if model == conversation.active_model:
        return conversation
    counter = get_token_counter(model)
    turns = tuple(replace(turn, tokens=counter.count_message(turn.message)) for turn in conversation.turns)
    history = (*conversation.model_history, Switch(now, model, reason))
    return replace(conversation, turns=turns, active_model=model, model_history=history)
