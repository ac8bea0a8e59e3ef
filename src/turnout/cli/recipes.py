"""What each coding agent must be told to use the gateway, and nothing else (facts/agents.md section 2). Pure.

Every way out of the network that an agent has a switch for is switched off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from turnout.errors import UsageError

NO_KEY = "local"  # agents insist on some key; a gateway without keys looks at none
KEY_VARIABLE = "TURNOUT_KEY"
# The window that an agent is told which assumes far too much when it is told none.
CAUTIOUS_WINDOW = 32_768
_ANSWER_SHARE, _LONGEST_ANSWER = 4, 8192
_COMPACT_AT = 0.8


@dataclass(frozen=True, slots=True)
class Target:
    """What an agent is to use: the gateway's address without path, a key, a model, its window (0: not known)."""

    url: str
    key: str
    model: str
    window: int

    @property
    def keyed(self) -> bool:
        """The gateway looks at keys: they are then read from the environment where an agent can, not from its file."""
        return self.key != NO_KEY

    @property
    def answer(self) -> int:
        """Tokens that an answer may have: a quarter of the window."""
        return min(self.window // _ANSWER_SHARE, _LONGEST_ANSWER)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file in the agent's directory. ``seed``: only for a directory of our own, and only when it is not there."""

    name: str
    text: str
    seed: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an agent is set up.

    Attributes:
        env: variables.
        unset: variables that would lead it elsewhere.
        folder: where it looks for ``files``, ``~`` for the home directory.
        files: what it reads there.
        own: variables that give it a directory of its own, and what in that directory they name; "" for itself.
        own_folder: where in that directory it looks for ``files``.
        command: the program and what it is always told; ``{folder}`` stands for the place of ``files``.
        notes: what a person should know, one line each.
    """

    env: Mapping[str, str]
    unset: tuple[str, ...] = ()
    folder: str = ""
    files: tuple[ConfigFile, ...] = ()
    own: Mapping[str, str] = field(default_factory=dict)
    own_folder: str = ""
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that can be set up.

    Attributes:
        name: as it is told everywhere.
        wire: the API that it speaks.
        window: tokens of context below which it is of no use, 0 where that depends on the program.
        install: the command that installs it from an index; "" for a library.
        make: its recipe.
    """

    name: str
    wire: str
    window: int
    install: str
    make: Callable[[Target], Recipe]


def agent_called(name: str) -> Agent:
    """The agent that is meant.

    Raises:
        UsageError: there is none, or it speaks an API that the gateway has not.
    """
    known = {agent.name: agent for agent in AGENTS}
    wanted = _ALIASES.get(name.lower(), name.lower())
    if wanted == "gemini-cli":
        hint = "qwen-code is of the same kind and speaks OpenAI's"
        raise UsageError("Gemini CLI speaks Google's own API alone, which the gateway does not have", hint=hint)
    if wanted not in known:
        raise UsageError(f"no agent is called {name[:40]!r}", hint=f"there are: {', '.join(known)}")
    return known[wanted]


def _aider(target: Target) -> Recipe:
    metadata = ".aider.model.metadata.json"
    env = {
        "OPENAI_API_BASE": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "AIDER_MODEL": f"openai/{target.model}",
        "AIDER_CHECK_UPDATE": "false",
        "AIDER_SHOW_RELEASE_NOTES": "false",
        "AIDER_ANALYTICS": "false",
        "AIDER_SHOW_MODEL_WARNINGS": "false",
        "AIDER_DETECT_URLS": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    known = {
        "max_input_tokens": target.window,
        "max_output_tokens": target.answer,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    files = (ConfigFile(metadata, _json({f"openai/{target.model}": known})),) if target.window else ()
    return Recipe(
        env,
        folder="~",
        files=files,
        own={"AIDER_MODEL_METADATA_FILE": metadata} if files else {},
        command=("aider",),
        notes=("it exits with 0 also when it could not do its work",),
    )


def _claude_code(target: Target) -> Recipe:
    window = target.window or CAUTIOUS_WINDOW
    env = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.key,
        "ANTHROPIC_MODEL": target.model,
        "ANTHROPIC_SMALL_FAST_MODEL": target.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": target.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": target.model,
        "CLAUDE_CODE_SUBAGENT_MODEL": target.model,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(window),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(min(window // _ANSWER_SHARE, _LONGEST_ANSWER)),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }
    guessed = f"the window is not known, and it would assume 1,000,000 tokens: it is told {CAUTIOUS_WINDOW}"
    clouds = ("BEDROCK", "VERTEX", "FOUNDRY")
    return Recipe(
        env,
        unset=("ANTHROPIC_API_KEY", *(f"CLAUDE_CODE_USE_{cloud}" for cloud in clouds)),
        files=(ConfigFile(".claude.json", _json({"hasCompletedOnboarding": True}), seed=True),),
        own={"CLAUDE_CONFIG_DIR": ""},
        command=("claude",),
        notes=(
            *(() if target.window else (guessed,)),
            "with --bare its prompt has 920 tokens instead of 11,400",
        ),
    )


def _codex(target: Target) -> Recipe:
    lines = [
        f"model = {_text(target.model)}",
        'model_provider = "turnout"',
        *(
            (
                f"model_context_window = {target.window}",
                f"model_auto_compact_token_limit = {int(target.window * _COMPACT_AT)}",
            )
            if target.window
            else ("# model_context_window = ...  # not known",)
        ),
        "check_for_update_on_startup = false",
        'web_search = "disabled"',
        "",
        "[analytics]",
        "enabled = false",
        "",
        "[features]",
        "plugins = false",
        "apps = false",
        "",
        "[model_providers.turnout]",
        'name = "Turnout"',
        f"base_url = {_text(target.url + '/v1')}",
        'wire_api = "responses"',
        *((f'env_key = "{KEY_VARIABLE}"',) if target.keyed else ()),
    ]
    return Recipe(
        {KEY_VARIABLE: target.key} if target.keyed else {},
        folder="~/.codex",
        files=(ConfigFile("config.toml", "\n".join(lines) + "\n"),),
        own={"CODEX_HOME": ""},
        command=("codex",),
        notes=(
            "[features] multi_agent = false and goals = false save 2,500 tokens of every prompt",
            "its terminal interface asks raw.githubusercontent.com for news and goes on without; `codex exec` does not",
        ),
    )


def _opencode(target: Target) -> Recipe:
    name = f"turnout/{target.model}"
    limit = {"limit": {"context": target.window, "output": target.answer}} if target.window else {}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Turnout",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}" if target.keyed else NO_KEY},
        "models": {target.model: {"name": target.model, **limit}},
    }
    config = {
        "model": name,
        "small_model": name,
        "provider": {"turnout": provider},
        "enabled_providers": ["turnout"],
        "autoupdate": False,
        "share": "disabled",
    }
    switches = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE")
    env = {f"OPENCODE_DISABLE_{switch}": "1" for switch in switches}
    return Recipe(
        env | ({KEY_VARIABLE: target.key} if target.keyed else {}),
        folder="~/.config/opencode",
        files=(ConfigFile("opencode.json", _json(config)),),
        own={f"XDG_{kind.upper()}_HOME": kind for kind in ("config", "data", "state", "cache")},
        own_folder="config/opencode",
        command=("opencode",),
        notes=("it asks the package registry for its plugins once, and goes on when that fails",),
    )


def _qwen_code(target: Target) -> Recipe:
    generation = {"contextWindowSize": target.window, "samplingParams": {"max_tokens": target.answer}}
    model = {
        "id": target.model,
        "name": target.model,
        "envKey": "OPENAI_API_KEY",
        "baseUrl": f"{target.url}/v1",
        **({"generationConfig": generation} if target.window else {}),
    }
    config = {
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": target.model},
        "modelProviders": {"openai": [model]},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"enableAutoUpdate": False},
    }
    env = {
        "OPENAI_BASE_URL": f"{target.url}/v1",
        "OPENAI_API_KEY": target.key,
        "OPENAI_MODEL": target.model,
        "QWEN_USAGE_STATISTICS_ENABLED": "false",
        "QWEN_TELEMETRY_ENABLED": "false",
    }
    return Recipe(
        env,
        folder="~/.qwen",
        files=(ConfigFile("settings.json", _json(config)),),
        own={"QWEN_HOME": ""},
        command=("qwen",),
    )


def _continue(target: Target) -> Recipe:
    options = {"contextLength": target.window, "maxTokens": target.answer}
    model = {
        "name": target.model,
        "provider": "openai",
        "model": target.model,
        "apiBase": f"{target.url}/v1",
        "apiKey": target.key,
        "capabilities": ["tool_use"],
        **({"defaultCompletionOptions": options} if target.window else {}),
    }
    config = {"name": "turnout", "version": "1.0.0", "schema": "v1", "models": [model]}
    switches = ("CONTINUE_METRICS_ENABLED", "CONTINUE_CLI_ENABLE_TELEMETRY")
    return Recipe(
        dict.fromkeys(switches, "0"),
        folder="~/.continue",
        files=(ConfigFile("config.yaml", _json(config)),),
        own={"CONTINUE_GLOBAL_DIR": ""},
        command=("cn", "--config", "{folder}/config.yaml"),
        notes=("it looks for api.continue.dev at every start and goes on without",),
    )


def _cline(target: Target) -> Recipe:
    settings = {
        "provider": "openai-compatible",
        "apiKey": target.key,
        "model": target.model,
        "baseUrl": f"{target.url}/v1",
        **({"contextWindow": target.window} if target.window else {}),
    }
    switches = {"telemetryOptOut": True, "autoUpdateEnabled": False}
    provider = {"settings": settings, "updatedAt": "1970-01-01T00:00:00.000Z", "tokenSource": "manual"}
    config = {
        "version": 1,
        "lastUsedProvider": "openai-compatible",
        "modes": {},
        "providers": {"openai-compatible": provider},
    }
    return Recipe(
        {"CLINE_NO_AUTO_UPDATE": "1"},
        folder="~/.cline/data/settings",
        files=(ConfigFile("providers.json", _json(config)), ConfigFile("global-settings.json", _json(switches))),
        own={"CLINE_DIR": ""},
        own_folder="data/settings",
        command=("cline", "-P", "openai-compatible", "-m", target.model),
        notes=(
            "it asks data.cline.bot for feature flags at every start, has no switch for that, and goes on without",
            "it leaves a process behind (cline --cline-hub-daemon)",
        ),
    )


def _openwebui(target: Target) -> Recipe:
    env = {
        "ENABLE_OPENAI_API": "true",
        "OPENAI_API_BASE_URLS": f"{target.url}/v1",
        "OPENAI_API_KEYS": target.key,
        "ENABLE_OLLAMA_API": "false",
        "DEFAULT_MODELS": target.model,
        "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
    }
    kept = (
        "what its admin page has stored goes before these variables, unless ENABLE_PERSISTENT_CONFIG=false",
        "it writes .webui_secret_key into the current directory, unless WEBUI_SECRET_KEY is set",
    )
    return Recipe(env, own={"DATA_DIR": ""}, command=("open-webui", "serve"), notes=kept)


def _openai(target: Target) -> Recipe:
    env = {"OPENAI_BASE_URL": f"{target.url}/v1", "OPENAI_API_KEY": target.key}
    python = f"OpenAI(base_url={_text(target.url + '/v1')}, api_key={_text(target.key)})"
    return Recipe(env, notes=(_python("openai", "OpenAI", python, target),))


def _anthropic(target: Target) -> Recipe:
    env = {"ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_API_KEY": target.key}
    python = f"Anthropic(base_url={_text(target.url)}, api_key={_text(target.key)})"
    return Recipe(env, unset=("ANTHROPIC_AUTH_TOKEN",), notes=(_python("anthropic", "Anthropic", python, target),))


def _ollama(target: Target) -> Recipe:
    env = {"OLLAMA_HOST": target.url} | ({"OLLAMA_API_KEY": target.key} if target.keyed else {})
    bearer = f', headers={{"Authorization": {_text("Bearer " + target.key)}}}' if target.keyed else ""
    return Recipe(env, notes=(_python("ollama", "Client", f"Client(host={_text(target.url)}{bearer})", target),))


def _python(package: str, name: str, made: str, target: Target) -> str:
    return f"Python: from {package} import {name}; client = {made}  # model={_text(target.model)}"


def _text(value: str) -> str:
    """A string of TOML and of Python."""
    return json.dumps(value, ensure_ascii=False)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


AGENTS = (
    Agent("aider", "OpenAI chat", 4096, "pip install aider-chat", _aider),
    Agent("claude-code", "Anthropic messages", 32_768, "npm install -g @anthropic-ai/claude-code", _claude_code),
    Agent("cline", "OpenAI chat", 16_384, "npm install -g cline", _cline),
    Agent("codex", "OpenAI responses", 16_384, "npm install -g @openai/codex", _codex),
    Agent("continue", "OpenAI chat", 8192, "npm install -g @continuedev/cli", _continue),
    Agent("opencode", "OpenAI chat", 16_384, "npm install -g opencode-ai", _opencode),
    Agent("qwen-code", "OpenAI chat", 32_768, "npm install -g @qwen-code/qwen-code", _qwen_code),
    Agent("openwebui", "OpenAI chat", 0, "pip install open-webui", _openwebui),
    Agent("openai", "OpenAI chat, responses", 0, "", _openai),
    Agent("anthropic", "Anthropic messages", 0, "", _anthropic),
    Agent("ollama", "Ollama", 0, "", _ollama),
)
_ALIASES = {
    "claude": "claude-code",
    "qwen": "qwen-code",
    "qwen-cli": "qwen-code",
    "cn": "continue",
    "gemini": "gemini-cli",
    "open-webui": "openwebui",
}
