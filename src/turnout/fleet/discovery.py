"""Finding servers: every target is probed at once by GETs, named by what it answers, and asked for its models.

A target that nobody configured is a default address on loopback (or what reaches the host from a container). Nothing
here wakes or loads a model, and nothing is dialled that the allow-list does not hold.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from turnout.backends import BACKENDS, BY_KIND
from turnout.backends.base import MAX_LOOK_BYTES, MAX_ROWS, Backend, Identity, Inspection, at_root, clean, get
from turnout.config import CustomEndpoint, RouterConfig, ServiceConfig
from turnout.errors import BackendError, EndpointDownError, GuardError, NonsenseError, PhaseTimeoutError, UsageError
from turnout.fleet.catalog import LEADS_ELSEWHERE, EndpointStatus, address_of
from turnout.fleet.host import HostInfo, candidate_urls, detect_os
from turnout.guard.allow import HOSTS_FILE_NAMES
from turnout.guard.network import Reply
from turnout.types import Details, Endpoint, Health, Limits, Model

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient


FOUND_PRIORITY = 5
MAX_DETAILED = 32  # models of one endpoint that are asked for one by one in a refresh
MAX_PROBE_BYTES, MAX_NOTES, LONGEST_PATH = 1_000_000, 50, 4096
PROBE_SHARE = 0.6  # of a look's time
GENERIC = BY_KIND["openai"]
# On a busy machine what tells a server apart may be what came too late: it is looked at anew, not taken as known.
HURRIED = "; some probes were not answered in time"
SWITCHED_OFF = "switched off in the configuration"
# Each model is rated at every look: a list without end must not stop everything else.
MAX_MODELS = MAX_ROWS

log = logging.getLogger("turnout")


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
        first_byte=section.first_byte_timeout / 1000 if section.first_byte_timeout else Limits().first_byte,
        silence=section.timeout / 1000,
        total=section.total_timeout / 1000,
        max_retries=section.max_retries,
        adaptive=section.first_byte_timeout is None,
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
        slots=custom.slots or 0,
    )
    return Target(endpoint, style=custom.api_style)


def _configured(endpoint: Endpoint, section: ServiceConfig) -> Endpoint:
    return replace(
        endpoint,
        priority=section.priority,
        limits=_limits(section),
        key=section.key or "",
        host_header=_host_header(endpoint.url),
        window=section.window or 0,
        slots=section.slots or 0,
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


# Looking at one address.


@dataclass(frozen=True, slots=True)
class Probed:
    """What one probe answered: ``status`` 0 for no answer, ``said`` its first words or what went wrong, cleaned."""

    path: str
    status: int
    said: str


async def look(
    client: HttpClient,
    target: Target,
    config: RouterConfig,
    known: EndpointStatus | None = None,
    *,
    anew: bool = False,
    evidence: list[Probed] | None = None,
) -> EndpointStatus:
    """What is at one address: identity, then health and models. Never raises for what a server does.

    Args:
        known: what was there the last time; a server that goes on answering as its kind is only inspected.
        anew: identify it all the same.
        evidence: filled with what each probe answered.
    """
    timeout = config.discovery.timeout / 1000
    try:
        async with asyncio.timeout(timeout) as limit:
            return _bounded(await _look(client, target, config, known, anew, limit.when() or 0.0, evidence))
    except (TimeoutError, PhaseTimeoutError):
        reason = f"no answer within {timeout:g} s"
        return replace(status_of(_last_known(target, known), Health.OFFLINE, reason), silent=True)
    except GuardError as error:
        return status_of(_last_known(target, known), Health.OFFLINE, clean(str(error)))
    except EndpointDownError as error:
        return status_of(_last_known(target, known), Health.OFFLINE, clean(error.message))
    except BackendError as error:
        return status_of(_last_known(target, known), Health.DEGRADED, clean(error.message))
    except Exception as error:  # one server's bytes that a backend stumbles over must not hide the other servers
        log.exception("looking at %s failed", target.endpoint.url)
        reason = f"could not be read: {type(error).__name__}"
        return status_of(_last_known(target, known), Health.DEGRADED, reason)


def _spoken_to(target: Target, found: Backend) -> Backend:
    """Who speaks to a server of a known kind: paths that the user gave are those of the OpenAI format."""
    given = target.style == "openai" and (target.endpoint.chat_path or target.endpoint.models_path)
    return GENERIC if target.style == "custom" or (given and found.wire is not GENERIC.wire) else found


def _last_known(target: Target, known: EndpointStatus | None) -> Endpoint:
    return target.endpoint if known is None else known.endpoint


async def _look(
    client: HttpClient,
    target: Target,
    config: RouterConfig,
    known: EndpointStatus | None,
    anew: bool,
    until: float,
    evidence: list[Probed] | None,
) -> EndpointStatus:
    timeout = config.discovery.timeout / 1000
    verdict = _known_verdict(target, None if anew else known)
    replies: Mapping[str, Reply] = {}
    if verdict is None:
        replies, hurried = await _probe(client, target.endpoint, timeout, evidence)
        verdict = identify(replies)
        if verdict is not None and verdict.kind == GENERIC.kind and hurried:
            verdict = replace(verdict, evidence=verdict.evidence + HURRIED)
    if verdict is None and target.style in ("openai", "custom"):
        verdict = Identity("openai", "the configuration says so")
    if verdict is None:
        return status_of(target.endpoint, Health.DEGRADED, _strange(replies))
    backend = _spoken_to(target, BY_KIND[verdict.kind])
    endpoint, unused = _endpoint_of(target.endpoint, backend, config)
    if not target.main and not target.endpoint.configured and not target.endpoint.embedded:
        # A scan or an announcement led there: any machine can say that it is of the kind whose key this is.
        endpoint = replace(endpoint, key="")
    if unused == SWITCHED_OFF:
        return replace(status_of(endpoint, Health.UNKNOWN, unused), evidence=verdict.evidence, unused=unused)
    found = await backend.inspect(client, endpoint, timeout)
    far = await _far_models(client, BY_KIND[verdict.kind], backend, endpoint, timeout)
    found = replace(found, models=tuple(replace(m, remote=m.remote or m.id in far) for m in found.models))
    own = [m for m in found.models if not m.remote]
    left = until - asyncio.get_running_loop().time()
    details = await _details(client, backend, endpoint, own[:MAX_MODELS], known, 0.8 * left)
    excluded = [(m.id, "served by another machine through this server") for m in found.models if m.remote]
    excluded += [(m.id, f"beyond the first {MAX_MODELS:,} of its server") for m in own[MAX_MODELS:]]
    return EndpointStatus(
        replace(endpoint, chat_path=endpoint.chat_path or found.chat_path),
        found.health,
        _reason_of(found),
        time.time(),
        version=found.version or verdict.version,
        models=tuple(_windowed(_detailed(m, details.get((m.id, m.digest))), endpoint) for m in own[:MAX_MODELS]),
        excluded=tuple(excluded),
        slots=found.slots,
        busy=found.busy,
        speed=found.speed,
        waiting=found.waiting,
        capacity=found.capacity,
        evidence=verdict.evidence,
        notes=verdict.notes + found.notes,
        lasting_notes=verdict.notes,
        details=details,
        child_of=found.child_of,
        unused=unused,
        children=found.children,
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
    if source != "known":
        # Nobody gives a model more than it was trained for.
        window = min(details.window or window, longest) if longest else details.window or window
        source = "known" if details.window else source
    capabilities = model.capabilities or details.capabilities
    return replace(model, window=window, window_source=source, max_window=longest, capabilities=capabilities)


def _reason_of(found: Inspection) -> str:
    if len(found.models) <= MAX_MODELS:
        return found.reason
    return f"{found.reason}; of the models it lists only the first {MAX_MODELS:,} are used"


def _strange(replies: Mapping[str, Reply]) -> str:
    if any(300 <= reply.status < 400 for reply in replies.values()):
        return "it only leads elsewhere (a redirect), which is never followed"
    return "something answers there, but no server that Turnout knows"


def _bounded(status: EndpointStatus) -> EndpointStatus:
    """Fit to be kept and shown: so many models, no id that a terminal would obey, no endless words."""
    models = tuple(_safe(model) for model in status.models if model.id == clean(model.id, 1000))
    odd = [model.id for model in status.models if model.id != clean(model.id, 1000)]
    excluded = [(clean(name, 200), why) for name, why in status.excluded[:MAX_MODELS]]
    return replace(
        status,
        reason=clean(status.reason),
        version=clean(status.version, 100),
        models=models,
        excluded=(*excluded, *((clean(name, 200), "its id holds what no id should") for name in odd)),
        evidence=clean(status.evidence),
        notes=tuple(clean(note) for note in status.notes[:MAX_NOTES]),
        children=tuple(clean(url) for url in status.children[:MAX_NOTES]),
    )


def _safe(model: Model) -> Model:
    if not model.weights.path.isprintable() or len(model.weights.path) > LONGEST_PATH:
        model = replace(model, weights=replace(model.weights, path=""))
    if (model.family + model.quantization + model.digest).isprintable():
        return model
    family, quantization, digest = (clean(text, 100) for text in (model.family, model.quantization, model.digest))
    return replace(model, family=family, quantization=quantization, digest=digest)


async def _far_models(
    client: HttpClient, kind: Backend, spoken: Backend, endpoint: Endpoint, timeout: float
) -> frozenset[str]:
    """Models of another machine at a server that the configuration has spoken to as less than it is: only its own kind
    knows which those are."""
    if kind is spoken:
        return frozenset()
    try:
        told = await kind.inspect(client, replace(endpoint, kind=kind.kind, models_path=""), timeout)
    except BackendError:
        return frozenset()
    return frozenset(model.id for model in told.models if model.remote)


def _known_verdict(target: Target, known: EndpointStatus | None) -> Identity | None:
    """An endpoint whose kind is given, or one that answered as its kind the last time."""
    if target.endpoint.kind:
        return Identity(target.endpoint.kind, "given")
    if known is None or known.endpoint.kind not in BY_KIND or target.style == "custom":
        return None
    if known.evidence.endswith(HURRIED):
        return None
    slow = known.health is Health.DEGRADED and known.models
    if known.health not in (Health.ONLINE, Health.LOADING, Health.NEEDS_KEY) and not slow:
        return None
    return Identity(known.endpoint.kind, known.evidence, known.version, known.lasting_notes)


def _endpoint_of(endpoint: Endpoint, backend: Backend, config: RouterConfig) -> tuple[Endpoint, str]:
    """The endpoint as its kind's section has it, and why it is not used, or ""."""
    endpoint = replace(endpoint, kind=backend.kind)
    if backend.from_root:
        endpoint = at_root(endpoint)
    if endpoint.configured or endpoint.embedded:
        return endpoint, ""
    section = config.services.get(backend.kind)
    endpoint = replace(endpoint, name=backend.kind)
    if section is not None:
        endpoint = _configured(endpoint, section)
        if not section.enabled:
            return endpoint, SWITCHED_OFF
    return endpoint, "" if backend.routed else f"{backend.title} {LEADS_ELSEWHERE}"


