from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from turnout.code.provider import CodeContext, Reference
from turnout.code.search import MAX_FILE_BYTES, TextSearch, inside, look_up, names_in
from turnout.types import FileContext, TaskCategory

CODING = TaskCategory.CODING


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


def found(query: str, root: Path, file: str = "") -> CodeContext:
    context = look_up(query, FileContext(file) if file else None, root, time.monotonic() + 60)
    assert context is not None
    return context


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


def test_a_search_stops_at_its_deadline(workspace: Path) -> None:
    context = look_up("total_price in shop.py", None, workspace, time.monotonic() - 1)
    assert context is not None
    assert (context.definitions, context.references, context.outline) == ((), (), "")
    assert "stopped at the limit" in context.note


async def test_the_provider(workspace: Path) -> None:
    search = TextSearch()
    context = await search.gather("rename total_price", CODING, None, workspace)
    assert context is not None
    assert len(context.definitions) == 2
    nothing = await search.gather("hello", CODING, None, workspace)
    assert nothing is not None
    assert (nothing.definitions, nothing.references, nothing.outline) == ((), (), "")
    assert await search.gather("total_price", CODING, None, workspace / "absent") is None
