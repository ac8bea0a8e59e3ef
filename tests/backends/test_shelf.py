"""Where each kind of server reads models from, and what it can read."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from turnout.backends import BACKENDS, BY_KIND
from turnout.backends.shelf import Shelf
from turnout.errors import ArchiveError, UsageError
from turnout.guard.model_manifest import Manifest, Part, Role

HEX = "a" * 64


def manifest(*files: tuple[str, Role], model: str = "smol") -> Manifest:
    return Manifest(made="", model=model, files=tuple(Part(name, 3, HEX, role) for name, role in files))


ONE = manifest(("w.gguf", "weights"))
SPLIT = manifest(("w-00001-of-00002.gguf", "weights"), ("w-00002-of-00002.gguf", "weights"))
SEES = manifest(("w.gguf", "weights"), ("mmproj-w.gguf", "projector"), ("LICENSE", "licence"), model="org/smol:1b")
TENSORS = manifest(("config.json", "other"), ("model.safetensors", "weights"))
STORED = manifest(
    ("manifests/registry.example/library/smol/1b", "manifest"),
    (f"blobs/sha256-{HEX}", "weights"),
    model="smol:1b",
)


def shelf(kind: str) -> Shelf:
    found = BY_KIND[kind].shelf
    assert found is not None
    return found


def placed(kind: str, what: Manifest, name: str = "") -> list[str]:
    made = shelf(kind).arrange(what, name or what.model)
    assert not made.folder or all(
        place.startswith(f"{made.folder}/") or place in made.written for place in made.places.values()
    )
    return [*made.places.values(), *made.written]


PLACES: list[tuple[str, Manifest, list[str]]] = [
    ("llamacpp", ONE, ["w.gguf"]),
    ("llamacpp", SPLIT, ["smol/w-00001-of-00002.gguf", "smol/w-00002-of-00002.gguf"]),
    ("llamacpp", SEES, ["org-smol-1b/w.gguf", "org-smol-1b/mmproj-w.gguf", "org-smol-1b/LICENSE"]),
    ("llamacpp", STORED, ["smol-1b.gguf"]),
    ("lmstudio", ONE, ["imported/smol/w.gguf"]),
    ("lmstudio", SEES, ["org/smol-1b/w.gguf", "org/smol-1b/mmproj-w.gguf", "org/smol-1b/LICENSE"]),
    ("lmstudio", TENSORS, ["imported/smol/config.json", "imported/smol/model.safetensors"]),
    ("jan", ONE, ["smol/w.gguf", "smol/model.yml"]),
    ("localai", ONE, ["smol/w.gguf", "smol.yaml"]),
    ("gpt4all", ONE, ["w.gguf"]),
    ("gpt4all", SEES, ["w.gguf"]),
    ("gpt4all", STORED, ["smol-1b.gguf"]),
    ("textgen", ONE, ["w.gguf"]),
    ("textgen", TENSORS, ["smol/config.json", "smol/model.safetensors"]),
    ("koboldcpp", ONE, ["w.gguf"]),
    ("vllm", TENSORS, ["smol/config.json", "smol/model.safetensors"]),
    ("sglang", TENSORS, ["smol/config.json", "smol/model.safetensors"]),
    ("mlx", TENSORS, ["smol/config.json", "smol/model.safetensors"]),
    ("tabbyapi", ONE, ["smol/w.gguf"]),
    ("ollama", STORED, [f"blobs/sha256-{HEX}", "manifests/registry.example/library/smol/1b"]),
    ("ollama", ONE, [f"blobs/sha256-{HEX}"]),
]


@pytest.mark.parametrize(("kind", "what", "expected"), PLACES)
def test_where_each_kind_looks(kind: str, what: Manifest, expected: list[str]) -> None:
    assert placed(kind, what) == expected


def test_every_kind_with_a_place_is_in_the_table() -> None:
    assert {kind for kind, _, _ in PLACES} == {b.kind for b in BACKENDS if b.shelf is not None}


@pytest.mark.parametrize(
    ("kind", "what", "says"),
    [
        ("llamacpp", TENSORS, "llama.cpp reads GGUF"),
        ("jan", TENSORS, "Jan reads GGUF"),
        ("localai", TENSORS, "LocalAI reads GGUF"),
        ("gpt4all", TENSORS, "GPT4All reads GGUF"),
        ("gpt4all", SPLIT, "reads weights in one file"),
        ("ollama", TENSORS, "Ollama reads GGUF"),
        ("ollama", SPLIT, "reads weights in one file"),
        ("ollama", manifest(("manifests/x", "manifest"), (f"blobs/sha256-{HEX}", "weights")), "an Ollama store"),
        (
            "ollama",
            manifest(("manifests/a/b/c/d", "manifest"), (f"blobs/sha256-{'b' * 64}", "weights")),
            "its name is not its SHA-256",
        ),
        ("mlx", ONE, "MLX-LM reads no GGUF"),
        ("mlx", STORED, "MLX-LM reads no GGUF"),
        (
            "llamacpp",
            manifest(("manifests/a/b/c/d", "manifest"), ("blobs/1", "weights"), ("blobs/2", "weights")),
            "several files of weights without names",
        ),
    ],
)
def test_what_a_kind_cannot_read_is_refused(kind: str, what: Manifest, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        placed(kind, what)


def test_descriptions_name_the_files() -> None:
    jan = shelf("jan").arrange(SEES, "smol").written["smol/model.yml"]
    assert json.loads(jan) == {
        "model_path": "llamacpp/models/smol/w.gguf",
        "name": "smol",
        "size_bytes": 3,
        "mmproj_path": "llamacpp/models/smol/mmproj-w.gguf",
    }
    localai = json.loads(shelf("localai").arrange(SPLIT, "smol").written["smol.yaml"])
    assert localai["parameters"] == {"model": "smol/w-00001-of-00002.gguf"}
    assert "mmproj" not in localai


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tiny", "manifests/registry.example/library/tiny/latest"),
        ("me/tiny:2", "manifests/registry.example/me/tiny/2"),
        ("host.example/me/tiny", "manifests/host.example/me/tiny/latest"),
    ],
)
def test_an_ollama_model_gets_another_name(name: str, place: str) -> None:
    assert placed("ollama", STORED, name)[-1] == place


def test_a_single_file_gets_the_models_new_name() -> None:
    """It is what such servers list."""
    assert placed("llamacpp", ONE, "org/tiny:1") == ["org-tiny-1.gguf"]
    assert placed("llamacpp", SPLIT, "tiny") == ["tiny/w-00001-of-00002.gguf", "tiny/w-00002-of-00002.gguf"]
    assert placed("gpt4all", ONE, "tiny") == ["tiny.gguf"]


def test_files_for_an_ollama_are_made_a_model_by_it() -> None:
    assert shelf("ollama").arrange(ONE, "smol").adopted
    assert not shelf("ollama").arrange(STORED, "smol:1b").adopted


def stored(config: bytes = b"{}", *, layers: str = "", keys: str = "") -> tuple[Manifest, dict[str, bytes]]:
    """A model of a store, and its files: a configuration and weights."""
    contents = {hashlib.sha256(data).hexdigest(): data for data in (config, b"GGUF")}
    first, second = contents
    kind = "application/vnd.ollama.image.model"
    layer = f'{{"mediaType": "{kind}", "digest": "sha256:{second}"}}'
    text = f'{{"config": {{"digest": "sha256:{first}"}}, "layers": [{layer}{layers}]{keys}}}'
    contents = {"manifests/h/library/smol/1b": text.encode(), **{f"blobs/sha256-{k}": v for k, v in contents.items()}}
    roles: list[Role] = ["manifest", "other", "weights"]
    parts = [Part(name, 3, HEX, role) for name, role in zip(contents, roles, strict=True)]
    return Manifest(made="", model="smol:1b", files=tuple(parts)), contents


OTHER = f'{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{HEX}"}}'


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (stored(b'{"remote_host": "https://203.0.113.1", "remote_model": "big"}'), "that Ollama asks elsewhere"),
        (stored(b'{"Remote_Model": "big"}'), "that Ollama asks elsewhere"),
        (stored(b'{"remote_host": "https://203.0.113.1", "remote_host": ""}'), "no JSON that means one thing"),
        (stored(layers=f", {OTHER}"), "names other files"),
        (stored(keys=f', "Layers": [{OTHER}]'), "no JSON that means one thing"),
        (stored(layers=", 5"), "no manifest of an Ollama"),
        (stored(layers=f', {{"digest": "sha256-{HEX}"}}'), "no manifest of an Ollama"),
    ],
)
def test_what_an_ollama_would_read_otherwise_is_refused(made: tuple[Manifest, dict[str, bytes]], says: str) -> None:
    """The list of files is signed; what is in them an Ollama takes at its word."""
    listed, contents = made
    with pytest.raises(ArchiveError, match=says):
        shelf("ollama").check(listed, lambda part: contents[part.name])


def test_what_an_ollama_has_is_what_was_listed() -> None:
    listed, contents = stored()
    shelf("ollama").check(listed, lambda part: contents[part.name])
    shelf("ollama").check(ONE, lambda part: contents[part.name])


@pytest.mark.parametrize("name", ["smol:cloud", "smol:20b-cloud", "smol:Cloud"])
@pytest.mark.parametrize("what", [ONE, STORED])
def test_a_name_that_an_ollama_passes_on_is_refused(name: str, what: Manifest) -> None:
    with pytest.raises(UsageError, match="Ollama asks elsewhere"):
        placed("ollama", what, name)


def test_an_ollama_model_is_where_its_name_says() -> None:
    """Not where the name of its manifest in the archive says."""
    odd = manifest(*((p.name, p.role) for p in STORED.files), model="other:2")
    assert placed("ollama", odd)[-1] == "manifests/registry.example/library/other/2"


def test_a_jan_gets_no_description_but_ours() -> None:
    """It takes each for a model, wherever its files are."""
    brought = manifest(("w.gguf", "weights"), ("model.yml", "other"), ("sub/Model.YML", "other"))
    made = shelf("jan").arrange(brought, "smol")
    assert [*made.places] == ["w.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="the places of POSIX systems")
def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.backends.ollama_shelf.SERVICE_STORE", tmp_path / "service")
    monkeypatch.setattr("sys.platform", "linux")
    env = {"HOME": str(tmp_path)}
    data = tmp_path / ".local" / "share"

    def usual(kind: str, **more: str) -> list[Path]:
        return [*shelf(kind).folders(env | more)]

    assert usual("lmstudio") == [tmp_path / ".lmstudio" / "models"]
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/moved\n")
    assert usual("lmstudio") == [tmp_path / "moved" / "models"]
    assert usual("jan") == [data / "Jan" / "data" / "llamacpp" / "models"]
    (data / "Jan").mkdir(parents=True)
    (data / "Jan" / "settings.json").write_text(json.dumps({"data_folder": "/srv/jan"}))
    assert usual("jan") == [Path("/srv/jan/llamacpp/models")]
    assert usual("jan", JAN_DATA_FOLDER="/x") == [Path("/x/llamacpp/models")]
    assert usual("gpt4all") == [data / "nomic.ai" / "GPT4All"]
    assert usual("localai", MODELS_PATH="/b") == [Path("/b")]
    assert usual("localai", MODELS_PATH="/b", LOCALAI_MODELS_PATH="/a") == [Path("/a")]
    assert usual("llamacpp", LLAMA_ARG_MODELS_DIR="/m") == [Path("/m")]
    for kind in ("llamacpp", "localai", "koboldcpp", "textgen", "vllm"):
        assert usual(kind) == [], "nobody tells"
    assert usual("ollama") == [tmp_path / ".ollama" / "models"]
    (tmp_path / "service").mkdir()
    assert usual("ollama") == [tmp_path / "service"]
    (tmp_path / ".ollama" / "models").mkdir(parents=True)
    assert usual("ollama") == [tmp_path / "service", tmp_path / ".ollama" / "models"], "somebody has to say which"
    assert usual("ollama", OLLAMA_MODELS="/o") == [Path("/o")]
