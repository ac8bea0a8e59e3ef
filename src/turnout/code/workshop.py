"""What a host serves with: Serena and the language servers of one workspace, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from turnout.code.chain import Chain
from turnout.code.gather import gather
from turnout.code.installed import installed, languages_of
from turnout.code.intelligence import Intelligence, IntelligenceError, SymbolWriter
from turnout.code.lsp import LanguageServer
from turnout.code.lsp_servers import LANGUAGES
from turnout.code.protocol import Served
from turnout.code.provider import CodeContext
from turnout.code.serena import SerenaIntelligence, serena_for
from turnout.code.settings import HostSettings
from turnout.types import FileContext, TaskCategory

log = logging.getLogger("turnout.code")


class Workshop:
    """The intelligences of a workspace. Whoever made it calls ``aclose``."""

    def __init__(
        self, workspace: Path, serena: SerenaIntelligence | None, servers: Mapping[str, LanguageServer]
    ) -> None:
        self._workspace, self._serena, self._servers = workspace, serena, dict(servers)
        members: list[Intelligence] = [serena] if serena is not None else []
        self._chain = Chain([*members, *self._servers.values()])

    @property
    def intelligence(self) -> Intelligence:
        """All of them as one."""
        return self._chain.fresh()  # with a record of its own, which ends with the question

    @property
    def writer(self) -> SymbolWriter | None:
        """Serena changes symbols; the language servers write nothing."""
        return self._serena

    async def gather(
        self, query: str, category: TaskCategory, file_context: FileContext | None, room: int, budget: float
    ) -> CodeContext | None:
        """As ``gather.gather``."""
        return await gather(self._chain, query, category, file_context, self._workspace, room, budget)

    async def warm(self) -> None:
        """Start all of them at once.

        Raises:
            IntelligenceError: none of them can be started.
        """
        starts = [server.warm_up() for server in self._servers.values()]
        starts += [self._serena.warm()] if self._serena is not None else []
        ends = await asyncio.gather(*starts, return_exceptions=True)
        failed = [end for end in ends if isinstance(end, Exception)]
        for error in failed:
            log.warning("%s", error)
        if failed and len(failed) == len(ends):
            raise IntelligenceError(str(failed[0]))

    async def served(self) -> tuple[Served, ...]:
        """How each of them is."""
        found = [
            Served(server.name, tuple(sorted(server.abilities)), f"{language}, {_state(server.pid)}")
            for language, server in self._servers.items()
        ]
        if self._serena is None:
            return tuple(found)
        status = await self._serena.status()
        state = f"{status.version}, {_state(status.pid)}, {', '.join(status.language_servers) or 'no language server'}"
        state += f", {status.trouble}" if status.trouble else ""
        return (Served(self._serena.name, tuple(sorted(self._serena.abilities)), state), *found)

    async def aclose(self) -> None:
        """End all of them."""
        await self._chain.aclose()


def open_workshop(workspace: Path, settings: HostSettings, data_dir: Path) -> Workshop:
    """The intelligences for the languages that a workspace has now; none is started yet."""
    found, languages = installed(settings, data_dir), languages_of(workspace)
    servers = {
        name: LanguageServer(server, LANGUAGES[name], workspace)
        for name, server in found.servers.items()
        if name in languages
    }
    return Workshop(workspace, serena_for(workspace, data_dir), servers)


def _state(pid: int) -> str:
    return f"process {pid}" if pid else "not running"
