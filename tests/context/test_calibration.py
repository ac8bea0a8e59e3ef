from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random
from statistics import median

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.context.exact_counts import RECORDED, conversations
from turnout.context import calibration
from turnout.context.calibration import (
    RESIDUALS,
    SIZE,
    TEXTS,
    Calibration,
    from_json,
    observe,
    of_ratio,
    prior,
    to_json,
)
from turnout.context.tokens import get_token_counter, request_features
from turnout.types import Message, Tool, ToolCall, ToolResult, message

PROSE = "The router reads what you ask, and sends it to the model that does it best on this machine. "
CODE = "def add(left: int, right: int) -> int:\n    # both are small\n    return left + right * 10\n\n"
DATA = '{"id": 4711, "name": "turnout", "tags": ["llm", "local"], "size": 98362432, "ok": true}\n'
CHINESE = "路由器读取您的问题，然后把它发送给本机上最合适的模型。"
TEXTS_OF = {"prose": PROSE, "code": CODE, "json": DATA, "chinese": CHINESE}
TOOLS = (Tool("read", "Reads a file.", {"type": "object", "properties": {"path": {"type": "string"}}}),)
LIES = st.sampled_from([0, -5, 1, 7, 1e12, 10**400, math.nan, math.inf, -math.inf, True])


def requests(random: Random, number: int, kinds: tuple[str, ...] = tuple(TEXTS_OF)) -> list[tuple[float, ...]]:
    """The features of conversations, with tools and without."""
    made = []
    for _ in range(number):
        told: list[Message] = [message("system", PROSE)]
        for n in range(random.randrange(2, 12)):
            text = TEXTS_OF[random.choice(kinds)] * random.randrange(2, 40)
            if random.random() < 0.3:
                told.append(
                    Message("assistant", (ToolCall(f"c{n}", "read", '{"path": "src/a.py"}' * random.randrange(9)),))
                )
                told.append(Message("tool", (ToolResult(f"c{n}", text),)))
            else:
                told.append(message("user", text))
        made.append(request_features(told, TOOLS if random.random() < 0.5 else ()))
    return made


def model(scale: float = 1.0, **changed: float) -> Calibration:
    """A tokenizer as a calibration that knows it: a scale, and weights that differ from the start's."""
    names = (*calibration.TEXT_FEATURES, *calibration.REQUEST_FEATURES, *calibration.DROPPABLE)
    start = prior("other")
    weights = [w * scale if i < TEXTS else w for i, w in enumerate(start.weights)]
    for name, weight in changed.items():
        weights[names.index(name)] = weight
    return replace(start, weights=tuple(weights))


def taught(true: Calibration, asked: list[tuple[float, ...]], start: Calibration | None = None) -> Calibration:
    learned = start or prior("other")
    for features in asked:
        learned = observe(learned, features, round(true.expect(features)))
    return learned


def worst(learned: Calibration, true: Calibration, asked: list[tuple[float, ...]]) -> float:
    """The largest error, as a share of the count; of short requests, of 1000 tokens."""
    return max(abs(learned.expect(f) - true.expect(f)) / max(1000, true.expect(f)) for f in asked)


@pytest.mark.parametrize(
    "true",
    [
        model(),
        model(1.3),
        model(0.75),
        model(1.1, han=1.7, digit=1.0),
        model(call_text=0.0, tool_text=0.0, has_tools=0.0, call=0.0),
        model(message=9.0, tool_text=1.3, has_tools=160.0),
    ],
    ids=["as assumed", "more", "fewer", "another vocabulary", "tools are dropped", "a long template"],
)
def test_twenty_reports_tell_what_a_model_counts(true: Calibration) -> None:
    learned = taught(true, requests(Random(1), 20))
    assert (learned.observations, learned.ignored) == (20, 0)
    assert worst(learned, true, requests(Random(2), 50)) < 0.06
    assert learned.margin < calibration.MARGIN or worst(prior("other"), true, requests(Random(1), 20)) > 0.1


