"""A language server as code intelligence: any that speaks LSP over its standard input and output (SPEC CODE-1).

It is started when it is first asked. Before each question it is told what changed on the disk, so an answer is about
the files as they are now. Nothing it wants written is written. One that crashes, hangs or sends garbage is ended, and
the next question starts another, ``MAX_STARTS`` times in ``STARTS_WITHIN`` seconds.
"""

from __future__ import annotations

import asyncio
import keyword
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from turnout.code import lsp_answers as answers
from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    IntelligenceError,
    NotSupportedError,
    Place,
    TextEdit,
)
from turnout.code.lsp_files import CREATED, Document, Documents, Watch, lines_of, path_of, read_text, utf16_length
from turnout.code.lsp_servers import LANGUAGES, Language, Server, find_servers
from turnout.code.lsp_wire import Wire
from turnout.code.search import inside
from turnout.guard.process import spawn
from turnout.types import Position

MAX_STARTS, STARTS_WITHIN = 4, 600.0
MAX_PLACES, MAX_WITH_TEXT = 10_000, 200
MAX_NEW = 8  # files created at once that are opened
MAX_HIERARCHIES = 5  # of the functions that a position may mean
# Files that are looked into to tell where the whole of a symbol is.
MAX_LOOKED_INTO = 20
_PUBLISHED = 256
# A server that publishes diagnostics may do so in several pieces.
_SETTLED_SECONDS = 0.3
_READY_SECONDS = 5.0
_PROVIDED = {
    Ability.FIND_SYMBOL: "documentSymbolProvider",
    Ability.REFERENCES: "referencesProvider",
    Ability.HOVER: "hoverProvider",
    Ability.DEFINITION: "definitionProvider",
    Ability.TYPE_DEFINITION: "typeDefinitionProvider",
    Ability.IMPLEMENTATIONS: "implementationProvider",
    Ability.OUTLINE: "documentSymbolProvider",
    Ability.WORKSPACE_SYMBOLS: "workspaceSymbolProvider",
    Ability.CALLS: "callHierarchyProvider",
    Ability.RENAME: "renameProvider",
}
_REFUSED_EDIT = {"applied": False, "failureReason": "this client writes nothing"}
_LOCATIONS = answers.Location | list[answers.Location] | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds.

    Attributes:
        start: until it has said what it can do.
        answer: for one question, once it runs.
        references: for what may need the whole workspace read.
        hung: without a sign of life after a question that was given up, until it is ended. A server that reads a large
            workspace for the first time is silent for long.
    """

    start: float = 30.0
    answer: float = 5.0
    references: float = 10.0
    hung: float = 60.0


class LanguageServer:
    """One language server of one workspace. ``aclose`` ends it.

    Args:
        server: how it is started.
        language: whose files it is asked about.
        workspace: the root; nothing outside is opened.
        limits: how long it may take.
    """

    def __init__(self, server: Server, language: Language, workspace: Path, limits: Limits | None = None) -> None:
        self._server, self._language = server, language
        self._root = workspace.resolve()
        self._limits = limits or Limits()
        self._abilities = frozenset(Ability) - {Ability.REPLACE_SYMBOL} - server.lacks
        self._wire: Wire | None = None
        self._starting: asyncio.Task[Wire] | None = None
        self._starts: deque[float] = deque(maxlen=MAX_STARTS)
        self._published: dict[Path, _Heard] = {}
        self._news = asyncio.Event()
        self._looked = asyncio.Event()
        self._pulls = self._prepares = False
        self._pid = 0
        self._documents, self._watch = self._new_files()

    @property
    def name(self) -> str:
        """What to call it: ``ty``."""
        return self._server.name

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can be asked; before it has started, what servers usually can."""
        return self._abilities

    @property
    def pid(self) -> int:
        """The process id, 0 while it does not run."""
        return self._pid if self._wire is not None and not self._wire.broken else 0

    def knows(self, path: str) -> bool:
        """Whether it is asked about such a file."""
        return Path(path).suffix.lower() in self._language.suffixes

    async def warm_up(self) -> None:
        """Start it, so that the first question need not wait. Raises IntelligenceError."""
        await self._ready()

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        """Definitions of ``name`` in a file, a folder, or anywhere; where it does not know the whole workspace, only in
        files."""
        if path and (self._root / path).is_file():
            nodes = await self._outline(path)
        else:
            last = answers.words_of(name)[-1:]
            nodes = await self._anywhere("".join(last), path.strip("/"), "".join(last)) if last else ()
        found = [node.symbol for node in nodes if answers.is_named(node.symbol.name_path, name)]
        return tuple(map(self._with_body, found)) if body else tuple(found)

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where the symbol at a position is used."""
        context = {"context": {"includeDeclaration": False}}
        method, seconds = "textDocument/references", self._limits.references
        raw = await self._at(Ability.REFERENCES, method, path, position, context, seconds)
        places = answers.places_of(self._root, self._read(raw, _LOCATIONS))
        own: set[tuple[str, int, int]] = set()
        with suppress(IntelligenceError):  # asked because some servers give the definition all the same
            own = {(p.path, p.line, p.character) for p in await self.definition(path, position)}
        used = [p for p in places if (p.path, p.line, p.character) not in own][:MAX_PLACES]
        return await asyncio.to_thread(self._with_text, used)

    async def hover(self, path: str, position: Position) -> str:
        """Signature, type and documentation, as Markdown or plain text."""
        raw = await self._at(Ability.HOVER, "textDocument/hover", path, position)
        return answers.hover_text(self._read(raw, answers.Hover | None))

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where what is at a position is defined: the place of its name."""
        return await self._places(Ability.DEFINITION, "textDocument/definition", path, position)

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        """Where the type of what is at a position is defined."""
        return await self._places(Ability.TYPE_DEFINITION, "textDocument/typeDefinition", path, position)

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        """The classes or methods that implement what is at a position; several servers count the base as one."""
        return await self._places(Ability.IMPLEMENTATIONS, "textDocument/implementation", path, position)

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        """The definitions of a file."""
        return tuple(node.symbol for node in await self._outline(path))

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        """Definitions anywhere whose name contains ``query``, in any case of letters."""
        nodes = await self._anywhere(query, "")
        plain = query.casefold()
        return tuple(n.symbol for n in nodes if plain in n.symbol.name_path.rpartition("/")[2].casefold())

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        """Who calls the function at a position, or whom it calls."""
        raw = await self._at(Ability.CALLS, "textDocument/prepareCallHierarchy", path, position)
        items: list[Raw] = self._read(raw, list[Raw] | None) or []
        method = "callHierarchy/incomingCalls" if incoming else "callHierarchy/outgoingCalls"
        wire = await self._ready()
        calls: list[answers.Call] = []
        for item in items[:MAX_HIERARCHIES]:
            raw = await wire.ask(method, {"item": item}, self._limits.references)
            calls += self._read(raw, list[answers.Call] | None) or []
        ends = [call.from_ if incoming else call.to for call in calls]
        found = [node for end in ends if end is not None and (node := answers.found_of(self._root, "", end))]
        return tuple(node.symbol for node in await self._whole(found))

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        """What is wrong in a file."""
        wire, document, file = await self._ask_about(Ability.DIAGNOSTICS, path)
        if self._pulls:
            about = {"textDocument": {"uri": document.uri}}
            raw = await wire.ask("textDocument/diagnostic", about, self._limits.answer)
            report: answers.Report = self._read(raw, answers.Report)
            return answers.diagnostics_of(path, report.items)
        return answers.diagnostics_of(path, await self._published_for(file, document))

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        """The edits that rename a symbol everywhere, by path and position. Nothing is written."""
        _check_name(new_name, python=path.endswith((".py", ".pyi")))
        if self._prepares:
            raw = await self._at(Ability.RENAME, "textDocument/prepareRename", path, position)
            if self._read(raw, dict[str, Raw] | None) is None:
                raise IntelligenceError(f"{self.name} cannot rename what is there")
        more = {"newName": new_name}
        raw = await self._at(Ability.RENAME, "textDocument/rename", path, position, more, self._limits.references)
        edits = [self._edit(*one) for one in answers.edits_of(self._read(raw, answers.WorkspaceEdit | None))]
        return tuple(sorted(set(edits), key=lambda e: (e.place.path, e.place.line, e.place.character)))

    async def aclose(self) -> None:
        """End it."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._wire is not None:
            await self._wire.close()
        await self._watch.aclose()

    # How it is asked.

    def _new_files(self) -> tuple[Documents, Watch]:
        suffixes, also = self._language.suffixes, self._language.settled_by
        documents = Documents(lambda suffix: suffixes[suffix.lower()], self._tell)
        return documents, Watch(self._root, lambda name: name in also or Path(name).suffix.lower() in suffixes)

    def _tell(self, method: str, params: object) -> None:
        if self._wire is not None:
            self._wire.tell(method, params)

    def _read(self, raw: Raw, kind: object) -> Any:
        return answers.read(raw, kind, self.name)

    async def _places(self, ability: Ability, method: str, path: str, position: Position) -> tuple[Place, ...]:
        raw = await self._at(ability, method, path, position)
        return answers.places_of(self._root, self._read(raw, _LOCATIONS))

    async def _at(
        self,
        ability: Ability,
        method: str,
        path: str,
        position: Position,
        more: Mapping[str, object] | None = None,
        seconds: float = 0.0,
    ) -> Raw:
        """The answer to a question about a position."""
        wire, document, _ = await self._ask_about(ability, path)
        if position.line >= len(document.lines):
            raise IntelligenceError(f"{path} has {len(document.lines)} lines")
        if position.character > utf16_length(document.lines[position.line]):
            raise IntelligenceError(f"line {position.line + 1} of {path} is shorter")
        where = {"line": position.line, "character": position.character}
        asked = {"textDocument": {"uri": document.uri}, "position": where, **(more or {})}
        return await wire.ask(method, asked, seconds or self._limits.answer)

    async def _ask_about(self, ability: Ability, path: str) -> tuple[Wire, Document, Path]:
        """Everything before a question about a file: it is started, and sees the file as it is."""
        if not self.knows(path):
            raise NotSupportedError(f"{self.name} knows nothing of {Path(path).suffix or 'such'} files")
        file = inside(self._root, path)
        if file is None:
            raise IntelligenceError(f"{path} is no file of the workspace that may be read")
        self._require(ability)
        wire = await self._ready()
        self._require(ability)
        document = self._documents.open(file)
        return wire, document, file

    def _require(self, ability: Ability) -> None:
        if ability not in self._abilities:
            raise NotSupportedError(f"{self.name} has no {ability}")

    async def _ready(self) -> Wire:
        """The running server, told what changed. It goes on starting when who waits for it leaves."""
        wire = self._wire
        if wire is None or wire.broken:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._start())
                self._starting.add_done_callback(_looked_at)
            wire = await asyncio.shield(self._starting)
        changed = await self._watch.changes()
        if changed:
            files = [{"uri": uri, "type": kind} for uri, kind in changed]
            self._documents.changed()
            wire.tell("workspace/didChangeWatchedFiles", {"changes": files})
            # basedpyright looks for new files a second later; an open one it knows at once.
            for path in [path for uri, kind in changed if kind == CREATED and (path := path_of(uri))][:MAX_NEW]:
                if self.knows(path.name):
                    with suppress(IntelligenceError):
                        self._documents.open(path)
        self._documents.refresh()
        return wire

    async def _start(self) -> Wire:
        now = time.monotonic()
        if not self._root.is_dir():
            raise IntelligenceError("the workspace is gone")
        if len(self._starts) == MAX_STARTS and now - self._starts[0] < STARTS_WITHIN:
            why = self._wire.broken if self._wire is not None else f"{self.name} did not start"
            raise IntelligenceError(f"{why}; it is not started again for now")
        if self._wire is not None:
            await self._wire.close()
        await self._watch.aclose()
        self._documents, self._watch = self._new_files()
        self._published.clear()
        self._looked.clear()
        await self._watch.begin()
        if self._watch.first(self.knows) is None:
            raise NotSupportedError(f"the workspace has no files that {self.name} knows")
        self._starts.append(now)
        try:
            child = await spawn(self._server.command, env=self._server.env, cwd=self._root)
        except OSError as error:
            raise IntelligenceError(f"{self.name} cannot be started: {error}") from error
        wire = Wire(self.name, child, self._answer, self._take, self._limits.hung)
        try:
            await self._initialize(wire)
        except BaseException:
            await wire.close()
            raise
        # Only now: a question that comes meanwhile waits for the start, too.
        self._wire, self._pid = wire, child.pid
        return wire

    async def _initialize(self, wire: Wire) -> None:
        raw = await wire.ask("initialize", self._introduction(), self._limits.start)
        can = answers.read(raw, answers.ServerInfo, self.name).capabilities
        if can.get("positionEncoding", "utf-16") != "utf-16":
            raise IntelligenceError(f"{self.name} does not count in UTF-16 units, as it was asked to")
        has = {ability for ability, key in _PROVIDED.items() if can.get(key) not in (None, False)}
        self._pulls = can.get("diagnosticProvider") not in (None, False)
        renames = can.get("renameProvider")
        self._prepares = isinstance(renames, dict) and bool(renames.get("prepareProvider"))
        self._abilities = frozenset(has | {Ability.DIAGNOSTICS}) - self._server.lacks
        wire.tell("initialized", {})
        if self._server.settings:
            wire.tell("workspace/didChangeConfiguration", {"settings": self._server.settings})
        if self._server.ready:
            with suppress(TimeoutError):  # it may say so otherwise: then it is asked all the same
                async with asyncio.timeout(_READY_SECONDS):
                    await self._looked.wait()

    def _introduction(self) -> dict[str, object]:
        folder = {"uri": self._root.as_uri(), "name": self._root.name}
        return {
            "processId": os.getpid(),
            "clientInfo": {"name": "turnout"},
            "rootPath": str(self._root),
            "rootUri": folder["uri"],
            "workspaceFolders": [folder],
            "initializationOptions": self._server.options,
            "capabilities": _CAPABILITIES,
        }

    # What it asks and tells.

    def _answer(self, method: str, params: Raw) -> object:
        """What a request of the server gets."""
        match method:
            case "workspace/configuration":
                items = msgspec.json.decode(params, type=_Wanted).items
                return [_setting(self._server.settings, item.section or "") for item in items]
            case "workspace/workspaceFolders":
                return [{"uri": self._root.as_uri(), "name": self._root.name}]
            case "workspace/applyEdit":
                return _REFUSED_EDIT
            case "window/showDocument":
                return {"success": False}
            case "client/registerCapability" | "client/unregisterCapability" | "window/workDoneProgress/create":
                return None
            case "window/showMessageRequest":
                return None
        if method.startswith("workspace/") and method.endswith("/refresh"):
            return None
        raise NotSupportedError(f"this client has no {method}")

    def _take(self, method: str, params: Raw) -> None:
        if method == "window/logMessage" and self._server.ready.encode() in bytes(params):
            self._looked.set()
        if method != "textDocument/publishDiagnostics":
            return
        published = msgspec.json.decode(params, type=answers.Published)
        path = path_of(published.uri)
        document = self._documents.get(path) if path is not None else None
        if path is None or document is None:
            return
        if published.version not in (None, document.version):
            return
        now = asyncio.get_running_loop().time()
        self._published[path] = _Heard(published, now, self._documents.changes)
        while len(self._published) > _PUBLISHED:
            self._published.pop(next(iter(self._published)))
        self._news.set()

    async def _published_for(self, file: Path, document: Document) -> tuple[answers.Complaint, ...]:
        """What the server published about a file since it was told of it as it is now, once no more comes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limits.answer
        while True:
            news = self._news = asyncio.Event()
            heard = self._published.get(file)
            fresh = heard is not None and heard.changes >= document.told
            since = max(heard.at if heard is not None else 0.0, self._documents.changed_at)
            left = since + _SETTLED_SECONDS - loop.time() if fresh else until - loop.time()
            try:
                async with asyncio.timeout(left):
                    await news.wait()
            except TimeoutError:
                if heard is not None and fresh:
                    return tuple(heard.published.diagnostics)
                raise IntelligenceError(f"{self.name} said nothing about {file.name} in time") from None

    # Symbols.

    async def _outline(self, path: str) -> tuple[answers.Found, ...]:
        wire, document, _ = await self._ask_about(Ability.OUTLINE, path)
        about = {"textDocument": {"uri": document.uri}}
        raw = await wire.ask("textDocument/documentSymbol", about, self._limits.answer)
        found: list[answers.Symbol] | None = self._read(raw, list[answers.Symbol] | None)
        return answers.outline_of(self._root, document.uri, found)

    async def _anywhere(self, query: str, folder: str, name: str = "") -> tuple[answers.Found, ...]:
        """What the whole workspace, or a folder of it, has for a query; with ``name``, what is named so alone."""
        wire = await self._ready()
        self._require(Ability.WORKSPACE_SYMBOLS)
        first = self._watch.first(self.knows)
        if first is None:
            return ()
        if not len(self._documents):  # without an open file, typescript-language-server has no project to look through
            self._documents.open(first)
        raw = await wire.ask("workspace/symbol", {"query": query}, self._limits.references)
        items: list[answers.Symbol] = self._read(raw, list[answers.Symbol] | None) or []
        found = [node for item in items if (node := answers.found_of(self._root, "", item)) is not None]
        wanted = [n for n in found if _below(n.symbol.place.path, folder)]
        if name:  # servers look for names that are like it
            wanted = [n for n in wanted if answers.is_named(n.symbol.name_path, name)]
        return await self._whole(wanted[:MAX_PLACES])

    async def _whole(self, found: Sequence[answers.Found]) -> tuple[answers.Found, ...]:
        """The same symbols with the whole of their places, as far as a look into their files tells it in time."""
        paths = [path for path in dict.fromkeys(n.symbol.place.path for n in found) if _is_relative(path)]
        outlines: dict[str, tuple[answers.Found, ...]] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.answer):
                for path in paths[:MAX_LOOKED_INTO]:
                    with suppress(IntelligenceError):  # gone, or too large: its symbols stay as they are
                        outlines[path] = await self._outline(path)
        known = (answers.same_as(outlines.get(node.symbol.place.path), node) for node in found)
        whole = dict.fromkeys(node for node in known if node is not None)
        return tuple(sorted(whole, key=lambda n: (n.symbol.place.path, n.line, n.character)))

    # Texts.

    def _lines(self, path: str) -> tuple[str, ...]:
        """A file's lines, () when it may not or cannot be read."""
        file = inside(self._root, path) if _is_relative(path) else None
        if file is None:
            return ()
        if (document := self._documents.get(file)) is not None:
            return document.lines
        try:
            return lines_of(read_text(file))
        except IntelligenceError:
            return ()

    def _with_text(self, places: Sequence[Place]) -> tuple[Place, ...]:
        texts = {path: self._lines(path) for path in {place.path for place in places[:MAX_WITH_TEXT]}}
        return answers.with_text(places, texts)

    def _with_body(self, symbol: CodeSymbol) -> CodeSymbol:
        place = symbol.place
        last = place.end_line if place.end_character else place.end_line - 1
        return replace(symbol, body="\n".join(self._lines(place.path)[place.line : max(last, place.line) + 1]))

    def _edit(self, uri: str, edit: answers.Edit) -> TextEdit:
        place = answers.place_of(self._root, uri, edit.range)
        if place is None or not _is_relative(place.path) or inside(self._root, place.path) is None:
            raise IntelligenceError("the rename would change a file that is not the workspace's, or must not be read")
        return TextEdit(place, edit.new_text)


