"""``turnout models``: what the servers offer, and what is loaded, in the user's hands."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from turnout.cli.models_lock import lock, verify
from turnout.cli.models_travel import export, import_
from turnout.cli.output import cell, json_option, loaded_config, note, print_json, table, waiting
from turnout.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from turnout.config import LoadedConfig
    from turnout.router import Router
    from turnout.types import Candidate, Json

FIT_COLUMNS = ("model", "parameters", "quantization", "window", "needs", "fits", "coding", "reasoning")
DEFAULT_QUANTIZATION, DEFAULT_WINDOW = "Q4_K_M", 16_384


@click.group(invoke_without_command=True)
@click.option("--capabilities", is_flag=True, help="List every model that is known instead, with its scores.")
@click.option("--name", default="", metavar="PART", help="Of --capabilities, only those with PART in their name.")
@click.option("--why", metavar="MODEL", help="Show how the scores of MODEL, any name, were computed.")
@json_option
@click.pass_context
def models(context: click.Context, capabilities: bool, name: str, why: str | None, as_json: bool) -> None:
    """List the models that the local servers offer.

    The window is in tokens, with how it is known. Exits with 3 when no server can answer. --capabilities and --why ask
    no server.
    """
    if context.invoked_subcommand is not None:
        if capabilities or name or why is not None:
            raise UsageError("--capabilities, --name and --why belong to `turnout models` alone", hint="leave them out")
    elif name and not capabilities:
        raise UsageError("--name is a part of --capabilities", hint="give both")
    elif why is not None:
        if capabilities or not why.strip():
            raise UsageError("--why is given alone, with the name of a model", hint="turnout models --why NAME")
        from turnout.cli.capabilities import explain_model

        explain_model(context.obj, why, as_json)
    elif capabilities:
        from turnout.cli.capabilities import list_capabilities

        list_capabilities(context.obj, name, as_json)
    else:
        from turnout.cli.fleet import list_models

        list_models(context.obj, as_json)


models.add_command(lock)
models.add_command(verify)
models.add_command(export)
models.add_command(import_)


@models.command()
@click.argument("model")
@json_option
@click.pass_obj
def warm(config_file: str | None, model: str, as_json: bool) -> None:
    """Have a server load MODEL now, so that the first question need not wait.

    MODEL is a server's id or a canonical name, or MODEL@SERVICE where several have it.
    """
    loaded = loaded_config(config_file)
    began = time.monotonic()
    with waiting("looking for servers") as update:
        candidate = asyncio.run(_warm(loaded, model, update))
    seconds = time.monotonic() - began
    if as_json:
        print_json({**_named(candidate), "loaded": True, "seconds": round(seconds, 1)})
    else:
        click.echo(f"{cell(candidate.label)} is loaded ({seconds:.1f} s)")


@models.command()
@click.argument("model")
@json_option
@click.pass_obj
def unload(config_file: str | None, model: str, as_json: bool) -> None:
    """Have a server free the memory of MODEL, or of MODEL@SERVICE."""
    loaded = loaded_config(config_file)
    with waiting("looking for servers"):
        candidate = asyncio.run(_with_router(loaded, lambda router: router.unload_model(model)))
    if as_json:
        print_json({**_named(candidate), "loaded": False})
    else:
        click.echo(f"{cell(candidate.label)} is unloaded")


@models.command()
@click.argument("model")
@json_option
@click.pass_obj
def pin(config_file: str | None, model: str, as_json: bool) -> None:
    """Keep MODEL, or MODEL@SERVICE, loaded: `turnout serve` loads it again when its server dropped it, and no choice of
    Turnout's pushes it out."""
    from turnout.config import data_dir
    from turnout.fleet.pins import pins_path
    from turnout.residency import pin as keep

    loaded = loaded_config(config_file)
    with waiting("looking for servers") as update:
        candidate = asyncio.run(_warm(loaded, model, update))
    keep(pins_path(data_dir()), candidate)
    if as_json:
        print_json({**_named(candidate), "loaded": True, "pinned": True})
    else:
        click.echo(f"{cell(candidate.label)} is loaded and pinned")


@models.command()
@click.argument("model")
@json_option
def unpin(model: str, as_json: bool) -> None:
    """Take MODEL, or MODEL@SERVICE, off the pinned ones; it stays loaded until its server drops it."""
    from turnout.config import data_dir
    from turnout.fleet.pins import pins_path
    from turnout.residency import unpin as release

    gone = release(pins_path(data_dir()), model)
    if as_json:
        print_json({"unpinned": [{"model": p.model, "service": p.endpoint} for p in gone]})
        return
    for p in gone:
        click.echo(cell(f"{p.model} @ {p.endpoint} is no longer pinned"))


