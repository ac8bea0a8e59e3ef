"""Properties of every translator: what goes in comes out, however the bytes are cut and the events interleave."""

from __future__ import annotations

import json
from dataclasses import replace

import anthropic.types as anthropic_types
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.wire.legal import (
    ARGUMENTS,
    NAME,
    TEXT,
    answer_of,
    answers,
    check_anthropic,
    check_openai,
    check_responses,
    conversations,
    cuts,
    items_of,
    sse,
)
from turnout.errors import StreamBrokenError, TurnoutError
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    UsageReport,
)
from turnout.wire import anthropic, ollama, openai_chat, openai_responses

POINTS = st.lists(st.integers(0, 10**6), max_size=8)
INTERLEAVED: list[Event] = [
    ToolCallDelta(0, "a", "read", '{"p":'),
    ToolCallDelta(1, "b", "write", '{"q":'),
    TextDelta("between"),
    ToolCallDelta(0, arguments="1}"),
    ToolCallDelta(1, arguments="2}"),
    Finish("tool_calls"),
]
RESPONSES_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
ANTHROPIC_EVENT = TypeAdapter(anthropic_types.RawMessageStreamEvent)


def openai_stream(events: list[Event]) -> bytes:
    renderer = openai_chat.StreamRenderer("m", "1", True)
    return b"".join(renderer.feed(event) for event in events) + renderer.close()


def anthropic_stream(events: list[Event]) -> bytes:
    renderer = anthropic.StreamRenderer("m", "1")
    return b"".join(renderer.feed(event) for event in events) + renderer.close()


ASKED = ChatRequest((), model="m", tools=(Tool("files__read", namespace="files"), Tool("write")))


def responses_stream(events: list[Event], chat: ChatRequest = ASKED) -> bytes:
    renderer = openai_responses.StreamRenderer(chat, "m", "1")
    return b"".join(renderer.feed(event) for event in events) + renderer.close()


@given(
    conversations(),
    st.lists(st.builds(Tool, NAME, TEXT, st.just({"type": "object", "properties": {}})), max_size=2),
    st.sampled_from(["", "auto", "none", "required", "tool:read"]),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.lists(TEXT, max_size=3).map(tuple),
    st.booleans(),
)
def test_an_openai_request_survives_the_round_trip(messages, tools, choice, max_tokens, stop, stream):
    request = ChatRequest(
        own_history=True,
        messages=messages,
        model="m",
        tools=tuple(tools),
        tool_choice=choice,
        max_tokens=max_tokens,
        temperature=0.5,
        top_p=0.25,
        stop=stop,
        response_format={"type": "json_object"},
        reasoning_effort="low",
        stream=stream,
        extras={"seed": 7},
    )
    body = openai_chat.render_request(request, "m", stream=stream)
    parsed = openai_chat.parse_request(body)
    assert {f: getattr(parsed, f) for f in ChatRequest.__slots__ if f != "raw"} == {
        f: getattr(request, f) for f in ChatRequest.__slots__ if f != "raw"
    }
    assert parsed.raw.body == body


@given(answers(), POINTS)
@example(INTERLEAVED, [])
def test_an_openai_stream_is_legal_and_loses_nothing(events, points):
    data = openai_stream(events)
    assert answer_of(check_openai(data)) == answer_of(events)
    parser = openai_chat.StreamParser()
    parsed = [event for piece in cuts(data, points) for event in parser.feed(piece)] + parser.close()
    assert answer_of(parsed) == answer_of(events)
    assert parser.finished
    for chunk in sse(data):
        ChatCompletionChunk.model_validate(chunk, strict=True)


@given(answers())
@example(INTERLEAVED)
def test_an_anthropic_stream_is_legal_and_loses_nothing(events):
    data = anthropic_stream(events)
    assert answer_of(check_anthropic(data)) == answer_of(events)
    snapshot, buffers = None, {}
    for row in sse(data):
        event = ANTHROPIC_EVENT.validate_python(row)
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    called = [(block.name, block.input) for block in snapshot.content if block.type == "tool_use"]
    assert called == [(name, json.loads(text)) for _, name, text in answer_of(events)[2]]


