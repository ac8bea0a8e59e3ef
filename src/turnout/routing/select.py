"""Which model: hard filters, then the configured lists or the score. Pure (SPEC SEL-2, SEL-3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from turnout.config import RouterConfig, TaskRouting
from turnout.errors import ModelBlockedError, NoServiceError, NoSuitableModelError, NotPermittedError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.feedback import Feedback, Votes, feedback_change, feedback_words
from turnout.fleet.health import HealthBook
from turnout.fleet.pins import Pin, evicted_by
from turnout.routing.advice import ALL_MODELS, blocked, few_of
from turnout.routing.capabilities import CapabilityTable, shipped_lists
from turnout.routing.fallback import Ranked
from turnout.routing.names import parse_model_name
from turnout.routing.price import NO_PRICE, Work, value
from turnout.types import VIRTUAL_MODELS, Candidate, FallbackLevel, Health, Principal, TaskCategory
from turnout.weights import UNCHECKED

MAX_REMEMBERED = 256
# What being of the family that an agent prefers counts, on the scale of 100, and what being the model that it names.
PREFERRED, FIRST = 10.0, 1000.0
PREFERENCE = "the model that the calling agent prefers"
# What a step of an endpoint's priority is worth where time and quality are weighed, and how many steps count.
PRIORITY_POINTS, PRIORITY_MOST = 1.0, 10
MAX_NAMES, LONGEST_NAME = 4096, 1000  # that are remembered; characters: a client may ask for a name of megabytes
# Claude Code's picker lists no other names (facts/agents.md section 7).
PICKER_PREFIX = "claude-local-"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of a model.

    Attributes:
        category: the kind of work, None when an exact model was asked for.
        model: the exact model asked for, or "".
        tokens: of the prompt.
        capabilities: of ``tools, vision``.
        answer: tokens that are wanted for the answer; of a window at most ``answer_share`` is kept free for it.
        preference: a model, or how the names of a family begin, that the calling agent prefers; "" for none.
        allowed: lists of patterns that each must open an exact model that is asked for; empty for all.
    """

    category: TaskCategory | None
    model: str
    tokens: int
    capabilities: frozenset[str] = frozenset()
    answer: int = 0
    answer_share: float = 0.5
    preference: str = ""
    allowed: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision before anything ran.

    Attributes:
        ranked: candidates that fit, best first, with their level and reason.
        too_small: candidates that only the window speaks against, best first.
        rejected: every other candidate, with the reason.
        smallest: the smallest usable model.
        policy: the policy that ranked.
        target: tokens that level 2 compacts to at most, 0 for the window's own.
        needs: what was asked; None where nothing was selected.
        work: what there is to do, where that was priced.
    """

    ranked: tuple[Ranked, ...]
    too_small: tuple[Ranked, ...]
    rejected: tuple[tuple[Candidate, str], ...]
    smallest: Candidate | None
    policy: str
    target: int = 0
    needs: Needs | None = None
    work: Work | None = None


def candidates(
    catalog: Catalog,
    table: CapabilityTable,
    pins: frozenset[Pin] = frozenset(),
    feedback: Feedback | None = None,
) -> tuple[Candidate, ...]:
    """Every model of every endpoint that can serve, rated.

    Args:
        pins: models that no choice of ours may push out.
        feedback: what people said of their answers.
    """
    found = []
    for status in catalog.serving:
        for model in status.models:
            rating = table.rate(model)
            window, source = model.window, model.window_source
            if not window:
                guess = rating.window
                window, source = (min(guess, model.max_window) if model.max_window else guess), "guessed"
            active, size, read = table.weights_of(model)
            votes = feedback.of(rating.canonical or model.id) if feedback is not None else {}
            found.append(
                Candidate(
                    status.endpoint,
                    model,
                    rating.canonical,
                    window,
                    source,
                    moved(rating.scores, votes) if votes else rating.scores,
                    rating.source,
                    evicts=evicted_by(model, status, pins),
                    active=active,
                    bytes=size,
                    read_bytes=read,
                    feedback={c: feedback_words(votes[c]) for c in rating.scores if c in votes},
                    verdict=status.verdicts.get(model.id, UNCHECKED),
                )
            )
    return tuple(found)


def moved(scores: Mapping[TaskCategory, float], votes: Mapping[str, Votes]) -> Mapping[TaskCategory, float]:
    """The scores after what people said, still from 0 to 100."""
    return {c: min(100.0, max(0.0, s + feedback_change(votes.get(c, Votes())))) for c, s in scores.items()}


def select(pool: Sequence[Candidate], needs: Needs, config: RouterConfig, table: CapabilityTable) -> Selection:
    """Filter, then rank. Same input, same choice."""
    routing = config.task_routing.get(needs.category) if needs.category and not needs.model else None
    minimum = routing.min_context if routing else 0
    wanted = asked_for(pool, needs.model, table) if needs.model else list(pool)
    usable: list[Candidate] = []
    small: list[Candidate] = []
    rejected = [(c, f"not the model asked for ({needs.model})") for c in pool if c not in wanted] if needs.model else []
    for candidate in wanted:
        reason = _hard_reason(candidate, needs, config, table, alone=len(wanted) == 1)
        if needs.model and not all(opens(patterns, candidate, table) for patterns in needs.allowed):
            reason = "may not be asked for with this key"
        if reason:
            rejected.append((candidate, reason))
        elif candidate.window < max(needs.tokens + _room(candidate, needs), minimum):
            small.append(candidate)
        else:
            usable.append(candidate)
    ranked = _rank(usable, needs, config, routing, table)
    too_small = _rank(small, needs, config, routing, table)
    if below := [r for r in too_small if r.candidate.window >= needs.tokens + _room(r.candidate, needs)]:
        ranked, too_small = _say_minimum(ranked, too_small, below, minimum)
    policy = _policy(needs, config, routing)
    smallest = min((r.candidate for r in (*ranked, *too_small)), key=lambda c: _smallness(c, table), default=None)
    return Selection(tuple(ranked), tuple(too_small), tuple(rejected), smallest, policy, minimum, needs)


def _say_minimum(
    ranked: list[Ranked], too_small: list[Ranked], below: list[Ranked], minimum: int
) -> tuple[list[Ranked], list[Ranked]]:
    """The same, with the word of it where ``min_context`` alone speaks against a model: it may not be expected."""
    names = few_of([r.candidate.label for r in below], 3)
    ranked = [replace(r, reason=f"{r.reason}; min_context {minimum:,} rules out {names}") for r in ranked]
    said = {id(r): replace(r, reason=f"{r.reason}; its window is below min_context {minimum:,}") for r in below}
    return ranked, [said.get(id(r), r) for r in too_small]


def _room(candidate: Candidate, needs: Needs) -> int:
    return min(needs.answer, int(candidate.window * needs.answer_share))


class Selector:
    """The selections of one configuration; what holds for many requests is made once for each state of the catalog."""

    def __init__(
        self,
        config: RouterConfig,
        table: CapabilityTable,
        pins: Callable[[], frozenset[Pin]],
        feedback: Feedback | None = None,
    ) -> None:
        self._config, self._table, self._pins, self._feedback = config, table, pins, feedback
        self._pool: tuple[Candidate, ...] = ()
        self._ids: frozenset[str] = frozenset()
        self._meant: dict[str, tuple[Candidate, ...]] = {}
        self._pool_of = -1  # the catalog's generation
        # Selections that hold for every request of up to so many tokens, while every endpoint is well.
        self._remembered: dict[Needs, tuple[int, Selection]] = {}

    def pool(self, catalog: Catalog) -> tuple[Candidate, ...]:
        """Every candidate of the catalog."""
        if catalog.generation != self._pool_of:
            self._pool, self._remembered = self._rated(catalog), {}
            self._ids = frozenset(candidate.model.id for candidate in self._pool)
            self._meant = {}
            self._pool_of = catalog.generation
        return self._pool

    def _rated(self, catalog: Catalog) -> tuple[Candidate, ...]:
        return candidates(catalog, self._table, self._pins(), self._feedback)

    def knows(self, asked: str, catalog: Catalog) -> bool:
        """Whether some server has a model of that very id."""
        self.pool(catalog)
        return asked in self._ids

    def meant(self, asked: str, catalog: Catalog, principal: Principal) -> tuple[Candidate, ...]:
        """Who may answer when this name is asked for, the first choice first; empty when nobody has it.

        Raises:
            NotPermittedError: the principal may not ask for it.
        """
        name = name_behind(asked, self.pool(catalog))
        if name in VIRTUAL_MODELS:
            permitted(principal, name, (), self._table)
            return self._behind(name, catalog)
        return permitted(principal, name, self._named(name, catalog), self._table)

    def _named(self, name: str, catalog: Catalog) -> tuple[Candidate, ...]:
        pool = self.pool(catalog)
        known = self._meant.get(name)
        if known is None:
            found = asked_for(pool, name, self._table)
            known = tuple(sorted(found, key=lambda c: (c.model.id != name, *_preference(c))))
            if len(self._meant) >= MAX_NAMES:
                self._meant.clear()
            if len(name) <= LONGEST_NAME:
                self._meant[name] = known
        return known

    def _behind(self, virtual: str, catalog: Catalog) -> tuple[Candidate, ...]:
        """Who may answer for a virtual model, the best first: of those that take tools where any does."""
        category = TaskCategory(virtual) if virtual in tuple(TaskCategory) else None
        pool = self.pool(catalog)
        for capabilities in (frozenset({"tools"}), frozenset[str]()):
            found = select(pool, Needs(category, "", 0, capabilities), self._config, self._table)
            if able := (*found.ranked, *found.too_small):
                return tuple(ranked.candidate for ranked in able)
        return ()

    def forget(self) -> None:
        """Rate the candidates anew for the next request: the pinned models have changed."""
        self._pool_of = -1

    def select(
        self, pool: Sequence[Candidate], needs: Needs, tokens: Callable[[], int], at_most: int, book: HealthBook
    ) -> Selection:
        """The selection from ``pool()``.

        Args:
            needs: what the request asks, its tokens not counted.
            tokens: counts them, with the room for the answer; not called where ``at_most`` decides.
            at_most: a number of tokens that the request cannot exceed, 0 when that is not known.
            book: which endpoints are well.
        """
        if book.troubled:
            return select_around(pool, replace(needs, tokens=tokens()), self._config, self._table, book)
        limit, remembered = self._remembered.get(needs, (0, None))
        if remembered is not None and 0 < at_most <= limit:
            return remembered
        selection = select(pool, replace(needs, tokens=tokens()), self._config, self._table)
        if selection.ranked and not selection.too_small and len(self._remembered) < MAX_REMEMBERED:
            self._remembered[needs] = min(r.candidate.window for r in selection.ranked), selection
        return selection


def select_around(
    pool: Sequence[Candidate], needs: Needs, config: RouterConfig, table: CapabilityTable, book: HealthBook
) -> Selection:
    """As ``select``, with endpoints whose circuit is open left out, and those in doubt or loading behind the others.

    When all that could serve are left out, the one that would be tried again first is tried now.
    """
    endpoints = dict.fromkeys(candidate.endpoint for candidate in pool)
    barred = {endpoint: reason for endpoint in endpoints if (reason := book.bars(endpoint))}
    selection = select([c for c in pool if c.endpoint not in barred], needs, config, table)
    if barred and not selection.ranked and not selection.too_small:
        whole = select(pool, needs, config, table)
        able = [ranked.candidate.endpoint for ranked in (*whole.ranked, *whole.too_small)]
        if able:
            nearest = book.nearest(able)
            del barred[nearest]
            selection = select([c for c in pool if c.endpoint == nearest], needs, config, table)
    left_out = ((c, barred[c.endpoint]) for c in pool if c.endpoint in barred)
    ranked = sorted(selection.ranked, key=lambda r: book.rank(r.candidate.endpoint))
    return replace(
        selection,
        ranked=tuple(_with_doubt(r, book) for r in ranked),
        rejected=(*selection.rejected, *left_out),
    )


def _with_doubt(ranked: Ranked, book: HealthBook) -> Ranked:
    if not book.rank(ranked.candidate.endpoint):
        return ranked
    return replace(ranked, reason=f"{ranked.reason}; behind others: {book.record(ranked.candidate.endpoint).health}")


def asked_for(pool: Sequence[Candidate], asked: str, table: CapabilityTable) -> list[Candidate]:
    """Who is meant by ``id`` or a canonical name anywhere, or by ``id@endpoint`` there alone."""
    name, _, place = asked.rpartition("@")
    # Some servers write a quantisation after the same sign; an id is always meant as it is.
    is_place = name and not parse_model_name(f"x:{place}").quantization and all(c.model.id != asked for c in pool)
    if is_place or (name and any(c.endpoint.name == place for c in pool)):
        return [c for c in pool if c.endpoint.name == place and is_model(name, c, table)]
    return [c for c in pool if is_model(asked, c, table)]


def name_behind(asked: str, pool: Iterable[Candidate]) -> str:
    """What is meant by a name that was made for a picker, unless some server has a model of that very id."""
    name = asked.removeprefix(PICKER_PREFIX)
    if name == asked or not name or any(c.model.id == asked for c in pool):
        return asked
    return name


def same_name(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns is of ``name``, in any case of its letters and with or without ``:latest``."""
    plain = _in_one_form(name)
    return any(fnmatchcase(plain, _in_one_form(pattern)) for pattern in patterns)


