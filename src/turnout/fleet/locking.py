"""Recording what the served models are, for the lock file, and reading all of their files anew (SPEC SEC-4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import BY_KIND
from turnout.errors import BackendError, GuardError
from turnout.fleet.catalog import Catalog, EndpointStatus, address_of
from turnout.fleet.identity import files_of, seen_of
from turnout.guard.identity import Digests, Files, weights_digest
from turnout.guard.modelslock import Lock, LockedFile, LockedModel, judged
from turnout.types import Endpoint, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient

TELL_SECONDS = 5.0

log = logging.getLogger("turnout")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded.

    Attributes:
        lock: to be signed and written.
        kept: records of endpoints that list nothing now, taken over from before.
        changed: models that are not what they were recorded as before, each with what differs.
    """

    lock: Lock
    kept: int
    changed: tuple[tuple[str, str], ...]


def served(catalog: Catalog) -> Iterator[tuple[EndpointStatus, Model]]:
    """Every model that could be chosen, but for the bundled one."""
    for status in catalog.endpoints:
        if not status.endpoint.embedded and not status.unused:
            for model in status.models:
                yield status, model


async def record(
    client: HttpClient,
    catalog: Catalog,
    folders: Sequence[Path],
    digests: Digests,
    before: Lock | None,
    told: Callable[[str], None],
) -> Recorded:
    """Read every served model's files, and put down what it is.

    Args:
        folders: where weights may be beside the usual places and those that servers tell.
        before: what was recorded the last time.
        told: hears what is being read.
    """
    models, changed = list[LockedModel](), list[tuple[str, str]]()
    for status, model in served(catalog):
        made = await _recorded(client, status.endpoint, model, folders, digests, told)
        models.append(made)
        if before is not None:
            verdict = judged(before, seen_of(status.endpoint, model, made.weights))
            if verdict.state == "mismatch":
                changed.append((f"{model.id} @ {status.endpoint.name}", verdict.why))
    there = {made.address for made in models}
    kept = [old for old in before.models if old.address not in there] if before is not None else []
    lock = Lock(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        folders=tuple(str(folder) for folder in folders),
        models=(*models, *kept),
    )
    return Recorded(lock, len(kept), tuple(changed))


async def _recorded(
    client: HttpClient,
    endpoint: Endpoint,
    model: Model,
    folders: Sequence[Path],
    digests: Digests,
    told: Callable[[str], None],
) -> LockedModel:
    files = await asyncio.to_thread(files_of, endpoint, model, folders)
    read = await read_files(files, digests, told) if files is not None else ()
    weights = ""
    if files is not None and read:
        by_path = dict(zip(files.paths, (each.sha256 for each in read), strict=True))
        weights = weights_digest(files, by_path.get) or ""
    elif model.digest:
        weights = await _told_weights(client, endpoint, model)
    return LockedModel(
        id=model.id,
        service=endpoint.name,
        kind=endpoint.kind,
        address=address_of(endpoint.url),
        digest=model.digest.removeprefix("sha256:"),
        weights=weights,
        path=str(_place(files)) if files is not None and read else "",
        files=read,
        parameters=model.parameters,
        size=model.size,
        vocabulary=model.weights.vocabulary,
        template=model.weights.template,
        quantization=model.quantization,
    )


def _place(files: Files) -> Path:
    return files.paths[0] if len(files.paths) == 1 or files.paths[0].suffix == ".gguf" else files.paths[0].parent


@dataclass(slots=True)
class _Progress:
    """How far a file was read, in words."""

    name: str
    size: int
    told: Callable[[str], None]
    done: int = 0

    def read(self, count: int) -> None:
        self.done += count
        self.told(f"reading {self.name}: {self.done / max(1, self.size):.0%}")


async def read_files(
    files: Files, digests: Digests, told: Callable[[str], None], *, anew: bool = False
) -> tuple[LockedFile, ...]:
    """The files with their digests; none, with a warning, when one of them cannot be read.

    Args:
        anew: read also what was read before.
    """
    found = []
    for path in files.paths:
        try:
            size = path.stat().st_size
            progress = _Progress(path.name, size, told)
            digest = await asyncio.to_thread(digests.digest, path, progress.read, anew=anew)
            found.append(LockedFile(path.name, size, digest))
        except OSError as error:
            log.warning("the weights of a model cannot be read: %s", error)
            return ()
    return tuple(found)


async def _told_weights(client: HttpClient, endpoint: Endpoint, model: Model) -> str:
    """The digest of the weights themselves, where a server tells it: they may be elsewhere under another name."""
    try:
        return (await BY_KIND[endpoint.kind].details(client, endpoint, model, TELL_SECONDS)).weights
    except (BackendError, GuardError):
        return ""
