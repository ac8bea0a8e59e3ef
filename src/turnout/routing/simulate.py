"""Small fleets that were never there, to see how often the real selection finds the best model that can serve.

Who can serve is judged here once more from what the fleet was made of, apart from the selection. Seconds have no part
in it: selection ranks by score, and only placement, after it, weighs scores against seconds (``routing/price.py``).
Pure; the same seed gives the same fleets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from turnout.config import RouterConfig, RoutingConfig
from turnout.errors import EndpointDownError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.health import FAILURES_TO_OPEN, HealthBook
from turnout.routing.capabilities import CapabilityTable, memory_need
from turnout.routing.names import parse_model_name
from turnout.routing.select import Needs, Selection, candidates, select_around
from turnout.types import Candidate, Endpoint, Health, Model, TaskCategory

WINDOWS = (8192, 16_384, 32_768, 65_536, 131_072)
MEMORIES = (16.0, 24.0, 48.0, 96.0)  # GB
ASKED = 4  # requests of each fleet
LEADS_AWAY = "leads to other servers"
_EMBEDDERS = ("nomic-embed-text:latest", "BAAI/bge-m3", "Qwen/Qwen3-Embedding-0.6B")
_TIE = 1e-9
_ABLE = (Health.ONLINE, Health.LOADING, Health.DEGRADED)
_TOLD = (frozenset[str](), frozenset({"chat"}), frozenset({"chat", "tools"}), frozenset({"chat", "tools", "vision"}))


@dataclass(frozen=True, slots=True)
class Kind:
    """A model as servers name it, and how good it really is: a score for each category that is known.

    ``params`` and ``active`` are billions, ``window`` is what it was trained for.
    """

    server_id: str
    canonical: str
    params: float
    active: float
    window: int
    truth: Mapping[TaskCategory, float]


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs where.

    Attributes:
        kinds: what each served model really is, by endpoint and id; distractors are in none.
        shut: endpoints whose circuit is open.
        config: of the router there.
    """

    statuses: tuple[EndpointStatus, ...]
    kinds: Mapping[tuple[str, str], Kind]
    shut: frozenset[str]
    config: RouterConfig


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked: ``category`` is what it truly is, ``said`` what the classifier says."""

    category: TaskCategory
    said: TaskCategory
    tokens: int
    capabilities: frozenset[str] = frozenset()
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice, judged; points are of the true category.

    Attributes:
        best: of the models that can serve, None when there is none.
        chosen: of the model that was chosen, None when none was.
        steady: of the model that is best for this fleet's requests on the average, 0.0 where it cannot serve.
        broken: what speaks against the chosen model, "" when nothing does. Where nobody else can serve, the server that
            would be tried again first is tried, and that breaks nothing.
        moved: a harmless change of the fleet led to a worse or better model.
        name: of the chosen model, "" for none.
    """

    best: float | None
    chosen: float | None
    steady: float = 0.0
    broken: str = ""
    moved: bool = False
    name: str = ""


def make_fleet(random: Random, kinds: Sequence[Kind]) -> Fleet:
    """Two to six servers with one to four models each; some are down, shut, or lead away; some embed."""
    statuses, known, shut = [], {}, set()
    for number in range(random.randint(2, 6)):
        endpoint = Endpoint(f"box{number}", "openai", f"http://10.0.0.{number + 1}:8080")
        models = []
        for kind in random.sample(kinds, min(len(kinds), random.randint(1, 4))):
            window = min(kind.window, random.choice(WINDOWS))
            models.append(Model(kind.server_id, window=window, capabilities=random.choice(_TOLD)))
            known[endpoint.name, kind.server_id] = kind
        if random.random() < 0.2:
            models.append(Model(random.choice(_EMBEDDERS), window=8192))
        state = random.random()
        health = Health.OFFLINE if state < 0.12 else Health.ONLINE
        if 0.12 <= state < 0.2:
            shut.add(endpoint.name)
        unused = LEADS_AWAY if 0.2 <= state < 0.25 else ""
        statuses.append(EndpointStatus(endpoint, health, "", 0.0, models=tuple(models), unused=unused))
    memory = random.choice(MEMORIES) if random.random() < 0.25 else None
    return Fleet(tuple(statuses), known, frozenset(shut), RouterConfig(routing=RoutingConfig(memory_limit_gb=memory)))


def make_query(random: Random, category: TaskCategory) -> Query:
    """A request of some kind of work; its prompt has 500 to 60,000 tokens, most often few."""
    tokens = int(500 * 120 ** random.random())
    asks = random.random()
    needs = frozenset({"tools"}) if asks < 0.3 else frozenset({"vision"}) if asks < 0.35 else frozenset[str]()
    return Query(category, category, tokens, needs, random.choice((0, 1024, 4096)))


