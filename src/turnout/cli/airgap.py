"""The air-gap checklist (SPEC SEC-5): each of its 17 lines decided from what was found, with evidence and fix.

Pure: ``airgap_site.py`` looks, this decides. "LLM services" means the servers behind the router too: whoever can reach
one without a key goes around every key, limit and log of the router.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal

from turnout.config import RouterConfig
from turnout.guard.allow import Network
from turnout.guard.kernel import Route, is_internal
from turnout.guard.keys import Key, Keys
from turnout.routing.advice import few_of

State = Literal["pass", "fail", "not checkable"]
Reach = Literal["loopback", "other machines", "unknown"]
NO_CLOUD = "switch it off where it runs (Ollama: OLLAMA_NO_CLOUD=1), and remove those models"
PROVE = "run `turnout prove` on this machine"
MAX_PROOF_DAYS = 30
SHORT_SECONDS = 86_400  # a token of a day is short-lived


@dataclass(frozen=True, slots=True)
class Server:
    """A server behind the router.

    Attributes:
        open: it answers whoever has no key; None when it cannot be asked now.
        reach: who can reach it.
        cloud: ids of models that it only passes on to elsewhere; such are never used.
        notes: ways out and tools that are known of it.
        undigested: ids of models whose digest it does not tell.
        models: how many models it serves.
    """

    name: str
    url: str
    open: bool | None = None
    reach: Reach = "loopback"
    cloud: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    undigested: tuple[str, ...] = ()
    models: int = 0

    @property
    def bypass(self) -> bool:
        """Other machines may use it without a key."""
        return self.open is True and self.reach == "other machines"


@dataclass(frozen=True, slots=True)
class Proof:
    """The newest signed proof.

    Attributes:
        days: how long ago it was made.
        current: the configuration is still the same.
        verdicts: of each canary, by its door.
    """

    days: float
    current: bool
    verdicts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Locked:
    """The signed lock file of models.

    Attributes:
        models: how many are in it.
        unlocked: models that are served, and of which no digest is in it or to be had.
        changed: models whose digest is another one.
        enforced: such are blocked before they are used.
    """

    models: int
    signed: bool
    unlocked: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    enforced: bool = True


@dataclass(frozen=True, slots=True)
class Log:
    """The audit log as it was checked now: ``events`` counts its records by event, ``wrong`` says what is wrong."""

    events: Mapping[str, int]
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """Everything the lines are decided from. None: it cannot be known here.

    Attributes:
        nameservers, ways_out, ipv6: of this machine, as ``guard/kernel.py`` tells them.
        missing: primary models of the configuration that no server has.
        locked: None while there is no lock file.
        keys: of the gateway; None when there are none.
        tokens: the longest that a token may live, in seconds.
        log: None when the log is off.
        children: whether children have a network, in words; "" when that was not asked.
    """

    config: RouterConfig
    now: float
    servers: tuple[Server, ...] = ()
    nameservers: tuple[str, ...] | None = None
    ways_out: tuple[Route, ...] | None = None
    ipv6: tuple[str, ...] | None = None
    proof: Proof | None = None
    missing: tuple[str, ...] = ()
    locked: Locked | None = None
    keys: Keys | None = None
    tokens: int = 0
    log: Log | None = None
    children: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the checklist: ``fix`` is "" when there is nothing to do."""

    section: str
    line: str
    state: State
    evidence: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    state: State
    evidence: str
    fix: str = field(default="")


def decide(site: Site) -> tuple[Line, ...]:
    """All lines, in the order of the checklist."""
    return tuple(
        Line(section, line, found.state, found.evidence, found.fix)
        for section, lines in CHECKLIST.items()
        for line, check in lines
        for found in (check(site),)
    )


# The network.


def _no_dns(site: Site) -> _Found:
    servers = site.nameservers
    if servers is None:
        return _Found("not checkable", "this system does not tell its DNS servers", PROVE)
    public = [each for each in servers if not _internal(each)]
    if public:
        fix = "take it out of /etc/resolv.conf, or name a DNS server of the site that forwards nothing"
        return _Found("fail", f"this machine asks a public DNS server: {', '.join(public)}", fix)
    if not servers:
        return _Found("pass", "no DNS server is configured; a name that is not on the allow-list is not resolved")
    return _from_proof(site, ("C code, getaddrinfo", "C code, a UDP packet to port 53"), f"asks {', '.join(servers)}")


