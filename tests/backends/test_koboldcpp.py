"""KoboldCpp: its emulations, its password, its router mode, the room it is told, and how it is made to start anew."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.backends.behaviours import Case, said
from tests.backends.served import case_of, raw
from tests.fakes.base import PROMPT_TOKENS, WORDS, Fake, FakeModel
from turnout.backends import BY_KIND, koboldcpp
from turnout.errors import EndpointBusyError, PhaseTimeoutError, RequestRefusedError, ServerFailedError
from turnout.fleet.discovery import identify
from turnout.guard.network import Reply
from turnout.types import ChatRequest, Endpoint, Health, message

BACKEND = BY_KIND["koboldcpp"]
BOX = Endpoint("box", "koboldcpp", "http://127.0.0.1:1")
NAME = "koboldcpp/qwen2.5-coder-7b-instruct"
ANOTHER = "llama-3.1-8b-instruct.kcpps"
HELLO = ChatRequest((message("user", "hello"),))


def fake_of(**options: object) -> Fake:
    return Fake(models=[FakeModel(), FakeModel(ANOTHER, resident=False)], options=dict(options))


def test_another_software_with_its_version_route_is_not_it() -> None:
    info = Reply(200, {}, b'{"software":{"name":"TabbyAPI","version":"1"}}')
    assert BACKEND.identify({"/.well-known/serviceinfo": info}) is None


def test_its_server_header_is_evidence_too() -> None:
    found = identify({"/v1/models": Reply(401, {"server": "KoboldCppServer 1"}, b"")})
    assert found is not None
    assert found.kind == "koboldcpp"


async def test_its_emulations_make_it_no_other_server() -> None:
    async with case_of("koboldcpp", fake_of()) as case:
        for path in ("/api/tags", "/api/ps", "/api/version", "/ping", "/system_stats", "/sdapi/v1/options"):
            url = case.client.request_url(case.url, path)
            assert (await case.client.get_json(url, timeout=5)).status == 200
        status = await case.look()
        assert (status.endpoint.kind, status.version) == ("koboldcpp", "1.115.2")
        assert (status.models[0].digest, status.models[0].size) == ("", 0)


async def test_looking_is_three_gets() -> None:
    async with case_of("koboldcpp", fake_of()) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 5)
        assert [model.id for model in found.models] == [NAME]
        paths = {path for _, path in case.fake.requests}
        assert paths == {"/api/extra/version", "/props", "/api/extra/perf"}
        assert len(case.fake.requests) == 3


async def test_an_older_version_is_asked_where_it_tells() -> None:
    async with case_of("koboldcpp", fake_of(old=True)) as case:
        model = await case.model()
        assert (model.id, model.window, model.resident) == (NAME, 8192, True)
        assert await case.backend.count_tokens(case.client, case.endpoint(), HELLO, model) == 0


async def test_it_serves_one_request_at_a_time_and_tells_its_queue() -> None:
    async with case_of("koboldcpp", fake_of(queue=3)) as case:
        case.fake.busy = 1
        status = await case.look()
        assert (status.slots, status.busy, status.waiting, status.capacity) == (1, 1, 3, 1)


async def test_a_server_without_a_text_model_has_none() -> None:
    async with case_of("koboldcpp", fake_of(no_llm=True)) as case:
        status = await case.look()
        assert (status.health, status.reason, status.models) == (Health.ONLINE, "has no text model", ())


async def test_a_wrong_password_is_seen_before_it_is_used() -> None:
    fake = fake_of()
    fake.key = "secret"
    async with case_of("koboldcpp", fake) as case:
        assert (await case.look(key="wrong")).health is Health.NEEDS_KEY
        assert (await case.look(key="secret")).health is Health.ONLINE


async def test_an_open_web_search_is_noted() -> None:
    async with case_of("koboldcpp", fake_of(websearch=True)) as case:
        assert "web search is on" in (await case.look()).notes[0]
    async with case_of("koboldcpp", fake_of()) as case:
        assert (await case.look()).notes == ()


async def test_in_router_mode_only_the_first_is_loaded_whatever_the_list_says() -> None:
    async with case_of("koboldcpp", fake_of(router=True)) as case:
        status = await case.look()
        assert [(m.id, m.resident, m.window) for m in status.models] == [(NAME, True, 8192), (ANOTHER, False, 0)]
        assert await case.backend.count_tokens(case.client, case.endpoint(), HELLO, status.models[1]) == 0
        assert await case.backend.count_tokens(case.client, case.endpoint(), HELLO, status.models[0]) == PROMPT_TOKENS
        assert "model" not in case.fake.seen[-1], "a name would load it"


async def sent(case: Case, limit: int | None, lane: str) -> dict[str, object]:
    """What it is sent for a request with that limit."""
    if lane == "event":
        assert said(await case.ask(max_tokens=limit)) == "".join(WORDS)
    else:
        body: dict[str, object] = {"model": "any", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        await raw(case, json.dumps(body | ({"max_tokens": limit} if limit else {})).encode())
    return case.fake.seen[-1]


@pytest.mark.parametrize("lane", ["event", "raw"])
async def test_it_is_told_the_room_that_is_left(lane: str) -> None:
    async with case_of("koboldcpp", fake_of()) as case:
        room = (await sent(case, None, lane))["max_tokens"]
        assert isinstance(room, int)
        assert 8000 < room < 8192
        assert (await sent(case, 100, lane))["max_tokens"] == 100
        clamped = (await sent(case, 8192, lane))["max_tokens"]
        assert isinstance(clamped, int)
        assert room - 10 < clamped <= room, "more would cut the start of the prompt"


@pytest.mark.parametrize("lane", ["event", "raw"])
async def test_a_full_window_leaves_what_it_would_give_by_itself(lane: str) -> None:
    fake = fake_of()
    fake.models[0].window = 2000
    async with case_of("koboldcpp", fake) as case:
        long = "word " * 1400
        if lane == "event":
            await case.ask(replace(HELLO, messages=(message("user", long),)))
        else:
            await raw(case, json.dumps({"model": "any", "messages": [{"role": "user", "content": long}]}).encode())
        assert case.fake.seen[-1]["max_tokens"] == 500


async def test_a_rate_limit_says_when_to_come_back() -> None:
    async with case_of("koboldcpp", fake_of(ratelimit=7)) as case:
        await case.model()
        case.fake.fault = "busy"
        with pytest.raises(EndpointBusyError) as caught:
            await case.ask()
        assert caught.value.retry_after == 7


def test_a_request_that_it_cannot_read_is_refused_under_500() -> None:
    body = b'{"detail":{"msg":"Payload is too big. Max payload size is 32MB.","type":"bad_input"}}'
    assert type(BACKEND.error(BOX, 500, {}, body)) is RequestRefusedError


async def test_it_is_made_to_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(koboldcpp, "POLL_SECONDS", 0.01)
    async with case_of("koboldcpp", fake_of(router=True, admin=True, linger=2, restart=3)) as case:
        told: list[str] = []
        wanted = (await case.look()).models[1]
        await case.backend.load(case.client, case.endpoint(), wanted, told.append)
        assert case.fake.seen == [{"filename": ANOTHER}]
        assert case.fake.models[0].id == "koboldcpp/llama-3", "the old process was taken for the new one"
        assert told == [f"box starts anew with {ANOTHER}", f"loaded {ANOTHER}"]
        now = await case.model()
        assert (now.id, now.resident) == ("koboldcpp/llama-3", True)
        await case.backend.unload(case.client, case.endpoint(), now)
        assert case.fake.seen[-1] == {"filename": "unload_model"}
        assert not any(model.resident for model in (await case.look()).models)


async def test_a_load_that_ends_without_a_model_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(koboldcpp, "POLL_SECONDS", 0.01)
    async with case_of("koboldcpp", fake_of(router=True, admin=True, broken=True)) as case:
        wanted = (await case.look()).models[1]
        with pytest.raises(ServerFailedError, match="started anew without"):
            await case.backend.load(case.client, case.endpoint(), wanted, lambda _: None)


async def test_a_server_that_does_not_come_back_is_awaited_for_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(koboldcpp, "POLL_SECONDS", 0.01)
    async with case_of("koboldcpp", fake_of(router=True, admin=True, restart=1_000_000)) as case:
        wanted = (await case.look()).models[1]
        box = case.endpoint()
        box = replace(box, limits=replace(box.limits, total=0.1))
        with pytest.raises(PhaseTimeoutError, match="did not come back"):
            await case.backend.load(case.client, box, wanted, lambda _: None)


async def test_without_admin_it_says_what_it_takes() -> None:
    async with case_of("koboldcpp", fake_of(router=True)) as case:
        wanted = (await case.look()).models[1]
        with pytest.raises(RequestRefusedError, match="--admindir"):
            await case.backend.load(case.client, case.endpoint(), wanted, lambda _: None)