def _in_one_form(name: str) -> str:
    return name.lower().removesuffix(":latest")


def opens(patterns: Sequence[str], candidate: Candidate, table: CapabilityTable) -> bool:
    """Whether patterns of what may be asked for open a model: by its id, its canonical name or ``id@endpoint``.

    One without a wildcard is a name, and opens what asking for it means. So a model is open or shut whichever of its
    names is used.
    """
    names = (candidate.model.id, candidate.canonical, f"{candidate.model.id}@{candidate.endpoint.name}")
    if any(same_name(name, patterns) for name in names if name):
        return True
    plain = (name_behind(pattern, ()) for pattern in patterns if not any(sign in pattern for sign in "*?["))
    return any(asked_for((candidate,), name, table) for name in plain if name not in VIRTUAL_MODELS)


def permitted(
    principal: Principal, model: str, meant: Iterable[Candidate], table: CapabilityTable
) -> tuple[Candidate, ...]:
    """Those of ``meant``, who are meant by ``model``, that whoever asks may use.

    Raises:
        NotPermittedError: none of them; or nobody is meant, and the name is not among those of the principal.
    """
    meant = found = tuple(meant)
    for patterns in principal.models:
        found = tuple(c for c in found if opens(patterns, c, table))
        if not found and (meant or not same_name(model, patterns)):
            hint = f"it may ask for: {', '.join(patterns)}"
            raise NotPermittedError(f"the key {principal.id!r} may not ask for {model[:80]!r}", hint=hint)
    return found


