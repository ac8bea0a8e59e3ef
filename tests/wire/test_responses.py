"""The Responses format: what Codex and the SDKs send (facts/agents.md, section 3), hostile input, and odd answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.legal import check_responses, sse
from tests.wire.test_requests import JSON
from turnout.errors import ContextOverflowError, EndpointBusyError, ServerFailedError, UsageError
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    Image,
    Message,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    message,
)
from turnout.wire import ollama, openai_chat, openai_responses

USER = {"role": "user", "content": "hello"}


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "input": [USER], **fields}).encode()


def parsed(**fields: object) -> ChatRequest:
    return openai_responses.parse_request(body(**fields))


def stream(events: list[Event], chat: ChatRequest | None = None) -> bytes:
    renderer = openai_responses.StreamRenderer(chat or parsed(), "m", "1")
    data = b"".join(renderer.feed(event) for event in events) + renderer.close()
    check_responses(data)
    return data


def final(events: list[Event], chat: ChatRequest | None = None) -> dict[str, object]:
    return sse(stream(events, chat))[-1]["response"]


def part(**fields: object) -> bytes:
    return body(input=[{"role": "user", "content": [fields]}])


BROKEN = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "not a number": b'{"input":"x","temperature":NaN}',
    "invalid UTF-8": b'{"input":"\xff"}',
    "a lone surrogate": b'{"input":"\\ud800"}',
    "a nesting bomb of lists": b'{"input":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "a nesting bomb of objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "no input": b'{"model":"m"}',
    "empty input": body(input=[]),
    "an empty string": body(input=""),
    "input a number": body(input=5),
    "an item a string": body(input=["x"]),
    "an item of an unknown type": body(input=[{"type": "smell"}]),
    "an item without a type": body(input=[{"content": "x"}]),
    "an unknown role": body(input=[{"role": "wizard", "content": "x"}]),
    "content a number": body(input=[{"role": "user", "content": 5}]),
    "a part without text": part(type="input_text", text=5),
    "an unknown part": part(type="smell"),
    "a file": part(type="input_file", file_data="x"),
    "an image by its file": part(type="input_image", file_id="file-1"),
    "instructions a list": body(instructions=[1]),
    "model a number": body(model=5),
    "max_output_tokens a string": body(max_output_tokens="5"),
    "max_output_tokens zero": body(max_output_tokens=0),
    "temperature a string": body(temperature="hot"),
    "stream a string": body(stream="yes"),
    "tools an object": body(tools={}),
    "a function without a name": body(tools=[{"type": "function"}]),
    "a conversation that is not here": body(conversation="conv_1"),
    "a prompt that is not here": body(prompt={"id": "pmpt_1"}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_request_is_one_clear_line(case):
    with pytest.raises(UsageError) as caught:
        openai_responses.parse_request(BROKEN[case])
    assert 10 < len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


FIELD = st.sampled_from(
    ["model", "stream", "input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens",
     "metadata", "store", "previous_response_id", "include", "parallel_tool_calls", "truncation", "seed"]
)  # fmt: skip


@given(st.dictionaries(FIELD, JSON, max_size=5))
def test_what_is_accepted_can_be_rendered_and_answered(fields):
    try:
        request = openai_responses.parse_request(body(**fields))
    except UsageError:
        return
    assert openai_chat.render_request(request, "x", stream=True)
    assert ollama.render_request(request, "x", stream=True, num_ctx=None)
    stream([TextDelta("hi"), Finish()], request)


def codex_request() -> bytes:
    """Codex 0.169's first request: facts/agents/codex.json, its texts and schemas cut short."""

    def said(role: str, *texts: str) -> dict[str, object]:
        content = [{"type": "input_text", "text": text} for text in texts]
        return {"type": "message", "id": f"msg_{texts[0][:3]}", "role": role, "content": content}

    def function(name: str) -> dict[str, object]:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "function", "name": name, "description": f"{name}.", "strict": False, "parameters": parameters}

    agents = [function(name) for name in ("close_agent", "resume_agent", "send_input", "spawn_agent", "wait_agent")]
    return json.dumps(
        {
            "model": "stub-model",
            "stream": True,
            "input": [
                said("developer", "You are a coding agent running in the Codex CLI."),
                said("developer", "<skills_instructions>", "<permissions instructions>"),
                said("user", "<environment_context>"),
                said("user", "create hello.py that prints hello"),
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "01a20553-dd69-7922-87da-6c6848fa34a7",
            "client_metadata": {"session_id": "01a20553", "turn_id": "01a20553-ddca"},
            "tools": [
                *(function(name) for name in ("exec_command", "write_stdin", "request_user_input", "view_image")),
                {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": agents},
                *(function(name) for name in ("get_goal", "create_goal", "update_goal")),
                {"type": "web_search"},
            ],
        }
    ).encode()


def test_the_first_request_of_codex():
    request = openai_responses.parse_request(codex_request())
    leading = "You are a coding agent running in the Codex CLI.\n\n<skills_instructions>\n\n<permissions instructions>"
    assert request.messages == (
        message("system", leading),
        message("user", "<environment_context>"),
        message("user", "create hello.py that prints hello"),
    )
    assert [tool.name for tool in request.tools] == [
        "exec_command", "write_stdin", "request_user_input", "view_image",
        "multi_agent_v1__close_agent", "multi_agent_v1__resume_agent", "multi_agent_v1__send_input",
        "multi_agent_v1__spawn_agent", "multi_agent_v1__wait_agent",
        "get_goal", "create_goal", "update_goal",
    ]  # fmt: skip
    assert request.client_fields.keys() == {"store", "include", "prompt_cache_key", "client_metadata"}
    assert (request.extras, request.tool_choice, request.stream) == ({"parallel_tool_calls": True}, "auto", True)
    sent = json.loads(openai_chat.render_request(request, "m", stream=True))
    assert not sent.keys() & openai_responses.CLIENT_FIELDS - {"stream_options"}
    assert sent["parallel_tool_calls"] is True
    assert [row["function"]["name"] for row in sent["tools"]] == [tool.name for tool in request.tools]
    assert sent["tools"][0]["function"].keys() == {"name", "description", "parameters", "strict"}


NAMESPACE = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read", "parameters": {"type": "object"}}],
}


def test_a_namespaced_call_comes_back_with_its_namespace_and_is_understood_again():
    request = parsed(tools=[NAMESPACE, {"type": "function", "name": "read"}])
    calls = [ToolCallDelta(0, "c1", "mcp__files__read", "{}"), ToolCallDelta(1, "c2", "read", "{}")]
    first, second = final([*calls, Finish("tool_calls")], request)["output"]
    assert (first["name"], first["namespace"], first["call_id"]) == ("read", "mcp__files", "c1")
    assert (second["name"], second.get("namespace")) == ("read", None)
    outputs = [{"type": "function_call_output", "call_id": c, "output": "text"} for c in ("c1", "c2")]
    again = parsed(input=[USER, first, second, *outputs])
    called = again.messages[1].tool_calls
    assert [(c.name, c.namespace, c.item_id) for c in called] == [
        ("mcp__files__read", "mcp__files", first["id"]),
        ("read", "", second["id"]),
    ]


PATCH = "*** Begin Patch\n*** Add File: hello.py\n+print('hello')\n*** End Patch\n"
# As Codex 0.169 sends it for a model whose metadata say freeform, its grammar cut short.
APPLY_PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "This is a FREEFORM tool, so do not wrap the patch in JSON.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk+ end_patch"},
}


