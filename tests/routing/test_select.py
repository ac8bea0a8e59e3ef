"""What the selector remembers between requests."""

from __future__ import annotations

from turnout.config import RouterConfig
from turnout.fleet.catalog import Catalog
from turnout.routing.capabilities import load_table
from turnout.routing.select import LONGEST_NAME, Selector
from turnout.types import Principal


def test_a_name_as_large_as_a_body_is_not_remembered() -> None:
    selector = Selector(RouterConfig(), load_table(), frozenset)
    for name in ("nobody-has-this", "x" * (LONGEST_NAME + 1)):
        assert selector.meant(name, Catalog(), Principal()) == ()
    assert list(selector._meant) == ["nobody-has-this"]