def _windowed(model: Model, endpoint: Endpoint) -> Model:
    """With the window that the user says: where the server does not tell, is told it, or has more than is wanted."""
    if not endpoint.window:
        return model
    window = min(endpoint.window, model.max_window) if model.max_window else endpoint.window
    told = model.window_source == "known" and model.window and not BY_KIND[endpoint.kind].takes_window
    if told and window >= model.window:
        return model
    return replace(model, window=window, window_source="configured")


async def _probe(
    client: HttpClient, endpoint: Endpoint, timeout: float, evidence: list[Probed] | None
) -> tuple[dict[str, Reply], bool]:
    """The replies by path, and whether some did not come in time."""
    paths = tuple(dict.fromkeys(path for backend in BACKENDS for path in backend.probes))
    base_url = replace(endpoint, url=endpoint.url.removesuffix("/v1"))

    async def ask(path: str, timeout: float) -> Reply | BackendError | GuardError:
        limit = MAX_LOOK_BYTES if path in GENERIC.probes else MAX_PROBE_BYTES
        answer: Reply | BackendError | GuardError
        try:
            answer = await get(client, GENERIC, base_url, path, timeout, limit)
        except (BackendError, GuardError) as error:
            answer = error
        if evidence is not None:
            evidence.append(_probed(path, answer))
        return answer

    first, *rest = paths
    # One probe first: where nothing listens, one refused connection is the whole cost.
    answers = [await ask(first, timeout)]
    if isinstance(answers[0], GuardError | EndpointDownError):
        raise answers[0]
    # One path on which a server sits leaves time for the rest of the look.
    answers += await asyncio.gather(*(ask(path, timeout * PROBE_SHARE) for path in rest))
    if all(isinstance(answer, NonsenseError) for answer in answers):
        raise answers[0]  # type: ignore[misc]  # all of them are errors
    replies = {path: answer for path, answer in zip(paths, answers, strict=True) if isinstance(answer, Reply)}
    return replies, any(isinstance(answer, PhaseTimeoutError) for answer in answers)


