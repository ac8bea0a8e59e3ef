"""What Prometheus reads, the decision headers, and the access log."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from turnout.api import load_any
from turnout.build import open_router
from turnout.gateway import metrics
from turnout.gateway.access import AccessLog
from turnout.gateway.app import create_app, running
from turnout.gateway.exchange import Exchange, decision_headers
from turnout.gateway.metrics import Metrics
from turnout.types import FallbackLevel, Route, TaskCategory

QUESTION = [{"role": "user", "content": "Write a function that adds two numbers"}]

CANNOT_BE_READ = {
    "/v1/chat/completions": b'{"messages"',
    "/v1/messages": b"[]",
    "/v1/responses": b"{}",
    "/v1/embeddings": b'{"model":"m-7b","input":[]}',
    "/api/chat": b'{"model":1}',
}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))


@asynccontextmanager
async def gateway(*urls: str, access: AccessLog | None = None) -> AsyncIterator[str]:
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}})
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router(config))
        _, url = await stack.enter_async_context(running(create_app(router, access=access)))
        yield url


async def read(session: aiohttp.ClientSession, url: str) -> dict[tuple[str, ...], float]:
    """Every sample: its name, then its labels' values in the order of their names."""
    async with session.get(f"{url}/metrics") as reply:
        assert reply.status == 200
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        text = await reply.text()
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


async def test_requests_are_counted_by_what_became_of_them() -> None:
    bad, good = openai_app(("m-7b",)), openai_app(("m-7b",))
    bad.state.fake.fault = "error"
    async with serving(bad) as one, serving(good) as two, gateway(one, two) as url:
        async with aiohttp.ClientSession() as session:
            for stream in (False, True):
                body = {"model": "m-7b", "messages": QUESTION, "stream": stream}
                async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                    await reply.read()
                    assert reply.headers["x-turnout-endpoint"] == "s1"
            for path in ("/v1/models/m-7b", "/nothing/at/all", "/api/blobs/sha256:12"):
                async with session.get(url + path):
                    pass
            found = await read(session, url)
    chat = "/v1/chat/completions"
    counted = {key[1:]: value for key, value in found.items() if key[0] == "turnout_requests_total"}
    level = next(key[1] for key in counted if key[0] == "s1")
    assert counted == {
        ("s1", level, "m-7b", chat, "200"): 2,
        ("", "", "", "/v1/models/{id}", "200"): 1,
        ("", "", "", "unknown", "404"): 1,
        ("", "", "", "/api/blobs", "403"): 1,
    }
    assert found["gen_ai_server_request_duration_seconds_count", "s1", "m-7b", chat] == 2
    assert found["gen_ai_server_time_to_first_token_seconds_count", "s1", "m-7b", chat] == 2
    assert found["gen_ai_server_request_duration_seconds_bucket", "s1", "m-7b", "+Inf", chat] == 2
    assert found["turnout_tokens_total", "s1", "m-7b", "input"] > 0
    assert found["turnout_tokens_total", "s1", "m-7b", "output"] > 0
    assert sum(value for key, value in found.items() if key[:2] == ("turnout_retries_total", "s0")) >= 1
    assert found["turnout_requests_in_flight",] == 1
    assert found["turnout_endpoint_health", "s1", "online"] == 1
    assert (found["turnout_guard_refusals_total",], found["turnout_audit_alarm",]) == (0, 0)


async def test_what_clients_write_is_never_a_label() -> None:
    async with serving(openai_app(("m-7b",))) as one, gateway(one) as url, aiohttp.ClientSession() as session:
        for number in range(20):
            body = {"model": f"nope-{number}", "messages": QUESTION}
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                assert reply.status == 404
            async with session.get(f"{url}/x{number}", headers={"Host": f"h{number}"}) as reply:
                assert reply.status == 421
        found = await read(session, url)
    text = str(found)
    assert "nope" not in text
    assert "x1" not in text
    assert "h1" not in text
    assert found["turnout_requests_total", "", "4", "unknown", "/v1/chat/completions", "404"] == 20
    assert found["turnout_requests_total", "", "", "", "unknown", "421"] == 20
    assert found["turnout_refused_total", "foreign_host"] == 20


def test_names_are_bounded() -> None:
    names = metrics._Names()
    assert [names(f"m{n}") for n in range(metrics.MAX_NAMES + 2)][-3:] == ["m255", "other", "other"]
    assert names("m0") == "m0"


