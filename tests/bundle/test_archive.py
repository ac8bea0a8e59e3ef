"""A bundle that somebody has touched is refused with one line, packed or unpacked, before anything is written."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.bundle.small import HOSTILE, TAMPERED, TOP, archive, members, sign, write_small
from turnout.bundle.archive import check_archive, header
from turnout.bundle.carried.verify import RefusedError, check
from turnout.errors import BundleError
from turnout.guard.signing import Signer


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("signing"))


@pytest.fixture
def folder(tmp_path: Path, signer: Signer) -> Path:
    """An unpacked bundle."""
    place = tmp_path / "carried over" / TOP
    write_small(place, signer)
    return place


def install(folder: Path, prefix: Path, *args: str, shell: tuple[str, ...] = ("sh",)) -> tuple[int, str]:
    """Run the installer: exit code and what it said."""
    command = [*shell, str(folder / "install.sh"), "--prefix", str(prefix), "--python", sys.executable, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_an_untouched_bundle_is_accepted(folder: Path, tmp_path: Path, signer: Signer) -> None:
    path = archive(folder, tmp_path / "b.tar")
    found = check_archive(path, signer.public)
    assert (found.name, found.key, found.files) == (TOP, signer.public.fingerprint, 9)
    assert check(folder, signer.public_file) == signer.public.fingerprint
    with tarfile.open(path) as opened:
        opened.extractall(tmp_path / "out", filter="data")
    assert {n: p.read_bytes() for n, p in members(tmp_path / "out" / TOP).items()} == {
        n: p.read_bytes() for n, p in members(folder).items()
    }


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_was_changed_is_named_and_nothing_is_installed(
    what: str, folder: Path, tmp_path: Path, signer: Signer
) -> None:
    touch, said = TAMPERED[what]
    touch(folder, signer)
    with pytest.raises(BundleError, match=said) as packed:
        check_archive(archive(folder, tmp_path / "b.tar"), None if "by another" not in what else signer.public)
    assert "\n" not in str(packed.value)
    with pytest.raises(RefusedError, match=said):
        check(folder, signer.public_file if "by another" in what else None)
    if (folder / "install.sh").read_bytes().startswith(b"#!/bin/sh"):
        code, told = install(folder, tmp_path / "prefix")
        assert (code, told.count("\n")) == (1, 1)
        assert told.startswith("Refused: ")
        assert said in told
        assert not (tmp_path / "prefix").exists()


def test_another_key_is_refused_whoever_asks(folder: Path, tmp_path: Path, signer: Signer) -> None:
    other = Signer(tmp_path / "other")
    assert other.public.fingerprint != signer.public.fingerprint
    with pytest.raises(
        BundleError, match=f"another key \\({signer.public.fingerprint}\\) than {other.public.fingerprint}"
    ):
        check_archive(archive(folder, tmp_path / "b.tar"), other.public)
    code, told = install(folder, tmp_path / "prefix", "--key", str(other.public_file))
    assert (code, "it was signed with another key" in told) == (1, True)
    code, told = install(folder, tmp_path / "prefix", "--key", str(tmp_path / "none.pub"))
    assert (code, told) == (1, f"Refused: No such file or directory: {tmp_path / 'none.pub'}\n")
    assert not (tmp_path / "prefix").exists()


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "unreadable folder"])
def test_what_is_no_plain_file_is_refused_in_the_folder(kind: str, folder: Path, tmp_path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(folder / "odd")
    elif kind == "unreadable folder":
        if os.geteuid() == 0:
            pytest.skip("root reads every folder")
        (folder / "odd").mkdir(mode=0)
    else:
        (folder / "odd").symlink_to("/etc" if "folder" in kind else "README.txt")
    code, told = install(folder, tmp_path / "prefix")
    assert (code, told.startswith("Refused: "), "odd" in told) == (1, True, True)


def ended(blocks: bytes) -> bytes:
    """Members with a right end."""
    whole = blocks.rstrip(b"\0")
    whole += bytes(-len(whole) % 512 + 1024)
    return whole + bytes(-len(whole) % 10_240)


@pytest.mark.parametrize("what", HOSTILE)
def test_members_that_no_bundle_has_are_refused(what: str, folder: Path, tmp_path: Path, signer: Signer) -> None:
    path = archive(folder, tmp_path / "b.tar")
    whole = path.read_bytes()
    assert ended(whole) == whole
    info, said = HOSTILE[what]
    path.write_bytes(ended(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + whole))
    with pytest.raises(BundleError, match=said) as caught:
        check_archive(path, signer.public)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", 0o4755), ("uid", 1), ("mtime", 1), ("uname", "root"), ("linkname", "/etc")],
)
def test_the_same_files_written_otherwise_are_refused(
    field: str, value: object, folder: Path, tmp_path: Path, signer: Signer
) -> None:
    path = archive(folder, tmp_path / "b.tar")
    whole = path.read_bytes()
    info = tarfile.TarInfo.frombuf(whole[:512], "ascii", "strict")
    setattr(info, field, value)
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + whole[512:])
    with pytest.raises(BundleError, match=r"README\.txt' is not written as a bundle's file is"):
        check_archive(path, signer.public)


def test_hostile_names_are_refused_also_when_they_were_signed(folder: Path, tmp_path: Path, signer: Signer) -> None:
    (folder / ".hidden").write_text("x")
    sign(folder, signer)
    with pytest.raises(RefusedError, match="SHA256SUMS is damaged"):
        check(folder, None)
    with pytest.raises(BundleError, match="cannot be carried"):
        archive(folder, tmp_path / "b.tar")


def test_a_file_that_was_cut_off_or_added_to_is_refused(folder: Path, tmp_path: Path, signer: Signer) -> None:
    path = archive(folder, tmp_path / "b.tar")
    whole = path.read_bytes()
    others = {
        "cut in a header": whole[:700],
        "cut in a file": whole[:5000],
        "cut before the end": whole[:-10_240],
        "without its last byte": whole[:-1],
        "with a byte more": whole + b"\0",
        "with a record more": whole + bytes(10_240),
        "with another behind": whole + whole,
        "packed": gzip.compress(whole),
        "empty": b"",
        "text": b"hello" * 1000,
        "nothing in it": bytes(10_240),
    }
    for what, content in others.items():
        path.write_bytes(content)
        with pytest.raises(BundleError, match="is refused: "):
            pytest.fail(f"{what}: {check_archive(path, signer.public)}")
    for odd in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError, match="cannot be read: "):
            check_archive(odd, signer.public)


def test_no_byte_of_it_can_be_changed(folder: Path, tmp_path: Path, signer: Signer) -> None:
    path = archive(folder, tmp_path / "b.tar")
    whole, chance = path.read_bytes(), random.Random(8)
    headers = [i for i in range(0, len(whole), 512) if whole[i : i + len(TOP)] == TOP.encode()]
    places = [start + offset for start in headers[:2] for offset in range(0, 512, 3)]
    for place in (*places, *chance.sample(range(len(whole)), 200)):
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(BundleError, match="is refused: "):
            pytest.fail(f"byte {place}: {check_archive(path, signer.public)}")


def test_long_names_are_carried_as_every_tar_reads_them(folder: Path, tmp_path: Path, signer: Signer) -> None:
    long = f"wheels/{'x' * 120}-1-py3-none-any.whl"
    (folder / long).write_bytes(b"long")
    sign(folder, signer)
    path = archive(folder, tmp_path / "b.tar")
    assert check_archive(path, signer.public).files == 10
    subprocess.run(["tar", "xf", path, "-C", tmp_path], check=True)
    assert (tmp_path / TOP / long).read_bytes() == b"long"
    with tarfile.open(fileobj=io.BytesIO(header(f"{TOP}/{long}", 0) + bytes(1024))) as opened:
        assert opened.getnames() == [f"{TOP}/{long}"]
    with pytest.raises(BundleError, match="cannot be carried"):
        header("x" * 256, 0)


def test_a_size_below_nothing_is_refused(folder: Path, tmp_path: Path, signer: Signer) -> None:
    """GNU's header can hold it; it would be an empty file here, and to tar something else."""
    long = f"wheels/{'x' * 120}-1-py3-none-any.whl"
    (folder / long).write_bytes(b"")
    sign(folder, signer)
    path = archive(folder, tmp_path / "b.tar")
    info = tarfile.TarInfo(f"{TOP}/{long}")
    info.mode, info.mtime, info.size = 0o644, 315_532_800, 0
    right = info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
    info.size = -512
    assert path.read_bytes().count(right) == 1
    path.write_bytes(path.read_bytes().replace(right, info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")))
    with pytest.raises(BundleError, match="it has less than nothing in it"):
        check_archive(path, signer.public)


@pytest.mark.parametrize("name", ["a $(id) b", 'a"b', "a`id`b", "a\\b", "a:b", "a\nb"])
def test_a_place_that_a_script_would_read_otherwise_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    """pip writes the path into a script of sh where it has a space or is long: what is in ``$()`` would be run."""
    code, told = install(folder, tmp_path / name)
    assert (code, "cannot be installed to" in told) == (1, True), told
    assert not (tmp_path / name).exists()


def test_links_of_others_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "bin").mkdir(parents=True)
    (tmp_path / "a" / "bin" / "turnout").symlink_to("/nowhere/turnout")
    code, told = install(folder, tmp_path / "a")
    assert (code, "is there, and is no link that this made" in told) == (1, True), told
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bin").symlink_to("../a/bin")
    code, told = install(folder, tmp_path / "b")
    assert (code, "bin is a link" in told) == (1, True), told
    assert (tmp_path / "a" / "bin" / "turnout").readlink() == Path("/nowhere/turnout")


def test_what_another_user_has_put_there_is_not_run(folder: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone can make a folder of another user's")
    environment = tmp_path / "prefix" / installed_name(folder)
    (environment / "bin").mkdir(parents=True)
    (environment / ".installed").touch()
    command = environment / "bin" / "turnout"
    command.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    command.chmod(0o755)
    try:
        os.chown(environment, 65534, 65534)
    except OSError:
        pytest.skip("root of a namespace without another user")
    code, told = install(folder, tmp_path / "prefix")
    assert (code, "belongs to another user" in told) == (1, True), told
    assert not (tmp_path / "run").exists()


def installed_name(folder: Path) -> str:
    """The folder that the installer makes."""
    return f"turnout-0.1.0-{hashlib.sha256((folder / 'SHA256SUMS').read_bytes()).hexdigest()[:12]}"


def test_two_at_once_are_one(folder: Path, tmp_path: Path) -> None:
    import fcntl

    prefix = tmp_path / "prefix"
    (prefix / installed_name(folder)).mkdir(parents=True)
    descriptor = os.open(prefix, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        code, told = install(folder, prefix)
    finally:
        os.close(descriptor)
    assert (code, "another installation to" in told) == (1, True), told
    assert (prefix / installed_name(folder)).is_dir()


@pytest.mark.parametrize("shell", [("sh",), ("dash",), ("bash", "--posix"), ("busybox", "sh")], ids=" ".join)
def test_the_installer_says_what_is_missing_in_every_shell(
    shell: tuple[str, ...], folder: Path, tmp_path: Path, signer: Signer
) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    prefix = tmp_path / "a prefix"
    for args, code, said in (
        (("--nonsense",), 2, "there is no option --nonsense"),
        (("--key",), 2, "--key needs a value"),
        (("--python", "/nonexistent/python"), 1, "/nonexistent/python is no Python"),
    ):
        assert install(folder, prefix, *args, shell=shell)[0] == code
        assert said in install(folder, prefix, *args, shell=shell)[1]
    about = folder / "bundle.json"
    was = about.read_text()
    for old, new, said in (
        (f'"python": "{sys.version_info[0]}.{sys.version_info[1]}"', '"python": "3.99"', "is no Python 3.99"),
        ('"glibc": "2.5"', '"glibc": "9.1"', "needs glibc 9.1, and this system has"),
        ('"machine": "', '"machine": "not-', "this bundle is for Linux on not-"),
    ):
        about.write_text(was.replace(old, new))
        sign(folder, signer)
        code, told = install(folder, prefix, shell=shell)
        assert (code, said in told) == (1, True), told
    assert not prefix.exists()


def test_a_bundle_without_its_parts_is_no_bundle(tmp_path: Path, folder: Path) -> None:
    shutil.copy(folder / "install.sh", tmp_path)
    code, told = install(tmp_path, tmp_path / "prefix")
    assert (code, "there is no bundle.json beside install.sh" in told) == (1, True)
