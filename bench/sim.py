"""Small fleets of simulated servers with agents' traffic, placed by the real selection code and by what others do.

    python bench/sim.py [SEED ...]

Servers have slots, a prefix cache per slot, a number of models that they keep loaded, loads that take as long as the
disk needs, and one prompt read at a time; others' streams wait meanwhile. Agents send whole histories in tool loops,
pause between turns, and begin with a request for a title. Time is simulated: a run of an hour takes seconds.

Placed by: Turnout (``routing/select.py`` and ``placement.py`` with what they learn from the answers alone), round
robin, the least busy server, a hash of the session, and a greedy oracle, which knows the state of every server and what
each request will take, and minimises that request's own cost and the harm to others; bound, it obeys our rule that no
tool loop changes its model. Cost is the seconds of an answer,
and a second for each point of score that the best model would have had more.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace

from turnout.config import RouterConfig
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.learned import Learned
from turnout.placement import Placement
from turnout.routing.affinity import Affinity
from turnout.routing.capabilities import load_table
from turnout.routing.classifier import ClassificationResult
from turnout.routing.select import Needs, Selection, candidates, select
from turnout.types import (
    Candidate,
    ChatRequest,
    Endpoint,
    Health,
    Message,
    Model,
    RawBody,
    TaskCategory,
    Tool,
    ToolResult,
    Usage,
    WireFormat,
    message,
)

HOUR = 3600.0
POINT = 1.0  # seconds that a point of score is worth
STALLED = 0.5  # of the time in which a prompt is read, the others' streams stand still
TABLE, CONFIG = load_table(), RouterConfig()
TASK = ClassificationResult(TaskCategory.CODING, 0.9)
TOOLS = (Tool("read", "reads a file"),)


@dataclass
class Kind:
    """A model at a server: tokens a second of prompt and answer, and gigabytes."""

    id: str
    prefill: float
    decode: float
    size: float


@dataclass
class Machine:
    """A server as it is described: ``keeps`` models loaded at once, ``disk`` gigabytes a second."""

    name: str
    kinds: tuple[Kind, ...]
    slots: int
    keeps: int = 1
    disk: float = 1.0


@dataclass(eq=False)
class Job:
    """One request."""

    session: str
    prompt: int
    known: int  # tokens of it that an earlier request of the session had
    answer: int
    loop: bool
    title: bool
    done: Callable[[float], None]
    arrived: float = 0.0
    server: Server | None = None
    kind: Kind | None = None
    candidate: Candidate | None = None
    key: bytes = b""
    reads: int = 0
    began: float = 0.0
    first: float = 0.0
    end: float = 0.0
    cached: int = 0


class Server:
    """One machine at work."""

    def __init__(self, machine: Machine, world: World) -> None:
        self.machine, self.world = machine, world
        self.loaded: OrderedDict[str, None] = OrderedDict(((machine.kinds[0].id, None),))
        self.caches: dict[str, OrderedDict[str, int]] = defaultdict(OrderedDict)
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.reading_until = 0.0
        self.slow, self.dead, self.loads = 1.0, False, 0

    def take(self, job: Job) -> None:
        self.waiting.append(job)
        self._start()

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.machine.slots:
            job = self.waiting[0]
            assert job.kind is not None
            if job.kind.id not in self.loaded and len(self.loaded) >= self.machine.keeps and self.running:
                return  # what runs must end before its model can go
            self.waiting.pop(0)
            self._serve(job)

    def load_seconds(self, kind: Kind) -> float:
        return 0.0 if kind.id in self.loaded else kind.size / self.machine.disk * self.slow

    def cached(self, kind: Kind, job: Job) -> int:
        return min(job.known, self.caches[kind.id].get(job.session, 0)) if kind.id in self.loaded else 0

    def service(self, job: Job) -> float:
        """Seconds that a job will take that waits."""
        assert job.kind is not None
        reading = (job.prompt - self.cached(job.kind, job)) / job.kind.prefill
        return (reading + job.answer / job.kind.decode) * self.slow

    def _serve(self, job: Job) -> None:
        kind, now = job.kind, self.world.now
        assert kind is not None
        load = self.load_seconds(kind)
        if load:
            self.loads += 1
            while len(self.loaded) >= self.machine.keeps:
                gone, _ = self.loaded.popitem(last=False)
                self.caches.pop(gone, None)
        self.loaded.pop(kind.id, None)
        self.loaded[kind.id] = None
        job.cached = self.cached(kind, job)
        begins = max(now + load, self.reading_until)
        reading = (job.prompt - job.cached) / kind.prefill * self.slow
        self.reading_until = begins + reading
        for other in self.running:
            self.world.delay(other, STALLED * reading)
        cache = self.caches[kind.id]
        cache.pop(job.session, None)
        cache[job.session] = job.prompt + job.answer
        while len(cache) > self.machine.slots:
            cache.popitem(last=False)
        job.began, job.first = now, begins + reading
        job.end = job.first + job.answer / kind.decode * self.slow * (1 + 0.2 * len(self.running))
        self.running.append(job)
        self.world.at(job.end, lambda: self._finish(job))
        self.world.at(job.first, lambda: self._begin(job))

    def _begin(self, job: Job) -> None:
        if job.first > self.world.now + 1e-9:
            self.world.at(job.first, lambda: self._begin(job))
        elif hasattr(self.world.place, "begun"):
            self.world.place.begun(job)

    def _finish(self, job: Job) -> None:
        if job.end > self.world.now + 1e-9:  # it was held up meanwhile
            self.world.at(job.end, lambda: self._finish(job))
            return
        if job not in self.running:  # the server died
            return
        self.running.remove(job)
        self.world.finished(job)
        job.done(self.world.now)
        self._start()


@dataclass
class World:
    """The clock, the servers, and what has been seen."""

    machines: tuple[Machine, ...]
    policy: str
    seed: int
    fault: str = ""
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.servers = [Server(machine, self) for machine in self.machines]
        self.place = POLICIES[self.policy](self)
        self.best = max(c.scores[TaskCategory.CODING] for c in self.pool())

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), what))

    def delay(self, job: Job, seconds: float) -> None:
        job.end += seconds
        if job.first > self.now:
            job.first += seconds

    def run(self, until: float) -> None:
        while self._events:
            when, _, what = heapq.heappop(self._events)
            if when > until:
                return
            self.now = when
            what()

    def catalog(self) -> Catalog:
        statuses = []
        for server in self.servers:
            endpoint = Endpoint(
                server.machine.name, "vllm", f"http://{server.machine.name}", slots=server.machine.slots
            )
            models = tuple(
                Model(k.id, window=65_536, resident=k.id in server.loaded, size=int(k.size * 1e9))
                for k in server.machine.kinds
            )
            health = Health.OFFLINE if server.dead else Health.ONLINE
            statuses.append(
                EndpointStatus(
                    endpoint, health, "", 0.0, models=models, slots=server.machine.slots, capacity=server.machine.keeps
                )
            )
        return Catalog(tuple(statuses), generation=next(self._count))

    def pool(self) -> tuple[Candidate, ...]:
        return candidates(self.catalog(), TABLE)

    def ask(self, job: Job) -> None:
        job.arrived = self.now
        server, kind = self.place(job)
        job.server, job.kind = server, kind
        server.take(job)

    def finished(self, job: Job) -> None:
        self.jobs.append(job)
        if hasattr(self.place, "learn"):
            self.place.learn(job)

    def options(self) -> list[tuple[Server, Kind]]:
        return [(s, k) for s in self.servers if not s.dead for k in s.machine.kinds]

    def score(self, kind: Kind) -> float:
        return TABLE.rate(Model(kind.id)).scores[TaskCategory.CODING]


class Ours:
    """The real code, with what its router would know."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.learned = Learned(None, clock=lambda: world.now)
        self.fleet = SimpleNamespace(learned=self.learned, book=SimpleNamespace(rank=lambda _: 0), catalog=Catalog())
        self.placement = Placement(self.fleet)  # type: ignore[arg-type]
        self.placement._clock = lambda: world.now
        self.placement._affinity = Affinity(lambda: world.now)
        self.placement._admission = SimpleNamespace(load=self._load)  # type: ignore[assignment]

    def _load(self, url: str) -> tuple[int, int]:
        server = next(s for s in self.world.servers if f"http://{s.machine.name}" == url)
        return len(server.running), len(server.waiting)

    def __call__(self, job: Job) -> tuple[Server, Kind]:
        self.fleet.catalog = self.world.catalog()
        pool = candidates(self.fleet.catalog, TABLE)
        needs = Needs(TaskCategory.CODING, "", job.prompt)
        selection: Selection = select(pool, needs, CONFIG, TABLE)
        selection, job.key = self.placement.order(request_of(job), "t", selection, TASK)
        job.candidate = selection.ranked[0].candidate
        price = selection.ranked[0].price
        job.reads = self.placement.sent(job.candidate, price.load + price.prefill if price is not None else 0.0)
        server = next(s for s in self.world.servers if s.machine.name == job.candidate.endpoint.name)
        return server, next(k for k in server.machine.kinds if k.id == job.candidate.model.id)

    def begun(self, job: Job) -> None:
        if job.candidate is not None:
            self.placement.begun(job.candidate, job.reads)

    def learn(self, job: Job) -> None:
        assert job.candidate is not None
        usage = Usage(job.prompt, job.answer, job.cached)
        self.placement.answered(
            job.key, job.candidate, usage, job.prompt, max(1e-3, job.first - job.began), job.end - job.began
        )


