"""Real servers that somebody brought: ``tests/get_servers.sh`` does. Each runs in a process group of its own.

TURNOUT_TEST_LLAMA_SERVER, TURNOUT_TEST_OLLAMA (or ``ollama`` on the PATH), TURNOUT_TEST_DASLLAMA, TURNOUT_TEST_VLLM,
TURNOUT_TEST_MLX and TURNOUT_TEST_OPENWEBUI name the programs; TURNOUT_TEST_GGUF_Q8 the weights that dasllama can read,
beside which it puts a cache of its own; TURNOUT_TEST_SAFETENSORS the folder of weights that vLLM and MLX-LM read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.servers import WEIGHTS, HeldWeights, free_port

LLAMA_SERVER = os.environ.get("TURNOUT_TEST_LLAMA_SERVER", "")
OLLAMA = os.environ.get("TURNOUT_TEST_OLLAMA") or shutil.which("ollama") or ""
DASLLAMA = os.environ.get("TURNOUT_TEST_DASLLAMA", "")
OPENWEBUI = os.environ.get("TURNOUT_TEST_OPENWEBUI", "")
Q8 = os.environ.get("TURNOUT_TEST_GGUF_Q8", "")
VLLM = os.environ.get("TURNOUT_TEST_VLLM", "")
MLX = os.environ.get("TURNOUT_TEST_MLX", "")
SAFETENSORS = os.environ.get("TURNOUT_TEST_SAFETENSORS", "")
START_SECONDS = 60.0
VLLM_START_SECONDS = 300.0
EXAMPLES = Path(__file__).parent / "recordings" / "ollama" / "Modelfile.tools"


class RealServer:
    """A running server with a folder of its own. ``stop`` must be called, also after ``kill``.

    Attributes:
        key: what it wants to be shown, "" when it takes none or was told one.
        behind: the server that it passes requests on to, which ends with it.
    """

    def __init__(self, command: Sequence[str], port: int, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.url, self.folder = f"http://127.0.0.1:{port}", folder
        self.held: HeldWeights | None = None
        self.patience = 0.0  # seconds that it is given to end by itself, and so to put away what its children share
        self.key = ""
        self.behind: RealServer | None = None
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=folder,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What it has said until now."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def child(self, name: str) -> int:
        """The process id of the child whose command line begins so."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(name.encode()):
                return int(child)
        raise LookupError(f"{pid} has no child {name}")

    @property
    def worked(self) -> int:
        """Clock ticks that it has computed until now, without its children."""
        times = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return int(times[11]) + int(times[12])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to the children that it started."""
        os.killpg(self.process.pid, number)

    def ready(self, path: str, seconds: float = START_SECONDS) -> None:
        """Wait until ``path`` answers 200."""
        end = time.monotonic() + seconds
        while self.status(path) != 200:
            if self.process.poll() is not None or time.monotonic() > end:
                said = self.log[-2000:]
                self.stop()
                pytest.fail(f"{self.process.args!r} did not start: {said}", pytrace=False)
            time.sleep(0.05)

    def status(self, path: str) -> int:
        """The status of a GET, 0 when nothing listens yet."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5.0) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def stop(self) -> None:
        """End it and all of its children. Safe to call twice."""
        with contextlib.suppress(ProcessLookupError):
            self._ask_to_end()
            self.signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.held is not None:
            self.held.remove()
            self.held = None
        if self.behind is not None:
            self.behind.stop()

    def _ask_to_end(self) -> None:
        """Raises ProcessLookupError when all have ended."""
        end = time.monotonic() + self.patience
        if self.patience:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        while time.monotonic() < end:
            self.process.poll()
            os.killpg(self.process.pid, 0)
            time.sleep(0.1)


def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="turnout-real-"))


def llama_server(*options: str, key: str = "", hold: bool = False, port: int = 0) -> RealServer:
    """``llama-server`` with the test weights as ``smol``; with ``hold`` it goes on loading until it is stopped."""
    held = HeldWeights() if hold else None
    port = port or free_port()
    keyed = ("--api-key", key) if key else ()
    weights = str(held.path if held is not None else WEIGHTS)
    command = [LLAMA_SERVER, "-m", weights, "-a", "smol", "-t", "1", "--host", "127.0.0.1", "--port", str(port)]
    server = RealServer([*command, *options, *keyed], port, folder())
    server.held = held
    while hold and server.status("/health") != 503:
        time.sleep(0.05)
    if not hold:
        server.ready("/health")
    return server


def llama_router(key: str = "") -> RealServer:
    """``llama-server`` as a router of two models, of which it keeps one loaded."""
    port, place = free_port(), folder()
    shared = "[*]\nc = 1024\nthreads = 1\nno-warmup = true\nembeddings = true\npooling = mean\n"
    preset = place / "preset.ini"
    preset.write_text(shared + "".join(f"\n[{name}]\nmodel = {WEIGHTS}\n" for name in ("other", "smol")), "utf-8")
    command = [LLAMA_SERVER, "--models-preset", str(preset), "--models-max", "1", "--host", "127.0.0.1"]
    keyed = ("--api-key", key) if key else ()
    server = RealServer([*command, "--port", str(port), *keyed], port, place)
    server.ready("/health")
    return server