def obstacle(fleet: Fleet, candidate: Candidate, query: Query) -> str:
    """Which hard constraint a candidate would break, or ""."""
    status = next(s for s in fleet.statuses if s.endpoint.name == candidate.endpoint.name)
    kind = fleet.kinds.get((candidate.endpoint.name, candidate.model.id))
    model = candidate.model
    if status.health not in _ABLE or candidate.endpoint.name in fleet.shut:
        return "health"
    if status.unused:
        return "isolation"
    if kind is None or (model.capabilities and not query.capabilities <= model.capabilities):
        return "capability"
    if candidate.window < query.tokens + min(query.answer, candidate.window // 2):
        return "window"
    limit = fleet.config.routing.memory_limit_gb
    if limit and _memory(model, kind, candidate.window) > limit * 1e9:
        return "memory"
    return ""


def _memory(model: Model, kind: Kind, window: int) -> int:
    quantization = model.quantization or parse_model_name(model.id).quantization
    if model.size:
        return (
            model.size
            + memory_need(kind.params, quantization, window, kind.active)
            - memory_need(kind.params, quantization, 0, kind.active)
        )
    return memory_need(kind.params, quantization, window, kind.active)


def choose(fleet: Fleet, query: Query, table: CapabilityTable) -> Selection:
    """What the router selects there."""
    book = HealthBook(clock=lambda: 0.0, jitter=lambda: 1.0)
    for status in fleet.statuses:
        if status.endpoint.name in fleet.shut:
            for _ in range(FAILURES_TO_OPEN):
                book.attempt(status.endpoint, EndpointDownError("down", endpoint=status.endpoint.name))
    pool = candidates(Catalog(fleet.statuses), table)
    needs = Needs(query.said, "", query.tokens, query.capabilities, query.answer)
    return select_around(pool, needs, fleet.config, table, book)


def decide(fleet: Fleet, queries: Sequence[Query], table: CapabilityTable) -> list[Decision]:
    """The choices for requests of one fleet, judged."""
    everyone = candidates(Catalog(tuple(_up(s) for s in fleet.statuses)), table)
    worth = [_worth(fleet, everyone, query) for query in queries]
    steady = max(range(len(everyone)), key=lambda n: sum(row[n] or 0.0 for row in worth), default=0)
    turned = _turned(fleet)
    found = []
    for query, row in zip(queries, worth, strict=True):
        best = max((points for points in row if points is not None), default=None)
        selection = choose(fleet, query, table)
        first = selection.ranked[0].candidate if selection.ranked else None
        if first is None:
            found.append(Decision(best, None))
            continue
        kind = fleet.kinds.get((first.endpoint.name, first.model.id))
        again = choose(turned, query, table).ranked
        other = (
            fleet.kinds.get((again[0].candidate.endpoint.name.lower(), again[0].candidate.model.id)) if again else None
        )
        name = kind.canonical if kind else first.model.id
        found.append(
            Decision(
                best,
                kind.truth[query.category] if kind else 0.0,
                row[steady] or 0.0 if row else 0.0,
                "" if best is None and first.endpoint.name in fleet.shut else obstacle(fleet, first, query),
                (other.canonical if other else "") != name,
                name,
            )
        )
    return found


def _up(status: EndpointStatus) -> EndpointStatus:
    return replace(status, health=Health.ONLINE, unused="")


def _worth(fleet: Fleet, everyone: Iterable[Candidate], query: Query) -> list[float | None]:
    """The true points of each candidate that can serve, None of the others."""
    row: list[float | None] = []
    for candidate in everyone:
        kind = fleet.kinds.get((candidate.endpoint.name, candidate.model.id))
        able = kind is not None and not obstacle(fleet, candidate, query)
        row.append(kind.truth[query.category] if kind is not None and able else None)
    return row


def _turned(fleet: Fleet) -> Fleet:
    """The same fleet told otherwise: in another order, in other letters, with one server more that is down."""
    statuses = [replace(s, models=s.models[::-1]) for s in fleet.statuses[::-1]]
    statuses = [replace(s, endpoint=replace(s.endpoint, name=s.endpoint.name.upper())) for s in statuses]
    gone = EndpointStatus(Endpoint("gone", "openai", "http://10.0.1.1:8080"), Health.OFFLINE, "", 0.0)
    return replace(fleet, statuses=(gone, *statuses), shut=frozenset(name.upper() for name in fleet.shut))


@dataclass(frozen=True, slots=True)
class Report:
    """The measures; shares are 0 to 1, points are of the scale of 100.

    Attributes:
        decisions: those where some model could serve.
        nobody: those where none could.
        match: the share in which the best one, or its equal, was chosen.
        near: the share in which it was at most ``NEAR`` points away.
        regret: points that were lost on the average.
        none: the share in which none was chosen.
        gap: of what the best choice gains over the best single model of the fleet, the share that was gained; None when
            there is nothing to gain.
        moved: the share in which a harmless change led to another model.
        broken: how often each hard constraint was broken, over all decisions.
        losses: points lost, each decision, the least first.
    """

    decisions: int
    nobody: int
    match: float
    near: float
    regret: float
    none: float
    gap: float | None
    moved: float
    broken: Mapping[str, int]
    losses: tuple[float, ...]


NEAR = 3.0


def report(decisions: Iterable[Decision]) -> Report:
    """The measures of some decisions.

    Args:
        decisions: at least one in which some model can serve.
    """
    every = list(decisions)
    able = [d for d in every if d.best is not None]
    losses = sorted((d.best or 0.0) - (d.chosen or 0.0) for d in able)
    gain = sum((d.best or 0.0) - d.steady for d in able)
    got = sum((d.chosen or 0.0) - d.steady for d in able)
    count = len(able)
    return Report(
        count,
        len(every) - count,
        sum(loss <= _TIE for loss in losses) / count,
        sum(loss <= NEAR for loss in losses) / count,
        sum(losses) / count,
        sum(d.chosen is None for d in able) / count,
        got / gain if gain > _TIE else None,
        sum(d.moved for d in able) / count,
        Counter(d.broken for d in every if d.broken),
        tuple(losses),
    )
