"""``turnout models lock`` and ``verify``: what each model is, recorded and held against that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from turnout.cli.output import cell, json_option, loaded_config, note, print_json, table, waiting
from turnout.errors import EXIT_FAILED, ModelBlockedError, NoServiceError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.config import LoadedConfig
    from turnout.fleet.catalog import EndpointStatus
    from turnout.fleet.locking import Recorded
    from turnout.guard.modelslock import Lock, LockedModel
    from turnout.types import Json, Model

LOCK_COLUMNS = ("model", "service", "known by", "digest", "weights")
VERIFY_COLUMNS = ("model", "service", "state", "why")
SHOWN = 16


@click.command()
@click.option(
    "--path",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of weights that no server tells the place of: an Ollama store, what a container has. Repeatable.",
)
@click.option("--replace", is_flag=True, help="Also record what is not what it was recorded as before.")
@json_option
@click.pass_obj
def lock(config_file: str | None, folders: tuple[Path, ...], replace: bool, as_json: bool) -> None:
    """Record what every served model is, signed: from then on one that differs serves nothing.

    Digests are those that servers tell, and those of the files on this machine. Records of servers that do not answer
    now are kept. When a model is not what was recorded, or the lock file cannot be trusted, nothing is written without
    --replace. Where `turnout serve` runs, it follows with its next look.
    """
    from turnout.build import models_lock_path, open_audit_log
    from turnout.config import signing_dir
    from turnout.guard.modelslock import read_lock, write_lock
    from turnout.guard.signing import Signer

    loaded = loaded_config(config_file)
    path, signer = models_lock_path(loaded), Signer(signing_dir())
    try:
        before = read_lock(path, signer.public)
    except StorageError as error:
        if not replace:
            raise
        note(f"Warning: {error.message}; it is made anew")
        before = None
    with waiting("looking for servers") as update:
        recorded = asyncio.run(_record(loaded, [folder.absolute() for folder in folders], before, update))
    if recorded.changed and not replace:
        raise _changed(recorded)
    audit = open_audit_log(loaded)
    try:
        if audit is not None:
            replaced = f", of which were others before: {len(recorded.changed)}" if recorded.changed else ""
            audit.event("config", service=f"models lock: models recorded: {len(recorded.lock.models)}{replaced}")
        signed = write_lock(path, recorded.lock, signer)
    finally:
        if audit is not None:
            audit.close()
    _print_recorded(path, signed, recorded, as_json=as_json)


def _changed(recorded: Recorded) -> ModelBlockedError:
    said = "; ".join(f"{label}: {what}" for label, what in recorded.changed)
    hint = "find out who changed it; if that is what should be there: turnout models lock --replace"
    return ModelBlockedError(f"nothing was recorded, for there is what was something else before: {said}", hint=hint)


@click.command()
@json_option
@click.pass_context
def verify(context: click.Context, as_json: bool) -> None:
    """Hold every served model against the lock file, reading all files on this machine anew.

    Exits with 1 when a model differs, or is not verified and security.unverified_models is `refuse`.
    """
    from turnout.build import models_lock_path
    from turnout.config import signing_dir
    from turnout.guard.modelslock import read_lock
    from turnout.guard.signing import Signer

    loaded = loaded_config(context.obj)
    path = models_lock_path(loaded)
    recorded = read_lock(path, Signer(signing_dir()).public)
    if recorded is None:
        raise UsageError(f"there is no lock file {path}", hint="`turnout models lock` records what is served now")
    with waiting("looking for servers") as update:
        rows = asyncio.run(_verified(loaded, recorded, update))
    failed = [row for row in rows if row.barred]
    if as_json:
        print_json(_verify_fields(path, recorded, rows, failed))
    else:
        table(VERIFY_COLUMNS, [(row.model, row.service, row.state, row.why) for row in rows])
    if failed:
        context.exit(EXIT_FAILED)


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of ``verify``."""

    model: str
    service: str
    state: str
    why: str
    barred: str = ""
    digest: str = ""
    weights: str = ""


