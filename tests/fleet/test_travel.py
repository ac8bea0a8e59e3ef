"""A model's archive: what is written into it, and that nothing else than that is ever unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from turnout.backends.shelf import Arrangement, together
from turnout.errors import ArchiveError, StorageError, UsageError
from turnout.fleet.packing import archive_path, pack, sources_at, sources_of
from turnout.fleet.placing import Placed, place
from turnout.guard.identity import Digests, files_at, weights_digest
from turnout.guard.model_archive import Archive, Source, _header
from turnout.guard.model_manifest import MANIFEST, Manifest, Part, proper_name, require_name, role_of
from turnout.guard.signing import Signer

FILES = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(9_000_000),
    "1_Pooling/config.json": b"[]",
    "empty.txt": b"",
}
MADE = "2026-11-25T12:00:00+00:00"


def nobody(*_: object) -> None:
    """Hears of progress, or agrees to everything."""


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "signing")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in a folder, as vLLM reads it."""
    made = tmp_path / "model"
    for name, data in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    (made / ".gitattributes").write_bytes(b"hidden")
    return made


@pytest.fixture
def archive(tmp_path: Path, folder: Path, signer: Signer) -> Path:
    path = tmp_path / "m.turnout-model.tar"
    pack(path, Manifest(made=MADE, model="org/m:8b"), sources_at([folder]), signer, nobody, nobody)
    return path


def unpacked(path: Path, to: Path, signer: Signer, *, name: str = "m", force: bool = False) -> Placed:
    with closing(Archive(path)) as opened:
        opened.check_signature(signer.public)
        return place(opened, together(opened.manifest, name, ""), to, nobody, nobody, force=force)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_comes_out_as_it_went_in(archive: Path, folder: Path, signer: Signer, tmp_path: Path) -> None:
    placed = unpacked(archive, tmp_path / "to", signer)
    assert contents(tmp_path / "to" / "m") == FILES
    assert (placed.already, placed.left_out) == (False, ())
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["m"], "nothing else is left there"
    digests = Digests(tmp_path / "digests.json")
    files = files_at(folder)
    assert files is not None
    assert listed(archive.read_bytes()).weights == weights_digest(files, digests.digest), "as the lock file has it"
    assert unpacked(archive, tmp_path / "to", signer).already


def test_other_tools_can_read_it(archive: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path, "--one-top-level=out"], check=True)
    made = contents(tmp_path / "out")
    listed = msgspec.json.decode(made.pop(MANIFEST), type=Manifest)
    assert made == FILES
    assert {part.name: part.sha256 for part in listed.files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()
    }


def test_all_parts_of_a_split_gguf_travel_with_what_is_named_beside(signer: Signer, tmp_path: Path) -> None:
    parts = [tmp_path / f"w-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        part.write_bytes(part.name.encode())
    projector = tmp_path / "mmproj-w.gguf"
    projector.write_bytes(b"projector")
    (licence := tmp_path / "LICENSE").write_text("of the tests")
    sources = sources_at([parts[0], projector, licence])
    made = pack(tmp_path / "out.tar", Manifest(made=MADE, model="w"), sources, signer, nobody, nobody)
    assert [(p.name, p.role) for p in made.files] == [
        *((p.name, "weights") for p in parts),
        ("mmproj-w.gguf", "projector"),
        ("LICENSE", "licence"),
    ]
    unpacked(tmp_path / "out.tar", tmp_path / "to", signer, name="w")
    assert sorted(contents(tmp_path / "to")) == sorted(f"w/{p.name}" for p in (*parts, projector, licence))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("a.gguf", "weights"),
        ("mmproj-a.gguf", "projector"),
        ("x/model-00001-of-00002.safetensors", "weights"),
        ("adapter_model.safetensors", "adapter"),
        ("LICENSE.txt", "licence"),
        ("tokenizer.json", "other"),
    ],
)
def test_what_a_file_is_by_its_name(name: str, role: str) -> None:
    assert role_of(name) == role


# What somebody may have done to an archive. Each gets its bytes and a key that is not the one that signed.


