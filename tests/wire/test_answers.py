"""Servers' answers with every quirk on record (facts/agents.md 4 and 4b, facts/backends.md 3), and our own errors."""

from __future__ import annotations

import json

import openai
import pytest

from tests.wire.legal import answer_of, check_anthropic, sse
from turnout.errors import (
    ContextOverflowError,
    EndpointBusyError,
    EndpointDownError,
    EndpointLoadingError,
    GuardError,
    KeyRefusedError,
    NonsenseError,
    NoServiceError,
    PhaseTimeoutError,
    ServerFailedError,
    UnknownModelError,
    UsageError,
)
from turnout.types import Event, Finish, Notice, ReasoningDelta, TextDelta, ToolCallDelta, Usage, UsageReport
from turnout.wire import anthropic, base, ollama, ollama_server, openai_chat

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(finish: str | None = None, **fields: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def call(**fields: object) -> bytes:
    return delta(tool_calls=[fields])


def parse(*pieces: bytes) -> list[Event]:
    parser = openai_chat.StreamParser()
    events = [one for piece in pieces for one in parser.feed(piece)] + parser.close()
    assert parser.finished
    return events


def calls_of(events: list[Event]) -> list[tuple[str, str]]:
    found = answer_of(events)[2]
    assert all(call_id for call_id, _, _ in found)
    assert len({call_id for call_id, _, _ in found}) == len(found)
    return [(name, arguments) for _, name, arguments in found]


HELLO = delta(role="assistant", content=None) + delta(content="hel") + delta(content="lo")
QUIRKS = {
    "no end mark": HELLO + delta("stop"),
    "no finish reason": HELLO + DONE,
    "no blank line at the end": (HELLO + delta("stop")).removesuffix(b"\n\n"),
    "CRLF": (HELLO + delta("stop") + DONE).replace(b"\n", b"\r\n"),
    "comments": b": keepalive 1/1\n\n" + HELLO + b": ping\n\n" + delta("stop") + DONE,
    "data without a space": (HELLO + delta("stop") + DONE).replace(b"data: ", b"data:"),
    "event and id lines": b"event: message\nid: 7\nretry: 10\n" + HELLO + delta("stop") + DONE,
    "data over two lines": HELLO.replace(b', "delta"', b',\ndata: "delta"') + delta("stop") + DONE,
    "finish on the last content chunk": delta(content="hel") + delta("stop", content="lo") + DONE,
    "role in every delta": delta(role="assistant", content="hel") + delta(role="assistant", content="lo") + DONE,
    "an unknown finish reason": HELLO + delta("eos"),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_stream_with_a_quirk_says_the_same(quirk):
    events = parse(QUIRKS[quirk])
    assert events == [TextDelta("hel"), TextDelta("lo"), Finish("stop")]


def test_a_stream_without_an_end_is_not_finished():
    parser = openai_chat.StreamParser()
    assert parser.feed(HELLO) == [TextDelta("hel"), TextDelta("lo")]
    assert parser.close() == []
    assert not parser.finished


def test_finish_comes_once():
    parser = openai_chat.StreamParser()
    parser.feed(HELLO + delta("length") + delta("length") + DONE + DONE)
    assert parser.close() == [Finish("length")]
    assert parser.close() == []


def test_text_cut_inside_a_character():
    data = (
        event({"choices": [{"delta": {"content": "é😀"}}]}).replace(b"\\u00e9\\ud83d\\ude00", "é😀".encode())
    ) + DONE
    assert "é".encode() in data
    assert answer_of(parse(*[data[n : n + 1] for n in range(len(data))]))[0] == "é😀"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_under_both_names(field):
    assert parse(delta(**{field: "hm"}), DONE)[0] == ReasoningDelta("hm")


def test_reasoning_under_both_names_at_once_is_not_doubled():
    assert answer_of(parse(delta(reasoning="hm", reasoning_content="hm"), DONE))[1] == "hm"


@pytest.mark.parametrize(
    ("chunk", "usage"),
    [
        ({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}, Usage(9, 2)),
        ({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2,
                                   "prompt_tokens_details": {"cached_tokens": 8}}}, Usage(9, 2, 8)),
        ({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}, "timings": {"cache_n": 7}},
         Usage(9, 2, 7)),
        ({"choices": [], "timings": {"cache_n": 7, "prompt_n": 2, "predicted_n": 3}}, Usage(9, 3, 7)),
        ({"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": -1}}, Usage()),
    ],
)  # fmt: skip
def test_usage(chunk, usage):
    assert parse(HELLO, delta("stop"), event(chunk), DONE)[-2:] == [UsageReport(usage), Finish("stop")]


