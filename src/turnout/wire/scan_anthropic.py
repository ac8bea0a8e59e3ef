"""The raw lane of Anthropic messages: a client's bytes with a few named edits, and a scanner beside the answer."""

from __future__ import annotations

import re

import msgspec

from turnout.types import Json, Usage
from turnout.wire import base
from turnout.wire.base import as_count, as_dict, as_text
from turnout.wire.passing import Edits, Pieces, limited, top_of

_MARK = re.compile(rb'"usage"|"message_(?:delta|stop)"|"error"')
_EVENT = re.compile(rb".*?\n\r?\n", re.DOTALL)
# The head of an answer says nothing yet.
_WORD = re.compile(rb'"(?:content_block_\w+|message_delta|message_stop)"')


def prepare(body: bytes, edits: Edits) -> tuple[bytes, Scanner]:
    """The body for a server, and what reads its answer.

    Raises:
        UsageError: it is no JSON object.
    """
    data = top_of(body)
    kept: dict[str, object] = {**data, "model": edits.model}
    if (limit := limited(data.get("max_tokens"), edits)) is not None:
        kept["max_tokens"] = limit
    stream = data.get("stream")
    return msgspec.json.encode(kept), Scanner(stream=stream is not None and bytes(stream).strip() == b"true")


class Scanner:
    """Reads usage and stop reason while the events of an answer pass by unchanged. Whole events alone pass."""

    content_type = "text/event-stream; charset=utf-8"
    answer = b""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self._events = Pieces(b"\n\n", b"\n\r\n")
        self._counts: dict[str, int] = {}
        self.usage: Usage | None = None
        self.finish = ""
        self.answered = self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """The whole events.

        Raises:
            NonsenseError: an event does not end.
            ServerFailedError: the server reports an error in the middle, under 200.
        """
        if not self.stream:
            self._message(base.object_or_nothing(chunk))
            return chunk
        whole = self._events.feed(chunk)
        if _MARK.search(whole):
            for event in _EVENT.findall(whole):
                if _MARK.search(event):
                    self._event(event)
        return whole

    def close(self) -> bytes:
        """A last event without an end."""
        rest = self._events.close()
        if not rest.strip():
            return b""
        self._event(rest)
        return rest + b"\n\n"

    def begins(self, held: bytes) -> bool:
        """A block, or the end."""
        return bool(_WORD.search(held))

    def _event(self, event: bytes) -> None:
        text = event.partition(b"data:")[2]
        data = base.object_or_nothing(text)
        match data.get("type"):
            case "message_start":
                self._message(as_dict(data.get("message")))
            case "message_delta":
                self.finish = as_text(as_dict(data.get("delta")).get("stop_reason")) or self.finish
                self._count(data.get("usage"))
            case "message_stop":
                self.done = True
            case "error" | None if data.get("error"):
                base.server_object(text)
            case _:
                pass

    def _message(self, data: dict[str, Json]) -> None:
        self.answered = isinstance(data.get("content"), list)
        self.finish = as_text(data.get("stop_reason"))
        self._count(data.get("usage"))

    def _count(self, usage: Json) -> None:
        """Of a stream the first event has the prompt's counts and a later one the answer's, at some servers both."""
        self._counts |= {key: as_count(value) for key, value in as_dict(usage).items() if value is not None}
        if not self._counts:
            return
        read = self._counts.get("cache_read_input_tokens", 0)
        prompt = self._counts.get("input_tokens", 0) + self._counts.get("cache_creation_input_tokens", 0) + read
        self.usage = Usage(prompt, self._counts.get("output_tokens", 0), read)
