"""Clients' requests as real agents and SDKs send them (facts/agents.md, section 3), and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.backends import BY_KIND
from turnout.errors import TurnoutError, UsageError
from turnout.hygiene import tidy
from turnout.types import (
    ChatRequest,
    Image,
    Message,
    Model,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    WireFormat,
    message,
)
from turnout.wire import anthropic, ollama, ollama_server, openai_chat, openai_responses

USER = {"role": "user", "content": "hello"}
FORMATS = [openai_chat, anthropic]


def test_a_result_belongs_to_its_call_also_when_only_the_result_has_an_id():
    call = {"function": {"name": "f", "arguments": {}}}
    rows = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x", "tool_call_id": "own"}]
    _, asked, result = ollama_server.parse_request(json.dumps({"model": "m", "messages": rows}).encode()).messages
    assert result.tool_results[0].call_id == asked.tool_calls[0].call_id
    assert result.tool_results[0].name == "f"


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


BROKEN = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "a string": b'"x"',
    "invalid UTF-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "a lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "a nesting bomb of lists": b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "a nesting bomb of objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "an endless number": b'{"messages":[{"role":"user","content":"x"}],"temperature":' + b"1" * 400 + b"}",
    "a number out of range": b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "no messages": b'{"model":"m"}',
    "empty messages": b'{"messages":[]}',
    "messages a string": b'{"messages":"x"}',
    "a message a string": b'{"messages":["x"]}',
    "an unknown role": b'{"messages":[{"role":"wizard","content":"x"}]}',
    "no role": b'{"messages":[{"content":"x"}]}',
    "content a number": b'{"messages":[{"role":"user","content":5}]}',
    "a text part without text": b'{"messages":[{"role":"user","content":[{"type":"text","text":5}]}]}',
    "an unknown part": b'{"messages":[{"role":"user","content":[{"type":"smell"}]}]}',
    "model a number": body(model=5),
    "max_tokens a string": body(max_tokens="5"),
    "max_tokens zero": body(max_tokens=0),
    "max_tokens a fraction": body(max_tokens=1.5),
    "temperature a string": body(temperature="hot"),
    "temperature true": body(temperature=True),
    "stream a string": body(stream="yes"),
    "tools an object": body(tools={}),
}


@pytest.mark.parametrize("wire", FORMATS, ids=lambda wire: wire.__name__.rpartition(".")[2])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_request_is_one_clear_line(wire, case):
    with pytest.raises(UsageError) as caught:
        wire.parse_request(BROKEN[case])
    assert 10 < len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
FIELD = st.sampled_from(
    ["model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "stop", "tools",
     "system", "tool_choice", "response_format", "stop_sequences", "reasoning_effort"]
)  # fmt: skip


@given(st.dictionaries(FIELD, JSON, max_size=4))
def test_what_is_accepted_can_be_peeked_at_edited_and_rendered(fields):
    sent = body(**fields)
    for wire in FORMATS:
        try:
            request = wire.parse_request(sent)
        except UsageError:
            continue
        assert openai_chat.render_request(request, "x", stream=True)
        assert ollama.render_request(request, "x", stream=True, num_ctx=None)
        if wire is openai_chat:
            assert bool(openai_chat.peek(sent).stream) is request.stream
            edited = json.loads(openai_chat.edit_request(sent, model="x", max_tokens=9, ask_usage=True))
            assert edited["stream_options"]["include_usage"] is True


@given(st.binary(max_size=80))
def test_binary_input_raises_only_our_errors(data):
    for read in (openai_chat.parse_request, anthropic.parse_request):
        with pytest.raises(TurnoutError):
            read(b"{" + data)


def test_ten_megabytes_are_read():
    text = "x" * 10_000_000
    request = openai_chat.parse_request(body(messages=[{"role": "user", "content": text}]))
    assert len(request.messages[0].text) == 10_000_000


def test_a_value_too_deep_to_write_and_a_lone_surrogate_are_ours():
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    request = ChatRequest((message("user", "bad \ud800 text"),), extras={"deep": deep})
    with pytest.raises(UsageError, match="nested too deeply"):
        openai_chat.render_request(request, "m", stream=True)
    sent = json.loads(openai_chat.render_request(ChatRequest(request.messages), "m", stream=True))
    assert sent["messages"][0]["content"] == "bad ? text"


def test_openai_fields():
    sent = body(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                {"type": "image_url", "image_url": {"url": "http://10.0.0.5/x.png"}},
            ]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"p":1}'}},
                {"id": "c2", "type": "function", "function": {"name": "ls", "arguments": {"p": 2}}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a.py"}]},
            {"role": "tool", "tool_call_id": "c2", "content": None},
        ],
        tools=[{"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}, "strict": False}}],
        tool_choice={"type": "function", "function": {"name": "ls"}},
        max_tokens=32000, max_completion_tokens=4096, stop="END", store=False,
    )  # fmt: skip
    request = openai_chat.parse_request(sent)
    assert request.messages == (
        Message("system", (Text("be brief"),)),
        Message("user", (Text("look"), Image("image/png", "QUJD"), Image(url="http://10.0.0.5/x.png"))),
        Message("assistant", (Reasoning("hm"), ToolCall("c1", "ls", '{"p":1}'), ToolCall("c2", "ls", '{"p":2}'))),
        Message("tool", (ToolResult("c1", "a.py"),)),
        Message("tool", (ToolResult("c2", ""),)),
    )
    assert (request.tools[0].name, request.tools[0].extras) == ("ls", {"strict": False})
    assert (request.tool_choice, request.max_tokens, request.stop) == ("tool:ls", 4096, ("END",))
    assert (request.extras, request.stream) == ({"store": False}, False)
    assert (request.raw.format, request.raw.body) == (WireFormat.OPENAI_CHAT, sent)


@pytest.mark.parametrize("wire", FORMATS)
def test_minus_one_means_no_limit(wire):
    assert wire.parse_request(body(max_tokens=-1)).max_tokens is None


def claude_request() -> bytes:
    return body(
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330; cch=abc;"},
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}}]},
            {"role": "system", "content": [{"type": "text", "text": "# Environment"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "tool_use", "id": "t1", "name": "Read", "input": {"path": "a"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": [
                    {"type": "text", "text": "broken"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                ]},
                {"type": "text", "text": "again"},
            ]},
        ],
        tools=[{"name": "Read", "input_schema": {"type": "object"}, "defer_loading": True}],
        thinking={"type": "adaptive"}, metadata={"user_id": "{}"}, stop_sequences=["END"], stream=True,
    )  # fmt: skip


def test_claude_code_request():
    request = tidy(anthropic.parse_request(claude_request()))
    assert request.messages == (
        Message("system", (Text("You are an agent.\n\n# Environment"),)),
        Message("user", (Text("go"),)),
        Message("assistant", (Reasoning("hm"), ToolCall("t1", "Read", '{"path":"a"}'))),
        Message("user", (ToolResult("t1", "broken", is_error=True), Image("image/png", "QUJD"), Text("again"))),
    )
    assert (request.stream, request.stop) == (True, ("END",))


def test_claude_code_request_reaches_a_server_whole_and_in_order():
    request = tidy(anthropic.parse_request(claude_request()))
    rows = json.loads(openai_chat.render_request(request, "m", stream=True))["messages"]
    assert [row["role"] for row in rows] == ["system", "user", "assistant", "tool", "user"]
    assert [part["type"] for part in rows[4]["content"]] == ["image_url", "text"]
    assert rows[3]["content"] == "[the tool failed] broken"
    native = json.loads(ollama.render_request(request, "m", stream=True, num_ctx=None))["messages"]
    assert native[3]["content"] == "[the tool failed] broken"
    assert [row["role"] for row in native] == ["system", "user", "assistant", "tool", "user"]
    assert (native[3]["tool_name"], native[4]["images"]) == ("Read", ["QUJD"])


def test_a_system_message_is_the_same_as_blocks_and_as_a_string():
    blocks = body(messages=[USER, {"role": "system", "content": [{"type": "text", "text": "env"}]}])
    string = body(messages=[USER, {"role": "system", "content": "env"}])
    assert anthropic.parse_request(blocks).messages == anthropic.parse_request(string).messages


@pytest.mark.parametrize(
    ("choice", "neutral"),
    [({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "none"}, "none"),
     ({"type": "tool", "name": "f"}, "tool:f"), (None, "")],
)  # fmt: skip
def test_anthropic_tool_choice(choice, neutral):
    assert anthropic.parse_request(body(tool_choice=choice)).tool_choice == neutral


SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}}


def test_what_an_anthropic_client_says_of_form_and_effort_is_kept():
    wanted = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "max"}
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    request = anthropic.parse_request(body(output_config=wanted, top_k=40, tool_choice=choice))
    sent = json.loads(openai_chat.render_request(request, "m", stream=True))
    assert sent["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert (sent["reasoning_effort"], sent["top_k"], sent["parallel_tool_calls"]) == ("high", 40, False)
    native = json.loads(ollama.render_request(request, "m", stream=True, num_ctx=None))
    assert (native["format"], native["think"], native["options"]["top_k"]) == (SCHEMA, "high", 40)
    plain = json.loads(openai_chat.render_request(anthropic.parse_request(body()), "m", stream=True))
    assert not {"response_format", "reasoning_effort", "top_k", "parallel_tool_calls"} & set(plain)


NO_THINKING: list[dict[str, object]] = [
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
]


@pytest.mark.parametrize("said", NO_THINKING)
@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_who_wants_no_thinking_is_heard_where_a_servers_switch_is_known_and_nothing_else_is_sent(said, kind):
    backend, model = BY_KIND[kind], Model("m", capabilities=frozenset({"chat", "thinking"}))
    sent = json.loads(backend.render(anthropic.parse_request(body(**said)), model, 4096))
    switched = kind in ("llamacpp", "vllm", "sglang", "mlx")
    assert sent.get("chat_template_kwargs") == ({"enable_thinking": False} if switched else None)
    assert sent.get("think") == (False if kind == "ollama" else None)
    assert "reasoning_effort" not in sent


def test_the_switch_is_not_turned_for_others_nor_over_what_was_chosen():
    adaptive, model = anthropic.parse_request(body(thinking={"type": "adaptive"})), Model("m")
    assert "chat_template_kwargs" not in json.loads(BY_KIND["vllm"].render(adaptive, model, 0))
    assert "think" not in json.loads(BY_KIND["ollama"].render(adaptive, model, 0))
    off = anthropic.parse_request(body(thinking={"type": "disabled"}))
    assert "think" not in json.loads(BY_KIND["ollama"].render(off, Model("m", capabilities=frozenset({"chat"})), 0))
    none = openai_chat.parse_request(body(reasoning_effort="none", chat_template_kwargs={"a": 1}))
    sent = json.loads(BY_KIND["llamacpp"].render(none, model, 0))
    assert sent["chat_template_kwargs"] == {"enable_thinking": False, "a": 1}
    assert json.loads(BY_KIND["lmstudio"].render(none, model, 0))["reasoning_effort"] == "none"


def test_tools_that_only_anthropics_service_runs_are_not_offered_to_a_model():
    own = {"name": "bash", "type": "bash_20250124"}, {"name": "read", "input_schema": {"type": "object"}}
    hosted = {"name": "web_search", "type": "web_search_20250305"}
    request = anthropic.parse_request(body(tools=[hosted, *own]))
    assert [tool.name for tool in request.tools] == ["bash", "read"]


@pytest.mark.parametrize("form", [{"type": "grammar"}, {"type": "json_schema"}, {"schema": SCHEMA}])
def test_a_form_that_nobody_knows_is_refused(form):
    with pytest.raises(UsageError, match="output_config.format"):
        anthropic.parse_request(body(output_config={"format": form}))


def ollama_body(**fields: object) -> dict[str, object]:
    request = ChatRequest((message("user", "x"),), **fields)
    return json.loads(ollama.render_request(request, "m", stream=True, num_ctx=8192))


def test_ollama_options():
    sent = ollama_body(max_tokens=5, temperature=0.0, top_p=0.5, stop=("END",))
    assert sent["options"] == {"num_ctx": 8192, "num_predict": 5, "temperature": 0.0, "top_p": 0.5, "stop": ["END"]}
    assert sent["truncate"] is False
    assert not {"shift", "think", "format", "tools"} & sent.keys()


@pytest.mark.parametrize(
    ("effort", "think"), [("none", False), ("minimal", "low"), ("high", "high"), ("xhigh", "max"), ("odd", True)]
)
def test_ollama_thinks_as_far_as_it_knows_how(effort, think):
    assert ollama_body(reasoning_effort=effort)["think"] == think


def test_ollama_formats():
    schema = {"type": "object"}
    assert ollama_body(response_format={"type": "json_object"})["format"] == "json"
    assert ollama_body(response_format={"type": "json_schema", "json_schema": {"schema": schema}})["format"] == schema
    assert "format" not in ollama_body(response_format={"type": "text"})


@pytest.mark.parametrize(
    "image", [{}, {"url": {"url": "http://10.0.0.5/x.png"}}, {"url": None}, ["http://10.0.0.5"], 7]
)
def test_an_image_without_an_address_that_can_be_looked_at_is_refused(image):
    part = {"type": "image_url", "image_url": image}
    with pytest.raises(UsageError, match="an image's url is not a string"):
        openai_chat.parse_request(json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode())


def test_ollama_is_never_sent_an_image_by_address():
    request = ChatRequest((Message("user", (Image(url="http://example.invalid/x.png"),)),))
    with pytest.raises(UsageError, match="by its address"):
        ollama.render_request(request, "m", stream=True, num_ctx=None)


@pytest.mark.parametrize(("text", "value"), [("", {}), ('{"a":1}', {"a": 1}), ('"Paris"', {"input": "Paris"}),
                                             ("{bad", {"input": "{bad"}), ("\ud800", {"input": "\ud800"})])  # fmt: skip
def test_arguments_become_an_object_and_lose_nothing(text, value):
    assert ollama.arguments_object(text) == value


def test_edit_request_changes_what_it_names_and_nothing_else():
    sent = (
        b'{"model":"a","odd": {"x" : [1, 2.50]},"max_tokens":5,"max_completion_tokens":9000,"stream_options":{"y":1}}'
    )
    edited = openai_chat.edit_request(sent, model="b", max_tokens=100, ask_usage=True)
    top = msgspec.json.decode(edited, type=dict[str, msgspec.Raw])
    assert {key: bytes(raw) for key, raw in top.items()} == {
        "model": b'"b"',
        "odd": b'{"x" : [1, 2.50]}',
        "max_tokens": b"5",
        "max_completion_tokens": b"100",
        "stream_options": b'{"y":1,"include_usage":true}',
    }


@pytest.mark.parametrize(("given", "sent"), [(b"-1", b"100"), (b"null", b"null"), (b"100", b"100"), (b"101", b"100")])
def test_edit_request_clamps_only_what_is_larger(given, sent):
    edited = openai_chat.edit_request(b'{"max_tokens":' + given + b"}", model="m", max_tokens=100)
    assert b'"max_tokens":' + sent + b"," in edited


@pytest.mark.parametrize("bad", [b"[]", b"", b"{", b'{"stream_options":"x"}'])
def test_edit_request_refuses_what_is_no_request(bad):
    with pytest.raises(UsageError):
        openai_chat.edit_request(bad, model="m", ask_usage=True)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"max_tokens": 100}),
        ({"max_tokens": None}, {"max_tokens": 100}),
        ({"max_tokens": 20}, {"max_tokens": 20}),
        ({"max_completion_tokens": 900}, {"max_completion_tokens": 100}),
    ],
)
def test_edit_request_names_a_limit_where_the_client_named_none(given, sent):
    edited = json.loads(openai_chat.edit_request(body(**given), model="m", max_tokens=100, name_limit=True))
    assert {key: value for key, value in edited.items() if key.startswith("max_")} == sent


def test_what_is_counted_is_the_conversation():
    conversation = (
        message("system", "Be brief."),
        Message("user", (Text("Weather?"), Image("image/png", "aGk="))),
        Message("assistant", (Reasoning("Where?", "sig"), Text("Let me see."), ToolCall("c1", "weather", '{"a":1}'))),
        Message("user", (ToolResult("c1", "sunny"), Text("Thanks"))),
    )
    tool = Tool("weather", "of a city", {"type": "object"})
    read = anthropic.parse_request(anthropic.render_count(ChatRequest(conversation, tools=(tool,)), "m"))
    assert (read.messages, read.tools, read.model) == (conversation, (tool,), "m")


@pytest.mark.parametrize("parse", [m.parse_request for m in (openai_chat, anthropic, openai_responses, ollama_server)])
def test_more_messages_than_anybody_has_are_refused_before_any_is_read(parse: Callable[[bytes], ChatRequest]) -> None:
    rows = [{"role": "nobody"}] * 20_001
    with pytest.raises(UsageError, match="has 20,001 entries, the most is 20,000"):
        parse(json.dumps({"model": "m", "messages": rows, "input": rows}).encode())


@pytest.mark.parametrize("form", FORMATS)
def test_more_parts_than_anybody_has_are_refused(form: ModuleType) -> None:
    many = {"role": "user", "content": [{"type": "text", "text": "a"}] * 20_001}
    with pytest.raises(UsageError, match="content has 20,001 entries"):
        form.parse_request(json.dumps({"model": "m", "messages": [many]}).encode())
