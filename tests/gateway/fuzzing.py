"""Requests that are nearly right, and what is right of any answer: for ``test_fuzz.py`` and ``bench/soak.py``.

The bodies have the shapes that agents and clients send first; a mutation changes a value, a key or the bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

EYES, PLAIN, VECTORS = "qwen2.5-vl-7b-instruct", "llama3.2:3b", "bge-m3"  # of a vLLM, an Ollama, another vLLM
OUTSIDE = "http://203.0.113.7/pixel.png"
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "weather", "description": "The weather", "parameters": _SCHEMA}
_NAMED = {"type": "function", "name": "weather"}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
_MADE = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
_PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PIXEL}", "detail": "auto"}}
_CHAT = [
    {"role": "system", "content": "Act as an expert software developer."},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, _PICTURE]},
    {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": "And tomorrow?", "name": "ann"},
]
_SAMPLING = {"temperature": 0.2, "top_p": 0.9, "stop": ["\n\n"], "seed": 7}
_SAY = [{"role": "user", "content": "Say hello"}]

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": "auto", "messages": _SAY, "max_tokens": 50},
        {"model": PLAIN, "messages": _SAY, "stream": True, "stream_options": {"include_usage": True}},
        {"model": EYES, "messages": _SAY, "stream": True},
        {
            "model": EYES,
            "messages": _CHAT,
            "tools": [{"type": "function", "function": _FUNCTION}],
            "tool_choice": "auto",
            "stream": True,
            "max_completion_tokens": 64,
            "parallel_tool_calls": True,
            "reasoning_effort": "low",
            "logprobs": True,
            "user": "u",
            **_SAMPLING,
        },
        {
            "model": EYES,
            "messages": [*_CHAT[1:4], _CHAT[5]],
            "n": 1,
        },
        {
            "model": PLAIN,
            "messages": _CHAT[2:],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
            "tools": [{"type": "function", "function": _FUNCTION}],
        },
    ],
    "/v1/completions": [
        {"model": EYES, "prompt": "def add(", "max_tokens": 9, **_SAMPLING},
        {"model": PLAIN, "prompt": ["def add("], "suffix": "return c", "stream": True},
    ],
    "/v1/embeddings": [
        {"model": VECTORS, "input": ["a", "bcd"], "encoding_format": "base64", "user": "u"},
        {"model": VECTORS, "input": "a"},
    ],
    "/v1/rerank": [
        {"model": VECTORS, "query": "a", "documents": ["a", {"text": "bc"}], "top_n": 1, "return_documents": True}
    ],
    "/v1/messages": [
        {"model": "auto", "max_tokens": 50, "messages": _SAY},
        {"model": PLAIN, "max_tokens": 50, "messages": _SAY, "stream": True},
        {
            "model": EYES,
            "max_tokens": 64,
            "stream": True,
            "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<system-reminder>git</system-reminder>"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PIXEL}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "is_error": False,
                            "content": [{"type": "text", "text": "rain"}],
                        }
                    ],
                },
                {"role": "system", "content": "Tools have changed."},
                {"role": "user", "content": "And tomorrow?"},
            ],
            "tools": [{"name": "weather", "description": "The weather", "input_schema": _SCHEMA}],
            "tool_choice": {"type": "tool", "name": "weather"},
            "thinking": {"type": "adaptive"},
            "metadata": {"user_id": "u"},
            "stop_sequences": ["\n\n"],
            "temperature": 1,
        },
    ],
    "/v1/messages/count_tokens": [
        {
            "model": PLAIN,
            "system": "You are an agent.",
            "messages": _SAY,
            "tools": [{"name": "weather", "input_schema": _SCHEMA}, {"name": "web", "type": "web_search_20250305"}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": _SCHEMA}},
            "top_k": 40,
        },
    ],
    "/v1/responses": [
        {"model": "auto", "input": "Say hello"},
        {"model": PLAIN, "input": "Say hello", "stream": True},
        {
            "model": EYES,
            "instructions": "You are an agent.",
            "input": [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": f"data:image/png;base64,{_PIXEL}"},
                    ],
                },
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "x"},
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
                {"type": "message", "role": "user", "content": "And tomorrow?"},
            ],
            "tools": [
                {"type": "function", "strict": False, **_FUNCTION},
                {"type": "namespace", "name": "mcp", "tools": [{"type": "function", **_FUNCTION, "name": "look"}]},
                {"type": "web_search"},
            ],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [_NAMED]},
            "text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}, "verbosity": "low"},
            "reasoning": {"effort": "medium", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "previous_response_id": None,
            "prompt_cache_key": "k",
            "store": False,
            "stream": True,
        },
    ],
    "/api/chat": [
        {"model": "auto", "messages": _SAY, "stream": False},
        {
            "model": PLAIN,
            "messages": [
                {"role": "user", "content": "What is this?", "images": [_PIXEL]},
                {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [_MADE]},
                {"role": "tool", "content": "rain", "tool_name": "weather"},
            ],
            "tools": [{"type": "function", "function": _FUNCTION}],
            "format": "",
            "think": "low",
            "options": {"num_ctx": 4096, "num_predict": 9, "temperature": 0, "mirostat": 1},
            "keep_alive": "5m",
        },
        {"model": EYES, "messages": _SAY, "format": _SCHEMA},
    ],
    "/api/generate": [
        {"model": "auto", "prompt": "Say hello", "system": "Be short.", "stream": False},
        {"model": PLAIN, "prompt": "def add(", "suffix": "return c", "options": {"num_predict": 4}},
        {"model": EYES, "prompt": "def add(", "raw": True, "stream": False},
        {"model": PLAIN, "keep_alive": -1},
    ],
    "/api/embed": [{"model": VECTORS, "input": ["a", "b"], "truncate": True, "options": {}}],
    "/api/embeddings": [{"model": VECTORS, "prompt": "a"}],
    "/api/show": [{"model": PLAIN, "verbose": True}, {"name": EYES}],
}  # fmt: skip

# What stands in the text of a body for bytes that no encoder would write.
_RAW = {
    "deep list": b"[" * 3000 + b"]" * 3000,
    "deep object": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "deeper": b"[" * 60_000,
    "nested": b"[" * 400 + b"]" * 400,
    "long digits": b"9" * 5000,
    "long fraction": b"0." + b"1" * 5000,
    "exponent": b"1e99999",
    "not a number": b"NaN",
    "infinite": b"-Infinity",
    "twice": b'{"a":1,"a":2,"type":"text","type":"image_url"}',
    "bad utf-8": b'"\xff\xfe\xc0\x80"',
    "half utf-8": b'"\xe2\x82"',
    "encoded surrogate": b'"\xed\xa0\x80"',
    "raw control": b'"a\x00b\nc"',
    "bad escape": b'"\\x41"',
    "comment": b"/* a */ 1",
    "bare word": b"undefined",
    "leading zero": b"007",
    "minus": b"-",
}
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, -2, 2**31, 2**63, -(2**64), 10**40, 0.5, 1e-320, 1e308, "", " ", "a", "auto", "null",
    "0", "\ud800", "a\udfffb", "\u0000", "\u202e\u200b", "e" + "\u0301" * 500, "x" * 20_000, "é" * 3000, "data:",
    "data:;base64,",
    "data:image/png;base64,@@@", "data:image/png;base64", "file:///etc/passwd", OUTSIDE, f"data:image/png,{OUTSIDE}",
    [], {}, [[]], [None], [{}], {"": ""}, [1, "a", None], {"type": "text", "text": 1}, {"type": "unknown"},
    {"url": OUTSIDE},
    [{"type": "text", "text": "a"}] * 50, {"role": "user", "content": "a"}, {"type": "image_url", "image_url": OUTSIDE},
    "user", "tool", "assistant", "system", "function", "required", "none", "low", "json_object", "text", "image_url",
    "tool_result", "tool_use", "function_call", "item_reference", "input_image", "url", "base64", "stop",
    *({"@": name} for name in _RAW),
]  # fmt: skip
_KEYS = [
    "model", "messages", "input", "prompt", "stream", "tools", "content", "type", "role", "text", "image_url", "url",
    "id", "suffix", "raw", "images", "options", "format", "max_tokens", "tool_calls", "previous_response_id",
    "conversation",
    "n", "echo", "logprobs", "stop", "dimensions", "keep_alive", "think", "name", "arguments", "system", "error",
    "\ud800", "",
]  # fmt: skip
_TYPES = [
    "application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data; boundary=x", "", "\xff",
    "application/x-www-form-urlencoded",
]  # fmt: skip
_HEADERS: list[tuple[bytes, bytes]] = [
    (b"anthropic-version", b"2023-06-01"), (b"content-encoding", b"gzip"), (b"accept", b"text/event-stream"),
    (b"session-id", b"\xff" * 300), (b"x-session-id", b"a b"), (b"origin", b"http://localhost:1"), (b"origin", b"null"),
    (b"authorization", b"Bearer \xff"), (b"x-api-key", b""), (b"host", b"localhost"), (b"expect", b"100-continue"),
    (b"user-agent", b"\x80" * 9), (b"content-length", b"9" * 30), (b"cookie", b"a=b"),
    (b"x-http-method-override", b"PUT"),
]  # fmt: skip
_IDS = ["resp_1", "", "%00", "..", "\ud7ff", "\ufffd", "a/b/c", "x" * 3000, EYES, "auto", "\u0000", "a\r\nb: c"]
FAULTS = ["error", "error_200", "drop", "drop_first", "malformed", "html", "empty_200", "overflow"]
_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PROPFIND"]


@dataclass(frozen=True, slots=True)
class Case:
    """A request; ``fault`` is that of the servers.

    Its client leaves after ``leaves`` pieces of the answer; -1 for never.
    """

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    query: bytes = b""
    pieces: int = 1
    leaves: int = -1
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    kind: str
    body: bytes


def bodies_of(path: str) -> list[dict[str, Any]]:
    """What is right for a path, or for the one above it; of one that nobody knows, everything."""
    nearest = max((known for known in BODIES if path.startswith(known)), key=len, default="")
    return BODIES[nearest] if nearest else [body for bodies in BODIES.values() for body in bodies]


@st.composite
def cases(draw: st.DrawFn, targets: list[tuple[str, str]]) -> Case:
    """Requests to ``targets``, which are methods and paths as the routes have them."""
    method, route = draw(st.sampled_from(targets))
    path = route.replace("{id}", draw(st.sampled_from(_IDS))).replace("{id:path}", draw(st.sampled_from(_IDS)))
    if draw(st.integers(0, 30)) == 30:
        method = draw(st.sampled_from(_METHODS))
    body = draw(_bodies(route)) if method != "GET" or draw(st.integers(0, 9)) == 9 else b""
    headers = [(b"host", b"127.0.0.1")]
    kind = draw(st.sampled_from(_TYPES)) if draw(st.integers(0, 9)) == 9 else "application/json"
    headers += [(b"content-type", kind.encode("latin-1"))] if kind else []
    if draw(st.integers(0, 5)) == 5:
        headers += draw(st.lists(st.sampled_from(_HEADERS), min_size=1, max_size=3))
    strange = draw(st.integers(0, 7))
    return Case(
        method,
        path,
        body,
        tuple(headers),
        draw(st.sampled_from([b"", b"beta=true", b"%ff=\xff&&=", b"a" * 5000])) if strange == 0 else b"",
        pieces=draw(st.integers(1, 4)) if strange == 1 else 1,
        leaves=draw(st.integers(0, 4)) if strange == 2 else -1,
        fault=draw(st.sampled_from(FAULTS)) if strange in (3, 4) else "",
    )


@st.composite
def _bodies(draw: st.DrawFn, route: str) -> bytes:
    value: Any = copy.deepcopy(draw(st.sampled_from(bodies_of(route))))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3, 5]))):
        value = _changed(draw, value)
    data = _written(value)
    return _broken(draw, data) if draw(st.integers(0, 11)) == 11 else data


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one of its parts another; the part is chosen by its number, so that a shrunk case is the first."""
    spots = list(_spots(value))
    if not spots or draw(st.integers(0, 60)) == 60:
        return copy.deepcopy(draw(st.sampled_from(_VALUES)))
    holder, key = spots[draw(st.integers(0, len(spots) - 1))]
    match draw(
        st.sampled_from(["replace", "replace", "replace", "text", "delete", "wrap", "double", "add", "rename", "show"])
    ):
        case "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        case "text":
            holder[key] = draw(st.text(max_size=20))
        case "delete":
            del holder[key]
        case "wrap":
            holder[key] = [holder[key]] if draw(st.booleans()) else {"a": holder[key]}
        case "show" if rows := [holder for holder, _ in spots if isinstance(holder, list)]:
            picture = {"type": "image_url", "image_url": draw(st.sampled_from([OUTSIDE, {"url": OUTSIDE}]))}
            rows[draw(st.integers(0, len(rows) - 1))].append(picture)
        case "double" if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(_KEYS))] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
        case "rename" if isinstance(holder, dict):
            holder[draw(st.sampled_from(_KEYS))] = holder.pop(key)
        case _:
            holder[key] = None
    return value


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _spots(value[key])


