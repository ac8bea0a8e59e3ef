"""Edits that can be trusted (SPEC CODE-4): previewed, written all or none, taken back when they add errors, undone.

The files are changed within one lock of the workspace: what is found half done there is put back first, each file must
still be what the preview saw, and nothing is written that is not in the journal and in the audit log.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from turnout.code.edits import parse_edits
from turnout.code.intelligence import Intelligence
from turnout.code.journal import Entry, Journal, hash_of, journal_folder
from turnout.code.preview import FileChange, Preview, preview
from turnout.code.proposal import Proposal
from turnout.code.provider import Issue
from turnout.code.semantic import with_intelligence
from turnout.code.trial import Renamer, Trial, to_its_end
from turnout.errors import EditError, TurnoutError
from turnout.guard.audit import AuditLog
from turnout.guard.records import EditedFile

_SHOWN = 5
_DESPITE = "ask for another edit; --despite-errors (despite_errors=True) keeps it"
Check: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Sequence[Issue]]]]
"""The errors in files of the workspace, by path; a file that it cannot judge is left out. Never raises."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done.

    Attributes:
        changes: the files, as they were and as they are.
        issues: errors that are new, and were to be kept all the same.
        notes: what else happened, for people.
    """

    changes: tuple[FileChange, ...] = ()
    issues: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Editor:
    """Changes files of one workspace for one tenant.

    Args:
        workspace: whose files may be changed.
        data: the data directory, for the journal.
        audit: where every change is noted; None notes none.
        tenant: who changes them.
        check: finds errors, before and after; None looks at the syntax of Python alone.
        intelligence: finds and renames symbols; None leaves the first to ``symbols.py``, and the second undone.
        renamer: renames where the intelligence shows no edits, and writes at once; what it writes is put back.
    """

    def __init__(
        self,
        workspace: Path,
        data: Path,
        *,
        audit: AuditLog | None,
        tenant: str = "local",
        check: Check | None = None,
        intelligence: Intelligence | None = None,
        renamer: Renamer | None = None,
    ) -> None:
        self._root = workspace.resolve()
        self._journal = Journal(journal_folder(data, tenant, self._root), self._root)
        self._audit, self._tenant, self._check, self._intelligence = audit, tenant, check, intelligence
        self._trial = Trial(self._journal, self._root, renamer, self._note) if renamer is not None else None

    async def preview(self, answer: str | Proposal) -> Preview:
        """What an answer's edits come to. Nothing is written; what no edit can be made of is in it with the reason.

        Only for a rename where nobody shows the edits first, files are changed for a moment, and put back.

        Raises:
            StorageError, AuditError: that cannot be kept; nothing was changed.
        """
        proposal = parse_edits(answer) if isinstance(answer, str) else answer
        if self._intelligence is not None:
            return await with_intelligence(self._intelligence, self._root, proposal, self._trial)
        return await asyncio.to_thread(preview, self._root, proposal.edits, proposal.unclear)

    async def apply(self, proposed: Preview, *, doubtful: bool = False, despite_errors: bool = False) -> Outcome:
        """Write a preview's changes, all or none.

        Args:
            proposed: what ``preview`` gave.
            doubtful: somebody has seen the doubts about it.
            despite_errors: keep it also when it adds errors.

        Raises:
            EditError: it cannot be applied, or was put back because it adds errors; the files are as they were.
            StorageError: the journal cannot be used; nothing was changed.
            AuditError: the audit log cannot be written; nothing was changed.
        """
        changes = proposed.changes
        _require_applicable(proposed, self._root, doubtful=doubtful)
        with self._journal.locked():
            notes = await to_its_end(self._journal.recover)
            old = await self._issues([c.path for c in changes if c.before is not None])
            entry = await to_its_end(self._begin, changes)
            try:
                await to_its_end(self._write, entry, changes)
                new = await self._issues([c.path for c in changes if c.after is not None])
                issues = _added({**{c.path: () for c in changes if c.before is None}, **old}, new)
                if issues and not despite_errors:
                    raise EditError(f"put back, because it adds {_counted(issues)}", hint=_DESPITE)
                await to_its_end(self._end, entry, changes)
            except BaseException as error:
                self._put_back(entry, changes, error)
                raise
        unknown = [c.path for c in changes if c.path in old and c.after is not None and c.path not in new]
        if unknown:
            notes.append(f"nobody could say in time whether there are new errors in {', '.join(unknown)}")
        return Outcome(changes, issues, tuple(notes))

    async def undo(self, *, force: bool = False) -> Outcome:
        """Take back the last set that was applied and not taken back.

        Args:
            force: also what was changed in its files since, which is lost.

        Raises:
            EditError: there is none, or its files were changed since.
            StorageError, AuditError: as ``apply``.
        """
        with self._journal.locked():
            return await to_its_end(partial(self._undo, force=force))

    async def recover(self) -> tuple[str, ...]:
        """Put back what was half written when its process died; what is to be told of it. Raises as ``undo``."""
        with self._journal.locked():
            return tuple(await to_its_end(self._journal.recover))

    def _begin(self, changes: Sequence[FileChange]) -> Entry:
        for change in changes:
            path = self._root / change.path
            now = path.read_bytes() if path.is_file() else None
            if now != change.before:
                raise EditError(f"{change.path} was changed since the preview", hint="look at a new preview")
        self._tell("start", changes)
        return self._journal.begin(changes)

    def _write(self, entry: Entry, changes: Sequence[FileChange]) -> None:
        self._journal.write(entry, [c.after for c in changes], [c.mode for c in changes])

    def _end(self, entry: Entry, changes: Sequence[FileChange]) -> None:
        self._tell("end", changes)
        self._journal.keep(entry)

    def _put_back(self, entry: Entry, changes: Sequence[FileChange], cause: BaseException) -> None:
        """At once and in this thread: nothing may come in between, not even a second Ctrl-C."""
        try:
            foreign = self._journal.put_back(entry)
        except TurnoutError as error:
            raise EditError(f"{cause}; and {error.message}", hint=error.hint) from cause
        self._tell("end", changes, error=cause.code if isinstance(cause, TurnoutError) else "cancelled")
        if foreign and isinstance(cause, EditError):
            names = ", ".join(foreign)
            raise EditError(f"{cause.message}; changed by somebody else and left alone: {names}") from cause

    def _undo(self, *, force: bool) -> Outcome:
        notes = self._journal.recover()
        entry = self._journal.last()
        if entry is None:
            if notes:
                return Outcome(notes=tuple(notes))
            raise EditError(f"there is nothing to undo in {self._root}", hint="only what Turnout applied can be undone")
        changed = self._journal.changed_since(entry)
        if changed and not force:
            hint = "`turnout undo --force` puts the old files back, and what was changed since is lost"
            raise EditError(f"changed since the edit of {entry.at}: {', '.join(changed)}", hint=hint)
        before = {file.path: self._bytes(file.path) for file in entry.files}
        swapped = tuple(EditedFile(f.path, hash_of(before[f.path]), f.before) for f in entry.files)
        self._note("start", swapped)
        left = self._journal.undo(entry, force=force)
        self._note("end", swapped)
        if left:
            notes.append(f"changed by somebody else meanwhile and left alone: {', '.join(left)}")
        done = (FileChange(f.path, before[f.path], self._bytes(f.path), f.mode) for f in entry.files)
        return Outcome(tuple(done), notes=tuple(notes))

    def _bytes(self, path: str) -> bytes | None:
        file = self._root / path
        return file.read_bytes() if file.is_file() else None

    async def _issues(self, paths: Sequence[str]) -> Mapping[str, Sequence[Issue]]:
        return await self._check(paths) if self._check is not None and paths else {}

    def _tell(self, phase: str, changes: Sequence[FileChange], error: str = "") -> None:
        self._note(phase, tuple(EditedFile(c.path, hash_of(c.before), hash_of(c.after)) for c in changes), error)

    def _note(self, phase: str, files: tuple[EditedFile, ...], error: str = "") -> None:
        if self._audit is not None:
            self._audit.edit(phase, files, error=error, principal=self._tenant, workspace=str(self._root))


def chosen(proposed: Preview, paths: Sequence[str]) -> Preview:
    """The part of a preview that changes these files."""
    return replace(proposed, changes=tuple(c for c in proposed.changes if c.path in paths))


def _require_applicable(proposed: Preview, root: Path, *, doubtful: bool) -> None:
    if proposed.workspace != root:
        raise EditError(f"the preview is of another workspace: {proposed.workspace}")
    if proposed.problems:
        first, more = proposed.problems[0], len(proposed.problems) - 1
        said = f"{first.path}: {first.reason}" + (f", and {more} more" if more else "")
        raise EditError(said, hint="nothing was changed; ask for the edit again", nearest=first.nearest)
    if proposed.unclear:
        first_unclear = proposed.unclear[0]
        said = f"line {first_unclear.line} of the answer: {first_unclear.reason}"
        raise EditError(said, hint="nothing was changed; ask for the edit again")
    if not proposed.changes:
        raise EditError("the answer proposes nothing that would change a file")
    doubts = [f"{change.path}: {doubt}" for change in proposed.changes for doubt in change.doubts]
    if doubts and not doubtful:
        raise EditError("; ".join(doubts[:_SHOWN]), hint="look at the diff first: nothing was changed")


def _added(old: Mapping[str, Sequence[Issue]], new: Mapping[str, Sequence[Issue]]) -> tuple[str, ...]:
    """Errors that were not there before. Lines move, so that messages are counted. A file that could not be judged
    before cannot be afterwards."""
    found = []
    for path, issues in new.items():
        if path not in old:
            continue
        known = Counter(issue.message for issue in old[path])
        for issue in issues:
            if known[issue.message] > 0:
                known[issue.message] -= 1
            else:
                found.append(f"{path}:{issue.line}: {issue.message}")
    return tuple(found)


def _counted(issues: Sequence[str]) -> str:
    shown = "; ".join(issues[:_SHOWN]) + (" ..." if len(issues) > _SHOWN else "")
    return f"{len(issues)} {'error' if len(issues) == 1 else 'errors'}: {shown}"
