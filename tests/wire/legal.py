"""What the properties share: strategies of neutral values, and checkers of a legal stream in each client format."""

from __future__ import annotations

import itertools
import json

from hypothesis import strategies as st

from turnout.types import (
    Event,
    Finish,
    Image,
    Message,
    Part,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
    UsageReport,
)

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
NAME = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
ARGUMENTS = st.dictionaries(NAME, st.one_of(TEXT, st.integers(-9, 9), st.booleans()), max_size=3).map(json.dumps)
USAGE = st.builds(Usage, st.integers(1, 9999), st.integers(0, 9999), st.integers(0, 0))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Conversations that chat formats can carry: every call has its own id and its result."""
    messages: list[Message] = [Message("system", (Text(draw(TEXT)),))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        pictures = [Image("image/png", draw(st.sampled_from(["QUJD", "eHl6"])))] if draw(st.booleans()) else []
        messages.append(Message("user", (Text(draw(TEXT)), *pictures)))
        parts: list[Part] = [Reasoning(draw(TEXT))] if draw(st.booleans()) else []
        parts.append(Text(draw(TEXT)))
        calls = [ToolCall(f"call_{turn}_{n}", draw(NAME), draw(ARGUMENTS)) for n in range(draw(st.integers(0, 2)))]
        messages.append(Message("assistant", (*parts, *calls)))
        messages += [Message("tool", (ToolResult(call.call_id, draw(TEXT), call.name),)) for call in calls]
    return tuple(messages)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """Events of an answer: text, reasoning, tool calls that begin in order and interleave freely; usage, finish."""
    calls = [(n, f"call_{n}", draw(NAME), draw(ARGUMENTS)) for n in range(draw(st.integers(0, 3)))]
    pieces: dict[int, list[Event]] = {}
    for index, call_id, name, arguments in calls:
        cut = draw(st.integers(0, len(arguments)))
        pieces[index] = [
            ToolCallDelta(index, call_id, name, arguments[:cut]),
            ToolCallDelta(index, arguments=arguments[cut:]),
        ]
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 8))):
        started = sum(len(left) < 2 for left in pieces.values())
        choices = ["text", "reasoning", *(str(n) for n, left in pieces.items() if left and n <= started)]
        match draw(st.sampled_from(choices)):
            case "text":
                events.append(TextDelta(draw(TEXT)))
            case "reasoning":
                events.append(ReasoningDelta(draw(TEXT)))
            case number:
                events.append(pieces[int(number)].pop(0))
    events += [event for left in pieces.values() for event in left]
    reason = "tool_calls" if calls else draw(st.sampled_from(["stop", "length"]))
    return [*events, UsageReport(draw(USAGE)), Finish(reason)]


def answer_of(events: list[Event]) -> tuple[str, str, list[tuple[str, str, str]], Usage, str]:
    """What an answer says, however it was cut: text, reasoning, calls (id, name, arguments), usage, finish."""
    calls: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            call = calls.setdefault(event.index, ["", "", ""])
            call[0] += event.call_id
            call[1] += event.name
            call[2] += event.arguments
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    usage = next((e.usage for e in events if isinstance(e, UsageReport)), Usage())
    (finish,) = [e.reason for e in events if isinstance(e, Finish)]
    return text, reasoning, [(c[0], c[1], c[2]) for _, c in sorted(calls.items())], usage, finish


def cuts(data: bytes, points: list[int]) -> list[bytes]:
    """``data`` cut at ``points`` (any numbers)."""
    places = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def sse(data: bytes) -> list[dict[str, object]]:
    """The JSON of every SSE event, in order; the end mark of chat completions is left out."""
    rows = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(row) for row in rows if row != "[DONE]"]


def check_openai(data: bytes) -> list[Event]:
    """The events of a stream that keeps every rule of chat completions; fails when one is broken."""
    assert data.endswith(b"data: [DONE]\n\n")
    events: list[Event] = []
    seen: set[int] = set()
    ids: set[str] = set()
    finished = False
    for number, chunk in enumerate(sse(data)):
        if chunk.get("usage"):
            assert finished
            assert chunk["choices"] == []
            usage = chunk["usage"]
            events.append(UsageReport(Usage(usage["prompt_tokens"], usage["completion_tokens"])))
            continue
        assert not finished, "a chunk after the finish"
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        assert ("role" in delta) is (number == 0)
        events += [TextDelta(delta["content"])] if delta.get("content") else []
        events += [ReasoningDelta(delta["reasoning_content"])] if delta.get("reasoning_content") else []
        for call in delta.get("tool_calls", []):
            index, function = call["index"], call["function"]
            if index not in seen:
                assert call["id"]
                assert call["id"] not in ids
                assert function["name"]
                ids.add(call["id"])
                seen.add(index)
            events.append(ToolCallDelta(index, call.get("id", ""), function.get("name", ""), function["arguments"]))
        if choice["finish_reason"]:
            finished = True
            events.append(Finish(choice["finish_reason"]))
    return events


_STOP = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def check_anthropic(data: bytes) -> list[Event]:
    """The events of a stream that keeps every rule of messages; fails when one is broken."""
    rows = [row for row in sse(data) if row["type"] != "ping"]
    assert rows[0]["type"] == "message_start"
    assert "input_tokens" in rows[0]["message"]["usage"]
    assert [row["type"] for row in rows[-2:]] == ["message_delta", "message_stop"]
    events: list[Event] = []
    open_block, blocks, calls = None, 0, -1
    for row in rows[1:-2]:
        match row["type"]:
            case "content_block_start":
                assert open_block is None
                assert row["index"] == blocks
                open_block, blocks = row["content_block"], blocks + 1
                if open_block["type"] == "tool_use":
                    assert open_block["id"]
                    assert open_block["name"]
                    calls += 1
                    events.append(ToolCallDelta(calls, open_block["id"], open_block["name"]))
            case "content_block_delta":
                assert row["index"] == blocks - 1
                events.append(_anthropic_delta(open_block["type"], row["delta"], calls))
            case "content_block_stop":
                assert open_block is not None
                assert row["index"] == blocks - 1
                open_block = None
            case other:
                raise AssertionError(other)
    assert open_block is None
    usage = rows[-2]["usage"]
    finish = rows[-2]["delta"]["stop_reason"]
    return [*events, UsageReport(Usage(usage["input_tokens"], usage["output_tokens"])), Finish(_STOP[finish])]


def _anthropic_delta(block: str, delta: dict[str, str], call: int) -> Event:
    match block, delta["type"]:
        case "text", "text_delta":
            return TextDelta(delta["text"])
        case "thinking", "thinking_delta":
            return ReasoningDelta(delta["thinking"])
        case "thinking", "signature_delta":
            return ReasoningDelta("", delta["signature"])
        case "tool_use", "input_json_delta":
            return ToolCallDelta(call, arguments=delta["partial_json"])
        case other:
            raise AssertionError(other)
