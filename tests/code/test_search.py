from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from turnout.code.enrich import build_enriched_query
from turnout.code.provider import CodeContext, Excerpt, Reference
from turnout.code.search import MAX_FILE_BYTES, TextSearch, inside, look_up, names_in
from turnout.errors import UsageError
from turnout.types import FileContext, Position, TaskCategory

CODING = TaskCategory.CODING
ROOM = 18_000


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    files = {
        "src/shop.py": "class Cart:\n    def total_price(self):\n        return 1\n\n\nx = Cart().total_price()\n",
        "src/shop.ts": "export class Basket {}\nexport async function totalPrice() {}\nconst LIMIT = 3\ntotalPrice()\n",
        "lib/shop.go": "func (c *Cart) TotalPrice() int { return 1 }\ntype Shop struct {}\n",
        "lib/shop.rs": "pub fn total_price() {}\nlet y = total_prices();\n",
        "node_modules/x.py": "total_price()\n",
        ".git/x": "total_price()\n",
        ".env": "total_price=1\n",
        "keys/server.pem": "total_price\n",
        "id_rsa": "total_price\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "data.bin").write_bytes(b"\x00total_price")
    (root / "big.txt").write_text("total_price\n" + "x" * MAX_FILE_BYTES)
    return root


def found(query: str, root: Path, file: str = "", line: int = 0, room: int = ROOM) -> CodeContext:
    """``line`` is 1-based, 0 for none."""
    here = FileContext(file, Position(line - 1) if line else None) if file else None
    context = look_up(query, here, root, time.monotonic() + 60, room)
    assert context is not None
    return context


def lines(excerpt: Excerpt) -> tuple[str, int, int, int]:
    return excerpt.path, excerpt.first, excerpt.last, excerpt.marked


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("What does `total` do?", ("total",)),
        ("rename `Cart.total_price()` and getName", ("total_price", "getName")),
        ("why does parse_date fail in HTTPServer", ("parse_date", "HTTPServer")),
        ("Config.load and self.total, utf8_decode", ("load", "total", "utf8_decode")),
        ("call main() twice", ("main",)),
        ("fix `shop.py` and src/shop.py", ()),
        ("Explain what a monad is, e.g. on github.com.", ()),
    ],
)
def test_names_in_a_query(query: str, names: tuple[str, ...]) -> None:
    assert names_in(query) == names


def test_definitions_and_whole_word_uses(workspace: Path) -> None:
    context = found("rename total_price", workspace)
    assert context.definitions == (
        Reference("lib/shop.rs", 1, "pub fn total_price() {}"),
        Reference("src/shop.py", 2, "def total_price(self):"),
    )
    assert context.references == (Reference("src/shop.py", 6, "x = Cart().total_price()"),)
    assert "total_price" in context.note


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Cart", "src/shop.py:1"),
        ("Basket", "src/shop.ts:1"),
        ("totalPrice", "src/shop.ts:2"),
        ("LIMIT", "src/shop.ts:3"),
        ("TotalPrice", "lib/shop.go:1"),
        ("Shop", "lib/shop.go:2"),
    ],
)
def test_definitions_in_other_languages(workspace: Path, name: str, place: str) -> None:
    assert [f"{d.path}:{d.line}" for d in found(f"`{name}`", workspace).definitions] == [place]


def test_secrets_binaries_and_other_peoples_code_are_not_read(workspace: Path) -> None:
    context = found("find all total_price", workspace)
    assert {r.path for r in (*context.references, *context.definitions)} == {"src/shop.py", "lib/shop.rs"}


