"""What is said to a host of code intelligence and what it answers: one line of JSON each, over its UNIX socket.

The host greets with a ``Hello``. Then any number of requests may be under way at once; answers come in any order.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from turnout.code.intelligence import Ability, CodeSymbol, Diagnostic, Place, TextEdit
from turnout.code.provider import CodeContext
from turnout.types import FileContext, Position, TaskCategory

# Who was started by another version is asked to stop: ``Stop`` must stay what it is.
VERSION = f"{sys.modules['turnout'].__version__}/1"  # which imports all above us, so it is not imported here
MAX_QUERY = 20_000  # characters
MAX_REQUEST, MAX_ANSWER = 2_000_000, 4_000_000  # bytes

Path: TypeAlias = Annotated[str, Meta(max_length=4096)]
Name: TypeAlias = Annotated[str, Meta(max_length=1000)]


class Hello(msgspec.Struct, frozen=True):
    """The first line of a host. ``warm``: it has answered something already."""

    version: str
    pid: int
    workspace: str
    warm: bool


class _Asked(msgspec.Struct, frozen=True, tag_field="method", forbid_unknown_fields=True):
    """Base of what can be asked; the tag of an ability is its name."""


class Gather(_Asked, frozen=True, tag="gather"):
    """As ``CodeProvider.gather``."""

    query: Annotated[str, Meta(max_length=MAX_QUERY)]
    category: TaskCategory
    file_context: FileContext | None
    room: int


class Status(_Asked, frozen=True, tag="status"):
    """A ``HostStatus``. It does not keep a host from being idle."""


class Stop(_Asked, frozen=True, tag="stop"):
    """End the host; the connection is closed when it has ended."""


class Cancel(_Asked, frozen=True, tag="cancel"):
    """Whoever asked request ``of`` does not want its answer any more; there is none to this."""

    of: int


class FindSymbol(_Asked, frozen=True, tag="find_symbol"):
    name: Name
    path: Path = ""
    body: bool = False


class At(_Asked, frozen=True, tag="at"):
    """References, hover, definition, type definition or implementations."""

    ability: Ability
    path: Path
    position: Position


class Calls(_Asked, frozen=True, tag="calls"):
    path: Path
    position: Position
    incoming: bool = True


class OfFile(_Asked, frozen=True, tag="of_file"):
    """Outline or diagnostics."""

    ability: Ability
    path: Path


class WorkspaceSymbols(_Asked, frozen=True, tag="workspace_symbols"):
    query: Name


class Rename(_Asked, frozen=True, tag="rename"):
    path: Path
    position: Position
    new_name: Name


class WriteSymbol(_Asked, frozen=True, tag="write_symbol"):
    path: Path
    name_path: Name
    body: Annotated[str, Meta(max_length=1_000_000)]


class WriteRename(_Asked, frozen=True, tag="write_rename"):
    path: Path
    name_path: Name
    new_name: Name


Asked: TypeAlias = (
    Gather
    | Status
    | Stop
    | Cancel
    | FindSymbol
    | At
    | Calls
    | OfFile
    | WorkspaceSymbols
    | Rename
    | WriteSymbol
    | WriteRename
)


class Request(msgspec.Struct, frozen=True):
    """One question. ``deadline_ms``: after so long nobody waits for the answer any more."""

    id: Annotated[int, Meta(ge=0)]
    deadline_ms: Annotated[int, Meta(ge=1, le=600_000)]
    asked: Asked


class Problem(msgspec.Struct, frozen=True):
    """Why there is no answer: it is told to people, and never enters a prompt."""

    kind: Literal["usage", "not_supported", "failed", "busy", "late"]
    message: str
    hint: str = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was found, or why nothing could be. ``id`` is the request's; 0 for a line that was none."""

    id: int
    found: msgspec.Raw = msgspec.Raw(b"null")
    problem: Problem | None = None


class Served(msgspec.Struct, frozen=True):
    """One intelligence that a host has: what it can be asked, and how it is in a few words."""

    name: str
    abilities: tuple[Ability, ...]
    state: str = ""


class HostStatus(msgspec.Struct, frozen=True):
    """How a host is. Times in seconds; ``memory`` in bytes of it and all it has started, 0 where that is not known."""

    version: str
    pid: int
    workspace: str
    warm: bool
    running: float
    idle: float
    ends_after: float
    clients: int
    asked: int
    memory: int
    served: tuple[Served, ...]


Found: TypeAlias = (
    CodeContext
    | HostStatus
    | str
    | tuple[Place, ...]
    | tuple[CodeSymbol, ...]
    | tuple[Diagnostic, ...]
    | tuple[TextEdit, ...]
    | None
)


def shown_path(path: pathlib.Path) -> str:
    """A workspace in a message. A name that is no UTF-8 is shown, since it cannot be sent as it is."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def line_of(message: Hello | Request | Answer) -> bytes:
    """It as it is sent."""
    return msgspec.json.encode(message) + b"\n"
