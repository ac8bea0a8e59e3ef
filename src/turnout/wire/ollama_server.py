"""Ollama's native chat, as its server (facts/services.md, section 1; facts/agents.md, sections 3 and 7).

What clients say of how a model is loaded (``num_ctx`` and its like, ``keep_alive``) is not sent on: it would load it
anew under everybody else's hands, and some clients send another window with every request.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from turnout.errors import ContextOverflowError, TurnoutError, UsageError
from turnout.types import (
    VIRTUAL_MODELS,
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
from turnout.wire import base
from turnout.wire.base import Completion, as_dict, as_text, encode, objects, text_field
from turnout.wire.ollama import RELOADING, SAMPLING, arguments_object
from turnout.wire.openai_chat import collect_calls, overflow_text, status_of

STREAM_TYPE = b"application/x-ndjson"
# Ids of calls that came without one: some chat templates insist on nine letters and digits.
_ID_CHARS = 9
ONE_PIECE_SECONDS = 0.002
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_EFFORT = {False: "none", "low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_READ_OPTIONS = frozenset({"num_predict", "temperature", "top_p", "stop"})
# Read, or dropped; also what other formats call it, which must not pass by what was read.
_READ = frozenset(
    {
        "model", "name", "messages", "prompt", "suffix", "system", "images", "template", "context", "raw", "tools",
        "stream", "format", "options", "keep_alive", "think", "truncate", "shift", "tool_choice", "max_tokens",
        "max_completion_tokens", "temperature", "top_p", "stop", "response_format", "reasoning_effort",
        "stream_options",
    }
)  # fmt: skip
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}\s*")
_MEDIA = {"/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}


class Peek(msgspec.Struct):
    """Which of the things that share a path a request wants."""

    model: str = ""
    messages: list[msgspec.Raw] | None = None
    prompt: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    images: list[msgspec.Raw] | None = None
    keep_alive: int | float | str | None = None

    @property
    def loads(self) -> bool:
        """It asks for nothing, which is how this format has a model loaded, or unloaded."""
        return not (self.messages or self.prompt or self.suffix or self.images)

    @property
    def unloads(self) -> bool:
        """Of one that ``loads``: it is to be unloaded."""
        kept = self.keep_alive
        return kept is not None and re.fullmatch(r"0+(\.0*)?[a-z]*", str(kept)) is not None

    @property
    def text(self) -> bool:
        """A text is to be gone on with, no question to be answered."""
        return bool(self.suffix or self.raw)


_PEEK = msgspec.json.Decoder(Peek)


def peek(body: bytes) -> Peek:
    """Read the few fields that tell what a request is.

    Raises:
        UsageError: it is no JSON object, or they are not of the right type.
    """
    try:
        return _PEEK.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is not a request: {str(error)[:120]}") from error


def model_name(value: Json) -> str:
    """The model a client means: a virtual one has no tag, whatever the client adds to it.

    Raises:
        UsageError: it is no string.
    """
    name = text_field(value or "", "model")
    bare = name.removesuffix(":latest")
    return bare if bare in VIRTUAL_MODELS else name


# The client's request.


def parse_request(body: bytes) -> ChatRequest:
    """Read ``/api/chat``; fields without a neutral place are kept in ``extras``.

    Raises:
        UsageError: it is not a chat request, with what is wrong.
    """
    data = base.decode_object(body)
    rows = objects(data.get("messages"), "messages")
    if not rows:
        raise UsageError("messages is missing or empty")
    return _request(data, _Conversation().read(rows), RawBody(WireFormat.OLLAMA, body))


def parse_generate(body: bytes) -> ChatRequest:
    """Read ``/api/generate`` as the chat of one turn that it is, but for a template and a context of its own.

    Raises:
        UsageError: it is not such a request.
    """
    data = base.decode_object(body)
    _require_owner_of_context(data)
    system = as_text(data.get("system"))
    parts = [Text(text_field(data.get("prompt") or "", "prompt")), *_images(data.get("images"))]
    head = (Message("system", (Text(system),)),) if system else ()
    messages = [*head, Message("user", tuple(part for part in parts if part != Text("")))]
    return _request(data, messages, RawBody(WireFormat.OLLAMA_GENERATE, body), _untranslatable(data, "template"))


def _require_owner_of_context(data: Mapping[str, Json]) -> None:
    """``context`` is an earlier answer's tokens, which mean something to its model alone."""
    if data.get("context") and (model_name(data.get("model")) or "auto") in VIRTUAL_MODELS:
        raise UsageError("context is one model's own", hint="name the model that made it, or use /api/chat")


