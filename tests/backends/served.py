"""A case of the behaviours around one fake that the test has set up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from tests.backends.behaviours import Case
from tests.fakes import FAKES
from tests.fakes.base import Fake, running
from turnout.backends.lanes import raw_lane
from turnout.config import SecurityConfig
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import ChatRequest, Event, RawBody, WireFormat, message


@asynccontextmanager
async def case_of(kind: str, fake: Fake) -> AsyncIterator[Case]:
    """The fake of ``kind``, served, with a client that may dial loopback."""
    dialect = FAKES[kind]
    async with running(dialect.app(fake), server_header=dialect.SERVER_HEADER) as url:
        async with open_client(AllowList.from_config(SecurityConfig())) as client:
            yield Case(kind, url, client, fake, dialect.LACKS)


async def raw(case: Case, body: bytes) -> list[Event]:
    """What the raw lane makes of a client's body, up to its end or its error; an error is raised after what came."""
    request = ChatRequest((message("user", "hello"),), raw=RawBody(WireFormat.OPENAI_CHAT, body))
    async with aclosing(raw_lane(case.client, case.backend, case.endpoint(), await case.model(), request)) as events:
        return [event async for event in events]
