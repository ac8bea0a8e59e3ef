"""What a model on its way consists of: the list in its archive (``guard/model_archive.py``)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, TypeAlias

import msgspec

from turnout.errors import ArchiveError, UsageError
from turnout.guard.identity import OF_A_MODEL, Role, digest_of

FORMAT = "turnout-model-1"
SUFFIX = ".turnout-model.tar"
MANIFEST = "turnout-model.json"
MAX_PARTS = 4096
UNKNOWN = "0" * 64
UNSIGNED = "0" * 128
_MAX_BYTES = 2**53
# Letters of any language; nothing that a file system, a terminal or a shell takes for something else.
_STEP = re.compile(r"(?![.-])[\w.,+@=()\[\] -]{1,200}(?<![. ])\Z")
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\.|\Z)", re.IGNORECASE)  # on Windows, in every folder
_MODEL_NAME = re.compile(r"(?![.-])[\w.-]{1,100}(/(?!\.)[\w.-]{1,100}){0,3}(:(?!\.)[\w.-]{1,100})?\Z")

Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_MAX_BYTES)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a model: ``name`` is its place below others, with ``/``; ``size`` in bytes."""

    name: str
    size: Size
    sha256: Digest
    role: Role = "other"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The list.

    Attributes:
        model: its name where it comes from.
        origin: the service that had it, for people, or "".
        digest: as that service told it, or "".
        weights: as in the lock file of models.
        licence: in the words of who exported it.
        public_key: of the key that signed, in PEM.
    """

    format: str = FORMAT
    made: str
    model: str
    kind: str = ""
    origin: str = ""
    digest: str = ""
    weights: Digest = UNKNOWN
    parameters: Size = 0
    quantization: str = ""
    licence: str = ""
    files: tuple[Part, ...] = ()
    public_key: str = ""
    signature: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")] = UNSIGNED

    @property
    def text(self) -> bytes:
        """What is signed."""
        return b"turnout model\n" + msgspec.json.encode(msgspec.structs.replace(self, signature=UNSIGNED))

    @property
    def content(self) -> bytes:
        """As it is in the archive."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.files)

    def of(self, *roles: Role) -> tuple[Part, ...]:
        """The files that have one of these roles."""
        return tuple(part for part in self.files if part.role in roles)


def role_of(name: str) -> Role:
    """What a file is by its name."""
    last = PurePosixPath(name).name.lower()
    if last.endswith(".gguf"):
        return "projector" if "mmproj" in last else "weights"
    if last.endswith((".safetensors", ".bin", ".npz")):
        return "adapter" if last.startswith("adapter_") else "weights"
    return "licence" if last.startswith(("license", "licence", "notice")) else "other"


def check_name(name: str) -> None:
    """Whether a file may have this name in an archive.

    Raises:
        ArchiveError: it leads out of its folder, is hidden, or cannot be had on every system.
    """
    steps = name.split("/")
    if len(steps) > 8 or len(name) > 800 or not all(_STEP.match(step) and not _DEVICE.match(step) for step in steps):
        raise ArchiveError(f"a model's file cannot be called {name[:80]!r}", hint="export the model with plain names")


def digest_of_weights(parts: Sequence[Part]) -> str:
    """The digest of a model's weights, as the lock file of models has it: of tensors in a folder all of that folder."""
    weights = [part for part in parts if part.role == "weights"]
    folders = {PurePosixPath(part.name).parent for part in weights}
    if weights[0].name.endswith(".safetensors") and len(folders) == 1:
        here = [part for part in parts if PurePosixPath(part.name).parent in folders]
        weights = [part for part in here if PurePosixPath(part.name).suffix in OF_A_MODEL]
    return digest_of([(PurePosixPath(part.name).name, part.sha256) for part in weights])


def check_parts(manifest: Manifest) -> None:
    """Raises ArchiveError: the list is not one of a model."""
    if not _MODEL_NAME.match(manifest.model):
        raise ArchiveError(
            f"a model cannot be called {manifest.model[:80]!r}", hint="export it anew, under a plain name"
        )
    if len(manifest.files) > MAX_PARTS or not manifest.of("weights") or manifest.size > _MAX_BYTES:
        said = f"a model has weights, and at most {MAX_PARTS:,} files: this has {len(manifest.files):,}"
        raise ArchiveError(said, hint="name the files of one model")
    seen = {MANIFEST}
    for part in manifest.files:
        check_name(part.name)
        alike = unicodedata.normalize("NFC", part.name).casefold()  # to some file systems
        if alike in seen:
            raise ArchiveError(f"two files are called {part.name!r}", hint="give them different names")
        seen.add(alike)
    if any(str(parent) in seen for name in seen for parent in PurePosixPath(name).parents):
        raise ArchiveError("a file of the model has the name of a folder", hint="give it another name")


def plain_name(model: str) -> str:
    """A model's name as that of a file or folder."""
    return re.sub(r"[/:]+", "-", model)


def proper_name(served: str) -> str:
    """A name for a model that its server calls so: the same, or, of a path, the last part as far as it can be one."""
    if _MODEL_NAME.match(served):
        return served
    return re.sub(r"[^\w-]+", "-", PurePosixPath(served.replace("\\", "/")).stem).strip("-")[:100] or "model"


def require_name(name: str) -> str:
    """A name that somebody gives to a model. Raises UsageError: no server could have it."""
    if not _MODEL_NAME.match(name):
        raise UsageError(f"a model cannot be called {name[:80]!r}", hint="letters, digits, . _ - as in owner/model:tag")
    return name