def _untranslatable(data: Mapping[str, Json], *keys: str) -> str:
    """What only an Ollama can be told, in words."""
    return " and ".join(f"'{key}' of /api/generate" for key in (*keys, "context") if data.get(key))


def parse_text(body: bytes) -> Completion:
    """Read ``/api/generate`` with ``raw`` or a ``suffix``.

    Raises:
        UsageError: it is not such a request.
    """
    data = base.decode_object(body)
    _require_owner_of_context(data)
    _images(data.get("images"))
    options = as_dict(data.get("options"))
    return Completion(
        prompt=text_field(data.get("prompt") or "", "prompt"),
        model=model_name(data.get("model")),
        suffix=text_field(data.get("suffix") or "", "suffix"),
        max_tokens=_num_predict(options),
        temperature=base.number_field(options, "temperature"),
        top_p=base.number_field(options, "top_p"),
        stop=_stop(options.get("stop")),
        stream=_streams(data),
        raw=RawBody(WireFormat.OLLAMA_GENERATE, body),
        only=_untranslatable(data, "images", "system", "template"),
        extras=_extras(data, options),
    )


def _request(data: Mapping[str, Json], messages: Sequence[Message], raw: RawBody, only: str = "") -> ChatRequest:
    options = as_dict(data.get("options"))
    think = data.get("think")
    if think is not None and not isinstance(think, bool | str):
        raise UsageError("think is neither true or false nor a level")
    extras = _extras(data, options)
    effort = _EFFORT.get(think, "") if isinstance(think, bool | str) else ""
    if think and not effort:  # plain "on", which is how a model that can think is anyway
        extras["think"] = think
    return ChatRequest(
        own_history=True,
        messages=tuple(messages),
        model=model_name(data.get("model")) or "auto",
        tools=tuple(_tool(row) for row in objects(data.get("tools"), "tools")),
        max_tokens=_num_predict(options),
        temperature=base.number_field(options, "temperature"),
        top_p=base.number_field(options, "top_p"),
        stop=_stop(options.get("stop")),
        response_format=_format(data.get("format")),
        reasoning_effort=effort,
        stream=_streams(data),
        raw=raw,
        only=only,
        extras=extras,
    )


def _streams(data: Mapping[str, Json]) -> bool:
    return data.get("stream") is None or base.flag_field(data, "stream")


def _num_predict(options: Mapping[str, Json]) -> int | None:
    """-2 is how this format says "until the window is full"."""
    return None if options.get("num_predict") == -2 else base.whole_field(options, "num_predict")


def _stop(value: Json) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(as_text(word) for word in value) if isinstance(value, list) else ()


def _extras(data: Mapping[str, Json], options: Mapping[str, Json]) -> dict[str, Json]:
    """Unknown fields, and the options: what all servers know at the top, as they have it, the rest under their name."""
    extras = {key: value for key, value in data.items() if key not in _READ}
    extras |= {key: value for key, value in options.items() if key in SAMPLING}
    rest = {k: v for k, v in options.items() if k not in _READ_OPTIONS | SAMPLING | RELOADING}
    return extras | ({"options": rest} if rest else {})


def _format(value: Json) -> Mapping[str, Json] | None:
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "json_object"}
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
    raise UsageError('format is neither "json" nor a JSON schema')


def _tool(row: Mapping[str, Json]) -> Tool:
    function = as_dict(row.get("function"))
    name = as_text(function.get("name"))
    if not name:
        raise UsageError("a tool has no function name")
    extras = {key: value for key, value in function.items() if key not in ("name", "description", "parameters")}
    return Tool(name, as_text(function.get("description")), as_dict(function.get("parameters")), extras)


