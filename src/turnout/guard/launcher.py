"""What every child of ours on Linux is at first: it cuts itself off from the network, ties its life to its starter's,
and becomes the program it was started for (docs/security.md, Children).

Run by its path, ``python -I -S launcher.py STARTER NETWORK PROGRAM ARGUMENTS...``. It is in the way of every start, so
it imports no more than it needs. It is a program of its own because Python code between fork and exec (``preexec_fn``)
may deadlock where threads run.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

# What was done, for the program and its own children: `namespace net:[INODE]`, `seccomp WHY NO NAMESPACE`, or
# `none WHY`. Whoever is in a namespace that was made here needs no second one.
MARK = "TURNOUT_CHILD_NETWORK"

# linux/prctl.h, linux/capability.h
_SET_PDEATHSIG, _SET_SECCOMP, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 1, 22, 24, 38
_NET_ADMIN, _SYS_PTRACE, _SYS_ADMIN = 12, 19, 21
_CAP_VERSION = 0x20080522
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25
# linux/sched.h, sys/mount.h
_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 0x1, 0x2, 0x4, 0x8, 0x4000, 0x80000
# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_DATAGRAM = 2

# Who looks names up for others at a UNIX socket, which no network namespace holds back (over D-Bus: systemd-resolved
# before 247). The folders, since a socket that is made anew is not the one that was hidden.
_RESOLVERS = ("/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/avahi-daemon", "/run/dbus")

# The machine's own name -> its number in linux/audit.h; its numbers of socket, socketpair, io_uring_setup, request_key.
_MACHINES = {"x86_64": (0xC000003E, 41, 53, 425, 249), "aarch64": (0xC00000B7, 198, 199, 425, 218)}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
_EACCES, _ENOSYS = 13, 38

_libc = ctypes.CDLL(None, use_errno=True)


def cut() -> str:
    """Cut this process and what it becomes off from the network; returns what MARK says.

    A namespace of its own with nothing but loopback, where the kernel lets this user make one; and in any case a filter
    of the kinds of sockets that can be made: there are kinds that no namespace holds, such as those to a hypervisor.
    """
    here = _namespace()
    # Whoever started Turnout may have set the mark: it is believed where nothing but loopback is up.
    inside = here and os.environ.get(MARK) == f"namespace {here}" and _is_alone()
    why = "" if inside else _refused_in_a_trial() or _tried_in_earnest(here)
    if why:
        _drop_rights()
        return f"seccomp {why}" if _filter(_UNIX, _NETLINK) else f"none {why}; {_said()}"
    _drop_rights()
    _filter(_UNIX, _NETLINK, _INET, _INET6)
    return f"namespace {_namespace()}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/net")  # noqa: PTH115 - pathlib takes 10 ms
    except OSError:  # no /proc
        return ""


def _is_alone() -> bool:
    """Whether no interface but loopback is up."""
    told = os.open("/proc/self/net/dev", os.O_RDONLY)
    used = _check(_libc.socket(_UNIX, _DATAGRAM, 0))
    try:
        lines = os.read(told, 65_536).split(b"\n")[2:]
        names = [line.partition(b":")[0].strip() for line in lines if b":" in line]
        return not any(_flags(used, name) & _IFF_UP for name in names if name != b"lo")
    finally:
        os.close(told)
        os.close(used)


def _flags(used: int, name: bytes) -> int:
    asked = ctypes.create_string_buffer(struct.pack("16s24x", name), 40)
    _check(_libc.ioctl(used, _SIOCGIFFLAGS, asked))
    return int(struct.unpack_from("=H", asked, 16)[0])


def _refused_in_a_trial() -> str:
    """Why there can be no namespace, "" when there can. Tried in a child: half a way in has no way back."""
    child = os.fork()
    if child == 0:
        try:
            _enter_namespace()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return os.strerror(code) if code > 0 else f"signal {-code}" if code else ""


def _tried_in_earnest(here: str) -> str:
    """Why there is no namespace, "" in one: what the trial had may have been taken by others meanwhile.

    Raises:
        OSError: it failed half a way in.
    """
    try:
        _enter_namespace()
    except OSError as error:
        if not here or _namespace() != here:
            raise
        return os.strerror(error.errno or 0)
    return ""


def _enter_namespace() -> None:
    """Root keeps its rights to files and makes a network namespace alone; others need a user namespace for it.

    Raises:
        OSError: the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _check(_libc.unshare(_NEWNET))
    else:
        _check(_libc.unshare(_NEWUSER | _NEWNET))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            _write(f"/proc/self/{name}", text.encode())
    _bring_loopback_up()
    _hide_resolvers()