def is_model(asked: str, candidate: Candidate, table: CapabilityTable) -> bool:
    """Whether ``asked``, a server's id or a canonical name, means this candidate."""
    return asked == candidate.model.id or table.matches(asked, candidate.model.id)


def _hard_reason(
    candidate: Candidate, needs: Needs, config: RouterConfig, table: CapabilityTable, *, alone: bool
) -> str:
    if candidate.verdict.barred:
        return candidate.verdict.barred
    if _cannot_chat(candidate, table):
        return "makes embeddings, does not chat"
    if candidate.model.load_first:
        return "is not loaded, and another model would answer in its place: load it first"
    if candidate.endpoint.embedded and not needs.model and not alone:
        return "the demonstration model is used only when asked for or when nothing else answers"
    if candidate.evicts and not needs.model:
        return f"loading it may push out {candidate.evicts}, which is pinned"
    missing = _lacking(candidate, needs.capabilities)
    if missing:
        return f"lacks {', '.join(sorted(missing))}"
    limit = config.routing.memory_limit_gb
    if limit is not None and not needs.model:
        need = table.memory_need_of(candidate.model, candidate.window) / 1e9
        if need > limit:
            return f"needs {need:.1f} GB, the limit is {limit:g} GB"
    return ""


def _cannot_chat(candidate: Candidate, table: CapabilityTable) -> bool:
    """Whether it makes embeddings alone, by what its server tells or by what is known of the model."""
    known = (candidate.model.capabilities, table.rate(candidate.model).capabilities)
    return any("embeddings" in capabilities and "chat" not in capabilities for capabilities in known)


