"""The gateway as a process: signals, draining, and a configuration that is read anew while requests run.

SIGTERM and Ctrl-C let what runs end, for at most ``gateway.drain_timeout``; a second one does not wait. SIGHUP, or a
change of the file, builds a new router beside the old one and swaps them when it is ready; what is wrong with a new
configuration is said, and the one before it stays. A request ends on the router on which it began.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

from starlette.types import Receive, Scope, Send

from turnout.build import load, open_router, tls_files
from turnout.config import GatewayConfig, LoadedConfig, data_dir
from turnout.config_values import LOOPBACK
from turnout.errors import AuditError, GuardError, TurnoutError, UsageError
from turnout.fleet.catalog import Catalog
from turnout.gateway.access import AccessLog
from turnout.gateway.app import Gateway, Shared, calm_collector, create_app, running
from turnout.gateway.auth import NOBODY, Door
from turnout.gateway.exchange import Exchange
from turnout.gateway.lockout import Lockout
from turnout.gateway.refusal import HttpError
from turnout.gateway.transport import Limits
from turnout.guard.allow import AllowList
from turnout.guard.handshake import MAX_WAITING
from turnout.guard.hook import second_line
from turnout.guard.keys import Keyring, keys_path
from turnout.guard.tls import load_certificate, server_context
from turnout.guard.tokens import Tokenring
from turnout.router import Router
from turnout.types import Health

log = logging.getLogger("turnout")

LOOK_SECONDS = 1.0
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


def serve(loaded: LoadedConfig, host: str | None = None, port: int | None = None) -> None:
    """Run the gateway until a signal ends it.

    Raises:
        UsageError: other machines could reach the address, and there is no key.
        ListenError: the port is in use.
        StorageError: the keys, or the files of its TLS, cannot be read.
    """
    gateway = loaded.config.gateway
    address = host or gateway.host
    if address not in LOOPBACK and not Keyring(keys_path(data_dir())).defined:
        hint = "make one with `turnout key add NAME`, or use --host 127.0.0.1"
        raise UsageError(
            f"without a key the gateway serves this machine alone, so it cannot listen on {address}", hint=hint
        )
    _allow_many_connections(gateway.max_connections)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        ended_by = runner.run(_serve(loaded, address, gateway.port if port is None else port))
    if ended_by:
        signal.raise_signal(ended_by)  # what it means for the command is the caller's


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """What is logged meanwhile, servers that come and go too, is said with its time."""
    logger, handler = logging.getLogger("turnout"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before, logger.propagate = (logger.level, logger.propagate), False
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


async def _serve(loaded: LoadedConfig, host: str, port: int) -> int:
    """Serve until a signal; its number, 0 when the server ended by itself."""
    gateway = loaded.config.gateway
    read = _identity(loaded.file)  # before servers are looked for: what is saved meanwhile is news
    limits = Limits(body_seconds=gateway.body_timeout / 1000, connections=gateway.max_connections)
    beyond = host not in LOOPBACK
    files = tls_files(loaded)
    tls = server_context(files) if files is not None else None
    if beyond and tls is None:
        _say("Warning: keys and prompts cross the network in the clear; gateway.tls encrypts them (docs/gateway.md)")
    async with _live(loaded, beyond_loopback=beyond, tls=tls) as live:
        calm_collector()
        async with running(
            live, host, port, limits=limits, grace=1, ending=live.end, tls=tls, refused=live.refused_certificate
        ) as (server, url):
            stopping = _Stopping(live)
            with _log_on_stderr(), _signals(stopping.handlers):
                # Only now: whoever has read it may close the terminal, or send a signal.
                _say(f"Turnout listens on {url}\n{_found(live.router_catalog, loaded.config.discovery.interval)}")
                watching = asyncio.ensure_future(live.keep_current(stopping.reload, read))
                await asyncio.wait({server, stopping.over}, return_when=asyncio.FIRST_COMPLETED)
                await _cancelled(watching)
                await stopping.close()
        return stopping.number


class _Stopping:
    """What signals ask for."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reload = asyncio.Event()
        self.number = 0
        self._drain: asyncio.Task[None] | None = None
        self._terminal = sys.stderr.isatty()
        self.handlers: dict[int, Callable[[], None]] = {int(signal.SIGTERM): lambda: self.stop(signal.SIGTERM)}
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # how a script's shell starts what runs behind it
            self.handlers[int(signal.SIGINT)] = lambda: self.stop(signal.SIGINT)
        if _HANGUP is not None:
            self.handlers[int(_HANGUP)] = self._hang_up

    def stop(self, number: int) -> None:
        """Drain, then end; the second time end."""
        self.number = self.number or int(number)
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._live.drain())
            self._drain.add_done_callback(lambda _: self._end())
        else:
            self._end()

    def _hang_up(self) -> None:
        if self._terminal and not sys.stderr.isatty():  # nobody asked for a reload: the terminal was closed
            self.stop(int(signal.SIGTERM if _HANGUP is None else _HANGUP))
        else:
            self.reload.set()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    async def close(self) -> None:
        """Wait for nothing any more."""
        if self._drain is not None:
            await _cancelled(self._drain)