def rewritten(change: Callable[[Manifest], Manifest]) -> Callable[[bytes, Signer], bytes]:
    """Another list, signed again: what is refused even when whoever made it has the key."""

    def made(data: bytes, signer: Signer) -> bytes:
        old = listed(data)
        new = change(old)
        new = msgspec.structs.replace(new, signature=_UNSIGNED)
        new = msgspec.structs.replace(new, signature=signer.sign(new.text))
        return tar_of(new, data)

    return made


_UNSIGNED = "0" * 128


def listed(data: bytes) -> Manifest:
    size = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict").size
    return msgspec.json.decode(data[512 : 512 + size], type=Manifest)


def tar_of(manifest: Manifest, data: bytes) -> bytes:
    """An archive with this list, its files being those of another archive in their order."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        bodies = [tar.extractfile(member) for member in tar.getmembers()[1:]]
        contents = [body.read() if body is not None else b"" for body in bodies]
    out = b""
    for name, body in ((MANIFEST, manifest.content), *zip([p.name for p in manifest.files], contents, strict=False)):
        out += _header(name, len(body)) + body + bytes(-len(body) % 512)
    return out + bytes(1024) + bytes(-(len(out) + 1024) % 10240)


def named(name: str) -> Callable[[bytes, Signer], bytes]:
    def change(manifest: Manifest) -> Manifest:
        first, *rest = manifest.files
        return msgspec.structs.replace(manifest, files=(msgspec.structs.replace(first, name=name), *rest))

    return rewritten(change)


def member(**what: object) -> Callable[[bytes, Signer], bytes]:
    """The header of the first file replaced by one of another kind."""

    def made(data: bytes, _: Signer) -> bytes:
        first = listed(data).files[0]
        at = data.index(_header(first.name, first.size))
        info = tarfile.TarInfo(first.name)
        info.size, info.mode = first.size, 0o644
        for key, value in what.items():
            setattr(info, key, value)
        header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
        return data[:at] + header + data[at + len(header) :]

    return made


def flipped(at: Callable[[bytes], int]) -> Callable[[bytes, Signer], bytes]:
    def made(data: bytes, _: Signer) -> bytes:
        changed = bytearray(data)
        changed[at(data)] ^= 1
        return bytes(changed)

    return made


def resized(size: int) -> Callable[[bytes, Signer], bytes]:
    def change(manifest: Manifest) -> Manifest:
        first, *rest = manifest.files
        return msgspec.structs.replace(manifest, files=(msgspec.structs.replace(first, size=size), *rest))

    return rewritten(change)


def added(data: bytes, _: Signer) -> bytes:
    end = data.rstrip(b"\0")
    body = data[: len(end) + -len(end) % 512]
    out = body + _header("more.py", 4) + b"more" + bytes(508)
    return out + bytes(1024) + bytes(-(len(out) + 1024) % 10240)


def removed(data: bytes, _: Signer) -> bytes:
    first = listed(data).files[0]
    at = data.index(_header(first.name, first.size))
    out = (data[:at] + data[at + 512 + first.size + -first.size % 512 :]).rstrip(b"\0")
    out += bytes(-len(out) % 512)
    return out + bytes(1024) + bytes(-(len(out) + 1024) % 10240)


def doubled(manifest: Manifest) -> Manifest:
    first, second, *rest = manifest.files
    return msgspec.structs.replace(manifest, files=(first, msgspec.structs.replace(second, name=first.name), *rest))


def _called(manifest: Manifest, *names: str) -> Manifest:
    renamed = [msgspec.structs.replace(part, name=n) for part, n in zip(manifest.files, names, strict=False)]
    return msgspec.structs.replace(manifest, files=(*renamed, *manifest.files[len(names) :]))


def without_weights(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(
        manifest, files=tuple(msgspec.structs.replace(part, role="other") for part in manifest.files)
    )


def resigned(data: bytes, signer: Signer) -> bytes:
    other = Signer(signer.public_file.parent.parent / "another")
    pem = other.public.pem.decode()
    new = msgspec.structs.replace(listed(data), public_key=pem, signature=_UNSIGNED)
    return tar_of(msgspec.structs.replace(new, signature=other.sign(new.text)), data)


BAD: dict[str, tuple[Callable[[bytes, Signer], bytes], str]] = {
    "a changed byte of weights": (flipped(lambda d: len(d) // 2), "its SHA-256 differs"),
    "a changed byte of the list": (flipped(lambda d: d.index(b'"model"') + 11), "was changed, or is signed by another"),
    "a changed digest": (flipped(lambda d: d.index(b'"sha256": "') + 11), ""),
    "the list in another form": (lambda d, _: d.replace(b"\n ", b"  ", 1), "is not as it was written"),
    "a changed header": (flipped(lambda d: 100), "is no model that Turnout exported"),
    "a changed end": (flipped(lambda d: len(d) - 1), "has more in it than its list"),
    "bytes behind a file": (
        flipped(lambda d: d.index(b"{}" + bytes(510)) + 500),
        "something hidden behind config.json",
    ),
    "truncated": (lambda d, _: d[:-20_000], "bytes less than its list says"),
    "truncated in the list": (lambda d, _: d[:700], "cannot be read"),
    "empty": (lambda d, _: b"", "is no model that Turnout exported"),
    "appended": (lambda d, _: d + bytes(512), "bytes more than its list says"),
    "a file added": (added, ""),
    "a file removed": (removed, "where 1_Pooling/config.json should be"),
    "signed by another key": (resigned, "is signed by another key than"),
    "a path upwards": (named("../../evil.json"), "cannot be called '../../evil.json'"),
    "an absolute path": (named("/etc/cron.d/evil"), "cannot be called '/etc/cron.d/evil'"),
    "an option": (named("-rf"), "cannot be called '-rf'"),
    "a model's name that is an option": (
        rewritten(lambda m: msgspec.structs.replace(m, model="--force")),
        "a model cannot be called '--force'",
    ),
    "a hidden file": (named(".bashrc"), "cannot be called '.bashrc'"),
    "a path of Windows": (named("..\\evil"), "cannot be called"),
    "a drive of Windows": (named("C:evil"), "cannot be called"),
    "a name that turns its direction": (named("gpj\u202egguf"), "cannot be called"),
    "a name with a line break": (named("a\nb"), "cannot be called"),
    "an empty step": (named("a//b"), "cannot be called"),
    "a deep place": (named("/".join("abcdefghi")), "cannot be called"),
    "the name of the list": (named(MANIFEST), "two files are called"),
    "a name in other letters": (named("MODEL.safetensors"), "two files are called"),
    "a name that some systems write otherwise": (
        rewritten(lambda m: _called(m, "\uac00.json", "\u1100\u1161.json")),
        "two files are called",
    ),
    "a device of Windows": (named("aux.json"), "cannot be called 'aux.json'"),
    "another digest of its weights": (
        rewritten(lambda m: msgspec.structs.replace(m, weights="a" * 64)),
        "tells another digest of its weights",
    ),
    "a file that is a folder too": (named("config.json/x"), "has the name of a folder"),
    "the same file twice": (rewritten(doubled), "two files are called"),
    "no weights": (rewritten(without_weights), "a model has weights"),
    "a huge size": (resized(2**52), "bytes less than its list says"),
    "a size beyond all": (resized(2**60), "cannot be read"),
    "a negative size": (resized(-1), "cannot be read"),
    "a symbolic link": (member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "has a link called"),
    "a hard link": (member(type=tarfile.LNKTYPE, linkname="x"), "has a link called"),
    "a device": (member(type=tarfile.CHRTYPE), "has a folder or device called"),
    "another mode": (member(mode=0o4755), "has a file called"),
    "another size in its header": (member(size=1), "has a file called"),
    "another format": (rewritten(lambda m: msgspec.structs.replace(m, format="turnout-model-9")), "does not know"),
    "a model's name upwards": (rewritten(lambda m: msgspec.structs.replace(m, model="../../x")), "a model cannot be"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_not_as_it_was_signed_is_put_nowhere(how: str, archive: Path, signer: Signer, tmp_path: Path) -> None:
    change, says = BAD[how]
    archive.write_bytes(change(archive.read_bytes(), signer))
    to = tmp_path / "to"
    with pytest.raises(ArchiveError) as failed:
        unpacked(archive, to, signer)
    assert says in failed.value.message
    assert not to.exists(), "not even the folder"


def test_any_changed_byte_is_found(signer: Signer, tmp_path: Path) -> None:
    """Of a small archive each seventh byte."""
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"GGUF weights")
    path = tmp_path / "w.tar"
    pack(path, Manifest(made=MADE, model="w"), sources_at([weights]), signer, nobody, nobody)
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(flipped(lambda _, at=at: at)(data, signer))  # type: ignore[misc]
        with pytest.raises(ArchiveError):
            unpacked(path, tmp_path / "to", signer)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("what", ["a pipe", "a folder", "nothing"])
def test_an_archive_is_a_file(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    with pytest.raises(OSError, match=r".") as failed:
        Archive(path)
    assert not isinstance(failed.value, TimeoutError)


def test_what_is_there_already_is_replaced_only_when_that_is_said(
    archive: Path, signer: Signer, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    (to / "m").mkdir(parents=True)
    (to / "m" / "config.json").write_bytes(b"mine")
    before = contents(to)
    with pytest.raises(ArchiveError, match="is there already, and is another"):
        unpacked(archive, to, signer)
    assert contents(to) == before
    unpacked(archive, to, signer, force=True)
    assert contents(to / "m") == FILES


def test_a_file_beside_those_of_the_model_is_another_model(archive: Path, signer: Signer, tmp_path: Path) -> None:
    unpacked(archive, tmp_path / "to", signer)
    (tmp_path / "to" / "m" / "more.py").write_bytes(b"")
    with pytest.raises(ArchiveError, match=r"more\.py is there already"):
        unpacked(archive, tmp_path / "to", signer)


def test_a_link_on_the_way_is_not_followed(archive: Path, signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to" / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match="is a link"):
        unpacked(archive, tmp_path / "to", signer, force=True)
    assert contents(tmp_path / "elsewhere") == {}


def test_who_disagrees_at_the_end_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    def disagrees() -> None:
        assert not any(p.suffix for p in (tmp_path / "to").rglob("*") if p.is_file()), "no name that a server reads"
        raise StorageError("no")

    with closing(Archive(archive)) as opened, pytest.raises(StorageError):
        place(opened, together(opened.manifest, "m", ""), tmp_path / "to", nobody, disagrees)
    assert not (tmp_path / "to").exists()


def test_half_of_several_moves_is_taken_back(signer: Signer, tmp_path: Path) -> None:
    """The second of two files cannot be put where it should go, since its folder is a file."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    sources = sources_at([tmp_path / "a.gguf", tmp_path / "b.gguf"])
    pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources, signer, nobody, nobody)
    to = tmp_path / "to"
    to.mkdir()
    (to / "file").write_bytes(b"")
    arrangement = Arrangement("m", "", {"a.gguf": "new/a.gguf", "b.gguf": "file/b.gguf"})
    with closing(Archive(tmp_path / "m.tar")) as opened, pytest.raises(StorageError, match="nothing is left of it"):
        place(opened, arrangement, to, nobody, nobody)
    assert sorted(p.name for p in to.rglob("*")) == ["file"]