def test_a_link_does_not_lead_out_of_the_workspace(workspace: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text("def total_price(): ...\n")
    (workspace / "linked").symlink_to(outside)
    (workspace / "link.py").symlink_to(outside / "secret.py")
    (workspace / "plain.txt").symlink_to(workspace / ".env")
    (workspace / "loop").symlink_to(workspace)
    assert len(found("total_price", workspace).definitions) == 2
    for text in (
        "link.py",
        "linked/secret.py",
        "plain.txt",
        "../outside/secret.py",
        str(outside / "secret.py"),
        "a\0b",
    ):
        assert inside(workspace, text) is None
        assert found("outline", workspace, text).outline == ""
    assert inside(workspace, "src/../src/shop.py") == workspace / "src/shop.py"
    assert inside(workspace, ".env") is None
    assert inside(workspace, ".git/x") is None


def test_a_pipe_is_not_waited_for(workspace: Path) -> None:
    os.mkfifo(workspace / "pipe.py")
    assert len(found("total_price in pipe.py", workspace).definitions) == 2


def test_names_that_cannot_be_sent_are_left_out(workspace: Path) -> None:
    for name in (b"bad\xff.py", b"two\nlines.py"):
        Path(os.fsdecode(os.fsencode(workspace) + b"/" + name)).write_text("def total_price(): ...\n")
    context = found("total_price", workspace)
    assert len(context.definitions) == 2
    assert msgspec.json.encode(context)


def test_lines_are_counted_as_editors_do(workspace: Path) -> None:
    (workspace / "odd.py").write_bytes(b"a = 1\x0c\r\nb = '\xe2\x80\xa8'\r\nfind_me = 2\r\n")
    assert found("find_me", workspace).definitions == (Reference("odd.py", 3, "find_me = 2"),)


def test_the_outline_of_the_file_at_hand_and_of_files_the_query_names(workspace: Path) -> None:
    outline = "src/shop.py:\n- Cart (line 1)\n- Cart.total_price (line 2)"
    assert found("explain", workspace, "src/shop.py").outline == outline
    assert found("explain shop.py", workspace).outline == outline
    assert found(f'File "{workspace}/src/shop.py", line 2', workspace).outline == outline
    assert found("explain shop.go", workspace).outline == (
        "lib/shop.go:\n- func (c *Cart) TotalPrice() int { return 1 } (line 1)\n- type Shop struct {} (line 2)"
    )


def test_a_file_that_does_not_parse_still_has_an_outline(workspace: Path) -> None:
    (workspace / "broken.py").write_text("def one(:\n    pass\ndef two(): pass\n")
    outline = found("fix broken.py", workspace).outline
    assert outline == "broken.py:\n- def one(: (line 1)\n- def two(): pass (line 3)"
    (workspace / "warns.py").write_text("import re\ndef one(): return '\\d'\n")
    assert found("fix warns.py", workspace).outline == "warns.py:\n- one (line 2)"


LOOP = """import sys


def first(rows):
    for row in rows:
        if row:
            return row
        break
    return None


def second(rows):
    return [row for row in rows]
"""


def test_the_code_at_the_position_is_sent_with_its_line_marked(workspace: Path) -> None:
    (workspace / "app.py").write_text(LOOP)
    context = found("Why does this loop end early?", workspace, "app.py", 8)
    assert [lines(e) for e in context.excerpts] == [("app.py", 1, 13, 8)]
    text = build_enriched_query("Why does this loop end early?", context)
    assert "## Code\napp.py, lines 1 to 13 of 13 (line 8 is marked):\n" in text
    assert ">  8 |         break\n" in text
    assert "   4 | def first(rows):\n" in text
    assert "app.py lines 1 to 13" in context.note
    again = found("Why does this loop end early?", workspace, "app.py", 8)
    assert build_enriched_query("Why does this loop end early?", again) == text


def test_the_whole_enclosing_definition_is_sent_when_it_fits(workspace: Path) -> None:
    body = "".join(f"    step_{n} = {n}\n" for n in range(1, 201))
    (workspace / "long.py").write_text(f"A = 1\n\n\n@cached\ndef long():\n{body}\n\ndef after(): ...\n")
    (whole,) = found("why", workspace, "long.py", 100).excerpts
    assert (whole.first, whole.last) == (4, 205)
    (part,) = found("why", workspace, "long.py", 100, room=1000).excerpts
    assert part.first > 60
    assert part.last < 140
    assert part.first <= 100 <= part.last
    assert sum(len(line) + 10 for line in part.lines) <= 1000


def test_a_position_in_another_language_has_its_block(workspace: Path) -> None:
    rows = [f'    printf("{n}\\n");' for n in range(30)]
    text = ["#include <stdio.h>", "", "int main(void)", "{", *rows, "}", "", *(f"int x{n};" for n in range(30))]
    (workspace / "main.c").write_text("\n".join(text))
    (excerpt,) = found("why", workspace, "main.c", 10).excerpts
    assert (excerpt.first, excerpt.last) == (1, 35), "from the lines nearby to the end of the function"


def test_the_body_of_a_named_definition_is_sent_within_the_room(workspace: Path) -> None:
    (workspace / "app.py").write_text(LOOP)
    context = found("What does `first` do?", workspace)
    assert context.definitions == (Reference("app.py", 4, "def first(rows):"),)
    assert [lines(e) for e in context.bodies] == [("app.py", 4, 9, 0)]
    text = build_enriched_query("q", context)
    assert (
        "## Definition\n- app.py:4: def first(rows):\n\napp.py, lines 4 to 9 of 13:\n  4 | def first(rows):\n" in text
    )
    assert "  9 |     return None" in text
    assert found("What does `first` do?", workspace, room=120).bodies == ()
    at_it = found("What does `first` do?", workspace, "app.py", 5)
    assert at_it.bodies == (), "it is sent already, as the code at the position"


def test_a_file_without_symbols_gives_its_beginning(workspace: Path) -> None:
    (workspace / "README.md").write_text("# Shop\n\ntype anything\n" + "words\n" * 100)
    asked = found("Summarise README.md", workspace)
    assert [lines(e) for e in asked.excerpts] == [("README.md", 1, 40, 0)]
    assert asked.outline == ""
    here = found("Summarise it", workspace, "README.md")
    assert [lines(e) for e in here.excerpts] == [("README.md", 1, 103, 0)]
    assert [lines(e) for e in found("why", workspace, "README.md", 50).excerpts] == [("README.md", 40, 60, 50)]


def test_a_file_at_hand_without_a_position_is_sent_from_its_beginning(workspace: Path) -> None:
    context = found("explain", workspace, "src/shop.py")
    assert [lines(e) for e in context.excerpts] == [("src/shop.py", 1, 6, 0)]
    assert found("explain", workspace, "src/shop.py", room=0).excerpts == ()


@pytest.mark.parametrize(
    ("text", "has"), [("a\nb\n", "2 lines"), ("a\nb", "2 lines"), ("a\n", "1 line"), ("", "1 line")]
)
def test_a_line_beyond_the_end_is_refused_with_the_number_of_lines(workspace: Path, text: str, has: str) -> None:
    (workspace / "app.py").write_text(text)
    last = int(has[0])
    assert found("why", workspace, "app.py", last).excerpts[0].marked == last
    with pytest.raises(UsageError, match=f"app.py has {has}, there is no line {last + 1}"):
        found("why", workspace, "app.py", last + 1)


def test_secrets_in_an_excerpt_are_left_out_and_its_lines_keep_their_numbers(workspace: Path) -> None:
    key = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj" for _ in range(30))
    text = (
        f'API_KEY = "abcdef123456"\nKEY = """-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----"""\nx = 1\n'
    )
    text += "passwd:\n    'hunter22'\n"
    (workspace / "conf.py").write_text(text)
    for line in (1, 20, 33, 36, 34):
        sent = build_enriched_query("why", found("why", workspace, "conf.py", line))
        assert "MIIE" not in sent
        assert "abcdef123456" not in sent
        assert "hunter22" not in sent
    assert "> 34 | x = 1" in sent
    for name in (".env", "data.bin", "../outside.py", "gone.py"):
        context = found("why", workspace, name, 1)
        assert context.excerpts == ()
        assert f"{name} is not read" in context.note


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("hello", "no name in the question, 0 files read"),
        ("explain src/shop.py", "looked for src/shop.py, 1 file read"),
        ("rename `Cart`", "looked for Cart, "),
    ],
)
def test_the_note_says_in_words_what_was_looked_for(workspace: Path, query: str, note: str) -> None:
    assert found(query, workspace).note.startswith(note)


def test_a_search_stops_at_its_deadline(workspace: Path) -> None:
    context = look_up("total_price in shop.py", None, workspace, time.monotonic() - 1, ROOM)
    assert context is not None
    assert (context.definitions, context.references, context.outline) == ((), (), "")
    assert "stopped at the limit" in context.note


async def test_the_provider(workspace: Path) -> None:
    search = TextSearch()
    context = await search.gather("rename total_price", CODING, None, workspace, ROOM)
    assert context is not None
    assert len(context.definitions) == 2
    nothing = await search.gather("hello", CODING, None, workspace, ROOM)
    assert nothing is not None
    assert (nothing.definitions, nothing.references, nothing.outline) == ((), (), "")
    assert await search.gather("total_price", CODING, None, workspace / "absent", ROOM) is None
