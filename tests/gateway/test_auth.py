"""The door: no route without a key once there is one, whatever it is; limits; and what the audit log has of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import anthropic
import openai
import pytest

from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway import auth, lockout
from turnout.gateway.app import CHAT, Gateway, create_app, running
from turnout.gateway.auth import OPEN_ROUTES, Door, Meter, RefusalLog
from turnout.gateway.exchange import Exchange
from turnout.gateway.refusal import HttpError
from turnout.guard import keys
from turnout.guard.keys import Key, Keyring, Limits
from turnout.guard.tokens import Tokenring

QUESTION = [{"role": "user", "content": "Say hello"}]
CHATS = ("/v1/chat/completions", "/v1/messages")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is locked out: a walk has many wrong keys."""
    monkeypatch.setattr(lockout, "MAX_WRONG", 1_000_000)


@asynccontextmanager
async def gateway(
    *urls: str, hosts: tuple[str, ...] = (), require_key: bool = False, workspace: str = ""
) -> AsyncIterator[tuple[str, Gateway]]:
    custom = [{"name": f"s{n}", "endpoint": url} for n, url in enumerate(urls)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(config))
        ring = Tokenring(Keyring(keys.keys_path(config_dir())))
        door = Door(ring, hosts, require_key=require_key, workspace=workspace)
        app = create_app(router, door=door)
        _, url = await stack.enter_async_context(running(app))
        yield url, app


def config_dir() -> Path:
    from turnout.config import data_dir

    return data_dir()


def make(name: str = "ci", now: float = 0.0, **limits: object) -> str:
    path = keys.keys_path(config_dir())
    with keys.changing(path) as known:
        changed, token = keys.add(known, name, Limits(**limits), now or time.time())  # type: ignore[arg-type]
        keys.write_keys(path, changed)
    return token


def audited() -> list[dict[str, object]]:
    return [json.loads(line) for line in (config_dir() / "audit.log").read_text("utf-8").splitlines()]


async def test_the_sdks_work_with_a_key_and_their_queries_are_its_owners() -> None:
    token = make("ci", models=("auto",))
    async with serving(openai_app()) as upstream, gateway(upstream) as (url, _):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=token) as one:
            answer = await one.chat.completions.create(model="auto", messages=QUESTION)  # type: ignore[arg-type]
            assert answer.choices[0].message.content
            assert [m.id async for m in one.models.list()] == ["auto", "claude-local-auto"], (
                "what it may not ask for is not shown"
            )
            with pytest.raises(openai.PermissionDeniedError, match="may not ask for 'coding'"):
                await one.chat.completions.create(model="coding", messages=QUESTION)  # type: ignore[arg-type]
        async with anthropic.AsyncAnthropic(base_url=url, api_key=token) as other:
            said = await other.messages.create(model="auto", messages=QUESTION, max_tokens=8)  # type: ignore[arg-type]
            assert said.content
            with pytest.raises(anthropic.PermissionDeniedError, match="may not ask for 'coding'"):
                await other.messages.create(model="coding", messages=QUESTION, max_tokens=8)  # type: ignore[arg-type]
    queries = [r for r in audited() if r["event_type"] == "query"]
    assert {r["principal"] for r in queries} == {"ci"}
    assert [r["error"] for r in queries if r["phase"] == "end"] == [None, "not_permitted", None, "not_permitted"]


async def test_the_sdks_are_refused_without_one_in_their_own_words() -> None:
    make()
    async with gateway() as (url, _):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-wrong") as one:
            with pytest.raises(openai.AuthenticationError, match="the key is not known"):
                await one.models.list()
        async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-wrong") as other:
            with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
                await other.messages.create(model="auto", messages=QUESTION, max_tokens=8)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unlocked")