def test_a_custom_tool_is_a_function_of_one_text_whose_grammar_the_model_is_told():
    request = parsed(tools=[APPLY_PATCH], tool_choice={"type": "custom", "name": "apply_patch"})
    (row,) = json.loads(openai_chat.render_request(request, "m", stream=True))["tools"]
    assert row["function"]["name"] == "apply_patch"
    assert row["function"]["parameters"]["properties"].keys() == {"input"}
    assert row["function"]["parameters"]["required"] == ["input"]
    told = row["function"]["description"]
    assert told.startswith("This is a FREEFORM tool")
    assert "`input`" in told
    assert told.endswith("grammar (lark):\nstart: begin_patch hunk+ end_patch")
    assert request.tool_choice == "tool:apply_patch"
    assert final([Finish()], request)["tool_choice"] == {"type": "custom", "name": "apply_patch"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "apply_patch"}]}
    assert len(parsed(tools=[APPLY_PATCH, *FUNCTIONS], tool_choice=allowed).tools) == 1


def test_what_codex_sends_back_of_a_custom_call():
    """Recorded from Codex 0.169 after it had run the call."""
    call = {"type": "custom_tool_call", "id": "ctc_1", "status": "completed", "call_id": "call_1",
            "name": "apply_patch", "input": PATCH}  # fmt: skip
    output = {"type": "custom_tool_call_output", "id": "ctco_1", "call_id": "call_1", "output": "Exit code: 0"}
    request = parsed(tools=[APPLY_PATCH], input=[USER, call, output])
    assert request.messages[1:] == (
        Message(
            "assistant",
            (ToolCall("call_1", "apply_patch", json.dumps({"input": PATCH}, separators=(",", ":")), "ctc_1"),),
        ),
        Message("tool", (ToolResult("call_1", "Exit code: 0"),)),
    )
    with pytest.raises(UsageError, match="a custom tool's input is not a string"):
        parsed(input=[USER, call | {"input": {"a": 1}}])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (json.dumps({"input": PATCH}), PATCH),
        (json.dumps({"patch": PATCH}), PATCH),
        (json.dumps(PATCH), PATCH),
        (PATCH, PATCH),
        ("", ""),
        ("{}", ""),
        ('{"input": 5}', '{"input": 5}'),
        ('{"a": "x", "b": "y"}', '{"a": "x", "b": "y"}'),
        ("[1]", "[1]"),
        ('{"input":"*** Begin', '{"input":"*** Begin'),
    ],
)
def test_a_models_text_is_found_however_it_wrote_it(arguments, text):
    request = parsed(tools=[APPLY_PATCH])
    calls = [ToolCallDelta(0, "c", "apply_patch", arguments[:9]), ToolCallDelta(0, arguments=arguments[9:])]
    (item,) = final([*calls, Finish("tool_calls")], request)["output"]
    assert (item["type"], item["call_id"], item["name"], item["input"]) == (
        "custom_tool_call",
        "c",
        "apply_patch",
        text,
    )


