"""Canaries in a world of the recorder's: nothing of ours makes a packet, and what gets out is told as such."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import sys
import types
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tests.guard.listener import HELLO, Listener, listening, says
from tests.guard.recorder import Dns, Recorder, dns, recording
from turnout.config import SecurityConfig
from turnout.errors import GuardError, StorageError, UsageError
from turnout.guard import canaries as flying
from turnout.guard import canary_gateway, evidence, kernel
from turnout.guard.allow import AllowList
from turnout.guard.canaries import Canary, Seen, Target, fly_child, fly_others, fly_own, judge, read_target, seen_of
from turnout.guard.canary_gateway import fly_through_gateway
from turnout.guard.hook import second_line
from turnout.guard.process import spawn
from turnout.guard.protection import Protection, protection
from turnout.guard.prove import fixes, is_proven, make_report, page
from turnout.guard.report import check, read_report, signed_json, signed_page
from turnout.guard.signing import Signer

ALLOW = AllowList.from_config(SecurityConfig())
UNCUT = Protection("none", "no reason")
ADDRESSES = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")


@pytest.fixture
def recorder(whole_world_is_here: None) -> Iterator[Recorder]:
    with recording() as made:
        yield made


@pytest.fixture
async def everywhere(recorder: Recorder) -> AsyncIterator[Listener]:
    async with listening(says(HELLO), "0.0.0.0", "::") as listener:
        yield listener


@pytest.fixture
def resolver(recorder: Recorder) -> Iterator[Dns]:
    """Answers whatever is asked of any DNS server of the world."""
    with dns("203.0.113.9") as made:
        yield made


def targets(port: int) -> tuple[Target, ...]:
    return (*(Target(address, port) for address in ADDRESSES), Target("canary.invalid", port))


def shown(found: list[Canary]) -> list[tuple[str, str, str]]:
    return [(canary.door, canary.target, canary.found) for canary in found]


@pytest.mark.isolated
async def test_where_there_is_no_way_out_the_kernel_stops_them() -> None:
    """The first test of this file: afterwards every address leads here."""
    others = await fly_others((*targets(443)[:4],))
    assert {canary.found for canary in others} == {"ENETUNREACH"}
    assert {(canary.verdict, canary.by) for canary in others} == {("stopped", "this machine")}
    (uncut,) = await fly_child(targets(443)[:1], UNCUT)
    assert (uncut.verdict, uncut.by, uncut.own) == ("stopped", "this machine", False)


@pytest.mark.isolated
async def test_no_door_of_ours_makes_a_packet(recorder: Recorder, everywhere: Listener, resolver: Dns) -> None:
    refused: list[GuardError] = []
    with second_line(ALLOW, refused.append):
        own = await fly_own(ALLOW, targets(everywhere.port))
    assert shown([canary for canary in own if canary.verdict != "stopped"]) == []
    assert {canary.by for canary in own} == {"guard", "second line"}
    assert len({canary.door for canary in own}) == 9
    assert (recorder.off(), everywhere.dialled, resolver.asked) == (set(), [], [])
    assert len(refused) == 4 * 4 + 2


@pytest.mark.isolated
async def test_without_the_second_line_pythons_own_doors_are_open(everywhere: Listener, resolver: Dns) -> None:
    own = await fly_own(ALLOW, targets(everywhere.port))
    assert {canary.door for canary in own if canary.verdict == "out"} == {
        "an asyncio connection",
        "a Python socket",
        "a raw socket (ICMP)",
        "DNS, Python's getaddrinfo",
        "DNS, a UDP packet to port 53",
    }


@pytest.mark.isolated
@pytest.mark.parametrize("broken", ["check_url", "check_address"])
async def test_a_broken_guard_is_caught(
    recorder: Recorder, everywhere: Listener, resolver: Dns, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "check_url":
        monkeypatch.setattr(AllowList, "check_host", lambda *_: None)
    monkeypatch.setattr(AllowList, "check_address", lambda *_, **__: None)
    with second_line(ALLOW, lambda _: None):
        own = await fly_own(ALLOW, targets(everywhere.port))
    monkeypatch.undo()  # the recorder asks the list too
    out = {canary.door for canary in own if canary.verdict == "out"}
    assert "our HTTP client" in out
    assert recorder.off() >= set(ADDRESSES)
    assert list(fixes(own, lifted=False)) == [
        "an own door of Turnout is open: do not use this version, and report it with this file"
    ] + (["find out why these could not be tried, and run `turnout prove` again"] if _unclear(own) else [])


def _unclear(canaries: list[Canary]) -> bool:
    return any(canary.verdict == "unclear" for canary in canaries)


@pytest.mark.isolated
async def test_what_only_the_network_stops_gets_out_where_it_does_not(
    recorder: Recorder, everywhere: Listener, resolver: Dns
) -> None:
    with second_line(ALLOW, lambda _: None):
        others = await fly_others(targets(everywhere.port))
    assert shown([canary for canary in others if canary.verdict != "out"]) == []
    assert len({canary.door for canary in others}) == 4
    assert recorder.off() >= set(ADDRESSES)
    assert not is_proven(others)
    (fix,) = fixes(others, lifted=False)
    assert "IPAddressDeny" in fix


@pytest.mark.isolated
async def test_a_child_gets_nowhere_in_the_midst_of_it(recorder: Recorder, everywhere: Listener, resolver: Dns) -> None:
    found = await fly_child(targets(everywhere.port), await protection())
    assert shown([canary for canary in found if canary.verdict != "stopped"]) == []
    assert {(canary.by, canary.own) for canary in found} == {("cut of children", True)}
    assert (recorder.off(), everywhere.dialled, resolver.asked) == (set(), [], [])


@pytest.mark.isolated
async def test_a_child_that_is_not_cut_gets_out_and_is_told(
    recorder: Recorder, everywhere: Listener, resolver: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flying, "spawn", partial(spawn, network="open"))
    for cut, fault in ((UNCUT, "IPAddressDeny"), (Protection("namespace"), "do not use this version")):
        found = await fly_child(targets(everywhere.port), cut)
        assert shown([canary for canary in found if canary.verdict != "out"]) == []
        assert recorder.off() >= set(ADDRESSES)
        (fix,) = fixes(found, lifted=False)
        assert fault in fix


@pytest.mark.isolated
async def test_a_prompt_and_a_backend_make_the_gateway_dial_nothing(recorder: Recorder, everywhere: Listener) -> None:
    found = await fly_through_gateway(Target("203.0.113.1", everywhere.port))
    assert [(canary.verdict, canary.by) for canary in found] == [("stopped", "gateway")] * 5
    assert (recorder.off(), everywhere.dialled) == (set(), [])


async def test_a_gateway_that_hands_an_image_address_on_is_caught() -> None:
    backend = canary_gateway._Backend("http://192.0.2.1/")
    backend.bodies.append(b"... http://192.0.2.1:443/canary.png ...")

    class Lax:
        async def fetch(self, *_: object, **__: object) -> object:
            backend.bodies.append(b'{"url": "http://192.0.2.1:443/canary.png"}')
            return type("Reply", (), {"status": 200})()

    seen = await canary_gateway._prompt(
        Lax(),  # type: ignore[arg-type]
        "http://127.0.0.1:1",
        "/v1/messages",
        backend,
        Target("192.0.2.1", 443),
    )
    assert judge("a prompt", Target("192.0.2.1", 443), seen, quiet=True, own=True).verdict == "out"


async def test_a_gateway_that_does_not_start_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_gateway, "_configuration", lambda _: {"nonsense": 1})
    found = await fly_through_gateway(Target("192.0.2.1", 443))
    assert {canary.verdict for canary in found} == {"unclear"}
    assert "did not start" in found[0].found
    assert not is_proven(found)


# What a verdict means.


@pytest.mark.parametrize(
    ("code", "host", "loud", "silent"),
    [
        ("guard", "192.0.2.1", "stopped", "stopped"),
        ("no route", "192.0.2.1", "stopped", "stopped"),
        ("denied", "192.0.2.1", "stopped", "stopped"),
        ("refused", "192.0.2.1", "out", "stopped"),
        ("silence", "192.0.2.1", "unclear", "stopped"),
        ("no resolver", "canary.invalid", "unclear", "stopped"),
        ("no such name", "canary.invalid", "unclear", "unclear"),
        ("no such name", "outside.example", "stopped", "stopped"),
        ("failed", "192.0.2.1", "unclear", "unclear"),
        ("reached", "192.0.2.1", "out", "out"),
    ],
)
def test_silence_is_a_proof_only_where_nothing_left(code: str, host: str, loud: str, silent: str) -> None:
    for quiet, verdict in ((False, loud), (True, silent)):
        found = judge("a door", Target(host, 443), Seen(code), quiet=quiet, own=True)
        assert found.verdict == verdict
        assert bool(found.by) == (verdict == "stopped")


def test_an_exception_that_nobody_thought_of_is_no_proof() -> None:
    assert seen_of(ValueError("?")).code == "failed"
    assert seen_of(OSError(5, "odd")).code == "failed"


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "10.1.2.3:80", "localhost", "[::1]:443", "192.0.2.1:0", "x y", "h:99999"]
)
def test_what_may_be_dialled_is_no_canary(text: str) -> None:
    with pytest.raises(UsageError):
        read_target(text, ALLOW)


NOT_OUT = "0.0.0.0 [::]:443 [::ffff:127.0.0.1]:443 ::ffff:0.0.0.0 224.0.0.1 [ff02::1]:80 localhost. ip6-localhost"


@pytest.mark.parametrize("text", [*NOT_OUT.split(), "LOCALHOST.:80", "x.localhost", socket.gethostname()])
def test_what_cannot_leave_is_no_canary(text: str) -> None:
    """Else who wants a proof where there is none names it."""
    with pytest.raises(UsageError, match="is no canary"):
        read_target(text, ALLOW)


def test_targets_are_read() -> None:
    assert read_target("[2001:DB8::1]", ALLOW) == Target("2001:db8::1", 443)
    assert read_target("outside.example:8080", ALLOW) == Target("outside.example", 8080)
    assert read_target("2001:db8::1", ALLOW).shown == "[2001:db8::1]:443"


def test_packets_are_counted_for_every_interface_but_loopback(tmp_path: Path) -> None:
    net = tmp_path / "net"
    net.mkdir()
    row = "1 2 0 0 0 0 0 0 100 {} 0 0 0 0 0 0"
    (net / "dev").write_text(f"Inter-| x\n face | y\n    lo: {row.format(7)}\n  eth0: {row.format(42)}\n")
    assert kernel.sent_packets(tmp_path) == {"eth0": 42}
    assert kernel.sent_packets(tmp_path / "none") is None


def test_routes_and_addresses_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    net = tmp_path / "net"
    net.mkdir()
    (net / "dev").write_text("")
    (net / "route").write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\n"
        "eth0 0001A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
    )
    zero, one = "0" * 32, "20010db8" + "0" * 23 + "1"
    (net / "ipv6_route").write_text(
        f"{zero} 00 {zero} 00 {one} 00000400 00000001 00000000 00000003 eth0\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n"
    )
    (net / "if_inet6").write_text(f"{zero[:-1]}1 01 80 10 80 lo\n{one} 02 40 00 80 eth0\n")
    assert [(str(r.network), r.interface) for r in kernel.ways_out(tmp_path) or ()] == [
        ("0.0.0.0/0", "eth0"),
        ("::/0", "eth0"),
    ]
    assert kernel.ipv6_addresses(tmp_path) == ("2001:db8::1 (eth0)",)
    assert len(kernel.routes(tmp_path) or ()) == 3


async def test_listening_sockets_are_told() -> None:
    async with listening(says(HELLO)) as listener:
        assert kernel.Listening("tcp", "127.0.0.1", listener.port) in (kernel.listening() or ())


# The report.


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "signing")


STOPPED = Canary("a | door", "192.0.2.1:443", "stopped", "guard", "no <b>way</b>", True)
OUT = Canary("a child", "192.0.2.1:443", "out", "", "a connection was made", False)


def test_a_report_is_unchanged_or_not_at_every_byte(signer: Signer, tmp_path: Path) -> None:
    report = make_report([STOPPED], at=datetime.now(UTC), version="0", configuration={}, audit=None, children=UNCUT)
    page_text = page(report)
    draw = random.Random(8)
    for name, content in (("r.json", signed_json(report, signer)), ("r.md", signed_page(page_text, signer))):
        path = tmp_path / name
        path.write_bytes(content)
        assert check(path, signer.public) == "unchanged"
        for _ in range(300):
            at, byte = draw.randrange(len(content)), draw.randrange(256)
            changed = content[:at] + bytes([byte]) + content[at + draw.randrange(2) :]
            path.write_bytes(changed)
            assert (check(path, signer.public) == "unchanged") == (changed == content), (at, byte)
        for cut in range(1, len(content), max(1, len(content) // 50)):
            path.write_bytes(content[:-cut])
            assert check(path, signer.public) != "unchanged"


def test_another_key_and_no_signature_are_told(signer: Signer, tmp_path: Path) -> None:
    report = make_report([STOPPED], at=datetime.now(UTC), version="0", configuration={}, audit=None, children=UNCUT)
    other = Signer(tmp_path / "other")
    path = tmp_path / "r.json"
    path.write_bytes(signed_json(report, other))
    assert (check(path, signer.public), read_report(path, signer.public)) == ("changed", None)
    path.write_bytes(b'{"report": {}}')
    assert check(path, signer.public) != "unchanged"
    good = json.loads(signed_json(report, signer))
    for signature in (good["signature"].upper(), good["signature"] + " "):  # the same bytes to a reader of digits
        path.write_text(json.dumps({**good, "signature": signature}, indent=2, sort_keys=True) + "\n")
        assert check(path, signer.public) == "changed"
    path.write_text(page(report))
    assert check(path, signer.public) == "unsigned"
    with pytest.raises(StorageError):
        check(tmp_path / "none", signer.public)


def test_a_report_says_what_was_installed_and_open() -> None:
    when = datetime.now(UTC)
    report = make_report([STOPPED, OUT], at=when, version="0", configuration={}, audit=None, children=UNCUT)
    assert report["ok"] is False
    installation, network = report["installation"], report["network"]
    assert isinstance(installation, dict)
    assert isinstance(network, dict)
    packages = {row["name"].lower(): row for row in installation["packages"]}  # type: ignore[union-attr,index,call-overload]
    assert len(str(packages["httptools"]["record_sha256"])) == 64
    assert packages["httptools"]["changed"] == []
    assert len(str(installation["code_sha256"])) == 64
    assert network["listening"] is not None
    text = page(report)
    assert "Not proven" in text
    assert "a \\| door" in text
    assert "they have the network that Turnout has: no reason" in text
    assert "&lt;b>" in text
    assert not is_proven([])
    assert flying.SECONDS <= 5


def test_what_was_changed_after_it_was_installed_is_named(tmp_path: Path) -> None:
    made = tmp_path / "thing-1.dist-info"
    made.mkdir()
    (tmp_path / "thing.py").write_text("1")
    (tmp_path / "other.py").write_text("1")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"1").digest()).rstrip(b"=").decode()
    rows = [f"{name},sha256={digest},1" for name in ("thing.py", "other.py", "gone.py")]
    (made / "RECORD").write_text("\n".join([*rows, "unhashed.pyc,,", ""]))
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
    (tmp_path / "thing.py").write_text("2")
    (row,) = evidence._packages([Distribution.at(made)])
    assert row["changed"] == ["thing.py", "gone.py"]


def test_what_runs_at_the_start_and_what_is_loaded_from_elsewhere_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "sitecustomize.py"
    hook.write_text("1")
    module = types.ModuleType("sitecustomize")
    module.__file__ = str(hook)
    monkeypatch.setitem(sys.modules, "sitecustomize", module)
    monkeypatch.setenv("LD_PRELOAD_OF_NOTHING", "secret")
    report = make_report([STOPPED], at=datetime.now(UTC), version="0", configuration={}, audit=None, children=UNCUT)
    text = page(report)
    assert f"at start: `{hook}` sha256 {hashlib.sha256(b'1').hexdigest()}, runs code" in text
    assert "LD_PRELOAD_OF_NOTHING" in text
    assert "secret" not in text
