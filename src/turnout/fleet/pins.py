"""Models that the user wants to stay loaded: kept warm, and never evicted by a choice of ours.

The list is a small file in the data directory, shared by every process; a reader never sees half of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from turnout.errors import StorageError
from turnout.files import lock_folder, read_file, replace_file, unlock_folder
from turnout.fleet.catalog import Catalog, EndpointStatus
from turnout.types import Health, Model
from turnout.weights import UNCHECKED

log = logging.getLogger("turnout")


class Pin(msgspec.Struct, frozen=True, order=True):
    """A model, by the server's own id, at an endpoint, by its name."""

    model: str
    endpoint: str


def pins_path(data_dir: Path) -> Path:
    """Where the list is kept."""
    return data_dir / "pins.json"


def read_pins(path: Path) -> frozenset[Pin]:
    """The pinned models; none when the file is not there.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return frozenset(msgspec.json.decode(read_file(path), type=list[Pin]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise StorageError(f"the pinned models in {path} cannot be read: {said}", hint="delete the file") from error


def pins_or_none(path: Path) -> frozenset[Pin]:
    """The pinned models; none, with a warning, when the list cannot be read."""
    try:
        return read_pins(path)
    except StorageError as error:
        log.warning("%s", error)
        return frozenset()


def write_pins(path: Path, pins: Iterable[Pin]) -> None:
    """Replace the list at once or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        replace_file(path, msgspec.json.encode(sorted(pins)))
    except OSError as error:
        raise StorageError(f"the pinned models cannot be kept in {path}: {error.strerror or error}") from error


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Nobody else changes the list meanwhile: who reads, changes and writes it does so in here.

    Raises:
        StorageError: its directory cannot be made or opened.
    """
    try:
        directory = lock_folder(path.parent)
    except OSError as error:
        raise StorageError(f"the pinned models cannot be kept in {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        unlock_folder(directory)


def cold(pins: Iterable[Pin], catalog: Catalog) -> list[tuple[EndpointStatus, Model]]:
    """The pinned models that their server has and has not loaded, and that may serve. Pure."""
    wanted = set(pins)
    return [
        (status, model)
        for status in catalog.endpoints
        if status.health is Health.ONLINE
        for model in status.models
        if model.resident is False and Pin(model.id, status.endpoint.name) in wanted
        if not status.verdicts.get(model.id, UNCHECKED).barred
    ]


def evicted_by(model: Model, status: EndpointStatus, pins: Sequence[Pin] | frozenset[Pin]) -> str:
    """The pinned model that loading ``model`` there might push out, or "". Pure.

    A server that does not say how many models it keeps is not trusted to keep one more.
    """
    if model.resident is not False:
        return ""
    loaded = [other.id for other in status.models if other.resident]
    if status.capacity and len(loaded) < status.capacity:
        return ""
    return next((name for name in loaded if Pin(name, status.endpoint.name) in pins), "")
