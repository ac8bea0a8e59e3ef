"""What language servers answer, in the protocol's several shapes, and the same as our values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from turnout.code.intelligence import CodeSymbol, Diagnostic, IntelligenceError, Place
from turnout.code.lsp_files import path_of
from turnout.code.search import is_skipped

# In the order of their numbers, from 1.
KINDS = (
    "file",
    "module",
    "namespace",
    "package",
    "class",
    "method",
    "property",
    "field",
    "constructor",
    "enum",
    "interface",
    "function",
    "variable",
    "constant",
    "string",
    "number",
    "boolean",
    "array",
    "object",
    "key",
    "null",
    "enum_member",
    "struct",
    "event",
    "operator",
    "type_parameter",
)
_CALLABLE, _LOCAL = frozenset({"method", "function", "constructor"}), frozenset({"variable", "constant"})
_MESSAGE_CHARS = 500
_DEPTH = 32


class Spot(msgspec.Struct, frozen=True):
    """A position: UTF-16 units."""

    line: int
    character: int


class Span(msgspec.Struct, frozen=True):
    """A range: the end is after the last character."""

    start: Spot
    end: Spot


class Location(msgspec.Struct, rename="camel"):
    """``Location`` or ``LocationLink``."""

    uri: str = ""
    range: Span | None = None
    target_uri: str = ""
    target_selection_range: Span | None = None


class Symbol(msgspec.Struct, rename="camel"):
    """``DocumentSymbol``, ``SymbolInformation``, ``WorkspaceSymbol`` or ``CallHierarchyItem``."""

    name: str
    kind: int = 0
    uri: str = ""
    range: Span | None = None
    selection_range: Span | None = None
    location: Location | None = None
    container_name: str | None = None
    children: list[Symbol] | None = None


class Call(msgspec.Struct):
    """An incoming or outgoing call."""

    from_: Symbol | None = msgspec.field(default=None, name="from")
    to: Symbol | None = None


class Marked(msgspec.Struct):
    """``MarkupContent`` or ``MarkedString``."""

    value: str = ""
    language: str = ""


class Hover(msgspec.Struct):
    """What is shown at a position."""

    contents: str | Marked | list[str | Marked]


class Complaint(msgspec.Struct):
    """A diagnostic."""

    range: Span
    message: str | Marked
    severity: int | None = 1
    code: int | str | None = None
    source: str | None = None


class Report(msgspec.Struct):
    """A document's diagnostics, where they were asked for."""

    items: list[Complaint] = []


class Published(msgspec.Struct):
    """A document's diagnostics, where the server sends them."""

    uri: str
    diagnostics: list[Complaint]
    version: int | None = None


class Edit(msgspec.Struct, rename="camel"):
    """A text edit."""

    range: Span
    new_text: str


class Edited(msgspec.Struct):
    """The edits of one document, identified by its URI."""

    uri: str


class Change(msgspec.Struct, rename="camel"):
    """One entry of ``documentChanges``; with a ``kind`` it creates, renames or deletes a file."""

    kind: str = ""
    text_document: Edited | None = None
    edits: list[Edit] = []


class WorkspaceEdit(msgspec.Struct, rename="camel"):
    """The edits of a rename."""

    changes: dict[str, list[Edit]] | None = None
    document_changes: list[Change] | None = None


class ServerInfo(msgspec.Struct):
    """What the server can do, as it says."""

    capabilities: dict[str, object]


@dataclass(frozen=True, slots=True)
class Found:
    """A symbol with the place of its name, which is how the same symbol of another answer is known."""

    symbol: CodeSymbol
    line: int
    character: int


