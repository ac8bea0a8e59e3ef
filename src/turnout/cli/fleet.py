"""``turnout discover`` and ``turnout models``: what runs where."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from turnout.cli.output import PartialError, json_option, loaded_config, print_json, table, waiting
from turnout.errors import NoServiceError

if TYPE_CHECKING:
    from turnout.config import LoadedConfig
    from turnout.fleet.catalog import Catalog, EndpointStatus
    from turnout.types import Candidate, Json


@click.command()
@json_option
@click.pass_obj
def discover(config_file: str | None, as_json: bool) -> None:
    """Look for local LLM servers and show the state of each.

    Exits with 3 when none can answer.
    """
    loaded = loaded_config(config_file)
    catalog = _catalog(loaded)
    if as_json:
        _print_found({"services": [_service_fields(status) for status in catalog.endpoints]}, catalog, loaded)
        return
    columns = ("service", "kind", "address", "version", "state", "reason", "models", "window")
    spare = ("version", "kind", "window", "models")
    rows = [_service_row(status) for status in catalog.endpoints]
    table(columns, rows, spare=spare, brief=[_brief(row) for row in rows])
    _require_service(catalog, loaded)


@click.command()
@json_option
@click.pass_obj
def models(config_file: str | None, as_json: bool) -> None:
    """List the models that the local servers offer.

    The window is in tokens, with how it is known. Exits with 3 when no server can answer.
    """
    loaded = loaded_config(config_file)
    catalog = _catalog(loaded)
    found = _candidates(loaded, catalog)
    if as_json:
        _print_found({"models": [_model_fields(candidate) for candidate in found]}, catalog, loaded)
        return
    columns = ("id", "canonical", "service", "window", "resident", "capabilities", "parameters", "quantization")
    spare = ("quantization", "parameters", "resident", "canonical", "capabilities")
    table(columns, [_model_row(candidate) for candidate in found], spare=spare)
    _require_service(catalog, loaded)


async def look(loaded: LoadedConfig) -> Catalog:
    """Every endpoint as it is now."""
    from turnout.build import open_router

    async with open_router(loaded, whole=True) as router:
        return router.catalog


def _catalog(loaded: LoadedConfig) -> Catalog:
    with waiting("looking for servers"):
        return asyncio.run(look(loaded))


def _candidates(loaded: LoadedConfig, catalog: Catalog) -> tuple[Candidate, ...]:
    from pathlib import Path

    from turnout.routing.capabilities import load_table
    from turnout.routing.select import candidates

    file = loaded.config.routing.models_file
    return candidates(catalog, load_table(Path(file) if file else None))


def _require_service(catalog: Catalog, loaded: LoadedConfig) -> None:
    from turnout.routing.advice import what_to_check

    if not catalog.serving:
        raise NoServiceError(hint=what_to_check(catalog, loaded.config))


def _print_found(found: dict[str, Json], catalog: Catalog, loaded: LoadedConfig) -> None:
    try:
        _require_service(catalog, loaded)
    except NoServiceError as error:
        raise PartialError(error, found) from error
    print_json(found)


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
        status.reason,
        count,
        window,
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
        "slots": status.slots,
        "models": [{"id": m.id, "window": m.window, "max_window": m.max_window} for m in status.models],
        "excluded": [{"id": name, "reason": reason} for name, reason in status.excluded],
    }


def _model_row(candidate: Candidate) -> tuple[str, ...]:
    model = candidate.model
    resident = {True: "yes", False: "no", None: ""}[model.resident]
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
        "scores": {category.value: score for category, score in candidate.scores.items()},
        "score_source": candidate.score_source,
    }