TOOL_QUIRKS = {
    "as OpenAI": [call(index=0, id="a", function={"name": "ls", "arguments": ""}),
                  call(index=0, function={"arguments": '{"p"'}), call(index=0, function={"arguments": ":1}"})],
    "no index": [call(id="a", function={"name": "ls", "arguments": '{"p"'}), call(function={"arguments": ":1}"})],
    "no index, id repeated": [call(id="a", function={"name": "ls", "arguments": '{"p"'}),
                              call(id="a", function={"name": "ls", "arguments": ":1}"})],
    "no id": [call(index=0, function={"name": "ls", "arguments": '{"p":1}'})],
    "neither": [call(function={"name": "ls", "arguments": '{"p":1}'})],
    "arguments an object": [call(index=0, id="a", function={"name": "ls", "arguments": {"p": 1}})],
    "name after the id": [call(index=0, id="a", function={"arguments": '{"p"'}),
                          call(index=0, function={"name": "ls", "arguments": ":1}"})],
    "a fresh id in every delta": [call(index=0, id="a", function={"name": "ls", "arguments": '{"p"'}),
                                  call(index=0, id="b", function={"arguments": ":1}"})],
}  # fmt: skip


@pytest.mark.parametrize("quirk", TOOL_QUIRKS)
def test_one_tool_call_with_a_quirk(quirk):
    events = parse(*TOOL_QUIRKS[quirk], delta("stop"), DONE)
    assert calls_of(events) == [("ls", '{"p":1}')]
    assert events[-1] == Finish("tool_calls")
    first = next(e for e in events if isinstance(e, ToolCallDelta))
    assert (bool(first.call_id), first.name) == (True, "ls")


TWO_CALLS = {
    "interleaved": [call(index=0, id="a", function={"name": "f", "arguments": '{"p"'}),
                    call(index=1, id="b", function={"name": "g", "arguments": '{"q"'}),
                    call(index=0, function={"arguments": ":1}"}), call(index=1, function={"arguments": ":2}"})],
    "the same index": [call(index=0, id="a", function={"name": "f", "arguments": '{"p":1}'}),
                       call(index=0, id="b", function={"name": "g", "arguments": '{"q":2}'})],
    "the same id": [call(index=0, id="a", function={"name": "f", "arguments": '{"p":1}'}),
                    call(index=1, id="a", function={"name": "g", "arguments": '{"q":2}'})],
    "neither index nor id": [delta(tool_calls=[{"function": {"name": "f", "arguments": '{"p":1}'}},
                                               {"function": {"name": "g", "arguments": '{"q":2}'}}])],
}  # fmt: skip


@pytest.mark.parametrize("quirk", TWO_CALLS)
def test_two_tool_calls_stay_two(quirk):
    events = parse(*TWO_CALLS[quirk], delta("tool_calls"), DONE)
    assert calls_of(events) == [("f", '{"p":1}'), ("g", '{"q":2}')]


@pytest.mark.parametrize(
    "data",
    [event({"error": {"message": "out of memory", "code": 500}}), event({"error": "out of memory"}),
     b'event: error\ndata: {"error":{"message":"out of memory"}}\n\n', b'{"error":{"message":"out of memory"}}\n'],
)  # fmt: skip
def test_an_error_in_the_middle_has_the_servers_words(data):
    parser = openai_chat.StreamParser()
    parser.feed(HELLO)
    with pytest.raises(ServerFailedError, match="out of memory"):
        parser.feed(data)


@pytest.mark.parametrize(
    "data",
    [b"<html>\x1b[31mapp</html>\n", b"data: {broken\n\n", b"data: [1]\n\n", b"data: \xff\xfe\n\n",
     b"data: " + b"[" * 10_000 + b"\n\n", b'{"choices":[]}\n'],
)  # fmt: skip
def test_garbage_is_nonsense_with_a_clean_excerpt(data):
    with pytest.raises(NonsenseError) as caught:
        openai_chat.StreamParser().feed(data)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("parser", [openai_chat.StreamParser, ollama.StreamParser])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_endless_line_is_nonsense(parser, end):
    with pytest.raises(NonsenseError, match=r"16,000,000"):
        parser().feed(b"x" * (base.MAX_LINE_BYTES + 1) + end)


def test_an_endless_event_is_nonsense():
    parser = openai_chat.StreamParser()
    line = b"data: " + b"x" * 1_000_000 + b"\n"
    parser.feed(line * 15)
    with pytest.raises(NonsenseError, match="does not end"):
        parser.feed(line)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices":[]}', b"<html>"])
