"""Anthropic messages, as its server (facts/agents.md, sections 3, 4b and 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from turnout.errors import ContextOverflowError, EndpointLoadingError, NoServiceError, TurnoutError, UsageError
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    Image,
    Json,
    Message,
    Part,
    RawBody,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    Usage,
    UsageReport,
    WireFormat,
)
from turnout.wire import base
from turnout.wire.base import as_dict, as_text, encode, new_id, objects, text_field
from turnout.wire.ollama import arguments_object
from turnout.wire.openai_chat import collect_calls, status_of

# Tools that only Anthropic's own service runs, up to their dates.
_HOSTED = ("web_search_", "web_fetch_", "code_execution_", "tool_search_")
# Servers of other formats know no more than three efforts by these names.
_EFFORT = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERROR_TYPE = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def parse_request(body: bytes) -> ChatRequest:
    """Read a client's request.

    Of ``output_config`` the effort and the schema are kept, of ``thinking`` that there is to be none. Fields that only
    Anthropic's own service knows (context_management, metadata, betas) have no effect on most local servers and are not
    translated; to a server that speaks this format they go as they are.

    Raises:
        UsageError: it is not a messages request, with what is wrong.
    """
    data = base.decode_object(body)
    rows = objects(data.get("messages"), "messages")
    if not rows:
        raise UsageError("messages is missing or empty")
    head = _system(data.get("system"))
    messages = [_system(row.get("content")) if row.get("role") == "system" else _message(row) for row in rows]
    thinking = as_text(as_dict(data.get("thinking")).get("type")) != "disabled"
    stop, wanted = data.get("stop_sequences"), as_dict(data.get("output_config"))
    return ChatRequest(
        own_history=True,
        messages=tuple(m for m in (head, *messages) if m.parts or m.role != "system"),
        model=text_field(data.get("model") or "auto", "model"),
        tools=tuple(_tool(row) for row in objects(data.get("tools"), "tools") if _is_the_clients(row)),
        tool_choice=_tool_choice(data.get("tool_choice")),
        max_tokens=base.whole_field(data, "max_tokens"),
        temperature=base.number_field(data, "temperature"),
        top_p=base.number_field(data, "top_p"),
        stop=tuple(as_text(s) for s in stop) if isinstance(stop, list) else (),
        response_format=_form(as_dict(wanted.get("format"))),
        reasoning_effort=_EFFORT.get(as_text(wanted.get("effort")), "") if thinking else "",
        thinking=thinking,
        stream=base.flag_field(data, "stream"),
        extras=_extras(data),
        raw=RawBody(WireFormat.ANTHROPIC, body) if _passes(rows, data) else None,
    )


def _passes(rows: Sequence[Mapping[str, Json]], data: Mapping[str, Json]) -> bool:
    """Whether the bytes may go to a server of this format: not with tools that nobody here runs, nor with a schema that
    a server may drop, nor with a leading row that belongs to ``system``, which hygiene takes for one in its place."""
    all_the_clients = all(_is_the_clients(row) for row in objects(data.get("tools"), "tools"))
    wants_form = bool(as_dict(data.get("output_config")).get("format"))
    return all_the_clients and not wants_form and rows[0].get("role") != "system"


def _form(wanted: Mapping[str, Json]) -> Mapping[str, Json] | None:
    """The schema of an answer as other formats have it."""
    if not wanted:
        return None
    if wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
        raise UsageError("output_config.format is no JSON schema", hint="give type json_schema and a schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted["schema"]}}


def _extras(data: Mapping[str, Json]) -> dict[str, Json]:
    """What local servers of other formats know by other names."""
    found: dict[str, Json] = {}
    if (top_k := base.whole_field(data, "top_k")) is not None:
        found["top_k"] = top_k
    if as_dict(data.get("tool_choice")).get("disable_parallel_tool_use") is True:
        found["parallel_tool_calls"] = False
    return found


def _system(value: Json) -> Message:
    """What stands in several blocks as one text: few templates take a list."""
    text = "\n\n".join(part.text for part in _content(value) if isinstance(part, Text) and part.text)
    return Message("system", (Text(text),) if text else ())


def render_count(request: ChatRequest, model: str) -> bytes:
    """The body that asks a server for the tokens of a prompt, ``model`` being the server's own id."""
    system = "\n\n".join(m.text for m in request.messages if m.role == "system" and m.text)
    data: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "assistant" if m.role == "assistant" else "user", "content": [_block(part) for part in m.parts]}
            for m in request.messages
            if m.role != "system"
        ],
    }
    if system:
        data["system"] = system
    if request.tools:
        data["tools"] = [
            {"name": t.name, "description": t.description, "input_schema": dict(t.schema)} for t in request.tools
        ]
    return encode(data)


