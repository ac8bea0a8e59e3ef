"""The composition root: a configuration becomes a Router with its helpers and background loops. Nothing else builds."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from turnout.backends import DEFAULT_URLS
from turnout.code.client import HostedCode, HostedIntelligence, Hosts
from turnout.code.installed import Installed, installed
from turnout.code.provider import is_off
from turnout.code.settings import HostSettings
from turnout.config import (
    CodeConfig,
    EmbeddedConfig,
    LoadedConfig,
    RouterConfig,
    audit_path,
    beside,
    data_dir,
    section_of,
    signing_dir,
)
from turnout.config_load import load_config
from turnout.errors import AuditError, ConfigError, EmbeddedError, GuardError
from turnout.fleet import search
from turnout.fleet.decisions import DecisionLog, decisions_path
from turnout.fleet.discovery import targets
from turnout.fleet.feedback import Feedback, feedback_path
from turnout.fleet.host import HostInfo, detect_os, loopback_only, on_loopback
from turnout.fleet.identity import Rules, Verifier
from turnout.fleet.inventory import Inventory, endpoints_of, read_inventory
from turnout.fleet.learned import Learned, keep_saving, learned_path
from turnout.fleet.pins import Pin, pins_or_none, pins_path
from turnout.fleet.watch import Fleet
from turnout.guard.allow import AllowList
from turnout.guard.audit import AuditLog, Keeping, Seal, open_audit
from turnout.guard.chain import head_path
from turnout.guard.identity import Digests
from turnout.guard.listen import HAS_UNIX_SOCKETS
from turnout.guard.network import HttpClient, open_client
from turnout.guard.signing import Signer
from turnout.guard.tls import TlsFiles, client_context, server_context
from turnout.journal import Journal
from turnout.journal import keep_on as journal_kept
from turnout.residency import keep_warm
from turnout.router import Router
from turnout.routing.capabilities import CapabilityTable, load_table
from turnout.types import Endpoint, Health

if TYPE_CHECKING:
    from turnout.code.apply import Editor
    from turnout.context.store import SessionStore
    from turnout.embedded import RunningEmbedded
    from turnout.fleet.catalog import Catalog

log = logging.getLogger("turnout")


def load(path: str | Path | None = None) -> LoadedConfig:
    """Find, read and check the configuration (SPEC CFG-1).

    Raises:
        ConfigError: with file, line, key path and the nearest valid key.
    """
    return load_config(path, kinds=DEFAULT_URLS)


@asynccontextmanager
async def open_router(
    loaded: LoadedConfig,
    *,
    embedded: bool = False,
    store: SessionStore | None = None,
    watch: bool = False,
    whole: bool = False,
    scan: bool = False,
) -> AsyncIterator[Router]:
    """A Router that has looked at the endpoints once. With ``embedded.fallback`` the bundled demonstration model is
    started as soon as nothing else answers.

    Args:
        loaded: the configuration.
        embedded: start the bundled demonstration model in any case.
        store: where sessions are kept; None keeps nothing.
        watch: it stays open: keep looking, at each endpoint about every ``discovery.interval``, and write the start to
            the audit log, so that one that cannot be written is found now and not at the first query.
        scan: look for servers in ``discovery.scan_cidrs`` first.
        whole: wait for every endpoint; else those that hang are waited for behind, once somebody serves.

    Raises:
        GuardError: a configured endpoint is outside the allow-list.
        AuditError: the audit log cannot be opened, or with ``watch`` cannot be written.
        EmbeddedError: the bundled model was asked for and cannot run.
    """
    config = loaded.config
    allow = refuse_outside(loaded)
    audit = open_audit_log(loaded)
    async with AsyncExitStack() as stack:
        if audit is not None:
            stack.callback(audit.close)
            if watch:
                audit.event("start")
        client = await stack.enter_async_context(_open_client(loaded, allow, _refusal_logger(audit)))
        bundled = _Bundled(config.embedded)
        stack.push_async_callback(bundled.stop)
        if embedded:
            await bundled.start()
        learned = Learned(learned_path(data_dir()))
        stack.push_async_callback(asyncio.to_thread, learned.save)
        made = _fleet(loaded, client, allow, bundled, learned, _verifier(loaded, audit))
        fleet = await stack.enter_async_context(made)
        router = Router(
            client=client,
            config=config,
            table=_table(config),
            fleet=fleet,
            pins=(pins := partial(pins_or_none, pins_path(data_dir()))),
            code=_code_of(config.code, stack),
            audit=audit,
            store=store,
            journal=await stack.enter_async_context(_journal(loaded, audit)),
        )
        if scan:
            await search.once(client, config, fleet, audit)
        await fleet.refresh(whole=whole)
        if watch:
            await _keep_watch(stack, router, search.keep_on(client, config, fleet, allow, audit), pins)
        yield router


def _table(config: RouterConfig) -> CapabilityTable:
    """The capability table; what is wrong in the user's file is told and estimated, and routing goes on."""
    file = config.routing.models_file
    return load_table(Path(file) if file else None, lambda error: log.warning("left out: %s", error))


