"""The raw lane of OpenAI chat completions: a client's bytes with a few named edits, and a scanner beside the answer.

Everything else of the body stays as the client wrote it (SPEC GW-2; docs/wire.md has the closed table).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from turnout.errors import UsageError
from turnout.types import Json, Usage
from turnout.wire import base
from turnout.wire.base import as_count, as_dict
from turnout.wire.calls import Mender
from turnout.wire.passing import TOP, Edits, Pieces, exceeds, is_null, top_of


def usage_of(data: Mapping[str, Json]) -> Usage | None:
    """Usage from an answer or a chunk; llama.cpp's ``timings`` tell the cached tokens too."""
    usage = as_dict(data.get("usage"))
    timings = as_dict(data.get("timings"))
    if not usage and not timings:
        return None
    cached = as_count(as_dict(usage.get("prompt_tokens_details")).get("cached_tokens")) or as_count(
        timings.get("cache_n")
    )
    if not usage:
        return Usage(as_count(timings.get("prompt_n")) + cached, as_count(timings.get("predicted_n")), cached)
    return Usage(as_count(usage.get("prompt_tokens")), as_count(usage.get("completion_tokens")), cached)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Peek(msgspec.Struct):
    """What the raw lane needs of a request."""

    model: str | None = "auto"
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @property
    def include_usage(self) -> bool:
        """The client asked for a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Seen(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None


_PEEK = msgspec.json.Decoder(Peek)
_SEEN = msgspec.json.Decoder(_Seen)
# In JSON text these bytes are keys or whole strings, never part of what a model wrote: there the quotes are escaped.
_FACTS = re.compile(rb'"usage"|"timings"|"finish_reason": ?"')
_CALLS = re.compile(rb'"tool_calls": ?\[ ?\{')
_MARK = re.compile(rb'"usage"|"timings"|"finish_reason": ?"|"error"|"tool_calls": ?\[ ?\{|\[DONE\]')
_EVENT = re.compile(rb".*?\n\r?\n", re.DOTALL)


def peek(body: bytes) -> Peek:
    """Read the few fields that routing needs, skipping the rest.

    Raises:
        UsageError: they are not of the right type.
    """
    try:
        return _PEEK.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is not a chat request: {str(error)[:120]}") from error


def edit_request(
    body: bytes, *, model: str, max_tokens: int | None = None, name_limit: bool = False, ask_usage: bool = False
) -> bytes:
    """The client's body with the named edits: model, clamped answer length, usage asked for. The rest is untouched.

    Args:
        body: the client's JSON.
        model: RequestModel.
        max_tokens: upper bound of the answer in tokens, or None.
        name_limit: write ``max_tokens`` also where the client named no limit.
        ask_usage: have the server report usage.

    Raises:
        UsageError: the body is not a JSON object.
    """
    data = top_of(body)
    edits: dict[str, object] = {"model": model}
    named = [k for k in ("max_tokens", "max_completion_tokens") if not is_null(data.get(k))]
    if max_tokens is not None:
        edits |= {key: max_tokens for key in named if exceeds(data[key], max_tokens)}
        if name_limit and not named:
            edits["max_tokens"] = max_tokens
    if ask_usage:
        edits["stream_options"] = {**_options(data.get("stream_options")), "include_usage": True}
    return msgspec.json.encode({**data, **edits})


def _options(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw]:
    if raw is None or is_null(raw):
        return {}
    try:
        return TOP.decode(raw)
    except msgspec.DecodeError as error:
        raise UsageError(f"stream_options is not an object: {str(error)[:120]}") from error


def prepare(body: bytes, edits: Edits) -> tuple[bytes, Scanner]:
    """The body for a server, and what reads its answer.

    Raises:
        UsageError: it is no chat request.
    """
    asked = peek(body)
    stream = bool(asked.stream)
    ask_usage = stream and not asked.include_usage
    sent = edit_request(
        body, model=edits.model, max_tokens=edits.max_tokens, name_limit=edits.name_limit, ask_usage=ask_usage
    )
    return sent, Scanner(strip_usage=ask_usage, stream=stream)


class Scanner:
    """Reads usage and finish while the events of an answer pass by unchanged, but for the usage chunk and for tool
    calls without what clients need. Whole events alone pass.

    Args:
        strip_usage: hold back the usage chunk, which we asked for and the client did not.
        stream: the answer is SSE.
    """

    content_type = "text/event-stream; charset=utf-8"
    answer = b""

    def __init__(self, *, strip_usage: bool, stream: bool) -> None:
        self._strip, self.stream = strip_usage, stream
        self._events = Pieces(b"\n\n", b"\n\r\n")
        self._mender = Mender()
        self.usage: Usage | None = None
        self.finish = ""
        self.answered = False  # choices were seen
        self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to hand on.

        Raises:
            NonsenseError: an event does not end.
            ServerFailedError: the server reports an error in the middle, under 200.
        """
        if not self.stream:
            self._read(chunk)
            self.done = True
            return (_CALLS.search(chunk) and self._mender.event(chunk)) or chunk
        whole = self._events.feed(chunk)
        if _MARK.search(whole):
            whole = b"".join([self._mended(event) for event in _EVENT.findall(whole) if self._keep(event)])
        return whole

    def close(self) -> bytes:
        """What was held back without an end."""
        rest = self._events.close()
        if not rest.strip() or not self._keep(rest):
            return b""
        return self._mended(rest) + b"\n\n"

    def begins(self, held: bytes) -> bool:
        """An event; comments are none."""
        return b"data:" in held

    def _mended(self, event: bytes) -> bytes:
        if not _CALLS.search(event):
            return event
        head, _, data = event.partition(b"data:")
        mended = self._mender.event(data)
        return event if mended is None else head + b"data: " + mended + b"\n\n"

    def _keep(self, event: bytes) -> bool:
        data = event.rpartition(b"data:")[2] if b"[DONE]" in event else event.partition(b"data:")[2]
        if data.strip() == b"[DONE]":
            self.done = True
            return True
        if _FACTS.search(event):
            return not (self._read(event.partition(b"data:")[2]) and self._strip)
        if b'"error"' in event and b'"choices"' not in event:
            base.server_object(event.partition(b"data:")[2])
        return True

    def _read(self, data: bytes) -> bool:
        """Read one JSON object; whether it is a usage chunk and nothing else."""
        seen = _see(data)
        if seen is None:
            return False
        usage = usage_of({"usage": seen.usage, "timings": seen.timings})
        self.usage = usage or self.usage
        self.answered = self.answered or seen.choices is not None
        if seen.choices:
            self.finish = seen.choices[0].finish_reason or self.finish
        return usage is not None and seen.choices == []


def _see(data: bytes) -> _Seen | None:
    """The facts of an answer or a chunk, skipping its text; None when it is no answer."""
    try:
        return _SEEN.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
