"""OpenAI text completions, both directions, and how llama.cpp's ``/infill`` answers (facts/services.md, section 13)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from turnout.errors import NonsenseError, TurnoutError, UsageError
from turnout.types import Event, Finish, FinishReason, Json, TextDelta, Usage, UsageReport
from turnout.wire import base, openai_chat
from turnout.wire.base import Completion, as_count, as_text, encode, text_field
from turnout.wire.openai_chat import render_error
from turnout.wire.scan import usage_of

__all__ = [
    "StreamParser",
    "StreamRenderer",
    "native_body",
    "parse_request",
    "render_error",
    "render_request",
    "render_response",
]

_READ = frozenset(
    {
        "model", "prompt", "suffix", "max_tokens", "temperature", "top_p", "stop", "stream", "stream_options", "echo",
        "n", "best_of", "logprobs",
    }
)  # fmt: skip


def parse_request(body: bytes) -> Completion:
    """Read a client's request; fields without a neutral place are kept in ``extras``.

    Raises:
        UsageError: it is no such request, or wants what has no way through: several answers, or probabilities.
    """
    data = base.decode_object(body)
    for key in ("n", "best_of"):
        if data.get(key) not in (None, 1):
            raise UsageError(f"{key} is more than 1: one answer is given to a prompt")
    for key in ("echo", "logprobs"):
        if data.get(key):
            raise UsageError(f"{key} is not supported for text completions")
    stop = data.get("stop")
    suffix = data.get("suffix")
    return Completion(
        prompt=_prompt(data.get("prompt")),
        model=text_field(data.get("model") or "", "model"),
        suffix="" if suffix is None else text_field(suffix, "suffix"),
        max_tokens=base.whole_field(data, "max_tokens"),
        temperature=base.number_field(data, "temperature"),
        top_p=base.number_field(data, "top_p"),
        stop=tuple(as_text(s) for s in stop) if isinstance(stop, list) else (stop,) if isinstance(stop, str) else (),
        stream=base.flag_field(data, "stream"),
        extras={key: value for key, value in data.items() if key not in _READ},
    )


def _prompt(value: Json) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        hint = "send one text a request; token numbers are only their own tokenizer's"
        raise UsageError("prompt is a list", hint=hint)
    prompt = text_field(value, "prompt")
    if not prompt:
        raise UsageError("prompt is empty", hint="give a text to go on with")
    return prompt


def render_request(asked: Completion, model: str) -> bytes:
    """The body for a server, ``model`` being the server's own id."""
    data: dict[str, object] = {
        **asked.extras,
        "model": model,
        "prompt": asked.prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return encode(data | _optional(asked, "max_tokens") | ({"suffix": asked.suffix} if asked.suffix else {}))


def native_body(asked: Completion, model: str) -> bytes:
    """The body of ``/infill``."""
    data: dict[str, object] = {
        **asked.extras,
        "model": model,
        "input_prefix": asked.prompt,
        "input_suffix": asked.suffix,
        "stream": True,
    }
    return encode(data | _optional(asked, "n_predict"))


def _optional(asked: Completion, limit: str) -> dict[str, object]:
    values = {
        limit: asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "stop": list(asked.stop) or None,
    }
    return {key: value for key, value in values.items() if value is not None}


class StreamParser(openai_chat.StreamParser):
    """A server's SSE bytes, cut anywhere, as events: the protocol's chunks, or llama.cpp's own objects."""

    def _chunk(self, data: Mapping[str, Json]) -> list[Event]:
        self._usage = usage_of(data) or self._usage
        choices = data.get("choices")
        if isinstance(choices, list):
            choice = choices[0] if choices else None
            return self._said(choice, "text", "finish_reason") if isinstance(choice, dict) else []
        if "content" not in data:
            raise NonsenseError("the server's answer is no text completion")
        if data.get("stop") is not True:
            return self._said(data, "content", "")
        if self._usage is None:
            self._usage = Usage(as_count(data.get("tokens_evaluated")), as_count(data.get("tokens_predicted")))
        self.finished = self.ended = True
        self._finish = "length" if data.get("stop_type") == "limit" else "stop"
        return self._said(data, "content", "")

    def _said(self, row: Mapping[str, Json], key: str, finish_key: str) -> list[Event]:
        if finish := as_text(row.get(finish_key)):
            self.finished = True
            self._finish = "length" if finish == "length" else "stop"
        text = as_text(row.get(key))
        return [TextDelta(text)] if text else []


class StreamRenderer:
    """Events as the SSE bytes of one answer."""

    def __init__(self, model: str, request_id: str) -> None:
        self._head: dict[str, object] = _head(model, request_id)
        self._usage = Usage()

    def feed(self, event: Event) -> bytes:
        """The bytes of one event, b"" when it has none here."""
        match event:
            case TextDelta(text):
                return self._row(text, None) if text else b""
            case UsageReport(usage):
                self._usage = usage
                return b""
            case Finish(reason):
                return self._row("", _reason(reason))
            case _:
                return b""

    def _row(self, text: str, finish: str | None) -> bytes:
        return _sse({**self._head, "choices": [_choice(text, finish)]})

    def keep_alive(self) -> bytes:
        """An SSE comment."""
        return b": keep-alive\n\n"

    def error(self, error: TurnoutError) -> bytes:
        """A failure in the middle of the stream."""
        return b"data: " + render_error(error)[1] + b"\n\n"

    def close(self) -> bytes:
        """The usage chunk, which clients of this old format expect nowhere and mind nowhere, and the end mark."""
        return _sse({**self._head, "choices": [], "usage": _usage_value(self._usage)}) + b"data: [DONE]\n\n"


def render_response(events: Sequence[Event], model: str, request_id: str) -> bytes:
    """A whole answer."""
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    usage = next((e.usage for e in events if isinstance(e, UsageReport)), Usage())
    finish = next((_reason(e.reason) for e in events if isinstance(e, Finish)), "stop")
    return encode({**_head(model, request_id), "choices": [_choice(text, finish)], "usage": _usage_value(usage)})


def _head(model: str, request_id: str) -> dict[str, object]:
    return {"id": f"cmpl-{request_id}", "object": "text_completion", "created": int(time.time()), "model": model}


def _choice(text: str, finish: str | None) -> dict[str, object]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _reason(reason: FinishReason) -> str:
    return reason if reason in ("length", "content_filter") else "stop"


def _sse(value: object) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def _usage_value(usage: Usage) -> dict[str, int]:
    prompt, answer = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
