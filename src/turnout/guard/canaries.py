"""Canaries: attempts to reach what must not be reached, through every door that a process has (SPEC PROOF-1).

They really dial. What goes through our own doors is refused before a packet is made; what does not (C code, children,
libuv) is handed to the kernel, and only the network can stop it. Addresses are those that RFC 5737 and 3849 keep for
documentation and the name ends in ``.invalid`` (RFC 6761), so nobody is there, whatever gets out.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from turnout.errors import EndpointDownError, GuardError, PhaseTimeoutError, UsageError
from turnout.guard import canary_code
from turnout.guard.allow import AllowList
from turnout.guard.hook import SecondLineError
from turnout.guard.kernel import sent_packets
from turnout.guard.network import open_client
from turnout.guard.process import spawn
from turnout.guard.protection import Protection

SECONDS = 2.0  # the most that one attempt may take
DEFAULT_TARGETS = ("192.0.2.1:443", "198.51.100.1:443", "203.0.113.1:443", "[2001:db8::1]:443", "canary.invalid:443")

BY_CUT = "cut of children"

Verdict = Literal["stopped", "unclear", "out"]


@dataclass(frozen=True, slots=True)
class Target:
    """What must not be reached: an address, or a name. ``port`` is TCP's; DNS packets go to 53."""

    host: str
    port: int

    @property
    def is_name(self) -> bool:
        """It is no address."""
        return ":" not in self.host and not self.host.rpartition(".")[2].isdecimal()

    @property
    def shown(self) -> str:
        """As it is written on a command line."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """Of its address."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


