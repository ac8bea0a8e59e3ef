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

from turnout.backends import BACKENDS, BY_KIND
from turnout.backends.base import Backend, Details, Identity, get
from turnout.config import CustomEndpoint, RouterConfig, ServiceConfig
from turnout.errors import BackendError, EndpointDownError, GuardError
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.fleet.host import HostInfo, candidate_urls
from turnout.guard.allow import HOSTS_FILE_NAMES
from turnout.types import Endpoint, Health, Limits, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient, Reply


FOUND_PRIORITY = 5
MAX_DETAILED = 32  # models of one endpoint that are asked for one by one in a refresh
IDENTIFY_EVERY = 20  # refreshes; in between, a server that goes on answering as its kind is taken for it
GENERIC = BY_KIND["openai"]
SWITCHED_OFF = "switched off in the configuration"
# Each model is rated at every look: a list without end must not stop everything else.
MAX_MODELS = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """An address to look at.

    Attributes:
        endpoint: where; its kind is "" until it is found out.
        style: the ``api_style`` of a custom endpoint.
        main: the default address that this one is an alias of, or "".
    """

    endpoint: Endpoint
    style: str = ""
    main: str = ""


def _limits(section: ServiceConfig | CustomEndpoint) -> Limits:
    return Limits(
        connect=min(3.0, section.timeout / 1000),
        first_byte=section.first_byte_timeout / 1000,
        silence=section.timeout / 1000,
        total=section.total_timeout / 1000,
        max_retries=section.max_retries,
    )


def targets(config: RouterConfig, host: HostInfo) -> tuple[Target, ...]:
    """Every address to look at, configured ones first and as they were written; each address once."""
    found = [_custom(custom) for custom in config.custom_endpoints]
    found += [
        Target(_configured(Endpoint(kind, "", section.endpoint.rstrip("/"), configured=True), section))
        for kind, section in config.services.items()
        if section.enabled and section.endpoint
    ]
    if config.discovery.enabled:
        found += _defaults(config, host)
    by_address: dict[str, Target] = {}
    for target in found:
        by_address.setdefault(address_of(target.endpoint.url), target)
    return tuple(by_address.values())


def _custom(custom: CustomEndpoint) -> Target:
    endpoint = Endpoint(
        name=custom.name,
        kind="",
        url=custom.endpoint.rstrip("/"),
        priority=custom.priority,
        limits=_limits(custom),
        key=custom.key or "",
        host_header=_host_header(custom.endpoint),
        configured=True,
        chat_path=custom.chat_path or "",
        models_path=custom.models_path or "",
        window=custom.window or 0,
    )
    return Target(endpoint, style=custom.api_style)


def _configured(endpoint: Endpoint, section: ServiceConfig) -> Endpoint:
    return replace(
        endpoint,
        priority=section.priority,
        limits=_limits(section),
        key=section.key or "",
        host_header=_host_header(endpoint.url),
    )


def _defaults(config: RouterConfig, host: HostInfo) -> list[Target]:
    """The default addresses of the kinds that are switched on and have no address of their own.

    No key is sent there before the server is known for what it is: anybody may listen at a default port.
    """
    kinds: dict[str, list[str]] = {}
    for backend in BACKENDS:
        section = config.services.get(backend.kind)
        if section is None or (section.enabled and not section.endpoint):
            for main in backend.default_urls:
                kinds.setdefault(main, []).append(backend.kind)
    return [
        Target(Endpoint(" or ".join(names), "", url, priority=FOUND_PRIORITY, host_header=_host_header(url)), main=main)
        for main, names in kinds.items()
        for url in candidate_urls(main, host)
    ]


def _host_header(url: str) -> str:
    """Behind a container's alias for the host, several servers answer to the name localhost alone."""
    parts = urlsplit(url)
    return f"localhost:{parts.port or 80}" if parts.hostname in HOSTS_FILE_NAMES else ""


def address_of(url: str) -> str:
    """The address a URL means, so that ``localhost`` and ``127.0.0.1`` are one."""
    if url.startswith("unix:"):
        return url
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}{parts.path}"


async def discover(
    client: HttpClient, config: RouterConfig, host: HostInfo, *, extra: Sequence[Endpoint] = (), before: Catalog
) -> Catalog:
    """Look at every target at once.

    Args:
        client: the one HTTP client; its guard refuses what the allow-list does not hold.
        config: services, custom endpoints and the probe timeout.
        host: where we run.
        extra: endpoints that are known already (the embedded model).
        before: the catalog until now: what it knows is only looked at, not identified anew each time.
    """
    anew = before.generation % IDENTIFY_EVERY == 0
    known = {address_of(s.endpoint.url): s for s in before.endpoints}
    wanted = (*targets(config, host), *(Target(endpoint) for endpoint in extra))
    looks = (look(client, target, config, known.get(address_of(target.endpoint.url)), anew=anew) for target in wanted)
    seen = await asyncio.gather(*looks)
    return Catalog(_named(_without_silent_defaults(seen)), before.generation + 1, time.time())


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


async def look(
    client: HttpClient,
    target: Target,
    config: RouterConfig,
    known: EndpointStatus | None = None,
    *,
    anew: bool = False,
) -> EndpointStatus:
    """What is at one address: identity, then health and models. Never raises for what a server does.

    Args:
        known: what was there the last time.
        anew: identify it all the same.
    """
    timeout = config.discovery.timeout / 1000
    try:
        async with asyncio.timeout(timeout) as limit:
            return await _look(client, target, config, known, anew, limit.when() or 0.0)
    except TimeoutError:
        return _status(target.endpoint, Health.OFFLINE, f"no answer within {timeout:g} s")
    except GuardError as error:
        return _status(target.endpoint, Health.OFFLINE, str(error))
    except EndpointDownError as error:
        return _status(target.endpoint, Health.OFFLINE, error.message)
    except BackendError as error:
        return _status(target.endpoint, Health.DEGRADED, error.message)


