"""The raw lane of Ollama's two formats: a client's bytes with a few named edits, and a scanner beside the answer."""

from __future__ import annotations

import re

import msgspec

from turnout.types import Json, Usage
from turnout.wire import base
from turnout.wire.base import as_count, as_dict, as_text
from turnout.wire.ollama import RELOADING
from turnout.wire.passing import TOP, Edits, Pieces, is_null, limited, top_of

# How long a model stays and what it drops of a prompt is not a client's to say (docs/wire.md).
_DROPPED = frozenset({"keep_alive", "shift"})
_MARK = re.compile(rb'"done"\s*:\s*true|"error"')
_LINE = re.compile(rb'"(?:message|response|done)"')


def prepare(body: bytes, edits: Edits) -> tuple[bytes, Scanner]:
    """The body for a server, and what reads its answer: a stream unless the client says otherwise.

    Raises:
        UsageError: it is no JSON object.
    """
    data = top_of(body)
    kept: dict[str, object] = {key: raw for key, raw in data.items() if key not in _DROPPED}
    kept |= {"model": edits.model, "truncate": False}
    options = _options(data.get("options"), edits)
    if options is not None:
        kept["options"] = options
    stream = data.get("stream")
    return msgspec.json.encode(kept), Scanner(stream=stream is None or bytes(stream).strip() != b"false")


def _options(raw: msgspec.Raw | None, edits: Edits) -> dict[str, object] | None:
    """The options as they are to be, None where there are none."""
    try:
        given = {} if raw is None or is_null(raw) else TOP.decode(raw)
    except msgspec.DecodeError:  # no object: the server would refuse what we pass over
        given = {}
    kept: dict[str, object] = {key: value for key, value in given.items() if key not in RELOADING}
    if edits.num_ctx:
        kept["num_ctx"] = edits.num_ctx
    if (limit := limited(given.get("num_predict"), edits)) is not None:
        kept["num_predict"] = limit
    return kept if kept or raw is not None else None


class Scanner:
    """Reads usage and finish while the lines of an answer pass by unchanged. Whole lines alone pass, and none after
    the last one of the answer."""

    content_type = "application/x-ndjson"
    answer = b""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self._lines = Pieces(b"\n")
        self.usage: Usage | None = None
        self.finish = ""
        self.answered = self.done = False

    def feed(self, chunk: bytes) -> bytes:
        """The whole lines.

        Raises:
            NonsenseError: a line does not end.
            ServerFailedError: the server reports an error in the middle, under 200.
        """
        if not self.stream:
            self._read(base.object_or_nothing(chunk))
            return chunk
        whole, passed = self._lines.feed(chunk), 0
        if not self.done and not _MARK.search(whole):
            return whole
        for line in whole.splitlines(keepends=True):
            if self.done:  # what a server says after the end is no part of the answer
                break
            passed += len(line)
            if _MARK.search(line):
                self._read(base.server_object(line))
        return whole[:passed]

    def close(self) -> bytes:
        """A last line without an end."""
        rest = self._lines.close()
        if self.done or not rest.strip():
            return b""
        self._read(base.server_object(rest))
        return rest + b"\n"

    def begins(self, held: bytes) -> bool:
        """A line of the protocol."""
        return bool(_LINE.search(held))

    def _read(self, data: dict[str, Json]) -> None:
        self.answered = self.answered or bool(as_dict(data.get("message"))) or "response" in data
        if data.get("done") is not True:
            return
        self.done = True
        self.finish = as_text(data.get("done_reason"))
        self.usage = Usage(as_count(data.get("prompt_eval_count")), as_count(data.get("eval_count")))
