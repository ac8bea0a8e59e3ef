"""Real language servers: every ability of the interface, with the positions that people would give."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.code.workspaces import LATIN, MODELS, USE, at, make_shop, server, ty
from turnout.code.intelligence import Ability, CodeSymbol, IntelligenceError, NotSupportedError, Place
from turnout.code.lsp import LanguageServer, Limits, language_servers
from turnout.code.lsp_files import lines_of, path_of, read_text, to_code_points, utf16_length
from turnout.code.lsp_servers import LANGUAGES, find_servers
from turnout.config_values import CODE_LANGUAGES
from turnout.types import Position

USED, DEFINED = "shop/use.py", "shop/models.py"
PYTHON = [
    pytest.param("ty"),
    pytest.param("basedpyright", marks=pytest.mark.heavy),
]


@pytest.fixture(params=PYTHON)
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LanguageServer]:
    root = make_shop(tmp_path / "w")
    limits = Limits(start=60, answer=30, references=30)
    intelligence = LanguageServer(server("python", request.param), LANGUAGES["python"], root, limits)
    yield intelligence
    await intelligence.aclose()


def where(place: Place) -> tuple[str, int, int]:
    return place.path, place.line + 1, place.character


async def test_symbol_operations(shop: LanguageServer) -> None:
    (found,) = await shop.find_symbol("Order/total", body=True)
    assert (found.name_path, found.kind) == ("Order/total", "method")
    assert (found.place.path, found.place.line + 1, found.place.end_line + 1) == (DEFINED, 18, 19)
    assert found.body.startswith("    def total(self) -> float:\n        shown")
    assert [s.name_path for s in await shop.find_symbol("total", DEFINED)] == ["Item/total", "Order/total"]
    assert [s.name_path for s in await shop.find_symbol("total", "shop")] == ["Item/total", "Order/total"]
    assert await shop.find_symbol("/total", DEFINED) == ()
    assert await shop.find_symbol("nowhere_at_all") == ()
    assert await shop.find_symbol("") == ()
    assert [s.name_path for s in await shop.find_symbol("inner", DEFINED)] == ["pick/inner"]
    used = await shop.references(DEFINED, at(MODELS, 18, "total"))
    assert [where(p) for p in used] == [(USED, 7, 17)]
    assert used[0].text == "return order.total() + pick(1)"
    assert "-> float" in await shop.hover(USED, at(USE, 7, "total"))
    assert "SystemExit" in await shop.hover(USED, at(USE, 14, "exit")), "the standard library has its documentation"


async def test_navigation(shop: LanguageServer) -> None:
    (defined,) = await shop.definition(USED, at(USE, 7, "total"))
    assert where(defined) == (DEFINED, 18, 8)
    (library,) = await shop.definition(USED, at(USE, 14, "exit"))
    assert Path(library.path).is_absolute()
    assert library.path.endswith("sys/__init__.pyi")
    (kind,) = await shop.type_definition(USED, at(USE, 7, "order"))
    assert where(kind) == (DEFINED, 17, 6)
    made = await shop.implementations(DEFINED, at(MODELS, 12, "total"))
    assert (DEFINED, 18, 8) in [where(p) for p in made]


async def test_understanding(shop: LanguageServer) -> None:
    outline = await shop.outline(DEFINED)
    found = [(s.name_path, s.place.line + 1) for s in outline if s.name_path != "Item/price"]
    assert found[:5] == [("Item", 6), ("Item/__init__", 9), ("Item/total", 12), ("Order", 17), ("Order/total", 18)]
    # basedpyright lists the last overload alone.
    assert found[-2:] == [("pick", 26), ("pick/inner", 27)]
    symbols = await shop.workspace_symbols("rder")
    assert ("Order", DEFINED, 17) in [(s.name_path, s.place.path, s.place.line + 1) for s in symbols]
    assert [s.name_path for s in await shop.calls(DEFINED, at(MODELS, 18, "total"))] == ["price"]
    called = await shop.calls(USED, at(USE, 6, "price"), incoming=False)
    assert {"Order/total", "pick"} <= {s.name_path for s in called}
    assert len(called) == len(set(called))


async def test_diagnostics(shop: LanguageServer) -> None:
    found = await shop.diagnostics(USED)
    (wrong,) = [d for d in found if d.severity == 1]
    assert (wrong.place.path, wrong.place.line + 1, wrong.place.character) == (USED, 11, 11)
    assert "int" in wrong.message
    assert [d for d in await shop.diagnostics("shop/half.py") if d.severity == 1], "a syntax error is told"
    assert (await shop.outline("shop/half.py"))[0].name_path == "whole"
    assert [d for d in await shop.diagnostics("shop/__init__.py") if d.severity == 1] == []


async def test_a_rename_is_proposed_and_nothing_is_written(shop: LanguageServer, tmp_path: Path) -> None:
    before = (tmp_path / "w" / USED).read_bytes()
    edits = await shop.rename(DEFINED, at(MODELS, 18, "total"), "sum_up")
    assert [(where(e.place), e.place.end_character, e.text) for e in edits if e.place.path == USED] == [
        ((USED, 7, 17), 22, "sum_up")
    ]
    assert (DEFINED, 18, 8) in [where(e.place) for e in edits]
    assert (tmp_path / "w" / USED).read_bytes() == before
    for name in ("not valid", "1st", "class", "", "a-b"):
        with pytest.raises(IntelligenceError):
            await shop.rename(DEFINED, at(MODELS, 18, "total"), name)


async def test_characters_beyond_the_basic_plane_and_bytes_that_are_not_utf_8(shop: LanguageServer) -> None:
    last = at(MODELS, 19, "count", 2)
    assert last.character == MODELS.split("\n")[18].rindex("count") + 1
    assert await shop.hover(DEFINED, last) in ("```python\nLiteral[2]\n```", "```python\n(variable) count: int\n```")
    (defined,) = await shop.definition(DEFINED, last)
    assert where(defined) == (DEFINED, 19, at(MODELS, 19, "count").character)
    latin = "shop/latin.py"
    used = await shop.references(latin, at(LATIN, 1, "greet"))
    assert [where(p) for p in used] == [(latin, 5, 0)]
    assert [where(p) for p in await shop.definition(latin, at(LATIN, 2, "name"))] == [(latin, 1, 10)]


async def test_questions_that_make_no_sense(shop: LanguageServer) -> None:
    for position, says in ((Position(500), "16 lines|15 lines"), (Position(6, 900), "shorter")):
        with pytest.raises(IntelligenceError, match=says):
            await shop.hover(USED, position)
    for path in ("../outside.py", "/etc/passwd.py", "shop/none.py", "shop"):
        with pytest.raises(IntelligenceError):
            await shop.outline(path)
    for path in ("notes.md", ".env", "Makefile"):
        with pytest.raises(NotSupportedError):
            await shop.diagnostics(path)


async def test_what_changes_on_the_disk_is_seen_at_the_next_question(shop: LanguageServer, tmp_path: Path) -> None:
    root = tmp_path / "w"
    assert len(await shop.references(DEFINED, at(MODELS, 18, "total"))) == 1
    more = root / "shop" / "more.py"
    more.write_text("from shop.models import Order\n\nOrder(1.0).total()\n")
    assert "shop/more.py" in [p.path for p in await shop.references(DEFINED, at(MODELS, 18, "total"))]
    more.unlink()
    assert [p.path for p in await shop.references(DEFINED, at(MODELS, 18, "total"))] == [USED]
    (root / USED).write_text(USE.replace('return "x"', "return 1 "))
    assert [d for d in await shop.diagnostics(USED) if d.severity == 1] == []
    (root / DEFINED).write_text(MODELS.replace("class Order", "class Basket"))
    if shop.name != "basedpyright":  # it looks at other files again only seconds after a change
        assert [d for d in await shop.diagnostics(USED) if "Order" in d.message]
    assert [s.name_path for s in await shop.find_symbol("Basket")] == ["Basket"]
    shutil.rmtree(root)
    with pytest.raises(IntelligenceError):
        await shop.outline(DEFINED)


async def test_a_server_that_is_killed_is_started_again_and_ends_when_it_is_closed(tmp_path: Path) -> None:
    shop = ty(make_shop(tmp_path / "w"))
    await shop.warm_up()
    first = shop.pid
    os.kill(first, 9)
    assert (await _until_answered(shop))[0].name_path == "Item"
    second = shop.pid
    assert second not in (0, first)
    await shop.aclose()
    assert shop.pid == 0
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def _until_answered(shop: LanguageServer) -> tuple[CodeSymbol, ...]:
    """The end of the old one is noticed before or after the next question is sent: then that one fails."""
    try:
        return await shop.outline(DEFINED)
    except IntelligenceError:
        return await shop.outline(DEFINED)


async def test_many_questions_at_once_are_answered_by_one_server(tmp_path: Path) -> None:
    shop = ty(make_shop(tmp_path / "w"))
    answers = await asyncio.gather(*(shop.hover(USED, at(USE, 7, "total")) for _ in range(40)))
    assert len(set(answers)) == 1
    assert answers[0]
    await shop.aclose()


@pytest.mark.heavy
@pytest.mark.parametrize("language", ["typescript", "go"])
async def test_a_second_language(language: str, tmp_path: Path) -> None:
    files, use, define = {
        "typescript": (
            {
                "tsconfig.json": '{"compilerOptions": {"strict": true}}',
                "a.ts": "export class Order {\n  total(): number { return 1; }\n}\n",
                "b.ts": 'import { Order } from "./a"\nexport let sum = (o: Order) => o.total()\nlet a: number = ""\n',
            },
            ("b.ts", Position(1, 33)),
            ("a.ts", Position(1, 2)),
        ),
        "go": (
            {
                "go.mod": "module shop\n\ngo 1.22\n",
                "a.go": "package shop\n\ntype Order struct{}\n\nfunc (o *Order) Total() int { return 1 }\n",
                "b.go": 'package shop\n\nfunc Sum(o *Order) int { return o.Total() }\n\nfunc b() int { return "" }\n',
            },
            ("b.go", Position(2, 35)),
            ("a.go", Position(4, 16)),
        ),
    }[language]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    name = {"typescript": "typescript-language-server", "go": "gopls"}[language]
    limits = Limits(start=60, answer=30, references=30)
    intelligence = LanguageServer(server(language, name), LANGUAGES[language], tmp_path, limits)
    line = define[1].line + 1
    assert "Order" in await intelligence.hover(*use)
    assert [where(p) for p in await intelligence.definition(*use)] == [(define[0], line, define[1].character)]
    assert [where(p)[:2] for p in await intelligence.references(*define)] == [(use[0], use[1].line + 1)]
    total = "total" if language == "typescript" else "Total"
    (found,) = await intelligence.find_symbol(f"Order/{total}")
    assert (found.place.path, found.place.line + 1) == (define[0], line)
    assert len(await intelligence.calls(*define)) == 1
    assert (await intelligence.diagnostics(use[0]))[0].severity == 1
    assert await intelligence.diagnostics(define[0]) == ()
    assert await intelligence.type_definition(use[0], Position(use[1].line, use[1].character - 2))
    assert {path.name for path in tmp_path.iterdir()} == set(files), "nothing was written into the workspace"
    await intelligence.aclose()


def test_columns_and_lines_as_the_protocol_counts_them(tmp_path: Path) -> None:
    line = "a\N{GRINNING FACE}b"
    assert utf16_length(line) == 4
    assert [to_code_points(line, column) for column in range(6)] == [0, 1, 1, 2, 3, 3]
    assert lines_of("a\r\nb\rc\n") == ("a", "b", "c", "")
    path = tmp_path / "with space and #.py"
    path.write_bytes(b"\xef\xbb\xbfx = '\xe9'\n")
    assert read_text(path) == "x = '\ufffd'\n"
    assert path_of(path.as_uri()) == path
    assert path_of("jdt://contents/x.class") is None


def test_which_server_is_used_for_which_language(tmp_path: Path) -> None:
    for name in ("ty", "basedpyright-langserver", "mine"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    env = {"PATH": "relative:/nonexistent"}
    assert find_servers({}, [], env) == {}
    assert find_servers({}, [tmp_path], env)["python"].command == (str(tmp_path / "ty"), "server")
    based = find_servers({"python": ("basedpyright-langserver", "--stdio")}, [tmp_path], env)["python"]
    assert (based.name, bool(based.settings)) == ("basedpyright", True)
    assert find_servers({"java": ("mine", "-x")}, [tmp_path], env)["java"].command == (str(tmp_path / "mine"), "-x")
    assert "python" not in find_servers({"python": ()}, [tmp_path], env)
    assert find_servers({"python": ("absent",)}, [tmp_path], env) == {}
    assert tuple(sorted(LANGUAGES)) == CODE_LANGUAGES
    (one,) = language_servers(tmp_path, {name: () for name in LANGUAGES if name != "python"}, [tmp_path])
    assert (one.name, one.pid) == ("ty", 0)
    assert Ability.REPLACE_SYMBOL not in one.abilities


def test_a_stand_in_of_rustup_counts_when_a_toolchain_has_what_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "rustup").touch(0o755)
    (tmp_path / "rust-analyzer").symlink_to("rustup")
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    assert find_servers({}, [], env) == {}
    there = tmp_path / ".rustup" / "toolchains" / "stable" / "bin" / "rust-analyzer"
    there.parent.mkdir(parents=True)
    there.touch(0o755)
    assert "rust" in find_servers({}, [], env)
    assert find_servers({}, [], env | {"RUSTUP_HOME": "/nowhere"}) == {}
