"""Windows that servers hide, cut or claim: what is sent fits, and what was learned is kept (SPEC WIN-1, CTX-1)."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes import koboldcpp, lmstudio, ollama, textgen, vllm
from tests.fakes.base import Fake, FakeModel, running
from tests.fakes.liar import CHAT, DONE, SSE, Say, answer, event, lying
from tests.fakes.liar import models as listing
from tests.servers import LlamaServer
from turnout import fitting
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.config import LoadedConfig
from turnout.context import compaction
from turnout.errors import ContextOverflowError, QueryFailedError
from turnout.fleet.learned import learned_path
from turnout.router import Router
from turnout.routing import fallback, patience
from turnout.types import ChatRequest, ExecutionResult, FallbackLevel, Message, message


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@dataclass
class Hider:
    """A server of the OpenAI protocol that tells nobody its window, and counts four characters a token.

    ``manner``: what it does with a prompt that is too long: ``numbers`` and ``words`` refuse it, ``cut`` reads the end.
    """

    window: int
    manner: str = "numbers"
    characters: int = 4  # a token
    prompts: list[int] = field(default_factory=list)
    limits: list[object] = field(default_factory=list)
    failing: bool = False

    def app(self) -> Starlette:
        async def listing(_: Request) -> Response:
            return JSONResponse({"object": "list", "data": [{"id": "some-model", "object": "model"}]})

        async def chat(request: Request) -> Response:
            body = await request.json()
            count = sum(len(str(m["content"])) for m in body["messages"]) // self.characters
            self.prompts.append(count)
            self.limits.append(body.get("max_tokens"))
            if self.failing:
                return JSONResponse({"error": {"message": "broken"}}, 500)
            if count > self.window and self.manner == "numbers":
                told = {"message": "exceeds the available context size", "n_prompt_tokens": count, "n_ctx": self.window}
                return JSONResponse({"error": told}, 400)
            if count > self.window and self.manner == "words":
                return JSONResponse({"error": {"message": "the prompt exceeds the context window"}}, 400)
            usage = {"prompt_tokens": min(count, self.window), "completion_tokens": 1}
            chunks = [{"choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}]}]
            chunks.append({"choices": [], "usage": usage})
            lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            return Response(lines + "data: [DONE]\n\n", media_type="text/event-stream")

        return Starlette(routes=[Route("/v1/models", listing), Route("/v1/chat/completions", chat, methods=["POST"])])


def config_of(*urls: str, style: str = "openai", context: object = None, **more: object) -> LoadedConfig:
    custom = [
        {"name": f"s{n}", "endpoint": url, "priority": n, "api_style": style, **more} for n, url in enumerate(urls)
    ]
    return load_any({"custom_endpoints": custom, "discovery": {"enabled": False}, "context": context or {}})


@asynccontextmanager
async def over(hider: Hider, **more: object) -> AsyncIterator[Router]:
    async with running(hider.app()) as url, open_router(config_of(url, **more)) as router:
        yield router


async def ask(router: Router, *messages: Message, **fields: object) -> ExecutionResult:
    return await collect(router.route(ChatRequest(messages, **fields)))  # type: ignore[arg-type]


def talk(tokens: int) -> tuple[Message, ...]:
    """A conversation of about so many tokens, in turns of 100."""
    line = "word " * 80
    turns = [message("user" if n % 2 == 0 else "assistant", f"Turn {n}. {line}") for n in range(tokens // 100)]
    return (*turns[: len(turns) // 2 * 2], message("user", "And now?"))


def chats(fake: Fake) -> list[dict[str, object]]:
    """What was sent to be answered, not only to be counted."""
    return [body for body in fake.seen if body.get("stream")]


def shown(router: Router) -> tuple[int, str]:
    model = router.catalog.endpoints[0].models[0]
    return model.window, model.window_source


async def test_a_window_that_an_overflow_names_is_learned_shown_and_kept(data_dir: Path) -> None:
    hider = Hider(2000)
    async with running(hider.app()) as url:
        async with open_router(config_of(url)) as router:
            first = await ask(router, *talk(4000))
            assert first.attempts[0].error is not None, "nobody could know"
            assert shown(router) == (2000, "learned")
            second = await ask(router, *talk(5000))
        assert second.route is not None
        assert (second.route.window, second.route.window_source) == (2000, "learned")
        assert [a.error for a in second.attempts] == [None]
        assert learned_path(data_dir).stat().st_mode & 0o077 == 0
        async with open_router(config_of(url)) as router:
            assert shown(router) == (2000, "learned"), "the next process knows it"
            third = await ask(router, *talk(6000))
    assert [a.error for a in third.attempts] == [None]
    assert max(hider.prompts[2:]) <= 2000


async def test_of_a_refusal_without_a_number_at_least_the_size_is_learned() -> None:
    hider = Hider(3000, "words")
    async with over(hider) as router:
        await ask(router, *talk(4000))
        window, source = shown(router)
        assert source == "learned"
        assert window <= 4200
        answered = await ask(router, *talk(4000))
    assert answered.text == "ok"


async def test_an_answer_beyond_the_guess_raises_it() -> None:
    hider = Hider(30_000)
    async with over(hider) as router:
        result = await ask(router, *talk(12_000), own_history=True, model="some-model")
        assert result.level is FallbackLevel.PRIMARY
        window, source = shown(router)
    assert (source, window > 8192) == ("learned", True)


async def test_a_prompt_that_was_cut_is_told_of_and_the_second_time_learned() -> None:
    hider = Hider(2000, "cut")
    async with over(hider) as router:
        first = await ask(router, *talk(4800))
        assert [n.code for n in first.notices] == ["truncated"]
        assert shown(router)[1] != "learned", "a server that leaves out what it cached would look the same once"
        await ask(router, *talk(4800))
        assert shown(router) == (2001, "learned")
        third = await ask(router, *talk(4800))
    assert third.notices[0].code == "compacted"
    assert not [n for n in third.notices if n.code == "truncated"]
    assert hider.prompts[-1] < 2000


async def test_counts_follow_what_the_server_reports_also_in_the_next_process() -> None:
    hider = Hider(30_000, characters=2)
    errors: list[float] = []

    async def asked(router: Router, n: int) -> None:
        result = await ask(router, *talk(600 + 150 * n), max_tokens=8)
        assert result.route is not None
        errors.append(abs(result.route.prompt_tokens / result.usage.prompt_tokens - 1))

    async with running(hider.app()) as url:
        async with open_router(config_of(url, window=30_000)) as router:
            for n in range(20):
                await asked(router, n)
        async with open_router(config_of(url, window=30_000)) as router:
            await asked(router, 21)
    assert errors[0] > 0.15
    assert max(errors[-5:]) < 0.03


async def test_a_conversation_that_was_counted_once_is_counted_as_the_server_does() -> None:
    """Texts that no count of characters can judge: from the second turn on only what is new is guessed."""
    hider = Hider(30_000, characters=2)
    hexadecimal = [message("user" if n % 2 == 0 else "assistant", f"{n:032x} " * 30) for n in range(7)]
    async with over(hider, window=30_000) as router:
        first = await ask(router, *hexadecimal)
        more = (*hexadecimal, message("assistant", "ok"), message("user", "And that one? " * 5))
        second = await ask(router, *more)
    for result, least, most in ((first, 0.06, 9.0), (second, 0.0, 0.04)):
        assert result.route is not None
        assert least <= abs(result.route.prompt_tokens / result.usage.prompt_tokens - 1) <= most


async def test_small_reports_are_no_cut() -> None:
    """A server that reports only what its cache did not have, or always the same."""
    hider = Hider(200, "cut")
    async with over(hider) as router:
        result = await ask(router, *talk(3000))
        await ask(router, *talk(3000))
        assert result.notices == ()
        assert shown(router)[1] != "learned"


async def test_an_answers_limit_that_leaves_no_room_is_lowered() -> None:
    hider = Hider(8192)
    async with over(hider, window=8192) as router:
        await ask(router, *talk(3000), max_tokens=32_000)
        await ask(router, message("user", "hi"), max_tokens=500)
    first, second = hider.limits
    assert isinstance(first, int)
    assert hider.prompts[0] + first <= 8192
    assert first > 3000
    assert second == 500


@pytest.mark.parametrize("module", [koboldcpp, lmstudio, textgen], ids=["koboldcpp", "lmstudio", "textgen"])
async def test_what_a_server_would_cut_is_refused_with_the_number(module: object) -> None:
    """The client keeps its own history: it can shorten it, and must be told."""
    fake = Fake([FakeModel(window=4096, max_window=4096)])
    async with running(module.app(fake)) as url, open_router(config_of(url, style="native")) as router:  # type: ignore[attr-defined]
        model = router.catalog.endpoints[0].models[0]
        long = talk(model.window * 3 // 2)
        with pytest.raises(QueryFailedError) as caught:
            await ask(router, *long, model=model.id, own_history=True)
        assert isinstance(caught.value.cause, ContextOverflowError)
        assert caught.value.cause.prompt_tokens > caught.value.cause.window == model.window
        assert not chats(fake), "nothing was sent that would have been cut"
        result = await ask(router, *long)
    assert result.notices[0].code == "compacted"
    sent = sum(len(str(m["content"])) for m in chats(fake)[0]["messages"]) / 5  # type: ignore[attr-defined]
    assert sent < model.window


async def test_a_count_that_no_prompt_can_have_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It emptied the conversation, for good: what is decided stays."""
    sent = []
    for told in (0, 1_000_000):
        monkeypatch.setattr(koboldcpp, "counted", lambda _, told=told: told)
        fake = Fake([FakeModel(window=4096, max_window=4096)])
        async with running(koboldcpp.app(fake)) as url, open_router(config_of(url, style="native")) as router:
            await ask(router, *talk(2500))
        sent.append(chats(fake)[0]["messages"])
    assert sent[1] == sent[0], "as where the server does not count"


