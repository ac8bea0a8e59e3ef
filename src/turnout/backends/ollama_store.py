"""Where an Ollama keeps the files of its models: a manifest for each name, which names blobs by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from turnout.files import read_file
from turnout.guard.identity import Files, Role

WEIGHTS_LAYER = "application/vnd.ollama.image.model"
_ROLES: dict[str, Role] = {
    WEIGHTS_LAYER: "weights",
    "application/vnd.ollama.image.projector": "projector",
    "application/vnd.ollama.image.adapter": "adapter",
    "application/vnd.ollama.image.license": "licence",
}
SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")
_NAME_PART = re.compile(r"(?!\.)[\w.-]{1,200}\Z")
_BLOB = re.compile(r"sha256:([0-9a-f]{64})\Z")


class _Layer(msgspec.Struct):
    digest: str
    mediaType: str = ""  # noqa: N815  # the manifest's own name


class _Manifest(msgspec.Struct):
    config: _Layer
    layers: list[_Layer]


def ollama_stores(folders: Sequence[Path], env: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where an Ollama on this machine may keep its models (facts/services.md section 1, Digest)."""
    home = Path(env["HOME"]) / ".ollama" / "models" if env.get("HOME") else None
    given = Path(env["OLLAMA_MODELS"]) if env.get("OLLAMA_MODELS") else None
    usual = (given, home, SERVICE_STORE)
    return (*folders, *(store for store in usual if store is not None))


def ollama_files(name: str, digest: str, stores: Iterable[Path]) -> Files | None:
    """The manifest of a model and the blobs that it names, None when no store has the manifest of that digest.

    Args:
        name: ``[HOST/][NAMESPACE/]MODEL[:TAG]``.
        digest: the manifest's, as the server told it.
    """
    path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    parts = [*path.split("/"), tag]
    if not 2 <= len(parts) <= 4 or not all(_NAME_PART.match(part) for part in parts):
        return None
    below = ["*", "library", *parts] if len(parts) == 2 else ["*", *parts] if len(parts) == 3 else parts
    for store in stores:
        with suppress(OSError):
            for manifest in sorted((store / "manifests").glob("/".join(below))):
                data = read_file(manifest)
                if hashlib.sha256(data).hexdigest() == digest:
                    return _blobs(manifest, data, store)
    return None


def _blobs(manifest: Path, data: bytes, store: Path) -> Files | None:
    try:
        told = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    layers = [(layer, match[1]) for layer in (told.config, *told.layers) if (match := _BLOB.match(layer.digest))]
    blobs = {store / "blobs" / f"sha256-{name}": name for _, name in layers}
    weights = {store / "blobs" / f"sha256-{name}": None for layer, name in layers if layer.mediaType == WEIGHTS_LAYER}
    if not all(blob.is_file() for blob in blobs) or not weights:
        return None
    roles: dict[Path, Role] = {
        store / "blobs" / f"sha256-{name}": _ROLES.get(layer.mediaType, "other") for layer, name in layers
    }
    return Files((manifest, *blobs), tuple(weights), blobs, store, {manifest: "manifest", **roles})
