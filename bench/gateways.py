"""What a gateway costs: Turnout with everything on, a bare proxy, LiteLLM and four Rust routers before the same stub.

    python bench/gateways.py [DIR] [--quick]

DIR is what ``sh bench/get_gateways.sh DIR`` filled; without it only the stub, the bare proxy and Turnout run. All of
them run at once where only loopback exists; each measure takes them in turn, five rounds, the median counts. CPU is
what the kernel accounts to all processes of a contender. A whole run writes bench/results/gateways-DATE.json, the
tables in docs/benchmarks.md and docs/gateways.svg, and takes about 12 minutes; ``--quick`` takes 2 (without DIR less
than 1), and prints.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import bodies
import contenders
import report
import uvloop
from contenders import CHAT, MESSAGES, ROOT, Contender, LeftOutError, Plan
from load import Amount, Answer, burst

PIECES, GAP_MS, FIRST_PIECES = 64, 10, 4
PACE, FIRST_PACE = f"chunks={PIECES} gap={GAP_MS}", f"chunks={FIRST_PIECES} gap=0"
LIBRARIES = ("aiohttp", "starlette", "uvicorn", "uvloop", "httptools", "msgspec")


@dataclass(frozen=True)
class Measure:
    """One kind of load.

    Attributes:
        key: its name in the file of results.
        in_flight: requests at the same time.
        amount: requests of a round.
        body: makes the body for a model's name.
        pieces: words of the model in each answer.
        streamed: its unit of work is a piece.
        translated: the body of the same question in the Anthropic format, for those that translate it.
        auto: Turnout is also asked for its virtual model, each connection a session.
    """

    key: str
    in_flight: int
    amount: Amount
    body: Callable[[str], bytes]
    pieces: int = 38
    streamed: bool = False
    translated: Callable[[str], bytes] | None = None
    auto: bool = False


MEASURES = (
    Measure("chat", 16, Amount(5000, 1000, 6), bodies.short, auto=True),
    Measure("single", 1, Amount(1000, 1000, 6), bodies.short, auto=True),
    Measure("agent", 16, Amount(1000, 1000, 6), bodies.agent, auto=True),
    Measure(
        "stream",
        16,
        Amount(96, 96, 6),
        lambda model: bodies.short(model, stream=True, pace=PACE),
        PIECES,
        streamed=True,
        translated=lambda model: bodies.short_anthropic(model, pace=PACE),
    ),
    Measure(
        "first",
        1,
        Amount(500, 100, 4),
        lambda model: bodies.short(model, stream=True, pace=FIRST_PACE),
        FIRST_PIECES,
        streamed=True,
        translated=lambda model: bodies.short_anthropic(model, pace=FIRST_PACE),
    ),
)


@dataclass(frozen=True)
class Subject:
    """A contender, asked in one of the ways that it can be."""

    name: str
    contender: Contender
    path: str
    body: bytes
    sessions: bool = False


@dataclass(frozen=True)
class Figures:
    """One round of one subject: seconds of wall clock, microseconds of CPU per request, milliseconds until the end and
    until the model's first word."""

    requests: int
    seconds: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float