class _Generation:
    """One configuration in effect, with its router; closed once it is retired and its last request has ended.

    All of it happens in one task, because what a task opens is closed by the same.
    """

    def __init__(self, loaded: LoadedConfig, make: Callable[..., Gateway]) -> None:
        self.loaded, self._make = loaded, make
        self.app: Gateway
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retired = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    async def opened(self) -> None:
        """Wait until it can serve. Raises what hinders it."""
        await asyncio.wait({self.task, self._opened}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            await self.task

    def retire(self) -> None:
        """No request begins here any more."""
        self._retired.set()

    async def _run(self) -> None:
        async with open_router(self.loaded, watch=True) as router:
            with second_line(AllowList.from_config(self.loaded.config.security), partial(_tell_refused, router)):
                self.app = self._make(router, self.loaded)
                self._opened.set_result(None)
                await self._retired.wait()
                await self.app.idle()


def _tell_refused(router: Router, error: GuardError) -> None:
    log.warning("refused by the second line of the guard: %s", error.message)
    router.note("security:refused", error=f"second line: {error.message}")


class Live:
    """The ASGI application that always leads to the configuration in effect. Made by ``_live``."""

    def __init__(
        self, started_with: GatewayConfig, *, beyond_loopback: bool, tls: ssl.SSLContext | None = None
    ) -> None:
        self._started_with, self._beyond_loopback, self._tls = started_with, beyond_loopback, tls
        self._shared = Shared()
        self._ring, self._lockout = Tokenring(Keyring(keys_path(data_dir()))), Lockout()
        self._access: AccessLog | None = None
        self._now: _Generation
        self._old: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        await self._now.app(scope, receive, send)

    async def open(self, loaded: LoadedConfig) -> None:
        """Put a configuration into effect; the one before it is retired. Raises what hinders it."""
        generation = _Generation(loaded, self._make)
        try:
            await generation.opened()
        except asyncio.CancelledError:
            await _cancelled(generation.task)
            raise
        before: _Generation | None = getattr(self, "_now", None)
        self._now = generation
        if before is not None:
            self._old.add(before.task)
            before.task.add_done_callback(self._old.discard)
            before.retire()

    def _make(self, router: Router, loaded: LoadedConfig) -> Gateway:
        gateway = loaded.config.gateway
        wanted = self._beyond_loopback if gateway.access_log is None else gateway.access_log
        if wanted and self._access is None:
            self._access = AccessLog(sys.stdout)
        return create_app(
            router,
            max_body_bytes=gateway.max_body_mb * 1_000_000,
            patience=gateway.patience / 1000,
            door=Door(
                self._ring,
                gateway.hosts,
                require_key=self._beyond_loopback,
                workspace=loaded.config.serena.workspace or "",
                lockout=self._lockout,
            ),
            shared=self._shared,
            access=self._access if wanted else None,
        )

    @property
    def router_catalog(self) -> Catalog:
        """What runs where."""
        router: Router = self._now.app.state.router
        return router.catalog

    async def keep_current(self, asked: asyncio.Event, applied: tuple[int, int, int] | None) -> None:
        """Reload when ``asked`` is set, or when the file is another one than ``applied`` and has been the same for a
        whole look."""
        last = applied
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), LOOK_SECONDS)
            now = _identity(self._now.loaded.file)
            if asked.is_set() or (now == last and now != applied):
                asked.clear()
                applied = now
                await self.reload()
            last = now

    async def reload(self) -> None:
        """Read the configuration anew; what is wrong with it is said, and the one in effect stays."""
        before = self._now.loaded
        where = str(before.file or "the configuration")
        try:
            _require_file(before.file)
            loaded = load(before.file)
            files = tls_files(loaded)
            if self._tls is not None and files is not None:
                load_certificate(self._tls, files)
            await self.open(loaded)
        except Exception as error:  # noqa: BLE001 - whatever a new configuration brings, the old one goes on
            said = str(error) if isinstance(error, TurnoutError) else f"{type(error).__name__}: {error}"
            self._note(f"reload of {where}", error=error.code if isinstance(error, TurnoutError) else "error")
            _say(f"Error: {' '.join(said.split())}\nThe configuration that was in effect stays.")
            return
        self._note(f"reload of {where}")
        for warning in loaded.warnings:
            _say(f"Warning: {warning}")
        old, new = self._started_with, loaded.config.gateway
        if _fixed(old) != _fixed(new):
            _say(
                "Warning: gateway.host, port, body_timeout, max_connections, whether there is TLS and its client_ca "
                "change at the next start"
            )
        _say(f"Turnout has read {where} anew. {_found(self.router_catalog, loaded.config.discovery.interval)}")

    def _note(self, what: str, error: str = "") -> None:
        try:
            self._now.app.state.router.note("config", service=what, error=error)
        except AuditError as problem:
            _say(f"Error: {problem}")

    async def drain(self) -> None:
        """Refuse what is new and wait for what runs, for at most ``gateway.drain_timeout``."""
        self._shared.draining = True
        running_now, limit = self._shared.metrics.in_flight, self._now.loaded.config.gateway.drain_timeout / 1000
        if running_now:
            _say(f"Stopping; {_counted(running_now, 'request')} may still take {limit:g} s. Once more ends it now.")
        self._now.retire()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await asyncio.wait({*self._old, asyncio.ensure_future(self._now.app.idle())})

    def refused_certificate(self, peer: str, why: str) -> None:
        """Who has no certificate that is wanted is in the audit log as whoever has no key."""
        error, scope = HttpError(403, why, hint="", code="client_certificate"), {"client": (peer, 0), "method": "TLS"}
        exchange = Exchange()
        exchange.principal = NOBODY
        self._shared.refusals.write(error, exchange, {**scope, "path": why}, self._now.app.state.router.note)

    def end(self) -> None:
        """From here on a request that is cancelled answers that the gateway stops."""
        self._shared.ending = True
        if left := self._shared.metrics.in_flight:
            _say(f"Ending {_counted(left, 'request')} that did not end in time.")

    async def close(self) -> None:
        """Close every router, once no request runs."""
        self._now.retire()
        await asyncio.gather(*self._old, self._now.task)
        if self._access is not None:
            await asyncio.to_thread(self._access.close)


