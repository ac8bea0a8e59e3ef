"""``turnout top``: what is loaded where, who waits, how fast, and what changed; live on a terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import click

from turnout.cli.fleet import in_order
from turnout.cli.output import cell, json_option, loaded_config, print_json, table, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from turnout.config import LoadedConfig
    from turnout.fleet.catalog import EndpointStatus
    from turnout.fleet.health import FleetEvent
    from turnout.fleet.watch import Fleet
    from turnout.types import Json

COLUMNS = ("service", "state", "since", "loaded", "busy", "waiting", "tokens/s", "reason")
SHOWN_EVENTS = 8


@click.command()
@click.option("--interval", type=click.FloatRange(0.2, 60.0), default=1.0, show_default=True, help="Seconds per frame.")
@json_option
@click.pass_obj
def top(config_file: str | None, interval: float, as_json: bool) -> None:
    """Show live what is loaded where, who waits, tokens per second and changes of state.

    Ctrl-C ends it. In a pipe, or with --json, shows once what there is now.
    """
    loaded = loaded_config(config_file)
    asyncio.run(_top(loaded, interval, as_json))


async def _top(loaded: LoadedConfig, interval: float, as_json: bool) -> None:
    from turnout.build import open_router

    live = sys.stdout.isatty() and not as_json
    with waiting("looking for servers"):
        async with open_router(loaded, watch=live, whole=True) as router:
            if as_json:
                print_json({"services": [_fields(status) for status in router.catalog.endpoints]})
            elif not live:
                table(COLUMNS, [_row(status) for status in router.catalog.endpoints])
    if live:
        async with open_router(loaded, watch=True) as router:
            await _show(router.fleet, interval)


async def _show(fleet: Fleet, interval: float) -> None:
    from rich.live import Live

    with Live(_frame(fleet), screen=True, auto_refresh=False) as shown:
        while True:
            await asyncio.sleep(interval)
            shown.update(_frame(fleet), refresh=True)


def _frame(fleet: Fleet) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    frame = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for column in COLUMNS:
        frame.add_column(column, overflow="fold")
    for status in _shown(fleet.catalog.endpoints):
        frame.add_row(*(Text(cell(text)) for text in _row(status)))
    events = [Text(cell(_event(event))) for event in list(fleet.book.events)[-SHOWN_EVENTS:]]
    return Group(frame, Text(), Text("changes", style="bold"), *(events or [Text("none yet")]))


def _shown(statuses: Sequence[EndpointStatus]) -> list[EndpointStatus]:
    """Without the default addresses where nothing answers, which would fill the screen."""
    return [s for s in in_order(statuses) if s.endpoint.configured or s.health.value not in ("offline", "unknown")]


def _row(status: EndpointStatus) -> tuple[str, ...]:
    loaded = [model.id for model in status.models if model.resident]
    shown = ", ".join(loaded[:3]) + (f" and {len(loaded) - 3} more" if len(loaded) > 3 else "")
    return (
        status.endpoint.name,
        status.health.value,
        _ago(status.since),
        shown,
        "" if status.busy is None else f"{status.busy}" + (f" of {status.slots}" if status.slots else ""),
        "" if status.waiting is None else str(status.waiting),
        f"{status.speed:.0f}" if status.speed else "",
        status.unused or status.reason,
    )


def _ago(since: float) -> str:
    seconds = max(0, int(time.time() - since)) if since else 0
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 5400 else f"{seconds // 3600} h"


def _event(event: FleetEvent) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event.at))
    return f"{at}  {event.endpoint}: {event.before.value} -> {event.after.value}: {event.reason}"


def _fields(status: EndpointStatus) -> dict[str, Json]:
    return {
        "name": status.endpoint.name,
        "kind": status.endpoint.kind,
        "state": status.health.value,
        "since": status.since,
        "reason": status.reason,
        "unused": status.unused,
        "loaded": [model.id for model in status.models if model.resident],
        "slots": status.slots,
        "busy": status.busy,
        "waiting": status.waiting,
        "tokens_per_second": status.speed,
    }