def _written(value: Any) -> bytes:
    """JSON; a surrogate as its escape, ``{"@": name}`` as the bytes of that name."""
    data = json.dumps(value).encode()
    for name, raw in _RAW.items():
        data = data.replace(b'{"@": "%s"}' % name.encode(), raw)
    return data


def _broken(draw: st.DrawFn, data: bytes) -> bytes:
    place = draw(st.integers(0, len(data)))
    match draw(st.sampled_from(["cut", "empty", "insert", "after", "mark", "wide", "spaces", "random", "twice"])):
        case "cut":
            return data[:place]
        case "empty":
            return b""
        case "insert":
            return data[:place] + draw(st.binary(min_size=1, max_size=3)) + data[place:]
        case "after":
            return data + draw(st.sampled_from([b"x", b"\x00", b"{}", b",", b"\n\n \t", data]))
        case "mark":
            return b"\xef\xbb\xbf" + data
        case "wide":
            return data.decode("latin-1").encode("utf-16")
        case "spaces":
            return b" " * 50_000 + data
        case "random":
            return draw(st.binary(max_size=60))
        case _:
            first = data.find(b'"model"')
            return data if first < 0 else data[:first] + b'"model":"a","model":7,"stream":true,' + data[first:]


# What is right of an answer.

_KNOWN_STATUS = {200, 400, 401, 403, 404, 405, 408, 413, 415, 421, 431, 502, 503, 504}
_ENDS = ("message_stop", "error", "response.completed", "response.incomplete", "response.failed")
_WHOLE = {
    "/v1/chat/completions": ("choices", "usage"),
    "/v1/completions": ("choices", "usage"),
    "/v1/embeddings": ("data", "usage"),
    "/v1/rerank": ("results",),
    "/v1/messages": ("content", "stop_reason"),
    "/v1/responses": ("output", "status"),
    "/api/chat": ("message", "done"),
    "/api/generate": ("response", "done"),
    "/api/embed": ("embeddings",),
    "/api/embeddings": ("embedding",),
    "/api/show": ("details", "capabilities"),
}
_STREAMS = {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/api/chat", "/api/generate"}


class Wrong(AssertionError):
    """An answer that no client would understand."""


def check(case: Case, answer: Answer) -> str:
    """What the answer is: ``refused``, ``failed``, ``whole``, ``stream``, or ``broken``, one with an error at its end.

    Raises:
        Wrong: it is nothing of that.
    """
    _require(answer.status in _KNOWN_STATUS, f"status {answer.status}")
    _require(b"Traceback" not in answer.body and b".py" not in answer.body, "source code in the answer")
    if case.method == "HEAD":
        return "whole"
    if answer.status >= 400:
        if case.path != "/readyz":
            _check_error(case, answer)
        return "refused" if answer.status < 500 else "failed"
    kind = answer.kind.partition(";")[0]
    if kind == "text/event-stream":
        _require(_wants_stream(case), "a stream to who did not ask for one")
        return _check_events(answer.body, case.path)
    if kind == "application/x-ndjson":
        _require(_wants_stream(case), "a stream to who did not ask for one")
        return _check_lines(answer.body)
    if kind == "application/json":
        found = _object(answer.body)
        _require(not _wants_stream(case) or found.get("done_reason") == "load", "JSON to who asked for a stream")
        if case.method == "POST":
            _require(all(key in found for key in _WHOLE.get(case.path, ())), f"an answer with {sorted(found)}")
    return "whole"


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise Wrong(what)


def _wants_stream(case: Case) -> bool:
    if case.path not in _STREAMS or case.method != "POST":
        return False
    asked = json.loads(case.body)
    if case.path in ("/api/chat", "/api/generate"):
        return asked.get("stream") is not False
    return asked.get("stream") is True


def _check_error(case: Case, answer: Answer) -> None:
    _require(answer.kind.startswith("application/json"), f"an error as {answer.kind!r}")
    found = _object(answer.body)
    error = found.get("error")
    if case.path.startswith("/api/"):
        _require(isinstance(error, str) and bool(error), f"no error of Ollama's: {found}")
        return
    _require(isinstance(error, dict), f"no error object: {found}")
    assert isinstance(error, dict)
    _require(all(isinstance(error.get(key), str) and error[key] for key in ("message", "type", "code")), f"{found}")
    said_anthropic = any(name == b"anthropic-version" for name, _ in case.headers)
    if case.path.startswith("/v1/messages"):
        _require(found.get("type") == "error", f"no error of Anthropic's: {found}")
    elif not said_anthropic:
        _require("type" not in found and "param" in error, f"no error of OpenAI's: {found}")


def _object(data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise Wrong(f"{constant} in an answer")

    try:
        found = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"no JSON: {data[:200]!r}") from error
    _require(isinstance(found, dict), f"no object: {data[:200]!r}")
    return found


def _check_events(data: bytes, path: str) -> str:
    _require(data.endswith(b"\n\n"), f"the last event does not end: {data[-200:]!r}")
    last: dict[str, Any] | None = None
    ended = False
    for event in data.removesuffix(b"\n\n").replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = event.split(b"\n")
        _require(all(line.startswith((b"data: ", b"event: ", b":")) for line in lines), f"no event: {event[:200]!r}")
        said = [line[6:] for line in lines if line.startswith(b"data: ")]
        if not said:
            continue
        _require(not ended, f"an event after the end: {event[:200]!r}")
        if said == [b"[DONE]"]:
            ended = True
            continue
        last = _object(b"\n".join(said))
        ended = (bool(last.get("error")) and "choices" not in last) or last.get("type") in _ENDS
    _require(ended, f"a stream without an end: {data[-200:]!r}")
    failed = last is not None and (last.get("type") in ("error", "response.failed") or bool(last.get("error")))
    return "broken" if failed else "stream"


def _check_lines(data: bytes) -> str:
    _require(data.endswith(b"\n"), f"the last line does not end: {data[-200:]!r}")
    rows = [_object(line) for line in data.removesuffix(b"\n").split(b"\n")]
    for row in rows[:-1]:
        _require(row.get("done") is False, f"more after the end: {row}")
    _require("error" in rows[-1] or rows[-1].get("done") is True, f"a stream without an end: {rows[-1]}")
    return "broken" if "error" in rows[-1] else "stream"


def outside(asked: dict[str, Any]) -> bool:
    """Whether a server was asked for a chat with an image at an address of the outside, which it would fetch."""
    messages = asked.get("messages")
    rows = [row for row in messages if isinstance(row, dict)] if isinstance(messages, list) else []
    contents = [row["content"] for row in rows if isinstance(row.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    shown = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    shown = [image.get("url") if isinstance(image, dict) else image for image in shown]
    pictures = [row["images"] for row in rows if isinstance(row.get("images"), list)]
    return any(isinstance(url, str) and url.startswith(OUTSIDE) for url in [*shown, *(u for p in pictures for u in p)])


def told(case: Case) -> str:
    """A case for who reads the failure."""
    return str(replace(case, body=case.body[:2000]))
