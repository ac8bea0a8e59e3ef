"""The cut of children: by each of its means no packet leaves, what children need works, and what is told is true.

The children here are started by an owner of its own, which can be run where the kernel refuses namespaces or filters.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guard.recorder import Recorder, recording
from tests.servers import WEIGHTS
from turnout.embedded import weights_path
from turnout.guard import launcher, process, protection
from turnout.guard.launcher import filter_program
from turnout.guard.protection import Protection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and filters of Linux")

HERE = Path(__file__).parent
HERE_NET = Path("/proc/self/ns/net")
DIALLING = (HERE / "dialling.py").read_text("utf-8")
SRC = str(Path(process.__file__).parents[2])
# The Python that runs this may be in a place that is not for everybody.
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin")
SETPRIV = shutil.which("setpriv")
ANOTHER_USER = [
    *(SETPRIV or "", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
NO_OTHER_USER = "no other user here: it takes the root of the machine, setpriv and a system's Python"
OUT = {"192.0.2.1", "198.51.100.1", "2001:db8::1", "255.255.255.255"}

# Prints what cuts children off, then what one meets that runs the code.
OWNER = """
import asyncio, json, sys
from turnout.guard.process import spawn
from turnout.guard.protection import protection

async def main():
    found = await protection()
    print(json.dumps([found.by, found.why]), flush=True)
    child = await spawn([sys.argv[1], "-I", "-S", "-c", sys.argv[2], *sys.argv[4:]], network=sys.argv[3])
    print((await child.read_all()).decode().strip() or child.errors)
    await child.stop()