def _egress(site: Site) -> _Found:
    cloud = [f"{s.name}: {few_of(s.cloud)}" for s in site.servers if s.cloud]
    cloud += [f"{s.name}: {note}" for s in site.servers for note in s.notes if "cloud" in note and not s.cloud]
    if cloud:
        return _Found("fail", f"a server behind the router has a way out: {'; '.join(cloud)}", NO_CLOUD)
    elsewhere = [s.name for s in site.servers if not _is_here(s)]
    more = f"; children: {site.children}" if site.children else ""
    more += f"; the networks of {few_of(elsewhere)} are not seen from here" if elsewhere else ""
    if site.ways_out == ():
        return _Found("pass", f"the kernel has no route beyond internal networks{more}")
    found = _from_proof(site, _UNSEEN_DOORS, "has a way out" if site.ways_out else "does not tell its routes")
    return _Found(found.state, found.evidence + more, found.fix)


_UNSEEN_DOORS = (
    "uvloop's own connection (libuv)",
    "C code, connect",
    "C code, a UDP packet to port 53",
    "a child process",
)


def _from_proof(site: Site, doors: tuple[str, ...], otherwise: str) -> _Found:
    """What the newest proof says of doors that only the network closes."""
    proof = site.proof
    if proof is None or not proof.current or proof.days > MAX_PROOF_DAYS:
        why = "no proof was made" if proof is None else "the proof is old, or of another configuration"
        return _Found("not checkable", f"this machine {otherwise}, and {why}", PROVE)
    verdicts = {verdict for door in doors for verdict in proof.verdicts.get(door, ())}
    days = int(proof.days)
    when = f"by the proof of {days} day{'s' * (days != 1)} ago" if days else "by the proof of the last 24 hours"
    if "out" in verdicts:
        return _Found("fail", f"something got out, {when}", "close the way out at the firewall, then prove it again")
    if verdicts == {"stopped"}:
        return _Found("pass", f"everything that was tried was stopped, {when}")
    fix = "look at the firewall: from here its silence is not told from that of whoever is dialled"
    return _Found("not checkable", f"this machine {otherwise}; packets may have left it, {when}", fix)


def _internal_only(site: Site) -> _Found:
    security = site.config.security
    if security.allow_external:
        return _Found("fail", "any address may be dialled", "set security.allow_external: false")
    public = [entry for entry in (*security.allowed_hosts, *security.allowed_cidrs) if _is_public(entry)]
    if public:
        fix = "take it out of security.allowed_hosts and allowed_cidrs"
        return _Found("fail", f"a public network may be dialled: {', '.join(public)}", fix)
    allowed = ", ".join((*security.allowed_hosts, *security.allowed_cidrs))
    return _Found("pass", f"loopback, {allowed}; a name must lead to one of these addresses")


def _no_ipv6(site: Site) -> _Found:
    if site.ipv6 is None:
        return _Found("not checkable", "this system does not tell its addresses", "look at it with the system's tools")
    if not site.ipv6:
        return _Found("pass", "no interface beyond loopback has an IPv6 address")
    security = site.config.security
    wanted = [entry for entry in (*security.allowed_hosts, *security.allowed_cidrs) if ":" in entry]
    wanted += [server.url for server in site.servers if "://[" in server.url and server.reach != "loopback"]
    if wanted:
        return _Found("pass", f"it is needed for {few_of(wanted)}; this machine has {few_of(site.ipv6)}")
    fix = "sysctl net.ipv6.conf.all.disable_ipv6=1, or allow the IPv6 network that is needed"
    return _Found("fail", f"nothing configured needs IPv6, and this machine has {few_of(site.ipv6)}", fix)


# The models.

NOT_OURS = "the lock file is not signed by this installation's key, or was changed"
NO_LOCK = "there is no lock file of models"


def _downloaded(site: Site) -> _Found:
    if site.missing:
        fix = "bring them to a server, or take them out of task_routing"
        return _Found("fail", f"no server has {few_of(site.missing)}, which task_routing names first", fix)
    served = [server for server in site.servers if server.models]
    if not served:
        return _Found("fail", "no server has a model", "start a server that has one")
    return _Found("pass", ", ".join(f"{server.name}: {server.models}" for server in served))


