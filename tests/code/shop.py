"""A small workspace with everything that code intelligence trips over."""

from __future__ import annotations

from pathlib import Path

from turnout.types import Position

FILES = {
    "shop/__init__.py": "",
    "shop/models.py": '''\
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import overload


class Priced(ABC):
    """Has a price."""

    @abstractmethod
    def total(self) -> float:
        """What it costs."""


@dataclass
class Item(Priced):
    """One thing."""

    name: str
    price: float = 0.0

    def total(self) -> float:
        return self.price


@dataclass
class Order(Priced):
    """Several things."""

    items: list[Item] = field(default_factory=list)

    def total(self) -> float:
        """Sum of all."""

        def rounded(value: float) -> float:
            return round(value, 2)

        return rounded(sum(item.total() for item in self.items))


@overload
def parse(text: str) -> Item: ...
@overload
def parse(text: bytes) -> Order: ...
def parse(text):
    """Either."""
    return Item("x") if isinstance(text, str) else Order()
''',
    "shop/service.py": '''\
from shop.models import Item, Order, parse


def apply_discount(total: float, share: float = 0.1) -> float:
    """Less."""
    return total * (1 - share)


class Service:
    def __init__(self, order: Order) -> None:
        self.order = order

    def price(self) -> float:
        """😀"""; first = apply_discount(self.order.total()) + apply_discount(1.0)
        return first

    def broken(self) -> int:
        return "no"


made = parse("x")
apply_discount("nine")
''',
    "shop/cli.py": "from shop.service import apply_discount\r\n\r\nprint(apply_discount(2.0))\r\n",
    "broken.py": "def half(:\n    pass\n\n\ndef whole():\n    return 1\n",
    "README.md": "# shop\n",
}
LATIN = b'# -*- coding: latin-1 -*-\nname = "caf\xe9"\n\n\ndef latin():\n    """caf\xe9"""\n    return name\n'
CPP = {
    "c/add.h": "int add(int a, int b);\n",
    "c/add.cpp": '#include "add.h"\n\nint add(int a, int b) {\n  return a + b;\n}\n',
    "c/twice.cpp": '#include "add.h"\n\nint twice(int x) {\n  return add(x, x);\n}\nint bad = "x";\n',
}


def make_shop(folder: Path, more: dict[str, str] | None = None) -> Path:
    """Write the workspace into a new folder."""
    for name, text in (FILES | (more or {})).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (folder / "latin.py").write_bytes(LATIN)
    return folder


def at(path: str, line: str, name: str, occurrence: int = 0) -> Position:
    """The position of a name in the line that contains ``line``; characters are UTF-16 units."""
    lines = (FILES | CPP)[path].replace("\r\n", "\n").split("\n")
    number = next(n for n, text in enumerate(lines) if line in text)
    index = -1
    for _ in range(occurrence + 1):
        index = lines[number].index(name, index + 1)
    return Position(number, len(lines[number][:index].encode("utf-16-le")) // 2)
