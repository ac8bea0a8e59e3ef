"""When a conversation stays and when it may go."""

from __future__ import annotations

import pytest

from turnout.routing.affinity import HELD, SLOW_ANSWERS, WORTH_MOVING, Affinity, in_tool_loop, key_of
from turnout.routing.fallback import Ranked
from turnout.types import (
    Candidate,
    ChatRequest,
    Endpoint,
    FallbackLevel,
    Message,
    Model,
    TaskCategory,
    Tool,
    ToolResult,
    message,
)

CODING = TaskCategory.CODING


def ranked(name: str, score: float, model: str = "m") -> Ranked:
    endpoint = Endpoint(name, "openai", f"http://{name}")
    candidate = Candidate(endpoint, Model(model), "", 8192, "known", {CODING: score})
    return Ranked(candidate, FallbackLevel.PRIMARY, "")


A, B = ranked("a", 60.0), ranked("b", 60.0 - WORTH_MOVING / 2)
FAR = ranked("c", 10.0, "other")
KEY = b"k"


def order(affinity: Affinity, *candidates: Ranked, in_loop: bool = False) -> str:
    def worth(it: Ranked) -> float:
        return it.candidate.scores[CODING]

    return affinity.order(KEY, candidates, worth, in_loop=in_loop)[0].candidate.endpoint.name


def at(place: Ranked, clock: list[float] | None = None) -> Affinity:
    affinity = Affinity(lambda: clock[0]) if clock is not None else Affinity()
    affinity.answered(KEY, place.candidate, 1.0, 1.0)
    return affinity


def test_it_stays_unless_another_is_much_better() -> None:
    assert order(at(B), A, B) == "b"
    assert order(at(FAR), A, FAR) == "a"
    assert order(at(FAR), A, FAR, in_loop=True) == "c", "never inside a tool loop"


def test_inside_a_loop_another_server_may_go_on_with_the_same_model() -> None:
    assert order(at(ranked("d", 10.0)), A, ranked("d", 10.0), in_loop=True) == "a"


def test_what_a_server_has_of_a_conversation_and_what_another_one_would_lose() -> None:
    clock = [0.0]
    affinity = Affinity(lambda: clock[0])
    for key in (b"one", b"two", b"three"):
        clock[0] += 10.0
        affinity.answered(key, A.candidate, 1.0, 1.0, 4000)
    assert affinity.cached(b"three", A.candidate, 2) == 4000
    assert affinity.cached(b"one", A.candidate, 2) == 0, "two came since, and there are two slots"
    assert affinity.cached(b"one", A.candidate, 0) == 4000, "it has pages for many"
    assert affinity.cached(b"three", B.candidate, 2) == 0
    assert affinity.lost(b"new", A.candidate, 2) > 3 * 4000, "most likely a loop, which comes back at every step"
    assert affinity.lost(b"two", A.candidate, 2) == 0.0, "it has its slot"
    assert affinity.lost(b"new", A.candidate, 4) == 0.0, "one is free"
    assert affinity.needed(A.candidate.endpoint.url, "m") == 1.0
    clock[0] += 80.0
    assert affinity.lost(b"new", A.candidate, 2) == pytest.approx(4000, rel=0.2), "it comes back once, at a turn"
    clock[0] += 7120.0
    assert affinity.needed(A.candidate.endpoint.url, "m") < 0.001
    assert affinity.lost(b"new", A.candidate, 2) < 1.0


def test_one_that_is_no_candidate_any_more_is_left() -> None:
    assert order(at(B), A) == "a"


def test_a_cache_is_gone_after_an_hour() -> None:
    clock = [0.0]
    affinity = at(B, clock)
    clock[0] = HELD + 1
    assert order(affinity, A, B) == "a"


def test_a_server_that_has_become_slow_is_left_and_one_slow_answer_is_forgiven() -> None:
    affinity = at(B)
    affinity.answered(KEY, B.candidate, 60.0, 1.0)
    assert order(affinity, A, B) == "b"
    for _ in range(SLOW_ANSWERS):
        affinity.answered(KEY, B.candidate, 60.0, 1.0)
    assert order(affinity, A, B) == "a"
    affinity.answered(KEY, B.candidate, 1.0, 1.0)
    assert order(affinity, A, B) == "b"


def test_a_conversation_is_known_by_its_name_else_by_its_beginning() -> None:
    request = ChatRequest((message("user", "hi"),))
    named = ChatRequest((message("user", "hi"),), conversation="ses")
    tools = ChatRequest((message("user", "hi"),), conversation="ses", tools=(Tool("ls"),))
    assert key_of(named, "t", b"") == key_of(ChatRequest((message("user", "other"),), conversation="ses"), "t", b"")
    assert len({key_of(named, "t", b""), key_of(named, "u", b""), key_of(tools, "t", b"")}) == 3
    assert key_of(request, "t", b"x") != key_of(request, "t", b"y")


def test_a_tools_result_is_inside_a_loop() -> None:
    assert in_tool_loop(ChatRequest((message("user", "hi"), Message("tool", (ToolResult("c", "ok"),)))))
    assert not in_tool_loop(ChatRequest((message("user", "hi"),)))
