"""``turnout models lock`` and ``verify``, and what a lock file does to every question."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests import real
from tests.cli.conftest import configure, run_beside
from tests.fakes import ollama
from tests.fakes.base import Fake, FakeModel, running
from tests.fakes.llm import openai_app
from tests.servers import WEIGHTS, LlamaFactory
from turnout.guard.signing import Signer

SWAPPED = "e" * 64


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Fake]:
    """An Ollama with one model, configured; this user's own store is not looked at."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    made = Fake(models=[FakeModel("qwen2.5-coder:7b")])
    async with running(ollama.app(made), server_header=ollama.SERVER_HEADER) as url:
        configure(url)
        yield made


async def asked(*more: str) -> Result:
    return await run_beside("ask", *more, "write a function")


async def document(*args: str) -> dict[str, Any]:
    result = await run_beside(*args, "--json")
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found | {"exit_code": result.exit_code}


def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models.lock.json"


def events(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "data" / "audit.log").read_text().splitlines()]


async def test_without_a_lock_file_nothing_is_verified_and_nothing_is_said_of_it(fake: Fake, tmp_path: Path) -> None:
    fake.models[0].digest = SWAPPED
    result = await asked()
    assert (result.exit_code, result.stderr.count("lock")) == (0, 0)
    (model,) = (await document("models"))["models"]
    assert model["identity"] == {"state": None, "why": ""}
    assert not lock_file(tmp_path).exists()
    assert (await run_beside("models", "verify")).exit_code == 2


async def test_a_locked_model_serves_and_a_swapped_one_serves_nothing(fake: Fake, tmp_path: Path) -> None:
    locked = await document("models", "lock")
    assert locked["models"][0]["digest"] == fake.models[0].digest
    assert (await asked()).exit_code == 0
    assert (await document("models"))["models"][0]["identity"]["state"] == "verified"
    assert (await document("models", "verify"))["ok"] is True
    fake.models[0].digest = SWAPPED
    seen = len(fake.seen)
    for more in ((), ("--model", "qwen2.5-coder:7b"), ("--json",)):
        result = await asked(*more)
        assert result.exit_code == 4
        assert "its digest is eeeeeeeeeeeeeeee…, recorded was" in result.output + result.stderr
    assert len(fake.seen) == seen, "it was not asked for one token"
    verified = await document("models", "verify")
    assert (verified["ok"], verified["exit_code"], verified["models"][0]["state"]) == (False, 1, "mismatch")
    (services,) = (check for check in (await document("doctor"))["checks"] if check["name"] == "services")
    assert (services["state"], "is blocked: its digest is" in services["found"]) == ("fail", True)
    mismatches = [e for e in events(tmp_path) if e["event_type"] == "security:model_mismatch"]
    assert mismatches
    assert "qwen2.5-coder:7b @ fake0 is blocked" in mismatches[0]["error"]
    assert mismatches[0]["model"] == "qwen2.5-coder:7b"
    kept = lock_file(tmp_path).read_bytes()
    refused = await document("models", "lock")
    assert (refused["exit_code"], refused["error"]["code"]) == (4, "model_blocked")
    assert "qwen2.5-coder:7b @ fake0: its digest is eeee" in refused["error"]["message"]
    assert lock_file(tmp_path).read_bytes() == kept, "nobody blesses a swap without a word"
    relocked = await document("models", "lock", "--replace")
    assert relocked["changed"][0]["model"] == "qwen2.5-coder:7b @ fake0"
    assert (await asked()).exit_code == 0
    changes = [e["service"] for e in events(tmp_path) if e["event_type"] == "config"]
    recorded = "models lock: models recorded: 1"
    assert changes == [recorded, f"{recorded}, of which were others before: 1"]


async def test_the_error_for_an_exact_model_is_one_of_its_own(fake: Fake) -> None:
    await document("models", "lock")
    fake.models[0].digest = SWAPPED
    result = await asked("--model", "qwen2.5-coder:7b", "--json")
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "model_blocked"
    assert "turnout models lock" in error["hint"]


async def test_verification_can_be_switched_off(fake: Fake) -> None:
    await document("models", "lock")
    fake.models[0].digest = SWAPPED
    config = json.loads(Path("turnout.yaml").read_text())
    Path("turnout.yaml").write_text(json.dumps(config | {"security": {"verify_checksums": False}}))
    assert (await asked()).exit_code == 0


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _resign(path: Path) -> None:
    from turnout.guard.modelslock import read_lock, write_lock

    lock = read_lock(path, Signer(path.parent / "signing").public)
    assert lock is not None
    write_lock(path, lock, Signer(path.parent / "another"))