@asynccontextmanager
async def _journal(loaded: LoadedConfig, audit: AuditLog | None) -> AsyncIterator[Journal]:
    """The journal; what it collected is saved at the end."""
    journal = open_journal(loaded, audit)
    try:
        yield journal
    finally:
        await asyncio.to_thread(journal.save)


def hosts_of(config: CodeConfig) -> Hosts:
    """The way to the processes that know code; none is started before somebody asks. Closed by whoever wanted it."""
    return Hosts(data_dir(), _settings_of(config))


def code_installed(config: CodeConfig) -> Installed:
    """What a host of code intelligence could start."""
    return installed(_settings_of(config), data_dir())


def _settings_of(config: CodeConfig) -> HostSettings:
    return HostSettings(idle_seconds=config.idle_minutes * 60.0, language_servers=config.language_servers)


def _code_of(config: CodeConfig, stack: AsyncExitStack) -> HostedCode:
    hosts = hosts_of(config)
    stack.push_async_callback(hosts.aclose)
    warm, cold = config.budget_ms / 1000, config.cold_budget_ms / 1000
    return HostedCode(hosts, warm=warm, cold=max(warm, cold), wanted=lambda root: code_installed(config).knows(root))


def _verifier(loaded: LoadedConfig, audit: AuditLog | None) -> Verifier | None:
    """What holds models against the lock file; what it finds is in the log and in the audit log."""
    if not loaded.config.security.verify_checksums:
        return None

    def alarm(event: str, what: str, model: str) -> None:
        log.error("%s", what)
        if audit is None:
            return
        try:
            audit.event(event, error=what, model=model)
        except AuditError as error:  # no query is run either that cannot be logged
            log.error("%s", error)

    return Verifier(identity_rules(loaded), Signer(signing_dir()), model_digests(), alarm)


def identity_rules(loaded: LoadedConfig) -> Rules:
    """How the models of a configuration are verified."""
    security = loaded.config.security
    return Rules(
        lock=models_lock_path(loaded),
        required=security.models_lock is not None,
        folders=tuple(beside(loaded, folder) for folder in security.model_paths),
        unverified=security.unverified_models,
    )


def models_lock_path(loaded: LoadedConfig) -> Path:
    """Where the lock file of models is. Raises ConfigError as ``audit_path``."""
    given = loaded.config.security.models_lock
    return beside(loaded, given) if given else data_dir() / "models.lock.json"


def model_digests() -> Digests:
    """The digests of files that were read before."""
    return Digests(data_dir() / "model-digests.json")


def _fleet(
    loaded: LoadedConfig,
    client: HttpClient,
    allow: AllowList,
    bundled: _Bundled,
    learned: Learned,
    verifier: Verifier | None,
) -> Fleet:
    return Fleet(
        client,
        loaded.config,
        host_of(loaded.config),
        extra=bundled.endpoints,
        stand_in=bundled.stand_in,
        inventory=read_listed(loaded, allow),
        learned=learned,
        verifier=verifier,
    )


async def _keep_watch(
    stack: AsyncExitStack,
    router: Router,
    searching: AbstractAsyncContextManager[None],
    pins: Callable[[], frozenset[Pin]],
) -> None:
    """The background loops of a Router that stays open."""
    await stack.enter_async_context(keep_saving(router.fleet.learned))
    await stack.enter_async_context(journal_kept(router.journal, router.forget_candidates))
    router.fleet.watch()
    await stack.enter_async_context(searching)
    await stack.enter_async_context(keep_warm(router.client, router.fleet, pins, router.forget_candidates))


