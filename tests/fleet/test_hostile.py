"""Servers that mean harm: bounded memory and time, the endpoint marked with the reason, the others unaffected."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.base import running
from tests.fakes.liar import SSE, Say, answer, lying
from tests.fakes.llm import openai_app
from tests.fleet.test_watch import fleet_of
from turnout.backends import base, dockermodelrunner, llamacpp, llamaswap, ollama
from turnout.backends.base import MAX_ROWS, Backend, json_rows
from turnout.backends.openai_compatible import OpenAICompatible
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import BackendError
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.discovery import MAX_MODELS, Target, look
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import Endpoint, Health, Model

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


class Everywhere(dict[str, Say]):
    """The same answer at every path."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def get(self, path: str, default: Say) -> Say:  # type: ignore[override]
        return self._say


@pytest.fixture
async def good() -> AsyncIterator[str]:
    async with running(openai_app(("good",))) as url:
        yield url


async def found(say: Say | dict[str, Say], good: str, timeout: int = 60_000) -> EndpointStatus:
    """What a hostile server is taken for, beside a good one that must stay usable."""
    routes = say if isinstance(say, dict) else Everywhere(say)
    async with lying(routes) as url, fleet_of(url, good, timeout=timeout) as fleet:
        await fleet.refresh()
        bad, other = fleet.catalog.endpoints
        assert (other.health, [m.id for m in other.models]) == (Health.ONLINE, ["good"])
        shown = [bad.reason, bad.version, bad.evidence, *bad.notes, *(m.id for m in bad.models)]
        shown += [word for pair in bad.excluded for word in pair]
        assert all(text.isprintable() for text in shown)
        return bad


async def test_headers_without_end(good: str) -> None:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-A: " + b"a" * 1000 + b"\r\n")
            await writer.drain()

    bad = await found(talk, good)
    assert (bad.health, bad.models) == (Health.DEGRADED, ())
    assert "does not speak HTTP as it should" in bad.reason


