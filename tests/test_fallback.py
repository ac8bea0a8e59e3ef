"""Every class of error, at every place of the plan, for every way an answer travels (SPEC FB-1 to FB-3).

``python -m tests.test_fallback > docs/fallback.md`` makes the page anew. Limits and waits are those of a test, so that
a row takes milliseconds; what is waited for, and for which limit, is on the page, how long is not.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import aiohttp
import msgspec
import pytest

from tests.fakes.liar import CHUNKED, DONE, event
from tests.fakes.scripted import (
    ANSWER,
    FINISH,
    Asked,
    Fault,
    Scripted,
    after_words,
    chunk,
    die_after_headers,
    drip,
    error_under_200,
    good,
    hang,
    hang_up,
    refusing,
    report_error,
    saying,
    scripted,
)
from turnout.api import collect, load_any
from turnout.build import open_router
from turnout.errors import (
    BackendError,
    EndpointBusyError,
    EndpointLoadingError,
    KeyRefusedError,
    PhaseTimeoutError,
    QueryFailedError,
    StreamBrokenError,
    TurnoutError,
)
from turnout.gateway.app import create_app, running
from turnout.gateway.refusal import cause_of
from turnout.router import Router
from turnout.routing import fallback
from turnout.types import (
    AttemptRecord,
    ChatRequest,
    Event,
    ExecutionResult,
    FallbackLevel,
    Notice,
    RawChunk,
    Started,
    TextDelta,
    message,
)
from turnout.wire import openai_chat

BIG, OTHER, SMALL = "qwen2.5-coder-32b-instruct", "llama-3.1-70b-instruct", "qwen2.5-0.5b-instruct"
TOLD = 0.02  # seconds that a busy server asks for
REFUSED, SWALLOWED = "refused", "swallowed"  # done to the server before it is asked

NO_KEY = refusing(401, "Invalid API key")
OVERFLOW = refusing(
    400, "exceeds the available context size", "exceed_context_size_error", n_prompt_tokens=3000, n_ctx=1500
)
FAULTS: Mapping[str, Fault | str] = {
    "nothing listens": REFUSED,
    "connections are not accepted": SWALLOWED,
    "hangs up before it answers": hang_up,
    "dies after its headers": die_after_headers,
    "is loading its model": refusing(503, "Loading model", "unavailable_error"),
    "is busy, with Retry-After": refusing(503, "no free slot", headers=f"Retry-After: {TOLD}\r\n"),
    "is busy for minutes": refusing(429, "no free slot", headers="Retry-After: 240\r\n"),
    "is busy, for how long it does not say": refusing(503, "no free slot"),
    "refuses the key": NO_KEY,
    "does not have the model": refusing(404, "model not found"),
    "overflow, with numbers": OVERFLOW,
    "overflow, without numbers": refusing(400, "the prompt exceeds the context window"),
    "calls the request invalid": refusing(422, "top_k must be positive"),
    "fails with a 500": refusing(500, "CUDA error"),
    "a page under 200": saying(b"<html>app</html>", "text/html"),
    "bytes that are nothing": saying(b"\x00\xffnot json\n\n", "text/event-stream"),
    "an empty 200": saying(b"", "text/event-stream"),
    "JSON to a stream": saying(b'{"choices":[{"message":{"content":"hi"}}]}', "application/json"),
    "an error under 200": error_under_200,
    "no first byte": hang,
    "no first byte, and the total is shorter": hang,
    "silence after two words": after_words(hang),
    "words without end": after_words(drip),
    "the connection is cut after two words": after_words(hang_up),
    "an error under 200 after two words": after_words(report_error),
}
LIMITS: Mapping[str, Mapping[str, int]] = {
    "connections are not accepted": {"timeout": 150},
    "no first byte": {"first_byte_timeout": 150},
    "no first byte, and the total is shorter": {"first_byte_timeout": 1000, "total_timeout": 150},
    "silence after two words": {"timeout": 150},
    "words without end": {"total_timeout": 400},
    "is loading its model": {"first_byte_timeout": 500},
    "all together": {"first_byte_timeout": 600_000, "total_timeout": 300},
}


@dataclass(frozen=True)
class Place:
    """Where the fault is: what the faulty server does, question by question, and who else there is."""

    title: str
    script: str  # of F for the fault, O for an overflow, G for a good answer
    models: tuple[str, ...] = (BIG,)  # one server each, the first is the faulty one but for level 3
    long: bool = False
    faulty: int = 0
    also: tuple[str, ...] = ()  # models that the faulty server has as well


PLACES: Mapping[str, Place] = {
    "once": Place("the only server, once: the next question there would be answered", "FG"),
    "alone": Place("the only server, always", "F"),
    "primary": Place("the primary, always; another server has a fallback model", "F", (BIG, OTHER)),
    "both": Place("the only server, which has a fallback model as well, always", "F", also=(OTHER,)),
    "reduced": Place(
        "at level 2: the only server refuses the prompt as too long, then it always does this", "OF", long=True
    ),
    "smallest": Place(
        "at the smallest model (level 3): the server before it refuses the key", "F", (BIG, SMALL), long=True, faulty=1
    ),
    "before": Place(
        "the primary, always; only the smallest model is left, which has to compact", "F", (BIG, SMALL), long=True
    ),
}
WAYS = ("events", "raw stream", "raw whole")


@dataclass(frozen=True)
class Seen:
    """What came of one question."""

    attempts: tuple[AttemptRecord, ...]
    level: FallbackLevel
    text: str
    notices: tuple[Notice, ...]
    error: TurnoutError | None
    audited: list[dict[str, object]]
    circuit: str
    asked: tuple[int, ...]

    @property
    def failed(self) -> list[BackendError]:
        return [a.error for a in self.attempts if a.error is not None]


def request_of(way: str, *, long: bool) -> ChatRequest:
    turns = [message("user" if n % 2 == 0 else "assistant", f"Turn {n}. " + "word " * 80) for n in range(30 * long)]
    messages = (*turns, message("user", "Add two numbers."))
    if way == "events":
        return ChatRequest(messages, model="coding", max_tokens=100)
    rows = [{"role": m.role, "content": m.text} for m in messages]
    body = {"model": "coding", "messages": rows, "stream": way == "raw stream", "max_tokens": 100}
    return openai_chat.parse_request(json.dumps(body).encode())


def config_of(servers: list[Scripted], place: Place, fault: str, audit: Path) -> Mapping[str, object]:
    names = ("alpha", "beta")
    custom: list[dict[str, object]] = [
        {"name": name, "endpoint": server.url, "priority": n}
        for n, (name, server) in enumerate(zip(names, servers, strict=False))
    ]
    custom[place.faulty] |= LIMITS.get(fault, {})
    lists = {"primary_models": [BIG], "fallback_models": [OTHER]}
    return {
        "custom_endpoints": custom,
        "discovery": {"enabled": False},
        "task_routing": {"coding": lists},
        "context": {"summary_timeout": 0},
        "security": {"audit_log_path": str(audit)},
    }


async def play(fault: str, where: str, way: str, audit: Path) -> Seen:
    """Ask once."""
    place, what = PLACES[where], FAULTS[fault]
    step: dict[str, Fault] = {"F": good if isinstance(what, str) else what, "O": OVERFLOW, "G": good}
    beside = NO_KEY if place.faulty else good
    servers = []
    for number, model in enumerate(place.models):
        faulty = number == place.faulty
        script = [step[letter] for letter in place.script] if faulty else [beside]
        window = 2048 if model == SMALL else 8192
        servers.append(Scripted((model, *(place.also if faulty else ())), window, script))
    async with scripted(*servers), open_router(load_any(config_of(servers, place, fault, audit))) as router:
        if what == REFUSED:
            await servers[place.faulty].stop()
        elif what == SWALLOWED:
            await servers[place.faulty].swallow()
        request = request_of(way, long=place.long or fault.startswith("overflow"))
        return await ask(router, request, servers, place.faulty, audit)


async def ask(router: Router, request: ChatRequest, servers: list[Scripted], faulty: int, audit: Path) -> Seen:
    result, error, events = ExecutionResult("", FallbackLevel.FAILED, "", "", ()), None, list[Event]()
    try:
        result = await collect(kept(router.route(request), events, servers[faulty].heard))
    except TurnoutError as caught:
        error = caught
    end = json.loads(audit.read_text().splitlines()[-1])
    assert end["phase"] == "end"
    routes = [e.route for e in events if isinstance(e, Started)]
    attempts = error.attempts if isinstance(error, QueryFailedError) else result.attempts
    if isinstance(error, StreamBrokenError):
        attempts = error.attempts
    record = router.fleet.book.record(
        next(s.endpoint for s in router.catalog.endpoints if s.endpoint.url == servers[faulty].url)
    )
    return Seen(
        attempts=attempts,
        level=routes[-1].level if routes else FallbackLevel.FAILED,
        text=said(events),
        notices=tuple(e for e in events if isinstance(e, Notice)),
        error=error,
        audited=end["attempts"],
        circuit="opens" if record.open else f"{record.failures} failed" if record.failures else "",
        asked=tuple(len(server.asked) for server in servers),
    )


async def kept(events: AsyncIterator[Event], into: list[Event], heard: asyncio.Event) -> AsyncIterator[Event]:
    async with aclosing(events) as source:  # type: ignore[type-var]
        async for event in source:
            into.append(event)
            if isinstance(event, TextDelta | RawChunk):
                heard.set()
            yield event


def said(events: list[Event]) -> str:
    """The answer's text, however it came."""
    raw = b"".join(e.data for e in events if isinstance(e, RawChunk))
    if raw.startswith(b"{"):
        return str(msgspec.json.decode(raw)["choices"][0]["message"]["content"])
    rows = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    deltas = [row["choices"][0]["delta"].get("content", "") for row in rows if row.get("choices")]
    return "".join(deltas) + "".join(e.text for e in events if isinstance(e, TextDelta))


