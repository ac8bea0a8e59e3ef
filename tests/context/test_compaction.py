from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turnout.config import ContextConfig
from turnout.context import compaction
from turnout.context.compaction import ACKNOWLEDGED, STUB_MARK, SUMMARY_MARK, Fitted, fit
from turnout.context.tokens import TokenCounter
from turnout.errors import ContextOverflowError
from turnout.types import Image, Message, Part, Reasoning, Role, Text, ToolCall, ToolResult, message

COUNTER = TokenCounter(4.0)
SYSTEM = message("system", "You are local.")
TEXTS = st.one_of(
    st.text("ab. 漢", max_size=60),
    st.integers(1, 900).map(lambda n: "word " * n),
    st.just("I created the parser. " * 30),
)
RESULTS = st.one_of(st.just(""), st.text(max_size=20), st.integers(1, 1500).map(lambda n: "line\n" * n))
CALLS = st.tuples(st.text(max_size=30), st.lists(st.tuples(RESULTS, st.integers(0, 400)), min_size=1, max_size=4))
CONFIGS = st.builds(
    ContextConfig,
    compaction_threshold=st.sampled_from([0.8, 0.6, 1.0]),
    compaction_target=st.sampled_from([0.5, 0.2]),
    preserve_recent_messages=st.integers(0, 12),
    preserve_recent_tool_calls=st.integers(0, 6),
    max_tool_output_tokens=st.sampled_from([0, 20, 500]),
)


def say(role: Role, text: str, *parts: Part) -> tuple[Message, ...]:
    return (Message(role, (*([Text(text)] if text else []), *parts)),)


def tool_turn(said: str, results: list[tuple[str, int]], inside_user: bool, more: str, tag: int) -> tuple[Message, ...]:
    """A parallel call; its results as messages of their own, or as parts of a user's message."""
    calls = tuple(ToolCall(f"c{tag}-{n}", "read_file", "x" * size) for n, (_, size) in enumerate(results))
    given_back = tuple(ToolResult(f"c{tag}-{n}", text) for n, (text, _) in enumerate(results))
    asked = Message("assistant", (*([Text(said)] if said else []), *calls))
    if inside_user:
        return (asked, Message("user", (*given_back, *([Text(more)] if more else []))))
    return (asked, *(Message("tool", (result,)) for result in given_back))


TURNS = st.one_of(
    st.builds(lambda t: say("user", t), TEXTS),
    st.builds(lambda t: say("assistant", t), TEXTS),
    st.builds(lambda t: say("user", t, Image("image/png", "AAAA")), TEXTS),
    st.builds(lambda c, inside, more: (c, inside, more), CALLS, st.booleans(), st.sampled_from(["", "and then?"])),
)


def joined(turns: list[tuple[Message, ...]], first_tag: int = 0) -> tuple[Message, ...]:
    messages: list[Message] = []
    for tag, turn in enumerate(turns, first_tag):
        if isinstance(turn[0], Message):
            messages += turn
        else:
            (said, results), inside, more = turn
            messages += tool_turn(said, results, inside, more, tag)
    return tuple(messages)


HISTORIES = st.lists(TURNS, max_size=30).map(lambda turns: (SYSTEM, *joined(turns)))
WINDOWS = st.integers(400, 8000)


def fitted_or_none(history: tuple[Message, ...], window: int, config: ContextConfig, **more: int) -> Fitted | None:
    try:
        return fit(history, window=window, reserve=100, counter=COUNTER, config=config, **more)
    except ContextOverflowError:
        return None


def words(m: Message) -> tuple[Part, ...]:
    return tuple(part for part in m.parts if not isinstance(part, ToolResult))


def last_said(history: tuple[Message, ...]) -> tuple[Part, ...]:
    said = (words(m) for m in reversed(history) if m.role == "user" and not m.text.startswith(SUMMARY_MARK))
    return next(filter(None, said), ())


def parted(messages: tuple[Message, ...]) -> list[str]:
    """Calls without their results, or results without their calls."""
    calls = [c.call_id for m in messages for c in m.tool_calls]
    return sorted(set(calls) ^ {r.call_id for m in messages for r in m.tool_results})


