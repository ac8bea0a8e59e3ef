"""Where a kind of server reads models from, and in which form: what ``turnout models import`` needs to know of it.

Each kind's file says its own; a kind without one reads what it is started with, from anywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from turnout.errors import UsageError
from turnout.guard.model_manifest import Manifest, Part, plain_name
from turnout.types import Endpoint

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient

_WHEN_TOLD = "start the server with what was imported"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where the files of a model go.

    Attributes:
        model: its name there, as far as that is known.
        then: what people have to do until it is served.
        places: of each file that is wanted, its place below the server's folder, with ``/``; the last makes the
            server see the model.
        folder: the place that appears at once with everything that is below it, or "".
        written: small files of ours and their contents, after the others.
        adopted: a running server has to be told; see ``Shelf.adopt``.
    """

    model: str
    then: str
    places: Mapping[str, str]
    folder: str = ""
    written: Mapping[str, bytes] = field(default_factory=dict)
    adopted: bool = False


class Shelf:
    """Files in a folder, as most servers read them. ``title`` is the server's name for people."""

    def __init__(self, title: str) -> None:
        self.title = title

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """Where it usually reads models from on this machine; empty when it reads what it is told."""
        return ()

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """Where the files of a model go that is to have this name.

        Raises:
            UsageError: this server cannot read such a model.
        """
        return together(manifest, name, _WHEN_TOLD)

    def check(self, manifest: Manifest, read: Callable[[Part], bytes]) -> None:
        """Look into the small files that this server takes at their word.

        Args:
            read: a file of the archive, verified.

        Raises:
            ArchiveError: they say something else than the list does.
        """

    def listed_as(self, name: str) -> str:
        """The id under which a running server lists what was given this name."""
        return name

    async def adopt(self, client: HttpClient, endpoint: Endpoint, manifest: Manifest, name: str) -> None:
        """Have a running server make a model of files that are in its place.

        Raises:
            BackendError: it did not.
        """
        raise NotImplementedError


def together(manifest: Manifest, name: str, then: str) -> Arrangement:
    """One file as it is, or under the model's new name; several in a folder of the model's name."""
    files = dict(plain_files(manifest, name))
    if len(files) == 1:
        ((here, there),) = files.items()
        suffix = PurePosixPath(there).suffix
        renamed = there if name == manifest.model else plain_name(name).removesuffix(suffix) + suffix
        return Arrangement(name, then, {here: renamed})
    return in_folder(manifest, name, plain_name(name), then)


def in_folder(manifest: Manifest, name: str, folder: str, then: str) -> Arrangement:
    """All files in one folder."""
    places = {here: f"{folder}/{there}" for here, there in plain_files(manifest, name)}
    return Arrangement(name, then, places, folder)


def plain_files(manifest: Manifest, name: str) -> Iterator[tuple[str, str]]:
    """Each file with its name, for a server that reads files by their names.

    Of what a store keeps under digests, weights, projector and licence get names, and the rest, which is for that
    store's own server alone, is left out.

    Raises:
        UsageError: the weights in a store are in several files, which have no names.
    """
    if not manifest.of("manifest"):
        yield from ((part.name, part.name) for part in manifest.files)
        return
    if len(manifest.of("weights")) > 1 or manifest.of("adapter"):
        said = f"{manifest.model} has several files of weights without names: only the server that had it reads them"
        raise UsageError(said, hint=f"import it to {manifest.kind}" if manifest.kind else "")
    plain = plain_name(name)
    named = (("weights", f"{plain}.gguf"), ("projector", f"mmproj-{plain}.gguf"), ("licence", "LICENSE"))
    for role, given in named:
        parts = [part for part in manifest.files if part.role == role]
        for number, part in enumerate(parts):
            yield part.name, given if not number else f"{given}.{number + 1}"


def only_gguf(manifest: Manifest, title: str, *, parts: bool = True) -> tuple[Part, ...]:
    """The weights, when they are GGUF.

    Raises:
        UsageError: they are not; or they are in several parts, and ``parts`` says that it reads none.
    """
    weights = manifest.of("weights")
    stored = bool(manifest.of("manifest"))
    if not stored and not all(part.name.lower().endswith(".gguf") for part in weights):
        raise UsageError(f"{title} reads GGUF, and {manifest.model} is none", hint="--to DIR puts its files anywhere")
    if len(weights) > 1 and not parts:
        said = f"{title} reads weights in one file, and {manifest.model} has {len(weights)}"
        raise UsageError(said, hint="--to DIR puts its files anywhere; `llama-gguf-split --merge` joins them")
    return weights


def place_of(files: Mapping[str, str], parts: tuple[Part, ...]) -> str:
    """Where the first of some files goes, or ""."""
    return min((files[part.name] for part in parts), default="")


def home(env: Mapping[str, str]) -> Path | None:
    """This user's home directory."""
    found = env.get("USERPROFILE" if sys.platform == "win32" else "HOME", "")
    return Path(found) if Path(found).is_absolute() else None


def data_home(env: Mapping[str, str]) -> Path | None:
    """Where applications keep a user's data: XDG's place, Application Support, roaming AppData."""
    given = env.get("APPDATA" if sys.platform == "win32" else "XDG_DATA_HOME", "")
    if Path(given).is_absolute():
        return Path(given)
    own = home(env)
    if own is None:
        return None
    mac = sys.platform == "darwin"
    return own / ("Library/Application Support" if mac else ".local/share")


def given_dirs(env: Mapping[str, str], *names: str) -> tuple[Path, ...]:
    """The folder that the first of these variables names."""
    return next(((Path(env[name]),) for name in names if os.path.isabs(env.get(name, ""))), ())  # noqa: PTH117


def as_yaml(value: Mapping[str, object]) -> bytes:
    """A small file that other programs read as YAML; JSON is that."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