@given(st.lists(st.tuples(st.integers(0, 19), LIES), max_size=12), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_lies_change_nothing_but_their_number(lies: list[tuple[int, float]], seed: int) -> None:
    true, asked = model(1.2), requests(Random(seed), 20)
    honest = taught(true, asked)
    learned = prior("other")
    for n, features in enumerate(asked):
        for lie in [lie for place, lie in lies if place == n]:
            learned = observe(learned, features, lie)
        learned = observe(learned, features, round(true.expect(features)))
    assert (learned.observations, learned.ignored) == (20, len(lies))
    assert learned.weights == honest.weights


@pytest.mark.parametrize("factor", [3.0, 1.9, 0.4])
@pytest.mark.parametrize("place", [0, 5, 19])
def test_one_outlier_is_survived(factor: float, place: int) -> None:
    true, asked = model(1.1), requests(Random(3), 25)
    learned = prior("other")
    for n, features in enumerate(asked[:20]):
        learned = observe(learned, features, true.expect(features) * (factor if n == place else 1.0))
    assert worst(learned, true, requests(Random(4), 30)) < 0.08
    assert taught(true, requests(Random(18), 20), learned).margin == calibration.LEAST_MARGIN


def test_a_server_that_leaves_out_its_cache_is_not_believed() -> None:
    """Every other report has the whole prompt, the rest what was not in the cache."""
    true, asked, random = model(1.2), requests(Random(5), 60), Random(6)
    learned = prior("other")
    for n, features in enumerate(asked):
        learned = observe(learned, features, true.expect(features) * (random.uniform(0.02, 0.6) if n % 2 else 1.0))
    assert worst(learned, true, requests(Random(7), 30)) < 0.08
    assert learned.ignored >= 25


def test_reports_that_agree_are_believed_after_all() -> None:
    """The model behind a name was exchanged for one with another vocabulary."""
    learned = taught(model(), requests(Random(8), 60))
    other = model(1.8)
    first = taught(other, requests(Random(9), 3), learned)
    assert first.weights == learned.weights
    assert (first.ignored, len(first.doubted)) == (3, 3)
    assert worst(taught(other, requests(Random(10), 20), first), other, requests(Random(11), 30)) < 0.05


REPORTS = st.one_of(st.floats(), st.integers(), st.floats(1, 1e5), st.booleans())


@given(st.lists(st.tuples(st.integers(0, 9), REPORTS, st.floats(0.05, 5)), max_size=40))
@settings(max_examples=80, deadline=None)
def test_whatever_is_reported_weights_stay_sane(reports: list[tuple[int, float, float]]) -> None:
    asked, learned = requests(Random(12), 10), prior("qwen")
    start = learned
    for n, report, factor in reports:
        learned = observe(learned, asked[n], report)
        learned = observe(learned, asked[n], start.expect(asked[n]) * factor)
    assert all(map(math.isfinite, (*learned.weights, *(c for row in learned.covariance for c in row))))
    assert all(row[i] >= 0 for i, row in enumerate(learned.covariance))
    for features in asked:
        assert 0.15 * start.expect(features) < learned.expect(features) < 5 * start.expect(features)
    assert calibration.LEAST_MARGIN <= learned.margin <= calibration.MOST_MARGIN
    assert len(learned.residuals) <= RESIDUALS
    counter = get_token_counter("qwen", learned)
    for text in (PROSE, CHINESE, "x"):
        assert 1 <= counter.count(text) <= len(text.encode())


def test_a_calibration_survives_json() -> None:
    learned = taught(model(1.2), requests(Random(13), 12))
    read = from_json(json.loads(json.dumps(to_json(learned))), "some-model")
    assert (read.observations, read.ignored, read.doubted) == (12, 0, ())
    assert read.margin == pytest.approx(learned.margin, rel=1e-6)
    for features in requests(Random(14), 10):
        assert read.expect(features) == pytest.approx(learned.expect(features), rel=1e-5)
    more = requests(Random(15), 5)
    assert taught(model(1.2), more, read).weights == pytest.approx(taught(model(1.2), more, learned).weights, rel=1e-3)
    assert json.loads(json.dumps(to_json(read))) == to_json(read)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_anything_else_gives_the_start(value: object) -> None:
    assert from_json(value, "llama3") == prior("llama3")


@given(st.sampled_from(["weights", "covariance", "residuals", "family"]), JSON, st.integers(0, SIZE - 1), st.booleans())
def test_damage_gives_the_start(field: str, value: object, place: int, whole: bool) -> None:
    damaged = json.loads(json.dumps(to_json(taught(model(), requests(Random(16), 3)))))
    if whole or field == "family":
        damaged[field] = value
    elif field != "residuals":
        damaged[field][place] = math.nan
    else:
        damaged[field] = [0.0] * (RESIDUALS + 1)
    assume(field != "residuals" or not isinstance(value, list))
    assert from_json(damaged, "some-model") == prior("some-model")


def test_another_familys_calibration_is_not_taken() -> None:
    learned = taught(model(), requests(Random(17), 3))
    assert from_json(to_json(learned), "qwen3:8b") == prior("qwen3:8b")


def test_an_impossible_covariance_gives_the_start() -> None:
    damaged = to_json(prior("x"))
    triangle = damaged["covariance"]
    assert isinstance(triangle, list)
    triangle[1] = 1e6
    assert from_json(damaged, "x") == prior("x")


def test_the_margin_follows_what_was_seen() -> None:
    start = prior("x")
    assert start.margin == of_ratio(4.0).margin == calibration.MARGIN
    seen = replace(start, observations=20, residuals=(0.01, -0.2, 0.4, 0.02))
    assert seen.margin == pytest.approx(0.05)
    assert replace(seen, residuals=(0.1, -0.2, 0.4, 0.02)).margin == pytest.approx(0.15)
    assert replace(seen, residuals=(0.9, 0.8)).margin == calibration.MOST_MARGIN


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen3-8B", "qwen"),
        ("deepseek-r1-distill-qwen-7b", "qwen"),
        ("codellama", "llama"),
        ("mistral-nemo:12b", "mistral"),
        ("phi-4", "other"),
        ("", "other"),
    ],
)
def test_a_family_is_known_by_name(name: str, family: str) -> None:
    assert prior(name).family == family


@pytest.mark.parametrize(("name", "most_before"), [("smollm2", 0.06), ("nobody-knows", 0.5)])
def test_a_real_tokenizers_counts_are_met_after_twenty_reports(name: str, most_before: float) -> None:
    """SmolLM2, as its server counted; the texts that are measured are others than those that were learned from."""
    recorded = json.loads(RECORDED.read_text())
    texts, counts = recorded["texts"], recorded["counts"]
    observed, measured = ([request_features(told) for told in conversations(texts, half)] for half in (0, 1))
    learned = prior(name)

    def errors(known: Calibration) -> tuple[float, float]:
        found = sorted(abs(known.expect(f) / count - 1) for f, count in zip(measured, counts[1], strict=True))
        return median(found), found[int(0.95 * len(found))]

    assert errors(learned)[0] < most_before
    for features, count in zip(observed, counts[0], strict=True):
        learned = observe(learned, features, count)
    assert (learned.observations, learned.ignored) == (20, 0)
    middle, high = errors(learned)
    assert middle < 0.03
    assert high < 0.08