async def test_no_route_is_open_without_a_key() -> None:
    """The whole route table and what is not in it, with every method that uvicorn parses."""
    make()
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
    async with serving(openai_app()) as upstream, gateway(upstream) as (url, app), aiohttp.ClientSession() as session:
        paths = {route.path for route in app.routes}  # type: ignore[attr-defined]
        assert set(CHATS) < paths
        unknown = {"/v1/models/a/b", "/nothing", "//", "/v1/models/", "/HEALTHZ", "/healthz/", "/healthz/../metrics"}
        asked = 0
        for path in paths | unknown | {"/healthz%2f..%2fmetrics", "/%2e%2e/metrics"}:
            for method in methods:
                for headers in ({}, {"Authorization": "Bearer tk-wrong"}, {"anthropic-version": "1"}):
                    async with session.request(method, url + path, headers=headers, allow_redirects=False) as reply:
                        is_open = path in OPEN_ROUTES and method in ("GET", "HEAD")
                        assert (reply.status == 401) is not is_open, (method, path, reply.status)
                        assert "x-turnout-request-id" in reply.headers
                        asked += 1
    assert asked > 400


HEADERS = [
    ("Authorization", "Bearer {}"),
    ("authorization", "bearer   {} "),
    ("x-api-key", "{}"),
    ("api-key", "{}"),
    ("x-goog-api-key", "{}"),
]


@pytest.mark.parametrize(("name", "form"), HEADERS)
async def test_a_key_is_taken_from_wherever_clients_put_it(name: str, form: str) -> None:
    token = make()
    async with gateway() as (url, _), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/", headers={name: form.format(token)}) as reply:
            assert reply.status == 200
        async with session.get(f"{url}/", headers={name: form.format(token[:-1])}) as reply:
            assert reply.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Basic {}"},
        {"Authorization": "{}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xff\xfe"},
        {"x-api-key": "' OR 1=1 --"},
        {"x-api-key": "x" * 5000},
        {"Cookie": "key={}"},
        {"x-api-key": "{}x"},
    ],
)
async def test_what_is_no_key_is_none(headers: dict[str, str]) -> None:
    token = make()
    async with gateway() as (url, _), aiohttp.ClientSession() as session:
        given = {name: form.replace("{}", token) for name, form in headers.items()}
        async with session.get(f"{url}/?key={token}&api_key={token}", headers=given) as reply:
            assert reply.status == 401


async def test_a_revoked_or_expired_key_is_refused_at_once_and_a_foreign_one_learns_nothing() -> None:
    token, old = make("ci"), make("old", now=time.time() - 7200, lasting=3600)
    async with gateway() as (url, _), aiohttp.ClientSession() as session:

        async def ask(key: str) -> tuple[int, str]:
            async with session.get(f"{url}/", headers={"x-api-key": key}) as reply:
                return reply.status, await reply.text()

        assert (await ask(token))[0] == 200
        status, text = await ask(old)
        assert (status, "expired" in text) == (401, True)
        path = keys.keys_path(config_dir())
        keys.write_keys(path, keys.revoke(keys.read_keys(path), "ci", time.time()))  # type: ignore[arg-type]
        assert (await ask(token))[0] == 401
        path.write_text("{")
        assert (await ask(token))[0] == 503
        path.unlink()
        assert (await ask("anything"))[0] == 200


async def test_a_gateway_that_others_reach_stays_shut_when_its_keys_are_gone() -> None:
    async with gateway(require_key=True) as (url, _), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/") as reply:
            assert reply.status == 401


async def test_routes_are_those_of_the_key_and_metrics_need_an_admin() -> None:
    narrow, plain = make("narrow", routes=("/v1/models*",)), make("plain")
    admin, scraper = make("boss", role="admin"), make("prometheus", routes=("/metrics",))
    async with gateway() as (url, _), aiohttp.ClientSession() as session:

        async def status(key: str, path: str) -> int:
            async with session.get(url + path, headers={"x-api-key": key}) as reply:
                return reply.status

        assert [await status(narrow, path) for path in ("/v1/models", "/", "/metrics")] == [200, 403, 403]
        assert [await status(plain, path) for path in ("/v1/models", "/", "/metrics")] == [200, 200, 403]
        assert [await status(admin, path) for path in ("/v1/models", "/metrics")] == [200, 200]
        assert [await status(scraper, path) for path in ("/v1/models", "/metrics")] == [403, 200]