@models.command()
@click.option("--memory", type=click.FloatRange(0.1), metavar="GB", help="Default: this machine's.")
@click.option(
    "--window", type=click.IntRange(256), default=DEFAULT_WINDOW, show_default=True, help="Tokens of context."
)
@click.option("--quantization", default=DEFAULT_QUANTIZATION, show_default=True, help="Of models that no server has.")
@click.option("--service", help="Only the models that this service has, with their real sizes; needs --memory.")
@click.option("--all", "show_all", is_flag=True, help="Also those that do not fit.")
@json_option
@click.pass_obj
def fit(
    config_file: str | None,
    memory: float | None,
    window: int,
    quantization: str,
    service: str | None,
    show_all: bool,
    as_json: bool,
) -> None:
    """Show which known models fit into memory, from parameters, quantisation and window; best at coding first.

    Weights and the cache of one full window are counted; what else runs on the machine is not.
    """
    if service and memory is None:
        raise UsageError("the memory of another machine is not known", hint="give it: --memory GB")
    limit = memory * 1e9 if memory is not None else _machine_memory()
    loaded = loaded_config(config_file)
    rows = _of_service(loaded, service, window) if service else _of_table(loaded, window, quantization)
    rows.sort(key=lambda row: -row.coding)
    fitting = [row for row in rows if row.need <= limit or show_all]
    if as_json:
        print_json({"memory": int(limit), "window": window, "models": [row.fields(limit) for row in fitting]})
        return
    note(f"{limit / 1e9:.1f} GB, {window} tokens of context: {sum(r.need <= limit for r in rows)} of {len(rows)} fit")
    table(FIT_COLUMNS, [row.cells(limit) for row in fitting], spare=("quantization", "parameters"))


@dataclass(frozen=True)
class _Need:
    """One line of ``fit``: ``params`` in billions, ``need`` in bytes."""

    name: str
    params: float
    quantization: str
    window: int
    need: int
    coding: float
    reasoning: float

    def cells(self, limit: float) -> tuple[str, ...]:
        fits = "yes" if self.need <= limit else "no"
        size = f"{self.params:g}B" if self.params else ""
        need = f"{self.need / 1e9:.1f} GB"
        scores = f"{self.coding:.0f}", f"{self.reasoning:.0f}"
        return self.name, size, self.quantization, str(self.window), need, fits, *scores

    def fields(self, limit: float) -> dict[str, Json]:
        return {
            "model": self.name,
            "parameters": self.params * 1e9,
            "quantization": self.quantization,
            "window": self.window,
            "needs": self.need,
            "fits": self.need <= limit,
            "scores": {"coding": self.coding, "reasoning": self.reasoning},
        }


def _of_table(loaded: LoadedConfig, window: int, quantization: str) -> list[_Need]:
    from turnout.cli.fleet import capability_table
    from turnout.routing.capabilities import memory_need
    from turnout.types import Model, TaskCategory

    known = capability_table(loaded)
    needs = []
    for name in known.ids:
        row = known.get(name)
        if row is None or "chat" not in (row.capabilities or {"chat"}):
            continue
        tokens = min(window, row.window)
        rating = known.rate(Model(name, quantization=quantization))
        scores = rating.scores[TaskCategory.CODING], rating.scores[TaskCategory.REASONING]
        need = memory_need(row.params, quantization, tokens, row.active)
        needs.append(_Need(name, row.params, quantization, tokens, need, scores[0], scores[1]))
    return needs


def _of_service(loaded: LoadedConfig, service: str, window: int) -> list[_Need]:
    from turnout.cli.fleet import look, rated_candidates
    from turnout.types import TaskCategory

    with waiting("looking for servers"):
        catalog = asyncio.run(look(loaded))
    table_, candidates = rated_candidates(loaded, catalog)
    mine = [c for c in candidates if c.endpoint.name == service]
    if not mine:
        names = ", ".join(sorted({c.endpoint.name for c in candidates}))
        raise UsageError(f"no service {service!r} offers a model", hint=f"there are: {names}" if names else "")
    needs = []
    for c in mine:
        tokens = min(window, c.model.max_window or window)
        rating = table_.rate(c.model)
        scores = c.scores[TaskCategory.CODING], c.scores[TaskCategory.REASONING]
        need = table_.memory_need_of(c.model, tokens)
        needs.append(_Need(c.model.id, rating.params, c.model.quantization, tokens, need, scores[0], scores[1]))
    return needs


def _machine_memory() -> float:
    """Bytes of this machine's memory.

    Raises:
        UsageError: the platform does not tell.
    """
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError) as error:
        raise UsageError("this machine does not tell its memory", hint="give it: --memory GB") from error


def _named(candidate: Candidate) -> dict[str, Json]:
    return {"model": candidate.model.id, "service": candidate.endpoint.name}


async def _warm(loaded: LoadedConfig, model: str, update: Callable[[str], None]) -> Candidate:
    def told(progress: str) -> None:
        update(f"{model}: {progress}")

    return await _with_router(loaded, lambda router: router.load_model(model, told))


async def _with_router(loaded: LoadedConfig, act: Callable[[Router], Awaitable[Candidate]]) -> Candidate:
    from turnout.build import open_router

    async with open_router(loaded) as router:
        return await act(router)