def request_of(job: Job) -> ChatRequest:
    last = Message("tool", (ToolResult("c", "ok"),)) if job.loop else message("user", "go on")
    turns = (message("system", "You are an agent."), message("user", job.session), last)
    raw = RawBody(WireFormat.OPENAI_CHAT, bytes(4 * job.prompt))
    return ChatRequest(
        turns,
        model="auto",
        tools=() if job.title else TOOLS,
        max_tokens=job.answer if job.title else None,
        conversation=job.session.partition("/")[0],
        raw=raw,
        own_history=True,
    )


def round_robin(world: World) -> Callable[[Job], tuple[Server, Kind]]:
    turn = itertools.count()
    return lambda _: world.options()[next(turn) % len(world.options())]


def least_busy(world: World) -> Callable[[Job], tuple[Server, Kind]]:
    def place(_: Job) -> tuple[Server, Kind]:
        server = min((s for s, _ in world.options()), key=lambda s: (len(s.running) + len(s.waiting)) / s.machine.slots)
        return server, max(server.machine.kinds, key=world.score)

    return place


def by_hash(world: World) -> Callable[[Job], tuple[Server, Kind]]:
    def place(job: Job) -> tuple[Server, Kind]:
        up = [s for s in world.servers if not s.dead]
        server = up[Random(job.session).randrange(len(up))]
        return server, max(server.machine.kinds, key=world.score)

    return place