@asynccontextmanager
async def open_client_for(loaded: LoadedConfig) -> AsyncIterator[HttpClient]:
    """The HTTP client alone, for a look at one address. A refusal is the caller's to tell, and in the audit log.

    Raises:
        GuardError: a configured endpoint is outside the allow-list.
        AuditError: the audit log cannot be opened.
    """
    allow = refuse_outside(loaded)
    audit = open_audit_log(loaded)
    try:
        async with _open_client(loaded, allow, partial(_audit_refusal, audit)) as client:
            yield client
    finally:
        if audit is not None:
            audit.close()


DAY = 86_400.0


class _Bundled:
    """The demonstration model of one Router: started at most once, stopped with it."""

    def __init__(self, config: EmbeddedConfig) -> None:
        self._config = config
        self._running: RunningEmbedded | None = None
        self._said = ""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (self._running.endpoint,) if self._running is not None else ()

    async def start(self) -> None:
        from turnout.embedded import start

        self._running = await start(data_dir(), self._config)

    async def stand_in(self, catalog: Catalog) -> Endpoint | None:
        """Start it when the user has agreed and nothing else answers; the endpoint when it was started."""
        if not self._config.fallback or self._running is not None or catalog.serving:
            return None
        if any(status.health is Health.LOADING for status in catalog.endpoints):
            return None
        try:
            await self.start()
        except EmbeddedError as error:
            if str(error) != self._said:
                log.warning("embedded.fallback is on, and it cannot be used: %s", error)
            self._said = str(error)
        return next(iter(self.endpoints), None)

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.stop()


def host_of(config: RouterConfig) -> HostInfo:
    """Where we run, as far as the configuration lets discovery see it."""
    return on_loopback(detect_os()) if loopback_only(config) else detect_os()


def read_listed(loaded: LoadedConfig, allow: AllowList) -> Inventory | None:
    """The site's inventory, None when the configuration names none.

    Raises:
        ConfigError: it cannot be read, or its signature is not good.
        GuardError: a server of it is outside the allow-list.
    """
    section = loaded.config.discovery
    if section.inventory is None:
        return None
    key = Path(section.inventory_key) if section.inventory_key else None
    inventory = read_inventory(Path(section.inventory), key, os.environ)
    wanted = (target.endpoint for target in targets(loaded.config, host_of(loaded.config)))
    taken = {endpoint.name for endpoint in wanted if endpoint.configured}
    for endpoint in endpoints_of(inventory):
        if endpoint.name in taken:
            said = f"the configuration has an endpoint called {endpoint.name!r} too"
            raise ConfigError(said, file=section.inventory, hint="give one of them another name")
        _require_allowed(allow, endpoint, section.inventory)
    return inventory


def refuse_outside(loaded: LoadedConfig) -> AllowList:
    """The allow-list of a configuration, once it is sure that it holds every configured endpoint; dials none.

    Raises:
        GuardError: one is outside; says where it is configured.
    """
    if loaded.config.security.allow_external:
        log.warning("security.allow_external is on: connections may leave the network")
    allow = AllowList.from_config(loaded.config.security)
    for target in targets(loaded.config, host_of(loaded.config)):
        if target.endpoint.configured:
            section = section_of(loaded.config, target.endpoint.name)
            _require_allowed(allow, target.endpoint, loaded.place(f"{section}.endpoint"))
    for number, cidr in enumerate(loaded.config.discovery.scan_cidrs):
        _require_network(allow, cidr, loaded.place(f"discovery.scan_cidrs.{number}"))
    return allow


def _require_network(allow: AllowList, cidr: str, place: str) -> None:
    network = ip_network(cidr)
    for address in (network[0], network[-1]):
        try:
            allow.check_address(str(address))
        except GuardError as error:
            raise GuardError(f"{place}: {cidr}: {error.message}", target=cidr, hint=error.hint) from error


def _require_allowed(allow: AllowList, endpoint: Endpoint, place: str) -> None:
    try:
        allow.check_url(endpoint.url)
    except GuardError as error:
        message = f"{place}: endpoint {endpoint.name}: {error.message}"
        raise GuardError(message, target=error.target, hint=error.hint) from error


