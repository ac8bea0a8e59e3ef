"""A secret in each place where one may be, servers that send theirs back, and everything that comes out is searched."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.cli.conftest import program, run
from tests.fakes.base import running
from tests.gateway.test_auth import QUESTION
from tests.gateway.test_live import SERVE, Process
from turnout.config import RouterConfig
from turnout.config_load import load_config

KEYS = {name: f"sk-{name}-9f8e7d6c5b4a3f2e1d0c" for name in ("env", "file", "text")}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TURNOUT_CONFIG", raising=False)
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PLANTED", KEYS["env"])


def indiscreet(model: str, status: int, *, listing: int = 200) -> Starlette:
    """A server that says in each of its errors which key it was sent, as some hosted ones do in part.

    Omits all but a list of models and chats; ``status`` 200 begins a stream and breaks it with an error event.
    """

    def error(request: Request) -> dict[str, object]:
        sent = request.headers.get("authorization", "")
        said = f"Incorrect API key provided: {sent.removeprefix('Bearer ')} ({sent})"
        return {"error": {"message": said, "type": "invalid_request_error", "code": "invalid_api_key"}}

    async def models(request: Request) -> Response:
        if listing != 200:
            return JSONResponse(error(request), listing)
        return JSONResponse({"object": "list", "data": [{"id": model, "object": "model"}]})

    async def chat(request: Request) -> Response:
        if status != 200:
            return JSONResponse(error(request), status)
        word = {"choices": [{"index": 0, "delta": {"content": "Hello"}}]} if "begins" in model else None
        events = [each for each in (word, error(request)) if each is not None]
        return StreamingResponse((f"data: {json.dumps(e)}\n\n" for e in events), media_type="text/event-stream")

    routes = [Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])]
    return Starlette(routes=routes)


def configure(*urls: str) -> None:
    Path("planted").write_text(KEYS["file"] + "\n")
    Path("planted").chmod(0o600)
    given = ("${PLANTED}", "file:planted", KEYS["text"], "${PLANTED}")
    custom = [{"name": f"s{n}", "endpoint": u, "key": given[n], "max_retries": 0} for n, u in enumerate(urls)]
    config = {"custom_endpoints": custom, "discovery": {"enabled": False}, "security": {"log_responses": True}}
    Path("turnout.yaml").write_text(json.dumps(config), "utf-8")


def leaks(text: str, *more: str) -> list[str]:
    return [secret for secret in (*KEYS.values(), *more) if secret in text]


def written() -> str:
    """Every file that was written; those that hold a secret are the user's own."""
    return "".join(p.read_text("utf-8", "replace") for p in Path("data").rglob("*") if p.is_file())


async def test_no_command_and_no_error_tells_a_servers_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DEBUG", "1")
    apps = [
        indiscreet("a-7b", 401),
        indiscreet("b-7b", 500),
        indiscreet("c-7b", 200),
        indiscreet("d", 401, listing=500),
    ]
    said = ""
    async with running(apps[0]) as a, running(apps[1]) as b, running(apps[2]) as c, running(apps[3]) as d:
        configure(a, b, c, d)
        for command in (
            ["config", "show"],
            ["config", "show", "--json"],
            ["config", "check"],
            ["doctor"],
            ["doctor", "--json"],
            ["discover", "--explain"],
            ["discover", "--json"],
            ["models"],
            ["explain", "hello"],
            *(["ask", "--model", model, "hello"] for model in ("a-7b", "b-7b", "c-7b", "auto")),
            ["ask", "--json", "--model", "a-7b", "hello"],
            ["audit", "tail"],
        ):
            done = await asyncio.to_thread(program, *command)
            said += done.stdout + done.stderr
    assert "s0" in said
    assert "Incorrect API key" in said, "what the servers say is told, but for their key"
    assert leaks(said) == []
    assert leaks(written()) == []


