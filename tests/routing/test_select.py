"""The choice among candidates: what holds for every fleet and request, and what may not be remembered."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.config import RouterConfig
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.routing.capabilities import load_table
from turnout.routing.select import LONGEST_NAME, Needs, Selector, candidates, select
from turnout.routing.simulate import Kind, decide, make_fleet, make_query, obstacle
from turnout.types import Candidate, Endpoint, Health, Model, Principal, TaskCategory

TABLE = load_table()
IDS = (*TABLE.ids, "our-own-70b", "house-7b-q4_0", "qwen9:8b", "nomic-embed-text", "bge-m3")
WINDOWS = (2048, 8192, 32_768, 131_072)
CAPABILITIES = st.sampled_from(
    [frozenset[str](), frozenset({"chat"}), frozenset({"chat", "tools"}), frozenset({"chat", "tools", "vision"})]
)
MODELS = st.builds(
    Model,
    st.sampled_from(IDS),
    window=st.sampled_from(WINDOWS),
    resident=st.sampled_from([None, True, False]),
    capabilities=CAPABILITIES,
)
NEEDS = st.builds(
    Needs,
    st.sampled_from(TaskCategory),
    st.just(""),
    st.integers(1, 40_000),
    st.sampled_from([frozenset[str](), frozenset({"tools"}), frozenset({"vision"})]),
    answer=st.sampled_from([0, 1024, 4096]),
)
SERVERS = st.lists(st.tuples(st.integers(1, 20), st.lists(MODELS, min_size=1, max_size=3)), min_size=1, max_size=4)
Servers = list[tuple[int, list[Model]]]


def pool_of(servers: Servers) -> tuple[Candidate, ...]:
    statuses = [
        EndpointStatus(
            Endpoint(f"box{n}", "openai", f"http://10.0.0.{n}:1", priority=priority),
            Health.ONLINE,
            "",
            0.0,
            models=tuple(models),
        )
        for n, (priority, models) in enumerate(servers)
    ]
    return candidates(Catalog(tuple(statuses)), TABLE)


def first(pool: tuple[Candidate, ...], needs: Needs) -> Candidate | None:
    ranked = select(pool, needs, RouterConfig(), TABLE).ranked
    return ranked[0].candidate if ranked else None


@given(SERVERS, NEEDS, st.randoms(use_true_random=False))
def test_the_same_fleet_gives_the_same_choice_in_any_order(servers: Servers, needs: Needs, random: Random) -> None:
    pool = pool_of(servers)
    chosen = first(pool, needs)
    assert first(pool, needs) == chosen
    shuffled = list(pool)
    random.shuffle(shuffled)
    other = first(tuple(shuffled), needs)
    assert (other and other.label) == (chosen and chosen.label)


@given(SERVERS, NEEDS)
def test_who_lacks_what_is_needed_is_never_ranked(servers: Servers, needs: Needs) -> None:
    for ranked in select(pool_of(servers), needs, RouterConfig(), TABLE).ranked:
        candidate = ranked.candidate
        assert candidate.window >= needs.tokens + min(needs.answer, candidate.window // 2)
        assert not candidate.model.capabilities or needs.capabilities <= candidate.model.capabilities
        assert "embed" not in candidate.model.id
        assert candidate.model.id != "bge-m3"


@given(SERVERS, NEEDS)
def test_whoever_fits_is_ranked(servers: Servers, needs: Needs) -> None:
    pool = pool_of(servers)
    fits = [
        c
        for c in pool
        if c.window >= needs.tokens + min(needs.answer, c.window // 2)
        and (not c.model.capabilities or needs.capabilities <= c.model.capabilities)
        and TABLE.rate(c.model).source[:8] != "made for"
    ]
    assert len(select(pool, needs, RouterConfig(), TABLE).ranked) == len(fits)


@given(SERVERS, NEEDS, MODELS, st.integers(1, 20))
def test_one_candidate_more_never_makes_the_choice_worse(
    servers: Servers, needs: Needs, more: Model, priority: int
) -> None:
    """Nor does it change it, unless it is itself chosen."""
    before = first(pool_of(servers), needs)
    after = first(pool_of([*servers, (priority, [more])]), needs)
    if before is None or after is None:
        assert before is None
        return
    category = needs.category
    assert category is not None
    assert after.scores[category] >= before.scores[category]
    assert after.label == before.label or after.endpoint.name == f"box{len(servers)}"


@given(SERVERS, NEEDS)
def test_one_that_is_better_and_fits_is_chosen(servers: Servers, needs: Needs) -> None:
    pool, category = pool_of(servers), needs.category
    assert category is not None
    best = max(c.scores[category] for c in pool)
    better = replace(
        pool[0],
        model=Model("better", window=131_072),
        endpoint=Endpoint("better", "openai", "http://10.0.9.9:1", priority=99),
        window=131_072,
        scores=dict.fromkeys(TaskCategory, best + 0.1),
    )
    chosen = first((*pool, better), needs)
    assert chosen is not None
    assert chosen.model.id == "better"


@settings(max_examples=50)
@given(st.integers(0, 10**9))
def test_simulated_fleets_with_servers_down_shut_or_leading_away(seed: int) -> None:
    """The whole of health, isolation, memory, window and capabilities, judged apart from the selection."""
    kinds = [
        Kind(name, name, row.params, row.active, row.window, row.scores)
        for name in TABLE.ids
        if (row := TABLE.get(name)) and "chat" in (row.capabilities or {"chat"})
    ]
    random = Random(seed)
    fleet = make_fleet(random, kinds)
    queries = [make_query(random, category) for category in TaskCategory]
    for decision in decide(fleet, queries, TABLE):
        assert decision.broken == ""
        assert decision.best is None or decision.chosen == decision.best
        assert not decision.moved or decision.chosen is None or decision.best is None
    everyone = candidates(Catalog(fleet.statuses), TABLE)
    away = {s.endpoint.name for s in fleet.statuses if s.health is Health.OFFLINE or s.unused}
    assert not away & {c.endpoint.name for c in everyone}
    assert all(obstacle(fleet, c, queries[0]) == "health" for c in everyone if c.endpoint.name in fleet.shut)


def test_a_name_as_large_as_a_body_is_not_remembered() -> None:
    selector = Selector(RouterConfig(), load_table(), frozenset)
    for name in ("nobody-has-this", "x" * (LONGEST_NAME + 1)):
        assert selector.meant(name, Catalog(), Principal()) == ()
    assert list(selector._meant) == ["nobody-has-this"]