asyncio.run(main())
"""


def started(
    code: str, *arguments: str, below: tuple[str, ...] = (), network: str = "cut", python: str = sys.executable
) -> tuple[list[str], Any]:
    """What cuts children off where an owner runs ``below`` these commands, and the JSON that its child printed."""
    command = [*below, sys.executable, "-c", OWNER, python, code, network, *arguments]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": SRC}, capture_output=True, text=True, timeout=60, check=False
    )
    told, _, met = done.stdout.partition("\n")
    try:
        return json.loads(told), json.loads(met)
    except json.JSONDecodeError:
        raise AssertionError(done.stdout + done.stderr) from None


def refusing(*what: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "refusing.py"), ",".join(what))


@pytest.fixture
def recorder(whole_world_is_here: None) -> Iterator[Recorder]:
    with recording() as made:
        yield made


def is_shut(met: dict[str, Any], number: int) -> None:
    """Each address met this error, or was refused to another kind of user; and what no namespace holds was refused."""
    for name in ("tcp", "tcp6", "udp", "udp6", "broadcast"):
        assert met[name] == number, name
    for name in ("raw", "raw6"):
        assert met[name] in (number, errno.EPERM), name
    assert met["name"] != 0
    assert (met["frame"], met["vsock"]) == (errno.EACCES, errno.EACCES)
    assert met["back"] in (errno.EPERM, errno.EACCES)
    assert met["io_uring"] == errno.ENOSYS
    assert met.get("x32", errno.ENOSYS) == errno.ENOSYS
    assert met["i386"] == signal.SIGSYS
    assert (met["pair"], met["netlink"]) == (0, 0)


@pytest.mark.isolated
async def test_in_a_namespace_a_child_makes_no_packet(recorder: Recorder) -> None:
    child = await process.spawn([sys.executable, "-I", "-S", "-c", DIALLING])
    met = json.loads(await child.read_all())
    await child.stop()
    assert recorder.off() == set()
    assert await protection._probe() == Protection("namespace")
    is_shut(met, errno.ENETUNREACH)
    assert met["namespace"] != str(HERE_NET.readlink())
    assert met["mark"] == f"namespace {met['namespace']}"


@pytest.mark.isolated
@pytest.mark.parametrize("what", ["unshare", "loopback"])
def test_where_there_can_be_none_a_filter_does_it(recorder: Recorder, what: str) -> None:
    told, met = started(DIALLING, below=refusing(what))
    assert recorder.off() == set()
    assert told == ["seccomp", "Operation not permitted"]
    is_shut(met, errno.EACCES)
    assert met["namespace"] == str(HERE_NET.readlink())
    assert (met["uid"], met["gid"]) == (os.getuid(), os.getgid())


@pytest.mark.isolated
@pytest.mark.parametrize(("below", "by"), [((), "namespace"), (refusing("unshare"), "seccomp")])
def test_as_a_user_without_rights(recorder: Recorder, below: tuple[str, ...], by: str) -> None:
    if os.getuid() != 0 or SETPRIV is None or SYSTEM_PYTHON is None or not _may_become_another():
        pytest.skip(NO_OTHER_USER)
    _, met = started(DIALLING, below=(*ANOTHER_USER, *below), python=SYSTEM_PYTHON)
    assert recorder.off() == set()
    assert met["mark"].split()[0] == by
    is_shut(met, errno.ENETUNREACH if by == "namespace" else errno.EACCES)
    assert (met["uid"], met["gid"]) == (65534, 65534)


def _may_become_another() -> bool:
    return subprocess.run([*ANOTHER_USER, "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.isolated
def test_a_child_that_is_not_cut_is_heard(recorder: Recorder) -> None:
    """What the tests above would see: with a cut that is broken, or where the kernel has neither."""
    _, met = started(DIALLING, network="open")
    assert recorder.off() >= OUT
    assert met["mark"] == ""
    told, met = started(DIALLING, below=refusing("unshare", "filter"))
    assert recorder.off() >= OUT
    assert told == ["none", "Operation not permitted; Operation not permitted"]
    assert met["mark"] == "none Operation not permitted; Operation not permitted"


@pytest.mark.isolated
def test_rights_that_are_inheritable_do_not_outlive_the_bounds(recorder: Recorder) -> None:
    """Older container engines start root with them; with CAP_SYS_ADMIN a child goes back to where it came from."""
    rights = (SETPRIV or "", "--inh-caps=+sys_admin,+sys_ptrace,+net_admin")
    if SETPRIV is None or subprocess.run([*rights, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no setpriv, or not the rights to hand on")
    _, met = started(DIALLING, below=rights)
    assert recorder.off() == set()
    is_shut(met, errno.ENETUNREACH)


# In a namespace with a network of its own and no way beyond it.
SITE = """
set -e
ip link set lo up
ip link add here type veth peer name there
ip addr add 192.168.77.1/24 dev here
ip link set here up
ip link set there up
exec "$@"
"""
IN_SITE = ("unshare", "--net", "sh", "-c", SITE, "sh")
# An owner that was started with the mark of the namespace that it is in.
MARKED = """
import os, sys
os.environ["TURNOUT_CHILD_NETWORK"] = "namespace " + os.readlink("/proc/self/ns/net")
os.execvp(sys.argv[1], sys.argv[1:])
"""
INTERFACES = "import json, socket; print(json.dumps([name for _, name in socket.if_nameindex()]))"


def _has_site() -> bool:
    return subprocess.run([*IN_SITE, "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.isolated
def test_a_mark_that_was_there_before_is_not_believed_where_a_network_is() -> None:
    if not _has_site():
        pytest.skip("no second interface can be made here")
    below = (*IN_SITE, sys.executable, "-c", MARKED)
    told, interfaces = started(INTERFACES, below=below)
    assert told == ["namespace", ""]
    assert "here" not in interfaces
    assert "here" in started(INTERFACES, below=below, network="open")[1]


# Prints what the probe says where the launcher does nothing but say that it did.
STUBBED = """
import asyncio, sys
from turnout.guard import process, protection
process._LAUNCHER = sys.argv[1]
print((asyncio.run(protection._probe())).why)
"""


@pytest.mark.isolated
def test_a_network_without_a_way_beyond_it_is_a_network(tmp_path: Path) -> None:
    if not _has_site():
        pytest.skip("no second interface can be made here")
    stub = tmp_path / "launcher.py"
    said = "namespace net:[1]"
    stub.write_text(f"import os, sys\nos.environ[{process.MARK!r}] = {said!r}\nos.execvp(sys.argv[3], sys.argv[3:])\n")
    command = [*IN_SITE, sys.executable, "-c", STUBBED, str(stub)]
    env = os.environ | {"PYTHONPATH": SRC}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"a child found a way out in spite of it ({said})", done.stderr


@pytest.mark.isolated
@pytest.mark.parametrize("says", ["namespace net:[1]", "seccomp it says so"])
async def test_a_cut_that_only_says_so_is_not_believed(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str
) -> None:
    stub = tmp_path / "launcher.py"
    stub.write_text(f"import os, sys\nos.environ[{process.MARK!r}] = {says!r}\nos.execvp(sys.argv[3], sys.argv[3:])\n")
    monkeypatch.setattr(process, "_LAUNCHER", str(stub))
    found = await protection._probe()
    assert (found.by, found.why) == ("none", f"a child found a way out in spite of it ({says})")
    assert recorder.off() == set()


async def test_what_it_is_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "_known", None)
    first = await protection.protection()
    assert await protection.protection() is first


# Starts many at once where a user may have three namespaces; prints what cut each off.
MANY = """
import asyncio, json, os
from turnout.guard.process import spawn
with open("/proc/sys/user/max_net_namespaces", "w") as limit:
    limit.write("3")

