"""How conversations were compacted, to send the same again: in memory, and for our own sessions in the store."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from turnout.context.compaction import NOTHING_KNOWN, Form, conversation_key
from turnout.errors import StorageError
from turnout.types import ChatRequest

if TYPE_CHECKING:
    from turnout.context.store import SessionStore

MAX_CONVERSATIONS, MAX_FORMS, MAX_SESSIONS = 512, 64, 512
_NAME = 24  # bytes: a digest and the window

log = logging.getLogger("turnout")


class Decided:
    """The only writer of what was decided in this process.

    Args:
        store: where that of our own sessions is kept; None keeps nothing beyond the process.
    """

    def __init__(self, store: SessionStore | None) -> None:
        self._store = store
        self._forms: OrderedDict[bytes, dict[bytes, Form]] = OrderedDict()
        self._read: OrderedDict[tuple[str, str], None] = OrderedDict()

    def of(self, request: ChatRequest, window: int) -> Mapping[bytes, Form]:
        """What was decided for this conversation in so large a window."""
        return self._forms.get(_name(request, window), NOTHING_KNOWN)

    async def recall(self, tenant: str, request: ChatRequest) -> None:
        """Read what an earlier process has decided for a session, once."""
        session = (tenant, request.session_id)
        if self._store is None or not request.session_id or session in self._read:
            return
        try:
            kept = await asyncio.to_thread(self._store.summaries, *session)
        except StorageError as error:
            log.info("%s", error)
            return
        self._read[session] = None  # only now: who leaves in between has read nothing
        if len(self._read) > MAX_SESSIONS:
            self._read.popitem(last=False)
        for place, body in kept.items():
            try:
                name, form = bytes.fromhex(place), msgspec.json.decode(body, type=Form)
            except (ValueError, RecursionError, msgspec.DecodeError):
                continue  # another version's
            self._put(name[:_NAME], name[_NAME:], form)

    async def remember(self, tenant: str, request: ChatRequest, window: int, key: bytes, form: Form) -> None:
        """This is how it is sent from now on."""
        name = _name(request, window)
        self._put(name, key, form)
        if self._store is None or not request.session_id:
            return
        body, place = msgspec.json.encode(form).decode(), (name + key).hex()
        try:
            await asyncio.to_thread(self._store.keep_summary, tenant, request.session_id, place, body)
        except StorageError as error:
            log.info("%s", error)  # the exchange itself is told of when it cannot be kept

    def _put(self, name: bytes, key: bytes, form: Form) -> None:
        forms = {**self._forms.pop(name, {}), key: form}
        if len(forms) > MAX_FORMS:
            del forms[next(iter(forms))]
        self._forms[name] = forms  # the newest last
        if len(self._forms) > MAX_CONVERSATIONS:
            self._forms.popitem(last=False)


def _name(request: ChatRequest, window: int) -> bytes:
    return conversation_key(request.messages) + window.to_bytes(8, "big")
