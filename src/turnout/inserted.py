"""What of code was written into users' turns, to write the same again when a client sends its history (SPEC CODE-2).

A turn is known by what the user has said until then in this workspace: clients render answers and system prompts anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from turnout.code.provider import SERENA
from turnout.errors import StorageError
from turnout.request import enrich
from turnout.types import ChatRequest, Message, Notice, TaskCategory, Text

if TYPE_CHECKING:
    from turnout.code.provider import CodeContext
    from turnout.context.store import SessionStore

MAX_TURNS, MAX_SESSIONS = 1024, 512
_PREFIX = "code:"  # of a key in the store; what is kept of compaction has none

log = logging.getLogger("turnout")


def asks_anew(request: ChatRequest) -> bool:
    """Whether the newest thing said is the user's own: with a tool's result the model goes on with what it knows."""
    newest = next((m for m in reversed(request.messages) if m.role != "assistant"), None)
    return newest is not None and newest.role == "user" and bool(newest.text.strip()) and not newest.tool_results


def without_serena(
    request: ChatRequest, category: TaskCategory, context: CodeContext | None, why_not: str
) -> tuple[Notice, ...]:
    """What is told where ``require_serena`` is on and Serena has not answered. ``why_not``: why nobody was asked."""
    if not asks_anew(request) or (context is not None and SERENA in context.provider):
        return ()
    why = f"{context.provider} alone answered" if context is not None else why_not or "no answer came in time"
    return (Notice("no_code_context", f"{category} asks for code context of Serena, and there is none: {why}"),)


class Inserted:
    """The only writer of what was inserted in this process.

    Args:
        store: where that of our own sessions is kept; None keeps nothing beyond the process.
    """

    def __init__(self, store: SessionStore | None) -> None:
        self._store = store
        self._turns: OrderedDict[str, str] = OrderedDict()
        self._read: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def into(
        self,
        tenant: str,
        request: ChatRequest,
        style: str,
        gather: Callable[[ChatRequest], Awaitable[CodeContext | None]],
    ) -> tuple[ChatRequest, CodeContext | None, Mapping[str, str]]:
        """The request with code in the turns that had it before, and in the newest one when the user asks anew.

        Args:
            tenant: whose conversation it is.
            request: as it came.
            style: as ``build_enriched_query``.
            gather: finds the code for the newest turn; it is given the request with what the others had.

        Returns:
            Beside it the context of the newest turn, and what to ``keep`` of it once the exchange is kept.
        """
        await self._recall(tenant, request.session_id)
        names = dict(_names(tenant, request))
        last = max(names, default=-1) if asks_anew(request) else -1
        messages = [
            _with(m, self._turns[names[i]]) if i != last and names.get(i) in self._turns else m
            for i, m in enumerate(request.messages)
        ]
        if any(new is not old for new, old in zip(messages, request.messages, strict=True)):
            request = replace(request, messages=tuple(messages), raw=None)  # the client's own bytes have no code
        if last < 0:
            return request, None, {}
        context = await gather(request)
        enriched = enrich(request, context, style)
        added = enriched.messages[last].text.removeprefix(request.messages[last].text)
        self._put(names[last], added)
        return enriched, context, {_PREFIX + names[last]: added} if added else {}

    def _put(self, name: str, added: str) -> None:
        self._turns.pop(name, None)
        if added:
            self._turns[name] = added
        if len(self._turns) > MAX_TURNS:
            self._turns.popitem(last=False)

    async def _recall(self, tenant: str, session: str) -> None:
        """Read what an earlier process has inserted in a session, once."""
        if self._store is None or not session or (tenant, session) in self._read:
            return
        try:
            kept = await asyncio.to_thread(self._store.summaries, tenant, session)
        except StorageError as error:
            log.info("%s", error)
            return
        self._read[tenant, session] = None
        if len(self._read) > MAX_SESSIONS:
            self._read.popitem(last=False)
        for name, added in kept.items():
            if name.startswith(_PREFIX):
                self._put(name.removeprefix(_PREFIX), added)


def _names(tenant: str, request: ChatRequest) -> Iterator[tuple[int, str]]:
    """The place and the name of every turn in which the user says something."""
    said = blake2b(digest_size=16)
    _add(said, tenant)
    _add(said, request.workspace)
    for place, turn in enumerate(request.messages):
        if turn.role == "user" and turn.text and not turn.tool_results:
            _add(said, turn.text)
            yield place, said.hexdigest()


def _add(said: blake2b, text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    said.update(len(content).to_bytes(8, "big") + content)


def _with(turn: Message, added: str) -> Message:
    others = tuple(part for part in turn.parts if not isinstance(part, Text))
    return Message(turn.role, (Text(turn.text + added), *others), turn.extras)
