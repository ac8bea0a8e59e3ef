"""One server is one endpoint: reached by two addresses, run by another server for itself, or behind a front end. Pure.

Nothing is dropped: what is not used stays in the catalog and says why (SPEC SVC-3; facts/services.md, sections 0, 15).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from turnout.backends import BY_KIND
from turnout.fleet.catalog import EndpointStatus
from turnout.guard.allow import HOSTS_FILE_NAMES
from turnout.types import Health, Model

HERE = "here"  # every name and address of this machine
_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost", *HOSTS_FILE_NAMES})
_ANSWERS = (Health.ONLINE, Health.LOADING, Health.DEGRADED, Health.NEEDS_KEY)
_LISTS = (Health.ONLINE, Health.LOADING, Health.DEGRADED)
MAX_NAMES = 5


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of addresses and processes; empty where it cannot be known.

    Attributes:
        own: this machine's addresses beyond loopback.
        names: the addresses that a host name led to.
        owners: for a listening ``(address, port)`` of this machine, its process and the ancestors of that, nearest
            first; the address is ``0.0.0.0`` or ``::`` for a server that listens on all.
    """

    own: frozenset[str] = frozenset()
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    owners: Mapping[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads: ``HERE`` or addresses, and the port."""

    hosts: frozenset[str]
    port: int


def place_of(url: str, facts: Facts) -> Place | None:
    """Where ``url`` leads, None for a socket or what cannot be read."""
    if url.startswith("unix:"):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    addresses = facts.names.get(host, frozenset()) | {host}
    hosts = {HERE if a in _THIS_MACHINE or a in facts.own else a for a in addresses}
    return Place(frozenset(hosts), port)


def settle(seen: Sequence[EndpointStatus], facts: Facts) -> list[EndpointStatus]:
    """The same endpoints in the same order, those that are somebody else's double or child marked as unused."""
    places = [place_of(status.endpoint.url, facts) for status in seen]
    settled = _without_doubles(seen, places)
    settled = _without_children(settled, places, facts)
    return _without_models_of_fronts(_with_fronts_noted(settled), places)


def may_have_children(seen: Sequence[EndpointStatus], facts: Facts) -> bool:
    """Whether the process tree could tell anything: two servers of this machine answer, one of them unconfigured."""
    local = [s for s in seen if s.health in _ANSWERS and _is_here(place_of(s.endpoint.url, facts))]
    return len(local) > 1 and any(not s.endpoint.configured for s in local)


def _is_here(place: Place | None) -> bool:
    return place is not None and HERE in place.hosts


def _without_doubles(seen: Sequence[EndpointStatus], places: Sequence[Place | None]) -> list[EndpointStatus]:
    """The configured one stays, else the most preferred; the order between equals is that of the targets."""
    settled = list(seen)
    kept: dict[tuple[str, int, str], list[int]] = {}
    order = sorted(range(len(seen)), key=lambda n: (not seen[n].endpoint.configured, seen[n].endpoint.priority, n))
    for number in order:
        status, place = seen[number], places[number]
        if place is None or status.health not in _ANSWERS or status.unused or not status.endpoint.kind:
            continue
        keys = [(host, place.port, status.endpoint.kind) for host in sorted(place.hosts)]
        others = (seen[other] for key in keys for other in kept.get(key, ()))
        same = next((other for other in others if _same(other, status)), None)
        if same is not None:
            settled[number] = replace(status, unused=f"the same server as {same.endpoint.name}")
            continue
        for key in keys:
            kept.setdefault(key, []).append(number)
    return settled


def _same(kept: EndpointStatus, other: EndpointStatus) -> bool:
    """Of one kind at one place: also the same version and models, as far as both tell."""
    if kept.version and other.version and kept.version != other.version:
        return False
    if other.health in _LISTS:
        return _models(kept) == _models(other)
    return True  # it tells no model without a key


def _models(status: EndpointStatus) -> frozenset[tuple[str, str]]:
    return frozenset((model.id, model.digest) for model in status.models)


def _without_children(
    seen: Sequence[EndpointStatus], places: Sequence[Place | None], facts: Facts
) -> list[EndpointStatus]:
    """A server that another one told of, or started: only the user's own word makes it an endpoint."""
    told = _told_children(seen, places, facts)
    owners = [_owners(place, facts) if place is not None else () for place in places]
    started_by = {pids[0]: n for n, pids in enumerate(owners) if pids and seen[n].health in _ANSWERS}
    settled, parent_of = list(seen), dict[int, int]()
    for number, status in enumerate(seen):
        if status.unused or status.endpoint.configured or status.health not in _ANSWERS:
            continue
        parents = [told[key] for key in _keys(places[number]) if key in told]
        parents += [started_by[pid] for pid in owners[number][1:] if pid in started_by]
        parents += _of_kind(status.child_of, number, seen, places)
        # Of servers that call each other children one stays in use.
        parent = next((n for n in parents if number not in _line_of(n, parent_of)), None)
        if parent is not None:
            parent_of[number] = parent
            settled[number] = replace(status, unused=f"{seen[parent].endpoint.name} runs it for itself alone")
    return settled


def _line_of(number: int, parent_of: Mapping[int, int]) -> list[int]:
    """The server, its parent, the parent of that, and so on: the map holds no cycle."""
    line = [number]
    while (parent := parent_of.get(line[-1])) is not None:
        line.append(parent)
    return line


def _of_kind(kind: str, child: int, seen: Sequence[EndpointStatus], places: Sequence[Place | None]) -> list[int]:
    """The servers of a kind on the child's machine."""
    own = places[child]
    if not kind or own is None:
        return []
    alike = (n for n, status in enumerate(seen) if status.endpoint.kind == kind and status.health in _ANSWERS)
    return [n for n in alike if (place := places[n]) is not None and place.hosts & own.hosts]


def _keys(place: Place | None) -> list[tuple[str, int]]:
    return [(host, place.port) for host in sorted(place.hosts)] if place is not None else []


def _told_children(
    seen: Sequence[EndpointStatus], places: Sequence[Place | None], facts: Facts
) -> dict[tuple[str, int], int]:
    """Where the children are that servers tell of; what one calls local is local to its own machine."""
    told: dict[tuple[str, int], int] = {}
    for number, (status, own) in enumerate(zip(seen, places, strict=True)):
        for url in status.children:
            child = place_of(url, facts)
            if child is None or own is None:
                continue
            hosts = own.hosts if child.hosts == {HERE} else child.hosts
            told |= {(host, child.port): number for host in hosts}
    return told


def _owners(place: Place, facts: Facts) -> tuple[int, ...]:
    if HERE not in place.hosts:
        return ()
    for address in ("127.0.0.1", "::1", *sorted(facts.own), "0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        if pids := facts.owners.get((address, place.port)):
            return pids
    return ()


def _with_fronts_noted(seen: Sequence[EndpointStatus]) -> list[EndpointStatus]:
    """A front end whose every model is one of a known server says so, used or not."""
    settled = list(seen)
    for number, status in enumerate(seen):
        if not _is_front(status):
            continue
        behind = _servers_of(status, seen)
        if behind:
            shown = ", ".join(behind[:MAX_NAMES]) + (" and others" if len(behind) > MAX_NAMES else "")
            settled[number] = replace(status, notes=(*status.notes, f"its models are those of {shown}"))
    return settled


def _is_front(status: EndpointStatus) -> bool:
    return bool(status.children) or _leads_elsewhere(status)


def _servers_of(front: EndpointStatus, seen: Sequence[EndpointStatus]) -> list[str]:
    """The servers that together have all of the front end's models; empty when some are nobody's."""
    left, names = {model.id for model in front.models} | {name for name, _ in front.excluded}, []
    for status in seen:
        if status is front or _is_front(status) or status.unused.startswith("the same server"):
            continue
        shared = left & {model.id for model in status.models}
        if shared:
            left -= shared
            names.append(status.endpoint.name)
    return names if not left else []


def _without_models_of_fronts(seen: Sequence[EndpointStatus], places: Sequence[Place | None]) -> list[EndpointStatus]:
    """A front end's model that a server of its own machine has is asked for there alone: one GPU is not counted twice.

    A server of another machine may have a model of the same name: that is only noted.
    """
    settled = list(seen)
    for number, (status, own) in enumerate(zip(seen, places, strict=True)):
        if status.unused or own is None or not _leads_elsewhere(status):
            continue
        beside = [
            other
            for other, place in zip(seen, places, strict=True)
            if place is not None and place.hosts & own.hosts and other.health in _LISTS
            if not other.unused and not _is_front(other)
        ]
        owners = {model.id: owner for model in status.models if (owner := _owner(model, beside))}
        if owners:
            names = ", ".join(sorted(set(owners.values()))[:MAX_NAMES])
            left = tuple(model for model in status.models if model.id not in owners)
            moved = tuple((name, f"{owner} has it, and is asked for it directly") for name, owner in owners.items())
            unused = "" if left else f"its models are those of {names}, asked for there directly"
            settled[number] = replace(status, models=left, excluded=(*status.excluded, *moved), unused=unused)
    return settled


def _leads_elsewhere(status: EndpointStatus) -> bool:
    backend = BY_KIND.get(status.endpoint.kind)
    return backend is not None and not backend.routed


def _owner(model: Model, servers: Sequence[EndpointStatus]) -> str:
    """The first server with the same model, as far as both tell; "" when none has it."""
    return next((s.endpoint.name for s in servers if any(_alike(model, other) for other in s.models)), "")


def _alike(one: Model, other: Model) -> bool:
    if one.id != other.id:
        return False
    told = ((one.digest, other.digest), (one.size, other.size), (one.max_window, other.max_window))
    return all(a == b for a, b in told if a and b)
