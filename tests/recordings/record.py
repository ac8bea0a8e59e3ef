"""Records what a real server answers, byte for byte, one JSON file per exchange.

    python tests/recordings/record.py URL KIND VERSION STATE [OUT [NAME...]]

URL is the server's base URL on loopback; KIND and STATE name the list of requests below; the files go to
OUT/KIND/VERSION/STATE/NAME.json (OUT is this folder by default). With NAMEs only those exchanges are taken. Each kind's
README.md says how the servers were started for each state. TURNOUT_RECORD_KEY is sent where the list says $KEY, and
stays $KEY in the file.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 120.0
QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Ask:
    """One exchange.

    Attributes:
        name: the file's name.
        path: path and query.
        body: a JSON value or bytes to POST; None for a GET.
        headers: beside what HTTP needs.
        during: exchanges made and recorded while this answer is open; it is then read until it is silent.
        burst: how often it is sent at once; the reply with the highest status is kept.
        keep: so much of the answer's body is kept, in bytes; 0 for all of it.
    """

    name: str
    path: str
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    during: tuple[Ask, ...] = ()
    burst: int = 1
    keep: int = 0


def get(path: str) -> Ask:
    """A GET, named for its path."""
    return Ask("get " + (re.sub(r"\W+", " ", path).strip() or "root"), path)


HELLO = [{"role": "user", "content": "Say hello."}]
LONG = [{"role": "user", "content": "a " * 1200}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FLAT_WEATHER = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

# What discovery asks of any address to tell the kinds apart (facts/services.md, section 11).
# dasllama's "/" is a page of 167 kB, which is left out below.
PROBES = tuple(
    get(path)
    for path in (
        "/",
        "/health",
        "/v1/models",
        "/version",
        "/api/version",
        "/api/status",
        "/api/tags",
        "/api/config",
        "/.well-known/serviceinfo",
        "/.well-known/localai.json",
        "/lmstudio-greeting",
        "/v1/internal/model/info",
        "/openapi.json",
        "/tools",
    )
)


def openai_chat(name: str, model: str, messages: object = HELLO, **more: object) -> Ask:
    """A chat completion that is short and the same each time."""
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0, **more}
    return Ask(name, "/v1/chat/completions", body)


def responses(name: str, **fields: object) -> Ask:
    """A Responses request."""
    return Ask(name, "/v1/responses", {"model": "smol", "temperature": 0, "max_output_tokens": 8, **fields})


def openai_chats(model: str) -> tuple[Ask, ...]:
    """The chats that every OpenAI-compatible server is asked for."""
    return (
        openai_chat("chat", model),
        openai_chat("chat stream", model, stream=True, stream_options={"include_usage": True}),
        openai_chat("chat stream no usage", model, stream=True),
        openai_chat("tools", model, ASK_WEATHER, tools=[WEATHER], max_tokens=40),
        openai_chat("tools required", model, ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=40),
        openai_chat(
            "tools stream",
            model,
            ASK_WEATHER,
            tools=[WEATHER],
            tool_choice="required",
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        ),
        openai_chat("overflow", model, LONG),
        openai_chat("overflow stream", model, LONG, stream=True, stream_options={"include_usage": True}),
        openai_chat("unknown model", "nope"),
        Ask("bad json", "/v1/chat/completions", b"{"),
    )


LLAMACPP_READY = (
    *PROBES,
    *(get(path) for path in ("/props", "/slots", "/metrics")),
    *openai_chats("smol"),
    openai_chat(
        "schema",
        "smol",
        ASK_WEATHER,
        max_tokens=20,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
    ),
    openai_chat(
        "image",
        "smol",
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
            }
        ],
    ),
    Ask("no messages", "/v1/chat/completions", {"model": "smol"}),
    Ask(
        "input tokens",
        "/v1/chat/completions/input_tokens?autoload=false",
        {"model": "smol", "messages": HELLO, "stream": False},
    ),
    Ask("embeddings off", "/v1/embeddings", {"model": "smol", "input": "hello"}),
    Ask("messages", "/v1/messages", {"model": "smol", "max_tokens": 8, "messages": HELLO}),
    Ask("messages overflow", "/v1/messages", {"model": "smol", "max_tokens": 8, "messages": LONG}),
)
LLAMACPP_KEYED = (
    *PROBES,
    get("/props"),
    openai_chat("no key", "smol"),
    replace(openai_chat("bad key", "smol"), headers={"Authorization": "Bearer wrong"}),
    Ask("models with key", "/v1/models", headers={"Authorization": "Bearer right"}),
)
ROUTER_IDLE = (
    *PROBES,
    *(get(path) for path in ("/models", "/props")),
    openai_chat("unknown model", "nope"),
    Ask("load unknown", "/models/load", {"model": "nope"}),
    Ask(
        "get models sse",
        "/models/sse",
        during=(
            Ask("load", "/models/load", {"model": "smol-q4"}),
            openai_chat("chat autoload", "smol-q8"),
            Ask("unload", "/models/unload", {"model": "smol-q8"}),
        ),
    ),
)
ROUTER_LOADED = (
    openai_chat("chat", "smol-q4"),
    openai_chat("overflow", "smol-q4", LONG),
    *PROBES,
    *(get(path) for path in ("/models", "/props", "/props?model=smol-q4")),
)
ROUTER_MIXED = (
    *(get(path) for path in ("/health", "/v1/models", "/props", "/tools")),
    get("/props?model=smol-q4&autoload=false"),
    get("/props?model=broken&autoload=false"),
    Ask("load running", "/models/load", {"model": "smol-q4"}),
    openai_chat("chat broken", "broken"),
)
ASLEEP = (*PROBES, get("/props"), openai_chat("chat wakes", "smol"), Ask("props awake", "/props"))


def ollama_chat(name: str, messages: object = HELLO, model: str = "smol:latest", **more: object) -> Ask:
    """A chat over the native API as the backend renders it, short and the same each time."""
    body = {
        "model": model,
        "messages": messages,
        "stream": False,
        "truncate": False,
        "options": {"num_ctx": 1024, "num_predict": 8, "temperature": 0},
        **more,
    }
    return Ask(name, "/api/chat", body)


TO_CALL = {"num_ctx": 2048, "num_predict": 40, "temperature": 0}
V1_CHATS = ("chat", "chat stream", "unknown model")
OLLAMA_EMPTY = (*PROBES, get("/api/ps"), ollama_chat("unknown model", model="nope"))
OLLAMA_IDLE = (
    *PROBES,
    get("/api/ps"),
    Ask("show", "/api/show", {"model": "smol:latest:local"}),
    Ask("show tools", "/api/show", {"model": "smol-tools:latest:local"}),
    Ask("show unknown", "/api/show", {"model": "nope"}),
    Ask("foreign host", "/api/tags", headers={"Host": "example.invalid"}),
    ollama_chat("load", [], keep_alive=600),
    ollama_chat("unload", [], keep_alive=0),
    Ask("load for ever", "/api/generate", {"model": "smol:latest:local", "keep_alive": -1, "stream": False}),
    Ask("unload now", "/api/generate", {"model": "smol:latest:local", "keep_alive": 0, "stream": False}),
    ollama_chat("cloud model", model="nope:cloud"),
)
OLLAMA_LOADED = (
    ollama_chat("chat"),
    ollama_chat("chat stream", stream=True),
    *PROBES,
    get("/api/ps"),
    ollama_chat("tools", ASK_WEATHER, tools=[WEATHER], stream=True),
    ollama_chat("tool call", ASK_WEATHER, model="smol-tools:latest", tools=[WEATHER], stream=True, options=TO_CALL),
    ollama_chat("schema", ASK_WEATHER, format=SCHEMA, options={"num_ctx": 1024, "num_predict": 20, "temperature": 0}),
    ollama_chat("think", think="high", stream=True),
    ollama_chat("overflow", LONG),
    ollama_chat("overflow stream", LONG, stream=True),
    ollama_chat("overflow truncated", LONG, truncate=True),
    ollama_chat("unknown model", model="nope"),
    Ask("embed", "/api/embed", {"model": "smol:latest", "input": "hello", "options": {"num_ctx": 1024}}),
    Ask(
        "embed two",
        "/api/embed",
        {"model": "smol:latest:local", "options": {"num_ctx": 1024}, "input": ["a", "bcd"], "truncate": False},
    ),
    Ask("bad json", "/api/chat", b"{"),
    *(replace(ask, name=f"v1 {ask.name}") for ask in openai_chats("smol:latest") if ask.name in V1_CHATS),
)
OLLAMA_REMOTE = (
    *PROBES,
    get("/api/ps"),
    Ask("show remote", "/api/show", {"model": "far:latest"}),
    ollama_chat("chat", model="far:latest"),
    ollama_chat("chat local", model="far:latest:local"),
)
OLLAMA_BUSY = (ollama_chat("unload", [], keep_alive=0), replace(ollama_chat("busy"), burst=12))
# The size of a prompt is not looked at, so an overflow has no answer to wait for.
MLX_READY = (
    *PROBES,
    *(ask for ask in openai_chats("/tmp/rec/smol") if not ask.name.startswith("overflow")),
    openai_chat(
        "schema",
        "/tmp/rec/smol",
        ASK_WEATHER,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
    ),
    Ask("no messages", "/v1/chat/completions", {"model": "/tmp/rec/smol"}),
    Ask("embeddings", "/v1/embeddings", {"model": "/tmp/rec/smol", "input": "hello"}),
)
MLX_TOOLS = tuple(ask for ask in openai_chats("/tmp/rec/smol") if ask.name.startswith("tools"))
VLLM_NO_PARSER = (
    openai_chat("tools", "smol", ASK_WEATHER, tools=[WEATHER], max_tokens=40),
    responses("responses tools", input="What is the weather in Paris?", tools=[FLAT_WEATHER], max_output_tokens=60),
)
VLLM_READY = (
    *(ask for ask in PROBES if ask.path != "/openapi.json"),
    *(get(path) for path in ("/metrics", "/load", "/ping")),
    *openai_chats("smol"),
    openai_chat(
        "tools named",
        "smol",
        ASK_WEATHER,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=40,
    ),
    openai_chat(
        "schema",
        "smol",
        ASK_WEATHER,
        max_tokens=20,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
    ),
    openai_chat(
        "image",
        "smol",
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
            }
        ],
    ),
    openai_chat("answer too long", "smol", max_tokens=5000),
    openai_chat("answer does not fit", "smol", max_tokens=1000),
    responses("responses", input="Say hello."),
    responses("responses stream", input="Say hello.", stream=True, max_output_tokens=40),
    responses("responses cut", input="Say hello.", stream=True, max_output_tokens=4, request_id="resp_ours"),
    responses("responses cut by it", input="a " * 2500, truncation="auto", max_output_tokens=4),
    responses("responses proof", input=[{"type": "reasoning", "summary": [], "encrypted_content": "x"}]),
    responses("responses tools", input="What is the weather in Paris?", tools=[FLAT_WEATHER], max_output_tokens=60),
    openai_chat("effort", "smol", reasoning_effort="high"),
    Ask("no messages", "/v1/chat/completions", {"model": "smol"}),
    Ask("tokenize", "/tokenize", {"model": "smol", "messages": HELLO}),
    Ask("tokenize tools", "/tokenize", {"model": "smol", "messages": ASK_WEATHER, "tools": [WEATHER]}),
    Ask("embeddings", "/v1/embeddings", {"model": "smol", "input": "hello"}),
    Ask("messages", "/v1/messages", {"model": "smol", "max_tokens": 8, "messages": HELLO}),
    Ask("messages overflow", "/v1/messages", {"model": "smol", "max_tokens": 8, "messages": LONG}),
)
VLLM_KEYED = (
    *(ask for ask in PROBES if ask.path != "/openapi.json"),
    openai_chat("no key", "smol"),
    replace(openai_chat("bad key", "smol"), headers={"Authorization": "Bearer wrong"}),
    Ask("models with key", "/v1/models", headers={"Authorization": "Bearer right"}),
    Ask("tokenize no key", "/tokenize", {"model": "smol", "messages": HELLO}),
)
VLLM_POOLING = (
    *(get(path) for path in ("/v1/models", "/version", "/health")),
    openai_chat("chat", "smol"),
    Ask("embeddings", "/v1/embeddings", {"model": "smol", "input": ["hello"]}),
    Ask("embeddings unknown model", "/v1/embeddings", {"model": "nope", "input": ["hello"]}),
)
VLLM_DEAD = (
    openai_chat("chat", "smol"),
    openai_chat("chat stream", "smol", stream=True),
    *(get(path) for path in ("/health", "/ping", "/v1/models", "/version", "/metrics")),
)


# Whatever it does not know is its page of 12 kB, whose beginning is enough.
ABOUT = tuple(get(path) for path in ("/health", "/api/config", "/api/version", "/ready", "/api/models"))
PAGES = tuple(replace(ask, keep=200) for ask in PROBES if ask not in ABOUT and ask.path != "/openapi.json")
UI_CHAT = "/api/chat/completions"


def signed_in(*asks: Ask) -> tuple[Ask, ...]:
    """With a session's token as key."""
    return tuple(replace(ask, headers={"Authorization": "Bearer $KEY"}) for ask in asks)