async def test_one_window_is_chosen_for_a_model_of_ollama_and_kept() -> None:
    fake = Fake([FakeModel("a", resident=False), FakeModel("b", window=4096)])
    async with (
        running(ollama.app(fake), server_header="") as url,
        open_router(config_of(url, style="native")) as router,
    ):
        for model in ("a", "b", "a"):
            await ask(router, message("user", "hi"), model=f"{model}:latest")
            await router.refresh()
        await ask(router, *talk(9000), model="a:latest")
    assert [body["options"]["num_ctx"] for body in fake.seen] == [16_384, 4096, 16_384, 16_384]  # type: ignore[index]
    assert "reloads" not in fake.options


async def test_a_modelfiles_window_is_respected_and_a_configured_one_rules() -> None:
    fake = Fake([FakeModel("a", resident=False)], options={"parameters": "num_ctx                        6144"})
    async with running(ollama.app(fake), server_header="") as url:
        async with open_router(config_of(url, style="native")) as router:
            result = await ask(router, message("user", "hi"), model="a:latest")
            assert result.route is not None
            assert result.route.window == 6144
        fake.models[0].resident = False
        async with open_router(config_of(url, style="native", window=12_288)) as router:
            assert shown(router) == (12_288, "configured")
            await ask(router, message("user", "hi"), model="a:latest")
    assert [body["options"]["num_ctx"] for body in fake.seen] == [6144, 12_288]  # type: ignore[index]


