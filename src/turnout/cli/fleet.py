"""``turnout discover``, and the listing of ``turnout models``: what runs where."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from turnout.cli.output import PartialError, cell, json_option, loaded_config, note, print_json, table, waiting
from turnout.errors import NoServiceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.config import LoadedConfig, RouterConfig
    from turnout.errors import ConfigError
    from turnout.fleet.catalog import Catalog, EndpointStatus
    from turnout.fleet.discovery import Explanation
    from turnout.routing.capabilities import CapabilityTable
    from turnout.types import Candidate, Json


@click.command()
@click.option("--scan", is_flag=True, help="Also try the networks of discovery.scan_cidrs.")
@click.option("--explain", "address", metavar="HOST:PORT", help="Show every probe of one address and the verdict.")
@json_option
@click.pass_obj
def discover(config_file: str | None, scan: bool, address: str | None, as_json: bool) -> None:
    """Look for local LLM servers and show the state of each.

    Exits with 3 when none can answer.
    """
    from turnout.fleet.host import why_loopback_only

    loaded = loaded_config(config_file)
    if address is not None:
        _explain(loaded, address, as_json)
        return
    if scan and not loaded.config.discovery.scan_cidrs:
        raise UsageError("no network may be scanned", hint="name those that may in discovery.scan_cidrs")
    if scan and (why := why_loopback_only(loaded.config)):
        note(f"nothing is scanned: {why} keeps discovery on this machine")
    catalog = _catalog(loaded, scan=scan)
    if as_json:
        _print_found({"services": [_service_fields(status) for status in catalog.endpoints]}, catalog, loaded)
        return
    columns = ("service", "kind", "address", "version", "state", "reason", "models", "loaded", "window", "busy")
    spare = ("busy", "version", "kind", "loaded", "models", "window")
    rows = [_service_row(status) for status in in_order(catalog.endpoints)]
    table(columns, rows, spare=spare, brief=[_brief(row) for row in rows])
    _tell_notes(catalog, loaded.config)
    _require_service(catalog, loaded, told=True)


def _tell_notes(catalog: Catalog, config: RouterConfig) -> None:
    """Drift from the site's inventory and what could be used in full; what concerns an air-gap audit by its number."""
    from turnout.fleet.inventory import DRIFT
    from turnout.routing.advice import how_to_use

    for status in catalog.endpoints if catalog.serving else ():  # else the error says so
        if hint := how_to_use(status, config):
            note(f"{status.endpoint.name}: {hint}")
    said = [(status.endpoint.name, text) for status in catalog.endpoints for text in status.notes]
    drift = [(name, text) for name, text in said if text.startswith(DRIFT)]
    for name, text in drift:
        note(f"{name}: {text}")
    if others := len(said) - len(drift):
        note(f"{others} {'note' if others == 1 else 'notes'} for an air-gap audit: --explain and --json show them")


def _explain(loaded: LoadedConfig, address: str, as_json: bool) -> None:
    from turnout.build import open_client_for
    from turnout.fleet.discovery import explain_address
    from turnout.routing.advice import how_to_use

    url = address if "://" in address or address.startswith("unix:") else f"http://{address}"

    async def explained() -> Explanation:
        async with open_client_for(loaded) as client:
            client.check(url)
            return await explain_address(client, loaded.config, address)

    with waiting("probing"):
        found = asyncio.run(explained())
    if as_json:
        print_json(
            {
                "url": found.url,
                "probes": [{"path": p.path, "status": p.status, "answer": p.said} for p in found.probes],
                "rules": [{"kind": r.kind, "evidence": r.evidence} for r in found.rules],
                "verdict": _service_fields(found.status),
            }
        )
        return
    table(("probe", "status", "answer"), [(f"GET {p.path}", str(p.status or ""), p.said) for p in found.probes])
    decided = next((rule for rule in found.rules if rule.evidence), None)
    for rule in found.rules:
        said = rule.evidence or "nothing speaks for it"
        click.echo(cell(f"{rule.title}: {said}{', which decides' if rule is decided else ''}"))
    status = found.status
    for text in status.notes:
        click.echo(cell(f"note: {text}"))
    click.echo(cell(f"verdict: {status.endpoint.kind or 'no known server'}, {status.health.value}: {status.reason}"))
    if status.unused:
        click.echo(cell(f"not used: {status.unused}"))
    if hint := how_to_use(status, loaded.config):
        click.echo(cell(f"hint: {hint}"))


