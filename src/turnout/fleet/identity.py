"""Whether each served model is the one that was recorded: looked at with every look, files read behind (SPEC SEC-4).

A model whose digest or files are known costs a look at its files' times. One that changed is barred until it is read.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from turnout.backends import BY_KIND
from turnout.errors import BackendError, GuardError, ModelChangedError, StorageError
from turnout.fleet.catalog import EndpointStatus, address_of
from turnout.fleet.dedupe import HERE, Facts, place_of
from turnout.guard.identity import (
    Digests,
    Files,
    Stamp,
    StoppedError,
    find_files,
    misnamed,
    stamp_of,
    weights_digest,
)
from turnout.guard.modelslock import SHOWN, Lock, LockedModel, Seen, judged, read_lock, records_of
from turnout.guard.signing import Signer
from turnout.types import Candidate, Endpoint, Health, Model
from turnout.weights import Verdict

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient

T = TypeVar("T")
CONFIRM_SECONDS = 2.0
MISMATCH, CHANGED, BROKEN = "security:model_mismatch", "security:model_changed", "security:models_lock"
_PINNED = Verdict("verified", "its weights are pinned in this package")

log = logging.getLogger("turnout")


@dataclass(frozen=True, slots=True)
class Rules:
    """How models are verified.

    Attributes:
        lock: the lock file; ``required`` when it must be there.
        folders: where weights may be beside the places that servers tell.
        unverified: what becomes of a model that cannot be verified.
    """

    lock: Path
    required: bool
    folders: tuple[Path, ...]
    unverified: Literal["serve", "refuse"]


def is_here(endpoint: Endpoint) -> bool:
    """Whether a path that its server tells is one of this machine."""
    place = place_of(endpoint.url, Facts())
    return endpoint.url.startswith("unix:") or (place is not None and HERE in place.hosts)


def files_of(endpoint: Endpoint, model: Model, folders: Sequence[Path], path: str = "") -> Files | None:
    """The files of a served model on this machine, None when they cannot be found.

    Args:
        folders: where they may be beside the places that are usual or told.
        path: where they were once.
    """
    if not is_here(endpoint):
        return None
    backend = BY_KIND[endpoint.kind]
    return backend.files_of(model, folders) or (find_files(path, model.id, ()) if path else None)


def known_weights(
    endpoint: Endpoint, model: Model, digests: Digests, folders: Sequence[Path], lock: Lock | None
) -> str:
    """The digest of a model's weights as far as it is known without reading them, or ""."""
    with suppress(OSError):
        files = files_of(endpoint, model, folders)
        if files is not None and (found := weights_digest(files, digests.known)):
            return found
    recorded = (r.weights for r in lock.models if model.digest and r.digest == model.digest) if lock else ()
    return next((weights for weights in recorded if weights), "")