def open_audit_log(loaded: LoadedConfig) -> AuditLog | None:
    """The audit log; None when the configuration wants none.

    Raises:
        AuditError: it cannot be opened.
    """
    security = loaded.config.security
    if not security.audit_enabled:
        return None
    keeping = Keeping(
        rotate_bytes=security.audit_rotate_mb * 1_000_000,
        rotate_seconds=security.audit_rotate_days * DAY,
        keep_seconds=security.audit_keep_days * DAY,
        continue_on_failure=security.audit_on_failure == "continue",
        fsync=security.audit_fsync,
        syslog=security.audit_syslog or "",
    )
    return open_audit(
        audit_path(loaded),
        data_dir() / "audit.key",
        log_queries=security.log_queries,
        log_responses=security.log_responses,
        keeping=keeping,
        seal=Seal(Signer(signing_dir()), audit_head_path(loaded)),
    )


def audit_head_path(loaded: LoadedConfig) -> Path:
    """Where the head of the audit log is kept. Raises ConfigError as ``audit_path``."""
    given = loaded.config.security.audit_head_path
    return beside(loaded, given) if given else head_path(signing_dir(), audit_path(loaded))


def open_journal(loaded: LoadedConfig, audit: AuditLog | None) -> Journal:
    """The decision log and what people said of answers."""
    kept = DecisionLog(decisions_path(data_dir())) if loaded.config.routing.log_decisions else None

    def note(event_type: str, *, principal: str, service: str) -> None:
        if audit is not None:
            audit.event(event_type, principal=principal, service=service)

    return Journal(kept, Feedback(feedback_path(data_dir())), note)


@asynccontextmanager
async def open_editor(
    loaded: LoadedConfig, workspace: Path, tenant: str = "local", *, asks: bool = True
) -> AsyncIterator[Editor]:
    """What previews, applies and takes back edits of a workspace's files.

    Args:
        loaded: the configuration.
        workspace: whose files may be changed.
        tenant: who changes them.
        asks: the code intelligence looks for errors and renames symbols, where one is installed. To undo needs none.

    Raises:
        AuditError: the audit log cannot be opened, so nothing is changed.
    """
    from turnout.code.apply import Editor
    from turnout.code.semantic import issues_of

    async with AsyncExitStack() as stack:
        audit = open_audit_log(loaded)
        if audit is not None:
            stack.callback(audit.close)
        told = await _intelligence_of(loaded.config, workspace, stack) if asks else None
        check = partial(issues_of, told) if told is not None else None
        yield Editor(workspace, data_dir(), audit=audit, tenant=tenant, check=check, intelligence=told, renamer=told)


async def _intelligence_of(config: RouterConfig, workspace: Path, stack: AsyncExitStack) -> HostedIntelligence | None:
    """Who knows the code of a workspace; None when there is nobody, or it is switched off."""
    if is_off(config.serena) or not HAS_UNIX_SOCKETS:
        return None
    if not await asyncio.to_thread(code_installed(config.code).knows, workspace):
        return None
    hosts = hosts_of(config.code)
    stack.push_async_callback(hosts.aclose)
    return HostedIntelligence(hosts, workspace)


def tls_files(loaded: LoadedConfig) -> TlsFiles | None:
    """What ``gateway.tls`` names, None where it names nothing."""
    tls = loaded.config.gateway.tls
    if not tls.cert or not tls.key:
        return None
    client_ca = beside(loaded, tls.client_ca) if tls.client_ca else None
    return TlsFiles(beside(loaded, tls.cert), beside(loaded, tls.key), client_ca)


def check_tls(loaded: LoadedConfig) -> None:
    """Read the files of ``gateway.tls`` and ``security.ca_file``.

    Raises:
        StorageError: one of them cannot be used.
    """
    files, authority = tls_files(loaded), loaded.config.security.ca_file
    if files is not None:
        server_context(files)
    if authority:
        client_context(beside(loaded, authority))


def _open_client(loaded: LoadedConfig, allow: AllowList, on_refusal: Callable[[GuardError], None]) -> HttpClient:
    """Raises StorageError: ``security.ca_file`` cannot be used."""
    authority = loaded.config.security.ca_file
    tls = client_context(beside(loaded, authority)) if authority else None
    return open_client(allow, on_refusal=on_refusal, tls=tls)


def _refusal_logger(audit: AuditLog | None) -> Callable[[GuardError], None]:
    def on_refusal(error: GuardError) -> None:
        log.warning("refused by the guard: %s", error.message)
        _audit_refusal(audit, error)

    return on_refusal


def _audit_refusal(audit: AuditLog | None, error: GuardError) -> None:
    if audit is not None:
        audit.event("security:refused", error=error.message)