def _lacking(candidate: Candidate, needed: frozenset[str]) -> frozenset[str]:
    """Which of ``needed`` the server says the model has not; nothing when the server does not tell."""
    told = candidate.model.capabilities
    return needed - told if told else frozenset()


def _smallness(candidate: Candidate, table: CapabilityTable) -> tuple[float, int]:
    return table.rate(candidate.model).params or 1e6, candidate.endpoint.priority


def _rank(
    pool: Sequence[Candidate], needs: Needs, config: RouterConfig, routing: TaskRouting | None, table: CapabilityTable
) -> list[Ranked]:
    category = needs.category or TaskCategory.CODING
    policy = _policy(needs, config, routing)
    if policy == "exact":
        return _exact(pool, needs)
    named = [c for c in pool if needs.preference and is_model(needs.preference, c, table)]
    first = [Ranked(c, FallbackLevel.PRIMARY, PREFERENCE, bonus=FIRST) for c in sorted(named, key=_preference)]
    others = [c for c in pool if c not in named]
    if policy == "lists":
        primary = routing.primary_models if routing else shipped_lists().get(category, ())
        fallback = routing.fallback_models if routing else ()
        return first + _by_lists(others, primary, fallback, category, table, needs.preference)
    found = _by_score(others, category, needs.preference)
    return first + ([replace(r, level=FallbackLevel.FALLBACK) for r in found] if first else found)


