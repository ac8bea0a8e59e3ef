from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from turnout.fleet.processes import listeners, own_addresses

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")

CHILD = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


def test_a_child_that_listens_is_found_with_its_ancestors() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mine,
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        assert child.stdout is not None
        port, own_port = int(child.stdout.readline()), mine.getsockname()[1]
        found = listeners({port, own_port})
        child.communicate("\n")
    assert found[("127.0.0.1", port)][:2] == (child.pid, os.getpid())
    assert found[("127.0.0.1", own_port)][0] == os.getpid()
    assert found[("127.0.0.1", port)][1:] == found[("127.0.0.1", own_port)]


def test_a_listener_on_all_addresses_and_one_by_ipv6() -> None:
    with socket.create_server(("0.0.0.0", 0)) as every, socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        ports = every.getsockname()[1], six.getsockname()[1]
        assert {("0.0.0.0", ports[0]), ("::1", ports[1])} == set(listeners(ports))


def test_nothing_to_read_is_no_error(tmp_path: Path) -> None:
    assert (listeners({80}, tmp_path), own_addresses(tmp_path / "absent")) == ({}, frozenset())


def test_names_with_parentheses_and_processes_that_end(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    row = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 77 1 0 100"
    if sys.byteorder == "big":
        row = row.replace("0100007F", "7F000001")
    (tmp_path / "net/tcp").write_text(f"  sl  local_address\n{row}\n   1: nonsense\n")
    for pid, parent in ((9, 5), (5, 1)):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/stat").write_text(f"{pid} (a) b (c) S {parent} 0 0\n")
    (tmp_path / "9/fd/3").symlink_to("socket:[77]")
    (tmp_path / "6").mkdir()  # it has ended since
    assert listeners({8080}, tmp_path) == {("127.0.0.1", 8080): (9, 5)}


def test_this_machines_addresses(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    trie = (
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.168.1.0\n        /24 link UNICAST\n     |-- 192.168.1.7\n"
        "        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.168.1.255\n"
        "        /32 link BROADCAST\n"
    )
    (tmp_path / "net/fib_trie").write_text(trie)
    (tmp_path / "net/if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n"
        "fd000000000000000000000000000002 04 40 00 82     eth0\n"
    )
    assert own_addresses(tmp_path) == {"192.168.1.7", "fd00::2"}