@settings(deadline=None)
@given(HISTORIES, WINDOWS, CONFIGS, st.none() | st.integers(100, 4000))
def test_what_always_holds(
    history: tuple[Message, ...], window: int, config: ContextConfig, target: int | None
) -> None:
    fitted = fitted_or_none(history, window, config, **({} if target is None else {"target": target}))
    if fitted is None:
        return
    kept = fitted.messages
    assert COUNTER.count_messages(kept) == fitted.tokens_after <= window - 100
    assert fitted.tokens_before == COUNTER.count_messages(history)
    assert fitted.changed == (kept != history)
    assert fitted.changed == bool(fitted.steps)
    assert kept[0] == SYSTEM
    assert last_said(kept) == last_said(history)
    assert parted(kept) == []
    assert sum(m.text.startswith(SUMMARY_MARK) for m in kept) <= 1
    assert not any(one.text.startswith(SUMMARY_MARK) and two.role == "user" for one, two in pairwise(kept))
    assert fitted == fitted_or_none(history, window, config, **({} if target is None else {"target": target}))


@settings(deadline=None)
@given(HISTORIES, WINDOWS, CONFIGS, st.none() | st.integers(100, 4000))
def test_what_is_fitted_stays_as_it_is(
    history: tuple[Message, ...], window: int, config: ContextConfig, target: int | None
) -> None:
    more = {} if target is None else {"target": target}
    fitted = fitted_or_none(history, window, config, **more)
    assume(fitted is not None)
    assert fitted is not None
    again = fitted_or_none(fitted.messages, window, config, **more)
    assert again is not None
    assert again.messages == fitted.messages


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(800, 4000), CONFIGS)
def test_roles_that_alternate_go_on_alternating(sizes: list[int], window: int, config: ContextConfig) -> None:
    sizes = sizes[: len(sizes) - 1 | 1]  # a request ends with the user's words
    talk = tuple(message("assistant" if n % 2 else "user", f"{n} " + "word " * size) for n, size in enumerate(sizes))
    fitted = fitted_or_none((SYSTEM, *talk), window, config)
    assert fitted is not None
    assert not any(one.role == two.role for one, two in pairwise(fitted.messages))
    assert fitted.messages[-1] == talk[-1]


@settings(deadline=None)
@given(HISTORIES, st.lists(TURNS, max_size=6), WINDOWS, CONFIGS)
def test_a_longer_conversation_begins_with_the_shorter_one(
    history: tuple[Message, ...], added: list[tuple[Message, ...]], window: int, config: ContextConfig
) -> None:
    shorter = fitted_or_none(history, window, config)
    assume(shorter is not None)
    assert shorter is not None
    new = joined(added, 100)
    together = shorter.tokens_after + COUNTER.count_messages(new)
    assume(together <= min(window - 100, int(window * config.compaction_threshold)))
    longer = fitted_or_none((*history, *new), window, config)
    assert longer is not None
    assert longer.messages == (*shorter.messages, *new)


@settings(deadline=None)
@given(HISTORIES, TEXTS, WINDOWS, CONFIGS)
def test_only_the_last_user_message_can_be_too_long(
    history: tuple[Message, ...], last: str, window: int, config: ContextConfig
) -> None:
    question = message("user", last)
    alone = COUNTER.count_messages((SYSTEM, question))
    fitted = fitted_or_none((*history, question), window, config)
    assert (fitted is None) == (alone > window - 100)


def test_the_error_has_both_numbers() -> None:
    question = message("user", "word " * 4000)
    with pytest.raises(ContextOverflowError, match=r"5,0\d\d tokens; the window of 4,096 leaves 3,072") as caught:
        fit([SYSTEM, question], window=4096, reserve=1024, counter=COUNTER, config=ContextConfig())
    assert caught.value.window == 4096
    assert caught.value.prompt_tokens == COUNTER.count_messages([SYSTEM, question])
    assert caught.value.hint