def test_a_custom_tool_may_stand_in_a_namespace():
    request = parsed(tools=[{"type": "namespace", "name": "edit", "tools": [APPLY_PATCH]}])
    event = ToolCallDelta(0, "c", "edit__apply_patch", '{"input":"x"}')
    (item,) = final([event, Finish("tool_calls")], request)["output"]
    assert (item["namespace"], item["name"], item["input"]) == ("edit", "apply_patch", "x")
    assert parsed(input=[USER, item]).messages[1].tool_calls[0].name == "edit__apply_patch"


def test_two_tools_of_one_full_name_are_refused():
    with pytest.raises(UsageError, match="two tools are called 'mcp__files__read'"):
        parsed(tools=[NAMESPACE, {"type": "function", "name": "mcp__files__read"}])


def test_items_become_turns():
    request = parsed(
        instructions="be brief",
        input=[
            USER,
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
             "encrypted_content": "proof"},
            {"type": "message", "id": "msg_1", "role": "assistant", "content": [
                {"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "ls", "arguments": '{"p":1}'},
            {"type": "message", "role": "developer", "content": "sandbox: off"},
            {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "view", "arguments": {"p": 2}},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
            {"type": "function_call_output", "call_id": "c2", "output": [
                {"type": "input_text", "text": "seen"},
                {"type": "input_image", "image_url": "data:image/png;base64,QUJD"}]},
            {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "short"}],
             "content": [{"type": "reasoning_text", "text": "all"}]},
            {"role": "assistant", "content": "Done."},
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "http://10.0.0.5/x.png", "detail": "auto"}]},
        ],
    )  # fmt: skip
    assert request.messages == (
        message("system", "be brief\n\nsandbox: off\n\nbe kind"),
        message("user", "hello"),
        Message(
            "assistant",
            (
                Reasoning("hm", "proof"),
                Text("I look."),
                ToolCall("c1", "ls", '{"p":1}', "fc_1"),
                ToolCall("c2", "view", '{"p":2}', "fc_2"),
            ),
        ),
        Message("tool", (ToolResult("c1", "a.py"),)),
        Message("tool", (ToolResult("c2", "seen"),)),
        Message("user", (Image("image/png", "QUJD"),)),
        Message("assistant", (Reasoning("all"), Text("Done."))),
        Message("user", (Text("look"), Image(url="http://10.0.0.5/x.png"))),
    )


def test_a_string_is_a_users_message_and_the_last_of_two_keys_counts():
    request = openai_responses.parse_request(b'{"input":"a","input":"b","model":null,"max_output_tokens":-1}')
    assert request.messages == (message("user", "b"),)
    assert (request.model, request.max_tokens, request.stream, request.own_history) == ("auto", None, False, True)


FUNCTIONS = [{"type": "function", "name": "a"}, {"type": "function", "name": "b"}, NAMESPACE]
ALL = ["a", "b", "mcp__files__read"]


@pytest.mark.parametrize(
    ("choice", "neutral", "offered"),
    [
        ("required", "required", ALL),
        (None, "", ALL),
        ({"type": "function", "name": "a"}, "tool:a", ALL),
        ({"type": "function", "name": "read", "namespace": "mcp__files"}, "tool:mcp__files__read", ALL),
        ({"type": "web_search"}, "", ALL),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]},
            "required",
            ["b"],
        ),
    ],
)
def test_tool_choice(choice, neutral, offered):
    request = parsed(tools=FUNCTIONS, tool_choice=choice)
    assert (request.tool_choice, [tool.name for tool in request.tools]) == (neutral, offered)


@pytest.mark.parametrize(
    ("wanted", "neutral"),
    [({"type": "text"}, None), ({"type": "json_object"}, {"type": "json_object"}), (5, None),
     ({"type": "json_schema", "name": "n"}, {"type": "json_schema", "json_schema": {"name": "n"}})],
)  # fmt: skip
def test_text_format(wanted, neutral):
    assert parsed(text={"format": wanted}).response_format == neutral


