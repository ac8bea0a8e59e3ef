"""What leaves this machine, heard: every packet on loopback, where every address of the world leads, and a DNS server.

For a network namespace of our own, after ``lead_everywhere_home``.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from turnout.errors import GuardError
from turnout.guard.allow import AllowList
from turnout.guard.canary_code import _sockaddr

ETH_P_ALL = 3
SO_ATTACH_FILTER, SOL_PACKET, PACKET_STATISTICS = 26, 263, 6
LOAD_BYTE, LOAD_WORD, SHIFT_RIGHT, IF_EQUAL, RETURN = 0x30, 0x20, 0x74, 0x15, 0x06
# For the kernel (linux/filter.h): operation, how far to go on if equal and if not, operand. Without it a load of the
# gateway's own packets on loopback would push others out of the buffer.
NOT_TO_LOOPBACK = (
    (LOAD_BYTE, 0, 0, 0),
    (SHIFT_RIGHT, 0, 0, 4),
    (IF_EQUAL, 0, 2, 4),  # IP version 4
    (LOAD_BYTE, 0, 0, 16),
    (IF_EQUAL, 8, 9, 127),
    (LOAD_WORD, 0, 0, 24),
    (IF_EQUAL, 0, 7, 0),
    (LOAD_WORD, 0, 0, 28),
    (IF_EQUAL, 0, 5, 0),
    (LOAD_WORD, 0, 0, 32),
    (IF_EQUAL, 0, 3, 0),
    (LOAD_WORD, 0, 0, 36),
    (IF_EQUAL, 0, 1, 1),
    (RETURN, 0, 0, 0),
    (RETURN, 0, 0, 0xFFFF),
)


class Recorder:
    """Gets a copy of every packet that is not for loopback; ``off`` tells where those went that are not on the list."""

    def __init__(self) -> None:
        self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_000_000)
        rows = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in NOT_TO_LOOPBACK))
        program = struct.pack("@HP", len(NOT_TO_LOOPBACK), ctypes.addressof(rows))
        self._packets.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        self._packets.bind(("lo", ETH_P_ALL))
        self._packets.setblocking(False)

    def off(self, allow: AllowList = AllowList()) -> set[str]:  # noqa: B008 - immutable
        """Since the last look. Loopback delivers within the sender's call, so nothing is under way.

        Args:
            allow: what may be dialled.
        """
        found = set()
        while True:
            try:
                address = destination(self._packets.recv(64))
            except BlockingIOError:
                break
            try:
                allow.check_address(str(address))
            except GuardError:
                found.add(str(address))
        _, lost = struct.unpack("=II", self._packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert lost == 0, f"{lost} packets were lost before they were looked at"
        return found

    def close(self) -> None:
        self._packets.close()


def destination(packet: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if packet[0] >> 4 == 4:
        return ipaddress.IPv4Address(packet[16:20])
    return ipaddress.IPv6Address(packet[24:40])


@contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()
    try:
        yield recorder
    finally:
        recorder.close()


class Dns:
    """A DNS server on port 53 of every address: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: str) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._sockets = [_bound(socket.AF_INET, "0.0.0.0"), _bound(socket.AF_INET6, "::")]
        self._threads = [threading.Thread(target=self._serve, args=(each,), daemon=True) for each in self._sockets]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for used, thread in zip(self._sockets, self._threads, strict=True):
            with socket.socket(used.family, socket.SOCK_DGRAM) as waker:  # a packet without a question ends it
                waker.sendto(b"", ("::1" if used.family == socket.AF_INET6 else "127.0.0.1", 53))
            thread.join(10)
            used.close()

    def _serve(self, used: socket.socket) -> None:
        while True:
            question, sender = used.recvfrom(1000)
            name, kind = _question(question)
            if not name:
                return
            self.asked.append(name)
            answer, place = self._answer(question, kind), _sockaddr(sender[0], sender[1])
            # As C code, for a second line that is in force would refuse it.
            ctypes.CDLL(None).sendto(used.fileno(), answer, len(answer), 0, place, len(place))

    def _answer(self, question: bytes, kind: int) -> bytes:
        end = question.index(b"\0", 12) + 5
        address = self._answers.pop(0) if len(self._answers) > 1 and kind == 1 else self._answers[0]
        records = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04" + socket.inet_aton(address) if kind == 1 else b""
        head = question[:2] + b"\x81\x80\x00\x01" + (b"\x00\x01" if records else b"\x00\x00") + bytes(4)
        return head + question[12:end] + records


def _bound(family: socket.AddressFamily, host: str) -> socket.socket:
    used = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        used.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    used.bind((host, 53))
    return used


def _question(packet: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while at < len(packet) and packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode("ascii", "replace"))
        at += packet[at] + 1
    return ".".join(labels), int.from_bytes(packet[at + 1 : at + 3], "big")


@contextmanager
def dns(*answers: str) -> Iterator[Dns]:
    server = Dns(*answers)
    try:
        yield server
    finally:
        server.close()
