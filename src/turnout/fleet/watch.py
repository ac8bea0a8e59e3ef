"""What runs where, kept up to date: every endpoint looked at in its own rhythm, the catalog swapped as a whole.

``Fleet`` is the only writer of the catalog. A server that hangs holds up nobody: a refresh publishes what has answered
after a short grace, and the rest when it comes. Feeds that servers push only make a look come sooner.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from turnout.backends import BY_KIND
from turnout.config import RouterConfig
from turnout.errors import TurnoutError
from turnout.fleet.catalog import Catalog, EndpointStatus, address_of
from turnout.fleet.dedupe import Facts, may_have_children, settle
from turnout.fleet.discovery import Target, look, status_of, targets
from turnout.fleet.health import HealthBook, Record
from turnout.fleet.host import HostInfo
from turnout.fleet.inventory import Inventory, compared, drift_of, endpoints_of
from turnout.fleet.learned import Learned
from turnout.fleet.processes import listeners, own_addresses
from turnout.types import Candidate, Endpoint, Health, Model

if TYPE_CHECKING:
    from turnout.fleet.identity import Verifier
    from turnout.guard.network import HttpClient

GRACE = 0.2  # seconds until a refresh that still waits for somebody is usable
PUBLISH_EVERY, TOUCH_EVERY = 0.1, 1.0  # seconds, for changes and for mere load and times
LOOKS_AT_ONCE = 64
LOOKS_PER_SECOND = 20  # of all endpoints: the rhythm of a large fleet is slower, its cost is not higher
MAX_TARGETS = 4096
AGAIN_AFTER = 1.0  # seconds between two refreshes that requests ask for
IDENTIFY_EVERY = 20  # looks; in between, a server that goes on answering as its kind is only inspected
SOONEST, GROWTH = 1.0, 2.0  # seconds until the look after a change, and its growth while nothing changes
CALM = 4  # looks without a change after which the rhythm is that of the interval
LOADING_BOUND = 2.0
NUDGE_GAP = 0.5  # seconds between two looks at one endpoint, whatever a feed says
MAX_FEEDS, FEED_GAP, FIRST_RECONNECT, LONGEST_RECONNECT = 64, 0.05, 1.0, 60.0

T = TypeVar("T")
StandIn: TypeAlias = Callable[[Catalog], Awaitable[Endpoint | None]]

log = logging.getLogger("turnout")


def pause(record: Record, quiet: int, interval: float, now: float) -> float:
    """Seconds until an endpoint is looked at again. Pure.

    Args:
        quiet: looks in a row that found no change.
        interval: the longest pause.
    """
    bound = min(LOADING_BOUND, interval) if record.health is Health.LOADING else interval
    wait = min(bound, SOONEST * GROWTH ** min(quiet, 30))
    if record.open and record.health is not Health.OFFLINE:
        wait = min(wait, max(0.0, record.retry_at - now))
    return wait


def assemble(
    seen: Sequence[EndpointStatus], facts: Facts, mains: Mapping[str, str], names: dict[tuple[str, str], str]
) -> list[EndpointStatus]:
    """What is shown of what was seen: silent defaults once, each name once, doubles and children marked.

    Args:
        mains: of the URLs that nobody configured, the default address that they are to lead to.
        names: the names that were given, by URL and the name that was wanted: once given, a name stays.
    """
    return settle(_named(_without_silent_aliases(seen, mains), names), facts)


def _without_silent_aliases(seen: Sequence[EndpointStatus], mains: Mapping[str, str]) -> list[EndpointStatus]:
    """Several addresses may lead to one default server: keep those that answer, or one when none does."""
    shown: dict[str, EndpointStatus] = {}
    for status in sorted(seen, key=_silence):
        shown.setdefault(mains.get(status.endpoint.url) or status.endpoint.url, status)
    return [s for s in seen if not _silence(s) or shown[mains.get(s.endpoint.url) or s.endpoint.url] is s]


def _silence(status: EndpointStatus) -> int:
    """0 for what answers; of the silent ones, one that answered once says more."""
    if status.health not in (Health.OFFLINE, Health.UNKNOWN) or status.unused:
        return 0
    return 1 if status.endpoint.kind else 2


def _named(seen: Sequence[EndpointStatus], names: dict[tuple[str, str], str]) -> list[EndpointStatus]:
    """Unique names: a found server is named for what it is, a second of a kind by its port."""
    taken = {status.endpoint.name: status.endpoint.url for status in seen if status.endpoint.configured}
    for endpoint in (status.endpoint for status in seen):
        given = names.get((endpoint.url, endpoint.name))
        if given is not None and taken.setdefault(given, endpoint.url) != endpoint.url:
            del names[endpoint.url, endpoint.name]
    named: list[EndpointStatus] = []
    for status in seen:
        endpoint = status.endpoint
        wanted = (endpoint.url, endpoint.name)
        if wanted not in names:
            names[wanted] = endpoint.name if endpoint.configured else _free_name(endpoint, taken)
            taken[names[wanted]] = endpoint.url
        name = names[wanted]
        named.append(status if name == endpoint.name else replace(status, endpoint=replace(endpoint, name=name)))
    return named


def _free_name(endpoint: Endpoint, taken: Mapping[str, str]) -> str:
    name = endpoint.name
    if name in taken:
        name = f"{name}-{address_of(endpoint.url).rsplit(':', 1)[-1]}"
    while name in taken:
        name += "x"
    return name


def _lasting(status: EndpointStatus) -> EndpointStatus:
    """A status without what changes from look to look."""
    return replace(status, checked_at=0.0, since=0.0, busy=None, waiting=None, speed=0.0)


class _Refresh:
    """A refresh: ``usable`` is set when somebody serves and the grace has passed, or at its end."""

    def __init__(self, run: Callable[[_Refresh], Coroutine[None, None, None]]) -> None:
        self.usable = asyncio.Event()
        self.task = asyncio.create_task(run(self))
        self.task.add_done_callback(lambda _: self.usable.set())


class Fleet:
    """Every endpoint of a configuration. Use it with ``async with``, or call ``aclose``.

    Args:
        client: the one HTTP client; its guard refuses what the allow-list does not hold.
        config: services, custom endpoints, time limits.
        host: where we run.
        extra: endpoints that are known already (the embedded model).
        stand_in: asked at the end of each refresh; what it gives is looked at and stays.
        inventory: the site's list, which what is there is compared with.
        learned: what answers have taught.
        verifier: holds models against the lock file; None verifies nothing.
    """

    def __init__(
        self,
        client: HttpClient,
        config: RouterConfig,
        host: HostInfo,
        *,
        extra: Iterable[Endpoint] = (),
        stand_in: StandIn | None = None,
        inventory: Inventory | None = None,
        learned: Learned | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.learned, self.verifier = learned or Learned(), verifier
        if verifier is not None:
            verifier.on_checked(self._check_again)
        self._client, self._config, self._stand_in, self._inventory = client, config, stand_in, inventory
        listed = endpoints_of(inventory) if inventory else ()
        wanted = (*(Target(endpoint) for endpoint in (*listed, *extra)), *targets(config, host))
        self._targets: dict[str, Target] = {}
        for target in wanted:
            self._targets.setdefault(target.endpoint.url, target)
        self._mains = {target.endpoint.url: target.main for target in wanted if target.main}
        self._interval = max(config.discovery.interval / 1000, len(self._targets) / LOOKS_PER_SECOND)
        self.book = HealthBook()
        self.book.on_change = lambda endpoint: self.nudge(endpoint.url)
        self.catalog = Catalog(tuple(_awaited(target) for target in self._targets.values()))
        self._seen: dict[str, EndpointStatus] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._counts: dict[str, int] = {}
        self._quiet: dict[str, int] = {}
        self._due: dict[str, float] = {}  # written while watching only
        self._looked: dict[str, float] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._refreshed = 0.0
        self._drift: frozenset[tuple[str, str]] = frozenset()
        self._facts = Facts()
        self._facts_for: frozenset[str] = frozenset()
        self._changed = self._touched = False
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._current: _Refresh | None = None
        self._next: _Refresh | None = None
        self._watching: asyncio.Task[None] | None = None
        self._feeds: dict[str, tuple[Endpoint, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every task that was started. Safe to call twice."""
        tasks = [*self._looks.values(), *(task for _, task in self._feeds.values()), *self._ending]
        tasks += [refresh.task for refresh in (self._current, self._next) if refresh is not None]
        tasks += [self._watching] if self._watching is not None else []
        self._watching = None
        if self.verifier is not None:
            await self.verifier.aclose()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self, *, whole: bool = True) -> Catalog:
        """Look at every endpoint again: one refresh at a time, and all who ask while one runs share the next.

        Args:
            whole: wait for all; else only until somebody serves and a short grace has passed.
        """
        if self._current is None or self._current.task.done():
            refresh = self._current = self._next or _Refresh(self._look_at_all)
            self._next = None
        elif self._next is None:
            refresh = self._next = _Refresh(partial(self._look_after, self._current.task))
        else:
            refresh = self._next
        if not whole:
            await refresh.usable.wait()
        if whole or refresh.task.done():
            await asyncio.shield(refresh.task)
        return self.catalog

    async def look_again(self) -> None:
        """For a request that finds nobody suitable: refresh, unless that was done a moment ago."""
        if time.monotonic() - self._refreshed >= AGAIN_AFTER:
            await self.refresh(whole=False)

    async def settled(self) -> Catalog:
        """Wait for the refresh that is under way."""
        if self._current is not None:
            await asyncio.shield(self._current.task)
        return self.catalog

    async def changed(self, generation: int) -> Catalog:
        """Wait for a catalog that is newer than ``generation``; to be asked while watching or refreshing."""
        while self.catalog.generation <= generation:
            await self._news.wait()
        return self.catalog

    def watch(self) -> None:
        """Keep looking until closed: servers come, go and change."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def add(self, endpoints: Iterable[Endpoint]) -> None:
        """Look at these addresses too, from now on (a scan or an announcement named them)."""
        known = {address_of(url) for url in self._targets}
        for endpoint in endpoints:
            if address_of(endpoint.url) in known or len(self._targets) >= MAX_TARGETS:
                continue
            known.add(address_of(endpoint.url))
            self._targets[endpoint.url] = Target(endpoint)
            self._changed = True
            if self._watching is not None:
                self._due[endpoint.url] = time.monotonic()
                self._wake.set()

    def nudge(self, url: str) -> None:
        """Something may have changed at an endpoint: while watching, it is looked at soon."""
        if url in self._due:
            soon = max(time.monotonic(), self._looked.get(url, 0.0) + NUDGE_GAP)
            if soon < self._due[url]:
                self._due[url] = soon
                self._wake.set()

    def look_behind(self, endpoints: Iterable[Endpoint]) -> None:
        """Look at endpoints without anybody waiting for it (those whose circuit is half-open)."""
        for endpoint in endpoints:
            if endpoint.url in self._targets and endpoint.url not in self._looks:
                self._start_look(endpoint.url).add_done_callback(lambda _: self._publish())

    def learn_window(self, endpoint: Endpoint, model: Model, tokens: int) -> None:
        """A model turned out to have so many tokens: from now on it is shown and used with them."""
        self.learned.learn_window(endpoint, model, tokens)
        status = self._seen.get(endpoint.url)
        if status is not None:
            models = tuple(self.learned.windowed(endpoint, m) if m.id == model.id else m for m in status.models)
            self._seen[endpoint.url] = replace(status, models=models)
            self._changed = True
            self._publish()

    # One endpoint.

    def _start_look(self, url: str) -> asyncio.Task[None]:
        """The look at an endpoint: one at a time."""
        task = self._looks.get(url)
        if task is None:
            task = self._looks[url] = asyncio.create_task(self._look(url))
            task.add_done_callback(lambda _: self._looks.pop(url, None))
        return task

    async def _look(self, url: str) -> None:
        target, last = self._targets[url], self._seen.get(url)
        async with self._room:
            self._looked[url] = time.monotonic()
            anew = self._is_time_to_identify(url)
            found = await look(self._client, target, self._config, last, anew=anew)
            self._take(url, await self.verifier.checked(found, last) if self.verifier is not None else found)

    async def _check_again(self, url: str) -> None:
        """The files of an endpoint's model were read: what came of it is published."""
        while (status := self._seen.get(url)) is not None and self.verifier is not None:
            checked = await self.verifier.checked(status, status)
            if self._seen.get(url) is status:
                self._seen[url], self._changed = checked, True
                self._publish()
                return

    @property
    def checking(self) -> bool:
        """Files of models are being read: those that changed are barred until then."""
        return self.verifier is not None and self.verifier.checking

    async def checked_all(self) -> None:
        """Wait until no files are being read."""
        if self.verifier is not None:
            await self.verifier.checked_all()

    def guarded(self, candidate: Candidate, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The events of an answer; those of a verified model only while it is the same (``Verifier.guarded``)."""
        if self.verifier is None or candidate.verdict.state != "verified" or candidate.endpoint.embedded:
            return events

        def changed() -> None:
            self.look_behind((candidate.endpoint,))

        return self.verifier.guarded(self._client, candidate, events, changed)

    def _is_time_to_identify(self, url: str) -> bool:
        """Every so often an endpoint is identified anew, a different one each time."""
        count = self._counts.get(url)
        if count is None:
            count = len(self._counts) % IDENTIFY_EVERY
        self._counts[url] = count + 1
        return (count + 1) % IDENTIFY_EVERY == 0

    def _take(self, url: str, status: EndpointStatus) -> None:
        """Write down what a look found."""
        last = self._seen.get(url)
        record = self.book.look(status)
        if record.health is Health.OFFLINE and last is not None and last.health is not Health.OFFLINE:
            self.learned.forget_windows(status.endpoint)
        models = tuple(self.learned.windowed(status.endpoint, model) for model in status.models)
        had = frozenset(model.id for model in models) or (last.had if last is not None else frozenset())
        new = replace(
            status, models=models, had=had, health=record.health, reason=record.reason, since=self.book.since(record)
        )
        if status.silent and record.health is Health.DEGRADED and last is not None:
            new = replace(last, health=record.health, reason=record.reason, since=new.since, checked_at=new.checked_at)
        changed = last is None or _lasting(new) != _lasting(last)
        self._seen[url] = new
        self._touched = True
        self._changed = self._changed or changed
        first = last is None
        self._quiet[url] = CALM if first else 0 if changed else self._quiet.get(url, 0) + 1
        if self._watching is not None:
            now = time.monotonic()
            spread = random.uniform(0.0, 1.0) if first else random.uniform(0.9, 1.1)  # noqa: S311
            self._due[url] = now + pause(record, self._quiet[url], self._interval, now) * spread
            self._wake.set()

    # All of them.

    async def _look_at_all(self, refresh: _Refresh) -> None:
        began = time.monotonic()
        # Those that answered the last time first: where there are many, the silent ones keep nobody waiting.
        order = sorted(self._targets, key=lambda url: url in self._seen and not self._seen[url].models)
        pending = {self._start_look(url) for url in order}
        while pending:
            _, pending = await asyncio.wait(pending, timeout=PUBLISH_EVERY)
            await self._gather_facts()
            self._publish()
            if self.catalog.serving and time.monotonic() - began >= GRACE:
                refresh.usable.set()
        if self._stand_in is not None and (endpoint := await self._stand_in(self.catalog)) is not None:
            self._targets.setdefault(endpoint.url, Target(endpoint))
            await self._start_look(endpoint.url)
            self._publish()
        self._refreshed = time.monotonic()

    async def _look_after(self, running: asyncio.Task[None], refresh: _Refresh) -> None:
        """The next refresh, when the one that runs has ended."""
        await asyncio.wait({running})
        self._current, self._next = refresh, None
        await self._look_at_all(refresh)

    async def _watch(self) -> None:
        now, followed = time.monotonic(), -1
        spread = {url: now + self._interval * random.uniform(0.0, 1.0) for url in self._targets}  # noqa: S311
        self._due = spread | self._due
        if self._current is None:
            await self.refresh(whole=False)
        while True:
            if followed != self.catalog.generation:
                followed = self.catalog.generation
                self._follow_feeds()
            now = time.monotonic()
            for url, at in self._due.items():
                if at <= now and url not in self._looks:
                    self._start_look(url)
            waiting = [at for url, at in self._due.items() if url not in self._looks]
            wait = max(PUBLISH_EVERY, min(waiting, default=now + self._interval) - now)
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
                    await asyncio.sleep(PUBLISH_EVERY)  # what changes together is published together
            await self._gather_facts()
            self._publish()

    def _publish(self) -> None:
        """Swap the catalog if a look has ended since."""
        if self._changed:
            self._changed = self._touched = False
            seen = [self._seen.get(url) or _awaited(target) for url, target in self._targets.items()]
            found = assemble(seen, self._facts, self._mains, self._names)
            endpoints = compared(found, self._inventory) if self._inventory else tuple(found)
            self._tell_drift(endpoints)
            self.catalog = Catalog(endpoints, self.catalog.generation + 1, time.time())
            news, self._news = self._news, asyncio.Event()
            news.set()
            self._wake.set()
        elif self._touched and not 0 <= time.time() - self.catalog.made_at < TOUCH_EVERY:
            self._touched = False
            endpoints = tuple(self._touched_up(status) for status in self.catalog.endpoints)
            self.catalog = Catalog(endpoints, self.catalog.generation, time.time())

    def _tell_drift(self, endpoints: Sequence[EndpointStatus]) -> None:
        drift = drift_of(endpoints) if self._inventory else frozenset()
        for name, what in sorted(drift - self._drift if self._watching else ()):
            log.warning("%s: %s", name, what)
        self._drift = drift

    def _touched_up(self, status: EndpointStatus) -> EndpointStatus:
        new = self._seen.get(status.endpoint.url)
        if new is None or new.checked_at == status.checked_at:
            return status
        return replace(status, checked_at=new.checked_at, busy=new.busy, waiting=new.waiting, speed=new.speed)

    async def _gather_facts(self) -> None:
        """Names and processes, asked for again only when other endpoints answer than before."""
        silent = (Health.OFFLINE, Health.UNKNOWN)
        answering = {url: status for url, status in self._seen.items() if status.health not in silent}
        if self._facts_for == answering.keys():
            return
        self._facts_for = frozenset(answering)
        try:
            self._facts = await self._facts_of(answering)
        except Exception:  # two endpoints that are one are better than none
            log.exception("the servers could not be told apart")
        self._changed = True

    async def _facts_of(self, answering: Mapping[str, EndpointStatus]) -> Facts:
        own = self._facts.own or await asyncio.to_thread(own_addresses)
        facts = Facts(own, await self._addresses(answering))
        if not may_have_children(list(answering.values()), facts):
            return facts
        ports = {port for url in answering if (port := _port(url))}
        return replace(facts, owners=await asyncio.to_thread(listeners, ports))

    async def _addresses(self, answering: Mapping[str, EndpointStatus]) -> dict[str, frozenset[str]]:
        """Where the host names lead, by the one resolver, which asks only for names that may be dialled."""
        hosts = {host for url in answering if (host := _host_name(url))}
        found = await asyncio.gather(*(self._client.addresses_of(host) for host in hosts))
        return {host: frozenset(addresses) for host, addresses in zip(hosts, found, strict=True)}

    # Feeds.

    def _follow_feeds(self) -> None:
        """A feed for every endpoint that answers and whose kind has one, and none for others."""
        wanted = {s.endpoint.url: s.endpoint for s in self.catalog.endpoints if s.health is Health.ONLINE}
        for url, (endpoint, task) in list(self._feeds.items()):
            if wanted.get(url) != endpoint:
                task.cancel()
                del self._feeds[url]
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        for url, endpoint in wanted.items():
            if url not in self._feeds and len(self._feeds) < MAX_FEEDS and endpoint.kind in BY_KIND:
                if BY_KIND[endpoint.kind].changes(self._client, endpoint) is not None:
                    self._feeds[url] = endpoint, asyncio.create_task(self._follow(endpoint))

    async def _follow(self, endpoint: Endpoint) -> None:
        """Read one feed for as long as the endpoint is online, connecting again with growing pauses."""
        wait = FIRST_RECONNECT
        while (feed := BY_KIND[endpoint.kind].changes(self._client, endpoint)) is not None:
            try:
                async with aclosing(feed) as lines:
                    async for _ in lines:
                        wait = FIRST_RECONNECT
                        self.nudge(endpoint.url)
                        await asyncio.sleep(FEED_GAP)  # a server that floods us fills its own buffers
                wait = LONGEST_RECONNECT  # it ended by itself: there is no more to hear for now
            except TurnoutError as error:
                log.debug("the feed of %s ended: %s", endpoint.name, error)
            except Exception:  # what one server sends must not end the others' feeds or this one's next try
                log.exception("the feed of %s could not be read", endpoint.name)
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311
            wait = min(LONGEST_RECONNECT, wait * GROWTH)


def _awaited(target: Target) -> EndpointStatus:
    return status_of(target.endpoint, Health.UNKNOWN, "not looked at yet")


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or 0


def _host_name(url: str) -> str:
    """The host when it is a name, which may lead anywhere."""
    host = "" if url.startswith("unix:") else urlsplit(url).hostname or ""
    return host if host and ":" not in host and not host.replace(".", "").isdigit() else ""
