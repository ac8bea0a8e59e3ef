"""What is gathered for a query, within a time budget and the room there is (SPEC CODE-2, CODE-3).

Everything is asked at once: the text search, and the intelligences about the place of the user and the names in the
query. What has not come when the time is up is left out, and the note says so. What nobody else knows, the text search
tells. Only found code enters the context, never why something was not found.

| category | beside the text search |
| --- | --- |
| all, with a file | what is at the position or around it, its definition, the file's outline and what is wrong in it |
| all, with names | where the first three are defined, with their bodies and signatures |
| coding | references, where the query speaks of changing or of uses |
| analysis | references and implementations |
| documentation | the signatures of the file's symbols; no references |
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

from turnout.code.ask_around import MAX_NAMES_ASKED, Asker, Known, Wishes
from turnout.code.chain import Asked, Chain
from turnout.code.enrich import SHOWN_ISSUES
from turnout.code.intelligence import CodeSymbol
from turnout.code.lsp_files import AS_OF, stamps
from turnout.code.provider import CodeContext, Issue, Reference
from turnout.code.search import MAX_FILES, MAX_FOUND, Found, find, names_in, pack
from turnout.types import FileContext, TaskCategory

MAX_QUERY = 20_000
KEPT, KEPT_SECONDS = 32, 300.0
_MESSAGE_CHARS, _TYPE_CHARS, _TYPE_SHARE, _WORST = 200, 800, 0.2, 2
# Shares of the budget: when asking stops, and how long names wait for the text search to say where they are.
_ASKING, _SEARCH_FIRST = 0.9, 0.4
_LEAVING_SECONDS = 0.2
_CHANGES = re.compile(
    r"(?i)\b(?:refactor|renam|replac|remov|delet|extract|mov(?:e|ing)|inlin|split|signature|parameter|usages?|uses?\b"
    r"|used|references?|call(?:s|ed|ers?)\b|affect|impact|break)"
)
# What an outline leaves out, as it does without a language server.
_PARTS = frozenset({"property", "field", "enum_member", "variable"})

_Key = tuple[str, TaskCategory, FileContext | None, int, Path]
_Kept = OrderedDict[_Key, tuple[str, float, CodeContext]]
_MEMORY: WeakKeyDictionary[Chain, _Kept] = WeakKeyDictionary()


async def gather(
    chain: Chain,
    query: str,
    category: TaskCategory,
    file_context: FileContext | None,
    workspace: Path,
    room: int,
    budget: float,
) -> CodeContext | None:
    """What the workspace knows about a query, or None when there is no workspace.

    The same for the same state of the files as long as the time suffices: such a context is kept for five minutes.

    Args:
        chain: who is asked.
        query: the user's words.
        category: the kind of work.
        file_context: the file the user is in.
        workspace: whose code may be read.
        room: about how many characters there is room for.
        budget: seconds it may take.

    Raises:
        UsageError: the position is beyond the end of the file.
    """
    began = time.monotonic()
    kept, key = _MEMORY.setdefault(chain, OrderedDict()), (query, category, file_context, room, workspace)
    try:
        async with asyncio.timeout(budget):
            state = await asyncio.to_thread(state_of, workspace)
    except TimeoutError:
        return None
    if state and (hit := kept.get(key)) and hit[0] == state and began < hit[1]:
        return hit[2]
    gathering = _Gathering(chain, query[:MAX_QUERY], category, file_context, workspace)
    # A task of its own: it has a context of its own, too.
    context, complete = await asyncio.create_task(gathering.run(room, began, budget))
    if context is not None and complete and state:
        kept[key] = state, began + KEPT_SECONDS, context
        while len(kept) > KEPT:
            kept.popitem(last=False)
    return context


def state_of(workspace: Path) -> str:
    """What changes when a file of the workspace does; "" when there are too many, or one was written just now."""
    found = stamps(workspace.resolve(), lambda _: True, MAX_FILES + 1)
    if len(found) > MAX_FILES or None in found.values():
        return ""
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\0{found[name]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class _Gathering:
    """One gathering."""

    def __init__(
        self, chain: Chain, query: str, category: TaskCategory, file_context: FileContext | None, workspace: Path
    ) -> None:
        self._chain, self._query, self._category, self._file = chain.fresh(), query, category, file_context
        self._workspace, self._root = workspace, workspace.resolve()
        self._names = names_in(query)
        self._asker = Asker(self._chain, self._root, self._names, wishes_of(query, category))

    async def run(self, room: int, began: float, budget: float) -> tuple[CodeContext | None, bool]:
        """The context, and whether everything was told."""
        AS_OF.set(began)
        until = began + budget * _ASKING
        search = asyncio.create_task(
            asyncio.to_thread(find, self._query, self._file, self._workspace, until), name="text search"
        )
        tasks = [asyncio.create_task(question) for question in self._at_hand()]
        try:
            await asyncio.wait([search], timeout=max(0.0, began + budget * _SEARCH_FIRST - time.monotonic()))
            found = search.result() if search.done() else None
            if search.done() and found is None:
                return None, False
            tasks += [asyncio.create_task(question) for question in self._about_names(found)]
            await asyncio.wait([search, *tasks], timeout=max(0.0, until - time.monotonic()))
            if not search.done():
                found = Found(self._root, self._names, cut=", stopped at the limit")
            elif (found := search.result()) is None:
                return None, False
            complete = all(task.done() for task in tasks)
        except OSError:  # the workspace went away
            return None, False
        finally:
            await _leave([search, *tasks])
        for task in tasks:
            if not task.cancelled():
                task.result()
        return await self._packed(found, room, began + budget, complete=complete)

    def _at_hand(self) -> list[Coroutine[object, object, None]]:
        if self._file is None:
            return []
        path = Path(self._file.file)
        if path.is_absolute() and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        name = path.as_posix()
        questions = [self._asker.file(name, issues=True)]
        if self._file.position is not None:
            questions.append(self._asker.place(name, self._file.position))
        return questions

    def _about_names(self, found: Found | None) -> list[Coroutine[object, object, None]]:
        """Questions about the names, where the text search found them, and about the files that the query names."""
        questions = []
        for name in self._names[:MAX_NAMES_ASKED]:
            word = re.compile(rf"\b{re.escape(name)}\b")
            places = found.definitions if found is not None else ()
            questions.append(self._asker.name(name, list(dict.fromkeys(p.path for p in places if word.search(p.text)))))
        if found is None:
            return questions
        for path in found.files:
            if path != found.here:
                shown = path.relative_to(found.root).as_posix()
                questions.append(self._asker.file(shown, issues=self._category is TaskCategory.ANALYSIS))
        return questions

    async def _packed(self, found: Found, room: int, end: float, *, complete: bool) -> tuple[CodeContext | None, bool]:
        known, asked = self._asker.known, self._chain.asked
        types = _types(known, self._root, int(room * _TYPE_SHARE))
        issues = _issues(known, self._at(found))
        spent = len(types) + sum(len(issue.message) + 16 for issue in issues[:SHOWN_ISSUES])
        merged = replace(found, definitions=_definitions(found, known), references=_references(found, known))
        wholes = {where: (whole.first, whole.last) for where, whole in known.definitions.items()}
        outlines = {path: _rows(symbols) for path, symbols in known.outlines.items()}
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic()) + _LEAVING_SECONDS):
                # What was found is read again, so a little more than the rest of the asking's time.
                context = await asyncio.to_thread(pack, merged, end, max(0, room - spent), wholes, outlines)
        except (TimeoutError, OSError):
            return None, False
        told = dict.fromkeys(a.name for a in asked if a.outcome in ("answered", "found nothing"))
        note = "; ".join(part for part in (context.note, note_of(asked)) if part)
        provider = ", ".join((*told, context.provider))
        complete = complete and not found.cut and not any(one.failed for one in asked)
        return replace(context, provider=provider, type_information=types, issues=issues, note=note), complete

    def _at(self, found: Found) -> str:
        return found.here.relative_to(found.root).as_posix() if found.here is not None else ""


def wishes_of(query: str, category: TaskCategory) -> Wishes:
    """What is asked for a kind of work beside types, definitions and outlines."""
    analysis, documentation = category is TaskCategory.ANALYSIS, category is TaskCategory.DOCUMENTATION
    references = analysis or (not documentation and bool(_CHANGES.search(query)))
    return Wishes(references, analysis, documentation, analysis)


async def _leave(tasks: Sequence[asyncio.Task[object]]) -> None:
    """Cancel what runs; a thread, and who does not listen, is not waited for long."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=_LEAVING_SECONDS)


