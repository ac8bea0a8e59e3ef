"""Real agents, headless, through a real gateway to a scripted model: each does a task, and is checked by its effect."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.agents.coder import DONE_WORDS, MODEL, Coder, cut_off, rows_of, silent, tools_of
from tests.agents.installed import AGENTS, TEXT, Agent
from tests.agents.runs import LONGEST, SOON, Run, place_of, run
from tests.fakes.scripted import refusing
from turnout.cli.recipes import agent_called

pytestmark = [pytest.mark.agents, pytest.mark.timeout(LONGEST * 2)]

BUSY = refusing(503, "no free slot", headers="Retry-After: 1\r\n")
CUT = cut_off("I begin ")


@pytest.fixture(params=AGENTS, ids=lambda agent: agent.name)
def agent(request: pytest.FixtureRequest) -> Agent:
    one: Agent = request.param
    if one.missing:
        pytest.skip(one.missing)
    return one


async def test_the_task_is_done(agent: Agent, tmp_path: Path) -> None:
    """The first server is busy at the first step: the conversation begins at the second, and must stay there."""
    place = place_of(tmp_path)
    coder = Coder(agent, place, faults=(BUSY,))
    first, second = coder.server(), coder.server()
    seen = await run(agent, place, (first, second))
    assert (seen.code, seen.made) == (0, TEXT), seen.said
    assert {row["path"] for row in seen.requests} == {agent.path}
    assert {*seen.statuses} == {200}
    busy, *steps = coder.steps
    assert rows_of(busy) == rows_of(steps[0])
    places = [server for server in (first, second) if any(body is step for body in server.asked for step in steps)]
    assert len(places) == 1
    assert {body["model"] for body in (*first.asked, *second.asked)} == {MODEL}
    _one_prefix(steps)
    _audited(seen, len(first.asked) + len(second.asked) - 1)
    assert agent.call is None or any(row["role"] == "tool" for row in rows_of(steps[-1]))


async def test_an_agent_that_turnout_launches_does_the_task_and_is_named(agent: Agent, tmp_path: Path) -> None:
    place = place_of(tmp_path)
    coder = Coder(agent, place)
    seen = await run(agent, place, (coder.server(),), launched=True)
    assert (seen.code, seen.made) == (0, TEXT), seen.said
    assert {agent_called(str(row["agent"])).name for row in seen.requests} == {agent_called(agent.name).name}


def _one_prefix(steps: list[dict[str, object]]) -> None:
    """A server can keep all that it has read: each step repeats the one before, and adds to its end."""
    assert "x-anthropic-billing" not in json.dumps(steps)
    for before, after in pairwise(steps):
        assert tools_of(after) == tools_of(before)
        assert rows_of(after)[: len(rows_of(before))] == rows_of(before)
    for step in steps:
        assert [row["role"] for row in rows_of(step)].count("system") == 1


def _audited(seen: Run, answers: int) -> None:
    """Every question is there, with what became of it, and none of its words."""
    ends = [row for row in seen.audit if row["phase"] == "end"]
    assert len(ends) == len(seen.requests) == answers
    assert {(row["success"], row["model"]) for row in ends} == {(True, MODEL)}
    assert all(row["tokens_in"] and row["tokens_out"] for row in ends)
    assert {row["request_id"] for row in ends} == {row["request_id"] for row in seen.requests}
    assert "hello" not in json.dumps(seen.audit)


async def test_a_window_that_is_too_small_is_told_at_once(agent: Agent, tmp_path: Path) -> None:
    """Its server is not asked; the agent says why it stops, and does not go on asking."""
    place = place_of(tmp_path)
    coder = Coder(agent, place)
    seen = await run(agent, place, (coder.server(window=600),))
    assert seen.code is not None, seen.said
    assert coder.steps == []
    assert 400 in seen.statuses
    assert len(seen.requests) <= 6
    assert agent.too_long in seen.said.lower()


@pytest.mark.parametrize("agent", [a for a in AGENTS if a.call is not None], indirect=True, ids=lambda a: a.name)
async def test_a_conversation_that_outgrows_the_window_is_compacted_or_ends(agent: Agent, tmp_path: Path) -> None:
    """The server's window is smaller than it says: from its first refusal on it is known, and told."""
    place = place_of(tmp_path)
    coder = Coder(agent, place, room=8_000)
    seen = await run(agent, place, (coder.server(),))
    assert seen.code is not None, seen.said
    assert seen.made == TEXT
    assert coder.refused >= 1
    assert {*seen.statuses} == {200, 400}
    assert len(seen.requests) <= 8
    assert (DONE_WORDS in seen.said) is agent.compacts
    assert agent.compacts or agent.too_long in seen.said.lower() or "still exceeds" in seen.said


async def test_a_busy_server_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    """Busy for longer than the gateway waits: the agent gets 503 with Retry-After, and asks again."""
    place = place_of(tmp_path)
    coder = Coder(agent, place, faults=(BUSY,) * 6)
    seen = await run(agent, place, (coder.server(),), patience=30)
    assert (seen.code, seen.made) == (0, TEXT), seen.said
    assert seen.statuses.count(503) == 1
    assert len(coder.steps) == len(coder.faults) + (1 if agent.call is None else 2)


async def test_what_fails_after_the_status_is_asked_for_again_or_said(agent: Agent, tmp_path: Path) -> None:
    """As above, but the gateway's patience has ended before: the failure is an error in the stream."""
    place = place_of(tmp_path)
    coder = Coder(agent, place, faults=(BUSY,) * 6)
    seen = await run(agent, place, (coder.server(),), patience=SOON)
    assert {*seen.statuses} == {200}
    _resumed_or_said(agent, seen, "is busy")


async def test_a_stream_that_breaks_off_is_asked_for_again_or_said(agent: Agent, tmp_path: Path) -> None:
    place = place_of(tmp_path)
    coder = Coder(agent, place, faults=(CUT,))
    seen = await run(agent, place, (coder.server(),))
    assert [row["error"] for row in seen.audit if row["error"]] == ["stream_broken"]
    _resumed_or_said(agent, seen, "cut the connection")


def _resumed_or_said(agent: Agent, seen: Run, words: str) -> None:
    assert seen.code == (0 if agent.resumes else 1), seen.said
    assert seen.made == (TEXT if agent.resumes else None)
    assert agent.resumes or words in seen.said


async def test_streams_that_always_break_off_are_not_asked_for_without_end(agent: Agent, tmp_path: Path) -> None:
    """Most wait longer from time to time, and would end after minutes: that they slow down is seen sooner."""
    place = place_of(tmp_path)
    coder = Coder(agent, place, faults=(CUT,) * 1000)
    seen = await run(agent, place, (coder.server(),), longest=15)
    assert not seen.made
    assert len(coder.steps) <= 10


async def test_a_model_that_loads_slowly_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    """The silence is longer than the agent bears, who is told to bear little: signs of life keep it waiting."""
    place = place_of(tmp_path, patience=agent.patience)
    coder = Coder(agent, place)
    coder.faults = (silent(2.5 * (agent.patience or 3), coder.work),)
    seen = await run(agent, place, (coder.server(),))
    assert (seen.code, seen.made) == (0, TEXT), seen.said
    assert len(coder.steps) == (1 if agent.call is None else 2)
    assert {*seen.statuses} == {200}
