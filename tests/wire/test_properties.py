"""Properties of every translator: what goes in comes out, however the bytes are cut and the events interleave."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import anthropic.types as anthropic_types
import msgspec
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ollama import ChatResponse as OllamaChunk
from openai.types import Completion as OpenAICompletion
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
from turnout.errors import StreamBrokenError, TurnoutError, UsageError
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    Message,
    RawBody,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    UsageReport,
    WireFormat,
)
from turnout.wire import anthropic, ollama, ollama_server, openai_chat, openai_responses, openai_side, openai_text
from turnout.wire.base import Completion
from turnout.wire.freeform import arguments_of

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
FIELD = st.sampled_from(
    ["model", "name", "messages", "role", "content", "images", "tools", "function", "tool_calls", "arguments", "id",
     "tool_name", "thinking", "think", "format", "options", "num_predict", "stop", "seed", "stream", "keep_alive",
     "prompt", "suffix", "raw", "system", "input", "query", "documents", "text", "n"]
)  # fmt: skip
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


def normalised(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """What Ollama's format keeps of a conversation: arguments are objects there, written anew."""
    return tuple(
        replace(
            m,
            parts=tuple(replace(p, arguments=compact(p.arguments)) if isinstance(p, ToolCall) else p for p in m.parts),
        )
        for m in messages
    )


def compact(arguments: str) -> str:
    return msgspec.json.encode(json.loads(arguments)).decode()


@given(
    conversations(),
    st.lists(st.builds(Tool, NAME, TEXT, st.just({"type": "object", "properties": {}})), max_size=2),
    st.sampled_from(["", "none", "low", "medium", "high", "xhigh"]),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.lists(TEXT, max_size=3).map(tuple),
    st.sampled_from([None, {"type": "json_object"},
                     {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}]),
    st.booleans(),
)  # fmt: skip
def test_an_ollama_request_survives_the_round_trip(messages, tools, effort, max_tokens, stop, form, stream):
    request = ChatRequest(
        own_history=True,
        messages=messages,
        model="m",
        tools=tuple(tools),
        max_tokens=max_tokens,
        temperature=0.5,
        top_p=0.25,
        stop=stop,
        response_format=form,
        reasoning_effort=effort,
        stream=stream,
        extras={"seed": 7, "x_new": [1], "options": {"penalize_newline": True}},
    )
    body = ollama.render_request(request, "m", stream=stream, num_ctx=4096)
    sent = RawBody(WireFormat.OLLAMA, body)
    assert ollama_server.parse_request(body) == replace(request, messages=normalised(messages), raw=sent)


@given(conversations(), st.booleans())
def test_ids_that_ollama_clients_leave_out_are_invented_alike_every_time(messages, named):
    data = json.loads(ollama.render_request(ChatRequest(messages), "m", stream=True, num_ctx=None))
    for row in data["messages"]:
        row.pop("tool_call_id", None)
        if not named:  # results come in the order of their calls then
            row.pop("tool_name", None)
        for call in row.get("tool_calls", ()):
            del call["id"]
    body = json.dumps(data).encode()
    parsed = ollama_server.parse_request(body).messages
    assert ollama_server.parse_request(body).messages == parsed
    made = [call.call_id for m in parsed for call in m.tool_calls]
    assert len(set(made)) == len(made)
    assert sorted(made) == sorted(result.call_id for m in parsed for result in m.tool_results)
    told = {r.call_id: r.content for m in messages for r in m.tool_results}
    names = {c.call_id: c.name for m in messages for c in m.tool_calls}
    pairs = sorted((names[call_id], text) for call_id, text in told.items())
    found = {c.call_id: c.name for m in parsed for c in m.tool_calls}
    assert sorted((found[r.call_id], r.content) for m in parsed for r in m.tool_results) == pairs


@given(answers(), POINTS)
@example(INTERLEAVED, [])
def test_an_ollama_answer_to_a_client_is_legal_and_loses_nothing(events, points):
    said = answer_of(events)
    wanted = (*said[:2], [(i, name, compact(text)) for i, name, text in said[2]], *said[3:])
    renderer = ollama_server.StreamRenderer("m")
    data = b"".join(renderer.feed(event) for event in events) + renderer.close()
    parser = ollama.StreamParser()
    parsed = [event for piece in cuts(data, points) for event in parser.feed(piece)] + parser.close()
    assert answer_of(parsed) == wanted
    rows = [OllamaChunk.model_validate_json(line, strict=False) for line in data.splitlines()]
    assert [row.done for row in rows] == [*(False for _ in rows[1:]), True]
    calls = [call for row in rows for call in row.message.tool_calls or ()]
    assert [(c.function.name, c.function.arguments) for c in calls] == [(n, json.loads(a)) for _, n, a in said[2]]
    whole = ollama_server.render_response(events, "m", 1.0)
    assert answer_of(ollama.parse_response(whole)) == wanted
    assert OllamaChunk.model_validate_json(whole).eval_duration == 10**9


