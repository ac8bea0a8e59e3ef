from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.code.excerpt import around, beginning, cost
from turnout.code.symbols import block_end, enclosing, names_around, symbols_in

LINES = st.lists(
    st.builds(
        lambda depth, text: " " * depth + text, st.integers(0, 8), st.sampled_from(["x", "def f():", "}", "", "{"])
    ),
    min_size=1,
    max_size=150,
)


def spans(text: str, suffix: str) -> list[tuple[str, int, int]]:
    return [(s.title, s.first, s.last) for s in symbols_in(text, text.split("\n"), suffix)]


def test_python_is_parsed() -> None:
    text = "@one\n@two\nclass A:\n    def b(self):\n        pass\n\n    c = 1\n\nasync def d(): pass"
    assert spans(text, ".py") == [("A", 1, 7), ("A.b", 4, 5), ("d", 9, 9)]


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        (".go", "func A() {\n\tx()\n}\n\nfunc B() {\n}", [(1, 3), (5, 6)]),
        (".ts", "export function a(\n  b: int,\n): int {\n  return 1\n}\nlater()", [(1, 5)]),
        (".cs", "class A\n{\n    enum B { C }\n}\nclass D\n{\n}", [(1, 4), (3, 3), (5, 7)]),
        (".rb", "def a\n  if b\n    c\n  end\nend\nx", [(1, 5)]),
        (".js", "function a() {\n  if (b) {\n  } else {\n  }\n}", [(1, 5)]),
        (".py", "def a(:\n    x\n\n\ndef b():\n    y", [(1, 2), (5, 6)]),
        (".md", "type of thing\nclass of things", []),
    ],
)
def test_elsewhere_indentation_tells(suffix: str, text: str, expected: list[tuple[int, int]]) -> None:
    assert [(first, last) for _, first, last in spans(text, suffix)] == expected


def test_without_a_definition_the_blocks_around_count_the_largest_first() -> None:
    lines = ["class Main extends Base {", "  void a(int b) {", "    c();", "  }", "}", "rest"]
    assert enclosing((), lines, 3) == ((1, 5), (2, 4))
    assert enclosing((), lines, 6) == ()


@given(LINES, st.data())
def test_blocks_lie_in_the_file_and_around_the_line(lines: list[str], data: st.DataObject) -> None:
    line = data.draw(st.integers(1, len(lines)))
    assert line <= block_end(lines, line) <= len(lines)
    text = "\n".join(lines)
    for suffix in (".py", ".js"):
        for first, last in enclosing(symbols_in(text, lines, suffix), lines, line):
            assert 1 <= first <= line <= last <= len(lines)


@given(LINES, st.integers(0, 3000), st.data())
def test_an_excerpt_holds_its_line_and_keeps_to_the_room(lines: list[str], room: int, data: st.DataObject) -> None:
    line = data.draw(st.integers(1, len(lines)))
    blocks = enclosing(symbols_in("\n".join(lines), lines, ".js"), lines, line)
    first, last = around(lines, line, blocks, room)
    assert 1 <= first <= line <= last <= len(lines)
    assert cost(lines[first - 1 : last]) <= room or first == last
    most = beginning(lines, 20, room)
    assert 0 <= most <= 20
    assert cost(lines[:most]) <= room


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("class Cart:\n    def total(\n        self,\n    ):\n        for x in y:\n            HERE\n", "Cart.total"),
        ("class Cart:\n    rate = 1\n\nHERE\n", ""),
        ("def first():\n    pass\n\n\nasync def second():\n    HERE\n", "second"),
        ("impl<T> Sum for Cart {\n    pub fn total(&self) -> u32 {\n        if x {\n            HERE\n", "Cart.total"),
        (
            "class Cart {\n    private int total(Cart c) throws X {\n        for (x : c) {\n            HERE\n",
            "Cart.total",
        ),
        ("class Cart {\n  total(c) {\n    if (a) {\n      HERE\n    } else if (b) {\n", "Cart.total"),
        ("class Cart {\n  total(c) {\n    if (a) {\n      x\n    } else if (b) {\n      HERE\n", "Cart.total"),
        ("func (c *Cart) Total() int {\n\treturn HERE\n}\n", "Total"),
        ("export const total = (cart) => {\n  HERE\n};\n", "total"),
        ("int main(int argc, char **argv) {\n  HERE\n}\n", "main"),
        ("while (HERE) {\n", ""),
        ("- a list\n  - HERE\n", ""),
    ],
)
def test_the_definitions_around_a_line(code: str, names: str) -> None:
    lines = code.split("\n")
    line = next(number for number, text in enumerate(lines, 1) if "HERE" in text)
    assert names_around(lines, line) == names


@pytest.mark.parametrize("line", ["a" * 100_000, "(" * 100_000, "a(" * 50_000, " " * 100_000 + "{", "impl " * 20_000])
def test_any_line_is_looked_at_quickly(line: str) -> None:
    assert names_around([line] * 50 + ["    here"], 51) is not None
