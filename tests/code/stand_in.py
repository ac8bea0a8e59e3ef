"""A code intelligence that answers what a test says: of our own interface, for faults and orders of events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    IntelligenceError,
    NotSupportedError,
    Place,
    TextEdit,
)
from turnout.types import Position

HANG = "hang"


class StandIn:
    """``answers`` by ability: a value, an error to raise, or HANG. What it has not is not supported."""

    def __init__(self, name: str, answers: Mapping[Ability, object]) -> None:
        self.name, self._answers = name, answers
        self.asked: list[tuple[Ability, str]] = []
        self.given_up = 0
        self.closed = False

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset(self._answers)

    async def _answer(self, ability: Ability, about: str) -> object:
        self.asked.append((ability, about))
        answer = self._answers.get(ability, NotSupportedError("no"))
        if answer is HANG:
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up += 1
        if isinstance(answer, IntelligenceError):
            raise answer
        return answer

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        return await self._answer(Ability.FIND_SYMBOL, f"{name} in {path}")  # type: ignore[return-value]

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        return await self._answer(Ability.REFERENCES, path)  # type: ignore[return-value]

    async def hover(self, path: str, position: Position) -> str:
        return await self._answer(Ability.HOVER, path)  # type: ignore[return-value]

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        return await self._answer(Ability.DEFINITION, path)  # type: ignore[return-value]

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        return await self._answer(Ability.TYPE_DEFINITION, path)  # type: ignore[return-value]

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        return await self._answer(Ability.IMPLEMENTATIONS, path)  # type: ignore[return-value]

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        return await self._answer(Ability.OUTLINE, path)  # type: ignore[return-value]

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        return await self._answer(Ability.WORKSPACE_SYMBOLS, query)  # type: ignore[return-value]

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        return await self._answer(Ability.CALLS, path)  # type: ignore[return-value]

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        return await self._answer(Ability.DIAGNOSTICS, path)  # type: ignore[return-value]

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        return await self._answer(Ability.RENAME, path)  # type: ignore[return-value]

    async def aclose(self) -> None:
        self.closed = True