def _images(value: Json) -> list[Part]:
    if value is None:
        return []
    images: list[Part] = []
    for data in value if isinstance(value, list) else [value]:
        if not isinstance(data, str) or not _BASE64.fullmatch(data):
            raise UsageError("an image is not base64 data", hint="addresses of images are not fetched")
        media = next((kind for head, kind in _MEDIA.items() if data.startswith(head)), "image/png")
        images.append(Image(media, "".join(data.split())))
    return images


class _Conversation:
    """Messages with ids for their calls, which this format may leave out.

    An id is made of what the call says, so that it is the same every time a client sends its history: a changed one
    would cost the server's prefix cache.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._open: list[ToolCall] = []  # calls without a result so far

    def read(self, rows: Sequence[Mapping[str, Json]]) -> list[Message]:
        return [self._message(row) for row in rows]

    def _message(self, row: Mapping[str, Json]) -> Message:
        role = _ROLES.get(as_text(row.get("role")))
        if role is None:
            raise UsageError(f"a message has the role {as_text(row.get('role'))[:40]!r}")
        content = row.get("content")
        text = "" if content is None else text_field(content, "content")
        if role == "tool":
            return Message(role, (self._result(row, text),))
        thinking = as_text(row.get("thinking"))
        parts: list[Part] = [Reasoning(thinking)] if thinking and role == "assistant" else []
        parts += [Text(text)] if text else []
        parts += _images(row.get("images"))
        parts += [self._call(call) for call in objects(row.get("tool_calls"), "tool_calls")]
        return Message(role, tuple(parts))

    def _call(self, row: Mapping[str, Json]) -> ToolCall:
        function = as_dict(row.get("function"))
        name, arguments = as_text(function.get("name")), base.arguments_text(function.get("arguments")) or "{}"
        call = ToolCall(as_text(row.get("id")) or self._made(name, arguments), name, arguments)
        self._ids.add(call.call_id)
        self._open.append(call)
        return call

    def _made(self, name: str, arguments: str) -> str:
        text = f"{name}\0{arguments}".encode("utf-8", "replace")
        number = 0
        while (made := hashlib.sha256(b"%d\0" % number + text).hexdigest()[:_ID_CHARS]) in self._ids:
            number += 1
        return made

    def _result(self, row: Mapping[str, Json], text: str) -> ToolResult:
        call_id, name = as_text(row.get("tool_call_id")), as_text(row.get("tool_name")) or as_text(row.get("name"))
        same = next((c for c in self._open if call_id and c.call_id == call_id), None)
        same = same or next((c for c in self._open if name in ("", c.name)), None)
        if same is None:
            return ToolResult(call_id or name, text, name)
        self._open.remove(same)
        return ToolResult(same.call_id, text, name or same.name)


# The answer to a client.


class StreamRenderer:
    """Events as the NDJSON of one answer. Calls are given whole, at the end: this format has no pieces of them.

    Args:
        model: the model's name in every line.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._began, self._first = time.monotonic(), 0.0
        self._calls: list[Event] = []
        self._usage = Usage()
        self._finish: FinishReason = "stop"

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none here."""
        match event:
            case TextDelta(text, logprobs):
                told = {"logprobs": logprobs} if logprobs else {}
                return self._line({**self._say(text, ""), **told}) if text or logprobs else b""
            case ReasoningDelta(text, _):
                return self._line(self._say("", text)) if text else b""
            case ToolCallDelta():
                self._first = self._first or time.monotonic()
                self._calls.append(event)
            case UsageReport(usage):
                self._usage = usage
            case Finish(reason):
                self._finish = reason
            case _:
                pass
        return b""

    def _say(self, text: str, thinking: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text} | ({"thinking": thinking} if thinking else {})}

    def _line(self, said: Mapping[str, object], done: Mapping[str, object] | None = None) -> bytes:
        self._first = self._first or time.monotonic()
        head = {"model": self._model, "created_at": _now()}
        return encode({**head, **said, "done": done is not None, **(done or {})}) + b"\n"

    def keep_alive(self) -> bytes:
        """An empty piece: clients parse every line as JSON, so neither a comment nor an empty line is safe, and servers
        send such pieces themselves while a model thinks."""
        first = self._first
        line = self._line(self._say("", ""))
        self._first = first
        return line

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle of the stream."""
        return render_error(error)[1] + b"\n"

    def close(self) -> bytes:
        """The calls, and the end with its counts and times."""
        now = time.monotonic()
        end = _end(self._finish, self._usage, (self._first or now) - self._began, now - self._began)
        return self._whole_calls() + self._line(self._say("", ""), end)

    def _whole_calls(self) -> bytes:
        rows = _calls(self._calls)
        return self._line({"message": {"role": "assistant", "content": "", "tool_calls": rows}}) if rows else b""


