"""A definition replaced by another of the same name, by the lines that ``symbols.py`` finds. Pure."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Sequence

from turnout.code.symbols import DEFINES, Symbol, parsed, symbols_in
from turnout.errors import EditError

_PYTHON = (".py", ".pyi")


def check_name(name: str, suffix: str) -> None:
    """Refuse what is no name of a symbol.

    Args:
        name: the new one.
        suffix: of the file, with its dot.

    Raises:
        EditError: it is no identifier, or a word of the language.
    """
    if not name.isidentifier() or not name.isprintable():
        raise EditError(f"{name[:80]!a} is no name of a symbol")
    if suffix in _PYTHON and (keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in ("self", "cls")):
        raise EditError(f"{name!a} is a word of the language")


def with_new_body(text: str, symbol: str, body: str, suffix: str) -> str:
    """The text of a file with a definition replaced.

    Args:
        text: with ``\\n`` between its lines.
        symbol: its name, or its name below what holds it: ``Order.total``, ``Order/total``.
        body: the new definition, at whatever indentation.
        suffix: of the file, with its dot.

    Raises:
        EditError: it is not defined there exactly once, or the body does not define it.
    """
    name = symbol.strip("/").replace("/", ".").replace("::", ".")
    lines = text.split("\n")
    found = _defined_as(symbols_in(text, lines, suffix), lines, name, suffix)
    if len(found) != 1:
        where = f"{len(found)} times, at lines {', '.join(str(s.line) for s in found[:8])}" if found else "nowhere"
        raise EditError(f"{symbol} is defined {where} in it")
    return replaced(text, found[0], name.rpartition(".")[2], body, suffix)


def replaced(text: str, symbol: Symbol, name: str, body: str, suffix: str) -> str:
    """The same where the definition's place is known. Raises EditError: the body does not define ``name``."""
    lines = text.split("\n")
    new = _dedented(body.strip("\n").split("\n"))
    _require_defines(new, name, suffix)
    own = lines[symbol.line - 1]
    indent = own[: len(own) - len(own.lstrip())]
    decorated = new[0].lstrip().startswith("@")
    first = symbol.first if decorated or suffix not in _PYTHON else symbol.line
    kept = _strings(new) if suffix in _PYTHON and indent else frozenset()
    new = [line if n in kept or not line.strip() else f"{indent}{line}" for n, line in enumerate(new, 1)]
    return "\n".join((*lines[: first - 1], *new, *lines[symbol.last :]))


def _defined_as(symbols: Sequence[Symbol], lines: Sequence[str], name: str, suffix: str) -> list[Symbol]:
    if suffix in _PYTHON:
        exact = [s for s in symbols if s.title == name]
        return exact or [s for s in symbols if s.title.endswith(f".{name}")]
    defines = re.compile(DEFINES.replace("{name}", re.escape(name.rpartition(".")[2])))
    return [s for s in symbols if defines.search(lines[s.line - 1])]


def _require_defines(lines: Sequence[str], name: str, suffix: str) -> None:
    if suffix in _PYTHON:
        try:
            tree = parsed("\n".join(lines) + "\n")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise EditError(f"the new code is no Python: {error}") from None
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if len(tree.body) == 1 and isinstance(tree.body[0], kinds) and tree.body[0].name == name:
            return
    elif any(re.search(DEFINES.replace("{name}", re.escape(name)), line) for line in lines[:20]):
        return
    raise EditError(f"the new code is not the definition of {name} alone")


def _dedented(lines: list[str]) -> list[str]:
    first = lines[0]
    indent = first[: len(first) - len(first.lstrip())]
    if not indent:
        return lines
    return [line.removeprefix(indent) for line in lines]


def _strings(lines: Sequence[str]) -> frozenset[int]:
    """The lines, 1-based, that go on a string over several lines: moving them would change it. A docstring may move."""
    tree = parsed("\n".join(lines) + "\n")
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and isinstance(node.body[0], ast.Expr)
    }
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docs and node.end_lineno is not None:
            if isinstance(node, ast.JoinedStr) or isinstance(node.value, str | bytes):
                found.update(range(node.lineno + 1, node.end_lineno + 1))
    return frozenset(found)
