"""Every backend through the same list of behaviours, against its fake.

``python -m tests.backends.test_conformance > docs/services.md`` makes the page anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.behaviours import BEHAVIOURS, LACKING, Case, kind_of, serving
from tests.fakes import FAKES
from turnout.backends import BACKENDS

NAMES = tuple(behaviour.__name__ for behaviour in BEHAVIOURS)


@pytest.fixture
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    async with serving(request.param) as made:
        yield made


@pytest.mark.parametrize(
    ("case", "name"),
    [(kind, name) for kind, fake in FAKES.items() for name in NAMES if name not in fake.LACKS or name in LACKING],
    indirect=["case"],
)
async def test_behaviour(case: Case, name: str) -> None:
    behave = LACKING[name] if name in case.lacks else BEHAVIOURS[NAMES.index(name)]
    await behave(case)


def test_every_kind_has_a_fake() -> None:
    assert {backend.kind for backend in BACKENDS} == set(map(kind_of, FAKES))


def test_lacks_name_behaviours() -> None:
    known = {*NAMES, "overflow_counts", "overflow_prompt"}
    assert {name for dialect in FAKES.values() for name in dialect.LACKS} <= known


HEAD = """\
# What each kind of server can do

Made by `python -m tests.backends.test_conformance`; a test compares the two. Every kind goes through the same list of
behaviours (`tests/backends/behaviours.py`) against a fake that is faithful to what is known of it, and the kinds that
can be had also for real (`tests/backends/test_real_servers.py`: llama.cpp, MLX-LM, Ollama, vLLM, and dasllama for the
bare protocol). *yes*: the suite shows it. A number: the server does not offer it, for the reason below; where Turnout
can be asked for it all the same, the suite shows that it says so instead of guessing. How a server is recognised and
what else is known of it stands in its file in `src/turnout/backends/`.

"""


def page() -> str:
    """docs/services.md: kind by behaviour, with the reason of every lack."""
    notes: list[str] = []
    lines = ["| behaviour | " + " | ".join(FAKES) + " |", "|---|" + "---|" * len(FAKES)]
    for name in NAMES:
        cells = []
        for dialect in FAKES.values():
            reason = dialect.LACKS.get(name)
            if reason is not None and reason not in notes:
                notes.append(reason)
            cells.append("yes" if reason is None else str(notes.index(reason) + 1))
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return HEAD + "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]) + "\n"


def test_the_page_is_up_to_date() -> None:
    file = Path(__file__).parents[2] / "docs" / "services.md"
    assert file.read_text("utf-8") == page(), "run `python -m tests.backends.test_conformance > docs/services.md`"


if __name__ == "__main__":
    print(page(), end="")
