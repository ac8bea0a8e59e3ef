"""The raw lane of OpenAI Responses: a client's bytes with a few named edits, and a scanner beside the answer.

Read from vLLM 0.32, the one kind of server that is spoken to in it (docs/wire.md), and recorded from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from turnout.errors import ServerFailedError
from turnout.types import Json, Usage
from turnout.wire import base
from turnout.wire.base import as_count, as_dict, as_text
from turnout.wire.passing import TOP, Edits, Pieces, limited, top_of

# By default a server answers a prompt that is too long with an error; "auto" has it cut without a word.
_DROPPED = frozenset({"truncation"})
_MARK = re.compile(rb'"response\.(?:completed|incomplete|failed)"|"error"')
_EVENT = re.compile(rb".*?\n\r?\n", re.DOTALL)
# The head of an answer says nothing yet.
_WORD = re.compile(rb'"response\.(?:output_item\.added|completed|incomplete)"')
_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}


def prepare(body: bytes, edits: Edits) -> tuple[bytes, Scanner]:
    """The body for a server, and what reads its answer; nothing is stored there.

    Raises:
        UsageError: it is no JSON object.
    """
    data = top_of(body)
    kept: dict[str, object] = {key: raw for key, raw in data.items() if key not in _DROPPED}
    kept |= {"model": edits.model, "store": False}
    if (limit := limited(data.get("max_output_tokens"), edits)) is not None:
        kept["max_output_tokens"] = limit
    stream = data.get("stream")
    return msgspec.json.encode(kept), Scanner(stream=stream is not None and bytes(stream).strip() == b"true")


class Scanner:
    """Reads usage, the end and the whole answer while the events pass by; whole events alone pass.

    One is changed: vLLM ends an answer that was cut with ``response.completed``, and says in it that it is incomplete.

    Attributes:
        answer: the whole response as JSON, once it was seen; b"" when its items have no ids to be kept by.
    """

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self._events = Pieces(b"\n\n", b"\n\r\n")
        self.usage: Usage | None = None
        self.finish = ""
        self.answer = b""
        self.answered = self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """The whole events.

        Raises:
            NonsenseError: an event does not end.
            ServerFailedError: the server reports an error in the middle, under 200.
        """
        if not self.stream:
            self._response(chunk)
            return chunk
        whole = self._events.feed(chunk)
        if _MARK.search(whole):
            whole = b"".join([self._event(event) if _MARK.search(event) else event for event in _EVENT.findall(whole)])
        return whole

    def close(self) -> bytes:
        """A last event without an end."""
        rest = self._events.close()
        return self._event(rest) + b"\n\n" if rest.strip() else b""

    def begins(self, held: bytes) -> bool:
        """An item, or the end."""
        return bool(_WORD.search(held))

    def _event(self, event: bytes) -> bytes:
        text = event.partition(b"data:")[2]
        data = base.object_or_nothing(text)
        match data.get("type"):
            case "response.completed" | "response.incomplete" as kind:
                self._response(bytes(TOP.decode(text)["response"]) if "response" in data else b"")
                self.done = True
                if kind == "response.completed" and as_dict(data.get("response")).get("status") == "incomplete":
                    return event.replace(b"response.completed", b"response.incomplete")
            case "response.failed":
                error = as_dict(as_dict(data.get("response")).get("error"))
                raise _failed(as_text(error.get("message")))
            case "error":
                raise _failed(as_text(data.get("message")) or as_text(as_dict(data.get("error")).get("message")))
            case None:
                base.server_object(text)
            case _:
                pass
        return event

    def _response(self, body: bytes) -> None:
        data = base.object_or_nothing(body)
        output = data.get("output")
        items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
        self.answered = isinstance(output, list) and data.get("status") in ("completed", "incomplete")
        if not self.answered:
            return
        usage = as_dict(data.get("usage"))
        if usage:
            cached = as_count(as_dict(usage.get("input_tokens_details")).get("cached_tokens"))
            self.usage = Usage(as_count(usage.get("input_tokens")), as_count(usage.get("output_tokens")), cached)
        self.finish = _finish(data, items)
        if all(as_text(item.get("id")) for item in items):
            self.answer = body


def _finish(data: Mapping[str, Json], items: list[dict[str, Json]]) -> str:
    if data.get("status") == "incomplete":
        return _REASONS.get(as_text(as_dict(data.get("incomplete_details")).get("reason")), "length")
    return "tool_calls" if any(item.get("type") == "function_call" for item in items) else "stop"


def _failed(text: str) -> ServerFailedError:
    return ServerFailedError(f"the server reports: {base.excerpt(text.encode('utf-8', 'replace')) or 'a failure'}")