def test_a_model_that_appears_meanwhile_is_not_taken_away(archive: Path, signer: Signer, tmp_path: Path) -> None:
    """Two imports at once: the second fails, and leaves what the first has put there."""
    with closing(Archive(archive)) as opened, pytest.raises(ArchiveError, match="has appeared meanwhile"):
        place(
            opened,
            together(opened.manifest, "m", ""),
            tmp_path / "to",
            nobody,
            lambda: unpacked(archive, tmp_path / "to", signer) and None,
        )
    assert contents(tmp_path / "to" / "m") == FILES
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("served", "name"),
    [
        ("org/m:8b", "org/m:8b"),
        ("/srv/models/My Model (v2).gguf", "My-Model-v2"),
        ("C:\\models\\m.gguf", "m"),
        ("/", "model"),
    ],
)
def test_what_a_server_calls_a_model_is_made_a_name(served: str, name: str) -> None:
    assert proper_name(served) == name
    assert require_name(proper_name(served)) == name


# Export.


def test_a_source_that_changes_meanwhile_is_not_exported(folder: Path, signer: Signer, tmp_path: Path) -> None:
    out = tmp_path / "m.tar"
    target = folder / "model.safetensors"

    def swaps(*_: object) -> None:
        with target.open("r+b") as file:
            file.write(b"x")

    with pytest.raises(ArchiveError, match="has changed while it was read"):
        pack(out, Manifest(made=MADE, model="m"), sources_at([folder]), signer, swaps, nobody)
    assert list(tmp_path.glob("m.tar*")) == []


