from __future__ import annotations

import asyncio

import pytest

from tests.code.stand_in import HANG, StandIn
from turnout.code.chain import Chain
from turnout.code.intelligence import Ability, Diagnostic, IntelligenceError, NotSupportedError, Place
from turnout.types import Position

HERE = Position(0, 0)
PLACE = (Place("a.py", 3),)


async def test_the_first_that_has_it_answers_and_the_record_says_who() -> None:
    first = StandIn("serena", {Ability.REFERENCES: PLACE, Ability.HOVER: NotSupportedError("no hover of externals")})
    second = StandIn("ty", {Ability.REFERENCES: (), Ability.HOVER: "int", Ability.CALLS: ()})
    chain = Chain([first, second])
    assert (chain.name, chain.abilities) == ("serena, ty", {Ability.REFERENCES, Ability.HOVER, Ability.CALLS})
    assert await chain.references("a.py", HERE) == PLACE
    assert await chain.hover("a.py", HERE) == "int"
    assert await chain.calls("a.py", HERE) == ()
    assert second.asked == [(Ability.HOVER, "a.py"), (Ability.CALLS, "a.py")]
    assert [(a.name, a.ability, a.outcome, a.failed) for a in chain.asked] == [
        ("serena", "references", "answered", False),
        ("serena", "hover", "no hover of externals", False),
        ("ty", "hover", "answered", False),
        ("ty", "calls", "found nothing", False),
    ]
    assert chain.fresh().asked == []
    await chain.aclose()
    assert first.closed
    assert second.closed


async def test_who_finds_nothing_may_not_know_but_a_clean_file_is_clean() -> None:
    ability, clean = Ability.DEFINITION, Ability.DIAGNOSTICS
    wrong = (Diagnostic(Place("a.py", 1), "wrong"),)
    chain = Chain([StandIn("serena", {ability: (), clean: ()}), StandIn("ty", {ability: PLACE, clean: wrong})])
    assert await chain.definition("a.py", HERE) == PLACE
    assert await chain.diagnostics("a.py") == ()
    assert await Chain([StandIn("serena", {ability: ()})]).definition("a.py", HERE) == ()


async def test_who_hangs_does_not_keep_the_next_from_answering_and_is_given_up() -> None:
    hung, good = StandIn("serena", {Ability.HOVER: HANG}), StandIn("ty", {Ability.HOVER: "int"})
    chain = Chain([hung, good], patience=0.01)
    assert await chain.hover("a.py", HERE) == "int"
    assert hung.given_up == 1
    assert [(a.name, a.outcome, a.failed) for a in chain.asked] == [
        ("ty", "answered", False),
        ("serena", "given up", True),
    ]


async def test_a_question_that_is_cancelled_is_given_up_by_all() -> None:
    hung = [StandIn("a", {Ability.HOVER: HANG}), StandIn("b", {Ability.HOVER: HANG})]
    asked = asyncio.create_task(Chain(hung, patience=0.0).hover("a.py", HERE))
    while not all(one.asked for one in hung):
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    assert [one.given_up for one in hung] == [1, 1]


async def test_when_nobody_answers_the_error_says_why() -> None:
    failing = StandIn("ty", {Ability.HOVER: IntelligenceError("ty ended")})
    lacking = StandIn("serena", {Ability.HOVER: NotSupportedError("no")})
    with pytest.raises(IntelligenceError, match="ty ended"):
        await Chain([lacking, failing]).hover("a.py", HERE)
    other = StandIn("serena", {Ability.HOVER: IntelligenceError("Serena is not there")})
    with pytest.raises(IntelligenceError, match=r"^Serena is not there; ty ended$"):
        await Chain([other, failing]).hover("a.py", HERE)
    with pytest.raises(NotSupportedError, match=r"nobody here can tell hover of a\.py"):
        await Chain([lacking]).hover("a.py", HERE)
    with pytest.raises(NotSupportedError):
        await Chain([]).rename("a.py", HERE, "x")
