from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.context.tokens import TOKENS_PER_IMAGE, TOKENS_PER_MESSAGE, TokenCounter, get_token_counter
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
    assert counter.count_message(Message("assistant", ())) == TOKENS_PER_MESSAGE
    assert counter.count_message(message("user", "x" * 40)) == TOKENS_PER_MESSAGE + 10
    small, large = Image("image/png", "A"), Image("image/png", "A" * 90_000)
    for image in (small, large):
        assert counter.count_message(Message("user", (image,))) == TOKENS_PER_MESSAGE + TOKENS_PER_IMAGE


def test_tools_are_counted_with_their_schema() -> None:
    counter = TokenCounter(4.0)
    bare = counter.count_tools([Tool("read")])
    full = counter.count_tools([Tool("read", "Reads a file.", {"type": "object", "properties": {"path": {}}})])
    assert full > bare > 0
    assert counter.count_tools([]) == 0