@contextmanager
def quick() -> Iterator[None]:
    """Waits of milliseconds."""
    with ExitStack() as stack:
        for name, value in {
            "FIRST_BACKOFF": 0.004,
            "LOADING_WAIT": 0.02,
            "LONGEST_LOADING_WAIT": 0.1,
            "LONGEST_TOLD_WAIT": 1.0,
        }.items():
            stack.enter_context(patch.object(fallback, name, value))
        yield


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "data"))
    with quick():
        yield


# The page.

HEAD = """\
# What an error does

Made by `python -m tests.test_fallback`; tests compare the two. Every class of error is put at every place of the plan,
by a server that really does it, and asked for in the ways an answer travels: as *events*, and as the client's own
bytes, *streamed* or *whole*, where that makes a difference. Limits and waits are those of a test (a first byte within
150 ms, a Retry-After of 20 ms): how long a row takes is not on the page, but what for.

*Attempts*: level, server, what came, how often; the test checks that the audit log names each with its error and its
duration. *The client sees*: what the gateway answers; the command line adds every attempt. `alpha` has a window of 8192
tokens, as has `beta` where it has the fallback model; as the smallest model it has 2048. *Circuit*: of the faulty
server; three failed answers in a row open it.

`model_mismatch` needs a lock file (docs/security.md) and is not on the page: before any output the answer is dropped,
that model is not asked again, every other candidate is, and the server's circuit takes no notice.
"""


