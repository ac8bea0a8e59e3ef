"""Where else servers may be, when the configuration asks: networks to scan, and announcements to listen for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from turnout.errors import AuditError, UsageError
from turnout.fleet.beacon import PORT, Heard
from turnout.fleet.host import loopback_only
from turnout.fleet.scan import scan
from turnout.guard.datagrams import datagrams

if TYPE_CHECKING:
    from turnout.config import RouterConfig
    from turnout.fleet.watch import Fleet
    from turnout.guard.allow import AllowList
    from turnout.guard.audit import AuditLog
    from turnout.guard.network import HttpClient

log = logging.getLogger("turnout")


async def once(client: HttpClient, config: RouterConfig, fleet: Fleet, audit: AuditLog | None) -> None:
    """Scan the configured networks, if any, and add what was found to the fleet.

    Raises:
        AuditError: the scan cannot be written down, so it is not done.
    """
    if not config.discovery.scan_cidrs or loopback_only(config):
        return

    def told(what: str, about: str) -> None:
        log.info("%s: %s", what, about)
        if audit is not None:
            audit.event("access", service=f"{what}: {about}")

    fleet.add(await scan(client, config, audit=told, rate=config.discovery.scan_rate))


@asynccontextmanager
async def keep_on(
    client: HttpClient, config: RouterConfig, fleet: Fleet, allow: AllowList, audit: AuditLog | None
) -> AsyncIterator[None]:
    """Scan now and then, and listen, for as long as the context is open."""
    async with AsyncExitStack() as stack:
        if config.discovery.beacon and not loopback_only(config):
            heard = Heard(allow)

            def hear(datagram: bytes, sender: str) -> None:
                if heard.hear(datagram, sender):  # the same every two seconds costs nothing
                    fleet.add(heard.endpoints())

            try:
                await stack.enter_async_context(datagrams(PORT, hear))
            except UsageError as error:
                log.warning("announcements are not heard: %s", error)
        scanning = asyncio.create_task(_scan_on(client, config, fleet, audit))
        try:
            yield
        finally:
            scanning.cancel()
            with suppress(asyncio.CancelledError):
                await scanning


async def _scan_on(client: HttpClient, config: RouterConfig, fleet: Fleet, audit: AuditLog | None) -> None:
    while config.discovery.scan_cidrs:
        try:
            await once(client, config, fleet, audit)
        except AuditError as error:
            log.error("no scan: %s", error)
        await asyncio.sleep(config.discovery.scan_interval / 1000)
