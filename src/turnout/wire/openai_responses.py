"""OpenAI Responses, as its server (facts/agents.md, sections 3, 4 and 7; Codex speaks nothing else).

What is lost on the way to a model:
    - hosted tools (``web_search`` and the like) and the records of their calls; of custom tools that their text must
      match a grammar (the model is told);
    - ids of items that are no calls, annotations, ``detail`` of images, ``phase``, the description of a namespace;
    - where a system or developer item stood: all of them lead, in their order, after ``instructions``;
    - which item a consecutive assistant text came in: items of one turn become one message;
    - the images of a tool's output follow the outputs as a user's message;
    - ``text.verbosity``, ``reasoning.summary``, ``max_tool_calls``, ``background``, and whatever else
      ``CLIENT_FIELDS`` names. Fields that nobody names go to the server.
What is refused, since without it the question would be another one: ``conversation``, ``prompt``, files, audio, images
by address or file id, and items of a type that is not known.

What is lost on the way back: the answer's ``tools`` are empty, since the client has them. A
model's reasoning is given as a summary, because that is what clients show and send back.
"""

from __future__ import annotations

from collections.abc import Mapping

from turnout.errors import UsageError
from turnout.types import (
    ChatRequest,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolResult,
)
from turnout.wire import base, freeform
from turnout.wire.base import as_dict, as_text, objects, text_field
from turnout.wire.openai_chat import image_of
from turnout.wire.responses_answer import StreamRenderer, render_error, render_response

__all__ = [
    "CLIENT_FIELDS",
    "StreamRenderer",
    "input_items",
    "parse_request",
    "passes",
    "render_error",
    "render_response",
    "request_of",
]

_READ = frozenset(
    {
        "model", "input", "instructions", "tools", "tool_choice", "max_output_tokens", "temperature", "top_p", "text",
        "reasoning", "stream",
    }
)  # fmt: skip
# What the format knows and a local server would not, or not so.
CLIENT_FIELDS = frozenset(
    {
        "access_programs", "background", "background_options", "client_metadata", "context_management", "conversation",
        "image", "include", "max_tool_calls", "metadata", "moderation", "previous_response_id", "prompt",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier",
        "store", "stream_options", "top_logprobs", "truncation", "user",
    }
)  # fmt: skip
_HOSTED_ITEMS = frozenset(
    {
        "web_search_call", "file_search_call", "image_generation_call", "code_interpreter_call", "mcp_call",
        "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "tool_search_call", "tool_search_output",
    }
)  # fmt: skip
_CALLABLE = ("function", "custom")  # by the client, when the model says so
_TOOL_FIELDS = frozenset({"type", "name", "description", "parameters"})


# The client's request.


def parse_request(body: bytes) -> ChatRequest:
    """Read a client's request; ``previous_response_id`` is for the caller to resolve, into ``input``.

    Raises:
        UsageError: it is not a Responses request, with what is wrong.
    """
    return request_of(base.decode_object(body))


def request_of(data: Mapping[str, Json]) -> ChatRequest:
    """As ``parse_request``, from the decoded body."""
    for key in ("conversation", "prompt"):
        if data.get(key) is not None:
            raise UsageError(f"{key} is kept by no server here", hint="send the conversation as input")
    items = input_items(data)
    if not items:
        raise UsageError("input is missing or empty")
    conversation = _Conversation([text_field(data.get("instructions") or "", "instructions")])
    for item in items:
        conversation.add(item)
    tools, choice = _tools(data), as_dict(data.get("tool_choice"))
    if choice.get("type") == "allowed_tools":
        allowed = {_full_name(row) for row in objects(choice.get("tools"), "tool_choice.tools")}
        tools = [tool for tool in tools if tool.name in allowed]
    return ChatRequest(
        # Who sets "auto" asks for a shortened conversation rather than an error.
        own_history=data.get("truncation") != "auto",
        messages=conversation.end(),
        model=text_field(data.get("model") or "auto", "model"),
        tools=tuple(tools),
        tool_choice=_tool_choice(data.get("tool_choice")),
        max_tokens=base.whole_field(data, "max_output_tokens"),
        temperature=base.number_field(data, "temperature"),
        top_p=base.number_field(data, "top_p"),
        response_format=_response_format(as_dict(as_dict(data.get("text")).get("format"))),
        reasoning_effort=as_text(as_dict(data.get("reasoning")).get("effort")),
        stream=base.flag_field(data, "stream"),
        extras=_extras(data),
        client_fields={key: value for key, value in data.items() if key in CLIENT_FIELDS},
    )