@pytest.mark.parametrize("grows", [b"more", b""])
def test_a_source_of_another_length_is_not_exported(grows: bytes, folder: Path, signer: Signer, tmp_path: Path) -> None:
    target = folder / "model.safetensors"

    def changes(*_: object) -> None:
        target.write_bytes(target.read_bytes() + grows if grows else b"")

    with pytest.raises(ArchiveError, match="has changed while it was read"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, changes, nobody)
    assert list(tmp_path.glob("m.tar*")) == []


def test_a_file_that_is_not_what_its_name_says_is_not_exported(signer: Signer, tmp_path: Path) -> None:
    blob = tmp_path / "sha256-00"
    blob.write_bytes(b"GGUF")
    source = Source(blob, "blobs/sha256-00", "weights", "0" * 64)
    with pytest.raises(ArchiveError, match="is not what its name says"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), [source], signer, nobody, nobody)
    assert list(tmp_path.glob("m.tar*")) == []


def test_an_unreadable_source_is_told_before_anything_is_written(folder: Path, signer: Signer, tmp_path: Path) -> None:
    sources = sources_at([folder])
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ArchiveError, match=r"config\.json cannot be read"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources, signer, nobody, nobody)


@pytest.mark.parametrize("error", [KeyboardInterrupt, StorageError])
def test_an_export_that_is_ended_leaves_nothing(
    error: type[BaseException], folder: Path, signer: Signer, tmp_path: Path
) -> None:
    def ends(*_: object) -> None:
        raise error("x")

    for told, agreed in ((ends, nobody), (nobody, ends)):
        with pytest.raises(error):
            pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, told, agreed)
        assert list(tmp_path.glob("m.tar*")) == []