async def test_too_much_is_503_with_a_wait_and_never_429() -> None:
    token = make("ci", rate=2)
    body = {"model": "auto", "messages": QUESTION}
    async with serving(openai_app()) as upstream, gateway(upstream) as (url, _), aiohttp.ClientSession() as session:
        replies = []
        for path in (*CHATS, *CHATS):
            async with session.post(url + path, json=body, headers={"x-api-key": token}) as reply:
                replies.append((reply.status, reply.headers.get("Retry-After"), await reply.json()))
        assert [status for status, _, _ in replies] == [200, 200, 503, 503]
        assert [int(wait or 0) for _, wait, _ in replies[2:]] == [30, 30]
        assert [answer["error"]["code"] for _, _, answer in replies[2:]] == ["rate_limited", "rate_limited"]
        assert replies[3][2]["error"]["type"] == "overloaded_error"


async def test_no_more_run_at_once_than_the_key_may_have() -> None:
    token = make("ci", concurrent=1)
    app = openai_app()
    app.state.fake.fault = "stall"
    body = {"model": app.state.fake.models[0], "messages": QUESTION, "stream": True}
    async with serving(app) as upstream, gateway(upstream) as (url, served), aiohttp.ClientSession() as session:
        first = await session.post(f"{url}/v1/chat/completions", json=body, headers={"x-api-key": token})
        await first.content.readany()
        async with session.post(f"{url}/v1/chat/completions", json=body, headers={"x-api-key": token}) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert (await reply.json())["error"]["code"] == "concurrency_limited"
        first.close()
        await asyncio.wait_for(app.state.fake.closed.wait(), 5)
        app.state.fake.fault = ""
        await asyncio.wait_for(served.idle(), 5)
        async with session.post(f"{url}/v1/chat/completions", json=body, headers={"x-api-key": token}) as reply:
            assert reply.status == 200


async def test_keys_that_cannot_be_read_make_it_not_ready(data: Path) -> None:
    token, path = make(), keys.keys_path(data)
    good = path.read_bytes()
    async with serving(openai_app()) as upstream, gateway(upstream) as (url, _), aiohttp.ClientSession() as session:
        for content, status, state in (
            (good, 200, "ready"),
            (b"garbage", 503, "the keys cannot be read"),
            (good, 200, "ready"),
        ):
            path.write_bytes(content)
            async with session.get(f"{url}/readyz") as reply:
                assert (reply.status, (await reply.json())["status"]) == (status, state)
            async with session.get(f"{url}/healthz") as reply:
                assert reply.status == 200
            async with session.get(f"{url}/v1/models", headers={"x-api-key": token}) as reply:
                assert reply.status == status
    (refused,) = (line for line in audited() if not line["success"])
    assert (refused["event_type"], refused["principal"]) == ("security:keys_unreadable", "unknown")


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    meter, key = Meter(lambda: now[0]), Key(name="ci", digest="", rate=60)
    for _ in range(60):
        meter.take(key)
    with pytest.raises(HttpError, match="may ask 60 times a minute"):
        meter.take(key)
    now[0] = 1.0
    meter.take(key)
    with pytest.raises(HttpError):
        meter.take(key)
    for _ in range(61):
        meter.leave(key)
    assert not meter._running


@pytest.mark.parametrize(
    ("most", "running", "often"),
    [(1, "1 request of the key 'ci' is running", "ask once a"), (2, "2 requests of the key 'ci' are", "ask 2 times a")],
)
def test_a_limit_is_said_in_its_number(most: int, running: str, often: str) -> None:
    meter, key = Meter(lambda: 0.0), Key(name="ci", digest="", rate=most, concurrent=most)
    for _ in range(most):
        meter.take(key)
    with pytest.raises(HttpError, match=running):
        meter.take(key)
    meter.leave(key)
    with pytest.raises(HttpError, match=often):
        meter.take(key)