def cases(where: str) -> list[tuple[str, tuple[str, ...]]]:
    """The faults that can be at a place, with the ways that differ there."""
    place, found = PLACES[where], []
    for fault, what in FAULTS.items():
        if isinstance(what, str) and len(place.script) > 1:
            continue  # done to the server once and for all, before it is asked
        ways = WAYS if where in ("alone", "primary") else WAYS[1:2]
        found.append((fault, tuple(way for way in ways if fault != "JSON to a stream" or way != "raw whole")))
    return found


def row(fault: str, ways: tuple[str, ...], seen: Seen, all_ways: tuple[str, ...]) -> str:
    way = "" if ways == all_ways else f" ({', '.join(ways)})"
    level = (
        f"{int(seen.level)}"
        if seen.error is None
        else "4, failed"
        if not seen.text
        else f"{int(seen.level)}, broke off"
    )
    cells = (fault + way, "; ".join(tries(seen)), level, client_sees(seen), waits(seen), seen.circuit or "-")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\ufffd", "?") for cell in cells) + " |"


def tries(seen: Seen) -> list[str]:
    """Each kind of attempt where it first came, with how often it came."""
    found = Counter(f"{int(a.level)} {a.service}: {a.error.code if a.error else 'answers'}" for a in seen.attempts)
    return [f"{what} ({count} times)" if count > 1 else what for what, count in found.items()]


