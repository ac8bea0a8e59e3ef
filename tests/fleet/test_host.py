from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from turnout.fleet.host import HostInfo, candidate_urls, detect_os

WSL_KERNEL = "Linux version 6.6.87.2-microsoft-standard-WSL2 (root@x) (gcc 11.2.0)\n"


def machine(root: Path, *files: str, kernel: str = "Linux version 6.8.0-generic\n") -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/version").write_text(kernel)
    return root


@pytest.fixture(autouse=True)
def on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")


@pytest.mark.parametrize(
    ("files", "env", "container"),
    [
        ((), {}, ""),
        ((".dockerenv",), {}, "docker"),
        (("run/.containerenv",), {}, "podman"),
        ((".dockerenv", "run/.containerenv"), {}, "podman"),
        ((".dockerenv",), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    ],
)
def test_containers(tmp_path: Path, files: tuple[str, ...], env: dict[str, str], container: str) -> None:
    host = detect_os(env, machine(tmp_path, *files))
    assert host == HostInfo("linux", platform.release(), platform.machine(), container=container)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "env", "kernel", "networking"),
    [
        ((), {}, WSL_KERNEL, "nat"),
        (("sys/class/net/loopback0",), {}, WSL_KERNEL, "mirrored"),
        ((), {"WSL_DISTRO_NAME": "Ubuntu"}, "Linux version 6.8.0-own\n", "nat"),
        (("sys/class/net/loopback0",), {}, "Linux version 6.8.0\n", ""),
        ((".dockerenv",), {"WSL_DISTRO_NAME": "Ubuntu"}, WSL_KERNEL, ""),
    ],
)
def test_wsl(tmp_path: Path, files: tuple[str, ...], env: dict[str, str], kernel: str, networking: str) -> None:
    host = detect_os(env, machine(tmp_path, *files, kernel=kernel))
    assert (host.wsl, host.wsl_networking) == (bool(networking), networking)


def test_nothing_to_read_is_no_error(tmp_path: Path) -> None:
    assert detect_os({}, tmp_path / "absent").container == ""


@pytest.mark.parametrize(("system", "name"), [("Windows", "windows"), ("Darwin", "darwin"), ("FreeBSD", "linux")])
def test_other_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, name: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    host = detect_os({}, machine(tmp_path))
    assert (host.platform, host.wsl) == (name, False)


ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is in the machine's byte order")
def test_the_gateway_is_read_where_it_may_be_the_host(tmp_path: Path) -> None:
    root = machine(tmp_path, ".dockerenv", "proc/net/route")
    (root / "proc/net/route").write_text(ROUTES)
    assert detect_os({}, root).gateway == "172.17.0.1"
    assert detect_os({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, root).gateway == ""
    (root / ".dockerenv").unlink()
    assert detect_os({}, root).gateway == ""
    (root / "proc/version").write_text(WSL_KERNEL)
    assert detect_os({}, root).gateway == "172.17.0.1"
    (root / "proc/net/route").write_text("nonsense\neth0 00000000 ZZZZ x x x x 00000000\n")
    assert detect_os({}, root).gateway == ""


@pytest.mark.parametrize(
    ("container", "gateway", "places"),
    [
        ("", "", ("[::1]",)),
        ("", "172.30.0.1", ("[::1]", "172.30.0.1")),
        ("kubernetes", "", ("[::1]",)),
        ("docker", "172.17.0.1", ("[::1]", "host.docker.internal", "172.17.0.1")),
        ("podman", "", ("[::1]", "host.containers.internal", "host.docker.internal")),
    ],
)
def test_default_addresses_are_expanded_never_rewritten(container: str, gateway: str, places: tuple[str, ...]) -> None:
    host = HostInfo("linux", "6", "x86_64", container=container, gateway=gateway)  # type: ignore[arg-type]
    expected = ("http://127.0.0.1:11434", *(f"http://{place}:11434" for place in places))
    assert candidate_urls("http://127.0.0.1:11434", host) == expected
    for explicit in ("http://10.0.0.5:11434", "http://gpu-box:8000", "unix:/run/x.sock"):
        assert candidate_urls(explicit, host) == (explicit,)