@dataclass(frozen=True, slots=True)
class Canary:
    """One attempt.

    Attributes:
        door: what was used.
        target: what it was to reach.
        verdict: ``stopped``; ``out``: it was reached, or somebody answered in its place; ``unclear``: nothing came
            back, and a packet may have left this machine all the same.
        by: who stopped it: ``guard``, ``second line``, ``gateway``, ``cut of children``, ``this machine`` or
            ``network``; else "".
        found: what was seen, in words.
        own: it is a door that Turnout closes itself.
    """

    door: str
    target: str
    verdict: Verdict
    by: str
    found: str
    own: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What an attempt met, before it is known whether packets left: ``code`` is one of ``_JUDGED``."""

    code: str
    found: str = ""


Attempt: TypeAlias = tuple[str, Target, Callable[[], Awaitable[Seen]]]

# What was met -> the verdict and who stopped it: when an interface of this machine sent something meanwhile, or cannot
# be watched; and when none did.
_JUDGED: dict[str, tuple[tuple[Verdict, str], tuple[Verdict, str]]] = {
    "guard": (("stopped", "guard"), ("stopped", "guard")),
    "second line": (("stopped", "second line"), ("stopped", "second line")),
    "gateway": (("stopped", "gateway"), ("stopped", "gateway")),
    "no route": (("stopped", "network"), ("stopped", "this machine")),
    "denied": (("stopped", "this machine"), ("stopped", "this machine")),
    "refused": (("out", ""), ("stopped", "this machine")),
    "silence": (("unclear", ""), ("stopped", "this machine")),
    "no resolver": (("unclear", ""), ("stopped", "this machine")),
    "no such name": (("unclear", ""), ("unclear", "")),
    "not known inside": (("stopped", "network"), ("stopped", "this machine")),
    "failed": (("unclear", ""), ("unclear", "")),
    "reached": (("out", ""), ("out", "")),
}

_ERRORS = {
    "no route": (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETDOWN),
    "denied": (errno.EPERM, errno.EACCES),
    "refused": (errno.ECONNREFUSED, errno.ECONNRESET),
    "silence": (errno.ETIMEDOUT, errno.EAGAIN),
}
_INVALID = ".invalid"
_HERE = frozenset({"localhost", "ip6-localhost", "ip6-loopback", socket.gethostname().lower()})
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_UNKNOWN_NAME = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}


def read_target(text: str, allow: AllowList) -> Target:
    """``ADDRESS``, ``NAME``, either with ``:PORT``; IPv6 with a port in brackets.

    Raises:
        UsageError: it is none of these, or may be dialled anyway.
    """
    host, port = text, "443"
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    target = Target(host.lower(), int(port) if port.isascii() and port.isdecimal() else 0)
    if not 0 < target.port < 65_536 or not (_NAME.fullmatch(host) if target.is_name else _is_address(host)):
        raise UsageError(f"{text[:80]!r} is no canary", hint="write it like 192.0.2.1:443 or canary.invalid")
    if _is_here(target):
        raise UsageError(f"{text[:80]} is this machine, so it is no canary", hint="name what must not be reached")
    try:
        allow.check_host(target.host)
    except GuardError:
        return target
    if allow.allow_external:
        return target
    raise UsageError(f"{text[:80]} may be dialled, so it is no canary", hint="name what the allow-list does not hold")


def _is_here(target: Target) -> bool:
    """Whether a packet to it could not leave, whatever is open: that it does not proves nothing."""
    if target.is_name:
        name = target.host.rstrip(".")
        return name in _HERE or name.endswith(".localhost")
    address = ipaddress.ip_address(target.host)
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified or address.is_multicast


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def judge(door: str, target: Target, seen: Seen, *, quiet: bool, own: bool) -> Canary:
    """The verdict on what was met; ``quiet``: no interface but loopback has sent anything meanwhile."""
    code, found = seen.code, seen.found or seen.code
    if code == "no such name" and target.host.endswith(_INVALID):
        found += f"; any resolver says so of {_INVALID}: name one that exists outside (--target)"
    elif code == "no such name":
        code = "not known inside"
    loud, silent = _JUDGED[code]
    verdict, by = silent if quiet else loud
    return Canary(door, target.shown, verdict, by, found, own)


async def fly_own(allow: AllowList, targets: tuple[Target, ...]) -> list[Canary]:
    """Try the doors that Turnout closes itself; call it in ``second_line``, as the gateway runs."""
    with _proxy_variables(f"http://{targets[0].shown}"):
        return await _batch([*_client(allow, targets), *_python(targets)], own=True)


async def fly_others(targets: tuple[Target, ...]) -> list[Canary]:
    """Try the doors that only the network closes. What they send really leaves, where nothing stops it."""
    with _proxy_variables(f"http://{targets[0].shown}"):
        return await _batch([*_uvloop(targets), *_c_code(targets)], own=False)


async def fly_child(targets: tuple[Target, ...], cut: Protection) -> list[Canary]:
    """Try from a child, started as every child of ours is; alone, so that what other doors send is not taken for its.

    Args:
        cut: what holds it back; where nothing does, it is a door that only the network closes.
    """
    found = await _batch([*_child(targets)], own=cut.by != "none")
    return [replace(each, by=BY_CUT) if each.own and each.verdict == "stopped" else each for each in found]


async def _batch(attempts: list[Attempt], *, own: bool) -> list[Canary]:
    before = sent_packets()
    seen = await asyncio.gather(*(_timed(attempt) for _, _, attempt in attempts))
    quiet = before is not None and sent_packets() == before
    pairs = zip(attempts, seen, strict=True)
    return [judge(door, target, found, quiet=quiet, own=own) for (door, target, _), found in pairs]


async def _timed(attempt: Callable[[], Awaitable[Seen]]) -> Seen:
    try:
        async with asyncio.timeout(2 * SECONDS):
            return await attempt()
    except Exception as error:  # noqa: BLE001 - whatever an attempt meets is what is to be told
        return seen_of(error)


def seen_of(error: BaseException) -> Seen:
    """What an exception says of an attempt."""
    if isinstance(error, SecondLineError):
        return Seen("second line", error.message)
    if isinstance(error, GuardError):
        return Seen("guard", error.message)
    if isinstance(error, EndpointDownError) and error.__cause__ is not None:
        return seen_of(error.__cause__)
    if isinstance(error, TimeoutError | PhaseTimeoutError):
        return Seen("silence", f"no answer within {SECONDS:g} s")
    if isinstance(error, socket.gaierror):
        code = "no such name" if error.errno in _UNKNOWN_NAME else "no resolver"
        return Seen(code, str(error.strerror))
    if isinstance(error, OSError):
        return seen_of_errno(error.errno or 0)
    return Seen("failed", f"{type(error).__name__}: {error}")


def seen_of_errno(number: int) -> Seen:
    """What an error number of the kernel says of an attempt; 0: a connection was made."""
    if not number:
        return Seen("reached", "a connection was made")
    code = next((code for code, numbers in _ERRORS.items() if number in numbers), "failed")
    return Seen(code, errno.errorcode.get(number, str(number)))


# Our own doors, and Python's.


def _client(allow: AllowList, targets: tuple[Target, ...]) -> Iterator[Attempt]:
    def get(target: Target, scheme: str) -> Callable[[], Awaitable[Seen]]:
        async def attempt() -> Seen:
            async with open_client(allow) as client:
                reply = await client.fetch("GET", f"{scheme}://{target.shown}/", timeout=SECONDS, max_bytes=1000)
            return Seen("reached", f"it answered with status {reply.status}")

        return attempt

    for target in targets:
        yield "our HTTP client", target, get(target, "http")
        yield "our HTTP client, TLS", target, get(target, "https")
        yield "a redirect, to our HTTP client", target, _redirected(allow, target)
    yield "proxy variables, to our HTTP client", targets[0], _proxied(allow)


def _redirected(allow: AllowList, target: Target) -> Callable[[], Awaitable[Seen]]:
    async def attempt() -> Seen:
        answer = f"HTTP/1.1 302 Found\r\nLocation: http://{target.shown}/\r\nContent-Length: 0\r\n\r\n"
        async with answering(answer.encode()) as (url, _), open_client(allow) as client:
            reply = await client.fetch("GET", url, timeout=SECONDS, max_bytes=1000)
        if reply.status == 302:
            return Seen("guard", "the redirect was not followed")
        return Seen("reached", f"it was followed, to status {reply.status}")

    return attempt


def _proxied(allow: AllowList) -> Callable[[], Awaitable[Seen]]:
    """They are set meanwhile, to the first target."""

    async def attempt() -> Seen:
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nours") as (url, heads):
            async with open_client(allow) as client:
                reply = await client.fetch("GET", url, timeout=SECONDS, max_bytes=1000)
        if reply.body == b"ours" and len(heads) == 1:
            return Seen("guard", "the proxy was not used: the request went straight to its server")
        return Seen("reached", "the request went another way")

    return attempt


def _python(targets: tuple[Target, ...]) -> Iterator[Attempt]:
    async def connect(target: Target) -> Seen:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, target.host, target.port)
        transport.close()
        return seen_of_errno(0)

    def plain(target: Target) -> Seen:
        with socket.create_connection((target.host, target.port), timeout=SECONDS):
            return seen_of_errno(0)

    def raw(target: Target) -> Seen:
        protocol = socket.IPPROTO_ICMPV6 if ":" in target.host else socket.IPPROTO_ICMP
        with socket.socket(target.family, socket.SOCK_RAW, protocol) as used:
            used.sendto(canary_code.ping(target.host), (target.host, 0))
            used.settimeout(SECONDS)
            used.recvfrom(1000)
        return Seen("reached", "a raw packet was answered")

    def packet(target: Target) -> Seen:
        with socket.socket(target.family, socket.SOCK_DGRAM) as used:
            used.settimeout(SECONDS)
            used.sendto(canary_code.DNS_QUERY, (target.host, 53))
            used.recvfrom(1000)
        return Seen("reached", "a DNS server answered")

    for target in targets:
        yield "an asyncio connection", target, partial(connect, target)
        if target.is_name:
            yield "DNS, Python's getaddrinfo", target, _threaded(_look_up, target)
            continue
        yield "a Python socket", target, _threaded(plain, target)
        yield "a raw socket (ICMP)", target, _threaded(raw, target)
        yield "DNS, a UDP packet to port 53", replace(target, port=53), _threaded(packet, target)


def _look_up(target: Target) -> Seen:
    found = socket.getaddrinfo(target.host, target.port)
    return Seen("reached", f"the name leads to {found[0][4][0]}")


# Doors that no check in this process sees.


def _uvloop(targets: tuple[Target, ...]) -> Iterator[Attempt]:
    try:
        import uvloop
    except ImportError:
        return

    async def connect(target: Target) -> Seen:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS):
            transport, _ = await loop.create_connection(asyncio.Protocol, target.host, target.port)
        transport.close()
        return seen_of_errno(0)

    def attempt(target: Target) -> Seen:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(connect(target))

    for target in targets:
        yield "uvloop's own connection (libuv)", target, _threaded(attempt, target)


def _c_code(targets: tuple[Target, ...]) -> Iterator[Attempt]:
    if sys.platform != "linux":
        return

    def look_up(target: Target) -> Seen:
        return seen_of_lookup(*canary_code.look_up(target.host))

    def connect(target: Target) -> Seen:
        return seen_of_errno(canary_code.connect(target.host, target.port, SECONDS))

    def ask(target: Target) -> Seen:
        return seen_of_errno(canary_code.ask_dns(target.host, SECONDS))

    for target in targets:
        if target.is_name:
            yield "C code, getaddrinfo", target, _threaded(look_up, target)
            continue
        yield "C code, connect", target, _threaded(connect, target)
        yield "C code, a UDP packet to port 53", replace(target, port=53), _threaded(ask, target)


def seen_of_lookup(code: int, said: str) -> Seen:
    """What the C library's ``getaddrinfo`` returned."""
    if not code:
        return Seen("reached", "the name leads somewhere")
    return Seen("no such name" if code in _UNKNOWN_NAME else "no resolver", said)