async def test_the_servers_own_count_decides_near_the_limit(llama: LlamaServer) -> None:
    """What is too long by its count alone is compacted before it has to refuse."""
    turn = "The quick brown fox jumps over the lazy dog, and it is not amused by any of this. " * 3 + "∮∯∰⨌ " * 3
    turns = [message("user" if n % 2 == 0 else "assistant", turn) for n in range(23)]
    config = config_of(llama.url, context={"compaction_threshold": 1.0, "compaction_target": 0.7})
    async with open_router(config) as router:
        result = await ask(router, *turns, message("user", "Say hello in one word."), max_tokens=8)
    assert [a.error for a in result.attempts] == [None]
    assert result.notices[0].code == "compacted"
    assert result.route is not None
    assert result.route.prompt_tokens == result.usage.prompt_tokens, "the route tells the exact count"


async def test_what_our_count_alone_would_refuse_is_counted_by_the_server_first(llama: LlamaServer) -> None:
    """Words that are a token each, more than twice what such letters are on the average."""
    async with open_router(config_of(llama.url)) as router:
        result = await ask(router, message("user", "word " * 1600), max_tokens=4)
        with pytest.raises(QueryFailedError) as refused:
            await ask(router, message("user", "word " * 2300), max_tokens=4)
    assert [a.error for a in result.attempts] == [None]
    assert 1600 < result.usage.prompt_tokens < 1700
    told = refused.value.attempts[-1].error
    assert isinstance(told, ContextOverflowError)
    assert 2300 < told.prompt_tokens < 2450


async def test_a_server_that_hangs_is_given_up_when_an_honest_one_would_have_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "LEAST", 0.3)
    monkeypatch.setattr(patience, "UNKNOWN_LOAD", 0.05)
    hangs, works = Hider(8192), Hider(8192)
    app = hangs.app()
    released = asyncio.Event()

    async def hang(_: Request) -> Response:
        await released.wait()
        return Response()

    app.router.routes[1] = Route("/v1/chat/completions", hang, methods=["POST"])
    async with (
        running(app) as one,
        running(works.app()) as other,
        open_router(config_of(one, other, max_retries=0)) as router,
    ):
        result = await asyncio.wait_for(ask(router, message("user", "hi")), 20)
        released.set()
    assert result.service == "s1"
    assert "did not begin to answer" in str(result.attempts[0].error)