def test_names_that_some_systems_lack_are_told_at_the_export(folder: Path, signer: Signer, tmp_path: Path) -> None:
    (folder / "a:b.json").write_bytes(b"")
    with pytest.raises(ArchiveError, match="cannot be called 'a:b.json'"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, nobody, nobody)


def test_a_folder_without_weights_is_no_model(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "README.md").write_bytes(b"")
    with pytest.raises(ArchiveError, match="a model has weights"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([tmp_path / "x"]), signer, nobody, nobody)
    with pytest.raises(UsageError, match="there is no file"):
        sources_at([tmp_path / "gone.gguf"])
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(UsageError, match="holds no weights"):
        sources_at([tmp_path / "empty.gguf"])


def test_a_folder_that_a_server_only_calls_a_models_is_not_packed(folder: Path, tmp_path: Path) -> None:
    """Whoever listens on this machine can tell any path: all of somebody's home would travel."""
    found = files_at(folder)
    assert found is not None
    assert {source.name for source in sources_of(found)} == set(FILES)
    (tmp_path / "home" / "letters").mkdir(parents=True)
    for name in ("firmware.bin", "taxes.json", "letters/private.txt"):
        (tmp_path / "home" / name).write_bytes(b"x")
    found = files_at(tmp_path / "home")
    assert found is not None
    with pytest.raises(UsageError, match=r"has no config\.json"):
        sources_of(found)


def test_links_of_a_download_cache_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "w.gguf").symlink_to(tmp_path / "blob")
    (tmp_path / "snapshot" / "loop").symlink_to(tmp_path)
    assert [s.name for s in sources_at([tmp_path / "snapshot"])] == ["w.gguf"]


def test_where_an_archive_goes(tmp_path: Path) -> None:
    assert archive_path(None, "org/m:8b") == Path("org-m-8b.turnout-model.tar")
    assert archive_path(tmp_path, "m") == tmp_path / "m.turnout-model.tar"
    assert archive_path(tmp_path / "x.tar", "m") == tmp_path / "x.tar"


# The disk is full, and whoever does it is killed.

