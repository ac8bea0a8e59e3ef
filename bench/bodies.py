"""What bench/gateways.py asks: requests of given sizes, of words that mean nothing, no two of them alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from load import Target

NUMBER = "@@@@@@@@"  # where a request's own number is put
_SAID = (
    "parser buffer index cache branch commit merge token window column render socket thread worker queue signal"
    " the a of to in and for with when before after which should returns raises opens closes reads writes checks"
    " small large first last empty local remote shared frozen lazy strict"
)
_WORDS = _SAID.split()
_TOOLS = ("read_file", "write_file", "edit_file", "list_files", "search_text", "run_command", "fetch_page")
_TOOLS += ("make_plan", "update_plan", "ask_user", "start_task", "stop_task", "show_diff", "apply_patch")


def prose(size: int, seed: int) -> str:
    """Sentences, ``size`` characters of them."""
    random, text = Random(seed), ""
    while len(text) < size:
        text += " ".join(random.choices(_WORDS, k=random.randint(6, 16))).capitalize() + ". "
    return text[:size]


def short(model: str, *, stream: bool = False, pace: str = "") -> bytes:
    """2 KB, one message, in the OpenAI format."""
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": _question(pace)}]}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def short_anthropic(model: str, *, pace: str = "") -> bytes:
    """The same question as ``short``, streamed, in the Anthropic format."""
    messages = [{"role": "user", "content": _question(pace)}]
    return json.dumps({"model": model, "max_tokens": 1024, "stream": True, "messages": messages}).encode()


def agent(model: str) -> bytes:
    """60 KB in the shape of a coding agent's request in the middle of its work: a long system message, 14 tools with
    schemas, calls with their results, of which only the last one is new."""
    messages: list[object] = [
        {"role": "system", "content": prose(14_000, 1)},
        {"role": "user", "content": prose(400, 2)},
    ]
    for step in range(6):
        call = {"name": _TOOLS[step], "arguments": json.dumps({"path": f"src/part_{step}.py", "limit": 200})}
        calls = [{"id": f"call_{step}", "type": "function", "function": call}]
        messages.append({"role": "assistant", "content": prose(200, 10 + step), "tool_calls": calls})
        seen = f"{NUMBER} " if step == 5 else ""
        messages.append({"role": "tool", "tool_call_id": f"call_{step}", "content": seen + prose(2200, 20 + step)})
    tools = [_tool(name, 30 + number) for number, name in enumerate(_TOOLS)]
    body = {"model": model, "messages": messages, "tools": tools, "tool_choice": "auto", "max_tokens": 4096}
    return json.dumps(body).encode()


def numbered(target: Target, body: bytes, first: int) -> Callable[[int], bytes]:
    """Makes the request of a number, counted from ``first``."""
    before, after = target.request(body).split(NUMBER.encode())
    return lambda number: b"%s%08d%s" % (before, first + number, after)


def _question(pace: str) -> str:
    return f"Request {NUMBER}. {pace} Explain how this works in Python. " + prose(1800, 0)


def _tool(name: str, seed: int) -> object:
    fields = {
        f"{word}_{number}": {"type": kind, "description": prose(150, seed + number)}
        for number, (word, kind) in enumerate([("path", "string"), ("limit", "integer"), ("mode", "string")] * 2)
    }
    schema = {"type": "object", "properties": fields, "required": ["path_0"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": prose(900, seed), "parameters": schema}}
