"""``turnout doctor --air-gap``: each of the 17 lines passes and fails, and the real thing."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed

from tests.cli.conftest import configure, run, run_beside
from tests.fakes import FAKES, ollama
from tests.fakes.base import Fake, FakeModel, running
from turnout.api import load_any
from turnout.cli.airgap import _UNSEEN_DOORS, CHECKLIST, Locked, Log, Proof, Server, Site, decide
from turnout.cli.airgap_site import _newest_proof, reach_of
from turnout.config import RouterConfig, SecurityConfig, signing_dir
from turnout.guard.canaries import Canary, Verdict
from turnout.guard.kernel import Listening, Route
from turnout.guard.keys import Key, Keys
from turnout.guard.protection import Protection
from turnout.guard.prove import make_report
from turnout.guard.report import signed_json
from turnout.guard.signing import Signer

NOW = 1_800_000_000.0
KEY = Key(name="ci", digest="d", created=1, expires=int(NOW) + 3600)
CONFIG = RouterConfig()
DOORS = dict.fromkeys((*_UNSEEN_DOORS, "C code, getaddrinfo"), ("stopped",))
ROUTE = Route(ip_network("0.0.0.0/0"), "eth0")
GOOD = Site(
    config=CONFIG,
    now=NOW,
    servers=(Server("ollama", "http://127.0.0.1:11434", open=True, models=2),),
    nameservers=("10.0.0.53",),
    ways_out=(ROUTE,),
    ipv6=(),
    proof=Proof(1.0, True, DOORS),
    locked=Locked(2, True),
    keys=Keys("00", (KEY,)),
    tokens=3600,
    log=Log({"query": 10, "security:refused": 1, "access": 2}),
    children="no network",
)
OPEN = replace(GOOD.servers[0], reach="other machines")


def with_security(**values: Any) -> Site:
    return replace(GOOD, config=changed(CONFIG, security=changed(SecurityConfig(), **values)))


def proven(door: str, verdict: str) -> Site:
    return replace(GOOD, proof=Proof(1.0, True, DOORS | {door: (verdict,)}))


# line -> what makes it fail, with words of evidence; every line passes in GOOD.
FAILS: list[tuple[str, Site, str]] = [
    ("no external DNS resolution", replace(GOOD, nameservers=("8.8.8.8",)), "public DNS server: 8.8.8.8"),
    ("no external DNS resolution", proven("C code, getaddrinfo", "out"), "something got out"),
    ("egress traffic blocked at the firewall", proven("C code, connect", "out"), "something got out"),
    (
        "egress traffic blocked at the firewall",
        replace(GOOD, servers=(replace(OPEN, cloud=("gpt:cloud",)),)),
        "ollama: gpt:cloud",
    ),
    (
        "egress traffic blocked at the firewall",
        replace(GOOD, servers=(replace(OPEN, notes=("its cloud models are not switched off",)),)),
        "not switched off",
    ),
    ("only internal IP ranges allowed", with_security(allow_external=True), "any address"),
    ("only internal IP ranges allowed", with_security(allowed_hosts=("8.8.8.8",)), "8.8.8.8"),
    ("only internal IP ranges allowed", with_security(allowed_cidrs=("0.0.0.0/0",)), "0.0.0.0/0"),
    ("IPv6 disabled if not needed", replace(GOOD, ipv6=("2001:db8::1 (eth0)",)), "2001:db8::1 (eth0)"),
    ("required models already downloaded", replace(GOOD, missing=("phi-4",)), "phi-4"),
    ("required models already downloaded", replace(GOOD, servers=()), "no server has a model"),
    ("SHA-256 checksums generated for all models", replace(GOOD, locked=None), "there is no lock file"),
    ("SHA-256 checksums generated for all models", replace(GOOD, locked=Locked(1, True, ("x",))), "of x"),
    ("checksums stored in a tamper-evident place", replace(GOOD, locked=Locked(1, False)), "not signed"),
    ("checksums stored in a tamper-evident place", replace(GOOD, locked=None), "there is no lock file"),
    ("checksums verified before a model is loaded", replace(GOOD, locked=Locked(1, True, (), ("x",))), "weights: x"),
    (
        "checksums verified before a model is loaded",
        replace(GOOD, locked=Locked(1, True, ("x",))),
        "cannot be verified: x",
    ),
    ("checksums verified before a model is loaded", replace(GOOD, locked=None), "there is no lock file"),
    (
        "checksums verified before a model is loaded",
        replace(GOOD, locked=Locked(1, True, enforced=False)),
        "nothing blocks",
    ),
    ("role-based access to the LLM services", replace(GOOD, keys=None), "one user"),
    ("role-based access to the LLM services", replace(GOOD, servers=(OPEN,)), "around the router"),
    ("authentication required on all endpoints", replace(GOOD, servers=(OPEN,)), "http://127.0.0.1:11434"),
    ("authentication required on all endpoints", replace(GOOD, keys=Keys("00", ())), "no key"),
    (
        "short-lived tokens for API access",
        replace(GOOD, keys=Keys("00", (changed(KEY, expires=0),))),
        "these keys never expire: ci",
    ),
    ("short-lived tokens for API access", replace(GOOD, tokens=86_400 * 30), "may live for 720 h"),
    ("all access attempts logged", replace(GOOD, log=None), "off"),
    ("all access attempts logged", replace(GOOD, servers=(OPEN,)), "around the router"),
    ("comprehensive audit logging on", replace(GOOD, log=Log({}, "audit.log, line 2: it was changed")), "line 2"),
    ("comprehensive audit logging on", with_security(audit_on_failure="continue"), "continue"),
    ("queries logged as hashes, not as text", with_security(log_responses=True), "text of answers"),
    ("queries logged as hashes, not as text", with_security(log_queries=False), "no hash"),
    ("model usage patterns logged", replace(GOOD, log=None), "off"),
    ("all security events logged", replace(GOOD, log=None), "off"),
    ("log rotation and retention in place", with_security(audit_rotate_mb=0, audit_rotate_days=0), "for ever"),
    ("log rotation and retention in place", with_security(audit_keep_days=0), "never deleted"),
]
UNKNOWN: list[tuple[str, Site, str]] = [
    ("no external DNS resolution", replace(GOOD, nameservers=None), "does not tell"),
    ("no external DNS resolution", replace(GOOD, proof=None), "no proof"),
    ("no external DNS resolution", proven("C code, getaddrinfo", "unclear"), "may have left"),
    ("egress traffic blocked at the firewall", replace(GOOD, proof=Proof(99, True, DOORS)), "old"),
    ("egress traffic blocked at the firewall", replace(GOOD, proof=Proof(1, False, DOORS)), "another configuration"),
    ("egress traffic blocked at the firewall", proven("a child process", "unclear"), "may have left"),
    ("IPv6 disabled if not needed", replace(GOOD, ipv6=None), "does not tell"),
    (
        "authentication required on all endpoints",
        replace(GOOD, servers=(replace(OPEN, open=None),)),
        "ollama cannot be judged",
    ),
]


def found(site: Site, line: str) -> Any:
    (one,) = [each for each in decide(site) if each.line == line]
    return one


def test_the_lines_are_the_owners() -> None:
    assert [len(lines) for lines in CHECKLIST.values()] == [4, 4, 4, 5]
    lines = decide(GOOD)
    assert len({each.line for each in lines}) == 17
    assert {line for line, _, _ in FAILS} == {each.line for each in lines}


@pytest.mark.parametrize("line", [line for lines in CHECKLIST.values() for line, _ in lines])
def test_each_line_passes(line: str) -> None:
    one = found(GOOD, line)
    assert (one.state, one.fix) == ("pass", ""), one
    assert one.evidence


@pytest.mark.parametrize(("line", "site", "words"), FAILS)
def test_each_line_fails_with_evidence_and_fix(line: str, site: Site, words: str) -> None:
    one = found(site, line)
    assert one.state == "fail", one
    assert words in one.evidence
    assert one.fix


def test_a_key_that_never_expires_is_made_anew_since_rotating_it_keeps_that() -> None:
    lasting = replace(GOOD, keys=Keys("00", (changed(KEY, expires=0),)))
    fix = found(lasting, "short-lived tokens for API access").fix
    assert fix.startswith("turnout key revoke ci, then turnout key add ci --expires 30d")


@pytest.mark.parametrize(("line", "site", "words"), UNKNOWN)
def test_what_cannot_be_seen_from_here_is_said(line: str, site: Site, words: str) -> None:
    one = found(site, line)
    assert one.state == "not checkable", one
    assert words in one.evidence
    assert one.fix


def test_how_children_are_cut_off_is_evidence_of_the_egress() -> None:
    (egress,) = (line for line in decide(GOOD) if line.line == "egress traffic blocked at the firewall")
    assert egress.evidence.endswith("; children: no network")


def test_ipv6_that_is_needed_passes_and_no_route_out_needs_no_proof() -> None:
    needed = with_security(allowed_cidrs=("fd00::/8",))
    assert found(replace(needed, ipv6=("fd00::1 (eth0)",)), "IPv6 disabled if not needed").state == "pass"
    closed = replace(GOOD, ways_out=(), proof=None)
    assert found(closed, "egress traffic blocked at the firewall").state == "pass"
    assert found(replace(closed, nameservers=()), "no external DNS resolution").state == "pass"


def test_who_reaches_a_server_is_read_from_the_sockets() -> None:
    url = "http://127.0.0.1:11434"
    assert reach_of(url, (Listening("tcp", "127.0.0.1", 11434),)) == "loopback"
    assert reach_of(url, (Listening("tcp", "0.0.0.0", 11434),)) == "other machines"
    assert reach_of(url, (Listening("tcp", "127.0.0.1", 11434), Listening("tcp", "::", 11434))) == "other machines"
    assert reach_of(url, (Listening("udp", "0.0.0.0", 11434),)) == "unknown"
    assert reach_of(url, None) == "unknown"
    assert reach_of("http://gpu1.lan:8000", ()) == "other machines"
    assert reach_of("unix:/run/llama.sock", None) == "loopback"


# The real thing: servers that run, the program, its files.


async def test_an_open_ollama_with_cloud_models_is_told_by_name() -> None:
    cloud = FakeModel(id="gpt-oss:120b-cloud", remote=True)
    fake = Fake(models=[FakeModel(id="qwen2.5-coder:7b"), cloud], options={"cloud": True})
    async with running(ollama.app(fake), host="0.0.0.0", server_header=ollama.SERVER_HEADER) as url:
        local = url.replace("0.0.0.0", "127.0.0.1")
        configure(custom_endpoints=[{"name": "gpu", "endpoint": local, "api_style": "native"}])
        result = await run_beside("doctor", "--air-gap", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    lines = {line["line"]: line for line in report["lines"]}
    assert "gpt-oss:120b-cloud" in lines["egress traffic blocked at the firewall"]["evidence"]
    bypassed = lines["authentication required on all endpoints"]
    assert bypassed["state"] == "fail"
    assert "gpu (http://127.0.0.1" in bypassed["evidence"]
    (server,) = report["servers"]
    assert (server["answers_without_key"], server["reached_by"]) == (True, "other machines")
    assert server["cloud_models"] == ["gpt-oss:120b-cloud"]


async def test_a_server_that_has_a_key_is_asked_without_it() -> None:
    async with AsyncExitStack() as stack:
        for name, wanted, given in (("closed", "k", "k"), ("open", "", "k")):
            vllm = FAKES["vllm"]
            url = await stack.enter_async_context(running(vllm.app(Fake(key=wanted)), server_header=vllm.SERVER_HEADER))
            configure(custom_endpoints=[{"name": name, "endpoint": url, "api_style": "native", "key": given}])
            report = json.loads((await run_beside("doctor", "--air-gap", "--json")).stdout)
            assert report["servers"][0]["answers_without_key"] is (name == "open")
            assert report["servers"][0]["reached_by"] == "loopback"


async def test_models_that_task_routing_wants_are_looked_for() -> None:
    vllm = FAKES["vllm"]
    async with running(vllm.app(Fake()), server_header=vllm.SERVER_HEADER) as url:
        configure(
            custom_endpoints=[{"name": "gpu", "endpoint": url, "api_style": "native"}],
            task_routing={"coding": {"primary_models": ["qwen2.5-coder-7b-instruct", "phi-4"]}},
        )
        report = json.loads((await run_beside("doctor", "--air-gap", "--json")).stdout)
    (line,) = [each for each in report["lines"] if each["line"] == "required models already downloaded"]
    assert (line["state"], "phi-4" in line["evidence"], "qwen" in line["evidence"]) == ("fail", True, False)


def test_the_page_is_signed_and_shows_every_line(tmp_path: Path) -> None:
    configure("http://127.0.0.1:9")
    result = run("doctor", "--air-gap", "--html", "page.html")
    assert result.exit_code == 1
    text = Path("page.html").read_text()
    assert all(line in text for lines in CHECKLIST.values() for line, _ in lines)
    assert "<script" not in text
    assert "http://127.0.0.1:9" in text
    assert run("verify", "page.html").exit_code == 0
    Path("page.html").write_text(text.replace(">fail<", ">pass<", 1))
    assert run("verify", "page.html").exit_code == 1


def test_a_changed_log_and_a_lifted_list_fail_their_lines(tmp_path: Path) -> None:
    configure("http://127.0.0.1:9", environment="internal", security={"allow_external": True, "log_responses": True})
    for _ in range(2):
        run("doctor")
    log = tmp_path / "data" / "audit.log"
    log.write_bytes(log.read_bytes().replace(b'"access"', b'"acceSS"', 1))
    lines = {line["line"]: line for line in json.loads(run("doctor", "--air-gap", "--json").stdout)["lines"]}
    assert "line 1: it was changed" in lines["comprehensive audit logging on"]["evidence"]
    assert lines["only internal IP ranges allowed"]["state"] == "fail"
    assert lines["queries logged as hashes, not as text"]["state"] == "fail"


@pytest.mark.isolated
@pytest.mark.skipif(os.environ.get("TURNOUT_TEST_ISOLATED") != "1", reason="it proves first, which really dials")
def test_a_proof_is_evidence_as_long_as_it_is_this_installations(tmp_path: Path) -> None:
    configure("http://127.0.0.1:9")
    assert run("prove", "--yes", "--target", "192.0.2.1", "--target", "outside.example").exit_code == 0
    site = json.loads(run("doctor", "--air-gap", "--json").stdout)
    (line,) = [each for each in site["lines"] if each["line"] == "no external DNS resolution"]
    assert line["state"] == "pass", line
    (report,) = (tmp_path / "data" / "proofs").glob("*.json")
    report.write_text(report.read_text().replace("stopped", "Stopped", 1))
    site = json.loads(run("doctor", "--air-gap", "--json").stdout)
    (line,) = [each for each in site["lines"] if each["line"] == "no external DNS resolution"]
    assert line["state"] == ("pass" if "no DNS server" in line["evidence"] else "not checkable")


def test_the_newest_proof_is_the_one_that_says_so(tmp_path: Path) -> None:
    """An old one that is called as if it were newer hides none, nor does one that a clock which was ahead has dated."""
    loaded, signer, proofs = load_any({}), Signer(signing_dir()), tmp_path / "data" / "proofs"
    proofs.mkdir(parents=True)
    now = datetime.now(UTC)
    reports: tuple[tuple[str, int, Verdict], ...] = (("a", 1, "out"), ("z", 9, "stopped"), ("y", -400, "stopped"))
    for name, days, verdict in reports:
        canary = Canary("a child process", "192.0.2.1:443", verdict, "", "", False)
        made = now - timedelta(days=days)
        uncut = Protection("none", "")
        report = make_report([canary], at=made, version="0", configuration={}, audit=None, children=uncut)
        (proofs / f"proof-{name}.json").write_bytes(signed_json(report, signer))
    found = _newest_proof(loaded)
    assert found is not None
    assert found.verdicts == {"a child process": ("out",)}


def test_options_that_do_not_go_together() -> None:
    result = run("doctor", "--html", "x.html")
    assert result.exit_code == 2
    assert "--air-gap" in result.stderr
