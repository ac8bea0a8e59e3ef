"""Every decision is kept with its candidates and what came of it, and feedback moves a score."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.base import running as serving
from tests.fakes.llm import openai_app
from turnout import journal
from turnout.api import LocalLLMRouter, collect, load_any
from turnout.build import open_router
from turnout.config import data_dir
from turnout.errors import AuditError, QueryFailedError, UsageError
from turnout.fleet.decisions import Decision, decisions_path, files_of, read
from turnout.fleet.feedback import Feedback, Votes, feedback_path
from turnout.gateway.app import create_app, running
from turnout.gateway.auth import Door
from turnout.guard import keys
from turnout.guard.keys import Keyring, Limits
from turnout.guard.tokens import Tokenring
from turnout.router import Router
from turnout.types import ChatRequest, Principal, TaskCategory, TextDelta, Tool, message

MODELS = ("qwen2.5-coder:7b", "llama3.1:8b", "gemma2:9b")
SECRET = "a parser for zanzibar files"
QUESTION = ChatRequest((message("user", f"Write {SECRET}"),))


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


@asynccontextmanager
async def router_of(*urls: str, watch: bool = False, **more: object) -> AsyncIterator[Router]:
    custom = [{"name": f"s{n}", "endpoint": url, "max_retries": 0} for n, url in enumerate(urls)]
    config = load_any({"custom_endpoints": custom, "discovery": {"enabled": False}, **more})
    async with open_router(config, watch=watch) as router:
        yield router


def kept() -> list[Decision]:
    return [d for d in read(files_of(decisions_path(data_dir()))) if d is not None]


def audited(event: str) -> list[dict[str, object]]:
    lines = map(json.loads, (data_dir() / "audit.log").read_text("utf-8").splitlines())
    return [line for line in lines if line["event_type"] == event]


async def ask(router: Router, request: ChatRequest = QUESTION, who: Principal = Principal()) -> str:  # noqa: B008
    result = await collect(router.route(request, who))
    assert result.route is not None
    return result.route.request_id


async def test_a_decision_is_kept_with_its_candidates_and_what_came_of_it() -> None:
    async with serving(openai_app(MODELS)) as url, serving(openai_app(("nomic-embed-text",))) as other:
        async with router_of(url, other) as router:
            used = await ask(router)
            explanation = await router.explain(QUESTION)
    (found,) = kept()
    assert (found.id, found.who, found.policy, found.category) == (used, "local", "balanced", "coding")
    task = explanation.classification
    assert task is not None
    assert found.shares == pytest.approx({c.value: share for c, share in task.scores.items()}, abs=1e-3)
    assert sum(found.shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert found.tokens > 0
    assert found.rejected == 1, "it makes embeddings"
    assert [o.model for o in found.options] == [r.candidate.model.id for r in explanation.selection.ranked]
    assert all(o.priced and o.decode > 0 and 0 < o.score <= 100 and o.window == 8192 for o in found.options)
    assert found.chosen == 0
    outcome = found.outcome
    assert (outcome.error, outcome.level, outcome.attempts) == ("", 0, 1)
    assert 0 < outcome.first <= outcome.total < 60
    assert outcome.tokens_out > 0


async def test_no_word_of_what_was_asked_or_answered_is_kept() -> None:
    asked = ChatRequest(
        (message("system", "You know Xanadu."), message("user", f"Write {SECRET}")), session_id="yggdrasil"
    )
    async with serving(openai_app(MODELS)) as url, router_of(url) as router:
        answer = await collect(router.route(asked))
    text = decisions_path(data_dir()).read_text("utf-8").lower()
    words = {*SECRET.split(), "xanadu", "yggdrasil", *answer.text.split()} - {"a", "return"}
    assert [word for word in words if len(word) > 2 and word.lower() in text] == []


async def test_what_failed_is_kept_too_and_who_answered_instead() -> None:
    first, second = openai_app(MODELS[:1]), openai_app(MODELS[:1])
    async with serving(first) as one, serving(second) as two, router_of(one, two) as router:
        first.state.fake.fault = "error"
        await ask(router)
        second.state.fake.fault = "error"
        with pytest.raises(QueryFailedError):
            await ask(router)
    answered, failed = kept()
    assert (answered.options[answered.chosen].at, answered.outcome.attempts) == ("s1", 2)
    assert (failed.chosen, failed.outcome.error, failed.outcome.level) == (-1, "query_failed", 4)


async def test_one_that_was_left_is_kept() -> None:
    app = openai_app(MODELS)
    async with serving(app) as url, router_of(url) as router:
        async with aclosing(router.route(QUESTION)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
    assert [d.outcome.error for d in kept()] == ["cancelled"]


async def test_an_exact_model_is_a_decision_only_where_two_servers_have_it() -> None:
    exact = ChatRequest((message("user", "Hi"),), model=MODELS[0])
    async with serving(openai_app(MODELS)) as one, serving(openai_app(MODELS[:1])) as two:
        async with router_of(one) as router:
            await ask(router, exact)
        assert kept() == []
        async with router_of(one, two) as router:
            used = await ask(router, exact)
            with pytest.raises(UsageError, match="an exact model was asked for"):
                await router.feedback(used, good=True)
    assert [(d.policy, d.category, len(d.options)) for d in kept()] == [("exact", "", 2)]


async def test_it_can_be_switched_off() -> None:
    async with serving(openai_app(MODELS)) as url, router_of(url, routing={"log_decisions": False}) as router:
        used = await ask(router)
        with pytest.raises(UsageError, match="decisions are not kept"):
            await router.feedback(used, good=True)
    assert files_of(decisions_path(data_dir())) == []


async def test_a_large_fleet_makes_no_large_line() -> None:
    async with serving(openai_app(tuple(f"made-up-{n}b" for n in range(1, 60)))) as url, router_of(url) as router:
        await ask(router)
    (found,) = kept()
    assert (len(found.options), found.more) == (journal.MAX_OPTIONS, 59 - journal.MAX_OPTIONS)


async def test_no_file_is_written_while_a_request_runs_and_a_task_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SAVE_EVERY", 3600.0)
    async with serving(openai_app(MODELS)) as url, router_of(url, watch=True) as router:
        await ask(router)
        assert files_of(decisions_path(data_dir())) == []
        router.journal.full.set()  # as when many are collected
        async with asyncio.timeout(30):
            while not kept():
                await asyncio.sleep(0.01)
        await ask(router)
    assert len(kept()) == 2, "the rest is saved when it is closed"


async def test_feedback_moves_the_score_of_that_model_at_that_kind_of_work() -> None:
    async with serving(openai_app(MODELS)) as url, router_of(url) as router:

        def scores(category: TaskCategory) -> dict[str, float]:
            return {c.model.id: c.scores[category] for c in router.pool}

        before, others = scores(TaskCategory.CODING), scores(TaskCategory.DOCUMENTATION)
        used = await ask(router)
        (model,) = {d.options[d.chosen].model for d in [router_decision(router, used)]}
        voted = await router.feedback(used, good=False, note="it does not compile")
        assert (voted.category, voted.votes.bad) == ("coding", 1.0)
        after = scores(TaskCategory.CODING)
        assert after == {**before, model: pytest.approx(before[model] - 10 / 21)}
        assert scores(TaskCategory.DOCUMENTATION) == others
        reasons = {r.candidate.model.id: r.reason for r in (await router.explain(QUESTION)).selection.ranked}
        assert "feedback -0.5 (0 good, 1 bad)" in reasons[model]
        assert [m for m, reason in reasons.items() if "feedback" in reason] == [model]
    (event,) = audited("feedback")
    assert event["principal"] == "local"
    assert event["service"] == f"bad: {voted.model}, coding, request {used}"


def router_decision(router: Router, used: str) -> Decision:
    router.journal.save()
    return next(d for d in kept() if d.id == used)


async def test_enough_of_it_moves_the_choice_for_what_is_asked_anew() -> None:
    near = ("made-up-7b", "made-up-8b")  # estimated alike, but for a point or two
    async with serving(openai_app(near)) as url, router_of(url, routing={"policy": "best"}) as router:
        anew = ChatRequest((message("user", "Write an interpreter"),))
        first = (await router.explain(anew)).selection.ranked[0].candidate.model.id
        for _ in range(40):
            used = await ask(router)
            assert router_decision(router, used).options[0].model == first, "a conversation stays where it is"
            await router.feedback(used, good=False)
        assert (await router.explain(anew)).selection.ranked[0].candidate.model.id != first


async def test_nobody_judges_what_another_has_asked() -> None:
    ann, bob = Principal("ann"), Principal("bob")
    async with serving(openai_app(MODELS)) as url, router_of(url) as router:
        used = await ask(router, who=ann)
        for who, what in ((bob, used), (Principal(), used), (ann, "0" * 32), (ann, "../../etc"), (ann, "\ud800")):
            with pytest.raises(UsageError, match="no request of yours"):
                await router.feedback(what, who, good=True)
        assert router.journal.votes.given == {}
        await router.feedback(used, ann, good=True)
        assert [g.who for g in router.journal.votes.given.values()] == ["ann"]


async def test_a_vote_that_cannot_be_written_down_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(openai_app(MODELS)) as url, router_of(url) as router:
        used = await ask(router)

        def refuse(*_: object, **__: object) -> None:
            raise AuditError("the audit log cannot be written")

        monkeypatch.setattr(router.journal, "_note", refuse)
        with pytest.raises(AuditError):
            await router.feedback(used, good=True)
        assert router.journal.votes.given == {}


async def test_a_router_that_stays_open_follows_what_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SAVE_EVERY", 0.01)
    async with serving(openai_app(MODELS)) as url, router_of(url, watch=True) as router:
        before = {c.model.id: c.scores[TaskCategory.CODING] for c in router.pool}
        name = router.pool[0].canonical or router.pool[0].model.id
        Feedback(feedback_path(data_dir())).vote("0" * 32, name, "coding", "local", good=True)
        async with asyncio.timeout(30):
            while router.pool[0].scores[TaskCategory.CODING] == before[router.pool[0].model.id]:
                await asyncio.sleep(0.01)
        assert router.pool[0].scores[TaskCategory.CODING] == pytest.approx(before[router.pool[0].model.id] + 10 / 21)


@pytest.mark.parametrize("name", ["learned.json", "decisions.jsonl", "feedback.json"])
@pytest.mark.parametrize("body", [b"{", b"\xff" * 100, b"[" * 100_000, b'{"votes": {"m": {"coding": {"good": -1}}}}\n'])
async def test_damaged_statistics_stop_no_request(name: str, body: bytes) -> None:
    data_dir().mkdir(parents=True)
    (data_dir() / name).write_bytes(body)
    async with serving(openai_app(MODELS)) as url, router_of(url) as router:
        used = await ask(router)
        voted = await router.feedback(used, good=True)
    assert voted.votes == Votes(1.0, 0.0, voted.votes.at)
    assert used in [d.id for d in kept()]


async def test_the_library_takes_feedback() -> None:
    async with serving(openai_app(MODELS)) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}}
        async with LocalLLMRouter(None, config) as router:
            result = await router.execute(f"Write {SECRET}")
            assert result.route is not None
            await router.feedback(result.route.request_id, good=True, note="neat")
    (given,) = Feedback(feedback_path(data_dir())).given.values()
    assert (given.good, given.note, given.category) == (True, "neat", "coding")


def make_key(name: str) -> str:
    path = keys.keys_path(data_dir())
    with keys.changing(path) as known:
        changed, token = keys.add(known, name, Limits(), 0.0)
        keys.write_keys(path, changed)
    return token


async def test_the_gateway_takes_feedback_of_whoever_asked() -> None:
    ann, bob = make_key("ann"), make_key("bob")
    body = {"model": "auto", "messages": [{"role": "user", "content": f"Write {SECRET}"}]}
    async with serving(openai_app(MODELS)) as upstream, router_of(upstream) as router:
        app = create_app(router, door=Door(Tokenring(Keyring(keys.keys_path(data_dir())))))
        async with running(app) as (_, url), aiohttp.ClientSession() as session:

            async def post(path: str, token: str, sent: object) -> tuple[int, dict[str, object], str]:
                async with session.post(url + path, json=sent, headers={"x-api-key": token}) as reply:
                    return reply.status, await reply.json(), reply.headers.get("x-turnout-request-id", "")

            _, _, used = await post("/v1/chat/completions", ann, body)
            status, answer, _ = await post("/v1/feedback", ann, {"request_id": used, "verdict": "good", "note": "neat"})
            assert status == 200
            assert answer == {
                "request_id": used,
                "model": answer["model"],
                "category": "coding",
                "good": 1.0,
                "bad": 0.0,
                "change": 0.476,
            }
            wrong: Sequence[tuple[str, object]] = (
                (bob, {"request_id": used, "verdict": "bad"}),
                (ann, {"request_id": used, "verdict": "meh"}),
                (ann, {"request_id": 5, "verdict": "bad"}),
                (ann, {"verdict": "bad"}),
                (ann, []),
            )
            for token, sent in wrong:
                status, answer, _ = await post("/v1/feedback", token, sent)
                assert status == 400, answer
            status, answer, _ = await post("/v1/feedback", "sk-nobody", {"request_id": used, "verdict": "bad"})
            assert status == 401
    assert [e["principal"] for e in audited("feedback")] == ["ann"]


async def test_what_the_caller_prefers_is_in_the_record() -> None:
    tools = (Tool("ls", "lists files"),)
    request = ChatRequest(QUESTION.messages, tools=tools, agent="aider")
    async with serving(openai_app(MODELS)) as url:
        async with router_of(url, agents={"aider": {"default_model_preference": "gemma"}}) as router:
            await ask(router, request)
    (found,) = kept()
    assert (found.needs, found.prefer) == (("tools",), "gemma")
    assert {o.model: o.bonus for o in found.options} == {"gemma2:9b": 10.0, "llama3.1:8b": 0.0, "qwen2.5-coder:7b": 0.0}
