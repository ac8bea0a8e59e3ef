"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from turnout.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run `make docs`"


def test_the_page_has_every_command_and_option() -> None:
    page = reference()
    for heading in (
        "## turnout ask",
        "## turnout config init",
        "## turnout embedded status",
        "## turnout serve",
        "## turnout session prune",
    ):
        assert f"\n{heading}\n" in page
    assert "`--line INTEGER RANGE` | The line you are on, from 1. |" in page
    assert "`--expires TEXT` | For example 12h, 30d or 8w; `never` for ever. [default: 90d] |" in page
    assert '    git diff | turnout ask "Review this change"\n' in page