def read(raw: Raw, kind: object, server: str) -> Any:
    """An answer as ``kind``, which may be a union.

    Raises:
        IntelligenceError: it is not what the protocol allows.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise IntelligenceError(f"{server} gave an answer that the protocol does not have: {error}") from error


def place_of(root: Path, uri: str, span: Span) -> Place | None:
    """A place for people: relative in the workspace, absolute outside; None for a secret, or what is no file."""
    path = path_of(uri)
    if path is None:
        return None
    shown = path.as_posix()
    if path.is_relative_to(root):
        if any(map(is_skipped, path.relative_to(root).parts)):
            return None
        shown = path.relative_to(root).as_posix()
    return Place(shown, span.start.line, span.start.character, span.end.line, span.end.character)


def places_of(root: Path, found: Location | list[Location] | None) -> tuple[Place, ...]:
    """Places, each once, by path and position."""
    items = found if isinstance(found, list) else [found] if found is not None else []
    places = []
    for item in items:
        span = item.target_selection_range or item.range
        place = place_of(root, item.target_uri or item.uri, span) if span is not None else None
        if place is not None:
            places.append(place)
    return in_order(places)


def in_order(places: Iterable[Place]) -> tuple[Place, ...]:
    """Each place once, by path and position."""
    return tuple(sorted(set(places), key=lambda p: (p.path, p.line, p.character)))


def hover_text(found: Hover | None) -> str:
    """Markdown or plain text; "" when there is nothing."""
    if found is None:
        return ""
    parts = found.contents if isinstance(found.contents, list) else [found.contents]
    texts = (f"```{p.language}\n{p.value}\n```" if p.language else p.value for p in map(_marked, parts))
    return "\n".join(text.strip() for text in texts if text.strip())


def _marked(part: str | Marked) -> Marked:
    return Marked(part) if isinstance(part, str) else part


def outline_of(root: Path, uri: str, found: Sequence[Symbol] | None) -> tuple[Found, ...]:
    """The definitions of a file in their order; local variables and parameters are none."""
    nodes = [node for item in found or () for node in _nodes(root, uri, item, (), local=False, depth=0)]
    return tuple(sorted(dict.fromkeys(nodes), key=lambda n: (n.symbol.place.line, n.symbol.place.character)))


def _nodes(root: Path, uri: str, item: Symbol, above: tuple[str, ...], *, local: bool, depth: int) -> Iterator[Found]:
    node = found_of(root, uri, item, above)
    if node is None or depth > _DEPTH or (local and node.symbol.kind in _LOCAL):
        return
    yield node
    inner = local or node.symbol.kind in _CALLABLE
    for child in item.children or ():
        yield from _nodes(root, uri, child, (*above, item.name), local=inner, depth=depth + 1)


def found_of(root: Path, uri: str, item: Symbol, above: tuple[str, ...] = ()) -> Found | None:
    """A symbol of any answer; ``uri`` is its file's where the answer does not tell."""
    location = item.location or Location(item.uri or uri, item.range)
    if location.range is None:
        return None
    place = place_of(root, location.uri, location.range)
    if place is None:
        return None
    holders = above or ((item.container_name,) if item.container_name else ())
    start = (item.selection_range or location.range).start
    kind = KINDS[item.kind - 1] if 0 < item.kind <= len(KINDS) else "symbol"
    return Found(CodeSymbol("/".join((*holders, item.name)), kind, place), start.line, start.character)


def same_as(outline: Sequence[Found] | None, found: Found) -> Found | None:
    """The definition of its file's outline that ``found`` is: servers give the place of the name alone in other
    answers. Itself where the outline is not known or has no such definition, None for a local variable."""
    if outline is None:
        return found
    name = words_of(found.symbol.name_path)[-1:]
    alike = [node for node in outline if words_of(node.symbol.name_path)[-1:] == name]
    same = [n for n in alike if n.line == found.line or n.symbol.place.line == found.symbol.place.line]
    return same[0] if same else None if found.symbol.kind in _LOCAL else found


def words_of(name: str) -> tuple[str, ...]:
    """The names in a path of names, in whatever way the server decorates them: ``(*Cart).Total``, ``Cart/total``."""
    return tuple(re.findall(r"\w+", name))


def is_named(name_path: str, name: str) -> bool:
    """Whether a definition is meant by ``name``: all of its path, or the end of it."""
    have, want = words_of(name_path), words_of(name)
    return bool(want) and have[-len(want) :] == want and (not name.startswith("/") or len(have) == len(want))


def diagnostics_of(path: str, found: Sequence[Complaint]) -> tuple[Diagnostic, ...]:
    """Diagnostics, each once, by position."""
    all_ = {
        Diagnostic(
            Place(path, c.range.start.line, c.range.start.character, c.range.end.line, c.range.end.character),
            _marked(c.message).value[:_MESSAGE_CHARS],
            c.severity or 1,
            str(c.code or ""),
            c.source or "",
        )
        for c in found
    }
    return tuple(sorted(all_, key=lambda d: (d.place.line, d.place.character, d.severity, d.message)))


def edits_of(found: WorkspaceEdit | None) -> list[tuple[str, Edit]]:
    """URI and edit of a rename, each once.

    Raises:
        IntelligenceError: files would be created, renamed or deleted.
    """
    if found is None:
        return []
    edits: list[tuple[str, Edit]] = []
    for change in found.document_changes or ():
        if change.kind or change.text_document is None:
            raise IntelligenceError("the rename would create, move or delete files")
        edits += [(change.text_document.uri, edit) for edit in change.edits]
    if not found.document_changes:
        edits = [(uri, edit) for uri, several in (found.changes or {}).items() for edit in several]
    return edits


def with_text(places: Sequence[Place], lines: dict[str, tuple[str, ...]]) -> tuple[Place, ...]:
    """The places with the text of their lines, of the files of which it is known."""
    return tuple(
        replace(place, text=known[place.line].strip())
        if (known := lines.get(place.path)) is not None and place.line < len(known)
        else place
        for place in places
    )