async def test_all_retries_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "FIRST_BACKOFF", 0.001)
    hider = Hider(8192, failing=True)

    async with over(hider, max_retries=3) as router:
        monkeypatch.setattr(router.fleet.book, "attempt", lambda *_: None)  # its circuit stays closed
        answers = await asyncio.gather(*(ask(router, message("user", "hi")) for _ in range(40)), return_exceptions=True)
    assert all(isinstance(answer, QueryFailedError) for answer in answers)
    assert 40 < len(hider.prompts) <= 40 + fallback.MOST_RETRIES + 40 * fallback.RETRY_SHARE


@pytest.mark.parametrize("named", ["1", "9" * 200, "1000000000000000000", "0", "-5"])
async def test_an_absurd_window_in_a_refusal_is_not_learned(named: str) -> None:
    words = f"maximum context length is {named} tokens, your prompt has 4000 tokens"
    refusal = answer({"error": {"message": words}}, status=400)
    routes: dict[str, Say] = {"/v1/models": listing("m", window=0), CHAT: refusal}
    async with lying(routes) as url, open_router(config_of(url)) as router:
        with pytest.raises(QueryFailedError):
            await ask(router, *talk(4000))
        assert 1000 < shown(router)[0] < 10_000
        routes[CHAT] = SSE + event("ok") + DONE
        for _ in range(2):
            assert (await ask(router, *talk(4000))).text == "ok"


async def test_an_absurd_count_teaches_no_window(data_dir: Path) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":900000000000}}\n\n'
    routes: dict[str, Say] = {"/v1/models": listing("m", window=0), CHAT: SSE + event("ok") + usage + DONE}
    async with lying(routes) as url, open_router(config_of(url)) as router:
        router.fleet.learn_window(router.catalog.endpoints[0].endpoint, router.catalog.endpoints[0].models[0], 4000)
        assert (await ask(router, *talk(2000))).text == "ok"
        assert shown(router) == (4000, "learned")


async def test_a_window_that_was_learned_gives_way_to_what_is_learned_next() -> None:
    hider = Hider(3000)
    async with over(hider) as router:
        await ask(router, *talk(4000))
        assert shown(router) == (3000, "learned")
        hider.window = 2000  # another one behind the same address
        await ask(router, *talk(4000))
        assert shown(router) == (2000, "learned")
        assert [a.error for a in (await ask(router, *talk(5000))).attempts] == [None]


async def test_a_configured_window_is_no_more_than_the_server_tells() -> None:
    fake = Fake([FakeModel("m", window=2048)])
    for said, shows in ((4096, (2048, "known")), (1024, (1024, "configured"))):
        async with running(vllm.app(fake)) as url, open_router(config_of(url, style="native", window=said)) as router:
            assert shown(router) == shows


async def test_a_configured_window_that_the_server_refuses_is_corrected() -> None:
    hider = Hider(2000)
    async with over(hider, window=16_000) as router:
        await ask(router, *talk(4000))
        assert shown(router) == (2000, "learned")


async def test_of_several_windows_that_are_too_small_the_largest_is_told() -> None:
    small, large = Fake([FakeModel("a", window=1024)]), Fake([FakeModel("b", window=4096)])
    async with (
        running(vllm.app(small)) as one,
        running(vllm.app(large)) as other,
        open_router(config_of(one, other, style="native")) as router,
    ):
        with pytest.raises(QueryFailedError) as caught:
            await ask(router, message("user", "word " * 9000))
    cause = caught.value.cause
    assert isinstance(cause, ContextOverflowError)
    assert cause.window == 4096
    assert cause.prompt_tokens > 8000


async def test_a_short_question_fits_a_small_window_without_being_called_reduced() -> None:
    async with over(Hider(1024), window=1024) as router:
        assert (await ask(router, message("user", "hi"))).level is FallbackLevel.PRIMARY


async def test_an_explanation_promises_nothing_that_cannot_be_done() -> None:
    async with over(Hider(1024), window=1024) as router:
        with pytest.raises(ContextOverflowError, match="last user message"):
            await router.explain(ChatRequest((message("user", "word " * 9000),)))
        explained = await router.explain(ChatRequest(talk(3000)))
        assert explained.attempts[0].level is FallbackLevel.REDUCED_CONTEXT


async def test_others_are_answered_while_thousands_of_messages_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()

    def slow(messages: Sequence[Message], **aims: object) -> compaction.Fitted:
        if len(messages) > fitting.MANY:
            begun.set()
            assert answered.wait(20), "nobody else was answered"
        return compaction.fit(messages, **aims)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "fit", slow)
    many = tuple(message("user" if n % 2 == 0 else "assistant", "word") for n in range(fitting.MANY + 1))
    async with over(Hider(2000), window=2000) as router:
        long = asyncio.create_task(ask(router, *many))
        await asyncio.to_thread(begun.wait, 20)
        await ask(router, message("user", "hello"))
        answered.set()
        result = await long
    assert [n.code for n in result.notices] == ["compacted"]