class Verifier:
    """Holds what is served against the lock file. Of one event loop.

    Args:
        alarm: told ``(event, what, model)`` of what must be known, for the log and the audit log; model "" for none.
    """

    def __init__(self, rules: Rules, signer: Signer, digests: Digests, alarm: Callable[[str, str, str], None]) -> None:
        self._rules, self._signer, self._digests, self._alarm = rules, signer, digests, alarm
        self._lock: Lock | None = None
        self._broken = ""
        self._read_at: Stamp | tuple[()] | None = None
        self._alarmed: dict[tuple[str, str], str] = {}
        self._held: dict[tuple[str, str], tuple[tuple[Path, Stamp], ...]] = {}
        self._unreadable: dict[tuple[Path, ...], tuple[tuple[Path, Stamp], ...]] = {}
        self._jobs: dict[tuple[str, tuple[Path, ...]], asyncio.Task[None]] = {}
        self._one, self._mutex = asyncio.Lock(), threading.Lock()
        self._changed: Callable[[str], Awaitable[None]] | None = None

    def on_checked(self, changed: Callable[[str], Awaitable[None]]) -> None:
        """Who is told the URL of an endpoint of which a model's files were read."""
        self._changed = changed

    @property
    def checking(self) -> bool:
        """Files are being read."""
        return bool(self._jobs)

    async def checked_all(self) -> None:
        """Wait until no files are being read."""
        while self._jobs:
            await asyncio.wait(list(self._jobs.values()))

    def forget_digests(self) -> None:
        """Another has read files: what it found is in the file of the digests."""
        self._digests.forget()

    async def aclose(self) -> None:
        """End what is being read. Safe to call twice."""
        self._digests.stopped.set()
        for job in list(self._jobs.values()):
            job.cancel()
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)

    # Verdicts.

    async def checked(self, status: EndpointStatus, last: EndpointStatus | None) -> EndpointStatus:
        """A status with the verdict on each of its models."""
        if not status.models:
            return status
        verdicts, unread = await asyncio.to_thread(self._judge_all, status)
        for files in unread:
            self._start_reading(status.endpoint.url, files)
        self._tell(status, verdicts, last)
        return replace(status, verdicts=verdicts)

    def _judge_all(self, status: EndpointStatus) -> tuple[dict[str, Verdict], list[Files]]:
        with self._mutex:
            self._read_the_lock()
        unread: list[Files] = []
        if self._lock is None and not self._broken:
            return {}, unread
        return {model.id: self._judge(status.endpoint, model, unread) for model in status.models}, unread

    def _read_the_lock(self) -> None:
        """Anew when it has changed."""
        try:
            stamp: Stamp | tuple[()] = stamp_of(self._rules.lock)
        except OSError as error:  # of anything but its absence, reading it says why
            gone = isinstance(error, FileNotFoundError) and not self._rules.lock.is_symlink()
            stamp = () if gone else (-1, -1, -1, -1, -1)
        if stamp == self._read_at:
            return
        self._read_at, before, had = stamp, self._broken, self._lock is not None
        try:
            self._lock, self._broken = read_lock(self._rules.lock, self._signer.public) if stamp else None, ""
            if self._lock is None and self._rules.required:
                self._broken = f"the lock file {self._rules.lock} is not there; `turnout models lock` makes it"
        except StorageError as error:
            self._lock, self._broken = None, str(error)
        if self._broken and self._broken != before:
            self._alarm(BROKEN, self._broken, "")
        elif had and self._lock is None:
            gone_now = f"the lock file {self._rules.lock} is gone: models are not verified any more"
            self._alarm(BROKEN, gone_now, "")

    def _judge(self, endpoint: Endpoint, model: Model, unread: list[Files]) -> Verdict:
        if endpoint.embedded:
            return _PINNED
        if self._lock is None:
            return Verdict("unverified", "the lock file cannot be trusted", self._broken)
        records = records_of(self._lock, model.id, address_of(endpoint.url))
        verdict = judged(self._lock, self._seen(endpoint, model, records, unread))
        if verdict.state in ("unverified", "checking") and self._rules.unverified == "refuse" and not verdict.barred:
            verdict = replace(verdict, barred=f"{verdict.why}, and security.unverified_models is refuse")
        return verdict

    def _seen(self, endpoint: Endpoint, model: Model, records: list[LockedModel], unread: list[Files]) -> Seen:
        """The model as it is, its files listed in ``unread`` when they have to be read."""
        assert self._lock is not None
        path = next((r.path for r in records if r.path), "")
        folders = (*self._rules.folders, *map(Path, self._lock.folders))
        weights: str | None = ""
        problem, held = "", tuple[tuple[Path, Stamp], ...]()
        files = files_of(endpoint, model, folders, path)
        if files is not None and (records or self._rules.unverified == "refuse"):
            with suppress(OSError):  # what cannot be read is not to be had
                # Times first: what is written while digests are looked up shows in them.
                held = tuple((p, stamp_of(p)) for p in files.paths)
                problem = misnamed(files, self._digests.known)
                if all(self._digests.known(p) for p in files.paths):
                    weights = weights_digest(files, self._digests.known)
                elif self._unreadable.get(files.paths) != held:
                    unread.append(files)
                    weights = None
        self._held[endpoint.url, model.id] = held
        return seen_of(endpoint, model, weights, problem)

    def _tell(self, status: EndpointStatus, verdicts: dict[str, Verdict], last: EndpointStatus | None) -> None:
        """Alarm once for each mismatch, and for a name that means other weights than before."""
        before = {model.id: model.digest for model in last.models} if last is not None else {}
        for model in status.models:
            key, label = (status.endpoint.url, model.id), f"{model.id} @ {status.endpoint.name}"
            verdict = verdicts.get(model.id)
            wrong = verdict.why if verdict is not None and verdict.state == "mismatch" else ""
            if wrong and self._alarmed.get(key) != wrong:
                self._alarm(MISMATCH, f"{label} is blocked: {wrong}", model.id)
            old = before.get(model.id, "")
            if verdict is None and old and model.digest and old != model.digest:
                said = f"its digest is {model.digest[:SHOWN]}…, a moment ago it was {old[:SHOWN]}…"
                self._alarm(CHANGED, f"{label} has other weights than before: {said}", model.id)
            self._alarmed[key] = wrong

    # Files.

    def _start_reading(self, url: str, files: Files) -> None:
        key = url, files.paths
        if key not in self._jobs:
            self._jobs[key] = asyncio.create_task(self._read_files(url, files))
            self._jobs[key].add_done_callback(lambda _: self._jobs.pop(key, None))

    async def _read_files(self, url: str, files: Files) -> None:
        """One model at a time: a disk that is asked for many things at once is slower."""
        async with self._one:
            try:
                held = tuple((path, stamp_of(path)) for path in files.paths)
                for path in files.paths:
                    await asyncio.to_thread(self._digests.digest, path)
            except StoppedError:
                return
            except OSError as error:
                log.warning("the files of a model cannot be read to verify it: %s", error)
                self._unreadable[files.paths] = held
        if self._changed is not None:
            await self._changed(url)

    # Requests.

    async def guarded(
        self, client: HttpClient, candidate: Candidate, events: AsyncGenerator[T, None], changed: Callable[[], None]
    ) -> AsyncGenerator[T, None]:
        """The events of a verified model's answer, of which none is handed on before it is confirmed.

        The server is asked while the model computes, so that nobody waits longer.

        Args:
            changed: told when it is not the same any more.

        Raises:
            ModelChangedError: it is not the same.
        """
        confirming: asyncio.Task[str] | None = asyncio.create_task(self._difference(client, candidate))
        try:
            async with aclosing(events):
                async for event in events:
                    if confirming is not None:
                        if why := await confirming:
                            changed()
                            where = candidate.endpoint.name
                            raise ModelChangedError(f"{where}: {candidate.model.id}: {why}", endpoint=where)
                        confirming = None
                    yield event
        finally:
            if confirming is not None:
                confirming.cancel()

    async def _difference(self, client: HttpClient, candidate: Candidate) -> str:
        """What has changed since the model was verified, or ""."""
        endpoint, model = candidate.endpoint, candidate.model
        for path, stamp in self._held.get((endpoint.url, model.id), ()):
            try:
                if stamp_of(path) != stamp:
                    return f"{path.name} has changed since it was verified"
            except OSError as error:
                return f"{path.name} is gone since it was verified: {error.strerror or error}"
        if not model.digest:
            return ""
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                found = await BY_KIND[endpoint.kind].inspect(client, endpoint, CONFIRM_SECONDS)
        except (BackendError, GuardError, TimeoutError) as error:
            if self._rules.unverified == "refuse":
                return f"its server did not confirm it, and security.unverified_models is refuse: {error}"
            return ""  # the verdict of the last look holds
        now = next((m.digest for m in found.models if m.id == model.id), None)
        if now is None:
            return "" if found.health is not Health.ONLINE else "it is not in its server's list any more"
        return "" if now == model.digest else f"its digest is {now[:SHOWN]}…, verified was {model.digest[:SHOWN]}…"


def seen_of(endpoint: Endpoint, model: Model, weights: str | None, problem: str = "") -> Seen:
    """A served model as it is held against its record."""
    return Seen(
        model.id,
        endpoint.kind,
        address_of(endpoint.url),
        digest=model.digest.removeprefix("sha256:"),
        weights=weights,
        parameters=model.parameters,
        size=model.size,
        vocabulary=model.weights.vocabulary,
        template=model.weights.template,
        problem=problem,
    )