def _write(path: str, data: bytes) -> None:
    """Without Python's own files, whose codecs may have to be imported: what was readable before may not be now."""
    used = os.open(path, os.O_WRONLY)
    try:
        os.write(used, data)
    finally:
        os.close(used)


def _bring_loopback_up() -> None:
    used = _check(_libc.socket(_INET, _DATAGRAM, 0))
    try:
        _check(_libc.ioctl(used, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP)))
    finally:
        os.close(used)


def _hide_resolvers() -> None:
    """For this process's own view of the file system, where it may have one: elsewhere they are there as before."""
    if _libc.unshare(_NEWNS) != 0 or _libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        return
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for path in _RESOLVERS:
        if os.path.isdir(path):  # noqa: PTH112 - as above
            _libc.mount(b"tmpfs", path.encode(), b"tmpfs", flags, b"size=4k")


def _drop_rights() -> None:
    """What root would need to go back, or to send through another process. No wall: it can still do much else."""
    rights = (_NET_ADMIN, _SYS_PTRACE, _SYS_ADMIN)
    for right in rights:
        _prctl(_CAPBSET_DROP, right)
    # What is inheritable outlives an exec in spite of the bounds. struct __user_cap_data_struct twice.
    header, held = struct.pack("=Ii", _CAP_VERSION, 0), ctypes.create_string_buffer(24)
    if _libc.capget(header, held) == 0:
        kept = struct.unpack_from("=I", held, 8)[0] & ~sum(1 << right for right in rights)
        struct.pack_into("=I", held, 8, kept)
        _libc.capset(header, held)


def _filter(*families: int) -> bool:
    """Let only sockets of these families be made from now on, here and in all children; False when it cannot be."""
    program = filter_program(os.uname().machine, families)
    if not program or sys.maxsize < 2**32:
        ctypes.set_errno(_ENOSYS)
        return False
    # struct sock_fprog
    kept = ctypes.create_string_buffer(program, len(program))
    told = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(kept)))
    return _prctl(_SET_NO_NEW_PRIVS, 1) == 0 and _prctl(_SET_SECCOMP, 2, ctypes.addressof(told)) == 0


def filter_program(machine: str, families: tuple[int, ...]) -> bytes:
    """The filter as the kernel takes it (linux/seccomp.h); b"" for a machine that is not known here.

    io_uring makes sockets without the call, so there is none; nor is there request_key, for which the kernel may start
    a program outside that looks a name up; nor the calls of other architectures that the machine runs too, which have
    other numbers: i386 is killed, x32 does not exist.
    """
    if machine not in _MACHINES:
        return b""
    architecture, socket, socketpair, io_uring, request_key = _MACHINES[machine]
    lines = [
        (_LOAD, 0, 0, 4),  # struct seccomp_data: nr, arch, instruction_pointer, args
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_EQUAL, 1, 0, io_uring),
        (_EQUAL, 0, 1, request_key),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_EQUAL, 2, 0, socket),
        (_EQUAL, 1, 0, socketpair),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, 16),  # the lower half of the first argument, which is all that the call looks at
    ]
    for family in families:
        lines += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_RETURN, 0, 0, _ERRNO | _EACCES)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _prctl(option: int, *values: int) -> int:
    """It takes four longs, and some options want those zero that they do not use."""
    return int(_libc.prctl(option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4])))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), _said())
    return result


def _said() -> str:
    return os.strerror(ctypes.get_errno())


def _close_others() -> None:
    """What was left open by whoever started Turnout may be a socket of outside; uvloop hands it on."""
    try:
        last = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - as above
    except OSError:
        last = 1023
    os.closerange(3, last + 1)


def main() -> None:
    """The program."""
    starter, network, *command = sys.argv[1:]
    if network == "cut":
        os.environ[MARK] = cut()
    # After the namespaces, since a change of rights would undo it. A starter that ended before is noticed.
    _prctl(_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != int(starter):
        os._exit(1)
    for number in (_SIGPIPE, _SIGXFSZ):  # Python ignores them, and what is ignored stays so
        _libc.signal(number, None)
    _close_others()
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode("utf-8", "replace"))
        os._exit(127)


if __name__ == "__main__":
    main()
