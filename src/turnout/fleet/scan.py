"""Looking for servers in networks that the configuration names: off by default, capped, slow, GETs only, audited.

A scan looks like an attack to whoever watches a network, so nothing is scanned that was not asked for, and never more
than a /24 at a time (facts/services.md, section 16).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING

from turnout.config import RouterConfig
from turnout.errors import BackendError, EndpointDownError, GuardError
from turnout.fleet.discovery import FOUND_PRIORITY, Target, look
from turnout.types import Endpoint, Health

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient

PORTS = (11434, 1234, 8000, 8080, 1337, 5000, 5001, 30000, 13305, 12434, 3000, 4891)
PARALLEL = 16
MAX_HOSTS = 256


def addresses(cidr: str, ports: Sequence[int]) -> list[str]:
    """The URLs to try in a network: its hosts, each port.

    Raises:
        ValueError: it is no network, or has more than ``MAX_HOSTS`` addresses.
    """
    network = ip_network(cidr)
    if network.num_addresses > MAX_HOSTS:
        raise ValueError(f"{cidr} has {network.num_addresses:,} addresses, the most is {MAX_HOSTS}")
    hosts = [f"[{host}]" if host.version == 6 else str(host) for host in network.hosts()]
    return [f"http://{host}:{port}" for host in hosts for port in ports]


async def scan(
    client: HttpClient, config: RouterConfig, *, audit: Callable[[str, str], None], rate: float
) -> tuple[Endpoint, ...]:
    """Try every address of ``discovery.scan_cidrs`` once; what answers as a known kind of server is returned.

    Args:
        client: the one HTTP client; its guard refuses what the allow-list does not hold.
        config: networks, ports and the probe timeout.
        audit: told ``(what, about)`` at the beginning and the end.
        rate: connections begun a second, at most.
    """
    section = config.discovery
    urls = [url for cidr in section.scan_cidrs for url in addresses(cidr, section.scan_ports or PORTS)]
    random.shuffle(urls)
    audit("scan begins", f"{len(urls)} addresses in {', '.join(section.scan_cidrs)}")
    room, pace = asyncio.Semaphore(PARALLEL), _Pace(rate)

    async def try_one(url: str) -> Endpoint | None:
        async with room:
            await pace.turn()
            return await _found(client, config, url)

    found = [e for e in await asyncio.gather(*map(try_one, urls)) if e is not None]
    audit("scan ends", f"{len(found)} servers: {', '.join(sorted(e.url for e in found))}")
    return tuple(found)


async def _found(client: HttpClient, config: RouterConfig, url: str) -> Endpoint | None:
    try:
        # One connection decides; only what listens is asked what it is.
        await client.get_json(f"{url}/v1/models", timeout=config.discovery.timeout / 1000)
    except (EndpointDownError, GuardError):
        return None
    except BackendError:
        pass  # something listens there, whatever it said
    status = await look(client, Target(Endpoint("", "", url, priority=FOUND_PRIORITY)), config)
    known = status.endpoint.kind and status.health is not Health.OFFLINE
    return Endpoint(status.endpoint.kind, "", url, priority=FOUND_PRIORITY) if known else None


class _Pace:
    """Turns that come at most ``rate`` times a second."""

    def __init__(self, rate: float) -> None:
        self._gap = 1.0 / rate
        self._next = 0.0

    async def turn(self) -> None:
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._next)
        self._next = at + self._gap * random.uniform(0.8, 1.2)  # noqa: S311
        await asyncio.sleep(at - loop.time())
