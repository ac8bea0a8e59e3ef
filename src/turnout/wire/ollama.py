"""Ollama's native format, as its client (facts/services.md, section 1); as its server: ``ollama_server.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from turnout.errors import NonsenseError, UsageError
from turnout.types import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    Image,
    Json,
    Message,
    Reasoning,
    ReasoningDelta,
    Text,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from turnout.wire import base
from turnout.wire.base import Completion, as_count, as_dict, as_text, encode, new_id

# What the server takes for ``think`` (facts/services.md, section 1, Chat row), from the efforts that clients know.
_THINK: dict[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max",
}  # fmt: skip
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
# Options that change how an answer is drawn and nothing of how the model runs; OpenAI clients send many at the top.
SAMPLING = frozenset(
    {
        "seed", "top_k", "min_p", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty",
        "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
    }
)  # fmt: skip
# Options that load a running model anew when they differ from its own (facts/services.md, section 1).
RELOADING = frozenset(
    {
        "num_ctx", "num_gpu", "main_gpu", "num_batch", "num_thread", "use_mmap", "use_mlock", "numa", "low_vram",
        "f16_kv", "vocab_only", "draft_num_predict",
    }
)  # fmt: skip
_OURS = frozenset({"keep_alive", "options", "shift", *SAMPLING})


def render_request(request: ChatRequest, model: str, *, stream: bool, num_ctx: int | None) -> bytes:
    """The body of ``/api/chat``.

    ``truncate`` is false: the server would drop the oldest messages without a word. ``shift`` is left alone, because
    a value that differs from the running model's reloads it.

    Args:
        request: the request.
        model: the server's own id.
        stream: NDJSON or one object.
        num_ctx: the window in tokens, the same for every request to a model; None leaves the server's.

    Raises:
        UsageError: an image is given by address, which this format cannot carry and nobody may fetch.
    """
    names = {call.call_id: call.name for m in request.messages for call in m.tool_calls}
    data: dict[str, object] = {
        **{key: value for key, value in request.extras.items() if key not in _OURS},
        "model": model,
        "messages": [row for m in request.messages for row in _rows(m, names)],
        "stream": stream,
        "truncate": False,
        "options": _options(request, num_ctx),
    }
    if request.tools and request.tool_choice != "none":
        data["tools"] = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": dict(t.schema)},
            }
            for t in request.tools
        ]
    if (wanted := _format(request.response_format)) is not None:
        data["format"] = wanted
    if request.reasoning_effort:
        data["think"] = _THINK.get(request.reasoning_effort, True)
    return encode(data)


def render_text(asked: Completion, model: str, *, num_ctx: int | None) -> bytes:
    """The body of ``/api/generate``, streamed: without a template, unless the template's own gap is to be filled."""
    data: dict[str, object] = {
        **{key: value for key, value in asked.extras.items() if key not in _OURS},
        "model": model,
        "prompt": asked.prompt,
        "stream": True,
        "truncate": False,
        "options": _options(asked, num_ctx),
    }
    return encode(data | ({"suffix": asked.suffix} if asked.suffix else {"raw": True}))


def _options(request: ChatRequest | Completion, num_ctx: int | None) -> dict[str, object]:
    own = as_dict(request.extras.get("options"))
    options: dict[str, object] = {
        **{key: value for key, value in own.items() if key not in RELOADING},
        **{key: value for key, value in request.extras.items() if key in SAMPLING},
        "num_ctx": num_ctx,
        "num_predict": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": list(request.stop) or None,
    }
    return {key: value for key, value in options.items() if value is not None}


def _format(response_format: Mapping[str, Json] | None) -> object:
    if response_format is None:
        return None
    if response_format.get("type") == "json_schema":
        return as_dict(as_dict(response_format.get("json_schema")).get("schema")) or "json"
    return "json" if response_format.get("type") == "json_object" else None


def _rows(message: Message, names: Mapping[str, str]) -> list[dict[str, object]]:
    results: list[dict[str, object]] = [
        {
            "role": "tool",
            "content": base.result_text(r),
            "tool_name": r.name or names.get(r.call_id, ""),
            "tool_call_id": r.call_id,
        }
        for r in message.tool_results
    ]
    if message.role == "tool" or (results and len(results) == len(message.parts)):
        return results
    # Agents send several blocks of text: glued together, the last word of one would run into the next.
    text = "\n".join(part.text for part in message.parts if isinstance(part, Text))
    row: dict[str, object] = {"role": message.role, "content": text}
    thinking = "".join(part.text for part in message.parts if isinstance(part, Reasoning))
    if thinking:
        row["thinking"] = thinking
    images = [part for part in message.parts if isinstance(part, Image)]
    if any(not image.data for image in images):
        raise UsageError("an image is given by its address, which Ollama cannot take", hint="send it as base64")
    if images:
        row["images"] = [image.data for image in images]
    calls = [
        {"id": c.call_id, "function": {"name": c.name, "arguments": arguments_object(c.arguments)}}
        for c in message.tool_calls
    ]
    if calls:
        row["tool_calls"] = calls
    return [*results, row]


def arguments_object(text: str) -> dict[str, Json]:
    """Arguments as the object this format wants; what is no object is kept under ``input``."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"input": value}


class StreamParser:
    """NDJSON bytes, cut anywhere, as events."""

    def __init__(self) -> None:
        self._lines = base.Lines()
        self._calls = 0
        self.finished = False

    @property
    def ended(self) -> bool:
        """The last object was seen."""
        return self.finished

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completed.

        Raises:
            NonsenseError: it is not this format.
            ServerFailedError: the server reports an error in the middle, under 200.
        """
        return self._events(self._lines.feed(data))

    def close(self) -> list[Event]:
        """What a last line without an end held."""
        return self._events(self._lines.close())

    def _events(self, lines: Sequence[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if self.finished:  # what a server says after the end is no part of the answer
                break
            if line.strip():
                events += self._object(base.server_object(line))
        return events

    def _object(self, data: Mapping[str, Json]) -> list[Event]:
        # A text that was gone on with is in the object itself.
        message = as_dict(data.get("message")) or {"content": data.get("response"), "thinking": data.get("thinking")}
        events: list[Event] = []
        if thinking := as_text(message.get("thinking")):
            events.append(ReasoningDelta(thinking))
        events += base.text_of(as_text(message.get("content")), data.get("logprobs"))
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            function = as_dict(as_dict(call).get("function"))
            call_id = as_text(as_dict(call).get("id")) or new_id("call_")
            arguments = base.arguments_text(function.get("arguments")) or "{}"
            events.append(ToolCallDelta(self._calls, call_id, as_text(function.get("name")), arguments))
            self._calls += 1
        if data.get("done") is True:
            self.finished = True
            usage = Usage(as_count(data.get("prompt_eval_count")), as_count(data.get("eval_count")))
            reason = _FINISH.get(as_text(data.get("done_reason")), "stop")
            events += [UsageReport(usage), Finish("tool_calls" if self._calls and reason == "stop" else reason)]
        return events


def parse_response(body: bytes) -> list[Event]:
    """A whole answer as events.

    Raises:
        NonsenseError: it is not an answer.
    """
    parser = StreamParser()
    events = parser.feed(body) + parser.close()
    if not parser.finished:
        raise NonsenseError("the server's answer has no end mark")
    return events