async def mark():
    child = await spawn(["/bin/sh", "-c", "echo $TURNOUT_CHILD_NETWORK"])
    told = (await child.read_all()).decode().split() or [child.errors]
    await child.stop()
    return told[0]

async def main():
    print(json.dumps(await asyncio.gather(*(mark() for _ in range(30)))))

asyncio.run(main())
"""


@pytest.mark.isolated
def test_many_at_once_are_cut_off_by_what_there_is() -> None:
    """Also when the last namespace goes to another child between trial and earnest."""
    owner = ("unshare", "--user", "--map-root-user", sys.executable, "-c")
    if subprocess.run([*owner, "open('/proc/sys/user/max_net_namespaces', 'w').write('3')"], check=False).returncode:
        pytest.skip("no user namespace of its own here, so nothing can be limited")
    env = os.environ | {"PYTHONPATH": SRC}
    done = subprocess.run([*owner, MANY], env=env, capture_output=True, text=True, check=False)
    assert "seccomp" in (marks := json.loads(done.stdout)), done.stderr
    assert set(marks) <= {"namespace", "seccomp"}


# With the loop that `turnout serve` has, and a socket that whoever started it left open for children.
LEFT_OPEN = """
import os, socket, sys
import uvloop
from turnout.guard.process import spawn

async def main():
    with socket.socket() as left:
        os.set_inheritable(left.fileno(), True)
        child = await spawn(["/bin/sh", "-c", "ls /proc/$$/fd"])
        print(*(await child.read_all()).decode().split())
        await child.stop()

uvloop.run(main())
"""


def test_a_child_gets_nothing_that_is_open_but_its_three_pipes() -> None:
    env = os.environ | {"PYTHONPATH": SRC}
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "1", "2"], done.stderr


async def test_a_child_ignores_no_signals() -> None:
    """Python ignores SIGPIPE, and the launcher is Python: `yes | head -1` would complain."""
    child = await process.spawn(["grep", "SigIgn", "/proc/self/status"])
    ignored = int((await child.read_all()).split()[1], 16)
    await child.stop()
    # Others may be ignored by whoever started the tests, and stay so.
    assert [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1] == []


async def test_a_program_that_cannot_be_run_is_said_in_a_line(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/nowhere/interpreter\n")
    program.chmod(0o755)
    child = await process.spawn([str(program)])
    await child.read_all()
    await child.stop()
    assert (child.returncode, child.errors) == (127, f"{program} cannot be started: No such file or directory\n")


LOOPBACK = """
import json, socket
met = {}
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with socket.create_server((host, 0), family=family) as server:
        socket.create_connection(server.getsockname()[:2], timeout=5).close()
        met[host] = "reached"
print(json.dumps(met))
"""


@pytest.mark.isolated
def test_children_have_a_loopback_of_their_own() -> None:
    _, met = started(LOOPBACK)
    assert met == {"127.0.0.1": "reached", "::1": "reached"}


NESTED = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
import asyncio
from turnout.guard.process import spawn

async def main():
    child = await spawn([sys.executable, "-I", "-S", "-c", sys.argv[1]])
    inner = json.loads(await child.read_all())
    await child.stop()
    print(json.dumps([os.environ["TURNOUT_CHILD_NETWORK"], os.readlink("/proc/self/ns/net"), inner]))

asyncio.run(main())
"""


