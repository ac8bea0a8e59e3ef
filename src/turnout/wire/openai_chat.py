"""OpenAI chat completions, both directions (facts/agents.md sections 3, 4b and 7; facts/backends.md 3.1)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from turnout.errors import (
    ContextOverflowError,
    EndpointLoadingError,
    GuardError,
    NonsenseError,
    NoServiceError,
    NoSuitableModelError,
    NotPermittedError,
    PhaseTimeoutError,
    RequestRefusedError,
    StoppingError,
    TurnoutError,
    UnknownModelError,
    UsageError,
)
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    Image,
    Json,
    Message,
    Part,
    RawBody,
    Reasoning,
    ReasoningDelta,
    Role,
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
from turnout.wire import base, scan
from turnout.wire.base import as_dict, as_text, encode, new_id, objects, text_field
from turnout.wire.calls import Calls
from turnout.wire.scan import Peek, Scanner, edit_request, peek, usage_of

__all__ = [
    "Peek",
    "Scanner",
    "StreamParser",
    "StreamRenderer",
    "collect_calls",
    "edit_request",
    "image_of",
    "overflow_text",
    "parse_request",
    "parse_response",
    "peek",
    "render_error",
    "render_request",
    "render_response",
    "status_of",
]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_READ = frozenset(
    {
        "model", "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "stop", "response_format", "reasoning_effort", "stream", "stream_options",
    }
)  # fmt: skip
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


# The client's request.


def parse_request(body: bytes) -> ChatRequest:
    """Read a client's request; fields without a neutral place are kept in ``extras``.

    Raises:
        UsageError: it is not a chat request, with what is wrong.
    """
    data = base.decode_object(body)
    rows = objects(data.get("messages"), "messages")
    if not rows:
        raise UsageError("messages is missing or empty")
    scan.peek(body)
    stop = data.get("stop")
    response_format = data.get("response_format")
    return ChatRequest(
        own_history=True,
        messages=tuple(_message(row) for row in rows),
        model=text_field(data.get("model") or "auto", "model"),
        tools=tuple(_tool(row) for row in objects(data.get("tools"), "tools")),
        tool_choice=_tool_choice(data.get("tool_choice")),
        max_tokens=base.whole_field(data, "max_completion_tokens") or base.whole_field(data, "max_tokens"),
        temperature=base.number_field(data, "temperature"),
        top_p=base.number_field(data, "top_p"),
        stop=tuple(as_text(s) for s in stop) if isinstance(stop, list) else (stop,) if isinstance(stop, str) else (),
        response_format=response_format if isinstance(response_format, dict) else None,
        reasoning_effort=as_text(data.get("reasoning_effort")),
        stream=base.flag_field(data, "stream"),
        raw=RawBody(WireFormat.OPENAI_CHAT, body),
        extras={key: value for key, value in data.items() if key not in _READ},
    )


def _message(row: Mapping[str, Json]) -> Message:
    role = _ROLES.get(as_text(row.get("role")))
    if role is None:
        raise UsageError(f"a message has the role {as_text(row.get('role'))[:40]!r}")
    parts = list(_content(row.get("content")))
    if role == "tool":
        content = "".join(part.text for part in parts if isinstance(part, Text))
        call_id = as_text(row.get("tool_call_id")) or as_text(row.get("name"))
        away = (part for part in parts if isinstance(part, Image) and part.url)  # which makes it refused
        return Message(role, (ToolResult(call_id, content, as_text(row.get("name"))), *away))
    reasoning = row.get("reasoning_content") or row.get("reasoning")
    if role == "assistant" and isinstance(reasoning, str) and reasoning:
        parts.insert(0, Reasoning(reasoning))
    for call in objects(row.get("tool_calls"), "tool_calls"):
        function = as_dict(call.get("function"))
        arguments = base.arguments_text(function.get("arguments"))
        parts.append(ToolCall(as_text(call.get("id")), as_text(function.get("name")), arguments))
    name = row.get("name")
    return Message(role, tuple(parts), {"name": name} if isinstance(name, str) and name else {})


def _content(value: Json) -> list[Part]:
    if value is None:
        return []
    if isinstance(value, str):
        return [Text(value)] if value else []
    parts: list[Part] = []
    for row in objects(value, "content"):
        kind = as_text(row.get("type"))
        if kind in ("text", "input_text", "refusal"):
            text = text_field(row.get("text", row.get("refusal", "")), "a text part")
            extras = {key: item for key, item in row.items() if key not in ("type", "text")}
            parts.append(Text(text, extras))
        elif kind == "image_url":
            image = row.get("image_url")
            base.require_one_spelling(as_dict(image))
            parts.append(image_of(text_field(as_dict(image).get("url", image), "an image's url")))
        else:
            raise UsageError(f"a message has a part of type {kind[:40]!r}, which is not supported")
    return parts


def image_of(url: str) -> Image:
    """An image from a ``data:`` URL, else one by address."""
    head, comma, data = url.partition(";base64,")
    if comma and head.startswith("data:"):
        return Image(media_type=head.removeprefix("data:"), data=data)
    return Image(url=url)


def _tool(row: Mapping[str, Json]) -> Tool:
    function = as_dict(row.get("function"))
    name = as_text(function.get("name"))
    if not name:
        raise UsageError("a tool has no function name")
    extras = {key: value for key, value in function.items() if key not in ("name", "description", "parameters")}
    return Tool(name, as_text(function.get("description")), as_dict(function.get("parameters")), extras)


def _tool_choice(value: Json) -> str:
    if isinstance(value, dict):
        name = as_text(as_dict(value.get("function")).get("name"))
        return f"tool:{name}" if name else ""
    return as_text(value)


# The request to a server.


def render_request(request: ChatRequest, model: str, *, stream: bool) -> bytes:
    """The body for a server, ``model`` being the server's own id."""
    data: dict[str, object] = {
        **request.extras,
        "model": model,
        "messages": [row for m in request.messages for row in _rows(m)],
        "stream": stream,
    }
    if stream:
        data["stream_options"] = {"include_usage": True}
    if request.tools:
        data["tools"] = [_tool_row(tool) for tool in request.tools]
    if request.tool_choice:
        name = request.tool_choice.removeprefix("tool:")
        named = {"type": "function", "function": {"name": name}}
        data["tool_choice"] = named if request.tool_choice.startswith("tool:") else request.tool_choice
    optional = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": list(request.stop) or None,
        "response_format": request.response_format,
        "reasoning_effort": request.reasoning_effort or None,
    }
    return encode(data | {key: value for key, value in optional.items() if value is not None})