@pytest.mark.usefixtures("unlocked")
async def test_refusals_are_in_the_audit_log_and_do_not_fill_it() -> None:
    make("ci", routes=("/v1/*",))
    async with gateway() as (url, _), aiohttp.ClientSession() as session:
        for _ in range(auth.MAX_LOGGED + 20):
            async with session.get(f"{url}/v1/models", headers={"x-api-key": "wrong"}) as reply:
                assert reply.status == 401
        async with session.get(f"{url}/x%0ay", headers={"Host": "evil.example"}) as reply:
            assert reply.status == 421
    refused = [r for r in audited() if str(r["event_type"]).startswith("security:")]
    assert [r["event_type"] for r in refused].count("security:invalid_api_key") == auth.MAX_LOGGED
    assert refused[0]["error"] == "401 GET /v1/models from 127.0.0.1"
    assert (refused[0]["principal"], refused[0]["success"]) == ("unknown", False)
    assert (refused[-1]["event_type"], refused[-1]["error"]) == ("security:foreign_host", "421 GET /x?y from 127.0.0.1")


def test_what_was_not_written_is_counted_in_the_next_minute() -> None:
    now, written = [100.0], []
    log = RefusalLog(lambda: now[0])
    error, scope = HttpError(401, "no", hint="", code="invalid_api_key"), {"method": "GET", "path": "/", "client": None}

    def note(kind: str, *, error: str, principal: str) -> None:
        written.append(error)

    for _ in range(auth.MAX_LOGGED + 7):
        log.write(error, Exchange(), scope, note)
    now[0] = 161.0
    log.write(error, Exchange(), scope, note)
    assert len(written) == auth.MAX_LOGGED + 1
    assert written[-1] == "401 GET / from -; 7 more before"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("gpu.lan", 200),
        ("GPU.LAN:4747", 200),
        ("127.0.0.1:1", 200),
        ("[fd00::1]:80", 200),
        ("evil.example", 421),
        ("gpu.lan.evil.example", 421),
        ("192.168.1.77", 421),
        ("", 421),
        ("localhost:80@evil.example", 421),
        ("[::1].evil.example", 421),
        ("localhost:evil", 421),
    ],
)
async def test_hosts_are_those_that_are_named_and_the_one_that_was_dialled(host: str, status: int) -> None:
    async with gateway(hosts=("gpu.lan", "fd00::1")) as (url, _), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/", headers={"Host": host}) as reply:
            assert reply.status == status
        async with session.get(f"{url}/healthz", headers={"Host": host}) as reply:
            assert reply.status == status


async def test_a_page_of_the_gateway_itself_is_no_foreign_one() -> None:
    async with gateway(hosts=("gpu.lan",)) as (url, _), aiohttp.ClientSession() as session:
        for origin, status in (("http://gpu.lan:4747", 200), ("http://gpu.lan:9", 403), ("http://gpu.lan", 403)):
            headers = {"Host": "gpu.lan:4747", "Origin": origin}
            async with session.get(f"{url}/v1/models", headers=headers) as reply:
                assert reply.status == status


CASES: list[tuple[str, dict[str, object]]] = [
    ("/v1/chat/completions", {"messages": QUESTION}),
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 9}),
    ("/v1/messages/count_tokens", {"messages": QUESTION}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/embeddings", {"input": "hi"}),
    ("/v1/rerank", {"query": "hi", "documents": ["a"]}),
    ("/api/chat", {"messages": QUESTION}),
    ("/api/chat", {"messages": []}),
    ("/api/generate", {"prompt": "hi"}),
    ("/api/generate", {}),
    ("/api/embed", {"input": "hi"}),
    ("/api/embeddings", {"prompt": "hi"}),
    ("/api/show", {}),
]