@pytest.mark.isolated
@pytest.mark.parametrize("below", [(), refusing("unshare")])
def test_a_childs_child_is_cut_with_it(recorder: Recorder, below: tuple[str, ...]) -> None:
    _, (mark, namespace, inner) = started(NESTED, DIALLING, SRC, below=below)
    assert recorder.off() == set()
    assert (inner["mark"], inner["namespace"]) == (mark, namespace)
    is_shut(inner, errno.EACCES if below else errno.ENETUNREACH)


PEER = """
import json, os, socket, struct, sys
with socket.socket(socket.AF_UNIX) as used:
    used.connect(sys.argv[1])
    used.recv(1)
    print(json.dumps(struct.unpack("3i", used.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))))
"""
PEER_OWNER = """
import asyncio, json, os, socket, sys, tempfile
from pathlib import Path
from turnout.guard.listen import listen_unix, peer_is_us
from turnout.guard.process import spawn

async def main():
    with tempfile.TemporaryDirectory() as folder:
        listening = listen_unix(Path(folder, "s"))
        child = await spawn([sys.argv[1], "-I", "-S", "-c", sys.argv[2], f"{folder}/s"])
        visitor, _ = await asyncio.get_running_loop().sock_accept(listening)
        ours = peer_is_us(visitor)
        visitor.send(b"x")
        pid, uid, gid = json.loads(await child.read_all())
        await child.stop()
        print(json.dumps([ours, pid == os.getpid(), uid == os.getuid(), gid == os.getgid()]))

asyncio.run(main())
"""