async def test_every_answer_says_which_way_it_went() -> None:
    bad = openai_app(("m-7b",))
    async with serving(bad) as one, gateway(one) as url, aiohttp.ClientSession() as session:

        async def ask(path: str, **more: object) -> dict[str, str]:
            body = {"model": "auto", "messages": QUESTION, "max_tokens": 9, **more}
            async with session.post(url + path, json=body) as reply:
                await reply.read()
                return {k.removeprefix("x-turnout-"): v for k, v in reply.headers.items() if k.startswith("x-turnout-")}

        for path in ("/v1/chat/completions", "/v1/messages"):
            for stream in (False, True):
                said = await ask(path, stream=stream)
                assert {k: said[k] for k in ("model", "endpoint", "category", "fallback-level")} == {
                    "model": "m-7b",
                    "endpoint": "s0",
                    "category": "coding",
                    "fallback-level": "0",
                }
                assert said["reason"]
                assert "window=8192; source=" in said["context"]
                assert len(said["request-id"]) == 32
        assert (await ask("/v1/chat/completions", model="m-7b"))["category"] == "exact"
        bad.state.fake.fault = "error"
        said = await ask("/v1/chat/completions", model="m-7b")
        assert (said["model"], said["endpoint"], said["fallback-level"]) == ("m-7b", "s0", "4")
        assert said["reason"] == "query_failed"
        async with session.get(f"{url}/nothing") as reply:
            assert len(reply.headers["x-turnout-request-id"]) == 32
            assert reply.headers["x-request-id"] == reply.headers["x-turnout-request-id"]
    lines = [json.loads(line) for line in Path(data_dir(), "audit.log").read_text("utf-8").splitlines()]
    assert said["request-id"] in {line["request_id"] for line in lines}


def data_dir() -> Path:
    from turnout.config import data_dir as place

    return place()


def test_headers_are_ascii_of_one_bounded_line() -> None:
    route = Route(
        request_id="r",
        requested_model="x",
        sent_model="mod\r\nSet-Cookie: a=b\x00",
        canonical="",
        service=" Küche ",
        url="",
        level=FallbackLevel.REDUCED_CONTEXT,
        category=TaskCategory.CODING,
        window=8192,
        window_source="known",
        prompt_tokens=70,
        reason="é" * 500,
        compacted=True,
        expected=1.2345,
    )
    found = {name.decode(): value for name, value in decision_headers(route)}
    assert found["x-turnout-model"] == b"mod??Set-Cookie: a=b?"
    assert found["x-turnout-endpoint"] == b"K?che"
    assert found["x-turnout-reason"] == b"?" * 200
    assert found["x-turnout-context"] == b"prompt=70; window=8192; source=known; compacted"
    assert found["x-turnout-fallback-level"] == b"2"
    assert found["x-turnout-expected-ms"] == b"1234"
    assert "x-turnout-expected-ms" not in dict(decision_headers(replace(route, expected=0.0)))


async def test_the_access_log_has_a_line_for_each_request_and_no_words_of_it() -> None:
    stream = io.StringIO()
    access = AccessLog(stream)
    async with serving(openai_app(("m-7b",))) as one, gateway(one, access=access) as url:
        async with aiohttp.ClientSession() as session:
            body = {"model": "m-7b", "messages": QUESTION}
            headers = {"x-api-key": "sk-secret"}
            async with session.post(f"{url}/v1/chat/completions?key=sk-secret", json=body, headers=headers) as reply:
                request_id = reply.headers["x-turnout-request-id"]
            async with session.get(f"{url}/a%0a%22b", headers={"Host": "evil"}):
                pass
            for path, bad in CANNOT_BE_READ.items():
                async with session.post(url + path, data=bad) as reply:
                    assert reply.status == 400
            async with session.post(f"{url}/api/pull"), session.get(f"{url}/nothing"):
                pass
    access.close()
    first, second, *others = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["request_id"], first["principal"], first["status"]) == (request_id, "local", 200)
    assert (first["route"], first["model"], first["endpoint"]) == ("/v1/chat/completions", "m-7b", "s0")
    assert (second["path"], second["status"], second["error"]) == ('/a?"b', 421, "foreign_host")
    said = {line["path"]: (line["status"], line["error"]) for line in others}
    read = dict.fromkeys(CANNOT_BE_READ, (400, "invalid_request"))
    assert said == {**read, "/api/pull": (403, "invalid_request"), "/nothing": (404, "invalid_request")}
    assert "secret" not in stream.getvalue()
    assert "function" not in stream.getvalue()


def test_a_reader_that_is_slow_loses_lines_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.gateway.access.MAX_WAITING", 2)
    monkeypatch.setattr("threading.Thread.start", lambda self: None)
    access = AccessLog(io.StringIO())
    scope = {"client": None, "method": "GET", "path": "/"}
    for _ in range(5):
        access.write(Exchange(), scope, "/")
    assert access._waiting.get_nowait() is not None
    access.write(Exchange(), scope, "/")
    lines = [access._waiting.get_nowait() for _ in range(2)]
    assert [line.lost_before for line in lines if line] == [0, 3]


def test_a_client_that_leaves_before_the_answer_is_counted_with_status_0() -> None:
    counted = Metrics()
    counted.ended(Exchange(), "/")
    assert next(iter(counted._series))[-1] == 0
