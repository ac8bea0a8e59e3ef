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
from turnout.wire.freeform import arguments_of

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


def items_of(messages: tuple[Message, ...]) -> list[dict[str, object]]:
    """A conversation as the input items of the Responses format."""
    return [item for message in messages for item in _message_items(message)]


def _message_items(message: Message) -> list[dict[str, object]]:
    said = "output_text" if message.role == "assistant" else "input_text"
    items: list[dict[str, object]] = []
    content: list[dict[str, object]] = []
    for part in message.parts:
        match part:
            case Text(text):
                content.append({"type": said, "text": text})
            case Image(media_type, data):
                content.append({"type": "input_image", "image_url": f"data:{media_type};base64,{data}"})
            case Reasoning(text, signature):
                summary = [{"type": "summary_text", "text": text}]
                items.append({"type": "reasoning", "summary": summary, "encrypted_content": signature or None})
            case ToolCall(call_id, name, arguments, item_id, group):
                call = {"type": "function_call", "id": item_id, "call_id": call_id, "arguments": arguments}
                named = {"name": name.removeprefix(f"{group}__"), "namespace": group} if group else {"name": name}
                items.append(call | named)
            case ToolResult(call_id, output):
                items.append({"type": "function_call_output", "call_id": call_id, "output": output})
    if content:
        row = {"type": "message", "id": "msg_1", "role": message.role, "content": content}
        items.insert(sum(item["type"] == "reasoning" for item in items), row)
    return items


# Which event may follow in which state, and the state it leads to; ``{}`` is the type of the item that is added.
_GRAMMAR: dict[str, dict[str, str]] = {
    "start": {"response.created": "created"},
    "created": {"response.in_progress": "between"},
    "between": {
        "response.output_item.added": "{}",
        "response.completed": "end",
        "response.incomplete": "end",
    },
    "message": {"response.content_part.added": "part"},
    "part": {"response.output_text.delta": "part", "response.output_text.done": "part said"},
    "part said": {"response.content_part.done": "item said"},
    "reasoning": {"response.reasoning_summary_part.added": "summary", "response.output_item.done": "between"},
    "summary": {
        "response.reasoning_summary_text.delta": "summary",
        "response.reasoning_summary_text.done": "summary said",
    },
    "summary said": {"response.reasoning_summary_part.done": "item said"},
    "function_call": {
        "response.function_call_arguments.delta": "function_call",
        "response.function_call_arguments.done": "item said",
    },
    "custom_tool_call": {
        "response.custom_tool_call_input.delta": "custom_tool_call",
        "response.custom_tool_call_input.done": "item said",
    },
    "item said": {"response.output_item.done": "between"},
    "end": {},
}


