"""Workspaces for the tests of code intelligence, and the language servers that are installed here."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from turnout.code.lsp import LanguageServer, Limits
from turnout.code.lsp_servers import LANGUAGES, Server, find_servers
from turnout.types import Position

MODELS = '''"""Things that are sold."""
from __future__ import annotations
from typing import overload


class Item:
    """One thing."""

    def __init__(self, price: float) -> None:
        self.price = price

    def total(self) -> float:
        """Its price."""
        return self.price


class Order(Item):
    def total(self) -> float:
        shown = "\N{GRINNING FACE}é"; count = len(shown); return self.price + count


@overload
def pick(x: int) -> int: ...
@overload
def pick(x: str) -> str: ...
def pick(x):
    def inner(y):
        return y

    return inner(x)
'''
USE = """import sys

from shop.models import Order, pick


def price(order: Order) -> float:
    return order.total() + pick(1)


def broken() -> int:
    return "x"


sys.exit(int(price(Order(2.0))))
"""
LATIN = 'def greet(name: str) -> str:\n    return "Gr\xfc\xdfe, " + name\n\n\ngreet("M\xfcller")\n'


def make_shop(root: Path) -> Path:
    """References across files, overloads, nested functions, type and syntax errors, a file that is not UTF-8."""
    files: dict[str, str | bytes] = {
        "shop/__init__.py": "",
        "shop/models.py": MODELS,
        "shop/use.py": USE,
        "shop/half.py": "def whole() -> int:\n    return 1\n\n\ndef half(:\n",
        "shop/latin.py": LATIN.encode("latin-1"),
        "notes.md": "# Notes about total\n",
        ".env": "TOTAL=1\n",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root.resolve()


def at(text: str, line: int, word: str, occurrence: int = 1) -> Position:
    """Where a word stands: ``line`` 1-based; the character counts UTF-16 units."""
    row = text.split("\n")[line - 1]
    index = -1
    for _ in range(occurrence):
        index = row.index(word, index + 1)
    return Position(line - 1, len(row[:index].encode("utf-16-le")) // 2)


def server(language: str, *names: str) -> Server:
    """An installed server; without one the test is skipped, and says so."""
    extra = [Path(place) for place in os.environ.get("TURNOUT_TEST_LANGUAGE_SERVERS", "").split(os.pathsep) if place]
    for known in LANGUAGES[language].servers:
        if known.name in names:
            command = shutil.which(
                known.command[0], path=os.pathsep.join(map(str, [Path(sys.executable).parent, *extra]))
            )
            if command is not None:
                found = find_servers({language: (command, *known.command[1:])})
                return found[language]
    pytest.skip(
        f"{' and '.join(names)} not installed: `make` installs ty, TURNOUT_TEST_LANGUAGE_SERVERS names a folder"
    )


def ty(root: Path, limits: Limits | None = None) -> LanguageServer:
    """The real ``ty`` about a workspace."""
    return LanguageServer(server("python", "ty"), LANGUAGES["python"], root, limits)