def ui_chat(name: str, model: str = "smol", **more: object) -> Ask:
    """A chat where Open WebUI takes it."""
    return replace(openai_chat(name, model, **more), path=UI_CHAT)


UI_NO_KEY = (
    *PAGES,
    *ABOUT,
    ui_chat("no key"),
    Ask("bad key", UI_CHAT, {"model": "smol"}, {"Authorization": "Bearer wrong"}),
    Ask("config bad key", "/api/config", headers={"Authorization": "Bearer wrong"}),
)
UI_EXTERNAL = signed_in(
    *ABOUT,
    replace(get("/v1/models"), keep=200),
    *(replace(ask, path=UI_CHAT) for ask in openai_chats("smol") if not ask.name.startswith("tools")),
    openai_chat("chat at v1", "smol"),
    Ask("ollama off", "/ollama/api/tags"),
    Ask("unload", "/api/models/unload", {"model": "smol"}),
)
UI_LOCAL = signed_in(
    *ABOUT,
    ui_chat("chat"),
    ui_chat("chat preset", "pirate"),
    Ask("unload", "/api/models/unload", {"model": "smol"}),
    Ask("models unloaded", "/api/models"),
    Ask("unload unknown", "/api/models/unload", {"model": "nope"}),
)
UI_ALONE = signed_in(
    ui_chat("chat"),
    ui_chat("chat stream", stream=True, stream_options={"include_usage": True}),
    *ABOUT,
    ui_chat("chat not listed"),
)

