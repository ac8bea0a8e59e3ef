"""Estimates of token counts per family of models (SPEC CTX-1); an exact count is the server's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from turnout.types import Image, Message, Part, Reasoning, Text, Tool, ToolCall, ToolResult

# Characters per token; the owner's start values.
FAMILY_RATIOS = {"qwen": 3.5, "llama": 3.8}
OTHER_RATIO = 4.0
TOKENS_PER_MESSAGE = 4
TOKENS_PER_CALL = 8
TOKENS_PER_RESULT = 4
TOKENS_PER_IMAGE = 800
# Accented Latin, Greek, Cyrillic, Hebrew and the like: about two characters a token.
_HALF = re.compile(r"[\x80-\u05ff]+")
# Scripts without spaces, and symbols: about a token a character in the vocabularies of today's models.
_WHOLE = re.compile(r"[^\x00-\u05ff]+")


class TokenCounter:
    """Counts for one family. ``ratio`` in characters per token.

    Counting ASCII takes the same time whatever its length, other text about 10 ms a megabyte, so nothing is cached.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def count(self, text: str) -> int:
        """Tokens of a text: at least one when it is not empty, never more than its UTF-8 bytes."""
        if not text:
            return 0
        if text.isascii():
            return max(1, round(len(text) / self.ratio))
        half = sum(map(len, _HALF.findall(text)))
        whole = sum(map(len, _WHOLE.findall(text)))
        return max(1, whole + round(half / 2 + (len(text) - half - whole) / self.ratio))

    def count_message(self, message: Message) -> int:
        """Tokens of a message, its share of the template included."""
        return TOKENS_PER_MESSAGE + sum(self._part(part) for part in message.parts)

    def count_messages(self, messages: Iterable[Message]) -> int:
        """Tokens of a conversation."""
        return sum(self.count_message(message) for message in messages)

    def count_tools(self, tools: Iterable[Tool]) -> int:
        """Tokens of tool definitions as templates write them: their JSON."""
        return sum(
            self.count(tool.name) + self.count(tool.description) + self.count(_schema_text(tool)) + TOKENS_PER_CALL
            for tool in tools
        )

    def _part(self, part: Part) -> int:
        match part:
            case Text(text=text) | Reasoning(text=text):
                return self.count(text)
            case ToolCall():
                return self.count(part.name) + self.count(part.arguments) + TOKENS_PER_CALL
            case ToolResult():
                return self.count(part.content) + TOKENS_PER_RESULT
            case Image():
                return TOKENS_PER_IMAGE


def _schema_text(tool: Tool) -> str:
    return msgspec.json.encode(dict(tool.schema)).decode()


@lru_cache(maxsize=64)
def get_token_counter(model_name: str) -> TokenCounter:
    """The counter for a model's family, by its name.

    Example::

        get_token_counter("qwen2.5-coder:7b").count("def add(a, b): return a + b")
    """
    lowered = model_name.lower()
    ratio = next((ratio for family, ratio in FAMILY_RATIOS.items() if family in lowered), OTHER_RATIO)
    return TokenCounter(ratio)
