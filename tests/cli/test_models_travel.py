"""``turnout models export`` and ``import``: from one installation to another, and to real servers there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import real
from tests.cli.conftest import as_terminal, configure, run, run_beside
from tests.cli.test_models_lock import changed_copy, document, events, store_of
from tests.fakes import ollama
from tests.fakes.base import Fake, FakeModel, running
from tests.servers import WEIGHTS, LlamaFactory
from turnout.backends.ollama_store import ollama_files
from turnout.guard.signing import PRIVATE, PUBLIC, Signer

NAME = "smol.turnout-model.tar"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights that no server reads."""
    made = tmp_path / "tiny.gguf"
    made.write_bytes(b"GGUF weights")
    return made


@pytest.fixture
def archive(weights: Path, tmp_path: Path) -> Path:
    """What another installation exported; its public key is beside it."""
    result = run("models", "export", "smol", "--path", str(weights), "-o", str(tmp_path))
    assert result.exit_code == 0
    signing = tmp_path / "data" / "signing"
    (signing / PUBLIC).rename(tmp_path / PUBLIC)
    (signing / PRIVATE).unlink()
    return tmp_path / NAME


def imported(archive: Path, *more: str) -> dict[str, Any]:
    result = run("models", "import", str(archive), *more, "--json")
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found | {"exit_code": result.exit_code}


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_people_see(archive: Path, weights: Path, tmp_path: Path) -> None:
    key = str(tmp_path / PUBLIC)
    result = run("models", "import", str(archive), "--to", str(tmp_path / "to"), "--key", key)
    assert result.exit_code == 0
    signed, place, then = result.stdout.splitlines()
    assert signed.startswith("smol: signed with the key ")
    assert signed.endswith("(given with --key), every file is as it was")
    assert place == f"{tmp_path / 'to' / 'tiny.gguf'}: 1 file"
    assert then.startswith("next: ")
    again = run("models", "import", str(archive), "--to", str(tmp_path / "to"), "--key", key)
    assert "tiny.gguf: was there already" in again.stdout
    assert (tmp_path / "to" / "tiny.gguf").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("name", ["better", "better.gguf"])
def test_a_file_gets_its_new_name_with_its_suffix_once(name: str, archive: Path, tmp_path: Path) -> None:
    found = imported(archive, "--to", str(tmp_path / "to"), "--name", name, "--yes")
    assert (found["exit_code"], files(tmp_path / "to")) == (0, ["better.gguf"])


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    result = run("models", "import", "none.tar", "--to", str(tmp_path / "to"))
    assert (result.exit_code, "whether its disk is mounted" in result.stderr) == (1, True)


