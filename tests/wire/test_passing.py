"""A client's own bytes on their way to a server of its format: nothing is changed but what docs/wire.md names."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recordings import reply
from tests.wire.legal import cuts, sse
from turnout.errors import NonsenseError, ServerFailedError, UsageError
from turnout.hygiene import REMINDER, REMINDER_END, tidy
from turnout.types import ChatRequest, Finish, Message, RawBody, Text, TextDelta, Usage, UsageReport, WireFormat
from turnout.wire import (
    anthropic,
    base,
    ollama,
    ollama_server,
    openai_chat,
    scan,
    scan_anthropic,
    scan_ollama,
    scan_responses,
)
from turnout.wire.passing import Edits, Prepare

OPENAI, ANTHROPIC, OLLAMA = WireFormat.OPENAI_CHAT, WireFormat.ANTHROPIC, WireFormat.OLLAMA
PREPARE: dict[WireFormat, Prepare] = {
    OPENAI: scan.prepare,
    ANTHROPIC: scan_anthropic.prepare,
    OLLAMA: scan_ollama.prepare,
}
PARSE = {
    OPENAI: openai_chat.parse_request,
    ANTHROPIC: anthropic.parse_request,
    OLLAMA: ollama_server.parse_request,
}
FORMATS = pytest.mark.parametrize("spoken", PREPARE)
USER = {"role": "user", "content": "hello"}


def fields(body: bytes) -> dict[str, bytes]:
    """The top level, each value as it was written."""
    return {key: bytes(raw) for key, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


def edited(spoken: WireFormat, body: bytes, **edits: Any) -> dict[str, bytes]:
    return fields(PREPARE[spoken](body, Edits("there", **edits))[0])


# Whatever a client may write and nobody here knows.
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
UNKNOWN = st.dictionaries(st.text(max_size=6).map("x_".__add__), JSON, max_size=5)
SPACED = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")])
# What the table in docs/wire.md names, by format.
NAMED = {
    OPENAI: {"model", "max_tokens", "stream_options"},
    ANTHROPIC: {"model", "max_tokens"},
    OLLAMA: {"model", "truncate", "keep_alive", "shift", "options"},
}


@FORMATS
@given(UNKNOWN, SPACED, st.booleans(), st.booleans(), st.one_of(st.none(), st.integers(1, 99)))
def test_what_nobody_knows_goes_up_byte_for_byte(spoken, unknown, spaced, ascii_only, stream, most):
    rows = [USER | unknown, {"role": "assistant", "content": "a", **unknown}, USER]
    sent = {"messages": rows, "max_tokens": 50, **unknown, "stream": stream, "options": {"num_ctx": 5, **unknown}}
    sent |= {"keep_alive": 3, "shift": True}
    body = json.dumps(sent, separators=spaced, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        request = PARSE[spoken](body)
    except UsageError:  # lone surrogates are no text
        return
    assert tidy(request).raw == RawBody(spoken, body), "hygiene leaves alone what is tidy"
    before, after = fields(body), edited(spoken, body, max_tokens=most)
    assert {k: v for k, v in after.items() if k not in NAMED[spoken]} == {
        k: v for k, v in before.items() if k not in NAMED[spoken]
    }
    assert [k for k in after if k in before] == [k for k in before if k in after], "in their order"
    if spoken is OLLAMA:
        inner = {k: v for k, v in fields(before["options"]).items() if k != "num_ctx"}
        assert fields(after["options"]) == inner
    else:
        assert after["options"] == before["options"]


@FORMATS
def test_the_model_is_the_servers_own_id(spoken):
    assert edited(spoken, b'{"model":"auto"}')["model"] == b'"there"'
    assert edited(spoken, b"{}")["model"] == b'"there"'


@pytest.mark.parametrize(
    ("given_limit", "sent"), [("9", "9"), ("100", "100"), ("101", "100"), ("-1", "100"), ("null", "null"), ("", "")]
)
@FORMATS
def test_a_limit_that_leaves_no_room_is_clamped_and_no_other(spoken, given_limit, sent):
    name = "num_predict" if spoken is OLLAMA else "max_tokens"
    limit = f'{{"{name}":{given_limit}}}' if given_limit else "{}"
    body = f'{{"options":{limit}}}' if spoken is OLLAMA else limit
    after = edited(spoken, body.encode(), max_tokens=100)
    inner = fields(after["options"]) if spoken is OLLAMA else after
    assert inner.get(name, b"").decode() == sent


@FORMATS
def test_a_limit_is_named_for_servers_that_would_take_their_own(spoken):
    after = edited(spoken, b"{}", max_tokens=100, name_limit=True)
    inner = fields(after["options"]) if spoken is OLLAMA else after
    assert inner["num_predict" if spoken is OLLAMA else "max_tokens"] == b"100"


def test_one_window_for_every_request_and_nothing_else_that_loads_a_model_anew():
    given_options = b'{"options":{"num_ctx":8515,"num_gpu":1,"main_gpu":0,"num_thread":4,"seed": 7}}'
    assert fields(edited(OLLAMA, given_options, num_ctx=4096)["options"]) == {"seed": b"7", "num_ctx": b"4096"}
    assert fields(edited(OLLAMA, given_options)["options"]) == {"seed": b"7"}
    assert edited(OLLAMA, b"{}", num_ctx=4096)["options"] == b'{"num_ctx":4096}'
    assert "options" not in edited(OLLAMA, b"{}")


def test_how_long_a_model_stays_and_what_is_dropped_of_a_prompt_is_no_clients_choice():
    after = edited(OLLAMA, b'{"keep_alive":0,"truncate":true,"shift":true,"think":"high","format":"json"}')
    assert after == {"think": b'"high"', "format": b'"json"', "model": b'"there"', "truncate": b"false"}


def test_usage_is_asked_for_in_a_stream_alone():
    assert edited(OPENAI, b'{"stream":true}')["stream_options"] == b'{"include_usage":true}'
    assert "stream_options" not in edited(OPENAI, b'{"stream":false}')
    assert "stream_options" not in edited(ANTHROPIC, b'{"stream":true}')


@pytest.mark.parametrize(
    "hidden",
    [
        b'"Model":"forbidden"',
        b'"OPTIONS":{"num_gpu":0}',
        b'"Keep_Alive":-1',
        b'"\xe2\x84\xaaeep_alive":-1',
        b'"\xc5\xbftream":true',
        b'"Messages":[]',
    ],
)
@FORMATS
def test_a_server_that_reads_keys_in_any_case_is_told_nothing_else(spoken, hidden):
    good = b'{"model":"auto","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"x_Other":1'
    PARSE[spoken](good + b"}")
    with pytest.raises(UsageError, match="is spelled"):
        PARSE[spoken](good + b"," + hidden + b"}")


@pytest.mark.parametrize(
    "content",
    [
        b'[{"type":"text","text":"hi"}],"Content":[]',
        b'[{"type":"text","text":"hi","Type":"image_url","Image_URL":{"url":"http://there/"}}]',
        b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,aGk=","URL":"http://there/"}}]',
    ],
)
def test_an_image_elsewhere_is_not_hidden_by_other_letters(content):
    with pytest.raises(UsageError, match="is spelled"):
        PARSE[OPENAI](b'{"messages":[{"role":"user","content":' + content + b"}]}")


@FORMATS
def test_what_is_no_object_is_refused(spoken):
    for bad in (b"", b"[]", b"{", b"[" * 100_000):
        with pytest.raises(UsageError):
            PREPARE[spoken](bad, Edits("m"))


@pytest.mark.parametrize("stream", [None, True, False])
def test_a_stream_is_what_the_format_takes_for_one(stream):
    body = json.dumps({} if stream is None else {"stream": stream}).encode()
    found = {spoken: prepare(body, Edits("m"))[1].stream for spoken, prepare in PREPARE.items()}
    assert found == {OPENAI: stream is True, ANTHROPIC: stream is True, OLLAMA: stream is not False}


# Prefix hygiene.


def tidied(spoken: WireFormat, **fields_: object) -> tuple[dict[str, Any], ChatRequest]:
    """The body as it goes on, and the request as it would be translated."""
    request = tidy(PARSE[spoken](json.dumps({"model": "m", **fields_}).encode()))
    assert request.raw is not None
    return json.loads(request.raw.body), request


def test_the_billing_line_goes_from_the_bytes_too():
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1a;"},
        {"type": "text", "text": "You are.", "cache_control": {"type": "ephemeral"}},
    ]
    body, _ = tidied(ANTHROPIC, system=blocks, messages=[USER])
    assert body["system"] == blocks[1:]
    body, _ = tidied(ANTHROPIC, system=blocks[:1], messages=[USER])
    assert "system" not in body


@FORMATS
def test_a_time_of_day_goes_from_the_bytes_too(spoken):
    system = "Now: 2026-11-25T12:34:56Z."
    rows = [USER] if spoken is ANTHROPIC else [{"role": "system", "content": system, "x": 1}, USER]
    body, _ = tidied(spoken, messages=rows, system=system)
    kept = body["system"] if spoken is ANTHROPIC else body["messages"][0].pop("content")
    assert kept == "Now: 2026-11-25."
    assert spoken is ANTHROPIC or body["messages"][0] == {"role": "system", "x": 1}


def test_a_time_of_day_goes_from_what_generate_has_for_one():
    sent = {"prompt": "at 12:34", "template": "{{ .Prompt }}", "context": [1]}
    request = ollama_server.parse_generate(json.dumps({"model": "m", "system": "2026-11-25 12:34", **sent}).encode())
    raw = tidy(request).raw
    assert raw is not None
    assert json.loads(raw.body) == {"model": "m", "system": "2026-11-25", **sent}
    assert request.only == "'template' of /api/generate and 'context' of /api/generate"


def test_system_messages_of_claude_code_join_the_leading_one_or_become_reminders():
    call = {"type": "tool_use", "id": "t", "name": "Read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x", "cache_control": {"type": "ephemeral"}}
    rows = [
        {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": [{"type": "text", "text": "# Environment"}]},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
        {"role": "system", "content": "The file changed."},
    ]
    lead = [{"type": "text", "text": "You are.", "cache_control": {"type": "ephemeral"}}]
    body, _ = tidied(ANTHROPIC, system=lead, messages=rows, thinking={"type": "adaptive"})
    assert body["system"] == [lead[0] | {"text": "You are.\n\n# Environment"}]
    reminder = {"type": "text", "text": f"{REMINDER}The file changed.{REMINDER_END}"}
    assert body["messages"] == [rows[0], rows[2], {"role": "user", "content": [result, reminder]}]
    assert body["thinking"] == {"type": "adaptive"}


BILLING = "x-anthropic-billing-header: cch=1;"
TEXTS = st.sampled_from(["", "a", "# Env", BILLING, f"{BILLING}\nYou", "at 2026-01-02T03:04Z"])
CONTENT = st.one_of(TEXTS, st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3))
ROWS = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content},
              st.sampled_from(["system", "user", "assistant"]), CONTENT), min_size=1, max_size=8,
)  # fmt: skip


@FORMATS
@given(ROWS, st.one_of(st.none(), CONTENT))
def test_bytes_are_tidied_as_messages_are(spoken, rows, lead):
    if spoken is OLLAMA:
        rows = [row | {"content": text_of(row["content"])} for row in rows]
    sent = {"messages": [*rows, USER]} | ({"system": lead} if spoken is ANTHROPIC and lead is not None else {})
    request = PARSE[spoken](json.dumps(sent).encode())
    if request.raw is None:
        assert (spoken, rows[0]["role"]) == (ANTHROPIC, "system")
        return
    tidy_one = tidy(request)
    assert tidy_one.raw is not None
    assert said(PARSE[spoken](tidy_one.raw.body).messages) == said(tidy_one.messages)


def text_of(content: object) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)  # type: ignore[attr-defined]


def said(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    assert all(isinstance(part, Text) for m in messages for part in m.parts)
    return [(m.role, m.text) for m in messages]


def test_a_system_message_with_an_image_is_left_to_the_other_lane():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    rows = [USER, {"role": "system", "content": [{"type": "text", "text": "x"}, image]}]
    assert tidy(anthropic.parse_request(json.dumps({"messages": rows}).encode())).raw is None


# The scanners.


def event(**data: object) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def delta(text: str) -> bytes:
    return event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text})


START = event(type="message_start", message={"type": "message", "content": [], "stop_reason": None,
              "usage": {"input_tokens": 7, "cache_read_input_tokens": 24, "output_tokens": 0}})  # fmt: skip
BLOCK = event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
END = event(type="message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 5})
STOP = event(type="message_stop")
MESSAGES = START + BLOCK + delta("hi") + END + STOP
LINES = (
    b'{"model":"m","message":{"role":"assistant","content":"hi"},"done":false}\n'
    b'{"model":"m","message":{"content":""},"done":true,"done_reason":"length","prompt_eval_count":31,"eval_count":5}\n'
)
ANSWERS = [
    (scan_anthropic.Scanner, MESSAGES, Usage(31, 5, 24), "max_tokens"),
    (scan_ollama.Scanner, LINES, Usage(31, 5), "length"),
]


@pytest.mark.parametrize(("scanner", "answer", "usage", "finish"), ANSWERS, ids=["anthropic", "ollama"])
@given(points=st.lists(st.integers(0, 10**6), max_size=8))
def test_an_answer_passes_unchanged_however_it_is_cut(scanner, answer, usage, finish, points):
    one = scanner(stream=True)
    passed = [one.feed(piece) for piece in cuts(answer, points)]
    assert b"".join(passed) + one.close() == answer
    assert (one.usage, one.finish, one.done, one.answered) == (usage, finish, True, True)
    end = b"\n" if scanner is scan_ollama.Scanner else b"\n\n"
    assert all(piece.endswith(end) for piece in passed if piece), "whole events alone are handed on"


@given(points=st.lists(st.integers(0, 10**6), max_size=4))
def test_what_a_server_says_after_its_last_line_is_no_part_of_the_answer(points):
    more = (
        b'{"message":{"content":"more"},"done":false}\n{"error":"boom"}\n{"done":true,"done_reason":"stop"}\n{"half":'
    )
    one = scan_ollama.Scanner(stream=True)
    passed = [one.feed(piece) for piece in cuts(LINES + more, points)]
    assert b"".join(passed) + one.close() == LINES
    assert (one.usage, one.finish) == (Usage(31, 5), "length")
    parser = ollama.StreamParser()
    events = [event for piece in cuts(LINES + more, points) for event in parser.feed(piece)] + parser.close()
    assert events == [TextDelta("hi"), UsageReport(Usage(31, 5)), Finish("length")]


RESPONSES = {"plain": "responses-stream", "cut": "responses-cut"}


@pytest.mark.parametrize("name", RESPONSES)
@given(points=st.lists(st.integers(0, 10**6), max_size=8))
def test_a_recorded_response_passes_unchanged_but_for_the_name_of_a_cut_ones_end(name, points):
    recorded = reply("vllm", "0.32.0", "ready", RESPONSES[name]).body
    one = scan_responses.Scanner(stream=True)
    passed = [one.feed(piece) for piece in cuts(recorded, points)]
    said = b"".join(passed) + one.close()
    assert all(piece.endswith(b"\n\n") for piece in passed if piece), "whole events alone are handed on"
    last = sse(recorded)[-1]["response"]
    ended = f"response.{last['status']}".encode()
    assert said == recorded.replace(b"response.completed", ended)
    assert (one.finish, one.done, one.answered) == ("length" if name == "cut" else "stop", True, True)
    assert one.usage == Usage(last["usage"]["input_tokens"], last["usage"]["output_tokens"])
    assert json.loads(one.answer) == last
    assert (name == "cut") == (last["id"] == "resp_ours"), "the request names the id of its answer"
    assert [row["sequence_number"] for row in sse(said)] == list(range(len(sse(said))))


def test_a_recorded_whole_response_is_read():
    recorded = reply("vllm", "0.32.0", "ready", "responses").body
    one = scan_responses.Scanner(stream=False)
    assert (one.feed(recorded), one.answer) == (recorded, recorded)
    assert (one.finish, one.answered, one.usage) == ("length", True, Usage(33, 8))
    other = scan_responses.Scanner(stream=False)
    other.feed(b'{"output":[{"type":"message"}],"status":"completed"}')
    assert (other.answered, other.answer) == (True, b""), "what has no id cannot be kept"


def test_why_vllm_is_not_sent_tools_nor_left_to_cut_a_prompt():
    """Recorded: without a parser of tool calls its chat refuses, and this route answers the call as prose; with
    truncation auto the prompt loses its beginning without a word."""
    assert reply("vllm", "0.32.0", "no-parser", "tools").status == 400
    (item,) = json.loads(reply("vllm", "0.32.0", "no-parser", "responses-tools").body)["output"]
    assert (item["type"], "<tool_call>" in item["content"][0]["text"]) == ("message", True)
    cut = json.loads(reply("vllm", "0.32.0", "ready", "responses-cut-by-it").body)
    assert cut["usage"]["input_tokens"] < 1024 < 2500
    sent = fields(scan_responses.prepare(b'{"truncation":"auto","store":true,"input":"x"}', Edits("there"))[0])
    assert sent == {"model": b'"there"', "store": b"false", "input": b'"x"'}


@given(UNKNOWN, SPACED, st.one_of(st.none(), st.integers(1, 99)))
def test_what_nobody_knows_of_a_response_goes_up_byte_for_byte(unknown, spaced, most):
    sent = {"input": [USER | unknown], "max_output_tokens": 50, **unknown, "stream": True}
    body = json.dumps(sent, separators=spaced).encode()
    before, after = fields(body), fields(scan_responses.prepare(body, Edits("there", max_tokens=most))[0])
    named = {"model", "store", "max_output_tokens"}
    assert {k: v for k, v in after.items() if k not in named} == {k: v for k, v in before.items() if k not in named}
    assert after["max_output_tokens"] == str(min(50, most or 50)).encode()


@pytest.mark.parametrize(
    "said_so",
    [
        event(type="response.failed", response={"status": "failed", "error": {"message": "boom"}}),
        event(type="error", message="boom", code="x"),
        b'event: error\ndata: {"error":{"message":"boom","code":500}}\n\n',
    ],
)
def test_a_failure_in_the_middle_of_a_response_is_one(said_so):
    one = scan_responses.Scanner(stream=True)
    with pytest.raises(ServerFailedError, match="boom"):
        one.feed(event(type="response.created", response={"status": "in_progress", "error": None}) + said_so)


def test_what_a_model_writes_is_no_end_of_a_response():
    one = scan_responses.Scanner(stream=True)
    words = event(type="response.output_text.delta", delta='"response.completed" "error" {"type": "response.failed"}')
    assert one.feed(words) == words
    assert not one.done
    assert not one.begins(event(type="response.in_progress", response={"output": []}))
    assert one.begins(event(type="response.output_item.added", item={}))


def test_a_head_alone_is_no_beginning():
    one = scan_anthropic.Scanner(stream=True)
    assert not one.begins(one.feed(START + b"event: ping\ndata: {}\n\n"))
    assert one.begins(one.feed(BLOCK))
    other = scan_ollama.Scanner(stream=True)
    assert not other.begins(other.feed(b"\x00\xffnot json\n"))
    assert other.begins(other.feed(LINES))


@pytest.mark.parametrize(
    "word", ["error", "usage", "message_stop", "message_delta", "done", '"error"', '{"done": true}']
)
def test_scanners_are_not_fooled_by_what_a_model_writes(word):
    one, other = scan_anthropic.Scanner(stream=True), scan_ollama.Scanner(stream=True)
    call = {"type": "tool_use", "id": "t", "name": word, "input": {"error": word, "usage": {"input_tokens": 9}}}
    said_so = START + event(type="content_block_start", index=0, content_block=call) + delta(word)
    assert one.feed(said_so) == said_so
    tool = {"function": {"name": word, "arguments": {"error": word, "done": True, "done_reason": "x"}}}
    line = json.dumps({"message": {"content": word, "tool_calls": [tool]}, "done": False}).encode() + b"\n"
    assert other.feed(line) == line
    assert (one.usage, one.finish, one.done) == (Usage(31, 0, 24), "", False)
    assert (other.usage, other.finish, other.done) == (None, "", False)


@pytest.mark.parametrize(
    ("scanner", "said_so"),
    [
        (scan_anthropic.Scanner, event(type="error", error={"type": "overloaded_error", "message": "boom"})),
        (scan_anthropic.Scanner, b'data: {"error": {"message": "boom", "code": 500}}\n\n'),
        (scan_ollama.Scanner, b'{"error":"boom"}\n'),
    ],
)
def test_an_error_under_200_is_one(scanner, said_so):
    with pytest.raises(ServerFailedError, match="boom"):
        scanner(stream=True).feed(said_so)
    with pytest.raises(ServerFailedError, match="boom"):
        one = scanner(stream=True)
        one.feed(said_so.rstrip())
        one.close()


@pytest.mark.parametrize("scanner", [scan_anthropic.Scanner, scan_ollama.Scanner])
def test_what_does_not_end_is_nonsense(scanner):
    with pytest.raises(NonsenseError, match="does not end"):
        scanner(stream=True).feed(b"x" * (base.MAX_LINE_BYTES + 1))


def test_whole_answers_are_read_and_what_is_none_is_told():
    whole = b'{"type":"message","content":[],"stop_reason":"tool_use","usage":{"input_tokens":3,"output_tokens":2}}'
    one, other = scan_anthropic.Scanner(stream=False), scan_ollama.Scanner(stream=False)
    assert (one.feed(whole), one.usage, one.finish, one.answered) == (whole, Usage(3, 2), "tool_use", True)
    line = LINES.splitlines()[-1]
    assert (other.feed(line), other.usage, other.finish, other.answered) == (line, Usage(31, 5), "length", True)
    for scanner in (scan_anthropic.Scanner, scan_ollama.Scanner):
        for bad in (b"", b"[]", b"<html>", b'{"error":"boom"}'):
            silent = scanner(stream=False)
            assert silent.feed(bad) == bad
            assert not silent.answered