def _policy(needs: Needs, config: RouterConfig, routing: TaskRouting | None) -> str:
    if needs.model:
        return "exact"
    return "lists" if routing is not None else config.routing.policy


def _preference(candidate: Candidate) -> tuple[int, bool, str]:
    """Between equals: the endpoint's priority, then the model that is loaded, then a stable order."""
    return candidate.endpoint.priority, candidate.model.resident is False, candidate.label


def _exact(pool: Iterable[Candidate], needs: Needs) -> list[Ranked]:
    order = sorted(pool, key=lambda c: (c.model.id != needs.model, *_preference(c)))
    return [Ranked(c, FallbackLevel.PRIMARY, "the model asked for") for c in order]


def _by_score(pool: Iterable[Candidate], category: TaskCategory, family: str) -> list[Ranked]:
    def worth(c: Candidate) -> float:
        return c.scores.get(category, 0.0) + (PREFERRED if _is_of(family, c) else 0.0)

    order = sorted(pool, key=lambda c: (-worth(c), *_preference(c)))
    if not order:
        return []
    best = order[0]
    return [
        Ranked(
            c,
            FallbackLevel.PRIMARY if same_model(c, best) else FallbackLevel.FALLBACK,
            f"{category} score {c.scores.get(category, 0.0):.0f} ({c.score_source})"
            + (f", {c.feedback[category]} counted" if category in c.feedback else "")
            + (f", {PREFERRED:.0f} more: the agent prefers {family}" if _is_of(family, c) else ""),
            bonus=PREFERRED if _is_of(family, c) else 0.0,
        )
        for c in order
    ]


def by_value(
    ranked: Sequence[Ranked], category: TaskCategory | None, policy: str, difficulty: float
) -> tuple[Ranked, ...]:
    """What is worth most first: its score, less what its time costs; those whose health is in doubt behind."""
    least = min(r.candidate.endpoint.priority for r in ranked)

    def place(r: Ranked) -> tuple[int, float]:
        worth = r.bonus + value(r.candidate, r.price or NO_PRICE, category, policy, difficulty)
        behind = min(PRIORITY_MOST, r.candidate.endpoint.priority - least) * PRIORITY_POINTS
        return r.at.doubt if r.at is not None else 0, behind - worth

    order = sorted(ranked, key=place)
    best = order[0].candidate
    return tuple(
        replace(
            r,
            level=FallbackLevel.PRIMARY if same_model(r.candidate, best) else FallbackLevel.FALLBACK,
            reason=f"{r.reason}, about {r.price.seconds:.2g} s" if r.price is not None else r.reason,
        )
        for r in order
    )


def _is_of(family: str, candidate: Candidate) -> bool:
    name = candidate.canonical or candidate.model.id.rpartition("/")[2]
    return bool(family) and name.lower().startswith(family.lower())


def same_model(one: Candidate, other: Candidate) -> bool:
    """Whether two servers have the same model."""
    return one.model.id == other.model.id or (bool(one.canonical) and one.canonical == other.canonical)


