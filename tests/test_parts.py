"""The parts of the pipeline by themselves, and together with fakes where the real thing cannot be had."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import turnout
from tests.fakes.base import running
from tests.fakes.llm import openai_app
from turnout.api import LocalLLMRouter, build_system_prompt, collect, load_any, parse_file_context
from turnout.backends import BACKENDS, DEFAULT_URLS
from turnout.build import open_router
from turnout.code.enrich import build_enriched_query
from turnout.code.provider import CodeContext, Issue, Reference
from turnout.config import ContextConfig, RouterConfig, TaskRouting
from turnout.config_load import load_config_from_dict
from turnout.context.compaction import STUB_MARK, SUMMARY_MARK, fit
from turnout.context.tokens import get_token_counter
from turnout.embedded import ENGINE
from turnout.errors import (
    BackendError,
    ContextOverflowError,
    EndpointBusyError,
    EndpointDownError,
    EndpointLoadingError,
    KeyRefusedError,
    NoSuitableModelError,
    PhaseTimeoutError,
    QueryFailedError,
    RequestRefusedError,
    ServerFailedError,
    StreamBrokenError,
    UnknownModelError,
    UsageError,
)
from turnout.fleet.agents import detect_coding_agent, get_agent_specific_config
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.host import candidate_urls, detect_os
from turnout.guard.audit import open_audit
from turnout.guard.chain import verify
from turnout.guard.records import QueryEnd, QueryStart
from turnout.residency import found
from turnout.routing.capabilities import guess_window, load_table
from turnout.routing.classify import classify_task
from turnout.routing.fallback import Ranked, after_error, plan_attempts
from turnout.routing.select import Needs, candidates, nobody_has, select, select_model, unsuitable
from turnout.types import (
    Attempt,
    Candidate,
    ChatRequest,
    Endpoint,
    FallbackLevel,
    FileContext,
    Health,
    Message,
    Model,
    Position,
    TaskCategory,
    Text,
    ToolCall,
    ToolResult,
    message,
)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))


def catalog_of(*models: Model, **endpoint: object) -> Catalog:
    server = Endpoint("box", "openai", "http://127.0.0.1:1", **endpoint)  # type: ignore[arg-type]
    return Catalog((EndpointStatus(server, Health.ONLINE, "answers", 0.0, models=models),))


def chosen(catalog: Catalog, needs: Needs, config: RouterConfig | None = None) -> list[str]:
    table = load_table()
    selection = select(candidates(catalog, table), needs, config or RouterConfig(), table)
    return [ranked.candidate.model.id for ranked in selection.ranked]


def test_every_public_name_is_there() -> None:
    turnout.__dict__.pop("quick_route", None)
    for name in turnout.__all__:
        assert getattr(turnout, name) is not None
    assert set(turnout.__all__) <= set(dir(turnout))
    with pytest.raises(AttributeError):
        turnout.__getattr__("no_such_name")


def test_file_context_is_checked() -> None:
    context = parse_file_context({"file": "a.py", "position": {"line": 3, "character": 1}})
    assert context is not None
    assert context.position == Position(3, 1)
    for wrong in ({}, {"file": 5}, {"file": "a", "position": {"line": -1}}, {"file": "a", "position": "x"}):
        with pytest.raises(UsageError):
            parse_file_context(wrong)


def test_the_system_prompt_states_what_it_must() -> None:
    prompt = build_system_prompt(agent="aider", code_intelligence=True)
    for said in (
        "air-gapped",
        "Operating system",
        "architecture",
        "aider",
        "Code intelligence: on",
        "no external calls",
    ):
        assert said in prompt


async def test_code_context_reaches_the_model_at_the_end_of_the_users_turn(tmp_path: Path) -> None:
    workspace = tmp_path / "project"
    workspace.mkdir()
    (workspace / "shop.py").write_text("def total_price(cart):\n    return sum(cart)\n\nprint(total_price([1]))\n")
    (workspace / ".env").write_text("total_price=secret-value\n")
    app = openai_app()
    async with running(app) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}}
        async with LocalLLMRouter(workspace, config) as router:
            await router.route("What does `total_price` do?", {"file": "shop.py"})
    sent = app.state.fake.seen[0]["messages"][-1]
    assert sent["role"] == "user"
    assert sent["content"].startswith("What does `total_price` do?\n\n## ")
    assert "shop.py:1" in sent["content"]
    assert "secret-value" not in sent["content"]


def asking(file: str = "", line: int = 0, **more: object) -> ChatRequest:
    here = FileContext(file, Position(line - 1) if line else None) if file else None
    return ChatRequest((message("user", "Why does this loop end early?"),), file_context=here, **more)  # type: ignore[arg-type]


async def test_the_code_at_the_position_reaches_the_model_within_its_window(tmp_path: Path) -> None:
    rows = [f"    step_{n} = compute(step_{n - 1})" for n in range(400)]
    (tmp_path / "app.py").write_text("\n".join(("def main():", *rows, "")))
    app = openai_app(window=2048)
    workspace = str(tmp_path)
    async with running(app) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}}
        async with open_router(load_any(config)) as router:
            for request in (asking("app.py", 200, workspace=workspace), asking("app.py", 200, workspace=workspace)):
                result = await collect(router.route(request))
                assert result.level is FallbackLevel.PRIMARY
            exact = asking("app.py", 200, workspace=workspace, model=app.state.fake.models[0])
            await collect(router.route(exact))
            with pytest.raises(UsageError, match="app.py has 401 lines, there is no line 402"):
                await collect(router.route(asking("app.py", 402, workspace=workspace)))
    sent = [body["messages"][-1]["content"] for body in app.state.fake.seen]
    assert "> 200 |     step_198 = compute(step_197)\n" in sent[0]
    assert "(line 200 is marked)" in sent[0]
    assert len(sent[0]) < 2048
    assert sent == [sent[0]] * 3


@pytest.mark.parametrize(
    ("serena", "request_", "note"),
    [
        ({}, asking(), "none: there is no workspace"),
        ({}, asking(workspace="."), "text search: no name in the question, 0 files read"),
        ({}, asking(workspace=".", model="qwen2.5-coder-7b-instruct"), "none: an exact model was asked for, and no "),
        (
            {"priority": "on_demand"},
            ChatRequest((message("user", "What is the difference between TCP and UDP?"),), workspace="."),
            "none: the question does not need it",
        ),
        ({"priority": "on_demand"}, asking("a.py", workspace="."), "text search: no name in the question, 1 file read"),
        ({"priority": "off"}, asking("a.py", workspace="."), "none: it is switched off in the configuration"),
    ],
)
async def test_explain_says_what_was_looked_for_or_why_nothing_was(
    serena: dict[str, object], request_: ChatRequest, note: str, tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    request = replace(request_, workspace=str(tmp_path) if request_.workspace else "")
    async with running(openai_app()) as url:
        config = {"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}}
        async with open_router(load_any(config | {"serena": serena})) as router:
            explanation = await router.explain(request)
    assert explanation.context_note.startswith(note)


def test_the_enriched_query() -> None:
    places = tuple(Reference("a/b.py", n) for n in range(1, 15))
    issues = tuple(Issue(n, "wrong") for n in range(1, 9))
    text = build_enriched_query("Rename it", CodeContext("x", "int", places, issues))
    assert text.startswith("Rename it\n\n## Type Information\nint")
    assert "## References (14 found)\n- a/b.py:1\n" in text
    assert "- a/b.py:10" in text
    assert "- a/b.py:11" not in text
    assert "## Current Issues (8)\n- Line 1: wrong" in text
    assert "- Line 6" not in text
    assert build_enriched_query("q", CodeContext("x")) == "q"
    assert "hunter2hunter2" not in build_enriched_query("q", CodeContext("x", "PASSWORD = 'hunter2hunter2'"))


def test_a_guess_is_marked_as_one() -> None:
    assert guess_window("my-model-128k") == 131_072
    assert guess_window("qwen-something") == 131_072
    assert guess_window("codellama-x") == 100_000
    assert guess_window("whatever") == 8192
    (candidate,) = candidates(catalog_of(Model("whatever")), load_table())
    assert (candidate.window, candidate.window_source) == (8192, "guessed")


def test_where_we_run(tmp_path: Path) -> None:
    assert detect_os({}, tmp_path).container == ""
    (tmp_path / ".dockerenv").touch()
    docker = detect_os({}, tmp_path)
    assert docker.container == "docker"
    assert detect_os({"KUBERNETES_SERVICE_HOST": "x"}, tmp_path).container == "kubernetes"
    urls = candidate_urls("http://127.0.0.1:11434", docker)
    assert urls == tuple(f"http://{host}:11434" for host in ("127.0.0.1", "[::1]", "host.docker.internal"))
    assert candidate_urls("http://10.0.0.5:1", docker) == ("http://10.0.0.5:1",)


@pytest.mark.parametrize(
    ("query", "category", "confidence", "needs"),
    [
        ("Write a function to parse dates", "coding", 0.65, False),
        ("how should I structure the service", "reasoning", 0.5, False),
        ("Review this code for security problems", "analysis", 0.95, True),
        ("write a readme", "documentation", 0.9, False),
        ("hello", "coding", 0.5, False),
        ("where is the parser", "coding", 0.5, True),
        ("refactor this, debug the bug, fix the test, implement code", "coding", 1.0, False),
    ],
)
def test_the_owners_rules(query: str, category: str, confidence: float, needs: bool) -> None:
    result = classify_task(query, "rules")
    assert result.category == category
    assert result.confidence == pytest.approx(confidence)
    assert result.needs_code_context is needs
    assert result.evidence


def test_the_owners_lists_rule() -> None:
    routing = TaskRouting(primary_models=("deepseek-v3", "qwen2.5-coder-32b"), fallback_models=("phi-4",))
    config = RouterConfig(task_routing={TaskCategory.CODING: routing})
    models = [Model(i, window=32768) for i in ("phi4:14b", "llama3.3:70b", "qwen2.5-coder:32b", "qwen2.5-coder:3b")]
    needs = Needs(TaskCategory.CODING, "", 1000)
    order = chosen(catalog_of(*models), needs, config)
    assert order[:2] == ["qwen2.5-coder:32b", "phi4:14b"]
    assert set(order[2:]) == {"llama3.3:70b", "qwen2.5-coder:3b"}, "a model beyond the lists follows"
    small = [Model("qwen2.5-coder:32b", window=4096), Model("phi4:14b", window=16_384)]
    assert chosen(catalog_of(*small), needs, config) == ["phi4:14b"], "min_context is a filter"
    found = select(candidates(catalog_of(*small), load_table()), needs, config, load_table())
    assert found.ranked[0].reason.endswith("; min_context 8,192 rules out qwen2.5-coder:32b @ box")
    assert found.too_small[0].reason.endswith("; its window is below min_context 8,192")
    fits = select(candidates(catalog_of(*models), load_table()), needs, config, load_table())
    assert "min_context" not in fits.ranked[0].reason


def test_without_lists_the_best_score_wins() -> None:
    models = [Model(i, window=32768) for i in ("qwen2.5-coder:1.5b", "qwen2.5-coder:32b", "smollm2:135m")]
    assert chosen(catalog_of(*models), Needs(TaskCategory.CODING, "", 100))[0] == "qwen2.5-coder:32b"
    best = select_model(TaskCategory.CODING, catalog_of(*models), RouterConfig(), load_table())
    assert best is not None
    assert best.model.id == "qwen2.5-coder:32b"


def test_filters_come_before_the_rank() -> None:
    table = load_table()
    models = (
        Model("qwen2.5-coder:32b", window=2048),
        Model("llama3.1:8b", window=32768, capabilities=frozenset({"chat"})),
        Model("nomic-embed-text", window=32768),
        Model("mistral:7b", window=32768, capabilities=frozenset({"chat", "tools"})),
    )
    needs = Needs(TaskCategory.CODING, "", 8000, frozenset({"tools"}))
    selection = select(candidates(catalog_of(*models), table), needs, RouterConfig(), table)
    assert [r.candidate.model.id for r in selection.ranked] == ["mistral:7b"]
    assert [r.candidate.model.id for r in selection.too_small] == ["qwen2.5-coder:32b"]
    reasons = {c.model.id: reason for c, reason in selection.rejected}
    assert "tools" in reasons["llama3.1:8b"]
    assert "embeddings" in reasons["nomic-embed-text"]
    nothing = select(candidates(catalog_of(*models), table), replace(needs, tokens=10**6), RouterConfig(), table)
    plan = plan_attempts(nothing.ranked, nothing.too_small, nothing.smallest, 0)
    assert plan[0].level is FallbackLevel.REDUCED_CONTEXT


@pytest.mark.parametrize(
    ("asked", "capabilities", "says", "needed", "hint"),
    [
        ("gone:7b", {"tools"}, "no server has the model 'gone:7b'", set(), "there are: "),
        ("llama3.1:8b", {"tools"}, "llama3.1:8b @ box: lacks tools", {"tools"}, "ask for mistral:7b"),
        (
            "llama3.1:8b",
            {"vision"},
            "llama3.1:8b @ box: lacks vision",
            {"vision"},
            "`turnout models` shows what each model can do",
        ),
        ("nomic-embed-text", {"tools"}, "nomic-embed-text @ box: makes embeddings", {"chat"}, "ask for llama3.1:8b"),
        ("", {"vision"}, "no model fits the request: ", {"vision"}, "`turnout explain`"),
    ],
)
def test_why_nobody_can_serve_a_request(
    asked: str, capabilities: set[str], says: str, needed: set[str], hint: str
) -> None:
    table = load_table()
    models = (
        Model("llama3.1:8b", window=32768, capabilities=frozenset({"chat"})),
        Model("nomic-embed-text", window=32768),
        Model("mistral:7b", window=32768, capabilities=frozenset({"chat", "tools"})),
    )
    pool = candidates(catalog_of(*models), table)
    needs = Needs(None if asked else TaskCategory.CODING, asked, 100, frozenset(capabilities))
    selection = select(pool, needs, RouterConfig(), table)
    assert selection.ranked == selection.too_small == ()
    error = unsuitable(pool, needs, selection, table)
    assert says in error.message
    assert error.needed == needed
    assert error.hint.startswith(hint)


@pytest.mark.parametrize(("count", "end"), [(8, "h:7b"), (11, "h:7b and 3 more")])
def test_an_error_that_names_some_models_says_how_many_more_there_are_and_who_lists_all(count: int, end: str) -> None:
    table = load_table()
    chats = [Model(f"{letter}:7b", window=32768, capabilities=frozenset({"chat"})) for letter in "abcdefghijk"[:count]]
    pool = candidates(catalog_of(*chats, Model("nomic-embed-text", window=32768)), table)
    needs = Needs(None, "nomic-embed-text", 100)
    unfit = unsuitable(pool, needs, select(pool, needs, RouterConfig(), table), table)
    shown = "`turnout models` shows what each model can do"
    assert unfit.hint == f"ask for a:7b, b:7b, c:7b, d:7b, e:7b, f:7b, g:7b, {end}; {shown}"
    lists_all = "`turnout models`, or GET /v1/models, lists all"
    gone = nobody_has("gone:7b", pool[:count], ())
    assert gone.hint == f"there are: a:7b, b:7b, c:7b, d:7b, e:7b, f:7b, g:7b, {end}; {lists_all}"
    with pytest.raises(NoSuitableModelError) as unknown:
        found(pool[:count], "gone:7b", table)
    assert unknown.value.hint.endswith(f"g:7b@box, {end.replace('h:7b', 'h:7b@box')}; {lists_all}")


def test_a_model_nobody_knows_is_estimated_and_can_be_chosen() -> None:
    table = load_table()
    rating = table.rate(Model("our-own-model-70b-q4", window=32768))
    assert rating.source.startswith("estimate")
    models = [Model("our-own-model-70b", window=32768), Model("tinyllama", window=32768)]
    assert chosen(catalog_of(*models), Needs(TaskCategory.CODING, "", 100))[0] == "our-own-model-70b"


def test_tokens_are_estimated_per_family() -> None:
    text = (
        "A router looks at what you ask, and sends it to the model that is best at it. It reads `config.yaml` first.\n"
    )
    for name, ratio in (("qwen2.5:7b", 3.5), ("llama3.1", 3.8), ("other", 4.0)):
        assert get_token_counter(name).ratio == ratio
        assert len(text) / get_token_counter(name).count(text) == pytest.approx(ratio, rel=0.15)
    assert get_token_counter("qwen").count("汉字" * 50) >= 70
    assert get_token_counter("x").count("") == 0


TURNS = st.one_of(
    st.builds(lambda t: (message("user", t),), st.text(max_size=400)),
    st.builds(lambda t: (message("assistant", t),), st.text(max_size=800)),
    st.builds(
        lambda n, t: (
            Message("assistant", tuple(ToolCall(f"c{i}", "read", "{}") for i in range(n))),
            *(Message("tool", (ToolResult(f"c{i}", t * 40),)) for i in range(n)),
        ),
        st.integers(1, 3),
        st.text(min_size=1, max_size=80),
    ),
)
HISTORIES = st.lists(TURNS, max_size=25).map(
    lambda turns: (
        message("system", "You are local."),
        *(m for turn in turns for m in turn),
        message("user", "The last question"),
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES, st.integers(300, 3000))
def test_compaction_properties(history: tuple[Message, ...], window: int) -> None:
    counter, config = get_token_counter("other"), ContextConfig()
    try:
        fitted = fit(history, window=window, reserve=100, counter=counter, config=config)
    except ContextOverflowError as error:
        assert error.window == window
        assert error.prompt_tokens > window - 100
        return
    kept = fitted.messages
    assert counter.count_messages(kept) == fitted.tokens_after <= window - 100
    assert kept[0] == history[0]
    assert kept[-1] == history[-1]
    calls: set[str] = set()
    for m in kept:
        calls |= {c.call_id for c in m.tool_calls}
        assert {r.call_id for r in m.tool_results} <= calls, "a result without its call"
    again = fit(kept, window=window, reserve=100, counter=counter, config=config)
    assert again.messages == kept or again.tokens_after <= fitted.tokens_after
    assert fit(history, window=window, reserve=100, counter=counter, config=config) == fitted
    if not fitted.changed:
        assert kept == history


def test_compaction_marks_what_it_did() -> None:
    history = [message("system", "s")]
    for n in range(30):
        history += [
            message("user", f"Please add feature {n}. More words follow here."),
            Message("assistant", (Text("I created it."), ToolCall(f"c{n}", "read_file", "{}"))),
            Message("tool", (ToolResult(f"c{n}", "line " * 700),)),
        ]
    history.append(message("user", "And now?"))
    counter, config = get_token_counter("x"), ContextConfig()
    gentle = fit(history, window=20_000, reserve=500, counter=counter, config=config)
    assert gentle.steps == ("old tool outputs shortened",)
    stubs = [r.content for m in gentle.messages for r in m.tool_results if r.content.startswith(STUB_MARK)]
    assert stubs[0].startswith(f"{STUB_MARK}read_file] (was ")
    assert gentle.messages[-2].tool_results[0].content == "line " * 700, "the newest outputs stay"
    hard = fit(history, window=8000, reserve=500, counter=counter, config=config)
    summary = hard.messages[1].text.splitlines()
    assert summary[0] == SUMMARY_MARK
    assert 1 < len(summary) <= 11
    assert all(len(line) <= 102 for line in summary[1:])


def attempt_at(
    name: str, model: str = "m", level: FallbackLevel = FallbackLevel.PRIMARY, window: int = 4096
) -> Attempt:
    endpoint = Endpoint(name, "openai", f"http://127.0.0.1/{name}")
    return Attempt(level, Candidate(endpoint, Model(model), "", window, "known", {}))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyRefusedError("x"), ["b"]),
        (EndpointDownError("x"), ["b"]),
        (UnknownModelError("x"), ["a-other", "b"]),
        (RequestRefusedError("x"), ["a-other", "b"]),
        (EndpointBusyError("x", retry_after=2), ["a-other", "b", "a again"]),
        (EndpointLoadingError("x"), ["a-other", "b", "a again"]),
        (ServerFailedError("x"), ["a-other", "b", "a again"]),
        (ContextOverflowError("x", window=4096), ["b", "a reduced", "a-other reduced"]),
        (PhaseTimeoutError("x", phase="first byte"), ["b", "a-other"]),
        (StreamBrokenError("x"), ["b"]),
    ],
)
def test_what_an_error_does_to_the_plan(error: BackendError, expected: list[str]) -> None:
    failed = attempt_at("a")
    rest = (attempt_at("a", "other"), attempt_at("b", window=32_768))
    left = after_error(rest, failed, error, 0)

    def shown(attempt: Attempt) -> str:
        name = attempt.candidate.endpoint.name + ("-other" if attempt.candidate.model.id == "other" else "")
        if attempt.reduced:
            assert attempt.level is FallbackLevel.REDUCED_CONTEXT
            return f"{name} reduced"
        return f"{name} again" if attempt.tries else name

    assert [shown(a) for a in left] == expected
    if isinstance(error, EndpointBusyError):
        assert left[-1].wait == 2


def test_retries_end() -> None:
    plan: tuple[Attempt, ...] = plan_attempts(
        [Ranked(attempt_at("a").candidate, FallbackLevel.PRIMARY, "")], (), None, 0
    )
    tries = 0
    while plan:
        tries += 1
        plan = after_error(plan[1:], plan[0], ServerFailedError("x"), 0)
    assert tries == 1 + 3


async def test_a_failed_query_names_every_attempt() -> None:
    app = openai_app()
    app.state.fake.fault = "key"
    async with running(openai_app()) as good, running(app) as bad:
        config = {
            "custom_endpoints": [{"name": "bad", "endpoint": bad}, {"name": "good", "endpoint": good, "priority": 5}],
            "discovery": {"enabled": False},
        }
        app.state.fake.fault = ""
        async with open_router(load_any(config)) as router:
            app.state.fake.fault = "key"
            result = await collect(router.route(ChatRequest((message("user", "hi"),))))
            assert [(a.service, a.error.code if a.error else "") for a in result.attempts] == [
                ("bad", "key_refused"),
                ("good", ""),
            ]
            only = ChatRequest((message("user", "hi"),), model=f"{app.state.fake.models[0]}@bad")
            with pytest.raises(QueryFailedError) as caught:
                await collect(router.route(only))
    assert [a.service for a in caught.value.attempts] == ["bad"]


async def test_the_audit_names_each_attempt_once_and_as_it_ended(tmp_path: Path) -> None:
    app = openai_app()
    app.state.fake.fault = "drop"
    path = tmp_path / "a.log"
    async with running(app) as url:
        config = {
            "custom_endpoints": [{"name": "s", "endpoint": url}],
            "discovery": {"enabled": False},
            "security": {"audit_log_path": str(path)},
        }
        async with open_router(load_any(config)) as router:
            with pytest.raises(StreamBrokenError):
                await collect(router.route(ChatRequest((message("user", "hi"),))))
            app.state.fake.fault = ""
            await collect(router.route(ChatRequest((message("user", "hi"),))))
    ends = [r for r in map(json.loads, path.read_text().splitlines()) if r["phase"] == "end"]
    assert [[a["error"] for a in end["attempts"]] for end in ends] == [["stream_broken"], [None]]


def test_the_audit_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = open_audit(path, tmp_path / "key")
    second = open_audit(path, tmp_path / "key")
    for n in range(5):
        writer = log if n % 2 else second
        writer.start(QueryStart(f"r{n}", "", "local", "the secret query"))
        writer.end(QueryEnd(f"r{n}", "", "local", "the secret query", model="m", service="s", tokens_in=1))
    lines = path.read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["sequence"] for r in records] == list(range(1, 11))
    keys = {"timestamp", "event_type", "session_id", "model", "service", "query_hash", "tokens_in", "tokens_out"}
    assert keys | {"success", "error", "request_id", "principal", "previous_hash"} <= set(records[0])
    assert b"secret" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert verify(path).ok
    for broken in (lines[:3] + lines[4:], [*lines[:3], lines[3].replace(b'"m"', b'"x"'), *lines[4:]], lines[::-1]):
        path.write_bytes(b"\n".join(broken) + b"\n")
        assert not verify(path).ok


def test_who_is_calling() -> None:
    assert detect_coding_agent({"AI_AGENT": "claude-code_2-1-330_agent"}, []).name == "claude-code"
    assert detect_coding_agent({"AI_AGENT": "claude-code_2-1-330_agent"}, []).version == "2.1.330"
    assert detect_coding_agent({"CODEX_SESSION_ID": "x"}, []).name == "codex"
    assert detect_coding_agent({"AIDER_SESSION": "0.86.2"}, []).version == "0.86.2"
    assert detect_coding_agent({"AGENT": "1"}, []).type == "unknown"
    assert detect_coding_agent({"MCP_CLIENT": "thing"}, []).type == "mcp"
    assert detect_coding_agent({}, ["bash", "/usr/bin/aider"]).type == "detected"
    assert detect_coding_agent({"CURSOR_TRACE_ID": "x"}, []).name == ""
    assert get_agent_specific_config("aider").context_format == "openai"
    assert get_agent_specific_config("nobody").supports_streaming


# Some kinds of server are also programs that ask.
_AGENT_NAMES = ("embedded.py", "agents.py", "callers.py", "config_agents.py", "recipes.py")


def test_a_services_name_decides_nothing_outside_its_backend() -> None:
    source = Path(turnout.__file__).parent
    kinds = [kind for kind in DEFAULT_URLS if kind not in ("ollama", "jan")]
    found = [
        f"{path.relative_to(source)}:{number}"
        for path in source.rglob("*.py")
        if path.parent.name != "backends" and path.name not in _AGENT_NAMES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(f'"{kind}"' in line for kind in kinds)
    ]
    assert found == []
    assert len({backend.kind for backend in BACKENDS}) == len(BACKENDS)


def test_every_id_of_the_manifest_is_known() -> None:
    from tests.requirements import ROWS

    wanted = {"LIB": 5, "SVC": 7, "TASK": 3, "SEL": 5, "CTX": 5, "FB": 3, "CODE": 4, "CFG": 3, "SEC": 5, "AGENT": 2}
    wanted |= {"GW": 7, "WIN": 1, "PRICE": 3, "PROOF": 3, "UI": 5, "HA": 1}
    ids = {f"{group}-{n}" for group, count in wanted.items() for n in range(1, count + 1)}
    ids = (ids - {"CFG-3"}) | {"CFG-0"}
    assert {row[0] for row in ROWS} == ids
    assert all(isinstance(proof, str) is False or str(proof).startswith("deferred: ") for _, _, proof in ROWS)


def test_versions_agree() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == turnout.__version__
    assert project["optional-dependencies"]["embedded"] == [ENGINE]
    assert load_config_from_dict({}, kinds=DEFAULT_URLS).config == RouterConfig()
