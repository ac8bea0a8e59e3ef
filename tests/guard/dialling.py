"""What a child tries to get out with, in C functions (a program of its own: it imports nothing of ours).

``python -I -S -c SOURCE`` prints one JSON object: what was tried -> the kernel's error number, 0 when it was done;
``mark``, ``namespace``, ``uid`` and ``gid`` beside them.
"""

import ctypes
import json
import os
import signal
import socket
import struct
from pathlib import Path

MACHINE = {"x86_64": {"socket": 41, "io_uring": 425}, "aarch64": {"socket": 198, "io_uring": 425}}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)


def done(result):
    return 0 if result >= 0 else ctypes.get_errno()


def sockaddr(family, host, port):
    head = struct.pack("=H", family) + struct.pack("!H", port)
    packed = socket.inet_pton(family, host)
    return head + (bytes(4) + packed + bytes(4) if family == socket.AF_INET6 else packed + bytes(8))


def sends(host, kind, protocol=0, data=b"x" * 16, port=53):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    used = libc.socket(family, kind, protocol)
    if used < 0:
        return ctypes.get_errno()
    libc.setsockopt(used, socket.SOL_SOCKET, socket.SO_BROADCAST, ctypes.byref(ctypes.c_int(1)), 4)
    place = sockaddr(family, host, port)
    return done(libc.sendto(used, data, len(data), 0, place, len(place)))


def connects(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    used = libc.socket(family, socket.SOCK_STREAM | os.O_NONBLOCK, 0)
    if used < 0:
        return ctypes.get_errno()
    place = sockaddr(family, host, 9)
    return done(libc.connect(used, place, len(place)))


def looks_up(name):
    found = ctypes.c_void_p()
    return libc.getaddrinfo(name, None, None, ctypes.byref(found))


def sends_a_frame():
    used = libc.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    if used < 0:
        return ctypes.get_errno()
    packet = bytes.fromhex("4500001c0001000040110000c0000201c6336401") + bytes(8)
    place = struct.pack("=HHiHBB8s", socket.AF_PACKET, socket.htons(0x0800), 1, 0, 0, 0, b"")
    return done(libc.sendto(used, packet, len(packet), 0, place, len(place)))


def goes_back():
    """Into the namespace of whoever started this."""
    try:
        return done(libc.setns(os.open(f"/proc/{os.getppid()}/ns/net", os.O_RDONLY), 0))
    except OSError as error:
        return error.errno


def ends_with(code):
    """The signal that ends a child that runs this machine code, 0 for none."""
    child = os.fork()
    if child == 0:
        import mmap

        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(code)
        ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
        os._exit(0)
    return max(0, -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


# mov eax, 359 (socket); mov ebx, AF_INET; mov ecx, SOCK_DGRAM; xor edx, edx; int 0x80; ret
SOCKET_OF_I386 = bytes.fromhex("b867010000bb02000000b90200000031d2cd80c3")

tried = {
    "tcp": connects("192.0.2.1"),
    "tcp6": connects("2001:db8::1"),
    "udp": sends("192.0.2.1", socket.SOCK_DGRAM),
    "udp6": sends("2001:db8::1", socket.SOCK_DGRAM),
    "broadcast": sends("255.255.255.255", socket.SOCK_DGRAM),
    "raw": sends("192.0.2.1", socket.SOCK_RAW, socket.IPPROTO_ICMP, b"\x08\x00\xf7\xff" + bytes(4), 0),
    "raw6": sends("2001:db8::1", socket.SOCK_RAW, socket.IPPROTO_ICMPV6, b"\x80" + bytes(7), 0),
    "name": looks_up(b"canary.invalid"),
    "frame": sends_a_frame(),
    "vsock": done(libc.socket(40, socket.SOCK_STREAM, 0)),
    "io_uring": done(libc.syscall(MACHINE["io_uring"], 1, ctypes.create_string_buffer(120))),
    "pair": done(libc.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0, (ctypes.c_int * 2)())),
    "netlink": done(libc.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
    "back": goes_back(),
    "i386": ends_with(SOCKET_OF_I386) if os.uname().machine == "x86_64" else int(signal.SIGSYS),
}
if os.uname().machine == "x86_64":
    tried["x32"] = done(libc.syscall(0x40000000 + MACHINE["socket"], 2, 2, 0))
said = {"mark": os.environ.get("TURNOUT_CHILD_NETWORK", ""), "namespace": str(Path("/proc/self/ns/net").readlink())}
print(json.dumps({**tried, **said, "uid": os.getuid(), "gid": os.getgid()}), flush=True)