def _extras(data: Mapping[str, Json]) -> dict[str, Json]:
    """What nobody names goes on to servers, and what they know by another name."""
    extras = {key: value for key, value in data.items() if key not in _READ and key not in CLIENT_FIELDS}
    included, most = data.get("include"), base.whole_field(data, "top_logprobs") if data.get("top_logprobs") else None
    if most or (isinstance(included, list) and "message.output_text.logprobs" in included):
        extras["logprobs"] = True
    return extras | ({"top_logprobs": most} if most else {})


def passes(data: Mapping[str, Json]) -> bool:
    """Whether the client's own bytes may go to a server that speaks this format.

    Not what such a server (vLLM 0.32: its source, and recorded) gets wrong without a word: started without a parser of
    tool calls it answers them as prose, of an assistant's message it reads one part, several system messages stand
    where they stood, and it sums up no thoughts.
    """
    if as_dict(data.get("reasoning")).get("summary") or any(
        data.get(key) for key in ("tools", "background", "previous_response_id", "previous_input_messages")
    ):
        return False
    items = input_items(data)
    system = [place for place, item in enumerate(items) if item.get("role") in ("system", "developer")]
    alone = not system or (system == [0] and not data.get("instructions"))
    return alone and all(_is_read_whole(item) for item in items)


def _is_read_whole(item: Mapping[str, Json]) -> bool:
    content = item.get("content")
    match as_text(item.get("type")) or "message":
        case "message" if item.get("role") == "assistant":
            if not isinstance(content, list):
                return True
            return len(content) == 1 and as_text(as_dict(content[0]).get("type")) in ("output_text", "text")
        case "message":
            return True
        case "reasoning":
            texts = content or item.get("summary")
            return isinstance(texts, list) and len(texts) == 1 and not item.get("encrypted_content")
        case _:
            return False


