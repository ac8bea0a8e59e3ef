from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.context import calibration, tokens
from turnout.context.calibration import (
    DROPPABLE,
    FAMILY_RATIOS,
    OTHER_RATIO,
    REFERENCE,
    REQUEST_FEATURES,
    REQUEST_WEIGHTS,
    TEXT_FEATURES,
    TEXT_WEIGHTS,
)
from turnout.context.tokens import TokenCounter, features, get_token_counter, request_features
from turnout.types import Image, Message, Part, Reasoning, Text, Tool, ToolCall, ToolResult, message

# Surrogates too: a model's tool arguments may hold half of a pair.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=300)
PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, TEXTS),
    st.builds(Reasoning, TEXTS),
    st.builds(ToolCall, st.just("c"), st.text(max_size=20), TEXTS),
    st.builds(ToolResult, st.just("c"), TEXTS),
    st.just(Image("image/png", "AAAA")),
)
MESSAGES = st.lists(st.builds(lambda parts: Message("user", tuple(parts)), st.lists(PARTS, max_size=4)), max_size=6)
TOKENS = dict(zip(REQUEST_FEATURES, REQUEST_WEIGHTS, strict=True))
COUNTERS = st.sampled_from(["qwen2.5-coder:7b", "llama3.1:8b", "mistral"]).map(get_token_counter)


@pytest.mark.parametrize(
    ("model", "ratio"),
    [
        ("Qwen/Qwen2.5-Coder-32B-Instruct", 3.5),
        ("llama3.1:8b", 3.8),
        ("codellama-34b", 3.8),
        ("mistral-nemo", 4.0),
        ("", 4.0),
    ],
)
def test_each_family_has_its_start_value(model: str, ratio: float) -> None:
    assert get_token_counter(model).ratio == ratio
    assert get_token_counter(model) is get_token_counter(model)


@pytest.mark.parametrize("family", TEXT_WEIGHTS)
def test_plain_prose_costs_the_start_value(family: str) -> None:
    ratio = FAMILY_RATIOS.get(family, OTHER_RATIO)
    per_character = sum(w * n for w, n in zip(TEXT_WEIGHTS[family], REFERENCE, strict=True))
    assert 1 / per_character == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("def add(a, b):\n    return a + b\n", 7, 10),
        ("修复登录页面的错误", 9, 14),
        ("로그인 오류를 수정해 주세요", 12, 18),
        ("Исправь ошибку в функции", 10, 14),
        ("Größe ändern für alle Fälle", 6, 10),
        ("🎉🎉🎉", 3, 9),
        (" ", 1, 1),
    ],
)
def test_other_scripts_are_counted_as_they_cost(text: str, least: int, most: int) -> None:
    assert least <= TokenCounter(4.0).count(text) <= most


@given(TEXTS, COUNTERS)
def test_a_text_has_at_least_a_token_and_at_most_its_bytes(text: str, counter: TokenCounter) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    assert (1 if text else 0) <= counter.count(text) <= size


@given(MESSAGES, COUNTERS)
def test_messages_are_counted_one_by_one(messages: list[Message], counter: TokenCounter) -> None:
    assert counter.count_messages(messages) == sum(map(counter.count_message, messages))


def test_messages_carry_the_template_and_images_a_fixed_cost() -> None:
    counter = TokenCounter(4.0)
    assert counter.count_message(Message("assistant", ())) == TOKENS["message"]
    assert counter.count_message(message("user", "x" * 40)) == TOKENS["message"] + 10
    small, large = Image("image/png", "A"), Image("image/png", "A" * 90_000)
    for image in (small, large):
        assert counter.count_message(Message("user", (image,))) == TOKENS["message"] + TOKENS["image"]


def test_tools_are_counted_with_their_schema() -> None:
    counter = TokenCounter(4.0)
    bare = counter.count_tools([Tool("read")])
    full = counter.count_tools([Tool("read", "Reads a file.", {"type": "object", "properties": {"path": {}}})])
    assert full > bare > 0
    assert counter.count_tools([]) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("the end", {"lower": 6, "space": 1, "lower_run": 2, "space_run": 1, "unspaced": 1}),
        ("if x:\n\t\ty = 10\n    \n", {
            "lower": 4, "digit": 2, "punctuation": 2, "space": 7, "newline": 3, "tab": 2, "rare": 2, "lower_run": 3,
            "digit_run": 1, "punctuation_run": 2, "space_run": 4, "spaces": 1, "unspaced": 2, "space_digit": 1,
            "line_tab": 1,
        }),
        ("aB) (CdE) 7F\n", {
            "lower": 2, "upper": 4, "digit": 1, "punctuation": 3, "space": 2, "newline": 1, "lower_run": 2,
            "digit_run": 1, "punctuation_run": 3, "space_run": 2, "unspaced": 3, "space_digit": 1, "letter_line": 1,
            "letter_closing": 2, "lower_upper": 2, "upper_punctuation": 2,
        }),
        ("'x'\ny='", {
            "lower": 2, "punctuation": 4, "newline": 1, "rare": 2, "lower_run": 2, "punctuation_run": 3, "unspaced": 2,
            "line_lower": 1, "letter_quote": 1,
        }),
        ("\n\t}a=b", {
            "lower": 2, "punctuation": 2, "newline": 1, "tab": 1, "lower_run": 2, "punctuation_run": 2, "unspaced": 2,
            "line_tab": 1, "tab_punctuation": 1, "operator_letter": 1,
        }),
        ("--\n;=;=;", {
            "punctuation": 7, "newline": 1, "punctuation_run": 2, "line_punctuation": 1, "mixed_punctuation": 3,
        }),
        ("----", {"punctuation": 4, "punctuation_run": 1}),
        ("tttttt", {"lower": 6, "lower_run": 1, "unspaced": 1}),
        ("bcdfgh", {"lower": 6, "lower_run": 1, "unspaced": 1, "consonants": 2}),
        ("é“汉ñ😀", {"latin": 2, "symbol": 1, "han": 1, "emoji": 1, "wide_run": 2}),
        ("жא©क", {"cyrillic": 1, "arabic": 1, "symbol": 1, "indic": 1, "wide_run": 1}),
        ("かな한", {"kana": 2, "hangul": 1, "wide_run": 1}),
        ("é" + "\n" * 40 + "a" * 30, {
            "lower": 30, "newline": 40, "lower_run": 1, "unspaced": 1, "line_lower": 1, "latin": 1, "near_latin": 23
        }),
        ("\ud800", {"hangul": 1, "wide_run": 1}),
    ],
)  # fmt: skip
def test_features_are_counts(text: str, expected: dict[str, int]) -> None:
    found = dict(zip(TEXT_FEATURES, features(text), strict=True))
    assert {name: n for name, n in found.items() if n} == expected


