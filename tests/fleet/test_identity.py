"""Models that change while a Router is open: blocked before a token of them is handed on, the others not delayed."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import ollama
from tests.fakes.base import WORDS, Fake, FakeModel, running
from tests.servers import WEIGHTS, LlamaFactory
from turnout.api import collect, load_any
from turnout.backends.base import Inspection
from turnout.build import identity_rules, model_digests, models_lock_path, open_router
from turnout.config import LoadedConfig, signing_dir
from turnout.errors import EndpointDownError, ModelBlockedError, ModelChangedError, QueryFailedError
from turnout.fleet.locking import record
from turnout.fleet.pins import Pin, cold
from turnout.guard.identity import Digests
from turnout.guard.modelslock import write_lock
from turnout.guard.signing import Signer
from turnout.router import Router
from turnout.summary import _is_free
from turnout.types import ChatRequest, ExecutionResult, Health, Principal, message

SWAPPED = "e" * 64
ME = Principal()
AN_HOUR = 3_600_000


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path / "data"


def config_of(*urls: str, **security: object) -> LoadedConfig:
    """These endpoints alone; looks come on purpose only."""
    custom = [{"name": f"s{n}", "endpoint": url, "priority": n, "max_retries": 0} for n, url in enumerate(urls)]
    discovery = {"enabled": False, "interval": AN_HOUR, "timeout": 5000}
    return load_any({"custom_endpoints": custom, "discovery": discovery, "security": security})


async def lock(loaded: LoadedConfig) -> None:
    """What ``turnout models lock`` does."""
    async with open_router(loaded, whole=True) as router:
        folders = identity_rules(loaded).folders
        made = await record(router.client, router.catalog, folders, model_digests(), None, lambda _: None)
    write_lock(models_lock_path(loaded), made.lock, Signer(signing_dir()))


@asynccontextmanager
async def locked(*urls: str, **security: object) -> AsyncIterator[Router]:
    """A Router over endpoints that were locked as they are."""
    loaded = config_of(*urls, **security)
    await lock(loaded)
    async with open_router(loaded, whole=True) as router:
        yield router


async def ask(router: Router, model: str = "auto") -> ExecutionResult:
    return await collect(router.route(ChatRequest((message("user", "hi"),), model, max_tokens=4)))


def states(router: Router) -> list[str]:
    return [verdict.state for status in router.catalog.endpoints for verdict in status.verdicts.values()]


def events(data: Path, what: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (data / "audit.log").read_text().splitlines()]
    return [line for line in lines if line["event_type"] == what]


@pytest.fixture
async def two() -> AsyncIterator[tuple[Fake, Fake, list[str]]]:
    """Two Ollamas with a model each, and their addresses."""
    first, second = Fake(models=[FakeModel("qwen2.5-coder:7b")]), Fake(models=[FakeModel("llama3.1:8b")])
    async with AsyncExitStack() as stack:
        apps = [ollama.app(fake) for fake in (first, second)]
        urls = [await stack.enter_async_context(running(a, server_header=ollama.SERVER_HEADER)) for a in apps]
        yield first, second, urls


async def test_a_model_swapped_since_the_last_look_gives_no_token(
    two: tuple[Fake, Fake, list[str]], data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _, urls = two
    async with locked(urls[0]) as router:
        assert (await ask(router)).text == "".join(WORDS)
        first.models[0].digest = SWAPPED
        events_seen = []
        with pytest.raises(QueryFailedError) as caught:
            async for event in router.route(ChatRequest((message("user", "hi"),))):
                events_seen.append(event)
        assert events_seen == [], "not even that it has begun"
        assert isinstance(caught.value.cause, ModelChangedError)
        assert "its digest is eeee" in str(caught.value.cause)
        await router.refresh()
        with pytest.raises(ModelBlockedError, match="recorded was"):
            await ask(router)
        assert states(router) == ["mismatch"]
    assert len(events(data, "security:model_mismatch")) == 1, "once, not at every look"
    assert [r for r in caplog.records if r.levelno == logging.ERROR and "is blocked" in r.message]


async def test_another_model_answers_in_its_place(two: tuple[Fake, Fake, list[str]]) -> None:
    first, second, urls = two
    async with locked(*urls) as router:
        first.models[0].digest = SWAPPED
        result = await ask(router)
        assert (result.model, result.text) == ("llama3.1:8b", "".join(WORDS))
        assert "its digest is" in str(result.attempts[0].error)
        await router.refresh()
        seen = len(first.seen)
        assert (await ask(router)).service == "s1"
        assert len(first.seen) == seen, "from now on it is not asked"
        assert len(second.seen) == 2


async def test_nothing_else_that_a_blocked_model_could_do_is_done(two: tuple[Fake, Fake, list[str]]) -> None:
    first, _, urls = two
    async with locked(urls[0]) as router:
        assert (await router.side.embed("qwen2.5-coder:7b", ["x"], ME))[0]
        first.models[0].digest = SWAPPED
        with pytest.raises(QueryFailedError, match="its digest is"):
            await router.side.embed("qwen2.5-coder:7b", ["x"], ME)
        await router.refresh()
        before = len(first.requests)
        with pytest.raises(ModelBlockedError):
            await router.side.embed("qwen2.5-coder:7b", ["x"], ME)
        with pytest.raises(ModelBlockedError):
            await router.load_model("qwen2.5-coder:7b", lambda _: None)
        assert first.requests[before:] == []


async def test_a_server_that_tells_its_digests_too_late_holds_up_nobody(
    two: tuple[Fake, Fake, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was verified by the last look stays so."""
    _, _, urls = two
    async with locked(urls[0]) as router:
        monkeypatch.setattr("turnout.fleet.identity.CONFIRM_SECONDS", 0.05)

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr("turnout.backends.ollama.Ollama.inspect", hang)
        assert (await ask(router)).text == "".join(WORDS)