@given(answers(), POINTS)
def test_a_text_completion_to_a_client_loses_nothing(events, points):
    events = [event for event in events if isinstance(event, TextDelta | UsageReport | Finish)]
    text, _, _, usage, finish = answer_of(events)
    wanted = text, "", [], usage, "length" if finish == "length" else "stop"
    renderer = openai_text.StreamRenderer("m", "1")
    data = b"".join(renderer.feed(event) for event in events) + renderer.close()
    parser = openai_text.StreamParser()
    parsed = [event for piece in cuts(data, points) for event in parser.feed(piece)] + parser.close()
    assert answer_of(parsed) == wanted
    assert parser.finished
    assert {chunk["object"] for chunk in sse(data)} == {"text_completion"}
    whole = OpenAICompletion.model_validate_json(openai_text.render_response(events, "m", "1"), strict=True)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (text, wanted[4])
    generated = ollama_server.GenerateRenderer("m")
    data = b"".join(generated.feed(event) for event in events) + generated.close()
    assert answer_of(ollama.parse_response(data)) == wanted


@given(TEXT, TEXT, st.one_of(st.none(), st.integers(1, 99)), st.lists(TEXT, max_size=2).map(tuple), st.booleans())
def test_a_text_request_survives_both_ways(prompt, suffix, max_tokens, stop, filled):
    asked = Completion(prompt, "m", suffix if filled else "", max_tokens, 0.5, 0.25, stop, True, {"seed": 7})
    assert openai_text.parse_request(openai_text.render_request(asked, "m")) == asked
    assert replace(ollama_server.parse_text(ollama.render_text(asked, "m", num_ctx=4096)), raw=None) == asked


@given(
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(-3, 10**19), st.floats(), TEXT, st.sampled_from(["user", "tool"])
        ),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD, inner, max_size=5),
        max_leaves=25,
    )
)
def test_any_json_from_an_ollama_client_is_a_request_or_our_error(value):
    body = json.dumps(value).encode()
    readers = (ollama_server.parse_request, ollama_server.parse_generate, ollama_server.parse_text, ollama_server.peek,
               openai_text.parse_request, openai_side.parse_embed, openai_side.parse_rerank)  # fmt: skip
    for read in readers:
        with suppress(UsageError):
            read(body)


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


@given(answers(), POINTS, st.sets(st.integers(0, 2), min_size=1))
def test_calls_without_ids_pass_as_a_legal_stream_that_says_the_same(events, points, without):
    frames = openai_stream(events).split(b"\n\n")[:-1]
    chunks = [json.loads(frame.removeprefix(b"data: ")) if frame != b"data: [DONE]" else None for frame in frames]
    for call in [
        call for c in chunks if c for choice in c["choices"] for call in choice["delta"].get("tool_calls", ())
    ]:
        if call["index"] in without:
            call.pop("id", None)
    data = b"".join(b"data: " + (json.dumps(c).encode() if c else b"[DONE]") + b"\n\n" for c in chunks)
    scanner = openai_chat.Scanner(strip_usage=False, stream=True)
    out = b"".join(scanner.feed(piece) for piece in cuts(data, points)) + scanner.close()
    said, wanted = answer_of(check_openai(out)), answer_of(events)
    assert [call[1:] for call in said[2]] == [call[1:] for call in wanted[2]]
    assert (said[:2], said[3:]) == (wanted[:2], wanted[3:])


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


@settings(deadline=None)
@given(answers())
@example(INTERLEAVED)
def test_signs_of_life_are_events_and_change_nothing(events):
    """Events in the strict sense: agents count the silence between them, and comments are none."""
    for renderer, check in (
        (openai_chat.StreamRenderer("m", "1", True), check_openai),
        (anthropic.StreamRenderer("m", "1"), check_anthropic),
        (openai_responses.StreamRenderer(ASKED, "m", "1"), check_responses),
    ):
        first = renderer.keep_alive()
        assert sse(first)
        data = first + b"".join(renderer.feed(event) + renderer.keep_alive() for event in events) + renderer.close()
        assert answer_of(check(data)) == answer_of(events)


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


def freed(events: list[Event]) -> list[Event]:
    """The same answer, its calls being of custom tools: what were their arguments is the text."""
    texts = {n: arguments_of(text) for n, (_, _, text) in enumerate(answer_of(events)[2])}
    made: list[Event] = []
    for event in events:
        if isinstance(event, ToolCallDelta):
            text, half = texts[event.index], len(texts[event.index]) // 2
            event = replace(event, arguments=text[:half] if event.name else text[half:])
        made.append(event)
    return made


@given(answers())
@example(INTERLEAVED)
def test_calls_of_custom_tools_are_legal_and_come_back_as_they_were(events):
    events = freed(events)
    calls = answer_of(events)[2]
    chat = ChatRequest((), model="m", tools=tuple(Tool(name, freeform=True) for _, name, _ in calls))
    data = responses_stream(events, chat)
    assert answer_of(check_responses(data)) == answer_of(events)
    for row in sse(data):
        RESPONSES_EVENT.validate_json(json.dumps(row), strict=True)
    whole = openai_responses.render_response(events, chat, "m", "1")
    Response.model_validate_json(whole, strict=True)
    for response in (json.loads(whole), sse(data)[-1]["response"]):
        body = {"input": [*response["output"], {"role": "user", "content": "and now?"}]}
        turn = openai_responses.parse_request(json.dumps(body).encode()).messages
        given_back = [(c.call_id, c.name, c.arguments) for message in turn for c in message.tool_calls]
        assert given_back == calls


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