async def _look(
    client: HttpClient, target: Target, config: RouterConfig, known: EndpointStatus | None, anew: bool, until: float
) -> EndpointStatus:
    timeout = config.discovery.timeout / 1000
    verdict = _known_verdict(target, None if anew else known)
    if verdict is None:
        # Half of the time, so that one path that does not answer leaves some for the models.
        verdict = identify(await _probe(client, target.endpoint, timeout / 2))
    if verdict is None and target.style in ("openai", "custom"):
        verdict = Identity("openai", "the configuration says so")
    if verdict is None:
        return _status(target.endpoint, Health.DEGRADED, "something answers there, but no server that Turnout knows")
    backend = BY_KIND["openai" if target.style == "custom" else verdict.kind]
    endpoint, unused = _endpoint_of(target.endpoint, backend, config)
    if unused == SWITCHED_OFF:
        return EndpointStatus(endpoint, Health.UNKNOWN, unused, time.time(), evidence=verdict.evidence, unused=unused)
    found = await backend.inspect(client, endpoint, timeout)
    own = [m for m in found.models if not m.remote]
    left = until - asyncio.get_running_loop().time()
    details = await _details(client, backend, endpoint, own[:MAX_MODELS], known, 0.8 * left)
    excluded = [(m.id, "served by another machine through this server") for m in found.models if m.remote]
    excluded += [(m.id, f"beyond the first {MAX_MODELS:,} of its server") for m in own[MAX_MODELS:]]
    return EndpointStatus(
        replace(endpoint, chat_path=endpoint.chat_path or found.chat_path),
        found.health,
        found.reason,
        time.time(),
        version=found.version or verdict.version,
        models=tuple(_windowed(_detailed(m, details.get((m.id, m.digest))), endpoint) for m in own[:MAX_MODELS]),
        excluded=tuple(excluded),
        slots=found.slots,
        busy=found.busy,
        waiting=found.waiting,
        capacity=found.capacity,
        evidence=verdict.evidence,
        notes=verdict.notes + found.notes,
        lasting_notes=verdict.notes,
        details=details,
        child_of=found.child_of,
        unused=unused,
    )


async def _details(
    client: HttpClient,
    backend: Backend,
    endpoint: Endpoint,
    models: Sequence[Model],
    known: EndpointStatus | None,
    timeout: float,
) -> dict[tuple[str, str], Details]:
    """What the server tells of one model at a time: what is remembered, and at most so many more each time."""
    remembered = known.details if known is not None and known.endpoint.kind == backend.kind else {}
    details = {key: remembered[key] for model in models if (key := (model.id, model.digest)) in remembered}
    new = [model for model in models if (model.id, model.digest) not in details and backend.lacks_details(model)]

    async def ask(model: Model) -> Details | None:
        try:
            return await backend.details(client, endpoint, model, timeout)
        except BackendError:
            return None

    told = await asyncio.gather(*map(ask, new[:MAX_DETAILED]))
    return details | {(model.id, model.digest): found for model, found in zip(new, told, strict=False) if found}


def _detailed(model: Model, details: Details | None) -> Model:
    if details is None:
        return model
    longest = model.max_window or details.max_window
    window, source = model.window, model.window_source
    if source == "guessed":
        # Nobody gives a model more than it was trained for.
        window = min(details.window or window, longest) if longest else details.window or window
        source = "known" if details.window else source
    capabilities = model.capabilities or details.capabilities
    return replace(model, window=window, window_source=source, max_window=longest, capabilities=capabilities)


def _known_verdict(target: Target, known: EndpointStatus | None) -> Identity | None:
    """An endpoint whose kind is given, or one that answered as its kind the last time."""
    if target.endpoint.kind:
        return Identity(target.endpoint.kind, "given")
    if known is None or known.health is not Health.ONLINE or known.endpoint.kind not in BY_KIND:
        return None
    return Identity(known.endpoint.kind, known.evidence, known.version, known.lasting_notes)


def _endpoint_of(endpoint: Endpoint, backend: Backend, config: RouterConfig) -> tuple[Endpoint, str]:
    """The endpoint as its kind's section has it, and why it is not used, or ""."""
    endpoint = replace(endpoint, kind=backend.kind)
    if endpoint.configured or endpoint.embedded:
        return endpoint, ""
    section = config.services.get(backend.kind)
    endpoint = replace(endpoint, name=backend.kind)
    if section is not None:
        endpoint = _configured(endpoint, section)
        if not section.enabled:
            return endpoint, SWITCHED_OFF
    return endpoint, "" if backend.routed else f"{backend.title} leads to other servers: used when it is configured"


def _windowed(model: Model, endpoint: Endpoint) -> Model:
    return replace(model, window=endpoint.window, window_source="configured") if endpoint.window else model


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
        return await get(client, GENERIC, replace(endpoint, url=endpoint.url.removesuffix("/v1")), path, timeout)
    except (BackendError, GuardError) as error:
        return error


def identify(replies: Mapping[str, Reply], backends: Sequence[Backend] = BACKENDS) -> Identity | None:
    """The first verdict in the visible order. Pure."""
    return next((identity for backend in backends if (identity := backend.identify(replies))), None)


def _status(endpoint: Endpoint, health: Health, reason: str) -> EndpointStatus:
    return EndpointStatus(endpoint, health, reason, time.time())