def language_servers(
    workspace: Path, configured: Mapping[str, Sequence[str]], places: Sequence[Path] = ()
) -> tuple[LanguageServer, ...]:
    """One for each language for which a server is found; none is started before it is asked.

    Args:
        workspace: whose code they know.
        configured: commands by language (``code.language_servers``).
        places: directories that are looked into before the PATH.
    """
    found = find_servers(configured, places)
    return tuple(LanguageServer(server, LANGUAGES[name], workspace) for name, server in found.items())


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a server published, when (seconds of the loop), and after how many changes that it was told of."""

    published: answers.Published
    at: float
    changes: int


def _looked_at(task: asyncio.Task[Wire]) -> None:
    """Who waited for it may have left: then nobody else asks how it ended."""
    if not task.cancelled():
        task.exception()


class _Item(msgspec.Struct):
    section: str | None = None


class _Wanted(msgspec.Struct):
    items: list[_Item]


def _setting(settings: Mapping[str, object], section: str) -> object:
    found: object = settings
    for part in section.split(".") if section else ():
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _is_relative(path: str) -> bool:
    return not Path(path).is_absolute()


def _below(path: str, folder: str) -> bool:
    return _is_relative(path) and (not folder or path.startswith(f"{folder}/"))


def _check_name(name: str, *, python: bool) -> None:
    """A language server may write anything as a name, and break every file that has it."""
    if not re.fullmatch(r"[^\W\d][\w$]*|[$@#][\w$]+", name) or (python and not _is_python_name(name)):
        raise IntelligenceError(f"{name[:80]!r} is no name")


def _is_python_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


_DYNAMIC = {"dynamicRegistration": False}
_CAPABILITIES = {
    "general": {"positionEncodings": ["utf-16"]},
    "window": {"workDoneProgress": False, "showDocument": {"support": False}},
    "workspace": {
        "applyEdit": False,
        "configuration": True,
        "workspaceFolders": True,
        "didChangeConfiguration": _DYNAMIC,
        # With it, servers leave the looking to us instead of watching the disk themselves.
        "didChangeWatchedFiles": {"dynamicRegistration": True},
        "symbol": {"symbolKind": {"valueSet": list(range(1, 27))}},
    },
    "textDocument": {
        "synchronization": _DYNAMIC,
        "hover": {"contentFormat": ["markdown", "plaintext"]},
        "definition": {"linkSupport": False},
        "typeDefinition": {"linkSupport": False},
        "implementation": {"linkSupport": False},
        "references": _DYNAMIC,
        "documentSymbol": {
            "hierarchicalDocumentSymbolSupport": True,
            "symbolKind": {"valueSet": list(range(1, 27))},
        },
        "callHierarchy": _DYNAMIC,
        "rename": {"prepareSupport": True},
        "diagnostic": {"relatedDocumentSupport": False},
        "publishDiagnostics": {"versionSupport": True, "relatedInformation": False},
    },
}
