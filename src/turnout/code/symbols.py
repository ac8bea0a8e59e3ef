"""Where definitions begin and end in a text: by the parser for Python, else by keywords and indentation."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Parsing takes seconds for a megabyte, and cannot be interrupted.
_MAX_PARSED = 200_000
DEFINES = (
    r"^\s*(?:export\s+|pub(?:\([a-z]+\))?\s+|async\s+|static\s+|public\s+|private\s+|abstract\s+)*"
    r"(?:def|class|function|func|fn|struct|enum|interface|trait|type|const|let|var|module)\s+(?:\([^)]*\)\s*)?{name}\b"
    r"|^{name}\s*(?::[^=]+)?="
)
_ANY = re.compile(DEFINES.replace("{name}", r"(\w+)"))
# A method or function that no word announces, as in C, Java or a class of JavaScript: its name, what it takes, a brace.
_CALLABLE = re.compile(
    r"^\s*(?!\s|(?:\W*(?:if|else|for|foreach|while|do|switch|match|case|try|catch|with|return|using|lock|synchronized)\b))"
    r"[\w:<>,&*~ .@\[\]]{0,80}?\b(\w+) ?\([^;]{0,150}\{$"
    r"|^\s*impl\b[^{]{0,100}?(\w+) ?\{$"
)
_MOST_AROUND = 3
_PROSE = frozenset((".md", ".markdown", ".rst", ".txt", ".adoc"))
# A line at the depth of the beginning that still belongs to the block, and one after which the block goes on.
_CLOSES = re.compile(r"[)\]}{]|end\b")
_OPENS = re.compile(r"(?:[({\[:,=]|=>)$")
_PARSING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Symbol:
    """A definition: what to call it, its own line, and the first and last line of the whole of it. 1-based."""

    title: str
    line: int
    first: int
    last: int


def symbols_in(text: str, lines: Sequence[str], suffix: str) -> tuple[Symbol, ...]:
    """The definitions of a file in their order; ``suffix`` with its dot. Prose has none."""
    if suffix in _PROSE:
        return ()
    if suffix == ".py" and len(text) <= _MAX_PARSED:
        found = _python(text)
        if found is not None:
            return tuple(s for s in found if s.last <= len(lines))
    return tuple(
        Symbol(line.strip()[:80], number, number, block_end(lines, number))
        for number, line in enumerate(lines, 1)
        if _ANY.search(line[:200])
    )


def enclosing(symbols: Sequence[Symbol], lines: Sequence[str], line: int) -> tuple[tuple[int, int], ...]:
    """First and last lines of what surrounds a line, what is wanted most first.

    That is the innermost definition; where no definition is known, the blocks by indentation, the largest first.
    """
    around = [s for s in symbols if s.first <= line <= s.last]
    if around:
        inner = max(around, key=lambda s: s.first)
        return ((inner.first, inner.last),)
    return tuple(reversed([*_blocks(lines, line)]))


def names_around(lines: Sequence[str], line: int) -> str:
    """The definitions that a line stands in, by indentation: ``Cart.total``, "" outside of any. 1-based.

    Quick, because it is asked of every reference that is shown: no parser, and no further up than to the margin.
    """
    found, depth = list[str](), _depth(lines[line - 1])
    for number in range(line - 1, 0, -1):
        if not depth or len(found) == _MOST_AROUND:
            break
        text = lines[number - 1][:200].rstrip()
        here = _depth(text)
        if here >= depth or not text or _CLOSES.match(text.lstrip()):
            continue
        depth = here
        if match := _ANY.search(text) or _CALLABLE.search(text):
            found.append(next(filter(None, match.groups())))
    return ".".join(reversed(found))


def block_end(lines: Sequence[str], line: int) -> int:
    """The last line of what begins at ``line``, by indentation. 1-based."""
    base, last = _depth(lines[line - 1]), line
    for number in range(line + 1, len(lines) + 1):
        text = lines[number - 1].strip()
        if not text:
            continue
        depth = _depth(lines[number - 1])
        if depth < base or (depth == base and not _CLOSES.match(text)):
            break
        last = number
        if depth == base and not _OPENS.search(text):
            break
    return last


def _blocks(lines: Sequence[str], line: int) -> Iterator[tuple[int, int]]:
    """The blocks around a line, the smallest first."""
    depth = _depth(lines[line - 1]) if lines[line - 1].strip() else 1_000_000
    for number in range(line, 0, -1):
        text = lines[number - 1].strip()
        here = _depth(lines[number - 1])
        if not text or _CLOSES.match(text) or (number < line and here >= depth):
            continue
        depth = min(depth, here)
        last = block_end(lines, number)
        if last >= line and last > number:
            yield number, last
        if not here:
            return


def _depth(line: str) -> int:
    text = line.expandtabs(4)
    return len(text) - len(text.lstrip())


def parsed(text: str) -> ast.Module:
    """Python as its parser sees it. Raises SyntaxError, ValueError, RecursionError or MemoryError."""
    # The compiler's warnings about the user's code are not ours to print. The filters are the process's: one at a time.
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _python(text: str) -> list[Symbol] | None:
    """Classes and functions with their decorators; None when the text does not parse."""
    try:
        tree = parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return sorted(_defined(tree, ""), key=lambda s: (s.line, s.title))


def _defined(node: ast.AST, prefix: str) -> Iterator[Symbol]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
            yield Symbol(f"{prefix}{child.name}", child.lineno, first, child.end_lineno or child.lineno)
            if isinstance(child, ast.ClassDef):
                yield from _defined(child, f"{prefix}{child.name}.")
