"""The real Serena with the real ``ty``: every ability it has, with right positions."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.code.serena_env import clangd_bin, serena_dir, why_not
from tests.code.shop import CPP, at, make_shop
from turnout.code.install import find_serena
from turnout.code.intelligence import NotSupportedError, Place
from turnout.code.serena import SerenaIntelligence, serena_for
from turnout.types import Position

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(why_not("2.1.0")), reason=why_not("2.1.0")),
]
MODELS, SERVICE = "shop/models.py", "shop/service.py"
USE = at(SERVICE, "first = ", "apply_discount")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serena(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SerenaIntelligence]:
    """One for the module, warmed up."""
    folder = tmp_path_factory.mktemp("serena")
    program = find_serena(serena_dir("2.1.0"))
    assert program is not None
    one = SerenaIntelligence(program, make_shop(folder / "work"), folder / "data")
    await one.warm()
    yield one
    await one.aclose()


def spans(places: tuple[Place, ...]) -> list[tuple[str, int, int, int]]:
    """File, line, first and last character of each."""
    return [(p.path, p.line, p.character, p.end_character) for p in places]


async def test_hover_tells_the_signature_and_the_documentation(serena: SerenaIntelligence) -> None:
    info = await serena.hover(SERVICE, USE)
    assert "def apply_discount(" in info
    assert "Less." in info


async def test_a_definition_in_another_file_is_found_from_behind_a_wide_character(serena: SerenaIntelligence) -> None:
    position = at(SERVICE, "first = ", "total")
    assert position.character == 52  # the emoji before it counts as two
    assert spans(await serena.definition(SERVICE, position)) == [(MODELS, at(MODELS, "Sum of", "Sum").line - 1, 8, 13)]


async def test_an_overload_is_defined_below_its_decorator(serena: SerenaIntelligence) -> None:
    line = at(MODELS, "text: str", "parse").line
    assert spans(await serena.definition(SERVICE, at(SERVICE, "made", "parse"))) == [(MODELS, line, 4, 9)]


async def test_references_have_every_place_of_every_file(serena: SerenaIntelligence) -> None:
    found = spans(await serena.references(SERVICE, at(SERVICE, "def apply", "apply_discount")))
    second = at(SERVICE, "first = ", "apply_discount", 1)
    wanted = [
        ("shop/cli.py", 2, 6, 20),
        (SERVICE, USE.line, USE.character, USE.character + 14),
        (SERVICE, second.line, second.character, second.character + 14),
        (SERVICE, at(SERVICE, '"nine"', "apply").line, 0, 14),
    ]
    assert found == wanted


async def test_implementations_leave_out_what_they_implement(serena: SerenaIntelligence) -> None:
    found = spans(await serena.implementations(MODELS, at(MODELS, "class Priced", "Priced")))
    lines = [at(MODELS, name, "class").line for name in ("class Item", "class Order")]
    assert found == [(MODELS, lines[0], 6, 10), (MODELS, lines[1], 6, 11)]


async def test_the_outline_holds_nested_functions_and_overloads_in_order(serena: SerenaIntelligence) -> None:
    found = {symbol.name_path: symbol for symbol in await serena.outline(MODELS)}
    assert list(found)[:2] == ["Priced", "Priced/total"]
    assert list(found)[-3:] == ["parse[0]", "parse[1]", "parse[2]"]
    inner = found["Order/total/rounded"]
    line = at(MODELS, "def rounded", "def").line
    assert (inner.kind, inner.place.line, inner.place.end_line, inner.place.character) == (
        "function",
        line,
        line + 1,
        8,
    )


async def test_symbols_are_found_by_name_by_path_of_names_and_by_part_of_a_name(serena: SerenaIntelligence) -> None:
    assert [s.name_path for s in await serena.find_symbol("total")] == ["Priced/total", "Item/total", "Order/total"]
    (inner,) = await serena.find_symbol("total/rounded", "shop", body=True)
    assert inner.body.startswith("def rounded(value: float) -> float:\n")
    (found,) = await serena.workspace_symbols("discount")
    assert (found.name_path, found.place.path) == ("apply_discount", SERVICE)
    assert await serena.find_symbol("nowhere") == ()


async def test_callers_are_told_and_not_who_only_mentions_it(serena: SerenaIntelligence) -> None:
    found = await serena.calls(SERVICE, USE)
    assert {(s.name_path, s.place.path) for s in found} == {
        ("Service/price", SERVICE),
        ("service", SERVICE),
        ("cli", "shop/cli.py"),
    }


async def test_diagnostics_of_types_of_syntax_and_of_a_file_without_fault(serena: SerenaIntelligence) -> None:
    bad, syntax, clean = await asyncio.gather(*map(serena.diagnostics, (SERVICE, "broken.py", "shop/cli.py")))
    lines = [at(SERVICE, text, text).line for text in ('"no"', '"nine"')]
    assert [(d.place.line, d.place.character, d.severity, d.source) for d in bad] == [
        (lines[0], 15, 1, "ty"),
        (lines[1], 15, 1, "ty"),
    ]
    assert [d.code for d in syntax] == ["invalid-syntax", "invalid-syntax"]
    assert clean == ()


async def test_a_file_with_a_syntax_error_and_one_that_is_no_utf_8_are_read(serena: SerenaIntelligence) -> None:
    assert [s.name_path for s in await serena.outline("broken.py")] == ["half", "whole"]
    latin = await serena.outline("latin.py")
    assert [(s.name_path, s.place.line) for s in latin] == [("name", 1), ("latin", 4)]
    assert spans(await serena.definition("latin.py", Position(6, 12))) == [("latin.py", 1, 0, 4)]


async def test_what_is_outside_of_the_workspace_or_local_is_for_another_intelligence(
    serena: SerenaIntelligence,
) -> None:
    for path, position in (
        (MODELS, at(MODELS, "import ABC", "ABC")),
        (SERVICE, at(SERVICE, "return first", "first")),
        (SERVICE, at(SERVICE, "return total", "total")),
    ):
        with pytest.raises(NotSupportedError) as caught:
            await serena.definition(path, position)
        assert str(Path.home()) not in str(caught.value)


async def test_a_change_outside_of_serena_is_seen_at_once(serena: SerenaIntelligence) -> None:
    file = serena._root / "late.py"
    file.write_text("def late():\n    pass\n")
    assert [s.name_path for s in await serena.outline("late.py")] == ["late"]
    file.write_text("# moved\n\ndef later():\n    pass\n")
    assert [(s.name_path, s.place.line) for s in await serena.outline("late.py")] == [("later", 2)]


async def test_a_symbol_is_replaced_and_renamed_everywhere(serena: SerenaIntelligence) -> None:
    root = serena._root
    (root / "edit.py").write_text(
        "class A:\n    def one(self):\n        return 1\n\n\ndef two():\n    return A().one()\n"
    )
    await serena.write_symbol("edit.py", "A/one", "def one(self):\n        return 11")
    await serena.write_rename("edit.py", "A/one", "uno")
    wanted = "class A:\n    def uno(self):\n        return 11\n\n\ndef two():\n    return A().uno()\n"
    assert (root / "edit.py").read_text() == wanted


async def test_a_rename_that_would_spoil_a_file_is_refused_before_anything_is_written(
    serena: SerenaIntelligence,
) -> None:
    before = (serena._root / SERVICE).read_bytes()
    with pytest.raises(NotSupportedError, match=r"shop/cli\.py"):
        await serena.write_rename(SERVICE, "apply_discount", "discounted")
    assert (serena._root / SERVICE).read_bytes() == before


async def test_a_killed_language_server_is_started_again_by_serena(serena: SerenaIntelligence) -> None:
    pid = (await serena.status()).pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    assert found, children
    for child in found:
        os.kill(int(child), 9)
    assert await serena.hover(SERVICE, USE)
    assert (await serena.status()).pid == pid


@pytest.mark.isolated
@pytest.mark.skipif(
    os.environ.get("TURNOUT_TEST_ISOLATED") != "1", reason="sees packets in a namespace of its own alone"
)
async def test_it_dials_nothing_listens_on_nothing_and_writes_nothing_into_the_workspace(tmp_path: Path) -> None:
    """A fresh namespace in which every address of the world leads to its own loopback, and a socket that sees each
    packet there: asked for everything it has, Serena sends none; and one that the test sends is seen."""
    command = [sys.executable, "tests/isolated.py", sys.executable, "-m", "tests.code.observe_serena", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["control"] > 0
    assert seen["answered"] == 11
    assert {name: seen[name] for name in ("packets", "listening", "written")} == {
        "packets": [],
        "listening": [],
        "written": [],
    }


@pytest.mark.heavy
@pytest.mark.skipif(bool(why_not("1.7.0")), reason=why_not("1.7.0"))
async def test_version_1_7_answers_the_same(tmp_path: Path) -> None:
    program = find_serena(serena_dir("1.7.0"))
    assert program is not None
    assert program.version == "1.7.0"
    one = SerenaIntelligence(program, make_shop(tmp_path / "work"), tmp_path / "data")
    try:
        assert "def apply_discount(" in await one.hover(SERVICE, USE)
        assert len(await one.references(SERVICE, USE)) == 4
        assert "Order/total/rounded" in [s.name_path for s in await one.outline(MODELS)]
        assert len(await one.diagnostics(SERVICE)) == 2
    finally:
        await one.aclose()


@pytest.mark.heavy
@pytest.mark.skipif(clangd_bin() is None, reason="no clangd: `python -m tests.code.serena_env clangd` brings it")
async def test_a_second_language_is_answered_by_its_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{clangd_bin()}{os.pathsep}{os.environ['PATH']}")
    program = find_serena(serena_dir("2.1.0"))
    assert program is not None
    one = SerenaIntelligence(program, make_shop(tmp_path / "work", CPP), tmp_path / "data")
    try:
        found = spans(await one.definition("c/twice.cpp", at("c/twice.cpp", "return add", "add")))
        assert found in ([("c/add.cpp", 2, 4, 7)], [("c/add.h", 0, 4, 7)])
        (bad,) = await one.diagnostics("c/twice.cpp")
        assert (bad.place.line, bad.source) == (5, "clang")
        assert "def apply_discount(" in await one.hover(SERVICE, USE)
        assert (await one.status()).language_servers == ("python_ty", "cpp")
        assert not (tmp_path / "work" / ".cache").exists()
    finally:
        await one.aclose()


async def test_it_is_found_where_install_put_it(tmp_path: Path) -> None:
    assert serena_for(tmp_path, serena_dir("2.1.0")) is not None
