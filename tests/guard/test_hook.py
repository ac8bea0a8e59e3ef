"""The second line: what Python code dials outside the allow-list is refused, and what it does not see is shown."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import uvloop

from tests.guard.listener import HELLO, listening, says
from tests.guard.recorder import Recorder, dns, recording
from turnout.api import load_any
from turnout.config import SecurityConfig
from turnout.errors import AuditError, GuardError
from turnout.gateway.live import _live
from turnout.guard import canary_code, hook
from turnout.guard.allow import AllowList
from turnout.guard.hook import SecondLineError, second_line

OUTSIDE, OUTSIDE6 = "203.0.113.5", "2001:db8::5"
ALLOW = AllowList.from_config(SecurityConfig(allowed_hosts=("10.9.0.0/16",), allowed_cidrs=()))


@pytest.fixture
def refused() -> Iterator[list[GuardError]]:
    found: list[GuardError] = []
    with second_line(ALLOW, found.append):
        yield found


@pytest.fixture
def recorder(whole_world_is_here: None) -> Iterator[Recorder]:
    with recording() as made:
        yield made


def _tcp(host: str) -> None:
    socket.create_connection((host, 9), timeout=1).close()


def _tcp_without_errors(host: str) -> None:
    with socket.socket() as used:
        used.connect_ex((host, 9))


def _udp(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as used:
        used.sendto(b"x", (host, 53))


def _message(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as used:
        used.sendmsg([b"x"], [], 0, (host, 53))


def _library(host: str) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{host}:9/", timeout=1)


def _reverse(host: str) -> None:
    socket.gethostbyaddr(host)


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("dial", "host"),
    [
        (_tcp, OUTSIDE),
        (_tcp, OUTSIDE6),
        (_tcp, "::ffff:203.0.113.5"),
        (_tcp, "169.254.169.254"),
        (_tcp_without_errors, OUTSIDE),
        (_udp, OUTSIDE),
        (_udp, OUTSIDE6),
        (_udp, "255.255.255.255"),
        (_message, OUTSIDE),
        (_reverse, OUTSIDE),
    ],
)
def test_python_code_of_any_library_is_refused(
    recorder: Recorder, refused: list[GuardError], dial: Callable[[str], None], host: str
) -> None:
    with pytest.raises(SecondLineError, match="second line"):
        dial(host)
    assert len(refused) == 1
    assert recorder.off() == set()


@pytest.mark.isolated
async def test_libraries_too_are_refused(recorder: Recorder, refused: list[GuardError]) -> None:
    with pytest.raises(urllib.error.URLError, match="second line"):
        _library(OUTSIDE)
    async with aiohttp.ClientSession() as session:
        for host in (OUTSIDE, "canary.invalid"):
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"http://{host}:9/")
    assert len(refused) == 3
    assert recorder.off() == set()


@pytest.mark.isolated
@pytest.mark.parametrize("ask", [socket.getaddrinfo, lambda name, port: socket.gethostbyname(name)])
def test_names_are_not_looked_up(
    recorder: Recorder, refused: list[GuardError], ask: Callable[[str, int], object]
) -> None:
    with pytest.raises(SecondLineError, match="not even resolved"):
        ask("canary.invalid", 80)
    assert recorder.off() == set()


@pytest.mark.isolated
def test_in_every_thread(recorder: Recorder, refused: list[GuardError]) -> None:
    met: list[BaseException] = []

    def dial() -> None:
        try:
            _tcp(OUTSIDE)
        except GuardError as error:
            met.append(error)

    thread = threading.Thread(target=dial)
    thread.start()
    thread.join(10)
    assert len(met) == len(refused) == 1


async def test_what_is_allowed_goes_on(refused: list[GuardError], tmp_path: object) -> None:
    async with listening(says(HELLO)) as listener:
        for host in ("127.0.0.1", "localhost"):
            async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{listener.port}/") as reply:
                assert await reply.read() == b"hello"
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    with pytest.raises(FileNotFoundError):
        with socket.socket(socket.AF_UNIX) as used:
            used.connect(f"{tmp_path}/none.sock")
    assert socket.getaddrinfo(OUTSIDE, 80)  # an address is not asked of anybody
    assert refused == []


@pytest.mark.isolated
def test_two_in_force_allow_what_either_does_until_they_end(recorder: Recorder) -> None:
    wider = AllowList.from_config(SecurityConfig(allowed_hosts=("192.0.2.0/24",), allowed_cidrs=()))
    with second_line(ALLOW, lambda _: None):
        with second_line(wider, lambda _: None):
            _udp("192.0.2.1")
            _udp("10.9.0.1")
            with pytest.raises(SecondLineError):
                _udp(OUTSIDE)
        with pytest.raises(SecondLineError):
            _udp("192.0.2.1")
    assert recorder.off() == {"192.0.2.1", "10.9.0.1"}
    _udp(OUTSIDE)
    assert recorder.off() == {OUTSIDE}


@pytest.mark.isolated
def test_a_log_that_cannot_be_written_opens_nothing(recorder: Recorder) -> None:
    def fail(_: GuardError) -> None:
        raise AuditError("the disk is full")

    with second_line(ALLOW, fail), pytest.raises(SecondLineError):
        _udp(OUTSIDE)
    assert recorder.off() == set()


@pytest.mark.isolated
def test_a_packet_socket_is_not_made(refused: list[GuardError], whole_world_is_here: None) -> None:
    with pytest.raises(SecondLineError, match="packet socket"):
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    assert len(refused) == 1


@pytest.mark.isolated
async def test_the_gateway_has_it_and_writes_down_what_it_refused(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path))
    loaded = load_any({"discovery": {"enabled": False}})
    async with _live(loaded, beyond_loopback=False) as live:
        await live.open(loaded)  # as a reload does
        with pytest.raises(SecondLineError):
            _udp(OUTSIDE)
    assert hook._in_force == ()
    assert recorder.off() == set()
    log = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    (told,) = [record for record in log if record["event_type"] == "security:refused"]
    assert told["error"] == f"second line: {OUTSIDE} is outside the allowed networks"


# Blind spots: what docs/security.md says is not seen.


@pytest.mark.isolated
def test_blind_to_connections_that_libuv_makes(recorder: Recorder, refused: list[GuardError]) -> None:
    async def dial() -> None:
        with pytest.raises(OSError, match="refused"):
            await asyncio.get_running_loop().create_connection(asyncio.Protocol, OUTSIDE, 9)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(dial())
    assert recorder.off() == {OUTSIDE}
    assert refused == []


@pytest.mark.isolated
def test_not_blind_to_what_uvloop_does_with_pythons_sockets(recorder: Recorder, refused: list[GuardError]) -> None:
    """As `guard/dial.py` dials, so that it has two lines in the gateway."""

    async def dial() -> None:
        with socket.socket() as used:
            used.setblocking(False)
            with pytest.raises(SecondLineError):
                await asyncio.get_running_loop().sock_connect(used, (OUTSIDE, 9))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(dial())
    assert recorder.off() == set()
    assert len(refused) == 1


@pytest.mark.isolated
def test_blind_to_the_look_up_of_a_name_that_is_dialled_itself(recorder: Recorder, refused: list[GuardError]) -> None:
    """C code asks for it before the event; what it leads to is refused all the same."""
    with dns("203.0.113.9") as server:
        with pytest.raises((SecondLineError, socket.gaierror)):
            _tcp_without_errors("canary.invalid")
    assert server.asked[0].startswith("canary.invalid")
    assert "203.0.113.9" not in recorder.off()


@pytest.mark.isolated
def test_blind_to_c_code(recorder: Recorder, refused: list[GuardError]) -> None:
    assert canary_code.connect(OUTSIDE, 9, 1) == 111
    assert canary_code.ask_dns(OUTSIDE6, 0.1) == 110
    libc = ctypes.CDLL(None)
    assert libc.getaddrinfo(b"canary.invalid", None, None, ctypes.byref(ctypes.c_void_p())) != 0
    assert {OUTSIDE, OUTSIDE6} <= recorder.off()
    assert refused == []


def test_its_cost_is_a_look_up_in_a_dict() -> None:
    """The gateway raises four events a request, none of which it watches (measured: CHANGELOG's commit)."""
    assert set(hook._WATCHED) >= {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"}
    assert not {"open", "socket.bind", "compile"} & set(hook._WATCHED)


# What is left when an interpreter ends: the hook's module has lost its names, and another one's object goes then.
ENDING = """\
import ctypes, os, sys
from turnout.guard import hook
from turnout.guard.allow import AllowList

class Late:
    def __del__(self, audit=sys.audit, names=hook.__dict__, write=os.write):
        audit("late")
        write(1, b"late" if names["_in_force"] is None else b"early")

hook.second_line(AllowList(), lambda _: None).__enter__()
os.late = Late()
for kept in (hook, os):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
"""


def test_an_interpreter_that_ends_says_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"late", b"")