def test_nothing_is_done_below_the_threshold() -> None:
    history = (SYSTEM, *joined([tool_turn("", [("line " * 700, 0)], False, "", n) for n in range(8)]))
    tokens = COUNTER.count_messages(history)
    fitted = fit(history, window=tokens * 10 // 8 + 1, reserve=0, counter=COUNTER, config=ContextConfig())
    assert fitted == Fitted(history, tokens, tokens)
    assert fit(history, window=tokens * 10 // 8 - 9, reserve=0, counter=COUNTER, config=ContextConfig()).changed


def test_the_answers_room_counts() -> None:
    history = (SYSTEM, *(m for n in range(30) for m in say("user", f"Question {n}. " + "word " * 80)))
    tokens = COUNTER.count_messages(history)
    fitted = fit(history, window=tokens * 2, reserve=tokens + 100, counter=COUNTER, config=ContextConfig())
    assert fitted.tokens_after <= tokens - 100


def test_only_long_outputs_that_are_not_recent_become_stubs() -> None:
    turns = [tool_turn("", [("line " * (700 if n != 2 else 10), 0)], n % 2 == 0, "", n) for n in range(10)]
    history = (SYSTEM, message("user", "Look."), *joined(turns))
    fitted = fit(history, window=10_000, reserve=0, counter=COUNTER, config=ContextConfig())
    results = [r for m in fitted.messages for r in m.tool_results]
    assert len(fitted.messages) == len(history)
    assert fitted.steps == ("old tool outputs shortened",)
    stub = f"{STUB_MARK}read_file] (was 3500 characters)"
    assert [r.content for r in results[:5]] == [stub, stub, "line " * 10, stub, stub]
    assert {r.content for r in results[5:]} == {"line " * 700}


def long_talk(turns: int) -> tuple[Message, ...]:
    talk: list[Message] = [SYSTEM]
    for n in range(turns):
        talk.append(message("user", f"Please add feature {n}. " + "More words follow here. " * 20))
        talk.append(message("assistant", "Let me think. " * 20 + f"I created module {n}. Enjoy."))
    return tuple(talk)


def test_older_messages_become_one_summary() -> None:
    history = (*long_talk(30), message("user", "And now?"))
    fitted = fit(history, window=5000, reserve=100, counter=COUNTER, config=ContextConfig())
    mark, *points = fitted.messages[1].text.splitlines()
    assert mark == SUMMARY_MARK
    assert fitted.messages[1].role == "user"
    assert fitted.messages[2:] == history[-len(fitted.messages) + 2 :]
    assert len(fitted.messages) - 2 >= 10
    assert len(points) == 10
    assert points[0] == "- User: Please add feature 0."
    assert points[-1].startswith(("- User: Please add feature", "- Assistant: I created module"))
    assert any(point.startswith("- Assistant: I created module") for point in points)
    assert all(len(point) <= len("- ") + 100 for point in points)


def test_a_summary_grows_into_the_next_one() -> None:
    first = fit(long_talk(30), window=5000, reserve=100, counter=COUNTER, config=ContextConfig())
    more = long_talk(30)[1:]
    second = fit((*first.messages, *more), window=5000, reserve=100, counter=COUNTER, config=ContextConfig())
    assert second.messages[1].text.splitlines()[1] == "- User: Please add feature 0."
    assert sum(m.text.startswith(SUMMARY_MARK) for m in second.messages) == 1


def test_without_a_user_there_is_still_one_summary() -> None:
    answers = tuple(message("assistant", f"I fixed part {n}. " + "word " * 100) for n in range(60))
    first = fit((SYSTEM, *answers), window=4000, reserve=100, counter=COUNTER, config=ContextConfig())
    second = fit((*first.messages, *answers), window=4000, reserve=100, counter=COUNTER, config=ContextConfig())
    assert shape(second)[:2] == "Sa"
    assert shape(second).count("S") == 1


def test_the_newest_messages_stay_even_beyond_the_target() -> None:
    history = (SYSTEM, *(m for _ in range(10) for m in (*say("user", "word " * 350), *say("assistant", "word " * 350))))
    window = COUNTER.count_messages(history) - 1
    config = ContextConfig(compaction_threshold=1.0, compaction_target=0.2)
    fitted = fit(history, window=window, reserve=0, counter=COUNTER, config=config)
    assert fitted.messages[2] == ACKNOWLEDGED
    assert fitted.messages[3:] == history[-10:]
    assert fitted.tokens_after > 0.2 * window


def test_a_result_that_comes_late_stays_with_its_call() -> None:
    late = [
        Message("assistant", (ToolCall("c", "read_file", "{}"),)),
        message("user", "Meanwhile: " + "word " * 300),
        Message("tool", (ToolResult("c", "ok"),)),
    ]
    for after in range(12):
        history = (SYSTEM, message("user", "a " * 900), *late, *(message("user", "word " * 200) for _ in range(after)))
        fitted = fit(history, window=2000, reserve=100, counter=COUNTER, config=ContextConfig(), target=1000)
        assert parted(fitted.messages) == []


def test_a_stub_is_not_shortened_again() -> None:
    stub = f"{STUB_MARK}read_file] (was 123456789012345 characters)"
    history = (SYSTEM, *joined([tool_turn("word " * 200, [(stub, 0)], False, "", n) for n in range(8)]))
    config = ContextConfig(max_tool_output_tokens=0, preserve_recent_tool_calls=0, preserve_recent_messages=99)
    fitted = fit(history, window=2600, reserve=0, counter=COUNTER, config=config)
    assert {r.content for m in fitted.messages for r in m.tool_results} == {stub}


def test_the_prefix_changes_only_when_the_threshold_is_passed() -> None:
    history, forms = (SYSTEM,), []
    for n in range(80):
        history += say("user", f"Question {n}. " + "word " * 40) + say("assistant", "answer " * 40)
        forms.append(fit(history, window=4000, reserve=200, counter=COUNTER, config=ContextConfig()).messages)
    breaks = sum(longer[: len(shorter)] != shorter for shorter, longer in pairwise(forms))
    # 80 turns of about 130 tokens; each compaction makes room for 1200.
    assert breaks <= 80 * 130 // 1200


@pytest.mark.parametrize("reserve", [200, 1000, 2000])
def test_a_long_answers_room_does_not_move_the_prefix_with_every_message(reserve: int) -> None:
    history, forms = (SYSTEM,), []
    for n in range(80):
        history += say("user", f"Question {n}. " + "word " * 40) + say("assistant", "answer " * 40)
        forms.append(fit(history, window=4000, reserve=reserve, counter=COUNTER, config=ContextConfig()).messages)
    breaks = sum(longer[: len(shorter)] != shorter for shorter, longer in pairwise(forms))
    threshold = min(4000 - reserve, 3200)
    # 80 turns of about 130 tokens; each compaction makes room for three eighths of what was allowed.
    assert breaks <= 80 * 135 // (threshold * 3 / 8) + 1


def numbered(messages: list[Message]) -> tuple[Message, ...]:
    """Each message knows its place, so that what is left can be told from its like."""
    return tuple(replace(m, extras={"place": place}) for place, m in enumerate(messages))


# Whatever a client may send: ids that are used again, results that come late, twice, early or for no call at all,
# messages with nothing in them, half a character, and what is longer than any window.
IDS = st.sampled_from(["a", "b", "", "\ud800"])
WILD_TEXTS = st.one_of(
    st.just(""), TEXTS, st.text(st.characters(categories=["Cs", "Lo", "Nd"]), max_size=8), st.just("x" * 40_000)
)
WILD_CALLS = st.builds(
    ToolCall, IDS, st.sampled_from(["read_file", "write_file", ""]), st.sampled_from(["{}", "x" * 800, "\udc00"])
)
WILD_RESULTS = st.builds(ToolResult, IDS, st.one_of(RESULTS, WILD_TEXTS))
WILD_SAID = st.builds(Text, WILD_TEXTS)
WILD = st.lists(
    st.one_of(
        st.builds(Message, st.just("assistant"), st.lists(st.one_of(WILD_SAID, WILD_CALLS), max_size=4).map(tuple)),
        st.builds(Message, st.just("assistant"), st.tuples(st.builds(Reasoning, TEXTS), WILD_CALLS)),
        st.builds(Message, st.just("tool"), st.lists(WILD_RESULTS, min_size=1, max_size=3).map(tuple)),
        st.builds(
            Message,
            st.just("user"),
            st.lists(st.one_of(WILD_RESULTS, WILD_SAID, st.just(Image("image/png", "AAAA"))), max_size=3).map(tuple),
        ),
        st.builds(Message, st.just("system"), st.tuples(WILD_SAID)),
    ),
    max_size=40,
).map(lambda body: numbered([SYSTEM, *body]))


def pairs(history: tuple[Message, ...]) -> list[tuple[int, int]]:
    """Where each result's call is, and the result: the newest call of that id before it."""
    found, calls = [], dict[str, int]()
    for place, m in enumerate(history):
        found += [(calls[r.call_id], place) for r in m.tool_results if r.call_id in calls]
        calls |= {c.call_id: place for c in m.tool_calls}
    return found


def without_outputs(m: Message) -> Message:
    return replace(m, parts=tuple(replace(p, content="") if isinstance(p, ToolResult) else p for p in m.parts))


@settings(deadline=None, max_examples=300)
@given(WILD, WINDOWS, CONFIGS, st.none() | st.integers(100, 4000))
def test_what_holds_for_whatever_a_client_sends(
    history: tuple[Message, ...], window: int, config: ContextConfig, target: int | None
) -> None:
    more = {} if target is None else {"target": target}
    fitted = fitted_or_none(history, window, config, **more)
    assume(fitted is not None)
    assert fitted is not None
    assert COUNTER.count_messages(fitted.messages) == fitted.tokens_after <= window - 100
    lead = next((n for n, m in enumerate(history) if m.role != "system"), len(history))
    assert fitted.messages[:lead] == history[:lead]
    kept = [m for m in fitted.messages if "place" in m.extras]
    made = [m for m in fitted.messages if "place" not in m.extras]
    assert made in ([], [made[0], ACKNOWLEDGED] if made else [], made[:1])
    assert not made or fitted.messages[lead : lead + len(made)] == tuple(made)
    places = [m.extras["place"] for m in kept]
    assert places == sorted(set(places)), "in their order, each once"
    left = set(places)
    assert [pair for pair in pairs(history) if (pair[0] in left) != (pair[1] in left)] == []
    assert [without_outputs(m) for m in kept] == [without_outputs(history[n]) for n in places]
    for m, n in zip(kept, places, strict=True):
        for now, before in zip(m.tool_results, history[n].tool_results, strict=True):
            assert now.content == before.content or now.content.startswith(STUB_MARK)
    assert last_said(fitted.messages) == last_said(history)
    again = fitted_or_none(fitted.messages, window, config, **more)
    assert again is not None
    assert again.messages == fitted.messages
    assert fitted_or_none(history, window, config, **more) == fitted


@settings(deadline=None, max_examples=300)
@given(WILD, WILD_SAID, WINDOWS, CONFIGS)
def test_whatever_came_before_only_the_last_user_message_can_be_too_long(
    history: tuple[Message, ...], last: Text, window: int, config: ContextConfig
) -> None:
    question = Message("user", (last,), {"place": len(history)})
    alone = COUNTER.count_messages((SYSTEM, question))
    fitted = fitted_or_none((*history, question), window, config)
    if history[1:2] and history[1].role != "system":
        assert (fitted is None) == (alone > window - 100)


@settings(deadline=None, max_examples=300)
@given(WILD, WILD, WINDOWS, CONFIGS)
def test_whatever_is_added_the_longer_begins_with_the_shorter(
    history: tuple[Message, ...], added: tuple[Message, ...], window: int, config: ContextConfig
) -> None:
    shorter = fitted_or_none(history, window, config)
    assume(shorter is not None)
    assert shorter is not None
    new = added[1:]
    late = [pair for pair in pairs((*history, *new)) if pair[0] < len(history) <= pair[1]]
    assume(not late)  # a result goes with its call, also when that was left out before the result came
    together = shorter.tokens_after + COUNTER.count_messages(new)
    assume(together <= min(window - 100, int(window * config.compaction_threshold)))
    longer = fitted_or_none((*history, *new), window, config)
    assert longer is not None
    assert longer.messages == (*shorter.messages, *new)


def agent_loop(steps: int, size: int) -> tuple[Message, ...]:
    loop = [SYSTEM, message("user", "Do the whole task.")]
    for n in range(steps):
        loop += tool_turn(f"Step {n}. " + "word " * size, [("ok", 10)], False, "", n)
    return tuple(loop)


def test_a_long_turn_of_an_agent_is_summarised_behind_the_users_message() -> None:
    history = agent_loop(60, 600)
    fitted = fit(history, window=12_000, reserve=500, counter=COUNTER, config=ContextConfig())
    assert fitted.messages[1].text.startswith(SUMMARY_MARK)
    assert fitted.messages[2:4] == (ACKNOWLEDGED, history[1])
    assert fitted.messages[-10:] == history[-10:]
    assert fitted.tokens_after <= 11_500


def test_recent_tool_calls_stay_however_long_ago_they_were() -> None:
    config = ContextConfig(preserve_recent_tool_calls=2)
    history = (*agent_loop(6, 5), *long_talk(30)[1:])
    fitted = fit(history, window=5000, reserve=100, counter=COUNTER, config=config)
    assert [c.call_id for m in fitted.messages for c in m.tool_calls] == ["c4-0", "c5-0"]
    assert fitted.messages[1].text.startswith(SUMMARY_MARK)


def shape(fitted: Fitted) -> str:
    """S summary, k the answer to it, u user, a assistant, T tool output, t stub."""
    letters = {"assistant": "a", "user": "u", "tool": "T", "system": ""}
    return "".join(
        "S"
        if m.text.startswith(SUMMARY_MARK)
        else "k"
        if m == ACKNOWLEDGED
        else "t"
        if STUB_MARK in str(m.tool_results)
        else letters[m.role]
        for m in fitted.messages
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (8000, "uaTaTaTaTaTaTuaTaT"),
        (7000, "uatatataTaTaTuaTaT"),
        (4600, "SatataTaTaTuaTaT"),
        (4520, "SaTaTaTuaTaT"),
        (4000, "SataTaTuaTaT"),
        (2000, "SatatatuaTaT"),
        (1500, "SatatatuataT"),
        (1050, "SatatuataT"),
        (980, "SkuataT"),
        (500, "Skuatat"),
        (80, "Skuat"),
        (40, "Sku"),
        (20, "u"),
    ],
)
def test_everything_gives_way_in_the_stated_order(target: int, expected: str) -> None:
    older = [tool_turn("", [("line " * 700, 0)], False, "", n) for n in range(6)]
    newest = [tool_turn("", [("line " * 700, 0)], False, "", n) for n in range(6, 8)]
    history = (SYSTEM, message("user", "First."), *joined(older), message("user", "Second."), *joined(newest))
    fitted = fit(history, window=100_000, reserve=0, counter=COUNTER, config=ContextConfig(), target=target)
    assert shape(fitted) == expected


class Learning(TokenCounter):
    """A counter that has learned since the conversation was compacted."""

    def count(self, text: str) -> int:
        return round(super().count(text) * 0.9)


@settings(deadline=None, max_examples=150)
@given(st.lists(TURNS, min_size=3, max_size=25), WINDOWS, CONFIGS)
def test_what_was_decided_stays_although_the_counter_learns(
    turns: list[tuple[Message, ...]], window: int, config: ContextConfig
) -> None:
    history = (SYSTEM, *joined(turns), message("user", "go on"))
    first = fitted_or_none(history, window, config)
    assume(first is not None and first.decided is not None)
    assert first is not None
    assert first.decided is not None
    assume(first.tokens_after + 40 <= min(window - 100, int(window * config.compaction_threshold)))
    known = dict([first.decided])
    more = (message("assistant", "Yes."), message("user", "And?"))
    again = fit(
        (*history, *more), window=window, reserve=100, counter=Learning(4.0), config=config, known=known
    )  # fmt: skip
    assert again.messages[: len(first.messages)] == first.messages
    assert not again.new
    assert again.decided == first.decided


def test_a_written_summary_stays_until_more_has_to_be_left_out() -> None:
    config = ContextConfig(preserve_recent_messages=2)
    history = [SYSTEM, *agent_free_talk(12)]
    first = fit(history, window=1000, reserve=100, counter=COUNTER, config=config)
    assert first.new
    assert first.decided is not None
    assert [m.text for m in first.left_out] == [m.text for m in history[1 : 1 + len(first.left_out)]]
    key, form = first.decided
    known = {key: replace(form, text="They built a parser.")}
    written = fit(history, window=1000, reserve=100, counter=COUNTER, config=config, known=known)
    assert written.messages[1].text == f"{SUMMARY_MARK}\nThey built a parser."
    assert not written.new
    grown = [*history, *agent_free_talk(1)]
    assert fit(grown, window=1000, reserve=100, counter=COUNTER, config=config, known=known).messages[1].text == (
        f"{SUMMARY_MARK}\nThey built a parser."
    )
    long = fit(
        [*history, *agent_free_talk(12)], window=1000, reserve=100, counter=COUNTER, config=config, known=known
    )  # fmt: skip
    assert long.new
    assert "They built" not in long.messages[1].text


def test_a_form_that_was_edited_parts_and_repeats_nothing() -> None:
    history = (*long_talk(20), *agent_loop(8, 400), message("assistant", "Done."), message("user", "And now?"))
    config = ContextConfig()
    honest = fit(history, window=3000, reserve=100, counter=COUNTER, config=config)
    assert honest.decided is not None
    key, form = honest.decided
    body = history[1:]
    assert body[form.cut].tool_calls
    said = next(n for n, m in enumerate(body) if m.text == "Do the whole task.")
    for edited in (
        replace(form, cut=form.cut + 1),
        replace(form, cut=form.cut + 2, kept=(form.cut + 2,)),
        replace(form, kept=(form.cut,)),
        replace(form, kept=(2, 2)),
        replace(form, kept=(2, 0)),
        replace(form, kept=(said + 1, said)),
    ):
        fitted = fit(history, window=3000, reserve=100, counter=COUNTER, config=config, known={key: edited})
        assert fitted.messages == honest.messages


def test_it_is_compacted_where_it_was_asked_for_and_stays_so() -> None:
    history = [SYSTEM, *agent_free_talk(8)]
    asked = fit(
        history, window=100_000, reserve=100, counter=COUNTER, config=ContextConfig(preserve_recent_messages=2),
        compact_at=(14,),
    )  # fmt: skip
    assert asked.messages[1].text.startswith(SUMMARY_MARK)
    assert asked.tokens_after < asked.tokens_before * 0.6
    assert asked.messages[-3:] == tuple(history[-3:])
    grown = [*history, *agent_free_talk(1)]
    more = fit(
        grown, window=100_000, reserve=100, counter=COUNTER, config=ContextConfig(preserve_recent_messages=2),
        compact_at=(14,),
    )  # fmt: skip
    assert more.messages[: len(asked.messages)] == asked.messages


def agent_free_talk(turns: int) -> list[Message]:
    """Questions and answers of about 100 tokens, and no tools."""
    return [
        m
        for n in range(turns)
        for m in (message("user", f"Question {n}. " + "word " * 70), message("assistant", "I created it. " * 25))
    ]


def test_summaries_are_made_for_the_forms_that_may_fit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of short messages every one ends a form: a summary of each took most of the time."""
    made: list[object] = []
    summary = compaction._History._summary

    def counted(self: compaction._History, form: compaction.Form) -> Message | None:
        made.append(form)
        return summary(self, form)

    monkeypatch.setattr(compaction._History, "_summary", counted)
    many = [message("user" if n % 2 == 0 else "assistant", f"word {n}") for n in range(2000)]
    fitted = fit(many, window=4000, reserve=400, counter=COUNTER, config=ContextConfig())
    assert fitted.changed
    assert len(made) < 100
