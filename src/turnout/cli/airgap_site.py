"""Looks at what the air-gap checklist is decided from: this machine, the configuration, the log, and every server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from turnout.build import audit_head_path, models_lock_path, open_audit_log, open_router
from turnout.cli.airgap import Locked, Log, Proof, Reach, Server, Site
from turnout.cli.fleet import rated_candidates
from turnout.cli.prove import in_force, proofs_dir
from turnout.config import LoadedConfig, audit_path, data_dir, signing_dir
from turnout.errors import StorageError, TurnoutError
from turnout.fleet.catalog import Catalog, EndpointStatus, address_of
from turnout.fleet.discovery import Target, look
from turnout.fleet.locking import served
from turnout.guard import kernel
from turnout.guard.chain import decode_link, log_files, read_head, verify
from turnout.guard.keys import keys_path, read_keys
from turnout.guard.modelslock import read_lock
from turnout.guard.network import HttpClient
from turnout.guard.protection import protection
from turnout.guard.prove import KIND
from turnout.guard.report import read_report
from turnout.guard.signing import Signer
from turnout.guard.tokens import MAX_SECONDS
from turnout.routing.select import asked_for
from turnout.types import Health, Json
from turnout.weights import UNCHECKED

_ANSWERS = (Health.ONLINE, Health.LOADING, Health.DEGRADED)


async def look_around(loaded: LoadedConfig) -> Site:
    """The site as it is now. Dials the configured and discovered servers, and nothing else.

    Raises:
        TurnoutError: the configuration, the keys or the log cannot be used.
    """
    log = _log(loaded)
    async with open_router(loaded, whole=True) as router:
        catalog = router.catalog
        waiting = kernel.listening()
        servers = [
            await _server(router.client, loaded, status, waiting)
            for status in catalog.endpoints
            if not status.endpoint.embedded and (status.health is not Health.OFFLINE or status.endpoint.configured)
        ]
    return Site(
        config=loaded.config,
        now=time.time(),
        servers=tuple(servers),
        nameservers=kernel.nameservers(),
        ways_out=kernel.ways_out(),
        ipv6=kernel.ipv6_addresses(),
        proof=_newest_proof(loaded),
        missing=_missing(loaded, catalog),
        locked=locked_models(loaded, catalog),
        keys=read_keys(keys_path(data_dir())),
        tokens=MAX_SECONDS,
        log=log,
        children=(await protection()).told,
    )


def locked_models(loaded: LoadedConfig, catalog: Catalog) -> Locked | None:
    """The lock file of models, beside what is served; None when there is none."""
    enforced = loaded.config.security.verify_checksums
    try:
        lock = read_lock(models_lock_path(loaded), Signer(signing_dir()).public)
    except StorageError:
        return Locked(0, False, enforced=enforced)
    if lock is None:
        return None
    recorded = {(r.id, r.address) for r in lock.models if r.digest or r.weights}
    unlocked, changed = list[str](), list[str]()
    for status, model in served(catalog):
        state = status.verdicts.get(model.id, UNCHECKED).state
        known = (model.id, address_of(status.endpoint.url)) in recorded
        if state == "mismatch":
            changed.append(f"{model.id} @ {status.endpoint.name}")
        elif state != "verified" and not (known and state == ""):
            unlocked.append(f"{model.id} @ {status.endpoint.name}")
    return Locked(len(recorded), True, tuple(unlocked), tuple(changed), enforced)


async def _server(
    client: HttpClient, loaded: LoadedConfig, status: EndpointStatus, waiting: tuple[kernel.Listening, ...] | None
) -> Server:
    models = [model for model in status.models if not model.digest]
    return Server(
        name=status.endpoint.name,
        url=status.endpoint.url,
        open=await _is_open(client, loaded, status),
        reach=reach_of(status.endpoint.url, waiting),
        cloud=tuple(name for name, why in status.excluded if "another machine" in why),
        notes=status.notes,
        undigested=tuple(model.id for model in models),
        models=len(status.models),
    )


async def _is_open(client: HttpClient, loaded: LoadedConfig, status: EndpointStatus) -> bool | None:
    """Whether it answers without a key: one that has a key is asked once more without."""
    if not status.endpoint.key:
        seen = status
    else:
        seen = await look(client, Target(replace(status.endpoint, key="", kind="")), loaded.config)
    if seen.health is Health.NEEDS_KEY:
        return False
    return True if seen.health in _ANSWERS else None


def reach_of(url: str, waiting: tuple[kernel.Listening, ...] | None) -> Reach:
    """Who can reach a server: one that is dialled on loopback may listen on other addresses too."""
    if url.startswith("unix:"):
        return "loopback"
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not (host == "localhost" or host == "::1" or host.startswith("127.")):
        return "other machines"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if waiting is None:
        return "unknown"
    found = [each.address for each in waiting if each.protocol == "tcp" and each.port == port]
    if not found:  # it runs in another network namespace, such as a container whose port is published here
        return "unknown"
    return "loopback" if all(address == "::1" or address.startswith("127.") for address in found) else "other machines"


def _missing(loaded: LoadedConfig, catalog: Catalog) -> tuple[str, ...]:
    wanted = [name for routing in loaded.config.task_routing.values() for name in routing.primary_models]
    if not wanted:
        return ()
    table, pool = rated_candidates(loaded, catalog)
    return tuple(name for name in dict.fromkeys(wanted) if not asked_for(pool, name, table))


def _log(loaded: LoadedConfig) -> Log | None:
    """The audit log, once a record was written to it: that is the only proof that one can be."""
    log = open_audit_log(loaded)
    if log is None:
        return None
    path = audit_path(loaded)
    try:
        try:
            log.event("access", service="doctor --air-gap")
        finally:
            log.close()
        if not path.is_file():
            return Log({}, f"{path} is no file: it cannot be read back")
        report = verify(path, Signer(signing_dir()).public, read_head(audit_head_path(loaded)))
    except TurnoutError as error:
        return Log({}, error.message)
    wrong = f"{report.bad_file}, line {report.bad_line}: {report.reason}" if not report.ok else ""
    return Log(_events(path), wrong or "; ".join(report.alarms))


def _events(path: Path) -> Mapping[str, int]:
    counts = Counter[str]()
    for file in log_files(path):
        with file.open("rb") as lines:
            counts.update(link.event_type for line in lines if (link := decode_link(line)) is not None)
    return counts


def _newest_proof(loaded: LoadedConfig) -> Proof | None:
    """The newest report of `turnout prove` that this installation's own key signed, by its date and not by its name:
    anybody could put an old one in front of one that failed."""
    folder = proofs_dir()
    if not folder.is_dir():
        return None
    public = Signer(signing_dir()).public
    found = []
    for file in folder.glob("proof-*.json"):
        with suppress(TurnoutError):
            report = read_report(file, public)
            if report is not None and report.get("kind") == KIND:
                found.append(_proof(report, loaded))
    return min((proof for proof in found if proof.days > -1), key=lambda proof: proof.days, default=None)


def _proof(report: dict[str, Json], loaded: LoadedConfig) -> Proof:
    verdicts: dict[str, tuple[str, ...]] = {}
    for row in report["canaries"] if isinstance(report["canaries"], list) else ():
        if isinstance(row, dict):
            door = str(row["door"])
            verdicts[door] = (*verdicts.get(door, ()), str(row["verdict"]))
    configuration = report["configuration"]
    made = datetime.fromisoformat(str(report["made"]))
    same = isinstance(configuration, dict) and configuration.get("sha256") == in_force(loaded)["sha256"]
    return Proof((datetime.now(UTC) - made).total_seconds() / 86_400, same, verdicts)