def test_both_are_in_the_audit_log_with_the_digest(archive: Path, weights: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    imported(archive, "--to", str(tmp_path / "to"), "--yes")
    archive.write_bytes(archive.read_bytes().replace(b"GGUF weights", b"GGUF WEIGHTS"))
    refused = imported(archive, "--to", str(tmp_path / "other"), "--yes")
    assert (refused["exit_code"], refused["error"]["code"]) == (1, "archive")
    assert not (tmp_path / "other").exists()
    kinds = {"security:model_export", "security:model_import"}
    written = [e for e in events(tmp_path) if e["event_type"] in kinds]
    assert [(e["event_type"], e["success"]) for e in written] == [
        ("security:model_export", True),
        ("security:model_import", True),
        ("security:model_import", False),
    ]
    assert all(digest in e["service"] for e in written[:2])
    assert written[2]["service"] == f"{archive} to {tmp_path / 'other'}"
    assert "its SHA-256 differs" in written[2]["error"]


def test_nothing_is_put_anywhere_when_it_cannot_be_logged(archive: Path, tmp_path: Path) -> None:
    Path("turnout.yaml").write_text(json.dumps({"security": {"audit_log_path": "/dev/full"}}))
    assert imported(archive, "--to", str(tmp_path / "to"), "--yes")["exit_code"] == 1
    assert not (tmp_path / "to").exists()
    result = run("models", "export", "x", "--path", str(tmp_path / "tiny.gguf"), "-o", str(tmp_path / "x.tar"))
    assert (result.exit_code, list(tmp_path.glob("x.tar*"))) == (1, [])


def test_the_key_that_must_have_signed(archive: Path, tmp_path: Path) -> None:
    to = str(tmp_path / "to")
    assert imported(archive, "--to", to)["exit_code"] == 2, "nobody said that the key in it is to be believed"
    other = Signer(tmp_path / "other")
    assert other.public.fingerprint
    refused = imported(archive, "--to", to, "--key", str(other.public_file), "--yes")
    assert refused["exit_code"] == 1
    assert "is signed by another key than" in refused["error"]["message"]
    assert not Path(to).exists()
    believed = imported(archive, "--to", to, "--yes")
    assert (believed["exit_code"], believed["key"]) == (0, "which came with it")
    assert imported(archive, "--to", to, "--key", str(tmp_path / PUBLIC))["key"] == "given with --key"


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 130)])
def test_on_a_terminal_the_fingerprint_is_asked_about(answer: bytes, code: int, archive: Path, tmp_path: Path) -> None:
    ended, shown = as_terminal("models", "import", str(archive), "--to", str(tmp_path / "to"), answer=answer)
    assert ended == code
    assert "It is signed with the key" in shown
    assert (tmp_path / "to" / "tiny.gguf").exists() == (code == 0)


