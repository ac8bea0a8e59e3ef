"""Whether children have a network, as a real one sees it (SPEC SEC-2): what ``launcher.py`` did, and that it holds."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from turnout.guard.process import MARK, spawn

PROBE_SECONDS = 20.0
_NEITHER = "docs/security.md, Children; until then the network must stop them: deploy/turnout.service, or a firewall"

# Connecting a UDP socket sends nothing; it tells whether there is a way there. RFC 5737 and 3849: nobody is there. That
# there is none tells little where an interface is up: its own network may be all that it leads to.
_PROBE = f"""\
import fcntl, json, os, socket, struct
def up(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as used:
        told = fcntl.ioctl(used, 0x8913, struct.pack("16s24x", name.encode()))  # SIOCGIFFLAGS
    return struct.unpack_from("=H", told, 16)[0] & 1
def stopped(family, address):
    try:
        used = socket.socket(family, socket.SOCK_DGRAM)
    except OSError:
        return True
    with used:
        return used.connect_ex((address, 9)) != 0 and not any(up(n) for _, n in socket.if_nameindex() if n != "lo")
all_stopped = stopped(socket.AF_INET, "192.0.2.1") and stopped(socket.AF_INET6, "2001:db8::1")
print(json.dumps([os.environ.get({MARK!r}, ""), all_stopped]))
"""


@dataclass(frozen=True, slots=True)
class Protection:
    """What cuts children off.

    Attributes:
        by: a network namespace, a filter of sockets (seccomp), or nothing.
        why: why it is not the one before in that list, "" for a namespace.
    """

    by: Literal["namespace", "seccomp", "none"]
    why: str = ""

    @property
    def told(self) -> str:
        """In words, about children."""
        if self.by == "namespace":
            return "no network: each is in a namespace of its own, with loopback alone"
        if self.by == "seccomp":
            return f"no network: a filter (seccomp) lets it make UNIX sockets alone; no namespace: {self.why}"
        return f"they have the network that Turnout has: {self.why}"


_known: Protection | None = None


async def protection() -> Protection:
    """What cuts the children of this process off, asked of a real one the first time. Sends nothing."""
    global _known
    if _known is None:
        _known = await _probe()
    return _known


async def _probe() -> Protection:
    if sys.platform != "linux":
        return Protection("none", f"{sys.platform} has neither namespaces nor filters of sockets")
    try:
        child = await spawn([sys.executable, "-I", "-S", "-c", _PROBE])
        try:
            line = await child.read_line(PROBE_SECONDS)
            mark, stopped = msgspec.json.decode(line, type=tuple[str, bool])
        finally:
            await child.stop()
    except (OSError, msgspec.MsgspecError) as error:
        return Protection("none", f"the child that was to tell did not: {error}")
    return judge(mark, stopped)


def judge(mark: str, stopped: bool) -> Protection:
    """From what the launcher says that it did, and whether the child found no way out."""
    how, _, why = mark.partition(" ")
    if how not in ("namespace", "seccomp"):
        return Protection("none", why or "it was not tried")
    if not stopped:
        return Protection("none", f"a child found a way out in spite of it ({mark})")
    return Protection("namespace") if how == "namespace" else Protection("seccomp", why)


def fix(found: Protection, proc: Path = Path("/proc"), *, uid: int | None = None) -> str:
    """What to do to have a namespace, "" when there is one. ``uid``: of whom, None for this process."""
    if found.by == "namespace":
        return ""
    if sys.platform != "linux":
        return _NEITHER
    if (os.geteuid() if uid is None else uid) == 0:
        return "for a namespace: run Turnout as a user that is not root, or with CAP_SYS_ADMIN"
    for name, bad, better in _SWITCHES:
        try:
            if (proc / "sys" / name).read_text("ascii").strip() == bad:
                return f"for a namespace: {better}"
        except OSError:
            continue
    return "for a namespace: let the container or the unit allow unshare (RestrictNamespaces=user net)"


# Where kernels are told that users make no namespaces, and what then.
_SWITCHES = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "an AppArmor profile with `userns,` for this Python, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
