"""What the wire formats share: bounded JSON, lines out of byte streams, small conversions. No HTTP here."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from turnout.errors import NonsenseError, ServerFailedError, UsageError
from turnout.types import NOTHING, Event, Json, RawBody, TextDelta, ToolResult

MAX_LINE_BYTES = 16_000_000
MOST_ROWS = 20_000  # in a list of a request, of messages for one: more, each of a word, take seconds to be counted
FAILED = "[the tool failed] "
# Who answers, for how long and with what, and what is looked at before it is passed on.
_ONE_SPELLING = frozenset(
    {
        "model", "name", "messages", "system", "prompt", "input", "role", "content", "type", "text", "image_url", "url",
        "images", "tools", "stream", "stream_options", "max_tokens", "max_completion_tokens", "options", "keep_alive",
        "shift", "truncate",
    }
)  # fmt: skip
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Completion:
    """A text to go on with as it is, without a chat template; with ``suffix``, to fill in what stands before that.

    The other fields are those of ``ChatRequest``.
    """

    prompt: str
    model: str
    suffix: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    extras: Mapping[str, Json] = field(default_factory=lambda: NOTHING)
    raw: RawBody | None = None
    only: str = ""


def decode_object(body: bytes) -> dict[str, Json]:
    """A client's JSON object.

    Raises:
        UsageError: it is not JSON, or not an object; as ``require_one_spelling``.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise UsageError("the body is not a JSON object")
    require_one_spelling(value)
    return value


def require_one_spelling(data: Mapping[str, Json]) -> None:
    """Refuse ``Model`` beside or in place of ``model``.

    Servers in Go take both for the same and the last one for good: what was checked, and is changed by name, would not
    be what they read. Checked with encoding/json: other letters of the same fold, as in ``\u212aeep_alive``, count too.

    Raises:
        UsageError: a field that is read here has another spelling.
    """
    names = "".join(data)
    if names.isascii() and names.islower():
        return
    for name in data:
        if (plain := name.casefold()) != name and plain in _ONE_SPELLING:
            raise UsageError(f"the field {plain} is spelled {name!r}", hint="write it in small letters")


def encode(value: object) -> bytes:
    """JSON bytes; a lone surrogate, which no encoding can carry, becomes a question mark.

    Raises:
        UsageError: it is nested too deeply to be written.
    """
    try:
        try:
            return msgspec.json.encode(value)
        except UnicodeEncodeError:
            return msgspec.json.encode(_without_surrogates(value))
    except RecursionError as error:
        raise UsageError("the request is nested too deeply") from error


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub("?", value)
    if isinstance(value, Mapping):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value


def server_object(data: bytes) -> dict[str, Json]:
    """A server's JSON object.

    Raises:
        NonsenseError: it is something else.
        ServerFailedError: it is an error that the server reports in the middle of its answer.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NonsenseError(f"the server sent {excerpt(data)!r} where JSON belongs") from error
    if not isinstance(value, dict):
        raise NonsenseError(f"the server sent {excerpt(data)!r} where an object belongs")
    error_value = value.get("error")
    if error_value:
        text = error_value.get("message") if isinstance(error_value, dict) else error_value
        raise ServerFailedError(f"the server reports: {excerpt(str(text or error_value).encode('utf-8', 'replace'))}")
    return value


def object_or_nothing(data: bytes) -> dict[str, Json]:
    """A server's JSON object, empty when it is something else: for who only reads along."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def excerpt(data: bytes) -> str:
    """The beginning of ``data``, safe for a terminal."""
    return " ".join(_CONTROL.sub(" ", data[:200].decode("utf-8", "replace")).split())


class Lines:
    """Whole lines out of bytes that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completed, without their ends.

        Raises:
            NonsenseError: a line does not end.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise NonsenseError(f"the server sent a line of more than {MAX_LINE_BYTES:,} bytes")
        return [line.removesuffix(b"\r") for line in lines]

    def close(self) -> list[bytes]:
        """What was left without an end."""
        rest, self._rest = self._rest.removesuffix(b"\r"), b""
        return [rest] if rest else []


def new_id(prefix: str) -> str:
    """A unique id for a call or an answer that has none."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"


def text_field(value: Json, what: str) -> str:
    """A string the client sent.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, str):
        raise UsageError(f"{what} is not a string")
    return value


def number_field(data: Mapping[str, Json], key: str) -> float | None:
    """An optional number the client sent.

    Raises:
        UsageError: it is something else.
    """
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e18 < value < 1e18:
        raise UsageError(f"{key} is not a number")
    return float(value)


def whole_field(data: Mapping[str, Json], key: str) -> int | None:
    """An optional positive whole number the client sent; -1 is how local clients write "no limit".

    Raises:
        UsageError: it is something else.
    """
    value = number_field(data, key)
    if value is None or value == -1:
        return None
    if not value.is_integer() or value < 1 or value > 1e9:
        raise UsageError(f"{key} is not a whole number from 1 on")
    return int(value)


def flag_field(data: Mapping[str, Json], key: str) -> bool:
    """An optional true or false the client sent; false when it is missing.

    Raises:
        UsageError: it is something else.
    """
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{key} is not true or false")
    return value is True


def objects(value: Json, what: str) -> list[dict[str, Json]]:
    """A list of objects the client sent; a missing one is empty.

    Raises:
        UsageError: it is something else; as ``require_one_spelling``.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UsageError(f"{what} is not a list of objects")
    if len(value) > MOST_ROWS:  # before any is read: that alone would hold everybody else up
        raise UsageError(f"{what} has {len(value):,} entries, the most is {MOST_ROWS:,}", hint="leave old ones out")
    rows = [row for row in value if isinstance(row, dict)]
    for row in rows:
        require_one_spelling(row)
    return rows


def as_dict(value: Json) -> dict[str, Json]:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def as_text(value: Json) -> str:
    """A string, or ""."""
    return value if isinstance(value, str) else ""


def as_count(value: Json) -> int:
    """A count a server reports, or 0."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and value == value and 0 <= value < 1e12
    return int(value) if ok else 0  # type: ignore[arg-type]


def text_of(text: str, logprobs: Json) -> list[Event]:
    """The event of a piece of text, with what a server tells of its tokens in the OpenAI format's words."""
    told = [row for row in logprobs if isinstance(row, dict)] if isinstance(logprobs, list) else []
    return [TextDelta(text, tuple(map(_logprob, told)))] if text or told else []


def _logprob(row: Mapping[str, Json]) -> dict[str, Json]:
    others = row.get("top_logprobs")
    if not isinstance(others, list):
        return _token(row)
    return _token(row) | {"top_logprobs": [_token(other) for other in others if isinstance(other, dict)]}


def _token(row: Mapping[str, Json]) -> dict[str, Json]:
    token = as_text(row.get("token"))
    written: list[Json] = list(token.encode("utf-8", "replace"))
    return {"token": token, "logprob": row.get("logprob"), "bytes": row.get("bytes") or written}


def joined(events: Iterable[Event]) -> tuple[str, list[Mapping[str, Json]]]:
    """The text of an answer, and what was told of its tokens."""
    said = [event for event in events if isinstance(event, TextDelta)]
    return "".join(event.text for event in said), [row for event in said for row in event.logprobs]


def result_text(result: ToolResult) -> str:
    """What a tool gave back, for formats that have no other place for its having failed."""
    return FAILED + result.content if result.is_error else result.content


def arguments_text(value: Json) -> str:
    """Tool arguments as JSON text, whichever way the server gave them."""
    if value is None:
        return ""
    return value if isinstance(value, str) else encode(value).decode()
