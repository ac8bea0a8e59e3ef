"""Edits of symbols with the help of who knows the language: where a definition is, and every use of a name. Nothing is
written: the answers become text edits in the draft, like all others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from turnout.code.intelligence import (
    Ability,
    CodeSymbol,
    Intelligence,
    IntelligenceError,
    NotSupportedError,
    TextEdit,
)
from turnout.code.match import closed, opened
from turnout.code.paths import checked
from turnout.code.preview import Draft, Preview, problem_of
from turnout.code.proposal import NewBody, NewName, Proposal, ProposedEdit
from turnout.code.provider import Issue
from turnout.code.replace import check_name, replaced
from turnout.code.symbols import Symbol
from turnout.code.trial import Trial
from turnout.errors import EditError
from turnout.types import Position

CHECK_SECONDS = 20.0  # a set of edits waits for it twice
MOST_CHECKED = 8  # files at once
_BODY_LINES = 10  # a definition's name stands in one of its first lines, decorators and comments before it
_PYTHON = (".py", ".pyi")


async def with_intelligence(
    intelligence: Intelligence, root: Path, proposal: Proposal, trial: Trial | None = None
) -> Preview:
    """As ``preview.preview``, with symbols found and renamed by a language server or Serena.

    Args:
        intelligence: who is asked.
        root: the workspace, resolved.
        proposal: the edits.
        trial: renames where the intelligence cannot show the edits; None refuses it there.
    """
    draft, problems = Draft(root), []
    for edit in proposal.edits:
        try:
            if not await _semantic(intelligence, draft, edit, trial):
                await asyncio.to_thread(draft.take, edit)
        except EditError as error:
            problems.append(problem_of(edit, error))
    return Preview(root, await asyncio.to_thread(draft.changes), tuple(problems), proposal.unclear)


async def issues_of(intelligence: Intelligence, paths: Sequence[str]) -> dict[str, tuple[Issue, ...]]:
    """The errors in files, for ``Editor(check=...)``; a file that cannot be judged in time is left out."""
    found: dict[str, tuple[Issue, ...]] = {}
    few = asyncio.Semaphore(MOST_CHECKED)

    async def look(path: str) -> None:
        with suppress(IntelligenceError):
            async with few:
                diagnostics = await intelligence.diagnostics(path)
            found[path] = tuple(Issue(d.place.line + 1, d.message) for d in diagnostics if d.severity == 1)

    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS):
            await asyncio.gather(*map(look, paths))
    return found


async def _semantic(intelligence: Intelligence, draft: Draft, edit: ProposedEdit, trial: Trial | None) -> bool:
    """Whether the edit was carried out here. Raises EditError."""
    match edit.change:
        case NewName(symbol, name):
            path = checked(draft.root, edit.path)
            for where, data in (await _renamed(intelligence, draft, path, symbol, name, trial)).items():
                draft.put(where, data)
            return True
        case NewBody(symbol, body) if not edit.path.endswith(_PYTHON):  # Python's own parser is exact
            return await _replace(intelligence, draft, checked(draft.root, edit.path), symbol, body)
    return False


async def _replace(intelligence: Intelligence, draft: Draft, path: str, symbol: str, body: str) -> bool:
    if draft.touched(path) or Ability.FIND_SYMBOL not in intelligence.abilities:
        return False
    try:
        found = await _the_symbol(intelligence, path, symbol)
    except IntelligenceError:
        return False
    page = opened(draft.content(path))
    first, last = found.place.line + 1, found.place.end_line + 1
    if not first <= last <= len(page.lines):
        raise EditError(f"{intelligence.name} places {symbol} at lines that the file does not have")
    name = _last(symbol)
    text = replaced(page.text, Symbol(symbol, first, first, last), name, body, PurePosixPath(path).suffix)
    draft.put(path, closed(replace(page, text=text)))
    return True


async def _renamed(
    intelligence: Intelligence, draft: Draft, path: str, symbol: str, name: str, trial: Trial | None
) -> dict[str, bytes]:
    """What every file holds after a rename."""
    check_name(name, PurePosixPath(path).suffix)
    if Ability.RENAME not in intelligence.abilities:
        raise EditError(f"{intelligence.name} cannot rename symbols")
    page = opened(draft.content(path))
    if draft.changes():
        raise EditError("renaming looks at the files as they are: apply the other edits first")
    try:
        found = await _the_symbol(intelligence, path, symbol)
    except IntelligenceError as error:
        raise EditError(str(error)) from error
    try:
        edits = await intelligence.rename(path, _position(page.lines, found, _last(symbol)), name)
    except NotSupportedError as error:
        if trial is None:
            raise EditError(str(error)) from error
        tried = await trial.rename(path, found.name_path, name)
        return {checked(draft.root, where): data for where, data in tried.items()}
    except IntelligenceError as error:
        raise EditError(str(error)) from error
    by_path: dict[str, list[TextEdit]] = {}
    for edit in edits:
        by_path.setdefault(checked(draft.root, edit.place.path), []).append(edit)
    return {where: _edited(draft.content(where), changes) for where, changes in by_path.items()}


async def _the_symbol(intelligence: Intelligence, path: str, symbol: str) -> CodeSymbol:
    wanted = symbol.strip("/").replace(".", "/").replace("::", "/")
    found = await intelligence.find_symbol(wanted, path)
    if len(found) != 1:
        raise EditError(f"{symbol} is defined {len(found)} times in it")
    return found[0]


def _last(symbol: str) -> str:
    return re.split(r"[./:]", symbol)[-1]


def _position(lines: Sequence[str], symbol: CodeSymbol, name: str) -> Position:
    """Where the name of a definition stands."""
    for number in range(symbol.place.line, min(len(lines), symbol.place.line + _BODY_LINES)):
        if found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lines[number]):
            return Position(number, len(lines[number][: found.start()].encode("utf-16-le", "surrogatepass")) // 2)
    raise EditError(f"{name} is not where it should be defined")


def _edited(data: bytes, edits: Sequence[TextEdit]) -> bytes:
    """A file after edits that do not overlap."""
    page = opened(data)
    starts = [0]
    for line in page.lines:
        starts.append(starts[-1] + len(line) + 1)
    text, spans = page.text, []
    for edit in edits:
        place = edit.place
        spans.append(
            (
                _offset(page.lines, starts, place.line, place.character),
                _offset(page.lines, starts, place.end_line, place.end_character),
                edit.text,
            )
        )
    spans.sort()
    if any(b[0] < a[1] for a, b in pairwise(spans)):
        raise EditError("its edits overlap")
    for start, end, new in reversed(spans):
        text = f"{text[:start]}{new}{text[end:]}"
    return closed(replace(page, text=text))


def _offset(lines: Sequence[str], starts: Sequence[int], line: int, character: int) -> int:
    """Characters are counted as LSP does, in UTF-16."""
    if not 0 <= line < len(lines):
        raise EditError("an edit lies outside of the file")
    text = lines[line]
    if text.isascii():
        return starts[line] + min(character, len(text))
    units = text.encode("utf-16-le", "surrogatepass")[: 2 * character]
    return starts[line] + len(units.decode("utf-16-le", "surrogatepass"))
