"""What is brought to an Ollama: a model of another one's store as it is, or a GGUF that its server makes a model of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from turnout.backends import base
from turnout.backends.ollama_store import SERVICE_STORE, WEIGHTS_LAYER
from turnout.backends.shelf import Arrangement, Shelf, given_dirs, home, only_gguf
from turnout.errors import ArchiveError, UsageError
from turnout.guard.model_manifest import Manifest, Part
from turnout.types import Endpoint

if TYPE_CHECKING:
    from turnout.guard.network import HttpClient

CREATE_SECONDS = 600.0
_UNUSABLE = "find out where it comes from; nothing of it was put anywhere"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_IN_STORE = re.compile(r"manifests/[^/]+/[^/]+/[^/]+/[^/]+\Z")


class OllamaShelf(Shelf):
    """Its store (facts/services.md section 1, Digest)."""

    def __init__(self, backend: base.Backend) -> None:
        super().__init__(backend.title)
        self._backend = backend

    def folders(self, env: Mapping[str, str]) -> tuple[Path, ...]:
        """What OLLAMA_MODELS names; else the stores that are there, the service's and this user's; else this user's."""
        own = home(env)
        usual = (SERVICE_STORE, *((own / ".ollama" / "models",) if own is not None else ()))
        there = tuple(folder for folder in usual if folder.is_dir())
        return given_dirs(env, "OLLAMA_MODELS") or there or usual[1:]

    def arrange(self, manifest: Manifest, name: str) -> Arrangement:
        """A manifest and its blobs go where they were; of a GGUF the blob, of which its server then makes a model."""
        lists = manifest.of("manifest")
        if not lists:
            return self._from_files(manifest, name)
        blobs = [part for part in manifest.files if part.role != "manifest"]
        if len(lists) > 1 or not _IN_STORE.match(lists[0].name):
            raise UsageError(f"{manifest.model} does not come from an Ollama store", hint="--to DIR puts it anywhere")
        for part in blobs:
            if part.name != f"blobs/sha256-{part.sha256}":
                said = f"{part.name} is no blob of an Ollama store: its name is not its SHA-256"
                raise UsageError(said, hint="export it anew")
        places = {part.name: part.name for part in blobs}
        _require_here(name)
        return Arrangement(name, "Ollama lists it at once", {**places, lists[0].name: _renamed(lists[0].name, name)})

    def check(self, manifest: Manifest, read: Callable[[Part], bytes]) -> None:
        """Its manifest names the blobs of the archive and no others, and the model is none that is asked elsewhere."""
        for listed in manifest.of("manifest"):
            told, named = _object(read(listed), listed.name), dict[str, str]()
            layers = told.get("layers")
            for layer in (told.get("config"), *(layers if isinstance(layers, list) else [None])):
                digest = layer.get("digest") if isinstance(layer, dict) else None
                match = _DIGEST.match(digest) if isinstance(digest, str) else None
                if match is None:
                    raise ArchiveError(f"{listed.name} is no manifest of an Ollama", hint=_UNUSABLE)
                named[f"blobs/sha256-{match[1]}"] = str(layer.get("mediatype", ""))
            parts = {part.name: part for part in manifest.files if part.role != "manifest"}
            weights = {name for name, kind in named.items() if kind == WEIGHTS_LAYER}
            if named.keys() != parts.keys() or weights != {part.name for part in manifest.of("weights")}:
                raise ArchiveError(f"{listed.name} names other files than are in the archive", hint=_UNUSABLE)
            config = _object(read(parts[next(iter(named))]), "its configuration")
            if config.get("remote_host") or config.get("remote_model"):
                said = f"{manifest.model} is a model that Ollama asks elsewhere ({config.get('remote_host')!a})"
                raise ArchiveError(said, hint=_UNUSABLE)

    def _from_files(self, manifest: Manifest, name: str) -> Arrangement:
        only_gguf(manifest, self.title, parts=False)
        _require_here(name)
        wanted = manifest.of("weights", "projector", "adapter")
        places = {part.name: f"blobs/sha256-{part.sha256}" for part in wanted}
        return Arrangement(name, "Ollama lists it at once", places, adopted=True)

    def listed_as(self, name: str) -> str:
        """With its tag."""
        return name if ":" in name else f"{name}:latest"

    async def adopt(self, client: HttpClient, endpoint: Endpoint, manifest: Manifest, name: str) -> None:
        """``POST /api/create`` with the digests of blobs, as the project's docs/api.md has it (read in 0.24, 0.33)."""

        def digests(*parts: str) -> dict[str, str]:
            wanted = [part for part in manifest.files if part.role in parts]
            return {PurePosixPath(part.name).name: f"sha256:{part.sha256}" for part in wanted}

        body: dict[str, object] = {"model": name, "files": digests("weights", "projector"), "stream": False}
        if adapters := digests("adapter"):
            body["adapters"] = adapters
        await base.post(client, self._backend, endpoint, "/api/create", body, CREATE_SECONDS)


def _require_here(name: str) -> None:
    """Raises UsageError: Ollama passes such a name on (facts/services.md section 1, Air gap)."""
    if name.lower().endswith((":cloud", "-cloud")):
        raise UsageError(f"Ollama asks elsewhere for what is called {name}", hint="--name gives it another name")


def _object(content: bytes, what: str) -> dict[str, object]:
    """JSON as Ollama reads it: it does not look at the case of names, and takes the last of two."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = {name.casefold(): value for name, value in pairs}
        if len(found) < len(pairs):
            raise ValueError("a name twice")
        return found

    try:
        found = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{what} cannot be read: it is no JSON that means one thing", hint=_UNUSABLE) from error
    return found if isinstance(found, dict) else {}


def _renamed(place: str, name: str) -> str:
    """Where the manifest of ``[HOST/][NAMESPACE/]MODEL[:TAG]`` is, the host being that of another manifest."""
    path, _, tag = name.partition(":")
    parts = path.split("/")
    if len(parts) > 3:
        raise UsageError(f"Ollama has no name like {name!r}", hint="OWNER/MODEL:TAG")
    host = PurePosixPath(place).parts[1]
    below = parts if len(parts) == 3 else [host, *(["library"] if len(parts) == 1 else []), *parts]
    return "/".join(["manifests", *below, tag or "latest"])