class _Child:
    """One child that tries everything by itself, started as every child of ours is."""

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self._targets = targets
        self._numbers: asyncio.Task[list[int]] | None = None

    async def run(self, place: int) -> Seen:
        if self._numbers is None:
            self._numbers = asyncio.ensure_future(self._run())
        number = (await asyncio.shield(self._numbers))[place]
        if number < 0:
            return seen_of_lookup(number, canary_code.why_not_found(number))
        return seen_of_errno(number)

    async def _run(self) -> list[int]:
        command = [sys.executable, "-I", "-c", canary_code.CHILD, str(SECONDS)]
        child = await spawn([*command, *(json.dumps([t.host, t.port]) for t in self._targets)])
        try:
            line = await child.read_line(2 * SECONDS)
            numbers: list[int] = json.loads(line)
            return numbers
        finally:
            await child.stop()


def _child(targets: tuple[Target, ...]) -> Iterator[Attempt]:
    child = _Child(targets)
    for place, target in enumerate(targets):
        yield "a child process", target, partial(child.run, place)


def _threaded(attempt: Callable[[Target], Seen], target: Target) -> Callable[[], Awaitable[Seen]]:
    """In a thread that holds up neither the others nor the end: a resolver may take longer than anybody waits."""

    async def run() -> Seen:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Seen] = loop.create_future()

        def settle(seen: Seen) -> None:
            if not done.done():
                done.set_result(seen)

        def work() -> None:
            try:
                seen = attempt(target)
            except Exception as error:  # noqa: BLE001 - as in `_timed`
                seen = seen_of(error)
            with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(settle, seen)

        threading.Thread(target=work, daemon=True).start()
        return await done

    return run


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server on loopback that answers every request so; yields its URL, and the requests as they come."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", requests


@contextmanager
def _proxy_variables(url: str) -> Iterator[None]:
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, url))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
