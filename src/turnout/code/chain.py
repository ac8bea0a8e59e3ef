"""Several code intelligences as one: of each ability the first that has it and answers in time (SPEC CODE-3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    Intelligence,
    IntelligenceError,
    NotSupportedError,
    Place,
    TextEdit,
)
from turnout.types import Position

# Who has not answered after so many seconds is not waited for alone: the next one is asked, too.
PATIENCE = 0.7
# Where finding nothing may mean that it does not know: Serena sees no other packages, a server no other languages.
_ASK_ON = frozenset(
    {
        Ability.FIND_SYMBOL,
        Ability.WORKSPACE_SYMBOLS,
        Ability.HOVER,
        Ability.DEFINITION,
        Ability.TYPE_DEFINITION,
    }
)

_Answer = TypeVar("_Answer", bound=str | tuple[object, ...])


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to one of them.

    Attributes:
        name: who was asked.
        ability: for what.
        about: the file or name.
        seconds: how long it took.
        outcome: ``answered``, ``found nothing``, ``given up``, or why it did not answer.
        failed: whether it might have answered at another time.
    """

    name: str
    ability: Ability
    about: str
    seconds: float
    outcome: str
    failed: bool = False


class Chain:
    """Asks its members in their order. It does not own what was asked: ``asked`` grows until ``fresh`` is used.

    Args:
        members: Serena first, then the language servers.
        patience: seconds until the next is asked beside one that has not answered.
    """

    def __init__(self, members: Sequence[Intelligence], patience: float = PATIENCE) -> None:
        self.members, self._patience = tuple(members), patience
        self.asked: list[Asked] = []

    def fresh(self) -> Chain:
        """The same members with a record of its own."""
        return Chain(self.members, self._patience)

    @property
    def name(self) -> str:
        """The names of all."""
        return ", ".join(member.name for member in self.members)

    @property
    def abilities(self) -> frozenset[Ability]:
        """What any of them can be asked."""
        return frozenset().union(*(member.abilities for member in self.members))

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        """Definitions of ``name``."""
        return await self._first(Ability.FIND_SYMBOL, name, lambda m: m.find_symbol(name, path, body=body))

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where the symbol at a position is used."""
        return await self._first(Ability.REFERENCES, path, lambda m: m.references(path, position))

    async def hover(self, path: str, position: Position) -> str:
        """Signature, type and documentation of what is at a position."""
        return await self._first(Ability.HOVER, path, lambda m: m.hover(path, position))

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where what is at a position is defined."""
        return await self._first(Ability.DEFINITION, path, lambda m: m.definition(path, position))

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where the type of what is at a position is defined."""
        return await self._first(Ability.TYPE_DEFINITION, path, lambda m: m.type_definition(path, position))

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        """The classes or methods that implement what is at a position."""
        return await self._first(Ability.IMPLEMENTATIONS, path, lambda m: m.implementations(path, position))

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        """The definitions of a file."""
        return await self._first(Ability.OUTLINE, path, lambda m: m.outline(path))

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        """Definitions anywhere whose name contains ``query``."""
        return await self._first(Ability.WORKSPACE_SYMBOLS, query, lambda m: m.workspace_symbols(query))

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        """Who calls the function at a position, or whom it calls."""
        return await self._first(Ability.CALLS, path, lambda m: m.calls(path, position, incoming=incoming))

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        """What is wrong in a file."""
        return await self._first(Ability.DIAGNOSTICS, path, lambda m: m.diagnostics(path))

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        """The edits that rename a symbol everywhere."""
        return await self._first(Ability.RENAME, path, lambda m: m.rename(path, position, new_name))

    async def aclose(self) -> None:
        """End all of them."""
        await asyncio.gather(*(member.aclose() for member in self.members))

    async def _first(self, ability: Ability, about: str, ask: Callable[[Intelligence], Awaitable[_Answer]]) -> _Answer:
        """The first answer that says something, in the order of the members where several have come.

        Raises:
            NotSupportedError: none has the ability, or knows such files.
            IntelligenceError: none of those that have it answered.
        """
        left = [member for member in self.members if ability in member.abilities]
        running: list[asyncio.Task[_Answer]] = []
        nothing: _Answer | None = None
        failures: list[IntelligenceError] = []
        try:
            while left or running:
                if left:
                    running.append(asyncio.create_task(self._recorded(left.pop(0), ability, about, ask)))
                patience = self._patience if left else None
                await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task.done()]:
                    running.remove(task)
                    if isinstance(error := task.exception(), IntelligenceError):
                        failures.append(error)
                    elif (answer := task.result()) or ability not in _ASK_ON:
                        return answer
                    else:
                        nothing = answer
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
        if nothing is not None:
            return nothing
        broken = [error for error in failures if not isinstance(error, NotSupportedError)]
        if not broken:
            raise NotSupportedError(f"nobody here can tell {ability} of {about[:80]}")
        if len(broken) == 1:
            raise broken[0]
        # Each has its own cause; whoever mends the first would meet the second.
        raise IntelligenceError("; ".join(map(str, broken)))

    async def _recorded(
        self, member: Intelligence, ability: Ability, about: str, ask: Callable[[Intelligence], Awaitable[_Answer]]
    ) -> _Answer:
        began, outcome, failed = time.monotonic(), "given up", True
        try:
            answer = await ask(member)
            outcome, failed = "answered" if answer else "found nothing", False
        except NotSupportedError as error:
            outcome, failed = str(error), False
            raise
        except IntelligenceError as error:
            outcome = str(error)
            raise
        else:
            return answer
        finally:
            self.asked.append(Asked(member.name, ability, about, time.monotonic() - began, outcome, failed))
