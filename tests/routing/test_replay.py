"""What another policy would have chosen: by hand, by the router's own code, and of decisions that really were made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.base import running
from tests.fakes.llm import openai_app
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.config import RouterConfig, TaskRouting, data_dir
from turnout.fleet.decisions import Decision, Option, Outcome, decisions_path, files_of, read
from turnout.routing.capabilities import load_table
from turnout.routing.replay import Policy, again, replay, under
from turnout.types import ChatRequest, TaskCategory, message

TABLE, CONFIG = load_table(), RouterConfig()
POLICIES: Sequence[Policy] = ("best", "balanced", "fast", "lists")
GOOD = Option(
    "qwen2.5-72b-instruct", "big", "qwen2.5-72b-instruct", 90.0, priced=True, load=10.0, prefill=2.0, decode=20.0
)
QUICK = Option("llama3.1:8b", "small", "llama-3.1-8b-instruct", 80.0, level=1, priced=True, prefill=0.5, decode=2.0)
POOR = Option("gemma2:2b", "small", "gemma-2-2b", 40.0, level=1, priced=True, prefill=0.1, decode=1.0)
ONE = Decision(
    at=1_780_000_000.0,
    id="a" * 32,
    who="local",
    policy="best",
    category="coding",
    options=(GOOD, QUICK, POOR),
    chosen=0,
    outcome=Outcome(first=20.0, total=64.0),
)


def pick(policy: Policy, decision: Decision = ONE, config: RouterConfig = CONFIG) -> Option:
    return again(decision, under(policy, config), TABLE)


def changed(**fields: object) -> Decision:
    return msgspec.structs.replace(ONE, **fields)


def test_the_figures_are_those_made_by_hand() -> None:
    log = [
        ONE,
        None,
        changed(category="", policy="exact"),
        changed(options=(GOOD,)),
        changed(outcome=Outcome(error="x")),
    ]
    found = replay(log, "balanced", CONFIG, TABLE)
    assert (found.decisions, found.damaged, found.exact, found.alone, found.replayed, found.priced) == (
        4,
        1,
        1,
        1,
        2,
        2,
    )
    assert (found.differ, found.other_model) == (2, 2)
    assert found.logged is not None
    assert found.policy is not None
    assert (found.logged.seconds, found.logged.first, found.logged.score) == (32.0, 12.0, 90.0)
    assert (found.policy.seconds, found.policy.first, found.policy.score) == (2.5, 0.5, 80.0)
    assert (found.observed, found.expected, found.ratio) == (64.0, 32.0, 2.0), "of the one that was answered"
    same = replay(log, "best", CONFIG, TABLE)
    assert (same.differ, same.logged) == (0, same.policy)


def test_of_nothing_nothing_is_said() -> None:
    found = replay([], "best", CONFIG, TABLE)
    assert (found.decisions, found.logged, found.policy, found.observed, found.ratio) == (0, None, None, None, None)


def test_each_policy_chooses_in_its_own_way() -> None:
    assert (pick("best"), pick("balanced"), pick("fast")) == (GOOD, QUICK, QUICK)
    near = msgspec.structs.replace(GOOD, load=0.0, decode=3.0)
    assert pick("balanced", changed(options=(near, QUICK))) is near
    assert pick("fast", changed(options=(near, QUICK), difficulty=0.0)) is QUICK


def test_lists_are_those_of_the_configuration_and_only_for_lists() -> None:
    config = RouterConfig(
        task_routing={TaskCategory.CODING: TaskRouting(primary_models=("gemma-2-2b",), min_context=1)}
    )
    roomy = changed(options=tuple(msgspec.structs.replace(o, window=32_768) for o in ONE.options))
    assert pick("lists", roomy, config).model == POOR.model
    assert pick("best", roomy, config).model == GOOD.model


def test_what_the_agent_prefers_and_health_and_priority_count_as_they_did() -> None:
    assert pick("best", changed(prefer="gemma-2-2b")) is POOR
    doubtful = msgspec.structs.replace(QUICK, doubt=1)
    assert pick("balanced", changed(options=(GOOD, doubtful))) is GOOD
    twin = msgspec.structs.replace(QUICK, at="other", priority=3)
    assert pick("balanced", changed(options=(twin, QUICK))) is QUICK


def test_one_that_was_too_small_is_chosen_only_where_all_were() -> None:
    small = msgspec.structs.replace(GOOD, level=2)
    assert pick("best", changed(options=(QUICK, small))) is QUICK
    assert pick("best", changed(options=(small,))) is small


seconds = st.floats(0, 1e9)
options = st.builds(
    Option,
    model=st.sampled_from(["llama3.1:8b", "gemma2:2b", "made-up", "qwen2.5-coder:7b"]),
    at=st.sampled_from(["a", "b", "c"]),
    name=st.sampled_from(["", "llama-3.1-8b-instruct", "gemma-2-2b"]),
    score=st.floats(0, 100),
    bonus=st.just(0.0),
    level=st.integers(0, 2),
    window=st.integers(0, 10**6),
    priority=st.integers(0, 1000),
    resident=st.none() | st.booleans(),
    doubt=st.integers(0, 2),
    priced=st.booleans(),
    queue=seconds,
    load=seconds,
    prefill=seconds,
    decode=seconds,
    harm=seconds,
)


@given(st.lists(options, min_size=2, max_size=6), st.sampled_from(POLICIES), st.sampled_from(list(TaskCategory)))
def test_a_policy_always_chooses_one_that_was_there_and_the_same_again(
    found: list[Option], policy: Policy, category: TaskCategory
) -> None:
    decision = changed(options=tuple(found), category=category.value)
    chosen = pick(policy, decision)
    assert chosen in found
    assert pick(policy, decision) == chosen
    if policy == "best" and (fitting := [o for o in found if o.level < 2]):
        assert chosen.score == max(o.score for o in fitting)


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_policy_that_was_in_effect_would_do_it_again(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question begins a conversation of its own, so that nothing but the policy decides."""
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    fleets = (("qwen2.5-coder:7b", "llama3.1:8b"), ("gemma2:9b", "llama3.1:8b", "qwen2.5:72b"), ("made-up-3b",))
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running(openai_app(models))) for models in fleets]
        custom = [{"name": f"s{n}", "endpoint": url, "priority": n} for n, url in enumerate(urls)]
        given = {"custom_endpoints": custom, "discovery": {"enabled": False}, "routing": {"policy": policy}}
        router = await stack.enter_async_context(open_router(load_any(given)))
        for number in range(12):
            await collect(router.route(ChatRequest((message("user", f"Write number {number} as a word"),))))
        router.journal.save()
        log = list(read(files_of(decisions_path(data_dir()))))
        found = replay(log, policy, load_any(given).config, TABLE)
    assert (found.decisions, found.replayed, found.priced, found.differ) == (12, 12, 12, 0)
    assert found.logged == found.policy
