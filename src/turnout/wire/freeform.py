"""Custom tools of the Responses format, which take a text instead of arguments, as functions that any model can call.

Codex edits files so: its ``apply_patch`` is one for the models whose metadata say so (recorded from 0.169).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from turnout.types import Json
from turnout.wire.base import as_dict, as_text, encode

INPUT = "input"
SCHEMA: Mapping[str, Json] = {
    "type": "object",
    "properties": {INPUT: {"type": "string", "description": "The whole text, as it is."}},
    "required": [INPUT],
    "additionalProperties": False,
}


def description_of(tool: Mapping[str, Json]) -> str:
    """What a model is told: the tool's own words, where its text belongs, and the grammar that the text must have."""
    told = [as_text(tool.get("description")), f"The text goes into `{INPUT}` as one string, and nothing else does."]
    wanted = as_dict(tool.get("format"))
    if definition := as_text(wanted.get("definition")):
        told.append(f"It must match this grammar ({as_text(wanted.get('syntax')) or 'lark'}):\n{definition}")
    return "\n\n".join(filter(None, told))


def arguments_of(text: str) -> str:
    """The text of an earlier call as the function's arguments."""
    return encode({INPUT: text}).decode()


def text_of(arguments: str) -> str:
    """The text that a model has put into its arguments. Models write it under another name or bare as well; what was
    cut short stays as it is, for the tool to refuse."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return arguments
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return arguments
    if not value:
        return ""
    only = next(iter(value.values())) if len(value) == 1 else None
    found = value.get(INPUT, only)
    return found if isinstance(found, str) else arguments
