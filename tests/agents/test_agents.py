"""Real agents, headless, through a real gateway to a scripted model: each does a task, and is checked by its effect."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.agents.coder import MODEL, TALK, Coder, cut_off, rows_of, silent, tools_of
from tests.agents.installed import AGENTS, TEXT, Agent, Place
from tests.agents.runs import LONGEST, Run, place_of, run
from tests.fakes.scripted import refusing

pytestmark = [pytest.mark.agents, pytest.mark.timeout(LONGEST * 2)]


@pytest.fixture(params=AGENTS, ids=lambda agent: agent.name)
def agent(request: pytest.FixtureRequest) -> Agent:
    one: Agent = request.param
    if one.missing:
        pytest.skip(one.missing)
    return one


async def test_the_task_is_done(agent: Agent, tmp_path: Path) -> None:
    """The first server is busy at the first step: the conversation begins at the second, and must stay there."""
    place = place_of(tmp_path)
    coder = Coder(agent, place, faults=(refusing(503, "no free slot"),))
    first, second = coder.server(), coder.server()
    seen = await run(agent, place, (first, second))
    assert (seen.code, seen.made) == (0, TEXT), seen.said
    assert {row["path"] for row in seen.requests} == {agent.path}
    assert {*seen.statuses} == {200}
    steps = coder.steps[1:]
    where = [server for server in (first, second) if any(step is body for step in steps for body in server.asked)]
    assert len(where) == 1
    assert {body["model"] for body in (*first.asked, *second.asked)} == {MODEL}
    _one_prefix(steps)
    _audited(seen, len(first.asked) + len(second.asked) - 1)
    assert agent.call is None or any(row["role"] == "tool" for row in rows_of(steps[-1]))


def _one_prefix(steps: list[dict[str, object]]) -> None:
    """A server can keep all that it has read: each step repeats the one before, and adds to its end."""
    assert "x-anthropic-billing" not in json.dumps(steps)
    for before, after in pairwise(steps):
        assert tools_of(after) == tools_of(before)
        assert rows_of(after)[: len(rows_of(before))] == rows_of(before)


def _audited(seen: Run, answers: int) -> None:
    """Every question is there, with what became of it, and none of its words."""
    ends = [row for row in seen.audit if row["phase"] == "end"]
    assert len(ends) == len(seen.requests) == answers
    assert {(row["success"], row["model"]) for row in ends} == {(True, MODEL)}
    assert {row["request_id"] for row in ends} == {row["request_id"] for row in seen.requests}
    assert "hello" not in json.dumps(seen.audit)
