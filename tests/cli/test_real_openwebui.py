"""A real Open WebUI in front of a real llama-server, both at their default ports, as somebody finds them.

In ``make test-heavy`` alone; ``tests/get_servers.sh`` brings both. What every server is tried with stands in
``tests/backends/test_real_servers.py``.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from tests import real
from tests.backends.test_real_servers import LONG, NO_OPENWEBUI, PATIENT
from tests.cli.conftest import configure, run
from tests.real import RealServer
from turnout.backends import BY_KIND
from turnout.backends.lanes import event_lane, raw_lane
from turnout.config import SecurityConfig
from turnout.errors import KeyRefusedError, ServerFailedError, StreamBrokenError, UnknownModelError
from turnout.guard.allow import AllowList
from turnout.guard.network import HttpClient, open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Finish,
    Model,
    RawBody,
    RawChunk,
    RawHead,
    TextDelta,
    WireFormat,
    message,
)

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.isolated,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("TURNOUT_TEST_ISOLATED") != "1", reason="other servers may have the ports"),
    pytest.mark.skipif(not (real.OPENWEBUI and real.LLAMA_SERVER), reason=NO_OPENWEBUI),
]
URL, BEHIND = "http://127.0.0.1:3000", "http://127.0.0.1:8080"
TO_USE = f"to use {URL}, name it in services.openwebui.endpoint"
BACKEND = BY_KIND["openwebui"]
SMOL = Model("smol", window=1024)
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=20, temperature=0)
DISCOVERY = {"enabled": True, "timeout": 20_000}


@pytest.fixture(scope="module")
def ui() -> Iterator[RealServer]:
    server = start()
    yield server
    server.stop()


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with open_client(AllowList.from_config(SecurityConfig())) as made:
        yield made


def start() -> RealServer:
    return real.openwebui(real.llama_server("-c", "2048", "-np", "2", port=8080), port=3000)


def call_connection(server: RealServer, sort: str) -> None:
    """What its administrator does on its page."""
    connection = {
        "ENABLE_OPENAI_API": True,
        "OPENAI_API_BASE_URLS": [f"{BEHIND}/v1"],
        "OPENAI_API_KEYS": ["none"],
        "OPENAI_API_CONFIGS": {"0": {"connection_type": sort}},
    }
    asked = urllib.request.Request(f"{server.url}/openai/config/update", json.dumps(connection).encode())
    asked.add_header("Content-Type", "application/json")
    asked.add_header("Authorization", f"Bearer {server.key}")
    urllib.request.urlopen(asked, timeout=30.0).close()
    # It remembers its list for a second; so asked, it makes it anew.
    again = urllib.request.Request(f"{server.url}/api/models?refresh=true")
    again.add_header("Authorization", f"Bearer {server.key}")
    urllib.request.urlopen(again, timeout=30.0).close()


def found(**sections: object) -> dict[str, dict[str, object]]:
    """What discovery makes of the machine, by kind."""
    configure(discovery=DISCOVERY, services=sections)
    services = json.loads(run("discover", "--json").stdout)["services"]
    return {service["kind"]: service for service in services if service["kind"]}


def listed() -> list[tuple[str, str]]:
    """Model and service of every model that is routed to."""
    return [(model["id"], model["service"]) for model in json.loads(run("models", "--json").stdout)["models"]]


def box(server: RealServer, **fields: object) -> Endpoint:
    given: dict[str, object] = {"key": server.key, "limits": PATIENT, "configured": True, **fields}
    return Endpoint("box", "openwebui", server.url, **given)  # type: ignore[arg-type]


def test_it_is_named_and_not_used_and_the_way_to_use_it_is_told(ui: RealServer) -> None:
    shown = found()
    assert (shown["openwebui"]["version"], shown["openwebui"]["state"]) == ("0.12.4", "needs_key")
    assert str(shown["openwebui"]["unused"]).endswith("used when it is configured")
    assert shown["llamacpp"]["url"] == BEHIND
    assert f"openwebui: {TO_USE}, and give its key in services.openwebui.key" in run("discover").stderr
    assert listed() == [("smol", "llamacpp")]


@pytest.mark.parametrize("sort", ["external", "local"])
def test_a_key_alone_does_not_use_it_and_its_model_is_known_for_the_one_behind(ui: RealServer, sort: str) -> None:
    call_connection(ui, sort)
    shown = found(openwebui={"key": ui.key})["openwebui"]
    assert shown["state"] == "online"
    assert str(shown["unused"]).endswith("used when it is configured")
    assert "its models are those of llamacpp" in shown["notes"]  # type: ignore[operator]
    assert f"openwebui: {TO_USE}: its key alone does not do it" in run("discover").stderr
    told = run("discover", "--explain", "127.0.0.1:3000").stdout
    assert "Open WebUI: GET /api/config, which decides" in told
    assert f"hint: {TO_USE}: its key alone does not do it" in told
    assert listed() == [("smol", "llamacpp")]


def test_configured_it_is_not_a_second_server_of_the_same_model(ui: RealServer) -> None:
    given = {"key": ui.key, "endpoint": f"{URL}/v1"}  # as people write it
    call_connection(ui, "external")
    assert "sets Connection Type to Local" in str(found(openwebui=given)["openwebui"]["reason"])
    call_connection(ui, "local")
    shown = found(openwebui=given)["openwebui"]
    assert shown["unused"] == "its models are those of llamacpp, asked for there directly"
    assert listed() == [("smol", "llamacpp")]


def test_configured_and_without_the_one_behind_it_answers(ui: RealServer) -> None:
    call_connection(ui, "local")
    only = {"openwebui": {"key": ui.key, "endpoint": URL}, "llamacpp": {"enabled": False}}
    configure(discovery=DISCOVERY, services=only)
    assert listed() == [("smol", "openwebui")]
    streamed, whole = run("ask", "Say hello."), run("ask", "Say hello.", "--json")
    assert (streamed.exit_code, whole.exit_code) == (0, 0), streamed.stderr + whole.stderr
    assert streamed.stdout.strip()
    told = json.loads(whole.stdout)
    assert (told["route"]["service"], bool(told["text"].strip())) == ("openwebui", True), told


@pytest.mark.parametrize("stream", [True, False])
async def test_it_answers_a_clients_own_bytes(ui: RealServer, client: HttpClient, stream: bool) -> None:
    body = {"model": "smol", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "stream": stream}
    asked = ChatRequest(HELLO.messages, raw=RawBody(WireFormat.OPENAI_CHAT, json.dumps(body).encode()))
    head, *rest = [event async for event in raw_lane(client, BACKEND, box(ui), SMOL, asked)]
    assert isinstance(head, RawHead)
    assert head.content_type.startswith("text/event-stream" if stream else "application/json")
    sent = b"".join(event.data for event in rest if isinstance(event, RawChunk))
    assert (b"data: [DONE]" in sent) is stream
    assert isinstance(rest[-1], Finish)


@pytest.mark.parametrize(
    ("model", "key", "kind"), [("nobody-has-this", "", UnknownModelError), ("smol", "of nobody", KeyRefusedError)]
)
async def test_it_refuses_in_its_own_words(
    ui: RealServer, client: HttpClient, model: str, key: str, kind: type[Exception]
) -> None:
    endpoint = box(ui, **({"key": key} if key else {}))
    with pytest.raises(kind, match="401 Unauthorized" if key else "Model not found"):
        async for _ in event_lane(client, BACKEND, endpoint, Model(model), HELLO, 1024):
            pass


async def test_when_the_server_behind_it_dies_the_answer_breaks_off_and_the_next_fail(client: HttpClient) -> None:
    ui = real.openwebui(real.llama_server("-c", "2048", "-np", "2"), connection_type="local")
    try:
        assert ui.behind is not None
        words = 0
        with pytest.raises(StreamBrokenError):
            async with aclosing(event_lane(client, BACKEND, box(ui), SMOL, LONG, 1024)) as events:
                async for event in events:
                    words += isinstance(event, TextDelta)
                    if words == 3:
                        ui.behind.stop()
        with pytest.raises((ServerFailedError, UnknownModelError), match="Server Connection Error|was not found"):
            async for _ in event_lane(client, BACKEND, box(ui), SMOL, HELLO, 1024):
                pass
    finally:
        ui.stop()