@asynccontextmanager
async def _live(
    loaded: LoadedConfig, *, beyond_loopback: bool, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Live]:
    live = Live(loaded.config.gateway, beyond_loopback=beyond_loopback, tls=tls)
    await live.open(loaded)
    try:
        yield live
    finally:
        await live.close()


@contextmanager
def _signals(handlers: Mapping[int, Callable[[], None]]) -> Iterator[None]:
    """Meanwhile each signal calls its handler in the loop; afterwards whoever had it before has it again."""
    loop = asyncio.get_running_loop()

    def heard(number: int, _: object) -> None:
        loop.call_soon_threadsafe(handlers[number])

    before = {number: signal.signal(number, heard) for number in handlers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _fixed(gateway: GatewayConfig) -> tuple[object, ...]:
    """What holds until the process ends."""
    listens = gateway.host, gateway.port, gateway.body_timeout, gateway.max_connections
    return *listens, bool(gateway.tls.cert), gateway.tls.client_ca


def _require_file(file: Path | None) -> None:
    """Reading a pipe would wait for its writer, and every request meanwhile for that.

    Raises:
        UsageError: it is a pipe or a device.
    """
    if file is not None and file.exists() and not (file.is_file() or file.is_dir()):
        raise UsageError(f"{file} is no regular file, and can be read at the start alone")


def _identity(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file does; None where there is none."""
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _allow_many_connections(connections: int) -> None:
    """Each request may need two descriptors, and the usual soft limit is 1024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + MAX_WAITING + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # a closed terminal ends nothing
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; it has no build for Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _found(catalog: Catalog, interval: int) -> str:
    """What there is to route to, or what to do; ``interval`` in milliseconds."""
    serving = catalog.serving
    if serving:
        models = sum(len(status.models) for status in serving)
        names = ", ".join(f"{status.endpoint.name} ({len(status.models)})" for status in serving)
        return f"Found {_counted(len(serving), 'server')} with {_counted(models, 'model')}: {names}"
    loading = [status.endpoint.name for status in catalog.endpoints if status.health is Health.LOADING]
    if loading:
        return f"No model can answer yet; still loading: {', '.join(loading)}"
    return (
        "No server is found yet: start one such as llama-server or Ollama, or name yours in the configuration"
        f" (`turnout config init`). It is looked for every {interval / 1000:g} s and when a request comes."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