STATES: dict[str, dict[str, tuple[Ask, ...]]] = {
    "llamacpp": {
        "loading": (*PROBES, get("/props"), openai_chat("chat", "smol")),
        "ready": LLAMACPP_READY,
        "keyed": LLAMACPP_KEYED,
        "asleep": ASLEEP,
        "router-idle": ROUTER_IDLE,
        "router-loaded": ROUTER_LOADED,
        "router-mixed": ROUTER_MIXED,
        "tools-on": tuple(get(path) for path in ("/v1/models", "/props", "/tools")),
    },
    "ollama": {
        "empty": OLLAMA_EMPTY,
        "idle": OLLAMA_IDLE,
        "loaded": OLLAMA_LOADED,
        "remote": OLLAMA_REMOTE,
        "busy": OLLAMA_BUSY,
    },
    "mlx": {
        "no-cache": (*PROBES, openai_chat("unknown model", "nope")),
        "hub-allowed": (openai_chat("unknown model", "nope"),),
        "ready": MLX_READY,
        "tools": MLX_TOOLS,
    },
    "vllm": {
        "ready": VLLM_READY,
        "keyed": VLLM_KEYED,
        "busy": (replace(openai_chat("busy", "smol", max_tokens=200), burst=4),),
        "dead": VLLM_DEAD,
        "pooling": VLLM_POOLING,
        "no-parser": VLLM_NO_PARSER,
    },
    "openwebui": {"no-key": UI_NO_KEY, "external": UI_EXTERNAL, "local": UI_LOCAL, "alone": UI_ALONE},
    "dasllama": {"ready": (*PROBES[1:], *openai_chats("smollm2-135m-q8_0.gguf"))},
}


