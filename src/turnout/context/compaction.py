"""Fitting a conversation into a window: old tool outputs to stubs, then older turns to a summary (SPEC CTX-3, CTX-4).

The order in which things give way, each step only when the ones before did not suffice:

1. tool outputs beyond the newest few become stubs that name the tool and the size;
2. turns before the newest messages become one extractive summary;
3. the newest few tool outputs become stubs too;
4. fewer of the newest messages are kept, down to the turn that begins with the last user message;
5. the summary goes.

The system prompt and the last user message never change. A tool call is never parted from its result. Cut points move
in steps, so that a longer conversation is compacted to the same beginning until the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnout.config import ContextConfig
from turnout.context.tokens import TokenCounter
from turnout.errors import ContextOverflowError
from turnout.types import Message, Part, Text, ToolResult

SUMMARY_MARK = "[Previous conversation summary]"
STUB_MARK = "[Tool output truncated - "
SUMMARY_POINTS, POINT_CHARS = 10, 100
_CUT_STEP = 4
_DECISIONS = ("created", "added", "decided", "implemented", "fixed", "changed", "removed", "wrote", "chose", "will use")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits.

    Attributes:
        messages: what to send.
        tokens_before, tokens_after: by the counter that was given.
        steps: what was done, for people.
        changed: whether ``messages`` differ from what was given.
    """

    messages: tuple[Message, ...]
    tokens_before: int
    tokens_after: int
    steps: tuple[str, ...] = ()
    changed: bool = False


def fit(
    messages: Sequence[Message],
    *,
    window: int,
    reserve: int,
    counter: TokenCounter,
    config: ContextConfig,
    target: int | None = None,
) -> Fitted:
    """Make ``messages`` fit.

    Args:
        messages: system messages first, then the conversation.
        window: tokens there is room for, prompt and answer.
        reserve: tokens kept free for the answer.
        counter: counts for the model that will read it.
        config: thresholds.
        target: compact to at most this many tokens, whatever the threshold says; None compacts only beyond it.

    Raises:
        ContextOverflowError: the system prompt and the last turn alone exceed the window.
    """
    given = tuple(messages)
    before = counter.count_messages(given)
    room = max(1, window - reserve)
    if before <= min(room, int(window * config.compaction_threshold)) and (target is None or before <= target):
        return Fitted(given, before, before)
    goal = min(room, int(window * config.compaction_target) if target is None else target)
    steps: list[str] = []
    best = given
    for step, candidate in _candidates(given, counter, config):
        best = candidate
        steps.append(step)
        if counter.count_messages(candidate) <= goal:
            break
    best, used = _first_within(given, best, steps, counter, config, goal, room)
    after = counter.count_messages(best)
    if after > room:
        raise ContextOverflowError(
            f"the system prompt and the last message have about {after:,} tokens; the window of {window:,} leaves"
            f" {room:,} for them",
            prompt_tokens=after,
            window=window,
            hint="shorten the message, ask about a part of it, or use a model with a larger window",
        )
    return Fitted(best, before, after, tuple(used), changed=best != given)


def _first_within(
    given: tuple[Message, ...],
    best: tuple[Message, ...],
    steps: list[str],
    counter: TokenCounter,
    config: ContextConfig,
    goal: int,
    room: int,
) -> tuple[tuple[Message, ...], list[str]]:
    """When nothing reaches the goal, the gentlest step that fits the room is enough."""
    if counter.count_messages(best) <= goal:
        return best, steps
    used: list[str] = []
    for step, candidate in _candidates(given, counter, config):
        used.append(step)
        if counter.count_messages(candidate) <= room:
            return candidate, used
    return best, steps