def _change(path: Path) -> None:
    path.write_text(path.read_text().replace(path.read_text().split('"digest": "')[1][:64], SWAPPED))


def _add(path: Path) -> None:
    path.write_text(path.read_text().replace('"format"', '"also": 1,\n "format"'))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "signed by another key": (_resign, "another key has signed it"),
    "changed": (_change, "was changed, or another key"),
    "with what nobody signed": (_add, "is none, or was cut off"),
    "truncated": (_truncate, "is none, or was cut off"),
    "foreign": (lambda path: path.write_text('{"lockfileVersion": 3}'), "is none, or was cut off"),
    "of another version": (
        lambda path: path.write_text(path.read_text().replace("lock-1", "lock-9")),
        "a format that this version does not know",
    ),
    "empty": (lambda path: path.write_text(""), "is empty"),
    "no JSON": (lambda path: path.write_bytes(b"\x00\xff"), "is none, or was cut off"),
    "deep": (lambda path: path.write_text("[" * 100_000), "is none, or was cut off"),
    "for others to write": (lambda path: path.chmod(0o622), "may be written by others"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_lock_file_that_cannot_be_trusted_lets_nothing_serve(fake: Fake, tmp_path: Path, how: str) -> None:
    await document("models", "lock")
    breaks, says = BROKEN[how]
    breaks(lock_file(tmp_path))
    result = await asked()
    assert (result.exit_code, fake.seen) == (4, [])
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert says in lines[0]
    assert [e["event_type"] for e in events(tmp_path)].count("security:models_lock") == 1
    assert (await run_beside("models", "verify")).exit_code == 1
    if how != "a folder":
        assert (await run_beside("models", "lock")).exit_code == 1, "nor is it replaced without a word"
        assert (await run_beside("models", "lock", "--replace")).exit_code == 0
        assert (await asked()).exit_code == 0


async def test_a_lock_file_that_the_configuration_names_must_be_there(fake: Fake) -> None:
    config = json.loads(Path("turnout.yaml").read_text())
    Path("turnout.yaml").write_text(json.dumps(config | {"security": {"models_lock": "site/models.lock.json"}}))
    result = await asked()
    assert result.exit_code == 4
    assert "is not there; `turnout models lock` makes it" in result.stderr
    (Path("site")).mkdir()
    assert (await run_beside("models", "lock")).exit_code == 0
    assert Path("site/models.lock.json").is_file()
    assert (await asked()).exit_code == 0


async def test_policy_decides_whether_what_cannot_be_verified_may_serve(tmp_path: Path) -> None:
    app = openai_app(("hidden",))
    async with running(app) as url:
        configure(url)
        assert (await document("models", "lock"))["models"][0]["weights"] == ""
        assert (await document("models"))["models"][0]["identity"]["state"] == "unverified"
        assert (await asked()).exit_code == 0
        configure(url, security={"unverified_models": "refuse"})
        result = await asked()
        assert result.exit_code == 4
        assert "security.unverified_models is refuse" in result.stderr
        assert len(app.state.fake.seen) == 1
        verified = await document("models", "verify")
        assert (verified["models"][0]["state"], verified["exit_code"]) == ("unverified", 1)


async def test_a_model_that_is_not_in_the_lock_file_is_unverified(fake: Fake) -> None:
    await document("models", "lock")
    fake.models.append(FakeModel("phi4:14b", digest="a" * 64))
    states = {m["id"]: m["identity"]["state"] for m in (await document("models"))["models"]}
    assert states == {"qwen2.5-coder:7b": "verified", "phi4:14b": "unverified"}


def changed_copy(path: Path) -> None:
    """The same file but for a weight near its end, under a new inode as an update makes it."""
    data = bytearray(WEIGHTS.read_bytes())
    data[-1000] ^= 0xFF
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


async def test_a_file_replaced_under_the_real_server_is_not_served(llama_factory: LlamaFactory, tmp_path: Path) -> None:
    weights = tmp_path / "weights.gguf"
    shutil.copyfile(WEIGHTS, weights)
    server = await llama_factory(weights=weights, alias="smol")
    configure(server.url)
    (locked,) = (await document("models", "lock"))["models"]
    assert locked["weights"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert locked["path"] == str(weights)
    assert locked["parameters"] > 100e6
    assert locked["vocabulary"] > 10_000
    assert len(locked["template"]) == 64
    assert (await asked("--max-tokens", "4")).exit_code == 0
    assert (await document("models"))["models"][0]["identity"]["state"] == "verified"
    port = int(server.url.rpartition(":")[2])
    server.stop()
    changed_copy(weights)
    await llama_factory(weights=weights, alias="smol", port=port)
    for more in ((), ("--model", "smol")):
        result = await asked(*more, "--max-tokens", "4")
        assert (result.exit_code, result.stdout) == (4, "")
        assert "its weights are" in result.stderr
    verified = await document("models", "verify")
    assert verified["models"][0]["state"] == "mismatch"


async def test_verify_reads_every_file_anew(llama_factory: LlamaFactory, tmp_path: Path) -> None:
    """What changed under a file system that tells no time of it is found."""
    weights = tmp_path / "weights.gguf"
    shutil.copyfile(WEIGHTS, weights)
    server = await llama_factory(weights=weights, alias="smol")
    configure(server.url)
    await document("models", "lock")
    cache = tmp_path / "data" / "model-digests.json"
    kept = json.loads(cache.read_text())
    changed_copy(weights)
    found = weights.stat()
    stamp = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    cache.write_text(json.dumps([[stamp, kept[-1][1]]]))
    assert (await document("models"))["models"][0]["identity"]["state"] == "verified", "it knows the file by its times"
    assert (await document("models", "verify"))["models"][0]["state"] == "mismatch"


def store_of(folder: Path, name: str, gguf: bytes) -> str:
    """An Ollama store with one model; the digest of its manifest."""
    blobs, (model, tag) = folder / "blobs", name.split(":")
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": blob(gguf), "size": len(gguf)}]
    layers.append({"mediaType": "application/vnd.ollama.image.template", "digest": blob(b"{{ .Prompt }}"), "size": 13})
    data = json.dumps({"schemaVersion": 2, "config": {"digest": blob(b"{}"), "size": 2}, "layers": layers}).encode()
    manifest = folder / "manifests" / "registry.example" / "library" / model / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


async def test_a_damaged_blob_behind_an_unchanged_manifest_is_found(fake: Fake, tmp_path: Path) -> None:
    store = tmp_path / "store"
    fake.models[0].digest = store_of(store, "qwen2.5-coder:7b", b"GGUF weights")
    config = json.loads(Path("turnout.yaml").read_text())
    Path("turnout.yaml").write_text(json.dumps(config | {"security": {"model_paths": [str(store)]}}))
    (locked,) = (await document("models", "lock"))["models"]
    assert locked["weights"] == hashlib.sha256(b"GGUF weights").hexdigest()
    assert len(locked["files"]) == 4
    assert (await asked()).exit_code == 0
    (store / "blobs" / f"sha256-{locked['weights']}").write_bytes(b"GGUF WEIGHTS")
    result = await asked()
    assert result.exit_code == 4
    assert "is not what its name says" in result.stderr


async def test_the_same_weights_are_known_under_every_name(
    fake: Fake, llama_factory: LlamaFactory, tmp_path: Path
) -> None:
    """An Ollama's blob is the file that llama.cpp has under a name of its own."""
    store = tmp_path / "store"
    fake.models[0].digest = store_of(store, "qwen2.5-coder:7b", WEIGHTS.read_bytes())
    fake.models.append(FakeModel("other:latest", digest="a" * 64))
    server = await llama_factory(alias="smol")
    config = json.loads(Path("turnout.yaml").read_text())
    configure(config["custom_endpoints"][0]["endpoint"], server.url)
    assert (await run_beside("models", "lock", "--path", str(store))).exit_code == 0
    same = {m["id"]: m["same_as"] for m in (await document("models"))["models"]}
    assert same == {
        "qwen2.5-coder:7b": ["smol @ fake1"],
        "other:latest": [],
        "smol": ["qwen2.5-coder:7b @ fake0"],
    }
    shown = (await run_beside("models")).stdout.splitlines()
    assert shown[0].endswith("identity\tsame as")
    assert any(line.startswith("smol\t") and line.endswith("verified\tqwen2.5-coder:7b @ fake0") for line in shown)


async def test_locked_weights_are_verified_under_a_new_name(llama_factory: LlamaFactory) -> None:
    first = await llama_factory(alias="smol")
    configure(first.url)
    await document("models", "lock")
    second = await llama_factory(alias="renamed")
    configure(second.url, security={"unverified_models": "refuse"})
    assert (await asked("--max-tokens", "2")).exit_code == 0
    verified = await document("models", "verify")
    assert [(m["id"], m["state"]) for m in verified["models"]] == [("renamed", "verified"), ("smol", "absent")]


async def test_records_of_a_server_that_does_not_answer_are_kept(fake: Fake) -> None:
    await document("models", "lock")
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(running(openai_app(("hidden",))))
        configure(other)
        relocked = await document("models", "lock")
    assert ([m["id"] for m in relocked["models"]], relocked["kept"]) == (["hidden"], 1)


async def test_nothing_is_recorded_where_nothing_answers(tmp_path: Path) -> None:
    configure("http://127.0.0.1:9")
    assert (await run_beside("models", "lock")).exit_code == 3
    assert not lock_file(tmp_path).exists()


async def test_the_lock_file_is_readable_by_its_owner_alone(fake: Fake, tmp_path: Path) -> None:
    await document("models", "lock")
    assert lock_file(tmp_path).stat().st_mode & 0o777 == 0o600


async def test_the_air_gap_checklist_knows_the_lock_file(fake: Fake, tmp_path: Path) -> None:
    lines = ("SHA-256 checksums generated for all models", "checksums stored in a tamper-evident place")
    lines = (*lines, "checksums verified before a model is loaded")

    async def judged() -> list[tuple[str, str]]:
        found = {line["line"]: line for line in (await document("doctor", "--air-gap"))["lines"]}
        return [(found[line]["state"], found[line]["evidence"]) for line in lines]

    assert {state for state, _ in await judged()} == {"fail"}
    await document("models", "lock")
    assert {state for state, _ in await judged()} == {"pass"}
    fake.models.append(FakeModel("phi4:14b", digest="a" * 64))
    generated, stored, verified = await judged()
    assert (generated[0], stored[0], verified[0]) == ("fail", "pass", "fail")
    assert "phi4:14b @ fake0" in verified[1]
    fake.models.pop()
    fake.models[0].digest = SWAPPED
    assert (await judged())[2] == ("fail", "not the recorded weights: qwen2.5-coder:7b @ fake0")
    lock_file(tmp_path).write_text("{}")
    assert [state for state, _ in await judged()] == ["fail"] * 3


def posted(url: str, **body: object) -> None:
    urllib.request.urlopen(url, json.dumps(body).encode(), timeout=30.0).close()


@pytest.mark.skipif(not real.OLLAMA, reason="no ollama: run `sh tests/get_servers.sh ollama DIR`")
async def test_a_real_ollama_is_verified_by_its_manifests_and_blobs(
    llama_factory: LlamaFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Copying another model over a name is a swap; the blob is the file that llama.cpp has."""
    monkeypatch.setenv("HOME", str(tmp_path))
    server, beside = await asyncio.to_thread(real.ollama), await llama_factory(alias="file")
    try:
        configure(server.url, beside.url, security={"model_paths": [str(server.folder / "models")]})
        locked = {m["id"]: m for m in (await document("models", "lock"))["models"]}
        summed = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        assert {locked[name]["weights"] for name in ("smol:latest", "smol-tools:latest", "file")} == {summed}
        assert {f["name"][:7] for f in locked["smol:latest"]["files"]} == {"latest", "sha256-"}
        same = {m["id"]: m["same_as"] for m in (await document("models"))["models"]}
        assert sorted(same["file"]) == ["smol-tools:latest @ fake0", "smol:latest @ fake0"]
        verified = await document("models", "verify")
        assert {m["state"] for m in verified["models"]} == {"verified"}
        await asyncio.to_thread(posted, f"{server.url}/api/copy", source="smol-tools", destination="smol")
        states = {m["id"]: m["state"] for m in (await document("models", "verify"))["models"]}
        assert states == {"smol:latest": "mismatch", "smol-tools:latest": "verified", "file": "verified"}
        assert (await asked("--model", "smol:latest", "--max-tokens", "2")).exit_code == 4
        assert (await asked("--model", "smol-tools:latest", "--max-tokens", "2")).exit_code == 0
    finally:
        server.stop()
