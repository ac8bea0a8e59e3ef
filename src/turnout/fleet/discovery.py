"""Finding servers: every target is probed at once by GETs, named by what it answers, and asked for its models.

A target that nobody configured is a default address on loopback (or what reaches the host from a container). Nothing
here wakes or loads a model, and nothing is dialled that the allow-list does not hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from turnout.backends import BACKENDS, BY_KIND, DEFAULT_URLS
from turnout.backends.base import get
from turnout.config import CustomEndpoint, RouterConfig, ServiceConfig
from turnout.errors import BackendError, EndpointDownError, GuardError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.host import HostInfo, candidate_urls
from turnout.types import Endpoint, Health, Limits

if TYPE_CHECKING:
    from turnout.backends.base import Backend, Identity
    from turnout.guard.network import HttpClient, Reply


@dataclass(frozen=True, slots=True)
class Target:
    """An address to look at. ``endpoint.kind`` is what the configuration says it is, "" to find out."""

    endpoint: Endpoint
    style: str = ""


def _limits(section: ServiceConfig | CustomEndpoint) -> Limits:
    return Limits(
        connect=min(3.0, section.timeout / 1000),
        first_byte=section.first_byte_timeout / 1000,
        silence=section.timeout / 1000,
        total=section.total_timeout / 1000,
        max_retries=section.max_retries,
    )


def targets(config: RouterConfig, host: HostInfo) -> tuple[Target, ...]:
    """Every address to look at, most preferred first; each address once, explicit ones as they were written."""
    found: list[Target] = []
    for custom in config.custom_endpoints:
        endpoint = Endpoint(
            name=custom.name,
            kind="",
            url=custom.endpoint.rstrip("/"),
            priority=custom.priority,
            limits=_limits(custom),
            key=custom.key or "",
            configured=True,
            chat_path=custom.chat_path or "",
            models_path=custom.models_path or "",
            window=custom.window or 0,
        )
        found.append(Target(endpoint, style=custom.api_style))
    for kind, default in DEFAULT_URLS.items():
        section = config.services.get(kind, ServiceConfig())
        if not section.enabled or (section.endpoint is None and not config.discovery.enabled):
            continue
        explicit = section.endpoint is not None
        urls = (section.endpoint.rstrip("/"),) if section.endpoint else candidate_urls(default, host)
        found += [
            Target(
                Endpoint(
                    name=kind,
                    kind="",
                    url=url,
                    priority=section.priority if kind in config.services else 5,
                    limits=_limits(section),
                    key=section.key or "",
                    configured=explicit,
                )
            )
            for url in urls
        ]
    return _once_each(found)


def _once_each(found: Sequence[Target]) -> tuple[Target, ...]:
    by_address: dict[str, Target] = {}
    for target in sorted(found, key=lambda t: not t.endpoint.configured):
        by_address.setdefault(address_of(target.endpoint.url), target)
    return tuple(by_address.values())


def address_of(url: str) -> str:
    """The address a URL means, so that ``localhost`` and ``127.0.0.1`` are one."""
    if url.startswith("unix:"):
        return url
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}{parts.path}"


async def discover(
    client: HttpClient, config: RouterConfig, host: HostInfo, *, extra: Sequence[Endpoint] = (), generation: int = 0
) -> Catalog:
    """Look at every target at once.

    Args:
        client: the one HTTP client; its guard refuses what the allow-list does not hold.
        config: services, custom endpoints and the probe timeout.
        host: where we run.
        extra: endpoints that are known already (the embedded model).
        generation: number of the catalog that is built.
    """
    timeout = config.discovery.timeout / 1000
    wanted = (*targets(config, host), *(Target(endpoint) for endpoint in extra))
    seen = await asyncio.gather(*(look(client, target, timeout) for target in wanted))
    return Catalog(_named(_without_silent_defaults(seen)), generation, time.time())


def _without_silent_defaults(seen: Sequence[EndpointStatus]) -> list[EndpointStatus]:
    """Several addresses may lead to one default server: keep what answered, or the first when none did."""
    kept: dict[str, EndpointStatus] = {}
    result: list[EndpointStatus] = []
    for status in seen:
        if status.health is not Health.OFFLINE or status.endpoint.configured:
            result.append(status)
        else:
            kept.setdefault(status.endpoint.name, status)
    answered = {status.endpoint.name for status in result}
    return result + [status for name, status in kept.items() if name not in answered]


def _named(seen: Sequence[EndpointStatus]) -> tuple[EndpointStatus, ...]:
    """Unique names: a found server is named for what it is, a second of a kind by its port."""
    used: set[str] = set()
    named: list[EndpointStatus] = []
    for status in seen:
        name = status.endpoint.name
        if name in used:
            name = f"{name}-{address_of(status.endpoint.url).rsplit(':', 1)[-1]}"
        while name in used:
            name += "x"
        used.add(name)
        named.append(replace(status, endpoint=replace(status.endpoint, name=name)))
    return tuple(named)


async def look(client: HttpClient, target: Target, timeout: float) -> EndpointStatus:
    """What is at one address: identity, then health and models. Never raises for what a server does."""
    try:
        async with asyncio.timeout(timeout):
            return await _look(client, target, timeout)
    except TimeoutError:
        return _status(target.endpoint, Health.OFFLINE, f"no answer within {timeout:g} s")
    except GuardError as error:
        return _status(target.endpoint, Health.OFFLINE, str(error))
    except EndpointDownError:
        return _status(target.endpoint, Health.OFFLINE, "nothing listens there")
    except BackendError as error:
        return _status(target.endpoint, Health.DEGRADED, error.message)


async def _look(client: HttpClient, target: Target, timeout: float) -> EndpointStatus:
    endpoint = target.endpoint
    backend, version = BY_KIND.get(endpoint.kind), ""
    if backend is None:
        replies = await _probe(client, endpoint, timeout)
        verdict = identify(replies)
        if verdict is None and target.style not in ("openai", "custom"):
            return _status(endpoint, Health.DEGRADED, "something answers there, but no server that Turnout knows")
        kind, version = (verdict.kind, verdict.version) if verdict else ("openai", "")
        backend = BY_KIND["openai" if target.style == "custom" else kind]
    endpoint = replace(endpoint, kind=backend.kind)
    inspection = await backend.inspect(client, endpoint, timeout)
    excluded = tuple((m.id, "served by another machine through this server") for m in inspection.models if m.remote)
    models = tuple(
        replace(m, window=endpoint.window, window_source="configured") if endpoint.window else m
        for m in inspection.models
        if not m.remote
    )
    return EndpointStatus(
        endpoint, inspection.health, inspection.reason, time.time(), version, models, excluded, inspection.slots
    )


async def _probe(client: HttpClient, endpoint: Endpoint, timeout: float) -> dict[str, Reply]:
    paths = tuple(dict.fromkeys(path for backend in BACKENDS for path in backend.probes))
    first, *rest = paths
    # One probe first: where nothing listens, one refused connection is the whole cost.
    answers = [await _get(client, endpoint, first, timeout)]
    if isinstance(answers[0], GuardError | EndpointDownError):
        raise answers[0]
    answers += await asyncio.gather(*(_get(client, endpoint, path, timeout) for path in rest))
    return {p: a for p, a in zip(paths, answers, strict=True) if not isinstance(a, BackendError | GuardError)}


async def _get(client: HttpClient, endpoint: Endpoint, path: str, timeout: float) -> Reply | BackendError | GuardError:
    try:
        return await get(client, replace(endpoint, url=endpoint.url.removesuffix("/v1")), path, timeout)
    except (BackendError, GuardError) as error:
        return error


def identify(replies: Mapping[str, Reply], backends: Sequence[Backend] = BACKENDS) -> Identity | None:
    """The first verdict in the visible order. Pure."""
    return next((identity for backend in backends if (identity := backend.identify(replies))), None)


def _status(endpoint: Endpoint, health: Health, reason: str) -> EndpointStatus:
    return EndpointStatus(endpoint, health, reason, time.time())