def test_a_whole_answer_that_is_none(body):
    with pytest.raises(NonsenseError):
        openai_chat.parse_response(body)
    with pytest.raises(NonsenseError):
        ollama.parse_response(body)


def test_a_whole_error_under_200():
    for read in (openai_chat.parse_response, ollama.parse_response):
        with pytest.raises(ServerFailedError, match="boom"):
            read(b'{"error":"boom"}')


def test_a_whole_ollama_answer():
    tool = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"p": "é"}}}
    body = {"message": {"content": "hi", "thinking": "hm", "tool_calls": [tool]}, "done": True,
            "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 2}  # fmt: skip
    assert ollama.parse_response(json.dumps(body).encode()) == [
        ReasoningDelta("hm"), TextDelta("hi"), ToolCallDelta(0, "call_1", "f", '{"p":"é"}'),
        UsageReport(Usage(9, 2)), Finish("tool_calls"),
    ]  # fmt: skip


def test_an_ollama_error_line_and_a_stream_without_done():
    parser = ollama.StreamParser()
    assert parser.feed(b'{"message":{"content":"a"},"done":false}\r\n') == [TextDelta("a")]
    assert not parser.finished
    with pytest.raises(ServerFailedError, match="runner died"):
        parser.feed(b'{"error":"runner died"}\n')


# What clients are given.


def test_text_in_the_middle_of_a_call_does_not_break_it():
    renderer = anthropic.StreamRenderer("m", "1")
    events = [ToolCallDelta(0, "a", "f", '{"p"'), TextDelta("by the way"), ToolCallDelta(0, arguments=":1}"), Finish()]
    data = b"".join(renderer.feed(one) for one in events) + renderer.close()
    text, _, calls, _, finish = answer_of(check_anthropic(data))
    assert (text, calls, finish) == ("by the way", [("a", "f", '{"p":1}')], "tool_calls")


def test_an_anthropic_call_is_streamed_as_it_comes():
    renderer = anthropic.StreamRenderer("m", "1")
    assert b'"name":"f"' in renderer.feed(ToolCallDelta(0, "a", "f", '{"p"'))
    assert b":1}" in renderer.feed(ToolCallDelta(0, arguments=":1}"))


@pytest.mark.parametrize("wire", [openai_chat, anthropic])
def test_a_call_without_an_id_is_given_one(wire):
    more = (True,) if wire is openai_chat else ()
    renderer = wire.StreamRenderer("m", "1", *more)
    assert b'"id":"' in renderer.feed(ToolCallDelta(0, "", "f", "{}")).replace(b'"id":""', b"")


def test_usage_is_given_only_to_who_asked():
    for asked in (True, False):
        renderer = openai_chat.StreamRenderer("m", "1", asked)
        for one in (TextDelta("x"), UsageReport(Usage(9, 2, 4)), Finish()):
            renderer.feed(one)
        assert (b'"usage"' in renderer.close()) is asked


def test_anthropic_usage_leaves_the_cached_tokens_out_of_the_input():
    renderer = anthropic.StreamRenderer("m", "1")
    renderer.feed(UsageReport(Usage(9, 2, 4)))
    usage = sse(renderer.close())[-2]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (5, 4, 2)


def test_what_has_no_place_gives_no_bytes():
    for renderer in (openai_chat.StreamRenderer("m", "1", True), anthropic.StreamRenderer("m", "1")):
        assert renderer.feed(Notice("x", "y")) == renderer.feed(TextDelta("")) == b""


def test_an_ollama_answer_takes_as_long_as_it_took_and_signs_of_life_are_no_first_word(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ollama_server.time, "monotonic", lambda: now[0])
    renderer = ollama_server.StreamRenderer("m")
    now[0] += 2
    renderer.keep_alive()
    now[0] += 1
    renderer.feed(TextDelta("a"))
    now[0] += 4
    renderer.keep_alive()
    end = json.loads(renderer.close())
    assert [end[key] for key in ("total_duration", "prompt_eval_duration", "eval_duration")] == [7e9, 3e9, 4e9]


def test_of_an_ollama_answer_in_one_piece_all_the_time_is_the_answers(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ollama_server.time, "monotonic", lambda: now[0])
    renderer = ollama_server.StreamRenderer("m")
    now[0] += 2
    renderer.feed(ToolCallDelta(0, "a", "f", "{}"))
    end = json.loads(renderer.close().splitlines()[-1])
    assert [end[key] for key in ("total_duration", "prompt_eval_duration", "eval_duration")] == [2e9, 0, 2e9]


def test_an_ollama_keep_alive_is_a_line_that_says_nothing():
    line = json.loads(ollama_server.StreamRenderer("m").keep_alive())
    assert (line["message"], line["done"]) == ({"role": "assistant", "content": ""}, False)
    assert ollama.StreamParser().feed(ollama_server.GenerateRenderer("m").keep_alive()) == []


def test_an_error_in_ollamas_format_is_one_sentence():
    for error, status, *_ in ERRORS:
        got, body = ollama_server.render_error(error)
        assert (got, list(json.loads(body))) == (status, ["error"])
    _, body = ollama_server.render_error(ContextOverflowError("too long", prompt_tokens=3031, window=1024))
    assert "maximum context length is 1024 tokens" in json.loads(body)["error"]


ERRORS = [
    (UsageError("bad"), 400, "invalid_request", "invalid_request_error"),
    (GuardError("no"), 403, "refused_by_guard", "permission_error"),
    (UnknownModelError("no"), 404, "model_not_found", "not_found_error"),
    (KeyRefusedError("no"), 502, "key_refused", "api_error"),
    (ServerFailedError("no"), 502, "server_failed", "api_error"),
    (EndpointDownError("no"), 502, "endpoint_down", "api_error"),
    (NoServiceError(), 503, "no_service", "overloaded_error"),
    (EndpointBusyError("no"), 503, "busy", "overloaded_error"),
    (EndpointLoadingError("no"), 503, "loading", "overloaded_error"),
    (PhaseTimeoutError("no", phase="silence"), 504, "timeout", "api_error"),
]


@pytest.mark.parametrize(("error", "status", "code", "kind"), ERRORS, ids=lambda value: str(value)[:20])
def test_errors_in_the_callers_format(error, status, code, kind):
    got, body = openai_chat.render_error(error)
    assert (got, json.loads(body)["error"]["code"]) == (status, code)
    assert json.loads(body)["error"]["message"]
    assert json.loads(body)["error"]["type"]
    got, body = anthropic.render_error(error)
    assert (got, json.loads(body)["type"]) == (status, "error")
    assert (json.loads(body)["error"]["type"], json.loads(body)["error"]["code"]) == (kind, code)


def test_overflow_in_the_words_that_agents_know():
    error = ContextOverflowError("too long", prompt_tokens=3031, window=1024)
    status, body = openai_chat.render_error(error)
    assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 1024 tokens" in json.loads(body)["error"]["message"]
    status, body = anthropic.render_error(error)
    assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    assert "prompt is too long: 3031 tokens > 1024 maximum" in json.loads(body)["error"]["message"]


def test_an_error_in_the_middle_of_a_stream_is_one_the_sdk_raises():
    stream = openai_chat.StreamRenderer("m", "1", True).error(ServerFailedError("it\nbroke \ud800"))
    (row,) = sse(stream)
    assert openai.APIError("x", request=None, body=row["error"]).code == "server_failed"
    data = anthropic.StreamRenderer("m", "1").error(ServerFailedError("broke"))
    assert data.startswith(b"event: error\n")
    assert sse(data)[0]["error"]["message"] == "broke (look at the log of the server)"


# The scanner.


def scan(data: bytes, *, strip: bool = False) -> tuple[bytes, openai_chat.Scanner]:
    scanner = openai_chat.Scanner(strip_usage=strip, stream=True)
    return scanner.feed(data) + scanner.close(), scanner


def test_the_scanner_is_not_fooled_by_what_the_model_writes():
    data = delta(content='[DONE] "usage" "finish_reason":"stop" "error"')
    out, scanner = scan(data, strip=True)
    assert (out, scanner.done, scanner.finish, scanner.usage) == (data, False, "", None)


def test_the_scanner_raises_an_error_under_200():
    with pytest.raises(ServerFailedError, match="overflow"):
        scan(event({"error": {"message": "overflow"}}))


def test_the_scanner_keeps_usage_that_rides_on_a_chunk():
    data = event({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"prompt_tokens": 4}})
    out, scanner = scan(data, strip=True)
    assert (out, scanner.finish, scanner.usage) == (data, "length", Usage(4))


def test_the_scanner_reads_a_whole_answer():
    scanner = openai_chat.Scanner(strip_usage=False, stream=False)
    body = openai_chat.render_response([TextDelta("x"), UsageReport(Usage(9, 2)), Finish("length")], "m", "1")
    assert scanner.feed(body) == body
    assert (scanner.close(), scanner.usage, scanner.finish) == (b"", Usage(9, 2), "length")


def test_the_scanner_refuses_an_event_without_end():
    scanner = openai_chat.Scanner(strip_usage=True, stream=True)
    with pytest.raises(NonsenseError, match="does not end"):
        scanner.feed(b"data: " + b"x" * base.MAX_LINE_BYTES)
