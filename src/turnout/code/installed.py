"""Whether there is anything that a host could start. Looks at directories; starts and imports nothing large."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from turnout.code.install import environment_dir, find_serena
from turnout.code.lsp_servers import LANGUAGES, Server, find_servers
from turnout.code.search import files_of
from turnout.code.settings import HostSettings

_BY_SERENA = frozenset({"python", "cpp"})
_MAX_LOOKED, _LOOK_SECONDS = 20_000, 1.0


@dataclass(frozen=True, slots=True)
class Installed:
    """What a host could start: ``serena`` is its version (``?`` when it does not tell), "" when there is none;
    ``servers`` is the language server of each language that has one."""

    serena: str
    servers: Mapping[str, Server]

    def knows(self, workspace: Path) -> bool:
        """Whether any of them knows a language of this workspace. Reads its directories: call it in a thread."""
        known = self.servers.keys() | (_BY_SERENA if self.serena else frozenset())
        return bool(known) and any(language in known for language in _languages(workspace))


def installed(settings: HostSettings, data_dir: Path) -> Installed:
    """What is installed on this machine. Looks at directories only; nothing is started."""
    program = find_serena(data_dir)
    places = (environment_dir(data_dir) / ("Scripts" if sys.platform == "win32" else "bin"),)
    return Installed((program.version or "?") if program else "", find_servers(settings.language_servers, places))


def languages_of(workspace: Path) -> frozenset[str]:
    """The languages of a workspace's files, by their suffixes; of a large one, of the first files."""
    return frozenset(_languages(workspace))


def _languages(workspace: Path) -> Iterator[str]:
    """The language of each file that has one."""
    of_suffix = {suffix: name for name, language in LANGUAGES.items() for suffix in language.suffixes}
    until = time.monotonic() + _LOOK_SECONDS
    for number, path in enumerate(files_of(workspace)):
        if number >= _MAX_LOOKED or time.monotonic() > until:
            return
        if name := of_suffix.get(path.suffix.lower()):
            yield name