def _candidates(
    given: tuple[Message, ...], counter: TokenCounter, config: ContextConfig
) -> list[tuple[str, tuple[Message, ...]]]:
    head = tuple(m for m in given if m.role == "system" and not m.text.startswith(SUMMARY_MARK))
    body = tuple(m for m in given if m.role != "system" or m.text.startswith(SUMMARY_MARK))
    last_user = max((i for i, m in enumerate(body) if _is_user(m)), default=len(body) - 1)
    names = {call.call_id: call.name for m in body for call in m.tool_calls}
    limit = config.max_tool_output_tokens
    stubbed = _stub(body, config.preserve_recent_tool_calls, limit, counter, names)
    found = [("old tool outputs shortened", (*head, *stubbed))]
    keep = config.preserve_recent_messages
    cut = _cut(stubbed, max(0, len(stubbed) - keep), last_user, step=_CUT_STEP)
    if cut:
        found.append((f"{cut} older messages summarised", (*head, *_summarised(stubbed, cut))))
    bare = _stub(body, 0, limit, counter, names)
    if bare != stubbed:
        found.append(("all tool outputs shortened", (*head, *_summarised(bare, cut))))
    for start in range(cut + 1, last_user + 1):
        deeper = _cut(bare, start, last_user, step=1)
        if deeper == start:
            found.append((f"only the newest {len(bare) - start} messages kept", (*head, *_summarised(bare, start))))
    if last_user > 0:
        found.append(("only the last turn kept", (*head, *bare[last_user:])))
    return found


def _is_user(message: Message) -> bool:
    return message.role == "user" and any(not isinstance(part, ToolResult) for part in message.parts)


def _cut(body: Sequence[Message], wanted: int, last_user: int, *, step: int) -> int:
    """The first message kept: at most ``wanted``, on a step, never past the last user message or inside a tool pair."""
    cut = min(wanted, last_user)
    cut -= cut % step
    while cut > 0 and (body[cut].role == "tool" or body[cut].tool_results):
        cut -= 1
    return cut


def _stub(
    body: Sequence[Message], keep: int, limit: int, counter: TokenCounter, names: dict[str, str]
) -> tuple[Message, ...]:
    total = sum(len(m.tool_results) for m in body)
    fresh_from = max(0, total - keep)
    # Whole steps only: an output is not stubbed the moment one more arrives, or every turn would change the prefix.
    fresh_from -= fresh_from % _CUT_STEP if keep else 0
    seen = 0
    result: list[Message] = []
    for message in body:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                if seen < fresh_from:
                    part = _stubbed(part, limit, counter, names)  # noqa: PLW2901
                seen += 1
            parts.append(part)
        result.append(replace(message, parts=tuple(parts)) if tuple(parts) != message.parts else message)
    return tuple(result)


def _stubbed(result: ToolResult, limit: int, counter: TokenCounter, names: dict[str, str]) -> ToolResult:
    tokens = counter.count(result.content)
    if tokens <= limit or result.content.startswith(STUB_MARK):
        return result
    name = result.name or names.get(result.call_id, "tool")
    return replace(result, content=f"{STUB_MARK}{name}] (was {tokens} tokens, {len(result.content)} characters)")


def _summarised(body: Sequence[Message], cut: int) -> tuple[Message, ...]:
    if not cut:
        return tuple(body)
    points = [line for m in body[:cut] if m.text.startswith(SUMMARY_MARK) for line in m.text.splitlines()[1:]]
    told = (_point(message) for message in body[:cut] if not message.text.startswith(SUMMARY_MARK))
    points += [f"- {point}" for point in told if point]
    text = "\n".join((SUMMARY_MARK, *points[-SUMMARY_POINTS:]))
    return (Message("system", (Text(text),)), *body[cut:])


def _point(message: Message) -> str:
    """One line of the summary: a user's first sentence, or what an assistant created or decided."""
    text = " ".join(message.text.split())
    if not text:
        return ""
    sentences = [s for s in text.replace("? ", "?\n").replace(". ", ".\n").replace("! ", "!\n").split("\n") if s]
    if message.role == "user":
        return f"User: {sentences[0]}"[:POINT_CHARS]
    decided = next((s for s in sentences if any(word in s.lower() for word in _DECISIONS)), "")
    return f"Assistant: {decided}"[:POINT_CHARS] if decided and message.role == "assistant" else ""