async def test_json_without_end_is_read_to_a_bound(good: str) -> None:
    sent = 0

    async def talk(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(JSON_HEAD)
        while True:
            writer.write(b"186a0\r\n" + b"[" * 100_000 + b"\r\n")
            sent += 100_000
            await writer.drain()

    tracemalloc.start()
    try:
        bad = await found({"/v1/models": talk}, good)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (bad.health, bad.models) == (Health.DEGRADED, ())
    assert "more than 12,000,000 bytes" in bad.reason
    assert sent < 100_000_000
    assert peak < 200_000_000


NESTED = b'{"data":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
BOMB = b'{"data":[' + b"[]," * 3_000_000 + b"[]]}"
UTF8 = b'{"data":[{"id":"\xff\xfe\xc3\x28"}]}'


@pytest.mark.parametrize("body", [NESTED, BOMB, UTF8, b"", b"null", b'{"data":{"id":"m"}}', b'{"data":[1,null,[]]}'])
async def test_json_that_means_harm(good: str, body: bytes) -> None:
    tracemalloc.start()
    try:
        bad = await found(answer(body), good)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bad.models == ()
    assert bad.reason
    assert peak < 200_000_000


async def test_bytes_that_drip_end_with_the_time_limit(good: str) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(JSON_HEAD)
        while True:
            writer.write(b"1\r\n{\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    bad = await found(drip, good, timeout=500)
    assert (bad.health, bad.reason) == (Health.OFFLINE, "no answer within 0.5 s")


async def test_a_list_of_a_hundred_thousand_models_is_cut_and_says_so(
    good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, model = [], OpenAICompatible.model
    monkeypatch.setattr(OpenAICompatible, "model", lambda self, row: read.append(row) or model(self, row))
    rows = [{"id": f"model-{n:06}", "object": "model", "created": 1764000000, "owned_by": "x"} for n in range(100_000)]
    bad = await found({"/v1/models": answer({"object": "list", "data": rows})}, good)
    assert bad.health is Health.ONLINE
    assert [m.id for m in bad.models] == [f"model-{n:06}" for n in range(MAX_MODELS)]
    assert "only the first 2,000" in bad.reason
    assert len(bad.excluded) <= MAX_MODELS
    assert len(read) < 2 * MAX_MODELS  # the rest costs no time either


async def test_what_a_terminal_would_obey_is_never_kept(good: str) -> None:
    ids = ["fine", f"evil{ESCAPE}", "line\nbreak", "\u009bcsi", "\u202efdp.lanigiro", "x" * 5000]
    bad = await found({"/v1/models": answer({"object": "list", "data": [{"id": name} for name in ids]})}, good)
    assert [m.id for m in bad.models] == ["fine"]
    refusing = await found({"/v1/models": answer({"error": {"message": f"no{ESCAPE}"}}, status=403)}, good)
    assert refusing.health is Health.NEEDS_KEY


async def test_odd_words_of_a_backend_are_cleaned(good: str) -> None:
    tag = {"name": f"m{ESCAPE}", "digest": f"1{ESCAPE}", "details": {"family": ESCAPE, "quantization_level": ESCAPE}}
    routes: dict[str, Say] = {
        "/": answer(b"Ollama is running", kind="text/plain"),
        "/api/version": answer({"version": f"0.33{ESCAPE}"}),
        "/api/status": answer({"cloud": {"disabled": True}}),
        "/api/tags": answer({"models": [tag, tag | {"name": "good", "model": "good"}]}),
        "/api/ps": answer({"models": []}),
    }
    bad = await found(routes, good)
    assert bad.version.startswith("0.33")
    assert all((m.family + m.quantization + m.digest).isprintable() for m in bad.models)


def test_what_a_server_sends_costs_no_more_than_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these held the event loop up for minutes within the size that a look reads."""
    assert llamacpp._METRIC.findall(b"llamacpp:requests_processing{\n} 7") == [], "a sample is one line"
    assert llamaswap._window_of(f"-c 4096 {'x' * llamaswap.MAX_COMMAND}") == 0
    assert len(json_rows(b"[" + b"{}," * 99_999 + b"{}]")) == MAX_ROWS + 1
    shortened, short = [], dockermodelrunner._short
    monkeypatch.setattr(dockermodelrunner, "_short", lambda name: shortened.append(name) or short(name))
    loaded = dockermodelrunner._loaded([{"model_name": f"other-{n}"} for n in range(100)])
    models = [dockermodelrunner._model({"id": f"model-{n}"}, loaded, {}) for n in range(100)]
    assert not any(model is None or model.resident for model in models)
    assert len(shortened) <= 400, "not each model with each that runs"


@pytest.mark.parametrize("backend", [llamacpp.LlamaCpp(), llamaswap.LlamaSwap()], ids=lambda backend: backend.kind)
async def test_a_feed_that_floods_with_what_is_no_news_fills_its_own_buffers(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "FEED_GAP", 3600.0)
    stuck = asyncio.Event()

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(SSE)
        try:
            while True:
                writer.write(b'data: {"x":1}\n' * 4000)
                await asyncio.wait_for(writer.drain(), 1)
        except TimeoutError:
            stuck.set()

    async with lying(Everywhere(flood)) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        feed = backend.changes(client, Endpoint("x", backend.kind, url))
        assert feed is not None
        reading = asyncio.ensure_future(anext(feed))
        try:
            async with asyncio.timeout(20):
                await stuck.wait()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await feed.aclose()


async def test_what_is_told_of_one_model_is_bounded() -> None:
    large = answer({"license": "x" * base.MAX_DETAILS_BYTES})
    async with lying(Everywhere(large)) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        with pytest.raises(BackendError):
            await ollama.Ollama().details(client, Endpoint("x", "ollama", url), Model("m"), 10.0)
        with pytest.raises(BackendError):
            await llamacpp.LlamaCpp().details(client, Endpoint("x", "llamacpp", url), Model("m"), 10.0)


async def test_a_redirect_is_not_followed(good: str) -> None:
    asked: list[str] = []

    class Other(Everywhere):
        def get(self, path: str, default: Say) -> Say:
            asked.append(path)
            return super().get(path, default)

    async with lying(Other(answer({}))) as elsewhere:
        to = b"HTTP/1.1 302 Found\r\nLocation: %s/v1/models\r\nContent-Length: 0\r\n\r\n" % elsewhere.encode()
        bad = await found(to, good)
    assert asked == []
    assert bad.health is Health.DEGRADED


async def test_a_found_server_that_only_redirects_is_named_as_that() -> None:
    to = b"HTTP/1.1 307 Moved\r\nLocation: http://203.0.113.1/\r\nContent-Length: 0\r\n\r\n"
    async with lying(Everywhere(to)) as url, open_client(AllowList.from_config(SecurityConfig())) as client:
        status = await look(client, Target(Endpoint("x", "", url)), RouterConfig())
    assert (status.health, status.reason) == (
        Health.DEGRADED,
        "it only leads elsewhere (a redirect), which is never followed",
    )


async def test_many_hostile_servers_leave_the_good_one_usable(good: str) -> None:
    big = answer(b'{"data":' + b"[" * 200_000 + b"}")
    async with lying(Everywhere(big)) as url:
        async with fleet_of(good, *(f"{url}/{n}" for n in range(20))) as fleet:
            await fleet.refresh()
            assert [s.endpoint.url for s in fleet.catalog.serving] == [good]