def _verify_fields(path: Path, lock: Lock, rows: Sequence[_Row], failed: Sequence[_Row]) -> dict[str, Json]:
    fields: dict[str, Json] = {"ok": not failed, "lock": str(path), "made": lock.made}
    fields["models"] = [
        {
            "id": row.model,
            "service": row.service,
            "state": row.state,
            "why": row.why,
            "blocked": bool(row.barred),
            "digest": row.digest,
            "weights": row.weights,
        }
        for row in rows
    ]
    if failed:
        said = "; ".join(f"{row.model} @ {row.service}: {row.why}" for row in failed)
        hint = "find out who changed it; if that is what should be there, `turnout models lock --replace` records it"
        fields["error"] = {"code": "model_blocked", "message": said, "hint": hint}
    return fields


async def _record(
    loaded: LoadedConfig, folders: Sequence[Path], before: Lock | None, told: Callable[[str], None]
) -> Recorded:
    from turnout.build import identity_rules, model_digests, open_router
    from turnout.fleet.locking import record

    places = tuple(dict.fromkeys((*identity_rules(loaded).folders, *folders)))
    async with open_router(verifying(loaded, on=False), whole=True) as router:
        catalog = router.catalog
        if not catalog.serving:
            raise NoServiceError("no local LLM service available: there is nothing to record", probed=catalog.probed)
        return await record(router.client, catalog, places, model_digests(), before, told)


async def _verified(loaded: LoadedConfig, lock: Lock, told: Callable[[str], None]) -> list[_Row]:
    """Every served model with its verdict, then those that are recorded and not there."""
    from turnout.build import identity_rules, model_digests, open_router
    from turnout.fleet.catalog import address_of
    from turnout.fleet.identity import files_of
    from turnout.fleet.locking import read_files, served

    folders, digests = (*identity_rules(loaded).folders, *map(Path, lock.folders)), model_digests()
    async with open_router(verifying(loaded, on=True), whole=True) as router:
        verifier = router.fleet.verifier
        assert verifier is not None, "it was switched on"
        await verifier.checked_all()
        paths = {(r.id, r.address): r.path for r in lock.models}
        found = list(served(router.catalog))
        for status, model in found:
            path = paths.get((model.id, address_of(status.endpoint.url)), "")
            if files := files_of(status.endpoint, model, folders, path):
                await read_files(files, digests, told, anew=True)
        verifier.forget_digests()
        judged = {status.endpoint.url: await verifier.checked(status, None) for status, _ in found}
        rows = [_row(judged[status.endpoint.url], model) for status, model in found]
    there = {(model.id, address_of(status.endpoint.url)) for status, model in found}
    return rows + [_absent(record) for record in lock.models if (record.id, record.address) not in there]


def _row(status: EndpointStatus, model: Model) -> _Row:
    verdict = status.verdicts[model.id]
    place = status.endpoint.name
    return _Row(model.id, place, verdict.state, verdict.why, verdict.barred, model.digest, verdict.weights)


def _absent(record: LockedModel) -> _Row:
    why = "recorded, and not served now"
    return _Row(record.id, record.service, "absent", why, digest=record.digest, weights=record.weights)


def verifying(loaded: LoadedConfig, *, on: bool) -> LoadedConfig:
    """The configuration with verification on or off, whatever it says of that."""
    replace = msgspec.structs.replace
    security = replace(loaded.config.security, verify_checksums=on)
    return replace(loaded, config=replace(loaded.config, security=security))


def _print_recorded(path: Path, lock: Lock, recorded: Recorded, *, as_json: bool) -> None:
    fresh = lock.models[: len(lock.models) - recorded.kept]
    if as_json:
        changed: list[Json] = [{"model": label, "what": what} for label, what in recorded.changed]
        models: list[Json] = [msgspec.to_builtins(model) for model in fresh]
        print_json({"lock": str(path), "made": lock.made, "models": models, "kept": recorded.kept, "changed": changed})
        return
    table(LOCK_COLUMNS, [_locked_row(model) for model in fresh])
    for label, what in recorded.changed:
        note(f"changed since it was recorded before: {label}: {what}")
    if recorded.kept:
        note(f"{recorded.kept} records of servers that do not answer now are kept")
    click.echo(cell(f"{len(fresh)} model{'s' * (len(fresh) != 1)} recorded in {path}"))


def _locked_row(model: LockedModel) -> tuple[str, ...]:
    known = [*(["its server"] if model.digest else []), *(["its files"] if model.files else [])]
    said = " and ".join(known) or "what its server tells of it: it stays unverified"
    return model.id, model.service, said, model.digest[:SHOWN], model.weights[:SHOWN]