@pytest.mark.parametrize(("path", "more"), CASES)
async def test_a_model_that_the_key_may_not_ask_for_is_reached_in_no_format(path: str, more: dict[str, object]) -> None:
    token, app = make("ci", models=("a-7b",)), openai_app(("a-7b", "b-7b"))
    async with serving(app) as upstream, gateway(upstream) as (url, served), aiohttp.ClientSession() as session:
        assert {p for p, _ in CASES} == {r.path for r in served.routes if r.path in CHAT}  # type: ignore[attr-defined]
        for model in ("b-7b", "B-7B", "b-7b:latest", "b-7b@s0", "claude-local-b-7b", "auto", "claude-local-auto"):
            headers = {"x-api-key": token}
            async with session.post(url + path, json={"model": model, **more}, headers=headers) as reply:
                answer = await reply.text()
                assert reply.status == (404 if path == "/api/show" else 403), answer
                assert "b-7b'" not in answer or "may not ask" in answer or path == "/api/show"
        for listing in ("/v1/models", "/api/tags", "/api/ps"):
            async with session.get(url + listing, headers={"x-api-key": token}) as reply:
                assert "b-7b" not in await reply.text()
    assert app.state.fake.seen == []


def shop(folder: Path) -> str:
    """A workspace that defines ``total``."""
    folder.mkdir(parents=True)
    (folder / "shop.py").write_text(f"def total():\n    return '{folder.name}'\n")
    return str(folder.resolve())


async def sent(url: str, model: str = "auto", **headers: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "What does `total` do?"}]}
    async with aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()
            return answer.status


async def test_code_is_read_where_the_key_has_a_workspace_and_nowhere_else(tmp_path: Path) -> None:
    ours, other = shop(tmp_path / "ours"), shop(tmp_path / "other")
    (tmp_path / "ours" / "sub").mkdir()
    (tmp_path / "ours" / "out").symlink_to(other)
    one = {"authorization": f"Bearer {make('one', workspaces=(ours,))}"}
    two = {"authorization": f"Bearer {make('two', workspaces=(ours, other))}"}
    none = {"authorization": f"Bearer {make('none')}"}
    app = openai_app(window=16_384)
    async with serving(app) as upstream, gateway(upstream) as (url, _):
        for key, workspace, found in (
            (one, "", "ours"),
            (one, ours, "ours"),
            (one, f"{ours}/sub/..", "ours"),
            (two, "", ""),
            (two, other, "other"),
            (none, "", ""),
        ):
            headers = {**key, **({"x-turnout-workspace": workspace} if workspace else {})}
            assert await sent(url, **headers) == 200
            said = app.state.fake.seen[-1]["messages"][-1]["content"]
            assert (f"return '{found}'" in said, "## " in said) == (bool(found), bool(found))
        assert await sent(url, app.state.fake.models[0], **one) == 200
        assert app.state.fake.seen[-1]["messages"][-1]["content"] == "What does `total` do?"
        asked = len(app.state.fake.seen)
        for key, workspace in (
            (one, other),
            (one, f"{ours}/../other"),
            (one, f"{ours}/out"),
            (one, f"{ours}/absent"),
            (one, "ours"),
            (one, "/"),
            (none, ours),
        ):
            assert await sent(url, **key, **{"x-turnout-workspace": workspace}) == 403, workspace
        assert len(app.state.fake.seen) == asked


async def test_without_keys_the_configured_workspace_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    ours, other = shop(tmp_path / "ours"), shop(tmp_path / "other")
    app = openai_app(window=16_384)
    async with serving(app) as upstream, gateway(upstream, workspace=ours) as (url, _):
        assert await sent(url) == 200
        assert app.state.fake.seen[-1]["messages"][-1]["content"] == "What does `total` do?"
        assert await sent(url, **{"x-turnout-workspace": ours}) == 200
        assert "return 'ours'" in app.state.fake.seen[-1]["messages"][-1]["content"]
        assert await sent(url, **{"x-turnout-workspace": other}) == 403
