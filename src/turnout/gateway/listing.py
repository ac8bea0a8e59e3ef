"""The names that may be asked for, and what stands behind each: one source for the lists of every API.

Servers' ids come first, then canonical names, then the virtual models. A name stands here once and goes where it says:
a server's model that is called like a virtual one is listed as ``id@endpoint``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from turnout.errors import NoSuitableModelError, NotPermittedError
from turnout.router import Router
from turnout.routing.advice import few_of
from turnout.routing.select import PICKER_PREFIX
from turnout.types import VIRTUAL_MODELS, Candidate, Principal

SLICE_SECONDS = 0.005  # that a listing holds up other requests at a time: each name is held against every model
VIRTUAL = tuple(sorted(VIRTUAL_MODELS, key=lambda name: (name != "auto", name)))
Kind: TypeAlias = Literal["id", "canonical", "virtual", "alias"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A name that may be asked for.

    Attributes:
        name: what is sent as ``model``.
        candidates: who may answer, the first choice first.
    """

    name: str
    kind: Kind
    candidates: tuple[Candidate, ...]

    @property
    def widest(self) -> Candidate | None:
        """Whoever has the largest window, where a prompt goes that fits nowhere else; None when nobody may answer."""
        usable = [c for c in self.candidates if not c.model.load_first] or self.candidates
        return max(usable, key=lambda c: c.window, default=None)

    @property
    def window(self) -> int:
        """Tokens that a request by this name can have, the answer included; 0 when nobody may answer."""
        return self.widest.window if self.widest else 0


async def listed(router: Router, who: Principal) -> tuple[Listed, ...]:
    """Every name, but for aliases, that may be asked for."""
    await _seen(router)
    pool = router.pool
    names: dict[str, Kind] = dict.fromkeys(map(_listed_id, pool), "id")
    ids = {_plain(candidate.model.id) for candidate in pool}
    names |= {c.canonical: "canonical" for c in pool if c.canonical and _plain(c.canonical) not in ids}
    names |= dict.fromkeys(VIRTUAL, "virtual")
    found, until = list[Listed | None](), time.monotonic() + SLICE_SECONDS
    for name, kind in names.items():
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + SLICE_SECONDS
        found.append(_named(router, who, name, kind))
    return await _settled(router, [one for one in found if one is not None])


def aliases(names: Iterable[Listed]) -> list[Listed]:
    """For a picker that shows no other names: one for each model, and for each virtual one."""
    names = tuple(names)
    canonical = {one.name for one in names if one.kind == "canonical"}
    taken = {one.name for one in names}
    made = [
        Listed(PICKER_PREFIX + one.name, "alias", one.candidates)
        for one in names
        if one.kind != "id" or one.candidates[0].canonical not in canonical
    ]
    return [alias for alias in made if alias.name not in taken]


async def find(router: Router, who: Principal, name: str) -> Listed | None:
    """What is meant by any name that may be asked for, listed or not; None when nobody has it."""
    await _seen(router)
    one = _named(router, who, name, "virtual" if name in VIRTUAL_MODELS else "id")
    if one is None:
        return None
    (settled,) = await _settled(router, [one])
    return settled


async def nobody_has(router: Router, who: Principal, said: str) -> NoSuitableModelError:
    """The error for a name that ``find`` has not found, with some that there are."""
    names = [one.name for one in await listed(router, who)]
    return NoSuitableModelError(said, hint=f"there are: {few_of(names)}; GET /v1/models lists them")


async def _seen(router: Router) -> None:
    if not router.catalog.serving:
        await router.refresh()


def _named(router: Router, who: Principal, name: str, kind: Kind) -> Listed | None:
    try:
        candidates = router.meant(name, who)
    except NotPermittedError:
        return None
    if not candidates and kind != "virtual":
        return None
    return Listed(name, kind, candidates)


def _listed_id(candidate: Candidate) -> str:
    model = candidate.model.id
    return f"{model}@{candidate.endpoint.name}" if model in VIRTUAL_MODELS else model


def _plain(name: str) -> str:
    return name.lower().removesuffix(":latest")


async def _settled(router: Router, found: list[Listed]) -> tuple[Listed, ...]:
    """With the windows that models will have when they are loaded; a server is asked once for each."""
    told = {c.label: c for one in found for c in one.candidates}
    settled = dict(zip(told, await asyncio.gather(*map(router.settled, told.values())), strict=True))
    return tuple(replace(one, candidates=tuple(settled[c.label] for c in one.candidates)) for one in found)