def _generated(site: Site) -> _Found:
    if site.locked is not None and site.locked.signed:
        if site.locked.unlocked:
            fix = "turnout models lock, with --path where the files of a server that tells no digest are"
            return _Found("fail", f"no digest is recorded of {few_of(site.locked.unlocked)}", fix)
        return _Found("pass", f"models in the lock file: {site.locked.models}")
    bare = [f"{server.name}: {few_of(server.undigested)}" for server in site.servers if server.undigested]
    said = f"; these servers tell no digest: {'; '.join(bare)}" if bare else ""
    return _Found("fail", (NOT_OURS if site.locked else NO_LOCK) + said, "turnout models lock")


def _stored(site: Site) -> _Found:
    if site.locked is None:
        return _Found("fail", NO_LOCK, "turnout models lock")
    if not site.locked.signed:
        return _Found("fail", NOT_OURS, "turnout models lock")
    return _Found("pass", "the lock file is signed")


def _verified(site: Site) -> _Found:
    if site.locked is None:
        return _Found("fail", NO_LOCK, "turnout models lock")
    if not site.locked.signed:
        return _Found("fail", NOT_OURS, "turnout models lock")
    if not site.locked.enforced:
        return _Found("fail", "nothing blocks a changed model", "security.verify_checksums: true")
    if site.locked.changed:
        return _Found("fail", f"not the recorded weights: {few_of(site.locked.changed)}", "find out who changed them")
    if site.locked.unlocked and site.config.security.unverified_models == "serve":
        said = f"these serve and cannot be verified: {few_of(site.locked.unlocked)}"
        return _Found("fail", said, "security.unverified_models: refuse")
    return _Found("pass", "every model that may serve has the recorded digest")


# Who may use it.


def _roles(site: Site) -> _Found:
    bypass = _bypassed(site)
    if bypass:
        return bypass
    active = _active(site)
    if not active:
        return _Found("fail", "no key is active: everybody at this machine is one user", "turnout key add NAME")
    roles = sorted({key.role for key in active})
    return _Found("pass", f"{len(active)} active keys with the roles {', '.join(roles)}")


def _authenticated(site: Site) -> _Found:
    bypass = _bypassed(site)
    if bypass:
        return bypass
    if not _active(site):
        return _Found("fail", "the gateway has no key, so it serves this machine without one", "turnout key add NAME")
    unknown = [server.name for server in site.servers if server.open is None or _open_and_unseen(server)]
    if unknown:
        fix = "start them, and run this on the machine where they run"
        return _Found("not checkable", f"the gateway asks for keys; {few_of(unknown)} cannot be judged now", fix)
    local = [server.name for server in site.servers if server.open]
    more = f"; on this machine's loopback {few_of(local)} ask for none" if local else ""
    return _Found("pass", f"the gateway answers nobody without a key{more}")


def _short_lived(site: Site) -> _Found:
    lasting = [key.name for key in _active(site) if not key.expires]
    if lasting:
        first = lasting[0]  # rotating it would keep that it never expires
        anew = f"turnout key revoke {first}, then turnout key add {first} --expires 30d"
        fix = f"{anew}{', and so the others' * (len(lasting) > 1)}; and hand out tokens: turnout token mint --ttl 10m"
        return _Found("fail", f"these keys never expire: {few_of(lasting)}", fix)
    if site.tokens > SHORT_SECONDS:
        return _Found("fail", f"a token may live for {site.tokens / 3600:g} h", "let none live longer than a day")
    return _Found("pass", f"tokens live for at most {site.tokens / 3600:g} h, and every key expires")


def _access_logged(site: Site) -> _Found:
    bypass = _bypassed(site)
    if bypass:
        return bypass
    found = _logging(site)
    if found.state != "pass":
        return found
    seen = _counted(site, ("access", "security:", "query"))
    return _Found("pass", f"requests and refusals are in the audit log: {seen}")


def _bypassed(site: Site) -> _Found | None:
    """What other machines may use without any key of ours."""
    bypassed = [f"{server.name} ({server.url})" for server in site.servers if server.bypass]
    if not bypassed:
        return None
    fix = "let it listen on 127.0.0.1 alone, give it a key, or let a firewall admit the router alone"
    return _Found("fail", f"other machines reach it without a key, around the router: {few_of(bypassed)}", fix)