class _Responses:
    """The state machine over ``_GRAMMAR``, and what the data of each event must agree with."""

    def __init__(self) -> None:
        self.state = "start"
        self.id = ""
        self.item: dict[str, object] = {}
        self.deltas: list[str] = []
        self.done: list[dict[str, object]] = []
        self.events: list[Event] = []

    def take(self, number: int, row: dict[str, object]) -> None:
        kind = str(row["type"])
        assert row["sequence_number"] == number
        always = {"response.failed": "end", "response.in_progress": self.state}
        following = {**({} if self.state in ("start", "end") else always), **_GRAMMAR[self.state]}
        assert kind in following, f"{kind} in state {self.state!r}"
        self.state = following[kind].format((row.get("item") or {}).get("type"))
        if "response" in row:
            self._response(kind, row["response"])
        elif kind == "response.output_item.added":
            self._added(row)
        else:
            assert row["output_index"] == len(self.done)
            assert row.get("item_id", self.item["id"]) == self.item["id"]
            assert row.get("content_index", 0) == row.get("summary_index", 0) == 0
            self._inside(kind, row)

    def _response(self, kind: str, response: dict[str, object]) -> None:
        self.id = self.id or response["id"]
        assert response["id"] == self.id
        assert response["output"] == self.done
        status = kind.removeprefix("response.").replace("created", "in_progress")
        assert response["status"] == status
        assert (response["error"] is None) is (status != "failed")
        assert (response["incomplete_details"] is None) is (status != "incomplete")
        assert (response["usage"] is None) is (status in ("in_progress", "failed"))
        if self.state == "end" and status != "failed":
            usage = response["usage"]
            self.events.append(UsageReport(Usage(usage["input_tokens"], usage["output_tokens"])))
            calls = any(item["type"] in ("function_call", "custom_tool_call") for item in self.done)
            reasons = {"max_output_tokens": "length", "content_filter": "content_filter"}
            whole = "tool_calls" if calls else "stop"
            reason = reasons[response["incomplete_details"]["reason"]] if status == "incomplete" else whole
            self.events.append(Finish(reason))

    def _added(self, row: dict[str, object]) -> None:
        self.item, self.deltas = row["item"], []
        assert row["output_index"] == len(self.done)
        ids = [item[key] for item in self.done for key in ("id", "call_id") if key in item]
        assert self.item["id"]
        assert self.item["id"] not in ids
        if self.item["type"] in ("function_call", "custom_tool_call"):
            assert self.item["call_id"] not in ids
            assert self.item["call_id"]
            assert self.item["name"]
            assert self.item["arguments" if self.item["type"] == "function_call" else "input"] == ""
            self.events.append(ToolCallDelta(len(self.done), self.item["call_id"], self.item["name"]))

    def _inside(self, kind: str, row: dict[str, object]) -> None:
        said = "".join(self.deltas)
        match kind.removeprefix("response."):
            case "output_text.delta":
                self.events.append(TextDelta(row["delta"]))
            case "reasoning_summary_text.delta":
                self.events.append(ReasoningDelta(row["delta"]))
            case "function_call_arguments.delta":
                self.events.append(ToolCallDelta(len(self.done), arguments=row["delta"]))
            case "custom_tool_call_input.delta":
                self.events.append(ToolCallDelta(len(self.done), arguments=arguments_of(row["delta"])))
            case "custom_tool_call_input.done":
                assert row["input"] == said
            case "content_part.added" | "reasoning_summary_part.added":
                assert row["part"]["text"] == ""
            case "content_part.done" | "reasoning_summary_part.done":
                assert row["part"]["text"] == said
            case "output_text.done" | "reasoning_summary_text.done":
                assert row["text"] == said
            case "function_call_arguments.done":
                assert row["arguments"] == said
                assert row["name"] == self.item["name"]
            case "output_item.done":
                self._item_done(row["item"], said)
            case other:
                raise AssertionError(other)
        if kind.endswith(".delta"):
            assert row["delta"]
            self.deltas.append(row["delta"])

    def _item_done(self, item: dict[str, object], said: str) -> None:
        assert {key: item[key] for key in ("id", "type")} == {key: self.item[key] for key in ("id", "type")}
        assert item.get("status", "completed") in ("completed", "incomplete")
        match item["type"]:
            case "message":
                assert [part["text"] for part in item["content"]] == [said]
            case "reasoning":
                assert "".join(part["text"] for part in item["summary"]) == said
                self.events.append(ReasoningDelta("", item.get("encrypted_content", "")))
            case "custom_tool_call":
                assert (item["input"], item["call_id"]) == (said, self.item["call_id"])
            case _:
                assert (item["arguments"], item["call_id"]) == (said, self.item["call_id"])
        self.done.append(item)


def check_responses(data: bytes) -> list[Event]:
    """The events of a stream that keeps every rule of Responses; fails when one is broken."""
    machine = _Responses()
    for line in data.decode().split("\n\n")[:-1]:
        if not line.startswith(":"):
            name, _, row = line.partition("\n")
            assert name == f"event: {json.loads(row[6:])['type']}"
    for number, row in enumerate(sse(data)):
        machine.take(number, row)
    assert machine.state == "end"
    return machine.events
