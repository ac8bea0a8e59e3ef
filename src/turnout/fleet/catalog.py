"""What runs where: an immutable snapshot. Discovery builds a new one and swaps the reference; nobody changes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from turnout.types import Details, Endpoint, Health, Model
from turnout.weights import Verdict

LEADS_ELSEWHERE = "leads to other servers: used when it is configured"  # why a front end is not used


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One endpoint as it was last seen.

    Attributes:
        endpoint: where it is and how it is spoken to.
        health: what it can do now; ``reason`` says why.
        checked_at: seconds since the epoch.
        version: the server's, "" when it does not tell.
        models: what it serves, models that it only proxies to elsewhere left out.
        excluded: ids of models that are left out, with the reason.
        slots: requests it serves at once, 0 when it does not tell.
        busy, waiting: requests that run and queue there, None when it does not tell.
        capacity: models it keeps loaded at once, 0 when it does not tell.
        evidence: by which reply it was recognised, for people.
        notes: what an air-gap audit wants to know of it.
        lasting_notes: those of them that hold until it is identified anew.
        details: what it told of one model at a time, by id and digest: it is not asked again.
        child_of: the kind of server that most likely started it for itself, or "".
        unused: why nothing is routed to it although it answers, or "".
        since: when it took this state, in seconds since the epoch; 0.0 when it was only looked at once, by itself.
        silent: nothing came back within the time limit, which a server that computes may do.
        children: addresses of servers that it runs for itself alone.
        speed: tokens a second that it generates or last generated, 0.0 when it does not tell.
        had: ids of the models that it listed when it last listed any.
        verdicts: whether each model, by its id, is the one that was recorded.
    """

    endpoint: Endpoint
    health: Health
    reason: str
    checked_at: float
    version: str = ""
    models: tuple[Model, ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()
    slots: int = 0
    busy: int | None = None
    waiting: int | None = None
    capacity: int = 0
    evidence: str = ""
    notes: tuple[str, ...] = ()
    lasting_notes: tuple[str, ...] = ()
    details: Mapping[tuple[str, str], Details] = field(default_factory=dict)
    child_of: str = ""
    unused: str = ""
    since: float = 0.0
    silent: bool = False
    children: tuple[str, ...] = ()
    speed: float = 0.0
    had: frozenset[str] = frozenset()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All endpoints at one moment. ``generation`` grows with every swap that changes more than load and times."""

    endpoints: tuple[EndpointStatus, ...] = ()
    generation: int = 0
    made_at: float = field(default=0.0)

    @property
    def waits(self) -> bool:
        """Some endpoint has not been looked at yet."""
        return any(s.health is Health.UNKNOWN and not s.unused for s in self.endpoints)

    @property
    def serving(self) -> tuple[EndpointStatus, ...]:
        """Endpoints that can answer now, soon (loading) or perhaps (degraded), and list a model."""
        able = (Health.ONLINE, Health.LOADING, Health.DEGRADED)
        return tuple(s for s in self.endpoints if s.health in able and s.models and not s.unused)

    @property
    def away(self) -> tuple[EndpointStatus, ...]:
        """Endpoints that cannot be asked now, and may be again."""
        able = {id(s) for s in self.serving}
        return tuple(s for s in self.endpoints if id(s) not in able and not s.unused)

    @property
    def probed(self) -> tuple[tuple[str, str], ...]:
        """``(where, what was found)`` for people."""
        return tuple((f"{s.endpoint.name} {s.endpoint.url}", f"{s.health}: {s.reason}") for s in self.endpoints)


def address_of(url: str) -> str:
    """The address a URL means, so that ``localhost`` and ``127.0.0.1`` are one."""
    if url.startswith("unix:"):
        return url
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}{parts.path}"