class Run:
    """One run of all measures."""

    def __init__(self, found: list[Contender], *, quick: bool) -> None:
        self.found, self.quick = found, quick
        self.rounds = 3 if quick else 5
        self.sent: dict[str, int] = {}
        self.figures: dict[str, dict[str, list[Figures]]] = {}
        self.left_out: dict[str, str] = {}

    async def measure(self, measure: Measure) -> None:
        """All subjects in turn, another one first in each round."""
        warm = Amount(1000, measure.in_flight, 1)
        subjects = [each for each in self._subjects(measure) if await self._tried(each, measure, warm)]
        table = self.figures[measure.key] = {subject.name: [] for subject in subjects}
        for number in range(self.rounds):
            _say(f"{measure.key}, round {number + 1} of {self.rounds}")
            first = number % len(subjects)
            for subject in (*subjects[first:], *subjects[:first]):
                if subject.name in table and (figures := await self._tried(subject, measure)):
                    table[subject.name].append(figures)
                else:
                    table.pop(subject.name, None)

    def _subjects(self, measure: Measure) -> list[Subject]:
        subjects = []
        for contender in self.found:
            name, model = contender.plan.name, contender.plan.model
            subjects.append(Subject(name, contender, contender.plan.chat, measure.body(model)))
            if measure.auto and name == report.OURS:
                subjects.append(Subject(report.AUTO, contender, CHAT, measure.body("auto"), sessions=True))
            if measure.translated is not None and contender.plan.translates:
                body = measure.translated(model)
                subjects.append(Subject(name + report.TRANSLATED, contender, MESSAGES, body))
        return subjects

    async def _tried(self, subject: Subject, measure: Measure, amount: Amount | None = None) -> Figures | None:
        """A round, or None: it does not take such requests, and is left out of the measure.

        Raises:
            AssertionError: one of our own did not, so there is nothing to compare with.
            OSError: likewise.
        """
        try:
            return await self._round(subject, measure, amount or self._amount(measure))
        except (AssertionError, OSError) as error:
            if not subject.contender.plan.package:
                raise
            self.left_out[f"{subject.name}, {measure.key}"] = f"{type(error).__name__}: {error}"
            return None

    def _amount(self, measure: Measure) -> Amount:
        whole = measure.amount
        return Amount(whole.most // 2, 2 * measure.in_flight, 1) if self.quick else whole

    async def _round(self, subject: Subject, measure: Measure, amount: Amount) -> Figures:
        before, began = subject.contender.cpu_seconds(), time.perf_counter()
        answers = await self._ask(subject, measure, amount)
        seconds = time.perf_counter() - began
        used = subject.contender.cpu_seconds() - before
        took = sorted(answer.whole * 1000 for answer in answers)
        firsts = statistics.median(answer.first * 1000 for answer in answers)
        p99 = took[min(len(took) - 1, len(took) * 99 // 100)]
        figures = seconds, used / len(answers) * 1e6, statistics.median(took), p99, firsts
        return Figures(len(answers), *(round(each, 3) for each in figures))

    async def _ask(self, subject: Subject, measure: Measure, amount: Amount) -> list[Answer]:
        name = subject.contender.plan.name
        requests = [
            bodies.numbered(
                subject.contender.target(
                    subject.path, **({"x-session-id": f"{measure.key}-{each}"} if subject.sessions else {})
                ),
                subject.body,
                self.sent.get(name, 0),
            )
            for each in range(measure.in_flight)
        ]
        stagger = GAP_MS / 1000 / measure.in_flight if measure.pieces == PIECES else 0.0
        answers = await burst(subject.contender.port, requests, amount, measure.pieces, stagger)
        self.sent[name] = self.sent.get(name, 0) + len(answers)
        return answers


@asynccontextmanager
async def running(directory: Path | None, scratch: Path, left_out: dict[str, str]) -> AsyncIterator[list[Contender]]:
    """All contenders that can be started, the stub first."""
    found: list[Contender] = []
    try:
        upstream = await contenders.start(contenders.stub(port := contenders.free_port(), "", scratch), port, scratch)
        found.append(upstream)
        for make in (*contenders.OWN, *(contenders.OTHERS if directory else ())):
            port = contenders.free_port()
            plan = make(port, f"http://127.0.0.1:{upstream.port}", scratch)
            try:
                started = await contenders.start(_placed(plan, directory), port, scratch)
            except LeftOutError as reason:
                left_out[plan.name] = str(reason)
                _say(f"left out: {plan.name}: {reason}")
                continue
            found.append(started)
            _say(f"{plan.name} {started.version} runs, {started.idle_bytes / 1e6:.0f} MB")
        yield found
    finally:
        for contender in found:
            contender.stop()


def _placed(plan: Plan, directory: Path | None) -> Plan:
    if not plan.package or directory is None:
        return plan
    return contenders.placed(plan, directory)


async def everything_was_on(run: Run, scratch: Path) -> None:
    """Turnout has checked a key, counted and logged each request; else its figures are another program's.

    Raises:
        SystemExit: it has not.
    """
    ours = next(contender for contender in run.found if contender.plan.name == report.OURS)
    url = f"http://127.0.0.1:{ours.port}"
    async with aiohttp.ClientSession() as client:
        async with client.post(url + CHAT, data=bodies.short(ours.plan.model)) as refused:
            assert refused.status == 401, f"without a key: {refused.status}"
        async with client.get(url + "/metrics", headers=ours.plan.headers) as reply:
            lines = (await reply.text()).splitlines()
    counted = sum(float(line.rpartition(" ")[2]) for line in lines if _counts_an_answer(line))
    logged = (scratch / "turnout-data" / "audit.log").read_bytes().count(b"\n")
    sent = run.sent[report.OURS]
    if not (sent <= counted <= sent + 10 and logged >= sent):
        raise SystemExit(f"of {sent} requests Turnout counted {counted:g} and its audit log has {logged} lines")


def _counts_an_answer(line: str) -> bool:
    return line.startswith("turnout_requests_total{") and 'status="200"' in line and 'route="/v1/' in line


def about(found: list[Contender]) -> dict[str, object]:
    """Which versions, of which sources, on which machine."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.rstrip()

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_since": git("status", "--porcelain", "--", "src", "bench").splitlines(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "versions": {contender.plan.name: contender.version for contender in found if contender.version},
        "idle_mb": {contender.plan.name: round(contender.idle_bytes / 1e6, 1) for contender in found},
    }


async def main(directory: Path | None, *, quick: bool) -> None:
    """Run everything and write it down."""
    began, date, load = time.monotonic(), time.strftime("%Y-%m-%d"), round(os.getloadavg()[0], 2)
    left_out: dict[str, str] = {}
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # else the contenders would stay
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as scratch:
        async with running(directory, Path(scratch), left_out) as found:
            run, facts = Run(found, quick=quick), about(found)
            for measure in MEASURES:
                await run.measure(measure)
                await everything_was_on(run, Path(scratch))
    figures = {
        key: {name: [asdict(each) for each in rounds] for name, rounds in table.items()}
        for key, table in run.figures.items()
    }
    result = {
        "date": date,
        **facts,
        "load_before": load,
        "seconds": round(time.monotonic() - began),
        "pieces": PIECES,
        "gap_ms": GAP_MS,
        "rounds": run.rounds,
        "left_out": left_out | run.left_out,
        "figures": figures,
    }
    print(report.tables(result))
    if not quick:
        report.write(result, ROOT)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="where get_gateways.sh has put the others")
    parser.add_argument("--quick", action="store_true", help="short, and writes nothing")
    options = parser.parse_args()
    if "TURNOUT_TEST_ISOLATED" not in os.environ:
        isolated = [sys.executable, str(ROOT / "tests" / "isolated.py"), sys.executable, __file__, *sys.argv[1:]]
        os.execv(sys.executable, isolated)
    if os.environ["TURNOUT_TEST_ISOLATED"] != "1" and options.directory:
        sys.exit("the others run only where the network is cut: some of them call home")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(options.directory and options.directory.resolve(), quick=options.quick))