def test_who_lets_the_conversation_be_cut_need_not_be_told_of_an_overflow():
    assert parsed(truncation="auto").compactable
    assert not parsed(truncation="disabled").compactable


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_cut_answer_is_incomplete_and_so_is_its_last_item(reason):
    told = {"length": "max_output_tokens", "content_filter": "content_filter"}[reason]
    calls = [ToolCallDelta(0, "a", "f", '{"x":1}'), ToolCallDelta(1, "b", "f", '{"x"')]
    response = final([TextDelta("so"), *calls, Finish(reason)])
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": told})
    assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]
    assert response["output"][2]["arguments"] == '{"x"'
    last = final([*calls, TextDelta("late"), TextDelta("r"), Finish(reason)])["output"]
    assert [item["status"] for item in last] == ["completed", "completed", "incomplete"]
    assert final([ToolCallDelta(0, "a", "f"), Finish(reason)])["output"][0]["arguments"] == ""


def test_ids_and_arguments_that_a_server_left_out_are_invented():
    first, second = final([ToolCallDelta(0, "", "f"), ToolCallDelta(1, "", "g", " "), Finish("tool_calls")])["output"]
    assert first["call_id"] != second["call_id"]
    assert (first["arguments"], json.loads(second["arguments"])) == ("{}", {})
    given = final([ToolCallDelta(0, "c", "f", "{}", "fc_own"), Finish("tool_calls")])["output"]
    assert (given[0]["id"], given[0]["call_id"]) == ("fc_own", "c")


def test_a_signature_comes_with_the_item_that_it_proves():
    events: list[Event] = [ReasoningDelta("t"), ReasoningDelta("", "sig"), TextDelta("x"), Finish()]
    for output in (final(events)["output"], json.loads(whole(events))["output"]):
        assert (output[0]["encrypted_content"], output[0]["summary"][0]["text"]) == ("sig", "t")
    (only, _) = final([ReasoningDelta("", "sig"), TextDelta("x"), Finish()])["output"]
    assert (only["encrypted_content"], only["summary"]) == ("sig", [])


def whole(events: list[Event]) -> bytes:
    return openai_responses.render_response(events, parsed(), "m", "1")


def test_an_answer_says_what_was_asked_for():
    asked = parsed(
        metadata={"a": "b", "bad": {}}, store=False, temperature=0.5, parallel_tool_calls=False, max_output_tokens=9,
        previous_response_id="resp_0", tool_choice={"type": "function", "name": "a"}, tools=FUNCTIONS,
    )  # fmt: skip
    response = final([TextDelta("x"), Finish()], asked)
    assert response["metadata"] == {"a": "b"}
    assert (response["store"], response["temperature"], response["max_output_tokens"]) == (False, 0.5, 9)
    assert (response["previous_response_id"], response["parallel_tool_calls"]) == ("resp_0", False)
    assert response["tool_choice"] == {"type": "function", "name": "a"}


def test_failures_are_told_so_that_codex_knows_what_to_do():
    overflow = ContextOverflowError("too long", prompt_tokens=9000, window=8192)
    status, data = openai_responses.render_error(overflow)
    said = json.loads(data)["error"]
    assert (status, said["code"]) == (400, "context_length_exceeded")
    assert "8192 tokens" in said["message"]
    assert openai_responses.render_error(EndpointBusyError("busy"))[0] == 503
    assert openai_responses.render_error(UsageError("too many"), 429)[0] == 503
    codes = []
    for error in (overflow, EndpointBusyError("busy"), ServerFailedError("boom"), UsageError("bad")):
        data = openai_responses.StreamRenderer(parsed(), "m", "1").error(error)
        check_responses(data)
        codes.append(sse(data)[-1]["response"]["error"]["code"])
    assert codes == ["context_length_exceeded", "server_error", "server_error", "invalid_prompt"]


def test_what_was_done_before_a_failure_is_told_and_what_was_not_is_not():
    renderer = openai_responses.StreamRenderer(parsed(), "m", "1")
    data = renderer.feed(TextDelta("done")) + renderer.feed(ToolCallDelta(0, "c", "rm", '{"pa'))
    data += renderer.error(ServerFailedError("boom"))
    check_responses(data)
    assert [item["type"] for item in sse(data)[-1]["response"]["output"]] == ["message"]


def test_many_words_beside_an_open_call_are_kept():
    words = [TextDelta(f"{n} ") for n in range(20_000)]
    response = final(
        [ToolCallDelta(0, "c", "f", "{}"), *words, Finish("tool_calls")], ChatRequest((), tools=(Tool("f"),))
    )
    assert response["output"][1]["content"][0]["text"] == "".join(word.text for word in words)