def client_sees(seen: Seen) -> str:
    if seen.error is None:
        return "the answer"
    status, body = openai_chat.render_error(cause_of(seen.error))
    told = msgspec.json.decode(body)["error"]
    if isinstance(seen.error, StreamBrokenError):
        return f"the words that came, then `{told['code']}`: {told['message']}"
    return f"{status} `{told['code']}`: {told['message']}"


def waits(seen: Seen) -> str:
    """What took time, in order, each once."""
    found: list[str] = []
    before: dict[tuple[str, str], BackendError | None] = {}
    for attempt in seen.attempts:
        last = before.get((attempt.model, attempt.service))
        if last is not None and last.code != "context_length_exceeded":
            told = isinstance(last, EndpointLoadingError) and last.retry_after
            loads = isinstance(last, EndpointLoadingError) and not isinstance(last, EndpointBusyError)
            found.append("waits for Retry-After" if told else "waits while it loads" if loads else "backs off")
        late = (
            attempt.error if isinstance(attempt.error, PhaseTimeoutError) else attempt.error and attempt.error.__cause__
        )
        if isinstance(late, PhaseTimeoutError):
            found.append(f"the {late.phase} limit passes")
        before[attempt.model, attempt.service] = attempt.error
    return ", ".join(dict.fromkeys(found)) or "at once"


async def rows(fault: str, where: str, folder: Path) -> list[str]:
    """One fault at one place: a row, or one for each way that differs."""
    ways = dict(cases(where))[fault]
    found: dict[str, tuple[Seen, list[str]]] = {}
    for way in ways:
        seen = await play(fault, where, way, folder / f"{way}.log")
        must_hold(seen, where, way)
        found.setdefault(row(fault, (), seen, ()), (seen, []))[1].append(way)
    return [row(fault, tuple(same), seen, ways) for seen, same in found.values()]


def page(found: Mapping[str, list[str]]) -> str:
    """docs/fallback.md from the rows of each place."""
    table = "| fault | attempts | level | the client sees | in time | circuit |\n|---|---|---|---|---|---|\n"
    parts = [f"\n## {PLACES[where].title[0].upper()}{PLACES[where].title[1:]}\n\n{table}" for where in found]
    return HEAD + "".join(
        part + "".join(f"{line}\n" for line in found[where]) for part, where in zip(parts, found, strict=True)
    )


def committed() -> str:
    return (Path(__file__).parents[1] / "docs" / "fallback.md").read_text("utf-8")


# What holds in every row.


def must_hold(seen: Seen, where: str, way: str) -> None:
    every = [(int(a.level), a.model, a.service, a.error.code if a.error else None) for a in seen.attempts]
    assert [(a["level"], a["model"], a["service"], a["error"]) for a in seen.audited] == every, (
        "the audit names every attempt"
    )
    assert all(a["ms"] >= 0 for a in seen.audited)  # type: ignore[operator]
    assert all(error is not None for *_, error in every[:-1]), "nothing is asked after an answer"
    assert len(set(seen.notices)) == len(seen.notices), "no notice is given twice"
    if any(a.level is FallbackLevel.REDUCED_CONTEXT for a in seen.attempts):
        assert any(error.code == "context_length_exceeded" for error in seen.failed), (
            "only an overflow leads to level 2"
        )
    for error in seen.failed:
        assert error.hint, "what to do next"
    if seen.error is None:
        assert seen.text in (ANSWER, "hi")
        told = " ".join(notice.text for notice in seen.notices)
        assert all(error.message.partition(": ")[2] in told for error in seen.failed)
        return
    assert seen.attempts[-1].error is not None
    if isinstance(seen.error, QueryFailedError):
        assert seen.text == ""
        assert all(error.message.rpartition(": ")[2] in seen.error.message for error in seen.failed)
        return
    assert isinstance(seen.error, StreamBrokenError)
    assert seen.text.startswith("def add(a, b):")
    in_events = way == "events" or where in ("reduced", "smallest")
    assert seen.error.received == (seen.text if in_events else ""), "what was received; raw bytes the client has"
    assert [a.error.code for a in seen.attempts if a.error][-1] == "stream_broken"