def _tool_row(tool: Tool) -> dict[str, object]:
    function = {**tool.extras, "name": tool.name, "description": tool.description, "parameters": dict(tool.schema)}
    return {"type": "function", "function": function}


def _rows(message: Message) -> list[dict[str, object]]:
    """A message as this format has it: every tool result is a message of its own, before what the user adds."""
    results = [_result_row(result) for result in message.tool_results]
    rest = [part for part in message.parts if not isinstance(part, ToolResult)]
    if not rest and (results or message.role == "tool"):
        return results
    row: dict[str, object] = {"role": message.role, "content": _content_value(rest)}
    name = message.extras.get("name")
    if name:
        row["name"] = name
    calls = [
        {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in message.tool_calls
    ]
    if calls:
        row["tool_calls"] = calls
        row["content"] = row["content"] or None
    reasoning = "".join(part.text for part in rest if isinstance(part, Reasoning))
    if reasoning:
        row["reasoning_content"] = reasoning
    return [*results, row]


def _result_row(result: ToolResult) -> dict[str, object]:
    named: dict[str, object] = {"name": result.name} if result.name else {}
    return {"role": "tool", "tool_call_id": result.call_id, "content": base.result_text(result), **named}


def _content_value(parts: Sequence[Part]) -> object:
    shown = [part for part in parts if isinstance(part, Text | Image)]
    if all(isinstance(part, Text) and not part.extras for part in shown) and len(shown) <= 1:
        return "".join(part.text for part in shown if isinstance(part, Text))
    rows: list[dict[str, object]] = []
    for part in shown:
        if isinstance(part, Text):
            rows.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            rows.append({"type": "image_url", "image_url": {"url": url}})
    return rows


# The server's answer.


class StreamParser:
    """A server's SSE bytes, cut anywhere, as events.

    ``finished``: a finish reason or the end mark was seen; ``ended``: the mark was.
    """

    def __init__(self) -> None:
        self._lines = base.Lines()
        self._calls = Calls()
        self._finish: FinishReason | None = None
        self._usage: Usage | None = None
        self._closed = False
        self.finished = self.ended = False
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completed.

        Raises:
            NonsenseError: it is not this format.
            ServerFailedError: the server reports an error in the middle.
        """
        return [event for line in self._lines.feed(data) for event in self._line(line)]

    def close(self) -> list[Event]:
        """Usage and finish, once, at the end."""
        events = [event for line in self._lines.close() for event in self._line(line)]
        events += self._line(b"")
        if self._closed:
            return events
        self._closed = True
        events += self._calls.end()
        if self._usage is not None:
            events.append(UsageReport(self._usage))
        if self.finished:
            reason = self._finish or "stop"
            events.append(Finish("tool_calls" if self._calls and reason == "stop" else reason))
        return events

    def _line(self, line: bytes) -> list[Event]:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._held += len(line)
            if self._held > base.MAX_LINE_BYTES:
                raise NonsenseError("the server sent an event that does not end")
            return []
        if line:
            if line.startswith((b":", b"event:", b"id:", b"retry:")):
                return []
            if line.startswith(b"{"):
                base.server_object(line)
            raise NonsenseError(f"the server sent {base.excerpt(line)!r} where an event belongs")
        data, self._data, self._held = b"\n".join(self._data), [], 0
        if not data:
            return []
        if data.strip() == b"[DONE]":
            self.finished = self.ended = True
            return []
        return self._chunk(base.server_object(data))

    def _chunk(self, data: Mapping[str, Json]) -> list[Event]:
        self._usage = usage_of(data) or self._usage
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return []
        if finish := as_text(choice.get("finish_reason")):
            self._finish = _FINISH.get(finish, "stop")
            self.finished = True
        return _delta_events(as_dict(choice.get("delta")), self._calls, choice.get("logprobs"))


def _delta_events(delta: Mapping[str, Json], calls: Calls, logprobs: Json) -> list[Event]:
    events: list[Event] = []
    reasoning = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning"))
    if reasoning:
        events.append(ReasoningDelta(reasoning))
    if isinstance(logprobs, dict):
        events += base.text_of(as_text(delta.get("content")), logprobs.get("content"))
    elif content := as_text(delta.get("content")):
        events.append(TextDelta(content))
    return events + calls.events(delta.get("tool_calls"))


def parse_response(body: bytes) -> list[Event]:
    """A whole answer as events.

    Raises:
        NonsenseError: it is not an answer.
    """
    data = base.server_object(body)
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise NonsenseError("the server's answer has no choices")
    calls = Calls(whole=True)
    events = [*_delta_events(as_dict(choice.get("message")), calls, choice.get("logprobs")), *calls.end()]
    if (usage := usage_of(data)) is not None:
        events.append(UsageReport(usage))
    reason = _FINISH.get(as_text(choice.get("finish_reason")), "stop")
    return [*events, Finish("tool_calls" if calls and reason == "stop" else reason)]


# The answer to a client.


class StreamRenderer:
    """Events as the SSE bytes of one answer.

    Args:
        model: ResponseModel.
        request_id: part of the answer's id.
        include_usage: the client asked for a usage chunk.
    """

    def __init__(self, model: str, request_id: str, include_usage: bool) -> None:
        self._head: dict[str, object] = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._usage: Usage | None = None
        self._begun = self._finished = False
        self._calls: set[int] = set()

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none here."""
        match event:
            case TextDelta(text, logprobs):
                return self._chunk({"content": text}, logprobs=logprobs) if text or logprobs else b""
            case ReasoningDelta(text, _):
                return self._chunk({"reasoning_content": text}) if text else b""
            case ToolCallDelta():
                return self._chunk({"tool_calls": [self._call(event)]})
            case UsageReport(usage):
                self._usage = usage
            case Finish(reason):
                self._finished = True
                return self._chunk({}, "tool_calls" if self._calls and reason == "stop" else reason)
        return b""

    def _call(self, event: ToolCallDelta) -> dict[str, object]:
        if event.index in self._calls:
            return {"index": event.index, "function": {"arguments": event.arguments}}
        self._calls.add(event.index)
        function = {"name": event.name, "arguments": event.arguments}
        return {"index": event.index, "id": event.call_id or new_id("call_"), "type": "function", "function": function}

    def _chunk(
        self, delta: dict[str, object], finish: str | None = None, logprobs: Sequence[Mapping[str, Json]] = ()
    ) -> bytes:
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta}
        choice: dict[str, object] = {"index": 0, "delta": delta, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        return _sse({**self._head, "choices": [choice]})

    def keep_alive(self) -> bytes:
        """A piece of no text: Qwen Code counts the silence between pieces, and a comment is none. After the last one
        a comment, since none may follow."""
        return b": keep-alive\n\n" if self._finished else self._chunk({"content": ""})

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle of the stream."""
        return b"data: " + render_error(error)[1] + b"\n\n"

    def close(self) -> bytes:
        """The usage chunk if asked for, and the end mark."""
        usage = b""
        if self._include_usage and self._usage is not None:
            usage = _sse({**self._head, "choices": [], "usage": _usage_value(self._usage)})
        return usage + b"data: [DONE]\n\n"


def _sse(value: object) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def _usage_value(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def render_response(events: Sequence[Event], model: str, request_id: str) -> bytes:
    """A whole answer."""
    text, logprobs = base.joined(events)
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    calls = collect_calls(events)
    usage = next((e.usage for e in events if isinstance(e, UsageReport)), Usage())
    finish = next((e.reason for e in events if isinstance(e, Finish)), "stop")
    message: dict[str, object] = {"role": "assistant", "content": text or (None if calls else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        finish = "tool_calls" if finish == "stop" else finish
        message["tool_calls"] = [
            {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls
        ]
    choice: dict[str, object] = {"index": 0, "message": message, "finish_reason": finish}
    if logprobs:
        choice["logprobs"] = {"content": logprobs}
    return encode(
        {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "usage": _usage_value(usage),
        }
    )


def collect_calls(events: Sequence[Event]) -> list[ToolCall]:
    """The tool calls of an answer, whole, in the order of their index."""
    found: dict[int, ToolCall] = {}
    for event in events:
        if not isinstance(event, ToolCallDelta):
            continue
        seen = found.get(event.index)
        found[event.index] = ToolCall(
            seen.call_id if seen else event.call_id or new_id("call_"),
            seen.name if seen else event.name,
            (seen.arguments if seen else "") + event.arguments,
            seen.item_id if seen else event.item_id,
            seen.namespace if seen else event.namespace,
        )
    return [found[index] for index in sorted(found)]


def status_of(error: TurnoutError) -> int:
    """The HTTP status of a failure, so that agents retry what can be retried (facts/agents.md, section 4)."""
    match error:
        case UsageError() | ContextOverflowError() | RequestRefusedError():
            return 400
        case GuardError() | NotPermittedError():
            return 403
        case NoSuitableModelError():
            return 400 if error.needed else 404
        case UnknownModelError():
            return 404
        case NoServiceError() | EndpointLoadingError() | StoppingError():
            return 503
        case PhaseTimeoutError():
            return 504
        case _:
            return 502


def overflow_text(error: ContextOverflowError) -> str:
    """The sentence that agents recognise, with the numbers when they are known."""
    if not error.window:
        return error.message
    asked = f"your prompt has {error.prompt_tokens} tokens" if error.prompt_tokens else "your prompt is longer"
    return f"This model's maximum context length is {error.window} tokens, {asked}. Shorten the conversation."


def render_error(error: TurnoutError, status: int = 0) -> tuple[int, bytes]:
    """Status and body of a failure in this format; ``status`` 0 takes the failure's own."""
    status = status or status_of(error)
    text = overflow_text(error) if isinstance(error, ContextOverflowError) else str(error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return status, encode({"error": {"message": text, "type": kind, "param": None, "code": error.code}})
