"""What a model's files are, and what is remembered of them."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from turnout.backends.ollama_store import ollama_files, ollama_stores
from turnout.guard import identity
from turnout.guard.identity import (
    BUFFER_BYTES,
    Digests,
    StoppedError,
    files_at,
    find_files,
    misnamed,
    weights_digest,
)


@pytest.fixture
def digests(tmp_path: Path) -> Digests:
    return Digests(tmp_path / "data" / "model-digests.json")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES, BUFFER_BYTES * 2 + 1])
def test_a_digest_is_that_of_sha256sum(digests: Digests, tmp_path: Path, size: int) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(os.urandom(size))
    read: list[int] = []
    summed = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert digests.digest(file, read.append) == summed
    assert sum(read) == size


def test_a_file_is_read_once_until_it_changes(digests: Digests, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"one")
    read: list[int] = []
    assert digests.known(file) is None
    assert digests.digest(file, read.append) == digests.digest(file, read.append) == sha256(b"one")
    assert digests.known(file) == sha256(b"one")
    assert read == [3]
    assert Digests(tmp_path / "data" / "model-digests.json").known(file) == sha256(b"one"), "another process knows it"
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.known(file) is None, "its ctime tells, whatever mtime somebody set"
    other = tmp_path / "other"
    other.write_bytes(b"six")
    other.replace(file)
    assert digests.known(file) is None
    assert digests.digest(file) == sha256(b"six")


@pytest.mark.parametrize("content", [b"", b"{", b"[[1, 2]]", b"\x00\xff", b"[" * 100_000])
def test_a_damaged_memory_is_only_a_slower_one(digests: Digests, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model-digests.json").write_bytes(content)
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"one")
    assert digests.digest(file) == sha256(b"one")


def test_a_memory_that_others_may_write_is_not_believed(digests: Digests, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"one")
    digests.digest(file)
    (tmp_path / "data" / "model-digests.json").chmod(0o666)
    assert Digests(tmp_path / "data" / "model-digests.json").known(file) is None


def test_reading_ends_when_it_is_told_to(digests: Digests, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(bytes(BUFFER_BYTES * 3))
    read: list[int] = []
    with pytest.raises(StoppedError):
        digests.digest(file, lambda count: (read.append(count), digests.stopped.set()))  # type: ignore[func-returns-value]
    assert len(read) == 1


def test_threads_share_the_memory(digests: Digests, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.gguf" for n in range(20)]
    for n, file in enumerate(files):
        file.write_bytes(bytes([n]))
    threads = [threading.Thread(target=digests.digest, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [digests.known(file) for file in files] == [sha256(bytes([n])) for n in range(20)]
    assert len(json.loads((tmp_path / "data" / "model-digests.json").read_bytes())) == 20


def test_a_folder_has_one_digest_over_its_sorted_list(digests: Digests, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    names = ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*names, "config.json", "tokenizer.json", "modeling_x.py"):
        (folder / name).write_text(name)
    (folder / "README.md").write_text("no part of the model")
    (folder / ".gitattributes.json").write_text("nor this")
    files = files_at(folder)
    assert files is not None
    listed = subprocess.run(
        "sha256sum *.json *.py *.safetensors | LC_ALL=C sort -k2 | sha256sum",
        cwd=folder,
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    assert weights_digest(files, digests.digest) == listed
    (folder / "config.json").write_text("changed")
    assert weights_digest(files, digests.known) is None
    assert weights_digest(files, digests.digest) != listed


def test_a_folder_without_weights_and_a_device_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert files_at(tmp_path) is None
    assert files_at(Path("/dev/zero")) is None
    assert files_at(tmp_path / "none") is None


def test_every_part_of_a_split_file_counts(digests: Digests, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        (tmp_path / f"big-0000{n}-of-00003.gguf").write_text(str(n))
    files = files_at(tmp_path / "big-00001-of-00003.gguf")
    assert files is not None
    assert [path.name[4:9] for path in files.paths] == ["00001", "00002", "00003"]
    before = weights_digest(files, digests.digest)
    (tmp_path / "big-00003-of-00003.gguf").write_text("4")
    assert weights_digest(files, digests.digest) != before
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    with pytest.raises(OSError, match="big-00002"):
        weights_digest(files, digests.digest)
    (tmp_path / "many-00001-of-00513.gguf").write_text("1")
    assert files_at(tmp_path / "many-00001-of-00513.gguf") is None, "the first of too many is not the model"


def test_a_file_is_found_by_its_name_in_the_folders_that_were_given(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_text("x")
    (tmp_path / "m.gguf").write_text("x")
    for path, model in (("/models/weights.gguf", "a"), ("", "weights.gguf"), ("", "m")):
        found = find_files(path, model, (tmp_path / "none", tmp_path))
        assert found is not None
        assert found.paths[0].parent == tmp_path


@pytest.mark.parametrize("model", ["../secret.gguf", "a/../../secret.gguf", "\x00", "x" * 5000, "..", ""])
def test_no_id_of_a_server_leads_out_of_a_folder(tmp_path: Path, model: str) -> None:
    (tmp_path / "secret.gguf").write_text("x")
    (tmp_path / "in").mkdir()
    assert find_files("", model, (tmp_path / "in",)) is None
    assert ollama_files(model, "0" * 64, (tmp_path,)) is None


def manifest_in(store: Path, name: str, **layers: str) -> str:
    data = json.dumps({
        "config": {"digest": f"sha256:{sha256(b'{}')}"},
        "layers": [{"mediaType": f"application/vnd.ollama.image.{k}", "digest": d} for k, d in layers.items()],
    }).encode()  # fmt: skip
    file = store / "manifests" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    (store / "blobs").mkdir(exist_ok=True)
    (store / "blobs" / f"sha256-{sha256(b'{}')}").write_bytes(b"{}")
    return sha256(data)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("smol:latest", "registry.example/library/smol/latest"),
        ("smol", "registry.example/library/smol/latest"),
        ("ours/smol:8b", "registry.example/ours/smol/8b"),
        ("hub.example/ours/smol:8b", "hub.example/ours/smol/8b"),
    ],
)
def test_the_manifest_of_an_ollama_model_leads_to_its_blobs(
    digests: Digests, tmp_path: Path, name: str, place: str
) -> None:
    digest = manifest_in(tmp_path, place, model=f"sha256:{sha256(b'GGUF')}")
    assert ollama_files(name, digest, (tmp_path,)) is None, "a blob is missing"
    blob = tmp_path / "blobs" / f"sha256-{sha256(b'GGUF')}"
    blob.write_bytes(b"GGUF")
    assert ollama_files(name, "0" * 64, (tmp_path,)) is None, "the server tells of another manifest"
    files = ollama_files(name, digest, (tmp_path / "none", tmp_path))
    assert files is not None
    assert weights_digest(files, digests.digest) == sha256(b"GGUF")
    assert misnamed(files, digests.digest) == ""
    blob.write_bytes(b"gguf")
    assert "is not what its name says" in misnamed(files, digests.digest)


NO_MANIFESTS = (b"", b"[]", b'{"config": {}, "layers": []}', b"\xff", b'{"config":{"digest":"sha256:../"},"layers":[]}')


@pytest.mark.parametrize("data", NO_MANIFESTS)
def test_a_manifest_that_is_none_is_not_read(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "manifests" / "r" / "library" / "smol" / "latest"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert ollama_files("smol", sha256(data), (tmp_path,)) is None


def test_the_stores_of_an_ollama(tmp_path: Path) -> None:
    given = ollama_stores((tmp_path,), {"HOME": "/home/x", "OLLAMA_MODELS": "/srv/models"})
    assert [str(store) for store in given[1:3]] == ["/srv/models", "/home/x/.ollama/models"]
    assert given[0] == tmp_path


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such files")
@pytest.mark.parametrize("what", ["/proc/self/environ", "/proc/self/mem", "/dev/zero", "key", "empty", "pipe", "crowd"])
def test_a_server_has_nothing_read_that_are_no_weights(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(what) if what.startswith("/") else tmp_path / what
    if what == "key":
        place.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    elif what == "empty":
        place.touch()
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "crowd":
        place.mkdir()
        monkeypatch.setattr(identity, "MAX_ENTRIES", 3)
        for n in range(4):
            (place / f"{n}.safetensors").write_text("x")
    assert find_files(str(place), "m", ()) is None


def test_weights_of_any_name_are_known_by_what_they_begin_with(tmp_path: Path) -> None:
    blob = tmp_path / "sha256-0"
    blob.write_bytes(b"GGUF and more")
    assert find_files(str(blob), "m", ()) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_what_became_a_pipe_is_not_waited_for(digests: Digests, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.gguf")
    with pytest.raises(OSError, match="no regular file"):
        digests.digest(tmp_path / "w.gguf")


def test_who_has_mapped_a_file_before_changes_it_no_less_visibly(digests: Digests, tmp_path: Path) -> None:
    """A page that was written before the file was read can be written again without a word, unless it is made clean."""
    file = tmp_path / "w.gguf"
    file.write_bytes(bytes(100_000))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        before = file.stat().st_ctime_ns
        mapped[0] = 1
        mapped.flush()
        time.sleep(0.05)  # a tick of the kernel's clock
        mapped[0] = 0
        if file.stat().st_ctime_ns == before:
            pytest.skip("on this file system writing to a mapping changes no time (tmpfs)")
        assert digests.digest(file) == sha256(bytes(100_000))
        mapped[0] = 2
        assert digests.known(file) is None
