"""Open WebUI as recorded, and beyond the common behaviours: where its models lead, and pages instead of answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.backends.served import case_of
from tests.fakes.base import Fake, FakeModel
from tests.recordings import exchanges, replaying, replies, reply
from turnout.backends import BY_KIND
from turnout.backends.lanes import event_lane, raw_lane
from turnout.config import RouterConfig, SecurityConfig
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    KeyRefusedError,
    RequestRefusedError,
    ServerFailedError,
    UnknownModelError,
)
from turnout.fleet.catalog import EndpointStatus
from turnout.fleet.discovery import Target, identify, look
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import (
    ChatRequest,
    Endpoint,
    Finish,
    Health,
    Model,
    RawBody,
    RawChunk,
    RawHead,
    TextDelta,
    Usage,
    UsageReport,
    WireFormat,
    message,
)

VERSION = "0.12.4"
BACKEND = BY_KIND["openwebui"]
BOX = Endpoint("box", "openwebui", "http://127.0.0.1:1", key="a token", configured=True)
SMOL = Model("smol")
HELLO = ChatRequest((message("user", "Say hello."),), max_tokens=8, temperature=0)
SAID = "Hello! I'sure I'm not"

OLLAMA_TAG = {
    "name": "gemma3:4b",
    "size": 3_338_801_804,
    "digest": "a" * 64,
    "details": {"family": "gemma3", "quantization_level": "Q4_K_M", "context_length": 131072},
    "capabilities": ["completion", "vision"],
}
ROWS = [
    {"id": "gemma3:4b", "owned_by": "ollama", "ollama": OLLAMA_TAG, "connection_type": "local"},
    {"id": "gpt-5", "owned_by": "openai", "openai": {"id": "gpt-5", "owned_by": "system"}, "urlIdx": 1},
    {"id": "arena-model", "owned_by": "arena", "arena": True},
    {"id": "a_function", "owned_by": "openai", "pipe": {"type": "pipe"}, "connection_type": "local"},
    {"id": "qwen", "openai": {"id": "qwen", "owned_by": "vllm", "max_model_len": 4096}, "connection_type": "local"},
]


async def recorded(state: str, **fields: object) -> EndpointStatus:
    endpoint = replace(BOX, kind="", **fields)  # type: ignore[arg-type]
    async with replaying("openwebui", VERSION, state) as url, open_client(AllowList.from_config(SecurityConfig())) as c:
        return await look(c, Target(replace(endpoint, url=url), style="native"), RouterConfig())


async def test_discovery_names_the_real_one_and_wants_a_key() -> None:
    status = await recorded("no-key", key="", configured=False)
    assert (status.endpoint.kind, status.version, status.health) == ("openwebui", VERSION, Health.NEEDS_KEY)
    assert "used when it is configured" in status.unused
    assert status.notes == ("whether it searches the web or runs code it tells a session's token alone",)


def test_its_page_is_no_answer_of_anybody() -> None:
    answers = replies("openwebui", VERSION, "no-key")
    pages = {path: answer for path, answer in answers.items() if answer.body.startswith(b"<!doctype")}
    assert {"/v1/models", "/api/tags", "/version"} <= {path for path, answer in pages.items() if answer.status == 200}
    assert identify(pages) is None
    assert identify(answers).kind == "openwebui"  # type: ignore[union-attr]
    without = {path: answer for path, answer in answers.items() if path != "/api/config"}
    assert identify(without).kind == "openwebui", "by its version alone"  # type: ignore[union-attr]


async def test_what_it_calls_external_until_somebody_says_local_is_left_out_with_the_way_to_change_it() -> None:
    status = await recorded("external")
    assert (status.health, status.models, [name for name, _ in status.excluded]) == (Health.ONLINE, (), ["smol"])
    assert "sets Connection Type to Local" in status.reason


async def test_a_routers_models_come_through_it_and_one_that_a_person_made_of_them_has_their_facts() -> None:
    status = await recorded("local")
    found = {model.id: model for model in status.models}
    assert list(found) == ["other", "smol", "pirate"]
    assert {(m.window, m.max_window, m.resident) for m in found.values()} == {(1024, 8192, False)}
    assert "3 of its models are of llamacpp: the same as of that server, if it is found by itself" in status.notes
    assert {"it runs code", "it calls tool servers"} <= set(status.notes)


async def test_it_answers_in_a_stream_and_whole() -> None:
    whole = exchanges("openwebui", VERSION, "external")["chat"]
    async with (
        replaying("openwebui", VERSION, "external") as url,
        open_client(AllowList.from_config(SecurityConfig())) as client,
    ):
        box = replace(BOX, url=url)
        streamed = [event async for event in event_lane(client, BACKEND, box, SMOL, HELLO, 0)]
        asked = replace(HELLO, raw=RawBody(WireFormat.OPENAI_CHAT, whole.sent))
        head, chunk, *rest = [event async for event in raw_lane(client, BACKEND, box, SMOL, asked)]
    assert "".join(event.text for event in streamed if isinstance(event, TextDelta)) == SAID
    assert UsageReport(Usage(33, 8, 32)) in streamed
    assert streamed[-1] == Finish("length")
    assert (head, chunk) == (RawHead(200, "application/json"), RawChunk(whole.reply.body))
    assert rest == [UsageReport(Usage(33, 8)), Finish("length")]


@pytest.mark.parametrize(
    ("state", "name", "kind"),
    [
        ("no-key", "no-key", KeyRefusedError),
        ("no-key", "bad-key", KeyRefusedError),
        ("external", "overflow", ContextOverflowError),
        ("external", "overflow-stream", ContextOverflowError),
        ("external", "unknown-model", UnknownModelError),
        ("external", "bad-json", RequestRefusedError),
        ("external", "chat-at-v1", RequestRefusedError),
        ("external", "unload", RequestRefusedError),
        ("local", "unload-unknown", UnknownModelError),
        ("alone", "chat", ServerFailedError),
        ("alone", "chat-stream", ServerFailedError),
        ("alone", "chat-not-listed", UnknownModelError),
    ],
)
def test_what_its_recorded_refusals_mean(state: str, name: str, kind: type[BackendError]) -> None:
    answer = reply("openwebui", VERSION, state, name)
    error = BACKEND.error(BOX, answer.status, answer.headers, answer.body)
    assert type(error) is kind
    if isinstance(error, ContextOverflowError):
        assert (error.prompt_tokens, error.window) == (1231, 1024)


async def test_it_goes_on_listing_what_is_gone_and_the_refusal_says_so() -> None:
    fake = Fake(options={"alone": True})
    assert [name for name, _ in (await recorded("alone")).excluded] == ["smol"]
    async with case_of("openwebui", fake) as case:
        assert (await case.look()).models
        with pytest.raises(UnknownModelError):
            await case.ask()


async def test_only_what_its_administrator_calls_local_is_used() -> None:
    async with case_of("openwebui", Fake(options={"extra_rows": ROWS})) as case:
        status = await case.look()
    assert {model.id for model in status.models} == {"qwen2.5-coder-7b-instruct", "gemma3:4b", "qwen"}
    assert {name for name, _ in status.excluded} == {"gpt-5", "arena-model", "a_function"}
    assert "1 of its models are of llamacpp: the same as of that server, if it is found by itself" in status.notes
    assert any("of ollama" in note for note in status.notes)


async def test_what_the_server_behind_it_tells_is_read() -> None:
    async with case_of("openwebui", Fake(options={"extra_rows": ROWS})) as case:
        found = {model.id: model for model in (await case.look()).models}
    gemma = found["gemma3:4b"]
    assert (gemma.digest, gemma.quantization, gemma.max_window, gemma.window) == ("a" * 64, "Q4_K_M", 131072, 0)
    assert gemma.capabilities == {"chat", "vision"}
    assert found["qwen"].window == 4096
    # A router's context_length is what the model was trained for.
    assert found["qwen2.5-coder-7b-instruct"].window == 8192


async def test_it_is_reported_and_not_used_unless_it_is_configured() -> None:
    async with case_of("openwebui", Fake()) as case:
        assert "used when it is configured" in (await case.look(configured=False)).unused
        assert (await case.look()).unused == ""


async def test_it_is_known_by_another_name_and_with_a_token_that_it_refuses() -> None:
    async with case_of("openwebui", Fake(key="secret", options={"name": "Our AI"})) as case:
        status = await case.look(key="of yesterday")
    assert (status.endpoint.kind, status.health, status.version) == ("openwebui", Health.NEEDS_KEY, "0.12.4")


async def test_features_that_lead_out_are_noted() -> None:
    features = {"enable_web_search": True, "enable_code_execution": True, "enable_channels": True}
    async with case_of("openwebui", Fake(options={"features": features})) as case:
        notes = (await case.look()).notes
    assert notes[:2] == ("web search is on", "it runs code")


async def test_a_page_instead_of_the_list_is_no_list() -> None:
    async with case_of("openwebui", Fake()) as case:
        found = await case.backend.inspect(case.client, case.endpoint(models_path="/v1/models"), 2)
    assert (found.health, found.reason) == (Health.DEGRADED, "GET /v1/models is not a model list")


async def test_unloading_is_passed_on_where_the_server_behind_it_can() -> None:
    fake = Fake(models=[FakeModel(), FakeModel("far", remote=True)])
    async with case_of("openwebui", fake) as case:
        found = await case.backend.inspect(case.client, case.endpoint(), 2)
        with pytest.raises(RequestRefusedError, match="does not support model unloading"):
            await case.backend.unload(case.client, case.endpoint(), found.models[1])
        await case.backend.unload(case.client, case.endpoint(), found.models[0])
        assert not fake.models[0].resident