def test_what_this_installation_signed_it_believes(weights: Path, tmp_path: Path) -> None:
    run("models", "export", "smol", "--path", str(weights), "-o", str(tmp_path))
    assert imported(tmp_path / NAME, "--to", str(tmp_path / "to"))["key"] == "this installation's"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--to", "olama"), "is neither a kind of server nor a folder"),
        (("--to", "openwebui"), "nothing can be put where Open WebUI has its models"),
        (("--to", "vllm"), "reads what it is started with"),
        (("--to", "lmstudio"), "which is not there"),
        (("--to", "mlx", "--folder", "x"), "reads no GGUF"),
        (("--to", "x/", "--folder", "y"), "--folder belongs to a kind of server"),
        (("--to", "x/", "--name", "../../x"), "a model cannot be called"),
        (("--to", "ollama", "--folder", "x"), "no Ollama runs here"),
    ],
)
def test_what_cannot_be_meant(
    line: tuple[str, ...], says: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    configure("http://127.0.0.1:9")
    found = imported(archive, *line, "--yes")
    assert found["exit_code"] == 2
    assert says in found["error"]["message"]
    assert files(Path.cwd()) == ["turnout.yaml"]


def test_an_export_names_what_it_lacks(weights: Path, tmp_path: Path) -> None:
    configure("http://127.0.0.1:9")
    assert run("models", "export", "smol").exit_code == 3
    assert run("models", "export", "../x", "--path", str(weights)).exit_code == 2
    unmounted = run("models", "export", "smol", "--path", str(weights), "-o", f"{tmp_path}/usb/")
    assert (unmounted.exit_code, f"there is no folder {tmp_path}/usb\n" in unmounted.stderr) == (2, True)
    assert not (tmp_path / "usb").exists(), "40 GB in a file that is called like the disk that is not there"
    (tmp_path / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    first = run("models", "export", "smol", "--path", str(weights))
    assert first.exit_code == 0
    assert "mmproj-tiny.gguf lies beside it and is no part of it" in first.stderr
    assert run("models", "export", "smol", "--path", str(weights)).exit_code == 2, "it is there"
    assert run("models", "export", "smol", "--path", str(weights), "--force").exit_code == 0


async def test_a_models_journey_from_one_real_server_to_another(
    llama_factory: LlamaFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await llama_factory(alias="smol")
    configure(server.url)
    exported = await document("models", "export", "smol", "--licence", "Apache-2.0", "-o", str(tmp_path))
    assert (exported["kind"], exported["licence"]) == ("llamacpp", "Apache-2.0")
    key = tmp_path / "data" / "signing" / PUBLIC
    monkeypatch.setenv("TURNOUT_DATA_DIR", str(tmp_path / "inside"))
    into = ("--to", "llamacpp", "--folder", str(tmp_path / "models"), "--key", str(key))
    found = await document("models", "import", str(tmp_path / NAME), *into)
    (place,) = found["places"]
    assert Path(place) == tmp_path / "models" / WEIGHTS.name
    inside = await llama_factory(weights=Path(place), alias="arrived")
    configure(inside.url)
    assert (await run_beside("ask", "--max-tokens", "4", "hello")).exit_code == 0
    (locked,) = (await document("models", "lock"))["models"]
    assert locked["weights"] == exported["weights"] == found["weights"]


@pytest.mark.skipif(not real.LLAMA_SERVER, reason="no llama-server: run `sh tests/get_servers.sh llama-server DIR`")
async def test_a_router_of_models_lists_what_was_brought(tmp_path: Path) -> None:
    """A single file by its name, files in a folder by the folder's."""
    models = tmp_path / "models"
    (tmp_path / "LICENSE").write_text("of the tests")
    await document("models", "export", "smol", "--path", str(WEIGHTS), "-o", str(tmp_path))
    pair = ("--path", str(WEIGHTS), "--path", str(tmp_path / "LICENSE"))
    await document("models", "export", "org/pair:1", *pair, "-o", str(tmp_path))
    for file, more in ((NAME, ("--name", "solo")), ("org-pair-1.turnout-model.tar", ())):
        into = ("--to", "llamacpp", "--folder", str(models))
        found = await document("models", "import", str(tmp_path / file), *into, *more)
        assert found["exit_code"] == 0, found
    server = await asyncio.to_thread(real.llama_of_folder, models)
    try:
        configure(server.url)
        assert {m["id"] for m in (await document("models"))["models"]} == {"solo", "org-pair-1"}
        for name in ("solo", "org-pair-1"):
            assert (await run_beside("ask", "--model", name, "--max-tokens", "2", "hello")).exit_code == 0
    finally:
        server.stop()


async def test_a_model_that_is_not_the_recorded_one_does_not_travel(
    llama_factory: LlamaFactory, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.gguf"
    shutil.copyfile(WEIGHTS, weights)
    server = await llama_factory(weights=weights, alias="smol")
    configure(server.url)
    await document("models", "lock")
    assert (await document("models", "export", "smol"))["exit_code"] == 0
    changed_copy(weights)
    refused = await document("models", "export", "smol", "--force", "-o", "again.tar")
    assert (refused["exit_code"], refused["error"]["code"]) == (4, "model_blocked")
    assert list(Path.cwd().glob("again.tar*")) == []


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Fake]:
    """An Ollama with a store of one model, configured."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    made = Fake(models=[FakeModel("qwen2.5-coder:7b"), FakeModel("phi4:14b")])
    async with running(ollama.app(made), server_header=ollama.SERVER_HEADER) as url:
        made.models[0].digest = store_of(tmp_path / "store", "qwen2.5-coder:7b", b"GGUF weights")
        configure(url, security={"model_paths": [str(tmp_path / "store")]})
        yield made


async def test_a_model_of_a_store_comes_into_another_as_it_was(fake: Fake, tmp_path: Path) -> None:
    exported = await document("models", "export", "qwen2.5-coder:7b@fake0", "-o", str(tmp_path / "q.tar"))

    assert sorted(f["role"] for f in exported["files"]) == ["manifest", "other", "other", "weights"]
    assert exported["weights"] == hashlib.sha256(b"GGUF weights").hexdigest(), "as the lock file has it"
    to = tmp_path / "other"
    into = (str(tmp_path / "q.tar"), "--to", "ollama", "--folder", str(to))
    assert (await document("models", "import", *into))["exit_code"] == 0
    assert files(to) == files(tmp_path / "store")
    assert ollama_files("qwen2.5-coder:7b", fake.models[0].digest, [to]) is not None
    renamed = await document("models", "import", *into, "--name", "coder")
    assert (renamed["model"], renamed["already"]) == ("coder", False)
    assert ollama_files("coder", fake.models[0].digest, [to]) is not None


async def test_another_model_under_the_name_stays(fake: Fake, tmp_path: Path) -> None:
    await document("models", "export", "qwen2.5-coder:7b", "-o", str(tmp_path / "q.tar"))
    to = tmp_path / "other"
    mine = store_of(to, "qwen2.5-coder:7b", b"GGUF mine")
    into = (str(tmp_path / "q.tar"), "--to", "ollama", "--folder", str(to))
    refused = await document("models", "import", *into)
    assert refused["exit_code"] == 1
    assert "7b is there already, and is another" in refused["error"]["message"]
    assert ollama_files("qwen2.5-coder:7b", mine, [to]) is not None
    assert (await document("models", "import", *into, "--force"))["exit_code"] == 0
    assert ollama_files("qwen2.5-coder:7b", fake.models[0].digest, [to]) is not None


async def test_a_model_of_a_store_gets_names_for_other_servers(fake: Fake, tmp_path: Path) -> None:
    await document("models", "export", "qwen2.5-coder:7b", "-o", str(tmp_path / "q.tar"))
    into = (str(tmp_path / "q.tar"), "--to", "llamacpp", "--folder", str(tmp_path / "to"))
    found = await document("models", "import", *into)
    assert files(tmp_path / "to") == ["qwen2.5-coder-7b.gguf"]
    assert len(found["left_out"]) == 3
    assert (tmp_path / "to" / "qwen2.5-coder-7b.gguf").read_bytes() == b"GGUF weights"


async def test_a_model_that_is_asked_elsewhere_does_not_come_in(fake: Fake, tmp_path: Path) -> None:
    """Whoever signed it: its weights are there, and its configuration says that an Ollama is to dial."""
    store = tmp_path / "store"
    (manifest,) = (store / "manifests").rglob("7b")
    (config,) = (p for p in (store / "blobs").iterdir() if p.read_bytes() == b"{}")
    remote = json.dumps({"remote_host": "https://203.0.113.1", "remote_model": "big"}).encode()
    digest = hashlib.sha256(remote).hexdigest()
    (store / "blobs" / f"sha256-{digest}").write_bytes(remote)
    text = manifest.read_text().replace(config.name.removeprefix("sha256-"), digest)
    manifest.write_text(text)
    fake.models[0].digest = hashlib.sha256(text.encode()).hexdigest()
    assert (await document("models", "export", "qwen2.5-coder:7b", "-o", str(tmp_path / "q.tar")))["exit_code"] == 0
    into = ("--to", "ollama", "--folder", str(tmp_path / "to"))
    refused = await document("models", "import", str(tmp_path / "q.tar"), *into)
    assert (refused["exit_code"], (tmp_path / "to").exists()) == (1, False)
    assert "is a model that Ollama asks elsewhere" in refused["error"]["message"]


def test_an_export_replaces_no_pipe(weights: Path, tmp_path: Path) -> None:
    """As root it would put a file where /dev/null was."""
    os.mkfifo(tmp_path / "pipe")
    made = run("models", "export", "w", "--path", str(weights), "-o", str(tmp_path / "pipe"), "--force")
    assert (made.exit_code, "is there, and is no file" in made.stderr) == (2, True)
    assert (tmp_path / "pipe").is_fifo()


async def test_a_damaged_blob_is_not_exported(fake: Fake, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"GGUF weights").hexdigest()
    (tmp_path / "store" / "blobs" / f"sha256-{digest}").write_bytes(b"GGUF WEIGHTS")
    refused = await document("models", "export", "qwen2.5-coder:7b", "-o", str(tmp_path / "q.tar"))
    assert refused["exit_code"] == 1
    assert "is not what its name says" in refused["error"]["message"]
    assert list(tmp_path.glob("q.tar*")) == []


async def test_models_whose_files_are_not_here_are_told(fake: Fake) -> None:
    absent = await document("models", "export", "phi4:14b")
    assert absent["exit_code"] == 2
    assert "the files of phi4:14b at fake0 are not found on this machine" in absent["error"]["message"]
    assert (await document("models", "export", "gone"))["exit_code"] == 2


async def test_two_servers_with_other_files_under_one_name(llama_factory: LlamaFactory, tmp_path: Path) -> None:
    shutil.copyfile(WEIGHTS, tmp_path / "copy.gguf")
    first, second = await llama_factory(alias="smol"), await llama_factory(weights=tmp_path / "copy.gguf", alias="smol")
    configure(first.url, second.url)
    several = await document("models", "export", "smol")
    assert several["exit_code"] == 2
    assert several["error"]["hint"] == "name one: smol@fake0, smol@fake1"
    assert (await document("models", "export", "smol@fake1"))["files"][0]["name"] == "copy.gguf"


@pytest.mark.skipif(not real.OLLAMA, reason="no ollama: run `sh tests/get_servers.sh ollama DIR`")
async def test_between_two_real_ollamas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One's model is listed with the same digest by the other, which runs meanwhile, and answers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    first = await asyncio.to_thread(real.ollama)
    second = await asyncio.to_thread(real.ollama, empty)
    try:
        configure(first.url, security={"model_paths": [str(first.folder / "models")]})
        exported = await document("models", "export", "smol-tools:latest", "-o", str(tmp_path / "s.tar"))
        assert {f["role"] for f in exported["files"]} >= {"manifest", "weights", "other"}
        before = (await document("models", "lock"))["models"]
        configure(second.url)
        into = ("--to", "ollama", "--folder", str(empty))
        assert (await document("models", "import", str(tmp_path / "s.tar"), *into))["exit_code"] == 0
        listed = (await document("models"))["models"]
        assert [m["id"] for m in listed] == ["smol-tools:latest"]
        (locked,) = (await document("models", "lock"))["models"]
        assert locked["digest"] in {m["digest"] for m in before}
        asked = await run_beside("ask", "--model", "smol-tools:latest", "--max-tokens", "4", "hello")
        assert asked.exit_code == 0
    finally:
        first.stop()
        second.stop()


@pytest.mark.skipif(not real.OLLAMA, reason="no ollama: run `sh tests/get_servers.sh ollama DIR`")
async def test_a_gguf_is_made_a_model_by_a_real_ollama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = tmp_path / "store"
    store.mkdir()
    server = await asyncio.to_thread(real.ollama, store)
    try:
        configure(server.url)
        await document("models", "export", "smol", "--path", str(WEIGHTS), "-o", str(tmp_path))
        into = (str(tmp_path / NAME), "--to", "ollama", "--folder", str(store))
        elsewhere = tmp_path / "elsewhere"
        refused = await document("models", "import", *into[:3], "--folder", str(elsewhere))
        assert (refused["exit_code"], files(elsewhere)) == (1, []), "it does not read there"
        assert (await document("models", "import", *into, "--name", "tiny:1"))["exit_code"] == 0
        assert [m["id"] for m in (await document("models"))["models"]] == ["tiny:1"]
        assert (await run_beside("ask", "--model", "tiny:1", "--max-tokens", "4", "hello")).exit_code == 0
        again = await document("models", "import", *into, "--name", "tiny:1")
        assert (again["exit_code"], again["error"]["message"]) == (1, "fake0 has a model tiny:1 already")
        assert (await document("models", "import", *into, "--name", "tiny:1", "--force"))["exit_code"] == 0

    finally:
        server.stop()


def test_an_interrupted_import_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    """Ctrl-C while it is unpacked."""
    code = (
        "import os, signal, turnout.fleet.placing as p\n"
        "p._told_of_all = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "from turnout.cli import main; main()"
    )
    line = ["models", "import", str(archive), "--to", str(tmp_path / "to"), "--yes"]
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, timeout=60, check=False)
    assert (done.returncode, (tmp_path / "to").exists()) == (130, False)
    assert [e["error"] for e in events(tmp_path)][-1] == "interrupted"