def _probed(path: str, answer: Reply | BackendError | GuardError) -> Probed:
    if isinstance(answer, BackendError | GuardError):
        return Probed(path, 0, clean(answer.message))
    server = answer.headers.get("server", "")
    words = clean(answer.body[:2000].decode("utf-8", "replace"), 160)
    return Probed(path, answer.status, f"Server: {clean(server, 60)} | {words}" if server else words)


def identify(replies: Mapping[str, Reply], backends: Sequence[Backend] = BACKENDS) -> Identity | None:
    """The first verdict in the visible order. Pure."""
    return next((identity for backend in backends if (identity := backend.identify(replies))), None)


def status_of(endpoint: Endpoint, health: Health, reason: str) -> EndpointStatus:
    """A status without models."""
    return EndpointStatus(endpoint, health, reason, time.time())


# Why an address was taken for what it was taken for.


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind's rule and its verdict on the replies: ``evidence`` is "" where it did not match."""

    kind: str
    title: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one address was judged.

    Attributes:
        probes: what each probe answered; only the first where nothing listens.
        rules: every rule in order; the first with evidence decided.
        status: the verdict, with state, reason and models.
    """

    url: str
    probes: tuple[Probed, ...]
    rules: tuple[Rule, ...]
    status: EndpointStatus


async def explain_address(client: HttpClient, config: RouterConfig, url: str) -> Explanation:
    """Look at one address as discovery does, and keep the evidence.

    Args:
        url: ``HOST:PORT`` or a URL; with the key and style that the configuration has for it, if it has.

    Raises:
        UsageError: it is none.
    """
    url = url.rstrip("/") if "://" in url or url.startswith("unix:") else f"http://{url}"
    try:
        address = address_of(url)
    except ValueError as error:
        raise UsageError(f"{url} is no address", hint="for example 127.0.0.1:11434") from error
    known = next((t for t in targets(config, detect_os()) if address_of(t.endpoint.url) == address), None)
    target = known or Target(Endpoint(address, "", url, host_header=_host_header(url)))
    probes: list[Probed] = []
    replies: dict[str, Reply] = {}
    timeout = config.discovery.timeout / 1000
    try:
        async with asyncio.timeout(timeout):
            replies, _ = await _probe(client, target.endpoint, timeout, probes)
    except (TimeoutError, BackendError, GuardError) as error:
        log.debug("%s: %s", url, error)  # the look below meets it again and says so
    rules = tuple(_rule(backend, replies) for backend in BACKENDS)
    return Explanation(url, tuple(probes), rules, await look(client, target, config))


def _rule(backend: Backend, replies: Mapping[str, Reply]) -> Rule:
    verdict = backend.identify(replies)
    return Rule(backend.kind, backend.title, clean(verdict.evidence) if verdict else "")
