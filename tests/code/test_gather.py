"""What is gathered: with the real ``ty`` for what it finds, with a stand-in for what goes wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.code.stand_in import HANG, StandIn
from tests.code.workspaces import MODELS, USE, at, make_shop, ty
from turnout.code.chain import Chain
from turnout.code.enrich import build_enriched_query
from turnout.code.gather import gather, state_of, wishes_of
from turnout.code.intelligence import Ability, CodeSymbol, Diagnostic, IntelligenceError, Place
from turnout.code.lsp import Limits
from turnout.code.provider import CodeContext
from turnout.code.search import TextSearch
from turnout.errors import UsageError
from turnout.types import FileContext, Position, TaskCategory

ROOM, BUDGET = 18_000, 60.0
CODING, ANALYSIS, DOCS = TaskCategory.CODING, TaskCategory.ANALYSIS, TaskCategory.DOCUMENTATION
ALL_HANG = dict.fromkeys(Ability, HANG)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    root = make_shop(tmp_path / "w")
    for path in root.rglob("*"):  # long ago, so that what is gathered is kept
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return root


@pytest.fixture
async def chain(shop: Path) -> AsyncIterator[Chain]:
    made = Chain([ty(shop, Limits(start=60, answer=30, references=30))])
    yield made
    await made.aclose()


async def ask(
    chain: Chain, root: Path, query: str, category: TaskCategory = CODING, here: FileContext | None = None
) -> CodeContext:
    context = await gather(chain, query, category, here, root, ROOM, BUDGET)
    assert context is not None
    return context


async def test_at_a_position(chain: Chain, shop: Path) -> None:
    here = FileContext("shop/use.py", at(USE, 7, "total"))
    context = await ask(chain, shop, "Why is this a float?", here=here)
    assert context.provider == "ty, text search"
    assert context.type_information.startswith("total (shop/use.py:7):\n```python\nbound method Order.total() -> float")
    assert [(i.line, i.message[:11]) for i in context.issues] == [(11, "Return type")]
    assert [(d.path, d.line) for d in context.definitions] == [("shop/models.py", 18)]
    assert [(b.path, b.first, b.last) for b in context.bodies] == [("shop/models.py", 18, 19)]
    assert context.outline == "shop/use.py:\n- function price (line 6)\n- function broken (line 10)"
    assert context.references == (), "nobody asked for them"
    assert context.excerpts[0].marked == 7
    text = build_enriched_query("Q", context)
    for title in ("Type Information", "Current Issues (1)", "Code", "Definition", "Outline"):
        assert f"\n## {title}\n" in text
    assert str(shop) not in text
    wide = await ask(chain, shop, "What is it?", here=FileContext("shop/models.py", at(MODELS, 19, "count", 2)))
    assert wide.type_information.startswith("count (shop/models.py:19):"), "behind a character of two units"
    line = await ask(chain, shop, "Why is this wrong?", here=FileContext("shop/use.py", Position(10)))
    assert line.type_information.startswith("broken (shop/use.py:10):"), "without a character: what is around the line"
    words = await ask(chain, shop, "Is `order` right here?", here=FileContext("shop/use.py", Position(6)))
    assert words.type_information.startswith("order (shop/use.py:7):"), "what the query names in the line"


async def test_by_names(chain: Chain, shop: Path) -> None:
    context = await ask(chain, shop, "Refactor `total` so that it takes a discount")
    assert [(r.path, r.line) for r in context.references] == [("shop/use.py", 7)], "not what merely has the letters"
    assert [(d.path, d.line) for d in context.definitions] == [("shop/models.py", 12), ("shop/models.py", 18)]
    assert "total (shop/models.py:12):" in context.type_information
    assert "## References (1 found)\n- shop/use.py:7 in price: return" in build_enriched_query("Q", context)
    nested = await ask(chain, shop, "What does `inner` return?")
    assert [(b.path, b.first, b.last) for b in nested.bodies] == [("shop/models.py", 27, 28)]
    unknown = await ask(chain, shop, "What does `nowhere_at_all` do?")
    assert (unknown.definitions, unknown.type_information, unknown.issues) == ((), "", ())


async def test_by_category(chain: Chain, shop: Path) -> None:
    analysis = await ask(chain, shop, "Explain `price`", ANALYSIS)
    assert [(r.path, r.line) for r in analysis.references] == [("shop/use.py", 14)]
    docs = await ask(chain, shop, "Document shop/models.py", DOCS)
    assert docs.type_information.count(":\n```") >= 5, "the signatures of its symbols"
    assert "- method Order.total (line 18)" in docs.outline
    assert wishes_of("Rename it", CODING).references
    assert wishes_of("Who calls it?", CODING).references
    assert not wishes_of("Why is it slow?", CODING).references
    assert not wishes_of("Document how it is used", DOCS).references


async def test_the_same_state_gives_the_same_bytes_and_is_looked_up_once(chain: Chain, shop: Path) -> None:
    query = "Refactor `total` in shop/use.py"
    first = await ask(chain, shop, query)
    assert await ask(chain, shop, query) is first
    other = Chain(chain.members)
    again = await ask(other, shop, query)
    assert build_enriched_query(query, again) == build_enriched_query(query, first)
    path = shop / "shop" / "use.py"
    path.write_text(USE.replace("order.total()", "2 * order.total()"))
    assert state_of(shop) == "", "a file written just now may change without a sign"
    os.utime(path, (1_700_000_001, 1_700_000_001))
    changed = await ask(chain, shop, query)
    assert "2 * order.total()" in build_enriched_query(query, changed)


async def test_who_hangs_costs_the_budget_and_not_more_and_the_text_search_answers(shop: Path) -> None:
    hung = StandIn("serena", ALL_HANG)
    here = FileContext("shop/use.py", Position(6, 20))
    began = time.monotonic()
    context = await gather(Chain([hung]), "Refactor `total`", CODING, here, shop, ROOM, 1.0)
    took = time.monotonic() - began
    assert took < 30, "it waited for something else than the budget"
    assert context is not None
    plain = await TextSearch().gather("Refactor `total`", CODING, here, shop, ROOM)
    assert plain is not None
    assert build_enriched_query("Q", context) == build_enriched_query("Q", plain), "never poorer than without"
    assert hung.given_up == len(hung.asked) > 3
    assert context.note.count("given up") == 1
    assert "hover" in context.note.partition("serena gave no ")[2].partition(": given up")[0]


async def test_what_came_in_time_is_used(shop: Path) -> None:
    wrong = (Diagnostic(Place("shop/use.py", 6), "no such thing"),)
    half = StandIn("half", {**ALL_HANG, Ability.DIAGNOSTICS: wrong, Ability.HOVER: "def f() -> int"})
    here = FileContext("shop/use.py", at(USE, 7, "total"))
    context = await gather(Chain([half]), "Why?", CODING, here, shop, ROOM, 1.0)
    assert context is not None
    assert context.type_information == "total (shop/use.py:7):\ndef f() -> int"
    assert [i.line for i in context.issues] == [7]
    assert "half gave no definition, " in context.note
    assert context.provider == "half, text search"


async def test_an_error_is_never_context(shop: Path) -> None:
    bad = StandIn("bad", dict.fromkeys(Ability, IntelligenceError("Error executing tool: /secret/place")))
    here = FileContext("shop/use.py", Position(6, 20))
    context = await gather(Chain([bad]), "Refactor `total`", ANALYSIS, here, shop, ROOM, BUDGET)
    assert context is not None
    assert "Error" not in build_enriched_query("Q", context)
    assert context.provider == "text search"


async def test_answers_that_lead_elsewhere_are_left_out(shop: Path) -> None:
    (shop.parent / "outside.py").write_text("total = 1\n")
    elsewhere = tuple(
        CodeSymbol("total", "function", Place(path, 0, 0, 0, 5))
        for path in (".env", str(shop.parent / "outside.py"), "../outside.py", "shop/none.py")
    )
    places = tuple(s.place for s in elsewhere)
    liar = StandIn("liar", {Ability.FIND_SYMBOL: elsewhere, Ability.REFERENCES: places, Ability.DEFINITION: places})
    here = FileContext("shop/use.py", at(USE, 7, "total"))
    context = await gather(Chain([liar]), "Refactor `total`", CODING, here, shop, ROOM, BUDGET)
    assert context is not None
    assert {d.path for d in (*context.definitions, *context.references)} <= {
        "shop/models.py",
        "shop/use.py",
        "notes.md",
    }
    beyond = StandIn("beyond", {Ability.FIND_SYMBOL: (CodeSymbol("total", "method", Place("shop/use.py", 900)),)})
    assert await gather(Chain([beyond]), "Refactor `total`", CODING, None, shop, ROOM, BUDGET) is not None


async def test_names_are_looked_for_where_the_text_search_found_them_first(shop: Path) -> None:
    asked = StandIn("asked", {Ability.FIND_SYMBOL: ()})
    await gather(Chain([asked]), "What does `inner` return?", CODING, None, shop, ROOM, BUDGET)
    assert [about for _, about in asked.asked] == ["inner in shop/models.py", "inner in "]


async def test_what_cannot_be_looked_at(chain: Chain, shop: Path) -> None:
    with pytest.raises(UsageError, match="there is no line 501"):
        await ask(chain, shop, "Why?", here=FileContext("shop/use.py", Position(500)))
    far = await ask(chain, shop, "Why?", here=FileContext("shop/use.py", Position(6, 5000)))
    assert far.excerpts[0].marked == 7, "a column past the end is its line"
    outside = await ask(chain, shop, "Why?", here=FileContext("../../etc/passwd", Position(1)))
    assert (outside.excerpts, outside.type_information) == ((), "")
    assert "is not read" in outside.note
    unknown = await ask(chain, shop, "Why `total`?", here=FileContext("notes.md", Position(0)))
    assert unknown.excerpts[0].path == "notes.md"
    absolute = await ask(chain, shop, "Why?", here=FileContext(str(shop / "shop/use.py"), at(USE, 7, "total")))
    assert absolute.type_information.startswith("total (shop/use.py:7)")
    shutil.rmtree(shop)
    assert await gather(chain, "Why `total`?", CODING, None, shop, ROOM, BUDGET) is None


async def test_a_gathering_that_is_cancelled_leaves_nothing_running(shop: Path) -> None:
    hung = StandIn("serena", ALL_HANG)
    here = FileContext("shop/use.py", Position(6, 20))
    task = asyncio.create_task(gather(Chain([hung]), "Refactor `total`", CODING, here, shop, ROOM, BUDGET))
    while len(hung.asked) < 4:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert hung.given_up == len(hung.asked)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.heavy
async def test_a_workspace_of_a_hundred_thousand_files(tmp_path: Path) -> None:
    root = make_shop(tmp_path / "w")
    for folder in range(200):
        place = root / f"many{folder:03}"
        place.mkdir()
        for number in range(500):
            (place / f"m{number}.py").write_text(f"def f{number}() -> int:\n    return {number}\n")
    chain = Chain([ty(root)])
    here = FileContext("shop/use.py", at(USE, 7, "total"))
    began = time.monotonic()
    context = await gather(chain, "Why `total` and `f7`?", CODING, here, root, ROOM, 8.0)
    took = time.monotonic() - began
    assert context is not None
    assert context.excerpts[0].marked == 7
    assert took < 16, f"the budget is 8 s, it took {took:.1f} s"
    await chain.aclose()