@pytest.mark.parametrize(("where", "fault"), [(where, fault) for where in PLACES for fault, _ in cases(where)])
async def test_an_error_does_what_the_page_says(where: str, fault: str, tmp_path: Path) -> None:
    section = committed().partition(page({where: []}).partition("\n## ")[2])[2].partition("\n## ")[0]
    known = [line for line in section.splitlines() if line.removeprefix("| ").startswith((f"{fault} |", f"{fault} ("))]
    assert await rows(fault, where, tmp_path) == known, "run `python -m tests.test_fallback > docs/fallback.md`"


def test_the_page_has_these_places_and_faults_and_no_others() -> None:
    lines = committed().split("\n| ")
    assert committed().startswith(HEAD)
    named = [line.partition(" |")[0].partition(" (")[0] for line in lines[1:] if not line.startswith("fault |")]
    assert list(dict.fromkeys(named)) == list(dict.fromkeys(f for where in ("once", "alone") for f, _ in cases(where)))
    assert [part.partition("\n")[0].lower() for part in committed().split("\n## ")[1:]] == [
        place.title.lower() for place in PLACES.values()
    ]


# What the page cannot show.


async def test_a_busy_server_is_waited_for_as_long_as_it_says_and_no_shorter(tmp_path: Path) -> None:
    seen = await play("is busy, with Retry-After", "alone", "events", tmp_path / "a.log")
    assert [a.waited >= TOLD for a in seen.attempts] == [False, True, True, True]


async def test_the_attempts_of_a_request_take_no_longer_together_than_the_longest_total(tmp_path: Path) -> None:
    """A load is awaited for as long as a first byte would be: here ten minutes, were it not for the total."""
    server = Scripted((BIG,), script=[refusing(503, "Loading model", "unavailable_error")])
    async with scripted(server):
        config = config_of([server], PLACES["alone"], "all together", tmp_path / "a")
        async with open_router(load_any(config)) as router, asyncio.timeout(20):
            with pytest.raises(QueryFailedError) as caught:
                await collect(router.route(request_of("events", long=False)))
    assert len(caught.value.attempts) > 2
    assert sum(a.waited for a in caught.value.attempts) <= 0.3


async def test_a_place_in_the_queue_is_waited_for_no_longer_than_the_total(tmp_path: Path) -> None:
    server = Scripted((BIG,), script=[])
    async with scripted(server):
        config = config_of([server], PLACES["alone"], "all together", tmp_path / "a")
        async with open_router(load_any(config)) as router, asyncio.timeout(20):
            (status,) = router.catalog.endpoints
            line = router._placement._admission
            async with line.admitted(status.endpoint.url, BIG, 1, name="alpha"):
                router._placement._limit = lambda _: 1  # type: ignore[method-assign]
                with pytest.raises(QueryFailedError, match=r"was busy for 0\.[123]\d* s") as caught:
                    await collect(router.route(request_of("events", long=False)))
    assert [a.error.code if a.error else "" for a in caught.value.attempts] == ["busy"]


async def test_what_is_waited_for_one_model_has_passed_for_the_other_as_well(tmp_path: Path) -> None:
    seen = await play("is busy, with Retry-After", "both", "events", tmp_path / "a.log")
    assert len(seen.attempts) == 2 * 4
    assert sum(a.waited for a in seen.attempts) < 5 * TOLD, "both asked for three times as much, at the same time"


