"""Serena as an intelligence: what is asked of it for each ability, and what the files add to its answers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from turnout.code import serena_answers as answers
from turnout.code.install import SerenaProgram, find_serena
from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Diagnostic,
    IntelligenceError,
    NotSupportedError,
    Place,
    TextEdit,
)
from turnout.code.search import files_of
from turnout.code.serena_answers import Found, Use
from turnout.code.serena_keeper import SerenaKeeper, SerenaLimits, SerenaStatus
from turnout.code.serena_setup import Look
from turnout.code.serena_text import Word, first_spoilt, inside, named, pattern_of, read_lines, uses, whole, word_at
from turnout.types import Position

# Bytes of a workspace of which all symbols are looked through in time.
MAX_SEARCHED = 2_000_000
_DEEP = 20

log = logging.getLogger("turnout.code")


def serena_for(workspace: Path, data_dir: Path) -> SerenaIntelligence | None:
    """The Serena of a workspace, not yet started; None when none is installed."""
    program = find_serena(data_dir)
    return None if program is None else SerenaIntelligence(program, workspace, data_dir)


class SerenaIntelligence:
    """An ``Intelligence`` and a ``SymbolWriter``. Whoever made it calls ``aclose``."""

    name = "serena"
    abilities = frozenset(
        {
            Ability.FIND_SYMBOL,
            Ability.REFERENCES,
            Ability.HOVER,
            Ability.DEFINITION,
            Ability.IMPLEMENTATIONS,
            Ability.OUTLINE,
            Ability.WORKSPACE_SYMBOLS,
            Ability.CALLS,
            Ability.REPLACE_SYMBOL,
            Ability.RENAME,
            Ability.DIAGNOSTICS,
        }
    )

    def __init__(
        self, program: SerenaProgram, workspace: Path, data_dir: Path, limits: SerenaLimits | None = None
    ) -> None:
        self._serena = SerenaKeeper(program, workspace, data_dir, limits)
        self._root, self._limits = self._serena.root, self._serena.limits

    async def find_symbol(self, name: str, path: str = "", *, body: bool = False) -> tuple[CodeSymbol, ...]:
        if not name.strip("/"):
            return ()
        arguments = {"name_path_pattern": name, "relative_path": path, "include_body": body, "include_info": not body}
        return await self._search(arguments, Ability.FIND_SYMBOL)

    async def workspace_symbols(self, query: str) -> tuple[CodeSymbol, ...]:
        if not query.strip("/"):
            return ()
        return await self._search(
            {"name_path_pattern": query, "relative_path": "", "substring_matching": True}, Ability.WORKSPACE_SYMBOLS
        )

    async def outline(self, path: str) -> tuple[CodeSymbol, ...]:
        await self._expect(Ability.OUTLINE, path)
        # An empty name is part of every name.
        arguments = {"name_path_pattern": "/", "relative_path": path, "substring_matching": True, "depth": _DEEP}
        return await self._symbols(
            answers.nested(await self._serena.ask("find_symbol", arguments, self._limits.scoped))
        )

    async def hover(self, path: str, position: Position) -> str:
        declared = await self._declared(Ability.HOVER, path, position)
        return declared.info.strip() if declared is not None else ""

    async def definition(self, path: str, position: Position) -> tuple[Place, ...]:
        declared = await self._declared(Ability.DEFINITION, path, position)
        return () if declared is None else await self._names((declared,))

    async def type_definition(self, path: str, position: Position) -> tuple[Place, ...]:
        raise NotSupportedError("Serena tells no definitions of types")

    async def implementations(self, path: str, position: Position) -> tuple[Place, ...]:
        declared = await self._declared(Ability.IMPLEMENTATIONS, path, position)
        if declared is None:
            return ()
        text = await self._serena.ask("find_implementations", _exactly(declared), self._limits.references)
        return await self._names(
            one
            for one in answers.symbols(text)
            if (one.relative_path, one.line) != (declared.relative_path, declared.line)
        )

    async def references(self, path: str, position: Position) -> tuple[Place, ...]:
        declared = await self._declared(Ability.REFERENCES, path, position)
        if declared is None:
            return ()
        return await asyncio.to_thread(self._used, await self._uses(declared), declared.own_name)

    async def calls(self, path: str, position: Position, *, incoming: bool = True) -> tuple[CodeSymbol, ...]:
        if not incoming:
            raise NotSupportedError("Serena does not tell whom a function calls")
        declared = await self._declared(Ability.CALLS, path, position)
        if declared is None:
            return ()
        called = f"{declared.own_name}("
        callers = {
            (use.path, use.by, use.first): Found(use.kind, use.by, "", use.path, answers.Lines(use.first, use.last))
            for use in await self._uses(declared)
            if called in use.text.replace(" (", "(")
        }
        return await self._symbols(tuple(callers.values()))

    async def diagnostics(self, path: str) -> tuple[Diagnostic, ...]:
        await self._expect(Ability.DIAGNOSTICS, path)
        text = await self._serena.ask("get_diagnostics_for_file", {"relative_path": path}, self._limits.diagnostics)
        return answers.diagnostics(text, path)

    async def rename(self, path: str, position: Position, new_name: str) -> tuple[TextEdit, ...]:
        raise NotSupportedError("Serena renames at once, without showing the edits first")

    async def write_symbol(self, path: str, name_path: str, body: str) -> None:
        await self._change(Ability.REPLACE_SYMBOL, "replace_symbol_body", path, name_path, {"body": body})

    async def write_rename(self, path: str, name_path: str, new_name: str) -> None:
        await self._change(Ability.RENAME, "rename_symbol", path, name_path, {"new_name": new_name})

    async def warm(self) -> None:
        """Start it, and have it do what takes long the first time. Raises nothing but for a bug."""
        try:
            sample = (await self._serena.look()).sample
            found = await self.outline(sample)
            if found:
                place, name = found[0].place, answers.plain_name(found[0].name_path)
                lines = await asyncio.to_thread(read_lines, self._root, sample)
                at = named(lines, name, place.line, place.end_line)
                await self.definition(sample, Position(at.line, at.character))
        except IntelligenceError as error:
            log.info("Serena was not warmed up: %s", error)

    async def status(self) -> SerenaStatus:
        """What is to be known of it now; nothing is started."""
        return await self._serena.status()

    async def aclose(self) -> None:
        """End it and everything it started. Safe to call twice."""
        await self._serena.aclose()

    async def _search(self, arguments: Mapping[str, object], ability: Ability) -> tuple[CodeSymbol, ...]:
        path = str(arguments["relative_path"])
        scoped = bool(path)
        look = await self._expect(ability, path)
        if not scoped and (look.size > MAX_SEARCHED or not look.whole):
            raise IntelligenceError("the workspace is too large for Serena to look through: name a file or folder")
        limit = self._limits.scoped if scoped and (self._root / path).is_file() else self._limits.unscoped
        text = await self._serena.ask("find_symbol", arguments, limit)
        return await self._symbols(answers.symbols(text))

    async def _declared(self, ability: Ability, path: str, position: Position) -> Found | None:
        """The symbol that the identifier at a position means; None where there is no identifier.

        Raises:
            NotSupportedError: it is no definition of the workspace that Serena can name, such as a local variable.
        """
        await self._expect(ability, path)
        lines = await asyncio.to_thread(read_lines, self._root, path)
        word = word_at(lines, position, path)
        if word is None:
            return None
        arguments = {"relative_path": path, "regex": pattern_of(word), "include_info": ability is Ability.HOVER}
        declared = answers.symbol(await self._serena.ask("find_declaration", arguments, self._limits.scoped))
        self._must_be(declared, word)
        return declared

    def _must_be(self, declared: Found, word: Word) -> None:
        # Of a local variable it tells the function around it.
        if declared.own_name != word.text:
            raise NotSupportedError(f"Serena has no symbol {word.text} there")

    async def _uses(self, declared: Found) -> tuple[Use, ...]:
        text = await self._serena.ask("find_referencing_symbols", _exactly(declared), self._limits.references)
        return answers.uses_in(text)

    async def _change(self, ability: Ability, tool: str, path: str, name_path: str, what: Mapping[str, object]) -> None:
        await self._expect(ability, path)
        # A rename may touch every file that has the name, in an import alone too.
        touched = files_of(self._root) if ability is Ability.RENAME else [self._root / path]
        spoilt = await asyncio.to_thread(first_spoilt, self._root, touched, answers.plain_name(name_path))
        if spoilt:
            raise NotSupportedError(f"Serena would write {spoilt} with other line ends or in another encoding")
        arguments = {"name_path": f"/{name_path.lstrip('/')}", "relative_path": path, **what}
        text = await self._serena.ask(tool, arguments, self._limits.change)
        if not text.startswith(("OK", "Successfully")):
            raise IntelligenceError(f"Serena did not change it: {answers.scrubbed(text, self._serena.hidden)}")

    async def _expect(self, ability: Ability, path: str) -> Look:
        """Wait until it runs, and see whether it has a language server for a file that can be asked that.

        Raises:
            IntelligenceError: the file is outside of the workspace.
            NotSupportedError: it has none.
        """
        if not inside(self._root, path):
            raise IntelligenceError(f"{Path(path).name} is outside of the workspace")
        look = await self._serena.look()
        suffix = Path(path).suffix.lower()
        if (self._root / path).is_dir():
            if ability in (Ability.FIND_SYMBOL, Ability.WORKSPACE_SYMBOLS):
                return look
            raise IntelligenceError(f"{path or 'the workspace'} is a folder")
        if not suffix:
            return look
        server = next((one for one in look.servers if suffix in one.language.suffixes), None)
        if server is None or ability in server.lacks:
            raise NotSupportedError(f"Serena's language servers here have no {ability.value} for {suffix} files")
        return look

    async def _symbols(self, found: tuple[Found, ...]) -> tuple[CodeSymbol, ...]:
        places = await self._placed(found, lambda lines, one: whole(lines, one.line, one.last))
        return tuple(
            CodeSymbol(one.name_path, one.kind.lower(), place, one.info, one.body)
            for one, place in zip(found, places, strict=True)
        )

    async def _names(self, found: Iterable[Found]) -> tuple[Place, ...]:
        return await self._placed(tuple(found), lambda lines, one: named(lines, one.own_name, one.line, one.last))

    async def _placed(
        self, found: tuple[Found, ...], place: Callable[[tuple[str, ...], Found], Place]
    ) -> tuple[Place, ...]:
        def read() -> tuple[Place, ...]:
            files = {path: self._lines(path) for path in {one.relative_path for one in found}}
            return tuple(replace(place(files[o.relative_path], o), path=o.relative_path) for o in found)

        return await asyncio.to_thread(read)

    def _used(self, used: tuple[Use, ...], name: str) -> tuple[Place, ...]:
        files = {path: self._lines(path) for path in {use.path for use in used}}
        counts = Counter((use.path, use.line) for use in used)
        return tuple(
            replace(place, path=path)
            for (path, line), count in sorted(counts.items())
            for place in uses(files[path], name, line, count)
        )

    def _lines(self, path: str) -> tuple[str, ...]:
        """The lines of a file that Serena named; none when it vanished meanwhile."""
        try:
            return read_lines(self._root, path)
        except IntelligenceError:
            return ()


def _exactly(declared: Found) -> dict[str, object]:
    return {"name_path": f"/{declared.name_path}", "relative_path": declared.relative_path}
