"""Which coding agent is calling: environment and process tree (SPEC AGENT-1; facts/agents.md section 6)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AgentType = Literal["cli", "ide", "gui", "mcp", "detected", "unknown"]

# Real markers first (recorded from the agents' own children), then the owner's, which no agent sets today.
_MARKERS: tuple[tuple[str, str, AgentType], ...] = (
    ("CLAUDECODE", "claude-code", "cli"),
    ("CODEX_SESSION_ID", "codex", "cli"),
    ("CODEX_THREAD_ID", "codex", "cli"),
    ("OPENCODE", "opencode", "cli"),
    ("QWEN_CODE", "qwen-code", "cli"),
    ("GEMINI_CLI", "gemini-cli", "cli"),
    ("CLINE_ACTIVE", "cline", "ide"),
    ("CLINE_CONNECTOR_CLI_LAUNCH", "cline", "cli"),
    ("PI_CODING_AGENT", "pi", "cli"),
    ("GOOSE_TERMINAL", "goose", "cli"),
    ("CRUSH", "crush", "cli"),
    ("ROO_ACTIVE", "roo-code", "ide"),
    ("CURSOR_AGENT", "cursor", "ide"),
    ("COPILOT_CLI", "copilot", "cli"),
    ("QWEN_CLI_VERSION", "qwen-cli", "cli"),
    ("OPENCODE_SESSION", "opencode", "cli"),
    ("AIDER_SESSION", "aider", "cli"),
    ("CODEX_SESSION", "codex", "cli"),
    ("GEMINI_CLI_SESSION", "gemini-cli", "cli"),
    ("CONTINUE_SESSION", "continue", "ide"),
    ("CLINE_SESSION", "cline", "ide"),
    ("ROO_CODE_SESSION", "roo-code", "ide"),
    ("CURSOR_SESSION", "cursor", "ide"),
    ("OPENWEBUI_SESSION", "openwebui", "gui"),
    ("JAN_SESSION", "jan", "gui"),
    ("AGNO_SESSION", "agno", "gui"),
    ("LLM_AGENT", "generic", "unknown"),
)
_PROCESSES = {"claude": "claude-code", "codex": "codex", "opencode": "opencode", "qwen": "qwen-code", "aider": "aider",
              "gemini": "gemini-cli", "cline": "cline", "cn": "continue", "goose": "goose", "crush": "crush",
              "cursor-agent": "cursor", "pi": "pi"}  # fmt: skip
_VERSIONED = re.compile(r"(?P<name>[a-z][a-z-]*?)[_@](?P<version>\d+(?:[-.]\d+)*)(?:_.*)?\Z")


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """Who calls: "" and ``unknown`` when nothing tells."""

    name: str = ""
    type: AgentType = "unknown"
    version: str = ""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent likes: a family of models, a context format, streaming."""

    default_model_preference: str = ""
    context_format: str = ""
    supports_streaming: bool = True


_OVERRIDES = {
    "qwen-cli": AgentConfig("qwen", "qwen"),
    "aider": AgentConfig("gpt", "openai"),
    "cursor": AgentConfig("claude", "anthropic"),
    "continue": AgentConfig(context_format="openai", supports_streaming=True),
}


def detect_coding_agent(env: Mapping[str, str] = os.environ, processes: Sequence[str] | None = None) -> AgentInfo:
    """The calling agent: ``AI_AGENT``, then markers, then ``AGENT``, then MCP, then the names of our ancestors.

    Args:
        env: environment variables. A daemon must not pass its own: it was not started by its clients.
        processes: names of the ancestor processes, nearest first; None reads them where the system tells.
    """
    declared = env.get("AI_AGENT", "")
    if declared:
        match = _VERSIONED.match(declared)
        version = match["version"].replace("-", ".") if match else ""
        return AgentInfo(match["name"] if match else declared, "cli", version)
    for variable, name, kind in _MARKERS:
        if value := env.get(variable):
            version = value if re.fullmatch(r"\d+(\.\d+)+\S*", value) else ""
            return AgentInfo(name, kind, version)
    if (agent := env.get("AGENT", "")) and not agent.isdigit():
        return AgentInfo(agent, "cli")
    if client := env.get("MCP_CLIENT"):
        return AgentInfo(client, "mcp")
    for process in _ancestors() if processes is None else processes:
        if found := _PROCESSES.get(Path(process).name.lower()):
            return AgentInfo(found, "detected")
    return AgentInfo()


def _ancestors() -> list[str]:
    names: list[str] = []
    pid = os.getppid()
    while pid > 1 and len(names) < 20:
        try:
            status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
        except OSError:
            break
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        names.append(fields.get("Name", "").strip())
        pid = int(fields.get("PPid", "0") or 0)
    return names


def get_agent_specific_config(agent: str) -> AgentConfig:
    """The owner's settings for an agent, or the defaults."""
    return _OVERRIDES.get(agent, AgentConfig())
