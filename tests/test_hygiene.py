"""What changes from request to request is made constant; what a model must know stays (SPEC PRICE-2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.hygiene import LONGEST_KNOWN, _known_text, tidy
from turnout.types import ChatRequest, Message, RawBody, Text, ToolCall, ToolResult, WireFormat, message

RAW = RawBody(WireFormat.OPENAI_CHAT, b"{}")


def tidied(*messages: Message) -> tuple[Message, ...]:
    return tidy(ChatRequest(messages)).messages


def test_a_request_without_volatile_bytes_is_forwarded_as_it_is() -> None:
    request = ChatRequest((message("system", "Be brief. Today is 2026-11-25."), message("user", "hi")), raw=RAW)
    assert tidy(request) is request


@pytest.mark.parametrize("hashed", ["cc_version=2.1.330; cch=1a2b;", "cc_version=2.1.330; cch=ffff;"])
def test_the_billing_line_goes(hashed: str) -> None:
    lead = Message("system", (Text(f"x-anthropic-billing-header: {hashed}"), Text("You are an agent.")))
    assert tidied(lead, message("user", "hi")) == (message("system", "You are an agent."), message("user", "hi"))
    only = message("system", f"x-anthropic-billing-header: {hashed}")
    assert tidied(only, message("user", "hi")) == (message("user", "hi"),)


@pytest.mark.parametrize(
    "stamp",
    ["2026-11-25T12:34:56Z", "2026-11-25 12:34:56.123456", "2026-11-25 12:34", "2026-11-25T12:34:56+01:00"],
)
def test_a_time_of_day_goes_and_its_date_stays(stamp: str) -> None:
    (system, user) = tidied(message("system", f"Started {stamp}, in /src."), message("user", f"at {stamp}?"))
    assert system.text == "Started 2026-11-25, in /src."
    assert user.text == f"at {stamp}?", "what the user says is theirs"


def test_what_only_looks_like_a_time_stays() -> None:
    text = "Port 12:34:56, version 2026-11-25-rc, lines 12:34, ids 481145ac-6c5b-44ff-9abb-7ce99572540f"
    assert tidied(message("system", text), message("user", "hi"))[0].text == text


def test_system_messages_before_the_first_answer_join_the_leading_one() -> None:
    environment = message("system", "# Environment")
    request = (message("system", "You are."), message("user", "hi"), environment)
    grown = (*request, message("assistant", "Hello."), message("user", "go on"))
    first, later = tidied(*request), tidied(*grown)
    assert [m.role for m in first] == ["system", "user"]
    assert first[0].text == "You are.\n\n# Environment"
    assert later[: len(first)] == first, "the prefix stays"


def test_later_system_messages_become_reminders_where_they_stand() -> None:
    call = Message("assistant", (ToolCall("c", "ls", "{}"),))
    result = Message("tool", (ToolResult("c", "a.py"),))
    history = (message("system", "You are."), message("user", "hi"), call, result)
    news = message("system", "The file changed.")
    after_tool = tidied(*history, news)
    assert after_tool[: len(history)] == history
    assert after_tool[-1].role == "user"
    assert "The file changed." in after_tool[-1].text
    after_user = tidied(*history, message("assistant", "Done."), message("user", "Next."), news)
    assert [m.role for m in after_user] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert after_user[-1].text.startswith("Next.<system-reminder>")


ROLES = st.sampled_from(["system", "user", "assistant"])
MESSAGES = st.lists(st.builds(message, ROLES, st.text("ab \n:x-2026", max_size=30)), min_size=1, max_size=12)


@given(MESSAGES)
def test_one_system_message_first_nothing_else_lost_and_tidying_again_changes_nothing(messages: list[Message]) -> None:
    once = tidied(*messages)
    assert all(m.role != "system" for m in once[1:]) or all(m.role == "system" for m in messages[:2])
    said = [m for m in messages if m.role != "system"]
    kept = [m for m in once if m.role != "system"]
    texts = "".join(m.text for m in kept)
    assert all(m.text in texts for m in said)
    assert tidied(*once) == once


def test_a_system_prompt_as_large_as_a_body_is_tidied_and_not_kept() -> None:
    _known_text.cache_clear()
    for text in ("Now: 2026-07-28T10:00:00Z", f"Now: 2026-07-28T10:00:00Z{'x' * LONGEST_KNOWN}"):
        tidied = tidy(ChatRequest((message("system", text), message("user", "hi"))))
        assert tidied.messages[0].text.startswith("Now: 2026-07-28")
        assert "10:00" not in tidied.messages[0].text
    assert _known_text.cache_info().currsize == 1