def list_models(config_file: str | None, as_json: bool) -> None:
    """The listing of ``turnout models``."""
    from turnout.config import data_dir
    from turnout.fleet.pins import pins_or_none, pins_path

    loaded = loaded_config(config_file)
    catalog = _catalog(loaded)
    _, found = rated_candidates(loaded, catalog)
    pinned = {(pin.model, pin.endpoint) for pin in pins_or_none(pins_path(data_dir()))}
    same = _same_weights(found, loaded)
    if as_json:
        fields = [
            _model_fields(c) | {"pinned": (c.model.id, c.endpoint.name) in pinned, "same_as": [*same[c.label]]}
            for c in found
        ]
        _print_found({"models": [*fields]}, catalog, loaded)
        return
    columns = ["id", "canonical", "service", "window", "resident", "capabilities", "parameters", "quantization"]
    spare = ("quantization", "parameters", "resident", "canonical", "capabilities")
    rows = [[*_model_row(c, pinned=(c.model.id, c.endpoint.name) in pinned)] for c in found]
    if any(c.verdict.state for c in found):
        columns.append("identity")
        rows = [[*row, _identity(c)] for row, c in zip(rows, found, strict=True)]
    if any(same.values()):
        columns.append("same as")
        rows = [[*row, ", ".join(same[c.label])] for row, c in zip(rows, found, strict=True)]
    table(columns, rows, spare=spare)
    _require_service(catalog, loaded)


async def look(loaded: LoadedConfig, *, scan: bool = False) -> Catalog:
    """Every endpoint as it is now."""
    from turnout.build import open_router

    async with open_router(loaded, whole=True, scan=scan) as router:
        return router.catalog


def _catalog(loaded: LoadedConfig, *, scan: bool = False) -> Catalog:
    with waiting("scanning" if scan else "looking for servers"):
        return asyncio.run(look(loaded, scan=scan))


def capability_table(loaded: LoadedConfig, *, told: bool = False) -> CapabilityTable:
    """The capability table with the user's file; what is wrong in that is left out, and said unless it is told."""
    from pathlib import Path

    from turnout.routing.capabilities import load_table

    def tell(error: ConfigError) -> None:
        if not told:
            note(f"Warning: left out: {error}")

    file = loaded.config.routing.models_file
    return load_table(Path(file) if file else None, tell)


def rated_candidates(loaded: LoadedConfig, catalog: Catalog) -> tuple[CapabilityTable, tuple[Candidate, ...]]:
    """The capability table, and every served model rated by it."""
    from turnout.routing.select import candidates

    rated_by = capability_table(loaded, told=True)  # by the router that made the catalog
    return rated_by, candidates(catalog, rated_by)


def _require_service(catalog: Catalog, loaded: LoadedConfig, *, told: bool = False) -> None:
    """``told``: what was probed stands in the table already."""
    from turnout.routing.advice import what_to_check

    if not catalog.serving:
        raise NoServiceError(hint=what_to_check(catalog, loaded.config), probed=() if told else catalog.probed)


def _print_found(found: dict[str, Json], catalog: Catalog, loaded: LoadedConfig) -> None:
    try:
        _require_service(catalog, loaded)
    except NoServiceError as error:
        raise PartialError(error, found) from error
    print_json(found)


def in_order(statuses: Sequence[EndpointStatus]) -> list[EndpointStatus]:
    """For people: what serves first, then what is configured, then what answers, then the rest."""
    return sorted(
        statuses,
        key=lambda s: (not (s.models and not s.unused), not s.endpoint.configured, s.health.value == "offline"),
    )


