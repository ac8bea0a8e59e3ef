"""What a request is, and what the pipeline makes of it before any server is asked. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.errors import UsageError
from turnout.routing.classifier import ClassificationResult
from turnout.routing.classify import classify_task
from turnout.types import (
    VIRTUAL_MODELS,
    ChatRequest,
    Image,
    Message,
    TaskCategory,
    Text,
    ToolResult,
)
from turnout.wire.base import MOST_ROWS

if TYPE_CHECKING:
    from turnout.code.provider import CodeContext

MAX_QUERY_CHARS = 2_000_000
MAX_MESSAGES = MOST_ROWS
DEFAULT_ANSWER_TOKENS = 1024


def query_of(request: ChatRequest) -> str:
    """The words of a request that its hash in the log is of."""
    raw = request.raw
    return request.last_user_text or (raw.body.decode("utf-8", "replace") if raw else "")


_ASKING = (Image, ToolResult)  # what asks for an answer without a word


def check(request: ChatRequest) -> None:
    """Refuse what no model can answer.

    Raises:
        UsageError: nothing is asked, or more than any local model reads.
    """
    if request.raw is not None and not request.messages:
        return
    if len(request.messages) > MAX_MESSAGES and not request.session_id:
        found = f"the conversation has {len(request.messages):,} messages, the most is {MAX_MESSAGES:,}"
        raise UsageError(found, hint="leave old ones out")
    said = (part for m in request.messages if m.role != "system" for part in m.parts)
    if not any(part.text.strip() if isinstance(part, Text) else isinstance(part, _ASKING) for part in said):
        raise UsageError("the query is empty", hint="give a question")
    if any(isinstance(part, Image) and part.url for m in request.messages for part in m.parts):
        raise UsageError("an image is given by its address, which a server would fetch", hint="send it as base64 data")
    if request.raw is not None and len(request.raw.body) <= MAX_QUERY_CHARS:
        return
    longest = len(request.last_user_text)
    if longest > MAX_QUERY_CHARS:
        raise UsageError(
            f"the query has {longest:,} characters, the most is {MAX_QUERY_CHARS:,}", hint="ask about a part of it"
        )


def classify(request: ChatRequest, policy: str, *, explained: bool = False) -> ClassificationResult | None:
    """The kind of work by a policy of ``classify_task``; None when an exact model was asked for: nothing is decided."""
    if request.category is None and request.model and request.model not in VIRTUAL_MODELS:
        return None
    found = classify_task(request.last_user_text, policy, explained=explained)
    category = request.category
    if category is None and request.model in tuple(TaskCategory):
        category = TaskCategory(request.model)
    return found if category is None else replace(found, category=category, evidence=("asked for",))


def enrich(request: ChatRequest, context: CodeContext | None, style: str) -> ChatRequest:
    """The request with the code context at the end of the newest user turn, after everything that is stable."""
    if context is None:
        return request
    from turnout.code.enrich import build_enriched_query

    index = max((i for i, m in enumerate(request.messages) if m.role == "user"), default=-1)
    if index < 0:
        return request
    turn = request.messages[index]
    enriched = build_enriched_query(turn.text, context, style)
    if enriched == turn.text:
        return request
    others = tuple(part for part in turn.parts if not isinstance(part, Text))
    new = Message(turn.role, (Text(enriched), *others), turn.extras)
    # The client's own bytes have no code context.
    return replace(request, messages=(*request.messages[:index], new, *request.messages[index + 1 :]), raw=None)


def capabilities_of(request: ChatRequest) -> frozenset[str]:
    needed = {"tools"} if request.tools else set()
    if any(isinstance(part, Image) for m in request.messages for part in m.parts):
        needed.add("vision")
    return frozenset(needed)


def answer_room(request: ChatRequest, window: int) -> int:
    """Tokens kept free for the answer: what was asked for, at most half of the window."""
    wanted = request.max_tokens or DEFAULT_ANSWER_TOKENS
    if not window:
        return min(wanted, DEFAULT_ANSWER_TOKENS)
    return min(wanted, window // 2 if request.max_tokens else window // 4)