def _cost(world: World) -> Callable[[Job, Server, Kind], float]:
    """What a request costs at a server, for who knows everything: its own seconds and points, and others' harm."""

    def cost(job: Job, server: Server, kind: Kind) -> float:
        now, busy = world.now, server.running + server.waiting
        free = len(server.running) < server.machine.slots and not server.waiting
        ends = sorted(j.end for j in server.running)
        wait = 0.0 if free else max(0.0, ends[0] - now if ends else 0.0)
        wait += sum(map(server.service, server.waiting)) / server.machine.slots
        load = server.load_seconds(kind)
        swaps = load > 0 and len(server.loaded) >= server.machine.keeps
        if swaps and ends:
            wait = max(wait, ends[-1] - now)
        reading = (job.prompt - server.cached(kind, job)) / kind.prefill * server.slow
        wait = max(wait, server.reading_until - now - load)
        answer = job.answer / kind.decode * server.slow * (1 + 0.2 * len(server.running))
        harm = STALLED * reading * len(server.running)
        if swaps:
            gone = next(k for k in server.machine.kinds if k.id == next(iter(server.loaded)))
            harm += gone.size / server.machine.disk if busy or server.caches.get(gone.id) else 0.0
        cache = server.caches.get(kind.id, OrderedDict())
        if job.session not in cache and len(cache) >= server.machine.slots:
            harm += 0.7 * next(iter(cache.values())) / kind.prefill * server.slow
        return wait + load + reading + answer + harm + POINT * (world.best - world.score(kind))

    return cost


def oracle(world: World) -> Callable[[Job], tuple[Server, Kind]]:
    cost = _cost(world)
    return lambda job: min(world.options(), key=lambda option: cost(job, *option))


def bound_oracle(world: World) -> Callable[[Job], tuple[Server, Kind]]:
    """The oracle under our rule: no other model inside a tool loop."""
    cost, models = _cost(world), dict[str, str]()

    def place(job: Job) -> tuple[Server, Kind]:
        options = world.options()
        if job.loop:
            options = [o for o in options if o[1].id == models.get(job.session)] or options
        best = min(options, key=lambda option: cost(job, *option))
        models[job.session] = best[1].id
        return best

    return place


POLICIES: dict[str, Callable[[World], Callable[[Job], tuple[Server, Kind]]]] = {
    "oracle": oracle,
    "oracle, bound": bound_oracle,
    "turnout": Ours,
    "sticky by hash": by_hash,
    "least busy": least_busy,
    "round robin": round_robin,
}


def agents(world: World, count: int, until: float) -> None:
    """Agents that work until the end: sessions of turns, turns of steps, steps of a request and a tool."""
    for number in range(count):
        Agent(world, f"a{number}", Random(world.seed * 1000 + number), until)