def _service_row(status: EndpointStatus) -> tuple[str, ...]:
    endpoint = status.endpoint
    windows = sorted({model.window for model in status.models if model.window})
    window = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}" if windows else ""
    count = f"{len(status.models)}" + (f" ({len(status.excluded)} left out)" if status.excluded else "")
    return (
        endpoint.name,
        endpoint.kind,
        endpoint.url,
        status.version,
        status.health.value,
        status.unused or status.reason,
        count,
        str(sum(model.resident is True for model in status.models)) if status.models else "",
        window,
        "" if status.busy is None else f"{status.busy}" + (f" of {status.slots}" if status.slots else ""),
    )


def _brief(row: tuple[str, ...]) -> tuple[str, ...]:
    """Without the scheme of the address, and without the address that the reason says once more."""
    name, kind, url, version, state, reason, *rest = row
    address = url.removeprefix("http://")
    return name, kind, address, version, state, reason.replace(f" at {address}", ""), *rest


def _service_fields(status: EndpointStatus) -> dict[str, Json]:
    endpoint = status.endpoint
    checked = datetime.fromtimestamp(status.checked_at, UTC)
    return {
        "name": endpoint.name,
        "kind": endpoint.kind,
        "url": endpoint.url,
        "configured": endpoint.configured,
        "priority": endpoint.priority,
        "version": status.version,
        "state": status.health.value,
        "reason": status.reason,
        "checked_at": checked.isoformat(timespec="seconds"),
        "unused": status.unused,
        "evidence": status.evidence,
        "slots": status.slots,
        "busy": status.busy,
        "waiting": status.waiting,
        "capacity": status.capacity,
        "notes": [*status.notes],
        "models": [
            {
                "id": m.id,
                "window": m.window,
                "window_source": m.window_source,
                "max_window": m.max_window,
                "resident": m.resident,
                "digest": m.digest,
            }
            for m in status.models
        ],
        "excluded": [{"id": name, "reason": reason} for name, reason in status.excluded],
    }


def _model_row(candidate: Candidate, *, pinned: bool) -> tuple[str, ...]:
    model = candidate.model
    resident = {True: "yes", False: "no", None: ""}[model.resident] + (" (pinned)" if pinned else "")
    return (
        model.id,
        candidate.canonical,
        candidate.endpoint.name,
        f"{candidate.window} ({candidate.window_source})",
        resident,
        ",".join(sorted(model.capabilities)),
        _billions(model.parameters),
        model.quantization,
    )


def _identity(candidate: Candidate) -> str:
    verdict = candidate.verdict
    said = {"verified": "", "unverified": verdict.barred}.get(verdict.state, verdict.why)
    return f"{verdict.state}: {said}" if said else verdict.state


def _same_weights(found: Sequence[Candidate], loaded: LoadedConfig) -> dict[str, tuple[str, ...]]:
    """Which models have the same weights under whatever name, as far as that is known without reading a file."""
    from turnout.build import identity_rules, model_digests, models_lock_path
    from turnout.config import signing_dir
    from turnout.errors import StorageError
    from turnout.fleet.identity import known_weights
    from turnout.guard.modelslock import read_lock, same_weights
    from turnout.guard.signing import Signer

    path = models_lock_path(loaded)
    try:
        lock = read_lock(path, Signer(signing_dir()).public) if path.exists() else None
    except StorageError:
        lock = None  # each model says so already
    folders, digests = identity_rules(loaded).folders, model_digests()
    return same_weights(
        (c.label, c.model.digest, c.verdict.weights or known_weights(c.endpoint, c.model, digests, folders, lock))
        for c in found
    )


def _billions(parameters: int) -> str:
    if not parameters:
        return ""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _model_fields(candidate: Candidate) -> dict[str, Json]:
    model = candidate.model
    return {
        "id": model.id,
        "canonical": candidate.canonical,
        "service": candidate.endpoint.name,
        "window": candidate.window,
        "window_source": candidate.window_source,
        "max_window": model.max_window,
        "resident": model.resident,
        "capabilities": [*sorted(model.capabilities)],
        "family": model.family,
        "parameters": model.parameters,
        "size": model.size,
        "quantization": model.quantization,
        "digest": model.digest,
        "identity": {"state": candidate.verdict.state or None, "why": candidate.verdict.why},
        "weights": candidate.verdict.weights or None,
        "scores": {category.value: score for category, score in candidate.scores.items()},
        "score_source": candidate.score_source,
    }
