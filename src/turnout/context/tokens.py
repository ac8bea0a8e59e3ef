"""Estimates of token counts per family of models (SPEC CTX-1); an exact count is the server's.

What is measured of a text and of a request is here, what it weighs in ``turnout.context.calibration``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from operator import mul

import msgspec

from turnout.context.calibration import (
    DROPPABLE,
    FAMILY_RATIOS,
    OTHER_RATIO,
    REQUEST_FEATURES,
    TEXTS,
    Calibration,
    of_ratio,
    prior,
)
from turnout.types import Image, Message, Part, Reasoning, Text, Tool, ToolCall, ToolResult

__all__ = ["FAMILY_RATIOS", "OTHER_RATIO", "TokenCounter", "features", "get_token_counter", "request_features"]

MAX_CACHED, LEAST_CACHED = 4096, 64  # texts, characters


def _classes() -> bytes:
    """The class of each byte of UTF-8.

    A lower-case letter is ``a``, an upper-case one ``A``, a digit ``0``, other ASCII ``p`` except white space, of
    which a tab counts as a line break: both begin an indentation. By its first byte each other character: ``h`` up to
    U+07FF, ``s`` for U+2000 to U+2FFF and U+F000 to U+FFFF, ``e`` from U+10000, ``w`` for what is left.
    """
    table = bytearray(b"p" * 256)
    for ranges, kind in (
        ((range(0x61, 0x7B),), b"a"),
        ((range(0x41, 0x5B),), b"A"),
        ((range(0x30, 0x3A),), b"0"),
        ((range(0x09, 0x0E),), b"\n"),
        ((range(0x20, 0x21),), b" "),
        ((range(0xC2, 0xE0),), b"h"),
        ((range(0xE0, 0xF0),), b"w"),
        ((range(0xE2, 0xE3), range(0xEF, 0xF0)), b"s"),
        ((range(0xF0, 0x100),), b"e"),
    ):
        for codes in ranges:
            table[codes.start : codes.stop] = kind * len(codes)
    return bytes(table)


_CLASSES = _classes()
_CONTINUED = bytes(range(0x80, 0xC0))


def features(text: str) -> tuple[int, ...]:
    """What is measured of a text, as calibration.TEXT_FEATURES names it: characters by class, and neighbours.

    ``space_lower`` is how often a small letter follows a space: so words, and what stands between them, are counted
    without being cut out. About 12 ms a megabyte of ASCII; a long text's are remembered by its hash.
    """
    if len(text) < LEAST_CACHED:
        return _features(text)
    key = (hash(text), len(text))
    known = _cache.pop(key, None) or _features(text)
    _cache[key] = known
    if len(_cache) > MAX_CACHED:
        _cache.pop(next(iter(_cache)), None)
    return known


# By hash and length: nobody's text is kept.
_cache: dict[tuple[int, int], tuple[int, ...]] = {}


def _features(text: str) -> tuple[int, ...]:
    kinds = text.encode("utf-8", "surrogatepass").translate(_CLASSES, _CONTINUED)
    count = kinds.count
    # What is frequent is counted by taking it out, which takes the same time however frequent it is.
    not_lower = kinds.translate(None, b"a")
    not_space = not_lower.translate(None, b" ")
    rest = not_space.translate(None, b"p")
    other = (0, 0, 0, 0) if text.isascii() else (rest.count(b"h"), rest.count(b"s"), rest.count(b"w"), rest.count(b"e"))
    return (
        len(kinds) - len(not_lower),
        rest.count(b"A"),
        rest.count(b"0"),
        len(not_space) - len(rest),
        len(not_lower) - len(not_space),
        rest.count(b"\n"),
        count(b"a "),
        count(b"\n "),
        count(b"p "),
        count(b"pa"),
        count(b"pp"),
        count(b"aA"),
        count(b"AaA"),
        count(b"0A"),
        *other,
    )


def request_features(messages: Iterable[Message], tools: Sequence[Tool] = ()) -> tuple[float, ...]:
    """What ``calibration.observe`` wants to know of a request.

    The features of its texts, those of each kind of text in DROPPABLE, then REQUEST_FEATURES.
    """
    texts = {kind: [0] * TEXTS for kind in ("", *DROPPABLE)}
    counts = dict.fromkeys(REQUEST_FEATURES, 0.0)

    def add(text: str, kind: str = "") -> None:
        texts[kind] = list(map(int.__add__, texts[kind], features(text)))

    instructed = False
    for message in messages:
        counts["message"] += 1
        instructed = instructed or message.role == "system"
        for part in message.parts:
            match part:
                case Text(text=text):
                    add(text)
                case Reasoning(text=text):
                    add(text, "reasoning_text")
                case ToolCall():
                    counts["call"] += 1
                    add(part.name, "call_text")
                    add(part.arguments, "call_text")
                case ToolResult():
                    counts["result"] += 1
                    add(part.content)
                case Image():
                    counts["image"] += 1
    for tool in tools:
        counts["tool"] += 1
        for text in (tool.name, tool.description, _schema_text(tool)):
            add(text, "tool_text")
    counts["request"] = 1.0
    counts["no_system"] = float(not instructed)
    counts["has_tools"] = float(bool(tools))
    return (*chain.from_iterable(texts.values()), *counts.values())


class TokenCounter:
    """Counts for one model.

    Args:
        ratio: characters per token of plain prose, the start value.
        calibration: what was learned of the model; None counts by the start value.

    Attributes:
        ratio: as given.
        margin: the share by which the true count of a request may be higher than the estimate.
    """

    def __init__(self, ratio: float, calibration: Calibration | None = None) -> None:
        self.ratio = ratio
        known = calibration or of_ratio(ratio)
        self.margin = known.margin
        self._texts = known.weights[:TEXTS]
        # Compaction counts each message several times.
        self._known: dict[tuple[int, int], int] = {}
        self._each = dict(zip((*REQUEST_FEATURES, *DROPPABLE), known.weights[TEXTS:], strict=True))

    def count(self, text: str) -> int:
        """Tokens of a text: at least one when it is not empty, never more than its UTF-8 bytes."""
        if not text:
            return 0
        key = (hash(text), len(text))
        known = self._known.get(key)
        if known is not None:
            return known
        tokens = round(sum(map(mul, self._texts, features(text)))) or 1
        if tokens > len(text):
            tokens = min(tokens, len(text.encode("utf-8", "surrogatepass")))
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[key] = tokens
        return tokens

    def count_message(self, message: Message) -> int:
        """Tokens of a message, its share of the template included."""
        return round(self._each["message"] + sum(map(self._part, message.parts)))

    def count_messages(self, messages: Iterable[Message]) -> int:
        """Tokens of messages: the sum of each one's."""
        return sum(map(self.count_message, messages))

    def count_tools(self, tools: Sequence[Tool]) -> int:
        """Tokens of tool definitions as templates write them: their JSON, and what introduces them."""
        if not tools:
            return 0
        texts = sum(self.count(t.name) + self.count(t.description) + self.count(_schema_text(t)) for t in tools)
        return round(self._each["has_tools"] + texts * self._each["tool_text"] + len(tools) * self._each["tool"])

    def count_request(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """Tokens of a whole request: messages, tools, and what a template adds once to each."""
        once = self._each["request"]
        if not any(message.role == "system" for message in messages):
            once += self._each["no_system"]
        return self.count_messages(messages) + self.count_tools(tools) + round(once)

    def _part(self, part: Part) -> float:
        match part:
            case Text(text=text):
                return self.count(text)
            case Reasoning(text=text):
                return self.count(text) * self._each["reasoning_text"]
            case ToolCall():
                texts = self.count(part.name) + self.count(part.arguments)
                return texts * self._each["call_text"] + self._each["call"]
            case ToolResult():
                return self.count(part.content) + self._each["result"]
            case Image():
                return self._each["image"]


def _schema_text(tool: Tool) -> str:
    return msgspec.json.encode(dict(tool.schema)).decode()


def get_token_counter(model_name: str, calibration: Calibration | None = None) -> TokenCounter:
    """The counter for a model, by its name, with what was learned of it.

    Example::

        get_token_counter("qwen2.5-coder:7b").count("def add(a, b): return a + b")
    """
    if calibration is None:
        return _uncalibrated(model_name)
    return TokenCounter(_ratio(model_name), calibration)


@lru_cache(maxsize=64)
def _uncalibrated(model_name: str) -> TokenCounter:
    return TokenCounter(_ratio(model_name), prior(model_name))


def _ratio(model_name: str) -> float:
    lowered = model_name.lower()
    return next((ratio for family, ratio in FAMILY_RATIOS.items() if family in lowered), OTHER_RATIO)