def input_items(data: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The input as items, which it also is as a plain string.

    Raises:
        UsageError: it is neither.
    """
    value = data.get("input")
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}] if value else []
    return objects(value, "input")


class _Conversation:
    """Messages out of items, of which a turn has many."""

    def __init__(self, system: list[str]) -> None:
        self._system = system
        self._messages: list[Message] = []
        self._turn: list[Part] = []
        self._images: list[Part] = []

    def add(self, item: Mapping[str, Json]) -> None:
        kind = as_text(item.get("type")) or ("message" if "role" in item else "")
        match kind:
            case "message":
                self._message(item)
            case "reasoning":
                self._say(_reasoning(item))
            case "function_call":
                self._call(item, base.arguments_text(item.get("arguments")))
            case "custom_tool_call":
                self._call(item, freeform.arguments_of(text_field(item.get("input", ""), "a custom tool's input")))
            case "function_call_output" | "custom_tool_call_output":
                self._output(item)
            case hosted if hosted in _HOSTED_ITEMS:
                pass
            case other:
                raise UsageError(f"input has an item of type {other[:40]!r}, which is not supported")

    def _message(self, item: Mapping[str, Json]) -> None:
        parts = _content(item.get("content"))
        match as_text(item.get("role")):
            case "system" | "developer":
                self._system += [part.text for part in parts if isinstance(part, Text)]
            case "user":
                self._settle()
                self._messages.append(Message("user", tuple(parts)))
            case "assistant":
                self._say(parts)
            case role:
                raise UsageError(f"a message has the role {role[:40]!r}")

    def _call(self, item: Mapping[str, Json], arguments: str) -> None:
        call_id, item_id = as_text(item.get("call_id")), as_text(item.get("id"))
        self._say([ToolCall(call_id, _full_name(item), arguments, item_id, as_text(item.get("namespace")))])

    def _say(self, parts: list[Part]) -> None:
        if self._images:
            self._settle()
        self._turn += parts

    def _output(self, item: Mapping[str, Json]) -> None:
        parts = _content(item.get("output"))
        content = "".join(part.text for part in parts if isinstance(part, Text))
        if self._turn:
            self._settle()
        self._messages.append(Message("tool", (ToolResult(as_text(item.get("call_id")), content),)))
        self._images += [part for part in parts if isinstance(part, Image)]

    def _settle(self) -> None:
        """End the assistant's turn, or the run of outputs whose images wait."""
        if self._turn:
            self._messages.append(Message("assistant", tuple(self._turn)))
        if self._images:
            self._messages.append(Message("user", tuple(self._images)))
        self._turn, self._images = [], []

    def end(self) -> tuple[Message, ...]:
        self._settle()
        leading = "\n\n".join(text for text in self._system if text)
        head = (Message("system", (Text(leading),)),) if leading else ()
        return (*head, *self._messages)


def _content(value: Json) -> list[Part]:
    if value is None:
        return []
    if isinstance(value, str):
        return [Text(value)] if value else []
    return [_part(row) for row in objects(value, "content")]


def _part(row: Mapping[str, Json]) -> Part:
    match as_text(row.get("type")):
        case "input_text" | "output_text" | "text":
            return Text(text_field(row.get("text", ""), "a text part"))
        case "refusal":
            return Text(text_field(row.get("refusal", ""), "a refusal"))
        case "input_image":
            url = row.get("image_url")
            if not isinstance(url, str) or not url:
                raise UsageError("an image has no image_url", hint="send it as a data: URL")
            return image_of(url)
        case other:
            raise UsageError(f"a message has a part of type {other[:40]!r}, which is not supported")


def _reasoning(item: Mapping[str, Json]) -> list[Part]:
    """The text itself where the client has it, else its summary."""
    rows = objects(item.get("content"), "reasoning content") or objects(item.get("summary"), "a reasoning summary")
    text = "\n\n".join(filter(None, (as_text(row.get("text")) for row in rows)))
    signature = as_text(item.get("encrypted_content"))
    return [Reasoning(text, signature)] if text or signature else []


def _tools(data: Mapping[str, Json]) -> list[Tool]:
    tools: list[Tool] = []
    for row in objects(data.get("tools"), "tools"):
        if row.get("type") in _CALLABLE:
            tools.append(_tool(row, ""))
        elif row.get("type") == "namespace":
            rows = objects(row.get("tools"), "a namespace's tools")
            tools += [_tool(inner, as_text(row.get("name"))) for inner in rows if inner.get("type") in _CALLABLE]
    grouped = {tool.name for tool in tools if tool.namespace}
    if twice := next((n for n in grouped if sum(tool.name == n for tool in tools) > 1), ""):
        raise UsageError(f"two tools are called {twice[:80]!r}", hint="a tool in a namespace is called NAMESPACE__NAME")
    return tools


def _tool(row: Mapping[str, Json], namespace: str) -> Tool:
    if not as_text(row.get("name")):
        raise UsageError("a tool has no name")
    name = _whole(namespace, as_text(row.get("name")))
    if row.get("type") == "custom":
        return Tool(name, freeform.description_of(row), freeform.SCHEMA, namespace=namespace, freeform=True)
    extras = {key: value for key, value in row.items() if key not in _TOOL_FIELDS and value is not None}
    schema = as_dict(row.get("parameters"))
    return Tool(name, as_text(row.get("description")), schema, extras, namespace)


def _full_name(row: Mapping[str, Json]) -> str:
    return _whole(as_text(row.get("namespace")), as_text(row.get("name")))


def _whole(namespace: str, name: str) -> str:
    return f"{namespace}__{name}" if namespace else name


def _tool_choice(value: Json) -> str:
    choice = as_dict(value)
    match as_text(choice.get("type")):
        case "":
            return as_text(value)
        case "function" | "custom":
            return f"tool:{_full_name(choice)}"
        case "allowed_tools":
            return as_text(choice.get("mode"))
        case _:
            return ""


def _response_format(wanted: Mapping[str, Json]) -> Mapping[str, Json] | None:
    match as_text(wanted.get("type")):
        case "json_schema":
            kept = ("name", "description", "schema", "strict")
            return {"type": "json_schema", "json_schema": {key: wanted[key] for key in kept if key in wanted}}
        case "json_object":
            return {"type": "json_object"}
        case _:
            return None
