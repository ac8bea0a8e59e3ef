"""Whether there is anything that a host could start. Looks at directories; starts and imports nothing large."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from turnout.code.install import environment_dir, find_serena
from turnout.code.lsp_servers import Server, find_servers
from turnout.code.settings import HostSettings


@dataclass(frozen=True, slots=True)
class Installed:
    """What a host could start: ``serena`` is its version (``?`` when it does not tell), "" when there is none;
    ``servers`` is the language server of each language that has one."""

    serena: str
    servers: Mapping[str, Server]

    def __bool__(self) -> bool:
        return bool(self.serena or self.servers)


def installed(settings: HostSettings, data_dir: Path) -> Installed:
    """What is installed on this machine. Looks at directories only; nothing is started."""
    program = find_serena(data_dir)
    places = (environment_dir(data_dir) / ("Scripts" if sys.platform == "win32" else "bin"),)
    return Installed((program.version or "?") if program else "", find_servers(settings.language_servers, places))