@pytest.mark.isolated
@pytest.mark.parametrize("user", ["this", "another"])
def test_both_ends_of_a_socket_know_each_other(user: str) -> None:
    """Across the user namespace too, which a user without rights needs for the network's."""
    if user == "another" and (os.getuid() != 0 or not (SETPRIV and SYSTEM_PYTHON) or not _may_become_another()):
        pytest.skip(NO_OTHER_USER)
    command = [*(ANOTHER_USER if user == "another" else ()), sys.executable, "-c", PEER_OWNER]
    env = os.environ | {"PYTHONPATH": SRC, "TMPDIR": "/tmp"}
    done = subprocess.run(
        [*command, SYSTEM_PYTHON or sys.executable, PEER], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[true, true, true, true]", done.stderr


# In a view of the file system of its own, with somebody who listens where nscd does.
RESOLVER = """
import asyncio, ctypes, json, os, socket, sys
from turnout.guard.process import spawn

libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 0x44000, None) == 0, os.strerror(ctypes.get_errno())
assert libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
CODE = '''
import socket, sys
def met(place):
    with socket.socket(socket.AF_UNIX) as used:
        return used.connect_ex(place)
print(met("/run/nscd/socket"), flush=True)
sys.stdin.readline()
print(met("/run/nscd/socket"), met("/run/other"))
'''

async def main():
    os.mkdir("/run/nscd")
    listening = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    for each, place in zip(listening, ("/run/nscd/socket", "/run/other")):
        each.bind(place)
        each.listen()
    child = await spawn([sys.executable, "-I", "-S", "-c", CODE])
    seen = (await child.read_line(20)).decode().split()
    os.unlink("/run/nscd/socket")
    with socket.socket(socket.AF_UNIX) as anew:  # as one that was restarted
        anew.bind("/run/nscd/socket")
        anew.listen()
        await child.write(bytes([10]))
        seen += (await child.read_all()).decode().split()
        await child.stop()
        with socket.socket(socket.AF_UNIX) as used:
            print(*seen, used.connect_ex("/run/nscd/socket"))

asyncio.run(main())
"""


@pytest.mark.isolated
def test_who_looks_names_up_for_others_is_hidden_from_children_and_not_from_us() -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no view of the file system of its own here, so nobody can be put in nscd's place")
    done = subprocess.run(
        [sys.executable, "-c", RESOLVER],
        env=os.environ | {"PYTHONPATH": SRC},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(errno.ENOENT), str(errno.ENOENT), "0", "0"], done.stderr


@pytest.mark.isolated
@pytest.mark.parametrize("below", [(), refusing("unshare")])
def test_the_real_model_answers_in_it(tmp_path: Path, below: tuple[str, ...]) -> None:
    weights = weights_path(tmp_path / "data")
    weights.parent.mkdir(parents=True)
    weights.symlink_to(WEIGHTS.absolute())
    command = [*below, sys.executable, "-m", "turnout", "ask", "--embedded", "Say hello."]
    env = os.environ | {"PYTHONPATH": SRC, "TURNOUT_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def run_filter(machine: str, architecture: int, number: int, first: int) -> int:
    """What the kernel would do with a call, by the four instructions that the filter has."""
    data = struct.pack("=IIQQ", number, architecture, 0, first)
    lines = list(struct.iter_unpack("=HBBI", filter_program(machine, (1, 16))))
    at = value = 0
    while True:
        code, yes, no, operand = lines[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        else:
            at += yes if (value == operand if code == 0x15 else value >= operand) else no


ALLOWED, KILLED, DENIED, NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x50000 + errno.EACCES, 0x50000 + errno.ENOSYS
X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003


@pytest.mark.parametrize(
    ("machine", "architecture", "number", "first", "result"),
    [
        ("x86_64", X86, 41, 1, ALLOWED),
        ("x86_64", X86, 41, 2, DENIED),
        ("x86_64", X86, 41, 2 + 2**32 * 16, DENIED),
        ("x86_64", X86, 53, 30, DENIED),  # a pair of TIPC
        ("x86_64", X86, 0, 2, ALLOWED),
        ("x86_64", X86, 425, 8, NO_SUCH_CALL),
        ("x86_64", X86, 249, 0, NO_SUCH_CALL),  # request_key
        ("aarch64", ARM, 218, 0, NO_SUCH_CALL),
        ("x86_64", X86, 0x40000000 + 41, 2, NO_SUCH_CALL),  # x32
        ("x86_64", I386, 102, 1, KILLED),
        ("aarch64", ARM, 198, 16, ALLOWED),
        ("aarch64", ARM, 198, 10, DENIED),
        ("aarch64", ARM, 199, 40, DENIED),
        ("aarch64", ARM, 425, 8, NO_SUCH_CALL),
        ("aarch64", ARM, 41, 2, ALLOWED),
        ("aarch64", 0x40000028, 281, 2, KILLED),
    ],
)
def test_the_filter_of_each_machine(machine: str, architecture: int, number: int, first: int, result: int) -> None:
    """Also of those that this one is not, and of what its kernel was built without (x32)."""
    assert run_filter(machine, architecture, number, first) == result


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert filter_program("riscv64", (1,)) == b""


def test_the_mark_is_the_launchers() -> None:
    assert process.MARK == launcher.MARK


# What is told.


@pytest.mark.parametrize(
    ("mark", "stopped", "found"),
    [
        ("namespace net:[1]", True, Protection("namespace")),
        ("seccomp Operation not permitted", True, Protection("seccomp", "Operation not permitted")),
        ("none no; neither", True, Protection("none", "no; neither")),
        ("", True, Protection("none", "it was not tried")),
    ],
)
def test_the_verdict(mark: str, stopped: bool, found: Protection) -> None:
    assert protection.judge(mark, stopped) == found


@pytest.mark.parametrize(
    ("switch", "value", "words"),
    [
        ("user/max_user_namespaces", "0", "max_user_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", "0", "userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile"),
        ("user/max_user_namespaces", "100", "RestrictNamespaces=user net"),
    ],
)
def test_the_fix_names_what_this_machine_forbids(tmp_path: Path, switch: str, value: str, words: str) -> None:
    file = tmp_path / "sys" / switch
    file.parent.mkdir(parents=True)
    file.write_text(f"{value}\n")
    assert words in protection.fix(Protection("seccomp", "no"), tmp_path, uid=1000)
    assert "not root" in protection.fix(Protection("none", "no"), tmp_path, uid=0)
    assert protection.fix(Protection("namespace"), tmp_path, uid=1000) == ""


async def test_what_cannot_be_asked_is_no_protection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_LAUNCHER", str(tmp_path / "none.py"))
    assert (await protection._probe()).by == "none"
