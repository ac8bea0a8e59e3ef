"""The real agents: how each is configured and started without a terminal, and the words in which it wants its work.

Facts: recorded from the versions that ``tests/get_agents.sh`` brings. What an agent would fetch or report is switched
off where it has a switch; it still runs only where nothing but loopback exists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DIR = os.environ.get("TURNOUT_TEST_AGENTS", "")
TASK = "Create the file hello.py, which prints hello."
FILE, TEXT = "hello.py", 'print("hello")\n'
KEY = "sk-local"


@dataclass(frozen=True)
class Place:
    """Where an agent runs, and what it is told of the gateway.

    Attributes:
        home: its home, empty at first.
        project: where it works, a Git repository.
        url: the gateway's root.
        window: tokens.
        patience: seconds that it waits for a byte; 0 for its own.
    """

    home: Path
    project: Path
    url: str
    model: str
    window: int
    patience: int = 0

    def write(self, path: str, value: object) -> Path:
        """A file below the home: text, or JSON."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
        return file


@dataclass(frozen=True)
class Start:
    """A program and how it is set up, with its environment beside HOME and PATH. ``before``: what must run first."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agent:
    """A real agent.

    Attributes:
        name: as ``tests/get_agents.sh`` calls it.
        program: its file, below the folder of all agents.
        path: what it asks the gateway.
        prepare: writes its files, and says how it is started; ``turnout launch`` does the same in its own way.
        call: the tool by which it writes the file of the task, and its arguments; None where text does it.
        arguments: which tell it the task.
        too_long: what it says, in lower case, when its first question exceeds the window.
        patience: the least number of seconds that it can be told to wait for a sign of life; 0 where it cannot be told.
        compacts: it goes on with less when a conversation has become too long; else it says ``too_long``.
        resumes: it asks again when a stream breaks off with an error; else it stops, and says which.
    """

    name: str
    program: str
    path: str
    prepare: Callable[[Place], Start]
    call: Callable[[Place], tuple[str, dict[str, object]]] | None
    arguments: tuple[str, ...]
    too_long: str
    patience: int = 3
    compacts: bool = False
    resumes: bool = True

    @property
    def file(self) -> Path:
        return Path(DIR) / self.name / self.program

    @property
    def missing(self) -> str:
        """Why it cannot be run here, "" when it can."""
        if DIR and self.file.exists():
            return ""
        return f"no {self.name} here: run `sh tests/get_agents.sh {self.name} DIR`, which names TURNOUT_TEST_AGENTS"


def _aider(place: Place) -> Start:
    off = ("check-update", "show-model-warnings", "detect-urls")
    patience = ("--timeout", str(place.patience)) if place.patience else ()
    command = (
        "aider",
        "--model",
        f"openai/{place.model}",
        "--analytics-disable",
        *(f"--no-{n}" for n in off),
        *patience,
    )
    env = {"OPENAI_API_BASE": f"{place.url}/v1", "OPENAI_API_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return Start(command, env)


def _claude(place: Place) -> Start:
    env = {
        "ANTHROPIC_BASE_URL": place.url,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_MODEL": place.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": place.model,
        "ANTHROPIC_SMALL_FAST_MODEL": place.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(place.window),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "4096",
    }
    if place.patience:
        env["API_TIMEOUT_MS"] = str(place.patience * 1000)
    return Start(("claude",), env)


def _cline(place: Place) -> Start:
    login = ("cline", "auth", "-p", "openai-compatible", "-k", KEY, "-m", place.model, "-b", f"{place.url}/v1")
    return Start(("cline", "-m", place.model), {"CLINE_TELEMETRY_DISABLED": "1"}, login)


def _codex(place: Place) -> Start:
    patience = f"stream_idle_timeout_ms={place.patience * 1000}\n" if place.patience else ""
    place.write(
        ".codex/config.toml",
        f'model="{place.model}"\nmodel_provider="gw"\nmodel_context_window={place.window}\n'
        f"model_auto_compact_token_limit={place.window * 9 // 10}\ncheck_for_update_on_startup=false\n"
        "[analytics]\nenabled=false\n[features]\nplugins=false\napps=false\n"
        f'[model_providers.gw]\nname="gw"\nbase_url="{place.url}/v1"\nwire_api="responses"\nenv_key="GW_KEY"\n{patience}',
    )
    return Start(("codex",), {"GW_KEY": KEY})


def _continue(place: Place) -> Start:
    model = {
        "name": "local",
        "provider": "openai",
        "model": place.model,
        "apiBase": f"{place.url}/v1",
        "apiKey": KEY,
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"],
        "defaultCompletionOptions": {"contextLength": place.window, "maxTokens": 2048},
    }
    if place.patience:
        model["requestOptions"] = {"timeout": place.patience * 1000}
    # JSON is YAML.
    config = place.write("config.yaml", {"name": "local", "version": "1.0.0", "schema": "v1", "models": [model]})
    return Start(("cn", "--config", str(config)), {"CONTINUE_TELEMETRY_ENABLED": "0"})


def _opencode(place: Place) -> Start:
    options: dict[str, object] = {"baseURL": f"{place.url}/v1", "apiKey": KEY}
    if place.patience:
        options |= {"headerTimeout": place.patience * 1000, "chunkTimeout": place.patience * 1000}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "local",
        "options": options,
        "models": {place.model: {"name": "local", "limit": {"context": place.window, "output": 4096}}},
    }
    place.write(
        ".config/opencode/opencode.json",
        {
            "provider": {"gw": provider},
            "model": f"gw/{place.model}",
            "small_model": f"gw/{place.model}",
            "enabled_providers": ["gw"],
            "autoupdate": False,
            "share": "disabled",
            "permission": {"edit": "allow", "bash": "allow", "webfetch": "deny"},
        },
    )
    off = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    # It works in $PWD, whatever its working directory is.
    env = {f"OPENCODE_DISABLE_{name}": "1" for name in off} | {"PWD": str(place.project)}
    return Start(("opencode",), env)


def _qwen(place: Place) -> Start:
    place.write(
        ".qwen/settings.json",
        {
            "security": {"auth": {"selectedType": "openai"}},
            "privacy": {"usageStatisticsEnabled": False},
            "general": {"enableAutoUpdate": False},
        },
    )
    env = {"OPENAI_BASE_URL": f"{place.url}/v1", "OPENAI_API_KEY": KEY, "OPENAI_MODEL": place.model}
    if place.patience:
        told = str(place.patience * 1000)
        env |= {"QWEN_CODE_API_TIMEOUT_MS": told, "QWEN_STREAM_IDLE_TIMEOUT_MS": told}
    return Start(("qwen",), env)


def _path(place: Place) -> str:
    return str(place.project / FILE)


AGENTS = (
    Agent(
        "aider",
        "bin/aider",
        "/v1/chat/completions",
        _aider,
        None,
        ("--yes-always", "--no-gitignore", "--message", TASK, FILE),
        "has hit a token limit",
    ),
    Agent(
        "claude",
        "node_modules/.bin/claude",
        "/v1/messages",
        _claude,
        lambda place: ("Write", {"file_path": _path(place), "content": TEXT}),
        ("-p", TASK, "--dangerously-skip-permissions"),
        "prompt is too long",
    ),
    Agent(
        "cline",
        "node_modules/.bin/cline",
        "/v1/chat/completions",
        _cline,
        lambda place: ("editor", {"path": _path(place), "new_text": TEXT}),
        (TASK,),
        "exceeds the model's context window",
        patience=0,
        resumes=False,
    ),
    Agent(
        "codex",
        "node_modules/.bin/codex",
        "/v1/responses",
        _codex,
        lambda _: ("exec_command", {"cmd": f"printf '%s\\n' '{TEXT.strip()}' > {FILE}"}),
        ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK),
        "ran out of room in the model's context window",
    ),
    Agent(
        "continue",
        "node_modules/.bin/cn",
        "/v1/chat/completions",
        _continue,
        lambda place: ("Write", {"filepath": _path(place), "content": TEXT}),
        ("--auto", "-p", TASK),
        "context length exceeded",
    ),
    Agent(
        "opencode",
        "node_modules/.bin/opencode",
        "/v1/chat/completions",
        _opencode,
        lambda place: ("write", {"filePath": _path(place), "content": TEXT}),
        ("run", TASK),
        "maximum context length is",
        compacts=True,
    ),
    Agent(
        "qwen",
        "node_modules/.bin/qwen",
        "/v1/chat/completions",
        _qwen,
        lambda place: ("write_file", {"file_path": _path(place), "content": TEXT}),
        ("-y", "-p", TASK),
        "maximum context length is",
        compacts=True,
    ),
)
