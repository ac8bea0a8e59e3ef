"""The canaries' code that is not Python's own: C functions through ctypes, bytes of packets, a child's program."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct

# An A record of canary.invalid, asked of whoever hears it (RFC 1035).
DNS_QUERY = struct.pack("!6H", 0x7475, 0x0100, 1, 0, 0, 0) + b"\x06canary\x07invalid\x00" + struct.pack("!2H", 1, 1)

# Prints one JSON list: for each `[host, port]` an error number, negative for one of getaddrinfo, 0 for a connection.
CHILD = """\
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def attempt(text):
    host, port = json.loads(text)
    try:
        socket.create_connection((host, port), timeout=float(sys.argv[1])).close()
    except socket.gaierror as error:
        return error.errno
    except TimeoutError:
        return 110
    except OSError as error:
        return error.errno or 110
    return 0

with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(attempt, sys.argv[2:]))), flush=True)
"""


def ping(host: str) -> bytes:
    """An ICMP echo request; the kernel fills the checksum of ICMPv6."""
    if ":" in host:
        return struct.pack("!BBHHH", 128, 0, 0, 0x7475, 1)
    checksum = ~(0x0800 + 0x7475 + 1) & 0xFFFF
    return struct.pack("!BBHHH", 8, 0, checksum, 0x7475, 1)


def connect(host: str, port: int, seconds: float) -> int:
    """Connect with the C library's functions; the kernel's error number, 0 for a connection."""
    libc = ctypes.CDLL(None, use_errno=True)
    used = libc.socket(int(_family(host)), int(socket.SOCK_STREAM) | os.O_NONBLOCK, 0)
    if used < 0:
        return ctypes.get_errno()
    try:
        place = _sockaddr(host, port)
        if libc.connect(used, place, len(place)) == 0:
            return 0
        number = ctypes.get_errno()
        return number if number != _IN_PROGRESS else _settled(used, seconds)
    finally:
        os.close(used)


def ask_dns(host: str, seconds: float) -> int:
    """Send a DNS query with the C library's functions; an error number, 0 when something was received."""
    libc = ctypes.CDLL(None, use_errno=True)
    used = libc.socket(int(_family(host)), int(socket.SOCK_DGRAM) | os.O_NONBLOCK, 0)
    if used < 0:
        return ctypes.get_errno()
    try:
        place = _sockaddr(host, 53)
        if libc.sendto(used, DNS_QUERY, len(DNS_QUERY), 0, place, len(place)) < 0:
            return ctypes.get_errno()
        poll = select.poll()
        poll.register(used, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return _TIMED_OUT
        received = ctypes.create_string_buffer(1000)
        return 0 if libc.recv(used, received, 1000, 0) >= 0 else ctypes.get_errno()
    finally:
        os.close(used)


def look_up(name: str) -> tuple[int, str]:
    """Resolve with the C library: what ``getaddrinfo`` returned, and its words."""
    libc = ctypes.CDLL(None)
    found = ctypes.c_void_p()
    code = int(libc.getaddrinfo(name.encode("ascii"), None, None, ctypes.byref(found)))
    if not code:
        libc.freeaddrinfo(found)
    return code, why_not_found(code)


def why_not_found(code: int) -> str:
    """The C library's words for a result of ``getaddrinfo``."""
    libc = ctypes.CDLL(None)
    libc.gai_strerror.restype = ctypes.c_char_p
    said: bytes = libc.gai_strerror(code)
    return said.decode("utf-8", "replace")


_IN_PROGRESS, _TIMED_OUT = 115, 110  # Linux


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _sockaddr(host: str, port: int) -> bytes:
    """Linux's ``sockaddr_in`` or ``sockaddr_in6``."""
    family = _family(host)
    packed = socket.inet_pton(family, host)
    head = struct.pack("=H", int(family)) + struct.pack("!H", port)
    return head + (bytes(4) + packed + bytes(4) if family == socket.AF_INET6 else packed + bytes(8))


def _settled(used: int, seconds: float) -> int:
    poll = select.poll()
    poll.register(used, select.POLLOUT)
    if not poll.poll(seconds * 1000):
        return _TIMED_OUT
    with socket.socket(fileno=os.dup(used)) as python:
        return python.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