class Agent:
    """One developer's agent."""

    def __init__(self, world: World, name: str, random: Random, until: float) -> None:
        self.world, self.name, self.random, self.until = world, name, random, until
        self.sessions = 0
        world.at(random.uniform(0, 120), self.open)

    def open(self) -> None:
        self.sessions += 1
        self.session = f"{self.name}-{self.sessions}"
        self.known, self.prompt = 0, self.random.randrange(5000, 11_000)
        self.turns = self.random.randrange(2, 6)
        self.world.ask(Job(f"{self.session}/title", 600, 0, 20, False, True, lambda _: None))
        self.turn()

    def turn(self) -> None:
        self.turns -= 1
        self.steps = self.random.randrange(4, 14)
        self.prompt += self.random.randrange(50, 600)
        self.step(loop=False)

    def step(self, *, loop: bool) -> None:
        answer = self.random.randrange(60, 400)
        job = Job(self.session, self.prompt, self.known, answer, loop, False, self.answered)
        self.known = self.prompt + answer
        self.prompt = self.known + int(200 * 15 ** self.random.random())
        self.world.ask(job)

    def answered(self, now: float) -> None:
        if now > self.until:
            return
        self.steps -= 1
        if self.steps > 0 and self.prompt < 50_000:
            self.world.at(now + self.random.uniform(0.3, 4.0), lambda: self.step(loop=True))
        elif self.turns > 0 and self.prompt < 50_000:
            self.world.at(now + self.random.uniform(15, 120), self.turn)
        else:
            self.world.at(now + self.random.uniform(20, 200), self.open)


SMALL, SEVEN = Kind("qwen2.5-coder-1.5b", 6000, 140, 1.1), Kind("qwen2.5-coder-7b", 2500, 60, 4.7)
FOURTEEN, BIG = Kind("qwen2.5-coder-14b", 1400, 35, 9.0), Kind("qwen2.5-coder-32b", 700, 18, 19.0)


def slower(kind: Kind, times: float) -> Kind:
    return replace(kind, prefill=kind.prefill / times, decode=kind.decode / times)


FLEETS: dict[str, tuple[tuple[Machine, ...], int]] = {
    "eight replicas": (tuple(Machine(f"r{n}", (SEVEN,), 4) for n in range(8)), 26),
    "small office": (
        (
            Machine("box", (BIG, FOURTEEN, SEVEN, SMALL), 2),
            Machine("laptop", (slower(SEVEN, 5),), 1),
            Machine("llama", (FOURTEEN,), 2),
        ),
        4,
    ),
    "mixed LAN": (
        (
            Machine("vllm", (replace(BIG, prefill=2500, decode=40),), 8),
            Machine("studio", (FOURTEEN, SMALL), 2, keeps=2),
            Machine("ollama1", (SEVEN, FOURTEEN), 1),
            Machine("ollama2", (SEVEN,), 2),
        ),
        10,
    ),
}
FAULTS = ("", "dead", "slow")


def simulate(fleet: str, policy: str, seed: int, fault: str) -> World:
    """An hour."""
    machines, count = FLEETS[fleet]
    world = World(machines, policy, seed, fault)
    agents(world, count, HOUR)
    if fault:
        world.at(600.0, lambda: broken(world, fault))
    world.run(HOUR * 1.5)
    return world


def broken(world: World, fault: str) -> None:
    """The last machine of those that serve most dies, or becomes ten times slower."""
    server = world.servers[-1]
    if fault == "slow":
        server.slow = 10.0
        return
    server.dead = True
    lost, server.running, server.waiting = server.running + server.waiting, [], []
    for job in lost:
        world.ask(replace(job))


def figures(world: World) -> dict[str, float]:
    """What a run came to; titles are left out of the times."""
    jobs = [job for job in world.jobs if not job.title]
    first = [job.first - job.arrived for job in jobs]
    cost = [
        job.end - job.arrived + POINT * (world.best - world.score(job.kind)) for job in jobs if job.kind is not None
    ]
    known = sum(job.known for job in jobs)
    return {
        "requests": len(jobs),
        "first": statistics.mean(first),
        "p95": sorted(first)[int(0.95 * len(first))],
        "reuse": sum(job.cached for job in jobs) / known if known else 1.0,
        "loads": sum(server.loads for server in world.servers),
        "cost": statistics.mean(cost),
    }


def main(seeds: list[int]) -> None:
    print("| fleet | fault | placed by | first token, mean | times the oracle | p95 | prefix reuse | loads | cost |")
    print("|---|---|---|---|---|---|---|---|---|")
    for fleet, fault in itertools.product(FLEETS, FAULTS):
        base: dict[str, float] = {}
        for policy in POLICIES:
            runs = [figures(simulate(fleet, policy, seed, fault)) for seed in seeds]
            mean = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            base = base or mean
            print(
                f"| {fleet} | {fault or '-'} | {policy} | {mean['first']:.2f} s | {mean['first'] / base['first']:.2f} |"
                f" {mean['p95']:.1f} s | {mean['reuse']:.2f} | {mean['loads']:.0f} |"
                f" {mean['cost']:.1f} ({mean['cost'] / base['cost']:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [1, 2, 3])
