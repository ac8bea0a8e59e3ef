"""Which coding agent is calling: environment and process tree (SPEC AGENT-1; facts/agents.md section 6)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from turnout.config import AgentConfig, RouterConfig
from turnout.config_agents import AGENT_ALIASES, AGENT_DEFAULTS

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
              "cursor-agent": "cursor", "cursor": "cursor", "continue": "continue", "pi": "pi"}  # fmt: skip
_INTERPRETER = re.compile(r"(?:node|nodejs|MainThread|bun|deno|python[\d.]*|uv)\Z")
_SUFFIX = re.compile(r"\.(?:[cm]?js|py|exe)\Z")
_USUAL = AgentConfig()
_SETTINGS = {name: msgspec.convert(own, AgentConfig) for name, own in AGENT_DEFAULTS.items()}
_VERSIONED = re.compile(r"(?P<name>[a-z][a-z-]*?)[_@](?P<version>\d+(?:[-.]\d+)*)(?:_.*)?\Z")


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """Who calls: "" and ``unknown`` when nothing tells."""

    name: str = ""
    type: AgentType = "unknown"
    version: str = ""


def detect_coding_agent(env: Mapping[str, str] = os.environ, processes: Sequence[str] | None = None) -> AgentInfo:
    """The calling agent: ``AI_AGENT``, then markers, then ``AGENT``, then MCP, then the names of our ancestors.

    An agent that was started from another inherits its markers: of several agents the nearest ancestor is the caller.

    Args:
        env: environment variables. A daemon must not pass its own: it was not started by its clients.
        processes: names of the ancestor processes, nearest first; None reads them where the system tells.
    """
    marked = _marked(env)
    if len({agent.name for agent in marked}) == 1:
        return marked[0]
    running = [name for p in (_ancestors() if processes is None else processes) if (name := _agent_of(p))]
    if marked:
        near = {name: place for place, name in reversed(list(enumerate(running)))}
        return min(marked, key=lambda agent: near.get(agent.name, len(running)))
    return AgentInfo(running[0], "detected") if running else AgentInfo()


def _marked(env: Mapping[str, str]) -> list[AgentInfo]:
    """Every agent that left a mark, the surest first."""
    found: list[AgentInfo] = []
    if declared := env.get("AI_AGENT", ""):
        match = _VERSIONED.match(declared)
        version = match["version"].replace("-", ".") if match else ""
        found.append(AgentInfo(match["name"] if match else declared, "cli", version))
    for variable, name, kind in _MARKERS:
        if value := env.get(variable):
            version = value if re.fullmatch(r"\d+(\.\d+)+\S*", value) else ""
            found.append(AgentInfo(name, kind, version))
    # opencode's is a bare 1: no name.
    if (agent := env.get("AGENT", "")) and not agent.isdigit():
        found.append(AgentInfo(agent, "cli"))
    if client := env.get("MCP_CLIENT"):
        found.append(AgentInfo(client, "mcp"))
    return found


def _agent_of(process: str) -> str:
    return _PROCESSES.get(_SUFFIX.sub("", Path(process).name.lower()), "")


def _ancestors() -> list[str]:
    """Names of the processes above us, nearest first; for a script its own name, not its interpreter's."""
    names: list[str] = []
    pid = os.getppid()
    while pid > 1 and len(names) < 20:
        try:
            status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
            arguments = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
        except OSError:
            break
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        name = fields.get("Name", "").strip()
        script = next((word for word in arguments[1:] if word and not word.startswith("-")), "")
        names.append(script if _INTERPRETER.match(name) and script else name)
        pid = int(fields.get("PPid", "0") or 0)
    return names


def get_agent_specific_config(agent: str, config: RouterConfig | None = None) -> AgentConfig:
    """What an agent gets: as configured, else the owner's settings for it, else the defaults."""
    alias = AGENT_ALIASES.get(agent, agent)
    if config is not None and config.agents:
        found = config.agents.get(agent) or config.agents.get(alias)
        if found is not None:
            return found
    return _SETTINGS.get(alias, _USUAL)
