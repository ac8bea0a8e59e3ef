"""What runs where: an immutable snapshot. Discovery builds a new one and swaps the reference; nobody changes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from turnout.backends.base import Details
from turnout.types import Endpoint, Health, Model


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


@dataclass(frozen=True, slots=True)
class Catalog:
    """All endpoints at one moment. ``generation`` grows with every swap."""

    endpoints: tuple[EndpointStatus, ...] = ()
    generation: int = 0
    made_at: float = field(default=0.0)

    @property
    def serving(self) -> tuple[EndpointStatus, ...]:
        """Endpoints that can answer now, or soon (loading), and list a model."""
        able = (Health.ONLINE, Health.LOADING)
        return tuple(s for s in self.endpoints if s.health in able and s.models and not s.unused)

    @property
    def probed(self) -> tuple[tuple[str, str], ...]:
        """``(where, what was found)`` for people."""
        return tuple((f"{s.endpoint.name} {s.endpoint.url}", f"{s.health}: {s.reason}") for s in self.endpoints)