@given(answers())
def test_a_whole_openai_answer_survives_the_round_trip(events):
    body = openai_chat.render_response(events, "m", "1")
    assert answer_of(openai_chat.parse_response(body)) == answer_of(events)
    ChatCompletion.model_validate_json(body, strict=True)


@given(answers())
def test_a_whole_anthropic_answer_says_what_the_events_say(events):
    answer = anthropic_types.Message.model_validate_json(anthropic.render_response(events, "m", "1"))
    text, reasoning, calls, usage, _ = answer_of(events)
    assert "".join(b.text for b in answer.content if b.type == "text") == text
    assert "".join(b.thinking for b in answer.content if b.type == "thinking") == reasoning
    assert [(b.id, b.name, b.input) for b in answer.content if b.type == "tool_use"] == [
        (call_id, name, json.loads(arguments)) for call_id, name, arguments in calls
    ]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)


@given(conversations())
def test_an_ollama_request_carries_every_part(messages):
    body = json.loads(ollama.render_request(ChatRequest(messages), "m", stream=True, num_ctx=4096))
    rows = body["messages"]
    assert [row["role"] for row in rows] == [m.role for m in messages]
    for row, message in zip(rows, messages, strict=True):
        assert row["content"] == (message.text or "".join(r.content for r in message.tool_results))
        assert row.get("thinking", "") == "".join(p.text for p in message.parts if isinstance(p, Reasoning))
        assert [c["function"]["arguments"] for c in row.get("tool_calls", [])] == [
            json.loads(call.arguments) for call in message.tool_calls
        ]
        assert row.get("tool_name", "") == "".join(result.name for result in message.tool_results)


@given(TEXT, TEXT, st.lists(st.tuples(NAME, ARGUMENTS), max_size=3), POINTS)
def test_an_ollama_stream_is_the_same_however_it_is_cut(text, thinking, calls, points):
    lines: list[dict[str, object]] = [
        {"message": {"role": "assistant", "content": "", "thinking": thinking}, "done": False},
        {"message": {"role": "assistant", "content": text}, "done": False},
    ]
    lines += [{"message": {"tool_calls": [{"function": {"name": n, "arguments": json.loads(a)}}]}} for n, a in calls]
    lines.append({"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 5})
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    parser = ollama.StreamParser()
    events = [event for piece in cuts(data, points) for event in parser.feed(piece)] + parser.close()
    said, thought, made, usage, finish = answer_of(events)
    assert (said, thought, usage.prompt_tokens) == (text, thinking, 5)
    assert [(name, json.loads(a)) for _, name, a in made] == [(name, json.loads(a)) for name, a in calls]
    assert len({call_id for call_id, _, _ in made if call_id}) == len(calls)
    assert finish == ("tool_calls" if calls else "stop")
    assert parser.finished


@given(answers(), POINTS, st.booleans(), st.sampled_from([b"\n", b"\r\n"]))
def test_the_scanner_forwards_every_byte_but_the_usage_chunk(events, points, strip, end):
    data = openai_stream(events).replace(b"\n", end)
    scanner = openai_chat.Scanner(strip_usage=strip, stream=True)
    out = b"".join(scanner.feed(piece) for piece in cuts(data, points)) + scanner.close()
    (usage,) = [event.usage for event in events if isinstance(event, UsageReport)]
    assert scanner.usage == usage
    assert scanner.finish == answer_of(events)[4]
    assert scanner.done
    frames = data.split(end * 2)
    assert out == (end * 2).join(f for f in frames if not (strip and b'"choices":[]' in f))


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"data: ", b"{", b"}\n\n", b'"choices":[', b"\n"]))))
def test_hostile_bytes_from_a_server_raise_only_our_errors(pieces):
    for parser in (openai_chat.StreamParser(), ollama.StreamParser()):
        said = ""
        try:
            for piece in pieces:
                parser.feed(piece)
            parser.close()
        except TurnoutError as error:
            said = str(error)
        assert said.isprintable()


