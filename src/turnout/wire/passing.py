"""What the wire formats share in passing a client's own bytes on: the edits, and what reads the answer on the way.

The closed table of edits is in docs/wire.md (SPEC GW-2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec

from turnout.errors import NonsenseError, UsageError
from turnout.types import Usage
from turnout.wire import base

TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Edits:
    """What a server needs to be told otherwise than its client did.

    Attributes:
        model: RequestModel.
        max_tokens: the most tokens that the answer may have, or None.
        name_limit: say ``max_tokens`` also where the client named no limit.
        num_ctx: the window in tokens, for a server that allocates what a request names.
    """

    model: str
    max_tokens: int | None = None
    name_limit: bool = False
    num_ctx: int | None = None


class Scanner(Protocol):
    """Reads along while an answer passes.

    Attributes:
        stream: the client asked for a stream.
        content_type: of a streamed answer.
        usage: as the server reported it.
        finish: why it ended, in the format's own word; "" before its end.
        answered: an answer was seen, and no error in its place.
        done: the end was seen.
        answer: the whole answer once it was seen, in formats of which it may be kept; b"" in all others.
    """

    stream: bool
    content_type: str
    usage: Usage | None
    finish: str
    answered: bool
    done: bool
    answer: bytes

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to hand on. Raises NonsenseError, and ServerFailedError for an error under 200."""

    def close(self) -> bytes:
        """What was held back without an end."""

    def begins(self, held: bytes) -> bool:
        """Whether what was to be handed on so far has something that a client acts on."""


Prepare: TypeAlias = Callable[[bytes, Edits], tuple[bytes, Scanner]]


def top_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a client's JSON object, each as it was written.

    Raises:
        UsageError: it is no JSON object.
    """
    try:
        return TOP.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is not a chat request: {str(error)[:120]}") from error


def is_null(raw: msgspec.Raw | None) -> bool:
    """A field that says nothing."""
    return raw is None or bytes(raw).strip() == b"null"


def exceeds(raw: msgspec.Raw, limit: int) -> bool:
    """Whether a number is above ``limit``; a negative one is how local servers are told "no limit"."""
    value = msgspec.json.decode(raw)
    return isinstance(value, int | float) and (value > limit or value < 0)


def limited(given: msgspec.Raw | None, edits: Edits) -> object | None:
    """The most tokens that a body names, clamped; None where it names none and need not."""
    most = edits.max_tokens
    if most is None:
        return given
    if given is None or is_null(given):
        return most if edits.name_limit else given
    return most if exceeds(given, most) else given


class Pieces:
    """Whole events, or lines, out of bytes that are cut anywhere; only they are handed on.

    Args:
        ends: what a piece may end with.
    """

    def __init__(self, *ends: bytes) -> None:
        self._ends = ends
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The whole pieces. Raises NonsenseError: one does not end."""
        data = self._rest + chunk
        if data.endswith(self._ends):
            self._rest = b""
            return data
        end = max(place + len(mark) if (place := data.rfind(mark)) >= 0 else 0 for mark in self._ends)
        self._rest = data[end:]
        if len(self._rest) > base.MAX_LINE_BYTES:
            raise NonsenseError("the server sent an event that does not end")
        return data[:end]

    def close(self) -> bytes:
        """What has no end."""
        rest, self._rest = self._rest, b""
        return rest