async def test_where_nothing_unverified_may_serve_an_answer_is_confirmed_or_is_none(
    two: tuple[Fake, Fake, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, urls = two
    async with locked(urls[0], unverified_models="refuse") as router:
        assert (await ask(router)).text == "".join(WORDS)

        async def fail(*_: object) -> None:
            raise EndpointDownError("it says nothing")

        monkeypatch.setattr("turnout.backends.ollama.Ollama.inspect", fail)
        with pytest.raises(QueryFailedError, match="did not confirm it"):
            await ask(router)


@pytest.mark.parametrize(("health", "answers"), [(Health.ONLINE, False), (Health.LOADING, True)])
async def test_a_model_that_left_its_servers_list_gives_no_token(
    two: tuple[Fake, Fake, list[str]], monkeypatch: pytest.MonkeyPatch, health: Health, answers: bool
) -> None:
    """A server that starts lists nothing yet."""
    _, _, urls = two
    async with locked(urls[0]) as router:

        async def empty(*_: object) -> Inspection:
            return Inspection(health, "it lists nothing")

        monkeypatch.setattr("turnout.backends.ollama.Ollama.inspect", empty)
        if answers:
            assert (await ask(router)).text == "".join(WORDS)
            return
        with pytest.raises(QueryFailedError, match="not in its server's list any more"):
            await ask(router)


async def test_who_locks_anew_is_heard(two: tuple[Fake, Fake, list[str]]) -> None:
    first, _, urls = two
    async with locked(urls[0]) as router:
        first.models[0].digest = SWAPPED
        await router.refresh()
        assert states(router) == ["mismatch"]
        await lock(config_of(urls[0]))
        await router.refresh()
        assert states(router) == ["verified"]
        assert (await ask(router)).text


async def test_a_lock_that_is_broken_while_it_serves_stops_it(two: tuple[Fake, Fake, list[str]], data: Path) -> None:
    _, _, urls = two
    async with locked(urls[0]) as router:
        (data / "models.lock.json").write_text("{}")
        await router.refresh()
        with pytest.raises(ModelBlockedError, match="was cut off"):
            await ask(router)
        await router.refresh()
    assert len(events(data, "security:models_lock")) == 1


@pytest.mark.parametrize("how", ["deleted", "its folder is gone"])
async def test_a_lock_that_goes_away_while_it_serves_is_an_alarm(
    how: str, two: tuple[Fake, Fake, list[str]], data: Path
) -> None:
    _, _, urls = two
    async with locked(urls[0]) as router:
        lock_file = data / "models.lock.json"
        lock_file.unlink()
        if how != "deleted":
            lock_file.symlink_to(data / "share" / "models.lock.json")
        await router.refresh()
        await router.refresh()
        if how == "deleted":
            assert (await ask(router)).text == "".join(WORDS)
        else:
            with pytest.raises(ModelBlockedError, match="leads to a file that is not there"):
                await ask(router)
    (event,) = events(data, "security:models_lock")
    assert ("is gone: models are not verified any more" in event["error"]) is (how == "deleted")


async def test_without_a_lock_a_name_that_means_other_weights_is_an_alarm_and_serves(
    two: tuple[Fake, Fake, list[str]], data: Path
) -> None:
    first, _, urls = two
    async with open_router(config_of(urls[0]), whole=True) as router:
        first.models[0].digest = SWAPPED
        await router.refresh()
        await router.refresh()
        assert (await ask(router)).text == "".join(WORDS)
        assert states(router) == []
    (event,) = events(data, "security:model_changed")
    assert "qwen2.5-coder:7b @ s0 has other weights than before: its digest is eeee" in event["error"]


async def test_without_a_lock_no_request_asks_a_server_anything_more(two: tuple[Fake, Fake, list[str]]) -> None:
    first, _, urls = two
    async with open_router(config_of(urls[0]), whole=True) as router:
        before = len(first.requests)
        await ask(router)
        assert first.requests[before:] == [("POST", "/api/chat")]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.gguf"
    shutil.copyfile(WEIGHTS, path)
    return path


def replaced(path: Path, *, changed: bool = True) -> None:
    data = bytearray(WEIGHTS.read_bytes())
    if changed:
        data[-1000] ^= 0xFF
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


@pytest.fixture
def held_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files are read to their end only when this is set."""
    go, digest = threading.Event(), Digests.digest

    def slowly(self: Digests, path: Path, *args: Any, **kwargs: Any) -> str:
        go.wait(60.0)
        return digest(self, path, *args, **kwargs)

    monkeypatch.setattr(Digests, "digest", slowly)
    yield go
    go.set()


async def test_a_file_that_changed_is_barred_while_it_is_read_and_serves_when_it_is_the_same(
    llama_factory: LlamaFactory, weights: Path, held_reading: threading.Event
) -> None:
    server = await llama_factory(weights=weights)
    held_reading.set()
    async with locked(server.url) as router:
        assert states(router) == ["verified"]
        held_reading.clear()
        replaced(weights, changed=False)
        with pytest.raises(QueryFailedError, match="weights.gguf has changed since it was verified"):
            await ask(router)
        await router.refresh()
        assert states(router) == ["checking"]
        assert router.fleet.checking
        asked = asyncio.create_task(ask(router))
        while not asked.done() and states(router) == ["checking"]:
            held_reading.set()
            await asyncio.sleep(0.01)
        assert (await asked).text
        assert states(router) == ["verified"]


async def test_a_file_that_is_another_is_never_served(llama_factory: LlamaFactory, weights: Path, data: Path) -> None:
    server = await llama_factory(weights=weights)
    async with locked(server.url) as router:
        assert (await ask(router, "smol")).text
        replaced(weights)
        with pytest.raises(QueryFailedError, match="has changed since it was verified"):
            await ask(router, "smol")
        await router.refresh()
        with pytest.raises(ModelBlockedError, match="its weights are"):
            await ask(router, "smol")
        assert states(router) == ["mismatch"]
    assert len(events(data, "security:model_mismatch")) == 1


async def test_a_file_that_cannot_be_read_any_more_is_not_read_again_and_again(
    llama_factory: LlamaFactory, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await llama_factory(weights=weights)
    async with locked(server.url) as router:
        tried = []

        def refused(_: Digests, path: Path, *args: object, **kwargs: object) -> str:
            tried.append(path)
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Digests, "digest", refused)
        replaced(weights)
        await router.refresh()
        await router.fleet.checked_all()
        await router.refresh()
        assert (states(router), tried) == (["mismatch"], [weights])
        with pytest.raises(ModelBlockedError, match="neither its digest nor its files can be had now"):
            await ask(router)


async def test_closing_does_not_wait_for_a_file_that_is_being_read(
    two: tuple[Fake, Fake, list[str]], llama_factory: LlamaFactory, weights: Path, data: Path
) -> None:
    server = await llama_factory(weights=weights)
    loaded = config_of(server.url)
    await lock(loaded)
    (data / "model-digests.json").unlink()
    async with open_router(loaded, whole=True) as router:
        assert router.fleet.checking
        verifier = router.fleet.verifier
    assert verifier is not None
    assert not verifier.checking


async def test_a_blocked_model_writes_no_summary_and_is_not_loaded_because_it_is_pinned(
    two: tuple[Fake, Fake, list[str]],
) -> None:
    first, _, urls = two
    first.models[0].resident = False
    async with locked(urls[0]) as router:
        (able,) = router.pool
        pins = frozenset({Pin(able.model.id, "s0")})
        assert [model.id for _, model in cold(pins, router.catalog)] == [able.model.id]
        first.models[0].digest = SWAPPED
        await router.refresh()
        assert cold(pins, router.catalog) == []
        first.models[0].resident = True
        await router.refresh()
        (status,), (barred,) = router.catalog.endpoints, router.pool
        assert not _is_free(barred, replace(status, slots=2), barred)
        assert _is_free(replace(barred, verdict=able.verdict), replace(status, slots=2), barred)