class GenerateRenderer(StreamRenderer):
    """The same for ``/api/generate``, which has the text in the line itself and no calls."""

    def _say(self, text: str, thinking: str) -> dict[str, object]:
        said: dict[str, object] = {"response": text}
        return said | ({"thinking": thinking} if thinking else {})

    def _whole_calls(self) -> bytes:
        return b""


def render_response(events: Sequence[Event], model: str, seconds: float = 0.0) -> bytes:
    """A whole answer of ``/api/chat``, which took so long."""
    text, thinking = _said(events)
    message: dict[str, object] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if rows := _calls(events):
        message["tool_calls"] = rows
    return _whole(model, {"message": message}, events, seconds)


def render_generate(events: Sequence[Event], model: str, seconds: float = 0.0) -> bytes:
    """A whole answer of ``/api/generate``, which took so long."""
    text, thinking = _said(events)
    said: dict[str, object] = {"response": text}
    return _whole(model, said | ({"thinking": thinking} if thinking else {}), events, seconds)


def render_loaded(model: str, *, chat: bool) -> bytes:
    """The answer to a request that asks for nothing."""
    said: dict[str, object] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return encode({"model": model, "created_at": _now(), **said, "done": True, "done_reason": "load"}) + b"\n"


def _said(events: Sequence[Event]) -> tuple[str, str]:
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    return text, "".join(e.text for e in events if isinstance(e, ReasoningDelta))


def _whole(model: str, said: Mapping[str, object], events: Sequence[Event], seconds: float) -> bytes:
    usage = next((e.usage for e in events if isinstance(e, UsageReport)), Usage())
    reason = next((e.reason for e in events if isinstance(e, Finish)), "stop")
    _, logprobs = base.joined(events)
    told = {"logprobs": logprobs} if logprobs else {}
    end = _end(reason, usage, 0.0, seconds)
    return encode({"model": model, "created_at": _now(), **said, **told, "done": True, **end})


def _end(reason: str, usage: Usage, first: float, total: float) -> dict[str, object]:
    """The last object's own fields, all of which clients read without looking whether they are there.

    Times in nanoseconds as seen from here: what a load took is within the prompt's. Of an answer that came in one piece
    nobody knows the parts, and all of it counts as the answer's: clients divide by that.
    """
    first = first if total - first > ONE_PIECE_SECONDS else 0.0
    return {
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": int(total * 1e9),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(first * 1e9),
        "eval_count": usage.completion_tokens,
        "eval_duration": max(1, int((total - first) * 1e9)),
    }


def _calls(events: Sequence[Event]) -> list[dict[str, object]]:
    return [
        {"id": c.call_id, "function": {"index": n, "name": c.name, "arguments": arguments_object(c.arguments)}}
        for n, c in enumerate(collect_calls(events))
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def render_error(error: TurnoutError, status: int = 0) -> tuple[int, bytes]:
    """Status and body of a failure in this format, which has one sentence; ``status`` 0 takes the failure's own."""
    text = overflow_text(error) if isinstance(error, ContextOverflowError) else str(error)
    return status or status_of(error), encode({"error": text})