LIMITED = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""
EXPORT = """\
from pathlib import Path
from turnout.fleet.packing import pack, sources_at
from turnout.guard.model_manifest import Manifest
from turnout.guard.signing import Signer
def told(*_): {told}
here = Path(sys.argv[1])
pack(here / "m.tar", Manifest(made="", model="m"), sources_at([here / "model"]), Signer(here / "signing"), told, told)
"""
IMPORT = """\
from pathlib import Path
from turnout.backends.shelf import together
from turnout.fleet.placing import place
from turnout.guard.model_archive import Archive
def told(*_): {told}
here = Path(sys.argv[1])
opened = Archive(here / "m.turnout-model.tar")
place(opened, together(opened.manifest, "m", ""), here / "to", told, lambda: None)
"""
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def child(code: str, here: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(here)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_full_disk_leaves_no_archive(folder: Path, tmp_path: Path) -> None:
    done = child(LIMITED + EXPORT.format(told="pass"), tmp_path)
    assert "StorageError" in done.stderr
    assert "nothing is left of it" in done.stderr
    assert list(tmp_path.glob("m.tar*")) == []


def test_a_full_disk_leaves_no_model(archive: Path, tmp_path: Path) -> None:
    done = child(LIMITED + IMPORT.format(told="pass"), tmp_path)
    assert "StorageError" in done.stderr
    assert "nothing is left of it" in done.stderr
    assert not (tmp_path / "to").exists()


def test_no_room_is_told_before_anything_is_written(
    archive: Path, folder: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 5_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(StorageError, match=r"has no room: 0\.01 GB are needed"):
        unpacked(archive, tmp_path / "to", signer)
    with pytest.raises(StorageError, match="has no room"):
        pack(tmp_path / "n.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, nobody, nobody)
    assert not (tmp_path / "to").exists()


def test_what_a_killed_import_left_is_no_model_and_goes_with_the_next(
    archive: Path, signer: Signer, tmp_path: Path
) -> None:
    assert child("import sys\n" + IMPORT.format(told=DIES), tmp_path).returncode == -9
    left = contents(tmp_path / "to")
    assert left
    assert all(name.startswith(".turnout-import-") and not Path(name).suffix for name in left)
    kept = tmp_path / "to" / ".turnout-import-of-mine"
    kept.mkdir()
    unpacked(archive, tmp_path / "to", signer)
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == [kept.name, "m"]


def test_what_a_killed_export_left_is_no_archive_and_goes_with_the_next(
    folder: Path, signer: Signer, tmp_path: Path
) -> None:
    assert child("import sys\n" + EXPORT.format(told=DIES), tmp_path).returncode == -9
    (left,) = tmp_path.glob("m.tar*")
    assert left.name == "m.tar.part"
    with pytest.raises(ArchiveError):
        Archive(left)
    pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, nobody, nobody)
    assert [p.name for p in tmp_path.glob("m.tar*")] == ["m.tar"]
    unpacked(tmp_path / "m.tar", tmp_path / "to", signer)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[None]:
    """Another export to the same file is under way."""
    import fcntl

    with (tmp_path / "m.tar.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def test_two_exports_to_one_file_do_not_mix(busy: None, folder: Path, signer: Signer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="another export is writing"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, nobody, nobody)
    assert (tmp_path / "m.tar.part").exists(), "the other goes on"


@pytest.mark.parametrize("kind", ["hard link", "pipe"])
def test_what_is_in_an_exports_way_is_not_written_over(kind: str, folder: Path, signer: Signer, tmp_path: Path) -> None:
    """In a folder of many, somebody else may have put it there, where nothing forbids such links."""
    (tmp_path / "precious").write_bytes(b"precious")
    if kind == "pipe":
        os.mkfifo(tmp_path / "m.tar.part")
    else:
        (tmp_path / "m.tar.part").hardlink_to(tmp_path / "precious")
    pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, nobody, nobody)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    unpacked(tmp_path / "m.tar", tmp_path / "to", signer)


def test_an_export_is_put_in_its_place_before_another_may_begin(
    folder: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two, another would write into what the first one is about to call done."""
    import fcntl

    seen, real_replace = list[bool](), Path.replace

    def replace(self: Path, target: Path) -> Path:
        with self.open("rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                seen.append(False)
            except BlockingIOError:
                seen.append(True)
        return real_replace(self, target)

    assert signer.public.pem
    sources = sources_at([folder])
    monkeypatch.setattr(Path, "replace", replace)
    pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources, signer, nobody, nobody)
    assert seen == [True]


def test_a_pipe_among_the_files_is_not_waited_for(folder: Path, signer: Signer, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(ArchiveError, match=r"pipe\.json cannot be read"):
        pack(tmp_path / "m.tar", Manifest(made=MADE, model="m"), sources_at([folder]), signer, nobody, nobody)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="root on Linux acts as whose the folder is")
def test_a_link_that_a_service_puts_in_roots_way_leads_nowhere(signer: Signer, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # where another user may look
        here = Path(name)
        here.chmod(0o755)
        (here / "w.gguf").write_bytes(b"GGUF")
        pack(here / "m.tar", Manifest(made=MADE, model="m"), sources_at([here / "w.gguf"]), signer, nobody, nobody)
        service, ours = here / "service", here / "ours"
        (service / "blobs").mkdir(parents=True)
        ours.mkdir()
        try:
            for place_of_theirs in (service, service / "blobs"):
                os.chown(place_of_theirs, 65534, 65534)
        except OSError:
            pytest.skip("root of a namespace without another user")

        def swapped() -> None:
            (service / "blobs").rename(service / "old")
            (service / "blobs").symlink_to(ours)

        arrangement = Arrangement("m", "", {"w.gguf": "blobs/w.gguf"})
        with closing(Archive(here / "m.tar")) as opened:
            with pytest.raises(StorageError, match="Permission denied"):
                place(opened, arrangement, service, nobody, swapped)
            assert list(ours.iterdir()) == []
            (service / "blobs").unlink()
            place(opened, arrangement, service, nobody, nobody)
        found = (service / "blobs" / "w.gguf").stat()
        assert (found.st_uid, found.st_gid) == (65534, 65534)
        (ours / "mine").touch()
        assert (ours / "mine").stat().st_uid == 0, "and then it is root again"


def test_large_sizes_fit_into_a_header() -> None:
    part = Part("w.gguf", 700_000_000_000, "0" * 64, "weights")
    assert tarfile.TarInfo.frombuf(_header(part.name, part.size), "utf-8", "strict").size == part.size


# Dies at the n-th change of names or folders; of an import there are about a dozen.
DIES_AT = """\
import os, signal, sys
left = [int(sys.argv[2])]
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chown", "tempfile.mkdtemp", "shutil.rmtree"}
def dies(event, _):
    if event in CHANGES:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(dies)
from pathlib import Path
from turnout.backends import BY_KIND
from turnout.fleet.placing import place
from turnout.guard.model_archive import Archive
here = Path(sys.argv[1])
opened = Archive(here / "w.tar")
made = BY_KIND["localai"].shelf.arrange(opened.manifest, "w")
place(opened, made, here / "to", lambda *_: None, lambda: None)
"""


def test_wherever_an_import_is_killed_a_server_reads_all_or_nothing(signer: Signer, tmp_path: Path) -> None:
    """LocalAI sees a model by its description, which is written last; the folder of weights appears whole."""
    parts = {f"w-0000{n}-of-00003.gguf": f"GGUF {n}".encode() for n in (1, 2, 3)}
    for name, data in parts.items():
        (tmp_path / name).write_bytes(data)
    sources = sources_at([tmp_path / "w-00001-of-00003.gguf"])
    pack(tmp_path / "w.tar", Manifest(made=MADE, model="w"), sources, signer, nobody, nobody)
    whole = {f"w/{name}": data for name, data in parts.items()}
    seen = set[int]()
    for step in range(1, 60):
        command = [sys.executable, "-c", DIES_AT, str(tmp_path), str(step)]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
        read = {n: d for n, d in contents(tmp_path / "to").items() if not n.startswith(".turnout-import-")}
        described = read.pop("w.yaml", b"")
        assert read in ({}, whole)
        assert not described or (read == whole and b"w/w-00001-of-00003.gguf" in described)
        seen.add(len(read) + bool(described))
        if ended == 0:
            break
        assert ended == -9
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
    assert seen == {0, 3, 4}, "killed before, between and after"
    assert step > 8
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["w", "w.yaml"]