def llama_of_folder(models: Path) -> RealServer:
    """``llama-server`` as a router of what it finds in a folder."""
    port = free_port()
    command = [LLAMA_SERVER, "--models-dir", str(models), "--models-max", "1", "-c", "1024", "-t", "1", "--no-warmup"]
    server = RealServer([*command, "--host", "127.0.0.1", "--port", str(port)], port, folder())
    server.patience = 10.0
    server.ready("/health")
    return server


def ollama(models: Path | None = None) -> RealServer:
    """``ollama serve`` with the store ``models``, or with two models of the test weights and another machine's stub."""
    port, place = free_port(), folder()
    store = models or place / "models"
    env = {
        "HOME": str(place),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_MODELS": str(store),
        "OLLAMA_NOPRUNE": "1",  # two servers may share the store
    }
    server = RealServer([OLLAMA, "serve"], port, place, env)
    server.ready("/api/version")
    if models is None:
        plain = f"FROM {WEIGHTS}\nPARAMETER num_thread 1\n"
        calling = "\n".join([f"FROM {WEIGHTS}", *EXAMPLES.read_text("utf-8").splitlines()[1:]])
        for name, text in (("smol", plain), ("smol-tools", calling)):
            file = place / f"Modelfile.{name}"
            file.write_text(text, "utf-8")
            command = [OLLAMA, "create", name, "-f", str(file)]
            subprocess.run(command, env={**os.environ, **env}, check=True, capture_output=True)
        far = b'{"model":"far","from":"big:120b","remote_host":"http://127.0.0.1:9","stream":false}'
        urllib.request.urlopen(f"{server.url}/api/create", far, timeout=30.0).close()
    return server


def dasllama() -> RealServer:
    """``dasllama-server``, an engine of its own that speaks the OpenAI protocol."""
    port = free_port()
    command = [DASLLAMA, "-m", Q8, "-p", str(port), "--host", "127.0.0.1", "--threads", "1", "--ctx", "2048"]
    server = RealServer(command, port, folder())
    server.ready("/v1/models")
    return server


def vllm(*options: str, key: str = "") -> RealServer:
    """``vllm serve`` on the CPU with the test weights as ``smol``. It outlives its engine, as it is told to."""
    port, place = free_port(), folder()
    env = {
        "HOME": str(place),
        "TMPDIR": str(place),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1",
    }
    command = [VLLM, "serve", SAFETENSORS, "--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port)]
    small = ("--max-model-len", "2048", "--dtype", "bfloat16", "--enforce-eager")
    keyed = ("--api-key", key) if key else ()
    server = RealServer([*command, *small, *options, *keyed], port, place, env)
    server.patience = 20.0
    server.ready("/health", VLLM_START_SECONDS)
    return server


def mlx() -> RealServer:
    """``mlx_lm server`` with the test weights, an empty cache directory and no hub."""
    port, place = free_port(), folder()
    (place / ".cache" / "huggingface" / "hub").mkdir(parents=True)
    command = [MLX, "server", "--model", SAFETENSORS, "--host", "127.0.0.1", "--port", str(port)]
    server = RealServer(command, port, place, {"HOME": str(place), "HF_HUB_OFFLINE": "1"})
    server.ready("/health")
    return server


# Open WebUI with every way out that it has by itself closed (facts/backends.md 3.5).
_QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "ENABLE_OLLAMA_API": "False",
    "ENABLE_VERSION_UPDATE_CHECK": "False",
    "HF_HUB_OFFLINE": "1",
    "OFFLINE_MODE": "True",
    "SCARF_NO_ANALYTICS": "True",
}


def openwebui(behind: RealServer, port: int = 0, **connection: str) -> RealServer:
    """Open WebUI in front of a server that speaks the OpenAI format; ``key`` is its administrator's session token.

    Args:
        connection: what its administrator says of the connection; ``connection_type="local"`` for one.
    """
    port, place = port or free_port(), folder()
    env = _QUIET | {
        "HOME": str(place),
        "DATA_DIR": str(place / "data"),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "of the tests alone, thirty-two bytes and more",
        "OPENAI_API_BASE_URL": f"{behind.url}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_API_CONFIGS": json.dumps({"0": connection}),
    }
    server = RealServer([OPENWEBUI, "serve", "--host", "127.0.0.1", "--port", str(port)], port, place, env)
    server.behind = behind
    server.ready("/ready", 240.0)
    # Without accounts everybody is its administrator, and is handed a session all the same.
    asked = urllib.request.Request(f"{server.url}/api/v1/auths/signin", b'{"email":"","password":""}')
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked, timeout=30.0) as reply:
        server.key = json.load(reply)["token"]
    return server