BAD = [
    ("custom_endpoints: [{name: a, endpoint: 'http://127.0.0.1:9', key: [sk-1]}]", "sk-1"),
    ("custom_endpoints: [{name: a, endpoint: 'http://127.0.0.1:9', key: {x: sk-1}}]", "sk-1"),
    ("services: {ollama: {key: 'sk-\u00e9-1'}}", "-1'"),
    ("services: {ollama: {key: sk-1, endpoint: 5}}", "sk-1"),
    ("services: {ollama: {endpoint: 'http://me:sk-1@127.0.0.1:9'}}", "sk-1"),
    ("services: {ollama: {key: *sk-1}}", "sk-1"),
    ("services: {ollama: {key: 'file:/nowhere', keyy: x}}", "sk-1"),
]


@pytest.mark.parametrize(("text", "secret"), BAD)
def test_an_error_in_a_configuration_tells_no_key(text: str, secret: str) -> None:
    Path("turnout.yaml").write_text(text, "utf-8")
    for command in (("config", "check"), ("config", "show"), ("doctor", "--json")):
        result = run(*command)
        assert result.exit_code != 0
        assert secret not in result.output + result.stderr


def test_no_repr_of_a_configuration_tells_a_key() -> None:
    from rich.pretty import pretty_repr

    configure("http://127.0.0.1:9", "http://127.0.0.1:8", "http://127.0.0.1:7")
    loaded = load_config(kinds={})
    assert isinstance(loaded.config, RouterConfig)
    assert [custom.key for custom in loaded.config.custom_endpoints] == [KEYS["env"], KEYS["file"], KEYS["text"]]
    assert leaks(repr(loaded) + str(loaded.config) + f"{loaded.config.custom_endpoints}" + pretty_repr(loaded)) == []


async def test_a_running_gateway_tells_neither_its_own_keys_nor_its_servers() -> None:
    """Its logs, its answers and its files; a key is shown in every place where a client may put it by mistake."""
    made = [json.loads(run("key", "add", name, "--role", "admin", "--json").stdout)["key"] for name in ("ci", "gone")]
    token = json.loads(run("token", "mint", "--role", "admin", "--json").stdout)["token"]
    run("key", "revoke", "gone")
    ours = (*made, token)
    said = ""
    async with running(indiscreet("a-7b", 401)) as a, running(indiscreet("b-7b", 500)) as b:
        async with running(indiscreet("c-7b", 200)) as c, running(indiscreet("begins-7b", 200)) as d:
            configure(a, b, c, d)
            config = json.loads(Path("turnout.yaml").read_text())
            Path("turnout.yaml").write_text(json.dumps({**config, "gateway": {"access_log": True}}), "utf-8")
            pipe = asyncio.subprocess.PIPE
            child = await asyncio.create_subprocess_exec(*SERVE, stdout=pipe, stderr=pipe)
            process = Process(child)
            line = await process.says("listens")
            url = line.split()[-1]
            async with aiohttp.ClientSession() as session:
                for shown in (*ours, *(f"{each}x" for each in ours)):
                    for model in ("a-7b", "b-7b", "c-7b", "begins-7b", "auto"):
                        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses"):
                            body = {"model": model, "messages": QUESTION, "input": "hi", "max_tokens": 5}
                            body["stream"] = model in ("c-7b", "begins-7b")
                            headers = {"Authorization": f"Bearer {shown}", "User-Agent": f"a/{shown}"}
                            async with session.post(f"{url}{path}", json=body, headers=headers) as reply:
                                said += await reply.text() + str(reply.headers)
                    for path in ("/", "/metrics", "/v1/tokens", "/v1/models", f"/?key={shown}", "/readyz"):
                        async with session.get(f"{url}{path}", headers={"x-api-key": shown}) as reply:
                            said += await reply.text() + str(reply.headers)
                    async with session.get(f"{url}/v1/models/x", headers={"Cookie": f"key={shown}"}) as reply:
                        said += await reply.text() + str(reply.headers)
            child.send_signal(signal.SIGHUP)
            await process.says("anew")
            child.terminate()
            assert child.stdout is not None
            said += (await child.stdout.read()).decode() + await process.said_last()
            await child.wait()
    assert '"principal":"ci"' in said
    assert "Incorrect API key" in said
    assert leaks(said, *ours) == []
    assert leaks(written(), *ours) == []