def _by_lists(
    pool: Iterable[Candidate],
    primary: Sequence[str],
    fallback: Sequence[str],
    category: TaskCategory,
    table: CapabilityTable,
    family: str,
) -> list[Ranked]:
    left = sorted(pool, key=_preference)
    ranked: list[Ranked] = []
    for level, names in ((FallbackLevel.PRIMARY, primary), (FallbackLevel.FALLBACK, fallback)):
        for place, name in enumerate(names, 1):
            found = [c for c in left if is_model(name, c, table)]
            left = [c for c in left if c not in found]
            ranked += [Ranked(c, level, f"number {place} of the {level.name.lower()} list: {name}") for c in found]
    beyond = [
        Ranked(r.candidate, FallbackLevel.FALLBACK, f"on no list; {r.reason}")
        for r in _by_score(left, category, family)
    ]
    return ranked + beyond


def unsuitable(
    pool: Sequence[Candidate],
    needs: Needs,
    selection: Selection,
    table: CapabilityTable,
    away: Sequence[EndpointStatus] = (),
) -> NoSuitableModelError | NoServiceError | ModelBlockedError:
    """Why nobody can serve it: nobody has the model, or those who have it lack what the request needs.

    Args:
        away: endpoints that cannot be asked now: who has the model, or may have it, is not a server without it.
    """
    wanted = asked_for(pool, needs.model, table) if needs.model else list(pool)
    if not wanted:
        return nobody_has(needs.model, pool, away)
    if all(c.verdict.barred for c in wanted):
        return blocked(wanted)
    reasons = "; ".join([f"{c.label}: {reason}" for c, reason in selection.rejected if c in wanted][:5])
    needed = frozenset[str]().union(*(_lacking(c, needs.capabilities) for c in wanted))
    if all(_cannot_chat(c, table) for c in wanted):
        needed |= {"chat"}
    if not needs.model:
        hint = "`turnout explain` shows each candidate"
        return NoSuitableModelError(f"no model fits the request: {reasons}", hint=hint, needed=needed)
    able = sorted({c.model.id for c in pool if not (_cannot_chat(c, table) or _lacking(c, needed))})
    hint = f"ask for {few_of(able)}; " if able else ""
    hint += "`turnout models` shows what each model can do"
    return NoSuitableModelError(f"{needs.model!r} cannot serve this request: {reasons}", hint=hint, needed=needed)


def nobody_has(
    asked: str, pool: Sequence[Candidate], away: Sequence[EndpointStatus]
) -> NoSuitableModelError | NoServiceError:
    """Who asks for a model by name and finds nobody: its server is away, or there is none."""
    served = few_of(sorted({c.model.id for c in pool}))
    if missing := _missing(asked, away):
        hint = f"`turnout discover` shows their state; there are: {served}; {ALL_MODELS}"
        return NoServiceError(f"{asked!r} cannot be reached: {missing}", hint=hint)
    return NoSuitableModelError(f"no server has the model {asked!r}", hint=f"there are: {served}; {ALL_MODELS}")


def _missing(asked: str, away: Sequence[EndpointStatus]) -> str:
    """Who has the model and does not answer, else who was configured and may have it; "" when nobody is missed."""
    name, _, place = asked.rpartition("@")
    has = [s for s in away if asked in s.had or (name in s.had and place == s.endpoint.name)]
    has = has or [s for s in away if name and place == s.endpoint.name]
    may = [s for s in away if s.endpoint.configured and not s.had and s.health is not Health.NEEDS_KEY]
    told = [
        f"{s.endpoint.name} at {s.endpoint.url} {'has' if has else 'may have'} it, and is {s.health}: {s.reason}"
        for s in has or may
    ]
    return "; ".join(told[:3])


def select_model(
    category: TaskCategory, catalog: Catalog, config: RouterConfig, table: CapabilityTable, *, tokens: int = 0
) -> Candidate | None:
    """The best candidate for a kind of work, or None when nothing fits (the owner's name for the decision).

    Args:
        category: the kind of work.
        catalog: what runs where.
        config: lists, policy and limits.
        table: the capability table.
        tokens: prompt and room for the answer.
    """
    selection = select(candidates(catalog, table), Needs(category, "", tokens), config, table)
    return selection.ranked[0].candidate if selection.ranked else None
