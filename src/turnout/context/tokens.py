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
    BEYOND,
    DROPPABLE,
    FAMILY_RATIOS,
    OTHER_RATIO,
    REQUEST_FEATURES,
    SCRIPTS,
    TEXTS,
    Calibration,
    of_ratio,
    prior,
)
from turnout.types import Image, Message, Part, Reasoning, Text, Tool, ToolCall, ToolResult

__all__ = ["FAMILY_RATIOS", "OTHER_RATIO", "TokenCounter", "features", "get_token_counter", "request_features"]

MAX_CACHED, LEAST_CACHED = 4096, 64  # texts, characters


def _table(characters: bytes) -> bytes:
    """A translation of bytes that leaves a one for each of these characters and a zero for all others."""
    return bytes(0x31 if code in characters else 0x30 for code in range(256))


_LOWER, _DIGITS, _LINES = b"abcdefghijklmnopqrstuvwxyz", b"0123456789", b"\n\v\f\r"
_RARE, _CONSONANTS = b"jkqvwxyz", _LOWER.translate(None, b"aeiou")
# What is looked for in every text, and in those that are not ASCII: there by the first byte of a character.
_ASCII = tuple(map(_table, (_LOWER, _LOWER.upper(), _DIGITS, b" ", _LINES, b"\t")))
_KINDS = tuple(map(_table, (_RARE + _RARE.upper(), _CONSONANTS, b"!#$%&*+=?@^|~", b"\"'`", b")]}>")))
_BEYOND, _LATIN, _WIDE = (_table(bytes(range(*codes))) for codes in ((0xC2, 0x100), (0xC3, 0xCC), (0xE0, 0x100)))
_SAME = b"1" + b"0" * 255
_CONTINUED = bytes(range(0x80, 0xC0))
_SCRIPTS = tuple(
    bytes(code for start, end in ranges for code in range(start, end))
    for ranges in (
        ((0xC3, 0xCC),), ((0xCC, 0xD5),), ((0xD5, 0xE0),), ((0xE0, 0xE2),), ((0xC2, 0xC3), (0xE2, 0xE3), (0xEE, 0xF0)),
        ((0xE3, 0xE4),), ((0xE4, 0xEA),), ((0xEA, 0xEE),), ((0xF0, 0x100),),
    )
)  # fmt: skip


def features(text: str) -> tuple[int, ...]:
    """What is measured of a text, as calibration.TEXT_FEATURES names it: characters by class, runs, and neighbours.

    About 20 ms a megabyte of ASCII; a long text's are remembered by its hash.
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
    if not text:
        return (0,) * TEXTS
    plain = text.isascii()
    raw = text.encode("utf-8", "surrogatepass")
    if not plain:
        raw = raw.translate(None, _CONTINUED)
    # Each class of characters as a number with a bit for each character, the first one highest: so a whole text's
    # neighbours are found by a shift and an `and`, which cost next to nothing.
    lower, upper, digit, space, line, tab = [int(raw.translate(table), 2) for table in _ASCII]
    rare, consonant, operator, quote, closing = [int(raw.translate(table), 2) for table in _KINDS]
    beyond = 0 if plain else int(raw.translate(_BEYOND), 2)
    letter = lower | upper
    punctuation = ((1 << len(raw)) - 1) ^ (letter | digit | space | line | tab | beyond)
    after_line, after_letter, after_space = line >> 1, letter >> 1, space >> 1
    two_spaces = space & after_space
    mixed, two = punctuation & (punctuation >> 1), consonant & (consonant >> 1)
    five = two & (two >> 2) & (consonant >> 4)
    if five or mixed & (mixed >> 1):
        fresh = ~_repeated(raw)
        mixed, five = mixed & fresh, five & fresh
    measured = (
        lower,
        upper,
        digit,
        punctuation,
        space,
        line,
        tab,
        rare,
        lower & ~(lower >> 1),
        digit & ~(digit >> 1),
        punctuation & ~(punctuation >> 1),
        space & ~after_space,
        two_spaces & ~(two_spaces >> 1),
        letter & ~(after_letter | after_space),
        after_space & digit,
        after_line & lower,
        after_line & punctuation,
        after_line & tab,
        (tab >> 1) & punctuation,
        after_letter & line,
        after_letter & quote,
        after_letter & closing,
        (lower >> 1) & upper,
        (upper >> 1) & punctuation,
        (operator >> 1) & letter,
        mixed & (mixed >> 1),
        five,
    )
    return (*map(int.bit_count, measured), *((0,) * SCRIPTS if plain else _scripts(raw, lower)))


def _repeated(raw: bytes) -> int:
    """A bit for each character that is like the one before it."""
    number = int.from_bytes(raw, "big")
    return int((number ^ (number >> 8)).to_bytes(len(raw), "big").translate(_SAME), 2)


def _scripts(raw: bytes, lower: int) -> tuple[int, ...]:
    """Characters beyond ASCII by what is written with them, runs of those of three bytes or more, and small letters of
    ASCII that have a Latin one beyond it less than 64 characters away: words of another language than English."""
    near, wide = int(raw.translate(_LATIN), 2), int(raw.translate(_WIDE), 2)
    for distance in (1, 2, 4, 8, 16, 32):
        near |= near >> distance | near << distance
    found = [len(raw) - len(raw.translate(None, codes)) for codes in _SCRIPTS]
    return (*found, (wide & ~(wide >> 1)).bit_count(), (near & lower).bit_count())


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
        self._texts, self._ascii = known.weights[:TEXTS], known.weights[:BEYOND]
        # Compaction counts each message several times.
        self._known: dict[tuple[int, int], int] = {}
        self._message = known.weights[TEXTS + REQUEST_FEATURES.index("message")]
        self._each = dict(zip((*REQUEST_FEATURES, *DROPPABLE), known.weights[TEXTS:], strict=True))

    def count(self, text: str) -> int:
        """Tokens of a text: at least one when it is not empty, never more than its UTF-8 bytes."""
        if not text:
            return 0
        key = (hash(text), len(text))
        known = self._known.get(key)
        if known is not None:
            return known
        weights = self._ascii if text.isascii() else self._texts
        tokens = round(sum(map(mul, weights, features(text)))) or 1
        if tokens > len(text):
            tokens = min(tokens, len(text.encode("utf-8", "surrogatepass")))
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[key] = tokens
        return tokens

    def count_message(self, message: Message) -> int:
        """Tokens of a message, its share of the template included."""
        parts = message.parts
        if len(parts) == 1 and type(parts[0]) is Text:
            return round(self._message + self.count(parts[0].text))
        return round(self._message + sum(map(self._part, parts)))

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
