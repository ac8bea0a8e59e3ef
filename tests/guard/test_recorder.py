"""The recorder itself, and what is too long for every run: the gateway under load."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard.conftest import whole_world_is_here
from tests.guard.recorder import recording

__all__ = ["whole_world_is_here"]

BESIDE = ("0.0.0.1", "10.127.0.1", "126.0.0.1", "128.0.0.1", "203.0.113.127", "::2", "::1:1", "2001:db8::1", "1::1")
LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1")
SOAK = [sys.executable, str(Path(__file__).parents[2] / "bench" / "soak.py"), "60"]


def send(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as used:
        used.sendto(b"x", (address, 9))


@pytest.mark.isolated
def test_every_packet_is_heard_but_those_for_loopback(whole_world_is_here: None) -> None:
    with recording() as recorder:
        for address in LOOPBACK * 3000:
            send(address)
        for address in BESIDE:
            send(address)
        assert recorder.off() == set(BESIDE)


@pytest.mark.isolated
def test_a_command_that_dials_out_fails(tmp_path: Path) -> None:
    dial = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('203.0.113.5', 9))"
    for code, ends, said in ((dial, 1, "203.0.113.5"), ("raise SystemExit(3)", 3, "none"), ("", 0, "none")):
        command = [sys.executable, "-m", "tests.guard.recorded", sys.executable, "-c", code]
        inside = [sys.executable, "tests/isolated.py", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (ends, f"packets off the allow-list: {said}\n"), done.stderr


@pytest.mark.heavy
@pytest.mark.isolated
@pytest.mark.timeout(300)
def test_the_gateway_under_load_makes_none(tmp_path: Path) -> None:
    command = [sys.executable, "tests/isolated.py", sys.executable, "-m", "tests.guard.recorded", *SOAK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    print(done.stdout)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "packets off the allow-list: none"), done.stderr
