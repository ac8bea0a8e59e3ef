"""The coding agents that can be configured, and the owner's settings for some of them (SPEC AGENT-2)."""

from __future__ import annotations

# Coding agents by the names that are told of them (fleet/agents.py, fleet/callers.py).
AGENTS = (
    *("aider", "claude-code", "cline", "codex", "continue", "copilot", "crush", "cursor", "droid", "gemini-cli"),
    *("goose", "jan", "kilo-code", "kimi-code", "mistral-vibe", "openwebui", "opencode", "pi", "qwen-cli", "qwen-code"),
    *("roo-code", "zed"),
)
# The owner's names for what calls itself otherwise today.
AGENT_ALIASES = {"qwen-code": "qwen-cli"}
# The owner's (data/spec-agents.json of the specification).
AGENT_DEFAULTS: dict[str, dict[str, object]] = {
    "qwen-cli": {"default_model_preference": "qwen", "context_format": "qwen"},
    "aider": {"default_model_preference": "gpt", "context_format": "openai"},
    "cursor": {"default_model_preference": "claude", "context_format": "anthropic"},
    "continue": {"supports_streaming": True, "context_format": "openai"},
}


def agent_defaults(agent: str) -> dict[str, object]:
    """The keys of an agent's section that differ from the usual ones."""
    return AGENT_DEFAULTS.get(AGENT_ALIASES.get(agent, agent), {})