def _block(part: Part) -> dict[str, object]:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image(media_type, data, url):
            kept = {"type": "url", "url": url} if url else {"type": "base64", "media_type": media_type, "data": data}
            return {"type": "image", "source": kept}
        case Reasoning(text, signature):
            return {"type": "thinking", "thinking": text, "signature": signature}
        case ToolCall(call_id, name, arguments):
            return {"type": "tool_use", "id": call_id, "name": name, "input": arguments_object(arguments)}
        case ToolResult(call_id, content, _, is_error):
            return {"type": "tool_result", "tool_use_id": call_id, "content": content, "is_error": is_error}


def _message(row: Mapping[str, Json]) -> Message:
    role = as_text(row.get("role"))
    if role not in ("user", "assistant"):
        raise UsageError(f"a message has the role {role[:40]!r}")
    return Message("user" if role == "user" else "assistant", tuple(_content(row.get("content"))))


def _content(value: Json) -> list[Part]:
    if isinstance(value, str):
        return [Text(value)] if value else []
    return [part for row in objects(value, "content") for part in _parts(row)]


def _parts(row: Mapping[str, Json]) -> list[Part]:
    """The neutral parts of one block; a tool result's images follow it, because results carry text alone."""
    match as_text(row.get("type")):
        case "text":
            return [Text(text_field(row.get("text", ""), "a text block"))]
        case "image":
            source = as_dict(row.get("source"))
            return [Image(as_text(source.get("media_type")), as_text(source.get("data")), as_text(source.get("url")))]
        case "thinking":
            return [Reasoning(as_text(row.get("thinking")), as_text(row.get("signature")))]
        case "tool_use":
            arguments = base.arguments_text(row.get("input", {}))
            return [ToolCall(as_text(row.get("id")), as_text(row.get("name")), arguments)]
        case "tool_result":
            inner = _content(_flat(row.get("content")))
            content = "".join(part.text for part in inner if isinstance(part, Text))
            result = ToolResult(as_text(row.get("tool_use_id")), content, is_error=row.get("is_error") is True)
            return [result, *(part for part in inner if isinstance(part, Image))]
        case "redacted_thinking" | "tool_reference":
            return []
        case other:
            raise UsageError(f"a message has a block of type {other[:40]!r}, which is not supported")


def _flat(value: Json) -> Json:
    """A tool result's content, which holds no other result: results without end would exhaust the stack."""
    if isinstance(value, list) and any(as_dict(block).get("type") == "tool_result" for block in value):
        raise UsageError("a tool result holds another tool result, which is not supported")
    return value


def _is_the_clients(row: Mapping[str, Json]) -> bool:
    """A tool that the client runs: others would be called and nobody would answer."""
    return bool(row.get("name")) and not as_text(row.get("type")).startswith(_HOSTED)


def _tool(row: Mapping[str, Json]) -> Tool:
    return Tool(as_text(row.get("name")), as_text(row.get("description")), as_dict(row.get("input_schema")))


def _tool_choice(value: Json) -> str:
    choice = as_dict(value)
    match as_text(choice.get("type")):
        case "any":
            return "required"
        case "tool":
            return f"tool:{as_text(choice.get('name'))}"
        case kind:
            return kind