def _open_and_unseen(server: Server) -> bool:
    return server.open is True and server.reach == "unknown"


# The log.


def _logging(site: Site) -> _Found:
    if site.log is None:
        return _Found("fail", "the audit log is off", "set security.audit_enabled: true")
    if site.log.wrong:
        return _Found("fail", site.log.wrong, "`turnout audit verify` tells more")
    if site.config.security.audit_on_failure != "refuse":
        found = "queries go on when nothing can be logged (audit_on_failure: continue)"
        return _Found("fail", found, "set security.audit_on_failure: refuse")
    return _Found("pass", f"{sum(site.log.events.values())} records, unbroken, signed; nothing runs without its record")


def _hashed(site: Site) -> _Found:
    security = site.config.security
    if security.log_responses:
        return _Found("fail", "the text of answers is logged", "set security.log_responses: false")
    if site.log is None or not security.log_queries:
        return _Found("fail", "no hash of a query is logged", "set security.audit_enabled and log_queries: true")
    return _Found("pass", "a keyed hash (HMAC-SHA-256) of each query, and no text")


def _usage(site: Site) -> _Found:
    if site.log is None:
        return _logging(site)
    return _Found("pass", f"model, server, category and tokens of each query: {_counted(site, ('query',))}")


def _events(site: Site) -> _Found:
    found = _logging(site)
    if found.state != "pass":
        return found
    return _Found("pass", f"refusals, keys, configuration, edits: {_counted(site, ('security:', 'access', 'config'))}")


def _rotated(site: Site) -> _Found:
    security = site.config.security
    if site.log is None:
        return _logging(site)
    if not security.audit_rotate_mb and not security.audit_rotate_days:
        fix = "set security.audit_rotate_mb or audit_rotate_days"
        return _Found("fail", "one file grows for ever", fix)
    if not security.audit_keep_days:
        return _Found("fail", "full files are never deleted", "set security.audit_keep_days")
    when = f"after {security.audit_rotate_mb} MB or {security.audit_rotate_days} days"
    return _Found("pass", f"a new file {when}; full ones are kept for {security.audit_keep_days} days")


def _counted(site: Site, prefixes: tuple[str, ...]) -> str:
    events = site.log.events if site.log is not None else {}
    found = {name: n for name, n in events.items() if name.startswith(prefixes)}
    return ", ".join(f"{n} {name}" for name, n in sorted(found.items())) or "none yet"


def _active(site: Site) -> list[Key]:
    keys = site.keys.keys if site.keys is not None else ()
    return [key for key in keys if key.state(site.now) == "active"]


def _is_here(server: Server) -> bool:
    return server.url.startswith("unix:") or any(host in server.url for host in ("://127.", "://localhost", "://[::1]"))


def _internal(address: str) -> bool:
    try:
        return is_internal(ip_address(address.partition("%")[0]))
    except ValueError:
        return False


def _is_public(entry: str) -> bool:
    """An address or network that is not internal; a name is none, for what it leads to is checked again."""
    try:
        network: Network = ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
    return not is_internal(network)


CHECKLIST: dict[str, tuple[tuple[str, Callable[[Site], _Found]], ...]] = {
    "network": (
        ("no external DNS resolution", _no_dns),
        ("egress traffic blocked at the firewall", _egress),
        ("only internal IP ranges allowed", _internal_only),
        ("IPv6 disabled if not needed", _no_ipv6),
    ),
    "model_verification": (
        ("required models already downloaded", _downloaded),
        ("SHA-256 checksums generated for all models", _generated),
        ("checksums stored in a tamper-evident place", _stored),
        ("checksums verified before a model is loaded", _verified),
    ),
    "access_control": (
        ("role-based access to the LLM services", _roles),
        ("authentication required on all endpoints", _authenticated),
        ("short-lived tokens for API access", _short_lived),
        ("all access attempts logged", _access_logged),
    ),
    "audit": (
        ("comprehensive audit logging on", _logging),
        ("queries logged as hashes, not as text", _hashed),
        ("model usage patterns logged", _usage),
        ("all security events logged", _events),
        ("log rotation and retention in place", _rotated),
    ),
}
