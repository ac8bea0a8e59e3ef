"""Every backend through the same list of behaviours, against its fake.

``python -m tests.backends.test_conformance`` prints the table of docs/services.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.backends.behaviours import BEHAVIOURS, LACKING, Case, serving
from tests.fakes import FAKES
from turnout.backends import BACKENDS

NAMES = tuple(behaviour.__name__ for behaviour in BEHAVIOURS)


@pytest.fixture
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    async with serving(request.param) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", FAKES, indirect=True)
async def test_behaviour(case: Case, name: str) -> None:
    if name not in case.lacks:
        await BEHAVIOURS[NAMES.index(name)](case)
    elif name in LACKING:
        await LACKING[name](case)


def test_every_kind_has_a_fake() -> None:
    assert {backend.kind for backend in BACKENDS} - {"openai"} == set(FAKES)


def test_lacks_name_behaviours() -> None:
    known = {*NAMES, "overflow_counts", "overflow_prompt"}
    assert {name for dialect in FAKES.values() for name in dialect.LACKS} <= known


def table() -> str:
    """The table backend x behaviour: yes, or no with its reason as a footnote."""
    notes: list[str] = []
    lines = ["| behaviour | " + " | ".join(FAKES) + " |", "|---|" + "---|" * len(FAKES)]
    for name in NAMES:
        cells = []
        for kind, dialect in FAKES.items():
            reason = dialect.LACKS.get(name)
            if reason is None:
                cells.append("yes")
                continue
            note = f"{kind}: {reason}"
            if note not in notes:
                notes.append(note)
            cells.append(f"no ({notes.index(note) + 1})")
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
