"""The environment for Serena: made from a wheelhouse, made once, and never taken for something else.

The wheels are tiny ones made here: each holds a script that tells its version. venv and pip are the real ones.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from turnout.code import install as module
from turnout.code.install import TY_VERSION, SerenaProgram, ask_version, environment_dir, find_serena, install
from turnout.errors import CodeSetupError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs of the tests are scripts with a first line")


def wheel(folder: Path, name: str, version: str, program: str, says: str, needs: str = "") -> None:
    """A wheel of one module with one program."""
    package = name.replace("-", "_")
    info = f"{package}-{version}.dist-info"
    files = {
        f"{package}.py": f"def main():\n    print({says!r})\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{program} = {package}:main\n",
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(t.encode()).digest()).rstrip(b"=") for n, t in files.items()}
    record = "".join(f"{n},sha256={d.decode()},{len(files[n].encode())}\n" for n, d in digests.items())
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as out:
        for file, text in (*files.items(), (f"{info}/RECORD", f"{record}{info}/RECORD,,\n")):
            out.writestr(file, text)


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    wheel(folder, "serena-agent", "2.1.0", "serena", "Serena 2.1.0")
    wheel(folder, "ty", TY_VERSION, "ty", f"ty {TY_VERSION}")
    return folder


def program(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serena").write_text(text)
    (folder / "serena").chmod(0o755)
    return folder / "serena"


async def test_it_is_installed_from_a_wheelhouse_once(tmp_path: Path, wheelhouse: Path) -> None:
    data, said = tmp_path / "data", list[str]()
    nowhere = {"PATH": "/nonexistent"}
    assert find_serena(data, nowhere) is None
    made = await install(data, wheelhouse=wheelhouse, progress=said.append)
    assert made == SerenaProgram(environment_dir(data) / "bin" / "serena", "2.1.0")
    assert find_serena(data, nowhere) == made
    assert await ask_version(made.path) == "2.1.0"
    assert any("serena_agent-2.1.0" in line for line in said)
    again = list[str]()
    assert await install(data, wheelhouse=tmp_path, progress=again.append) == made
    assert len(again) == 1
    assert "already installed" in again[0]
    # What was half made is no Serena, and is made anew.
    (environment_dir(data) / ".turnout-installed").unlink()
    assert find_serena(data, nowhere) is None


async def test_what_the_users_pip_is_told_of_other_places_does_not_lead_it_away(
    tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    made = await install(tmp_path / "data", wheelhouse=wheelhouse)
    assert await ask_version(made.path) == "2.1.0"
    assert not (tmp_path / "elsewhere").exists()


_NO_VERSION = "ERROR: Could not find a version that satisfies the requirement x (from versions: none)"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (_NO_VERSION, "the package is not there"),
        # What pip says where a package is there as source, and what builds it is not there.
        (
            f"{_NO_VERSION}\npip subprocess to install build dependencies did not run successfully.",
            "is there as source",
        ),
    ],
)
async def test_a_wheelhouse_without_it_says_what_is_missing_and_how_to_fill_it(
    told: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    # In place of a real environment, which takes seconds: its pip says what pip says.
    says = f"#!/bin/sh\n[ $1 = venv ] && exit\necho '{told}' >&2\nexit 1\n"
    monkeypatch.setattr(module, "_PYTHON", (str(program(tmp_path / "venv", says)),))
    with pytest.raises(CodeSetupError, match=reason) as caught:
        await install(tmp_path / "data", wheelhouse=tmp_path / "empty")
    assert f"pip wheel --wheel-dir DIR serena-agent==2.1.0 ty=={TY_VERSION}" in caught.value.hint
    assert find_serena(tmp_path / "data", {"PATH": "/nonexistent"}) is None


@pytest.mark.heavy
async def test_what_only_has_the_name_is_not_kept(tmp_path: Path, wheelhouse: Path) -> None:
    wheel(wheelhouse, "serena-agent", "2.1.0", "serena", "hello")
    with pytest.raises(CodeSetupError, match=r"is not Serena 2\.1\.0"):
        await install(tmp_path / "data", wheelhouse=wheelhouse)
    assert find_serena(tmp_path / "data", {"PATH": "/nonexistent"}) is None


async def test_what_cannot_be_done_is_said_before_anything_is_made(
    tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    with pytest.raises(CodeSetupError, match="no version"):
        await install(data, serena="0.9.1", wheelhouse=wheelhouse)
    with pytest.raises(CodeSetupError, match="no directory"):
        await install(data, wheelhouse=tmp_path / "none")
    assert not data.exists()
    # A Python without its venv package, as some distributions ship it.
    bare = program(tmp_path / "bare", "#!/bin/sh\necho 'Error: ensurepip is not available' >&2\nexit 1\n")
    monkeypatch.setattr(module, "_PYTHON", (str(bare),))
    with pytest.raises(CodeSetupError, match="install its venv package"):
        await install(data, wheelhouse=wheelhouse)


async def test_a_data_directory_that_cannot_be_written_is_an_error(tmp_path: Path, wheelhouse: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(CodeSetupError, match="cannot be written") as caught:
        await install(tmp_path / "data", wheelhouse=wheelhouse)
    assert "TURNOUT_DATA_DIR" in caught.value.hint


def test_the_other_package_of_that_name_is_no_serena(tmp_path: Path) -> None:
    place = tmp_path / "env"
    script = program(place / "bin", "#!/bin/sh\n")
    library = place / "lib" / "python3.11" / "site-packages"
    (library / "serena-0.9.1.dist-info").mkdir(parents=True)
    env = {"PATH": f"{script.parent}"}
    assert find_serena(tmp_path / "data", env) is None
    (library / "serena_agent-1.7.0.dist-info").mkdir()
    assert find_serena(tmp_path / "data", env) == SerenaProgram(script, "1.7.0")


def test_a_relative_entry_of_the_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "#!/bin/sh\n")
    monkeypatch.chdir(tmp_path)
    assert find_serena(tmp_path / "data", {"PATH": f"bin{os.pathsep}"}) is None
    assert find_serena(tmp_path / "data", {"PATH": str(tmp_path / "bin")}) == SerenaProgram(
        tmp_path / "bin" / "serena", ""
    )


async def test_only_a_program_that_says_so_is_serena(tmp_path: Path) -> None:
    says = program(tmp_path / "a", "#!/bin/sh\necho 'Serena 2.1.0-0123abcd-dirty'\n")
    other = program(tmp_path / "b", "#!/bin/sh\necho usage >&2\nexit 2\n")
    assert await ask_version(says) == "2.1.0"
    assert await ask_version(other) == ""
    assert await ask_version(tmp_path / "none") == ""