async def test_the_duration_of_the_answer_is_that_of_the_whole_answer(tmp_path: Path) -> None:
    async def slowly(asked: Asked) -> None:
        await asked.say(CHUNKED + chunk(event("word")))
        await asked.heard.wait()
        await asyncio.sleep(0.05)  # the duration is what is looked at
        await asked.say(chunk(FINISH + DONE) + chunk(b""))

    server = Scripted((BIG,), script=[slowly])
    async with (
        scripted(server),
        open_router(load_any(config_of([server], PLACES["alone"], "", tmp_path / "a"))) as router,
    ):
        seen = await ask(router, request_of("events", long=False), [server], 0, tmp_path / "a")
    assert seen.attempts[-1].seconds >= 0.05
    assert seen.audited[-1]["ms"] >= 50  # type: ignore[operator]


async def test_who_leaves_is_in_the_audit_log_with_the_server_that_was_asked(tmp_path: Path) -> None:
    came = asyncio.Event()

    async def hang_and_tell(asked: Asked) -> None:
        came.set()
        await hang(asked)

    servers = [Scripted((BIG,), script=[NO_KEY]), Scripted((OTHER,), script=[hang_and_tell])]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scripted(*servers))
        config = config_of(servers, PLACES["primary"], "", tmp_path / "a")
        router = await stack.enter_async_context(open_router(load_any(config)))
        asking = asyncio.ensure_future(collect(router.route(request_of("events", long=False))))
        await came.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    end = json.loads((tmp_path / "a").read_text().splitlines()[-1])
    assert (end["error"], [(a["service"], a["error"]) for a in end["attempts"]]) == (
        "cancelled",
        [("alpha", "key_refused"), ("beta", "cancelled")],
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_broken_answer_brings_a_client_what_had_come(stream: bool, tmp_path: Path) -> None:
    """Whole, where the answer was translated: its words are in the error, once."""
    server = Scripted((BIG,), script=[after_words(hang_up)])
    server.heard.set()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scripted(server))
        config = config_of([server], PLACES["alone"], "", tmp_path / "a")
        router = await stack.enter_async_context(open_router(load_any(config)))
        _, url = await stack.enter_async_context(running(create_app(router)))
        async with aiohttp.ClientSession() as session:
            body = {
                "model": "coding",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": "hi"}],
                "stream": stream,
            }
            async with session.post(f"{url}/v1/messages", json=body) as reply:
                text = await reply.text()
    assert reply.status == (200 if stream else 502)
    assert "stream_broken" in text
    if not stream:
        assert json.loads(text)["error"]["received"] == "def add(a, b):"
    assert text.count("def ") == 1
    assert len(server.asked) == 1


async def test_a_failed_plan_tells_a_client_what_else_was_tried(tmp_path: Path) -> None:
    seen = await play("fails with a 500", "smallest", "raw stream", tmp_path / "a")
    assert seen.error is not None
    told = cause_of(seen.error)
    assert (told.code, type(told)) == ("key_refused", KeyRefusedError)
    assert "also tried: beta failed with HTTP 500: CUDA error" in told.message


def test_every_class_of_error_is_on_the_page() -> None:
    def below(kind: type[BackendError]) -> set[str]:
        return {kind.code}.union(*map(below, kind.__subclasses__()))

    # The base, what stands in a record alone, and what tests/fleet/test_identity.py shows.
    never = {"backend", "cancelled", "model_mismatch"}
    assert {code for code in below(BackendError) - never if f": {code}" not in committed()} == set()


async def _page() -> str:
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder, quick():
        os.environ["TURNOUT_DATA_DIR"] = folder
        for where in PLACES:
            found[where] = []
            for number, (fault, _) in enumerate(cases(where)):
                place = Path(folder, where, str(number))
                place.mkdir(parents=True)
                found[where] += await rows(fault, where, place)
    return page(found)


if __name__ == "__main__":
    print(asyncio.run(_page()), end="")