def exchange(url: str, ask: Ask, folder: Path) -> None:
    """Make one exchange and keep it."""
    with ThreadPoolExecutor(ask.burst) as pool:
        made = list(pool.map(lambda _: _exchange(url, ask, folder), range(ask.burst)))
    kept = max(made, key=lambda record: record["response"]["status"])
    path = folder / f"{ask.name.replace(' ', '-')}.json"
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(kept["response"]["status"], path)


def _exchange(url: str, ask: Ask, folder: Path) -> dict[str, dict[str, object]]:
    parts = urlsplit(url)
    method = "GET" if ask.body is None else "POST"
    body = ask.body if ask.body is None or isinstance(ask.body, bytes) else json.dumps(ask.body).encode()
    headers = {"Content-Type": "application/json", **ask.headers} if body is not None else dict(ask.headers)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SECONDS)
    try:
        key = os.environ.get("TURNOUT_RECORD_KEY", "")
        connection.request(method, ask.path, body, {name: text.replace("$KEY", key) for name, text in headers.items()})
        response = connection.getresponse()
        for other in ask.during:
            exchange(url, other, folder)
        answer = _read_until_quiet(connection, response) if ask.during else response.read()
        answer = answer[: ask.keep or None]
    finally:
        connection.close()
    return {
        "request": {"method": method, "path": ask.path, "headers": headers, "body": _text(body or b"")},
        "response": {"status": response.status, "headers": response.getheaders(), "body": _text(answer)},
    }


def _read_until_quiet(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> bytes:
    connection.sock.settimeout(QUIET_SECONDS)
    pieces: list[bytes] = []
    try:
        while piece := response.read1(65_536):
            pieces.append(piece)
    except TimeoutError:
        pass
    return b"".join(pieces)


def _text(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def main(url: str, kind: str, version: str, state: str, out: str = str(Path(__file__).parent), *names: str) -> None:
    """Record every exchange of a state, or those of these names."""
    folder = Path(out) / kind / version / state
    folder.mkdir(parents=True, exist_ok=True)
    for ask in STATES[kind][state]:
        if names and ask.name not in names:
            continue
        exchange(url, ask, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