def _types(known: Known, root: Path, room: int) -> str:
    """What the symbols are, the user's place first, as far as there is room."""
    shown: list[str] = []
    for (_, path, line, name), text in sorted(known.types.items()):
        part = f"{name} ({path}:{line}):\n{_shortened(text.replace(f'{root}/', ''))}"
        room -= len(part) + 2
        if shown and room < 0:
            break
        shown.append(part)
    return "\n\n".join(shown)


def _shortened(text: str) -> str:
    text = text.strip()
    if len(text) <= _TYPE_CHARS:
        return text
    text = text[:_TYPE_CHARS].rpartition("\n")[0] or text[:_TYPE_CHARS]
    return text + ("\n```" if text.count("```") % 2 else "") + "\n…"


def _issues(known: Known, here: str) -> tuple[Issue, ...]:
    """Errors and warnings, the errors first; of another file than the user's with its name."""
    found = [
        (d.severity, path != here, path, d.place.line, d.message)
        for path, several in known.issues.items()
        for d in several
        if d.severity <= _WORST
    ]
    return tuple(
        Issue(line + 1, _first_line(message) + (f" (in {path})" if elsewhere else ""))
        for _, elsewhere, path, line, message in sorted(found)
    )


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:_MESSAGE_CHARS]


def _definitions(found: Found, known: Known) -> list[Reference]:
    """What is known for sure, then what looks like a definition."""
    sure = [Reference(path, line, whole.text) for (path, line), whole in sorted(known.definitions.items())]
    places = {(place.path, place.line) for place in sure}
    return [*sure, *(place for place in found.definitions if (place.path, place.line) not in places)]