# What a seam may change: neighbours, runs that become one, five consonants, letters near one from the other side.
SEAMS = {"consonants": (0, 4), "mixed_punctuation": (0, 2), "near_latin": (0, 126)}


@given(TEXTS, TEXTS)
def test_features_add_up_but_for_the_seam(left: str, right: str) -> None:
    parts = zip(TEXT_FEATURES, features(left + right), features(left), features(right), strict=True)
    seams = {name: whole - a - b for name, whole, a, b in parts}
    for name in (*TEXT_FEATURES[: calibration.CHARACTERS], "rare", "han", "emoji"):
        assert seams.pop(name) == 0
    for name, seam in seams.items():
        least, most = SEAMS.get(name, (-1, 1))
        assert least <= seam <= most, name


def test_long_texts_are_remembered_by_their_hash_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED", 3)
    monkeypatch.setattr(tokens, "_cache", {})
    texts = [f"{n} " * 400 for n in range(5)]
    first = [features(text) for text in texts]
    assert [features(text) for text in texts] == first
    assert list(tokens._cache) == [(hash(text), len(text)) for text in texts[2:]]
    features(texts[2])
    assert next(iter(tokens._cache))[0] == hash(texts[3]), "the one that was not asked for longest goes first"


def test_a_counter_remembers_its_counts_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED", 3)
    counter = TokenCounter(4.0)
    texts = [f"{n} " * (n + 1) * 10 for n in range(8)]
    first = [counter.count(text) for text in texts]
    assert [counter.count(text) for text in texts] == first == [round(len(t) / 4) for t in texts]
    assert len(counter._known) <= 3


CONVERSATION = (
    message("system", "You help with code."),
    message("user", "What does main.py do?"),
    Message("assistant", (Reasoning("I must read it."), ToolCall("c", "read_file", '{"path": "main.py"}'))),
    Message("tool", (ToolResult("c", "print(1)\n"),)),
    message("assistant", "It prints 1."),
)
TOOLS = (Tool("read_file", "Reads a file.", {"type": "object", "properties": {"path": {"type": "string"}}}),)


@given(MESSAGES, st.sampled_from([(), TOOLS]))
def test_a_request_costs_what_its_features_weigh(messages: list[Message], tools: tuple[Tool, ...]) -> None:
    weighed = calibration.prior("qwen").expect(request_features(messages, tools))
    counted = get_token_counter("qwen").count_request(messages, tools)
    texts = sum(len(m.parts) for m in messages) * 2 + 5
    # Rounded for each text, at least one token, at most its bytes.
    assert abs(counted - weighed) <= texts + 0.6 * sum(len(str(m).encode("utf-8", "replace")) for m in messages)
    assert (messages != [] or weighed) or counted == round(weighed)


def test_the_features_of_a_request_name_its_parts() -> None:
    measured = request_features(CONVERSATION, TOOLS)
    found = dict(zip(REQUEST_FEATURES, measured[-len(REQUEST_FEATURES) :], strict=True))
    assert found == {
        "message": 5, "call": 1, "result": 1, "tool": 1, "image": 0, "request": 1, "no_system": 0, "has_tools": 1
    }  # fmt: skip
    kinds = [measured[n * len(TEXT_FEATURES) :][: len(TEXT_FEATURES)] for n in range(1 + len(DROPPABLE))]
    assert kinds[1] == tuple(map(sum, zip(features("read_file"), features('{"path": "main.py"}'), strict=True)))
    assert kinds[3] == features("I must read it.")
    bare = request_features([message("user", "x")])
    assert bare == (*features("x"), *[0] * 3 * len(TEXT_FEATURES), 1, 0, 0, 0, 0, 1, 1, 0)


def test_a_counter_counts_by_what_was_learned() -> None:
    learned = calibration.prior("other")
    for _ in range(10):
        learned = calibration.observe(learned, request_features(CONVERSATION, TOOLS), 180)
    counter = get_token_counter("other", learned)
    assert abs(counter.count_request(CONVERSATION, TOOLS) - 180) <= 5
    assert abs(get_token_counter("other").count_request(CONVERSATION, TOOLS) - 180) > 10
    assert counter.ratio == OTHER_RATIO
    assert counter.margin < get_token_counter("other").margin == calibration.MARGIN