def test_reasoning_keeps_its_signature_after_its_text():
    rows = sse(anthropic_stream([ReasoningDelta("t", "sig"), Finish()]))
    rows = [row["delta"]["type"] for row in rows if row["type"] == "content_block_delta"]
    assert rows == ["thinking_delta", "signature_delta"]


def without_names(messages):
    """Results as the Responses format has them, which does not repeat the tool's name."""
    return tuple(
        replace(m, parts=tuple(replace(p, name="") if isinstance(p, ToolResult) else p for p in m.parts))
        for m in messages
    )


@given(
    conversations(),
    st.lists(st.tuples(st.sampled_from(["", "mcp__x"]), NAME, TEXT), max_size=3, unique_by=lambda row: row[:2]),
    st.sampled_from(["", "auto", "none", "required"]),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.booleans(),
)
def test_a_responses_request_survives_the_round_trip(messages, tools, choice, max_tokens, stream):
    groups = {group: [row for row in tools if row[0] == group] for group in ("", "mcp__x")}
    rows = {
        group: [{"type": "function", "name": n, "description": d, "parameters": {"a": 1}} for _, n, d in found]
        for group, found in groups.items()
    }
    spaces = [{"type": "namespace", "name": "mcp__x", "description": "d", "tools": rows["mcp__x"]}]
    body = {
        "model": "m",
        "input": items_of(messages),
        "tools": [*rows[""], {"type": "web_search"}, *spaces],
        "max_output_tokens": max_tokens,
        "temperature": 0.5,
        "top_p": 0.25,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "stream": stream,
        "seed": 7,
        "include": ["reasoning.encrypted_content"],
        **({"tool_choice": choice} if choice else {}),
    }
    asked = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert openai_responses.parse_request(json.dumps(body).encode()) == ChatRequest(
        messages=without_names(messages),
        model="m",
        tools=tuple(
            Tool(f"{g}__{n}" if g else n, d, {"a": 1}, namespace=g) for found in groups.values() for g, n, d in found
        ),
        tool_choice=choice,
        max_tokens=max_tokens,
        temperature=0.5,
        top_p=0.25,
        response_format={"type": "json_schema", "json_schema": asked},
        reasoning_effort="low",
        stream=stream,
        own_history=True,
        extras={"seed": 7},
        client_fields={"include": ["reasoning.encrypted_content"]},
    )


@given(answers())
@example(INTERLEAVED)
def test_a_responses_stream_is_legal_and_loses_nothing(events):
    data = responses_stream(events)
    assert answer_of(check_responses(data)) == answer_of(events)
    for row in sse(data):
        RESPONSES_EVENT.validate_json(json.dumps(row), strict=True)


@given(answers())
@example(INTERLEAVED)
def test_a_responses_answer_given_back_is_the_turn_that_it_was(events):
    whole = openai_responses.render_response(events, ASKED, "m", "1")
    Response.model_validate_json(whole, strict=True)
    streamed = sse(responses_stream(events))[-1]["response"]
    for response in (json.loads(whole), streamed):
        if not response["output"]:
            continue
        body = {"input": [*response["output"], {"role": "user", "content": "and now?"}]}
        (*turn, _) = openai_responses.parse_request(json.dumps(body).encode()).messages
        parts = [part for message in turn for part in message.parts]
        text, reasoning, calls, usage, _ = answer_of(events)
        assert "".join(p.text for p in parts if isinstance(p, Text)) == text
        assert "".join(p.text for p in parts if isinstance(p, Reasoning)) == reasoning
        assert [(p.call_id, p.name, p.arguments) for p in parts if isinstance(p, ToolCall)] == calls
        assert response["usage"]["total_tokens"] == usage.prompt_tokens + usage.completion_tokens


@given(answers(), st.integers(0, 10))
def test_a_responses_stream_that_breaks_ends_with_its_failure(events, place):
    renderer = openai_responses.StreamRenderer(ASKED, "m", "1")
    data = b"".join(renderer.feed(event) for event in events[:place])
    error = StreamBrokenError("it broke off")
    data += renderer.keep_alive() + renderer.error(error)
    check_responses(data)
    last = sse(data)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": str(error)}