def _references(found: Found, known: Known) -> list[Reference]:
    """What is known for sure; the text's places for the names that nobody knew uses of."""
    answered = {name: places for name, places in known.references.items() if places}
    sure = sorted({Reference(p.path, p.line + 1, p.text) for places in answered.values() for p in places}, key=_order)
    word = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in answered) or r"(?!)")
    defined = set(known.definitions)
    rest = [p for p in found.references if not word.search(p.text) and (p.path, p.line) not in defined]
    return [*sure[: 10 * MAX_FOUND], *rest]


def _order(place: Reference) -> tuple[str, int]:
    return place.path, place.line


def _rows(symbols: Sequence[CodeSymbol]) -> list[str]:
    shown = (s for s in symbols if s.kind not in _PARTS)
    return [f"- {s.kind} {s.name_path.replace('/', '.')} (line {s.place.line + 1})" for s in shown]


def note_of(asked: Sequence[Asked]) -> str:
    """Who told what in which time, and what was not told."""
    parts = []
    for name in sorted({one.name for one in asked}):
        told = [one for one in asked if one.name == name and one.outcome in ("answered", "found nothing")]
        if told:
            slowest = round(1000 * max(one.seconds for one in told))
            parts.append(f"{name} told {', '.join(sorted({one.ability for one in told}))} in {slowest} ms")
    failed: dict[tuple[str, str], set[str]] = {}
    for one in asked:
        if one.failed:
            failed.setdefault((one.name, one.outcome[:120]), set()).add(one.ability)
    parts += sorted(f"{name} gave no {', '.join(sorted(what))}: {why}" for (name, why), what in failed.items())
    return "; ".join(parts)
