"""Asks a real Serena everything in a network namespace that it shares with this, and tells what it sent, listened on
and wrote.

``python tests/isolated.py python -m tests.code.observe_serena FOLDER`` prints one JSON line: ``packets`` that were seen
on loopback, where every address of the world leads; ``listening`` sockets of any kind but UNIX; what is ``written`` in
the workspace; how many questions were ``answered``; and how many packets of a ``control`` of the test's own were seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
from functools import partial
from pathlib import Path

from tests.code.serena_env import serena_dir
from tests.code.shop import at, make_shop
from tests.isolated import lead_everywhere_home
from turnout.code import serena_process
from turnout.code.install import find_serena
from turnout.code.serena import SerenaIntelligence
from turnout.guard.process import spawn

ETH_P_ALL = 3
MODELS, SERVICE = "shop/models.py", "shop/service.py"


def recorder() -> socket.socket:
    """A socket that gets a copy of every packet on loopback."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    packets.bind(("lo", ETH_P_ALL))
    packets.setblocking(False)
    return packets


def drain(packets: socket.socket) -> list[str]:
    """The beginnings of the packets since the last look, in hexadecimal digits."""
    found = []
    while True:
        try:
            found.append(packets.recv(64).hex())
        except BlockingIOError:
            return found


def sockets() -> list[str]:
    """Every TCP, UDP and raw socket of the namespace."""
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")]
    return [line.strip() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


async def ask_everything(serena: SerenaIntelligence) -> int:
    """How many of its abilities answered, those that write included; these write what is there."""
    await serena.warm()
    use = at(SERVICE, "first = ", "apply_discount")
    body = "def whole():\n    return 1"
    answers = [
        await serena.hover(SERVICE, use),
        await serena.definition(SERVICE, use),
        await serena.references(SERVICE, use),
        await serena.implementations(MODELS, at(MODELS, "class Priced", "Priced")),
        await serena.calls(SERVICE, use),
        await serena.outline(MODELS),
        await serena.find_symbol("total"),
        await serena.find_symbol("total", MODELS, body=True),
        await serena.workspace_symbols("discount"),
        await serena.diagnostics(SERVICE),
        await serena.write_symbol("broken.py", "whole", body) is None,
    ]
    return sum(map(bool, answers))


async def observe(folder: Path) -> dict[str, object]:
    lead_everywhere_home()
    serena_process.spawn = partial(spawn, network="open")  # what it would send where children are not cut off
    workspace = make_shop(folder / "work")
    before, packets = tree(workspace), recorder()
    program = find_serena(serena_dir("2.1.0"))
    assert program is not None
    serena = SerenaIntelligence(program, workspace, folder / "data")
    answered = await ask_everything(serena)
    listening = sockets()
    await serena.aclose()
    sent, after = drain(packets), tree(workspace)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        control.sendto(b"seen", ("192.0.2.1", 9))
    written = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return {
        "packets": sent,
        "listening": listening,
        "written": written,
        "answered": answered,
        "control": len(drain(packets)),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(observe(Path(sys.argv[1])))))