@dataclass(slots=True)
class _Call:
    """A tool call that waits for its turn: blocks are sequential here."""

    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class StreamRenderer:
    """Events as the SSE bytes of one answer: one block open at a time, each one stopped.

    Args:
        model: ResponseModel.
        request_id: part of the answer's id.
    """

    def __init__(self, model: str, request_id: str) -> None:
        self._model, self._id = model, f"msg_{request_id}"
        self._begun = False
        self._block = -1
        self._open = ""
        self._call = -1
        self._waiting: dict[int, _Call] = {}
        self._later: list[tuple[str, dict[str, object]]] = []
        self._usage = Usage()
        self._stop = "end_turn"
        self._calls = False

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none here."""
        match event:
            case TextDelta(text):
                return self._show("text", [{"type": "text_delta", "text": text}] if text else [])
            case ReasoningDelta(text, signature):
                deltas: list[dict[str, object]] = [{"type": "thinking_delta", "thinking": text}] if text else []
                deltas += [{"type": "signature_delta", "signature": signature}] if signature else []
                return self._show("thinking", deltas)
            case ToolCallDelta():
                return self._tool(event)
            case UsageReport(usage):
                self._usage = usage
                return b""
            case Finish(reason):
                self._stop = "tool_use" if self._calls and reason == "stop" else _STOP[reason]
                return b""
            case _:
                return b""

    def _tool(self, event: ToolCallDelta) -> bytes:
        self._calls = True
        if self._open == "tool" and event.index == self._call:
            return self._json(event.arguments)
        if self._open != "tool":
            return self._start_call(event.index, _Call(event.call_id, event.name, [event.arguments]))
        if event.index not in self._waiting:
            self._waiting[event.index] = _Call(event.call_id, event.name)
        self._waiting[event.index].arguments.append(event.arguments)
        return b""

    def _start_call(self, index: int, call: _Call) -> bytes:
        block: dict[str, object] = {
            "type": "tool_use",
            "id": call.call_id or new_id("toolu_"),
            "name": call.name,
            "input": {},
        }
        self._call = index
        start = self._end_block() + self._start("tool", block)
        return start + self._json("".join(call.arguments))

    def _json(self, text: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": text}) if text else b""

    def _show(self, kind: str, deltas: list[dict[str, object]]) -> bytes:
        """Text or reasoning, in a block of its own; it waits for the end once a call is open, which may still grow."""
        if self._open == "tool":
            self._later += [(kind, delta) for delta in deltas]
            return b""
        return b"".join(self._in(kind) + self._delta(delta) for delta in deltas)

    def _in(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        block: dict[str, object] = {"type": kind, kind: ""}
        if kind == "thinking":
            block["signature"] = ""
        return self._end_block() + self._start(kind, block)

    def _flush(self) -> bytes:
        data = self._end_block()
        for index in sorted(self._waiting):
            data += self._start_call(index, self._waiting[index]) + self._end_block()
        for kind, delta in self._later:
            data += self._in(kind) + self._delta(delta)
        return data + self._end_block()

    def _start(self, kind: str, block: dict[str, object]) -> bytes:
        self._block += 1
        self._open = kind
        return self._head() + _sse(
            "content_block_start", {"type": "content_block_start", "index": self._block, "content_block": block}
        )

    def _delta(self, delta: dict[str, object]) -> bytes:
        return _sse("content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": delta})

    def _end_block(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _sse("content_block_stop", {"type": "content_block_stop", "index": self._block})

    def _head(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        message: dict[str, object] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return _sse("message_start", {"type": "message_start", "message": message})

    def keep_alive(self) -> bytes:
        """A ping event."""
        return _sse("ping", {"type": "ping"})

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle of the stream."""
        return b"event: error\ndata: " + render_error(error)[1] + b"\n\n"

    def close(self) -> bytes:
        """Every open block stopped, then the end of the message."""
        data = self._head() + self._flush()
        delta = {"stop_reason": self._stop, "stop_sequence": None}
        data += _sse("message_delta", {"type": "message_delta", "delta": delta, "usage": _usage_value(self._usage)})
        return data + _sse("message_stop", {"type": "message_stop"})


def _sse(event: str, value: object) -> bytes:
    return f"event: {event}\ndata: ".encode() + encode(value) + b"\n\n"


def _usage_value(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def render_response(events: Sequence[Event], model: str, request_id: str) -> bytes:
    """A whole answer."""
    blocks: list[dict[str, object]] = []
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    signature = "".join(e.signature for e in events if isinstance(e, ReasoningDelta))
    if reasoning:
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": signature})
    if text := "".join(e.text for e in events if isinstance(e, TextDelta)):
        blocks.append({"type": "text", "text": text})
    calls = collect_calls(events)
    blocks += [
        {"type": "tool_use", "id": c.call_id, "name": c.name, "input": arguments_object(c.arguments)} for c in calls
    ]
    finish = next((e.reason for e in events if isinstance(e, Finish)), "stop")
    return encode(
        {
            "id": f"msg_{request_id}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": blocks,
            "stop_reason": "tool_use" if calls and finish == "stop" else _STOP[finish],
            "stop_sequence": None,
            "usage": _usage_value(next((e.usage for e in events if isinstance(e, UsageReport)), Usage())),
        }
    )


def render_error(error: TurnoutError, status: int = 0) -> tuple[int, bytes]:
    """Status and body of a failure in this format; ``status`` 0 takes the failure's own."""
    status = status or status_of(error)
    text = str(error)
    if isinstance(error, ContextOverflowError) and error.window:
        text = f"prompt is too long: {error.prompt_tokens or 'more'} tokens > {error.window} maximum"
    kind = _ERROR_TYPE.get(status, "invalid_request_error" if status < 500 else "api_error")
    if isinstance(error, EndpointLoadingError | NoServiceError):
        kind = "overloaded_error"
    return status, encode({"type": "error", "error": {"type": kind, "message": text, "code": error.code}})
