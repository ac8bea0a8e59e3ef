"""A conversation that goes on, in the store or in memory alone, and what of it would be sent now (SPEC CTX-2 to CTX-5).

The library, ``turnout chat`` and ``turnout ask --session`` continue one through ``Session.events``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from turnout.config import ContextConfig, LoadedConfig, data_dir
from turnout.context.compaction import Fitted
from turnout.context.record import SessionRecord, speaks
from turnout.request import answer_room
from turnout.router import LOCAL
from turnout.routing.classify import classify_task
from turnout.types import (
    Candidate,
    ChatRequest,
    Event,
    Message,
    Notice,
    Principal,
    TextDelta,
    message,
)

if TYPE_CHECKING:
    from turnout.context.store import SessionStore
    from turnout.router import Router
    from turnout.run import Run

STORE_FILE = "sessions.db"
# Stands for a question that has not been asked yet.
_NEXT = message("user", "?")


def open_sessions(loaded: LoadedConfig) -> SessionStore | None:
    """The store of our own conversations, retention applied; None when nothing is to be kept. Blocking.

    Raises:
        StorageError: it cannot be read or written.
    """
    return _open(loaded) if loaded.config.sessions.store else None


def kept_sessions(loaded: LoadedConfig, *, prune: bool = True) -> SessionStore | None:
    """The store to look into, also when nothing is added to it any more; None when there never was one. Blocking.

    Args:
        loaded: the configuration.
        prune: apply retention first.

    Raises:
        StorageError: it cannot be read or written.
    """
    return _open(loaded, prune=prune) if (data_dir() / STORE_FILE).exists() else None


def _open(loaded: LoadedConfig, *, prune: bool = True) -> SessionStore:
    from turnout.context.store import open_store

    store = open_store(data_dir() / STORE_FILE)
    try:
        if prune:
            store.prune(loaded.config.sessions.retention_days, daily=True)
    except BaseException:
        store.close()
        raise
    return store


def new_session_id() -> str:
    """An id that sorts by time and that two processes do not choose at once."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Session:
    """One conversation.

    Several processes may continue the same: each adds whole exchanges, and each reads what the others have added before
    it goes on.

    Args:
        session_id: its name in the store and in the audit log, "" for none.
        store: where it is kept; None keeps it in memory.

    Attributes:
        messages: the full history, oldest first, without the system prompt.
        compact_at: after how many messages the user asked to have it compacted.
        kept: the session as the store had it when it was last read, None when it is new.
    """

    def __init__(self, session_id: str, store: SessionStore | None, principal: Principal = LOCAL) -> None:
        self.id = session_id
        self.messages: tuple[Message, ...] = ()
        self.compact_at: tuple[int, ...] = ()
        self.kept: SessionRecord | None = None
        self._store, self._principal = store, principal
        self._version: tuple[int, int] | None = None
        self._turns = 0
        self._loose = 0  # of the newest messages, those that the store could not take

    async def refresh(self) -> None:
        """Read what others have added to it, if they have.

        Raises:
            UsageError: the id is no plain name.
            StorageError: the store cannot be read.
        """
        if self._store is None:
            return
        turns = -1
        while turns != self._turns:  # a turn that ended meanwhile is in memory, and may be in what was read too
            turns = self._turns
            found = await asyncio.to_thread(self._read, self._store, self._version)
        if found is None:
            return
        self._version, self.kept = found
        self.messages = tuple(m.message for m in self.kept.messages) if self.kept else ()
        self.compact_at = self.kept.compact_at if self.kept else ()
        self._loose = 0

    def _read(
        self, store: SessionStore, known: tuple[int, int] | None
    ) -> tuple[tuple[int, int], SessionRecord | None] | None:
        """The store's version and this session in it; None when both are known."""
        version = store.version()
        return None if version == known else (version, store.load(self._principal.id, self.id))

    def continued(self, request: ChatRequest) -> ChatRequest:
        """The request with this conversation before its newest message."""
        system = tuple(m for m in request.messages if m.role == "system")
        asked = tuple(m for m in request.messages if m.role != "system")
        return replace(
            request,
            messages=(*system, *self.messages, *asked),
            session_id=self.id,
            compact_at=self.compact_at,
        )

    async def events(
        self, router: Router, request: ChatRequest, begun: Callable[[Run], None] = lambda _: None
    ) -> AsyncGenerator[Event, None]:
        """Ask, with this conversation before the question; a whole answer is added to it. Close it to cancel.

        Args:
            router: who answers.
            request: system prompt and question.
            begun: told the record of this request, which is filled meanwhile.

        Raises:
            TurnoutError: as ``Router.route`` and ``refresh``.
        """
        await self.refresh()
        # When this is cut short nobody knows whether the exchange was kept: then it is read anew.
        version, self._version = self._version, None
        answer: list[str] = []
        kept = self._store is not None
        run = router.begin(self.continued(request), self._principal)
        begun(run)
        async with aclosing(router.route(run.request, self._principal, run)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    answer.append(event.text)
                kept = kept and not (isinstance(event, Notice) and event.code == "not_recorded")
                yield event
        asked = next(m for m in reversed(request.messages) if m.role == "user")
        self.messages += (asked, message("assistant", "".join(answer)))
        self._version = version
        self._turns += 1
        self._loose = 0 if kept else self._loose + 2

    async def undo(self) -> str | None:
        """Take back the last exchange, in the store too. Returns its question, None when there is none.

        Raises:
            StorageError: the store cannot be written.
        """
        await self.refresh()
        last = next((n for n in reversed(range(len(self.messages))) if speaks(self.messages[n])), None)
        if last is None:
            return None
        question = self.messages[last].text
        if self._store is None or self._loose:
            self.messages = self.messages[:last]
            self.compact_at = tuple(mark for mark in self.compact_at if mark <= last)
            self._loose = max(0, self._loose - 2)
            return question
        self._version = None  # cut short, it may be done all the same: then it is read anew
        await asyncio.to_thread(self._store.undo, self._principal.id, self.id)
        await self.refresh()
        return question

    async def compact(self) -> bool:
        """Have everything until here compacted from now on. False when nothing was said yet.

        Raises:
            StorageError: the store cannot be written.
        """
        await self.refresh()
        if not self.messages:
            return False
        if self._store is None or self._loose:
            self.compact_at = tuple(sorted({*self.compact_at, len(self.messages)}))
            return True
        self._version = None
        await asyncio.to_thread(self._store.mark_compact, self._principal.id, self.id)
        await self.refresh()
        return True


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would be sent if the next question came now. Tokens are estimates for the model that would be asked.

    Attributes:
        candidate: the model, its server, its window and how that is known.
        system, history: tokens of the system prompt and of the full history.
        room: tokens kept free for the answer.
        threshold: tokens above which older messages give way.
        fitted: the messages as they would be sent, the question to come left out.
    """

    candidate: Candidate
    system: int
    history: int
    room: int
    threshold: int
    fitted: Fitted


async def outlook(router: Router, request: ChatRequest, config: ContextConfig) -> Outlook:
    """What would be sent now.

    Args:
        router: knows the servers.
        request: system prompt and history, and what is asked of the model; without a question.
        config: when a conversation is compacted.

    Raises:
        NoServiceError, NoSuitableModelError: as ``Router.route``.
        ContextOverflowError: it cannot be made to fit.
    """
    last = request.last_user_text
    if request.model == "auto" and request.category is None and last:
        request = replace(request, category=classify_task(last).category)  # as if it went on like that
    asked = replace(request, messages=(*request.messages, _NEXT), workspace="", file_context=None)
    explanation = await router.explain(asked)
    candidate = explanation.attempts[0].candidate
    fit, counter = await router.preview(asked, candidate)
    fitted, room = fit.fitted, answer_room(request, candidate.window)
    system = counter.count_messages(m for m in request.messages if m.role == "system")
    return Outlook(
        candidate=candidate,
        system=system,
        history=counter.count_messages(request.messages) - system,
        room=room,
        threshold=min(candidate.window - room, int(candidate.window * config.compaction_threshold)),
        fitted=replace(fitted, messages=fitted.messages[:-1]),
    )
